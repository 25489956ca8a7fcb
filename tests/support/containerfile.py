"""Reads a Containerfile as far as tests need it: stages, instructions, the entry point."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from tests.support.sources import ROOT


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction with its continuation lines joined; `stage` counts from 0."""

    stage: int
    word: str
    rest: str

    def words(self) -> list[str]:
        """What an exec form holds, or the words of the shell form."""
        if self.rest.startswith("["):
            return [str(word) for word in json.loads(self.rest)]
        return self.rest.split()


def read_containerfile(name: str, folder: Path = ROOT) -> list[Instruction]:
    """All instructions; comments are dropped."""
    lines = [line for line in (folder / name).read_text().splitlines() if not line.startswith("#")]
    found: list[Instruction] = []
    stage = -1
    for line in re.sub(r"\\\n\s*", " ", "\n".join(lines)).splitlines():
        word, _, rest = line.strip().partition(" ")
        if not word:
            continue
        stage += word.upper() == "FROM"
        found.append(Instruction(stage, word.upper(), rest.strip()))
    return found


def last(instructions: list[Instruction], word: str) -> Instruction:
    """The instruction that counts in the image: the last one of the last stage."""
    final = max(one.stage for one in instructions)
    return [one for one in instructions if one.word == word and one.stage == final][-1]


def image_environment(instructions: list[Instruction]) -> dict[str, str]:
    """What ENV of the last stage sets."""
    final = max(one.stage for one in instructions)
    pairs = [
        pair.partition("=")
        for one in instructions
        if one.word == "ENV" and one.stage == final
        for pair in one.rest.split()
    ]
    return {name: value for name, _, value in pairs}
