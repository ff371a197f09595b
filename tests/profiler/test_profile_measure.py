"""Measuring real bundles with real processes: what is measured, what is kept, what survives a kill."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from scipy import stats

from edgewise.arrival import Arrival
from edgewise.bundle import read_bundle, with_run
from edgewise.data import Row
from edgewise.errors import DataError, PlanError, StoreError, UserError
from edgewise.plan import ProfileSpec
from edgewise.profiler import Store, Subject, entries, measure_accuracy, measure_latency, profile
from edgewise.profiler.hardware_report import hardware_report
from edgewise.profiler.measure import Rounds, subject_of
from edgewise.profiler.results import Calls, WorkerResult, read_result
from edgewise.profiler.rounds import Ends, Interim, Series, calls_a_round, unsteady
from edgewise.profiler.store import MeasurementKey
from edgewise.profiler.transport import run_job
from edgewise.profiler.vitals import Load
from edgewise.runtime import load
from edgewise.showing import show
from edgewise.types import Device, Measurement, RunSettings, Target
from edgewise.units import METRICS, SAMPLE_NEEDED

SHORT = Rounds(percentile="p50", width=0.9, min_rounds=5, max_rounds=5, seconds=0.02)
AT_32 = Target("here", RunSettings(max_length=32))
AT_16 = Target("here", RunSettings(max_length=16))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "m.sqlite")


@pytest.fixture(scope="module")
def subjects(bundles: dict[str, Path]) -> list[Subject]:
    return [Subject("tiny", recipe, read_bundle(bundles[recipe])) for recipe in ("fp32", "int8-dynamic")]


@pytest.fixture(scope="module")
def timed(
    subjects: list[Subject], review_rows: tuple[Row, ...], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Store, list[Measurement], list[str]]:
    """Two bundles measured on one target, with the steps that were told."""
    place = Store(tmp_path_factory.mktemp("timed") / "m.sqlite")
    told: list[str] = []
    found = measure_latency(
        subjects, [AT_32], review_rows, store=place, spec=SHORT, repeat_disturbed=False,
        progress=lambda done, total, what: told.append(f"{done}/{total} {what}"),
    )  # fmt: skip
    return place, found, told


def test_every_metric_of_latency_is_there_with_bounds_or_a_reason(
    timed: tuple[Store, list[Measurement], list[str]], bundles: dict[str, Path]
) -> None:
    for measurement in timed[1]:
        assert measurement.status == "ok", measurement.reason
        by_name = {m.name: m for m in measurement.metrics}
        assert {"p50", "latency_mean", "throughput", "startup", "peak_rss", "empty_rss", "size"} <= set(by_name)
        for m in by_name.values():
            if m.kind == "unavailable":
                assert m.value is None
                assert m.why if m.name == "energy" else "more calls" in m.why
            elif m.name == "roofline":
                assert m.kind == "estimated"
                assert m.value is not None
                assert 0 < m.value < 1
            elif m.name == "size":
                assert m.value == read_bundle(bundles[measurement.recipe]).manifest.size
            else:
                assert m.value is not None
                assert m.low is not None
                assert m.high is not None
                assert m.value > 0
                assert m.low <= m.value <= m.high
                assert m.level == 0.95
        phases = sum(by_name[f"startup_{p}"].value or 0 for p in ("interpreter", "imports", "load", "session", "first"))
        assert phases < (by_name["startup"].value or 0)
        assert by_name["empty_rss"].value < by_name["uss"].value < by_name["peak_rss"].value  # type: ignore[operator]


def test_the_hardware_report_has_every_number_and_says_what_it_means(
    timed: tuple[Store, list[Measurement], list[str]], tmp_path: Path
) -> None:
    report = hardware_report(timed[0], "Hardware report")
    lines = report.splitlines()
    for m in timed[1]:
        row = next(line for line in lines if line.startswith(f"| {m.candidate}/{m.recipe} ") and " ms [" in line)
        for name in ("p50", "latency_mean"):
            metric = m.metric(name)
            assert metric is not None
            assert f"{show(metric.value, 's')} [{show(metric.low, 's')}, {show(metric.high, 's')}]" in row
        for metric in m.metrics:
            if metric.value is not None:
                assert f"- **{metric.name.replace('_', ' ')}**: {METRICS[metric.name].about}" in lines
    for part in ("Machines", "How it was measured", "Start-up", "Memory and size", "Inside the graph"):
        assert f"## {part}" in lines
    assert "MatMul" in report
    with pytest.raises(StoreError, match="holds no measurements"):
        hardware_report(Store(tmp_path / "none.sqlite"), "none")


def test_what_the_hardware_report_says_beside_the_times(timed: tuple[Store, list[Measurement], list[str]]) -> None:
    report = hardware_report(timed[0], "Hardware report")
    lines = report.splitlines()
    header = next(line for line in lines if line.startswith("| bundle | run | p50"))
    assert "| p99 | p99.9 |" in header
    assert report.count("needs ") >= len(timed[1]), "how many calls are missing for p99.9"
    for m in timed[1]:
        memory, disk = m.conditions["memory"], m.conditions["disk"]
        assert all(r["uss"] <= r["pss"] <= r["rss"] for phase in ("first", "end") for r in memory[phase])
        assert sum(disk.values()) == m.metric("size").value  # type: ignore[union-attr]
        assert disk["embeddings"] > disk["structure"] > 0
        before = m.conditions["rounds"]["other_cpu_before"]
        assert len(before) == 5
        assert all(0 <= share <= 1 for share in before)
        assert all(len(average) == 3 for average in m.conditions["rounds"]["load_average"])
    assert "### At the ends of phases" in lines
    assert "### On disk, by part" in lines
    assert "## Energy of an input" in lines
    assert re.search(
        r"^- Unavailable on here: |^\| tiny/\S+ \| here: .* \| (measured|estimated) \|", report, re.MULTILINE
    )
    assert "- Measured peaks of here with 1 thread: " in report


def test_one_name_for_two_machines_is_told_apart(
    timed: tuple[Store, list[Measurement], list[str]], tmp_path: Path
) -> None:
    """The same bundle on both, and nothing of the first is lost."""
    with Store(tmp_path / "both.sqlite") as both:
        for m in timed[1]:
            both.add(m)
            other = {**m.conditions["fingerprint"], "cpu": "another CPU", "digest": "sha256:other"}
            both.add(
                replace(m, conditions={**m.conditions, "fingerprint": other, "fingerprint_digest": "sha256:other"})
            )
        report = hardware_report(both, "two")
    assert "here was 2 machines, or one that changed in between" in report
    assert "**here (1)**" in report
    assert "| cpu | another CPU |" in report.partition("**here (2)**")[2]
    for m in timed[1]:
        for number in (1, 2):
            assert f"| {m.candidate}/{m.recipe} | here ({number}): cpu, 1 thread, length 32 |" in report
    assert "Measured peaks of here (2) with 1 thread" in report


def test_metrics_are_those_of_the_raw_samples(timed: tuple[Store, list[Measurement], list[str]]) -> None:
    store, found, _ = timed
    for measurement in found:
        samples = store.samples(measurement.id or 0)
        assert [s.round for s in samples] == [0, 1, 2, 3, 4]
        assert len({s.process for s in samples}) == 5  # a fresh process each
        mean = np.mean([np.mean(s.ns) for s in samples]) / 1e9
        metric = measurement.metric("latency_mean")
        assert metric is not None
        assert metric.value == pytest.approx(mean)
        throughput = measurement.metric("throughput")
        assert throughput is not None
        assert throughput.value == pytest.approx(1 / mean)


def test_conditions_say_what_the_numbers_depend_on(timed: tuple[Store, list[Measurement], list[str]]) -> None:
    for measurement in timed[1]:
        c = measurement.conditions
        assert c["fingerprint"]["digest"] == c["fingerprint_digest"]
        assert c["fingerprint"]["versions"]["onnxruntime"]
        assert c["placement"]["CPUExecutionProvider"] > 10
        assert c["providers"] == ["CPUExecutionProvider"]
        assert 3 <= c["inputs"]["tokens"]["min"] <= c["inputs"]["tokens"]["p50"] <= 32
        assert 0 < c["inputs"]["truncated"] < 1
        assert "after 5 rounds" in c["rounds"]["stopped"]
        assert len(c["rounds"]["other_cpu"]) == 5
        assert c["settings"]["min_calls"] == 3  # five rounds of them are the 11 calls that p50 needs


def test_rounds_are_interleaved(timed: tuple[Store, list[Measurement], list[str]]) -> None:
    told = timed[2]
    assert told[-1].startswith("10/10 ")
    for number in range(5):
        both = told[2 * number : 2 * number + 2]
        assert all(f"round {number + 1}:" in t for t in both)
        assert len({t.split("tiny/")[1] for t in both}) == 2
    first = [t.split("tiny/")[1] for t in told[::2]]
    assert len(set(first)) == 2  # the order changes from round to round


def test_measured_again_it_repeats_nothing(
    timed: tuple[Store, list[Measurement], list[str]], subjects: list[Subject], review_rows: tuple[Row, ...]
) -> None:
    store, found, _ = timed
    told: list[str] = []
    again = measure_latency(
        subjects, [AT_32], review_rows, store=store, spec=SHORT, progress=lambda *step: told.append(str(step))
    )
    assert told == []
    assert [m.id for m in again] == [m.id for m in found]
    assert len(store.measurements()) == len(found)
    assert not list(store.path.parent.glob("*.rounds"))  # raw files go once the measurement stands in the store


def test_who_needs_no_more_rounds_ends_early(
    subjects: list[Subject], review_rows: tuple[Row, ...], store: Store
) -> None:
    """One of two is ended after its third round: a look stands in the store, and nothing of its other scenario."""
    asked: list[list[tuple[str, int]]] = []
    told: list[tuple[int, int]] = []

    def ends(so_far: Sequence[Interim]) -> set[int]:
        asked.append([(x.subject.recipe, len(x.seconds)) for x in so_far])
        for x in so_far:
            assert {"startup", "peak_rss"} <= {m.name for m in x.metrics if m.value}
            assert min(float(s.min()) for s in x.seconds) > 0
        return {i for i, x in enumerate(so_far) if x.subject.recipe == "fp32"}

    def measure(ends: Ends | None, *arrivals: Arrival) -> list[Measurement]:
        return measure_latency(
            subjects, [AT_32], review_rows[:30], store=store, spec=SHORT, repeat_disturbed=False, ends=ends,
            arrivals=arrivals, progress=lambda done, total, what: told.append((done, total)),
        )  # fmt: skip

    found = measure(ends, Arrival(), Arrival("offline"))
    assert asked == [[("fp32", 3), ("int8-dynamic", 3)], [("int8-dynamic", 4)]]
    assert told[-1] == (2 * 3 + 2 * 5, 2 * 3 + 2 * 5)
    assert [(m.recipe, m.scenario, m.stage) for m in found] == [
        ("fp32", "single-stream", "look"),
        ("int8-dynamic", "single-stream", "profile"),
        ("int8-dynamic", "offline", "profile"),
    ]
    rounds = found[0].conditions["rounds"]
    assert rounds["count"] == 3
    assert rounds["stopped"] == "after 3 rounds, early: a search needed no more of it"
    assert len(store.samples(found[0].id or 0)) == 3
    assert not list(store.path.parent.glob("*.rounds"))

    told.clear()
    again = measure(ends, Arrival(), Arrival("offline"))
    assert [m.id for m in again] == [m.id for m in found]  # nothing is measured again
    assert told == []
    assert [e.recipe for e in entries(store)] == ["int8-dynamic"]  # a look is no measurement
    whole = measure(None, Arrival())
    assert [(m.stage, m.conditions["rounds"]["count"]) for m in whole] == [("profile", 5)] * 2


def test_accuracy_is_that_of_the_runtime_whatever_was_reused(
    subjects: list[Subject], review_rows: tuple[Row, ...], store: Store
) -> None:
    rows = review_rows[:120]
    targets = [AT_16, AT_32, replace(AT_32, run=replace(AT_32.run, threads=2))]
    found = measure_accuracy(subjects, targets, rows, store=store)
    answered = [m for m in found if m.scenario == "accuracy"]
    assert len(answered) == 4  # threads are not measured apart
    assert {m.target.run.threads for m in answered if m.target} == {1}
    for m in answered:
        subject = next(s for s in subjects if s.recipe == m.recipe)
        assert m.target is not None
        with load(subject.bundle.path, threads=1, max_length=m.target.run.max_length) as model:
            told = model.predict([r.text for r in rows])
        outcomes = store.outcomes(m.id or 0)
        assert [o.answer for o in outcomes] == [p.index for p in told]
        assert [o.logits for o in outcomes] == [p.logits for p in told]
        assert [o.row_id for o in outcomes] == [r.id for r in rows]
        right = np.mean([p.label == r.label for p, r in zip(told, rows, strict=True)])
        accuracy = m.metric("accuracy")
        assert accuracy is not None
        assert accuracy.value == pytest.approx(right)
        assert accuracy.low < accuracy.value < accuracy.high  # type: ignore[operator]
        assert m.conditions["inputs"]["truncated"] == pytest.approx(np.mean([p.truncated for p in told]))
    reused = {m.target.run.max_length: m.conditions["reused"] for m in answered if m.target}
    assert reused[32] == 0
    assert 0 < reused[16] < 120


def test_a_drop_is_paired_with_the_reference_at_the_same_length(
    subjects: list[Subject], review_rows: tuple[Row, ...], store: Store
) -> None:
    rows = review_rows[:120]
    found = measure_accuracy(subjects, [AT_16, AT_32], rows, store=store)
    compared = {(m.recipe, m.target.run.max_length): m for m in found if m.scenario == "comparison" and m.target}
    answered = {(m.recipe, m.target.run.max_length): m for m in found if m.scenario == "accuracy" and m.target}
    for length in (16, 32):
        base, ours = (store.outcomes(answered[r, length].id or 0) for r in ("fp32", "int8-dynamic"))
        drop = compared["int8-dynamic", length].metric("accuracy_drop")
        changed = compared["int8-dynamic", length].metric("changed_answers")
        assert drop is not None
        assert changed is not None
        lost = sum((a.answer == a.label) - (b.answer == b.label) for a, b in zip(base, ours, strict=True))
        assert drop.value == pytest.approx(100 * lost / 120)
        assert changed.value == pytest.approx(np.mean([a.answer != b.answer for a, b in zip(base, ours, strict=True)]))
        assert drop.high is not None
        assert drop.high > 0.5  # so few rows show nothing
        assert compared["int8-dynamic", length].conditions["words"].startswith("Not shown to be within 0.5 points")
        scores = compared["int8-dynamic", length].conditions["scores"]
        was, now = (np.array([1 / (1 + np.exp(o.logits[0] - o.logits[1])) for o in x]) for x in (base, ours))
        assert scores["mean_moved"] == pytest.approx(now.mean() - was.mean())
        assert scores["largest_gap"] == pytest.approx(stats.ks_2samp(was, now).statistic)
        # With this threshold the second label is said as often as fp32 says it.
        assert np.count_nonzero(now > scores["threshold"]) == np.count_nonzero(was > 0.5)
        assert scores["called_by_reference"] == pytest.approx(np.mean(was > 0.5))
        itself = compared["fp32", length].metric("accuracy_drop")
        assert itself is not None
        assert (itself.value, itself.method) == (0.0, "the reference itself")
    assert [m.id for m in measure_accuracy(subjects, [AT_16, AT_32], rows, store=store)] == [m.id for m in found]


def test_accuracy_by_slice_and_its_drop(subjects: list[Subject], review_rows: tuple[Row, ...], store: Store) -> None:
    rows = [replace(row, slices=(("who", "a" if i % 3 else "b"),)) for i, row in enumerate(review_rows[:120])]
    found = measure_accuracy(subjects, [AT_32], rows, store=store, slices=["who", "class"])
    answered = [m for m in found if m.scenario == "accuracy"]
    parts = {p["slice"]: p for p in answered[1].conditions["slices"]}
    assert {n for n in parts if n.startswith("who")} == {"who = a", "who = b"}
    outcomes = store.outcomes(answered[1].id or 0)
    for part in parts.values():
        right = [outcomes[i].answer == outcomes[i].label for i in part["rows"]]
        assert part["accuracy"] == pytest.approx(np.mean(right))
        assert part["low"] < part["accuracy"] < part["high"]
    assert parts["who = b"]["rows"] == list(range(0, 120, 3))
    worst = answered[1].metric("worst_slice_accuracy")
    assert worst is not None
    assert worst.value == min(p["accuracy"] for p in parts.values() if len(p["rows"]) >= 20)
    drops = {p["slice"]: p for p in found[-1].conditions["slices"]}
    whole = found[-1].metric("accuracy_drop")
    assert whole is not None
    sides = [(drops[f"who = {x}"]["drop"], drops[f"who = {x}"]["n"]) for x in "ab"]
    assert sum(d * n for d, n in sides) / 120 == pytest.approx(whole.value)
    with pytest.raises(DataError, match="no slice 'colour'"):
        measure_accuracy(subjects, [AT_32], rows, store=store, slices=["colour"])


def test_a_process_whose_calls_become_slower_is_unsteady() -> None:
    random = np.random.default_rng(1)
    tokens = random.integers(5, 60, 90)

    def calls(factor: np.ndarray) -> Calls:
        ns = tuple((1e5 * tokens * factor * (1 + 0.02 * random.standard_normal(90))).astype(int).tolist())
        one = tuple(range(90))
        return Calls(ns, one, tuple(tokens.tolist()), one)

    assert not unsteady(calls(np.ones(90)))  # though short and long texts take 1 to 10 times
    assert unsteady(calls(np.linspace(1, 1.4, 90)))
    assert unsteady(calls(np.where(np.arange(90) < 30, 1.3, 1.0)))
    few = calls(np.linspace(1, 3, 90))
    assert not unsteady(replace(few, ns=few.ns[:20], tokens=few.tokens[:20]))


def test_without_labels_the_answers_are_compared(
    subjects: list[Subject], review_rows: tuple[Row, ...], store: Store
) -> None:
    rows = [replace(row, label=None) for row in review_rows[:120]]
    found = measure_accuracy(subjects, [AT_32], rows, store=store)
    base, ours = (m for m in found if m.scenario == "accuracy")
    assert base.metrics == ours.metrics == ()
    pairs = list(zip(store.outcomes(base.id or 0), store.outcomes(ours.id or 0), strict=True))
    same = float(np.mean([a.answer == b.answer for a, b in pairs]))
    itself, compared = ({x.name: x for x in m.metrics} for m in found if m.scenario == "comparison")
    assert compared["agreement"].value == pytest.approx(same)
    assert compared["changed_answers"].value == pytest.approx(1 - same)
    assert compared["agreement"].low is not None
    assert compared["agreement"].low < same
    assert itself["agreement"].value == 1.0
    assert compared["accuracy_drop"].value is None
    assert compared["accuracy_drop"].why == "the rows have no labels"
    # The one call does the same where the reference is among the bundles, and times alone where it is not.
    whole = profile(subjects, [AT_32], rows[:20], store=store, spec=SHORT)
    assert {m.scenario for m in whole} == {"accuracy", "comparison", "single-stream"}
    assert {m.scenario for m in profile(subjects[1:], [AT_32], rows[:20], store=store, spec=SHORT)} == {"single-stream"}


def test_without_a_reference_the_drop_is_unavailable_and_says_why(
    subjects: list[Subject], review_rows: tuple[Row, ...], store: Store
) -> None:
    found = measure_accuracy(subjects[1:], [AT_16], review_rows[:30], store=store)
    drop = found[-1].metric("accuracy_drop")
    assert drop is not None
    assert (drop.value, drop.kind) == (None, "unavailable")
    assert "no fp32 bundle of tiny" in drop.why


def test_one_broken_bundle_does_not_stop_the_others(
    subjects: list[Subject], review_rows: tuple[Row, ...], store: Store, tmp_path: Path
) -> None:
    copy = tmp_path / "broken"
    shutil.copytree(subjects[1].bundle.path, copy)
    broken = Subject("broken", "int8-dynamic", read_bundle(copy))
    (copy / "tokenizer.json").write_text("{}")
    bad_target = replace(AT_16, run=replace(AT_16.run, provider="cuda"))
    found = profile(
        [broken, subjects[0]], [AT_16, bad_target], review_rows[:30], store=store, spec=replace(SHORT, max_rounds=5)
    )
    state = {(m.candidate, m.scenario, m.target.run.provider): m for m in found if m.target}
    for scenario in ("accuracy", "single-stream"):
        assert state["tiny", scenario, "cpu"].status == "ok"
        assert "tokenizer.json" in state["broken", scenario, "cpu"].reason
        assert "cuda" in state["tiny", scenario, "cuda"].reason
    joined = {(e.candidate, e.target.run.provider): e for e in entries(store) if e.target}
    assert joined["tiny", "cpu"].status == "ok"
    assert {"accuracy", "accuracy_drop", "p50", "peak_rss", "size"} <= set(joined["tiny", "cpu"].metrics)
    assert joined["broken", "cpu"].status == "failed"


def test_labels_that_a_bundle_does_not_know_are_a_failure_with_its_reason(
    subjects: list[Subject], review_rows: tuple[Row, ...], store: Store
) -> None:
    odd = [*review_rows[:5], replace(review_rows[5], label="so so")]
    (found,) = measure_accuracy(subjects[:1], [AT_16], odd, store=store)
    assert found.status == "failed"
    assert "['so so']" in found.reason


def test_bad_input_is_one_clear_error(subjects: list[Subject], review_rows: tuple[Row, ...], store: Store) -> None:
    with pytest.raises(DataError, match="no rows"):
        measure_latency(subjects, [AT_16], [], store=store)
    with pytest.raises(DataError, match="1 of 3 rows have no label"):
        profile(subjects, [AT_16], [*review_rows[:2], replace(review_rows[2], label=None)], store=store)
    with pytest.raises(PlanError, match="unknown device"):
        measure_latency(subjects, [replace(AT_16, device="hear")], review_rows[:3], store=store)
    with pytest.raises(UserError, match="does not start"):
        measure_latency(subjects, [AT_16], review_rows[:3], store=store, devices=[Device("here", "/no/python")])
    assert store.measurements() == []


def test_a_length_that_the_bundle_carries_does_not_stand_for_the_models_own(
    bundle_copy: Path, review_rows: tuple[Row, ...], store: Store
) -> None:
    with_run(read_bundle(bundle_copy), RunSettings(max_length=8))
    target = Target("here", RunSettings())
    found = measure_accuracy([subject_of(bundle_copy)], [target], review_rows[:20], store=store)
    assert found[0].conditions["inputs"]["tokens"]["max"] > 8


def test_without_labels_only_times_are_measured(
    subjects: list[Subject], review_rows: tuple[Row, ...], store: Store
) -> None:
    rows = [replace(r, label=None) for r in review_rows[:20]]
    found = profile([subjects[1].bundle.path], [AT_16], rows, store=store, spec=SHORT)
    assert [m.scenario for m in found] == ["single-stream"]
    assert found[0].recipe == "int8-dynamic"


RUN = """
import sys
from pathlib import Path
from edgewise.bundle import read_bundle
from edgewise.data import Row
from edgewise.profiler import Store, Subject, measure_latency
from edgewise.profiler.measure import Rounds
from edgewise.types import RunSettings, Target
with Store(sys.argv[1]) as store:
    measure_latency(
        [Subject("tiny", "int8-dynamic", read_bundle(sys.argv[2]))], [Target("here", RunSettings(max_length=16))],
        [Row("a fine film")] * 5, store=store, repeat_disturbed=False,
        spec=Rounds(percentile="p50", width=0.9, max_rounds=5, seconds=0.3),
        progress=lambda done, total, what: print(done, flush=True),
    )
