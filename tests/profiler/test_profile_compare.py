"""Two runs side by side: right by simulation, honest about other machines, loud where something became worse."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgewise.cli import main
from edgewise.errors import StoreError
from edgewise.profiler import Store
from edgewise.profiler.compare import Comparison, Difference, compare_stores, ratio_bounds
from edgewise.profiler.statistics import mean_bounds
from edgewise.profiler.store import Outcome, Sample
from edgewise.profiler.yardstick import read_yardstick
from edgewise.types import Measurement, Metric, RunSettings, Target
from edgewise.units import METRICS

TARGET = Target("here", RunSettings())
FINGERPRINT: Mapping[str, Any] = {
    "cpu": "a CPU", "machine": "x86_64", "flags": ["avx2"], "python": "3.11.2", "digest": "sha256:f",
    "versions": {"onnxruntime": "1.32.0", "numpy": "2.4"},
}  # fmt: skip


def _times(seed: int, factor: float = 1.0, processes: int = 6, calls: int = 60) -> list[np.ndarray]:
    """Seconds of one simulated run: each process has a level of its own, and the calls in it are correlated."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(processes):
        noise = random.standard_normal(calls)
        for i in range(1, calls):
            noise[i] = 0.3 * noise[i - 1] + math.sqrt(1 - 0.09) * noise[i]
        found.append(0.01 * factor * np.exp(0.04 * random.standard_normal() + 0.1 * noise))
    return found


def _run(
    path: Path,
    seed: int,
    *,
    factor: float = 1.0,
    machine: float = 1.0,
    size: float = 30e6,
    disturbed: Sequence[int] = (),
    right: Sequence[bool] = (True,) * 90 + (False,) * 10,
    measurement: Mapping[str, Any] | None = None,
    fingerprint: Mapping[str, Any] = FINGERPRINT,
) -> Store:
    """A store with one bundle on one target: timed and answered. factor: of the bundle's time; machine: of all."""
    times = _times(seed, factor * machine)
    random = np.random.default_rng(seed + 10_000)
    rounds = {
        "count": len(times),
        "disturbed": list(disturbed),
        "yardstick": [
            {n: round(2e6 * machine * math.exp(0.02 * random.standard_normal())) for n in ("product", "copy")}
            for _ in times
        ],
    }
    memory = mean_bounds(list(100e6 * np.exp(0.001 * random.standard_normal(len(times)))), 0.95)
    metrics = (
        *(
            Metric(n, "s", float(np.quantile(np.concatenate(times), q)), n=360)
            for n, q in (("p50", 0.5), ("p95", 0.95))
        ),
        Metric("p99.9", "s", None, n=360, kind="unavailable", why="needs 6,276 more calls"),
        mean_bounds([float(t.mean()) for t in times], 0.95).as_metric("latency_mean", "s", 0.95),
        memory.as_metric("peak_rss", "B", 0.95),
        Metric("size", "B", size, n=1),
    )
    conditions = {"fingerprint": dict(fingerprint), "rounds": rounds, "scenario": "single-stream"}
    timed = Measurement(
        "l6", "int8-dynamic", "sha256:c", TARGET, "single-stream", "profile", inputs_digest="sha256:i",
        conditions=conditions, metrics=metrics,
    )  # fmt: skip
    store = Store(path)
    samples = [Sample(r, 100 + r, tuple(int(1e9 * x) for x in t)) for r, t in enumerate(times)]
    store.add(replace(timed, **(measurement or {})), samples)
    share = sum(right) / len(right)
    accuracy = replace(timed, scenario="accuracy", metrics=(Metric("accuracy", "1", share, n=len(right)),))
    store.add(accuracy, (), [Outcome(f"r{i}", int(r), 1, 0.9) for i, r in enumerate(right)])
    return store


def _one(found: Comparison, metric: str) -> Difference:
    (difference,) = [d for d in found.differences if d.metric == metric]
    return difference


@pytest.mark.parametrize("ratio", [1.0, 1.2])
def test_the_interval_of_a_ratio_covers_it_at_its_rate(ratio: float) -> None:
    runs, covered, widths = 400, 0, []
    for seed in range(runs):
        a, b = ([float(np.quantile(t, 0.9)) for t in _times(2 * seed + k, ratio if k else 1.0)] for k in (0, 1))
        found, low, high = ratio_bounds(a, b, 0.95)
        assert low is not None
        assert high is not None
        assert low < found < high
        covered += low <= ratio <= high
        widths.append(high / low)
    assert covered / runs >= 0.95 - 3 * math.sqrt(0.05 * 0.95 / runs)
    assert np.median(widths) < 1.2  # not so wide that it says nothing: two processes differ by 4 %


