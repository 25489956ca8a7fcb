"""The shared wire contract: stubs, topic names, settings, extras. Decides nothing, no I/O."""
