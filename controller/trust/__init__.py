"""Certificate authority, tokens and signing as functions of bytes. Persists nothing."""
