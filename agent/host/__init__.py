"""Sensors and probes of the host under a root folder. Reads, never tunes."""
