"""Which of OpenVINO's devices computes, and what it wants. Imports no library: it is given.

Refuses names that are none: a device that is not there is another thing, and is said.
"""

from typing import Any

from agent.errors import LoadError

CPU, GPU, NPU = "CPU", "GPU", "NPU"


def choose(core: Any, text: str) -> tuple[str, list[str]]:
    """The first wanted device that is there, and those before it that are not."""
    wanted = [name.strip().upper() for name in text.split(",") if name.strip()]
    unknown = sorted(set(wanted) - {CPU, GPU, NPU})
    if unknown or not wanted:
        raise LoadError(f"openvino has no device {text!r}", f"known: {CPU}, {GPU}, {NPU}")
    # Several of a kind are GPU.0 and GPU.1; the kind itself is the first of them.
    there = {name.partition(".")[0] for name in core.available_devices} | {CPU}
    found = next((name for name in wanted if name in there), CPU)
    absent = wanted[: wanted.index(found)] if found in wanted else wanted
    return found, absent


def properties_of(device: str, precision: str, threads: int) -> dict[str, Any]:
    """Accelerators compute in 16 bits by nature: only the CPU is held to a precision."""
    if device != CPU:
        return {}
    return {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "ENABLE_CPU_PINNING": False,
        "INFERENCE_PRECISION_HINT": precision}  # fmt: skip


def facts_of(core: Any, device: str, static: bool) -> dict[str, str]:
    """What a compiled model depends on beside the processor; nothing new for the CPU as ever."""
    facts = {"static": "1"} if static else {}
    if device == CPU:
        return facts
    for name in ("FULL_DEVICE_NAME", "GPU_DRIVER_VERSION", "NPU_DRIVER_VERSION"):
        try:
            facts[name] = str(core.get_property(device, name))
        # Which properties there are depends on the device and its driver.
        except Exception:  # noqa: BLE001
            continue
    return {**facts, "device": device}


def one_row(shape: Any) -> list[int]:
    """Static, with one row; LoadError where another axis is dynamic."""
    sizes = [axis.get_length() if axis.is_static else 0 for axis in shape]
    if 0 in sizes[1:]:
        raise LoadError("only the first axis may be dynamic where the model has to be static")
    return [sizes[0] or 1, *sizes[1:]]


def said_of(absent: list[str], device: str) -> tuple[str, ...]:
    """For operators: what was asked for and is not there."""
    if not absent:
        return ()
    return (f"OpenVINO finds no {' and no '.join(absent)} here: {device} computes",)
