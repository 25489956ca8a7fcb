"""The faulty network of the tests: the relay that the demo uses too, so that there is only one."""

from examples.fleet.proxy import Direction, Door, Faults, Proxy

__all__ = ["Direction", "Door", "Faults", "Proxy"]
