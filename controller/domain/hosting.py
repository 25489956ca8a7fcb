"""What a profile says of how its devices run builds: in which process, with which options.

Refuses options that a runtime of this project does not know: on devices a typo would be silence.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from controller.domain.spec import Spec
from controller.errors import InvalidError

Option = str | int | float | bool


class ModelHost(StrEnum):
    """Which process runs a build."""

    IN_PROCESS = "in_process"
    CHILD = "child"


# What the agent sets itself, whatever a profile says.
RESERVED = frozenset({"digest", "cache_dir", "model_host", "runtime_python", "host_memory_bytes"})
# Of the runtimes here; one of others has its own options and checks them on the device.
KNOWN: Mapping[str, Mapping[str, type[Option]]] = {
    "onnxruntime": {
        "providers": str, "device_id": int, "gpu_memory_bytes": int, "fp16": bool, "int8": bool,
        "cpu_fallback": bool, "intra_op_threads": int,
    },
    "openvino": {"device": str, "static": bool, "intra_op_threads": int},
    "tensorrt": {
        "device_id": int, "fp16": bool, "workspace_bytes": int, "headroom_bytes": int,
        "max_batch": int, "opt_batch": int, "max_side": int, "opt_side": int, "min_side": int,
        "level": int,
    },
    "torch": {"compile": bool, "intra_op_threads": int},
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Hosting:
    """How builds run on the devices of a profile."""

    model_host: ModelHost = ModelHost.IN_PROCESS
    runtime_python: str = ""
    options: Mapping[str, Mapping[str, Option]] = field(default_factory=dict)

    def of(self, runtime: str) -> dict[str, Option]:
        """What a device is told beside a build of this runtime; empty where all is as ever."""
        found: dict[str, Option] = dict(self.options.get(runtime, {}))
        if self.model_host is not ModelHost.IN_PROCESS:
            found["model_host"] = self.model_host.value
        if self.runtime_python:
            found["runtime_python"] = self.runtime_python
        return found


def parse_hosting(top: Spec) -> Hosting:
    """From the ``spec`` of a profile; InvalidError names the key that is wrong."""
    host = top.text("model_host", ModelHost.IN_PROCESS.value)
    if host not in set(ModelHost):
        raise InvalidError(
            f"{top.where}.model_host is {host!r}", f"known are {', '.join(ModelHost)}"
        )
    options = top.sub("runtime_options")
    [str(runtime) for runtime in options.body]
    return Hosting(
        ModelHost(host),
        top.text("runtime_python", ""),
        {
            str(runtime): _options(options.sub(str(runtime)), str(runtime))
            for runtime in options.body
        },
    )


def _options(spec: Spec, runtime: str) -> dict[str, Option]:
    known = KNOWN.get(runtime)
    if known is not None:
        spec.only(*known)
    found: dict[str, Option] = {}
    for key, value in spec.body.items():
        if key in RESERVED:
            raise InvalidError(f"{spec.where}.{key} is the agent's own")
        if not isinstance(value, str | int | float | bool):
            raise InvalidError(f"{spec.where}.{key} is {value!r}: a text, number or flag is needed")
        wanted = (known or {}).get(key, type(value))
        if type(value) is not wanted:
            raise InvalidError(f"{spec.where}.{key} is {value!r}, {_NAMES[wanted]} is needed")
        found[key] = value
    return found


_NAMES = {str: "a text", int: "a whole number", bool: "true or false", float: "a number"}
