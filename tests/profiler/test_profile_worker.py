"""The worker and its transport, with real processes: jobs that end well, and all the ways in which they do not."""

from __future__ import annotations

import json
import math
import os
import re
import stat
import subprocess
import sys
import threading
import time
import venv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from edgewise.bundle import read_bundle
from edgewise.data import Row
from edgewise.errors import BundleChangedError, EdgewiseError, ProviderError, UserError, WorkerError
from edgewise.profiler.plumbing import job_inputs
from edgewise.profiler.results import read_events, read_result
from edgewise.profiler.transport import Children, run_job, sweep_jobs, worker_environment
from edgewise.runtime import load
from edgewise.types import Device, RunSettings, to_dict

HERE = Device()
FakeWorker = Callable[[str], Device]


def _job(bundle: Path, kind: str = "latency", **changes: Any) -> dict[str, Any]:
    run = to_dict(RunSettings(**changes.pop("run", {"max_length": 32})))
    return {
        "job": kind,
        "bundle": str(bundle),
        "content_digest": read_bundle(bundle).digest,
        "verify": "full",
        "run": run,
        "warmup": {"calls": 3, "seconds": 0.01},
        "seconds": 0.05,
        "min_calls": 12,
        "placement": True,
        **changes,
    }


def test_a_latency_job(int8_bundle: Path, review_rows: tuple[Row, ...]) -> None:
    found = run_job(HERE, _job(int8_bundle), job_inputs(review_rows[:10]))
    assert found.calls is not None
    assert len(found.calls.ns) >= 12
    assert found.calls.inputs[:12] == (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1)
    with load(int8_bundle, max_length=32) as model:
        told = model.predict([r.text for r in review_rows[:10]])
    assert found.calls.tokens[:10] == tuple(p.n_tokens for p in told)
    assert found.calls.truncated[:10] == tuple(int(p.truncated) for p in told)
    assert found.providers == ("CPUExecutionProvider",)
    assert found.placement is not None
    assert found.placement["CPUExecutionProvider"] > 10
    assert found.warmup is not None
    assert found.warmup["calls"] >= 3


def test_startup_phases_add_up_to_the_total(int8_bundle: Path, review_rows: tuple[Row, ...]) -> None:
    ns = run_job(HERE, _job(int8_bundle), job_inputs(review_rows[:3])).startup_ns
    assert ns is not None
    phases = [ns[n] for n in ("interpreter", "imports", "load", "session", "first", "other")]
    assert all(isinstance(p, int) and p > 0 for p in phases)
    assert sum(p for p in phases if p is not None) == ns["total"]


def test_memory_grows_by_phase_and_its_peak_is_the_process_own(int8_bundle: Path, review_rows: tuple[Row, ...]) -> None:
    fat = bytearray(1) * 400_000_000  # what a child would inherit in ru_maxrss
    memory = run_job(HERE, _job(int8_bundle), job_inputs(review_rows[:3])).memory
    assert len(fat) == 400_000_000
    assert memory is not None
    empty, first, end = memory["empty"], memory["first"], memory["end"]
    assert empty.rss is not None
    assert first.rss is not None
    assert end.peak_rss is not None
    assert end.uss is not None
    assert end.pss is not None
    assert empty.rss < 30_000_000 < first.rss <= end.peak_rss < 350_000_000
    assert end.uss <= end.pss <= end.peak_rss


def test_an_accuracy_job_answers_as_the_runtime_does(int8_bundle: Path, review_rows: tuple[Row, ...]) -> None:
    rows = review_rows[:70]
    found = run_job(HERE, _job(int8_bundle, "accuracy"), job_inputs(rows))
    with load(int8_bundle, max_length=32) as model:
        told = model.predict([r.text for r in rows])
    assert [a.row_id for a in found.answers] == [r.id for r in rows]
    assert [a.logits for a in found.answers] == [p.logits for p in told]
    assert [a.index for a in found.answers] == [p.index for p in told]
    assert found.calls is None


