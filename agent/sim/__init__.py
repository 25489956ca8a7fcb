"""Simulated agents over the real wire: many in one process, each with an identity of its own."""
