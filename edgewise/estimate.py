"""`fit --dry-run`: what would be done, with counts, and rough estimates of time and disk. Touches nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from edgewise.errors import EdgewiseError

if TYPE_CHECKING:
    from edgewise.data import Splits
    from edgewise.plan import CandidateSpec, Plan

_TOKENS_A_ROW = 32
"""Assumed where the rows were not tokenized: a sentence or two."""
_EFFICIENCY = 0.35
"""Share of the matrix product's rate that training and inference reach at these sizes (seen on 2 cores)."""
_EXPORT_SECONDS = 6.0
"""A recipe with its proofs, on 2 cores."""
_CONTENDERS = 6
"""Points that a search measures in full, more or less."""
_START_SECONDS = 0.6
"""A fresh worker process until its first timed call."""


@dataclass(frozen=True)
class Estimate:
    """One line of the dry run."""

    step: str
    count: str
    seconds: float | None
    """None when it cannot be told."""
    bytes: int


def estimate(plan: Plan, splits: Splits, *, minutes: float | None = None) -> list[Estimate]:
    """Steps of the plan in order. Times are rough: they rest on one matrix product timed here.

    minutes: of measuring, where they are limited.
    """
    rate = _matmul_rate() * _EFFICIENCY
    sizes = {c.name: _matrix_parameters(plan, c) for c in plan.candidates}
    bundles = sum(1 if c.onnx else len(plan.recipes) for c in plan.candidates)
    whole = {c.name: _bytes(plan, c) for c in plan.candidates}
    lengths = {(t.device, t.run.provider, t.run.max_length, t.run.batch_size) for t in plan.targets}
    steps = [_training(plan, splits, c, sizes[c.name], whole[c.name], rate) for c in plan.candidates if _trains(c)]
    steps.append(
        Estimate("export", f"{bundles} bundles", bundles * _EXPORT_SECONDS, sum(whole.values()) * len(plan.recipes))
    )
    answers = len(splits.val) * len(lengths)
    flops = sum(2 * (size or 0) * _TOKENS_A_ROW for size in sizes.values()) * len(plan.recipes)
    known = all(sizes.values())
    if plan.races or minutes is not None:
        steps += _searching(plan, len(lengths), answers * flops / rate if known else None, minutes)
        return [*steps, _confirming(plan, splits, flops, bundles, rate, known)]
    steps.append(
        Estimate(
            f"accuracy on {len(splits.val)} val rows",
            f"{bundles} bundles x {len(lengths)} settings",
            answers * flops / rate if known else None,
            bundles * answers * 100,
        )
    )
    processes = bundles * len(plan.targets) * plan.profile.min_rounds
    steps.append(
        Estimate(
            "latency, start-up, memory",
            f"{bundles} bundles x {len(plan.targets)} targets x {plan.profile.min_rounds} rounds",
            processes * (_START_SECONDS + plan.profile.seconds),
            processes * 3000,
        )
    )
    return [*steps, _confirming(plan, splits, flops, bundles, rate, known)]


def _confirming(plan: Plan, splits: Splits, flops: float, bundles: int, rate: float, known: bool) -> Estimate:
    confirm = flops / max(1, bundles) * 2 * len(splits.confirm) / rate + 5 * (_START_SECONDS + plan.profile.seconds)
    return Estimate("confirm, report", "1 bundle or more", confirm + 10 if known else None, 6_000_000)


