"""Reads where a remote rung infers, and under which name a version is known there.

    grpc://HOST:PORT                  the server names versions as this product does: another agent
    grpc://HOST:PORT?1.1.0=1          what is 1.1.0 here is version 1 there (Triton counts versions)
    grpc://HOST:PORT?1.1.0=1&1.2.0=2  several of them
    grpc://HOST:PORT?1.1.0=           a server without versions, of which somebody says that it
                                      serves 1.1.0

Refuses to guess: a version that is not named in the query is asked for by its own name.
"""

import re
from dataclasses import dataclass

from agent.errors import LoadError

SCHEME = "grpc://"
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}")


@dataclass(frozen=True, slots=True)
class RemoteAddress:
    """HOST:PORT, and the versions that have another name there."""

    address: str
    names: tuple[tuple[str, str], ...] = ()

    def name_of(self, version: str) -> str:
        """What the server calls this version; empty where it has no versions."""
        return dict(self.names).get(version, version)


def parse_remote(endpoint: str) -> RemoteAddress:
    """Read the endpoint of a remote rung; LoadError says what it should look like."""
    rest, has_query, query = endpoint.removeprefix(SCHEME).partition("?")
    host, _, port = rest.rpartition(":")
    if not endpoint.startswith(SCHEME) or not host or not port.isdigit():
        raise LoadError(
            f"remote rung endpoint {endpoint!r} is no address", f"write {SCHEME}HOST:PORT"
        )
    pairs = [pair.partition("=") for pair in query.split("&")] if has_query else []
    for here, equals, there in pairs:
        if not equals or not _VERSION.fullmatch(here) or (there and not _VERSION.fullmatch(there)):
            raise LoadError(
                f"remote rung endpoint {endpoint!r} names no version in {here + equals + there!r}",
                f"write {SCHEME}HOST:PORT?VERSION=NAME_THERE",
            )
    names = tuple((here, there) for here, _, there in pairs)
    if len(dict(names)) != len(names):
        raise LoadError(f"remote rung endpoint {endpoint!r} names a version twice")
    return RemoteAddress(rest, names)


def why_not(
    address: RemoteAddress, model: str, version: str, served: tuple[str, ...] | None
) -> str:
    """Why a server that lives is no link for this version, for people.

    `served` are the versions of the model that it names; None when it has no such model.
    """
    if served is None:
        return f"{address.address} does not serve {model}"
    there = address.name_of(version)
    if there in served or not served or not there:
        return f"{address.address} is not ready for {model}:{version}"
    alias = "" if there == version else f" (which is {version} here)"
    return f"{address.address} serves {model}:{', '.join(served)}, not {there}{alias}"
