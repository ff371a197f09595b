"""The store: append-only, whole or not at all, two writers, readable in ten years."""

from __future__ import annotations

import math
import os
import sqlite3
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from edgewise.errors import StoreError
from edgewise.profiler import entries
from edgewise.profiler.joining import left_by_a_search
from edgewise.profiler.store import Outcome, Sample, Store, key_of
from edgewise.types import Measurement, Metric, RunSettings, Target

TARGET = Target("here", RunSettings(threads=2, max_length=64, provider_options={"a": "b"}))
CONDITIONS = {"fingerprint_digest": "sha256:f", "settings_digest": "sha256:s", "notes": ["n"]}
P95 = Metric("p95", "s", 0.004, 0.0035, 0.0046, 0.95, "bootstrap", 300)
TIMED = Measurement(
    "l6",
    "fp32",
    "sha256:c",
    TARGET,
    "single-stream",
    "profile",
    conditions=CONDITIONS,
    metrics=(P95,),
    inputs_digest="i",
)
ONE_THREAD = replace(TARGET, run=replace(TARGET.run, threads=1))
ANSWERED = replace(
    TIMED,
    scenario="accuracy",
    target=ONE_THREAD,
    metrics=(Metric("accuracy", "1", 0.8, 0.78, 0.82, 0.95, "Wilson", 9),),
)
COMPARED = replace(
    ANSWERED, scenario="comparison", metrics=(Metric("accuracy_drop", "points", 0.1, -0.2, 0.4, 0.95, "Tango", 9),)
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "sub" / "m.sqlite")


def test_what_goes_in_comes_out(store: Store) -> None:
    samples = [Sample(0, 11, (5, 2**40, 7)), Sample(3, 12, (1,))]
    outcomes = [Outcome("aa", 1, 0, 0.75, (1.5, -2.0)), Outcome("bb", 0, None, 0.5)]
    number = store.add(TIMED, samples, outcomes, [("aa", "a film", None)])
    assert store.measurements() == [replace(TIMED, id=number)]
    assert store.samples(number) == samples
    assert store.outcomes(number) == outcomes
    assert store.text("aa") == ("a film", None)
    assert store.text("bb") is None


def test_raw_samples_are_plain_little_endian_integers(store: Store) -> None:
    store.add(TIMED, [Sample(0, 1, (1, 2**40))])
    blob = sqlite3.connect(store.path).execute("SELECT ns FROM samples").fetchone()[0]
    assert struct.unpack("<2q", blob) == (1, 2**40)


def test_one_wide_summary_row_each(store: Store) -> None:
    store.add(TIMED)
    store.add(replace(TIMED, metrics=(Metric("p99.9", "s", 0.5),)))
    db = sqlite3.connect(store.path)
    row = db.execute('SELECT candidate, provider, threads, max_length, p95, "p99.9" FROM summary').fetchall()
    assert row == [("l6", "cpu", 2, 64, 0.004, None), ("l6", "cpu", 2, 64, None, 0.5)]


def test_found_by_its_key_only_when_all_of_it_is_the_same(store: Store) -> None:
    number = store.add(TIMED)
    found = store.find(key_of(TIMED))
    assert found is not None
    assert found.id == number
    key = key_of(TIMED)
    for change in (
        {"candidate": "l3"}, {"recipe": "fp32-o2"}, {"content_digest": "sha256:d"}, {"target": ONE_THREAD},
        {"scenario": "offline"}, {"stage": "confirm"}, {"inputs_digest": "j"}, {"fingerprint_digest": "sha256:g"},
        {"settings_digest": "sha256:t"},
    ):  # fmt: skip
        assert store.find(replace(key, **change)) is None


def test_a_failure_is_tried_again(store: Store) -> None:
    store.add(replace(TIMED, status="failed", reason="killed", metrics=()))
    assert store.find(key_of(TIMED)) is None
    store.add(TIMED)
    assert store.find(key_of(TIMED)) is not None


def test_a_number_without_its_conditions_is_not_stored(store: Store) -> None:
    with pytest.raises(StoreError, match="conditions"):
        store.add(replace(TIMED, conditions={}))
    assert store.measurements() == []


