"""What guarded quantization counts as right, task by task, and how near each answer of fp32 is to another one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from edgewise.errors import DataError
from edgewise.exporter.outcomes import Example
from edgewise.exporter.sessions import answers, open_graphs
from edgewise.exporter.stopping import Reference, Score
from edgewise.types import Task

_IGNORED = -100
_WORDS = "share of next tokens that are the text's, given those before"
MEASURES: dict[Task, str] = {
    "text-classification": "share of labels right",
    "image-classification": "share of labels right",
    "token-classification": "share of words tagged right",
    "fill-mask": "share of masked tokens right",
    "text-generation": _WORDS,
    "text2text-generation": _WORDS,
}
"""What a drop is of, in points; means over rows."""
_VARIANCE = "variance explained (R squared)"

Judge = Callable[[np.ndarray, Any], tuple[float, np.ndarray]]
"""(answer of one row, its target) -> (score, at most 1, NaN without a target; by how much each answer that is asked for
is right, below 0 where it is wrong: float64 [answers], empty where there is no right and wrong)."""


def measure_of(task: Task, problem_type: str | None) -> str:
    """What `max_drop` is of, in words. KeyError for a task without right answers."""
    return _VARIANCE if task == "text-classification" and problem_type == "regression" else MEASURES[task]


def guard_judge(task: Task, problem_type: str | None, rows: Sequence[Example]) -> Judge:
    """How rows of a task are scored. rows: val rows, whose targets say how much a number varies.

    Raises DataError for a task without right answers, and for numbers that are all the same.
    """
    if task not in MEASURES:
        raise DataError(f"max_drop is of the share of right answers, and {task} has none: measure it where it is used")
    if task == "text-classification" and problem_type == "regression":
        targets = np.array([e.target for e in rows if e.target is not None], dtype=np.float64)
        spread = float(targets.var()) if len(targets) else 0.0
        if not spread:
            raise DataError(f"max_drop is of the variance explained, and the {len(targets)} numbers of val do not vary")
        return partial(_number, spread=spread)
    if task == "text-classification" and problem_type == "multi_label_classification":
        return _several
    return _one if task.endswith(("text-classification", "image-classification")) else _words


def fp32_reference(folder: Path, task: Task, rows: Sequence[Example], judge: Judge) -> Reference:
    """Run the fp32 graphs in `folder` on all rows. Raises DataError where none of them has a target."""
    seen = list(_run(folder, task, rows, judge))
    leads = [found for _, found in seen]
    reference = Reference(np.array([s for s, _ in seen]), leads=leads if any(map(len, leads)) else None)
    assert len(reference.order)  # raises where no row counts
    return reference


def scorer(task: Task, rows: Sequence[Example], judge: Judge) -> Score:
    """What runs the graphs beside a path on the rows asked for, one row at a time."""

    def score(graph: Path, numbers: Sequence[int]) -> Iterator[float]:
        return (s for s, _ in _run(graph.parent, task, [rows[i] for i in numbers], judge))

    return score


def _run(folder: Path, task: Task, rows: Sequence[Example], judge: Judge) -> Iterator[tuple[float, np.ndarray]]:
    # A batch of 1 each: the batch changes the answers of dynamic int8.
    graphs = open_graphs(folder, task)
    for example in rows:
        yield judge(answers(graphs, example.feeds)[0], example.target)


def _one(found: np.ndarray, target: Any) -> tuple[float, np.ndarray]:
    if target is None:
        return np.nan, np.empty(0)
    return float(found.argmax() == target), _leads(found[None], np.array([target]))


def _several(found: np.ndarray, target: Any) -> tuple[float, np.ndarray]:
    if target is None:
        return np.nan, np.empty(0)
    return float(((found > 0) == (target > 0.5)).mean()), np.where(target > 0.5, found, -found).astype(np.float64)


def _number(found: np.ndarray, target: Any, spread: float) -> tuple[float, np.ndarray]:
    return (1 - (float(found[0]) - target) ** 2 / spread if target is not None else np.nan), np.empty(0)


def _words(found: np.ndarray, target: np.ndarray) -> tuple[float, np.ndarray]:
    asked = target != _IGNORED
    rows, right = found[asked], target[asked]
    return float((rows.argmax(-1) == right).mean()), _leads(rows, right)


def _leads(logits: np.ndarray, right: np.ndarray) -> np.ndarray:
    """How far the logit of the right label is above the largest of the others: float64 [answers]."""
    if logits.shape[-1] < 2:
        return np.empty(0)
    places = np.arange(len(right))
    others = logits.astype(np.float64)
    others[places, right] = -np.inf
    found: np.ndarray = logits[places, right] - others.max(-1)
    return found
