"""What every servicer is built on: the dependencies, and a call's context from its TLS identity.

Trusts nothing a caller says of itself in a message; maps no error (an interceptor does).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc

from controller.errors import UnauthenticatedError
from controller.services.context import Ctx, Deps

_URN = "urn:lighterman:"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls, as the client certificate says."""

    role: str
    name: str
    certificate_pem: bytes


def caller_of(context: grpc.ServicerContext) -> Caller:
    """The caller's identity; UnauthenticatedError where no certificate of ours was presented."""
    auth: dict[str, Any] = dict(context.auth_context())
    for entry in auth.get("x509_subject_alternative_name", ()):
        uri = entry.decode("utf-8", "replace")
        if not uri.startswith(_URN):
            continue
        role, _, name = uri[len(_URN) :].partition(":")
        pem = b"".join(auth.get("x509_pem_cert", ()))
        if role and name and pem:
            return Caller(role, name, pem)
    raise UnauthenticatedError(
        "the connection carries no certificate of this controller",
        "use a context written by `lighterman-controller operator issue` or by `serve`",
    )


class ApiBase:
    """Base of the servicers and their mixins. `new_ctx` makes a call's context for an actor."""

    def __init__(self, deps: Deps, new_ctx: Callable[[str], Ctx]) -> None:
        self.deps = deps
        self.new_ctx = new_ctx

    def ctx(self, context: grpc.ServicerContext) -> Ctx:
        """The context of this call; the actor is the caller's common name (unique across roles)."""
        return self.new_ctx(caller_of(context).name)