def test_batches_are_those_of_the_run_settings(fp32_bundle: Path, review_rows: tuple[Row, ...]) -> None:
    rows = review_rows[:7]
    found = run_job(HERE, _job(fp32_bundle, run={"max_length": 32, "batch_size": 4}), job_inputs(rows))
    with load(fp32_bundle, max_length=32) as model:
        tokens = [p.n_tokens for p in model.predict([r.text for r in rows])]
    assert found.calls is not None
    # Seven inputs, four a call: the second call starts again at the first input.
    assert found.calls.tokens[:2] == (sum(tokens[:4]), sum(tokens[4:]) + tokens[0])


def test_the_worker_imports_nothing_heavy_before_it_must() -> None:
    heavy = ["numpy", "onnxruntime", "tokenizers", "psutil", "torch", "transformers", "datasets", "msgspec", "sqlite3"]
    code = f"import sys, edgewise.profiler.worker; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_job_brings_in_nothing_of_the_build_side(
    int8_bundle: Path, review_rows: tuple[Row, ...], tmp_path: Path
) -> None:
    (tmp_path / "job.json").write_text(json.dumps({"protocol": 1, **_job(int8_bundle)}))
    (tmp_path / "inputs.jsonl").write_text("".join(json.dumps(i) + "\n" for i in job_inputs(review_rows[:3])))
    code = (
        "import sys; from edgewise.profiler.worker import main; code = main(sys.argv[1:]);"
        "print(code, [m for m in ('torch', 'transformers', 'optimum', 'datasets', 'pandas', 'msgspec', 'psutil')"
        " if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert done.stdout == "0 []\n"
    startup = read_result(tmp_path / "results.jsonl").startup_ns
    assert startup is not None
    assert startup["session"]
    assert startup["total"] is None  # nobody stamped the start: not guessed


def test_errors_keep_their_kind(bundle_copy: Path, review_rows: tuple[Row, ...]) -> None:
    inputs = job_inputs(review_rows[:3])
    with pytest.raises(ProviderError, match="cuda"):
        run_job(HERE, _job(bundle_copy, run={"provider": "cuda"}), inputs)
    with pytest.raises(BundleChangedError, match="content digest"):
        run_job(HERE, _job(bundle_copy, content_digest="sha256:other"), inputs)
    job = _job(bundle_copy)
    (bundle_copy / "tokenizer.json").write_text("{}")
    with pytest.raises(BundleChangedError, match=r"tokenizer\.json"):
        run_job(HERE, job, inputs)


def test_a_job_of_another_protocol_is_refused(int8_bundle: Path, review_rows: tuple[Row, ...]) -> None:
    with pytest.raises(EdgewiseError, match=r"^the job has protocol 2, this edgewise speaks 1: update it$"):
        run_job(HERE, {**_job(int8_bundle), "protocol": 2}, job_inputs(review_rows[:1]))


@pytest.fixture
def fake_worker(tmp_path: Path) -> FakeWorker:
    """An interpreter that does what a broken worker does: a shell script, the job folder in $3."""

    def make(script: str) -> Device:
        path = tmp_path / "python"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return Device("fake", str(path))

    return make


@pytest.mark.skipif(os.name != "posix", reason="the stand-in is a shell script")
@pytest.mark.parametrize(
    ("script", "words"),
    [
        ('echo \'{"event": "start"}\' > $3/results.jsonl; echo oh dear >&2; kill -9 $$', "signal 9.*memory.*oh dear"),
        ("kill -11 $$", "signal 11.*SIGSEGV"),
        ("echo broken pipe >&2; exit 3", "exit code 3.*broken pipe"),
        ("printf 'garbage\\nmore\\n' > $3/results.jsonl", "garbage"),
        ("printf '[1]\\n{}\\n' > $3/results.jsonl", "no event"),
        ("exit 0", "ended early"),
        ('echo \'{"event": "start", "pro\' > $3/results.jsonl', "ended early|garbage"),
        ('echo \'{"event": "start", "protocol": 1}\n{"event": "end"}\' > $3/results.jsonl', "not of protocol 1"),
        ('echo \'{"event": "error", "kind": "Odd", "message": "m"}\' > $3/results.jsonl', "met Odd: m"),
    ],
)
def test_a_worker_that_breaks_is_a_worker_error(fake_worker: FakeWorker, script: str, words: str) -> None:
    with pytest.raises(WorkerError) as caught:
        run_job(fake_worker(script), {"job": "describe"}, [], timeout_s=60)
    assert re.search(words, str(caught.value), re.DOTALL)


@pytest.mark.skipif(os.name != "posix", reason="the stand-in is a shell script")
def test_a_worker_that_hangs_is_killed(fake_worker: FakeWorker, tmp_path: Path) -> None:
    device = fake_worker(f"echo $$ > {tmp_path}/pid; echo waiting >&2; exec sleep 300")
    with pytest.raises(WorkerError, match=r"killed after 0.5 s without an end.*waiting"):
        run_job(device, {"job": "describe"}, [], timeout_s=0.5)
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))


