"""What the agent decides, as pure functions of frozen values.

Refuses clocks, I/O, randomness, threads, logging and every import outside the standard library.
"""
