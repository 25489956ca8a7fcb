"""The dozen calls of CUDA's runtime that inference takes, by ctypes.

Why not `cuda-python`: it has to fit the CUDA of the device and is no part of JetPack, while
libcudart lies beside TensorRT wherever that is. Refuses to go on after an error. In the syntax of
Python 3.8.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import glob
import os
import sys
from typing import Any

_TO_DEVICE, _TO_HOST = 1, 2
_MAJOR, _MINOR, _INTEGRATED = 75, 76, 18  # cudaDeviceAttr
_NAME_BYTES, _PROPERTIES_BYTES = 256, 8192  # the struct grows with each CUDA; its name stays first


class CudaError(RuntimeError):
    """A call failed, or there is no CUDA here."""


class Cuda:
    """One device of this process. CudaError where there is none."""

    def __init__(self, device: int = 0, library: Any = None) -> None:
        self._lib = library or _open()
        self._lib.cudaGetErrorString.restype = ctypes.c_char_p
        self._device = device
        self.use()

    def use(self) -> None:
        """Devices are chosen by thread: call it first in each."""
        self._call("cudaSetDevice", ctypes.c_int(self._device))

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._lib, name)(*arguments)
        if code:
            words = self._lib.cudaGetErrorString(code)
            said = words.decode("ascii", "replace") if isinstance(words, bytes) else "unknown"
            raise CudaError(f"{name}: {said} ({code})")

    def name(self) -> str:
        """As `NVIDIA Orin`."""
        properties = ctypes.create_string_buffer(_PROPERTIES_BYTES)
        self._call("cudaGetDeviceProperties", properties, ctypes.c_int(self._device))
        return properties.raw[:_NAME_BYTES].split(b"\0")[0].decode("ascii", "replace")

    def capability(self) -> str:
        """Compute capability, as `8.7`."""
        return f"{self._attribute(_MAJOR)}.{self._attribute(_MINOR)}"

    def is_integrated(self) -> bool:
        """Whether it takes the host's own memory, as on a Jetson."""
        return bool(self._attribute(_INTEGRATED))

    def _attribute(self, which: int) -> int:
        found = ctypes.c_int()
        self._call("cudaDeviceGetAttribute", ctypes.byref(found), which, self._device)
        return found.value

    def free_bytes(self) -> int:
        """Of the device's memory."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self._call("cudaMemGetInfo", ctypes.byref(free), ctypes.byref(total))
        return free.value

    def take(self, size: int) -> int:
        """Memory of the device; its address."""
        found = ctypes.c_void_p()
        self._call("cudaMalloc", ctypes.byref(found), ctypes.c_size_t(max(1, size)))
        return found.value or 0

    def give(self, address: int) -> None:
        """Free what was taken."""
        self._call("cudaFree", ctypes.c_void_p(address))

    def stream(self) -> int:
        """A new queue of work."""
        found = ctypes.c_void_p()
        self._call("cudaStreamCreate", ctypes.byref(found))
        return found.value or 0

    def end_stream(self, stream: int) -> None:
        """Give it back."""
        self._call("cudaStreamDestroy", ctypes.c_void_p(stream))

    def copy_in(self, address: int, host: int, size: int, stream: int) -> None:
        """From the host's address to the device's."""
        self._copy(address, host, size, _TO_DEVICE, stream)

    def copy_out(self, host: int, address: int, size: int, stream: int) -> None:
        """From the device's address to the host's."""
        self._copy(host, address, size, _TO_HOST, stream)

    def _copy(self, to: int, source: int, size: int, way: int, stream: int) -> None:
        self._call(
            "cudaMemcpyAsync", ctypes.c_void_p(to), ctypes.c_void_p(source),
            ctypes.c_size_t(size), ctypes.c_int(way), ctypes.c_void_p(stream),
        )  # fmt: skip

    def wait(self, stream: int) -> None:
        """Until all of a queue is done."""
        self._call("cudaStreamSynchronize", ctypes.c_void_p(stream))


def _open() -> Any:
    """JetPack's, the distribution's, or what a wheel brought."""
    found = ctypes.util.find_library("cudart")
    wheels = [os.path.join(path, "nvidia", "*", "lib", "libcudart.so.*") for path in sys.path]
    places = ["/usr/local/cuda/lib64/libcudart.so*", *wheels]
    files = [file for place in places for file in sorted(glob.glob(place))]
    for name in [*([found] if found else []), *files]:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise CudaError("libcudart is not here: install CUDA's runtime (JetPack brings it)")
