"""Perplexity, and of masked words their accuracy, from the likelihood of each row; and what a bundle loses in them.

Rows are what repeats: their tokens hang together, so that each row is a cluster. Totals over totals are ratios, whose
spread is that of what each row moves them by (the delta method; W. G. Cochran, Sampling Techniques, 1977, chapter 6).
All bounds are one-sided at `level`, by Student's t.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from edgewise.errors import WorkerError
from edgewise.metric_scores import NoValueError, perplexity
from edgewise.paired import LARGEST, Bounds, exp_or_none, paired_drop, ratio_of, spread_of
from edgewise.profiler.proportions import wilson_bounds
from edgewise.profiler.store import Outcome
from edgewise.student import student_quantile
from edgewise.types import Measurement, Metric
from edgewise.units import WORST

_OTHER_TOKENS = "the tokens are not the same ones: another tokenizer, so that perplexities a token do not compare"


def is_likelihood(m: Measurement) -> bool:
    """Whether the outcomes of an accuracy measurement are likelihoods: see `outcome_of`."""
    return m.metric("perplexity") is not None


def outcome_of(row_id: str, given: Sequence[Any]) -> Outcome:
    """Of one row: its score is the sum of log-probabilities, its label the number of tokens that were scored, its
    answer how many of these the model held for the likeliest. given: [sum, scored, likeliest], as the worker wrote it.

    Raises WorkerError for anything else.
    """
    try:
        total, scored, right = given
        if 0 <= int(right) <= int(scored) and not math.isnan(float(total)):
            return Outcome(row_id, int(right), int(scored), float(total))
    except (TypeError, ValueError):
        pass
    raise WorkerError(f"the worker gave {given!r} for a likelihood: [sum of log-probabilities, tokens, right ones]")


def likelihood_metrics(
    outcomes: Sequence[Outcome], level: float, *, accuracy: bool = False, about: str = ""
) -> tuple[Metric, ...]:
    """`perplexity`, and with `accuracy` the share of scored tokens that were the likeliest; n: tokens scored.

    about: which tokens, for the method.
    """
    found = [_perplexity(outcomes, level), *([_accuracy(outcomes, level)] if accuracy else [])]
    return tuple(replace(m, method="; ".join(filter(None, (about, m.method)))) for m in found)


def _perplexity(outcomes: Sequence[Outcome], level: float) -> Metric:
    sizes = _sizes(outcomes)
    try:
        value = perplexity([o.score for o in outcomes], sizes)
    except NoValueError as error:
        return Metric("perplexity", "number", None, kind="unavailable", why=str(error))
    if not math.isfinite(value):
        return Metric("perplexity", "number", None, kind="unavailable", why="a token has a probability of 0")
    mean, moves = ratio_of([-o.score for o in outcomes], sizes)
    bounds = _by_student(mean, moves, level, sum(sizes))
    low = None if bounds.low is None else max(1.0, math.exp(bounds.low))  # no text has a perplexity below 1
    return _metric(replace(bounds, value=value, low=low, high=exp_or_none(bounds.high)), "perplexity", "number", level)


def _accuracy(outcomes: Sequence[Outcome], level: float) -> Metric:
    """Wilson's bounds with as many tokens as would vary as much if each stood alone (L. Kish's effective sample)."""
    sizes = _sizes(outcomes)
    n = sum(sizes)
    if not n:
        return Metric("accuracy", "1", None, kind="unavailable", why="no token was scored")
    share, moves = ratio_of([float(o.answer) for o in outcomes], sizes)
    variance = spread_of(moves) ** 2
    # Without any variance rows are all that is known to be alone.
    alone = share * (1 - share) / variance if variance else float(sum(s > 0 for s in sizes))
    whole = max(1, min(n, int(alone)))
    bounds = replace(
        wilson_bounds(share * whole, whole, level), n=n, method="Wilson score, the tokens of a row as a cluster"
    )
    return bounds.as_metric("accuracy", "1", level)


@dataclass(frozen=True)
class PairedLikelihood:
    """A bundle against its reference, on the same tokens."""

    ratio: Bounds
    """Its perplexity over that of the reference; n: tokens."""
    drop: Bounds
    """Of the share of tokens that were the likeliest, in percentage points; positive is a loss."""
    same: bool
    """Every number of every row is the same."""


def paired_likelihood(pairs: Sequence[tuple[Outcome, Outcome]], level: float) -> PairedLikelihood | str:
    """(reference, bundle) of each row, compared; or why they cannot be."""
    if any(a.label != b.label for a, b in pairs):
        return _OTHER_TOKENS
    sizes = _sizes([a for a, _ in pairs])
    n = sum(sizes)
    if not n:
        return "no token was scored"
    if not all(math.isfinite(o.score) for pair in pairs for o in pair):
        return "a token has a probability of 0"
    log_ratio, moves = ratio_of([a.score - b.score for a, b in pairs], sizes)
    ratio = _by_student(log_ratio, moves, level, n)
    ratio = replace(
        ratio, value=math.exp(min(log_ratio, LARGEST)), low=exp_or_none(ratio.low), high=exp_or_none(ratio.high)
    )
    lost, moves = ratio_of([100.0 * (a.answer - b.answer) for a, b in pairs], sizes)
    drop = _by_student(lost, moves, level, n)
    if not any(moves):  # no change seen is no proof of none: as Tango's bounds on rows have it
        drop = replace(drop, low=(none := paired_drop(0, 0, len(pairs), level).points).low, high=none.high)
    return PairedLikelihood(ratio, drop, all((a.answer, a.score) == (b.answer, b.score) for a, b in pairs))


def compared_metrics(
    pairs: Sequence[tuple[Outcome, Outcome]], level: float, reference: str, *, accuracy: bool
) -> tuple[tuple[Metric, ...], str]:
    """`perplexity_ratio`, with `accuracy` also `accuracy_drop`, and the sentence that they allow."""
    found = paired_likelihood(pairs, level)
    if isinstance(found, str):
        return unavailable_ratio(found, accuracy=accuracy), ""
    metrics = [_metric(found.ratio, "perplexity_ratio", "number", level)]
    if accuracy:
        metrics.append(_metric(found.drop, "accuracy_drop", "points", level))
    most = "" if found.ratio.high is None else f", at most {found.ratio.high:.4f} at {100 * level:g}%"
    return tuple(
        metrics
    ), f"Perplexity {found.ratio.value:.4f} times that of {reference}{most}, on {found.ratio.n:,} tokens."


def unavailable_ratio(why: str, *, accuracy: bool) -> tuple[Metric, ...]:
    """What a comparison that cannot be made has, and why."""
    names = (("perplexity_ratio", "number"), *((("accuracy_drop", "points"),) if accuracy else ()))
    return tuple(Metric(name, unit, None, kind="unavailable", why=why) for name, unit in names)


def on_slices(outcomes: Sequence[Outcome], slices: Sequence[dict[str, Any]], level: float) -> Metric:
    """Perplexity on each slice, written into it with its bounds, which hold together; the worst of 20 rows or more."""
    from edgewise.metrics import SMALLEST_SLICE

    together = 1 - (1 - level) / len(slices)
    found = []
    for part in slices:
        metric = _perplexity([outcomes[i] for i in part["rows"]], together)
        part |= {"perplexity": metric.value, "low": metric.low, "high": metric.high}
        if metric.value is not None and len(part["rows"]) >= SMALLEST_SLICE:
            found.append((metric.value, part["slice"], metric))
    name = f"{WORST}perplexity"
    if not found:
        return Metric(name, "number", None, kind="unavailable", why=f"no slice has {SMALLEST_SLICE} rows")
    _, worst, metric = max(found)
    method = f"{metric.method}, {len(slices)} slices together; the worst is {worst}"
    return replace(metric, name=name, level=level if metric.high is not None else None, method=method)


def ratio_on_slices(
    pairs: Sequence[tuple[Outcome, Outcome]], parts: Sequence[Mapping[str, Any]], level: float
) -> list[dict[str, Any]]:
    """Ratio of perplexities on each slice; its bounds hold together at `level`."""
    together = 1 - (1 - level) / len(parts)
    told = []
    for part in parts:
        found = paired_likelihood([pairs[i] for i in part["rows"]], together)
        ratio = Bounds(math.nan, None, None, 0, "", found) if isinstance(found, str) else found.ratio
        value = None if math.isnan(ratio.value) else ratio.value
        told.append({"slice": part["slice"], "n": ratio.n, "ratio": value, "low": ratio.low, "high": ratio.high})
    return told


def _sizes(outcomes: Sequence[Outcome]) -> list[int]:
    """Tokens scored of each row."""
    return [o.label or 0 for o in outcomes]


def _by_student(value: float, moves: Sequence[float], level: float, n: int) -> Bounds:
    rows = len(moves)
    if rows < 2:
        return Bounds(value, None, None, n, "", "one row alone has no interval")
    half = student_quantile(level, rows - 1) * spread_of(moves)
    return Bounds(value, value - half, value + half, n, f"delta method, the tokens of {rows:,} rows as clusters")


def _metric(bounds: Bounds, name: str, unit: str, level: float) -> Metric:
    """Without bounds an estimate, which shows no budget to be kept."""
    metric = bounds.as_metric(name, unit, level)
    return metric if metric.level is not None else replace(metric, kind="estimated")
