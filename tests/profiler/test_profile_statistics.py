"""Intervals over processes: right by simulation, percentiles only where the sample allows."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from scipy import stats

from edgewise.errors import EdgewiseError
from edgewise.profiler.results import Calls, WorkerResult
from edgewise.profiler.rounds import Rounds, Series
from edgewise.profiler.statistics import (
    mean_bounds,
    percentile_bounds,
    percentile_metrics,
    relative_half_width,
)
from edgewise.student import student_cdf, student_quantile
from edgewise.types import Device, Target
from edgewise.units import SAMPLE_NEEDED


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 9, 10, 29, 200])
def test_student_t_is_that_of_scipy(freedom: int) -> None:
    for t in (0.0, 0.3, 1.0, 2.5, 12.0):
        assert student_cdf(t, freedom) == pytest.approx(stats.t.cdf(t, freedom), abs=1e-12)
        assert student_cdf(-t, freedom) == pytest.approx(stats.t.cdf(-t, freedom), abs=1e-12)
    for level in (0.5, 0.8, 0.95, 0.999):
        assert student_quantile(level, freedom) == pytest.approx(stats.t.ppf(level, freedom), rel=1e-7, abs=1e-7)


def test_percentile_is_a_time_that_was_measured() -> None:
    first, second = np.arange(1.0, 51.0), np.arange(51.0, 101.0)
    assert percentile_bounds([first, second], 0.95, 0.95).value == pytest.approx(96.0)  # rank 0.95 * 101, rounded up
    assert percentile_bounds([first, second], 0.5, 0.95).value == pytest.approx(51.0)
    assert percentile_bounds([second, first], 0.95, 0.95).value == pytest.approx(96.0)


def test_each_process_weighs_the_same_however_many_calls_it_made() -> None:
    slow, fast = np.full(10, 2.0), np.full(1000, 1.0)
    assert percentile_bounds([slow, fast], 0.9, 0.95).value == pytest.approx(2.0)
    assert percentile_bounds([slow, fast], 0.4, 0.95).value == pytest.approx(1.0)


def test_one_process_has_no_bounds_and_says_why() -> None:
    bounds = percentile_bounds([np.arange(1.0, 200.0)], 0.95, 0.95)
    assert (bounds.low, bounds.high) == (None, None)
    assert "2 processes" in bounds.why
    metric = bounds.as_metric("p95", "s", 0.95)
    assert metric.level is None
    assert relative_half_width(metric) is None


@pytest.mark.parametrize(("name", "needed"), SAMPLE_NEEDED.items())
def test_a_percentile_needs_its_sample(name: str, needed: int) -> None:
    calls = np.linspace(1.0, 2.0, needed)
    halves = [calls[: needed // 2], calls[needed // 2 :]]
    enough = {m.name: m for m in percentile_metrics(halves, 0.95, resamples=50)}
    assert enough[name].kind == "measured"
    short = {m.name: m for m in percentile_metrics([halves[0], halves[1][:-1]], 0.95, resamples=50)}
    assert short[name].value is None
    assert short[name].kind == "unavailable"
    assert short[name].why.startswith("needs 1 more calls")


def test_the_same_seed_gives_the_same_bounds() -> None:
    random = np.random.default_rng(3)
    clusters = [random.lognormal(size=80) for _ in range(5)]
    assert percentile_bounds(clusters, 0.9, 0.95) == percentile_bounds(clusters, 0.9, 0.95)
    assert percentile_bounds(clusters, 0.9, 0.95, seed=1) != percentile_bounds(clusters, 0.9, 0.95)


def _runs(between: float, within: float, processes: int, calls: int, spikes: float, seed: int) -> list[np.ndarray]:
    """Times of one simulated run: each process has a level of its own; calls in it are correlated in time."""
    random = np.random.default_rng(seed)
    clusters = []
    for _ in range(processes):
        noise = random.standard_normal(calls)
        for i in range(1, calls):
            noise[i] = 0.3 * noise[i - 1] + math.sqrt(1 - 0.09) * noise[i]
        times = np.exp(between * random.standard_normal() + within * noise)
        clusters.append(times * (1 + (random.random(calls) < spikes)))
    return clusters


def _truth(between: float, within: float, spikes: float, q: float) -> float:
    random = np.random.default_rng(99)
    n = 1_000_000
    times = np.exp(between * random.standard_normal(n) + within * random.standard_normal(n))
    return float(np.quantile(times * (1 + (random.random(n) < spikes)), q))


@pytest.mark.parametrize(
    ("between", "within", "spikes", "processes"),
    [(0.0, 0.1, 0.0, 5), (0.05, 0.1, 0.0, 5), (0.1, 0.05, 0.0, 5), (0.05, 0.1, 0.0, 10), (0.03, 0.1, 0.07, 5)],
)
@pytest.mark.parametrize("q", [0.5, 0.95])
def test_each_one_sided_bound_covers_at_its_rate(
    between: float, within: float, spikes: float, processes: int, q: float
) -> None:
    truth, runs, level = _truth(between, within, spikes, q), 250, 0.95
    low = high = 0
    for seed in range(runs):
        clusters = _runs(between, within, processes, 60, spikes, seed)
        bounds = percentile_bounds(clusters, q, level, seed=seed, resamples=400)
        assert bounds.low is not None
        assert bounds.high is not None
        low += bounds.low <= truth
        high += truth <= bounds.high
    # Three standard errors of a share of 250 runs are 0.04.
    assert low / runs >= level - 0.045
    assert high / runs >= level - 0.045


@pytest.mark.parametrize(
    ("between", "within", "spikes"),
    [
        (0.03, 0.1, 0.0),
        pytest.param(0.06, 0.1, 0.0, marks=pytest.mark.slow),
        pytest.param(0.04, 0.1, 0.07, marks=pytest.mark.slow),
    ],
)
def test_bounds_cover_with_our_own_stopping_rule(between: float, within: float, spikes: float) -> None:
    """To look after each round and stop when the interval is narrow makes intervals too narrow, if anything does:
    it must not make them cover less than they say."""
    rule, q, runs, level = Rounds(percentile="p95", width=0.05, min_rounds=5, max_rounds=10), 0.95, 200, 0.95
    truth = _truth(between, within, spikes, q)
    low = high = early = 0
    for seed in range(runs):
        series = Series(cast(Any, None), Target(), Device(), cast(Any, None), Path(), {})
        for number, times in enumerate(_runs(between, within, rule.max_rounds, 60, spikes, seed)):
            if number >= rule.min_rounds and series.enough(rule, level):
                early += 1
                break
            ns = tuple(int(1e7 * t) for t in times)
            series.rounds[number] = WorkerResult(number, {}, calls=Calls(ns, ns, ns, ns))
        bounds = percentile_bounds(series.seconds(), q, level)
        assert bounds.low is not None
        assert bounds.high is not None
        low += bounds.low <= truth / 100
        high += truth / 100 <= bounds.high
    assert 0 < early < runs  # both ways to end came up
    assert low / runs >= level - 0.05
    assert high / runs >= level - 0.05


def test_bounds_are_not_so_wide_that_they_say_nothing() -> None:
    bounds = percentile_bounds(_runs(0.02, 0.1, 5, 200, 0.0, 1), 0.95, 0.95)
    assert bounds.low is not None
    assert bounds.high is not None
    assert bounds.high / bounds.value < 1.15
    assert bounds.low / bounds.value > 0.9


def test_mean_over_processes_covers_at_its_rate() -> None:
    random, runs = np.random.default_rng(5), 2000
    found = [mean_bounds(list(10 + random.standard_normal(5)), 0.95) for _ in range(runs)]
    for covered in (sum(b.low <= 10 for b in found), sum(b.high >= 10 for b in found)):  # type: ignore[operator]
        assert covered / runs == pytest.approx(0.95, abs=0.015)
    assert mean_bounds([1.0, 2.0, 3.0], 0.95).value == 2.0
    assert mean_bounds([1.0], 0.95).high is None


@pytest.mark.parametrize("level", [0.2, 1.0, 1.5])
def test_a_level_that_is_none_is_refused(level: float) -> None:
    with pytest.raises(EdgewiseError, match="confidence"):
        mean_bounds([1.0, 2.0], level)


def test_no_calls_is_an_error() -> None:
    with pytest.raises(EdgewiseError, match="at least one call"):
        percentile_bounds([np.array([1.0]), np.array([])], 0.5, 0.95)


def test_two_processes_far_apart_bound_nothing_from_above() -> None:
    """At 99.9% Student's t of two processes is 318: the bound is beyond what a number can hold."""
    found = percentile_bounds([np.full(40, 1e-3), np.full(40, 0.5)], 0.95, 0.999)
    assert found.high is None
    assert found.low == pytest.approx(0.0, abs=1e-9)
    assert found.as_metric("p95", "s", 0.999).level == 0.999
