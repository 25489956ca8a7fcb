"""Verbs in the users' words: one function is one transaction. Knows no transport."""