def test_a_measurement_is_stored_whole_or_not_at_all(store: Store) -> None:
    doubled = [Sample(0, 1, (1,)), Sample(0, 1, (2,))]
    with pytest.raises(StoreError):
        store.add(TIMED, doubled)
    assert store.measurements() == []
    assert store.add(TIMED) == 1
    assert sqlite3.connect(store.path).execute("SELECT count(*) FROM metrics").fetchone() == (1,)


WRITER = """
import sys
from edgewise.profiler.store import Store, Sample
from edgewise.types import Measurement
with Store(sys.argv[1]) as store:
    for i in range(40):
        store.add(Measurement(sys.argv[2], "fp32", None, None, "none", "export"), [Sample(0, i, (i,))])
"""


def test_two_processes_make_and_write_one_store_at_once(tmp_path: Path) -> None:
    path = tmp_path / "m.sqlite"
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, path, name]) for name in ("a", "b", "c")]
    assert [w.wait(timeout=120) for w in writers] == [0, 0, 0]
    with Store(path) as store:
        found = store.measurements()
        assert [store.samples(m.id or 0)[0].process for m in found if m.candidate == "a"] == list(range(40))
    assert len(found) == 120
    assert len({m.id for m in found}) == 120


def test_a_newer_format_is_refused_and_left_alone(store: Store) -> None:
    store.add(TIMED)
    store.close()
    db = sqlite3.connect(store.path)
    db.execute("PRAGMA user_version = 9")
    db.close()
    with pytest.raises(StoreError, match=r"format 9.*update edgewise"):
        Store(store.path)


@pytest.mark.parametrize("content", [b"no database at all, but long enough to have a header\n" * 9, b"{}"])
def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.sqlite"
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"m\.sqlite"):
        Store(path)
    assert path.read_bytes() == content


def test_a_database_of_another_program_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.sqlite"
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE mine (x)")
    db.commit()
    db.close()
    with pytest.raises(StoreError) as caught:
        Store(path)
    assert str(caught.value) == (f"{path} is a database of another program, not a measurement store; name another file")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be opened"):
        Store(tmp_path)


def test_a_store_made_before_a_metric_existed_gets_its_column(store: Store) -> None:
    store.close()
    db = sqlite3.connect(store.path)
    db.execute("ALTER TABLE summary DROP COLUMN p95")
    db.commit()
    db.close()
    with Store(store.path) as again:
        again.add(TIMED)
    assert sqlite3.connect(store.path).execute("SELECT p95 FROM summary").fetchone() == (0.004,)


def test_an_entry_joins_what_was_measured_apart(store: Store) -> None:
    time = Metric("train_time", "s", 90.0, n=1)
    store.add(Measurement("l6", "", None, None, "none", "train", conditions={"seed": 0}, metrics=(time,)))
    for measurement in (ANSWERED, COMPARED, TIMED, replace(TIMED, target=ONE_THREAD)):
        store.add(measurement)
    found = entries(store)
    assert [e.target for e in found] == [TARGET, ONE_THREAD]
    for entry in found:
        assert set(entry.metrics) == {"train_time", "accuracy", "accuracy_drop", "p95"}
        assert entry.status == "ok"
    assert entries(store, digests=["sha256:other"]) == []
    assert entries(store, inputs_digest="j") == []
    assert entries(store, stage="confirm") == []


@pytest.mark.parametrize(
    "change",
    [
        {"target": replace(ONE_THREAD, run=replace(ONE_THREAD.run, max_length=32))},
        {"target": replace(ONE_THREAD, run=replace(ONE_THREAD.run, batch_size=4))},
        {"target": replace(ONE_THREAD, run=replace(ONE_THREAD.run, provider="cuda"))},
        {"target": replace(ONE_THREAD, run=replace(ONE_THREAD.run, graph_optimization="basic"))},
        {"target": replace(ONE_THREAD, device="pi")},
        {"conditions": {**CONDITIONS, "fingerprint_digest": "sha256:other machine"}},
        {"content_digest": "sha256:d"},
        {"stage": "confirm"},
    ],
)
def test_accuracy_of_another_setting_machine_or_bundle_does_not_join(store: Store, change: dict[str, object]) -> None:
    store.add(TIMED)
    store.add(replace(ANSWERED, **change))  # type: ignore[arg-type]
    assert set(entries(store)[0].metrics) == {"p95"}


