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
    TRAIN = "train"


FINE_TUNE = "controller.optimize.passes.fine_tune:fine_tune"
# Which option is which number, with its default, its least and its most.
_NUMBERS: Mapping[PassName, Mapping[str, tuple[float, float, float]]] = {
    PassName.FOLD: {},
    PassName.PRUNE: {"share_pct": (50, 1, 95), "round_to": (8, 1, 1024)},
    PassName.TRAIN: {
        "epochs": (20, 1, 1000),
        "rate": (1e-3, 1e-7, 1),
        "batch": (32, 1, 4096),
        "patience": (5, 1, 1000),
        "distill_pct": (50, 0, 100),
    },
}
_WHOLE = frozenset({"round_to", "epochs", "batch", "patience"})


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass and its numbers; ``step`` names the function that a `train` calls."""

    name: PassName
    numbers: tuple[tuple[str, float], ...] = field(default=())
    step: str = ""

    def number(self, key: str) -> float:
        """One of its numbers. KeyError for one that the pass does not have."""
        return dict(self.numbers)[key]

    def text(self) -> str:
        """For people: ``prune share_pct 50, round_to 8``."""
        said = ", ".join(f"{key} {value:g}" for key, value in self.numbers)
        return " ".join(part for part in (self.name, self.step, said) if part)


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
    known = _NUMBERS[name]
    steps = ("step",) if name is PassName.TRAIN else ()
    spec = Spec(asked or {}, f"{where}.{name}").only(*known, *steps)
    return Pass(
        name,
        tuple((option, _number(spec, option, *bounds)) for option, bounds in known.items()),
        _step(spec) if steps else "",
    )


def _number(spec: Spec, key: str, default: float, least: float, most: float) -> float:
    value = spec.number(key, default, least)
    if value > most or (key in _WHOLE and value != int(value)):
        kind = "a whole number" if key in _WHOLE else "a number"
        raise InvalidError(
            f"{spec.where}.{key} is {value:g}, {kind} from {least:g} to {most:g} is needed"
        )
    return value


def _step(spec: Spec) -> str:
    step = spec.text("step", FINE_TUNE)
    module, colon, function = step.partition(":")
    if (
        not colon
        or not function.isidentifier()
        or not all(part.isidentifier() for part in module.split("."))
    ):
        raise InvalidError(f"{spec.where}.step is {step!r}", f"it has to be as in {FINE_TUNE}")
    return step
