# SPDX-License-Identifier: Apache-2.0
"""Power readers.  Devices are mocks here: lines in the formats of the real programs, a folder in
that of the kernel."""

from __future__ import annotations

import sys
import textwrap
import time
from pathlib import Path

import pytest

from benchmarks.latency import device, power
from benchmarks.latency.power import (
    LineReader,
    RaplReader,
    Sample,
    parse_nvidia_smi,
    parse_tegrastats,
)

ORIN_NANO = (
    "06-14-2024 10:12:31 RAM 2505/7620MB (lfb 3x4MB) SWAP 0/3810MB (cached 0MB) CPU "
    "[12%@1510,0%@1510,off,off,3%@729,1%@729] EMC_FREQ 2%@2133 GR3D_FREQ 31%@[305] NVDEC off "
    "APE 200 cpu@48.5C soc2@47.218C cv0@-256C gpu@48.6C tj@48.8C VDD_IN 4960mW/4912mW "
    "VDD_CPU_GPU_CV 521mW/521mW VDD_SOC 1443mW/1443mW"
)
AGX_ORIN = (
    "RAM 5211/62841MB (lfb 2x4MB) CPU [1%@2188,0%@2188] GR3D_FREQ 0%@[1300,1300] CPU@50.2C "
    "Tboard@39C GPU@47.5C tj@50.2C VDD_GPU_SOC 3205mW/3205mW VDD_CPU_CV 801mW/801mW "
    "VIN_SYS_5V0 4128mW/4128mW NC 0mW/0mW VDDQ_VDD2_1V8AO 704mW/704mW NC 0mW/0mW"
)
THOR = "cpu@41.2C VDD_GPU 0mW/0mW VDD_CPU_SOC_MSS 6510mW/6510mW VIN_SYS_5V0 6520mW/6520mW VIN 23100mW/23100mW"  # noqa: E501
NANO = "RAM 1903/3956MB CPU [5%@102] PLL@38C CPU@41C PMIC@100C POM_5V_IN 2532/2540 POM_5V_GPU 40/40 POM_5V_CPU 526/526"  # noqa: E501


@pytest.mark.parametrize(
    ("line", "watts", "of"),
    [
        (ORIN_NANO, 4.96, "the whole input (VDD_IN)"),
        (NANO, 2.532, "the whole input (POM_5V_IN)"),
        (THOR, 23.1, "the whole input (VIN)"),
        (AGX_ORIN, 8.134, "the module (VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0)"),
    ],
    ids=["Orin Nano", "Nano", "Thor", "AGX Orin"],
)
def test_tegrastats_gives_the_power_of_now_and_says_of_what(
    line: str, watts: float, of: str
) -> None:
    sample = parse_tegrastats(line)
    assert sample is not None
    assert sample.watts == pytest.approx(watts)
    assert sample.of == of


def test_tegrastats_gives_heat_and_memory_but_not_the_sensors_of_what_is_off() -> None:
    sample = parse_tegrastats(ORIN_NANO)
    assert sample is not None
    assert sample.temperature_c == {"cpu": 48.5, "soc2": 47.218, "gpu": 48.6, "tj": 48.8}
    assert sample.memory_mb == pytest.approx(2505 * 1.048576)


@pytest.mark.parametrize("line", ["", "nothing of the sort", "RAM 1/2MB VDD_SOC 1443mW/1443mW"])
def test_a_part_of_the_module_is_not_passed_off_as_the_whole(line: str) -> None:
    assert parse_tegrastats(line) is None


def test_nvidia_smi_gives_watts_heat_memory_and_what_slows_the_gpu_down() -> None:
    sample = parse_nvidia_smi("71.36, 34, 4212, 0x0000000000000024")
    assert sample == Sample(
        71.36,
        "the GPU's board",
        {"gpu": 34.0},
        ("power cap", "thermal, by the driver"),
        pytest.approx(4212 * 1.048576),
    )


def test_an_idle_gpu_is_not_a_throttled_one() -> None:
    sample = parse_nvidia_smi("10.0, 30, 0, 0x0000000000000001")
    assert sample is not None
    assert sample.throttled == ()


def test_what_nvidia_smi_does_not_know_is_left_out() -> None:
    sample = parse_nvidia_smi("50.5, [N/A], [N/A], [N/A]")
    assert sample == Sample(50.5, "the GPU's board")
    assert parse_nvidia_smi("[N/A], 34, 100, 0x0") is None
    assert parse_nvidia_smi("Field is not a valid field to query.") is None