def test_the_same_thing_twice_is_called_different_no_oftener_than_said(tmp_path: Path) -> None:
    """The whole comparison, every metric of it, over simulated pairs of runs of one and the same."""
    alarms, pairs = 0, 100
    for seed in range(pairs):
        with _run(tmp_path / f"a{seed}", 2 * seed) as a, _run(tmp_path / f"b{seed}", 2 * seed + 1) as b:
            found = compare_stores(a, b, confidence=0.9)
        alarms += any(d.verdict in ("better", "worse") for d in found.differences)
    assert alarms / pairs <= 0.1 + 3 * math.sqrt(0.1 * 0.9 / pairs)


def test_a_slower_bundle_is_worse_and_a_faster_one_better(tmp_path: Path) -> None:
    with _run(tmp_path / "a", 1) as a, _run(tmp_path / "b", 2, factor=1.3) as b:
        slower, faster = compare_stores(a, b), compare_stores(b, a)
        near = compare_stores(a, b, tolerance=0.5)
    p50 = _one(slower, "p50")
    assert p50.verdict == "worse"
    assert p50.regression
    assert p50.low is not None
    assert p50.low > 1
    assert p50.change == pytest.approx(1.3, rel=0.1)
    assert _one(faster, "p50").verdict == "better"
    assert not _one(faster, "p50").regression
    assert _one(near, "p50").verdict == "none shown"
    assert _one(slower, "peak_rss").verdict == "none shown"
    assert _one(slower, "size").verdict == "equal"


def test_a_slower_machine_is_not_a_slower_bundle(tmp_path: Path) -> None:
    with _run(tmp_path / "a", 1) as a, _run(tmp_path / "b", 2, machine=1.3) as b:
        found = _one(compare_stores(a, b), "p50")
    assert found.low is not None
    assert found.low > 1  # it was slower indeed
    assert found.verdict == "none shown"
    assert "the machine itself moved" in found.why
    with _run(tmp_path / "c", 1) as a, _run(tmp_path / "d", 2, machine=1.3, factor=1.5) as b:
        assert _one(compare_stores(a, b), "p50").verdict == "worse"  # by more than the machine


def test_a_busy_run_is_flagged_not_called_equal(tmp_path: Path) -> None:
    with _run(tmp_path / "a", 1) as a, _run(tmp_path / "b", 2, disturbed=[0, 1, 2, 4]) as b:
        found = compare_stores(a, b)
    assert _one(found, "p50").verdict == "not comparable"
    assert "4 of 6 rounds of the second run" in _one(found, "p50").why
    assert _one(found, "peak_rss").verdict == "none shown"  # what no neighbour changes
    with _run(tmp_path / "c", 1) as a, _run(tmp_path / "d", 2, disturbed=[3]) as b:
        one = _one(compare_stores(a, b), "p50")
    assert one.verdict == "none shown"
    assert "1 rounds of the second run were disturbed" in one.why


def test_accuracy_is_compared_row_by_row(tmp_path: Path) -> None:
    right = [True] * 90 + [False] * 10
    with _run(tmp_path / "a", 1, right=right) as a, _run(tmp_path / "b", 2, right=right) as b:
        assert _one(compare_stores(a, b), "accuracy").verdict == "equal"
    with _run(tmp_path / "c", 2, right=[False] * 20 + right[20:]) as c, Store(tmp_path / "a") as a:
        found = _one(compare_stores(a, c), "accuracy")
    assert found.verdict == "worse"
    assert found.change == pytest.approx(-20.0)
    assert found.high is not None
    assert found.high < 0
    assert "20 of 100 answers changed" in found.why
    # The same share of right answers on other rows: nothing lost that is not gained.
    with _run(tmp_path / "d", 2, right=list(reversed(right))) as d, Store(tmp_path / "a") as a:
        found = _one(compare_stores(a, d), "accuracy")
    assert (found.verdict, found.change) == ("none shown", 0.0)
    assert "20 of 100 answers changed" in found.why


