"""Fences a process and its children off from the files of the machine, by Landlock (Linux ≥ 5.13).

What is left: Python and the system's libraries to read, one folder to write. Imports only the
standard library. Opens no file, changes nothing outside of this process, cannot be undone.
"""

import ctypes
import os
import struct
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

_CREATE, _ADD_RULE, _RESTRICT = 444, 445, 446  # the same on every architecture
_VERSION_FLAG, _PATH_BENEATH = 1, 1
_NR_SET_NO_NEW_PRIVS = 38

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_MAKE_CHAR, _MAKE_BLOCK = 1 << 6, 1 << 11
_TRUNCATE, _IOCTL_DEV = 1 << 14, 1 << 15
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
# Access rights that each version of the interface knows: a kernel refuses those that it does not.
_KNOWN = {1: 13, 2: 14, 3: 15, 4: 15}
_NEWEST = 16
_SCOPED_ABI = 6  # abstract sockets and signals stay among the fenced as well
_SCOPED = 0b11

_READ = _EXECUTE | _READ_FILE | _READ_DIR
_SYSTEM = ("/usr", "/lib", "/lib64", "/bin", "/proc", "/sys")
# One by one: /etc holds keys and passwords too.
_ETC = ("ld.so.cache", "ld.so.conf", "ld.so.conf.d", "localtime", "os-release")
_DEVICES = ("null", "zero", "full", "random", "urandom")


def version() -> int:
    """Version of the kernel's interface, 0 where it has none or it is switched off."""
    found: int = _libc().syscall(_CREATE, None, 0, _VERSION_FLAG)
    return max(0, found)


def fence_files(folder: Path) -> bool:
    """From here on only ``folder`` can be written, and little else be read.

    False where the system does not offer it; nothing is restricted then. Raises OSError where it
    does and refuses.
    """
    abi = version()
    if abi == 0:
        return False
    known = (1 << _KNOWN.get(abi, _NEWEST)) - 1
    fields = (known,) if abi < 4 else (known, 0) if abi < _SCOPED_ABI else (known, 0, _SCOPED)
    attributes = struct.pack(f"{len(fields)}Q", *fields)
    rules = _call(_CREATE, attributes, len(attributes), 0)
    try:
        for path, wanted in _allowed(folder):
            _allow(rules, path, wanted & known)
        _libc().prctl(_NR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        _call(_RESTRICT, rules, 0)
    finally:
        os.close(rules)
    return True


def _allowed(folder: Path) -> Iterator[tuple[Path, int]]:
    yield folder, ((1 << _NEWEST) - 1) & ~(_MAKE_CHAR | _MAKE_BLOCK)
    for name in (*_SYSTEM, sys.prefix, sys.base_prefix):
        yield Path(name), _READ
    for name in _ETC:
        yield Path("/etc", name), _READ
    for name in _DEVICES:
        yield Path("/dev", name), _READ_FILE | _WRITE_FILE
    for entry in sys.path:
        # A checkout holds more than code: names may be listed, what they hold may not be read.
        below = any(Path(entry).is_relative_to(p) for p in (sys.prefix, sys.base_prefix))
        yield Path(entry), _READ if below else _READ_DIR
    for package in ("controller", "lighterman"):
        spec = find_spec(package)
        for place in (spec.submodule_search_locations or ()) if spec else ():
            yield Path(place), _READ


def _allow(rules: int, path: Path, wanted: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # it is not there
    try:
        if not path.is_dir():
            wanted &= _OF_FILES
        _call(_ADD_RULE, rules, _PATH_BENEATH, struct.pack("=Qi", wanted, descriptor), 0)
    finally:
        os.close(descriptor)


def _call(number: int, *arguments: object) -> int:
    """A system call; OSError with what the system said."""
    result: int = _libc().syscall(number, *arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"Landlock: {os.strerror(code)}")
    return result


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
