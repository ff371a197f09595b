"""Which machine a measurement was made on: one name of a device must not stand for two of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from edgewise.errors import StoreError
from edgewise.types import Measurement

_HARDWARE = ("machine", "cpu", "flags", "logical_cores")
"""Of a fingerprint: what no update of the software changes."""


def machine_of(m: Measurement) -> str:
    """The hardware, as one text to compare; '' where the measurement does not say it."""
    print_ = m.conditions.get("fingerprint")
    if not isinstance(print_, dict) or not print_:  # a device that did not answer
        return ""
    return json.dumps([print_.get(key) for key in _HARDWARE])


def machine_words(m: Measurement) -> str:
    """'AMD EPYC, 2 cores'."""
    print_: Any = m.conditions.get("fingerprint") or {}
    name = print_.get("cpu") or print_.get("machine") or "a machine without a name"
    return f"{name}, {print_.get('logical_cores')} cores"


def one_machine(
    measurements: Sequence[Measurement], wanted: str | None = None
) -> tuple[list[Measurement], tuple[str, ...]]:
    """(measurements of one machine a device, a sentence for each device that had others).

    The machine that was measured last on a device counts, or the last one whose name holds `wanted`; what was measured
    on none, or does not say where, stays. Raises StoreError for a `wanted` that no machine's name holds.
    """
    last: dict[str, Measurement] = {}
    for m in _placed(measurements):
        assert m.target is not None
        if wanted is None or wanted.lower() in machine_words(m).lower():
            last[m.target.device] = m
    if wanted is not None and not last:
        known = sorted({machine_words(m) for m in _placed(measurements)})
        raise StoreError(f"no machine is called {wanted!r}; measured were {'; '.join(known) or 'none'}")
    kept: list[Measurement] = []
    dropped: list[Measurement] = []
    for m in measurements:
        ours = last.get(m.target.device) if m.target is not None and machine_of(m) else None
        stays = not machine_of(m) or m.target is None or (ours is not None and machine_of(ours) == machine_of(m))
        (kept if stays else dropped).append(m)
    return kept, tuple(_sentences(dropped, last))


def _placed(measurements: Iterable[Measurement]) -> Iterable[Measurement]:
    return (m for m in measurements if m.target is not None and machine_of(m))


def _sentences(dropped: Sequence[Measurement], last: dict[str, Measurement]) -> Iterable[str]:
    groups: dict[tuple[str, str], int] = {}
    for m in dropped:
        assert m.target is not None
        key = (m.target.device, machine_words(m))
        groups[key] = groups.get(key, 0) + 1
    for (device, other), count in groups.items():
        ours = f"the choice is for {machine_words(last[device])}" if device in last else "it has no other"
        yield (
            f"device {device!r} stands for several machines: {count:,} measurements of {other} are left out, {ours}; "
            "--machine NAME chooses another"
        )
