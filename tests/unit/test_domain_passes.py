"""Passes in recipes: what is understood, and what is refused when it is applied."""

import pytest

from controller.domain.build import parse_recipe
from controller.domain.passes import DISTILL, FINE_TUNE, HEAVIEST, PassName
from controller.errors import InvalidError


def recipe(passes: object, **more: object) -> dict[str, object]:
    return {"runtime": "onnxruntime", "precision": "fp32", "passes": passes, **more}


def test_a_recipe_composes_passes_in_its_order() -> None:
    asked = [{"prune": {"share_pct": 30}}, {"train": "factory.steps:tune"}, "fold"]
    found = parse_recipe("r", recipe(asked))
    assert [one.name for one in found.passes] == [PassName.PRUNE, PassName.TRAIN, PassName.FOLD]
    prune, train, fold = found.passes
    assert (prune.number("share_pct"), prune.number("round_to")) == (30, 8)
    assert (train.step, train.number("epochs")) == ("factory.steps:tune", 20)
    assert fold.text() == "fold"
    assert found.needs_dataset, "training needs rows"
    assert not found.is_plain
    assert parse_recipe("r", recipe([{"train": {}}])).passes[0].step == FINE_TUNE
    assert not parse_recipe("r", recipe(["fold"])).needs_dataset
    assert parse_recipe("r", recipe(None)).is_plain


def test_a_teacher_makes_it_a_distillation_and_a_distillation_has_one() -> None:
    asked = [{"train": {"teacher": "big"}}, {"train": {"step": DISTILL}}, {"train": {}}]
    named, default, alone = (parse_recipe("r", recipe([one])).passes[0] for one in asked)
    assert (named.step, named.teacher) == (DISTILL, "big")
    assert (default.step, default.teacher) == (DISTILL, HEAVIEST)
    assert (alone.step, alone.teacher, alone.quantize) == (FINE_TUNE, "", False)
    assert (named.number("mix_pct"), alone.number("mix_pct")) == (75, 0)
    assert parse_recipe("r", recipe([{"train": {"quantize": True}}])).passes[0].quantize


@pytest.mark.parametrize(
    ("passes", "said"),
    [
        ("fold", "is no list"),
        ([{"prun": {}}], "did you mean prune ?"),
        ([{"prune": {"share": 50}}], "did you mean share_pct ?"),
        ([{"prune": {}, "fold": {}}], "passes[0] is no pass"),
        ([{"prune": {"share_pct": 99}}], "a number from 1 to 95"),
        ([{"prune": {"round_to": 2.5}}], "a whole number from 1"),
        ([{"train": {"step": "os.system"}}], "it has to be as in controller"),
        ([{"train": "os:system()"}], "it has to be as in controller"),
        ([{"train": 3}], "options are needed"),
        (["fold", "prune"], "it has to be the last pass"),
        ([{"train": {"teacher": "a"}}, {"train": {"teacher": "b"}}], "names several teachers"),
        ([{"train": {"quantize": "yes"}}], "true or false is needed"),
        ([{"resolution": {"height": 8}}], "it takes height and width, or share_pct of both"),
        ([{"resolution": {"share_pct": 50, "height": 8, "width": 8}}], "or share_pct of both"),
    ],
)
def test_what_is_refused_when_it_is_applied(passes: object, said: str) -> None:
    with pytest.raises(InvalidError) as caught:
        parse_recipe("r", recipe(passes))
    assert said in caught.value.text()
    assert "Recipe r: spec.passes" in caught.value.text()


def test_unknown_keys_of_a_quantisation_are_refused_with_what_was_meant() -> None:
    with pytest.raises(InvalidError, match="quantization has unknown keys: calibraton_") as caught:
        parse_recipe("r", recipe(None, precision="int8", quantization={"calibraton_rows": 5}))
    assert "did you mean calibration_rows ?" in caught.value.lines
    with pytest.raises(InvalidError, match="fallback_steps is above 5"):
        parse_recipe("r", recipe(None, precision="int8", quantization={"fallback_steps": 9}))
    theirs = {"runtime": "of-others", "precision": "int8", "quantization": {"calibraton_rows": 5}}
    assert parse_recipe("r", theirs).quantization == {"calibraton_rows": 5}, "theirs to check"
