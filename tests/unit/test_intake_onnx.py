"""ONNX files: parsed whole; foreign operators, external data and false claims are refused."""

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from controller.domain.model import ModelFormat
from controller.errors import InvalidError
from controller.intake.models import check_one_signature, parse_model
from controller.intake.onnx_model import MAX_IR, MAX_NODES, MAX_OPSET, RUNTIME
from controller.services.context import Limits


def build(batch: str | int = "n", opset: int = 17) -> ModelProto:
    """`image[n,4]` times a weight plus a bias."""
    weight = numpy_helper.from_array(np.ones((4, 3), np.float32), "weight")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["image", "weight"], ["scores"], name="product")],
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 4])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [batch, 3])],
        [weight],
    )
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def refuse(model: ModelProto, path: Path) -> InvalidError:
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InvalidError) as caught:
        parse_model(path, Limits())
    assert caught.value.message.startswith(path.name)
    return caught.value


def test_names_types_and_the_batch_are_read(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(build().SerializeToString())
    parsed = parse_model(path, Limits())
    assert parsed.format is ModelFormat.ONNX
    assert parsed.signature.text() == "image[batch,4] FP32 → scores[batch,3] FP32"


def _quantised() -> ModelProto:
    model = build()
    for domain in ("ai.onnx.preview.training", "com.microsoft.nchwc", "org.pytorch.aten"):
        model.opset_import.append(helper.make_opsetid(domain, 1))
    return model


def _contrib() -> ModelProto:
    model = build()
    model.graph.node[0].op_type = "FusedMatMul"
    model.graph.node[0].domain = "com.microsoft"
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return model


def _local_function() -> ModelProto:
    model = build()
    domain = "pkg.onnxscript.torch_lib"
    body = helper.make_node("MatMul", ["a", "b"], ["c"])
    opsets = [helper.make_opsetid("", 17)]
    model.functions.append(
        helper.make_function(domain, "product", ["a", "b"], ["c"], [body], opsets)
    )
    model.opset_import.append(helper.make_opsetid(domain, 1))
    model.graph.node[0].op_type, model.graph.node[0].domain = "product", domain
    return model


def _nested_functions() -> ModelProto:
    model = build()
    _growing(5)(model)
    return model


VALID: dict[str, Callable[[], ModelProto]] = {
    "fixed batch": lambda: build(1),
    "opset 11": lambda: build(opset=11),
    "domains that nothing uses": _quantised,
    "operator of the runtime": _contrib,
    "function of the exporter": _local_function,
    "functions that call functions": _nested_functions,
}


@pytest.mark.parametrize("name", VALID)
def test_valid_models_are_taken(name: str, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(VALID[name]().SerializeToString())
    assert parse_model(path, Limits()).signature.inputs[0].name == "image"


def _foreign_operator(model: ModelProto) -> None:
    model.graph.node[0].domain = "evil.example"
    model.opset_import.append(helper.make_opsetid("evil.example", 1))


def _foreign_function(model: ModelProto) -> None:
    body = helper.make_node("Identity", ["a"], ["b"])
    opsets = [helper.make_opsetid("", 17)]
    model.functions.append(helper.make_function("evil.example", "f", ["a"], ["b"], [body], opsets))


def _foreign_in_function(model: ModelProto) -> None:
    body = helper.make_node("Run", ["a"], ["b"], domain="evil.example")
    opsets = [helper.make_opsetid("", 17)]
    model.functions.append(helper.make_function("pkg.mine", "f", ["a"], ["b"], [body], opsets))


def _foreign_in_subgraph(model: ModelProto) -> None:
    inner = helper.make_graph(
        [helper.make_node("Run", ["image"], ["r"], domain="evil.example")],
        "inner",
        [],
        [helper.make_tensor_value_info("r", TensorProto.FLOAT, None)],
    )
    truth = numpy_helper.from_array(np.array(True), "truth")
    model.graph.initializer.append(truth)
    model.graph.node.append(
        helper.make_node("If", ["truth"], ["unused"], then_branch=inner, else_branch=inner)
    )


def _context(model: ModelProto) -> None:
    model.graph.node[0].op_type, model.graph.node[0].domain = "EPContext", "com.microsoft"


def _external(location: str) -> Callable[[ModelProto], None]:
    def change(model: ModelProto) -> None:
        weight = model.graph.initializer[0]
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
        weight.external_data.add(key="location", value=location)

    return change


def _external_constant(model: ModelProto) -> None:
    value = TensorProto(data_type=TensorProto.FLOAT, dims=[4], name="c")
    value.external_data.add(key="location", value="/etc/passwd")
    model.graph.node.append(helper.make_node("Constant", [], ["unused"], value=value))


def _huge_claim(model: ModelProto) -> None:
    del model.graph.initializer[0].dims[:]
    model.graph.initializer[0].dims.extend([1 << 20, 1 << 18])


def _negative(model: ModelProto) -> None:
    model.graph.initializer[0].dims[0] = -4


def _no_shape(model: ModelProto) -> None:
    model.graph.input[0].type.tensor_type.ClearField("shape")


def _sequence(model: ModelProto) -> None:
    model.graph.output[0].type.Clear()
    model.graph.output[0].type.sequence_type.elem_type.tensor_type.elem_type = TensorProto.FLOAT


def _dangling(model: ModelProto) -> None:
    model.graph.node[0].input[0] = "nowhere"


def _no_inputs(model: ModelProto) -> None:
    del model.graph.input[:]


def _cycle(model: ModelProto) -> None:
    model.graph.node.extend(
        [helper.make_node("Relu", ["b"], ["a"]), helper.make_node("Relu", ["a"], ["b"])]
    )


def _call(model: ModelProto, name: str, *called: str) -> None:
    """A function that calls others of the same domain, one after another."""
    domain, opsets = "pkg.mine", [helper.make_opsetid("", 17), helper.make_opsetid("pkg.mine", 1)]
    names = ["a", *(f"{place}" for place in range(len(called)))]
    body = [
        helper.make_node(one, [before], [after], domain=domain if one.startswith("f") else "")
        for one, before, after in zip(called, names, names[1:], strict=False)
    ]
    model.functions.append(helper.make_function(domain, name, ["a"], [names[-1]], body, opsets))


def _growing(levels: int) -> Callable[[ModelProto], None]:
    def change(model: ModelProto) -> None:
        _call(model, "f0", "Relu", "Relu")
        for level in range(1, levels):
            _call(model, f"f{level}", *[f"f{level - 1}"] * 4)
        model.graph.node.add(
            op_type=f"f{levels - 1}", domain="pkg.mine", input=["image"], output=["unused"]
        )
        model.opset_import.append(helper.make_opsetid("pkg.mine", 1))

    return change


def _calls_itself(model: ModelProto) -> None:
    _call(model, "f0", "f1")
    _call(model, "f1", "f0")


def _many(model: ModelProto) -> None:
    node = helper.make_node("Relu", ["image"], [""])
    model.graph.node.extend([node] * (MAX_NODES + 1))


HOSTILE: dict[str, Callable[[ModelProto], None]] = {
    "cyclic graph": _cycle,
    "a billion operators by functions": _growing(15),
    "functions nested deep": _growing(30),
    "functions that call each other": _calls_itself,
    "more operators than are read": _many,
    "operator of a foreign domain": _foreign_operator,
    "function of a foreign domain": _foreign_function,
    "foreign operator in a function": _foreign_in_function,
    "foreign operator in a subgraph": _foreign_in_subgraph,
    "compiled context of another file": _context,
    "external data beside": _external("weights.bin"),
    "external data above": _external("../../../etc/passwd"),
    "external data absolute": _external("/etc/passwd"),
    "external data in a constant": _external_constant,
    "256 GiB in few bytes": _huge_claim,
    "negative size": _negative,
    "input without shape": _no_shape,
    "output that is a sequence": _sequence,
    "value from nowhere": _dangling,
    "no inputs": _no_inputs,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_models_are_refused(name: str, tmp_path: Path) -> None:
    model = build()
    HOSTILE[name](model)
    refuse(model, tmp_path / "hostile.onnx")


def test_old_opsets_are_refused(tmp_path: Path) -> None:
    assert "opset 10" in refuse(build(opset=10), tmp_path / "old.onnx").message


def _load(model: ModelProto) -> None:
    import onnxruntime

    onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def test_opsets_are_those_of_the_pinned_runtime(tmp_path: Path) -> None:
    """Negative control: the runtime itself reads the last one that is taken, and no newer one."""
    newest, next_one = build(opset=MAX_OPSET), build(opset=MAX_OPSET + 1)
    (tmp_path / "m.onnx").write_bytes(newest.SerializeToString())
    parse_model(tmp_path / "m.onnx", Limits())
    _load(newest)
    for model in (next_one, build(opset=99)):
        with pytest.raises(Exception, match=r"[Oo]pset"):
            _load(model)
    for model, number in ((next_one, MAX_OPSET + 1), (build(opset=99), 99)):
        said = refuse(model, tmp_path / "new.onnx").text()
        assert f"uses ONNX opset {number}, ONNX Runtime {RUNTIME} reads 11 to {MAX_OPSET}" in said
    newest.ir_version = MAX_IR + 1
    with pytest.raises(Exception, match="IR version"):
        _load(newest)
    assert "IR version" in refuse(newest, tmp_path / "ir.onnx").message


def _axes(model: ModelProto, *axes: int | str) -> None:
    shape = helper.make_tensor_value_info("image", TensorProto.FLOAT, list(axes))
    model.graph.input[0].CopyFrom(shape)


@pytest.mark.parametrize(
    ("axes", "says"),
    [
        (("n", 1_000_000, 1_000_000), "one row of image[batch,1000000,1000000] FP32 is 3,814,697"),
        ((4096, 4096, 64), "in every call"),
        (("n", 0, 4), "axis 1 of image has the size 0"),
        (("n", *([1] * 9)), "has 10 axes"),
        ((2**40, 2**40, 2**40), "one row of"),
    ],
)
def test_inputs_that_no_device_could_hold_are_refused(
    axes: tuple[int | str, ...], says: str, tmp_path: Path
) -> None:
    model = build()
    model.graph.node[0].op_type = "Identity"
    del model.graph.node[0].input[1:]
    del model.graph.initializer[:]
    _axes(model, *axes)
    del model.graph.output[:]
    model.graph.output.append(
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, list(axes))
    )
    assert says in refuse(model, tmp_path / "large.onnx").message


def test_a_large_picture_is_taken(tmp_path: Path) -> None:
    model = build()
    model.graph.node[0].op_type = "Identity"
    del model.graph.node[0].input[1:]
    del model.graph.initializer[:]
    _axes(model, "n", 3, 4096, 4096)
    del model.graph.output[:]
    model.graph.output.append(
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 3, 4096, 4096])
    )
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    assert parse_model(tmp_path / "m.onnx", Limits()).signature.inputs[0].shape[1] == 3


