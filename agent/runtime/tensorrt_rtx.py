"""TensorRT for RTX behind the backend door. Imported library: only inside `load`.

Its engines are made ahead of time, on a worker without a GPU, for a range of GPUs; the library
finishes them when they are loaded. Refuses engines of another version, and GPUs that they are not
for.
"""

from typing import Any

from agent.errors import LoadError
from agent.runtime.backend import Backend, Options
from agent.runtime.cuda import Cuda
from agent.runtime.engine import Engine
from agent.runtime.packed import unpack
from agent.runtime.plain import open_as_backend

KIND = "tensorrt-rtx"


def load(path: str, options: Options) -> Backend:
    """Open a build; options: `device_id` (0). LoadError says why not."""
    return open_as_backend(KIND, open_plain, path, options)


def open_plain(path: str, options: Options) -> Engine:
    """Open a build."""
    packed = unpack(path, KIND)
    import tensorrt_rtx

    check_version(packed.about, tensorrt_rtx.__version__)
    cuda = Cuda(int(options.get("device_id", 0)))
    here, wanted = cuda.capability().replace(".", ""), packed.about["capabilities"]
    if here not in wanted:
        raise LoadError(f"{path} is for GPUs of {', '.join(wanted)}, {cuda.name()} is {here}")
    return Engine(tensorrt_rtx, cuda, packed.payload, packed.inputs, packed.outputs)


def check_version(about: dict[str, Any], here: str) -> None:
    """An engine holds for one version of the library. LoadError for another's."""
    if about["version"] != here:
        raise LoadError(f"the engine is of TensorRT-RTX {about['version']}, here is {here}")
