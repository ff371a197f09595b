"""Proof that graphs answer as PyTorch does, for the tasks that the runtime does not answer yet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgewise.bundle import Bundle
from edgewise.errors import ParityError
from edgewise.exporter.lean_trace import free_memory
from edgewise.exporter.pooling import cosine, pool
from edgewise.exporter.probes import STEPS, Probe, Written
from edgewise.exporter.sessions import Graphs, answers, greedy, is_large, output_name, session_options
from edgewise.exporter.tolerance import decision_of, judge, largest_difference, tolerance
from edgewise.types import Recipe, Task

_BLOCK = 1 << 21
"""Numbers that are compared at a time: 8 MB."""
_PEERS: dict[Task, str] = {
    "token-classification": "ORTModelForTokenClassification",
    "text-generation": "ORTModelForCausalLM",
    "text2text-generation": "ORTModelForSeq2SeqLM",
    "image-classification": "ORTModelForImageClassification",
    "feature-extraction": "ORTModelForFeatureExtraction",
    "fill-mask": "ORTModelForMaskedLM",
    "image-feature-extraction": "ORTModelForFeatureExtraction",
}


def compare_graphs(
    graphs: Graphs, probes: Sequence[Probe], written: Sequence[Written], recipe: Recipe
) -> dict[str, Any]:
    """Hold opened graphs against PyTorch's answers; what the manifest stores as parity.

    Raises ParityError when it is outside the tolerance of its precision.
    """
    worst = relative = scaled = 0.0
    where, agree, total = "", list[float](), 0
    features = decision_of(graphs.task) == "direction"
    found: dict[str, np.ndarray] = {}
    batch = next(p for p in probes if p.name == "padded batch")
    batched = {batch.name, *(f"row {i}" for i in range(len(batch.answer)))}
    for probe in probes:
        got = answers(graphs, probe.feeds)
        if probe.name in batched:
            found[probe.name] = got
        _check_form(got, probe, recipe)
        gap = _gap(got, probe)
        if gap.absolute > worst:
            worst, where = gap.absolute, probe.name
        relative = max(relative, gap.relative)
        scaled = max(scaled, gap.absolute / (max(1.0, gap.largest) if features else 1.0))
        agree += _agreement(got, probe, features)
        total += len(agree) if features else int(probe.counts.sum())
    parity: dict[str, Any] = {
        "against": "pytorch",
        "inputs": len(probes),
        "largest_absolute_difference": worst,
        "largest_relative_difference": relative,
        "worst_case": where,
        "agreement": sum(agree) / len(agree),
        "decisions": total,
        "batch_dependence": _by_batch(found, probes),
        "tolerance": tolerance(recipe, graphs.task),
        **({"largest_scaled_difference": scaled} if features else {}),
    }
    judge(parity, recipe)
    if written:
        parity["greedy"] = _compare_written(graphs, written, recipe)
    return parity


@dataclass(frozen=True)
class _Gap:
    """How far an answer is from PyTorch's."""

    absolute: float
    relative: float
    largest: float
    """Magnitude of PyTorch's numbers."""


def _gap(got: np.ndarray, probe: Probe) -> _Gap:
    absolute = relative = largest = 0.0
    for real, wanted in real_rows(got, probe.answer, probe.counts):
        difference, size = np.abs(real - wanted), np.abs(wanted)
        absolute, largest = max(absolute, float(difference.max())), max(largest, float(size.max()))
        relative = max(relative, float((difference / np.maximum(size, 1e-6)).max()))
    return _Gap(absolute, relative, largest)


