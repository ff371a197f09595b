"""Proof that graphs answer as PyTorch does, for the tasks that the runtime does not answer yet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from edgewise.bundle import Bundle
from edgewise.errors import ParityError
from edgewise.exporter.parity import LARGEST_DIFFERENCE, LOWEST_AGREEMENT, LOWEST_AGREEMENT_WORDS, judge
from edgewise.exporter.probes import STEPS, Probe, Written
from edgewise.exporter.sessions import Graphs, greedy, logits
from edgewise.types import Recipe, Task

_PEERS: dict[Task, str] = {
    "token-classification": "ORTModelForTokenClassification",
    "text-generation": "ORTModelForCausalLM",
    "text2text-generation": "ORTModelForSeq2SeqLM",
    "image-classification": "ORTModelForImageClassification",
}


def compare_graphs(
    graphs: Graphs, probes: Sequence[Probe], written: Sequence[Written], recipe: Recipe
) -> dict[str, Any]:
    """Hold opened graphs against PyTorch's answers; what the manifest stores as parity.

    Raises ParityError when it is outside the tolerance of its precision.
    """
    worst = relative = 0.0
    where, agree, total = "", list[float](), 0
    found: dict[str, np.ndarray] = {}
    for probe in probes:
        got = found[probe.name] = logits(graphs, probe.feeds)
        _check_form(got, probe, recipe)
        real, wanted = got[probe.counts], probe.logits[probe.counts]
        difference = np.abs(real - wanted)
        if difference.max() > worst:
            worst, where = float(difference.max()), probe.name
        relative = max(relative, float((difference / np.maximum(np.abs(wanted), 1e-6)).max()))
        same = got.argmax(-1) == probe.logits.argmax(-1)
        # By sequence: the longest text has more tokens than all rows together, and is no text of the user's.
        agree += [float(s[c].mean()) for s, c in zip(same, probe.counts, strict=True)]
        total += len(real)
    parity: dict[str, Any] = {
        "against": "pytorch",
        "inputs": len(probes),
        "largest_absolute_difference": worst,
        "largest_relative_difference": relative,
        "worst_case": where,
        "agreement": sum(agree) / len(agree),
        "decisions": total,
        "batch_dependence": _by_batch(found, probes),
        "tolerance": {
            "largest_absolute_difference": LARGEST_DIFFERENCE.get(recipe.precision),
            "agreement": (LOWEST_AGREEMENT_WORDS if written else LOWEST_AGREEMENT)[recipe.precision],
        },
    }
    judge(parity, recipe)
    if written:
        parity["greedy"] = _compare_written(graphs, written, recipe)
    return parity


def _check_form(got: np.ndarray, probe: Probe, recipe: Recipe) -> None:
    if got.shape != probe.logits.shape:
        raise ParityError(
            f"the {recipe.name} graph answers {probe.name} with {got.shape}, PyTorch {probe.logits.shape}"
        )
    if not np.isfinite(got[probe.counts]).all():
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
    limit = LARGEST_DIFFERENCE.get(recipe.precision)
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


def graphs_load_in(
    bundle: Bundle, graphs: Graphs, probes: Sequence[Probe], written: Sequence[Written]
) -> dict[str, Any]:
    """Load the bundle as it stands in Optimum and compare its answers with the plain sessions', alone and in a batch.

    For generation also what its `generate` writes greedily, for a single text and for the padded batch.
    """
    import optimum.onnxruntime

    found: dict[str, Any] = {"transformersjs": {"tested": False, "why": "needs Node"}}
    keys = ("optimum", "optimum_batched", *(["optimum_generate"] if written else []))
    try:
        peer = getattr(optimum.onnxruntime, _PEERS[graphs.task]).from_pretrained(bundle.path)
    except Exception as error:  # whatever Optimum raises is the finding
        return {**{key: _failed(error) for key in keys}, **found}
    singles = [p for p in probes if p.name != "padded batch"]
    for key, chosen in (("optimum", singles), ("optimum_batched", [p for p in probes if p.name == "padded batch"])):
        try:
            worst = max(_difference(peer, graphs, probe) for probe in chosen)
            found[key] = {"tested": True, "ok": worst <= 1e-4, "largest_absolute_difference": worst}
        except Exception as error:
            found[key] = _failed(error)
    if written:
        try:
            found["optimum_generate"] = _generates(peer, graphs, written)
        except Exception as error:
            found["optimum_generate"] = _failed(error)
    return found


def _failed(error: Exception) -> dict[str, Any]:
    return {"tested": True, "ok": False, "why": f"{type(error).__name__}: {error}"[:300]}


def _difference(peer: Any, graphs: Graphs, probe: Probe) -> float:
    import torch

    feeds = {n: torch.from_numpy(v) for n, v in probe.feeds.items() if n != "decoder_attention_mask"}
    theirs = np.asarray(peer(**feeds).logits)
    return float(np.abs(theirs - logits(graphs, probe.feeds))[probe.counts].max())


def _generates(peer: Any, graphs: Graphs, written: Sequence[Written]) -> dict[str, Any]:
    """Greedy tokens of Optimum's generate against ours, up to a row's end token, where generate stops."""
    import torch

    ends = peer.generation_config.eos_token_id
    stop = set(ends if isinstance(ends, list) else [ends])
    equal = sequences = 0
    for case in written:
        feeds = {n: torch.from_numpy(case.feeds[n]) for n in ("input_ids", "attention_mask")}
        theirs = np.asarray(peer.generate(**feeds, max_new_tokens=STEPS, do_sample=False, num_beams=1))
        start = 1 if graphs.task == "text2text-generation" else case.feeds["input_ids"].shape[1]
        for got, wanted in zip(theirs[:, start:], greedy(graphs, case.feeds, STEPS), strict=True):
            until = next((i + 1 for i, token in enumerate(wanted.tolist()) if token in stop), STEPS)
            sequences, equal = sequences + 1, equal + (got[:until].tolist() == wanted[:until].tolist())
    return {"tested": True, "ok": equal == sequences, "sequences": sequences, "equal": equal}
