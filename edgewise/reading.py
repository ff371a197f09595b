"""From records to rows: what each column must hold, and what is refused with its place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgewise.columns import Columns
from edgewise.errors import DataError, nearest
from edgewise.records import Record, Table
from edgewise.rows import Row

SEPARATOR = "|"
"""Between the labels of one text, where they stand in one column as a text."""
_TRUE, _FALSE = ("1", "true", "1.0"), ("0", "false", "0.0")


@dataclass(frozen=True)
class Reading:
    """The rows of one table, in its order."""

    rows: list[Row] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    """Where each row stands, for errors."""
    names: tuple[str, ...] | None = None
    """The labels in their order, where the source or the plan's rule knows them."""
    dropped: int = 0


def read_rows(table: Table, columns: Columns) -> Reading:
    """All rows of a table. Raises DataError with the place, the column and the value of what does not fit."""
    if table.columns is not None:
        for column in columns.needed:
            if column not in table.columns:
                raise _missing(table.source, column, table.columns, columns)
    names = columns.rule.names if columns.rule else table.class_names.get(columns.answer or "")
    reading = Reading(names=tuple(names) if names else None)
    found = 0
    for record in table.records:
        found += 1
        row = _row(record, table, columns, reading.names)
        if row is not None:
            reading.rows.append(row)
            reading.places.append(record.place)
    if not reading.rows:
        why = f"the label rule drops all {found} rows" if found else "it has no rows"
        raise DataError(f"{table.source}: {why}; expected rows with {', '.join(columns.needed)}")
    return Reading(reading.rows, reading.places, reading.names, found - len(reading.rows))


def _missing(place: str, column: str, known: Sequence[str], columns: Columns) -> DataError:
    return DataError(
        f"{place}: no column {column!r}: {nearest(column, tuple(known))} ({columns.task} needs "
        f"{', '.join(columns.needed)}; there are {', '.join(known)})"
    )


def _row(record: Record, table: Table, columns: Columns, names: tuple[str, ...] | None) -> Row | None:
    """The row of a record; None where the plan's rule drops it."""
    for column in columns.needed:
        if column not in record.values:
            raise _missing(record.place, column, tuple(map(str, record.values)), columns)
    slices = tuple((column, _slice(record.values[column])) for column in columns.slices if column in record.values)
    if columns.task == "image-classification":
        image = _image(record, columns.image, table.base)
        label, keep = _label(record, columns, names)
        return Row(image=image, label=label, slices=slices) if keep else None
    if columns.task == "token-classification":
        return _tagged(record, columns, names, slices)
    return _text_row(record, columns, names, slices)


def _text_row(
    record: Record, columns: Columns, names: tuple[str, ...] | None, slices: tuple[tuple[str, str], ...]
) -> Row | None:
    text = _text(record, columns.text)
    if columns.task == "text2text-generation":
        target = None if columns.target is None else _text(record, columns.target)
        return Row(text, target=target, slices=slices)
    if columns.task == "text-generation":
        return Row(text, slices=slices)
    pair = _text(record, columns.text_pair) if columns.text_pair else None
    if columns.problem_type == "regression":
        number = None if columns.answer is None else _number(record, columns.answer)
        return Row(text, pair, number=number, slices=slices)
    if columns.problem_type == "multi_label_classification":
        return Row(text, pair, labels=_labels(record, columns, names), slices=slices)
    label, keep = _label(record, columns, names)
    return Row(text, pair, label, slices=slices) if keep else None


def _text(record: Record, column: str) -> str:
    return _proper_text(f"{record.place}: column {column!r}", record.values[column])


def _proper_text(place: str, value: Any) -> str:
    if value is None or (isinstance(value, str) and not value.strip()):
        raise DataError(f"{place} is empty; expected a text: fill or remove the row")
    if not isinstance(value, str):
        raise DataError(f"{place} is {_brief(value)}; expected a text")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can write half of a surrogate pair, which is no character
        raise DataError(
            f"{place} holds {value[error.start]!r} at character {error.start}, which UTF-8 cannot write; "
            f"mend or remove the row"
        ) from error
    return value