def test_external_data_is_not_followed_even_when_it_is_there(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(bytes(48))
    model = build()
    _external("weights.bin")(model)
    said = refuse(model, tmp_path / "m.onnx")
    assert "another file" in said.message
    assert any("external_data=False" in line for line in said.lines)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "empty"),
        (b"\x80\x04\x95\x00\x00", "pickle"),
        (b"\x93NUMPY\x01\x00", "NumPy"),
        (b"\x1f\x8b\x08\x00", "gzip"),
        (b"#!/bin/sh\n", "no ONNX model"),
        (b"\x00" * 64, "ONNX"),
        (b"PK\x03\x04", "cut short"),
    ],
)
def test_other_files_are_named_for_what_they_are(data: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(data)
    with pytest.raises(InvalidError, match=says):
        parse_model(path, Limits())


def test_truncated_files_are_refused_at_every_length(tmp_path: Path) -> None:
    whole = build().SerializeToString()
    path = tmp_path / "cut.onnx"
    for length in range(1, len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(InvalidError):
            parse_model(path, Limits())


def test_a_file_above_the_limit_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(build().SerializeToString())
    with pytest.raises(InvalidError, match="bytes long"):
        parse_model(path, Limits(artifact_bytes=10))


def test_variants_need_one_signature(tmp_path: Path) -> None:
    signatures = {}
    for name, model in (("heavy", build()), ("light", build("rows")), ("odd", build(1))):
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(model.SerializeToString())
        signatures[name] = parse_model(path, Limits()).signature
    same = {"heavy": signatures["heavy"], "light": signatures["light"]}
    assert check_one_signature(same) == signatures["heavy"]
    with pytest.raises(InvalidError) as caught:
        check_one_signature(signatures)
    assert caught.value.message == "variants heavy and odd differ in their inputs"
    assert "image[batch,4] FP32" in caught.value.lines[0]
    assert "image[1,4] FP32" in caught.value.lines[1]


def test_what_the_checker_of_onnx_refuses_is_refused(tmp_path: Path) -> None:
    model = build()
    model.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(onnx.checker.ValidationError):
        onnx.checker.check_model(model)
    assert "breaks the rules" in refuse(model, tmp_path / "m.onnx").message


@pytest.mark.parametrize("name", ["\x1b[31mimage\x07", "a\nb", "gnp\u202eexe", "x" * 201])
@pytest.mark.parametrize("side", ["input", "output"])
def test_names_that_would_steer_a_terminal_are_refused(
    name: str, side: str, tmp_path: Path
) -> None:
    model = build()
    node = model.graph.node[0]
    (node.input if side == "input" else node.output)[0] = name
    (model.graph.input if side == "input" else model.graph.output)[0].name = name
    assert "cannot name an input or output" in refuse(model, tmp_path / "m.onnx").message


def test_pickles_in_a_zip_are_named_as_what_they_are(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/version", b"3", zipfile.ZIP_DEFLATED)
        archive.writestr("m/data.pkl", b"\x80\x02}.")
    with pytest.raises(InvalidError, match=r"m\.pt is of torch\.save"):
        parse_model(path, Limits())
