"""The house rules that no linter knows: lengths, pure domains, loggers, one file per heavy library.

Each rule has a negative control: a text that breaks it must be found.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.sources import (
    PRODUCT,
    ROOT,
    STANDARD_LIBRARY,
    imported_modules,
    python_files,
    tracked_files,
    tree,
)

MAX_SOURCE_LINES = 400
MAX_TEST_LINES = 600
MAX_FUNCTION_LINES = 50
ALL = (*PRODUCT, "migrations", "tests", "examples", "bench", "tools")

# Reading a clock, chance, I/O, threads and logging have no place in a decision.
BANNED_IN_DOMAIN = frozenset(
    [
        "asyncio",
        "threading",
        "logging",
        "os",
        "pathlib",
        "socket",
        "subprocess",
        "time",
        "random",
        "uuid",
        "secrets",
    ]
)
LOGGING_ROOMS = (
    "controller/app",
    "controller/api/",
    "controller/mqtt/",
    "controller/web/",
    "controller/worker/",
    "agent/app",
    "agent/loop",
)
# Where a library may be imported. A path ends a rule at a file or opens a folder.
LIBRARY_ROOMS = {
    "torch": (
        *("controller/optimize/", "agent/runtime/torchscript.py"),
        "agent/runtime/executorch.py",
    ),
    "onnxscript": ("controller/optimize/",),
    "sqlalchemy": ("controller/store/", "migrations/"),
    "alembic": ("controller/store/", "migrations/"),
    "obstore": ("controller/blobs/",),
    "paho": ("controller/mqtt/", "agent/link/", "agent/__main__.py"),
    "onnxruntime": ("controller/optimize/", "agent/runtime/onnxruntime.py"),
    "openvino": ("controller/optimize/openvino_ir.py", "agent/runtime/openvino.py"),
    "tensorrt": ("agent/runtime/tensorrt.py",),
    "tensorrt_rtx": ("controller/optimize/build_tensorrt_rtx.py", "agent/runtime/tensorrt_rtx.py"),
    "executorch": ("controller/optimize/build_executorch.py", "agent/runtime/executorch.py"),
    "tvm": ("controller/optimize/build_tvm.py", "agent/runtime/tvm.py"),
    "nncf": ("controller/optimize/quantize_nncf.py",),
    "click": ("controller/cli/",),
    "rich": ("controller/cli/",),
    "starlette": ("controller/web/",),
    "prometheus_client": ("proto/lighterman/exposition.py",),
    "httptools": ("agent/serve/http_head.py",),
    "uvloop": ("agent/serve/http_server.py",),
}


def too_long(path: Path) -> str | None:
    if path.parts[0] == "migrations":
        return None  # written by a generator, and never touched again once released
    limit = MAX_TEST_LINES if path.parts[0] == "tests" else MAX_SOURCE_LINES
    lines = len((ROOT / path).read_text().splitlines())
    return f"{path}: {lines} lines, at most {limit}" if lines > limit else None


def long_functions(module: ast.Module, name: str) -> Iterator[str]:
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > MAX_FUNCTION_LINES:
                yield f"{name}:{node.lineno} {node.name}: {lines} lines"


def impure_import(room: str, module: str) -> bool:
    """Whether a domain file of `room` (controller or agent) may not import the module."""
    top = module.partition(".")[0]
    if top == room:
        return not (
            module == f"{room}.domain" or module.startswith((f"{room}.domain.", f"{room}.errors"))
        )
    return top not in STANDARD_LIBRARY or top in BANNED_IN_DOMAIN


def logs(module: ast.Module) -> bool:
    """Whether the module writes log lines: keeps a logger or calls `logging.info` and the like.

    Quieting a library's logger is no log line.
    """
    for node in ast.walk(module):
        if isinstance(node, ast.Assign | ast.AnnAssign) and "getLogger(" in ast.unparse(node):
            return True
        if isinstance(node, ast.Call) and re.match(
            r"logging\.(debug|info|warning|error|exception|critical|log)$", ast.unparse(node.func)
        ):
            return True
    return False


def test_files_stay_short() -> None:
    assert [text for path in python_files(*ALL) if (text := too_long(path))] == []


def test_functions_stay_short() -> None:
    found = [
        text
        for path in python_files(*ALL)
        if path.parts[0] != "migrations"
        for text in long_functions(tree(path), str(path))
    ]
    assert found == []


def test_a_long_function_is_found() -> None:
    body = "\n".join(f"    x{number} = {number}" for number in range(MAX_FUNCTION_LINES))
    assert list(long_functions(ast.parse(f"def f():\n{body}\n"), "x.py")) == ["x.py:1 f: 51 lines"]


@pytest.mark.parametrize("room", ["controller", "agent"])
def test_domain_imports_only_what_is_pure(room: str) -> None:
    found = [
        f"{path}:{line} imports {module}"
        for path in python_files(f"{room}/domain")
        for line, module in imported_modules(path)
        if impure_import(room, module)
    ]
    assert found == []


@pytest.mark.parametrize(
    ("module", "impure"),
    [
        ("time", True),
        ("numpy", True),
        ("lighterman.v1", True),
        ("agent.store", True),
        ("controller.domain.device", True),
        ("agent.domain.update", False),
        ("agent.errors", False),
        ("dataclasses", False),
        ("collections.abc", False),
    ],
)
def test_the_purity_rule_tells_them_apart(module: str, impure: bool) -> None:
    assert impure_import("agent", module) is impure


def test_domain_calls_no_clock() -> None:
    clocks = {"now", "utcnow", "today"}
    found = [
        f"{path}:{node.lineno}"
        for path in python_files("controller/domain", "agent/domain")
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in clocks
        and isinstance(node.func.value, ast.Name | ast.Attribute)
    ]
    assert found == []


def test_loggers_stay_in_their_rooms() -> None:
    found = [
        str(path)
        for path in python_files("controller", "agent")
        if logs(tree(path)) and not path.as_posix().startswith(LOGGING_ROOMS)
    ]
    assert found == []


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("log = logging.getLogger('x')", True),
        ("log: Logger = logging.getLogger(__name__).getChild('y')", True),
        ("def f():\n    logging.warning('no')", True),
        ("logging.getLogger('noisy').setLevel(logging.ERROR)", False),
        ("import logging", False),
    ],
)
def test_a_logger_is_told_from_quieting_one(code: str, found: bool) -> None:
    assert logs(ast.parse(code)) is found


@pytest.mark.parametrize("library", sorted(LIBRARY_ROOMS))
def test_heavy_libraries_stay_in_their_rooms(library: str) -> None:
    found = [
        f"{path}:{line} imports {module}"
        for path in python_files(*PRODUCT)
        for line, module in imported_modules(path)
        if module.partition(".")[0] == library
        and not path.as_posix().startswith(LIBRARY_ROOMS[library])
    ]
    assert found == []


def test_serving_protocol_stays_in_its_rooms() -> None:
    rooms = ("agent/serve/", "agent/runtime/remote.py", "proto/")
    found = [
        f"{path}:{line}"
        for path in python_files(*PRODUCT)
        for line, module in imported_modules(path)
        if module.startswith("lighterman.oip") and not path.as_posix().startswith(rooms)
    ]
    assert found == []


def test_every_module_says_what_it_is() -> None:
    silent = [
        str(path)
        for path in python_files(*PRODUCT, "tests", "tools")
        if not ast.get_docstring(tree(path))
    ]
    assert silent == []


# Split, so that this file does not hold what it looks for.
FOREIGN = (
    "/wo" + "rk/",
    "py" + "pi.org",
    "deb." + "debian.org",
    "registry.np" + "mjs",
    "bash" + "_jobs",
)


def foreign_words(text: str) -> list[str]:
    return [word for word in FOREIGN if word in text]


def test_the_project_speaks_only_of_itself() -> None:
    found = []
    for path in tracked_files():
        full = ROOT / path
        if full.is_symlink() or not full.is_file() or full.stat().st_size > 1_000_000:
            continue
        if words := foreign_words(full.read_bytes().decode("utf-8", errors="replace")):
            found.append(f"{path}: {', '.join(words)}")
    assert found == []


def test_a_foreign_path_is_found() -> None:
    assert foreign_words("see " + "/wo" + "rk/main/x") == ["/wo" + "rk/"]
