"""Rows for every step: read from a file or a dataset id, checked against the task, split once and for all.

The split is by a hash of the text, so that it is the same on every machine, in every order, and a text that stands
twice in the data never stands in two parts.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgewise.assets import asset_path
from edgewise.errors import DataError, nearest
from edgewise.files import digest_json
from edgewise.tables import Record, Table, read_dataset, read_table
from edgewise.types import Task

if TYPE_CHECKING:
    from edgewise.plan import DataSpec, LabelRule

Part = Literal["train", "val", "confirm"]
PARTS: tuple[Part, ...] = ("train", "val", "confirm")


@dataclass(frozen=True)
class Row:
    """One example."""

    text: str
    text_pair: str | None = None
    label: str | None = None

    @property
    def id(self) -> str:
        """First 16 hex digits of the sha256 of its texts."""
        return digest_json([self.text, self.text_pair]).removeprefix("sha256:")[:16]


@dataclass(frozen=True)
class Splits:
    """The rows of each part, and the labels in the order of the model's outputs."""

    train: tuple[Row, ...]
    val: tuple[Row, ...]
    confirm: tuple[Row, ...]
    labels: tuple[str, ...]
    dropped: int = 0
    """Rows left out by the plan's rule, or because a later part of a dataset id holds the same text."""

    def part(self, name: Part) -> tuple[Row, ...]:
        rows: tuple[Row, ...] = getattr(self, name)
        return rows


@dataclass(frozen=True)
class _Fields:
    """Which columns hold what."""

    text: str
    text_pair: str | None
    label: str | LabelRule | None

    @property
    def label_column(self) -> str | None:
        return self.label if self.label is None or isinstance(self.label, str) else self.label.column

    @property
    def rule(self) -> LabelRule | None:
        return None if isinstance(self.label, str) else self.label


def digest_rows(rows: Iterable[Row]) -> str:
    """'sha256:...' of rows in their order, labels included."""
    return digest_json([[r.text, r.text_pair, r.label] for r in rows])


def hash_share(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int(hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:13], 16) / 16**13


def split_key(text: str) -> str:
    """What two texts share that must stand in one part: case and spacing apart, they are the same to most models."""
    return " ".join(text.split()).casefold()


def part_of(text: str, shares: Mapping[str, float]) -> Part:
    """The part that a text belongs to, for shares of train, val and confirm that add up to 1.

    It depends on the text alone (not on case, spacing, the second text of a pair, or the label), so no text of one
    part ever stands in another.
    """
    share = hash_share(split_key(text))
    if share < shares["train"]:
        return "train"
    return "val" if share < shares["train"] + shares["val"] else "confirm"


def load_splits(spec: DataSpec, task: Task, resolve: Callable[[str], Path]) -> Splits:
    """Read, check and split the rows of a plan. `resolve` maps a path of the plan to a file.

    The rows of a part stand in the order of their hash: `rows` takes the first of them, a random but fixed sample.

    Raises DataError, with the file, line or row, the column and the value.
    """
    if task != "text-classification":
        raise DataError(f"task {task!r}: only the rows of text-classification can be read")
    fields = _Fields(spec.text, spec.text_pair, spec.label)
    named = {part: split for part, split in spec.split.items() if isinstance(split, str)}
    if named:
        parts, names, dropped = _dataset_parts(spec, fields, named)
        source = f"dataset {spec.dataset!r}"
    else:
        table = _table(spec, resolve)
        source = table.source
        shares = {part: float(share) for part, share in spec.split.items()}
        rows, names, dropped = _read_rows(table, fields)
        parts = {part: [] for part in PARTS}
        for row in rows:
            parts[part_of(row.text, shares)].append(row)
    kept = {part: _ordered(parts[part])[: spec.rows.get(part)] for part in PARTS}
    labels = names or _sorted_labels({str(row.label) for rows in kept.values() for row in rows})
    _check_parts(source, fields, kept)
    return Splits(kept["train"], kept["val"], kept["confirm"], labels, dropped)


def load_rows(
    path: str | Path,
    *,
    text: str = "text",
    text_pair: str | None = None,
    label: str | LabelRule | None = None,
    format: str | None = None,
    columns: Sequence[str] | None = None,
    quoting: bool = True,
) -> tuple[Row, ...]:
    """All rows of one file (or asset:NAME) in the order of the file, unsplit; without `label` they carry none.

    Raises DataError, with the file, line or row, the column and the value.
    """
    table = read_table(_locate(str(path), Path), format=format, columns=columns, quoting=quoting)
    rows, _, _ = _read_rows(table, _Fields(text, text_pair, label))
    return tuple(rows)


def _locate(path: str, resolve: Callable[[str], Path]) -> Path:
    return asset_path(path.removeprefix("asset:")) if path.startswith("asset:") else resolve(path)


def _table(spec: DataSpec, resolve: Callable[[str], Path]) -> Table:
    if spec.dataset is not None:
        return read_dataset(spec.dataset, spec.config, "train")
    if spec.path is None:
        raise DataError("data: expected either path (a file) or dataset (a dataset id)")
    return read_table(_locate(spec.path, resolve), format=spec.format, columns=spec.columns, quoting=spec.quoting)


