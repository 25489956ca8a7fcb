"""What a version is for: its task, what makes answers of its raw outputs, and by what it is judged.

Post-processing is declared by name; its numbers are the version's `params`, which may change while
the weights stay. Runs nothing: `controller.optimize.tasks` has the functions. Refuses names and
numbers that nobody knows when a version is pushed, so that no build is the first to notice.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from controller.domain.model import Signature
from controller.domain.spec import Spec
from controller.errors import InvalidError


class TaskKind(StrEnum):
    """What the answers are: a class of the whole input, boxes in a picture, or something else."""

    CLASSIFICATION = "classification"
    DETECTION = "detection"
    OTHER = "other"


class PostName(StrEnum):
    """A function that makes answers of raw outputs."""

    SOFTMAX = "softmax"  # of scores of any size
    TOP_K = "top_k"  # of scores that are shares already
    BOXES = "boxes"  # corners, and scores beside them
    YOLO = "yolo"  # one tensor: centre, size and scores of each place
    DB = "db"  # a map of how likely each pixel is text


_CLASSES: Mapping[str, tuple[float, float, float]] = {"k": (5, 1, 1000), "threshold": (0, 0, 1)}
_BOXES: Mapping[str, tuple[float, float, float]] = {
    "threshold": (0.25, 0, 1),
    "overlap": (0.45, 0.01, 1),
    "most": (100, 1, 10_000),
    "relative": (0, 0, 1),
}
# Which option is which number, with its default, its least and its most.
NUMBERS: Mapping[PostName, Mapping[str, tuple[float, float, float]]] = {
    PostName.SOFTMAX: _CLASSES,
    PostName.TOP_K: _CLASSES,
    PostName.BOXES: _BOXES,
    PostName.YOLO: _BOXES,
    # Those that PP-OCR ships its detectors with.
    PostName.DB: {
        "threshold": (0.3, 0, 1),
        "box_threshold": (0.6, 0, 1),
        "unclip": (1.5, 0, 10),
        "least_side": (3, 1, 1000),
        "most": (1000, 1, 10_000),
    },
}
_WHOLE = frozenset({"k", "most", "relative", "least_side"})
_KIND_OF = {
    PostName.SOFTMAX: TaskKind.CLASSIFICATION,
    PostName.TOP_K: TaskKind.CLASSIFICATION,
    PostName.BOXES: TaskKind.DETECTION,
    PostName.YOLO: TaskKind.DETECTION,
    PostName.DB: TaskKind.DETECTION,
}
# Name and axes of each output that the function reads, for a message.
_WANTED = {
    PostName.SOFTMAX: ("scores[batch,classes]", (2,)),
    PostName.TOP_K: ("scores[batch,classes]", (2,)),
    PostName.BOXES: ("boxes[batch,places,4] and scores[batch,places,classes]", (3, 3)),
    PostName.YOLO: ("places[batch,4 + classes,places]", (3,)),
    PostName.DB: ("map[batch,1,height,width]", (4,)),
}
_METRIC = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")


@dataclass(frozen=True, slots=True)
class Task:
    """A version's task; ``numbers`` are those of its post-processing, every one of them.

    ``metric`` names a function of the build worker that judges beside, or instead of, ours.
    """

    kind: TaskKind = TaskKind.CLASSIFICATION
    post: PostName | None = None
    metric: str = ""
    numbers: Mapping[str, float] = field(default_factory=dict)

    @property
    def is_default(self) -> bool:
        """Whether nothing was declared: the first output holds one score per class."""
        return self.kind is TaskKind.CLASSIFICATION and self.post is None and not self.metric

    def whole(self, key: str) -> int:
        """One of the numbers, which is whole. KeyError for one that the function does not have."""
        return int(self.numbers[key])

    def to_json(self) -> dict[str, object]:
        """The form stored with a version; the numbers stand in its params."""
        return {"kind": self.kind.value, "post": self.post or "", "metric": self.metric}

    def text(self) -> str:
        """For people: ``detection, db threshold 0.3, metric f2``."""
        said = " ".join(f"{key} {value:g}" for key, value in self.numbers.items())
        parts = [self.kind.value, *([f"{self.post} {said}".strip()] if self.post else [])]
        return ", ".join([*parts, *([f"metric {self.metric}"] if self.metric else [])])


CLASSIFY = Task()  # what a version is for where nothing was declared


def parse_task(declared: Mapping[str, object], params: Mapping[str, object]) -> Task:
    """The task of a version by what was declared of it; InvalidError names what is wrong.

    Without post-processing ``params`` are the application's own and nobody's concern here.
    """
    spec = Spec(declared, "task").only("kind", "post", "metric")
    kind, post = spec.text("kind", "") or TaskKind.CLASSIFICATION, spec.text("post", "")
    metric = spec.text("metric", "")
    if kind not in tuple(TaskKind):
        raise InvalidError(f"task {kind!r} is unknown", f"known are {', '.join(TaskKind)}")
    known = [name for name in PostName if _KIND_OF[name] == kind]
    if post and post not in known:
        raise InvalidError(
            f"post-processing {post!r} is none of {kind}",
            f"known are {', '.join(known)}" if known else f"{kind} has none: leave it out",
        )
    if kind == TaskKind.DETECTION and not post:
        raise InvalidError(
            "a detector needs post-processing that makes boxes of its outputs",
            f"known are {', '.join(known)}",
        )
    if metric and not _METRIC.fullmatch(metric):
        raise InvalidError(f"{metric!r} is no name of a metric", "lower case letters, digits, ._-")
    if kind == TaskKind.OTHER and not metric:
        raise InvalidError(
            "a task of another kind needs a metric of yours",
            "name the entry point of the group lighterman.metrics on the build worker",
        )
    name = PostName(post) if post else None
    return Task(TaskKind(kind), name, metric, _numbers(name, params) if name else {})


def check_outputs(task: Task, signature: Signature) -> None:
    """InvalidError where the model has not the outputs that its post-processing reads."""
    if task.post is None:
        return
    wanted, axes = _WANTED[task.post]
    found = tuple(len(spec.shape) for spec in signature.outputs)
    if found[: len(axes)] != axes:
        raise InvalidError(
            f"post-processing {task.post} does not fit the model's outputs",
            f"it reads {wanted}, the model gives"
            f" {', '.join(spec.text() for spec in signature.outputs)}",
        )


def _numbers(post: PostName, params: Mapping[str, object]) -> dict[str, float]:
    known = NUMBERS[post]
    spec = Spec(params, f"params of {post}").only(*known)
    found: dict[str, float] = {}
    for key, (default, least, most) in known.items():
        value = spec.number(key, default, least)
        if value > most or (key in _WHOLE and value != int(value)):
            kind = "a whole number" if key in _WHOLE else "a number"
            raise InvalidError(
                f"{spec.where}.{key} is {value:g}, {kind} from {least:g} to {most:g} is needed"
            )
        found[key] = int(value) if key in _WHOLE else value
    return found
