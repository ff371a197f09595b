"""A text that is longer than the model reads, in windows that overlap."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from tokenizers import Encoding

from edgewise.errors import InputError
from edgewise.runtime.text import TextEncoder

Windows = Literal["mean", "max"]
"""How the scores of windows become those of the text: their mean, or each label's largest."""

_REDUCE: Mapping[Windows, Callable[[tuple[float, ...]], float]] = {"mean": lambda x: sum(x) / len(x), "max": max}


def windows_of(encoder: TextEncoder, text: str, stride: int | None = None) -> list[Encoding]:
    """All of a text, in windows of the encoder's length, special tokens in each; one for a text that fits.

    stride: tokens that a window shares with the one before it; a quarter of the window unless given.

    Raises InputError for what is no text, or a stride that is not less than the window.
    """
    # The plain encoder first: most texts fit, and need no second tokenizer.
    (first,) = encoder.encode([text])
    shared = _check_stride(encoder, stride)
    if encoder.length is None or not first.overflowing:
        return [first]
    tokenizer = encoder.uncut
    whole = tokenizer.encode(text, add_special_tokens=False)
    whole.truncate(_room(encoder, encoder.length), stride=shared)
    whole = tokenizer.post_process(whole)
    return [whole, *whole.overflowing]


def check_windows(windows: object) -> Windows:
    """Raises InputError for a word that says no way to join windows."""
    if windows == "mean":
        return "mean"
    if windows == "max":
        return "max"
    raise InputError(f"windows is {windows!r}; expected 'mean' or 'max', or None to cut a long text")


def join(rows: Sequence[tuple[float, ...]], windows: Windows) -> tuple[float, ...]:
    """The numbers of all windows as those of the text, one by one."""
    reduce = _REDUCE[windows]
    return tuple(reduce(column) for column in zip(*rows, strict=True))


def _check_stride(encoder: TextEncoder, stride: int | None) -> int:
    if encoder.length is None:
        return 0
    room = _room(encoder, encoder.length)
    if stride is None:
        return room // 4
    if isinstance(stride, bool) or not isinstance(stride, int) or not 0 <= stride < room:
        raise InputError(f"stride is {stride!r}; expected 0 to {room - 1} tokens, less than the window's {room}")
    return stride


def _room(encoder: TextEncoder, length: int) -> int:
    """Tokens of a window without the special ones."""
    return max(1, length - int(encoder.tokenizer.num_special_tokens_to_add(False)))
