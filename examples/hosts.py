"""Writes the files a device would show under /proc, /sys and /etc, from public documentation.

Agents pointed at such a tree (`host_root`) report it as a simulated host. Refuses to pretend more
than identity, memory, load and heat: whatever runs there runs at the speed of the real machine.

    python -m examples.hosts intel-n100 /tmp/n100      # write a tree
    python -m examples.hosts --celsius 85 /tmp/n100    # heat it

Sources: Intel's ARK and the kernel's x86 thermal documentation; the Raspberry Pi device trees
(bcm2712-rpi-5-b.dts); NVIDIA's Jetson Linux developer guide, chapter on thermal zones.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

_N100_CPU = """\
processor\t: {index}
vendor_id\t: GenuineIntel
cpu family\t: 6
model\t\t: 190
model name\t: Intel(R) N100
stepping\t: 0
cpu MHz\t\t: 800.000
cache size\t: 6144 KB
siblings\t: 4
core id\t\t: {index}
cpu cores\t: 4
flags\t\t: fpu sse sse2 ssse3 sse4_1 sse4_2 avx f16c avx2 fma bmi1 bmi2 sha_ni avx_vnni
"""
_ARM_CPU = """\
processor\t: {index}
BogoMIPS\t: {bogomips}
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: {variant}
CPU part\t: {part}
CPU revision\t: 1
"""


@dataclass(frozen=True, slots=True)
class Host:
    """One kind of device. Memory in KiB as /proc/meminfo has it, heat in °C by zone type."""

    arch: str
    os_name: str
    cpus: int
    cpuinfo: str
    memory_total_kib: int
    memory_available_kib: int
    zones: dict[str, float]
    product_name: str = ""
    device_tree_model: str = ""
    compatible: tuple[str, ...] = ()
    throttled_file: str = ""


HOSTS = {
    "intel-n100": Host(
        arch="x86_64",
        os_name="Ubuntu 24.04.2 LTS",
        cpus=4,
        cpuinfo=_N100_CPU,
        memory_total_kib=8_034_212,
        memory_available_kib=6_912_480,
        zones={"acpitz": 27.8, "x86_pkg_temp": 47.0},
        product_name="N100DC-ITX",
    ),
    "raspberry-pi-5": Host(
        arch="aarch64",
        os_name="Debian GNU/Linux 12 (bookworm)",
        cpus=4,
        cpuinfo=_ARM_CPU.replace("{bogomips}", "108.00")
        .replace("{variant}", "0x4")
        .replace("{part}", "0xd0b"),
        memory_total_kib=8_245_248,
        memory_available_kib=7_402_112,
        zones={"cpu-thermal": 51.2},
        device_tree_model="Raspberry Pi 5 Model B Rev 1.0",
        compatible=("raspberrypi,5-model-b", "brcm,bcm2712"),
        throttled_file="sys/devices/platform/soc@107c000000/soc:firmware/get_throttled",
    ),
    "jetson-orin-nano": Host(
        arch="aarch64",
        os_name="Ubuntu 22.04.5 LTS",
        cpus=6,
        cpuinfo=_ARM_CPU.replace("{bogomips}", "62.50")
        .replace("{variant}", "0x0")
        .replace("{part}", "0xd42"),
        memory_total_kib=7_802_048,
        memory_available_kib=5_734_400,
        zones={
            "cpu-thermal": 48.3,
            "gpu-thermal": 46.9,
            # Powered off while idle: reads far below anything real.
            "cv0-thermal": -256.0,
            "soc0-thermal": 47.4,
            "tj-thermal": 48.3,
        },
        device_tree_model="NVIDIA Jetson Orin Nano Developer Kit",
        compatible=("nvidia,p3768-0000+p3767-0005", "nvidia,p3767-0005", "nvidia,tegra234"),
    ),
}


def write_host(kind: str, root: Path) -> None:
    """Write the tree of a kind of device under `root`; KeyError when there is no such kind."""
    host = HOSTS[kind]
    _write(root / "etc/os-release", f'PRETTY_NAME="{host.os_name}"\n')
    _write(root / "proc/sys/kernel/arch", f"{host.arch}\n")
    cpus = [host.cpuinfo.replace("{index}", str(i)) for i in range(host.cpus)]
    tail = f"Model\t\t: {host.device_tree_model}\n" if host.device_tree_model else ""
    _write(root / "proc/cpuinfo", "\n".join(cpus) + "\n" + tail)
    lines = ["cpu  18000 120 6400 991000 1500 0 310 0 0 0"]
    lines += [f"cpu{i} 4500 30 1600 247750 375 0 78 0 0 0" for i in range(host.cpus)]
    _write(root / "proc/stat", "\n".join(lines) + "\n")
    _write(root / "proc/pressure/cpu", "some avg10=0.31 avg60=0.22 avg300=0.17 total=31874410\n")
    set_memory(root, host.memory_total_kib * 1024, host.memory_available_kib * 1024)
    for index, (zone, celsius) in enumerate(host.zones.items()):
        folder = root / f"sys/class/thermal/thermal_zone{index}"
        _write(folder / "type", f"{zone}\n")
        _write(folder / "temp", f"{round(celsius * 1000)}\n")
    if host.product_name:
        _write(root / "sys/class/dmi/id/product_name", f"{host.product_name}\n")
    if host.device_tree_model:
        # Device tree text ends with a NUL.
        _write(root / "proc/device-tree/model", f"{host.device_tree_model}\0")
        _write(root / "proc/device-tree/compatible", "\0".join(host.compatible) + "\0")
    if host.throttled_file:
        _write(root / host.throttled_file, "0\n")


def set_temperature(root: Path, celsius: float) -> None:
    """Heat or cool every zone of a tree that reads something plausible."""
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*/temp")):
        kind = (zone.parent / "type").read_text().strip()
        if kind != "acpitz" and int(zone.read_text()) > -40_000:
            _write(zone, f"{round(celsius * 1000)}\n")


def set_memory(root: Path, total_bytes: int, available_bytes: int) -> None:
    """Say how much memory there is and how much of it could be used."""
    _write(
        root / "proc/meminfo",
        f"MemTotal:       {total_bytes // 1024:>8} kB\n"
        f"MemFree:        {available_bytes // 2048:>8} kB\n"
        f"MemAvailable:   {available_bytes // 1024:>8} kB\n",
    )


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # A reader sees the old figure or the new one, never half of it.
    partial = path.with_name(path.name + ".tmp")
    partial.write_text(text)
    partial.replace(path)


def main() -> None:
    """Write a tree, or heat one."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("kind", nargs="?", choices=sorted(HOSTS))
    parser.add_argument("root", type=Path)
    parser.add_argument("--celsius", type=float, help="heat of every zone")
    arguments = parser.parse_args()
    if arguments.kind is not None:
        write_host(arguments.kind, arguments.root)
        print(f"wrote {arguments.kind} under {arguments.root}")
    if arguments.celsius is not None:
        set_temperature(arguments.root, arguments.celsius)
        print(f"{arguments.root} is at {arguments.celsius:g} °C")


if __name__ == "__main__":
    main()
