"""Parses what is pushed as bytes, one file per format. No torch, and runs nothing it reads."""
