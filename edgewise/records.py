"""What is read from a file or a dataset id, with the place that it stands at, so that an error can point there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Record:
    """One line of a file, or one row of a dataset."""

    place: str
    """'reviews.tsv:12', or 'dataset 'imdb' (train), row 12'; lines and rows count from 1."""
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """Where records come from; `records` is consumed once."""

    source: str
    columns: tuple[str, ...] | None
    """None where each record has keys of its own (JSON Lines)."""
    records: Iterator[Record]
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Names behind the numbers of a column, where the source knows them (a dataset's ClassLabel)."""
    base: Path | None = None
    """Folder that relative paths in the records start from; None where they are not relative to a file."""


def short(text: str) -> str:
    """A text as an error shows it."""
    return repr(text if len(text) <= 60 else text[:57] + "…")
