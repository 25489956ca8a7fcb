"""Pure cores and values of the controller: standard library only, no clock, I/O or logging."""