def test_size_has_no_noise(tmp_path: Path) -> None:
    with _run(tmp_path / "a", 1) as a, _run(tmp_path / "b", 2, size=30.3e6) as b:
        assert _one(compare_stores(a, b), "size").verdict == "worse"
        assert _one(compare_stores(a, b, tolerance=0.05), "size").verdict == "none shown"


def test_other_inputs_or_another_scenario_are_another_thing(tmp_path: Path) -> None:
    with _run(tmp_path / "a", 1) as a, _run(tmp_path / "b", 2, measurement={"inputs_digest": "sha256:other"}) as b:
        found = _one(compare_stores(a, b), "p50")
    assert found.verdict == "not comparable"
    assert "the rows, or their labels, are not the same" in found.why
    assert not found.regression
    with Store(tmp_path / "a") as a, Store(tmp_path / "b") as b:
        assert _one(compare_stores(a, b), "size").verdict == "equal"  # whatever went through it


def _with_metrics(path: Path, seed: int, **values: float | None) -> Store:
    """A run whose metrics of these names have these values, without bounds; None: not measured."""
    kinds = {None: "unavailable"}
    metrics = tuple(
        Metric(n, METRICS[n].unit, v, n=1, kind=kinds.get(v, "measured"), why="" if v else "needs 40 more calls")  # type: ignore[arg-type]
        for n, v in values.items()
    )
    return _run(path, seed, measurement={"metrics": metrics})


def test_what_the_second_run_lacks_is_no_silent_pass(tmp_path: Path) -> None:
    with _run(tmp_path / "a", 1) as a, _with_metrics(tmp_path / "b", 2, p50=0.01, p95=None, size=30e6) as b:
        found = compare_stores(a, b)
        assert not any(d.regression for d in compare_stores(b, a).differences)
        with pytest.raises(StoreError, match="mcc was measured neither"):
            compare_stores(a, b, metrics=["mcc"])
    p95 = _one(found, "p95")
    assert (p95.verdict, p95.b) == ("not comparable", None)
    assert "needs 40 more calls" in p95.why
    assert p95.regression
    assert _one(found, "peak_rss").regression


def test_a_percentile_of_chance_is_not_lost(tmp_path: Path) -> None:
    """The run was asked for p95: that p99 has some calls too few, this time, is no regression."""
    with (
        _with_metrics(tmp_path / "a", 1, p95=0.01, p99=0.02) as a,
        _with_metrics(tmp_path / "b", 2, p95=0.01, p99=None) as b,
    ):
        p99 = _one(compare_stores(a, b), "p99")
    assert p99.verdict == "not comparable"
    assert not p99.regression


@pytest.mark.parametrize(
    ("second", "verdict"), [(0.60, "worse"), (0.795, "none shown"), (0.99, "better"), (0.80, "equal")]
)
def test_other_metrics_of_the_answers_are_guarded_too(tmp_path: Path, second: float, verdict: str) -> None:
    """By their two intervals, which the terminal shows in points."""
    for name, value in (("a", 0.80), ("b", second)):
        score = Metric("exact_match", "1", value, value - 0.02, value + 0.02, 0.95, n=500)
        with Store(tmp_path / name) as store:
            store.add(
                Measurement(
                    "t5", "fp32", "sha256:c", TARGET, "accuracy", "profile", metrics=(score,), inputs_digest="i",
                    conditions={"rows": 500},
                )
            )  # fmt: skip
    with Store(tmp_path / "a") as a, Store(tmp_path / "b") as b:
        found = _one(compare_stores(a, b), "exact_match")
    assert found.verdict == verdict
    assert found.change == pytest.approx(100 * (second - 0.80))
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--fail-on-regression"]) == 3 * (
        verdict == "worse"
    )


def test_an_estimate_has_no_interval(tmp_path: Path) -> None:
    with _with_metrics(tmp_path / "a", 1, roofline=0.2) as a, _with_metrics(tmp_path / "b", 2, roofline=0.4) as b:
        found = _one(compare_stores(a, b, metrics=["roofline"]), "roofline")
    assert found.verdict == "not comparable"


