"""TorchScript as a source: traced and scripted modules are taken, programs that reach out are not.

Every refusal names the operator and its line. Nothing here is loaded by intake.
"""

import io
import json
import pickle
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from controller.domain.model import ModelFormat, Signature, TensorSpec
from controller.errors import InvalidError
from controller.intake.models import parse_model
from controller.intake.torchscript import MARK, parse_torchscript, sanitize_torchscript
from controller.services.context import Limits

DECLARED = Signature(
    (TensorSpec("image", "FP32", ("batch", 3, 8, 8)),),
    (TensorSpec("scores", "FP32", ("batch", 4)),),
)


class Branching(nn.Module):
    """Loops, branches and a dictionary, as only scripting keeps them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Means of channels, or halves of them."""
        found = torch.relu(self.norm(self.conv(image)))
        for _ in range(2):
            found = found * 0.5
        if found.size(2) > 4:
            found = found[:, :, :4]
        return found.mean((2, 3))


class Straight(Branching):
    """The same as tracing leaves it."""


class Recurrent(nn.Module):
    """What exporters find hard, and scripts hold plainly."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.LSTM(8, 4, batch_first=True, bidirectional=True)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """The last step's state."""
        found, _ = self.cells(image.flatten(1, 2))
        last: torch.Tensor = found[:, -1, :4]
        return last


VALID: dict[str, Callable[[], torch.jit.ScriptModule]] = {
    "scripted": lambda: torch.jit.script(Branching().eval()),
    "traced": lambda: torch.jit.trace(Straight().eval(), torch.zeros(2, 3, 8, 8)),
    "scripted and frozen": lambda: torch.jit.freeze(torch.jit.script(Branching().eval())),
    "recurrent": lambda: torch.jit.script(Recurrent().eval()),
}
pytestmark = pytest.mark.filterwarnings("ignore")  # of PyTorch, which would rather export


def saved(make: Callable[[], torch.jit.ScriptModule], path: Path) -> Path:
    torch.jit.save(make(), path)
    return path


@pytest.fixture(scope="module")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(VALID["scripted"], tmp_path_factory.mktemp("ts") / "model.pt")


@pytest.mark.parametrize("name", VALID)
def test_valid_archives_are_taken_and_load_again(name: str, tmp_path: Path) -> None:
    path = saved(VALID[name], tmp_path / "model.pt")
    parsed = parse_model(path, Limits(), "", DECLARED)
    assert (parsed.format, parsed.signature) == (ModelFormat.TORCHSCRIPT, DECLARED)
    assert parse_torchscript(path, 2**30, "it").inputs == 1
    for number in (1, 2):
        sanitize_torchscript(path, tmp_path / f"clean{number}.pt", 2**30, "it")
    clean = (tmp_path / "clean1.pt").read_bytes()
    assert clean == (tmp_path / "clean2.pt").read_bytes()
    assert b"debug_pkl" not in clean
    assert str(Path(__file__).parent).encode() not in clean
    image = torch.rand(2, 3, 8, 8)
    wanted, found = (torch.jit.load(tmp_path / file)(image) for file in ("model.pt", "clean1.pt"))
    assert torch.equal(wanted, found)


def test_what_it_takes_has_to_be_said_somewhere(scripted: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidError) as caught:
        parse_model(scripted, Limits())
    assert "does not say what goes in and what comes out" in caught.value.message
    assert "signature: {inputs: [{name: image" in caught.value.text()
    marked = tmp_path / "marked.pt"
    torch.jit.save(
        torch.jit.load(scripted),
        marked,
        _extra_files={"lighterman.json": json.dumps(DECLARED.to_json())},
    )
    assert parse_model(marked, Limits()).signature == DECLARED
    other = Signature(DECLARED.inputs, (TensorSpec("scores", "FP32", ("batch", 5)),))
    with pytest.raises(InvalidError, match="states another signature than the spec declares"):
        parse_model(marked, Limits(), "", other)
    two = Signature((*DECLARED.inputs, TensorSpec("b", "FP32", ("batch",))), DECLARED.outputs)
    with pytest.raises(InvalidError, match="takes 1 input, the signature declares 2"):
        parse_model(scripted, Limits(), "", two)


def test_intake_imports_no_torch(scripted: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from controller.intake.torchscript import parse_torchscript\n"
        f"parse_torchscript(Path({str(scripted)!r}), 2**30, 'it')\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-I", "-c", code], check=True, timeout=60)


