"""Errors of the agent: each says what failed, where, and what to do about it.

Refuses to know any transport: gRPC and HTTP codes are mapped at the edges.
"""


class AgentError(Exception):
    """Base of every error the agent raises on purpose; `hint` says what to do."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message if not hint else f"{message}\n  {hint}")
        self.message = message
        self.hint = hint


class ManifestError(AgentError):
    """The desired state cannot be accepted; nothing of it is applied."""


class RequestError(AgentError):
    """An inference request does not fit the model's signature: the client's fault."""


class UnknownModelError(AgentError):
    """No such model, or no such version of it, is served here."""


class UnavailableError(AgentError):
    """The model cannot answer now: rung off, not loaded yet, or shutting down."""


class BusyError(UnavailableError):
    """Too many requests wait already; `retry_s` is when asking again makes sense, whole seconds."""

    def __init__(self, message: str, hint: str = "", *, retry_s: int = 1) -> None:
        super().__init__(message, hint)
        self.retry_s = retry_s


class InferenceError(AgentError):
    """The runtime failed on a valid request: the model's fault, a failed sample."""


class LoadError(AgentError):
    """A build could not be loaded or warmed by its runtime."""


class IllegalTransitionError(AgentError):
    """An event came in a state that has no room for it; the message tells the story."""


class StoreError(AgentError):
    """The state directory refused; what was stored before is unchanged."""


class DiskFullError(StoreError):
    """No space (or quota) left; nothing partial was kept as if it were whole."""


class WriteFailedError(StoreError):
    """A write, rename or directory operation failed (read-only, I/O error)."""


class FsyncFailedError(StoreError):
    """fsync failed, so nothing is known to be on the disk: never a success."""


class DigestMismatchError(StoreError):
    """The bytes are not those that were signed; they were removed."""


class NotStoredError(StoreError):
    """What was asked for is not in the store."""


class SpoolFullError(StoreError):
    """The spool reached its bound; this entry was not taken and used no number."""


class IdentityError(StoreError):
    """This device has no usable identity, or it would have been overwritten."""


class FetchError(AgentError):
    """A download did not complete; `retryable` says whether trying again can help."""

    def __init__(self, message: str, hint: str = "", *, retryable: bool = True) -> None:
        super().__init__(message, hint)
        self.retryable = retryable
