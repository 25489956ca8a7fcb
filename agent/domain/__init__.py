"""Pure cores, values and ports of the agent: standard library only, no clock, I/O or logging."""
