"""OpenVINO's graph (XML) and weights in one file, as devices take it; and how it is compiled.

The container: ``LMOVIR1\\n``, the precision in 8 bytes, two lengths of 8 bytes (little endian), the
XML, zeros up to a multiple of 64, the weights, and nothing else. The same model gives the same
bytes. Refuses everything that is not exactly so; `agent.runtime.openvino` reads the same.
"""

import mmap
import os
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np

from controller.domain.model import Signature
from controller.errors import InvalidError

MAGIC = b"LMOVIR1\n"
HEADER = struct.Struct("<8s8sQQ")
ALIGN = 64
MAX_XML_BYTES = 64 * 1024**2
PRECISIONS = ("f32", "bf16")


def import_openvino() -> Any:
    """The library, without what reports its use to its makers: that is for people to decide."""
    for name in ("openvino_telemetry", "openvino.tools.ovc"):
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]
    import openvino

    return openvino


def properties(precision: str) -> dict[str, Any]:
    """How devices compile: one thread, pinned to no core, the precision that was measured."""
    return {
        "INFERENCE_NUM_THREADS": 1,
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,
        "INFERENCE_PRECISION_HINT": precision,
    }


def tidy(model: Any, signature: Signature) -> Any:
    """The same graph with the signature's names outside and numbers inside.

    Names that the author gave and that libraries count up go: equal models become equal bytes.
    """
    for place, node in enumerate(model.get_ordered_ops()):
        node.set_friendly_name(f"n{place}")
        for port in node.outputs():
            port.get_tensor().set_names(set())
    for ports, specs in ((model.inputs, signature.inputs), (model.outputs, signature.outputs)):
        for port, spec in zip(ports, specs, strict=True):
            port.get_tensor().add_names({spec.name})
    # A new model has none of the notes that tools left on the old one.
    made = import_openvino().Model(
        model.get_results(), model.get_sinks(), model.get_parameters(), "build"
    )
    check_names(made, signature)
    return made


def check_names(model: Any, signature: Signature) -> None:
    """InvalidError where a tensor has not the one name that the signature gives it."""
    for ports, specs in ((model.inputs, signature.inputs), (model.outputs, signature.outputs)):
        found = [sorted(port.get_names()) for port in ports]
        if found != [[spec.name] for spec in specs]:
            raise InvalidError(
                f"OpenVINO names the tensors {found}, the signature {[s.name for s in specs]}",
                "a tensor that is input and output, or two outputs, needs a node of its own",
            )


def write(model: Any, target: Path, precision: str, *, half: bool) -> None:
    """Write the container; ``half`` stores float weights in 16 bits."""
    xml, weights = target.with_name(f"{target.name}.xml"), target.with_name(f"{target.name}.bin")
    import_openvino().save_model(model, str(xml), compress_to_fp16=half)
    graph, length = xml.read_bytes(), weights.stat().st_size
    if len(graph) > MAX_XML_BYTES:
        raise InvalidError(f"OpenVINO's graph takes {len(graph)} bytes", f"at most {MAX_XML_BYTES}")
    with target.open("wb") as out:
        out.write(HEADER.pack(MAGIC, precision.encode(), len(graph), length))
        out.write(graph)
        out.write(bytes(-out.tell() % ALIGN))
        with weights.open("rb") as stream:
            while chunk := stream.read(1024**2):
                out.write(chunk)
    xml.unlink()
    weights.unlink()


def read(path: Path) -> tuple[str, bytes, Any]:
    """Precision, XML and weights. Raises InvalidError for anything but a whole container."""
    with path.open("rb") as stream:
        head = stream.read(HEADER.size)
        if len(head) != HEADER.size or not head.startswith(MAGIC):
            raise InvalidError(f"{path.name} is no OpenVINO container")
        _, padded, xml_bytes, bin_bytes = HEADER.unpack(head)
        precision = padded.rstrip(b"\0").decode("ascii", "replace")
        start = HEADER.size + xml_bytes
        start += -start % ALIGN
        whole = os.fstat(stream.fileno()).st_size == start + bin_bytes
        if precision not in PRECISIONS or xml_bytes > MAX_XML_BYTES or not whole:
            raise InvalidError(f"{path.name} is no whole OpenVINO container")
        xml = stream.read(xml_bytes)
        # Read where they lie, as devices do; the library wants memory that it could write.
        whole_file = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
    weights = np.frombuffer(whole_file, dtype=np.uint8)[start:]
    return precision, xml, import_openvino().Tensor(weights, shared_memory=True)
