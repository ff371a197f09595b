"""A large store is not read whole to choose from it: the choice is that of reading it all."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from edgewise.profiler import Store, entries
from edgewise.selector import select
from edgewise.types import Measurement, Metric, RunSettings, Target
from edgewise.units import METRICS, parse_budget
from edgewise.verbs_select import Asked, large_selection

CONDITIONS = {"fingerprint_digest": "sha256:f", "settings_digest": "sha256:s"}
BUDGETS = (
    ("p95 <= 10 ms", "size <= 60 MB", "accuracy >= 78 %", "accuracy_drop <= 1 points of fp32"),
    ("p95 <= 3 ms",),
    (),
    ("p95 <= 1 us", "size <= 60 MB"),
    ("throughput >= 400 /s", "accuracy >= 0.8"),
)
OBJECTIVES = (("accuracy", "p95"), ("p95", "accuracy"), ("size",), ("throughput", "peak_rss"))


def _metric(name: str, value: float, half: float | None) -> Metric:
    ends = {} if half is None else {"low": value - half, "high": value + half, "level": 0.95}
    return Metric(name, METRICS[name].unit, value, n=100, **ends)


def _timed(rng: random.Random, bundle: tuple[str, str, str], target: Target, size: float) -> Measurement:
    p95 = rng.gammavariate(4, 0.002)
    metrics = (
        _metric("p95", p95, 0.06 * p95), _metric("throughput", 1.2 / p95, 0.05 / p95),
        _metric("peak_rss", 7e7 + size, 1e6), _metric("size", size, None),
    )  # fmt: skip
    return Measurement(
        *bundle, target, "single-stream", "profile", conditions=CONDITIONS, metrics=metrics, inputs_digest="i"
    )


def fill(store: Store, seed: int) -> None:
    rng = random.Random(seed)
    found: list[Measurement] = []
    for candidate in range(6):
        for recipe in ("fp32", "int8-dynamic", "int8-static"):
            bundle = (f"c{candidate}", recipe, f"sha256:{candidate}-{recipe}")
            size, accuracy = rng.uniform(1e7, 1e8), rng.gauss(0.8, 0.02)
            for length in (32, 64):
                answered = Target("here", RunSettings(max_length=length))
                rows = [("accuracy", _metric("accuracy", accuracy + length / 1e4, 0.01))]
                if recipe != "fp32":
                    rows.append(("comparison", _metric("accuracy_drop", rng.gauss(0.3, 0.6), 0.3)))
                found += [
                    Measurement(*bundle, answered, s, "profile", conditions=CONDITIONS, metrics=(m,), inputs_digest="i")
                    for s, m in rows
                ]
                found += [
                    _timed(rng, bundle, Target("here", RunSettings(threads=t, max_length=length)), size)
                    for t in (1, 2, 4)
                ]
    # Some things were measured again, one failed, one bundle was built anew, and another device has its own.
    found += [
        _timed(rng, (m.candidate, m.recipe, str(m.content_digest)), m.target, 2e7)
        for m in rng.sample(found, 9)
        if m.scenario == "single-stream" and m.target
    ]
    found.append(replace(found[-1], status="failed", reason="killed", metrics=()))
    found.append(_timed(rng, ("c0", "int8-static", "sha256:anew"), Target("here", RunSettings(max_length=32)), 1e7))
    found.append(_timed(rng, ("c1", "fp32", "sha256:1-fp32"), Target("board", RunSettings()), 1e7))
    for m in found:
        store.add(m)


@pytest.mark.parametrize("seed", range(3))
def test_the_choice_is_that_of_reading_everything(seed: int, tmp_path: Path) -> None:
    with Store(tmp_path / "m.sqlite") as store:
        fill(store, seed)
        whole = [e for e in entries(store) if e.target is None or e.target.device == "here"]
        for texts in BUDGETS:
            for objective in OBJECTIVES:
                _same(store, whole, texts, objective)
            _same(store, whole, texts, ("accuracy", "p95"), weights=(2.0, 1.0))


def _same(
    store: Store,
    whole: Sequence[object],
    texts: Sequence[str],
    objective: tuple[str, ...],
    weights: tuple[float, ...] = (),
) -> None:
    budgets = tuple(parse_budget(t) for t in texts)
    expected = select(whole, budgets, objective, weights=weights, device="here")  # type: ignore[arg-type]
    found = large_selection(store, "here", Asked(budgets, objective, weights, 0.95))
    keys = [s.chosen.entry.key if s.chosen else None for s in (expected, found)]
    assert keys[0] == keys[1], (texts, objective)
    if expected.chosen and found.chosen:
        # It is judged with the same numbers; of what was measured again the later ones.
        assert found.chosen.entry.metrics == expected.chosen.entry.metrics
        assert found.chosen.checks == expected.chosen.checks
