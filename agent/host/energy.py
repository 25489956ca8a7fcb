"""Energy that the device took, where it can be read: RAPL's counters, or the sensors of a Jetson.

Refuses to estimate: without a sensor, or one that this user may not read, it is None.
"""

from dataclasses import dataclass
from pathlib import Path

from agent.host.files import children, read_int, read_text

# The rail that feeds the whole board, by the names that its makers gave it.
_WHOLE_BOARD = ("VDD_IN", "POM_5V_IN", "VIN_SYS_5V0", "SYS5V")
_RAPL = "package"


@dataclass(frozen=True, slots=True)
class Reading:
    """Joules since some beginning, or the watts of this moment, and of what."""

    source: str
    joules: float | None = None
    watts: float | None = None
    wraps_at_j: float = 0.0


def read_energy(root: Path) -> Reading | None:
    """The best there is; None without any."""
    return _rapl(root) or _ina(root)


class EnergyMeter:
    """Adds up between `begin` and `joules`; `look` now and then, for sensors that say watts."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._last: Reading | None = None
        self._at = 0.0
        self._sum = 0.0
        self.source = ""

    def begin(self, now: float) -> None:
        """From here on."""
        self._last, self._at, self._sum = read_energy(self._root), now, 0.0
        self.source = self._last.source if self._last else ""

    def look(self, now: float) -> None:
        """Add what was taken since the look before."""
        last, found = self._last, read_energy(self._root)
        if last is None or found is None or found.source != last.source:
            self._last = None
            return
        if found.joules is not None and last.joules is not None:
            taken = found.joules - last.joules
            self._sum += taken if taken >= 0 else taken + found.wraps_at_j
        elif found.watts is not None and last.watts is not None:
            self._sum += (found.watts + last.watts) / 2 * (now - self._at)
        self._last, self._at = found, now

    @property
    def joules(self) -> float | None:
        """What was taken; None where it could not be read all the time, or did not move."""
        return self._sum if self._last is not None and self._sum > 0 else None


def _rapl(root: Path) -> Reading | None:
    total, wraps, found = 0.0, 0.0, False
    for zone in children(root / "sys/class/powercap", "intel-rapl:*"):
        if not (read_text(zone / "name") or "").startswith(_RAPL):
            continue
        micro = read_int(zone / "energy_uj")
        if micro is None:
            return None
        found = True
        total += micro / 1e6
        wraps += (read_int(zone / "max_energy_range_uj") or 0) / 1e6
    return Reading("processor package, RAPL", joules=total, wraps_at_j=wraps) if found else None


def _ina(root: Path) -> Reading | None:
    """Millivolts and milliamperes of the INA3221 of a Jetson."""
    for chip in children(root / "sys/bus/i2c/drivers/ina3221", "*/hwmon/hwmon*"):
        for label in children(chip, "in*_label"):
            if read_text(label) not in _WHOLE_BOARD:
                continue
            number = label.name.removeprefix("in").removesuffix("_label")
            volts = read_int(chip / f"in{number}_input")
            amperes = read_int(chip / f"curr{number}_input")
            if volts is not None and amperes is not None:
                return Reading(f"board, {read_text(label)}", watts=volts * amperes / 1e6)
    return None
