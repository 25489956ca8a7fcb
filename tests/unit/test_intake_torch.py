"""`.pt2` files: every valid one is taken, nothing that is code gets past, nothing is executed."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from controller.domain.model import ModelFormat
from controller.errors import InvalidError
from controller.intake.models import ParsedModel, parse_model
from controller.intake.torch_export import sanitize_pt2
from controller.services.context import Limits
from tests.support.pt2 import (
    GRAPH,
    SAMPLE,
    WEIGHTS,
    Json,
    entries,
    nodes,
    pickled,
    save_model,
    small_model,
    with_json,
    write,
)

AUTO = torch.export.Dim.AUTO
# PyTorch's own advice about recurrent networks.
pytestmark = pytest.mark.filterwarnings("ignore:The tensor attributes:UserWarning")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real `.pt2`, made once."""
    return small_model(tmp_path_factory.mktemp("pt2") / "small.pt2")


def parse(path: Path) -> ParsedModel:
    return parse_model(path, Limits())


# ---- valid ones -------------------------------------------------------------------------------


def test_the_signature_is_read_without_torch(model: Path) -> None:
    parsed = parse(model)
    assert parsed.format is ModelFormat.TORCH_EXPORT
    assert parsed.length == model.stat().st_size
    assert parsed.signature.text() == (
        "image[batch,1,8,8] FP32 → scores[batch,10] FP32, features[batch,72] FP32"
    )


def test_intake_imports_no_torch(model: Path) -> None:
    code = (
        "import sys; from pathlib import Path;"
        "from controller.intake.models import parse_model;"
        "from controller.services.context import Limits;"
        f"parse_model(Path({str(model)!r}), Limits());"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.norm = nn.LayerNorm(16)

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found, _ = self.attention(tokens, tokens, tokens, need_weights=False)
        mixed = self.norm(nn.functional.gelu(found) + tokens)
        return mixed * mask[..., None], mixed.mean(1)


class _Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 8)
        self.lstm = nn.LSTM(8, 12, batch_first=True)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        found, _ = self.lstm(self.embed(words))
        result: torch.Tensor = torch.softmax(found[:, -1], dim=-1)
        return result


