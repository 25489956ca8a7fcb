"""Zip tricks: none is followed, whatever the format inside."""

import io
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from controller.errors import InvalidError
from controller.intake.dataset import load_dataset


def _npy(array: np.ndarray[tuple[int, ...], np.dtype[np.float32]] | None = None) -> bytes:
    out = io.BytesIO()
    np.save(out, np.ones((4, 2), np.float32) if array is None else array)
    return out.getvalue()


def _zip(*entries: tuple[str | zipfile.ZipInfo, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries:
            archive.writestr(name, data)
    return out.getvalue()


def _linked() -> bytes:
    info = zipfile.ZipInfo("x.npy")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return _zip((info, b"/etc/passwd"))


def _device() -> bytes:
    info = zipfile.ZipInfo("x.npy")
    info.external_attr = (stat.S_IFCHR | 0o666) << 16
    return _zip((info, b""))


def _duplicate() -> bytes:
    one = _zip(("x.npy", _npy()), ("y.npy", _npy()))
    return one.replace(b"y.npy", b"x.npy")


def _encrypted() -> bytes:
    data = bytearray(_zip(("x.npy", _npy())))
    data[6] |= 1
    data[data.rfind(b"PK\x01\x02") + 8] |= 1
    return bytes(data)


def _overlapping() -> bytes:
    """Both entries of the directory point at the same bytes."""
    data = bytearray(_zip(("x.npy", _npy()), ("y.npy", _npy())))
    second = data.rfind(b"PK\x01\x02")
    struct.pack_into("<L", data, second + 42, 0)
    return bytes(data)


def _prefixed() -> bytes:
    return b"MZ not a zip" + _zip(("x.npy", _npy()))


def _suffixed() -> bytes:
    return _zip(("x.npy", _npy())) + b"trailing"


def _commented() -> bytes:
    out = io.BytesIO(_zip(("x.npy", _npy())))
    with zipfile.ZipFile(out, "a") as archive:
        archive.comment = b"hello"
    return out.getvalue()


def _wrong_checksum() -> bytes:
    data = bytearray(_zip(("x.npy", _npy())))
    struct.pack_into("<L", data, data.rfind(b"PK\x01\x02") + 16, 1)
    return bytes(data)


def _bzip2() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("x.npy", _npy())
    return out.getvalue()


def _bomb() -> bytes:
    return _zip(("x.npy", bytes(64 * 1024**2)))


def _many() -> bytes:
    """An end record that promises more entries than anybody reads."""
    data = bytearray(_zip(("x.npy", _npy())))
    end = data.rfind(b"PK\x05\x06")
    struct.pack_into("<HH", data, end + 8, 65_500, 65_500)
    return bytes(data)


def _named(name: str) -> Callable[[], bytes]:
    return lambda: _zip(("x.npy", _npy()), (name, b"x"))


TRICKS: dict[str, Callable[[], bytes]] = {
    "link": _linked,
    "device": _device,
    "duplicate": _duplicate,
    "encrypted": _encrypted,
    "overlap": _overlapping,
    "prefix": _prefixed,
    "suffix": _suffixed,
    "comment": _commented,
    "checksum": _wrong_checksum,
    "other packing": _bzip2,
    "bomb": _bomb,
    "too many": _many,
    "absolute": _named("/etc/passwd"),
    "parent": _named("../escape"),
    "inner parent": _named("a/../../escape"),
    "backslash": _named("a\\b"),
    "folder": _named("folder/"),
    "dot": _named("./x.npy"),
    "control character": _named("a\x01b"),
    "endless name": _named("n" * 2000),
    "unknown entry": _named("z.npy"),
    "empty": lambda: b"PK\x05\x06" + bytes(18),
}


@pytest.mark.parametrize("name", TRICKS)
def test_tricks_are_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "trick.npz"
    path.write_bytes(TRICKS[name]())
    with pytest.raises(InvalidError) as caught:
        load_dataset(path, cap_bytes=8 * 1024**2)
    assert caught.value.message.startswith("trick.npz")


def test_the_plain_archive_is_read(tmp_path: Path) -> None:
    """Negative control: what the tricks are made from is taken."""
    path = tmp_path / "plain.npz"
    path.write_bytes(_zip(("x.npy", _npy())))
    assert load_dataset(path, cap_bytes=8 * 1024**2).x.shape == (4, 2)


def test_an_archive_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = _zip(("x.npy", _npy()))
    path = tmp_path / "cut.npz"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(InvalidError):
            load_dataset(path)


def test_an_archive_with_a_byte_changed_never_raises_anything_else(tmp_path: Path) -> None:
    whole = _zip(("x.npy", _npy()))
    path = tmp_path / "changed.npz"
    refused = 0
    for place in range(len(whole)):
        data = bytearray(whole)
        data[place] ^= 0xFF
        path.write_bytes(data)
        try:
            load_dataset(path)
        except InvalidError:
            refused += 1
    assert refused > len(whole) / 2
