"""A model's answers to rows as plain values that a metric can compare. Part of the worker."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

_CHUNK = 64


def answer_rows(model: Any, items: Sequence[Any]) -> Iterator[list[Any]]:
    """[index, score, logits, tokens read, whether it was cut, given] of each item, in order.

    One label an input has its index, score and logits; of the others 'given' is the answer: the labels that hold, a
    number, a tag a word, a text (the forms of `edgewise.metric_inputs`); of language models [sum of natural
    log-probabilities, tokens scored, tokens that were the likeliest].
    """
    if hasattr(model, "log_likelihood"):
        joined = {"joined": True} if model.bundle.manifest.task == "text-generation" else {}
        for a in model.log_likelihood(items, **joined):
            yield _other(a, [a.log_probability, a.scored, a.right])
        return
    # Whole batches, in order: the batch changes the answers of dynamic int8.
    step = max(1, _CHUNK // model.run.batch_size) * model.run.batch_size
    for start in range(0, len(items), step):
        yield from _answers(model, items[start : start + step])


def _answers(model: Any, items: Sequence[Any]) -> list[list[Any]]:
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
