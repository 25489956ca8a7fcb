"""`fleetctl apply -f` of what cannot be meant: one clear error, and nothing is applied."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import select

from controller.cli import apply as apply_room
from controller.cli.problem import CliError
from controller.store.tables import event, policy, profile, recipe
from lighterman.v1 import fleet_pb2
from tests.support.gateway import Running, running

GOOD = "kind: Policy\nname: {name}\nspec: {{priority: 3}}\n"
BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{','.join([f'*{chr(97 + n)}'] * 9)}]\n" for n in range(12)
)


@dataclass(frozen=True, slots=True)
class Desk:
    home: Running

    def apply(self, path: Path) -> tuple[int, str]:
        """As a person does it: the exit code and what was said on standard error."""
        context = str(self.home.folder / "operator.json")
        done = subprocess.run(
            [sys.executable, "-m", "controller.cli", "--context", context, "apply", "-f", path],
            env={**os.environ, "LIGHTERMAN_CONFIG_DIR": str(self.home.folder / "config")},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return done.returncode, done.stderr

    def stored(self) -> str:
        with self.home.deps.store.read() as conn:
            rows = [
                row for t in (policy, profile, recipe, event) for row in conn.execute(select(t))
            ]
        return hashlib.sha256(repr(rows).encode()).hexdigest()


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    with running(tmp_path_factory.mktemp("apply")) as home:
        yield Desk(home)


BAD: dict[str, tuple[bytes, str]] = {
    "unknown kind": (b"kind: Polcy\nname: p\nspec: {}\n", "did you mean Policy ?"),
    "foreign kind": (b"kind: Deployment\nname: p\nspec: {}\n", "kinds: Recipe, Profile, Group, "),
    "kind of another type": (b"kind: [Policy]\nname: p\nspec: {}\n", "unknown kind ['Policy']"),
    "unknown top field": (b"kind: Policy\nname: p\nspecs: {}\n", "found kind, name, specs"),
    "unknown field": (b"kind: Policy\nname: p\nspec: {prioritty: 1}\n", "spec has unknown keys"),
    "wrong type": (b"kind: Policy\nname: p\nspec: {priority: high}\n", "spec.priority is 'high'"),
    "a list for a mapping": (b"kind: Policy\nname: p\nspec: [1]\n", "spec is [1]"),
    "a name that YAML reads as false": (b"kind: Policy\nname: no\nspec: {}\n", "put it in quotes"),
    "a name that is none": (b"kind: Policy\nname: A B\nspec: {}\n", "'A B'"),
    "NaN": (b"kind: Policy\nname: p\nspec: {priority: .nan}\n", "spec.priority is nan"),
    "infinity": (b"kind: Policy\nname: p\nspec: {priority: .inf}\n", "spec.priority is inf"),
    "a number without end": (
        b"kind: Policy\nname: p\nspec: {priority: " + b"9" * 5000 + b"}\n", "cannot be read"
    ),
    "a number that no machine has": (
        b"kind: Policy\nname: p\nspec: {priority: " + b"9" * 400 + b"}\n", "spec.priority is 999"
    ),
    "a date": (b"kind: Policy\nname: p\nspec: {priority: 2026-11-24}\n", "YAML type date"),
    "no date": (b"kind: Policy\nname: p\nspec: {priority: 2026-99-99}\n", "cannot be read"),
    "a key twice": (
        b"kind: Policy\nname: p\nspec: {priority: 1, priority: 2}\n", "priority stands twice"
    ),
    "a bomb": (BOMB.encode(), "is not taken: write it out"),
    "an alias to itself": (b"kind: Policy\nname: p\nspec: &s {priority: *s}\n", "is not taken"),
    "a Python object": (b"!!python/object/apply:os.system ['true']\n", "is not YAML"),
    "endless nesting": (b"[" * 20_000, "nested too deeply"),
    "Latin-1": (b"kind: Policy\nname: p\nspec: {note: K\xf6ln}\n", "is no UTF-8 text: byte 0xf6"),
    "a NUL": (b"kind: Policy\nname: p\x00\nspec: {}\n", "is not YAML"),
    "a model": (b"\x08\x07" + bytes(1_100_000), "fleetctl model push"),
    "the same twice": (
        (GOOD.format(name="p") + "---\n" + GOOD.format(name="p")).encode(), "stands twice"
    ),
    "nothing": (b"# nothing\n", "holds no object"),
}  # fmt: skip


@pytest.mark.parametrize("case", list(BAD))
def test_what_cannot_be_meant_is_refused_and_changes_nothing(
    desk: Desk, tmp_path: Path, case: str
) -> None:
    text, said = BAD[case]
    file = tmp_path / "objects.yaml"
    file.write_bytes(text)
    before = desk.stored()
    code, told = desk.apply(file)
    assert code == 1, told
    assert told.startswith("error: ")
    assert said in told
    assert "Traceback" not in told
    assert len(told) < 20_000
    assert desk.stored() == before


@pytest.mark.parametrize("case", ["unknown field", "a bomb", "Latin-1", "wrong type"])
def test_of_a_folder_with_one_bad_file_nothing_is_applied(
    desk: Desk, tmp_path: Path, case: str
) -> None:
    for name in ("a", "z"):
        (tmp_path / f"{name}.yaml").write_text(GOOD.format(name=f"folder-{name}"))
    (tmp_path / "m.yaml").write_bytes(BAD[case][0])
    before = desk.stored()
    code, told = desk.apply(tmp_path)
    assert (code, BAD[case][1] in told) == (1, True), told
    assert desk.stored() == before


def test_negative_control_the_same_folder_without_the_bad_file_is_applied(
    desk: Desk, tmp_path: Path
) -> None:
    for name in ("a", "z"):
        (tmp_path / f"{name}.yaml").write_text(GOOD.format(name=f"folder-{name}"))
    assert desk.apply(tmp_path) == (0, "")
    shown = desk.home.fleet().ListObjects(fleet_pb2.ListObjectsRequest(kind="Policy"), timeout=10)
    assert {"folder-a", "folder-z"} <= {one.name for one in shown.objects}


def test_what_is_missing_or_unreadable_or_too_much_is_named(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path, said in (
        (tmp_path / "absent.yaml", "cannot be read: No such file"),
        (tmp_path, "holds no .yaml file"),
    ):
        code, told = desk.apply(path)
        assert (code, said in told) == (1, True), told
    (tmp_path / "a.yaml").write_text(GOOD.format(name="p"))
    monkeypatch.setattr(apply_room, "TOTAL_BYTES", 10)
    with pytest.raises(CliError, match="apply its files one by one"):
        apply_room.read_objects(tmp_path)
