"""Slots, journal and spool: all that must survive a power cut. Decides nothing."""
