"""The grammar of labels. Names that a selector reads elsewhere are refused."""

import re
from collections.abc import Iterable

from controller.domain.selection import RESERVED, model_of
from controller.errors import InvalidError
from controller.store.models import list_model_names
from controller.store.session import Connection

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,62}")
_VALUE = re.compile(r"[A-Za-z0-9._:/@ -]{0,63}")


def check_label(name: str, value: str = "") -> None:
    """InvalidError where a label could not be selected by."""
    if not _NAME.fullmatch(name):
        raise InvalidError(
            f"{name[:80]!r} is no label name", "names are 1 to 63 letters, digits and . _ / -"
        )
    if name in RESERVED or name == "all":
        raise InvalidError(f"the label name {name!r} is reserved; selectors give it a meaning")
    if not _VALUE.fullmatch(value):
        raise InvalidError(
            f"{value[:80]!r} is no label value",
            "values are up to 63 letters, digits and . _ : / @ -",
        )


def refuse_versions(conn: Connection, project: str, names: Iterable[str]) -> None:
    """InvalidError for a label that would hide the version of a model: ``photo.version``."""
    asked = [name for name in names if model_of(name)]
    known = set(list_model_names(conn, project)) if asked else set()
    for name in asked:
        if model_of(name) in known:
            raise InvalidError(
                f"the label name {name!r} is the version of the model {model_of(name)} in selectors"
            )