@pytest.mark.parametrize("ns", [(0,) * 60, (-5,) * 60, ()])
def test_times_that_no_clock_gives_are_not_comparable(tmp_path: Path, ns: tuple[int, ...]) -> None:
    _run(tmp_path / "b", 2).close()
    with sqlite3.connect(tmp_path / "b") as db:
        db.execute("UPDATE samples SET ns = ? WHERE round = 0", (np.array(ns, "<i8").tobytes(),))
    with _run(tmp_path / "a", 1) as a, Store(tmp_path / "b") as b:
        assert _one(compare_stores(a, b), "p50").verdict == "not comparable"


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE measurements SET conditions = '{'",
        "UPDATE measurements SET conditions = '[]'",
        "UPDATE samples SET ns = x'010203'",
    ],
)
def test_a_damaged_store_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str) -> None:
    for name, seed in (("a", 1), ("b", 2)):
        _run(tmp_path / name, seed).close()
    with sqlite3.connect(tmp_path / "b") as db:
        db.execute(change)
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 2
    assert "is no usable measurement store" in capsys.readouterr().err


def test_a_level_next_to_1_is_a_wide_interval(tmp_path: Path) -> None:
    with _run(tmp_path / "a", 1) as a, _run(tmp_path / "b", 2, factor=2) as b:
        found = _one(compare_stores(a, b, confidence=1 - 1e-15), "p50")
    assert found.verdict == "none shown"


def test_what_failed_or_is_gone_in_the_second_run_is_a_regression(tmp_path: Path) -> None:
    failed = {"status": "failed", "reason": "out of memory", "metrics": ()}
    with _run(tmp_path / "a", 1) as a, _run(tmp_path / "b", 2, measurement=failed) as b:
        (found,) = [d for d in compare_stores(a, b).differences if d.regression]
        assert "out of memory" in found.why
        assert not any(d.regression for d in compare_stores(b, a).differences)
    with _run(tmp_path / "c", 2, measurement={"candidate": "other"}) as c, Store(tmp_path / "a") as a:
        found_gone = compare_stores(a, c)
    assert [d.why for d in found_gone.differences if d.regression] == ["not measured in the second run"]
    assert any("in the second run alone" in note for note in found_gone.notes)


def test_machines_that_differ_are_never_mixed_silently(tmp_path: Path) -> None:
    other = {
        **FINGERPRINT,
        "cpu": "another CPU",
        "digest": "sha256:g",
        "versions": {"onnxruntime": "1.33.0", "numpy": "2.4"},
    }
    with _run(tmp_path / "a", 1) as a, _run(tmp_path / "b", 2, fingerprint=other) as b:
        found = compare_stores(a, b)
    assert found.machines == ("cpu: a CPU, then another CPU", "version of onnxruntime: 1.32.0, then 1.33.0")


def test_nothing_in_common_is_an_error(tmp_path: Path) -> None:
    with _run(tmp_path / "a", 1) as a, Store(tmp_path / "empty") as b, pytest.raises(StoreError, match="in common"):
        compare_stores(a, b)


