"""The grammar of limits, and values for people."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise.errors import PlanError
from edgewise.showing import show
from edgewise.units import METRICS, PERCENTILES, UNITS, check_metric, parse_budget, parse_limit, parse_objective


@pytest.mark.parametrize(
    ("text", "metric", "limit", "unit", "relative_to"),
    [
        ("p95 <= 10 ms", "p95", 0.01, "s", None),
        ("p95<=10ms", "p95", 0.01, "s", None),
        ("  p99.9  <=  1e3 us ", "p99.9", 0.001, "s", None),
        ("startup <= .5 s", "startup", 0.5, "s", None),
        ("size <= 30 MB", "size", 30e6, "B", None),
        ("size <= 30 MiB", "size", 30 * 2**20, "B", None),
        ("accuracy >= 0.8", "accuracy", 0.8, "1", None),
        ("accuracy >= 80 %", "accuracy", 0.8, "1", None),
        ("accuracy >= 80%", "accuracy", 0.8, "1", None),
        ("accuracy_drop <= 0.5 points of fp32-o2", "accuracy_drop", 0.5, "points", "fp32-o2"),
        ("accuracy_drop <= 0.5 points", "accuracy_drop", 0.5, "points", "fp32"),
        ("accuracy_drop <= -0.5 points", "accuracy_drop", -0.5, "points", "fp32"),
        ("throughput >= 100 /s", "throughput", 100.0, "1/s", None),
        ("throughput >= 100 1/s", "throughput", 100.0, "1/s", None),
        ("throughput >= 60 /min", "throughput", 1.0, "1/s", None),
    ],
)
def test_good_limits(text: str, metric: str, limit: float, unit: str, relative_to: str | None) -> None:
    budget = parse_budget(text)
    assert (budget.metric, budget.unit, budget.relative_to) == (metric, unit, relative_to)
    assert budget.limit == pytest.approx(limit, rel=1e-12)
    assert budget.op == ("<=" if METRICS[metric].better == "lower" else ">=")
    assert parse_budget(budget.text) == budget, "the text of a budget must read as the same budget"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("p96 <= 10 ms", "did you mean 'p9"),
        ("p95 <= 10", "unit is missing"),
        ("p95 <= 10 MB", "unit 'MB' does not fit"),
        ("p95 <= 10 Ms", "unit 'Ms' does not fit"),
        ("p95 >= 10 ms", "must start with <="),
        ("p95 < 10 ms", "must start with <="),
        ("p95 10 ms", "no budget"),
        ("p95 <= nan ms", "not a finite number"),
        ("p95 <= inf ms", "not a finite number"),
        ("p95 <= 1e999 ms", "not a finite number"),
        ("p95 <= -1 ms", "below 0"),
        ("p95 <= ten ms", "no limit"),
        ("p95 <= 1,5 ms", "no limit"),
        ("p95 <= 10 ms of fp32", "only fits"),
        ("accuracy >= 80", "at most 1"),
        ("accuracy >= 101 %", "at most 1"),
        ("accuracy <= 0.8", "must start with >="),
        ("", "no budget"),
        ("<= 10 ms", "no budget"),
    ],
)
def test_bad_limits(text: str, words: str) -> None:
    with pytest.raises(PlanError) as caught:
        parse_budget(text)
    assert words in str(caught.value)


@given(st.sampled_from(sorted(METRICS)), st.text(max_size=30))
def test_a_limit_is_a_budget_or_a_plan_error(metric: str, text: str) -> None:
    try:
        budget = parse_limit(metric, text)
    except PlanError:
        return
    assert math.isfinite(budget.limit)


@given(st.sampled_from(sorted(METRICS)), st.floats(0.001, 1.0), st.data())
def test_every_unit_of_a_metric_reads(metric: str, number: float, data: st.DataObject) -> None:
    kind = METRICS[metric]
    unit = data.draw(st.sampled_from(sorted(UNITS[kind.unit])))
    budget = parse_limit(metric, f"{'<=' if kind.better == 'lower' else '>='} {number:.6f} {unit}")
    assert budget.limit == pytest.approx(float(f"{number:.6f}") * UNITS[kind.unit][unit])


def test_percentiles_are_metrics_in_seconds() -> None:
    assert all(METRICS[check_metric(name)].unit == "s" for name in PERCENTILES)
    with pytest.raises(PlanError, match="did you mean 'accuracy'"):
        check_metric("acuracy")


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.00431, "s", "4.31 ms"),
        (1.5, "s", "1.50 s"),
        (25e-6, "s", "25.0 µs"),
        (0.0, "s", "0 µs"),
        (23.2e6, "B", "23.2 MB"),
        (1.25e9, "B", "1.25 GB"),
        (999.0, "B", "999 B"),
        (0.854, "1", "85.40%"),
        (0.35, "points", "0.35 points"),
        (-0.35, "points", "-0.35 points"),
        (123.4, "1/s", "123 /s"),
        (None, "s", "-"),
    ],
)
def test_values_for_people(value: float | None, unit: str, text: str) -> None:
    assert show(value, unit) == text


@pytest.mark.parametrize(("text", "limit"), [
    ("size <= 16.28927 MB", 16289270.0), ("p95 <= 10.2 ms", 0.0102), ("accuracy >= 85.43 %", 0.8543),
    ("startup <= 12.3 ms", 0.0123), ("energy <= 0.7 mJ", 0.0007), ("size <= 1.1 GiB", 1.1 * 2**30),
])  # fmt: skip
def test_a_limit_is_the_number_that_was_typed(text: str, limit: float) -> None:
    """And not what floats make of a product: a value that a report printed must keep the limit it was typed as."""
    assert parse_budget(text).limit == limit


@pytest.mark.parametrize("text", ["", "accuracy,", ",p95", "=2", "accuracy=1,"])
def test_an_objective_without_a_name_is_said_to_be_one(text: str) -> None:
    with pytest.raises(PlanError, match="a name is missing; expected metrics, as in 'accuracy,p95'"):
        parse_objective(text)
