"""Rows for every step: read from a file or a dataset id, checked against the task, split once and for all.

The split is by a hash of the text, so that it is the same on every machine, in every order, and a text that stands
twice in the data never stands in two parts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from edgewise.files import digest_json

if TYPE_CHECKING:
    pass

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
    """Rows left out by the plan's rule."""

    def part(self, name: Part) -> tuple[Row, ...]:
        rows: tuple[Row, ...] = getattr(self, name)
        return rows


def digest_rows(rows: Iterable[Row]) -> str:
    """'sha256:...' of rows in their order, labels included."""
    return digest_json([[r.text, r.text_pair, r.label] for r in rows])


def hash_share(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int(hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:13], 16) / 16**13
