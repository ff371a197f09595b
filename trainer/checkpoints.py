"""Checkpoints of a training that may be killed: written by time, found again, whole ones only."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from time import monotonic
from typing import Any

from transformers import TrainerCallback

EVERY_SECONDS = 120.0
LOSSES = "losses.json"
"""Training loss of every step so far; written last, so a checkpoint that has it is whole."""


@dataclass(frozen=True)
class Checkpoint:
    """Where a killed training goes on."""

    path: Path
    losses: tuple[float, ...]


def read_record(file: Path, key: str) -> dict[str, Any] | None:
    """The JSON object of a finished work, where the file is there and its 'key' is this one; None otherwise."""
    try:
        record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and record.get("key") == key else None


def training_folder(out: Path, key: str) -> Path:
    """The folder beside `out` for the checkpoints of the run with that key; those of other keys are removed."""
    folder = out.parent / f".{out.name}.{key.removeprefix('sha256:')[:12]}.training"
    for old in out.parent.glob(f".{escape(out.name)}.*.training"):
        if old != folder:
            shutil.rmtree(old, ignore_errors=True)
    return folder


def last_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest whole checkpoint that Trainer left in `folder`."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda p: int(p.name.rpartition("-")[2]), reverse=True)
    for path in found:
        try:
            state = json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
            losses = json.loads((path / LOSSES).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if len(losses) == state["global_step"]:
            return Checkpoint(path, tuple(losses))
    return None


class SaveByTime(TrainerCallback):
    """Asks for a checkpoint when `every` seconds have passed since the last, and keeps the losses in it."""

    def __init__(self, losses: Sequence[float], every: float = EVERY_SECONDS) -> None:
        self.losses, self.every, self.last = losses, every, monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if monotonic() - self.last >= self.every and state.global_step < state.max_steps:
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        path = Path(args.output_dir) / f"checkpoint-{state.global_step}" / LOSSES
        path.write_text(json.dumps(list(self.losses)), encoding="utf-8")
        # Only now is this one whole, and the older ones are needed no more.
        for old in Path(args.output_dir).glob("checkpoint-*"):
            if old != path.parent:
                shutil.rmtree(old, ignore_errors=True)
        self.last = monotonic()
