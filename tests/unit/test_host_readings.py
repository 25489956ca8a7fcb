"""Sensors and capabilities: written trees, missing files, broken files, this machine."""

from pathlib import Path

import pytest

from agent.domain.ladder import Pressure
from agent.host import clockquality, sensors
from agent.host.capabilities import detect, installed_runtimes
from agent.host.sensors import Sensors
from examples.hosts import HOSTS, set_memory, set_temperature, write_host

EMPTY = Pressure()


def write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("kind", "arch", "cpu", "device", "accelerators", "celsius"),
    [
        ("intel-n100", "x86_64", "Intel(R) N100", "N100DC-ITX", (), 47.0),
        ("raspberry-pi-5", "aarch64", "Cortex-A76", "Raspberry Pi 5 Model B Rev 1.0", (), 51.2),
        (
            "jetson-orin-nano",
            "aarch64",
            "Cortex-A78AE",
            "NVIDIA Jetson Orin Nano Developer Kit",
            ("cuda:orin",),
            48.3,
        ),
    ],
)
def test_written_hosts_are_read_back(
    kind: str,
    arch: str,
    cpu: str,
    device: str,
    accelerators: tuple[str, ...],
    celsius: float,
    tmp_path: Path,
) -> None:
    write_host(kind, tmp_path)
    found = detect(tmp_path, tmp_path)
    assert (found.arch, found.cpu_model, found.device_model) == (arch, cpu, device)
    assert found.accelerators == accelerators
    assert found.os == HOSTS[kind].os_name
    assert found.memory_bytes == HOSTS[kind].memory_total_kib * 1024
    assert found.disk_bytes > 0
    assert found.host_simulated
    pressure = Sensors(tmp_path).read()
    assert pressure.temperature_c == celsius
    assert pressure.memory_pct is not None
    assert 5 < pressure.memory_pct < 40


def test_heat_and_memory_of_a_written_host_can_be_moved(tmp_path: Path) -> None:
    write_host("jetson-orin-nano", tmp_path)
    reader = Sensors(tmp_path)
    set_temperature(tmp_path, 86.5)
    set_memory(tmp_path, 1000 << 20, 50 << 20)
    pressure = reader.read()
    assert pressure.temperature_c == 86.5
    assert pressure.memory_pct == pytest.approx(95.0)
    assert sensors.memory_available_bytes(tmp_path) == 50 << 20


def test_nothing_to_read_is_none_and_never_zero(tmp_path: Path) -> None:
    assert Sensors(tmp_path).read() == EMPTY
    found = detect(tmp_path, tmp_path / "absent")
    assert (found.cpu_model, found.device_model, found.accelerators) == ("", "", ())
    assert (found.memory_bytes, found.disk_bytes) == (0, 0)


def test_broken_files_are_none(tmp_path: Path) -> None:
    write(tmp_path, "proc/meminfo", "MemTotal: lots\nnothing\n")
    write(tmp_path, "proc/stat", "cpu one two three four five six seven eight\n")
    write(tmp_path, "proc/pressure/cpu", "some avg10=much\n")
    write(tmp_path, "sys/class/thermal/thermal_zone0/temp", "warm\n")
    write(tmp_path, "sys/class/thermal/thermal_zone1/type", "no temp here\n")
    write(tmp_path, "sys/class/thermal/thermal_zone2/temp", "999999\n")
    (tmp_path / "sys/class/thermal/thermal_zone3/temp").mkdir(parents=True)
    write(tmp_path, "proc/cpuinfo", "\xff\x00:::\n")
    reader = Sensors(tmp_path)
    assert (reader.read(), reader.read()) == (EMPTY, EMPTY)
    assert detect(tmp_path, tmp_path).cpu_model == ""


def test_cpu_load_is_the_busy_share_since_the_read_before(tmp_path: Path) -> None:
    reader = Sensors(tmp_path)
    write(tmp_path, "proc/stat", "cpu  100 0 100 800 0 0 0 0 0 0\n")
    assert reader.read().cpu_pct is None
    write(tmp_path, "proc/stat", "cpu  160 0 110 820 10 0 0 0 0 0\n")
    assert reader.read().cpu_pct == pytest.approx(70.0)
    # No tick later there is nothing to say; a restarted counter says nothing either.
    assert reader.read().cpu_pct is None
    write(tmp_path, "proc/stat", "cpu  1 0 1 8 0 0 0 0 0 0\n")
    assert reader.read().cpu_pct is None


def test_waiting_tasks_are_starvation_only_when_nearly_always(tmp_path: Path) -> None:
    write(tmp_path, "proc/pressure/cpu", "some avg10=79.90 avg60=1.00 avg300=1.00 total=1\n")
    assert Sensors(tmp_path).read().starved is False
    write(tmp_path, "proc/pressure/cpu", "some avg10=80.10 avg60=1.00 avg300=1.00 total=1\n")
    assert Sensors(tmp_path).read().starved is True


def test_throttling_by_firmware_bits_and_by_counters(tmp_path: Path) -> None:
    write_host("raspberry-pi-5", tmp_path / "pi")
    reader = Sensors(tmp_path / "pi")
    assert reader.read().throttled is False
    for bits, throttled in (("50000", False), ("4", True), ("50002", True), ("8", True)):
        write(tmp_path / "pi", HOSTS["raspberry-pi-5"].throttled_file, f"{bits}\n")
        assert reader.read().throttled is throttled
    name = "sys/devices/system/cpu/cpu0/thermal_throttle/package_throttle_count"
    write(tmp_path / "pc", name, "7\n")
    reader = Sensors(tmp_path / "pc")
    assert reader.read().throttled is None
    assert reader.read().throttled is False
    write(tmp_path / "pc", name, "9\n")
    assert reader.read().throttled is True


def test_batteries_and_radios_are_no_heat(tmp_path: Path) -> None:
    for index, (kind, milli) in enumerate([("iwlwifi_1", 99000), ("x86_pkg_temp", 41000)]):
        write(tmp_path, f"sys/class/thermal/thermal_zone{index}/type", kind)
        write(tmp_path, f"sys/class/thermal/thermal_zone{index}/temp", str(milli))
    assert Sensors(tmp_path).read().temperature_c == 41.0
    assert sensors.thermal_zones(tmp_path) == ("iwlwifi_1", "x86_pkg_temp")


def test_makers_placeholders_are_no_device_model(tmp_path: Path) -> None:
    write(tmp_path, "sys/class/dmi/id/product_name", "To be filled by O.E.M.\n")
    assert detect(tmp_path, tmp_path).device_model == ""


def test_accelerators_by_their_nodes(tmp_path: Path) -> None:
    write(tmp_path, "sys/class/drm/card0/device/vendor", "0x8086\n")
    write(tmp_path, "sys/class/accel/accel0/device/vendor", "0x8086\n")
    write(tmp_path, "proc/driver/nvidia/gpus/0000:01:00.0/information", "Model: \t\t NVIDIA L4\n")
    assert detect(tmp_path, tmp_path).accelerators == ("cuda:NVIDIA L4", "gpu:intel", "npu:intel")


def test_this_machine(tmp_path: Path) -> None:
    found = detect(Path("/"), tmp_path)
    assert found.arch
    assert found.memory_bytes > 0
    assert not found.host_simulated
    assert set(installed_runtimes()) == {"onnxruntime", "openvino", "torch"}
    reader = Sensors()
    reader.read()
    assert reader.read().memory_pct is not None
    assert clockquality.is_synchronized() in (True, False, None)
