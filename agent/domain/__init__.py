"""Pure cores, values and ports of the agent: standard library only, no clock, no I/O, no logging."""
