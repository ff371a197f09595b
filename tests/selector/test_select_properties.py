"""The choice and the Pareto front against their definitions, written out in plain loops."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgewise.selector import select
from edgewise.selector.pareto import dominators
from edgewise.types import Budget, Entry, Metric, RunSettings, Target
from edgewise.units import METRICS, parse_budget

OBJECTIVES = ("accuracy", "p95", "size")
BUDGETS = (parse_budget("p95 <= 6 ms"), parse_budget("accuracy >= 0.4"))
Z = NormalDist().inv_cdf(0.95)


@st.composite
def metrics(draw: st.DrawFn, name: str) -> Metric | None:
    # Few distinct numbers, so that ties, equal points and noise all happen.
    number = draw(st.integers(0, 8))
    scale = {"accuracy": 0.1, "p95": 0.001, "size": 1e6}[name]
    kind = draw(st.sampled_from(["bounds", "bounds", "bounds", "exact", "none", "nan", "low level"]))
    if kind == "none":
        return None
    value = math.nan if kind == "nan" else number * scale
    if kind in ("exact", "nan"):
        return Metric(name, METRICS[name].unit, value)
    below, above = (draw(st.integers(0, 3)) * scale * 0.4 for _ in range(2))
    return Metric(name, METRICS[name].unit, value, value - below, value + above, 0.9 if kind == "low level" else 0.95)


@st.composite
def many_entries(draw: st.DrawFn) -> list[Entry]:
    found = []
    for i in range(draw(st.integers(0, 9))):
        drawn = {name: draw(metrics(name)) for name in OBJECTIVES}
        kept = {name: m for name, m in drawn.items() if m is not None}
        found.append(Entry(f"c{i}", "fp32", None, Target("here", RunSettings()), kept))
    return found


def keeps(entry: Entry, budget: Budget) -> bool:
    m = entry.metrics.get(budget.metric)
    if m is None or m.value is None or math.isnan(m.value):
        return False
    if m.level is None:
        bound = m.value
    elif m.level < 0.95:
        return False
    else:
        bound = m.high if budget.op == "<=" else m.low  # type: ignore[assignment]  # drawn with both
    return bound <= budget.limit if budget.op == "<=" else bound >= budget.limit


def value(entry: Entry, name: str) -> float:
    """Turned so that larger is better; NaN when it was not measured."""
    m = entry.metrics.get(name)
    if m is None or m.value is None:
        return math.nan
    return m.value if METRICS[name].better == "higher" else -m.value


def half(entry: Entry, name: str, side: str) -> float:
    """To the worse or the better side, brought to 95%."""
    m = entry.metrics[name]
    if m.low is None or m.high is None or m.value is None or m.level is None:
        return 0.0
    higher = METRICS[name].better == "higher"
    width = m.value - m.low if (side == "worse") == higher else m.high - m.value
    return max(0.0, width) * Z / NormalDist().inv_cdf(m.level)


def last_order(entry: Entry, objective: tuple[str, ...]) -> tuple[Any, ...]:
    points = [value(entry, n) for n in objective]
    size = entry.metrics.get("size")
    number = size.value if size and size.value is not None else math.nan
    # What is unknown comes last; two tuples, so that no NaN is compared.
    keys = [(math.isnan(x), 0.0 if math.isnan(x) else x) for x in (*[-p for p in points], number)]
    return (*keys, entry.key)


def first_of(entries: list[Entry], objective: tuple[str, ...]) -> Entry:
    left = entries
    for name in objective:
        known = [e for e in left if not math.isnan(value(e, name))]
        if not known:
            continue
        best = max(value(e, name) for e in known)
        leader = min((e for e in known if value(e, name) == best), key=lambda e: last_order(e, objective))
        left = []
        for e in known:
            ahead = best - value(e, name)
            noise_squared = half(leader, name, "worse") ** 2 + half(e, name, "better") ** 2
            if ahead <= 0 or ahead**2 <= noise_squared:
                left.append(e)
    return min(left, key=lambda e: last_order(e, objective))


@settings(max_examples=300, deadline=None)
@given(many_entries(), st.permutations(OBJECTIVES), st.integers(1, 3))
def test_the_ranking_is_that_of_the_definition(entries: list[Entry], order: list[str], count: int) -> None:
    objective = tuple(order[:count])
    found = select(entries, BUDGETS, objective)
    left = [e for e in entries if all(keeps(e, b) for b in BUDGETS)]
    ranked = []
    while left:
        ranked.append(first_of(left, objective))
        left.remove(ranked[-1])
    assert [v.entry.key for v in found.verdicts if v.rank] == [e.key for e in ranked]
    assert (found.chosen.entry if found.chosen else None) == (ranked[0] if ranked else None)
    assert sorted(v.entry.key for v in found.verdicts) == sorted(e.key for e in entries)
    broken = [sum(not c.met for c in v.checks) for v in found.verdicts if not v.feasible]
    assert broken == sorted(broken)
    assert all(v.reason for v in found.verdicts)


def dominates(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return all(x >= y for x, y in zip(a, b, strict=True)) and any(x > y for x, y in zip(a, b, strict=True))


POINT = st.one_of(st.integers(-3, 3).map(float), st.just(math.nan))


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 4).flatmap(lambda d: st.lists(st.tuples(*[POINT] * d), max_size=12)))
def test_the_front_is_that_of_the_definition(points: list[tuple[float, ...]]) -> None:
    width = len(points[0]) if points else 2
    found = dominators(np.array(points, np.float64).reshape(len(points), width))
    for i, own in enumerate(points):
        others = [p for p in points if not any(map(math.isnan, p)) and not any(map(math.isnan, own))]
        assert (found[i] >= 0) == any(dominates(p, own) for p in others)
        if found[i] >= 0:
            assert dominates(points[found[i]], own)
            assert found[found[i]] == -1, "the one that dominates stands on the front"


@settings(max_examples=100, deadline=None)
@given(many_entries())
def test_pareto_flags_follow_the_point_estimates(entries: list[Entry]) -> None:
    found = select(entries, [], ["accuracy", "p95"])
    pairs = {e.key: (value(e, "accuracy"), value(e, "p95")) for e in entries}
    complete = {k: p for k, p in pairs.items() if not any(map(math.isnan, p))}
    for verdict in found.verdicts:
        own = complete.get(verdict.entry.key)
        beaten = own is not None and any(dominates(p, own) for p in complete.values())
        assert verdict.pareto == (own is not None and not beaten)
        assert (verdict.dominated_by is not None) == beaten


def test_a_front_of_ten_thousand_points_that_all_stand_on_it(make: Callable[..., Entry]) -> None:
    line = np.linspace(0, 1, 10_000)
    assert (dominators(np.column_stack([line, -line])) == -1).all()


def moved(budgets: tuple[Budget, ...], budget: Budget, limit: float) -> list[Budget]:
    return [replace(b, limit=limit) if b is budget else b for b in budgets]


def winner(entries: list[Entry], budgets: list[Budget], objective: tuple[str, ...]) -> str | None:
    found = select(entries, budgets, objective)
    return found.chosen.entry.key if found.chosen else None


@settings(max_examples=150, deadline=None)
@given(many_entries(), st.permutations(OBJECTIVES))
def test_the_choice_changes_at_the_limits_that_are_said_and_nowhere_between(
    entries: list[Entry], order: list[str]
) -> None:
    objective = tuple(order[:2])
    found = select(entries, BUDGETS, objective)
    now = found.chosen.entry.key if found.chosen else None
    for budget in BUDGETS:
        sign = 1 if budget.op == "<=" else -1
        steps = [w for w in found.what_if if w.budget == budget]
        looser = [w for w in steps if sign * (w.limit - budget.limit) > 0]
        stricter = [w for w in steps if w not in looser]
        # Those of entries that keep the other budgets: the feasible set changes nowhere else.
        able = [v for v in found.verdicts if all(c.met for c in v.checks if c.budget != budget)]
        bounds = {c.bound for v in able for c in v.checks if c.budget == budget and c.bound is not None}
        # Every limit at which the feasible set can change, looser than now: the definition, one choice after the other.
        said: list[tuple[float, str | None]] = []
        last = now
        for bound in sorted((b for b in bounds if sign * (b - budget.limit) > 0), key=lambda b: sign * b):
            then = winner(entries, moved(BUDGETS, budget, bound), objective)
            if then != last:
                said.append((bound, then))
                last = then
        assert [(w.limit, w.chosen) for w in looser] == said[:3]
        said, last = [], now
        for bound in sorted((b for b in bounds if sign * (b - budget.limit) <= 0), key=lambda b: -sign * b):
            then = winner(entries, moved(BUDGETS, budget, bound), objective)
            if then != last:
                said.append((bound, then))
                last = then
        changed = [(w.limit, w.chosen) for w in stricter if w.chosen is not None]
        assert changed == [step for step in said if step[1] is not None][: len(changed)]
        for nothing in (w for w in stricter if w.chosen is None):
            below = nothing.limit - sign * max(1e-9, 1e-9 * abs(nothing.limit))
            assert winner(entries, moved(BUDGETS, budget, nothing.limit), objective) is not None
            assert winner(entries, moved(BUDGETS, budget, below), objective) is None


def scores(entries: list[Entry], weights: dict[str, float]) -> list[float]:
    """The definition: points of shares as they are, logarithms of times and sizes."""
    found = []
    for e in entries:
        total = 0.0
        for name, weight in weights.items():
            m = e.metrics.get(name)
            value = math.nan if m is None or m.value is None else m.value
            if name == "accuracy":
                total += weight * value
            else:
                total -= weight * (math.log(value) if value > 0 else math.nan)
        found.append(total)
    return found


@settings(max_examples=150, deadline=None)
@given(many_entries(), st.floats(0.1, 5), st.floats(0.1, 5))
def test_weights_choose_the_best_weighted_sum(entries: list[Entry], a: float, b: float) -> None:
    found = select(entries, BUDGETS, ["accuracy", "p95"], weights=(a, b))
    total = a + b
    assert found.weights == pytest.approx((a / total, b / total))
    left = [e for e in entries if all(keeps(e, budget) for budget in BUDGETS)]
    known = [s for s in scores(left, {"accuracy": a / total, "p95": b / total}) if not math.isnan(s)]
    if found.chosen is None:
        assert not left
    elif known:
        best = scores([found.chosen.entry], {"accuracy": a / total, "p95": b / total})[0]
        assert best == pytest.approx(max(known))
