"""The shared wire contract: protocol stubs, topic names, settings and extras. Holds no decision and no I/O."""
