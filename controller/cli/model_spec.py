"""The file of ``fleetctl model push --spec``: read from YAML, and shown again. Checks only form."""

import json
from pathlib import Path
from typing import Any

from controller.cli.apply import load_yaml, unfit
from controller.cli.problem import CliError


def read_spec(path: Path | None) -> dict[str, Any]:
    """The one mapping of the file; empty without a file."""
    if path is None:
        return {}
    documents = [one for one in load_yaml(path) if one is not None]
    if len(documents) != 1 or not isinstance(documents[0], dict):
        raise CliError(
            f"{path} has to hold one mapping, with any of: signature, inputs, outputs, axes, entry,"
            " variants"
        )
    wrong = unfit(documents[0], "spec")
    if wrong:
        raise CliError(f"{path}: {wrong}")
    return documents[0]


def spec_lines(spec_json: str) -> list[str]:
    """A line for each part of a spec, as YAML has it in one line."""
    spec = json.loads(spec_json) if spec_json else {}
    return [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in spec.items()]
