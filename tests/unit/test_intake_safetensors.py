"""Weights in the safetensors format: read as a header and bytes, refused where they disagree."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from controller.domain.model import ModelFormat, Signature, TensorSpec
from controller.errors import InvalidError
from controller.intake.models import parse_model
from controller.intake.safetensors import parse_safetensors
from controller.services.context import Limits

Json = dict[str, Any]
SCORES = TensorSpec("scores", "FP32", ("batch", 2))
DECLARED = Signature((TensorSpec("x", "FP32", ("batch", 4)),), (SCORES,))


def header() -> Json:
    return {
        "__metadata__": {"format": "pt"},
        "weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "bias": {"dtype": "BF16", "shape": [], "data_offsets": [24, 26]},
    }


def written(path: Path, told: Json | bytes, data: bytes = bytes(26)) -> Path:
    text = told if isinstance(told, bytes) else json.dumps(told).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def test_tensors_are_found_at_their_place(tmp_path: Path) -> None:
    path = written(tmp_path / "w.safetensors", header())
    weight, bias = parse_safetensors(path, 2**20, "w")
    assert (weight.name, weight.dtype, weight.shape) == ("weight", "float32", (2, 3))
    assert (weight.end - weight.begin, bias.begin, bias.end) == (
        24,
        weight.end,
        path.stat().st_size,
    )
    assert (bias.dtype, bias.shape) == ("bfloat16", ())
    parsed = parse_model(path, Limits(), "", DECLARED)
    assert (parsed.format, parsed.signature) == (ModelFormat.PYTHON, DECLARED)


def test_the_library_of_the_format_writes_what_is_read(tmp_path: Path) -> None:
    library = pytest.importorskip("safetensors.numpy", reason="no library to hold it against")
    import numpy as np

    library.save_file({"a": np.ones((2, 2), np.float32)}, tmp_path / "w.safetensors")
    (found,) = parse_safetensors(tmp_path / "w.safetensors", 2**20, "w")
    assert (found.name, found.dtype, found.shape) == ("a", "float32", (2, 2))


def _at(name: str, **changes: Any) -> Callable[[Json], None]:
    return lambda told: told[name].update(changes)


HOSTILE: dict[str, tuple[Callable[[Json], None], str]] = {
    "more than there is": (_at("weight", shape=[2, 2**40]), "claims the shape"),
    "negative": (_at("weight", shape=[-2, -3]), "no shape or no place"),
    "true as a size": (_at("weight", shape=[True, 6]), "no shape or no place"),
    "overlap": (_at("bias", data_offsets=[22, 24]), "overlaps another"),
    "a gap": (_at("weight", shape=[2, 2], data_offsets=[8, 24]), "leaves a gap"),
    "behind the end": (_at("bias", data_offsets=[24, 28], dtype="F32"), "holds"),
    "an unknown type": (_at("bias", dtype="F4"), "has the type F4"),
    "objects": (_at("bias", dtype={"a": 1}), "has the type"),
    "no tensors": (lambda told: told.clear(), "holds"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_headers_that_lie_are_refused(name: str, tmp_path: Path) -> None:
    told, (change, says) = header(), HOSTILE[name]
    change(told)
    with pytest.raises(InvalidError) as caught:
        parse_safetensors(written(tmp_path / "w", told), 2**20, "w")
    assert says in caught.value.text()


def test_what_is_no_header_is_refused(tmp_path: Path) -> None:
    for told in (b"{", b"[1]", b'{"a":' * 5000, b"{\xff}"):
        with pytest.raises(InvalidError):
            parse_safetensors(written(tmp_path / "w", told), 2**20, "w")
    (tmp_path / "w").write_bytes((2**40).to_bytes(8, "little") + b"{}")
    with pytest.raises(InvalidError):
        parse_safetensors(tmp_path / "w", 2**20, "w")