def real_rows(
    ours: np.ndarray, theirs: np.ndarray, counts: np.ndarray, other: np.ndarray | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """What is no padding of two answers, some rows [n, width] of both at a time: logits of a long text are large, and
    their differences would stand in memory beside them.

    counts: as in `Probe`; other: that of `theirs`, where its padding stands elsewhere.
    """
    places = [np.flatnonzero(c) for c in (counts, counts if other is None else other)]
    width = ours.shape[-1]
    flat = [a.reshape(-1, width) for a in (ours, theirs)]
    step = max(1, _BLOCK // width)
    for start in range(0, len(places[0]), step):
        first, second = (a[p[start : start + step]] for a, p in zip(flat, places, strict=True))
        yield first, second


def largest_gap(ours: np.ndarray, theirs: np.ndarray, counts: np.ndarray, other: np.ndarray | None = None) -> float:
    """The largest absolute difference of two answers, padding left out; arguments as of `real_rows`."""
    return float(np.max([np.abs(a - b).max() for a, b in real_rows(ours, theirs, counts, other)]))  # NaN stays NaN


def _agreement(got: np.ndarray, probe: Probe, features: bool) -> list[float]:
    """By sequence, since the longest text has more tokens than all rows together, and is no text of the user's: the
    share of its decisions that are PyTorch's, or the cosine of its pooled features with PyTorch's.
    """
    if features:
        ours, theirs = (pool(states, probe.counts, "mean") for states in (got, probe.answer))
        return [float(x) for x in cosine(ours, theirs)]
    same = got.argmax(-1) == probe.answer.argmax(-1)
    return [float(s[c].mean()) for s, c in zip(same, probe.counts, strict=True)]


def _check_form(got: np.ndarray, probe: Probe, recipe: Recipe) -> None:
    if got.shape != probe.answer.shape:
        raise ParityError(
            f"the {recipe.name} graph answers {probe.name} with {got.shape}, PyTorch {probe.answer.shape}"
        )
    if not all(np.isfinite(rows).all() for rows, _ in real_rows(got, got, probe.counts)):
        raise ParityError(f"the {recipe.name} graph answers {probe.name} with NaN or infinity")


def _by_batch(found: dict[str, np.ndarray], probes: Sequence[Probe]) -> float:
    """How far a logit moves when its row goes through the graph with others, which are longer or shorter."""
    batch = next(p for p in probes if p.name == "padded batch")
    worst = 0.0
    for i, (row, counts) in enumerate(zip(found[batch.name], batch.counts, strict=True)):
        alone = found[f"row {i}"][0]
        together = row[counts] if row.ndim == 2 else row
        worst = max(worst, float(np.abs(together - alone).max()))
    return worst


def _compare_written(graphs: Graphs, written: Sequence[Written], recipe: Recipe) -> dict[str, Any]:
    """Greedy tokens with the cache against PyTorch's without; a token that PyTorch itself nearly tied may differ."""
    limit = largest_difference(recipe)
    equal = same = sequences = 0
    for case in written:
        for got, wanted, margins in zip(greedy(graphs, case.feeds, STEPS), case.tokens, case.margins, strict=True):
            different = np.flatnonzero(got != wanted)
            first = int(different[0]) if len(different) else STEPS
            sequences, equal, same = sequences + 1, equal + (first == STEPS), same + first
            if limit is not None and first < STEPS and margins[first] > 2 * limit:
                raise ParityError(
                    f"the {recipe.name} graph writes {got.tolist()} for {case.name}, PyTorch {wanted.tolist()}: "
                    "it is not written"
                )
    return {"sequences": sequences, "steps": STEPS, "equal": equal, "tokens_until_the_first_difference": same}


@dataclass(frozen=True)
class Ours:
    """What plain sessions answered: kept, so that they are closed before a peer opens the same graphs."""

    task: Task
    answers: Mapping[str, np.ndarray]
    """By the probe's name."""
    written: tuple[np.ndarray, ...]
    """Greedy tokens: int64 [batch, STEPS] a case."""


def read_ours(graphs: Graphs, probes: Sequence[Probe], written: Sequence[Written]) -> Ours:
    """Answer every probe, and write every case."""
    told = {p.name: answers(graphs, p.feeds) for p in probes}
    return Ours(graphs.task, told, tuple(greedy(graphs, case.feeds, STEPS) for case in written))


def graphs_load_in(bundle: Bundle, ours: Ours, probes: Sequence[Probe], written: Sequence[Written]) -> dict[str, Any]:
    """Load the bundle as it stands in Optimum and compare its answers with the plain sessions', alone and in a batch.

    For generation also what its `generate` writes greedily, for a single text and for the padded batch.
    """
    import optimum.onnxruntime

    found: dict[str, Any] = {}
    keys = ("optimum", "optimum_batched", *(["optimum_generate"] if written else []))
    free_memory()  # of the sessions that gave ours
    try:
        peer = getattr(optimum.onnxruntime, _PEERS[ours.task]).from_pretrained(
            bundle.path, session_options=session_options(large=is_large(bundle.path))
        )
    except Exception as error:  # whatever Optimum raises is the finding
        return {key: failed(error) for key in keys}
    free_memory()  # of the opening
    singles = [p for p in probes if p.name != "padded batch"]
    for key, chosen in (("optimum", singles), ("optimum_batched", [p for p in probes if p.name == "padded batch"])):
        try:
            worst = max(_difference(peer, ours, probe) for probe in chosen)
            found[key] = {"tested": True, "ok": worst <= 1e-4, "largest_absolute_difference": worst}
        except Exception as error:
            found[key] = failed(error)
    if written:
        try:
            found["optimum_generate"] = generates(peer, ours.task, written, ours.written)
        except Exception as error:
            found["optimum_generate"] = failed(error)
    del peer
    free_memory()  # of the peer, before others are tried
    return found


def failed(error: Exception) -> dict[str, Any]:
    """The loads_in entry of a peer that raised."""
    return {"tested": True, "ok": False, "why": f"{type(error).__name__}: {error}"[:300]}


def _difference(peer: Any, ours: Ours, probe: Probe) -> float:
    import torch

    feeds = {n: torch.from_numpy(v) for n, v in probe.feeds.items() if n != "decoder_attention_mask"}
    theirs = np.asarray(getattr(peer(**feeds), output_name(ours.task)))
    return largest_gap(ours.answers[probe.name], theirs, probe.counts)


def generates(peer: Any, task: Task, written: Sequence[Written], ours: Sequence[np.ndarray]) -> dict[str, Any]:
    """Greedy tokens of Optimum's generate against ours, a case each, up to a row's end token, where generate stops."""
    import torch

    ends = peer.generation_config.eos_token_id
    stop = set(ends if isinstance(ends, list) else [ends])
    equal = sequences = 0
    for case, tokens in zip(written, ours, strict=True):
        steps = case.tokens.shape[1]
        feeds = {n: torch.from_numpy(case.feeds[n]) for n in ("input_ids", "attention_mask")}
        theirs = np.asarray(peer.generate(**feeds, max_new_tokens=steps, do_sample=False, num_beams=1))
        start = 1 if task == "text2text-generation" else case.feeds["input_ids"].shape[1]
        for got, wanted in zip(theirs[:, start:], tokens, strict=True):
            until = next((i + 1 for i, token in enumerate(wanted.tolist()) if token in stop), steps)
            sequences, equal = sequences + 1, equal + (got[:until].tolist() == wanted[:until].tolist())
    return {"tested": True, "ok": equal == sequences, "sequences": sequences, "equal": equal}
