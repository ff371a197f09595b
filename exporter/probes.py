"""Inputs that the graphs of every task are tried with, and what PyTorch answers to them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, cycle, islice
from typing import Any

import numpy as np

from edgewise.data import Row
from edgewise.exporter.checkpoint import Checkpoint
from edgewise.exporter.originals import padding_side, read_processor, read_tokenizer
from edgewise.exporter.parity import FALLBACK_TEXTS, LONGEST
from edgewise.exporter.sessions import Feeds, output_name, positions
from edgewise.types import IMAGE_TASKS, Task

PROBE_ROWS = 16
BATCH = 4
STEPS = 10
"""Greedy tokens that are compared."""
_TEXT = 128
"""Tokens that a row of generation is cut to; logits of a whole vocabulary are large."""
_LOGITS = 1 << 24
"""Numbers that the longest text's logits may have, and those of all rows together: 64 MB each."""


@dataclass(frozen=True)
class Probe:
    """One call of the model and PyTorch's answer."""

    name: str
    feeds: Feeds
    answer: np.ndarray
    """float32: logits [batch, labels] or [batch, length, labels or vocabulary], or hidden states [batch, length, n]."""
    counts: np.ndarray
    """bool over all but the last dimension: what is no padding."""


@dataclass(frozen=True)
class Written:
    """What PyTorch writes, token by token, always from a full forward without a cache."""

    name: str
    feeds: Feeds
    tokens: np.ndarray
    """int64 [batch, STEPS]."""
    margins: np.ndarray
    """float32 [batch, STEPS]: how far the best token's logit is above the second's."""


def build_probes(
    source: Checkpoint, task: Task, model: Any, inputs: Sequence[str], rows: Sequence[Row], max_length: int | None
) -> tuple[tuple[Probe, ...], tuple[Written, ...]]:
    """Single rows, one token, the longest text and a padded batch (for images: rows, black, noise, a batch).

    model: the PyTorch model. inputs: names that the first graph takes.
    rows: as many as there are; fallbacks of our own where there are none. The batch is made of the first single rows.
    """
    if task in IMAGE_TASKS:
        feeds = _images(source, model.config, rows)
    elif task == "text2text-generation":
        feeds = _pairs(source, model.config, rows, max_length)
    else:
        feeds = _texts(source, model.config, rows, max_length, task, positioned="position_ids" in inputs)
    # A tokenizer may give token types to a model that has none.
    known = {*inputs, "decoder_input_ids", "decoder_attention_mask"}
    feeds = [(name, {key: value for key, value in given.items() if key in known}) for name, given in feeds]
    probes = tuple(_answer(model, task, name, given) for name, given in feeds)
    if task not in ("text-generation", "text2text-generation"):
        return probes, ()
    written = [_write(model, task, p) for p in probes if p.name in ("row 0", "padded batch")]
    return probes, tuple(written)


def _answer(model: Any, task: Task, name: str, feeds: Feeds) -> Probe:
    found = _forward(model, task, feeds)
    mask = feeds.get("decoder_attention_mask" if task == "text2text-generation" else "attention_mask")
    counts = np.ones(found.shape[:-1], bool) if found.ndim == 2 or mask is None else mask.astype(bool)
    return Probe(name, feeds, found, counts)


def _forward(model: Any, task: Task, feeds: Feeds, **more: Any) -> np.ndarray:
    import torch

    with torch.inference_mode():
        given = {name: torch.from_numpy(value) for name, value in feeds.items() if name != "decoder_attention_mask"}
        if "use_cache" in inspect.signature(model.forward).parameters:
            more["use_cache"] = False
        found: np.ndarray = getattr(model(**given, **more), output_name(task)).float().numpy()
    return found


# ---- feeds


