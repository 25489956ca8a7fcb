"""Keeps the raw log lines of gRPC's C library off the terminal. Imports only the standard library.

What a command has to say of a connection it says itself, in words that tell what to do.
"""

import os

VERBOSITY = "GRPC_VERBOSITY"


def quiet_grpc() -> None:
    """Ask gRPC for errors alone, unless somebody asked for more. Call before it is imported."""
    os.environ.setdefault(VERBOSITY, "ERROR")
