"""The task's metrics of a PyTorch model on rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgewise.data import Row
from edgewise.metrics import Score, default_metrics, score
from edgewise.slices import make_slices
from edgewise.trainer.answers import answer
from edgewise.trainer.models import Goal, load_tuned
from edgewise.types import ProblemType, Task


def evaluate_checkpoint(
    folder: str | Path,
    rows: Sequence[Row],
    labels: Sequence[str] = (),
    *,
    task: Task = "text-classification",
    problem_type: ProblemType = "single_label_classification",
    metrics: Sequence[str] = (),
    slices: Sequence[str] = (),
    max_length: int = 64,
    batch_size: int = 32,
) -> dict[str, Score]:
    """The metrics of a tuned folder on rows, by name.

    metrics: the task's own unless given. slices: columns named in the data, 'length' or 'class'; each score then has
    its slices, with the worst one. max_length: tokens, as in training.

    Raises CheckpointError for a folder that was tuned for other labels, DataError for rows that do not fit.
    """
    goal = Goal(task, tuple(labels), problem_type)
    model, processor = load_tuned(folder, goal)
    return evaluate(
        model, processor, rows, goal, max_length=max_length, batch_size=batch_size, metrics=metrics, slices=slices
    )


def evaluate(
    model: Any,
    processor: Any,
    rows: Sequence[Row],
    goal: Goal,
    *,
    max_length: int,
    batch_size: int,
    metrics: Sequence[str] = (),
    slices: Sequence[str] = (),
) -> dict[str, Score]:
    """The metrics of a loaded model on rows, as `evaluate_checkpoint` gives them."""
    found = answer(model, processor, rows, goal, max_length=max_length, batch_size=batch_size)
    return score(
        metrics or default_metrics(goal.task, goal.problem_type),
        found.predictions,
        found.references,
        task=goal.task,
        labels=goal.labels,
        problem_type=goal.problem_type,
        slices=make_slices(rows, slices) if goal.task != "text-generation" else (),
    )


def metrics_for(goal: Goal, first: str | None) -> tuple[str, ...]:
    """The task's metrics; `first`, where it is given, is the one to choose by."""
    usual = default_metrics(goal.task, goal.problem_type)
    return usual if first is None else (first, *(name for name in usual if name != first))
