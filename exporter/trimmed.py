"""A checkpoint whose vocabulary is cut to what the rows need, and the proof that its answers stayed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgewise.data import Row
from edgewise.errors import ParityError
from edgewise.exporter.checkpoint import Checkpoint, read_checkpoint
from edgewise.exporter.lean_trace import free_memory
from edgewise.exporter.originals import load_original, read_tokenizer
from edgewise.exporter.sessions import output_name
from edgewise.exporter.tolerance import decision_of
from edgewise.exporter.vocabulary import trim_checkpoint
from edgewise.types import Task

_ROWS = 32
_CUT = 128
_EXACT = 1e-4
"""Largest difference of a number between the two: the same sums over the same weights."""


def trim(source: Checkpoint, task: Task, rows: Sequence[Row], out: Path) -> tuple[Checkpoint, dict[str, Any]]:
    """Write the smaller checkpoint into `out`; returns it and what the manifest tells of it.

    The vocabulary keeps what the texts (and targets, and second texts) of `rows` need, and what any other text can be
    spelled with. Raises DataError without rows, CheckpointError for a tokenizer that is not known, ParityError where an
    answer moved.
    """
    trimmed = trim_checkpoint(source.path, texts_of(rows), out, task=task)
    found = read_checkpoint(out)
    worst = _largest_difference(source, found, task, rows, np.asarray(trimmed.old_ids))
    if worst > _EXACT:
        raise ParityError(f"with a smaller vocabulary an answer moved by {worst:.2g}: it is not written")
    return found, {
        "tokens": trimmed.kept,
        "tokens_before": trimmed.of,
        "embedding_bytes": trimmed.embedding_bytes,
        "bytes_saved": trimmed.bytes_saved,
        "texts_checked": trimmed.texts,
        "largest_difference": worst,
        **({"note": trimmed.note} if trimmed.note else {}),
    }


def texts_of(rows: Sequence[Row]) -> list[str]:
    """Every text that a row holds, and for word lists each word as it is tokenized alone, at a start and within."""
    whole = [text for r in rows for text in (r.text, r.text_pair, r.target) if text]
    words = {word for r in rows for word in r.tokens or ()}
    return [*whole, *sorted(words), *sorted(f" {word}" for word in words)]


def _largest_difference(
    before: Checkpoint, after: Checkpoint, task: Task, rows: Sequence[Row], old_ids: np.ndarray
) -> float:
    """Between PyTorch's answers of the two to the same texts, over the tokens that both know."""
    texts = [r.text for r in rows[:_ROWS]]
    theirs, ours = (_answers(c, task, texts) for c in (before, after))
    worst = 0.0
    for a, b in zip(theirs, ours, strict=True):
        wanted = a[..., old_ids] if b.shape[-1] == len(old_ids) != a.shape[-1] else a
        worst = max(worst, float(np.abs(wanted - b).max()))
    return worst


def _answers(source: Checkpoint, task: Task, texts: Sequence[str]) -> list[np.ndarray]:
    import torch

    model, tokenizer = load_original(source, task), read_tokenizer(source.path)
    start = model.config.decoder_start_token_id if task == "text2text-generation" else None
    found = []
    with torch.inference_mode():
        for text in texts:
            given = dict(tokenizer(text, truncation=True, max_length=_CUT, return_tensors="pt"))
            if task in ("text-generation", "text2text-generation"):
                given.pop("token_type_ids", None)
            if start is not None:
                given["decoder_input_ids"] = torch.tensor([[start]])
            if given["input_ids"].numel():
                answer = getattr(model(**given), output_name(task)).float().numpy()
                # Of a whole vocabulary the last word's, which has read all others: logits of every word are large.
                found.append(answer[:, -1:].copy() if decision_of(task) == "word" else answer)
    del model
    free_memory()  # or the next model would stand beside this one
    return found
