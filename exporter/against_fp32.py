"""What a form loses against fp32 on the same rows, how many answers it changes, and what the batch does to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from edgewise.exporter.outcomes import BATCH, Example, Outcomes
from edgewise.exporter.pooling import cosine
from edgewise.exporter.sessions import Feeds, Graphs, answers
from edgewise.paired import paired_drop, words_for_drop
from edgewise.types import Task

LEVEL = 0.95
"""Of the bounds; one-sided."""
_RESAMPLES = 4000
_LABELS = "share of labels right"
_MEASURES: dict[Task, str] = {
    "text-classification": _LABELS,
    "token-classification": "share of words tagged right",
    "image-classification": _LABELS,
    "feature-extraction": "cosine with the fp32 vector",
    "image-feature-extraction": "cosine with the fp32 vector",
    "text-generation": "mean log-probability of the next word, nats",
    "text2text-generation": "mean log-probability of the right word, nats",
    "fill-mask": "log-probability of the masked word, nats",
}


def against_fp32(task: Task, fp32: Outcomes, found: Outcomes, problem_type: str | None = None) -> dict[str, Any]:
    """The manifest's parity['against_fp32']: measure, its value in fp32 and here, drop with a one-sided 95% upper bound
    (a bootstrap over rows; for shares an exact paired one), answers changed.

    Drops of shares are in points (percent of the rows).
    """
    measure = "minus the absolute error" if problem_type == "regression" else _MEASURES[task]
    if found.vectors is not None and fp32.vectors is not None:
        ours, reference = cosine(found.vectors, fp32.vectors), np.ones(len(fp32.vectors))
    else:
        known = ~np.isnan(fp32.scores)
        ours, reference = found.scores[known], fp32.scores[known]
    changed = sum(a != b for a, b in zip(fp32.decisions, found.decisions, strict=True))
    told: dict[str, Any] = {
        "rows": len(fp32.decisions),
        "answers_changed": changed,
        "share_changed": changed / len(fp32.decisions),
    }
    if not len(reference):
        return told
    scale = 100.0 if "share" in measure else 1.0
    drop = scale * (reference - ours)
    lost, gained = int((drop > 0).sum()), int((drop < 0).sum())
    return {
        **told,
        "measure": measure,
        "unit": "points" if scale == 100.0 else "1",  # set the line above
        "fp32": scale * float(reference.mean()),
        "value": scale * float(ours.mean()),
        "drop": float(drop.mean()),
        "drop_relative": float((reference.mean() - ours.mean()) / abs(reference.mean())) if reference.mean() else None,
        "drop_at_most": drop_bound(drop, measure),
        "level": LEVEL,
        **({"words": words_for_drop(paired_drop(lost, gained, len(drop), LEVEL))} if measure == _LABELS else {}),
    }


def drop_bound(drop: np.ndarray, measure: str) -> float:
    """One-sided 95% upper bound of the mean of paired drops, in their unit.

    For one label a row Tango's score bound; else a bootstrap over rows, never below what one row alone could lose: no
    change seen is no proof of no change.
    """
    if measure == _LABELS:
        high = paired_drop(int((drop > 0).sum()), int((drop < 0).sum()), len(drop), LEVEL).points.high
        assert high is not None
        return high
    draws = np.random.default_rng(0).integers(0, len(drop), size=(_RESAMPLES, len(drop)))
    bound = float(np.quantile(drop[draws].mean(1), LEVEL))
    return bound if np.any(drop) else bound + (100.0 if "share" in measure else 1.0) / len(drop)


def batch_effect(
    graphs: Graphs, chosen: Sequence[Example], alone: Outcomes, judge: Callable[..., tuple[float, Any]], pad: int
) -> dict[str, Any]:
    """Rows go through the graph eight at a time, as they come: how many decide otherwise than alone.

    Features are compared by direction: changed below a cosine of 0.99.
    """
    changed = compared = 0
    for start in range(0, len(chosen) - BATCH + 1, BATCH):
        group = chosen[start : start + BATCH]
        found = answers(graphs, stack([e.feeds for e in group], pad))
        for i, example in enumerate(group):
            row = found[i]
            if row.ndim == 2 and "input_ids" in example.feeds:  # [length, width]
                name = "decoder_input_ids" if "decoder_input_ids" in example.feeds else "input_ids"
                row = row[: example.feeds[name].shape[1]]
            _, decision = judge(row, example.target)
            compared += 1
            if alone.vectors is not None:
                changed += bool(cosine(decision, alone.vectors[start + i]) < 0.99)
            else:
                changed += decision != alone.decisions[start + i]
    return {"rows": compared, "batch_size": BATCH, "answers_changed": changed}


def stack(group: Sequence[Feeds], pad: int) -> dict[str, np.ndarray]:
    """One batch of several single feeds, padded on the right with `pad` (ids) or 0 (masks, types)."""
    found = {}
    for name in group[0]:
        arrays = [g[name] for g in group]
        if arrays[0].ndim != 2:  # pixels have one size
            found[name] = np.concatenate(arrays)
            continue
        longest = max(a.shape[1] for a in arrays)
        fill = pad if name.endswith("input_ids") else 0
        found[name] = np.concatenate(
            [np.pad(a, ((0, 0), (0, longest - a.shape[1])), constant_values=fill) for a in arrays]
        )
    return found
