"""Made-up entries and a made-up report: 3 candidates x 4 recipes x 4 targets. Test data, measured nowhere."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from edgewise.selector import select
from edgewise.selector.budgets import check_budgets
from edgewise.selector.report_data import ChangedAnswer, ReportData, TrainingRow
from edgewise.types import (
    ConfirmTry,
    Entry,
    Measurement,
    Metric,
    RunSettings,
    Target,
)
from edgewise.units import METRICS, parse_budget

LEVEL = 0.95
SIZES = {"l6": 22.7e6, "l3": 17.4e6, "l6-lora": 22.7e6}
ACCURACY = {"l6": 0.838, "l3": 0.829, "l6-lora": 0.812}
SPEED = {"fp32": 1.0, "fp32-o2": 0.86, "int8-dynamic": 0.47, "int8-static": 0.5}
LOSS = {"fp32": 0.0, "fp32-o2": 0.0, "int8-dynamic": 0.0015, "int8-static": 0.021}
BUDGETS = (
    "p95 <= 10 ms",
    "peak_rss <= 150 MB",
    "size <= 30 MB",
    "accuracy >= 0.80",
    "accuracy_drop <= 0.8 points of fp32",
)
OBJECTIVE = ("accuracy", "p95")
WORDS = "Not shown to be within 0.5 points of fp32: about 900 more rows would."


def metric(name: str, value: float | None, half: float | None = None, n: int = 0, **more: Any) -> Metric:
    """A metric with symmetric bounds, or with none."""
    ends = {} if half is None or value is None else {"low": value - half, "high": value + half, "level": LEVEL}
    return Metric(name, METRICS[name].unit, value, n=n, **{**ends, **more})


def entry(
    candidate: str = "a", recipe: str = "fp32", *, device: str = "here", run: RunSettings | None = None, **values: Any
) -> Entry:
    """values: metric name -> Metric, value, or (value, half width)."""
    metrics = {}
    for name, given in values.items():
        made = given if isinstance(given, Metric) else metric(name, *(given if isinstance(given, tuple) else (given,)))
        metrics[name] = made
    return Entry(candidate, recipe, f"sha256:{candidate}-{recipe}", Target(device, run or RunSettings()), metrics)


def _made_entry(rng: random.Random, candidate: str, recipe: str, *, device: str, threads: int, length: int) -> Entry:
    slow = {"here": 1.0, "board": 4.2}[device]
    base = 0.0052 * (0.55 if candidate == "l3" else 1) * SPEED[recipe] * (0.62 if threads == 2 else 1) * slow
    base *= (1 if length == 64 else 0.74) * rng.uniform(0.97, 1.03)
    p95, rows = base * rng.uniform(1.18, 1.3), 2000
    accuracy = ACCURACY[candidate] - LOSS[recipe] - (0.006 if length == 32 else 0)
    half = 1.645 * math.sqrt(accuracy * (1 - accuracy) / rows)
    size = SIZES[candidate] * (1 if recipe.startswith("int8") else 3.97)
    drop, drop_half = 100 * LOSS[recipe], 0 if recipe.startswith("fp32") else 0.42
    phases = [0.021, 0.094, 0.012 * slow + size * 4e-10, 0.03 * slow + size * 7e-10, base * 1.9]
    if device == "board":
        phases[:2] = [0.084, 0.31]
    names = ("startup_interpreter", "startup_imports", "startup_load", "startup_session", "startup_first")
    memory = 7.1e7 + size * (1.5 if recipe.startswith("int8") else 1.25) + 2e6 * threads
    found = [
        metric("accuracy", accuracy, half, rows, method="Wilson interval"),
        metric("f1", accuracy + 0.004, half * 1.1, rows, method="bootstrap over rows, 2,000 resamples"),
        metric("accuracy_drop", drop, drop_half, rows, method="paired difference of rows, McNemar variance"),
        metric("changed_answers", 0.0, None, rows) if recipe.startswith("fp32")
        else metric("changed_answers", 0.004 + 3 * LOSS[recipe], 0.003, rows),
        metric("p50", base, base * 0.008, 2400, method="cluster bootstrap over 5 processes"),
        metric("p95", p95, p95 * rng.uniform(0.015, 0.06), 2400, method="cluster bootstrap over 5 processes"),
        metric("p99", None, kind="unavailable", why="needs 662 calls, 600 were made") if device == "board"
        else metric("p99", p95 * 1.12, p95 * 0.09, 2400, method="cluster bootstrap over 5 processes"),
        metric("throughput", 1 / base, 0.02 / base, 2400),
        metric("latency_mean", base * 1.04, base * 0.01, 2400),
        metric("worst_slice_accuracy", accuracy - 0.03, 0.03, 500, method="Wilson, 2 slices together"),
        metric("roofline", 0.0003 / base, kind="estimated", why="operations are those of a few profiled calls"),
        metric("peak_rss", memory, 1.4e6, 5, method="VmHWM of fresh processes"),
        metric("pss", memory * 0.93, kind="estimated", why="read at the end of the phase") if recipe == "fp32-o2"
        else metric("pss", memory * 0.94),
        metric("size", size, method="bytes of the folder"),
        metric("startup", sum(phases), 0.018, 5, method="fresh processes"),
        *[metric(n, v, n=5) for n, v in zip(names, phases, strict=True)],
    ]  # fmt: skip
    run = RunSettings(threads=threads, max_length=length)
    rng.randrange(16**16)  # drawn and dropped: the numbers that tests know hang on the order of the draws
    return Entry(candidate, recipe, f"sha256:{candidate}-{recipe}", Target(device, run), {m.name: m for m in found})


def _made_entries(device: str = "here") -> list[Entry]:
    rng = random.Random(7)
    made = [
        _made_entry(rng, candidate, recipe, device=device, threads=threads, length=length)
        for candidate in SIZES
        for recipe in SPEED
        for threads in (1, 2)
        for length in (32, 64)
    ]
    return [
        *made,
        Entry("tiny", "", None, None, status="failed", reason="training broke: the loss is not a number at step 41"),
    ]


def _made_measurements(entries: list[Entry]) -> list[Measurement]:
    rows: list[Measurement] = []
    parts = {"single-stream": ("p50", "p95", "p99", "throughput"), "accuracy": ("accuracy", "f1", "accuracy_drop")}
    for e in entries:
        if e.status == "failed":
            rows.append(Measurement(e.candidate, "", None, None, "none", "train", "failed", e.reason, id=len(rows) + 1))
            continue
        for scenario, names in parts.items():
            conditions = {
                "rounds": 5,
                "warm-up calls": 20,
                "governor": "performance",
                "length distribution": {
                    "p5": 7,
                    "p50": 24,
                    "p95": 58,
                    "truncated share": 0.021,
                    "source": "val rows in their order",
                },
            }
            conditions |= _timed_conditions(e) if scenario == "single-stream" else {"slices": _made_slices(e)}
            rows.append(Measurement(
                e.candidate, e.recipe, e.content_digest, e.target, scenario, "profile",  # type: ignore[arg-type]
                conditions=conditions, metrics=tuple(e.metrics[n] for n in names), id=len(rows) + 1,
            ))  # fmt: skip
            if scenario == "accuracy" and e.recipe != "fp32":
                compared = {"words": WORDS, "slices": _made_slices(e, drop=True), "settings": {"reference": "fp32"}}
                rows.append(replace(
                    rows[-1], scenario="comparison", conditions=compared, metrics=(e.metrics["accuracy_drop"],),
                    id=len(rows) + 1,
                ))  # fmt: skip
    return rows


def _timed_conditions(e: Entry) -> dict[str, Any]:
    """As the profiler writes them."""
    threads = e.target.run.threads if e.target else 1
    peaks = {"float32": 40e9 * threads, "int8": 300e9 * threads, "bytes": 9e9, "cache": 32 * 2**20}
    kind = "int8" if e.recipe.startswith("int8") else "float32"
    operations = {"float32": 5e6, "int8": 0.0} | {kind: 9e7}
    seconds = sum(n / peaks[k] for k, n in operations.items())
    return {
        "rounds": {"count": 5, "calls": [480] * 5, "disturbed": [2] if threads == 2 else [], "unsteady": []},
        "inputs": {"tokens": {"min": 5, "p50": 27, "max": 32}, "truncated": 0.21},
        "notes": ["garbage collected and frozen before the timed calls"],
        "roofline": {"operations": operations, "weights": 0, "peaks": peaks, "compute_s": seconds, "memory_s": 0.0},
    }


def _made_slices(e: Entry, *, drop: bool = False) -> list[dict[str, Any]]:
    """Two slices of 2,000 rows: the shorter texts are easier."""
    own = e.metrics["accuracy"].value or 0.0
    found: list[dict[str, Any]] = []
    for name, rows, moved in (("length = up to 50 characters", 1500, 0.01), ("genre = horror", 500, -0.03)):
        if drop:
            found.append({"slice": name, "n": rows, "changed": 4, "drop": 0.2, "low": -0.7, "high": 1.1})
        else:
            value = own + moved
            found.append(
                {"slice": name, "rows": [*range(rows)], "accuracy": value, "low": value - 0.03, "high": value + 0.03}
            )
    return found


def _confirmed(selection: Any) -> Any:
    """One try that fails, then the winner that passes."""
    failed = selection.verdicts[1].entry
    low = {**failed.metrics, "accuracy": metric("accuracy", 0.806, 0.014, 1400)}
    bad = check_budgets(replace(failed, metrics=low), selection.budgets, LEVEL)
    won = selection.chosen.entry
    fresh = {
        **{n: won.metrics[n] for n in ("size", "peak_rss", "accuracy_drop")},
        "accuracy": metric("accuracy", 0.8312, 0.0154, 1400, method="Wilson interval"),
        "p95": metric("p95", won.metrics["p95"].value * 1.02, 0.00012, 2400),
    }
    good = check_budgets(replace(won, metrics=fresh), selection.budgets, LEVEL)
    tries = (
        ConfirmTry(failed.key, False, bad, "accuracy on fresh rows does not keep its budget", low),
        ConfirmTry(won.key, True, good, "", fresh),
    )
    return replace(selection, confirmed=tries)


def made_up_report(devices: tuple[str, ...] = ("here", "board"), budgets: tuple[str, ...] = BUDGETS) -> ReportData:
    """A report of plausible numbers; every one of them is invented."""
    limits = [parse_budget(b) for b in budgets]
    everything = {d: _made_entries(d) for d in devices}
    selections = [select(e, limits, OBJECTIVE, device=d) for d, e in everything.items()]
    selections = [_confirmed(s) if i == 0 and s.chosen else s for i, s in enumerate(selections)]
    rng = random.Random(3)
    samples = {
        e.key: [e.metrics["p50"].value * rng.lognormvariate(0.01, 0.1) for _ in range(400)]
        for entries in everything.values()
        for e in entries
        if e.status == "ok"
    }
    yes, no = "positive", "negative"
    changed = [
        ChangedAnswer(
            "l6/int8-dynamic, length 64", "A film that knows what it wants and takes its time.", yes, yes, no
        ),
        ChangedAnswer("l6/int8-dynamic, length 64", "Neither as clever as it thinks nor as dull.", no, yes, no),
        ChangedAnswer("l3/int8-static, length 32", "Two hours, one idea, and a score for the sleepless.", no, no, yes),
    ]
    return ReportData(
        title="Movie reviews (made-up test data)",
        generated=datetime(2026, 1, 2, 3, 4, tzinfo=UTC),
        plan="version: 1\ntask: text-classification\nbudgets:\n" + "".join(f'  - "{b}"\n' for b in budgets),
        command="edgewise fit examples/movie-reviews.yaml --out runs/movie-reviews",
        versions={
            "edgewise": "0.1.0",
            "onnxruntime": "1.20.1",
            "optimum": "2.0.0",
            "torch": "2.5.1",
            "python": "3.11.2",
        },
        selections=tuple(selections),
        measurements=tuple(m for e in everything.values() for m in _made_measurements(e)),
        machines={d: _machine(d) for d in devices},
        training=(
            TrainingRow("l6", "full", 212.4, 1, 3000, {"accuracy": 0.838, "f1": 0.842}),
            TrainingRow("l3", "full", 108.9, 1, 3000, {"accuracy": 0.829, "f1": 0.833}, "layers 0, 2, 5 kept"),
            TrainingRow(
                "l6-lora", "lora", 187.2, 1, 3000, {"accuracy": 0.812, "f1": 0.815}, "rank 8, merged for export"
            ),
            TrainingRow("tiny", "full", None, None, 3000, {}, "failed: the loss is not a number at step 41"),
        ),
        changed=tuple(changed),
        samples=samples,
    )


def _machine(device: str) -> dict[str, Any]:
    return {
        "cpu": {"model": f"Made-up {'9000' if device == 'here' else 'A76'}", "cores": 2, "features": ["avx2", "vnni"]},
        "memory": "16.8 GB", "governor": "performance", "kernel": "Linux 6.1", "onnxruntime": "1.20.1", "turbo": None,
    }  # fmt: skip


@pytest.fixture(scope="session")
def make() -> Callable[..., Entry]:
    """Makes an entry of few words."""
    return entry


@pytest.fixture(scope="session")
def report_data() -> ReportData:
    """The made-up report."""
    return made_up_report()


@pytest.fixture(scope="session")
def make_report() -> Callable[..., ReportData]:
    """Makes a made-up report with other devices or budgets."""
    return made_up_report


@pytest.fixture(scope="session")
def make_metric() -> Callable[..., Metric]:
    """Makes a metric with symmetric bounds."""
    return metric
