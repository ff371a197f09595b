"""What a report is made of. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from edgewise.types import ConfirmTry, Entry, Measurement, Selection


@dataclass(frozen=True)
class TrainingRow:
    """How one candidate was trained."""

    candidate: str
    strategy: str
    """full, lora, none."""
    seconds: float | None = None
    """Wall time."""
    epochs: float | None = None
    rows: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict, hash=False)
    """By name, canonical units; of val."""
    note: str = ""
    """Why it failed, or what else is worth saying."""


@dataclass(frozen=True)
class ChangedAnswer:
    """A row that a bundle answers otherwise than the reference does."""

    bundle: str
    """For people: 'l6/int8-dynamic, length 64'."""
    text: str
    label: str
    """The row's own label."""
    reference: str
    """What the reference (fp32) answers."""
    answer: str


@dataclass(frozen=True)
class ReportData:
    """Everything that the report, its Markdown form and the reader need."""

    title: str
    generated: datetime
    """UTC."""
    plan: str
    """Text of the plan file; '' when there was none."""
    command: str
    """What to type to get this again."""
    versions: Mapping[str, str]
    """Of edgewise and the tools behind it."""
    selections: tuple[Selection, ...]
    """One a device, with `confirmed` filled where the winner was confirmed."""
    measurements: tuple[Measurement, ...] = ()
    machines: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, hash=False)
    """Device -> fingerprint, JSON-able."""
    training: tuple[TrainingRow, ...] = ()
    changed: tuple[ChangedAnswer, ...] = ()
    """Examples."""
    changed_count: int = 0
    """Of all answers that changed, whether or not they are among the examples."""
    samples: Mapping[str, Sequence[float]] = field(default_factory=dict, hash=False)
    """Entry.key -> seconds of single calls, thinned or not."""
    notes: tuple[str, ...] = ()
    """What was left out, and why."""
    bundle: str = "chosen"
    """The chosen bundle's folder, as the reader would type it."""

    @property
    def entries(self) -> tuple[Entry, ...]:
        """Of all devices, in the order of their verdicts."""
        return tuple(v.entry for s in self.selections for v in s.verdicts)


def confirmation(selection: Selection) -> ConfirmTry | None:
    """The try that confirmed the chosen entry; None when there was none."""
    if selection.chosen is None:
        return None
    key = selection.chosen.entry.key
    return next((t for t in reversed(selection.confirmed) if t.key == key and t.passed), None)


def confirm_words(selection: Selection) -> str:
    """What was confirmed, in one sentence."""
    tries = selection.confirmed
    if not tries:
        return (
            "Not confirmed yet: the numbers of the chosen one are those that served the choice."
            if selection.chosen
            else ""
        )
    if confirmation(selection) is None:
        return (
            f"None of the {len(tries)} candidates tried passed its confirmation on fresh rows and in fresh processes."
        )
    first = "at the first try" if len(tries) == 1 else f"at try {len(tries)}, after {len(tries) - 1} did not pass"
    return (
        f"Confirmed {first}: it kept its budgets again on rows that had no part in the choice and in fresh processes."
    )