def test_the_later_measurement_counts(store: Store) -> None:
    store.add(replace(TIMED, status="failed", reason="killed", metrics=()))
    assert [(e.status, e.reason) for e in entries(store)] == [("failed", "killed")]
    store.add(TIMED)
    assert [(e.status, e.reason) for e in entries(store)] == [("ok", "")]


def test_failures_before_a_bundle_are_entries_until_mended(store: Store) -> None:
    store.add(Measurement("bad", "", None, None, "none", "train", "failed", "loss is NaN"))
    store.add(Measurement("l6", "int8-static", None, None, "none", "export", "failed", "no rows"))
    assert [(e.key, e.reason) for e in entries(store)] == [("bad", "loss is NaN"), ("l6/int8-static", "no rows")]
    store.add(Measurement("bad", "", None, None, "none", "train", conditions={"seed": 0}))
    assert [e.key for e in entries(store)] == ["l6/int8-static"]


def test_a_bundle_whose_accuracy_failed_is_a_failed_entry(store: Store) -> None:
    store.add(TIMED)
    store.add(replace(ANSWERED, status="failed", reason="it hung", metrics=()))
    (entry,) = entries(store)
    assert (entry.status, entry.reason) == ("failed", "accuracy: it hung")


def test_of_a_bundle_that_was_built_anew_the_later_one_counts(store: Store) -> None:
    store.add(TIMED)
    store.add(replace(ANSWERED, inputs_digest="i"))
    anew = replace(TIMED, content_digest="sha256:new", metrics=(replace(P95, value=0.003),))
    store.add(anew)
    there = replace(TIMED, target=Target("there", TARGET.run))  # another device has the older one alone
    store.add(there)
    found = {e.target.device: e for e in entries(store) if e.target is not None}
    assert {d: e.content_digest for d, e in found.items()} == {"here": "sha256:new", "there": "sha256:c"}
    assert found["here"].metrics["p95"].value == 0.003
    assert "accuracy" not in found["here"].metrics  # that was the older one's
    assert len(entries(store, digests={"sha256:c"})) == 2  # both can still be asked for


def on_machine(cpu: str, digest: str, **changes: object) -> Measurement:
    """TIMED on a machine."""
    print_ = {
        "machine": "x86_64",
        "cpu": cpu,
        "flags": ["avx2"],
        "logical_cores": 4,
        "versions": {"onnxruntime": digest},
    }
    conditions = {**CONDITIONS, "fingerprint": print_, "fingerprint_digest": f"sha256:{cpu}{digest}"}
    return replace(TIMED, conditions=conditions, **changes)  # type: ignore[arg-type]


def test_two_machines_under_one_name_are_not_mixed_and_it_is_said(store: Store) -> None:
    store.add(on_machine("Atom", "1"))
    store.add(on_machine("Atom", "1", candidate="l3"))
    store.add(on_machine("EPYC", "1"))
    store.add(on_machine("EPYC", "2", candidate="l9"))  # an update of the software is no other machine
    store.add(on_machine("Atom", "1", target=Target("board", TARGET.run)))
    said: list[str] = []
    found = entries(store, say=said.append)
    assert {(e.candidate, e.target.device) for e in found if e.target} == {
        ("l6", "here"), ("l9", "here"), ("l6", "board"),
    }  # fmt: skip
    assert said == [
        "device 'here' stands for several machines: 2 measurements of Atom, 4 cores are left out, the choice is for "
        "EPYC, 4 cores; --machine NAME chooses another"
    ]
    atom = entries(store, machine="atom")
    assert {(e.candidate, e.target.device) for e in atom if e.target} == {
        ("l6", "here"), ("l3", "here"), ("l6", "board"),
    }  # fmt: skip
    with pytest.raises(StoreError, match="no machine is called 'pi'; measured were Atom, 4 cores; EPYC, 4 cores"):
        entries(store, machine="pi")


def test_a_device_that_was_off_is_no_other_machine(store: Store) -> None:
    """Its failure says of no machine: what was measured before stays."""
    store.add(on_machine("Atom", "1"))
    off = {**CONDITIONS, "fingerprint": {}, "fingerprint_digest": ""}
    store.add(replace(TIMED, candidate="l3", status="failed", reason="no answer", metrics=(), conditions=off))
    said: list[str] = []
    assert {e.candidate for e in entries(store, say=said.append)} == {"l6", "l3"}
    assert said == []


