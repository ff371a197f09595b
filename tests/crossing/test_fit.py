"""The whole pipeline on a small plan: what comes out, what a second run repeats, what a failure leaves."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import edgewise
from edgewise.bundle import read_bundle
from edgewise.data import Splits
from edgewise.errors import PlanError
from edgewise.profiler import Store
from edgewise.rundir import RunFolder

PROFILE = "{percentile: p50, min_rounds: 5, max_rounds: 5, seconds: 0.05, width: 0.3}"


@pytest.fixture(scope="module")
def data(review_splits: Splits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """700 labelled reviews as a CSV file."""
    path = tmp_path_factory.mktemp("data") / "reviews.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        rows = [*review_splits.val[:350], *review_splits.confirm[:300], *review_splits.train[:50]]
        writer.writerows([r.text, r.label] for r in rows)
    return path


def write_plan(folder: Path, data: Path, tuned: Path, budgets: str, extra: str = "") -> Path:
    plan = folder / "plan.yaml"
    plan.write_text(
        f"""version: 1
task: text-classification
data: {{path: {data}, split: {{train: 0.3, val: 0.4, confirm: 0.3}}}}
candidates:
  - {{name: tiny, from: {tuned}, tune: none}}
{extra}
recipes: [fp32, int8-dynamic]
devices: [{{name: here, run: {{threads: [1], max_length: [32, 64]}}}}]
budgets: {budgets}
profile: {PROFILE}
""",
        encoding="utf-8",
    )
    return plan


def run_cli(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edgewise", *args], cwd=cwd, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def finished(data: Path, tuned: Path, bundles: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a plan with a tuned folder, an ONNX folder, and a candidate that cannot work."""
    home = tmp_path_factory.mktemp("fit")
    theirs = home / "theirs"
    shutil.copytree(bundles["int8-static"], theirs)
    (theirs / "edgewise.json").unlink()
    broken = home / "broken"
    shutil.copytree(tuned, broken)
    (broken / "model.safetensors").write_bytes(b"no weights")
    extra = f"  - {{name: theirs, onnx: {theirs}}}\n  - {{name: broken, from: {broken}, tune: none}}"
    plan = write_plan(home, data, tuned, '{size: "<= 20 MB", accuracy: ">= 0.5"}', extra)
    done = run_cli("fit", str(plan), "--out", str(home / "run"), cwd=home)
    assert done.returncode == 4, done.stderr
    assert "broken failed" in done.stderr
    return home


def test_the_run_folder_holds_the_answer(finished: Path) -> None:
    run = RunFolder(finished / "run")
    selection = json.loads(run.selection.read_text())
    verdicts = selection["devices"][0]["verdicts"]
    assert selection["devices"][0]["chosen"] is not None
    assert all(v["reason"] for v in verdicts)
    assert any(v["entry"]["candidate"] == "broken" and v["entry"]["status"] == "failed" for v in verdicts)
    rejected = [v for v in verdicts if v["entry"]["recipe"] == "fp32" and v["entry"]["status"] == "ok"]
    assert rejected
    assert all("size" in v["reason"] for v in rejected)
    assert run.report.stat().st_size < 6_000_000
    assert run.log.read_text()
    assert not run.bundles.exists()  # pruned; the chosen one has its own folder
    with Store(run.store) as store:
        assert {m.stage for m in store.measurements()} >= {"export", "profile", "confirm"}


def test_the_chosen_bundle_answers_with_its_run_settings(finished: Path) -> None:
    chosen = finished / "run" / "chosen"
    manifest = read_bundle(chosen).manifest
    verdicts = json.loads((finished / "run" / "selection.json").read_text())["devices"][0]["verdicts"]
    (told,) = [v["entry"] for v in verdicts if v["rank"] == 1]
    assert manifest.content_digest == told["content_digest"]
    assert manifest.run.max_length == told["target"]["run"]["max_length"]
    assert manifest.chosen is not None
    assert (chosen / "README.md").read_text().startswith("---")
    with edgewise.load(chosen) as model:
        assert model.run == manifest.run
        assert model.check().passed
        assert model("a wonderful film")[0]["label"] == "positive"


