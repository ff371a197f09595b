"""How queries come: the worker's loops by themselves, then real bundles through the store to the entries."""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgewise.arrival import Arrival
from edgewise.bundle import read_bundle
from edgewise.cli import main
from edgewise.data import Row
from edgewise.errors import PlanError, UserError
from edgewise.plan import read_plan
from edgewise.profiler import Store, Subject, entries, measure_latency
from edgewise.profiler.measure import Rounds
from edgewise.profiler.queries import ask, ask_tokens, inputs_a_query
from edgewise.profiler.results import Calls, WorkerResult
from edgewise.profiler.rounds import MODES, Series, token_times
from edgewise.profiler.vitals import Load
from edgewise.runtime import load
from edgewise.types import Device, RunSettings, Target
from edgewise.units import METRICS

SHORT = Rounds(percentile="p50", width=0.9, min_rounds=5, max_rounds=5, seconds=0.05)
AT_32 = Target("here", RunSettings(max_length=32))


@dataclass
class _Answer:
    n_tokens: int
    truncated: bool = False


class _Model:
    """Answers after a sleep, which never ends early, and knows when it was asked."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.asked: list[tuple[int, tuple[int, ...]]] = []

    def predict(self, batch: Sequence[int]) -> list[_Answer]:
        self.asked.append((time.perf_counter_ns(), tuple(batch)))
        time.sleep(self.seconds)
        return [_Answer(n) for n in batch]


def test_one_after_the_other_goes_round_the_batches() -> None:
    model = _Model()
    found = ask(model.predict, [[1, 2], [3, 4], [5, 1]], {"name": "single-stream"}, 0.0, 7, 1)
    assert [b for _, b in model.asked] == [(1, 2), (3, 4), (5, 1)] * 2 + [(1, 2)]
    assert found["inputs"] == [0, 1, 2, 0, 1, 2, 0]
    assert found["tokens"] == [3, 7, 6, 3, 7, 6, 3]
    assert found["span_ns"] >= sum(found["ns"])


def test_paced_queries_start_no_sooner_than_they_are_due() -> None:
    model, begin = _Model(), time.perf_counter_ns()
    found = ask(model.predict, [[1]], {"name": "paced", "every_s": 0.01}, 0.0, 8, 1)
    assert all(at - begin >= 0.01e9 * (i + 1) for i, (at, _) in enumerate(model.asked))
    assert len(found["ns"]) == 8
    assert sum(found["ns"]) < found["span_ns"]  # waiting is no part of a call


def test_a_server_query_counts_from_when_it_was_due() -> None:
    model, draw = _Model(0.02), random.Random(5)
    found = ask(model.predict, [[1], [2]], {"name": "server", "rate": 35.0, "seed": 5}, 0.0, 40, 1)
    due = np.cumsum([draw.expovariate(35.0) for _ in range(40)])
    end, waited = 0.0, 0
    for i, at in enumerate(due):  # answered one by one: each starts when it is due and those before it have ended
        waited += end > at
        end = max(end, at) + 0.02
        assert found["ns"][i] / 1e9 >= end - at - 1e-3
    assert waited > 10
    assert found["inputs"] == [0, 1] * 20


def test_server_arrivals_are_those_of_the_seed_and_rate() -> None:
    def due(seed: int) -> Any:
        model = _Model()
        ask(model.predict, [[1]], {"name": "server", "rate": 400.0, "seed": seed}, 0.0, 200, 4)
        return np.diff([at for at, _ in model.asked]) / 1e9

    gaps = due(1)
    assert len(gaps) == 199
    assert 1 / 400 * 0.75 < gaps.mean() < 1 / 400 * 1.6  # exponential: standard error 7% of the mean
    assert gaps.std() > 0.5 * gaps.mean()  # and not paced


def test_a_server_that_cannot_keep_up_says_so() -> None:
    with pytest.raises(UserError, match=r"server at 1e\+06 queries /s: it answers about .* ask for a lower rate"):
        ask(_Model(0.005).predict, [[1]], {"name": "server", "rate": 1e6, "seed": 0}, 60.0, 1, 1)


def _served(rate: float, service_s: float, parallel: int, rounds: int = 5) -> Series:
    """A series of the server scenario, each round by the worker's own loop."""
    found = {}
    for number in range(rounds):
        told = ask(
            _Model(service_s).predict, [[1]], {"name": "server", "rate": rate, "seed": number}, 0.1, 10, parallel
        )
        calls = Calls(tuple(told["ns"]), (0,), (1,), (0,), told["span_ns"], took_ns=tuple(told["took_ns"]),
                      parallel=told["parallel"])  # fmt: skip
        found[number] = WorkerResult(number, {}, calls=calls)
    key: Any = None
    return Series(key, AT_32, Device(), key, Path(), {}, Arrival("server", rate=rate), rounds=found)