def _dataset_parts(
    spec: DataSpec, fields: _Fields, named: Mapping[str, str]
) -> tuple[dict[Part, list[Row]], tuple[str, ...] | None, int]:
    """The dataset's own splits. A text that stands in two of them stays in the later part only."""
    if spec.dataset is None or set(named) != set(PARTS):
        raise DataError(f"split is {dict(spec.split)}; expected three shares, or three split names of a dataset id")
    parts: dict[Part, list[Row]] = {}
    names: tuple[str, ...] | None = None
    dropped = 0
    seen: set[str] = set()
    for part in reversed(PARTS):
        rows, names, left_out = _read_rows(read_dataset(spec.dataset, spec.config, named[part]), fields)
        # The dataset's authors do not promise disjoint splits; the statistics of the choice rest on them.
        parts[part] = [row for row in rows if split_key(row.text) not in seen]
        dropped += left_out + len(rows) - len(parts[part])
        seen |= {split_key(row.text) for row in parts[part]}
    return parts, names, dropped


def _ordered(rows: Iterable[Row]) -> tuple[Row, ...]:
    """By hash: whatever the order of the file, and mixed even where the file is sorted by class."""
    return tuple(sorted(rows, key=lambda row: (row.id, row.label or "")))


def _read_rows(table: Table, fields: _Fields) -> tuple[list[Row], tuple[str, ...] | None, int]:
    """The rows, the names of the labels where the source or the rule knows them, and how many rows were dropped."""
    wanted = [c for c in (fields.text, fields.text_pair, fields.label_column) if c is not None]
    if table.columns is not None:
        for column in wanted:
            if column not in table.columns:
                raise DataError(f"{table.source}: no column {column!r}: {nearest(column, table.columns)}")
    names = tuple(fields.rule.names) if fields.rule else table.class_names.get(fields.label_column or "")
    rows: list[Row] = []
    found = 0
    for record in table.records:
        found += 1
        label, keep = _label(record, fields, names)
        if keep:
            pair = _text(record, fields.text_pair) if fields.text_pair else None
            rows.append(Row(_text(record, fields.text), pair, label))
    if not rows:
        why = f"the label rule drops all {found} rows" if found else "it has no rows"
        raise DataError(f"{table.source}: {why}; expected rows with {', '.join(wanted)}")
    return rows, names, found - len(rows)


def _value(record: Record, column: str) -> Any:
    if column not in record.values:
        raise DataError(f"{record.place}: no column {column!r}: {nearest(column, tuple(map(str, record.values)))}")
    return record.values[column]


def _text(record: Record, column: str) -> str:
    value = _value(record, column)
    if value is None or (isinstance(value, str) and not value.strip()):
        raise DataError(f"{record.place}: column {column!r} is empty; expected a text: fill or remove the row")
    if not isinstance(value, str):
        raise DataError(f"{record.place}: column {column!r} is {value!r}; expected a text")
    return value


def _label(record: Record, fields: _Fields, names: tuple[str, ...] | None) -> tuple[str | None, bool]:
    """The label of a record, and whether the record stays."""
    if fields.label is None:
        return None, True
    if fields.rule is not None:
        score = _number(record, fields.rule.column)
        return fields.rule.names[score > fields.rule.above], score not in fields.rule.drop
    column = str(fields.label)
    value = _value(record, column)
    place = f"{record.place}: column {column!r}"
    if names is not None:
        if not isinstance(value, int) or not 0 <= value < len(names):
            raise DataError(f"{place} is {value!r}; expected the number of a class, 0 to {len(names) - 1}")
        return names[value], True
    return _label_text(place, value), True


def _label_text(place: str, value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # a column of whole numbers with a gap reaches Parquet as float
    if value is None or (isinstance(value, float) and math.isnan(value)) or not str(value).strip():
        raise DataError(f"{place} is empty; expected a label: fill or remove the row")
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, str | int):
        raise DataError(
            f"{place} is {value!r}; expected a text or a whole number (a score needs label: {{column: …, above: …}})"
        )
    return str(value).strip()


def _number(record: Record, column: str) -> float:
    value = _value(record, column)
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"{record.place}: column {column!r} is {value!r}; expected a finite number")
    return number


def _sorted_labels(labels: set[str]) -> tuple[str, ...]:
    """Numerically where all are whole numbers ('2' before '10'), else by their characters."""
    try:
        return tuple(sorted(labels, key=lambda label: (int(label), label)))
    except ValueError:
        return tuple(sorted(labels))


def _check_parts(source: str, fields: _Fields, parts: Mapping[Part, Sequence[Row]]) -> None:
    sizes = ", ".join(f"{part} {len(parts[part])}" for part in PARTS)
    for part in PARTS:
        if not parts[part]:
            raise DataError(f"{source}: no row falls into {part} ({sizes}); give more rows, or other shares")
    counts = Counter(row.label for row in parts["train"])
    where = f"{source}: column {fields.label_column!r}"
    if len(counts) < 2:
        raise DataError(
            f"{where}: all {len(parts['train'])} rows of train have label {next(iter(counts))!r}; expected two or more"
        )
    for part in PARTS[1:]:
        missing = Counter(row.label for row in parts[part] if row.label not in counts)
        if missing:
            label, times = missing.most_common(1)[0]
            raise DataError(
                f"{where}: label {label!r} stands {times} times in {part} and never in train; "
                f"remove these rows, or give more of them"
            )
