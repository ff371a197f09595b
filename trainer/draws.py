"""Examples of a pretraining run: drawn, put into batches, and their loss on what is held out.

An example's noise is drawn from the seed and the example's number in the whole run alone. So every epoch hides
something else (as RoBERTa's dynamic masking does), and a run that was killed goes on as if it had not been.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from edgewise.trainer.noise import IGNORED

Inputs = dict[str, np.ndarray]
"""What the model takes for one example: arrays without the batch axis."""
Parts = dict[str, tuple[float, int]]
"""A part of the loss -> (its sum, over how many tokens, pairs or pixels)."""


@dataclass(frozen=True)
class Prepared:
    """Examples of one objective, ready to be drawn."""

    train: Sequence[Any] | np.ndarray
    val: Sequence[Any] | np.ndarray
    draw: Callable[[Any, np.random.Generator], Inputs]
    """The model's inputs of an example, with noise from the generator."""
    pads: Mapping[str, int]
    """What fills up an input of the model in a batch."""
    parts: Callable[[Any, Mapping[str, torch.Tensor]], Parts]
    """The parts of the loss, from the model's outputs and its inputs; their means add up to the loss."""
    loss: Callable[[Any, Mapping[str, torch.Tensor]], torch.Tensor] | None = None
    """The training loss of (model, batch), where it can be had for less than by the model's own forward."""
    tokens: int = 0
    """Of the train part."""
    unknown: int = 0
    """Of these, tokens that the tokenizer does not know."""


def token_loss(logits: torch.Tensor, labels: torch.Tensor) -> tuple[float, int]:
    """(sum of minus the log-probability of each label, number of labels); logits [batch, tokens, vocabulary]."""
    flat = labels.reshape(-1)
    total = cross_entropy(logits.reshape(len(flat), -1).float(), flat, ignore_index=IGNORED, reduction="sum")
    return float(total), int((flat != IGNORED).sum())


def collate(items: Sequence[Inputs], pads: Mapping[str, int]) -> dict[str, torch.Tensor]:
    """One batch of examples, filled up to the longest of each input: int64, bool or float32, batch axis first."""
    batch = {}
    for name in items[0]:
        rows = [item[name] for item in items]
        if name in pads:
            width = max(len(row) for row in rows)
            rows = [np.pad(row, (0, width - len(row)), constant_values=pads[name]) for row in rows]
        batch[name] = torch.from_numpy(np.stack(rows))
    return batch


class Drawn(torch.utils.data.Dataset):
    """`count` examples of a whole run, one epoch after the other, each epoch in an order of its own."""

    def __init__(self, prepared: Prepared, count: int, seed: int) -> None:
        self.prepared, self.count, self.seed = prepared, count, seed
        epochs = math.ceil(count / len(prepared.train))
        orders = [np.random.default_rng([seed, 0, e]).permutation(len(prepared.train)) for e in range(epochs)]
        self.order = np.concatenate(orders)[:count]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> Inputs:
        rng = np.random.default_rng([self.seed, 1, i])
        return self.prepared.draw(self.prepared.train[int(self.order[i])], rng)


def val_parts(model: Any, prepared: Prepared, batch_size: int, seed: int) -> dict[str, float]:
    """Mean of each part of the loss over what is held out; its noise is the same at every call."""
    sums: dict[str, list[float]] = {}
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    with torch.inference_mode():
        for start in range(0, len(prepared.val), batch_size):
            stop = min(start + batch_size, len(prepared.val))
            items = [prepared.draw(prepared.val[i], np.random.default_rng([seed, 2, i])) for i in range(start, stop)]
            batch = {k: v.to(device) for k, v in collate(items, prepared.pads).items()}
            for name, (total, count) in prepared.parts(model(**batch), batch).items():
                kept = sums.setdefault(name, [0.0, 0])
                kept[0] += total
                kept[1] += count
    model.train(training)
    return {name: total / count for name, (total, count) in sums.items() if count}
