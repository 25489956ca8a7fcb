"""What another Python of this device has installed. Asks it once, in a short process of its own.

Refuses to import anything there: the distributions' own records are read.
"""

import json
import subprocess
from collections.abc import Sequence

_ASK_S = 30
# Runs under that Python: 3.8 at the least.
_CODE = """
import json, sys
from importlib import metadata
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
        pass
print(json.dumps(found))
"""


class OtherPython:
    """An interpreter by its path; an empty one is none."""

    def __init__(self, python: str) -> None:
        self._python = python
        self._found: dict[str, str] | None = None

    def versions(self, names: Sequence[str]) -> dict[str, str]:
        """Of these distributions those that it has; empty where it does not answer."""
        if not self._python or not names:
            return {}
        if self._found is None:
            self._found = self._ask(names)
        return self._found

    def _ask(self, names: Sequence[str]) -> dict[str, str]:
        try:
            done = subprocess.run(
                [self._python, "-I", "-c", _CODE, *names],
                capture_output=True,
                check=True,
                text=True,
                timeout=_ASK_S,
            )
            found = json.loads(done.stdout)
        except (OSError, subprocess.SubprocessError, ValueError):
            return {}
        return {str(name): str(version) for name, version in found.items()}
