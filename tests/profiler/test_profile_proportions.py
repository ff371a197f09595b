"""Accuracy, F1 and paired drops: the intervals cover, and the words say no more than they show."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import optimize, stats

from edgewise.errors import EdgewiseError
from edgewise.metrics import compute
from edgewise.paired import more_rows_for, paired_drop, rounded, words_for_drop
from edgewise.profiler.proportions import confusion, f1_bounds, f1_of, wilson_bounds


def test_wilson_is_that_of_scipy() -> None:
    ours = wilson_bounds(81, 100, 0.95)
    theirs = stats.binomtest(81, 100).proportion_ci(confidence_level=0.9, method="wilson")
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-9)
    assert wilson_bounds(0, 50, 0.95).low == 0
    assert wilson_bounds(0, 50, 0.95).high > 0.04  # type: ignore[operator]
    with pytest.raises(EdgewiseError):
        wilson_bounds(3, 2, 0.95)


@pytest.mark.parametrize(("classes", "seed"), [(2, 0), (2, 1), (4, 2), (5, 3)])
def test_f1_is_that_of_the_metrics(classes: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    predicted = random.integers(0, classes, 60).tolist()
    right = random.integers(0, max(2, classes - 1), 60).tolist()  # with more classes, one that is never right
    labels = [str(i) for i in range(classes)]
    counts = confusion(predicted, right, classes)
    assert counts.sum() == 60
    assert float(f1_of(counts)) == pytest.approx(compute(["f1"], predicted, right, labels)["f1"])


def test_f1_bounds_cover_at_their_rate() -> None:
    random, runs, n = np.random.default_rng(1), 300, 400
    cells = np.array([[0.4, 0.1], [0.08, 0.42]])
    truth, low, high = float(f1_of(cells)), 0, 0
    for seed in range(runs):
        counts = random.multinomial(n, cells.ravel()).reshape(2, 2)
        bounds = f1_bounds(counts, 0.95, seed=seed, resamples=500)
        low += bounds.low <= truth  # type: ignore[operator]
        high += bounds.high >= truth  # type: ignore[operator]
    assert min(low, high) / runs >= 0.91


def _score_by_hand(lost: int, gained: int, n: int, difference: float) -> float:
    """Tango's statistic with the constrained likelihood maximized by a general method, not by his formula."""

    def loss(p_gained: float) -> float:
        p_lost = p_gained + difference
        same = 1 - p_lost - p_gained
        return -(
            lost * math.log(max(p_lost, 1e-300))
            + gained * math.log(max(p_gained, 1e-300))
            + (n - lost - gained) * math.log(max(same, 1e-300))
        )

    floor, ceiling = max(0.0, -difference), (1 - difference) / 2
    best = optimize.minimize_scalar(loss, bounds=(floor, ceiling), method="bounded", options={"xatol": 1e-12}).x
    return float((lost - gained - n * difference) / math.sqrt(n * (2 * best + difference * (1 - difference))))


@pytest.mark.parametrize(("lost", "gained", "n"), [(1, 0, 44), (37, 30, 3210), (5, 12, 200), (0, 7, 90), (20, 1, 60)])
def test_the_drop_bounds_are_where_the_score_is_z(lost: int, gained: int, n: int) -> None:
    bounds = paired_drop(lost, gained, n, 0.95).points
    assert bounds.low is not None
    assert bounds.high is not None
    z = stats.norm.ppf(0.95)
    assert _score_by_hand(lost, gained, n, bounds.high / 100) == pytest.approx(-z, abs=2e-3)
    assert _score_by_hand(lost, gained, n, bounds.low / 100) == pytest.approx(z, abs=2e-3)
    assert bounds.low < bounds.value < bounds.high


def test_no_changed_row_is_no_proof_of_no_change() -> None:
    z2 = stats.norm.ppf(0.95) ** 2
    points = paired_drop(0, 0, 500, 0.95).points
    assert points.value == 0
    assert points.high == pytest.approx(100 * z2 / (500 + z2))
    assert points.low == pytest.approx(-100 * z2 / (500 + z2))


@pytest.mark.parametrize(("p_lost", "p_gained"), [(0.02, 0.015), (0.005, 0.005), (0.03, 0.0), (0.1, 0.05)])
def test_the_drop_bounds_cover_at_their_rate(p_lost: float, p_gained: float) -> None:
    random, runs, n = np.random.default_rng(2), 400, 600
    truth, low, high = 100 * (p_lost - p_gained), 0, 0
    for lost, gained, _ in random.multinomial(n, [p_lost, p_gained, 1 - p_lost - p_gained], size=runs):
        points = paired_drop(int(lost), int(gained), n, 0.95).points
        low += points.low <= truth  # type: ignore[operator]
        high += points.high >= truth  # type: ignore[operator]
    assert min(low, high) / runs >= 0.95 - 0.035


def test_within_is_said_only_when_the_bound_is() -> None:
    shown = paired_drop(3, 3, 3000, 0.95)
    assert words_for_drop(shown, 0.5).startswith("Within 0.5 points of fp32: ")
    assert shown.points.high is not None
    assert shown.points.high <= 0.5
    assert words_for_drop(paired_drop(0, 0, 300, 0.95), 0.5).startswith("Not shown to be within 0.5 points")


def test_more_rows_are_as_many_as_it_takes() -> None:
    drop = paired_drop(37, 30, 3210, 0.95)
    more = more_rows_for(drop, 0.5)
    assert more is not None
    assert f"about {rounded(more):,} more rows" in words_for_drop(drop, 0.5)
    assert [rounded(n) for n in (1, 97, 100, 101, 69_236, 99_100)] == [1, 97, 100, 110, 70_000, 100_000]
    # Counts must be whole: ten times as many rows as asked for, with shares kept, say the same as the bisection.
    scale = (3210 + more) / 3210
    assert paired_drop(round(37 * scale), round(30 * scale), round(3210 * scale), 0.95).points.high == pytest.approx(
        0.5, abs=0.01
    )
    assert more_rows_for(paired_drop(3, 3, 3000, 0.95), 0.5) == 0
    assert more_rows_for(paired_drop(80, 30, 3210, 0.95), 0.5) is None
    assert "more rows would not show it" in words_for_drop(paired_drop(80, 30, 3210, 0.95), 0.5)


def test_impossible_counts_are_refused() -> None:
    with pytest.raises(EdgewiseError, match="cannot be"):
        paired_drop(5, 6, 10, 0.95)
