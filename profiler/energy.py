"""What the device's own sensors say of the energy of a span of time: RAPL, hwmon, INA2xx, a battery, NVIDIA's GPUs.

Each covers more than this process: a CPU package, a board, the whole machine, its idle power included. A GPU's is added
to a counter that does not have it within. A counter of
energy is `measured`; from a sensor of power alone the energy is `estimated`, by the mean of two readings; where nothing
can be read it is `unavailable`, with the reason. Standard library only; each reader takes the root folder, so that
recorded trees test it.

Sources: the kernel's Documentation/power/powercap/powercap.rst, hwmon/sysfs-interface.rst and
ABI/testing/sysfs-class-power.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgewise.types import Kind

if TYPE_CHECKING:
    from edgewise.profiler.nvml import Gpu

ROOT = Path("/")
_INA = ("ina2xx", "ina219", "ina220", "ina226", "ina230", "ina231", "ina237", "ina238", "ina3221")
"""Names of the hwmon driver of sensors that boards carry on their supply."""


@dataclass(frozen=True)
class Sensor:
    """One reading."""

    joules: float | None
    """A counter's; None where the sensor tells power alone."""
    watts: float | None = None
    wraps_at: float | None = None
    """Joules at which the counter starts again."""


@dataclass(frozen=True)
class EnergyMark:
    """All sensors of the best kind there is, at one moment."""

    source: str
    """'RAPL package', 'hwmon energy', 'battery', 'INA power' or '', and NVML."""
    sensors: Mapping[str, Sensor]
    at: float
    why: str = ""


@dataclass(frozen=True)
class Energy:
    """Of the time between two marks."""

    joules: float | None
    kind: Kind
    source: str
    why: str = ""


def mark_energy(root: Path = ROOT, gpus: Sequence[Gpu] = ()) -> EnergyMark:
    """Read the best sensors: counters of the package or board, then a discharging battery, then power. gpus: those that
    the bundle runs on; a battery or a sensor of the supply has them within."""
    found = _mark(root)
    cards = {f"GPU {g.index}": Sensor(g.joules, g.watts) for g in gpus if g.joules is not None or g.watts is not None}
    if not cards or found.source in ("battery", "INA power"):
        return found
    source = f"{found.source} and NVML" if found.source else "NVML, of the GPU alone"
    return EnergyMark(source, {**found.sensors, **cards}, found.at)


def _mark(root: Path) -> EnergyMark:
    now, why = time.monotonic(), []
    for source, read in (
        ("RAPL package", _rapl),
        ("hwmon energy", _hwmon_energy),
        ("battery", _battery),
        ("INA power", _ina_power),
    ):
        sensors, reason = read(root)
        if sensors:
            return EnergyMark(source, sensors, now)
        if reason:
            why.append(reason)
    return EnergyMark("", {}, now, "; ".join(why) or "the system shows no RAPL, no energy or power sensor, no battery")


def energy_since(start: EnergyMark, root: Path = ROOT, gpus: Sequence[Gpu] = ()) -> Energy:
    """The energy from `start` until now. gpus: the same ones, read again."""
    end = mark_energy(root, gpus)
    if not start.source or end.source != start.source or set(end.sensors) != set(start.sensors):
        return Energy(None, "unavailable", start.source, start.why or end.why or "the sensors changed meanwhile")
    total, estimated = 0.0, False
    for name, before in start.sensors.items():
        after = end.sensors[name]
        if before.joules is None or after.joules is None:
            total += ((before.watts or 0) + (after.watts or 0)) / 2 * (end.at - start.at)
            estimated = True
            continue
        moved = after.joules - before.joules
        if moved < 0 and before.wraps_at:
            moved += before.wraps_at
        total += moved
    if total <= 0:
        why = f"the {start.source} did not move in {end.at - start.at:.1f} s: measure longer"
        return Energy(None, "unavailable", start.source, why)
    why = "the mean of the power before and after, times the time between" if estimated else ""
    return Energy(total, "estimated" if estimated else "measured", start.source, why)


def _number(path: Path) -> tuple[float | None, str]:
    """(a sysfs file's number, why there is none)."""
    try:
        return float(path.read_text(encoding="ascii").strip()), ""
    except PermissionError:
        return None, f"{path} may not be read: run as root, or give the right to read it"
    except (OSError, ValueError):
        return None, ""


def _rapl(root: Path) -> tuple[dict[str, Sensor], str]:
    """Packages, not the domains within them (intel-rapl:0:0), nor the platform, which has them in it."""
    found, why = {}, ""
    for folder in sorted((root / "sys/class/powercap").glob("intel-rapl:[0-9]*")):
        if folder.name.count(":") != 1 or not _text(folder / "name").startswith("package"):
            continue
        value, reason = _number(folder / "energy_uj")
        if value is None:
            why = why or reason
            continue
        wraps, _ = _number(folder / "max_energy_range_uj")
        found[folder.name] = Sensor(value / 1e6, wraps_at=None if wraps is None else wraps / 1e6)
    return found, why


def _hwmon_energy(root: Path) -> tuple[dict[str, Sensor], str]:
    found, why = {}, ""
    for file in sorted((root / "sys/class/hwmon").glob("hwmon*/energy*_input")):
        value, reason = _number(file)
        if value is None:
            why = why or reason
        else:
            found[f"{file.parent.name}/{file.name}"] = Sensor(value / 1e6)
    return found, why


def _battery(root: Path) -> tuple[dict[str, Sensor], str]:
    """What is left counts down; in whole steps of the gauge."""
    found = {}
    for folder in sorted((root / "sys/class/power_supply").glob("*")):
        if _text(folder / "type") != "Battery" or _text(folder / "status") != "Discharging":
            continue
        value, _ = _number(folder / "energy_now")
        if value is not None:
            found[folder.name] = Sensor(-value * 3600 / 1e6)
    return found, ""


def _ina_power(root: Path) -> tuple[dict[str, Sensor], str]:
    found, why = {}, ""
    for folder in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        if _text(folder / "name") not in _INA:
            continue
        for name, watts, reason in _powers(folder):
            if watts is None:
                why = why or reason
            else:
                found[f"{folder.name}/{name}"] = Sensor(None, watts)
    return found, why


def _powers(folder: Path) -> Iterator[tuple[str, float | None, str]]:
    """Power of each channel: told, or the product of its voltage and its current (INA3221 of the Jetsons)."""
    told = sorted(folder.glob("power*_input"))
    for file in told:
        value, why = _number(file)
        yield file.name, None if value is None else value / 1e6, why
    if told:
        return
    for file in sorted(folder.glob("curr*_input")):
        amperes, why = _number(file)
        volts, _ = _number(folder / file.name.replace("curr", "in"))
        yield file.name, None if amperes is None or volts is None else amperes * volts / 1e6, why


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""
