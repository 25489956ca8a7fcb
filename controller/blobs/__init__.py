"""Content-addressed artifacts by digest. Knows bytes, not what they mean."""
