"""Texts to time a fill-mask bundle with: it answers only where a mask stands, and real texts have none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeGuard

from edgewise.bundle import Bundle
from edgewise.data import Row
from edgewise.profiler.graphs import GraphFile
from edgewise.runtime.likelihood import hidden
from edgewise.runtime.special_tokens import read_special_tokens
from edgewise.runtime.text import TextEncoder
from edgewise.types import RunSettings

MASKED = "in each text without a mask one token is masked, the same one each time"


def needs_masks(bundle: Bundle | GraphFile) -> TypeGuard[Bundle]:
    """Whether the inputs of a bundle are texts with masks."""
    return not isinstance(bundle, GraphFile) and bundle.manifest.task == "fill-mask"


def with_masks(rows: Sequence[Row], bundle: Bundle, run: RunSettings) -> list[Row]:
    """Each text with a mask in the place of one token that is read at this length, drawn by a hash of the text; as it
    is where it has one. Raises BundleError for a broken tokenizer, InputError for a text that cannot be read."""
    encoder, mask = TextEncoder.read(bundle, run), read_special_tokens(bundle).mask or ""
    found = []
    for row in rows:
        (encoding,) = encoder.encode([row.text])
        places = [i for i, special in enumerate(encoding.special_tokens_mask) if not special]
        text = row.text
        if mask not in text and places:
            start, end = encoding.offsets[hidden(text, places)[0]]
            start += len(text[start:end]) - len(text[start:end].lstrip())  # a token may begin with the space before it
            text = f"{text[:start]}{mask}{text[end:]}"
        found.append(replace(row, text=text))
    return found
