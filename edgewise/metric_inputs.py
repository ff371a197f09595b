"""What a task's predictions and references look like, brought into one form and checked.

| kind | tasks | one prediction or reference |
|---|---|---|
| class | text classification with one label, image classification | number of a label, or its name |
| multi | multi-label classification | names of the labels that hold, or 0 and 1 for every label |
| number | regression | a number |
| tags | token classification | one tag a word |
| text | text to text | a text |
| logprob | language modelling | (sum of natural log-probabilities, tokens scored); references are not needed |

Standard library only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from edgewise.errors import DataError
from edgewise.types import ProblemType, Task

DataKind = Literal["class", "multi", "number", "tags", "text", "logprob"]


def kind_of(task: Task, problem_type: ProblemType | None = None) -> DataKind:
    """The form of a task's answers. Raises DataError for a task without answers to compare."""
    if task == "text-classification":
        kinds: dict[ProblemType | None, DataKind] = {"multi_label_classification": "multi", "regression": "number"}
        return kinds.get(problem_type, "class")
    by_task: dict[Task, DataKind] = {
        "image-classification": "class",
        "token-classification": "tags",
        "text2text-generation": "text",
        "text-generation": "logprob",
        "fill-mask": "logprob",
    }
    if task not in by_task:
        raise DataError(f"task {task!r} has no answers that a metric could compare")
    return by_task[task]


def read_inputs(
    kind: DataKind, predictions: Sequence[Any], references: Sequence[Any] | None, labels: Sequence[str]
) -> tuple[list[Any], list[Any]]:
    """Predictions and references in one form: numbers of labels, lists of 0 and 1, floats, lists of tags, texts.

    Raises DataError for no rows, lengths that differ, or a value that does not fit, with its row.
    """
    right: Sequence[Any] = predictions if kind == "logprob" else (references if references is not None else ())
    if len(predictions) != len(right):
        raise DataError(f"{len(predictions)} predictions for {len(right)} references; expected one each")
    if len(predictions) == 0:
        raise DataError("no predictions: a metric needs at least one row")
    index = {label: i for i, label in enumerate(labels)}
    sides: list[list[Any]] = []
    read = _READ[kind]
    for what, values in (("prediction", predictions), ("reference", right)):
        sides.append([read(f"{what} {row}", value, index) for row, value in enumerate(values)])
    if kind == "number" and not all(map(math.isfinite, sides[1])):
        row = next(i for i, value in enumerate(sides[1]) if not math.isfinite(value))
        raise DataError(f"reference {row} is {sides[1][row]}; expected a finite number")
    if kind == "tags":
        _same_lengths(*sides)
    return sides[0], sides[1]


def named(kind: DataKind, values: Sequence[Any], labels: Sequence[str]) -> list[Any]:
    """Values as a user's own metric gets them: names of labels in place of their numbers."""
    if kind == "class":
        return [labels[value] for value in values]
    if kind == "multi":
        return [tuple(label for label, holds in zip(labels, row, strict=True) if holds) for row in values]
    return list(values)


def _class(place: str, value: Any, index: dict[str, int]) -> int:
    if isinstance(value, str):
        if value not in index:
            raise DataError(f"{place} is {value!r}; expected one of the labels {list(index)}")
        return index[value]
    if isinstance(value, float) or not _whole(value) or not 0 <= int(value) < len(index):
        raise DataError(f"{place} is {value}; expected an index of the {len(index)} labels")
    return int(value)


def _multi(place: str, value: Any, index: dict[str, int]) -> list[int]:
    items = list(value)
    if all(isinstance(item, str) for item in items):
        chosen = {_class(place, item, index) for item in items}
        return [int(i in chosen) for i in range(len(index))]
    if len(items) != len(index) or any(item not in (0, 1) for item in items):
        raise DataError(f"{place} is {items}; expected names of labels, or 0 or 1 for each of the {len(index)} labels")
    return [int(item) for item in items]


def _number(place: str, value: Any, index: dict[str, int]) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise DataError(f"{place} is {value!r}; expected a number") from error


def _tags(place: str, value: Any, index: dict[str, int]) -> list[str]:
    names = list(index)
    if isinstance(value, str):
        raise DataError(f"{place} is the text {value!r}; expected one tag a word")
    return [tag if isinstance(tag, str) else names[_class(place, tag, index)] for tag in value]


def _text(place: str, value: Any, index: dict[str, int]) -> str:
    if not isinstance(value, str):
        raise DataError(f"{place} is {value!r}; expected a text")
    return value


def _logprob(place: str, value: Any, index: dict[str, int]) -> tuple[float, int]:
    try:
        total, tokens = value
        if _whole(tokens) and int(tokens) >= 0:
            return float(total), int(tokens)
    except (TypeError, ValueError):
        pass
    raise DataError(f"{place} is {value!r}; expected (sum of log-probabilities, tokens scored)")


_READ: Mapping[DataKind, Callable[[str, Any, dict[str, int]], Any]] = {
    "class": _class,
    "multi": _multi,
    "number": _number,
    "tags": _tags,
    "text": _text,
    "logprob": _logprob,
}


def _whole(value: Any) -> bool:
    """A whole number of Python or numpy; no bool."""
    return not isinstance(value, bool) and hasattr(value, "__index__")


def _same_lengths(predictions: list[list[str]], references: list[list[str]]) -> None:
    for row, (given, right) in enumerate(zip(predictions, references, strict=True)):
        if len(given) != len(right):
            raise DataError(f"row {row} has {len(given)} predicted tags for {len(right)} words; expected one a word")
