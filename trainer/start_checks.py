"""What cannot be trained is said before training starts, not an hour in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from edgewise.data import Row
from edgewise.errors import CheckpointError, DataError, PlanError, nearest
from edgewise.metric_user import is_own, load_own
from edgewise.metrics import HUB, known_metrics, score
from edgewise.plan import TuneSpec
from edgewise.trainer.answers import reference
from edgewise.trainer.encode import unknown_share
from edgewise.trainer.losses import class_weights
from edgewise.trainer.models import Goal, check_depth, load_config, longest_input
from edgewise.types import ProblemType, Task

UNKNOWN_WARNING = 0.05
"""Share of unknown tokens from which on a tokenizer is said not to fit the text."""


def check_spec(spec: TuneSpec, teacher: str | Path | None, val: Sequence[Row], goal: Goal) -> None:
    """Raise PlanError, DataError or CheckpointError for options that the task or the rows at hand rule out."""
    _check_limits(spec)
    if spec.early_stopping is not None and not val:
        raise PlanError("early_stopping needs val rows to look at: give some, or remove early_stopping")
    if teacher is not None and not Path(teacher).is_dir():
        raise CheckpointError(f"teacher {teacher}: no such folder; expected a tuned model")
    if spec.metric is not None:
        check_metric(spec.metric, goal, val)


def _check_limits(spec: TuneSpec) -> None:
    """The limits of a plan's `tune:`, which a spec that was made in Python has not met yet."""
    try:
        msgspec.convert(msgspec.to_builtins(spec), TuneSpec)
    except msgspec.ValidationError as error:
        raise PlanError(f"{spec}: {error}") from error
    for name, value in msgspec.structs.asdict(spec).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise PlanError(f"{name} is {value}; expected a finite number")


def check_metric(name: str, goal: Goal, rows: Sequence[Row]) -> None:
    """Raise PlanError for a metric that the task does not have, DataError for one of the user's or of the hub that
    does not run: it is tried on `rows` as if every answer were right, before training and not after it."""
    if not is_own(name) and not name.startswith(HUB):
        known = known_metrics(goal.task, goal.problem_type, len(goal.labels))
        if name not in known:
            raise PlanError(f"unknown metric {name!r} for {goal.task}: {nearest(name, known)}")
        return
    right = [(-1.0, 1) if goal.task == "text-generation" else reference(row, goal) for row in rows]
    if not right:
        if is_own(name):
            load_own(name)
        return
    tried = score([name], right, right, task=goal.task, labels=goal.labels, problem_type=goal.problem_type)
    for one in tried.values():
        if one.value is None:
            raise DataError(f"metric {name!r}, tried with all {len(right)} val rows answered right: {one.why}")


def check_fit(
    model: Any, processor: Any, rows: Sequence[Row], spec: TuneSpec, goal: Goal, *, fresh: bool = False
) -> tuple[str, ...]:
    """What is wrong is an error now, not an hour in; what is only suspicious comes back as warnings.

    fresh: the model has no weights yet.
    """
    if goal.task == "image-classification":
        return ()
    _check_length(model.config, spec)
    warnings, longest = [], longest_input(model.config)
    if fresh and goal.task == "text-generation" and longest is not None and spec.max_length < longest:
        warnings.append(
            f"of the {longest} positions of the config {spec.max_length} are trained, and what stands further on is "
            f"guessed badly: let it run with `max_length: [{spec.max_length}]`, or train with max_length {longest}"
        )
    share = unknown_share(rows, processor)
    if share >= UNKNOWN_WARNING:
        warnings.append(
            f"{share:.0%} of the tokens of the training text are unknown to the tokenizer ({processor.unk_token}): "
            "it was made for other text (another language, perhaps); take a model whose tokenizer knows this one"
        )
    return tuple(warnings)


def _check_length(config: Any, spec: TuneSpec) -> None:
    longest = longest_input(config)
    if longest is not None and spec.max_length > longest:
        raise PlanError(f"max_length is {spec.max_length}, but the model has {longest} positions: lower max_length")


def check_start(
    source: str | Path,
    rows: Sequence[Row],
    labels: Sequence[str],
    spec: TuneSpec,
    *,
    task: Task = "text-classification",
    problem_type: ProblemType = "single_label_classification",
    val: Sequence[Row] = (),
) -> None:
    """What `tune` would refuse, as far as it can be told without loading a model: for plans, where the last candidate
    should not fail an hour after the first one started.

    Raises DataError, CheckpointError or PlanError.
    """
    goal = Goal(task, tuple(labels), problem_type)
    check_spec(spec, None, val, goal)
    class_weights(spec.class_weights, rows, goal)
    config = load_config(source, goal)
    if spec.keep_layers is not None:
        check_depth(config, spec.keep_layers)
    if task != "image-classification":
        _check_length(config, spec)
