"""An exporter's failure in our words: which operator, and in which line of the program.

A `.pt2` is stored without traces of its author's files: a line is one of the program's own code, as
``print(torch.export.load(FILE).graph_module.code)`` shows it. For TorchScript it is one of the
archive's.
"""

import re
from typing import Any

_NODE = re.compile(r"translating node %(\w+) : .*?target=([\w.]+)\]")
_LACKS = re.compile(r"No ONNX function found for <OpOverload\(op='(\w+\.\w+)'")
_SCRIPT = re.compile(r"operator '(\w+::\w+)'")
_RANGE = re.compile(r'File "([^"]+)", line (\d+)')
_MOST = 120


def of_program(raw: str, code: str) -> str:
    """The end of a sentence: operator and line of ``code``; empty where ``raw`` names none."""
    node, lacks = _NODE.search(raw), _LACKS.search(raw)
    if node is None and lacks is None:
        return ""
    operator = lacks[1] if lacks else node[2].removeprefix("torch.ops.") if node else ""
    name = operator.split(".")[1] if "." in operator else operator
    wanted = [rf"^\s*{re.escape(node[1])} = "] if node else []
    wanted.append(rf"torch\.ops\.\w+\.{re.escape(name)}\.")
    lines = code.strip().splitlines()
    for pattern in wanted:
        for number, line in enumerate(lines, 1):
            if re.search(pattern, line) and f".{name}." in line:
                said = line.partition(";")[0].strip()[:_MOST]
                return f": {_verb(lacks)} {operator}, line {number} of its code: {said}"
    return f": {_verb(lacks)} {operator}"


def of_script(raw: str, module: Any) -> str:
    """The end of a sentence: operator and line of the archive's code."""
    found = _SCRIPT.search(raw)
    if found is None:
        return ""
    said = f": ONNX has no form for the operator {found[1]}"
    for node in _nodes(module.inlined_graph):
        place = _RANGE.search(node.sourceRange()) if node.kind() == found[1] else None
        if place:
            return f"{said}, line {place[2]} of {place[1]}"
    return said


def _verb(lacks: object) -> str:
    return "ONNX has no form for the operator" if lacks else "the exporter fails on the operator"


def _nodes(block: Any) -> Any:
    for node in block.nodes():
        yield node
        for inner in node.blocks():
            yield from _nodes(inner)
