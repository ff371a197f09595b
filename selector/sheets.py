"""Tables of the report in words: the page and its Markdown print the same ones. Standard library only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgewise.selector.report_data import ReportData
from edgewise.selector.several import Joint, Place
from edgewise.selector.views import Cell
from edgewise.types import Entry

SHEET_LIMIT = 120
"""Rows of a table that only spells out a plot; the table of all measurements holds the rest."""


@dataclass(frozen=True)
class Column:
    """A heading."""

    title: str
    numeric: bool = False
    about: str = ""
    """One sentence, for those who do not know the number."""


@dataclass(frozen=True)
class Sheet:
    """A table whose cells are in words already; the first cell of a row is its heading."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    left: int = 0
    """Rows that did not fit."""

    def __bool__(self) -> bool:
        return bool(self.rows)


def sheet(columns: Sequence[Column], rows: Sequence[Sequence[Cell]], limit: int = SHEET_LIMIT) -> Sheet:
    """The first `limit` rows under their headings."""
    return Sheet(tuple(columns), tuple(tuple(row) for row in rows[:limit]), max(0, len(rows) - limit))


def text_cell(text: str) -> Cell:
    """A cell of words; a dash where there are none."""
    return Cell(text, text) if text else MISSING


def count_cell(count: int | None) -> Cell:
    """A whole number; a dash where it is not known."""
    return MISSING if count is None else Cell(f"{count:,}", str(count))


def joint_sheet(joint: Joint | None) -> Sheet:
    """Each bundle on each of several devices: what it has there, or why not; [] for one device."""
    if joint is None:
        return Sheet((), ())
    devices = [p.device for p in joint.bundles[0].places] if joint.bundles else []
    rows = [[text_cell(b.name), *[_place_cell(p) for p in b.places]] for b in joint.bundles]
    return sheet([Column("Bundle"), *[Column(d) for d in devices]], rows)


def _place_cell(place: Place) -> Cell:
    if place.entry is None or place.entry.target is None:
        return text_cell(f"✕ {place.words}")
    return text_cell(f"✓ {place.entry.target.run.text()}: {place.words}")


MISSING = Cell("not measured", kind="missing")


def where(entry: Entry, data: ReportData) -> str:
    """The run settings, with the device before them where the report has several."""
    if entry.target is None:
        return ""
    return entry.target.text() if len(data.selections) > 1 else entry.target.run.text()
