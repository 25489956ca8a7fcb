"""The door of a runtime on the build side: what its one file offers, and how it is found.

A runtime is a module with the names of ``Builder``, registered under the entry point group
`lighterman.builders` with the name that recipes use. Refuses to import a runtime's library: the
module itself does, inside its functions.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from controller.domain.build import Precision, Recipe
from controller.domain.model import Signature
from controller.domain.passes import PassName
from controller.errors import InvalidError
from controller.optimize.rows import Array, Rows

if TYPE_CHECKING:
    from controller.optimize.import_torch import TorchModel
    from controller.optimize.passes.aware import LearnedRange

GROUP = "lighterman.builders"


class LackingError(InvalidError):
    """This worker has not what a recipe needs; another one, or this one later, may have it."""


class Runner(Protocol):
    """Anything that infers."""

    def run(self, inputs: list[Array]) -> list[Array]:
        """Results in the order of the signature's outputs; may be called from several threads."""
        ...


class Source(Protocol):
    """The variant that is built, in the forms that builders start from."""

    signature: Signature

    def onnx(self) -> Path:
        """As a float ONNX file. InvalidError where PyTorch cannot express it."""
        ...

    def torch(self) -> "TorchModel":
        """As a loaded PyTorch program. InvalidError where it never was one."""
        ...


@dataclass(frozen=True, slots=True)
class Order:
    """What a recipe asks for; `go_on(rows_done)` may end calibration early.

    `caution` says how much of the network stays float when it is quantised: 0 nothing, 1 what is
    known to lose most, more up to the module's `CAUTION_MOST` (0 where it has none). It is raised
    where a try with less did not meet its bounds: `target` is that try then. `ranking` is the
    builder's own memory between tries; into `notes` goes what it kept in float.
    """

    recipe: Recipe
    calibration: Rows | None = None
    go_on: Callable[[int], bool] = lambda _: True
    caution: int = 1
    ranking: list[str] = field(default_factory=list)
    ranges: "tuple[LearnedRange, ...]" = ()  # of layers' inputs, where training learned them
    notes: list[str] = field(default_factory=list)

    def rows(self) -> Rows:
        """The calibration rows. InvalidError without any."""
        if self.calibration is None:
            raise InvalidError(f"{self.recipe.name} needs calibration rows", "push a dataset first")
        return self.calibration


class Builder(Protocol):
    """What the module of a runtime has."""

    MEDIA_TYPE: str
    # The precisions it offers, and the modules that each needs.
    NEEDS: Mapping[Precision, tuple[str, ...]]
    # What to install where these are missing.
    EXTRA: str

    def compile_build(self, source: Source, order: Order, target: Path) -> None:
        """Write the file that ships. InvalidError in plain words."""
        ...

    def open_build(self, path: Path, signature: Signature) -> Runner:
        """Load that file as a device would, on one thread. InvalidError in plain words."""
        ...

    def versions(self) -> Mapping[str, str]:
        """What was used, by distribution."""
        ...


def find_builder(runtime: str) -> Builder:
    """The module of a registered runtime. LackingError where there is none."""
    found = {entry.name: entry for entry in metadata.entry_points(group=GROUP)}
    if runtime not in found:
        raise LackingError(
            f"this worker cannot build for the runtime {runtime}",
            f"it knows {', '.join(sorted(found))}; install what brings {runtime} beside it",
        )
    return cast("Builder", found[runtime].load())


def require_builder(recipe: Recipe) -> Builder:
    """The builder of a recipe, with all it needs. LackingError names what is not installed.

    InvalidError where the runtime has no such precision at all.
    """
    builder = find_builder(recipe.runtime)
    if recipe.precision not in builder.NEEDS:
        raise InvalidError(
            f"{recipe.runtime} has no builds of precision {recipe.precision}",
            f"it has {', '.join(builder.NEEDS)}",
        )
    prunes = any(one.name is PassName.PRUNE for one in recipe.passes)
    rounds = any(one.quantize for one in recipe.passes)
    of_passes = (*(("torch_pruning",) if prunes else ()), *(("torchao",) if rounds else ()))
    wanted = (*builder.NEEDS[recipe.precision], *of_passes)
    absent = [name for name in wanted if not is_installed(name)]
    if absent:
        extra = "optimize" if set(absent) <= set(of_passes) else builder.EXTRA
        raise LackingError(
            f"recipe {recipe.name} needs {' and '.join(absent)}, which this worker has not",
            f"pip install 'lighterman[{extra}]' there, then build again",
        )
    return builder


def is_installed(module: str) -> bool:
    """Whether this worker could import it."""
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):  # None in sys.modules: somebody switched it off
        return False
