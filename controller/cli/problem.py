"""What fleetctl says when something is wrong, and its exit codes. Prints nothing itself."""

import grpc

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_ROLLOUT = 3
EXIT_DENIED = 4
EXIT_UNREACHABLE = 5

_EXIT_BY_CODE = {
    grpc.StatusCode.PERMISSION_DENIED: EXIT_DENIED,
    grpc.StatusCode.UNAUTHENTICATED: EXIT_DENIED,
    grpc.StatusCode.UNAVAILABLE: EXIT_UNREACHABLE,
}


class CliError(Exception):
    """An error for people: first line what, further lines where and what to do."""

    def __init__(self, text: str, exit_code: int = EXIT_FAILED) -> None:
        super().__init__(text)
        self.text = text
        self.exit_code = exit_code


def from_rpc(error: grpc.RpcError, controller: str) -> CliError:
    """The controller's answer as an error for people."""
    code = error.code() if isinstance(error, grpc.Call) else grpc.StatusCode.UNKNOWN
    details = (error.details() if isinstance(error, grpc.Call) else "") or code.name.lower()
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return CliError(
            f"controller at {controller} did not answer in time\n"
            "the call may still take effect; look before you repeat it",
            EXIT_UNREACHABLE,
        )
    if code is grpc.StatusCode.CANCELLED:
        return CliError(
            f"controller at {controller} ended the call\n"
            "ask again; where your certificate was revoked meanwhile, the answer says so",
            EXIT_DENIED,
        )
    if code is grpc.StatusCode.UNAVAILABLE and (
        "failed to connect" in details or ":" not in details
    ):
        details = f"controller at {controller} went away during the call\n{details}"
    if code is grpc.StatusCode.UNIMPLEMENTED:
        details = (
            f"controller at {controller} does not know this request\n"
            "it is older than this fleetctl; upgrade the controller"
        )
    return CliError(details, _EXIT_BY_CODE.get(code, EXIT_FAILED))


def render(text: str) -> str:
    """``error: `` and the text, detail lines indented by two (four where they were indented)."""
    first, *rest = text.rstrip().split("\n")
    return "\n".join([f"error: {first}", *(f"  {line}" for line in rest)])
