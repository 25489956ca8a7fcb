"""Contexts and the errors people meet before a controller answers."""

import json
import socket
import stat
from pathlib import Path

import pytest

from controller.cli import contexts
from controller.cli.problem import CliError
from controller.cli.root import run


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "config"
    monkeypatch.setenv("LIGHTERMAN_CONFIG_DIR", str(folder))
    monkeypatch.delenv("LIGHTERMAN_CONTEXT", raising=False)
    return folder


def write_context(path: Path, **changes: object) -> Path:
    document: dict[str, object] = {
        "schema": 1,
        "name": "factory",
        "controller": "127.0.0.1:1",
        "project": "default",
        "ca_pem": "",
        "certificate_pem": "",
        "key_pem": "",
    }
    path.write_text(json.dumps({**document, **changes}), encoding="utf-8")
    return path


def test_without_a_context_the_way_out_is_named(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["status"]) == 1
    assert "lighterman-controller serve" in capsys.readouterr().err


def test_an_added_context_is_private_and_the_first_becomes_current(
    config: Path, tmp_path: Path
) -> None:
    contexts.add(write_context(tmp_path / "given.json"), None)
    stored = config / "contexts" / "factory.json"
    assert stat.S_IMODE(stored.stat().st_mode) == 0o600
    assert contexts.load(None).controller == "127.0.0.1:1"


def test_an_unknown_context_names_the_known_ones(config: Path, tmp_path: Path) -> None:
    contexts.add(write_context(tmp_path / "given.json"), None)
    with pytest.raises(CliError, match="known: factory"):
        contexts.load("farm")


@pytest.mark.parametrize(
    ("text", "said"), [("{", "not JSON"), ("{}", "schema"), ('{"schema": 1}', "lacks name")]
)
def test_a_broken_context_file_says_what_is_wrong(
    config: Path, tmp_path: Path, text: str, said: str
) -> None:
    broken = tmp_path / "broken.json"
    broken.write_text(text, encoding="utf-8")
    with pytest.raises(CliError, match=said):
        contexts.load(str(broken))


def test_a_controller_that_does_not_answer_ends_with_5(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    path = write_context(tmp_path / "c.json", controller=f"127.0.0.1:{port}")
    assert run(["--context", str(path), "status"]) == 5
    said = capsys.readouterr().err
    assert said.startswith(f"error: controller at 127.0.0.1:{port} does not answer (tried 3 times")
    assert "connection refused" in said


def test_usage_errors_end_with_2(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["model", "push", "detector", "--variant", "heavy=x.pt2"]) == 2
    assert "NAME:VERSION" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("kind: Policy\nname: p\n", "expected exactly kind, name and spec"),
        ("kind: Model\nname: p\nspec: {}\n", "unknown kind 'Model'"),
        ("[1, 2]", "found list"),
        ("kind: [", "is not YAML"),
        ("", "holds no object"),
    ],
)
def test_apply_refuses_what_is_no_object(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, said: str
) -> None:
    file = tmp_path / "objects.yaml"
    file.write_text(text, encoding="utf-8")
    assert run(["apply", "-f", str(file)]) == 1
    assert said in capsys.readouterr().err
