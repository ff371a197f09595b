"""Values for people, in the unit that reads best. Standard library only: a device has it too."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

_SCALES: dict[str, tuple[tuple[float, str], ...]] = {
    "s": ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")),
    "B": ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B")),
    "J": ((1.0, "J"), (1e-3, "mJ"), (1e-6, "µJ")),
}


def show(value: float | None, unit: str, digits: int = 3) -> str:
    """A value for people, in the unit that reads best: '4.31 ms', '23.2 MB', '85.40%', '0.35 points'.

    digits: significant ones; of shares and points one fewer behind the point.
    """
    if value is None:
        return "-"
    if scales := _SCALES.get(unit):
        factor, name = next((scale for scale in scales if abs(value) >= scale[0]), scales[-1])
        return f"{_digits(value / factor, digits)} {name}"
    if unit == "1":
        return f"{100 * value:.{digits - 1}f}%"
    if unit == "points":
        return f"{value:.{digits - 1}f} points"
    return f"{_digits(value, digits)} {unit.replace('1/s', '/s').replace('number', '')}".strip()


def _digits(value: float, digits: int) -> str:
    """So many significant digits, without an exponent."""
    if value == 0 or not math.isfinite(value):
        return f"{value:.0f}"
    return f"{value:.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}"


def show_fact(key: str, fingerprint: Mapping[str, Any]) -> str:
    """A fact of a machine's fingerprint for people; what is not known says why."""
    value = fingerprint.get(key)
    if value is None:
        return f"unknown ({(fingerprint.get('why') or {}).get(key, 'cannot be read here')})"
    if isinstance(value, dict):
        return ", ".join(f"{k} {v}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    if key == "memory_limit":  # of a small device: in the unit that reads best
        return show(float(value), "B")
    return f"{value / 1e9:.1f} GB" if key.endswith(("memory", "bytes")) else str(value)