def test_a_finished_plan_is_not_run_again(finished: Path) -> None:
    before = (finished / "run" / "measurements.sqlite").stat().st_mtime_ns
    done = run_cli("fit", str(finished / "plan.yaml"), "--out", str(finished / "run"), "--json", cwd=finished)
    assert done.returncode == 4
    assert "nothing to do" in done.stderr
    assert json.loads(done.stdout)["chosen"]["here"]["path"].endswith("chosen")
    assert (finished / "run" / "measurements.sqlite").stat().st_mtime_ns == before


def test_select_and_report_work_on_the_store_alone(finished: Path) -> None:
    store = str(finished / "run" / "measurements.sqlite")
    chosen = run_cli("select", store, "--budget", "size <= 20 MB", "--json", cwd=finished)
    assert chosen.returncode == 0, chosen.stderr
    assert json.loads(chosen.stdout)["devices"][0]["chosen"] is not None
    nothing = run_cli("select", store, "--budget", "p50 <= 1 us", cwd=finished)
    assert nothing.returncode == 3
    assert max(map(len, nothing.stdout.splitlines())) <= 80
    for name in ("again.html", "again.md", "again.json"):
        done = run_cli("report", str(finished / "run"), "-o", name, cwd=finished)
        assert done.returncode == 0, done.stderr
        assert (finished / name).stat().st_size > 500


@pytest.mark.slow
def test_nothing_feasible_is_exit_code_3_and_no_bundle_is_called_chosen(data, tuned, tmp_path) -> None:
    plan = write_plan(tmp_path, data, tuned, '{p50: "<= 1 us", size: "<= 20 MB"}')
    done = run_cli("fit", str(plan), "--out", "run", "--keep", cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    assert not (tmp_path / "run" / "chosen").exists()
    assert "p50" in done.stdout
    assert (tmp_path / "run" / "bundles" / "tiny" / "fp32" / "edgewise.json").is_file()  # --keep


def test_dry_run_touches_nothing(data, tuned, tmp_path) -> None:
    plan = write_plan(tmp_path, data, tuned, "{}")
    done = run_cli("fit", str(plan), "--dry-run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "2 bundles x 2 targets x 5 rounds" in done.stdout
    assert [p.name for p in tmp_path.iterdir()] == ["plan.yaml"]


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_and_ends_well(data, tuned, tmp_path) -> None:
    plan = write_plan(tmp_path, data, tuned, '{size: "<= 20 MB"}')
    command = [sys.executable, "-m", "edgewise", "fit", str(plan), "--out", "run"]
    for moment in (4.0, 9.0):
        process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL, start_new_session=True)
        time.sleep(moment)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    done = run_cli("fit", str(plan), "--out", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    read_bundle(tmp_path / "run" / "chosen")
    assert not list((tmp_path / "run").glob(".*.partial"))


def test_interrupted_is_130_and_says_how_to_go_on(data, tuned, tmp_path) -> None:
    plan = write_plan(tmp_path, data, tuned, "{}")
    process = subprocess.Popen(
        [sys.executable, "-m", "edgewise", "fit", str(plan), "--out", "run"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    while "rows:" not in process.stderr.readline():
        pass
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "start the same command again" in errors
    assert "Traceback" not in errors


def test_two_fits_cannot_write_to_one_folder(tmp_path: Path) -> None:
    first, second = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "run")
    with first.locked(), pytest.raises(PlanError, match="another `edgewise fit`"), second.locked():
        pass


@pytest.mark.slow
def test_a_model_with_other_labels_is_a_failure_with_its_reason(data, tuned, tmp_path) -> None:
    other = Path(shutil.copytree(tuned, tmp_path / "other"))
    config = json.loads((other / "config.json").read_text())
    config["id2label"] = {"0": "bad", "1": "good"}
    (other / "config.json").write_text(json.dumps(config))
    plan = write_plan(tmp_path, data, other, "{}")
    done = run_cli("fit", str(plan), "--out", "run", cwd=tmp_path)
    assert done.returncode == 3
    assert "has labels ['bad', 'good'], the data has ['negative', 'positive']" in done.stderr
