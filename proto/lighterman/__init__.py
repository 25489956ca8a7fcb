"""The shared wire contract: protocol stubs, topic names, settings, extras. Decides nothing, no I/O."""
