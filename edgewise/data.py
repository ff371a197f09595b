"""Rows for every step: read from a file or a dataset id, checked against the task, split once and for all.

The split is by a hash of the text (or of the image's bytes), so that it is the same on every machine, in every order,
and a text that stands twice in the data never stands in two parts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edgewise.assets import asset_path
from edgewise.columns import Columns
from edgewise.errors import DataError
from edgewise.images import check_image
from edgewise.reading import SEPARATOR, Reading, read_rows, sorted_labels, tag_order
from edgewise.records import Table
from edgewise.rows import PARTS, Part, Row, Splits, digest_rows, hash_share, hold_out, in_order, part_of, split_key
from edgewise.tables import read_dataset, read_table
from edgewise.types import ProblemType, Task

if TYPE_CHECKING:
    from edgewise.data_spec import DataSpec, LabelRule

__all__ = [
    "PARTS", "Part", "Row", "Splits", "digest_rows", "hash_share", "hold_out", "labels_of", "load_rows", "load_splits",
    "part_of", "split_key",
]  # fmt: skip

DECODED_PIXELS = 200_000_000
"""So many pixels of a data set are decoded before training, a few seconds' work; beyond them, headers are read."""


def load_splits(spec: DataSpec, task: Task, resolve: Callable[[str], Path]) -> Splits:
    """Read, check and split the rows of a plan. `resolve` maps a path of the plan to a file.

    The rows of a part stand in the order of their hash: `rows` takes the first of them, a random but fixed sample.
    Images are checked where they are kept: decoded until DECODED_PIXELS are, their headers alone after that.

    Raises DataError, with the file, line or row, the column and the value.
    """
    columns = Columns.of(spec, task)
    named = {part: split for part, split in spec.split.items() if isinstance(split, str)}
    if named:
        parts, names, dropped = _dataset_parts(spec, columns, named)
        source = f"dataset {spec.dataset!r}"
    else:
        table = _table(spec, columns, resolve)
        source = table.source
        shares = {part: float(share) for part, share in spec.split.items()}
        reading = read_rows(table, columns)
        names, dropped = reading.names, reading.dropped
        parts = {part: Reading() for part in PARTS}
        for row, place in zip(reading.rows, reading.places, strict=True):
            _add(parts[part_of(row.key, shares)], row, place)
    places = {id(row): place for part in PARTS for row, place in zip(parts[part].rows, parts[part].places, strict=True)}
    kept = {part: in_order(parts[part].rows) for part in PARTS}
    kept["train"] = kept["train"][: spec.rows.get("train")]
    if spec.unseen == "leave_out":
        dropped += _leave_out_unseen(kept)
    kept = {part: kept[part][: spec.rows.get(part)] for part in PARTS}
    _check_images([(row, places[id(row)]) for part in PARTS for row in kept[part]])
    labels = _labels([row for part in PARTS for row in kept[part]], columns, names)
    _check_parts(source, columns, kept)
    if columns.problem_type == "multi_label_classification":
        kept = {part: _labels_in_order(kept[part], labels) for part in PARTS}
    return Splits(kept["train"], kept["val"], kept["confirm"], labels, dropped)


def load_rows(
    path: str | Path,
    *,
    task: Task = "text-classification",
    problem_type: ProblemType = "single_label_classification",
    text: str = "text",
    text_pair: str | None = None,
    label: str | LabelRule | tuple[str, ...] | None = None,
    tokens: str = "tokens",
    tags: str | None = None,
    target: str | None = None,
    image: str = "image",
    slices: Sequence[str] = (),
    format: str | None = None,
    columns: Sequence[str] | None = None,
    quoting: bool = True,
) -> tuple[Row, ...]:
    """All rows of one file, folder of images or asset:NAME, in their order, unsplit.

    Without `label` (of a text or an image), `tags` or `target` the rows carry none.

    Raises DataError, with the file, line or row, the column and the value.
    """
    wanted = Columns(task, problem_type, text, text_pair, label, tokens, tags, target, image, tuple(slices))
    file = _locate(str(path), Path)
    table = read_table(file, format=format, columns=columns, quoting=quoting, txt=_txt(task))
    reading = read_rows(table, wanted)
    _check_images(list(zip(reading.rows, reading.places, strict=True)))
    if problem_type == "multi_label_classification" and label is not None:
        return _labels_in_order(reading.rows, _labels(reading.rows, wanted, reading.names))
    return tuple(reading.rows)


def _txt(task: Task) -> Literal["text", "tsv"]:
    """What a file that ends in .txt holds: running text where text alone is needed, else columns."""
    return "text" if task == "text-generation" else "tsv"


def _locate(path: str, resolve: Callable[[str], Path]) -> Path:
    return asset_path(path.removeprefix("asset:")) if path.startswith("asset:") else resolve(path)


def _table(spec: DataSpec, columns: Columns, resolve: Callable[[str], Path]) -> Table:
    if spec.dataset is not None:
        return read_dataset(spec.dataset, spec.config, "train")
    if spec.path is None:
        raise DataError("data: expected either path (a file) or dataset (a dataset id)")
    file = _locate(spec.path, resolve)
    return read_table(file, format=spec.format, columns=spec.columns, quoting=spec.quoting, txt=_txt(columns.task))


def _add(reading: Reading, row: Row, place: str) -> None:
    reading.rows.append(row)
    reading.places.append(place)


