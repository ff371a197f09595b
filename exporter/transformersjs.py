"""Does a bundle load unchanged in Transformers.js, and does it answer there as it does in onnxruntime here?"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from edgewise.exporter.external import subgraphs
from edgewise.exporter.originals import read_tokenizer
from edgewise.exporter.pooling import Pooling, pool
from edgewise.exporter.preprocessing import text_limit
from edgewise.exporter.sessions import Graphs, answers, greedy, open_graphs
from edgewise.exporter.tracing import graph_files
from edgewise.exporter.transformersjs_node import GroupAnswer, Tensor, find_transformersjs, run_node
from edgewise.types import Task

Item = str | tuple[str, str]
"""A text or a pair of texts."""

JS_TASKS: tuple[Task, ...] = (
    "text-classification",
    "token-classification",
    "fill-mask",
    "feature-extraction",
    "text-generation",
    "text2text-generation",
)
"""The tasks that are tried: those that read text."""

STEPS = 10
"""Greedy tokens that are compared."""
_LONGEST = {"text-generation": 128, "text2text-generation": 128}
"""Tokens that a text may have; 512 for the other tasks, and never more than the model reads."""
CLOSE = 1e-4
"""Largest difference allowed, relative to the largest number of an answer where that is above 1: Transformers.js
brings its own onnxruntime, of another version, which may sum float32 in another order."""

_MOVES = 1e-2
"""How far a number may move in a padded batch, relative as above: fp16 and int4 round otherwise in another shape."""


@dataclass(frozen=True)
class _Group:
    """Texts that go through the graphs together."""

    items: tuple[Item, ...]

    @property
    def texts(self) -> list[str]:
        return [item if isinstance(item, str) else item[0] for item in self.items]

    @property
    def pairs(self) -> list[str] | None:
        pairs = [item[1] for item in self.items if not isinstance(item, str)]
        return pairs or None


def why_not_tried(task: Task) -> str:
    """Why bundles of this task are not tried on this machine; '' where they are."""
    if task not in JS_TASKS:
        return f"not tried for {task}"
    if shutil.which("node") is None:
        return "needs Node"
    if find_transformersjs() is None:
        return "@huggingface/transformers is not installed: run tools/transformersjs.sh"
    return ""


def loads_in_transformersjs(
    bundle: Path,
    task: Task,
    texts: Sequence[Item],
    *,
    graphs: Graphs | None = None,
    pooling: Pooling = "mean",
    normalize: bool = False,
    steps: int = STEPS,
    close: float = CLOSE,
    time_limit_s: float = 300,
) -> dict[str, Any]:
    """Load the bundle as it stands in Transformers.js in Node, and compare its answers with onnxruntime's here.

    texts: real ones, or pairs of them, all of one kind. Each is asked alone, then all in one padded batch; one that is
    longer than the model reads is halved until it fits, since Transformers.js cuts a closing token off with the rest.
    graphs: the bundle's, where they are open already. pooling, normalize: of feature-extraction.
    steps: greedy tokens of generation. close: largest difference that is ok, relative to the largest number of an
    answer where that is above 1. time_limit_s: of Node.

    Returns an entry of the manifest's loads_in: tested, and why not; or ok, the largest absolute difference of a logit
    or hidden state alone and in the batch, how far a text's answer moves in the batch, for generation how many texts
    were continued with equal tokens, the versions, and why where it is not ok.
    Raises ParityError where onnxruntime here does not run the graphs.
    """
    if why := why_not_tried(task):
        return _not_tested(why)
    trial = _Trial(bundle.resolve(), task, pooling, normalize, steps if "generation" in task else 0, close)
    tokenizer = trial.tokenizer()
    chosen = trial.fitting(tokenizer, texts)
    if not chosen:
        return _not_tested("no text that the tokenizer gives tokens for")
    groups = [_Group((item,)) for item in chosen] + ([_Group(chosen)] if len(chosen) > 1 else [])
    answer = run_node(trial.request(tokenizer, groups), time_limit_s)
    if isinstance(answer, str):
        return _not_tested(answer)
    versions = {name: answer.get(name) for name in ("transformersjs", "onnxruntime", "node")}
    if "error" in answer:
        return {**_failed(answer["error"]), "versions": versions}
    found = trial.compare(graphs or open_graphs(bundle, task), tokenizer, groups, answer["groups"])
    return {**found, "versions": versions}


# ---- the two sides


@dataclass(frozen=True)
class _Trial:
    """What is tried, and how texts become inputs on this side."""

    bundle: Path
    task: Task
    pooling: Pooling
    normalize: bool
    steps: int
    """0 where nothing is generated."""
    close: float = CLOSE

    def config(self) -> dict[str, Any]:
        config: dict[str, Any] = json.loads((self.bundle / "config.json").read_text(encoding="utf-8"))
        return config

    def tokenizer(self) -> Any:
        """Transformers' own, padding on the side that the task needs."""
        tokenizer = read_tokenizer(self.bundle)
        tokenizer.padding_side = "left" if self.task == "text-generation" else "right"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
        return tokenizer

    def fitting(self, tokenizer: Any, texts: Sequence[Item]) -> tuple[Item, ...]:
        """The texts that have tokens, each halved until it has no more than the model reads."""
        limit = min(text_limit(self.config(), tokenizer) or 512, 512) - self.steps
        limit = min(limit, _LONGEST.get(self.task, limit))
        found: list[Item] = []
        for text in texts:
            item = text
            while (length := len(_encode(tokenizer, _Group((item,)))["input_ids"][0])) > limit:
                item = _half(item)
            if length:
                found.append(item)
        return tuple(found)

    def request(self, tokenizer: Any, groups: Sequence[_Group]) -> dict[str, Any]:
        """What the script is asked; `pooling` only where it can give it: it knows no padding in 'last'."""
        pooled = self.task == "feature-extraction" and self.pooling != "last" and groups[0].pairs is None
        return {
            "home": str(find_transformersjs()),
            "bundle": str(self.bundle),
            "task": self.task,
            "groups": [{"texts": g.texts, "pairs": g.pairs} for g in groups],
            "padding_side": tokenizer.padding_side,
            "pad_id": tokenizer.pad_token_id,
            "start_id": self._start_id(),
            "steps": self.steps,
            "pooling": self.pooling if pooled else None,
            "normalize": self.normalize,
        }

    def _start_id(self) -> int:
        config = self.config()
        return next((i for n in ("decoder_start_token_id", "pad_token_id") if (i := config.get(n)) is not None), 0)

    def compare(
        self, graphs: Graphs, tokenizer: Any, groups: Sequence[_Group], theirs: Sequence[GroupAnswer]
    ) -> dict[str, Any]:
        """One entry of loads_in, without the versions."""
        worst: dict[str, float] = {}
        close, equal, sequences = True, 0, 0
        for group, answer in zip(groups, theirs, strict=True):
            encoded = _encode(tokenizer, group)
            if answer["input_ids"] != encoded["input_ids"].tolist():
                return _failed(f"it tokenizes {str(group.items[0])[:60]!r} differently")
            feeds = self._feeds(encoded)
            key = "largest_absolute_difference" + ("_batched" if len(group.items) > 1 else "")
            for got, wanted in self._answers(graphs, feeds, answer):
                if got.shape != wanted.shape or not np.isfinite(got).all():
                    return _failed(f"it answers {list(got.shape)} numbers, some of them NaN or infinity, "
                                   f"where onnxruntime answers {list(wanted.shape)}")  # fmt: skip
                difference = float(np.abs(got - wanted).max())
                close &= difference <= self.close * max(1.0, float(np.abs(wanted).max()))
                worst[key] = max(worst.get(key, 0.0), difference)
            if self.steps:
                equal += self._equal(greedy(graphs, feeds, self.steps), answer["tokens"])
                sequences += len(group.items)
        written = {"sequences": sequences, "equal": equal} if self.steps else {}
        moved, most = _batch_dependence(theirs)
        by_batch = {"batch_dependence": moved} if len(theirs) > 1 else {}
        found = {"tested": True, "ok": True, **worst, **by_batch, **written}
        if not close or equal != sequences:
            return {**found, "ok": False, "why": "its answers are not onnxruntime's"}
        if moved > most and not self._scales_by_batch():
            return {**found, "ok": False, "why": f"what it answers to a text moves by {moved:.2g} in a padded batch"}
        return found

    def _scales_by_batch(self) -> bool:
        """True for dynamic int8: one scale for all numbers of a batch, so that its answers move with right padding."""
        import onnx

        place = self.bundle / "onnx"
        models = [onnx.load(place / name, load_external_data=False) for name in graph_files(self.task)]
        nodes = chain.from_iterable(graph.node for model in models for graph in subgraphs(model.graph))
        return any(node.op_type == "DynamicQuantizeLinear" for node in nodes)

    def _feeds(self, encoded: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if self.task != "text2text-generation":
            return encoded
        start = np.full((len(encoded["input_ids"]), 1), self._start_id(), np.int64)
        return {**encoded, "decoder_input_ids": start}

    def _answers(
        self, graphs: Graphs, feeds: dict[str, np.ndarray], answer: GroupAnswer
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(theirs, ours), without what stands for padding."""
        output, ours = _array(answer["output"]), answers(graphs, feeds)
        counts = feeds["attention_mask"].astype(bool)
        if self.steps:
            yield output, ours[:, -1]
        elif ours.ndim == 3 and output.shape == ours.shape:
            yield output[counts], ours[counts]
        else:
            yield output, ours
        if "pooled" in answer:
            vectors = pool(ours, counts, self.pooling)
            if self.normalize:
                vectors = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
            yield _array(answer["pooled"]), vectors

    def _equal(self, ours: np.ndarray, theirs: list[list[int]]) -> int:
        """Rows that go on equally, up to an end token, where Transformers.js may stop."""
        ends = self._end_ids()
        equal = 0
        for wanted, got in zip(ours.tolist(), theirs, strict=True):
            until = next((i + 1 for i, token in enumerate(wanted) if token in ends), self.steps)
            equal += got[:until] == wanted[:until]
        return equal

    def _end_ids(self) -> set[int]:
        file = self.bundle / "generation_config.json"
        given = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        ends = given.get("eos_token_id", self.config().get("eos_token_id"))
        return set(ends if isinstance(ends, list) else [ends])


def _not_tested(why: str) -> dict[str, Any]:
    return {"tested": False, "why": why}


def _failed(why: str) -> dict[str, Any]:
    return {"tested": True, "ok": False, "why": why}


def _encode(tokenizer: Any, group: _Group) -> dict[str, np.ndarray]:
    """int64 [texts, longest] by input name."""
    # Not verbose: a text that is too long is no warning here, it is halved.
    encoded = tokenizer(group.texts, group.pairs, padding=len(group.items) > 1, verbose=False)
    return {name: np.asarray(value, dtype=np.int64) for name, value in encoded.items()}


def _batch_dependence(theirs: Sequence[GroupAnswer]) -> tuple[float, float]:
    """(how far a number moves when its text is answered in the padded batch, how far it may).

    The same graph on the same batch would be as wrong here as there: padding that a graph reads wrongly (on the left,
    in one with GroupQueryAttention) shows only against the text alone.
    """
    *alone, together = theirs
    moved = largest = 0.0
    for row, answer in zip(_array(together["output"]), alone, strict=False):
        (one,) = _array(answer["output"])
        kept = row[: len(one)] if row.ndim == 2 else row  # of a row of many, padding stands on the right
        moved = max(moved, float(np.abs(kept - one).max()))
        largest = max(largest, float(np.abs(one).max()))
    return moved, _MOVES * max(1.0, largest)


def _half(item: Item) -> Item:
    if isinstance(item, str):
        return item[: len(item) // 2]
    return item[0][: len(item[0]) // 2], item[1][: len(item[1]) // 2]


def _array(tensor: Tensor) -> np.ndarray:
    """float32; null, which is how JSON writes what is no number, becomes NaN."""
    return np.array(tensor["values"], dtype=np.float32).reshape(tensor["shape"])
