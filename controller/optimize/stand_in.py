"""Another runtime answers for a build that this worker cannot run: accuracy is that of the same
graph, and its times are not taken for the build's.

Keeps the graph beside the job's work, by the content of the build. Refuses to answer without it.
"""

from hashlib import sha256
from pathlib import Path

from controller.domain.model import Signature
from controller.optimize.build_onnxruntime import OnnxSession
from controller.optimize.builder import LackingError

NAME = "onnxruntime"


def keep_graph(container: Path, graph: bytes) -> None:
    """Remember what a container was made of."""
    _place(container).write_bytes(graph)


def open_graph(container: Path, signature: Signature) -> OnnxSession:
    """What stands in for it. LackingError where it was made elsewhere."""
    graph = _place(container)
    if not graph.exists():
        raise LackingError(
            f"this worker cannot run {container.name}, nor has it the graph it was made of"
        )
    return OnnxSession(graph, signature)


def _place(container: Path) -> Path:
    """In the job's `work`, wherever in the job the container lies."""
    work = container.parent.parent / "work"
    folder = work if work.is_dir() else container.parent
    return folder / f"graph-{sha256(container.read_bytes()).hexdigest()[:16]}.onnx"
