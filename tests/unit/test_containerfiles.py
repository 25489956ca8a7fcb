"""The Containerfiles, as far as that can be seen without a container engine."""

import fnmatch
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from tests.support.containerfile import (
    Instruction,
    image_environment,
    last,
    read_containerfile,
)
from tests.support.sources import ROOT

FILES = ("Containerfile.controller", "Containerfile.agent")
KNOWN = {
    *("ARG", "FROM", "ENV", "WORKDIR", "COPY", "RUN", "LABEL", "USER", "VOLUME", "EXPOSE"),
    *("STOPSIGNAL", "ENTRYPOINT", "CMD", "HEALTHCHECK"),
}


@pytest.fixture(params=FILES)
def image(request: pytest.FixtureRequest) -> list[Instruction]:
    return read_containerfile(request.param)


def project() -> dict[str, object]:
    found: dict[str, object] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return found


def argument(image: list[Instruction], name: str) -> str:
    """Default of a build argument."""
    given = [one.rest.partition("=") for one in image if one.word == "ARG"]
    return next(value for key, _, value in given if key == name)


def is_ignored(path: str) -> bool:
    """As .dockerignore has it: the last line that matches the path or a folder above it."""
    parts = path.split("/")
    above = ["/".join(parts[: n + 1]) for n in range(len(parts))]
    ignored = False
    for line in (ROOT / ".dockerignore").read_text().split():
        pattern = line.removeprefix("!").removeprefix("**/")
        if any(fnmatch.fnmatch(one, pattern) for one in above):
            ignored = not line.startswith("!")
    return ignored


def test_only_known_instructions_are_used(image: list[Instruction]) -> None:
    assert {one.word for one in image} <= KNOWN


def test_what_is_copied_exists_and_is_not_ignored(image: list[Instruction]) -> None:
    copied = [one.words()[:-1] for one in image if one.word == "COPY" and "--from" not in one.rest]
    sources = [source for words in copied for source in words]
    assert "controller" in sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert not is_ignored(source), source
    assert is_ignored("tests/conftest.py")
    assert is_ignored(".venv/bin/python")
    assert is_ignored("data/trust/authority.pem")


def test_everything_that_the_wheel_is_made_of_is_copied(image: list[Instruction]) -> None:
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    copied = {word for one in image if one.word == "COPY" for word in one.words()[:-1]}
    assert set(wheel["targets"]["wheel"]["only-include"]) <= copied
    assert {project()["readme"], "LICENSE", "pyproject.toml"} <= copied


def test_extras_and_constraints_exist(image: list[Instruction]) -> None:
    extras = project()["optional-dependencies"]
    assert isinstance(extras, dict)
    assert set(argument(image, "EXTRAS").split(",")) <= set(extras)
    named = {path for one in image for path in re.findall(r"--constraint (\S+)", one.rest)}
    assert named == {"constraints/constraints.txt"}


def test_stages_hand_on_what_exists(image: list[Instruction]) -> None:
    stages = {m[1] for one in image if (m := re.search(r" AS (\S+)", one.rest))}
    for one in image:
        for name in re.findall(r"--from=(\S+)", one.rest):
            assert name in stages
    first = image.index(next(one for one in image if one.word == "FROM"))
    assert [one.word for one in image[:first]] == ["ARG"]


def test_the_entry_point_is_a_command_of_the_wheel(image: list[Instruction]) -> None:
    entry = last(image, "ENTRYPOINT").words()
    assert entry[:2] == ["tini", "--"]
    scripts = project()["scripts"]
    assert isinstance(scripts, dict)
    assert entry[2] in scripts
    assert any(" tini " in f"{one.rest} " for one in image if one.word == "RUN")
    assert image_environment(image)["PATH"].startswith("/opt/lighterman/bin:")


def test_the_default_command_can_be_read(image: list[Instruction]) -> None:
    import agent.__main__
    import controller.__main__

    name = last(image, "ENTRYPOINT").words()[2]
    parser = (controller if name == "lighterman-controller" else agent).__main__.build_parser()
    assert parser.parse_args(last(image, "CMD").words())


def test_it_ends_up_as_nobody_special(image: list[Instruction]) -> None:
    uid, _, gid = last(image, "USER").rest.partition(":")
    assert int(uid) >= 10000
    assert int(gid) >= 10000
    after = image[image.index(last(image, "USER")) :]
    assert not any(one.word in ("RUN", "COPY") for one in after)
    labels = " ".join(one.rest for one in image if one.word == "LABEL")
    for name in ("title", "licenses", "version", "revision"):
        assert f"org.opencontainers.image.{name}=" in labels


def test_settings_in_the_image_exist(image: list[Instruction]) -> None:
    from agent.settings import SETTINGS as OF_AGENT
    from controller.settings import SETTINGS as OF_CONTROLLER

    known = {row.env for row in (*OF_AGENT, *OF_CONTROLLER)}
    mine = {name for name in image_environment(image) if name.startswith("LIGHTERMAN_")}
    assert mine
    assert mine <= known


def test_shell_commands_have_the_syntax_of_a_shell(image: list[Instruction]) -> None:
    for one in image:
        if one.word == "RUN":
            done = subprocess.run(["sh", "-n", "-c", one.rest], capture_output=True, check=False)
            assert done.returncode == 0, one.rest


def test_the_agents_image_carries_no_torch() -> None:
    image = read_containerfile("Containerfile.agent")
    assert argument(image, "EXTRAS") == "agent,onnxruntime"


def test_the_controllers_image_has_the_broker_and_what_the_worker_needs() -> None:
    image = read_containerfile("Containerfile.controller")
    assert any("mosquitto" in one.words() for one in image if one.word == "RUN")
    assert {"controller", "optimize"} <= set(argument(image, "EXTRAS").split(","))


def test_both_carry_the_version_of_the_source(image: list[Instruction]) -> None:
    assert argument(image, "VERSION") == project()["version"]


def test_a_source_that_went_away_is_seen(tmp_path: Path) -> None:
    """Negative control of the reading above."""
    (tmp_path / "Containerfile").write_text(
        "FROM a AS b\n# COPY no such\nCOPY \\\n  gone \\\n  here /x\nRUN true\n"
    )
    read = read_containerfile("Containerfile", tmp_path)
    assert [one.word for one in read] == ["FROM", "COPY", "RUN"]
    assert read[1].words() == ["gone", "here", "/x"]