def _texts(
    source: Checkpoint, config: Any, rows: Sequence[Row], max_length: int | None, task: Task, *, positioned: bool
) -> list[tuple[str, Feeds]]:
    tokenizer = read_tokenizer(source.path)
    generates = task == "text-generation"
    longest = min(max_length or 512, LONGEST)
    if generates:
        longest = min(longest, max(_TEXT, _LOGITS // config.vocab_size)) - STEPS
    cut = min(longest, _TEXT, max(16, _LOGITS // config.vocab_size // PROBE_ROWS)) if generates else longest
    singles = _encode(tokenizer, [r.text for r in rows[:PROBE_ROWS]] or FALLBACK_TEXTS, cut)
    whole = _joined(singles, longest)
    groups = [(f"row {i}", [single]) for i, single in enumerate(singles)]
    groups += [("one token", [{name: ids[:1] for name, ids in singles[0].items()}]), ("longest text", [whole])]
    groups.append(("padded batch", singles[:BATCH]))
    pad = _pad_id(tokenizer, config)
    feeds: list[tuple[str, Feeds]] = []
    for name, group in groups:
        given = _stack(group, pad, padding_side(task))
        if generates or positioned:
            given["position_ids"] = positions(given["attention_mask"])
        feeds.append((name, given))
    return feeds


def _pairs(source: Checkpoint, config: Any, rows: Sequence[Row], max_length: int | None) -> list[tuple[str, Feeds]]:
    tokenizer = read_tokenizer(source.path)
    longest = min(max_length or 512, LONGEST)
    texts = [r.text for r in rows[:PROBE_ROWS]] or list(FALLBACK_TEXTS)
    targets = [r.target or r.text for r in rows[:PROBE_ROWS]] or list(FALLBACK_TEXTS)
    read = _encode(tokenizer, texts, min(longest, _TEXT))
    start = config.decoder_start_token_id
    start = config.pad_token_id if start is None else start
    write = [{"input_ids": [start, *e["input_ids"][:-1]]} for e in _encode(tokenizer, targets, 32)]
    whole = _joined(read, longest)
    groups = [(f"row {i}", [r], [w]) for i, (r, w) in enumerate(zip(read, write, strict=False))]
    groups.append(("one token", [{name: ids[:1] for name, ids in read[0].items()}], [{"input_ids": [start]}]))
    groups += [("longest text", [whole], write[:1]), ("padded batch", read[:BATCH], write[:BATCH])]
    pad = _pad_id(tokenizer, config)
    feeds: list[tuple[str, Feeds]] = []
    for name, texts_in, texts_out in groups:
        target = _stack([{**w, "attention_mask": [1] * len(w["input_ids"])} for w in texts_out], pad, "right")
        more = {f"decoder_{key}": value for key, value in target.items()}
        feeds.append((name, {**_stack(texts_in, pad, "right"), **more}))
    return feeds


def _images(source: Checkpoint, config: Any, rows: Sequence[Row]) -> list[tuple[str, Feeds]]:
    from PIL import Image

    from edgewise.images import open_rgb

    processor = read_processor(source.path)
    random = np.random.default_rng(0)
    images = [open_rgb(r.image) for r in rows[:PROBE_ROWS] if r.image is not None]
    noise = [Image.fromarray(random.integers(0, 256, (61, 47, 3), dtype=np.uint8)) for _ in range(BATCH)]
    images = images or noise
    named = [(f"row {i}", [image]) for i, image in enumerate(images)]
    named += [("black", [Image.new("RGB", (1, 1))]), ("noise", noise[:1]), ("padded batch", images[:BATCH])]
    mode = "L" if getattr(config, "num_channels", 3) == 1 else "RGB"
    feeds: list[tuple[str, Feeds]] = []
    for name, group in named:
        arrays = [np.asarray(i.convert(mode)).reshape(i.height, i.width, -1) for i in group]
        pixels = processor(arrays, return_tensors="np", input_data_format="channels_last")["pixel_values"]
        feeds.append((name, {"pixel_values": np.ascontiguousarray(pixels, dtype=np.float32)}))
    return feeds


def _encode(tokenizer: Any, texts: Sequence[str], length: int) -> list[dict[str, list[int]]]:
    encoded = tokenizer(list(texts), truncation=True, max_length=length)
    names = [n for n in ("input_ids", "attention_mask", "token_type_ids") if n in encoded]
    found = [{name: encoded[name][i] for name in names} for i in range(len(texts)) if encoded["input_ids"][i]]
    return found or _encode(tokenizer, FALLBACK_TEXTS, length)


def _joined(encoded: Sequence[Mapping[str, list[int]]], length: int) -> dict[str, list[int]]:
    """All of them after each other, again and again, cut to `length` tokens."""
    return {name: list(islice(cycle(chain.from_iterable(e[name] for e in encoded)), length)) for name in encoded[0]}


def _pad_id(tokenizer: Any, config: Any) -> int:
    return next((int(i) for i in (config.pad_token_id, tokenizer.pad_token_id) if i is not None), 0)


def _stack(group: Sequence[Mapping[str, list[int]]], pad: int, side: str) -> dict[str, np.ndarray]:
    """int64 [rows, longest], padded on one side."""
    longest = max(len(g["input_ids"]) for g in group)
    found = {}
    for name in group[0]:
        table = np.full((len(group), longest), pad if name == "input_ids" else 0, dtype=np.int64)
        for row, values in zip(table, group, strict=True):
            n = len(values[name])
            row[slice(longest - n, None) if side == "left" else slice(n)] = values[name]
        found[name] = table
    return found


# ---- greedy


def _write(model: Any, task: Task, probe: Probe) -> Written:
    import torch

    feeds = {name: value for name, value in probe.feeds.items() if name != "decoder_attention_mask"}
    step: Callable[[dict[str, np.ndarray], np.ndarray], dict[str, np.ndarray]]
    more: dict[str, Any] = {}
    if task == "text2text-generation":
        feeds["decoder_input_ids"] = feeds["decoder_input_ids"][:, :1]
        step = _longer_target
        with torch.inference_mode():
            given = {n: torch.from_numpy(feeds[n]) for n in ("input_ids", "attention_mask")}
            more["encoder_outputs"] = model.get_encoder()(**given)
    else:
        step = _longer_text
    current, tokens, margins = dict(feeds), [], []
    for _ in range(STEPS):
        asked = {n: v for n, v in current.items() if not (more and n == "input_ids")}
        last = _forward(model, task, asked, **more)[:, -1]
        best = np.sort(last, axis=-1)
        margins.append(best[:, -1] - best[:, -2])
        tokens.append(last.argmax(-1).astype(np.int64))
        current = step(current, tokens[-1][:, None])
    return Written(probe.name, feeds, np.stack(tokens, 1), np.stack(margins, 1))


def _longer_text(feeds: dict[str, np.ndarray], token: np.ndarray) -> dict[str, np.ndarray]:
    mask = np.concatenate([feeds["attention_mask"], np.ones_like(token)], axis=1)
    ids = np.concatenate([feeds["input_ids"], token], axis=1)
    return {**feeds, "input_ids": ids, "attention_mask": mask, "position_ids": positions(mask)}


def _longer_target(feeds: dict[str, np.ndarray], token: np.ndarray) -> dict[str, np.ndarray]:
    return {**feeds, "decoder_input_ids": np.concatenate([feeds["decoder_input_ids"], token], axis=1)}
