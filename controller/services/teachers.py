"""Which variant a recipe's training learns from. Refuses a variant as its own teacher."""

from collections.abc import Iterable
from dataclasses import dataclass

from controller.domain.build import GateVerdict, Recipe
from controller.domain.gate import GateResult
from controller.domain.passes import HEAVIEST
from controller.store.models import VariantRow, VersionRow


@dataclass(frozen=True, slots=True)
class Teacher:
    """A variant as an input of a job."""

    role: str
    variant: VariantRow

    def input(self) -> dict[str, object]:
        """What the worker fetches."""
        return {"role": self.role, "digest": self.variant.digest, "length": self.variant.length}

    def to_json(self) -> dict[str, str]:
        """What the job is told."""
        return {"role": self.role, "format": self.variant.format}


def teachers_of(version: VersionRow, recipes: Iterable[Recipe]) -> dict[str, Teacher]:
    """By the name that recipes have for it."""
    found: dict[str, Teacher] = {}
    for recipe in recipes:
        variant = find_teacher(recipe, version)
        if variant is not None:
            found.setdefault(teacher_name(recipe), Teacher(f"teacher{len(found)}", variant))
    return found


def teacher_name(recipe: Recipe) -> str:
    """As the recipe has it; empty where it needs none."""
    return next((one.teacher for one in recipe.passes if one.teacher), "")


def find_teacher(recipe: Recipe, version: VersionRow) -> VariantRow | None:
    """The variant, None where the recipe needs none or the version has it not."""
    name = teacher_name(recipe)
    if name == HEAVIEST:
        return min(version.variants, key=lambda one: one.position)
    return next((one for one in version.variants if one.variant == name), None)


def refuse_teacher(recipe: Recipe, version: VersionRow, variant: VariantRow) -> GateResult | None:
    """Why this variant cannot learn by the recipe, or None."""
    name = teacher_name(recipe)
    if not name:
        return None
    teacher = find_teacher(recipe, version)
    if teacher is None:
        those = ", ".join(one.variant for one in version.variants)
        said = f"the version has no variant {name} to learn from; it has {those}"
        return GateResult(GateVerdict.REFUSED, said)
    if teacher.variant == variant.variant:
        said = f"{variant.variant} is the teacher of recipe {recipe.name}; lighter variants learn"
        return GateResult(GateVerdict.REFUSED, said)
    return None
