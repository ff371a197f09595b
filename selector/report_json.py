"""The report as JSON, for programs. Standard library only."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edgewise.files import write_json
from edgewise.selector.record import joint_json, to_json
from edgewise.selector.report_data import ReportData, confirm_words
from edgewise.selector.select import with_confirmed
from edgewise.selector.several import one_for_all
from edgewise.types import Measurement

FORMAT = "1.0"


def write_report_json(path: Path, data: ReportData, *, examples: bool = True) -> None:
    """Write the report as one JSON file, whole or not at all.

    examples: False leaves out every text of the data.
    """
    write_json(path, report_json(data, examples=examples))


def report_json(data: ReportData, *, examples: bool = True) -> dict[str, Any]:
    """All that the report holds but the raw samples, JSON-able; NaN and infinity are strings.

    `devices` holds each choice as selection.json has it, with the confirmed numbers in the sentence; a measurement's
    fingerprint stands once, under `machines`.
    """
    joint = one_for_all(data.selections)
    found: dict[str, Any] = plain(
        {
            "format": FORMAT,
            "title": data.title,
            "generated": data.generated.isoformat(timespec="seconds"),
            "devices": [
                {
                    **to_json(s),
                    "sentence": with_confirmed(s, s.confirmed).sentence,
                    "confirmation": confirm_words(s),
                }
                for s in data.selections
            ],
            **({"one_for_all": joint_json(joint)} if joint else {}),
            "measurements": [_measurement(m) for m in data.measurements],
            "training": [asdict(t) for t in data.training],
            "changed_answers": {"count": max(data.changed_count, len(data.changed))}
            | ({"examples": [asdict(c) for c in data.changed]} if examples else {}),
            "machines": data.machines,
            "command": data.command,
            "versions": data.versions,
            "plan": data.plan,
        }
    )
    return found


def _measurement(measurement: Measurement) -> dict[str, Any]:
    found = asdict(measurement)
    found["conditions"] = {k: v for k, v in measurement.conditions.items() if k != "fingerprint"}
    return found


def plain(value: Any) -> Any:
    """What JSON has a word for; numbers that it has none for become 'NaN', 'Infinity', '-Infinity'."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