class _Upsampled(nn.Module):
    def forward(self, image: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
        wide = nn.functional.interpolate(image, scale_factor=2.0, mode="bicubic")
        joined = torch.cat([wide, wide.flip(3)], 1)
        pooled = nn.functional.adaptive_avg_pool2d(joined, 4).to(torch.float64)
        return torch.where(pooled > 0, pooled, torch.zeros_like(pooled)) * gain


VALID: dict[str, Callable[[Path], Path]] = {
    "attention": lambda p: save_model(
        _Attention(), p, torch.randn(2, 5, 16), torch.ones(2, 5),
        tokens={0: AUTO, 1: AUTO}, mask={0: AUTO, 1: AUTO},
    ),
    "recurrent": lambda p: save_model(
        _Recurrent(), p, torch.zeros(2, 7, dtype=torch.long), words={0: AUTO}
    ),
    "upsampled": lambda p: save_model(
        _Upsampled(), p, torch.randn(2, 3, 8, 8), torch.ones(1), image={0: AUTO}, gain=None
    ),
    "fixed batch": lambda p: save_model(nn.Linear(4, 2), p, torch.zeros(1, 4)),
    "half": lambda p: save_model(nn.Linear(4, 2).half(), p, torch.zeros(2, 4).half()),
}  # fmt: skip


@pytest.mark.parametrize("name", VALID)
def test_valid_models_are_taken_and_load_again(name: str, tmp_path: Path) -> None:
    path = VALID[name](tmp_path / "model.pt2")
    parsed = parse(path)
    sanitize_pt2(path, tmp_path / "stored.pt2")
    assert parse(tmp_path / "stored.pt2").signature == parsed.signature
    before, after = torch.export.load(path), torch.export.load(tmp_path / "stored.pt2")
    args, kwargs = before.example_inputs
    assert kwargs == {}
    torch.testing.assert_close(after.module()(*args), before.module()(*args))


def test_what_is_stored_has_no_sample_guards_or_traces_and_the_same_bytes(
    model: Path, tmp_path: Path
) -> None:
    def other_machine(document: Json) -> None:
        document["guards_code"] = ["L['image'].size()[0] <= 64"]
        nodes(document)[0]["metadata"]["stack_trace"] = "File /home/ana/secret.py"

    moved = with_json(model, tmp_path / "renamed.pt2", GRAPH, other_machine)
    sanitize_pt2(model, tmp_path / "a.pt2")
    sanitize_pt2(moved, tmp_path / "b.pt2")
    stored = entries(tmp_path / "a.pt2")
    assert (tmp_path / "a.pt2").read_bytes() == (tmp_path / "b.pt2").read_bytes()
    assert stored[SAMPLE] == b""
    assert b"secret" not in (tmp_path / "b.pt2").read_bytes()
    assert json.loads(stored[GRAPH])["guards_code"] == []


def test_a_hostile_sample_is_dropped_unopened(model: Path, tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    hostile = write(tmp_path / "hostile.pt2", entries(model) | {SAMPLE: pickled(touched)})
    code = f"import torch; torch.export.load({str(hostile)!r})"
    # Negative control: PyTorch does run it.
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert touched.exists()
    touched.unlink()
    parse(hostile)
    sanitize_pt2(hostile, tmp_path / "stored.pt2")
    torch.export.load(tmp_path / "stored.pt2")
    assert not touched.exists()


# ---- hostile ones -----------------------------------------------------------------------------


def _pickled_weight(content: dict[str, bytes], touched: Path) -> None:
    config = json.loads(content[WEIGHTS])
    config["config"]["conv.weight"]["use_pickle"] = True
    content[WEIGHTS] = json.dumps(config).encode()
    content["data/weights/weight_0"] = pickled(touched)


def _pickled_constant(prefix: str) -> Callable[[dict[str, bytes], Path], None]:
    def change(content: dict[str, bytes], touched: Path) -> None:
        name = "data/constants/model_constants_config.json"
        config = json.loads(content[name])
        config["config"]["scale"].update(path_name=f"{prefix}_0", use_pickle=False)
        content[name] = json.dumps(config).encode()
        content[f"data/constants/{prefix}_0"] = pickled(touched)

    return change


def _add(name: str) -> Callable[[dict[str, bytes], Path], None]:
    def change(content: dict[str, bytes], touched: Path) -> None:
        content[name] = pickled(touched)

    return change


PICKLES = {
    "weight with use_pickle": _pickled_weight,
    "custom object": _pickled_constant("custom_obj"),
    "opaque object": _pickled_constant("opaque_obj"),
    "legacy weights": _add("data/weights/model.pt"),
    "legacy constants": _add("data/constants/model.pt"),
    "unnamed weight": _add("data/weights/weight_99"),
    "extra file": _add("extra/notes.txt"),
    "second program": _add("models/other.json"),
    "second sample": _add("data/sample_inputs/other.pt"),
    "native library": _add("data/aotinductor/model/wrapper.so"),
    "executorch program": _add("data/executorch/program.pte"),
}


@pytest.mark.parametrize("name", PICKLES)
def test_code_beside_the_graph_is_refused(name: str, model: Path, tmp_path: Path) -> None:
    content, touched = entries(model), tmp_path / "touched"
    PICKLES[name](content, touched)
    hostile = write(tmp_path / "hostile.pt2", content)
    with pytest.raises(InvalidError) as caught:
        parse(hostile)
    assert caught.value.message.startswith("hostile.pt2")
    with pytest.raises(InvalidError):
        sanitize_pt2(hostile, tmp_path / "stored.pt2")
    assert not touched.exists()


def _argument(value: Any) -> Callable[[Json], None]:
    def change(document: Json) -> None:
        nodes(document)[0]["inputs"][0]["arg"] = value

    return change


def _target(name: str) -> Callable[[Json], None]:
    def change(document: Json) -> None:
        nodes(document)[0]["target"] = name

    return change


def _guard(code: str) -> Callable[[Json], None]:
    def change(document: Json) -> None:
        document["guards_code"] = [code]

    return change


def _size(expression: str) -> Callable[[Json], None]:
    def change(document: Json) -> None:
        sizes = document["graph_module"]["graph"]["tensor_values"]["image"]["sizes"]
        sizes[0]["as_expr"]["expr_str"] = expression

    return change


def _call(side: str, spec: str) -> Callable[[Json], None]:
    def change(document: Json) -> None:
        document["graph_module"]["module_call_graph"][0]["signature"][side] = spec

    return change


def _set(*path: str, value: Any) -> Callable[[Json], None]:
    def change(document: Json) -> None:
        place = document
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value

    return change


RUN = "__import__('os').system('true')"
GRAPHS: dict[str, Callable[[Json], None]] = {
    "operator of another library": _target("torch.ops.evil.run.default"),
    "function of torch": _target("torch.load"),
    "function of torch.hub": _target("torch.hub.load"),
    "operator that writes files": _target("torch.ops.aten.save.default"),
    "operator that maps files": _target("torch.ops.aten.from_file.default"),
    "operator through a dunder": _target("_operator.__class__"),
    "operator.call": _target("_operator.call"),
    "higher order operator": _target("torch.ops.higher_order.cond"),
    "extension operator": _target("#evil.op"),
    "subgraph": _argument({"as_graph": {"name": "g", "graph": {}}}),
    "custom object": _argument({"as_custom_obj": {"name": "o", "class_fqn": "os.system"}}),
    "operator as argument": _argument({"as_operator": "torch.ops.aten.save"}),
    "two kinds": _argument({"as_int": 1, "as_graph": {}}),
    "hidden expression": _argument({"as_sym_int": {"expr_str": RUN}}),
    "device": _argument({"as_device": {"type": "cuda", "index": 0}}),
    "guard that runs": _guard(RUN),
    "guard with attribute": _guard("L['image'].__class__.__mro__[1] == 2"),
    "guard with lambda": _guard("(lambda: 1)() == 1"),
    "guard with statement": _guard("1 == 1)\nimport os\ntorch._assert(True"),
    "guard with text": _guard("L['a b; import os'].size()[0] == 1"),
    "guard with keyword": _guard("L['image'].size(dim=print()) == 1"),
    "size that runs": _size(RUN),
    "size with attribute": _size("Symbol('s40').func"),
    "size of a function": _size("sympify('1')"),
    "size with text": _size("Symbol('__import__(1)')"),
    "size with a list": _size("[x for x in ()]"),
    "endless size": _size("1" * 5000),
    "unreadable size": _size("(((("),
    "foreign pytree": _call("in_spec", '[1, {"type": "os.system", "context": null, '
                            '"children_spec": []}]'),
    "pytree of another version": _call("in_spec", "[9, {}]"),
    "nested results": _call(
        "out_spec",
        '[1, {"type": "builtins.tuple", "context": "null", "children_spec": [{"type": '
        '"builtins.list", "context": "null", "children_spec": []}]}]',
    ),
    "named tuples": _set("graph_module", "treespec_namedtuple_fields", value={"os.system": ["a"]}),
    "custom values": _set("graph_module", "graph", "custom_obj_values", value={"a": {}}),
    "unknown part": _set("plugin", value="x"),
    "other schema": _set("schema_version", "major", value=99),
    "no inputs": _set("graph_module", "signature", "input_specs", value=[]),
    "input that is no tensor": _set(
        "graph_module", "signature", "input_specs",
        value=[{"user_input": {"arg": {"as_int": 1}}}],
    ),
    "range that is text": _set("range_constraints", value={"s40": {"min_val": RUN}}),
    "list instead of object": _set("graph_module", "graph", value=[]),
}  # fmt: skip


@pytest.mark.parametrize("name", GRAPHS)
def test_code_in_the_graph_is_refused(name: str, model: Path, tmp_path: Path) -> None:
    hostile = with_json(model, tmp_path / "hostile.pt2", GRAPH, GRAPHS[name])
    with pytest.raises(InvalidError) as caught:
        parse(hostile)
    assert caught.value.message.startswith("hostile.pt2")


def test_the_unchanged_copy_is_taken(model: Path, tmp_path: Path) -> None:
    """Negative control of the two tests above: it is the change that is refused, not the copy."""
    copied = with_json(model, tmp_path / "copy.pt2", GRAPH, lambda _: None)
    assert parse(copied).signature == parse(model).signature


def _tensor(**changes: Any) -> Callable[[Json], None]:
    def change(document: Json) -> None:
        document["config"]["conv.weight"]["tensor_meta"].update(changes)

    return change


TENSORS = {
    "more than its file": _tensor(sizes=[{"as_int": 1 << 20}] * 4),
    "broadcast bomb": _tensor(sizes=[{"as_int": 1 << 19}] * 2, strides=[{"as_int": 0}] * 2),
    "behind its file": _tensor(storage_offset={"as_int": 1 << 40}),
    "negative size": _tensor(sizes=[{"as_int": -1}]),
    "unknown type": _tensor(dtype=9),
    "sparse": _tensor(layout=1),
    "on a GPU": _tensor(device={"type": "cuda", "index": 0}),
    "without strides": _tensor(strides=[]),
}


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_that_are_not_what_they_say_are_refused(
    name: str, model: Path, tmp_path: Path
) -> None:
    with pytest.raises(InvalidError):
        parse(with_json(model, tmp_path / "hostile.pt2", WEIGHTS, TENSORS[name]))


def test_weights_named_outside_the_archive_are_refused(model: Path, tmp_path: Path) -> None:
    def escape(document: Json) -> None:
        document["config"]["conv.weight"]["path_name"] = "../../../etc/passwd"

    with pytest.raises(InvalidError, match=r"pickled object|no file"):
        parse(with_json(model, tmp_path / "hostile.pt2", WEIGHTS, escape))


@pytest.mark.parametrize("missing", [GRAPH, WEIGHTS, "archive_format", "byteorder", SAMPLE])
def test_parts_may_not_be_missing(missing: str, model: Path, tmp_path: Path) -> None:
    content = {name: data for name, data in entries(model).items() if name != missing}
    path = write(tmp_path / "part.pt2", content)
    if missing == SAMPLE:
        assert parse(path).signature == parse(model).signature
    else:
        with pytest.raises(InvalidError):
            parse(path)


def test_a_model_in_training_mode_is_refused_with_the_way_out(tmp_path: Path) -> None:
    program = torch.export.export(nn.BatchNorm1d(3).train(), (torch.randn(4, 3),))
    torch.export.save(program, tmp_path / "training.pt2")
    with pytest.raises(InvalidError) as caught:
        parse(tmp_path / "training.pt2")
    assert any(".eval()" in line for line in caught.value.lines)
