"""Parses what is pushed as bytes, one file per format. Never imports torch, never runs what it reads."""
