"""Reads the mark of TorchScript builds, and holds the archive against the one form that they have.

Our builders write plain zip files of known members, one of which, the mark, states the signature.
Refuses every other archive before its library looks at it: that one would run what it holds.
"""

import json
import re
import zipfile
from typing import Any

from agent.domain.tensor import DType, Signature, TensorSpec
from agent.errors import LoadError

MARK = "archive/extra/lighterman.json"
_NEEDED = frozenset(
    {MARK, "archive/version", "archive/byteorder", "archive/data.pkl"}
    | {"archive/code/__torch__/lighterman.py"}
)
_CONSTANTS = re.compile(r"archive/(constants\.pkl|constants/[0-9]{1,6})")
MAX_MARK_BYTES = 1024**2
MAX_MEMBERS = 65_000


def read_mark(path: str) -> Signature:
    """What the build takes and gives. LoadError for any file that is no build of ours."""
    try:
        with zipfile.ZipFile(path) as archive:
            _check_members(path, archive.infolist())
            mark = json.loads(archive.read(MARK))
    except (zipfile.BadZipFile, ValueError, NotImplementedError, RecursionError) as error:
        raise LoadError(f"{path} is no build for torch: {error}") from error
    except OSError as error:
        raise LoadError(f"{path} cannot be read: {error.strerror or error}") from error
    if not isinstance(mark, dict) or mark.get("schema") != 1:
        raise LoadError(f"{path} has the mark of another release")
    try:
        return Signature(_specs(mark["inputs"]), _specs(mark["outputs"]))
    except (KeyError, TypeError, ValueError) as error:
        raise LoadError(f"{path} has a mark that says nothing: {error!r}") from error


def _check_members(path: str, members: list[zipfile.ZipInfo]) -> None:
    names = [member.filename for member in members]
    odd = [name for name in names if name not in _NEEDED and not _CONSTANTS.fullmatch(name)]
    whole = len(set(names)) == len(names) <= MAX_MEMBERS and set(names) >= _NEEDED
    if odd or not whole:
        raise LoadError(f"{path} is no TorchScript of our builders: {(odd or names)[:3]}")
    for member in members:
        packed = member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1
        if packed or member.compress_size != member.file_size:
            raise LoadError(f"{path} holds {member.filename} packed, as no build does")
        if member.filename == MARK and member.file_size > MAX_MARK_BYTES:
            raise LoadError(f"{path} has a mark of {member.file_size} bytes")


def _specs(found: Any) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(str(one["name"]), DType(one["dtype"]), tuple(one["shape"])) for one in found
    )