def test_answers_to_different_rows_are_not_compared_in_silence(store: Store) -> None:
    store.add(ANSWERED)
    store.add(replace(ANSWERED, candidate="l9", inputs_digest="sha256:other-rows"))
    said: list[str] = []
    entries(store, say=said.append)
    assert len(said) == 1
    assert said[0].startswith("the answers are to 2 different sets of rows (l6; l9)")
    # Measured anew on the rows of the other, or on the same ones in slices: now they compare.
    told = {**ANSWERED.conditions, "rows_digest": "sha256:other-rows"}
    store.add(replace(ANSWERED, inputs_digest="sha256:in-slices", conditions=told))
    entries(store, say=said.append)
    assert len(said) == 1


def test_light_reading_leaves_out_long_conditions_alone(store: Store) -> None:
    first, second = store.add(TIMED), store.add(replace(ANSWERED, status="failed", reason="hung", metrics=()))
    light = store.light([first, second, 99])
    assert [m.id for m in light] == [first, second]
    assert light[0] == replace(TIMED, id=first, conditions={"fingerprint_digest": "sha256:f"})
    assert light[1].reason == "hung"
    assert store.last() == second
    with pytest.raises(ValueError, match="only a SELECT"):
        store.query("DELETE FROM metrics")


def test_a_failure_before_a_bundle_is_none_once_the_bundle_is_measured(store: Store) -> None:
    store.add(Measurement("l6", "", None, None, "none", "export", "failed", "labels are missing"))
    store.add(Measurement("l6", "int8-static", None, None, "none", "export", "failed", "no rows"))
    store.add(TIMED)
    assert [e.key for e in entries(store)][1:] == ["l6/int8-static"]  # another form is still failed


def test_what_compares_knows_with_which_recipe(store: Store) -> None:
    store.add(replace(TIMED, recipe="int8-static"))
    store.add(replace(ANSWERED, recipe="int8-static"))
    against = {**CONDITIONS, "settings": {"reference": "int8-dynamic"}}
    number = store.add(replace(COMPARED, recipe="int8-static", conditions=against))
    (entry,) = entries(store)
    assert entry.reference == "int8-dynamic"
    assert store.light([number])[0].conditions["settings"] == {"reference": "int8-dynamic"}


def test_a_value_that_is_no_number_comes_back_as_unavailable(store: Store) -> None:
    store.add(replace(TIMED, metrics=(replace(P95, value=math.nan),)))
    (found,) = store.measurements()[0].metrics
    assert (found.value, found.kind, found.why) == (None, "unavailable", "it is not a number")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can drop what root may")
def test_a_store_that_cannot_be_written_is_read(store: Store) -> None:
    store.add(TIMED)
    store.close()
    folder = store.path.parent
    # Root as one of whom permissions are asked: without CAP_DAC_OVERRIDE, which a new program does not get back.
    code = (
        "import ctypes, os, sys; assert ctypes.CDLL(None).prctl(24, 1, 0, 0, 0) == 0\n"
        "os.execv(sys.executable, [sys.executable, '-m', 'edgewise', *sys.argv[1:]])"
    )
    store.path.chmod(0o444)
    folder.chmod(0o555)
    for command in (["measurements", "export", str(store.path)], ["select", str(store.path), "--objective", "p95"]):
        run = [sys.executable, "-c", code, *command]
        done = subprocess.run(run, check=False, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert "l6" in done.stdout
    assert [f.name for f in folder.iterdir()] == ["m.sqlite"]


def test_what_a_search_left_is_counted(store: Store) -> None:
    store.add(TIMED)
    store.add(replace(TIMED, stage="look"))  # of a point that was measured in full
    store.add(replace(TIMED, stage="look", target=ONE_THREAD))
    store.add(replace(ANSWERED, candidate="l3", content_digest="sha256:3"))
    store.add(replace(ANSWERED, target=ONE_THREAD))  # of a bundle that was timed
    assert left_by_a_search(store.measurements(), entries(store)) == {"here": 2}
    timed = [m for m in store.measurements() if m.stage != "look"]
    assert left_by_a_search(timed, []) == {}  # no search: what was begun and not timed is another thing
