"""Golden answers: a few inputs with what the finished bundle answers through the runtime, kept in its manifest."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgewise.bundle import Golden
from edgewise.data import Row
from edgewise.exporter.parity import FALLBACK_TEXTS, GOLDEN_ROWS
from edgewise.types import IMAGE_TASKS, Task

_PROMPT_WORDS = 12
"""Words that a prompt of a golden answer has: what is written behind it is what counts."""
_BLOCKS = (4, 16)
"""Pixels of a block of colour, and of the side, in images of our own, where there are no rows."""


def golden_inputs(task: Task, rows: Sequence[Row], mask_token: str | None = None) -> tuple[Any, ...]:
    """Inputs for the golden answers, from rows, or of our own where there are none.

    Texts or pairs; for fill-mask with a word replaced by `mask_token`; for images their files or bytes.
    """
    if task in IMAGE_TASKS:
        images = [row.image for row in rows if row.image is not None][:GOLDEN_ROWS]
        return tuple(images) or tuple(_drawn(seed) for seed in range(GOLDEN_ROWS // 2))
    if task == "text-classification":
        paired = bool(rows) and rows[0].text_pair is not None
        found = [(r.text, r.text_pair) if paired else r.text for r in rows if (r.text_pair is not None) == paired]
        return tuple(found[:GOLDEN_ROWS]) or FALLBACK_TEXTS
    texts = [row.text for row in rows if row.text.strip()][:GOLDEN_ROWS] or list(FALLBACK_TEXTS)
    if task == "fill-mask":
        return tuple(_masked(text, mask_token or "[MASK]") for text in texts)
    if task == "text-generation":
        return tuple(" ".join(text.split()[:_PROMPT_WORDS]) for text in texts)
    return tuple(texts)


def golden_answers(folder: Path, inputs: Sequence[Any]) -> tuple[Golden, ...]:
    """What the bundle in `folder`, whose manifest is a draft, answers to each input alone.

    A graph that does not load, or does not run in the runtime, shows here, before anything is written.
    """
    from edgewise.runtime import load

    with load(folder, verify="none", parallel=1) as model:
        return tuple(model.golden(item) for item in inputs)


def mask_token(tokenizer: Any) -> str | None:
    """Of a tokenizer of transformers."""
    found: str | None = getattr(tokenizer, "mask_token", None)
    return found


def _masked(text: str, mask: str) -> str:
    """The text with the word in its middle replaced."""
    words = text.split()[:40] or [mask]
    words[len(words) // 2] = mask
    return " ".join(words)


def _drawn(seed: int) -> bytes:
    """A PNG of coloured blocks, the same for the same seed."""
    import numpy as np
    from PIL import Image

    block, side = _BLOCKS
    colours = np.random.default_rng(seed).integers(0, 256, (side // block, side // block, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(colours.repeat(block, 0).repeat(block, 1)).save(file, "PNG")
    return file.getvalue()
