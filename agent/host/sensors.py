"""Reads what the device feels: heat, memory, CPU load, throttling. All under one root.

Refuses to judge: thresholds belong to policies. Refuses to invent: without a sensor it is None.

    Sensors(root: Path = Path("/"))                # satisfies agent.domain.ports.Sensors
    Sensors.read() -> Pressure                     # about once a second, from one thread;
                                                   # p95, queue and link are left None
    memory_available_bytes(root) -> int | None     # what could be loaded now
    disk_free_bytes(folder) -> int
"""

import os
from pathlib import Path

from agent.domain.ladder import Pressure
from agent.host.files import children, read_int, read_text

# Zones that say nothing about the silicon that infers.
_FOREIGN_ZONES = ("bat", "iwlwifi", "ath", "pch_", "acpitz")
# A sleeping Jetson zone reads -256 °C, a broken one hundreds of degrees.
_PLAUSIBLE_C = (-40.0, 150.0)
# Share of the last ten seconds in which some task waited for a CPU.
_STARVED_STALL_PCT = 80.0
# Raspberry Pi firmware: capped, throttled or soft-limited right now.
_PI_THROTTLED_NOW = 0b1110
_PI_FIRMWARE = "soc*/soc*:firmware/get_throttled"


class Sensors:
    """Reads the host; remembers the counters of the read before to make rates of them."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._cpu: tuple[int, int] | None = None
        self._throttle_count: int | None = None

    def read(self) -> Pressure:
        """Look once. Costs a few small file reads; never raises.

        CPU load is the busy share since the read before, None at the first one.
        """
        total, available = _memory(self._root)
        used = None
        if total and available is not None:
            used = 100.0 * (total - available) / total
        stall = _cpu_stall_pct(self._root)
        return Pressure(
            temperature_c=temperature_c(self._root),
            memory_pct=used,
            cpu_pct=self._cpu_pct(),
            throttled=self._throttled(),
            starved=None if stall is None else stall >= _STARVED_STALL_PCT,
        )

    def _cpu_pct(self) -> float | None:
        before, self._cpu = self._cpu, _cpu_times(self._root)
        if before is None or self._cpu is None:
            return None
        busy, total = self._cpu[0] - before[0], self._cpu[1] - before[1]
        # No tick passed, or the counters started anew.
        if total <= 0 or busy < 0:
            return None
        return min(100.0, 100.0 * busy / total)

    def _throttled(self) -> bool | None:
        firmware = next(iter(children(self._root / "sys/devices/platform", _PI_FIRMWARE)), None)
        if firmware is not None:
            try:
                return bool(int(read_text(firmware) or "", 16) & _PI_THROTTLED_NOW)
            except ValueError:
                return None
        before, self._throttle_count = (
            self._throttle_count,
            read_int(
                self._root / "sys/devices/system/cpu/cpu0/thermal_throttle/package_throttle_count"
            ),
        )
        if before is None or self._throttle_count is None:
            return None
        return self._throttle_count > before


def temperature_c(root: Path) -> float | None:
    """The hottest thermal zone of the processor, graphics and memory; None without one."""
    hottest: float | None = None
    for zone in children(root / "sys/class/thermal", "thermal_zone*"):
        kind = (read_text(zone / "type") or "").lower()
        milli = read_int(zone / "temp")
        if milli is None or kind.startswith(_FOREIGN_ZONES):
            continue
        value = milli / 1000.0
        if _PLAUSIBLE_C[0] < value < _PLAUSIBLE_C[1]:
            hottest = value if hottest is None else max(hottest, value)
    return hottest


def zone_temperatures(root: Path) -> dict[tuple[str, str], float]:
    """Plausible readings in °C of all thermal zones, by (name, type), foreign ones too."""
    found: dict[tuple[str, str], float] = {}
    for zone in children(root / "sys/class/thermal", "thermal_zone*"):
        milli = read_int(zone / "temp")
        if milli is not None and _PLAUSIBLE_C[0] < milli / 1000.0 < _PLAUSIBLE_C[1]:
            found[zone.name, read_text(zone / "type") or ""] = milli / 1000.0
    return found


def thermal_zones(root: Path) -> tuple[str, ...]:
    """The types of all thermal zones, for people."""
    zones = children(root / "sys/class/thermal", "thermal_zone*")
    return tuple(read_text(zone / "type") or zone.name for zone in zones)


def memory_total_bytes(root: Path) -> int | None:
    """Physical memory of the device."""
    return _memory(root)[0]


def memory_available_bytes(root: Path) -> int | None:
    """What the kernel says could be used now without swapping."""
    return _memory(root)[1]


def disk_free_bytes(folder: Path) -> int:
    """Bytes an unprivileged process may still write where `folder` is; OSError when it is gone."""
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def _memory(root: Path) -> tuple[int | None, int | None]:
    values: dict[str, int] = {}
    for line in (read_text(root / "proc/meminfo") or "").splitlines():
        name, _, rest = line.partition(":")
        amount = rest.split()
        if amount and amount[0].isdigit():
            values[name] = int(amount[0]) * 1024
    return values.get("MemTotal"), values.get("MemAvailable")


def _cpu_times(root: Path) -> tuple[int, int] | None:
    first = (read_text(root / "proc/stat") or "").partition("\n")[0].split()
    if len(first) < 9 or first[0] != "cpu":
        return None
    try:
        ticks = [int(text) for text in first[1:9]]
    except ValueError:
        return None
    idle = ticks[3] + ticks[4]
    return sum(ticks) - idle, sum(ticks)


def _cpu_stall_pct(root: Path) -> float | None:
    for line in (read_text(root / "proc/pressure/cpu") or "").splitlines():
        if line.startswith("some"):
            for field in line.split()[1:]:
                name, _, value = field.partition("=")
                if name == "avg10":
                    try:
                        return float(value)
                    except ValueError:
                        return None
    return None
