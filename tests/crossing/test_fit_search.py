"""`fit` that measures as much as the choice needs: what it drops, what it says of the rest, and how it goes on."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from edgewise.data import Splits
from edgewise.pipeline import fit as run_fit
from edgewise.profiler import Store, entries
from edgewise.profiler.hardware_report import hardware_report
from edgewise.progress import Reporter
from edgewise.rundir import RunFolder


def write_plan(
    folder: Path, tuned: Path, splits: Splits, search: str, budgets: str, lengths: tuple[int, ...] = (32, 64)
) -> Path:
    data = folder / "reviews.csv"
    with data.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        rows = [*splits.val[:250], *splits.confirm[:250], *splits.train[:50]]
        writer.writerows([r.text, r.label] for r in rows)
    plan = folder / "plan.yaml"
    plan.write_text(
        f"""version: 1
task: text-classification
data: {{path: {data}, split: {{train: 0.2, val: 0.4, confirm: 0.4}}}}
candidates:
  - {{name: tiny, from: {tuned}, tune: none}}
recipes: [fp32, int8-dynamic]
devices: [{{name: here, run: {{threads: [1, 2], max_length: {list(lengths)}}}}}]
budgets: {budgets}
profile: {{percentile: p50, min_rounds: 5, max_rounds: 5, seconds: 0.05, width: 0.3}}
{search}
""",
        encoding="utf-8",
    )
    return plan


def fit(plan: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edgewise", "fit", str(plan), "--out", "run", *more],
        cwd=plan.parent, capture_output=True, text=True, check=False,
    )  # fmt: skip


def verdicts(folder: Path) -> tuple[dict, list[dict]]:
    (selection,) = json.loads((folder / "run" / "selection.json").read_text())["devices"]
    return selection, selection["verdicts"]


@pytest.fixture(scope="module")
def raced(tuned: Path, review_splits: Splits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("race")
    plan = write_plan(home, tuned, review_splits, "search: race", '{size: "<= 20 MB", accuracy: ">= 0.3"}')
    done = fit(plan)
    assert done.returncode == 0, done.stderr
    return home


@pytest.mark.slow
def test_what_breaks_a_budget_by_its_size_is_never_run(raced: Path) -> None:
    selection, found = verdicts(raced)
    assert selection["chosen"] is not None
    assert len(found) == 8
    assert {v["entry"]["partial"] for v in found if v["rank"]} == {False}
    partial = [v for v in found if v["entry"]["partial"]]
    fp32 = [v for v in found if v["entry"]["recipe"] == "fp32"]
    assert len(fp32) == 4
    assert all(v["reason"].startswith("not run: size is ") and "the budget of 20 MB" in v["reason"] for v in fp32)
    assert f"{8 - len(partial)} of 8 points" in selection["left_out"]
    with Store(RunFolder(raced / "run").store) as store:
        timed = Counter((m.recipe, m.stage) for m in store.measurements() if m.scenario == "single-stream")
        assert not any(recipe == "fp32" for recipe, _ in timed)
        looked = [m for m in store.measurements() if m.stage == "look"]
        assert looked
        rounds = [m.conditions["rounds"] for m in looked if m.scenario == "single-stream"]
        assert all(r["count"] in (1, 2) or "early" in r["stopped"] for r in rounds)
        # Looks are no measurements of their own: neither the join nor the report of the machine takes them.
        assert all(not e.partial and e.metrics["p50"].method.startswith("cluster") for e in entries(store))
        assert "look" not in hardware_report(store, "x").lower()


@pytest.mark.slow
def test_the_report_shows_every_point_and_its_reason(raced: Path) -> None:
    selection, found = verdicts(raced)
    page = (raced / "run" / "report.html").read_text()
    for v in found:
        assert v["reason"]
    assert page.count("Not run: size is ") >= 4
    assert "What was not measured in full" in page
    assert selection["left_out"] in (raced / "run" / "report.md").read_text()
    # The sentence counts what was measured, not what was dropped.
    full = [v for v in found if not v["entry"]["partial"]]
    said = rf"(of the {len(full) - 1}|all {len(full) - 1}|both) others"
    assert re.search(said, selection["sentence"]) or len(full) <= 2


@pytest.mark.slow
def test_a_choice_made_anew_says_what_the_search_left(raced: Path) -> None:
    with Store(RunFolder(raced / "run").store) as store, Store(raced / "less.sqlite") as less:
        measured = store.measurements()
        # Whether noise let the race drop a point is not known: one that it looked at is taken to have been dropped.
        dropped = next(m.target for m in measured if m.stage == "look")
        kept = [m for m in measured if m.stage == "look" or m.target != dropped or m.scenario != "single-stream"]
        for m in kept:
            less.add(replace(m, id=None))
    assert len(kept) < len(measured) or any(v["entry"]["partial"] for v in verdicts(raced)[1])
    asked = [sys.executable, "-m", "edgewise", "select", "less.sqlite", "--objective", "p50", "--json"]
    done = subprocess.run(asked, cwd=raced, capture_output=True, text=True, check=True)
    (told,) = json.loads(done.stdout)["devices"]
    assert told["left_out"].startswith("A search left ")
    assert "one of them may be better" in told["left_out"]


@pytest.mark.slow
def test_a_tiny_time_gives_an_answer_and_goes_on_later(tuned: Path, review_splits: Splits, tmp_path: Path) -> None:
    plan = write_plan(tmp_path, tuned, review_splits, "", '{size: "<= 20 MB", accuracy: ">= 0.3"}')
    first = fit(plan, "--minutes", "0.001")
    assert first.returncode == 0, first.stderr
    selection, found = verdicts(tmp_path)
    late = [v for v in found if v["reason"].endswith("the 0.001 minutes were over")]
    assert len([v for v in found if not v["entry"]["partial"]]) == 1
    assert len(late) >= 2
    assert any(v["reason"].startswith("not looked at: ") for v in late)
    assert f"{len(late)} left" in selection["left_out"]
    assert "not the last word" in first.stdout
    assert (tmp_path / "run" / "bundles").is_dir()  # what goes on needs them

    again = fit(plan, "--minutes", "5")
    assert again.returncode == 0, again.stderr
    assert "nothing to do" not in again.stderr
    selection, found = verdicts(tmp_path)
    assert not any("were over" in v["reason"] for v in found)
    assert not (tmp_path / "run" / "bundles").exists()
    assert "nothing to do" in fit(plan, "--minutes", "5").stderr


@pytest.mark.slow
def test_optuna_proposes_some_and_the_rest_is_named(
    tuned: Path, review_splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgewise.search.PROPOSED", 2)
    monkeypatch.setattr("edgewise.search.TOGETHER", 1)
    plan = write_plan(tmp_path, tuned, review_splits, "search: optuna", '{size: "<= 20 MB", accuracy: ">= 0.3"}')
    result = run_fit(plan, out=tmp_path / "run", reporter=Reporter(quiet=True))
    (selection,) = result.selections
    assert selection.chosen is not None
    over = [v for v in selection.verdicts if v.reason.startswith("not looked at: 6 of 8 points were proposed")]
    assert len(over) == 2  # of the four that their size leaves
    assert "2 not looked at, as the sampler proposed others" in selection.left_out
    assert all(v.entry.partial and v.rank is None for v in over)
    assert result.left_open == 0


@pytest.mark.slow
def test_what_was_ended_early_and_is_asked_for_again_is_measured_to_its_end(
    tuned: Path, review_splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every measurement is ended after its third round; the first, which nothing beats, are asked for again."""
    monkeypatch.setattr("edgewise.selector.race._surely_out", lambda points, *_: set(points))
    plan = write_plan(tmp_path, tuned, review_splits, "search: race", "{}")
    result = run_fit(plan, out=tmp_path / "run", reporter=Reporter(quiet=True))
    (selection,) = result.selections
    assert selection.chosen is not None
    assert result.left_open == 0
    with Store(RunFolder(tmp_path / "run").store) as store:
        timed = [m for m in store.measurements() if m.scenario == "single-stream" and m.target]
    early = {(m.recipe, m.target) for m in timed if "early" in m.conditions["rounds"]["stopped"]}
    whole = {(m.recipe, m.target) for m in timed if m.stage == "profile"}
    assert early & whole
    assert early - whole <= {(v.entry.recipe, v.entry.target) for v in selection.verdicts if v.entry.partial}
    assert all(m.stage == "look" for m in timed if "early" in m.conditions["rounds"]["stopped"])


