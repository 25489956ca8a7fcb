"""The objects that come with a release. Reads them from the package, changes nothing."""

from importlib.resources import files

import yaml

from controller.errors import InvariantError
from controller.services.objects import NewObject


def shipped_objects() -> list[NewObject]:
    """Recipes, profiles and the default policy of this release.

    Raises InvariantError when a file of the package is not what it should be.
    """
    found: list[NewObject] = []
    for file in sorted(files("controller").joinpath("shipped").iterdir(), key=lambda f: f.name):
        if not file.name.endswith(".yaml"):
            continue
        for document in yaml.safe_load_all(file.read_text(encoding="utf-8")):
            if not isinstance(document, dict) or set(document) != {"kind", "name", "spec"}:
                raise InvariantError(f"shipped {file.name}: a document needs kind, name and spec")
            found.append(NewObject(document["kind"], document["name"], document["spec"]))
    return found