def mock_program(tmp_path: Path, lines: list[str], *, ends: bool = False) -> list[str]:
    """A program that prints the lines, one every 10 ms, and then goes on or ends."""
    script = tmp_path / "mock_program.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import time
            for line in {lines!r}:
                print(line, flush=True)
                time.sleep(0.01)
            time.sleep({0 if ends else 60})
            """
        )
    )
    return [sys.executable, str(script)]


def test_a_reader_sums_up_what_its_program_printed(tmp_path: Path) -> None:
    lines = ["100.0, 30, 1000, 0x4", "rubbish", "200.0, 50, 3000, 0x0", "300.0, 40, 2000, 0x0"]
    reader = LineReader("nvml", mock_program(tmp_path, lines))
    reader.start()
    deadline = time.monotonic() + 10
    while len(reader._samples) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    reading = reader.stop()
    assert reading is not None
    assert (reading.samples, reading.mean_w, reading.max_w) == (3, 200.0, 300.0)
    assert reading.joules == pytest.approx(200.0 * reading.seconds)
    assert reading.temperature_c == {"gpu": 50.0}
    assert reading.throttled == {"power cap": pytest.approx(1 / 3)}
    assert reading.device_memory_mb == {
        "at_start": pytest.approx(1048.576),
        "highest": pytest.approx(3145.728),
    }


def test_a_program_that_ends_without_a_sample_gives_no_reading(tmp_path: Path) -> None:
    reader = LineReader("tegrastats", mock_program(tmp_path, ["no rails here"], ends=True))
    start = time.monotonic()
    reader.start()
    assert reader.stop() is None
    assert time.monotonic() - start < power.START_TIMEOUT_S  # it is not waited for in vain


def mock_zone(folder: Path, number: str, name: str, energy_uj: int, wraps_at: int) -> Path:
    zone = folder / f"intel-rapl:{number}"
    zone.mkdir(parents=True)
    (zone / "name").write_text(f"{name}\n")
    (zone / "energy_uj").write_text(f"{energy_uj}\n")
    (zone / "max_energy_range_uj").write_text(f"{wraps_at}\n")
    return zone


def test_an_energy_counter_that_wraps_around_goes_on(tmp_path: Path) -> None:
    zone = mock_zone(tmp_path, "0", "package-0", 9_000_000, 10_000_000)
    reader = RaplReader([zone], interval_s=60)
    reader.start()
    (zone / "energy_uj").write_text("2000000\n")
    reading = reader.stop()
    assert reading is not None
    assert reading.joules == pytest.approx(3.0)
    assert reading.mean_w == pytest.approx(3.0 / reading.seconds)
    assert reading.max_w is None


def test_packages_are_read_and_neither_their_parts_nor_the_whole_platform(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(power, "POWERCAP", tmp_path)
    mock_zone(tmp_path, "0", "package-0", 1, 10)
    mock_zone(tmp_path, "0:0", "core", 1, 10)
    mock_zone(tmp_path, "1", "package-1", 1, 10)
    mock_zone(tmp_path, "2", "psys", 1, 10)
    zones, reason = power.rapl_zones()
    assert [zone.name for zone in zones] == ["intel-rapl:0", "intel-rapl:1"]
    assert reason == ""


def test_counters_for_root_alone_are_said_to_be_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(power, "POWERCAP", tmp_path)
    zone = mock_zone(tmp_path, "0", "package-0", 1, 10)
    read = Path.read_text

    def refused(self: Path, *arguments: str, **options: str) -> str:
        if self == zone / "energy_uj":
            raise PermissionError(13, "Permission denied")
        return read(self, *arguments, **options)

    monkeypatch.setattr(Path, "read_text", refused)
    zones, reason = power.rapl_zones()
    assert zones == []
    assert "only root" in reason


def test_a_device_without_any_meter_says_why_of_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(power, "POWERCAP", tmp_path)
    monkeypatch.setattr(power.shutil, "which", lambda name: None)
    readers, missing = power.find_readers()
    assert readers == []
    assert set(missing) == {"tegrastats", "nvml", "rapl"}
    assert all(missing.values())


def test_a_jetson_is_read_by_tegrastats_and_a_server_by_nvidia_smi(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(power, "POWERCAP", tmp_path)
    monkeypatch.setattr(power.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert [r.source for r in power.find_readers()[0]] == ["tegrastats"]
    monkeypatch.setattr(
        power.shutil, "which", lambda name: None if name == "tegrastats" else f"/usr/bin/{name}"
    )
    assert [r.source for r in power.find_readers()[0]] == ["nvml"]


def test_heat_and_throttling_as_the_kernel_shows_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "SYS", tmp_path)
    assert device.temperatures_c() == {}
    assert device.throttle_count() is None
    for i, (kind, milli) in enumerate([("x86_pkg_temp", "51000"), ("broken", "not a number")]):
        zone = tmp_path / f"class/thermal/thermal_zone{i}"
        zone.mkdir(parents=True)
        (zone / "type").write_text(kind)
        (zone / "temp").write_text(milli)
    for cpu, count in ((0, 3), (1, 4)):
        folder = tmp_path / f"devices/system/cpu/cpu{cpu}/thermal_throttle"
        folder.mkdir(parents=True)
        (folder / "core_throttle_count").write_text(f"{count}\n")
    assert device.temperatures_c() == {"x86_pkg_temp (thermal_zone0)": 51.0}
    assert device.throttle_count() == 7