@pytest.mark.parametrize("parallel", [1, 2])
def test_a_queue_that_would_grow_and_grow_is_no_measurement(parallel: int) -> None:
    """However short the test is: twice what it can answer, and never more than fifty wait."""
    capacity = parallel / 0.01
    words = _served(2 * capacity, 0.01, parallel).overload(0.95)
    told = re.search(r"it answers about ([0-9.]+) /s, so that more and more would wait", words)
    assert told is not None, words
    assert 0.5 * capacity < float(told[1]) <= capacity  # a sleep never ends early
    calm = _served(0.5 * capacity, 0.01, parallel)
    assert calm.overload(0.95) == ""
    load = calm.server_load(0.95)
    assert load is not None
    assert 0.5 <= load.value < 0.9


def test_a_round_that_others_disturbed_does_not_make_an_overload() -> None:
    series = _served(60.0, 0.01, 1)
    slow = series.rounds[2]
    assert slow.calls is not None
    hit = replace(slow.calls, took_ns=tuple(20 * ns for ns in slow.calls.took_ns))
    series.rounds[2] = replace(slow, calls=hit, load=Load(0.8, 0.0, 1.0))
    assert series.overload(0.95) == ""
    series.rounds = {n: replace(r, calls=hit) for n, r in series.rounds.items()}
    assert "ask for a lower rate" in series.overload(0.95)


def test_a_paced_call_that_is_due_before_the_last_was_answered_is_counted() -> None:
    found = ask(_Model(0.01).predict, [[1]], {"name": "paced", "every_s": 0.001}, 0.0, 10, 1)
    assert found["late"] == 9
    found = ask(_Model().predict, [[1]], {"name": "paced", "every_s": 0.02}, 0.0, 4, 1)
    assert found["late"] == 0


def test_sustained_goes_on_in_windows_and_reads_the_heat_between_them() -> None:
    model, read = _Model(0.001), []

    def heat() -> dict[str, float]:
        read.append(len(model.asked))
        return {"mhz": 1500.0 - 10 * len(read), "celsius": 50.0 + len(read)}

    arrival = {"name": "sustained", "minutes": 0.3 / 60}
    found = ask(model.predict, [[1], [2], [3]], arrival, 0.0, 1, 1, heat)
    windows = found["windows"]
    assert len(windows) >= 5
    assert sum(w["calls"] for w in windows) == len(found["ns"]) == len(model.asked)
    assert found["inputs"] == [i % 3 for i in range(len(found["ns"]))]
    assert [w["celsius"] for w in windows] == [51.0 + i for i in range(len(windows))]
    assert read == list(np.cumsum([w["calls"] for w in windows]))
    assert found["span_ns"] == sum(w["span_ns"] for w in windows) >= 0.3e9 * 0.5