@pytest.mark.slow
def test_lengths_that_come_to_the_same_are_measured_once(tuned: Path, review_splits: Splits, tmp_path: Path) -> None:
    plan = write_plan(tmp_path, tuned, review_splits, "search: race", "{}", (32, 128, 100))
    result = run_fit(plan, out=tmp_path / "run", reporter=Reporter(quiet=True))
    (selection,) = result.selections
    same = [v for v in selection.verdicts if "the same as" in v.reason]
    assert len(same) == 4  # two bundles with two numbers of threads
    assert all(v.entry.target and v.entry.target.run.max_length == 128 for v in same)
    assert all("length 100), as both read every text alike" in v.reason for v in same)
    assert "4 the same as one of the others" in selection.left_out
    with Store(RunFolder(tmp_path / "run").store) as store:
        measured = {
            m.target.run.max_length for m in store.measurements() if m.target and m.stage in ("look", "profile")
        }
    assert 128 not in measured
    assert 100 in measured
    assert "the same as" in (tmp_path / "run" / "report.html").read_text()


def test_dry_run_says_what_a_search_would_do(tuned: Path, review_splits: Splits, tmp_path: Path) -> None:
    plan = write_plan(tmp_path, tuned, review_splits, "", "{}")
    done = fit(plan, "--dry-run", "--minutes", "2")
    assert done.returncode == 0, done.stderr
    assert "at most 8 points" in done.stdout
    assert "2 min in all" in done.stdout
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("minutes", ["0", "-1", "nan", "inf"])
def test_minutes_that_are_no_time(minutes: str, tuned: Path, review_splits: Splits, tmp_path: Path) -> None:
    plan = write_plan(tmp_path, tuned, review_splits, "", "{}")
    for more in ((), ("--dry-run",)):
        done = fit(plan, f"--minutes={minutes}", *more)
        assert done.returncode == 2
        assert f"--minutes is {minutes}; expected minutes of measuring above 0" in done.stderr
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()