def _searching(plan: Plan, lengths: int, answers: float | None, minutes: float | None) -> list[Estimate]:
    """What a search may take at most in its cheap steps, and for a few contenders; which these are is seen then."""
    from edgewise.search import PROPOSED
    from edgewise.search_steps import look_seconds

    seen = min(plan.points, PROPOSED) if plan.search == "optuna" else plan.points
    bundles = plan.points // max(1, len(plan.targets))
    looks = seen * (_START_SECONDS + look_seconds(plan.profile))
    full = _CONTENDERS * plan.profile.min_rounds * (_START_SECONDS + plan.profile.seconds)
    within = None if minutes is None else 60 * minutes
    cheap = looks if answers is None else looks + answers
    share = 1.0 if within is None else min(1.0, within / (cheap + full))
    return [
        Estimate(
            "looks and answers",
            f"at most {seen} points, {bundles * lengths} x all rows",
            None if answers is None else cheap * share,
            bundles * lengths * 100_000,
        ),
        Estimate(
            "in full, the contenders",
            f"a few of {plan.points} points" + ("" if minutes is None else f"; {minutes:g} min in all"),
            full * share,
            _CONTENDERS * plan.profile.min_rounds * 3000,
        ),
    ]


def _trains(candidate: CandidateSpec) -> bool:
    return candidate.tune != "none" and candidate.tune.strategy != "none"


def _training(
    plan: Plan, splits: Splits, candidate: CandidateSpec, size: int | None, weights: int, rate: float
) -> Estimate:
    assert candidate.tune != "none"
    rows = len(splits.train) * candidate.tune.epochs
    # Forward 2 and backward 4 operations a parameter and token (Kaplan et al. 2020, arXiv:2001.08361).
    seconds = 6 * size * _TOKENS_A_ROW * rows / rate if size else None
    what = f"{candidate.tune.strategy}, {len(splits.train)} rows x {candidate.tune.epochs:g} epochs"
    return Estimate(f"tune {candidate.name}", what, seconds, weights)


def _matmul_rate() -> float:
    """Operations a second of a float32 matrix product on this machine, from a fifth of a second."""
    import numpy as np

    a = np.ones((512, 512), dtype=np.float32)
    start, count = perf_counter(), 0
    while perf_counter() - start < 0.2:
        a @ a
        count += 1
    return 2 * 512**3 * count / (perf_counter() - start)


def _config(plan: Plan, candidate: CandidateSpec) -> tuple[Path, dict[str, Any]] | None:
    """The candidate's config, if it lies on this machine already: a dry run fetches nothing."""
    source = candidate.from_ or ""
    try:
        if source.startswith("asset:"):
            from edgewise.assets import cache_folder

            folder = cache_folder() / source.removeprefix("asset:")
        else:
            folder = plan.resolve(candidate.onnx or source)
        return folder, json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, EdgewiseError):
        return None


def _matrix_parameters(plan: Plan, candidate: CandidateSpec) -> int | None:
    """Parameters in the encoder's matrices, which set the time; embeddings are looked up, not multiplied."""
    found = _config(plan, candidate)
    if found is None:
        return None
    config = found[1]
    hidden, depth = config.get("hidden_size"), config.get("num_hidden_layers")
    if not isinstance(hidden, int) or not isinstance(depth, int):
        return None
    if candidate.tune != "none" and candidate.tune.keep_layers is not None:
        depth = len(candidate.tune.keep_layers)
    return int(depth * (4 * hidden * hidden + 2 * hidden * int(config.get("intermediate_size", 4 * hidden))))


def _bytes(plan: Plan, candidate: CandidateSpec) -> int:
    found = _config(plan, candidate)
    if found is None:
        return 0
    return sum(f.stat().st_size for f in found[0].rglob("*") if f.suffix in (".safetensors", ".onnx"))


def words(steps: Sequence[Estimate]) -> str:
    """The dry run as a table."""
    lines = [f"{'step':<28} {'what':<46} {'time':>9} {'disk':>8}"]
    for s in steps:
        time = "unknown" if s.seconds is None else _minutes(s.seconds)
        lines.append(f"{s.step:<28} {s.count:<46} {time:>9} {s.bytes / 1e6:>5.0f} MB")
    known = [s.seconds for s in steps if s.seconds is not None]
    more = " and more, for models that are not on this machine yet" if len(known) < len(steps) else ""
    total = sum(s.bytes for s in steps)
    lines.append(f"about {_minutes(sum(known))}{more}, {total / 1e6:.0f} MB of disk; nothing was run or written")
    return "\n".join(lines)


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.0f} s"
