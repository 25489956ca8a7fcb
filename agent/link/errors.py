"""What can go wrong on the road to the controller, by what the caller may do about it.

Refuses to decide: whether and when to try again is the caller's, `kind` says what can help.
"""

from enum import StrEnum

from agent.errors import AgentError


class LinkFault(StrEnum):
    """Why a call failed, by what can help."""

    UNREACHABLE = "unreachable"  # try again later
    BUSY = "busy"  # try again, not before retry_after_s
    REFUSED = "refused"  # the controller said no; trying again changes nothing
    DENIED = "denied"  # it does not take this device or its certificate (any more)
    UNTRUSTED = "untrusted"  # the other side is not who it should be


class LinkError(AgentError):
    """A call to the controller or broker failed. `retry_after_s` is 0 where nothing was said."""

    def __init__(
        self,
        message: str,
        hint: str = "",
        *,
        fault: LinkFault = LinkFault.UNREACHABLE,
        retry_after_s: float = 0.0,
    ) -> None:
        super().__init__(message, hint)
        self.fault = fault
        self.retry_after_s = retry_after_s

    @property
    def retryable(self) -> bool:
        """Whether the same call may succeed later without anybody's doing."""
        return self.fault in (LinkFault.UNREACHABLE, LinkFault.BUSY)


class EnrolError(LinkError):
    """The device could not be enrolled."""


class TrustError(LinkError):
    """Something that came over the wire is not signed as it must be; nothing of it is used."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint, fault=LinkFault.UNTRUSTED)
