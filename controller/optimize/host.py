"""The machine that builds, as profiles match it: what `measured_on` means. Invents nothing."""

import os
import platform
import shutil
from importlib import metadata
from pathlib import Path

from controller.domain.device import Capabilities

_RUNTIMES = ("onnxruntime", "openvino", "tensorrt")
_CPU_KEYS = ("model name", "Model", "Hardware")


def build_host(disk: Path, root: Path = Path("/")) -> Capabilities:
    """Facts of this machine; ``disk`` is where builds are written."""
    cpu = platform.processor()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Capabilities(
        arch=platform.machine(),
        os=_os_name(root),
        cpu_model=_cpu_model(root) or cpu,
        device_model=_first(
            root / "proc/device-tree/model", root / "sys/class/dmi/id/product_name"
        ),
        runtimes=_runtimes(),
        memory_bytes=memory,
        disk_bytes=shutil.disk_usage(disk).free,
        agent_version=_version("lighterman"),
        python=platform.python_version(),
    )


def measured_on(host: Capabilities) -> str:
    """The host in a few words: ``x86_64 Intel(R) N100``."""
    return " ".join(part for part in (host.arch, host.cpu_model or host.device_model) if part)


def _cpu_model(root: Path) -> str:
    try:
        lines = (root / "proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return ""
    fields = {key.strip(): value.strip() for key, _, value in (x.partition(":") for x in lines)}
    return next((fields[key] for key in _CPU_KEYS if fields.get(key)), "")


def _os_name(root: Path) -> str:
    try:
        lines = (root / "etc/os-release").read_text(errors="replace").splitlines()
    except OSError:
        return platform.system()
    named = [line.partition("=")[2].strip('"') for line in lines if line.startswith("PRETTY_NAME=")]
    return named[0] if named else platform.system()


def _first(*files: Path) -> str:
    for file in files:
        try:
            text = file.read_text(errors="replace").strip("\x00\n ")
        except OSError:
            continue
        if text:
            return text
    return ""


def _runtimes() -> dict[str, str]:
    found = {name: _version(name) for name in _RUNTIMES}
    return {name: version for name, version in found.items() if version}


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""