def _slice(value: Any) -> str:
    """The value of a slice as a text; whole numbers are written the same from every format."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).lower() if isinstance(value, bool) else "" if value is None else str(value).strip()


def _label(record: Record, columns: Columns, names: tuple[str, ...] | None) -> tuple[str | None, bool]:
    """The label of a record, and whether the record stays."""
    if columns.answer is None:
        return None, True
    if columns.rule is not None:
        score = _number(record, columns.rule.column)
        return columns.rule.names[score > columns.rule.above], score not in columns.rule.drop
    place = f"{record.place}: column {columns.answer!r}"
    return _class_name(place, record.values[columns.answer], names), True


def _class_name(place: str, value: Any, names: tuple[str, ...] | None) -> str:
    if names is None:
        return _label_text(place, value)
    if not isinstance(value, int) or not 0 <= value < len(names):
        raise DataError(f"{place} is {value!r}; expected the number of a class, 0 to {len(names) - 1}")
    return names[value]


def _label_text(place: str, value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # a column of whole numbers with a gap reaches Parquet as float
    if value is None or (isinstance(value, float) and math.isnan(value)) or not str(value).strip():
        raise DataError(f"{place} is empty; expected a label: fill or remove the row")
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, str | int):
        raise DataError(
            f"{place} is {_brief(value)}; expected a text or a whole number "
            f"(a score needs label: {{column: …, above: …}}; several labels, problem_type: multi_label_classification)"
        )
    return str(value).strip()


def _labels(record: Record, columns: Columns, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """The labels that hold, each once, in the order found."""
    if isinstance(columns.label, tuple):
        return tuple(column for column in columns.label if _holds(record, column))
    if columns.answer is None:
        return None
    place, value = f"{record.place}: column {columns.answer!r}", record.values[columns.answer]
    if isinstance(value, str) and names is None:
        return tuple(dict.fromkeys(part.strip() for part in value.split(SEPARATOR) if part.strip()))
    if not isinstance(value, list | tuple):
        raise DataError(f"{place} is {_brief(value)}; expected a list of labels, or labels separated by {SEPARATOR!r}")
    return tuple(dict.fromkeys(_class_name(f"{place}[{i}]", v, names) for i, v in enumerate(value)))


def _holds(record: Record, column: str) -> bool:
    value = record.values[column]
    word = str(value).strip().lower()
    if word not in (*_TRUE, *_FALSE):
        raise DataError(f"{record.place}: column {column!r} is {_brief(value)}; expected 0 or 1")
    return word in _TRUE


def _number(record: Record, column: str) -> float:
    value = record.values[column]
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"{record.place}: column {column!r} is {_brief(value)}; expected a finite number")
    return number


def _tagged(
    record: Record, columns: Columns, names: tuple[str, ...] | None, slices: tuple[tuple[str, str], ...]
) -> Row:
    tokens = _words(record, columns.tokens)
    for i, token in enumerate(tokens):
        if " " in _proper_text(f"{record.place}: column {columns.tokens!r}[{i}]", token):
            raise DataError(f"{record.place}: column {columns.tokens!r}[{i}] is {token!r}; expected one word, no space")
    if columns.tags is None:
        return Row(" ".join(tokens), tokens=tokens, slices=slices)
    values = _words(record, columns.tags)
    if len(values) != len(tokens):
        raise DataError(
            f"{record.place}: {len(tokens)} words in column {columns.tokens!r} and {len(values)} tags in column "
            f"{columns.tags!r}; expected one tag a word"
        )
    place = f"{record.place}: column {columns.tags!r}"
    tags = tuple(_tag(f"{place}[{i}]", value, names) for i, value in enumerate(values))
    return Row(" ".join(tokens), tokens=tokens, tags=tags, slices=slices)


def _words(record: Record, column: str) -> tuple[Any, ...]:
    value = record.values[column]
    if not isinstance(value, list | tuple):
        raise DataError(f"{record.place}: column {column!r} is {_brief(value)}; expected a list with one item a word")
    if not value:
        raise DataError(f"{record.place}: column {column!r} is an empty list; expected words: fill or remove the row")
    return tuple(value)


def _tag(place: str, value: Any, names: tuple[str, ...] | None) -> str:
    if names is None and not isinstance(value, str):
        raise DataError(
            f"{place} is {_brief(value)}; expected a text (a number needs a dataset that names its classes)"
        )
    return _class_name(place, value, names)


def _image(record: Record, column: str, base: Path | None) -> Path | bytes:
    """The encoded bytes as they are, or a path made from the file that names it."""
    place, value = f"{record.place}: column {column!r}", record.values[column]
    if isinstance(value, dict) and value.get("bytes") is not None:
        value = value["bytes"]  # the struct that `datasets` writes for an image
    elif isinstance(value, dict):
        value = value.get("path")
    if isinstance(value, bytes) and value:
        return value
    if not isinstance(value, str | Path) or not str(value).strip():
        shown = _brief(value) if value else "empty"
        raise DataError(f"{place} is {shown}; expected the path or the bytes of an image: fill or remove the row")
    file = (base or Path()) / value
    if not file.is_file():
        raise DataError(f"{place} is {str(value)!r}; no such file: {file}")
    return file


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"


def sorted_labels(labels: set[str]) -> tuple[str, ...]:
    """Numerically where all are whole numbers ('2' before '10'), else by their characters."""
    try:
        return tuple(sorted(labels, key=lambda label: (int(label), label)))
    except ValueError:
        return tuple(sorted(labels))


def tag_order(tags: set[str]) -> tuple[str, ...]:
    """'O' first, then by their characters."""
    return tuple(sorted(tags, key=lambda tag: (tag != "O", tag)))