@pytest.mark.skipif(os.name != "posix", reason="the stand-in is a shell script")
def test_killing_the_children_ends_what_runs_and_what_would_start(fake_worker: FakeWorker, tmp_path: Path) -> None:
    device, children = fake_worker(f"echo $$ > {tmp_path}/pid; exec sleep 300"), Children()
    caught: list[BaseException] = []

    def run() -> None:
        try:
            run_job(device, {"job": "describe"}, [], children=children)
        except WorkerError as error:
            caught.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().strip():
        time.sleep(0.01)
    children.kill_all()
    thread.join(timeout=60)
    assert "signal 9" in str(caught[0])
    run()
    assert "signal 9" in str(caught[1])


def test_an_interpreter_that_is_not_there_is_the_users_error() -> None:
    with pytest.raises(UserError, match="'/no/such/python' does not start"):
        run_job(Device("pi", "/no/such/python"), {"job": "describe"}, [])


def test_a_name_with_a_dot_before_it_is_a_path(
    fake_worker: FakeWorker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    review_rows: tuple[Row, ...],
    int8_bundle: Path,
) -> None:
    fake_worker("exit 7")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WorkerError, match="exit code 7"):
        run_job(Device("mine", "./python"), _job(int8_bundle), job_inputs(review_rows[:1]))


def test_an_interpreter_without_edgewise_names_the_remedy(tmp_path: Path) -> None:
    venv.create(tmp_path / "bare", with_pip=False, symlinks=os.name == "posix")
    python = tmp_path / "bare" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    with pytest.raises(UserError, match=r"device 'bare'.*has no edgewise.*-m pip install"):
        run_job(Device("bare", str(python)), {"job": "describe"}, [])


def test_another_interpreter_measures(int8_bundle: Path, review_rows: tuple[Row, ...]) -> None:
    device = Device("other", sys.executable)
    found = run_job(device, _job(int8_bundle), job_inputs(review_rows[:3]))
    assert found.calls is not None
    assert found.fingerprint["digest"] == run_job(HERE, {"job": "describe"}, []).fingerprint["digest"]


