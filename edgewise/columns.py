"""Which columns a task needs, by the keys of a plan's `data`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from edgewise.errors import DataError
from edgewise.types import TRAINED_TASKS, ProblemType, Task

if TYPE_CHECKING:
    from edgewise.data_spec import DataSpec, LabelRule

BUILT_IN_SLICES = ("length", "class")
"""Slices that need no column; a column of that name goes before them."""


@dataclass(frozen=True)
class Columns:
    """Which columns hold what, for one task. None: the rows carry none of it."""

    task: Task = "text-classification"
    problem_type: ProblemType = "single_label_classification"
    text: str = "text"
    text_pair: str | None = None
    label: str | LabelRule | tuple[str, ...] | None = None
    tokens: str = "tokens"
    tags: str | None = None
    target: str | None = None
    image: str = "image"
    slices: tuple[str, ...] = ()

    @staticmethod
    def of(spec: DataSpec, task: Task) -> Columns:
        """The columns of a plan. Raises DataError for a task whose rows cannot be read."""
        if task not in TRAINED_TASKS:
            raise DataError(f"task {task!r}: rows can be read for {', '.join(TRAINED_TASKS)}")
        return Columns(
            task,
            spec.problem_type,
            spec.text,
            spec.text_pair,
            spec.label,
            spec.tokens,
            spec.tags,
            spec.target,
            spec.image,
            spec.slices,
        )

    @property
    def rule(self) -> LabelRule | None:
        return None if self.label is None or isinstance(self.label, str | tuple) else self.label

    @property
    def answer(self) -> str | None:
        """The column of the labels or tags that the model is to give, where it is one."""
        if self.task == "token-classification":
            return self.tags
        if self.task not in ("text-classification", "image-classification") or isinstance(self.label, tuple):
            return None
        return self.rule.column if self.rule else self.label if isinstance(self.label, str) else None

    def named(self) -> dict[tuple[str | int, ...], str]:
        """The columns that are needed, by the keys of a plan's `data` that name them."""
        found: dict[tuple[str | int, ...], str | None] = {}
        if self.task == "image-classification":
            found["image",] = self.image
        elif self.task == "token-classification":
            found["tokens",], found["tags",] = self.tokens, self.tags
        else:
            found["text",] = self.text
        if self.task == "text-classification":
            found["text_pair",] = self.text_pair
        if self.task == "text2text-generation":
            found["target",] = self.target
        if self.task in ("text-classification", "image-classification"):
            found[("label", "column") if self.rule else ("label",)] = self.answer
            if isinstance(self.label, tuple):
                found |= {("label", i): column for i, column in enumerate(self.label)}
        found |= {("slices", i): column for i, column in enumerate(self.slices) if column not in BUILT_IN_SLICES}
        return {keys: column for keys, column in found.items() if column is not None}

    @cached_property
    def needed(self) -> tuple[str, ...]:
        """The columns that every record must have."""
        return tuple(self.named().values())
