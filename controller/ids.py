"""Ids that people can read out on the phone: ``r-7k2m9q``. Unique by retry, not by length."""

import secrets
from typing import Protocol

# No vowels and no look-alikes: no words, no 0/o, 1/l.
ALPHABET = "23456789bcdfghjkmnpqrstvwxyz"


class Ids(Protocol):
    """Source of new ids."""

    def new(self, prefix: str) -> str:
        """A fresh id such as ``r-7k2m9q`` for prefix ``r``."""
        ...


class RandomIds:
    """Ids from the system's random source."""

    def new(self, prefix: str) -> str:
        """A fresh id: prefix, dash, six characters."""
        return f"{prefix}-" + "".join(secrets.choice(ALPHABET) for _ in range(6))