def test_another_interpreter_is_not_led_to_our_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"):
        monkeypatch.setenv(name, "/somewhere")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    environment = worker_environment(Device("x", "/usr/bin/python3"))
    assert not {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"} & set(environment)
    assert environment["OMP_NUM_THREADS"] == "3"
    assert environment["HF_HUB_OFFLINE"] == "1"


def test_a_line_that_was_cut_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    file.write_text('{"event": "start"}\n{"event": "mem')
    assert read_events(file) == [{"event": "start"}]
    assert read_events(tmp_path / "none") == []


def test_results_are_kept_whole(int8_bundle: Path, review_rows: tuple[Row, ...], tmp_path: Path) -> None:
    keep = tmp_path / "rounds" / "round-000.jsonl"
    found = run_job(HERE, _job(int8_bundle), job_inputs(review_rows[:3]), keep=keep)
    assert read_result(keep) == found
    assert [p.name for p in keep.parent.iterdir()] == ["round-000.jsonl"]


def test_folders_of_killed_runs_are_swept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for pid in (gone.pid, os.getpid()):
        (tmp_path / f"edgewise-job-{pid}-x").mkdir()
    sweep_jobs()
    assert [p.name for p in tmp_path.iterdir()] == [f"edgewise-job-{os.getpid()}-x"]


GOOD: tuple[dict[str, Any], ...] = (
    {"event": "start", "protocol": 1, "pid": 5, "spawned_ns": None, "first_line_ns": 1},
    {"event": "startup", "ns": {"total": 9, "interpreter": 1, "other": -1}},
    {"event": "memory", "phase": "end", "rss": 5, "peak_rss": 6, "pss": None, "uss": None, "why": ""},
    {"event": "load", "other_cpu": 0.1, "steal": 0.0, "seconds": 1.0, "why": "", "average": [0, 0, 0]},
    {"event": "calls", "ns": [5], "inputs": [0], "tokens": [3], "truncated": [0], "span_ns": 5},
    {"event": "answers", "items": [["a", 1, 0.5, [0.5, 1.0], 3, False, None]]},
    {"event": "providers", "names": ["CPUExecutionProvider"]},
    {"event": "fingerprint", "digest": "f"},
    {"event": "placement", "nodes": {"CPUExecutionProvider": 3}, "why": ""},
    {"event": "nodes", "calls": 2, "runs": 2, "graph_s": 0.1, "by_type": {"MatMul": 0.1}, "operations": {},
     "runs_by_graph": [2]},
    {"event": "peaks", "float32": 1e9, "int8": 1e9, "bytes": 1e9, "cache": None},
    {"event": "yardstick", "ns": {"product": 5, "copy": 6}},
    {"event": "end", "wall_s": 1.0},
)  # fmt: skip


def _written(path: Path, events: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(e) + "\n" for e in events))
    return path


@pytest.mark.parametrize(
    ("event", "key", "value"),
    [
        ("startup", "ns", {"total": -100}), ("startup", "ns", []), ("memory", "peak_rss", "many"),
        ("memory", "rss", -1), ("load", "other_cpu", "lots"), ("load", "seconds", None), ("calls", "span_ns", 0),
        ("calls", "tokens", [-3]), ("calls", "ns", [2**70]), ("calls", "ns", [1.5]), ("calls", "parallel", 0),
        ("answers", "items", [["a", 1, math.nan, [0.5, 1.0], 3, False]]),
        ("answers", "items", [["a", 1, 0.5, [math.inf, 1.0], 3, False]]),
        ("answers", "items", [["a", 1, 0.5, [0.5], -3, False]]), ("answers", "items", [[7, 1, 0.5, [0.5], 3, False]]),
        ("providers", "names", []), ("providers", "names", "cpu"), ("placement", "nodes", "all"),
        ("placement", "nodes", {"CPUExecutionProvider": "3"}), ("nodes", "calls", 0), ("nodes", "graph_s", -1),
        ("nodes", "by_type", []), ("peaks", "float32", 0), ("peaks", "bytes", "fast"), ("yardstick", "ns", {"copy": 0}),
        ("end", "wall_s", math.nan),
    ],
)  # fmt: skip
def test_json_that_no_worker_of_ours_writes_is_refused(tmp_path: Path, event: str, key: str, value: Any) -> None:
    good = read_result(_written(tmp_path / "good.jsonl", GOOD))
    assert good.calls is not None
    assert good.answers[0].index == 1
    odd = [{**e, "steal": -0.01} if e["event"] == "load" else e for e in GOOD]
    odd = [{**e, "cache": 0} if e["event"] == "peaks" else e for e in odd]
    odd = [{**e, "items": [["a", 1, 0.5, [-math.inf, 1e20], 0, False]]} if e["event"] == "answers" else e for e in odd]
    told = read_result(_written(tmp_path / "odd.jsonl", odd))
    assert told.load is not None
    assert (told.load.steal, told.answers[0].n_tokens) == (0.0, 0)
    bad = [{**e, key: value} if e["event"] == event else e for e in GOOD]
    with pytest.raises(WorkerError, match="not of protocol 1"):
        read_result(_written(tmp_path / "bad.jsonl", bad))
