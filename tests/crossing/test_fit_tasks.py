"""The whole pipeline on the other tasks: tags, images, text to text, running text, several labels, numbers."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import edgewise
from edgewise.bundle import read_bundle
from edgewise.cli import main
from edgewise.data import Splits
from edgewise.errors import PlanError
from edgewise.plan import read_plan
from edgewise.profiler import Store
from edgewise.profiler.hardware_report import hardware_report
from edgewise.types import WRITING_TASKS

MODELS = Path(__file__).parents[2] / "examples" / "models"
PROFILE = "percentile: p50, min_rounds: 5, max_rounds: 5, seconds: 0.05, width: 0.3"
CASES = {
    "token-classification": (
        "{path: asset:addresses, tokens: tokens, tags: tags, unseen: leave_out, "
        "rows: {train: 150, val: 60, confirm: 60}}",
        "{name: a, from: asset:all-minilm-l6-v2, tune: {keep_layers: [0], epochs: 1, max_length: 32}}",
        '{f1: ">= 0", agreement: ">= 10 % of fp32", p95: "<= 1 min"}',
        ("f1", "p95"),
    ),
    "image-classification": (
        "{path: asset:fashion-mnist, image: image, label: label, rows: {train: 200, val: 60, confirm: 60}}",
        f"{{name: a, from: {MODELS / 'fashion-vit'}, tune: {{epochs: 1, batch_size: 32}}}}",
        '{accuracy: ">= 0", accuracy_drop: "<= 90 points of fp32"}',
        ("accuracy", "p95"),
    ),
    "text2text-generation": (
        "{path: asset:phonemes, text: word, target: phonemes, rows: {train: 200, val: 20, confirm: 20}}",
        f"{{name: a, from: {MODELS / 'phoneme-t5'}, tune: {{epochs: 1, batch_size: 32, max_length: 32}}}}",
        '{bleu: ">= 0", ttft_p50: "<= 1 min"}',
        ("bleu", "token_throughput"),
    ),
    "text-generation": (
        "{path: asset:kjv, rows: {train: 400, val: 40, confirm: 40}}",
        f"{{name: a, from: {MODELS / 'bible-gpt'}, tune: {{epochs: 1, batch_size: 16, max_length: 64}}}}",
        '{perplexity: "<= 1e9", perplexity_ratio: "<= 100 of fp32"}',
        ("perplexity", "token_throughput"),
    ),
}


def write(folder: Path, task: str, data: str, candidate: str, budgets: str, more: str = "") -> Path:
    path = folder / "plan.yaml"
    tokens = ", new_tokens: 4" if task in WRITING_TASKS else ""
    path.write_text(
        f"version: 1\ntask: {task}\ndata: {data}\ncandidates: [{candidate}]\nrecipes: [fp32, int8-dynamic]\n"
        f"budgets: {budgets}\nprofile: {{{PROFILE}{tokens}}}\n{more}",
        encoding="utf-8",
    )
    return path


def run(path: Path) -> Path:
    """The run folder of a finished plan."""
    out = path.parent / "run"
    assert main(["fit", str(path), "--out", str(out)]) == 0
    assert (out / "report.html").stat().st_size < 6_000_000
    assert (out / "report.md").read_text(encoding="utf-8")
    return out


@pytest.mark.slow
@pytest.mark.parametrize("task", CASES)
def test_fit_chooses_and_confirms_by_the_metrics_of_the_task(task: str, tmp_path: Path) -> None:
    data, candidate, budgets, objective = CASES[task]
    out = run(write(tmp_path, task, data, candidate, budgets))
    (selection,) = json.loads((out / "selection.json").read_text(encoding="utf-8"))["devices"]
    assert tuple(selection["objective"]) == objective
    metrics = next(v["entry"]["metrics"] for v in selection["verdicts"] if v["rank"] == 1)
    assert {*objective, "peak_rss", "size", "startup", "train_time"} <= set(metrics)
    assert metrics[objective[0]]["low"] is not None
    (tried,) = selection["confirmed"]
    assert tried["passed"]
    assert objective[0] in tried["metrics"]
    with edgewise.load(out / "chosen") as model:
        assert model.check().passed
    assert main(["fit", str(tmp_path / "plan.yaml"), "--out", str(out)]) == 0  # found finished
    with Store(out / "measurements.sqlite") as store:
        told = hardware_report(store, "here")
    explained = set(re.findall(r"^- \*\*(.+?)\*\*: ", told, re.MULTILINE))
    heads = [line for line in told.splitlines() if line.startswith("| bundle |")]
    columns = {name.strip() for line in heads for name in line.split("|")}
    assert objective[0].replace("_", " ") in explained
    # No number is explained that is not there.
    assert {name.removeprefix("startup ") for name in explained} <= columns


@pytest.mark.slow
@pytest.mark.parametrize(
    ("problem", "columns", "objective"),
    [("regression", "score", "pearson"), ("multi_label_classification", "[up, long]", "f1")],
)
def test_fit_of_numbers_and_of_several_labels(
    problem: str, columns: str, objective: str, review_splits: Splits, tmp_path: Path
) -> None:
    rows = [*review_splits.train[:150], *review_splits.val[:120], *review_splits.confirm[:120]]
    lines = [
        {"text": r.text, "score": len(r.text) / 100, "up": int(r.label == "positive"), "long": int(len(r.text) > 100)}
        for r in rows
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    split = "{train: 0.4, val: 0.3, confirm: 0.3}"
    data = f"{{path: rows.jsonl, problem_type: {problem}, label: {columns}, split: {split}}}"
    candidate = "{name: a, from: asset:all-minilm-l6-v2, tune: {keep_layers: [0], epochs: 1, max_length: 32}}"
    out = run(write(tmp_path, "text-classification", data, candidate, '{size: "<= 200 MB"}'))
    (selection,) = json.loads((out / "selection.json").read_text(encoding="utf-8"))["devices"]
    assert selection["objective"] == [objective, "p95"]
    assert read_bundle(out / "chosen").manifest.problem_type == problem


@pytest.mark.parametrize(
    ("task", "budgets", "message"),
    [
        ("token-classification", '{bleu: ">= 20"}', "bleu is not measured of token-classification"),
        ("image-classification", '{perplexity_ratio: "<= 1.1 of fp32"}', "perplexity_ratio is not measured of image"),
        (
            "text-generation",
            '{accuracy_drop: "<= 1 points of fp32"}',
            "accuracy_drop is not measured of text-gen",
        ),
        ("text2text-generation", '{worst_slice_f1: ">= 0.5"}', "worst_slice_f1 is not measured of text2text"),
    ],
)
def test_a_metric_that_the_task_does_not_have_is_refused_before_anything_runs(
    task: str, budgets: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, candidate, _, objective = CASES[task]
    path = write(tmp_path, task, data, candidate, '{size: "<= 1 GB"}')
    assert read_plan(path).objective == objective  # unless another one is given
    path = write(tmp_path, task, data, candidate, budgets)
    with pytest.raises(PlanError, match=rf"{path.name}:\d+: budgets\.\w+: {message}"):
        read_plan(path)
    assert main(["fit", str(path), "--out", str(tmp_path / "run")]) == 2
    assert "expected one of" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
