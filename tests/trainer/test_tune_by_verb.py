"""Every task as a user types it, and in a plan: rows in files, metrics by slice, a metric of one's own, what fails."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from edgewise.cli import main

MODELS = Path(__file__).parents[2] / "examples" / "models"
GOOD = ("good", "fine", "great", "nice", "warm", "witty")
BAD = ("bad", "dull", "poor", "weak", "cold", "slow")
SENTENCES = [(f"a {w} film, number {i}", "p" if w in GOOD else "n", w) for i in range(5) for w in GOOD + BAD]


def jsonl(file: Path, rows: Sequence[dict[str, Any]]) -> Path:
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return file


def single(at: Path) -> Path:
    rows = [{"text": t, "label": c, "word": w, "length": i % 2} for i, (t, c, w) in enumerate(SENTENCES)]
    return jsonl(at / "single.jsonl", rows)


def pair(at: Path) -> Path:
    return jsonl(at / "pair.jsonl", [{"text": t, "reply": "so it is", "label": c} for t, c, _ in SENTENCES])


def several(at: Path) -> Path:
    rows = [{"text": t, "label": ["p"] if c == "p" else ["n", "x"]} for t, c, _ in SENTENCES]
    return jsonl(at / "several.jsonl", rows)


def numbers(at: Path) -> Path:
    return jsonl(at / "numbers.jsonl", [{"text": t, "label": 1.5 if c == "p" else -1.0} for t, c, _ in SENTENCES])


def words(at: Path) -> Path:
    rows = [
        {"tokens": t.split(), "tags": ["B-W" if x in GOOD + BAD else "O" for x in t.split()]} for t, _, _ in SENTENCES
    ]
    return jsonl(at / "words.jsonl", rows)


def running(at: Path) -> Path:
    file = at / "text.txt"
    file.write_text("\n".join(f"In the beginning, number {i}, there was light." for i in range(80)), encoding="utf-8")
    return file


def spelled(at: Path) -> Path:
    rows = [{"text": f"{a}{b}", "target": f"{a} {b}".upper()} for a in GOOD for b in BAD]
    return jsonl(at / "spelled.jsonl", rows)


def images(at: Path) -> Path:
    for label, shade in (("dark", 20), ("light", 220)):
        (at / "images" / label).mkdir(parents=True)
        for i in range(10):
            file = BytesIO()
            Image.new("L", (28, 28), shade + i).save(file, "PNG")
            (at / "images" / label / f"{i}.png").write_bytes(file.getvalue())
    return at / "images"


KIND = "--problem-type"
CASES: dict[str, tuple[str, Callable[[Path], Path], list[str], set[str]]] = {
    "single": ("bible-gpt", single, [], {"accuracy", "f1"}),
    "pair": ("bible-gpt", pair, ["--text-pair", "reply"], {"accuracy", "f1"}),
    "several": ("bible-gpt", several, [KIND, "multi_label_classification"], {"accuracy", "f1", "f1_micro"}),
    "number": ("bible-gpt", numbers, [KIND, "regression"], {"pearson", "spearman", "mse", "mae"}),
    "tags": ("bert", words, ["--task", "token-classification"], {"f1", "precision", "recall", "accuracy"}),
    "running": ("bible-gpt", running, ["--task", "text-generation"], {"perplexity"}),
    "spelled": ("phoneme-t5", spelled, ["--task", "text2text-generation"], {"bleu", "exact_match", "char_error"}),
    "images": ("fashion-vit", images, ["--task", "image-classification"], {"accuracy", "f1"}),
}


def of_line(name: str, at: Path, minilm: Path) -> list[str]:
    source, rows, more, _ = CASES[name]
    cut = ["--keep-layers", "0"] if source == "bert" else []
    folder = minilm if source == "bert" else MODELS / source
    small = ["--epochs", "1", "--batch-size", "16", "--max-length", "16", "--val-share", "0.3"]
    return ["tune", str(folder), "--data", str(rows(at)), "--out", str(at / "m"), *small, *cut, *more]


@pytest.mark.parametrize("name", CASES)
def test_every_task_by_the_command_line(minilm: Path, tmp_path: Path, capsys, name: str) -> None:
    assert main([*of_line(name, tmp_path, minilm), "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert set(done["metrics"]) == CASES[name][3]
    assert json.loads((tmp_path / "m" / "tune.json").read_text(encoding="utf-8"))["seed"] == 0
    assert (tmp_path / "m" / "model.safetensors").is_file()


def plan(at: Path, task: str, data: str, *candidates: str) -> Path:
    file = at / "plan.yaml"
    listed = "\n".join(f"  - {{{c}}}" for c in candidates)
    text = f"version: 1\ntask: {task}\ndata: {{{data}}}\ncandidates:\n{listed}\nrecipes: [fp32]\n"
    file.write_text(text, encoding="utf-8")
    return file


SMALL = "epochs: 1, batch_size: 16, max_length: 16"
SPLIT = "split: {train: 0.5, val: 0.25, confirm: 0.25}"


@pytest.mark.parametrize("name", ["pair", "several", "number", "tags", "running", "spelled", "images"])
def test_every_task_in_a_plan(minilm: Path, tmp_path: Path, monkeypatch, name: str) -> None:
    source, rows, more, metrics = CASES[name]
    monkeypatch.chdir(tmp_path)
    given = dict(zip(more[::2], more[1::2], strict=True))
    task = given.get("--task", "text-classification")
    data = f"path: {rows(tmp_path)}, {SPLIT}"
    data += "".join(
        f", {key}: {given[flag]}"
        for flag, key in ((KIND, "problem_type"), ("--text-pair", "text_pair"))
        if flag in given
    )
    folder, cut = (minilm, ", keep_layers: [0]") if source == "bert" else (MODELS / source, "")
    file = plan(tmp_path, task, data, f"name: a, from: {folder}, tune: {{{SMALL}{cut}}}")
    assert main(["tune", str(file), "--out", "run"]) == 0
    (found,) = json.loads((tmp_path / "run" / "tune.json").read_text(encoding="utf-8"))
    assert set(found["val"]) == set(found["confirm"]) == metrics
    assert found["result"]["reused"] is False


def test_metrics_by_slice_with_the_worst(tmp_path: Path, monkeypatch, capsys) -> None:
    """By a column, by the length of the text and by class; a column named 'length' would go before the built-in."""
    monkeypatch.chdir(tmp_path)
    rows = [
        {"text": t + (" and so on and on" * (i % 3) * 2), "label": c, "half": i % 2} for i, (t, c, _) in
        enumerate(SENTENCES * 5)
    ]  # fmt: skip
    rows = [{**r, "text": f"{r['text']} {i}"} for i, r in enumerate(rows)]
    data = f"path: {jsonl(tmp_path / 'rows.jsonl', rows)}, slices: [half, length, class], {SPLIT}"
    file = plan(tmp_path, "text-classification", data, f"name: a, from: {MODELS / 'bible-gpt'}, tune: {{{SMALL}}}")
    assert main(["tune", str(file)]) == 0
    assert "worst_slice_accuracy " in capsys.readouterr().out
    (found,) = json.loads((tmp_path / "runs" / "plan" / "tune.json").read_text(encoding="utf-8"))
    score, worst = found["confirm"]["accuracy"], found["confirm"]["worst_slice_accuracy"]
    by = {s["by"]: sum(t["n"] for t in score["slices"] if t["by"] == s["by"]) for s in score["slices"]}
    assert by == {"half": score["n"], "length": score["n"], "class": score["n"]}
    assert len([s for s in score["slices"] if s["by"] == "length"]) > 1
    able = [s["value"] for s in score["slices"] if s["n"] >= 20]
    assert worst["value"] == min(able) < score["value"]


def test_a_column_named_length_goes_before_the_length_of_the_text(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = f"path: {single(tmp_path)}, slices: [length, word], {SPLIT}"
    file = plan(tmp_path, "text-classification", data, f"name: a, from: {MODELS / 'bible-gpt'}, tune: {{{SMALL}}}")
    assert main(["tune", str(file)]) == 0
    (found,) = json.loads((tmp_path / "runs" / "plan" / "tune.json").read_text(encoding="utf-8"))
    slices = found["confirm"]["accuracy"]["slices"]
    assert {s["slice"] for s in slices if s["by"] == "length"} == {"0", "1"}


def test_a_slice_that_no_row_has(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    candidate = f"name: a, from: {MODELS / 'bible-gpt'}, tune: {{{SMALL}}}"
    file = plan(tmp_path, "text-classification", f"path: {single(tmp_path)}, slices: [wrod]", candidate)
    assert main(["tune", str(file)]) == 2
    assert "no column 'wrod': did you mean 'word'?" in capsys.readouterr().err
    file = plan(tmp_path, "text-generation", f"path: {running(tmp_path)}, slices: [length]", candidate)
    assert main(["tune", str(file)]) == 2
    assert "data.slices is ['length'], but perplexity is that of the running text" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_an_own_metric_stands_beside_its_plan(tmp_path: Path, monkeypatch) -> None:
    """As every path of a plan: relative to the plan, not to where the command is typed."""
    (tmp_path / "plans").mkdir()
    (tmp_path / "plans" / "own.py").write_text("def half(p, r):\n    return 0.5\n\n\nhalf.better = 'lower'\n")
    candidate = f"name: a, from: {MODELS / 'bible-gpt'}, tune: {{{SMALL}, early_stopping: 1, metric: 'own.py:half'}}"
    file = plan(tmp_path / "plans", "text-classification", f"path: {single(tmp_path)}, {SPLIT}", candidate)
    monkeypatch.chdir(tmp_path)
    assert main(["tune", str(file)]) == 0
    (found,) = json.loads((tmp_path / "runs" / "plan" / "tune.json").read_text(encoding="utf-8"))
    name = next(iter(found["confirm"]))
    assert name.endswith("plans/own.py:half")
    assert found["confirm"][name]["value"] == 0.5
    assert found["confirm"][name]["better"] == "lower"


def test_what_is_wrong_with_the_last_candidate_is_said_before_the_first_one_trains(
    minilm: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    gpt = MODELS / "bible-gpt"
    file = plan(
        tmp_path, "text-classification", f"path: {single(tmp_path)}, {SPLIT}",
        f"name: good, from: {gpt}, tune: {{{SMALL}}}",
        f"name: layers, from: {minilm}, tune: {{keep_layers: [9]}}",
        f"name: long, from: {gpt}, tune: {{max_length: 5000}}",
        f"name: metric, from: {gpt}, tune: {{{SMALL}, metric: acuracy}}",
        f"name: weights, from: {gpt}, tune: {{{SMALL}, class_weights: {{zz: 2}}}}",
        f"name: kind, from: {MODELS / 'fashion-vit'}, tune: {{{SMALL}}}",
    )  # fmt: skip
    assert main(["tune", str(file)]) == 4
    told = capsys.readouterr()
    first_training = told.err.index("tune good")
    for name, why in {
        "layers": "keep_layers is [9]; expected different layers from 0 to 5",
        "long": "max_length is 5000, but the model has 256 positions",
        "metric": "unknown metric 'acuracy'",
        "weights": "class_weights names ['zz']",
        "kind": "is a vit model, which does not do text-classification",
    }.items():
        assert 0 < told.err.index(f"{name} cannot be trained: ") < first_training
        assert why in told.err
        assert f"{name}: failed: " in told.out


def test_a_run_folder_that_cannot_be(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("x")
    candidate = f"name: a, from: {MODELS / 'bible-gpt'}, tune: {{{SMALL}}}"
    file = plan(tmp_path, "text-classification", f"path: {single(tmp_path)}, {SPLIT}", candidate)
    assert main(["tune", str(file), "--out", "file"]) == 2
    assert "--out file cannot be written (File exists)" in capsys.readouterr().err
