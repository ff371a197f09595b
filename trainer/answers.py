"""What a PyTorch model answers on rows, in the words of the task, one batch after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch

from edgewise.data import Row
from edgewise.trainer.encode import pixel_batch, text_columns, token_stream
from edgewise.trainer.models import Goal
from edgewise.windows import Window, plan_windows


@dataclass(frozen=True)
class Answers:
    """Predictions beside what was right, ready for the metrics."""

    predictions: tuple[Any, ...]
    """One a row: a label, a tuple of labels, a number, a tuple of tags, or a text. Of a language model one a window:
    (sum of the natural log-probabilities of its scored tokens, how many)."""
    references: tuple[Any, ...] | None = None
    """None for a language model, whose text is its own reference."""


def answer(
    model: Any, processor: Any, rows: Sequence[Row], goal: Goal, *, max_length: int, batch_size: int = 32
) -> Answers:
    """Run the model over rows, without gradients, in evaluation mode; its mode is put back afterwards."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            if goal.task == "text-generation":
                return _language(model, processor, rows, max_length, batch_size)
            told: list[Any] = []
            for start in range(0, len(rows), batch_size):
                batch = rows[start : start + batch_size]
                told += _TASKS[goal.task](model, processor, batch, goal, max_length)
            return Answers(tuple(told), tuple(reference(row, goal) for row in rows))
    finally:
        model.train(was_training)


def reference(row: Row, goal: Goal) -> Any:
    """What is right for a row, in the form of the predictions."""
    if goal.task == "token-classification":
        return tuple(row.tags or ())
    if goal.task == "text2text-generation":
        return " ".join(str(row.target).split())
    if goal.regression:
        return row.number
    return tuple(row.labels or ()) if goal.multi_label else str(row.label)


def _logits(model: Any, **inputs: Any) -> torch.Tensor:
    found: torch.Tensor = model(**{k: v.to(model.device) for k, v in inputs.items()}).logits
    return found.float().cpu()


def _classify(model: Any, tokenizer: Any, rows: Sequence[Row], goal: Goal, max_length: int) -> list[Any]:
    encoded = tokenizer(*text_columns(rows), truncation=True, max_length=max_length, padding=True, return_tensors="pt")
    logits = _logits(model, **encoded)
    if goal.regression:
        return [float(x) for x in logits[:, 0]]
    if goal.multi_label:
        return [tuple(label for label, x in zip(goal.labels, row, strict=True) if x > 0) for row in logits]
    return [goal.labels[int(i)] for i in logits.argmax(-1)]


def _tag(model: Any, tokenizer: Any, rows: Sequence[Row], goal: Goal, max_length: int) -> list[Any]:
    words = [list(r.tokens or ()) for r in rows]
    encoded = tokenizer(
        words, is_split_into_words=True, truncation=True, max_length=max_length, padding=True, return_tensors="pt"
    )
    best = _logits(model, **encoded).argmax(-1)
    outside = "O" if "O" in goal.labels else goal.labels[0]
    told = []
    for i, row in enumerate(rows):
        tags = [outside] * len(row.tokens or ())  # words beyond the length were not read
        for position, word in reversed(list(enumerate(encoded.word_ids(i)))):
            if word is not None:
                tags[word] = goal.labels[int(best[i, position])]  # the first piece of a word has the last say
        told.append(tuple(tags))
    return told


def _write(model: Any, tokenizer: Any, rows: Sequence[Row], goal: Goal, max_length: int) -> list[Any]:
    encoded = tokenizer(
        [r.text for r in rows], truncation=True, max_length=max_length, padding=True, return_tensors="pt"
    ).to(model.device)
    made = model.generate(
        input_ids=encoded["input_ids"],
        attention_mask=encoded["attention_mask"],
        max_new_tokens=max_length,
        do_sample=False,
        num_beams=1,
    )
    return [" ".join(text.split()) for text in tokenizer.batch_decode(made, skip_special_tokens=True)]


def _see(model: Any, processor: Any, rows: Sequence[Row], goal: Goal, max_length: int) -> list[Any]:
    return [goal.labels[int(i)] for i in _logits(model, pixel_values=pixel_batch(rows, processor)).argmax(-1)]


_TASKS = {
    "text-classification": _classify,
    "token-classification": _tag,
    "text2text-generation": _write,
    "image-classification": _see,
}


def _language(model: Any, tokenizer: Any, rows: Sequence[Row], size: int, batch_size: int) -> Answers:
    """(sum of natural log-probabilities, tokens) of each window over the joined texts."""
    stream = torch.tensor(token_stream([r.text for r in rows], tokenizer))
    found: list[tuple[float, int]] = []
    for batch in _batches(plan_windows(len(stream), size, max(1, size // 2)), batch_size):
        ids = torch.stack([stream[w.start : w.end] for w in batch])
        scores = torch.log_softmax(_logits(model, input_ids=ids, attention_mask=torch.ones_like(ids)), -1)
        each = scores[:, :-1].gather(-1, ids[:, 1:, None])[..., 0].double()
        for row, window in zip(each, batch, strict=True):
            scored = row[window.first - window.start - 1 :]
            found.append((float(scored.sum()), len(scored)))
    return Answers(tuple(found))


def _batches(planned: Sequence[Window], batch_size: int) -> Iterator[list[Window]]:
    """Windows of one length together: only the last one is shorter."""
    for _, group in groupby(planned, lambda w: w.end - w.start):
        same = list(group)
        for start in range(0, len(same), batch_size):
            yield same[start : start + batch_size]
