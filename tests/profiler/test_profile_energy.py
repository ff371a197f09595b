"""Energy from recorded sysfs trees of sensors, and what is said where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgewise.bundle import read_bundle
from edgewise.data import Row
from edgewise.profiler.energy import EnergyMark, energy_since, mark_energy
from edgewise.profiler.plumbing import job_inputs
from edgewise.profiler.transport import run_job
from edgewise.showing import show
from edgewise.types import Device, RunSettings, to_dict
from edgewise.units import parse_budget


def _write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")


def _rapl(root: Path, package: int, other: int) -> None:
    place = "sys/class/powercap"
    _write(root, {
        f"{place}/intel-rapl:0/name": "package-0", f"{place}/intel-rapl:0/energy_uj": str(package),
        f"{place}/intel-rapl:0/max_energy_range_uj": "262143328850",
        f"{place}/intel-rapl:0:0/name": "core", f"{place}/intel-rapl:0:0/energy_uj": str(package // 2),
        f"{place}/intel-rapl:1/name": "package-1", f"{place}/intel-rapl:1/energy_uj": str(other),
        f"{place}/intel-rapl:1/max_energy_range_uj": "262143328850",
        f"{place}/intel-rapl:2/name": "psys", f"{place}/intel-rapl:2/energy_uj": str(package * 3),
    })  # fmt: skip


def test_rapl_counts_its_packages_once_and_wraps(tmp_path: Path) -> None:
    _rapl(tmp_path, 262_143_000_000, 5_000_000)
    start = mark_energy(tmp_path)
    _rapl(tmp_path, 671_150, 7_500_000)  # the first has begun anew: 328,850 uJ to its end, and 671,150
    found = energy_since(start, tmp_path)
    assert found.kind == "measured"
    assert found.source == "RAPL package"
    assert found.joules == pytest.approx(1.0 + 2.5)


def test_a_counter_of_hwmon(tmp_path: Path) -> None:
    _write(tmp_path, {"sys/class/hwmon/hwmon3/name": "ina238", "sys/class/hwmon/hwmon3/energy1_input": "1000000"})
    start = mark_energy(tmp_path)
    _write(tmp_path, {"sys/class/hwmon/hwmon3/energy1_input": "1750000"})
    assert energy_since(start, tmp_path).joules == pytest.approx(0.75)


def test_a_battery_counts_down_while_it_discharges(tmp_path: Path) -> None:
    place = "sys/class/power_supply/BAT0"
    _write(tmp_path, {f"{place}/type": "Battery", f"{place}/status": "Discharging", f"{place}/energy_now": "40000000"})
    start = mark_energy(tmp_path)
    same = energy_since(start, tmp_path)
    assert same.joules is None
    assert "the battery did not move in" in same.why
    _write(tmp_path, {f"{place}/energy_now": "39990000"})
    found = energy_since(start, tmp_path)
    assert (found.joules, found.kind) == (pytest.approx(36.0), "measured")
    _write(tmp_path, {f"{place}/status": "Charging"})
    assert energy_since(start, tmp_path).kind == "unavailable"


@pytest.mark.parametrize("files", [
    {"hwmon1/name": "ina226", "hwmon1/power1_input": "5000000"},
    {"hwmon1/name": "ina3221", "hwmon1/in1_input": "5000", "hwmon1/curr1_input": "600",
     "hwmon1/in2_input": "4000", "hwmon1/curr2_input": "500"},
])  # fmt: skip
def test_power_alone_is_an_estimate(tmp_path: Path, files: dict[str, str]) -> None:
    _write(tmp_path, {f"sys/class/hwmon/{name}": text for name, text in files.items()})
    now = mark_energy(tmp_path)
    start = EnergyMark(now.source, now.sensors, now.at - 2.0)
    found = energy_since(start, tmp_path)
    assert found.source == "INA power"
    assert found.kind == "estimated"
    assert found.joules == pytest.approx(5.0 * 2.0, rel=0.05)  # 5 W for 2 s
    assert "mean of the power" in found.why


def test_without_a_sensor_it_says_so(tmp_path: Path) -> None:
    found = energy_since(mark_energy(tmp_path), tmp_path)
    assert found.joules is None
    assert found.kind == "unavailable"
    assert found.why == "the system shows no RAPL, no energy or power sensor, no battery"
    _write(tmp_path, {"sys/class/hwmon/hwmon0/name": "k10temp", "sys/class/hwmon/hwmon0/power1_input": "7"})
    assert mark_energy(tmp_path).source == ""  # no sensor of the supply


def test_a_job_tells_of_energy_or_why_not(int8_bundle: Path, review_rows: tuple[Row, ...]) -> None:
    job = {
        "job": "latency", "bundle": str(int8_bundle), "content_digest": read_bundle(int8_bundle).digest,
        "verify": "full", "run": to_dict(RunSettings(max_length=32)), "warmup": {"calls": 1, "seconds": 0.0},
        "seconds": 0.02, "min_calls": 3,
    }  # fmt: skip
    found = run_job(Device(), job, job_inputs(review_rows[:5]))
    assert found.energy is not None
    assert (found.energy.joules is None) == (found.energy.kind == "unavailable")
    assert found.energy.joules is not None or found.energy.why


def test_energy_is_a_budget() -> None:
    budget = parse_budget("energy <= 5 mJ")
    assert budget.limit == pytest.approx(0.005)
    assert parse_budget("energy <= 2 mWh").limit == pytest.approx(7.2)
    assert [show(x, "J") for x in (12.0, 0.0051, 2e-6)] == ["12.0 J", "5.10 mJ", "2.00 µJ"]
    assert [show(x, "s") for x in (2.0, 0.0042, 3e-7)] == ["2.00 s", "4.20 ms", "0.300 µs"]
    assert [show(x, "B") for x in (3e9, 2_300_000.0, 12.0, 0.0)] == ["3.00 GB", "2.30 MB", "12.0 B", "0 B"]
