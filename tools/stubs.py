"""Generates the protocol stubs and guards the protocol. Edits no .proto file.

`python -m tools.stubs` writes the stubs beside the .proto files and records additions in the golden
file; `--check` only compares. A change that would break an older peer is refused: with
`--accept-breaking` it is recorded, which is right only before such a peer exists.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from google.protobuf.descriptor_pb2 import DescriptorProto, EnumDescriptorProto

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "proto"
GOLDEN = SOURCE / "lighterman" / "protocol.golden"
GENERATED = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py", "_pb2_grpc.pyi")
HEADER = (
    "# Every name and number of the wire protocol. `make proto` adds lines; one that changes or\n"
    "# goes away breaks peers of another version, and `make check` says so.\n"
)


class StubError(Exception):
    """The generator failed; the message is its own."""


def proto_files() -> list[Path]:
    """All .proto files, relative to the source root, in stable order."""
    return sorted(path.relative_to(SOURCE) for path in SOURCE.rglob("*.proto"))


def generate(out: Path, descriptor: Path) -> None:
    """Write stubs for every .proto file under `out` and one descriptor set.

    Raises StubError when the generator refuses.
    """
    import grpc_tools
    from grpc_tools import protoc

    # The mypy-protobuf plugins are scripts beside the interpreter.
    bin_dir = str(Path(sys.executable).parent)
    os.environ["PATH"] = bin_dir + os.pathsep + os.environ.get("PATH", "")
    include = Path(grpc_tools.__file__).parent / "_proto"
    arguments = [
        "protoc",
        f"-I{SOURCE}",
        f"-I{include}",
        *(f"--{kind}_out={out}" for kind in ("python", "grpc_python")),
        *(f"--{kind}_out=quiet:{out}" for kind in ("mypy", "mypy_grpc")),
        f"--descriptor_set_out={descriptor}",
        "--include_imports",
        *(str(path) for path in proto_files()),
    ]
    here = os.getcwd()
    # protoc resolves the files against its include paths only when run above them.
    os.chdir(SOURCE)
    try:
        code = protoc.main(arguments)
    finally:
        os.chdir(here)
    if code != 0:
        raise StubError(f"protoc ended with {code}")


def describe(descriptor: Path) -> list[str]:
    """One line for each field, enum value and method of our own packages, sorted."""
    from google.protobuf import descriptor_pb2

    files = descriptor_pb2.FileDescriptorSet.FromString(descriptor.read_bytes())
    lines: list[str] = []
    for file in files.file:
        if file.package.startswith("google."):
            continue
        for message in file.message_type:
            lines += _message_lines(f"{file.package}.{message.name}", message)
        for enum in file.enum_type:
            lines += _enum_lines(f"{file.package}.{enum.name}", enum)
        for service in file.service:
            for method in service.method:
                streams = ("stream " * method.client_streaming, "stream " * method.server_streaming)
                lines.append(
                    f"{file.package}.{service.name}/{method.name} "
                    f"({streams[0]}{method.input_type}) -> ({streams[1]}{method.output_type})"
                )
    return sorted(lines)


def _message_lines(name: str, message: "DescriptorProto") -> list[str]:
    lines = []
    for item in message.field:
        kind = item.type_name or item.Type.Name(item.type).removeprefix("TYPE_").lower()
        repeated = "repeated " if item.label == item.LABEL_REPEATED else ""
        lines.append(f"{name}.{item.name} = {item.number} {repeated}{kind}")
    for nested in message.nested_type:
        lines += _message_lines(f"{name}.{nested.name}", nested)
    for enum in message.enum_type:
        lines += _enum_lines(f"{name}.{enum.name}", enum)
    return lines


def _enum_lines(name: str, enum: "EnumDescriptorProto") -> list[str]:
    return [f"{name}.{value.name} = {value.number}" for value in enum.value]


def golden_lines() -> list[str]:
    """The recorded protocol; empty when nothing is recorded yet."""
    if not GOLDEN.exists():
        return []
    return [line for line in GOLDEN.read_text().splitlines() if line and not line.startswith("#")]


def stale(fresh: Path) -> list[str]:
    """Generated files of the checkout that differ from `fresh`, or belong to nothing."""
    want = {path.relative_to(fresh) for path in fresh.rglob("*") if path.name.endswith(GENERATED)}
    have = {path.relative_to(SOURCE) for path in SOURCE.rglob("*") if path.name.endswith(GENERATED)}
    differing = {
        path for path in want & have if (fresh / path).read_bytes() != (SOURCE / path).read_bytes()
    }
    return sorted(str(path) for path in (want ^ have) | differing)


def _some(items: Collection[str]) -> str:
    shown = sorted(items)[:4]
    more = len(items) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def check() -> tuple[bool, str]:
    """Whether stubs and golden file match the .proto files, and what is wrong in one line."""
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder)
        generate(fresh, fresh / "descriptor")
        old = stale(fresh)
        now, recorded = set(describe(fresh / "descriptor")), set(golden_lines())
    if old:
        return False, f"stubs differ from the .proto files: {_some(old)}; run make proto"
    if recorded - now:
        return False, f"breaks older peers: {_some(recorded - now)}"
    if now - recorded:
        return False, f"not in the golden file: {_some(now - recorded)}; run make proto"
    return True, f"{len(proto_files())} files, {len(now)} names and numbers"


def write(*, accept_breaking: bool) -> int:
    """Regenerate; 1 when the protocol broke and nobody accepted it (stubs are written)."""
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder)
        generate(fresh, fresh / "descriptor")
        for path in stale(fresh):
            source, target = fresh / path, SOURCE / path
            if source.exists():
                target.write_bytes(source.read_bytes())
            else:
                target.unlink()
            print(f"proto: {path}")
        now, recorded = describe(fresh / "descriptor"), golden_lines()
    gone = sorted(set(recorded) - set(now))
    if gone and not accept_breaking:
        print("error: this breaks peers that speak the recorded protocol", file=sys.stderr)
        for line in gone:
            print(f"  gone or changed  {line}", file=sys.stderr)
        print("  keep the old name and number, or: python -m tools.stubs --accept-breaking")
        return 1
    if now != recorded:
        GOLDEN.write_text(HEADER + "\n".join(now) + "\n")
        print(f"proto: {GOLDEN.relative_to(ROOT)}")
    return 0


def main() -> int:
    """Write, or compare with `--check`; returns the exit code."""
    parser = argparse.ArgumentParser(prog="tools.stubs", description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    parser.add_argument("--accept-breaking", action="store_true", help="record a breaking change")
    options = parser.parse_args()
    if options.check:
        good, text = check()
        print(text)
        return 0 if good else 1
    return write(accept_breaking=options.accept_breaking)


if __name__ == "__main__":
    sys.exit(main())
