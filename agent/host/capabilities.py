"""Finds out what this device is and can run. Refuses labels, guesses and importing a runtime.

detect(root: Path, state_dir: Path) -> agent.domain.capability.Capabilities
"""

import ctypes
import mmap
import os
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from agent.domain.capability import Capabilities
from agent.host.files import children, read_text
from agent.host.sensors import disk_free_bytes, memory_total_bytes

RUNTIME_GROUP = "lighterman.runtimes"

# These write machine code for this processor when a model is loaded.
_MAKE_CODE = frozenset({"openvino", "torch", "tensorrt", "tensorrt-rtx", "executorch"})
# What a board's maker left in the DMI table instead of a name.
_NO_NAME = {"to be filled by o.e.m.", "default string", "system product name", "not specified"}
# Implementer and part as /proc/cpuinfo gives them on Arm, which has no model name there.
_ARM_CORES = {
    ("0x41", "0xd03"): "Cortex-A53",
    ("0x41", "0xd07"): "Cortex-A57",
    ("0x41", "0xd08"): "Cortex-A72",
    ("0x41", "0xd0b"): "Cortex-A76",
    ("0x41", "0xd42"): "Cortex-A78AE",
    ("0x4e", "0x004"): "Carmel",
}
_TEGRA = {"nvidia,tegra234": "orin", "nvidia,tegra194": "xavier", "nvidia,tegra210": "nano"}
_INTEL = "0x8086"


def detect(root: Path, state_dir: Path, elsewhere: Mapping[str, str] | None = None) -> Capabilities:
    """Read the facts a profile is matched by; unknown text stays empty, unknown sizes 0.

    `elsewhere`: runtimes of another Python that can be run, and their versions.
    """
    cpuinfo = read_text(root / "proc/cpuinfo") or ""
    try:
        disk = disk_free_bytes(state_dir)
    except OSError:
        disk = 0
    return Capabilities(
        arch=read_text(root / "proc/sys/kernel/arch") or os.uname().machine,
        os=_os_name(root),
        cpu_model=_cpu_model(cpuinfo),
        device_model=_device_model(root),
        accelerators=_accelerators(root),
        runtimes={**(elsewhere or {}), **installed_runtimes()},
        memory_bytes=memory_total_bytes(root) or 0,
        disk_bytes=disk,
        agent_version=_version_of("lighterman") or "",
        python=platform.python_version(),
        host_simulated=root.resolve() != Path("/"),
    )


def installed_runtimes() -> dict[str, str]:
    """Registered runtimes that can run here, with their library's version; nothing is imported."""
    found: dict[str, str] = {}
    for entry in metadata.entry_points(group=RUNTIME_GROUP):
        if entry.name in _MAKE_CODE and not may_make_code():
            continue
        # The accelerated flavours of a library ship the same import under another name.
        for name in (entry.name, f"{entry.name}-gpu", f"{entry.name}-openvino"):
            version = _version_of(name)
            if version is not None:
                found[entry.name] = version
                break
    return found


def absent_runtimes() -> dict[str, str]:
    """Registered runtimes that cannot run here, and why."""
    registered = {entry.name for entry in metadata.entry_points(group=RUNTIME_GROUP)}
    absent = sorted(registered - set(installed_runtimes()))
    return {
        name: "not installed" if _version_of(name) is None else "this process may not make code"
        for name in absent
    }


def runnable(elsewhere: Mapping[str, str]) -> dict[str, str]:
    """Of the runtimes of another Python those that can run in a child of this process."""
    free = may_make_code()
    return {name: v for name, v in elsewhere.items() if free or name not in _MAKE_CODE}


def may_make_code() -> bool:
    """Whether this process may run code that it wrote itself: service managers can forbid it."""
    libc = ctypes.CDLL(None, use_errno=True)
    with mmap.mmap(-1, mmap.PAGESIZE) as page:
        start = ctypes.addressof(ctypes.c_char.from_buffer(page))
        libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        allowed: int = libc.mprotect(start, mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_EXEC)
    return allowed == 0


def _version_of(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _os_name(root: Path) -> str:
    for line in (read_text(root / "etc/os-release") or "").splitlines():
        key, _, value = line.partition("=")
        if key == "PRETTY_NAME":
            return value.strip("\"' ")
    return platform.system()


def _cpu_field(cpuinfo: str, wanted: str) -> str:
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == wanted:
            return value.strip()
    return ""


def _cpu_model(cpuinfo: str) -> str:
    name = _cpu_field(cpuinfo, "model name")
    if name:
        return name
    core = (_cpu_field(cpuinfo, "CPU implementer"), _cpu_field(cpuinfo, "CPU part"))
    return _ARM_CORES.get(core, "")


def _device_model(root: Path) -> str:
    for path in ("proc/device-tree/model", "sys/class/dmi/id/product_name"):
        name = read_text(root / path)
        if name and name.lower() not in _NO_NAME:
            return name
    return ""


def _accelerators(root: Path) -> tuple[str, ...]:
    found: list[str] = []
    for compatible in (read_text(root / "proc/device-tree/compatible") or "").split("\0"):
        if compatible in _TEGRA:
            found.append(f"cuda:{_TEGRA[compatible]}")
    for card in children(root / "proc/driver/nvidia/gpus", "*/information"):
        model = _cpu_field(read_text(card) or "", "Model")
        if model:
            found.append(f"cuda:{model}")
    for folder, pattern, kind in (("drm", "card[0-9]", "gpu"), ("accel", "accel[0-9]", "npu")):
        for node in children(root / "sys/class" / folder, pattern):
            if read_text(node / "device/vendor") == _INTEL:
                found.append(f"{kind}:intel")
    return tuple(dict.fromkeys(found))
