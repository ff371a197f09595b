"""Intervals for times and memory: the process, not the call, is what repeats independently.

Calls of one process share its memory layout, its cache and its clock, so that latency varies between processes more
than within one. Every interval here therefore takes the processes (rounds) as clusters. All bounds are one-sided at
`level`: each holds with that confidence, both together with 2 * level - 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import numpy as np

from edgewise.errors import EdgewiseError
from edgewise.paired import Bounds, check_level, exp_or_none
from edgewise.student import student_quantile
from edgewise.types import Metric
from edgewise.units import PERCENTILES, SAMPLE_NEEDED

Floats = np.ndarray[Any, np.dtype[np.float64]]

RESAMPLES = 2000
_NORMAL_GRID = np.array([NormalDist().inv_cdf((i + 0.5) / 41) for i in range(41)])


def mean_bounds(per_process: Sequence[float], level: float) -> Bounds:
    """Mean over processes of one number each, by Student's t.

    It is the cluster bootstrap's own limit for a mean, with its two corrections for few clusters, sqrt(G / (G - 1))
    for the variance and t for z, in closed form.
    """
    check_level(level)
    values = np.asarray(per_process, dtype=np.float64)
    n, mean = len(values), float(np.mean(values))
    if n < 2:
        return Bounds(mean, None, None, n, "one process", "bounds need at least 2 processes")
    half = student_quantile(level, n - 1) * float(np.std(values, ddof=1)) / math.sqrt(n)
    return Bounds(mean, mean - half, mean + half, n, "mean of processes, Student t")


def percentile_bounds(
    clusters: Sequence[Floats], q: float, level: float, *, seed: int = 0, resamples: int = RESAMPLES
) -> Bounds:
    """The q-quantile over all calls of all processes, each process weighing the same, with its bounds.

    clusters: one array of times for each process, any positive unit. The value is a time that was measured (rank
    q * (n + 1), rounded up). Bounds come from a cluster bootstrap over processes on the logarithm of the time, with
    sqrt(G / (G - 1)) for the variance and Student's t for z. Few processes hide how far apart processes can be, which
    moves the tail; so the upper bound is at least that of a smoothed bootstrap, which draws the level of a process
    from the normal distribution that the levels seen leave possible.
    """
    check_level(level)
    if not clusters or any(len(c) == 0 for c in clusters):
        raise EdgewiseError("a percentile needs at least one call of each process")
    ordered = [np.sort(np.log(np.asarray(c, dtype=np.float64))) for c in clusters]
    groups, n = len(ordered), sum(len(c) for c in ordered)
    value = float(_pooled_quantile(ordered, q, np.ones((1, groups)))[0])
    if groups < 2:
        return Bounds(math.exp(value), None, None, n, "one process", "bounds need at least 2 processes")
    random = np.random.default_rng(seed)
    counts = random.multinomial(groups, [1 / groups] * groups, size=resamples)
    spread = float(np.std(_pooled_quantile(ordered, q, counts))) * math.sqrt(groups / (groups - 1))
    half = student_quantile(level, groups - 1) * spread
    high = max(value + half, _smoothed_upper(ordered, q, level, random, resamples))
    # Student's t of two processes at 99.9% is 318: where they lie far apart they bound nothing from above.
    low, most = math.exp(value - half), exp_or_none(high)
    return Bounds(math.exp(value), low, most, n, "cluster bootstrap over processes, t")


def process_quantile(times: Floats, q: float) -> float:
    """The q-quantile of one process: a time that was measured, of rank q * (n + 1), rounded up."""
    ordered = np.sort(times)
    return float(ordered[min(len(ordered), math.ceil(q * (len(ordered) + 1) - 1e-9)) - 1])


def _pooled_quantile(ordered: Sequence[Floats], q: float, counts: Any) -> Floats:
    """For each row of counts [resamples, processes]: the smallest value at which the weighted share reaches q.

    By bisection over the pooled values, for all rows at once.
    """
    pooled = np.sort(np.concatenate(list(ordered)))
    wanted = min(1.0, q * (1 + 1 / len(pooled))) * len(ordered) - 1e-9
    low = np.zeros(len(counts), dtype=np.int64)
    high = np.full(len(counts), len(pooled) - 1, dtype=np.int64)
    while (low < high).any():
        middle = (low + high) // 2
        at = pooled[middle]
        share = sum(counts[:, g] * (np.searchsorted(x, at, "right") / len(x)) for g, x in enumerate(ordered))
        reached = share >= wanted
        high = np.where(reached, middle, high)
        low = np.where(reached, low, np.minimum(middle + 1, high))
    result: Floats = pooled[high]
    return result


def _smoothed_upper(ordered: Sequence[Floats], q: float, level: float, random: Any, draws: int) -> float:
    """Upper bound of the quantile when process levels are normal with unknown mean and variance.

    Draws (mean, deviation) from their posterior under the usual flat prior, and takes the quantile of
    normal + residuals of the calls around their process.
    """
    groups = len(ordered)
    levels = np.array([np.mean(x) for x in ordered])
    residuals = np.sort(np.concatenate([x - m for x, m in zip(ordered, levels, strict=True)]))
    deviation = float(np.std(levels, ddof=1)) * np.sqrt((groups - 1) / random.chisquare(groups - 1, draws))
    mean = float(np.mean(levels)) + deviation * random.standard_normal(draws) / math.sqrt(groups)
    # The quantile depends on the deviation smoothly: 24 points and a line between them are enough.
    grid = np.linspace(0.0, float(np.max(deviation)), 24)
    quantiles = mean + np.interp(deviation, grid, _convolved_quantile(residuals, grid, q))
    return float(np.quantile(quantiles, level))


def _convolved_quantile(residuals: Floats, deviations: Floats, q: float) -> Floats:
    """The q-quantile of residual + deviation * standard normal, for each deviation."""
    shifts = deviations[:, None] * _NORMAL_GRID[None, :]
    low = residuals[0] + shifts[:, 0]
    high = residuals[-1] + shifts[:, -1]
    for _ in range(30):
        middle = (low + high) / 2
        share = np.searchsorted(residuals, middle[:, None] - shifts, "right").mean(axis=1) / len(residuals)
        high, low = np.where(share >= q, middle, high), np.where(share >= q, low, middle)
    result: Floats = high
    return result


def too_few_calls(metric: Metric) -> bool:
    """Whether a percentile is unknown because its sample is too small, which `percentile_metrics` says."""
    return metric.value is None and metric.why.startswith("needs ")


def percentile_metrics(
    clusters: Sequence[Floats], level: float, *, seed: int = 0, resamples: int = RESAMPLES
) -> tuple[Metric, ...]:
    """p50 to p99.9 of times in seconds; a percentile whose sample is too small is 'unavailable' and says what it needs.

    clusters: one array of seconds a call for each process.
    """
    n = sum(len(c) for c in clusters)
    metrics = []
    for name, q in PERCENTILES.items():
        if n < SAMPLE_NEEDED[name]:
            why = f"needs {SAMPLE_NEEDED[name] - n:,} more calls: {n:,} measured, {SAMPLE_NEEDED[name]:,} needed"
            metrics.append(Metric(name, "s", None, n=n, kind="unavailable", why=why))
        else:
            bounds = percentile_bounds(clusters, q, level, seed=seed, resamples=resamples)
            metrics.append(bounds.as_metric(name, "s", level))
    return tuple(metrics)


def relative_half_width(metric: Metric) -> float | None:
    """Half the width of a metric's interval, relative to its value; None where there is no interval."""
    if metric.value is None or metric.low is None or metric.high is None or metric.value == 0:
        return None
    return (metric.high - metric.low) / 2 / abs(metric.value)
