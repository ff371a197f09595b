"""The proof of a graph with an in-place cache: its answers against PyTorch's, and what Optimum makes of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort

from edgewise.errors import ParityError
from edgewise.exporter.in_place import greedy_in_place, make_cache, open_in_place, step_in_place
from edgewise.exporter.lean_trace import free_memory
from edgewise.exporter.probes import Probe, Written
from edgewise.exporter.sessions import is_large, session_options
from edgewise.exporter.tolerance import largest_difference
from edgewise.types import Recipe

if TYPE_CHECKING:
    from edgewise.bundle import Bundle
    from edgewise.exporter.base import Base


def prove_in_place(draft: Bundle, base: Base, recipe: Recipe) -> dict[str, Any]:
    """The manifest's parity and loads_in of a bundle whose manifest is a draft. Raises ParityError."""
    graph = draft.path / "onnx" / "model.onnx"
    return {
        "parity": in_place_parity(graph, base.probes, base.written, recipe),
        "loads_in": in_place_loads_in(draft.path, graph, base.probes, base.written),
    }


def in_place_parity(graph: Path, probes: Sequence[Probe], written: Sequence[Written], recipe: Recipe) -> dict[str, Any]:
    """Hold the graph against PyTorch's answers; what the manifest stores as parity, in the form of `compare_graphs`.

    probes, written: as `build_probes` makes them for text-generation, padded on the left; their rows are moved to where
    the graph wants them. Logits come from single calls, greedy tokens from the cache that is updated in place.
    Raises ParityError outside the tolerance of the recipe's precision.
    """
    from edgewise.exporter.sessions import Graphs
    from edgewise.exporter.task_parity import compare_graphs

    session = open_in_place(graph, lean=is_large(graph.parent))
    graphs = Graphs("text-generation", {graph.name: session})
    parity = compare_graphs(graphs, [pad_right(p) for p in probes], (), recipe)
    if written:
        parity["greedy"] = _compare_greedy(session, written, recipe)
    return parity


def pad_right(probe: Probe) -> Probe:
    """The probe with the padding of its rows moved from the left to the right, in what is fed and what is answered."""
    mask = probe.feeds["attention_mask"]
    if mask.all():
        return probe  # a long answer need not stand in memory twice
    starts = mask.shape[1] - mask.sum(1)
    order = (np.arange(mask.shape[1]) + starts[:, None]) % mask.shape[1]
    feeds = {name: np.take_along_axis(values, order, 1) for name, values in probe.feeds.items()}
    answer = np.take_along_axis(probe.answer, order[..., None], 1)
    return replace(probe, feeds=feeds, answer=answer, counts=np.take_along_axis(probe.counts, order, 1))


def _compare_greedy(session: ort.InferenceSession, written: Sequence[Written], recipe: Recipe) -> dict[str, Any]:
    """Greedy tokens against PyTorch's without a cache; a token that PyTorch itself nearly tied may differ."""
    limit, steps = largest_difference(recipe), written[0].tokens.shape[1]
    equal = same = sequences = 0
    for case in written:
        for got, wanted, margins in zip(_write(session, case, steps), case.tokens, case.margins, strict=True):
            different = np.flatnonzero(got != wanted)
            first = int(different[0]) if len(different) else steps
            sequences, equal, same = sequences + 1, equal + (first == steps), same + first
            if limit is not None and first < steps and margins[first] > 2 * limit:
                raise ParityError(
                    f"the {recipe.name} graph writes {got.tolist()} for {case.name}, PyTorch {wanted.tolist()}: "
                    "it is not written"
                )
    return {"sequences": sequences, "steps": steps, "equal": equal, "tokens_until_the_first_difference": same}


def _write(session: ort.InferenceSession, case: Written, steps: int) -> np.ndarray:
    """What the graph writes after the rows of a case, which are padded on the left: int64 [batch, steps]."""
    ids, mask = case.feeds["input_ids"], case.feeds["attention_mask"]
    lengths = mask.sum(1)
    rows = np.zeros_like(ids)
    for row, given, length in zip(rows, ids, lengths, strict=True):
        row[:length] = given[len(given) - length :]
    return greedy_in_place(session, rows, steps, lengths)


def in_place_loads_in(folder: Path, graph: Path, probes: Sequence[Probe], written: Sequence[Written]) -> dict[str, Any]:
    """Load the bundle as it stands in Optimum; what the manifest stores as loads_in.

    Its answers are compared with those of the graph when it is fed as it wants: for texts alone, and for the padded
    batch as users of Optimum make it, on the left.

    folder: of the bundle. graph: its onnx/model.onnx. probes, written: as for `in_place_parity`.
    """
    from optimum.onnxruntime import ORTModelForCausalLM

    from edgewise.exporter.task_parity import failed, generates

    found: dict[str, Any] = {}
    calls, tokens = _read_ours(graph, probes, written)
    free_memory()  # of the session that gave them
    try:
        peer = ORTModelForCausalLM.from_pretrained(folder, session_options=session_options(large=is_large(folder)))
    except Exception as error:  # whatever Optimum raises is the finding
        return {key: failed(error) for key in ("optimum", "optimum_batched", "optimum_generate")}
    for end, batched in (("", False), ("_batched", True)):
        some = [p for p in probes if (p.name == "padded batch") == batched]
        cases = [w for w in written if (w.name == "padded batch") == batched]
        ours = [tokens[c.name] for c in cases]
        checks: dict[str, Callable[[], dict[str, Any]]] = {
            f"optimum{end}": partial(_calls, peer, calls, some),
            f"optimum_generate{end}": partial(generates, peer, "text-generation", cases, ours),
        }
        for key, check in checks.items():
            try:
                found[key] = check()
            except Exception as error:
                found[key] = failed(error)
            if batched and not found[key]["ok"]:
                found[key].setdefault("why", _WHY_NOT_BATCHED)
    del peer, checks
    free_memory()  # of the peer, before others are tried
    return found


_WHY_NOT_BATCHED = (
    "Optimum pads on the left, and the graph takes the first tokens of each row, as many as its mask has ones: shorter "
    "rows are answered wrongly, without an error"
)


def _read_ours(
    graph: Path, probes: Sequence[Probe], written: Sequence[Written]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(logits by the probe's name, padded on the right; greedy tokens by the case's): all that is needed of the graph,
    which is closed before a peer opens it again.
    """
    session, calls = open_in_place(graph, lean=is_large(graph.parent)), {}
    for probe in probes:
        fed = pad_right(probe)
        cache = make_cache(session, *fed.counts.shape)
        calls[probe.name] = step_in_place(session, cache, fed.feeds["input_ids"], fed.counts.sum(1))
    return calls, {case.name: _write(session, case, case.tokens.shape[1]) for case in written}


def _calls(peer: Any, ours: Mapping[str, np.ndarray], probes: Sequence[Probe]) -> dict[str, Any]:
    """Logits of Optimum's call against ours."""
    import torch

    from edgewise.exporter.task_parity import largest_gap

    worst = 0.0
    for probe in probes:
        names = ("input_ids", "attention_mask", "position_ids")
        theirs = np.asarray(peer(**{n: torch.from_numpy(probe.feeds[n]) for n in names if n in probe.feeds}).logits)
        right = np.sort(probe.counts, axis=1)[:, ::-1]  # ours stand before their padding, theirs after it
        worst = max(worst, largest_gap(ours[probe.name], theirs, right, probe.counts))
    return {"tested": True, "ok": worst <= 1e-4, "largest_absolute_difference": worst}