def test_the_command_says_what_became_worse_and_a_job_can_stop_at_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    _run(tmp_path / "a", 1).close()
    _run(tmp_path / "b", 2, factor=1.4).close()
    assert main(["compare", a, b]) == 0
    out = capsys.readouterr().out
    assert "l6/int8-dynamic on here: cpu, 1 thread, single-stream" in out
    assert "worse" in out
    assert "no difference shown" in out
    assert main(["compare", a, b, "--fail-on-regression"]) == 3
    assert main(["compare", b, a, "--fail-on-regression"]) == 0
    assert main(["compare", a, b, "--fail-on-regression", "--tolerance", "80%"]) == 0
    capsys.readouterr()
    assert main(["compare", a, b, "--metric", "p50", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert [d["metric"] for d in data["differences"]] == ["p50"]
    assert data["regressions"] == 1


def test_what_failed_or_is_missing_stops_a_job_whatever_was_known_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the first run a sample too small for what is compared; of the second a failure, or nothing."""
    metrics = (Metric("server_p90", "s", 0.01, n=83), Metric("server_p95", "s", None, n=83, why="needs 47 more calls"))
    base = {"content_digest": "sha256:c", "target": TARGET, "stage": "profile", "conditions": {"rounds": {"count": 5}}}
    ok = Measurement("l6", "fp32", scenario="server", status="ok", metrics=metrics, **base)  # type: ignore[arg-type]
    other = Measurement("l6", "fp32", scenario="offline", status="ok", metrics=(), **base)  # type: ignore[arg-type]
    for name, found in (
        ("a", (ok, other)), ("same", (ok, other)), ("gone", (other,)),
        ("failed", (replace(ok, status="failed", reason="too many", metrics=()), other)),
    ):  # fmt: skip
        with Store(tmp_path / name) as store:
            for m in found:
                store.add(m)
    for name, code, words in (
        ("failed", 3, "failed in the second run: too many"),
        ("gone", 3, "not measured in the second run"),
        ("same", 0, "none of the metrics that are compared is known of either run; --metric takes server_p90"),
    ):
        assert main(["compare", str(tmp_path / "a"), str(tmp_path / name), "--fail-on-regression"]) == code
        assert words in capsys.readouterr().out
    assert main(["compare", str(tmp_path / "failed"), str(tmp_path / "gone"), "--fail-on-regression"]) == 0


def test_the_same_digest_is_the_same_rows_whatever_else_is_known_of_them(tmp_path: Path) -> None:
    """A store from before slices were told apart, beside a new one."""
    with _run(tmp_path / "a", 1) as a, Store(tmp_path / "b") as b:
        for m in a.measurements():
            told = {**m.conditions, "rows_digest": "sha256:plain"}
            b.add(replace(m, id=None, conditions=told), a.samples(m.id or 0), a.outcomes(m.id or 0))
        found = compare_stores(a, b)
    assert {d.verdict for d in found.differences} <= {"none shown", "equal"}


def test_the_same_rows_in_other_slices_are_the_same_rows(tmp_path: Path) -> None:
    """Without slices the digest is that of the rows; with them the conditions have it."""
    a, b = _run(tmp_path / "a", 1), Store(tmp_path / "b")
    with a, b:
        for m in a.measurements():
            told = {**m.conditions, "rows_digest": m.inputs_digest}
            number = m.id or 0
            b.add(
                replace(m, id=None, inputs_digest="sha256:with-slices", conditions=told),
                a.samples(number),
                a.outcomes(number),
            )
        found = compare_stores(a, b)
    assert {d.verdict for d in found.differences} <= {"none shown", "equal"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--tolerance", "lots"], "--tolerance is 'lots'"),
        (["--tolerance", "120%"], "--tolerance is '120%'"),
        (["--metric", "p51"], "unknown metric 'p51'"),
        (["--confidence", "2"], "2"),
    ],
)
def test_wrong_options_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    for name, seed in (("a", 1), ("b", 2)):
        _run(tmp_path / name, seed).close()
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b"), *options]) == 2
    assert words in capsys.readouterr().err


def test_a_store_beside_itself_or_none_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _run(tmp_path / "a", 1).close()
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "a")]) == 2
    assert "the same store" in capsys.readouterr().err
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "none")]) == 2
    assert "no such measurement store" in capsys.readouterr().err
    (tmp_path / "empty").touch()
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "empty")]) == 2
    assert "is an empty file" in capsys.readouterr().err
    assert (tmp_path / "empty").stat().st_size == 0  # reading it made no store of it
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "a"), "--metric", "p50,p50"]) == 2
    assert "names one twice" in capsys.readouterr().err


def test_export_as_json_csv_and_parquet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _run(tmp_path / "a", 1).close()
    store = str(tmp_path / "a")
    assert main(["measurements", "export", store, "--samples"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert [m["scenario"] for m in data] == ["single-stream", "accuracy"]
    assert len(data[0]["samples"]) == 6
    assert len(data[0]["samples"][0]["ns"]) == 60
    assert data[0]["conditions"]["rounds"]["count"] == 6
    assert data[0]["created"].endswith("+00:00")

    assert main(["measurements", "export", store, "--format", "csv"]) == 0
    table = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    p50 = next(line for line in table if line["metric"] == "p50")
    assert (p50["candidate"], p50["unit"], p50["threads"], p50["cpu"]) == ("l6", "s", "1", "a CPU")
    assert 0.008 < float(p50["value"]) < 0.012
    unavailable = next(line for line in table if line["metric"] == "p99.9")
    assert (unavailable["value"], unavailable["kind"]) == ("", "unavailable")

    import pyarrow.parquet as pq

    out = tmp_path / "m.parquet"
    assert main(["measurements", "export", store, "--format", "parquet", "-o", str(out)]) == 0
    rows = pq.read_table(out).to_pylist()
    assert len(rows) == len(table)
    assert rows[0]["value"] == pytest.approx(float(table[0]["value"]))
    assert rows[0]["measurement"] == 1


def test_a_report_of_a_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    failed = {"status": "failed", "reason": "out of | memory", "metrics": ()}
    _run(tmp_path / "a", 1, disturbed=[2], measurement=failed).close()
    assert main(["measurements", "report", str(tmp_path / "a"), "-o", str(tmp_path / "r.md")]) == 0
    text = (tmp_path / "r.md").read_text(encoding="utf-8")
    assert "a CPU" in text
    assert "90.00%" in text  # accuracy
    assert "out of \\| memory" in text  # and the table is whole
    capsys.readouterr()
    assert main(["measurements", "report", str(tmp_path / "a"), "--format", "csv"]) == 2
    assert "the report is Markdown" in capsys.readouterr().err


def test_export_says_what_does_not_go_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _run(tmp_path / "a", 1).close()
    assert main(["measurements", "export", str(tmp_path / "a"), "--format", "csv", "--samples"]) == 2
    assert "--samples goes with --format json" in capsys.readouterr().err
    assert main(["measurements", "export", str(tmp_path / "a"), "--format", "parquet"]) == 2
    assert "name a file with -o" in capsys.readouterr().err


def test_export_overwrites_nothing_but_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = tmp_path / "a"
    _run(store, 1).close()
    before = store.read_bytes()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for out, words in (
        (store, "is the store itself"),
        (tmp_path / "pipe", "no regular file"),
        (tmp_path / "folder", "is a folder"),
        (store / "x.json", "cannot be written"),
    ):
        assert main(["measurements", "export", str(store), "-o", str(out)]) == 2
        assert words in capsys.readouterr().err
    assert store.read_bytes() == before
    assert (tmp_path / "pipe").is_fifo()
    assert main(["measurements", "export", str(store), "-o", str(tmp_path / "new" / "m.json")]) == 0


def test_export_has_no_number_that_json_lacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _run(tmp_path / "a", 1).close()
    with sqlite3.connect(tmp_path / "a") as db:
        db.execute("UPDATE metrics SET high = 9e999 WHERE name = 'p50'")
    assert main(["measurements", "export", str(tmp_path / "a")]) == 0
    data = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert next(m["high"] for m in data[0]["metrics"] if m["name"] == "p50") is None


def test_the_yardstick_is_work_that_takes_time() -> None:
    found = read_yardstick()
    assert sorted(found) == ["copy", "product"]
    assert all(1_000 < ns < 1_000_000_000 for ns in found.values())


def test_the_percentile_that_was_asked_for_is_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As MLPerf's mode asks for p90: that the second run lacks it stops a job, and the last line says so."""
    for name, seed, p90 in (("a", 1, 0.01), ("b", 2, None)):
        with _with_metrics(tmp_path / f"{name}0", seed, p50=0.008, p90=p90) as made, Store(tmp_path / name) as store:
            for m in made.measurements():
                asked = {**m.conditions, "settings": {"percentile": "p90"}}
                store.add(replace(m, id=None, conditions=asked), made.samples(m.id or 0), made.outcomes(m.id or 0))
    with Store(tmp_path / "a") as a, Store(tmp_path / "b") as b:
        assert _one(compare_stores(a, b), "p90").lost
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--fail-on-regression"]) == 3
    last = capsys.readouterr().out.splitlines()[-1]
    assert "of them failed or missing in the second run alone, which counts as worse" in last


def test_a_machine_with_other_memory_is_told_of_though_its_digest_is_the_same(tmp_path: Path) -> None:
    small, large = ({**FINGERPRINT, "memory": gb * 10**9, "kernel": "6.1"} for gb in (2, 8))
    with _run(tmp_path / "a", 1, fingerprint=small) as a, _run(tmp_path / "b", 2, fingerprint=large) as b:
        found = compare_stores(a, b)
    assert found.machines == ("memory: 2000000000, then 8000000000",)


def test_the_tables_have_no_number_that_json_lacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metric = Metric("p95", "s", 0.01, 0.009, math.inf, 0.95, n=360)
    with _run(tmp_path / "a", 1, measurement={"metrics": (metric,)}):
        pass
    for form in ("csv", "json"):
        assert main(["measurements", "export", str(tmp_path / "a"), "--format", form]) == 0
        assert "inf" not in capsys.readouterr().out.lower().replace('"info', "")
