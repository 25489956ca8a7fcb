"""The objects that come with a release. Reads them from the package, changes nothing."""

from collections.abc import Iterator
from importlib.resources import files
from typing import Any

import yaml

from controller.errors import InvariantError


def shipped_objects() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(kind, name, spec) of the recipes, profiles and the default policy of this release.

    Raises InvariantError when a file of the package is not what it should be.
    """
    for file in sorted(files("controller").joinpath("shipped").iterdir(), key=lambda f: f.name):
        if not file.name.endswith(".yaml"):
            continue
        for document in yaml.safe_load_all(file.read_text(encoding="utf-8")):
            if not isinstance(document, dict) or set(document) != {"kind", "name", "spec"}:
                raise InvariantError(f"shipped {file.name}: a document needs kind, name and spec")
            yield document["kind"], document["name"], document["spec"]
