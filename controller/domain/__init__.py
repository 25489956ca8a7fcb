"""Pure cores and values of the controller: standard library only, no clock, no I/O, no logging."""