def test_a_query_has_the_inputs_of_its_scenario() -> None:
    assert inputs_a_query({"name": "single-stream"}, 2, 50) == 2
    assert inputs_a_query({"name": "multi-stream", "streams": 8}, 2, 50) == 8
    assert inputs_a_query({"name": "offline"}, 2, 50) == 50
    assert inputs_a_query({"name": "server", "rate": 1.0}, 1, 50) == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "of-line"}, "unknown scenario 'of-line'"),
        ({"name": "server"}, "scenario server needs rate, for example --rate '20 /s'"),
        ({"name": "paced"}, "scenario paced needs every, for example --every '50 ms'"),
        ({"name": "paced", "every_s": 0.0}, "every is 0.0; expected a number above 0"),
        ({"name": "server", "rate": float("inf")}, "rate is inf"),
        ({"name": "sustained"}, "scenario sustained needs minutes, for example --minutes 30"),
        ({"name": "multi-stream", "streams": 0}, "streams is 0; expected a whole number of at least 1"),
    ],
)
def test_a_scenario_that_cannot_be(values: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError) as error:
        Arrival(**values)
    assert message in str(error.value)


def test_single_stream_keeps_the_settings_that_older_stores_know() -> None:
    assert Arrival().settings() == {}
    assert Arrival("paced", every_s=0.05).settings() != Arrival("paced", every_s=0.06).settings()
    assert Arrival("server", rate=5.0).settings() == {"scenario": {"name": "server", "rate": 5.0}}


@pytest.mark.slow
def test_every_scenario_of_a_bundle_joins_one_entry(
    int8_bundle: Path, review_rows: tuple[Row, ...], tmp_path: Path
) -> None:
    arrivals = (
        Arrival(),
        Arrival("multi-stream", streams=4),
        Arrival("offline"),
        Arrival("server", rate=200.0),
        Arrival("paced", every_s=0.002),
        Arrival("sustained", minutes=0.005),
    )
    rows = review_rows[:30]
    subject = Subject("tiny", "int8-dynamic", read_bundle(int8_bundle))
    with Store(tmp_path / "m.sqlite") as store:
        found = measure_latency([subject], [AT_32], rows, store=store, spec=SHORT, arrivals=arrivals,
                                repeat_disturbed=False)  # fmt: skip
        assert [m.scenario for m in found] == [a.name for a in arrivals]
        assert [m.reason for m in found] == [""] * 6
        again = measure_latency([subject], [AT_32], rows, store=store, spec=SHORT, arrivals=arrivals)
        assert [m.id for m in again] == [m.id for m in found]
        (entry,) = entries(store)
        with load(int8_bundle, max_length=32) as model:
            tokens = [p.n_tokens for p in model.predict([r.text for r in rows])]
        offline = found[2]
        assert store.samples(offline.id or 0)[0].ns
        assert offline.conditions["inputs"]["tokens"]["mean"] == pytest.approx(sum(tokens) / 30, abs=0.51)
        assert offline.conditions["scenario"] == "offline"
    names = {"p50", "multistream_p50", "multistream_throughput", "offline_throughput", "server_p50", "paced_p50"}
    for name in names:
        metric = entry.metrics[name]
        assert metric.value is not None
        assert metric.low is not None
        assert metric.high is not None
        assert 0 < metric.low <= metric.value <= metric.high
    assert {m.name for m in found[2].metrics} == {"offline_throughput"}
    assert found[5].conditions["rounds"]["count"] == 1
    assert found[5].conditions["rounds"]["stopped"] == "after 0.005 minutes in one process"
    windows = found[5].conditions["windows"]
    assert {"start_s", "calls", "span_ns", "mhz", "celsius"} == set(windows[0])
    calls, seconds = sum(w["calls"] for w in windows), sum(w["span_ns"] for w in windows) / 1e9
    assert entry.metrics["sustained_throughput"].value == pytest.approx(calls / seconds)
    assert entry.metrics["sustained_ratio"].value == pytest.approx(
        (entry.metrics["sustained_last"].value or 0) / (entry.metrics["sustained_first"].value or 1)
    )
    assert set(entry.metrics) <= set(METRICS)