def changed(source: Path, target: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    with zipfile.ZipFile(source) as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    held = {f"archive/{name.split('/', 1)[1]}": data for name, data in held.items()}
    change(held)
    with zipfile.ZipFile(target, "w") as out:
        for name, data in held.items():
            out.writestr(name, data)
    return target


def _line(line: str) -> Callable[[dict[str, bytes]], None]:
    """A line more at the end of `forward`, before it returns."""

    def change(held: dict[str, bytes]) -> None:
        name = next(one for one, data in held.items() if b"class Branching" in data)
        before, found, after = held[name].decode().rpartition("    return ")
        held[name] = f"{before}    {line}\n{found}{after}".encode()

    return change


def _member(name: str, data: bytes) -> Callable[[dict[str, bytes]], None]:
    def change(held: dict[str, bytes]) -> None:
        held[f"archive/{name}"] = data

    return change


class _Shell:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("it ran",))


HOSTILE: dict[str, tuple[Callable[[dict[str, bytes]], None], str]] = {
    "a file read": (_line('a = torch.from_file("/etc/passwd", None, 4)'), "torch.from_file"),
    "a file written": (_line('ops.aten.save(x, "/tmp/x")'), "ops.aten.save"),
    "an operator of others": (_line("a = ops.mine.run(x)"), "ops.mine"),
    "a function of Python": (_line("a = ops.prim.PythonOp(x)"), "ops.prim.PythonOp"),
    "another thread": (_line("a = ops.prim.fork(x)"), "ops.prim.fork"),
    "a class of others": (_line("a = __torch__.torch.classes.mine.Run()"), "__torch__.torch.class"),
    "an import": (_line("import os"), "import"),
    "no code at all": (_line("a = ("), "cannot be read as code"),
    "letters that look alike": (_line("\u0430 = 1"), "cannot be read as code"),
    "a comment": (_line("a = 1  # type: ignore"), "cannot be read as code"),
    "two statements in a line": (_line("a = 1; b = 2"), "cannot be read as code"),
    "a pickle beside": (_member("weights.pkl", pickle.dumps(_Shell(), 2)), "weights.pkl"),
    "a program in its pickle": (_member("data.pkl", pickle.dumps(_Shell(), 2)), "names"),
    "a new pickle": (_member("data.pkl", pickle.dumps(_Shell(), 4)), "is no pickle of TorchScript"),
    "constants that are a program": (_member("constants.pkl", pickle.dumps(_Shell(), 2)), "names"),
    "a native library": (_member("code/__torch__/x.so", b"\x7fELF"), "x.so"),
    "one for phones": (_member("bytecode.pkl", b"x"), "for phones"),
    "a mark that is none": (_member(MARK, b"[1]"), "is no signature"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_programs_that_reach_out_are_refused(name: str, scripted: Path, tmp_path: Path) -> None:
    change, says = HOSTILE[name]
    path = changed(scripted, tmp_path / "hostile.pt", change)
    with pytest.raises(InvalidError) as caught:
        parse_model(path, Limits(), "", DECLARED)
    assert says in caught.value.text()
    assert caught.value.message.startswith("hostile.pt")
    if ": uses " in caught.value.message:
        assert re.search(r": code/__torch__\S*\.py, line \d+: ", caught.value.message)


def test_the_unchanged_copy_is_taken(scripted: Path, tmp_path: Path) -> None:
    path = changed(scripted, tmp_path / "same.pt", lambda held: None)
    assert parse_model(path, Limits(), "", DECLARED).format is ModelFormat.TORCHSCRIPT


def test_an_archive_cut_anywhere_is_refused(scripted: Path, tmp_path: Path) -> None:
    whole = scripted.read_bytes()
    for length in range(1, len(whole), len(whole) // 40):
        (tmp_path / "cut.pt").write_bytes(whole[:length])
        with pytest.raises(InvalidError):
            parse_model(tmp_path / "cut.pt", Limits(), "", DECLARED)


def test_what_torch_saves_by_pickle_is_named(tmp_path: Path) -> None:
    file = io.BytesIO()
    torch.save({"weight": torch.zeros(3)}, file)
    (tmp_path / "m.pt").write_bytes(file.getvalue())
    with pytest.raises(InvalidError, match=r"is of torch\.save, which writes pickles"):
        parse_model(tmp_path / "m.pt", Limits())
