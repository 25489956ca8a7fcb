"""Everything of the agent that must survive a power cut.

Refuses to decide anything: it keeps, finds and verifies what the loop hands it.
"""
