"""Sliding windows over a text that is longer than a model's context. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass

from edgewise.errors import InputError


@dataclass(frozen=True)
class Window:
    """Tokens [start, end) go through the model together; those from `first` on are scored."""

    start: int
    end: int
    first: int
    """The first scored position; those before it are context, scored by an earlier window."""


def plan_windows(length: int, size: int, stride: int) -> tuple[Window, ...]:
    """Windows that score each token of a text but the first exactly once, each with as much context as fits.

    As in 'Perplexity of fixed-length models' of the documentation of transformers. length: tokens of the text;
    size: tokens of the model's context; stride: how far the window moves, less than `size`, so that every scored
    token has one before it in its window. A smaller stride gives more context, at the price of more windows.
    A text of fewer than two tokens has no window.

    Raises InputError for a size or stride that cannot be.
    """
    if size < 2:
        raise InputError(f"size is {size}; expected at least 2 tokens, as the first one is context alone")
    if not 1 <= stride < size:
        raise InputError(f"stride is {stride}; expected 1 to {size - 1}, less than the window of {size} tokens")
    windows: list[Window] = []
    start, scored = 0, 1
    while scored < length:
        end = min(start + size, length)
        windows.append(Window(start, end, scored))
        start, scored = start + stride, end
    return tuple(windows)
