"""Figures of tasks other than classification, and of single classes: values that travel as JSON.

Judges nothing: the gate does. Values are percent (0-100), differences are points.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from controller.domain.interval import Interval
from controller.domain.spec import Spec
from controller.errors import InvalidError

F1, MAP = "f1", "map"
NAMES = {F1: "F1 at IoU 0.5", MAP: "mAP"}
CLASSES_MOST = 50  # so many classes are kept: those that lose most


@dataclass(frozen=True, slots=True)
class MetricFigure:
    """One metric of a build, of its source on the same rows, and what the build changes."""

    name: str
    value: Interval
    source: Interval
    delta_pts: Interval

    def to_json(self) -> dict[str, object]:
        """The form stored."""
        return {
            "name": self.name,
            "value": self.value.to_json(),
            "source": self.source.to_json(),
            "delta_pts": self.delta_pts.to_json(),
        }


@dataclass(frozen=True, slots=True)
class ClassChange:
    """What one class gains or loses: share of its rows that are right, or F1 of its boxes.

    ``delta_pts`` is paired, over the ``n`` rows that have the class, with its own 95 % interval.
    ``loses`` holds where it does so beyond chance, all classes that were looked at considered.
    """

    label: int
    value: float
    source: float
    delta_pts: Interval
    loses: bool

    def to_json(self) -> dict[str, object]:
        """The form stored."""
        return {
            "label": self.label,
            "value": self.value,
            "source": self.source,
            "delta_pts": self.delta_pts.to_json(),
            "loses": self.loses,
        }


def metrics_from_json(value: object) -> tuple[MetricFigure, ...]:
    """Read a list of :meth:`MetricFigure.to_json`; InvalidError names what is wrong."""
    return tuple(
        MetricFigure(
            Spec(one, "evidence.metrics").text("name"),
            *(_interval(one, key) for key in ("value", "source", "delta_pts")),
        )
        for one in _items(value, "metrics")
    )


def classes_from_json(value: object) -> tuple[ClassChange, ...]:
    """Read a list of :meth:`ClassChange.to_json`; InvalidError names what is wrong."""
    found = []
    for one in _items(value, "classes"):
        spec = Spec(one, "evidence.classes")
        found.append(
            ClassChange(
                spec.whole("label"),
                spec.number("value"),
                spec.number("source"),
                _interval(one, "delta_pts"),
                spec.flag("loses"),
            )
        )
    return tuple(found)


def _items(value: object, key: str) -> list[Mapping[str, object]]:
    if value is None:
        return []
    if not isinstance(value, Sequence) or not all(isinstance(one, Mapping) for one in value):
        raise InvalidError(f"evidence.{key} is no list of figures")
    return list(value)


def _interval(value: Mapping[str, object], key: str) -> Interval:
    found = value.get(key)
    if not isinstance(found, Mapping):
        raise InvalidError(f"evidence.{key} is no interval")
    return Interval.from_json(found)
