"""The specs that docs/builds.md shows are taken as they stand there."""

import re
from pathlib import Path

import yaml

from controller.domain.model import Signature, TensorSpec
from controller.domain.preparation import prepare
from controller.domain.version_spec import variant_spec

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "builds.md"
SCORES = TensorSpec("scores", "FP32", ("batch", 1000))


def test_each_spec_of_the_page_fits_a_picture_model() -> None:
    text = PAGE.read_text(encoding="utf-8")
    blocks = [yaml.safe_load(one) for one in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)]
    specs = [one for one in blocks if {"inputs", "signature"} & set(one)]
    assert len(specs) == 3
    for body in specs:
        for variant in ("heavy", "light"):
            asked = variant_spec(body, variant, ["heavy", "light"])
            core = asked.signature or Signature(
                (TensorSpec("image", "FP32", ("batch", 3, 224, 224)),), (SCORES,)
            )
            found = prepare(core, asked.wishes)
            assert found.outer.inputs[0].name == "image"
