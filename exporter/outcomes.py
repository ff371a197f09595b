"""What graphs answer on labelled rows, one by one: the score of each row, and whether two bundles decide alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from edgewise.data import Row
from edgewise.errors import DataError
from edgewise.exporter.base import Base
from edgewise.exporter.checkpoint import Checkpoint
from edgewise.exporter.pooling import Pooling, pool
from edgewise.exporter.sessions import Feeds, Graphs, answers
from edgewise.types import Task

_TEXT = 128
"""Tokens that a row of generation is cut to."""
_IGNORED = -100
BATCH = 8
"""Rows that go through the graph together when the effect of the batch is looked at."""


@dataclass(frozen=True)
class Example:
    """One row as a graph takes it, and what is right."""

    feeds: Feeds
    """Arrays with a batch of 1."""
    target: Any
    """int (one label), float32 [labels] (several), float (regression), int64 [length] with -100 where nothing is
    asked (tags, words), None where nothing is right or wrong (features, a row without a label)."""


@dataclass(frozen=True)
class Outcomes:
    """The answers of one set of graphs on rows, in their order."""

    scores: np.ndarray
    """float64 [rows]: 1 or 0 for one label a row; the share of labels, or of words, that are right; minus the absolute
    error of a number; the mean natural log-probability of the right words. NaN without a target."""
    decisions: tuple[Any, ...]
    """int or bytes, one a row: equal where two bundles decide alike. Of features the index of the nearest other row."""
    vectors: np.ndarray | None = None
    """float32 [rows, n]: pooled features."""


def examples(source: Checkpoint, base: Base, rows: Sequence[Row], pooling: Pooling | None = None) -> list[Example]:
    """Rows of the base's task as feeds and targets.

    Raises DataError for rows without what the task reads.
    """
    make = _MAKERS[base.task]
    found = make(source, base, rows)
    if not found:
        raise DataError(f"none of the {len(rows)} rows can be read for {base.task}: are the columns named right?")
    return found


def outcomes(graphs: Graphs, chosen: Sequence[Example], judge: Callable[..., tuple[float, Any]]) -> Outcomes:
    """Answer one example after the other, a batch of 1 each: the batch changes the answers of dynamic int8."""
    scores, decisions, vectors = [], [], []
    for example in chosen:
        found = answers(graphs, example.feeds)[0]
        score, decision = judge(found, example.target)
        scores.append(score)
        decisions.append(decision)
        if isinstance(decision, np.ndarray):
            vectors.append(decision)
    if vectors:
        stacked = np.stack(vectors)
        return Outcomes(np.array(scores), tuple(_nearest(stacked)), stacked)
    return Outcomes(np.array(scores), tuple(decisions))


def judge_of(task: Task, problem_type: str | None, pooling: Pooling | None) -> Callable[..., tuple[float, Any]]:
    """(answer of one row, its target) -> (score, decision)."""
    if task.endswith("feature-extraction"):
        return partial(_features, pooling=pooling or "mean")
    if task in ("text-generation", "text2text-generation", "fill-mask"):
        return _words
    if task == "token-classification":
        return _tags
    if task == "text-classification" and problem_type == "multi_label_classification":
        return _several
    return _number if task == "text-classification" and problem_type == "regression" else _one


# ---- judges


def _one(found: np.ndarray, target: Any) -> tuple[float, int]:
    best = int(found.argmax())
    return (float(best == target) if target is not None else np.nan), best


def _several(found: np.ndarray, target: Any) -> tuple[float, bytes]:
    on = found > 0
    return (float((on == (target > 0.5)).mean()) if target is not None else np.nan), on.tobytes()


def _number(found: np.ndarray, target: Any) -> tuple[float, int]:
    # Two numbers are one decision within a hundredth: a regression has no other.
    return (-abs(float(found[0]) - target) if target is not None else np.nan), round(100 * float(found[0]))


def _tags(found: np.ndarray, target: np.ndarray) -> tuple[float, bytes]:
    asked = target != _IGNORED
    best = found.argmax(-1)[asked]
    return float((best == target[asked]).mean()), best.tobytes()


def _words(found: np.ndarray, target: np.ndarray) -> tuple[float, bytes]:
    asked = target != _IGNORED
    rows = found[asked].astype(np.float64)
    rows -= rows.max(-1, keepdims=True)
    right = rows[np.arange(len(rows)), target[asked]] - np.log(np.exp(rows).sum(-1))
    return float(right.mean()), rows.argmax(-1).tobytes()


def _features(found: np.ndarray, _: Any, pooling: Pooling) -> tuple[float, np.ndarray]:
    return np.nan, pool(found[None], np.ones((1, len(found)), bool), pooling)[0]


def _nearest(vectors: np.ndarray) -> list[int]:
    """Index of the row with the largest cosine beside the row itself."""
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    near = unit @ unit.T
    np.fill_diagonal(near, -np.inf)
    return [int(i) for i in near.argmax(1)]


# ---- examples


def _arrays(encoded: Any, i: int, names: Sequence[str], length: int | None = None) -> dict[str, np.ndarray]:
    kept = [n for n in names if n in encoded]
    return {n: np.array([encoded[n][i][:length]], dtype=np.int64) for n in kept}


def _encode(base: Base, texts: Sequence[Any], pairs: Sequence[str] | None = None, **more: Any) -> Any:
    return base.preprocessor(list(texts), pairs, truncation=True, max_length=base.max_length or 512, **more)


def _classified(source: Checkpoint, base: Base, rows: Sequence[Row]) -> list[Example]:
    paired = any(r.text_pair is not None for r in rows)
    encoded = _encode(base, [r.text for r in rows], [r.text_pair or "" for r in rows] if paired else None)
    found = []
    for i, row in enumerate(rows):
        feeds = _arrays(encoded, i, base.inputs)
        if feeds["input_ids"].size:
            found.append(Example(feeds, _class_target(row, source)))
    return found


def _class_target(row: Row, source: Checkpoint) -> Any:
    if source.problem_type == "multi_label_classification":
        return None if row.labels is None else np.array([x in row.labels for x in source.labels], dtype=np.float32)
    if source.problem_type == "regression":
        return row.number
    return source.labels.index(row.label) if row.label in source.labels else None


def _tagged(source: Checkpoint, base: Base, rows: Sequence[Row]) -> list[Example]:
    used = [r for r in rows if r.tokens and r.tags]
    if not used:
        return []
    encoded = _encode(base, [list(r.tokens or ()) for r in used], is_split_into_words=True)
    number = {tag: i for i, tag in enumerate(source.labels)}
    found = []
    for i, row in enumerate(used):
        target, last = [], None
        for word in encoded.word_ids(i):
            # The first piece of a word has the say, as in training.
            first = word is not None and word != last
            target.append(number.get((row.tags or ())[word], _IGNORED) if first else _IGNORED)
            last = word
        if any(t != _IGNORED for t in target):
            found.append(Example(_arrays(encoded, i, base.inputs), np.array(target)))
    return found


def _told(_: Checkpoint, base: Base, rows: Sequence[Row]) -> list[Example]:
    encoded = _encode(base, [r.text for r in rows])
    found = []
    for i in range(len(rows)):
        feeds = _arrays(encoded, i, ("input_ids", "attention_mask"), _TEXT)
        ids = feeds["input_ids"][0]
        if len(ids) > 1:
            found.append(Example(feeds, np.append(ids[1:], _IGNORED)))
    return found


def _written(source: Checkpoint, base: Base, rows: Sequence[Row]) -> list[Example]:
    used = [r for r in rows if r.target]
    if not used:
        return []
    encoded = _encode(base, [r.text for r in used], text_target=[str(r.target) for r in used])
    start = source.config.get("decoder_start_token_id")
    start = source.config.get("pad_token_id", 0) if start is None else start
    found = []
    for i in range(len(used)):
        target = np.array(encoded["labels"][i][:_TEXT])
        feeds = _arrays(encoded, i, ("input_ids", "attention_mask"))
        found.append(Example({**feeds, "decoder_input_ids": np.array([[start, *target[:-1]]])}, target))
    return found


def _masked(_: Checkpoint, base: Base, rows: Sequence[Row]) -> list[Example]:
    """One word of each row is masked, drawn with a fixed seed."""
    tokenizer, random = base.preprocessor, np.random.default_rng(0)
    encoded = _encode(base, [r.text for r in rows], return_special_tokens_mask=True)
    found = []
    for i in range(len(rows)):
        feeds = _arrays(encoded, i, base.inputs)
        ordinary = np.flatnonzero(np.array(encoded["special_tokens_mask"][i]) == 0)
        if len(ordinary):
            place = int(random.choice(ordinary))
            target = np.full(feeds["input_ids"].shape[1], _IGNORED)
            target[place] = feeds["input_ids"][0, place]
            feeds["input_ids"][0, place] = tokenizer.mask_token_id
            found.append(Example(feeds, target))
    return found


def _seen(source: Checkpoint, base: Base, rows: Sequence[Row]) -> list[Example]:
    from edgewise.images import open_rgb

    found = []
    for row in [r for r in rows if r.image is not None]:
        image = np.asarray(open_rgb(row.image))  # type: ignore[arg-type]  # not None, as just seen
        pixels = base.preprocessor([image], return_tensors="np", input_data_format="channels_last")["pixel_values"]
        target = source.labels.index(row.label) if row.label in source.labels else None
        found.append(Example({"pixel_values": np.ascontiguousarray(pixels, dtype=np.float32)}, target))
    return found


_MAKERS: dict[Task, Callable[[Checkpoint, Base, Sequence[Row]], list[Example]]] = {
    "text-classification": _classified,
    "feature-extraction": _classified,
    "token-classification": _tagged,
    "fill-mask": _masked,
    "text-generation": _told,
    "text2text-generation": _written,
    "image-classification": _seen,
    "image-feature-extraction": _seen,
}