def _dataset_parts(
    spec: DataSpec, columns: Columns, named: Mapping[str, str]
) -> tuple[dict[Part, Reading], tuple[str, ...] | None, int]:
    """The dataset's own splits. A text that stands in two of them stays in the later part only."""
    if spec.dataset is None or set(named) != set(PARTS):
        raise DataError(f"split is {dict(spec.split)}; expected three shares, or three split names of a dataset id")
    parts = {part: Reading() for part in PARTS}
    names: tuple[str, ...] | None = None
    dropped = 0
    seen: set[str] = set()
    for part in reversed(PARTS):
        reading = read_rows(read_dataset(spec.dataset, spec.config, named[part]), columns)
        names = reading.names
        # The dataset's authors do not promise disjoint splits; the statistics of the choice rest on them.
        for row, place in zip(reading.rows, reading.places, strict=True):
            if row.key not in seen:
                _add(parts[part], row, place)
        dropped += reading.dropped + len(reading.rows) - len(parts[part].rows)
        seen |= {row.key for row in parts[part].rows}
    return parts, names, dropped


def _leave_out_unseen(parts: dict[Part, tuple[Row, ...]]) -> int:
    """Leave out rows of val and confirm that ask for what train does not teach; how many."""
    taught = {label for row in parts["train"] for label in _answers(row)}
    before = sum(map(len, parts.values()))
    for part in PARTS[1:]:
        parts[part] = tuple(row for row in parts[part] if taught.issuperset(_answers(row)))
    return before - sum(map(len, parts.values()))


def _check_images(rows: Iterable[tuple[Row, str]]) -> None:
    seen = 0
    for row, place in rows:
        if row.image is not None:
            seen += check_image(row.image, place, decode=seen < DECODED_PIXELS)


def _answers(row: Row) -> tuple[str, ...]:
    """The labels that a row teaches."""
    return row.tags or row.labels or (() if row.label is None else (row.label,))


def labels_of(rows: Sequence[Row], task: Task) -> tuple[str, ...]:
    """The labels that stand in rows, in the order of a model's outputs; () for regression and for language models."""
    found = {label for row in rows for label in _answers(row)}
    return tag_order(found) if task == "token-classification" else sorted_labels(found)


def _labels(rows: Sequence[Row], columns: Columns, names: tuple[str, ...] | None) -> tuple[str, ...]:
    if names:
        return names
    if isinstance(columns.label, tuple):
        return sorted_labels(set(columns.label))
    found = {label for row in rows for label in _answers(row)}
    return tag_order(found) if columns.task == "token-classification" else sorted_labels(found)


def _labels_in_order(rows: Iterable[Row], labels: tuple[str, ...]) -> tuple[Row, ...]:
    at = {label: i for i, label in enumerate(labels)}
    return tuple(replace(row, labels=tuple(sorted(row.labels or (), key=at.__getitem__))) for row in rows)


def _check_parts(source: str, columns: Columns, parts: Mapping[Part, Sequence[Row]]) -> None:
    """Every part has rows, and train teaches what the others ask."""
    sizes = ", ".join(f"{part} {len(parts[part])}" for part in PARTS)
    for part in PARTS:
        if not parts[part]:
            raise DataError(f"{source}: no row falls into {part} ({sizes}); give more rows, or other shares")
    where = f"{source}: column {columns.answer!r}" if columns.answer else source
    if columns.problem_type == "regression":
        if len({row.number for row in parts["train"]}) < 2:
            raise DataError(
                f"{where}: all {len(parts['train'])} rows of train have {parts['train'][0].number}; "
                f"expected two numbers or more"
            )
    elif columns.task not in ("text-generation", "text2text-generation"):
        _check_labels(where, columns, parts)


def _check_labels(where: str, columns: Columns, parts: Mapping[Part, Sequence[Row]]) -> None:
    counts = Counter(label for row in parts["train"] for label in _answers(row))
    if not counts:
        raise DataError(f"{where}: none of the {len(parts['train'])} rows of train has a label; expected some")
    if len(counts) < 2 and columns.problem_type != "multi_label_classification":
        raise DataError(
            f"{where}: all {len(parts['train'])} rows of train have label {next(iter(counts))!r}; expected two or more"
        )
    for column in columns.label if isinstance(columns.label, tuple) else ():
        if column not in counts:
            raise DataError(f"{where}: column {column!r} is 0 in all rows of train; leave it out of label")
    if columns.problem_type == "multi_label_classification":
        _check_separator(where, parts["train"])
    what = "tag" if columns.task == "token-classification" else "label"
    for part in PARTS[1:]:
        missing = Counter(label for row in parts[part] for label in _answers(row) if label not in counts)
        if missing:
            label, times = missing.most_common(1)[0]
            raise DataError(
                f"{where}: {what} {label!r} stands {times} times in {part} and never in train; "
                f"remove these rows, give more of them, or say unseen: leave_out"
            )


def _check_separator(where: str, rows: Sequence[Row]) -> None:
    """'a, b' read as one label would train a model of combinations without a word."""
    if any(len(row.labels or ()) > 1 for row in rows):
        return
    label = next((label for row in rows for label in row.labels or () if "," in label or ";" in label), None)
    if label is not None:
        raise DataError(f"{where}: no row has two labels, and one is {label!r}; separate labels by {SEPARATOR!r}")
