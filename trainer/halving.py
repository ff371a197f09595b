"""Successive halving: many candidates train a little, the better half trains more, within a time budget.

'Jamieson and Talwalkar, Non-stochastic best arm identification and hyperparameter optimization, AISTATS 2016'
(arXiv:1502.07943); the resource is rows: in each round every candidate left is trained on the same rows, one epoch
from its pretrained weights, and judged on the same rows of val.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import TYPE_CHECKING

import msgspec

from edgewise.data import Row
from edgewise.errors import EdgewiseError, TrainingError
from edgewise.files import write_json
from edgewise.progress import Progress
from edgewise.trainer.checkpoints import read_record
from edgewise.trainer.finetune import tune, tune_key
from edgewise.trainer.models import Goal
from edgewise.types import Task

if TYPE_CHECKING:
    from edgewise.trainer.rank import RankCandidate

MIN_ROWS = 64
"""A round trains on no fewer: below that accuracy is chance."""


@dataclass(frozen=True)
class Trial:
    """One short training."""

    name: str
    round: int
    """From 1."""
    rows: int
    seconds: float
    accuracy: float | None
    """On val; None where it failed."""
    val_rows: int
    kept: bool = False
    """Whether it goes on to the next round, or was the best of the last."""
    note: str = ""
    """Why it failed or was dropped."""


@dataclass(frozen=True, eq=False)
class Runner:
    """What all short trainings share."""

    rows: Sequence[Row]
    val: Sequence[Row]
    labels: Sequence[str]
    out: Path
    seed: int
    task: Task = "text-classification"
    progress: Progress | None = None


class _OutOfTimeError(TrainingError):
    """The time budget ran out in the middle of a training."""


@dataclass(frozen=True, eq=False)
class Entrant:
    """A candidate for short trainings, and what they are expected to cost."""

    candidate: RankCandidate
    score: float
    row_s: float
    """Seconds to train on one row: three forward passes (one forward, and backward twice as much)."""
    fixed_s: float
    """Seconds of each training whatever its rows: loading, and answering val."""

    def expected_s(self, rows: int) -> float:
        return self.fixed_s + self.row_s * rows


def halve(
    entrants: Sequence[Entrant],
    runner: Runner,
    seconds: float,
    *,
    score: str,
    keep: int | None,
    say: Callable[[str], None],
) -> tuple[tuple[Trial, ...], list[str]]:
    """The trials in order, and what was dropped in words. entrants: best score first; seconds: for all rounds.

    With too little time for a round of MIN_ROWS with all, those with the lowest scores are dropped untrained.
    No training starts that is expected to end after the time, and one that runs over it is stopped.
    """
    deadline = perf_counter() + seconds
    left, words = _who_enters(list(entrants), seconds, keep, score)
    for line in words:
        say(line)
    trials: list[Trial] = []
    size, number, slower = 0, 0, 1.0
    while left:
        number += 1
        share = (deadline - perf_counter()) / slower / _rounds(len(left))
        size = _round_rows(left, share, size, len(runner.rows))
        if size == 0:
            line = (
                f"stopped before round {number}: {max(0.0, deadline - perf_counter()):.0f} s left, too little for more"
            )
            words.append(line)
            say(line)
            break
        found = [_try(entrant, runner, number, size, deadline) for entrant in left]
        # what the round really took corrects the estimate for the next
        slower = max(0.5, sum(t.seconds for t in found) / max(sum(e.expected_s(size) for e in left), 1e-9))
        judged, left = _judge(found, left, len(runner.val))
        trials += judged
        for trial in judged:
            say(trial_words(trial))
        words += [trial_words(t) for t in judged if not t.kept]
        if len(left) < 2 or size >= len(runner.rows):
            break
    return tuple(trials), words


def _rounds(entrants: int) -> int:
    """Rounds until one is left."""
    return max(1, math.ceil(math.log2(max(2, entrants))))


def _who_enters(
    entrants: list[Entrant], seconds: float, keep: int | None, score: str
) -> tuple[list[Entrant], list[str]]:
    """Those that the time lets train, best scores first; the words for the others."""
    left, words = list(entrants), []
    while len(left) > 1:
        needed = _rounds(len(left)) * sum(e.expected_s(MIN_ROWS) for e in left)
        if keep is not None and len(left) > keep:
            why = f"only {keep} go into the trainings"
        elif needed > seconds:
            why = f"{len(left)} candidates need {needed:.0f} s, {max(0.0, seconds):.0f} s are left"
        else:
            break
        last = left.pop()
        words.append(f"dropped {last.candidate.name} before training: its {score} of {last.score:.4f} is lowest, {why}")
    return left, words


def _round_rows(left: Sequence[Entrant], seconds: float, before: int, most: int) -> int:
    """Rows of the next round: what the time allows, more than before; 0 where there is no time for that.

    Steps of 2: so that a ranking started again, a little faster or slower, finds its finished trainings.
    """
    able = (seconds - sum(e.fixed_s for e in left)) / max(sum(e.row_s for e in left), 1e-9)
    size = MIN_ROWS
    while size * 2 <= min(able, most):  # able may be without bound
        size *= 2
    if able >= most:
        size = most
    return 0 if before and not before < size <= able else min(size, most)


def _try(entrant: Entrant, runner: Runner, number: int, size: int, deadline: float) -> Trial:
    """One training and its accuracy on val; what fails is a trial with a note. A finished one is found again."""
    candidate = entrant.candidate
    start = perf_counter()
    rows = runner.rows[:size]
    spec = msgspec.structs.replace(candidate.spec, epochs=1, seed=runner.seed, early_stopping=None, metric=None)
    blank = Trial(candidate.name, number, size, 0.0, None, len(runner.val))
    record = runner.out / f"{candidate.name}-{size}.json"
    goal = Goal(runner.task, tuple(runner.labels))
    key = tune_key(candidate.source, rows, spec, goal, source_digest=candidate.source_digest, val=runner.val)
    if (known := read_record(record, key)) is not None:
        return replace(blank, accuracy=float(known["accuracy"]))
    if start > deadline:
        return replace(blank, note="the time was over before it could train")

    def watch(step: int, steps: int, what: str) -> None:
        if perf_counter() > deadline:
            raise _OutOfTimeError(f"the time was over at step {step} of {steps}")
        if runner.progress:
            runner.progress(step, steps, f"round {number}, {candidate.name}: {what}")

    try:
        with TemporaryDirectory(prefix="edgewise-rank-") as folder:  # the weights serve the judgement alone
            done = tune(
                candidate.source,
                rows,
                runner.labels,
                spec,
                out=Path(folder) / "model",
                task=runner.task,
                val=runner.val,
                source_digest=candidate.source_digest,
                progress=watch,
            )
    except EdgewiseError as error:
        return replace(blank, seconds=perf_counter() - start, note=str(error))
    found = done.metrics["accuracy"]
    write_json(record, {"key": key, "accuracy": found})
    return replace(blank, seconds=perf_counter() - start, accuracy=found)


def _judge(found: Sequence[Trial], left: Sequence[Entrant], val_rows: int) -> tuple[list[Trial], list[Entrant]]:
    """The better half goes on; of equals, those with the better score (they stand first)."""
    able = sorted((t for t in found if t.accuracy is not None), key=lambda t: -(t.accuracy or 0.0))
    kept = able[: math.ceil(len(able) / 2)] if len(able) > 1 else able
    names = {t.name for t in kept}
    judged = []
    for trial in found:
        if trial.name in names:
            judged.append(replace(trial, kept=True))
        elif trial.accuracy is None:
            judged.append(trial)
        else:
            judged.append(replace(trial, note=_why(trial.accuracy, kept[-1].accuracy or 0.0, val_rows)))
    return judged, [e for e in left if e.candidate.name in names]


def _why(accuracy: float, limit: float, rows: int) -> str:
    """How far below the last one kept, and whether rows of val can tell that."""
    gap = limit - accuracy
    # two accuracies on the same rows: at most the noise of two independent ones (95%)
    noise = 1.96 * math.sqrt((accuracy * (1 - accuracy) + limit * (1 - limit)) / max(1, rows))
    sure = "" if gap > noise else f"; {rows} rows of val cannot tell them apart, so this may be chance"
    return f"{100 * gap:.1f} points below the last one kept{sure}"


def trial_words(trial: Trial) -> str:
    """One line for people."""
    where = f"round {trial.round}, {trial.rows} rows, {trial.seconds:.0f} s"
    if trial.accuracy is None:
        return f"dropped {trial.name} in {where}: {trial.note}"
    state, note = "kept" if trial.kept else "dropped", f", {trial.note}" if trial.note else ""
    return f"{state} {trial.name} after {where}: val accuracy {trial.accuracy:.1%}{note}"