"""


def _start(store: Path, bundle: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", RUN, store, bundle],
        stdout=subprocess.PIPE,
        text=True,
    )


def _wait_for_round(process: subprocess.Popen[str], number: str) -> None:
    assert process.stdout is not None
    assert any(line.strip() == number for line in process.stdout)


@pytest.mark.skipif(os.name != "posix", reason="kills by signal")
def test_killed_at_any_moment_it_loses_at_most_the_round_in_hand(int8_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.sqlite"
    killed = _start(path, int8_bundle)
    _wait_for_round(killed, "2")
    killed.kill()
    killed.wait()
    with Store(path) as store:
        assert store.measurements() == []
    files = sorted(path.with_name("m.sqlite.rounds").glob("*/*.jsonl"))
    before = {f.name: read_result(f).pid for f in files}
    assert {"round-000.jsonl", "round-001.jsonl"} <= set(before)
    again = _start(path, int8_bundle)
    assert again.wait(timeout=120) == 0
    with Store(path) as store:
        (measurement,) = store.measurements()
        samples = store.samples(measurement.id or 0)
    assert [s.round for s in samples] == [0, 1, 2, 3, 4]
    assert [s.process for s in samples[:2]] == [before["round-000.jsonl"], before["round-001.jsonl"]]


@pytest.mark.skipif(os.name != "posix", reason="kills by signal")
def test_interrupted_it_leaves_no_worker_and_a_whole_store(int8_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.sqlite"
    process = _start(path, int8_bundle)
    _wait_for_round(process, "1")
    workers: list[psutil.Process] = []
    while not workers:
        workers = psutil.Process(process.pid).children(recursive=True)
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) != 0
    assert not any(w.is_running() for w in workers)
    with Store(path) as store:
        assert store.measurements() == []


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the load")
def test_beside_busy_neighbours_it_is_said_to_be_disturbed_and_ends(
    subjects: list[Subject], review_rows: tuple[Row, ...], store: Store
) -> None:
    spinning = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        (found,) = measure_latency(
            subjects[1:], [AT_16], review_rows[:20], store=store, spec=replace(SHORT, seconds=0.15)
        )
    finally:
        for process in spinning:
            process.kill()
            process.wait()
    rounds = found.conditions["rounds"]
    assert len(rounds["disturbed"]) >= 3
    assert not rounds["repeated"]
    assert "the machine was busy" in found.conditions["notes"][-1]


def _result(calls: list[int], other_cpu: float, like: WorkerResult) -> WorkerResult:
    assert like.calls is not None
    n = len(calls)
    made = replace(like.calls, ns=tuple(calls), inputs=(0,) * n, tokens=(9,) * n, truncated=(0,) * n)
    return replace(like, calls=made, load=Load(other_cpu, 0.0, 1.0))


@pytest.fixture
def series(subjects: list[Subject], review_rows: tuple[Row, ...], tmp_path: Path) -> Any:
    """A series with one real round, to build rounds with known times from."""
    result = run_job(Device(), {"job": "describe"}, [])
    like = replace(result, calls=Calls((1,), (0,), (9,), (0,)))
    key = MeasurementKey("tiny", "fp32", "sha256:c", AT_16, "single-stream", "profile")
    return Series(subjects[0], AT_16, Device(), key, tmp_path / "rounds", {}), like


def test_a_disturbed_round_gives_way_to_a_calmer_repeat_whatever_its_times(series: Any) -> None:
    s, like = series
    slow, fast = [9_000_000] * 20, [1_000_000] * 20
    s.rounds = {0: _result(slow, 0.02, like), 1: _result(fast, 0.4, like), 2: _result(slow, 0.3, like)}
    assert s.disturbed() == [1, 2]
    s.take_repeat(1, _result(slow, 0.05, like))
    s.take_repeat(2, _result(fast, 0.35, like))
    assert s.rounds[1].calls.ns == tuple(slow)  # calmer, though slower
    assert s.rounds[2].calls.ns == tuple(slow)  # the repeat was no calmer, though faster
    assert s.disturbed() == [2]
    assert set(s.repeats) == {1, 2}


def test_it_stops_when_the_interval_is_narrow_enough(series: Any) -> None:
    s, like = series
    random = np.random.default_rng(0)
    rule = Rounds(percentile="p95", width=0.05)
    tight = [(1e6 * random.normal(1, 0.01, 30)).astype(int).tolist() for _ in range(5)]
    s.rounds = {i: _result(t, 0.0, like) for i, t in enumerate(tight)}
    assert s.enough(rule, 0.95)
    s.rounds[0] = _result([2 * x for x in tight[0]], 0.0, like)
    assert not s.enough(rule, 0.95)
    s.rounds = {i: _result(t[:20], 0.0, like) for i, t in enumerate(tight)}
    assert s.half_width(rule, 0.95) is None  # 100 calls are too few for p95
    assert not s.enough(rule, 0.95)


@pytest.mark.parametrize("percentile", ["p50", "p95", "p99"])
def test_rounds_have_calls_enough_for_the_asked_percentile(percentile: str) -> None:
    for rule in (ProfileSpec(percentile=percentile), Rounds(percentile, min_rounds=7)):  # type: ignore[arg-type]
        assert rule.min_rounds * calls_a_round(rule, Arrival()) >= SAMPLE_NEEDED[percentile]


def test_a_bundle_that_changes_while_it_is_measured_is_no_measurement(
    subjects: list[Subject], review_rows: tuple[Row, ...], store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the check before the first worker: hours may lie between them."""
    from edgewise.profiler import accuracy

    copy = tmp_path / "copy"
    shutil.copytree(subjects[1].bundle.path, copy)
    changed = Subject("changed", "int8-dynamic", read_bundle(copy))
    shutil.copy(subjects[0].bundle.path / "onnx" / "model.onnx", copy / "onnx" / "model.onnx")
    monkeypatch.setattr(accuracy, "check_subject", lambda subject: "")
    bad, good = measure_accuracy([changed, subjects[0]], [AT_16], review_rows[:12], store=store)[:2]
    assert (bad.status, good.status) == ("failed", "ok")
    assert "model.onnx" in bad.reason


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a: a[::-1], "answer 1 of the worker is to the row"),
        (lambda a: a[1:], "the worker gave 5 answers to 6 rows"),
        (lambda a: [replace(x, index=7) for x in a], "answer 1 of the worker is label 7 of 2 logits, where the bundle"),
        (
            lambda a: [replace(x, logits=x.logits[:1]) for x in a],
            "is label . of 1 logits, where the bundle has 2 labels",
        ),
    ],
)
def test_answers_that_cannot_be_those_to_the_rows_fail_their_bundle_alone(
    change: Callable[[Any], Any],
    words: str,
    subjects: list[Subject],
    review_rows: tuple[Row, ...],
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from edgewise.profiler import accuracy

    def told(device: Device, job: Any, inputs: Any, **more: Any) -> WorkerResult:
        result = run_job(device, job, inputs, **more)
        wrong = job["content_digest"] == subjects[1].bundle.digest
        return replace(result, answers=tuple(change(list(result.answers)))) if wrong else result

    monkeypatch.setattr(accuracy, "run_job", told)
    good, bad = measure_accuracy(subjects[:2], [AT_16], review_rows[:6], store=store)[:2]
    assert (good.status, bad.status) == ("ok", "failed")
    assert re.search(words, bad.reason)


def test_generation_goes_on_until_both_of_its_times_are_known(series: Any) -> None:
    s, like = series
    s.arrival = Arrival("generation")
    random, rule = np.random.default_rng(0), Rounds(percentile="p50", width=0.05)
    first = [(1e6 * random.normal(1, 0.01, 30)).astype(int).tolist() for _ in range(5)]
    for spread, enough in ((0.01, True), (0.6, False)):
        later = [1e6 * random.lognormal(0, spread) for _ in first]  # of a token, by process
        s.rounds = {}
        for i, f in enumerate(first):
            whole = [x + int(7 * later[i]) for x in f]
            made = _result(whole, 0.0, like)
            calls = replace(made.calls, first_ns=tuple(f), written=(8,) * len(f))
            s.rounds[i] = replace(made, calls=calls)
        assert s.enough(rule, 0.95) is enough
