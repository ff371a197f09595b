"""A model's answers to rows as plain values that a metric can compare. Part of the worker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def answer_rows(model: Any, items: Sequence[Any]) -> list[list[Any]]:
    """[index, score, logits, tokens read, whether it was cut, given] of each item.

    One label an input has its index, score and logits; of the others 'given' is the answer: the labels that hold, a
    number, a tag a word, a text (the forms of `edgewise.metric_inputs`).
    """
    manifest = model.bundle.manifest
    if manifest.task == "token-classification":
        found = model.predict(items, ignore_labels=())
        outside = "O" if "O" in model.labels else model.labels[0]
        return [_other(a, word_tags(text, a.entities, outside)) for text, a in zip(items, found, strict=True)]
    found = model.predict(items)
    if manifest.task == "text2text-generation":
        return [_other(a, a.text) for a in found]
    if manifest.problem_type == "multi_label_classification":
        return [_other(a, list(a.labels)) for a in found]
    if manifest.problem_type == "regression":
        return [_other(a, a.score) for a in found]
    return [[a.index, a.score, list(a.logits), a.n_tokens, a.truncated, None] for a in found]


def _other(answer: Any, given: Any) -> list[Any]:
    return [-1, 0.0, [], answer.n_tokens, answer.truncated, given]


def word_tags(text: str, entities: Sequence[Any], outside: str) -> list[str]:
    """The tag of each word, that of its first token; `outside` for a word that was not read, the text having been cut.

    text: words joined by single spaces, as the rows of token classification are. entities: one a token, in order.
    """
    tags, at, start = [], 0, 0
    for word in text.split(" "):
        end = start + len(word)
        while at < len(entities) and entities[at].start < start:
            at += 1
        inside = at < len(entities) and entities[at].start < end
        tags.append(str(entities[at].label) if inside else outside)
        start = end + 1
    return tags
