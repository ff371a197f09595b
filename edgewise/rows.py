"""What a row is, what it is known by, and which part it falls into."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

from edgewise.files import digest_json, sha256_file

Item = TypeVar("Item")
Part = Literal["train", "val", "confirm"]
PARTS: tuple[Part, ...] = ("train", "val", "confirm")


@dataclass(frozen=True)
class Row:
    """One example. Which fields are filled depends on the task; the others keep their defaults."""

    text: str = ""
    """The text to read; for token classification its words, joined by single spaces; empty for an image."""
    text_pair: str | None = None
    label: str | None = None
    """Of text classification with one label a text, and of image classification."""
    labels: tuple[str, ...] | None = None
    """Of multi-label classification, in the order of `Splits.labels`; () where none holds."""
    number: float | None = None
    """Of regression."""
    tokens: tuple[str, ...] | None = None
    """Words, for token classification; none holds a space, so that `text.split(' ')` gives them back."""
    tags: tuple[str, ...] | None = None
    """One a word, for token classification."""
    target: str | None = None
    """The text to write, for text to text."""
    image: Path | bytes | None = None
    """An image file, or its bytes (encoded: PNG, JPEG, ...)."""
    slices: tuple[tuple[str, str], ...] = ()
    """(column, value) of the columns that the plan names as slices."""

    @property
    def id(self) -> str:
        """First 16 hex digits of the sha256 of what the model reads: its texts, or the bytes of its image."""
        if self.image is not None:
            return self.image_sha256[:16]
        return digest_json([self.text, self.text_pair]).removeprefix("sha256:")[:16]

    @cached_property
    def image_sha256(self) -> str:
        """Hex sha256 of the image's bytes, read once; '' for a row without an image."""
        if self.image is None:
            return ""
        return sha256_file(self.image) if isinstance(self.image, Path) else hashlib.sha256(self.image).hexdigest()

    @property
    def key(self) -> str:
        """What two rows share that must stand in one part: the first text but for case and spacing, or the image."""
        return self.image_sha256 or split_key(self.text)


@dataclass(frozen=True)
class Splits:
    """The rows of each part, and the labels in the order of the model's outputs."""

    train: tuple[Row, ...]
    val: tuple[Row, ...]
    confirm: tuple[Row, ...]
    labels: tuple[str, ...]
    """Classes, or tags with 'O' first; () for regression (the model has one output) and where text is written."""
    dropped: int = 0
    """Rows left out: by the plan's rule, because a later part of a dataset id holds the same text, or for a label that
    train never shows."""

    def part(self, name: Part) -> tuple[Row, ...]:
        rows: tuple[Row, ...] = getattr(self, name)
        return rows


def digest_rows(rows: Iterable[Row]) -> str:
    """'sha256:...' of rows in their order, with all that they carry; an image by its bytes, not by its path."""
    return digest_json([[row.text, row.text_pair, row.label, *_rest(row)] for row in rows])


def _rest(row: Row) -> list[dict[str, Any]]:
    """The fields beyond text, pair and label, where there are any: digests of plain rows stay what they were."""
    fields = {
        "labels": row.labels,
        "number": row.number,
        "tokens": row.tokens,
        "tags": row.tags,
        "target": row.target,
        "image": row.image_sha256 or None,
        "slices": row.slices or None,
    }
    filled = {name: value for name, value in fields.items() if value is not None}
    return [filled] if filled else []


def in_order(rows: Iterable[Row]) -> tuple[Row, ...]:
    """By hash: whatever the order of the file, and mixed even where the file is sorted by class."""
    return tuple(sorted(rows, key=_place_in_order))


def _place_in_order(row: Row) -> tuple[str, ...]:
    rest = (row.labels, row.number, row.tags, row.target, row.slices)
    return row.id, row.label or "", repr(rest), str(row.image) if isinstance(row.image, Path) else ""


def hash_share(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int(hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:13], 16) / 16**13


def hold_out(
    items: Iterable[Item], share: float, salt: str, key: Callable[[Item], str]
) -> tuple[list[Item], list[Item]]:
    """(kept, held out) by a hash of each item's key: the same on every machine and in every order.

    salt: names what the split is for, so that it is independent of the other splits of the same items; those of a plan
    hash the bare key.
    """
    kept: list[Item] = []
    held: list[Item] = []
    for item in items:
        (held if hash_share(f"{salt} {key(item)}") < share else kept).append(item)
    return kept, held


def split_key(text: str) -> str:
    """What two texts share that must stand in one part: case and spacing apart, they are the same to most models."""
    return " ".join(text.split()).casefold()


def part_of(text: str, shares: Mapping[str, float]) -> Part:
    """The part that a text belongs to, for shares of train, val and confirm that add up to 1.

    It depends on the text alone (not on case, spacing, the second text of a pair, or the label), so no text of one
    part ever stands in another. For an image the text is `Row.key`, the sha256 of its bytes.
    """
    share = hash_share(split_key(text))
    if share < shares["train"]:
        return "train"
    return "val" if share < shares["train"] + shares["val"] else "confirm"
