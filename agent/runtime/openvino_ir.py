"""Reads the container of OpenVINO builds: graph and weights in one file, as controllers make it.

``LMOVIR1\\n``, the precision in 8 bytes, two lengths of 8 bytes (little endian), the XML, zeros up
to a multiple of 64, the weights, and nothing else. Refuses everything that is not exactly so.
"""

import mmap
import os
import struct
from typing import Any

from agent.errors import LoadError

MAGIC = b"LMOVIR1\n"
HEADER = struct.Struct("<8s8sQQ")
ALIGN = 64
MAX_XML_BYTES = 64 * 1024**2
PRECISIONS = ("f32", "bf16")


def open_container(path: str) -> tuple[str, bytes, Any]:
    """Precision, graph, and weights as an array over the mapped file. LoadError says why not."""
    import numpy

    try:
        with open(path, "rb") as stream:
            head = stream.read(HEADER.size)
            if len(head) != HEADER.size or not head.startswith(MAGIC):
                raise LoadError(f"{path} is no build for openvino")
            _, padded, graph_bytes, weight_bytes = HEADER.unpack(head)
            precision = padded.rstrip(b"\0").decode("ascii", "replace")
            start = HEADER.size + graph_bytes
            start += -start % ALIGN
            length = os.fstat(stream.fileno()).st_size
            if precision not in PRECISIONS or graph_bytes > MAX_XML_BYTES:
                raise LoadError(f"{path} has a header that no build for openvino has")
            if length != start + weight_bytes:
                raise LoadError(
                    f"{path} has {length} bytes, its header says {start + weight_bytes}"
                )
            graph = stream.read(graph_bytes)
            # Private pages: the library wants memory it could write, and never writes it.
            mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
    except OSError as error:
        raise LoadError(f"{path} cannot be read: {error.strerror}") from error
    return precision, graph, numpy.frombuffer(mapped, dtype="u1")[start:]
