"""TorchScript archives: our builder's own, and those of others that look like them."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from controller.domain.build import Precision, Recipe
from controller.intake.models import parse_model
from controller.optimize import build_torchscript
from controller.optimize.builder import Order
from controller.optimize.import_torch import TorchModel
from controller.optimize.torchscript_archive import CODE, MARK
from controller.services.context import Limits

FLOAT = Recipe("torchscript-fp32", "torch", Precision.FP32)


class TorchSource:
    """Satisfies `controller.optimize.builder.Source`."""

    def __init__(self, path: Path) -> None:
        self.signature = parse_model(path, Limits()).signature
        self._model = TorchModel(path, self.signature)

    def onnx(self) -> Path:
        """Never asked for here."""
        raise NotImplementedError

    def torch(self) -> TorchModel:
        """The loaded program."""
        return self._model


def export(function: Callable[..., Any], folder: Path, *inputs: str) -> Path:
    """A `.pt2` of a function of float rows of 4, with these names of its inputs."""
    import torch

    class Model(torch.nn.Module):
        pass

    names = inputs or ("x",)
    scope = {"function": function}
    exec(f"def forward(self, {', '.join(names)}):\n    return function({', '.join(names)})", scope)
    Model.forward = scope["forward"]
    batch = torch.export.Dim("batch")
    sample = tuple(torch.randn(2, 4) for _ in names)
    program = torch.export.export(
        Model().eval(), sample, dynamic_shapes=tuple({0: batch} for _ in names)
    )
    path = folder / "model.pt2"
    torch.export.save(program, path)
    return path


def archive_of(source: Path, folder: Path) -> bytes:
    """The bytes that ship for a `.pt2`."""
    target = folder / "made.torch"
    build_torchscript.compile_build(TorchSource(source), Order(FLOAT), target)
    return target.read_bytes()


def scaled(factor: float, folder: Path) -> bytes:
    """y = factor · x, with the names of the tests' signature."""
    from controller.domain.model import Signature, TensorSpec

    source = TorchSource(export(lambda x: x * factor, folder))
    row = ("batch", 4)
    source.signature = Signature((TensorSpec("x", "FP32", row),), (TensorSpec("y", "FP32", row),))
    source.torch().signature = source.signature
    target = folder / "made.torch"
    build_torchscript.compile_build(source, Order(FLOAT), target)
    return target.read_bytes()


def repack(
    data: bytes,
    change: dict[str, bytes | None] | None = None,
    *,
    packed: bool = False,
    twice: str = "",
) -> bytes:
    """The archive with members replaced, added or (None) left out."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(made, "w") as new:
        members: dict[str, bytes | None] = {name: old.read(name) for name in old.namelist()}
        members |= change or {}
        method = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
        for name, content in members.items():
            for _ in range(2 if name == twice else 1):
                if content is not None:
                    new.NameToInfo.pop(name, None)  # it warns of a second one
                    new.writestr(zipfile.ZipInfo(name), content, method)
    return made.getvalue()


def code_with(data: bytes, *lines: str) -> bytes:
    """The archive whose `forward` begins with other lines."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        code = archive.read(CODE).decode()
    head, arrow, body = code.partition(") -> Tuple[Tensor]:\n")
    text = head + arrow + "".join(f"    {line}\n" for line in lines) + body
    return repack(data, {CODE: text.encode()})


def foreign(folder: Path) -> bytes:
    """What PyTorch itself saves of a scripted function."""
    import warnings

    import torch

    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
            return (x * 2,)

    saved = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(Model()), saved)
    return saved.getvalue()


# What neither side may take for a build.
BROKEN: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "no zip": lambda data: b"\x80\x02}q\x00." * 20,
    "cut": lambda data: data[: len(data) // 2],
    "no mark": lambda data: repack(data, {MARK: None}),
    "a mark of nothing": lambda data: repack(data, {MARK: b"{}"}),
    "a mark that is no JSON": lambda data: repack(data, {MARK: b"\xff"}),
    "a mark of deep JSON": lambda data: repack(data, {MARK: b"[" * 200_000}),
    "no code": lambda data: repack(data, {CODE: None}),
    "more code": lambda data: repack(data, {"archive/code/__torch__/other.py": b"x"}),
    "a pickle more": lambda data: repack(data, {"archive/attributes.pkl": b"\x80\x02."}),
    "a member outside": lambda data: repack(data, {"../version": b"3"}),
    "another folder": lambda data: repack(data, {"model/version": b"3"}),
    "packed": lambda data: repack(data, packed=True),
    "a member twice": lambda data: repack(data, twice=CODE),
}

# Lines that a build's code has never: what they would do once it is loaded and run.
HOSTILE = {
    "writes a file": ["_9 = torch.save(x, 'out')"],
    "maps a file": ["_9 = torch.from_file('/etc/passwd', False, 4)"],
    "an operator of others": ["_9 = ops.image.read_file('/etc/passwd')"],
    "ATen by another road": ["_9 = ops.aten.save(x, 'out')"],
    "a primitive": ["_9 = ops.prim.PythonOp(x)"],
    "loops for ever": ["while True:", "    pass"],
    "a loop": ["for i in [1]:", "    pass"],
    "another class": ["_9 = __torch__.other.Thing.forward(x)"],
    "a built-in": ["_9 = open('x')"],
    "a comment": ["_9 = x  # torch.save"],
    "two lines in one": ["_9 = x; _8 = torch.save(x, 'out')"],
    "other letters": [f"_9 = '{chr(0x17F)}ave'"],
    "no Python": ["_9 = = 1"],
}