def test_what_fails_in_one_scenario_is_said_of_it(
    fp32_bundle: Path, review_rows: tuple[Row, ...], tmp_path: Path
) -> None:
    subject = Subject("tiny", "fp32", read_bundle(fp32_bundle))
    arrivals = (Arrival(), Arrival("server", rate=1e6))
    rule = Rounds(percentile="p50", min_rounds=5, max_rounds=5, seconds=5.0)
    with Store(tmp_path / "m.sqlite") as store:
        found = measure_latency([subject], [AT_32], review_rows[:20], store=store, arrivals=arrivals[1:], spec=rule)
        assert found[0].status == "failed"
        assert "ask for a lower rate" in found[0].reason
        measure_latency([subject], [AT_32], review_rows[:20], store=store, arrivals=arrivals[:1], spec=SHORT)
        (entry,) = entries(store)
    assert entry.status == "failed"
    assert entry.reason.startswith("server: server at 1e+06 queries /s: it answers about ")
    assert "Traceback" not in entry.reason
    assert entry.metrics["p50"].value is not None


def _refused(bundle: Path, folder: Path, options: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What `profile` of one row says of options that it refuses."""
    (folder / "rows.csv").write_text("text\na film\n")
    given = ["--data", str(folder / "rows.csv"), "--store", str(folder / "m.sqlite")]
    assert main(["profile", str(bundle), *given, *options]) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ["--minutes", "1"],
            "--minutes 1.0 is for the scenario sustained, which is not asked for: --scenario sustained",
        ),
        (["--rate", "20 /s", "--scenario", "paced", "--every", "5 ms"], "--scenario paced,server"),
        (["--every", "5 ms"], "--every 5 ms is for the scenario paced"),
        (["--streams", "4"], "--streams 4 is for the scenario multi-stream"),
        (["--new-tokens", "4"], "--new-tokens 4 is for the scenario generation"),
    ],
)
def test_an_option_of_another_scenario_is_not_passed_over(
    int8_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    assert words in _refused(int8_bundle, tmp_path, options, capsys)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--confidence", "2"], "--confidence is 2.0; expected at least 0.5 and below 1"),
        (["--threads", "0"], "--threads is 0; expected whole numbers from 1 to 1,024"),
        (["--threads", "100000"], "--threads is 100000; expected whole numbers from 1 to 1,024"),
        (["--max-length", "1"], "--max-length is 1; expected at least 3 tokens"),
        (["--scenario", "multi-stream", "--streams", "0"], "--streams is 0; expected a number above 0"),
        (["--scenario", "sustained", "--minutes", "0"], "--minutes is 0.0; expected a number above 0"),
        (["--scenario", "paced", "--every", "0 ms"], "--every is '0 ms'; expected a number above 0"),
        (["--scenario", "paced", "--every", "0.0001 us"], "expected at least 1 µs"),
        (["--scenario", ","], "--scenario ',': a name is missing"),
        (["--scenario", "foo"], "unknown scenario 'foo'"),
        (["--scenario", "server"], "scenario server needs rate"),
        (["--rate", ""], "--rate is empty: give it a value, or leave it out"),
        (["--slice", ""], "--slice is empty"),
        (["--provider", "foo"], "unknown provider 'foo'"),
    ],
)
def test_a_mistake_names_its_option_and_leaves_no_store(
    int8_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    assert words in _refused(int8_bundle, tmp_path, options, capsys)
    assert [p.name for p in tmp_path.iterdir()] == ["rows.csv"]


@pytest.mark.slow
def test_the_command_measures_scenarios(
    int8_bundle: Path, review_rows: tuple[Row, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"text": r.text}) + "\n" for r in review_rows[:20]))
    more = ["--scenario", "offline,paced", "--every", "2 ms", "--seconds", "0.02", "--max-rounds", "5"]
    store = ["--store", str(tmp_path / "m.sqlite")]
    assert main(["profile", str(int8_bundle), "--data", str(data), "--percentile", "p50", *more, *store, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [m["scenario"] for m in told] == ["offline", "paced"]
    assert told[1]["conditions"]["scenario"] == "paced, every 2 ms"
    assert main(["profile", str(int8_bundle), "--data", str(data), "--scenario", "server", *store]) == 2
    assert "scenario server needs rate, for example --rate '20 /s'" in capsys.readouterr().err
    assert main(["profile", str(int8_bundle), "--data", str(data), "--scenario", "paced", "--every", "5", *store]) == 2
    assert "--every is '5'; expected a number and one of s, ms, us" in capsys.readouterr().err


def test_a_mode_says_how_long(
    int8_bundle: Path, review_rows: tuple[Row, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"text": r.text}) + "\n" for r in review_rows[:20]))
    base = ["profile", str(int8_bundle), "--data", str(data), "--store", str(tmp_path / "m.sqlite"), "--json"]
    assert main([*base, "--mode", "quick", "--seconds", "0.03"]) == 0
    settings = json.loads(capsys.readouterr().out)[0]["conditions"]["settings"]
    assert (settings["percentile"], settings["seconds"], settings["max_rounds"]) == ("p50", 0.03, 5)
    assert MODES["mlperf"].seconds * MODES["mlperf"].min_rounds == 600
    assert main([*base, "--max-rounds", "3"]) == 2
    assert "--max-rounds is 3; expected at least 5" in capsys.readouterr().err
    assert main([*base, "--seconds", "0"]) == 2


def test_a_plan_names_scenarios(tmp_path: Path) -> None:
    example = Path("examples/movie-reviews.yaml").read_text(encoding="utf-8")
    text = "".join(line for line in example.splitlines(keepends=True) if not line.startswith("profile:"))
    plan = tmp_path / "plan.yaml"
    plan.write_text(text + "\nprofile:\n  scenarios: [single-stream, server]\n  rate: 20\n", encoding="utf-8")
    assert read_plan(plan).profile.scenarios == ("single-stream", "server")
    for key, value in (("rate", 20), ("every_ms", 5), ("minutes", 1), ("streams", 8), ("new_tokens", 9)):
        more = text + f"\nprofile:\n  scenarios: [single-stream]\n  {key}: {value}\n"
        (tmp_path / "more.yaml").write_text(more, encoding="utf-8")
        with pytest.raises(PlanError, match=rf"more\.yaml:\d+: profile\.{key}.*is {value}; it is for the scenario"):
            read_plan(tmp_path / "more.yaml")
    plan.write_text(text + "\nprofile:\n  scenarios: [server]\n", encoding="utf-8")
    with pytest.raises(PlanError, match=r"plan\.yaml:\d+: profile\.scenarios.*scenario server needs rate"):
        read_plan(plan)


def test_of_a_text_that_is_written_each_token_is_timed() -> None:
    class Stream:
        n_tokens, truncated = 7, False

        def __iter__(self) -> Any:
            for wait in (0.02, 0.005, 0.005):
                time.sleep(wait)
                yield 1

    asked: list[str] = []

    def write(text: str) -> Stream:
        asked.append(text)
        time.sleep(0.01)  # as reading the input takes
        return Stream()

    found = ask_tokens(write, [["a"], ["b"]], 0.0, 3, 3)
    assert asked == ["a", "b", "a"]
    assert found["inputs"] == [0, 1, 0]
    assert found["written"] == [3, 3, 3]
    assert found["tokens"] == [7, 7, 7]
    assert min(found["first_ns"]) >= 30e6
    with pytest.raises(UserError, match="3 tokens were written where 4"):
        ask_tokens(write, [["a"]], 0.0, 1, 4)
    assert all(whole - first >= 10e6 for whole, first in zip(found["ns"], found["first_ns"], strict=True))


def test_the_time_of_a_token_leaves_the_first_one_out() -> None:
    (first, seconds), (later, each) = token_times([[5_000_000_000, 1_000_000_000]], [[1_000_000_000] * 2], [[5, 1]])
    assert (first, seconds[0].tolist()) == ("ttft", [1.0, 1.0])
    assert (later, each[0].tolist()) == ("tpot", [1.0])  # four tokens in four seconds; one token alone has none after


def test_generation_is_for_what_writes(int8_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(PlanError, match="new_tokens is 1"):
        Arrival("generation", new_tokens=1)
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "a fine film"}\n', encoding="utf-8")
    command = ["profile", str(int8_bundle), "--data", str(rows), "--scenario", "generation"]
    assert main([*command, "--store", str(tmp_path / "m.sqlite")]) == 2
    assert "for bundles that write" in capsys.readouterr().err
