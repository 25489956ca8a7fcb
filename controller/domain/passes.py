"""The passes that a recipe composes: their names, what each may be asked, in what order they go.

Runs none: `controller.optimize.passes` has a file for each. Refuses what is unknown or senseless
when a recipe is applied, so that nobody waits for a build to learn it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from controller.domain.spec import Spec
from controller.errors import InvalidError


class PassName(StrEnum):
    """A pass over the program before it is compiled."""

    FOLD = "fold"
    PRUNE = "prune"
    RESOLUTION = "resolution"
    TRAIN = "train"


FINE_TUNE = "controller.optimize.passes.fine_tune:fine_tune"
DISTILL = "controller.optimize.passes.distill:distill"
# The first of a version's variants, whatever it is called.
HEAVIEST = "heaviest"
# Which option is which number, with its default, its least and its most.
_NUMBERS: Mapping[PassName, Mapping[str, tuple[float, float, float]]] = {
    PassName.FOLD: {},
    PassName.PRUNE: {"share_pct": (50, 1, 95), "round_to": (8, 1, 1024)},
    PassName.RESOLUTION: {
        "share_pct": (65, 10, 99),
        "height": (0, 0, 16384),
        "width": (0, 0, 16384),
    },
    PassName.TRAIN: {
        "epochs": (20, 1, 1000),
        "rate": (1e-3, 1e-7, 1),
        "batch": (32, 1, 4096),
        "patience": (5, 1, 1000),
        "distill_pct": (50, 0, 100),
        "mix_pct": (0, 0, 100),
    },
}
# Where the teacher is another network, it knows more than the labels say.
_OF_DISTILLING = {"distill_pct": (90.0, 0.0, 100.0), "mix_pct": (75.0, 0.0, 100.0)}
_WHOLE = frozenset({"round_to", "epochs", "batch", "patience", "height", "width"})


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass and its numbers; ``step`` names the function that a `train` calls.

    ``teacher`` is the variant of the same version that it learns from; empty: the pushed program
    itself. ``quantize``: it trains with what INT8 will round.
    """

    name: PassName
    numbers: tuple[tuple[str, float], ...] = field(default=())
    step: str = ""
    teacher: str = ""
    quantize: bool = False

    def number(self, key: str) -> float:
        """One of its numbers. KeyError for one that the pass does not have."""
        return dict(self.numbers)[key]

    def text(self) -> str:
        """For people: ``prune share_pct 50, round_to 8``."""
        said = ", ".join(f"{key} {value:g}" for key, value in self.numbers)
        teacher = f"by {self.teacher}" if self.teacher else ""
        return " ".join(part for part in (self.name, self.step, teacher, said) if part)


def parse_passes(value: object, where: str) -> tuple[Pass, ...]:
    """The list under ``passes``; InvalidError names the item that is wrong.

    An item is a name (``fold``), or a name with its options (``prune: {share_pct: 50}``); ``train:
    module:function`` is short for ``train: {step: module:function}``.
    """
    if value is None:
        return ()
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise InvalidError(f"{where} is no list", "for example [fold, {prune: {share_pct: 50}}]")
    found = tuple(_parse(item, f"{where}[{place}]") for place, item in enumerate(value))
    names = [one.name for one in found]
    if PassName.FOLD in names[:-1]:
        raise InvalidError(
            f"{where}: {PassName.FOLD} stands before {names[names.index(PassName.FOLD) + 1]}",
            "it has to be the last pass: what is folded cannot be trained or pruned as it was",
        )
    if len({one.teacher for one in found if one.teacher}) > 1:
        raise InvalidError(f"{where} names several teachers", "one recipe learns from one network")
    return found


def _parse(item: object, where: str) -> Pass:
    if isinstance(item, str):
        item = {item: {}}
    if not isinstance(item, Mapping) or len(item) != 1:
        raise InvalidError(f"{where} is no pass", f"known are {', '.join(PassName)}")
    Spec(item, where).only(*PassName)
    ((key, asked),) = item.items()
    name = PassName(key)
    if name is PassName.TRAIN and isinstance(asked, str):
        asked = {"step": asked}
    if asked is not None and not isinstance(asked, Mapping):
        raise InvalidError(f"{where}.{name} is {asked!r}, options are needed")
    known = dict(_NUMBERS[name])
    trains = name is PassName.TRAIN
    more = ("step", "teacher", "quantize") if trains else ()
    spec = Spec(asked or {}, f"{where}.{name}").only(*known, *more)
    step, teacher = _step(spec) if trains else ("", "")
    if step == DISTILL:
        known |= _OF_DISTILLING
    if name is PassName.RESOLUTION:
        _check_resolution(spec)
    return Pass(
        name,
        tuple((option, _number(spec, option, *bounds)) for option, bounds in known.items()),
        step,
        teacher,
        trains and spec.flag("quantize"),
    )


def _check_resolution(spec: Spec) -> None:
    sides = [key for key in ("height", "width") if key in spec.body]
    if len(sides) == 1 or (sides and "share_pct" in spec.body):
        raise InvalidError(
            f"{spec.where} has {' and '.join(sorted(map(str, spec.body)))}",
            "it takes height and width, or share_pct of both",
        )


def _number(spec: Spec, key: str, default: float, least: float, most: float) -> float:
    value = spec.number(key, default, least)
    if value > most or (key in _WHOLE and value != int(value)):
        kind = "a whole number" if key in _WHOLE else "a number"
        raise InvalidError(
            f"{spec.where}.{key} is {value:g}, {kind} from {least:g} to {most:g} is needed"
        )
    return value


def _step(spec: Spec) -> tuple[str, str]:
    """The step and its teacher; where one of them is not said, the other one tells."""
    teacher = spec.text("teacher", "")
    step = spec.text("step", DISTILL if teacher else FINE_TUNE)
    module, colon, function = step.partition(":")
    if (
        not colon
        or not function.isidentifier()
        or not all(part.isidentifier() for part in module.split("."))
    ):
        raise InvalidError(f"{spec.where}.step is {step!r}", f"it has to be as in {FINE_TUNE}")
    return step, teacher or (HEAVIEST if step == DISTILL else "")
