"""Rows that do not fit the task are refused before anything long starts."""

from __future__ import annotations

from collections.abc import Sequence

from edgewise.data import Row
from edgewise.errors import DataError
from edgewise.trainer.models import Goal


def check_rows(rows: Sequence[Row], goal: Goal, part: str) -> None:
    """Raise DataError for rows of `part` (train or val) that the task cannot use; val may be empty."""
    if not rows:
        if part == "train":
            raise DataError("no rows to train on")
        return
    if goal.task == "image-classification":
        _need(rows, "image", "an image", part)
    if goal.task == "token-classification":
        _check_tags(rows, goal, part)
    elif goal.task == "text2text-generation":
        _need(rows, "target", "a target text", part)
    elif goal.task != "text-generation":
        _check_labels(rows, goal, part)


def _need(rows: Sequence[Row], field: str, what: str, part: str) -> None:
    missing = sum(getattr(r, field) is None for r in rows)
    if missing:
        raise DataError(f"{missing} of {len(rows)} rows of {part} have no {what.split(' ', 1)[1]}: name its column")


def _check_labels(rows: Sequence[Row], goal: Goal, part: str) -> None:
    if goal.regression:
        _need(rows, "number", "a number", part)
        return
    if goal.multi_label:
        found = {label for r in rows for label in r.labels or ()}
        _need(rows, "labels", "a list of labels", part)
    else:
        found = {str(r.label) for r in rows if r.label is not None}
        _need(rows, "label", "a label", part)
    _none_missing(found, goal, part, "labels")
    if part == "train" and not goal.multi_label and (len(goal.labels) < 2 or len(found) < 2):
        raise DataError(f"train has one class only, {next(iter(found))!r}: a classifier needs two")


def _check_tags(rows: Sequence[Row], goal: Goal, part: str) -> None:
    _need(rows, "tokens", "a list of words", part)
    _need(rows, "tags", "a list of tags", part)
    for i, row in enumerate(rows):
        if len(row.tokens or ()) != len(row.tags or ()):
            raise DataError(
                f"row {i} of {part} has {len(row.tokens or ())} words and {len(row.tags or ())} tags; "
                "expected one tag a word"
            )
    _none_missing({tag for r in rows for tag in r.tags or ()}, goal, part, "tags")


def _none_missing(found: set[str], goal: Goal, part: str, what: str) -> None:
    missing = sorted(found - set(goal.labels))
    if missing:
        untaught = ": training never shows them; give rows of them to train on, or say unseen leave_out"
        remedy = "" if part == "train" else untaught
        raise DataError(f"{part} has {what} {missing} that are not among {list(goal.labels)}{remedy}")
