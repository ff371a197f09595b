"""Rows as what a model takes: token ids or pixels, with the numbers that the loss is computed from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from transformers import DataCollatorForSeq2Seq, DataCollatorForTokenClassification, DataCollatorWithPadding

from edgewise.data import Row
from edgewise.errors import DataError
from edgewise.trainer.models import Goal

IGNORED = -100
"""The label that the loss of transformers leaves out."""

_CACHED_PIXELS = 64_000_000
"""Numbers (fp32) of processed images that are kept in memory; more are processed again at each use."""


class Encoded(torch.utils.data.Dataset):
    """Items in order, made once (texts) or at each use (large image sets)."""

    def __init__(self, items: Sequence[Any], make: Callable[[Any], dict[str, Any]] | None = None) -> None:
        self.items, self.make = items, make

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> dict[str, Any]:
        item = self.items[i]
        return self.make(item) if self.make else item


def encode(rows: Sequence[Row], goal: Goal, processor: Any, max_length: int) -> Encoded:
    """The rows as a torch dataset: lists of token ids (int) or pixel_values float32 [3, height, width], and labels.

    labels: int (one label), float [labels] (multi-label), float (regression), a list of int with -100 where no word
    starts (tags), or a list of token ids (language models). Rows of a language model are joined, with the end of text
    between them, and cut into blocks of max_length.
    """
    if goal.task == "image-classification":
        return _images(rows, goal, processor)
    if goal.task == "token-classification":
        return Encoded(_tagged(rows, goal, processor, max_length))
    if goal.task == "text-generation":
        return Encoded(_blocks([r.text for r in rows], processor, max_length))
    if goal.task == "text2text-generation":
        return Encoded(_pairs(rows, processor, max_length))
    return Encoded(_classified(rows, goal, processor, max_length))


def collator(goal: Goal, processor: Any) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
    """Pads a list of items into one batch of tensors."""
    if goal.task == "image-classification":
        return _stack_images
    if goal.task == "token-classification":
        found: Any = DataCollatorForTokenClassification(processor)
    elif goal.outputs is None:
        found = DataCollatorForSeq2Seq(processor)  # pads `labels` with -100, for language models of both kinds
    else:
        found = DataCollatorWithPadding(processor)
    return found  # type: ignore[no-any-return]  # untyped library


def _classified(rows: Sequence[Row], goal: Goal, tokenizer: Any, max_length: int) -> list[dict[str, Any]]:
    encoded = tokenizer(*text_columns(rows), truncation=True, max_length=max_length)
    return [{**{k: encoded[k][i] for k in encoded}, "labels": target(row, goal)} for i, row in enumerate(rows)]


def target(row: Row, goal: Goal) -> Any:
    """The number, or numbers, that classification and regression learn for one row."""
    if goal.regression:
        if row.number is None:
            raise DataError(f"{row.text[:60]!r} has no number: regression needs one a row")
        return float(row.number)
    if goal.multi_label:
        return [float(label in (row.labels or ())) for label in goal.labels]
    return goal.labels.index(str(row.label))


def _tagged(rows: Sequence[Row], goal: Goal, tokenizer: Any, max_length: int) -> list[dict[str, Any]]:
    words = [list(row.tokens or ()) for row in rows]
    encoded = tokenizer(words, is_split_into_words=True, truncation=True, max_length=max_length)
    index = {tag: i for i, tag in enumerate(goal.labels)}
    items = []
    for i, row in enumerate(rows):
        labels, last = [], None
        for word in encoded.word_ids(i):
            # The first piece of a word carries its tag; the others are not asked.
            labels.append(index[(row.tags or ())[word]] if word is not None and word != last else IGNORED)
            last = word
        items.append({**{k: encoded[k][i] for k in encoded}, "labels": labels})
    return items


def _blocks(texts: Sequence[str], tokenizer: Any, max_length: int) -> list[dict[str, Any]]:
    """All texts as one stream of tokens, the end of text after each, cut into blocks; the short last one is dropped."""
    stream = token_stream(texts, tokenizer)
    count = len(stream) // max_length
    if count == 0:
        raise DataError(
            f"{len(texts)} texts make {len(stream)} tokens, less than one block of max_length {max_length}: "
            "give more text, or a smaller max_length"
        )
    blocks = [stream[i * max_length : (i + 1) * max_length] for i in range(count)]
    return [{"input_ids": block, "attention_mask": [1] * max_length, "labels": list(block)} for block in blocks]


def token_stream(texts: Sequence[str], tokenizer: Any) -> list[int]:
    """Token ids of texts, one after the other, without special tokens but the end of text after each."""
    end = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    ids = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    return list(chain.from_iterable([*text, *end] for text in ids))


def _pairs(rows: Sequence[Row], tokenizer: Any, max_length: int) -> list[dict[str, Any]]:
    encoded = tokenizer(
        [r.text for r in rows],
        text_target=[str(r.target) for r in rows],
        truncation=True,
        max_length=max_length,
    )
    return [{k: encoded[k][i] for k in ("input_ids", "attention_mask", "labels")} for i in range(len(rows))]


def _images(rows: Sequence[Row], goal: Goal, processor: Any) -> Encoded:
    def make(row: Row) -> dict[str, Any]:
        return {"pixel_values": pixels(row, processor), "labels": goal.labels.index(str(row.label))}

    if not rows or len(rows) * make(rows[0])["pixel_values"].size > _CACHED_PIXELS:
        return Encoded(rows, make)
    return Encoded([make(row) for row in rows])


def pixels(row: Row, processor: Any) -> np.ndarray:
    """One image as the processor gives it: float32 [3, height, width]."""
    from edgewise.images import open_rgb

    if row.image is None:
        raise DataError(f"a row of label {row.label!r} has no image")
    image = open_rgb(row.image)
    values: np.ndarray = processor(image, input_data_format="channels_last", return_tensors="np")["pixel_values"][0]
    return values


def pixel_batch(rows: Sequence[Row], processor: Any) -> torch.Tensor:
    """Images of rows: float32 [rows, 3, height, width]."""
    return torch.from_numpy(np.stack([pixels(row, processor) for row in rows]))


def text_columns(rows: Sequence[Row]) -> tuple[list[str], list[str] | None]:
    """Texts and second texts as a tokenizer takes them; None where no row is a pair."""
    paired = any(r.text_pair is not None for r in rows)
    return [r.text for r in rows], [r.text_pair or "" for r in rows] if paired else None


def _stack_images(items: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "pixel_values": torch.from_numpy(np.stack([i["pixel_values"] for i in items])),
        "labels": torch.tensor([i["labels"] for i in items]),
    }


def unknown_share(rows: Sequence[Row], tokenizer: Any, sample: int = 500) -> float:
    """Share of the tokens of the first rows that the tokenizer does not know; 0 where it has no unknown token."""
    unknown = getattr(tokenizer, "unk_token_id", None)
    if unknown is None or unknown == tokenizer.eos_token_id:
        return 0.0  # byte-level tokenizers name one, and never use it
    texts = [text for r in rows[:sample] for text in (r.text, r.text_pair, r.target) if text]
    ids = [
        i for found in tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] for i in found
    ] if texts else []  # fmt: skip
    return ids.count(unknown) / max(1, len(ids))
