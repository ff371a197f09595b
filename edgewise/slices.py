"""Slices of a set of rows: by a column, by the length of the text, by class. Standard library only."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from edgewise.columns import BUILT_IN_SLICES
from edgewise.data import Row
from edgewise.errors import DataError, nearest

LENGTH_EDGES = (50, 100, 200, 400)
"""Characters: fixed, so that the slices of two sets of rows are the same."""


@dataclass(frozen=True)
class Slice:
    """Rows that have something in common."""

    by: str
    """The column, 'length' or 'class'."""
    value: str
    rows: tuple[int, ...]
    """Positions, ascending. Slices by class overlap where a row has several labels."""

    @property
    def name(self) -> str:
        return f"{self.by} = {self.value}"


def make_slices(rows: Sequence[Row], by: Sequence[str]) -> tuple[Slice, ...]:
    """Slices of `rows`: by columns of the data that the plan names as slices, by 'length', by 'class'.

    A column named 'length' or 'class' goes before the built-in slice of that name.
    Raises DataError for a column that the rows do not carry.
    """
    columns = tuple(dict.fromkeys(column for row in rows for column, _ in row.slices))
    found: list[Slice] = []
    for name in by:
        if name in columns:
            found += by_column(rows, name)
        elif name == "length":
            found += by_length([row.text for row in rows])
        elif name == "class":
            found += by_class(rows)
        else:
            raise DataError(
                f"no slice {name!r}: {nearest(name, (*columns, *BUILT_IN_SLICES))}; columns need data: slices"
            )
    return tuple(found)


def by_column(rows: Sequence[Row], column: str) -> tuple[Slice, ...]:
    """One slice a value of a column, sorted by value; rows without the column are in none."""
    return _grouped(column, ((i, v) for i, row in enumerate(rows) for c, v in row.slices if c == column))


def by_length(texts: Sequence[str], edges: Sequence[int] = LENGTH_EDGES) -> tuple[Slice, ...]:
    """Buckets by the number of characters (so that Chinese needs no other rule); empty buckets are left out."""
    names = [f"up to {edges[0]} characters"]
    names += [f"{low + 1} to {high} characters" for low, high in pairwise(edges)]
    names += [f"over {edges[-1]} characters"]
    buckets: dict[int, list[int]] = defaultdict(list)
    for i, text in enumerate(texts):
        buckets[sum(len(text) > edge for edge in edges)].append(i)
    return tuple(Slice("length", names[b], tuple(buckets[b])) for b in sorted(buckets))


def by_class(rows: Sequence[Row]) -> tuple[Slice, ...]:
    """Rows of each class by their own label; of several labels or tags, a row stands in the slice of each."""
    return _grouped("class", ((i, label) for i, row in enumerate(rows) for label in _classes(row)))


def _classes(row: Row) -> set[str]:
    if row.tags is not None:
        return {tag[2:] if tag[1:2] == "-" else tag for tag in row.tags if tag != "O"}
    if row.labels is not None:
        return set(row.labels)
    return set() if row.label is None else {row.label}


def _grouped(by: str, pairs: Iterable[tuple[int, str]]) -> tuple[Slice, ...]:
    groups: dict[str, list[int]] = defaultdict(list)
    for i, value in pairs:
        groups[value].append(i)
    return tuple(Slice(by, value, tuple(sorted(groups[value]))) for value in sorted(groups))
