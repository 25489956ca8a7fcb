"""The page on adding a runtime: its example works from another distribution, its facts hold."""

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.domain.tensor import DType, Tensor
from agent.errors import LoadError
from agent.host.capabilities import installed_runtimes
from agent.runtime.registry import open_backend
from controller.domain.build import parse_recipe
from controller.optimize.builder import Order, require_builder
from controller.services.jobs import MEDIA_TYPE
from tests.support.openvino_builds import OnnxSource
from tests.support.serving import scaled
from tests.support.sources import ROOT

PAGE = (ROOT / "docs" / "adding-a-runtime.md").read_text(encoding="utf-8")
MAX_LINES = 80
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def blocks(kind: str) -> list[str]:
    return [text for found, text in BLOCKS if found == kind]


def code_lines(text: str) -> int:
    """Lines that hold code: no blank ones, comments or docstrings."""
    told: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(
            node
        ):
            said = node.body[0]
            told |= set(range(said.lineno, (said.end_lineno or said.lineno) + 1))
    empty = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    held: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in empty | {tokenize.ENDMARKER}:
            held |= set(range(token.start[0], token.end[0] + 1))
    return len(held - told)


def test_lines_are_counted_as_the_page_says() -> None:
    function = 'def f():\n    """Doc."""\n    return (\n        2\n    )\n'
    text = f'"""Two\n\nlines."""\n\nx = 1  # one\n# none\n\n\n{function}'
    assert code_lines(text) == 5


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The example as a distribution of its own, on the path as pip would put it."""
    device, worker = blocks("python")
    (registered,) = blocks("toml")
    (tmp_path / "onnx_on_device.py").write_text(device)
    (tmp_path / "onnx_on_worker.py").write_text(worker)
    facts = tmp_path / "onnx_runtime_example-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: onnx-runtime-example\nVersion: 1.0\n"
    )
    entries = re.sub(r'\[project\.entry-points\."(.+)"\]', r"[\1]", registered).replace('"', "")
    (facts / "entry_points.txt").write_text(entries)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in ("onnx_on_device", "onnx_on_worker"):
        sys.modules.pop(name, None)


def test_the_example_runs_on_both_sides(installed: Path, tmp_path: Path) -> None:
    import yaml

    (text,) = blocks("yaml")
    document = yaml.safe_load(text)
    recipe = parse_recipe(document["name"], document["spec"])
    builder = require_builder(recipe)
    source_file, target = tmp_path / "source.onnx", tmp_path / "build"
    source_file.write_bytes(scaled(3.0))
    source = OnnxSource(source_file)
    builder.compile_build(source, Order(recipe), target)
    data = np.arange(8, dtype=np.float32).reshape(2, 4)
    (built,) = builder.open_build(target, source.signature).run([data])
    assert (built == data * 3).all()
    assert builder.versions() == {"onnx": metadata.version("onnx")}
    assert MEDIA_TYPE.fullmatch(builder.MEDIA_TYPE)

    assert installed_runtimes()["onnx"] == metadata.version("onnx")
    backend = open_backend("onnx", str(target), {"intra_op_threads": 1})
    answer = backend.run({"x": Tensor("x", DType.FP32, (2, 4), data.tobytes())})["y"]
    assert np.frombuffer(answer.data, np.float32).tolist() == (data * 3).ravel().tolist()
    signature = backend.signature()
    assert signature is not None
    assert [spec.name for spec in signature.inputs] == ["x"]
    backend.close()


def test_the_example_says_what_is_missing(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(LoadError, match="onnx cannot load"):
        open_backend("onnx", str(tmp_path / "none"), {})
    monkeypatch.setitem(sys.modules, "onnx.reference", None)
    with pytest.raises(LoadError, match=r"not installed.*\n.*pip install onnx"):
        open_backend("onnx", "x", {})


def test_a_runtime_takes_one_file_of_so_many_lines() -> None:
    rows = re.findall(r"^\| `([a-z_/]+\.py)` \| (\d+) \|", PAGE, re.MULTILINE)
    assert len(rows) == 5
    for path, said in rows:
        assert code_lines((ROOT / path).read_text(encoding="utf-8")) == int(said), path
        assert int(said) <= MAX_LINES
    for text in blocks("python"):
        assert code_lines(text) <= MAX_LINES


def test_the_files_and_names_of_the_page_exist() -> None:
    for path in re.findall(r"`((?:agent|controller|tests)/[\w/]+\.py)`", PAGE):
        assert (ROOT / path).exists(), path
    from agent.host import capabilities
    from agent.runtime import backend, compiled
    from controller.optimize import builder

    wanted: dict[Any, tuple[str, ...]] = {
        backend.Backend: ("run", "signature", "call_off", "close"),
        backend.Rests: ("rest",),
        builder.Builder: ("compile_build", "open_build", "versions"),
        builder.Source: ("onnx", "torch"),
        builder.Order: ("rows",),
        compiled: ("CompiledCache",),
        capabilities: ("_MAKE_CODE",),
    }
    for owner, names in wanted.items():
        assert all(hasattr(owner, name) for name in names), owner
    assert {"MEDIA_TYPE", "NEEDS", "EXTRA"} <= set(builder.Builder.__annotations__)
    assert {"recipe", "go_on"} <= set(builder.Order.__annotations__)
    for group in ("lighterman.runtimes", "lighterman.builders"):
        assert f"`{group}`" in PAGE
        assert metadata.entry_points(group=group, name="openvino")
