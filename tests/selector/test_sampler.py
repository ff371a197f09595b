"""Optuna proposes which points of a large space to look at: each once, and the good ones early."""

from __future__ import annotations

import random
import sys
from dataclasses import replace

import pytest

from edgewise.errors import MissingExtraError
from edgewise.selector.known import Known, Rules
from edgewise.selector.sampler import Sampler
from edgewise.types import Entry, Metric, RunSettings, Target
from edgewise.units import parse_budget


def large_space() -> dict[str, Known]:
    """8 models x 10 recipes x 4 threads x 4 lengths: 1,280 points whose times and answers follow their parts."""
    points = {}
    for c in range(8):
        for r in range(10):
            for t in (1, 2, 3, 4):
                for n in (16, 32, 64, 128):
                    p95 = 1e-3 * (1 + c) * (1 + r % 5) / t**0.5 * (n / 64) ** 0.3
                    accuracy = 0.7 + 0.02 * c - 0.004 * r - (0.03 if n == 16 else 0)
                    metrics = {"p95": Metric("p95", "s", p95), "accuracy": Metric("accuracy", "1", accuracy)}
                    run = RunSettings(threads=t, max_length=n)
                    entry = Entry(f"c{c}", f"r{r}", f"sha256:{c}-{r}", Target("here", run), metrics)
                    points[entry.key] = Known(entry, f"{c} {r} {n}", "full", "part")
    return points


RULES = Rules([parse_budget("p95 <= 4 ms")], ("accuracy", "p95"))


def best_after(points: dict[str, Known], keys: list[str], judge: Sampler) -> float:
    return min(judge.cost(points[k]) for k in keys)


def test_it_finds_better_points_than_chance_does() -> None:
    points = large_space()
    judge = Sampler(points, RULES)
    judge.cost(next(iter(points.values())))
    chosen, drawn = [], []
    for seed in range(2):
        sampler, keys = Sampler(points, RULES, seed), list[str]()
        while len(keys) < 120:
            some = sampler.ask(12)
            sampler.tell(points[k] for k in some)
            keys += some
        assert len(set(keys)) == len(keys)
        chosen.append(best_after(points, keys, judge))
        drawn.append(best_after(points, random.Random(seed).sample(list(points), 120), judge))
    assert sum(chosen) < sum(drawn)


def test_every_point_comes_once_and_then_there_are_no_more() -> None:
    points = dict(list(large_space().items())[:60])
    sampler, keys = Sampler(points, RULES), list[str]()
    while some := sampler.ask(7):
        sampler.tell(points[k] for k in some)
        keys += some
    assert sorted(keys) == sorted(points)


def test_far_from_feasible_is_worse_than_any_objective() -> None:
    points = list(large_space().values())
    sampler = Sampler({k.entry.key: k for k in points}, RULES)
    cost = {k.entry.key: sampler.cost(k) for k in points}
    feasible = [cost[k.entry.key] for k in points if k.entry.metrics["p95"].value <= 4e-3]
    others = [cost[k.entry.key] for k in points if k.entry.metrics["p95"].value > 4.2e-3]
    assert max(feasible) < min(others)
    failed = replace(points[0], entry=replace(points[0].entry, status="failed"))
    assert sampler.cost(failed) > max(feasible)


def test_without_optuna_the_pip_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'edgewise\[search\]'"):
        Sampler(large_space(), RULES)
