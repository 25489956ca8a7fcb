"""Random faults over a small fleet, from a seed; `python -m tests.faults --minutes 10`."""
