"""The parts of the builds bench that compute: published networks, goals, figures put together."""

import json
from pathlib import Path

import numpy as np

from bench.builds import networks
from bench.builds.__main__ import _before, _missed
from bench.builds.digits import _figures


def test_the_networks_are_those_that_were_published() -> None:
    """By their parameters, as the papers' own and every library have them."""
    for make, wanted in ((networks.resnet50, 25_557_032), (networks.mobilenetv2, 3_504_872)):
        assert sum(one.numel() for one in make().parameters()) == wanted


def test_a_goal_is_missed_by_its_figure_alone() -> None:
    figures = {"digits": {"drop": 0.7}, "size": 12.0}
    assert _missed(figures, "digits.drop", "<=", 0.5) == (
        "missed: digits.drop is 0.7, <= 0.5 is wanted"
    )
    assert _missed(figures, "size", ">=", 10.0) == ""
    assert _missed(figures, "models.lite0.best", ">=", 1.0) == "", "that part was not run"


def test_parts_keep_the_figures_of_others(tmp_path: Path) -> None:
    assert _before(tmp_path / "none.json") == {}
    assert _before(None) == {}
    (tmp_path / "some.json").write_text(json.dumps({"digits": {"n": 3}}))
    assert _before(tmp_path / "some.json") == {"digits": {"n": 3}}


def test_a_drop_is_paired_with_the_source() -> None:
    source = np.ones(1000, dtype=bool)
    hits = source.copy()
    hits[:10] = False
    found = _figures({"source": source, "onnxruntime-int8": hits, "openvino-int8": hits[:5]})
    assert (found["n"], found["int8_drop_pct"]) == (1000, 1.0)
    assert found["int8_drop_lower_pct"] < 1.0 < found["int8_drop_upper_pct"] < 1.8
    assert "openvino_int8_drop_pct" not in found, "a fold has not this build"
