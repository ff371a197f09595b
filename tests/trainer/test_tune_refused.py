"""What cannot be trained is refused before training starts, in one line, and nothing that stands there is lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgewise.cli import main
from edgewise.data import Row
from edgewise.errors import CheckpointError, DataError, PlanError
from edgewise.files import check_out, check_writable
from edgewise.plan import TuneSpec
from edgewise.trainer import tune
from edgewise.trainer.models import Goal, load_model

MODELS = Path(__file__).parents[2] / "examples" / "models"
ROWS = tuple(Row(f"a {w} film, number {i}", label="p" if w in "good fine" else "n")
             for i in range(6) for w in ("good", "fine", "bad", "dull"))  # fmt: skip
LABELS = ("n", "p")
SPEC = TuneSpec(epochs=1, batch_size=16, max_length=16, keep_layers=(0,))
GPT = MODELS / "bible-gpt"  # a config alone: it is small, and its weights are drawn


@pytest.fixture
def table(tmp_path: Path) -> Path:
    folder = tmp_path / "given"
    folder.mkdir()
    file = folder / "rows.jsonl"
    file.write_text("\n".join(json.dumps({"text": r.text, "label": r.label}) for r in ROWS), encoding="utf-8")
    return file


def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], *args: Any) -> str:
    """The one line that a command ends with; it exits with 2 and leaves nothing."""
    before = sorted(tmp_path.rglob("*"))
    assert main([str(arg) for arg in args]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("edgewise: error:")]
    assert len(errors) == 1
    assert sorted(tmp_path.rglob("*")) == before
    return errors[0]


# ---- where the result goes


def test_what_stands_at_out_is_not_lost(table: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("three years of work")
    (tmp_path / "file").write_text("x")
    monkeypatch.chdir(mine)
    command = ("tune", GPT, "--data", table, "--max-length", "16", "--out")
    assert "files are no earlier result" in refused(tmp_path, capsys, *command, tmp_path / "given")
    assert "a file: name a new folder" in refused(tmp_path, capsys, *command, tmp_path / "file")
    assert "Not a directory" in refused(tmp_path, capsys, *command, tmp_path / "file" / "m")
    assert "a folder that you stand in" in refused(tmp_path, capsys, *command, ".")
    assert "a folder that you stand in" in refused(tmp_path, capsys, *command, "..")
    text = tmp_path / "given" / "text.txt"
    text.write_text("One text.\n\nAnother text.")
    pretrain = ("pretrain", "clm", "--data", text, "--val-share", "0", "--out")
    assert "files are no earlier result" in refused(tmp_path, capsys, *pretrain, tmp_path / "given")
    rank = ("rank", f"a={GPT}", "--data", table, "--out", tmp_path / "file")
    assert "Not a directory" in refused(tmp_path, capsys, *rank)
    assert (mine / "thesis.txt").read_text() == "three years of work"


def test_an_earlier_result_is_replaced_and_the_source_is_not(tmp_path: Path) -> None:
    def made(out: str, source: Path, **changes: Any) -> Path:
        spec = TuneSpec(epochs=1, batch_size=16, max_length=16, **changes)
        return tune(source, ROWS, LABELS, spec, out=tmp_path / out).path

    first = made("m", GPT)
    assert json.loads((first / "tune.json").read_text())["seed"] == 0
    assert json.loads((made("m", GPT, seed=1) / "tune.json").read_text())["seed"] == 1
    with pytest.raises(PlanError, match="which is read from too: name another folder"):
        made("m", first)
    run = tmp_path / "run"  # of a plan: a tune.json, but no model
    run.mkdir()
    (run / "tune.json").write_text("[]")
    with pytest.raises(PlanError, match="no earlier result"):
        check_out(run, "tune.json")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that root cannot write either")
def test_a_folder_that_cannot_be_written() -> None:
    with pytest.raises(PlanError, match=r"nothing can be written in /proc \(.*\): name another folder"):
        check_writable(Path("/proc/a/b"))


# ---- metrics


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def f(:\n", r"does not run: SyntaxError: invalid syntax \(own.py, line 1\)"),
        ("import sys\nsys.exit(3)\n", "does not run: SystemExit: 3"),
        ("def g(p, r):\n    return 1\n", "'f' is not there in .*own.py: .*g"),
        ("def f(p, r):\n    raise KeyError('boom')\n", r"raised KeyError: 'boom' \(.*own.py, line 2\)"),
        ("def f(p):\n    return 1\n", r"raised TypeError: f\(\) takes 1 positional argument"),
        ("import sys\ndef f(p, r):\n    sys.exit(1)\n", "raised SystemExit"),
        ("def f(p, r):\n    return 'high'\n", "returned 'high'; expected a number"),
        ("def f(p, r):\n    return None\n", "returned None; expected a number"),
        ("def f(p, r):\n    return float('nan')\n", "tried with all 8 val rows answered right: the value is nan"),
    ],
)
@pytest.mark.parametrize("early", [None, 1])
def test_an_own_metric_that_does_not_work_is_told_before_the_first_step(
    tmp_path: Path, code: str, message: str, early: int | None
) -> None:
    own = tmp_path / "own.py"
    own.write_text(code)
    steps: list[int] = []
    spec = TuneSpec(epochs=1, batch_size=16, max_length=16, metric=f"{own}:f", early_stopping=early)
    with pytest.raises(DataError, match=message):
        tune(GPT, ROWS, LABELS, spec, out=tmp_path / "m", val=ROWS[:8], progress=lambda a, b, c: steps.append(a))
    assert steps == []
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "__pycache__") == ["own.py"]


def test_an_own_metric_is_tried_for_every_task(tmp_path: Path) -> None:
    from edgewise.trainer.start_checks import check_metric

    own = tmp_path / "own.py"
    own.write_text("def f(p, r):\n    assert len(p) == 1\n    return 1 if r is None or p == r else 0\n")
    goals = {
        Goal("text-classification", LABELS): Row("a", label="p"),
        Goal("text-classification", LABELS, "multi_label_classification"): Row("a", labels=("n", "p")),
        Goal("text-classification", (), "regression"): Row("a", number=2.5),
        Goal("token-classification", ("O", "B-W")): Row("a b", tokens=("a", "b"), tags=("O", "B-W")),
        Goal("text2text-generation"): Row("a", target="b"),
        Goal("text-generation"): Row("a"),
        Goal("image-classification", LABELS): Row(image=b"", label="p"),
    }
    for goal, row in goals.items():
        check_metric(f"{own}:f", goal, [row])
        with pytest.raises(DataError, match="raised AssertionError"):
            check_metric(f"{own}:f", goal, [row, row])


def test_a_changed_metric_file_trains_anew(tmp_path: Path) -> None:
    """It chooses the epoch that is kept."""
    own = tmp_path / "own.py"
    spec = TuneSpec(epochs=1, batch_size=16, max_length=16, metric=f"{own}:f", early_stopping=1)

    def run(code: str) -> bool:
        own.write_text(code)
        return tune(GPT, ROWS, LABELS, spec, out=tmp_path / "m", val=ROWS[:8]).reused

    assert [run("def f(p, r):\n    return 1\n") for _ in range(2)] == [False, True]
    assert not run("def f(p, r):\n    return 2\n")


def test_a_metric_without_a_value_in_the_end_is_a_warning(tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text("def f(p, r):\n    return 1.0 if p == r else float('inf')\n")
    spec = TuneSpec(epochs=1, batch_size=16, max_length=16, metric=f"{own}:f", learning_rate=1e-9)
    done = tune(GPT, ROWS, LABELS, spec, out=tmp_path / "m", val=ROWS[:8])
    assert set(done.metrics) == {"accuracy", "f1"}
    assert done.warnings == (f"no {own}:f on the val rows: the value is inf, no finite number",)


def test_a_metric_with_nothing_to_measure_on(table: Path, tmp_path: Path, capsys) -> None:
    command = ("tune", GPT, "--data", table, "--out", tmp_path / "m", "--metric", "mcc")
    assert "--metric mcc: nothing to measure it on: give --val FILE" in refused(tmp_path, capsys, *command)
    unknown = refused(tmp_path, capsys, *command[:-1], "hub:nothing", "--val-share", "0.3")
    assert "metric 'nothing' cannot be loaded from the hub" in unknown


# ---- labels, models, options


def test_labels_that_training_does_not_show(table: Path, tmp_path: Path, capsys) -> None:
    val = tmp_path / "given" / "val.jsonl"
    texts = [{"text": "so so", "label": "mixed"}, {"text": "good", "label": "p"}, {"text": "bad", "label": "n"}]
    val.write_text("\n".join(map(json.dumps, texts)), encoding="utf-8")
    command = ("tune", GPT, "--data", table, "--val", val, "--out", tmp_path / "m", "--max-length", "16")
    message = refused(tmp_path, capsys, *command)
    assert "val has labels ['mixed'] that are not among ['n', 'p']: training never shows them" in message
    assert main([*map(str, command), "--unseen", "leave_out", "--epochs", "1", "--json"]) == 0
    found = capsys.readouterr()
    assert "1 val rows left out" in found.err
    assert json.loads(found.out)["metrics"]["accuracy"] in (0, 0.5, 1)
    assert json.loads((tmp_path / "m" / "config.json").read_text())["id2label"] == {"0": "n", "1": "p"}


def test_a_model_that_cannot_do_the_task(minilm: Path, tmp_path: Path) -> None:
    def wrong(source: Path, goal: Goal, match: str) -> None:
        with pytest.raises(CheckpointError, match=match) as caught:
            load_model(source, goal)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 500

    classes = Goal("text-classification", LABELS)
    wrong(minilm, Goal("text-generation"), "a bert model, which reads text both ways and would see the tokens")
    wrong(minilm, Goal("text2text-generation"), "a bert model, which does not do text2text-generation: it does text-cl")
    wrong(minilm, Goal("image-classification", LABELS), "a bert model, which does not do image-classification")
    wrong(MODELS / "fashion-vit", classes, "a vit model, which does not do text-classification: it does image-")
    wrong(MODELS / "phoneme-t5", Goal("text-generation"), "a t5 model, which does not do text-generation")
    wrong(minilm / "config.json", classes, "is no checkpoint: it has no config.json")
    (tmp_path / "config.json").write_text("{}")
    wrong(tmp_path, Goal("image-classification", LABELS), "does not load as a model: |Unrecognized model")


def test_a_teacher_for_another_kind_of_answer(minilm: Path, tuned: Path, tmp_path: Path) -> None:
    for kind, rows in (
        ("regression", [Row(r.text, number=float(r.label == "p")) for r in ROWS]),
        ("multi_label_classification", [Row(r.text, labels=(str(r.label),)) for r in ROWS]),
    ):
        with pytest.raises(CheckpointError, match=f"was tuned for single_label_classification, expected {kind}"):
            tune(minilm, rows, () if kind == "regression" else LABELS, SPEC, out=tmp_path / "m",
                 problem_type=kind, teacher=tuned)  # fmt: skip
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--epochs", "0", "--epochs is 0.0; expected `float` > 0.0"),
        ("--epochs", "inf", "--epochs is inf; expected a finite number"),
        ("--learning-rate", "-1", "--learning-rate is -1.0; expected `float` > 0.0"),
        ("--learning-rate", "inf", "--learning-rate is inf; expected a finite number"),
        ("--batch-size", "0", "--batch-size is 0; expected `int` >= 1"),
        ("--max-length", "2", "--max-length is 2; expected `int` >= 3"),
        ("--seed", "-1", "--seed is -1; expected `int` >= 0"),
        ("--keep-layers", "0,99", "keep_layers is [0, 99]; expected different layers from 0 to"),
        ("--problem-type", "regression", "column 'label' is 'p'; expected a finite number"),
        ("--task", "token-classification", "no column 'tokens'"),
    ],
)
def test_an_option_is_refused_with_its_name_and_value(
    table: Path, tmp_path: Path, capsys, option, value, message
) -> None:
    command = ("tune", GPT, "--data", table, "--out", tmp_path / "m", f"{option}={value}")
    assert message in refused(tmp_path, capsys, *command)


def test_options_that_a_task_would_pass_over(table: Path, tmp_path: Path, capsys) -> None:
    command = ("tune", GPT, "--data", table, "--out", tmp_path / "m", "--task", "text-generation")
    message = refused(tmp_path, capsys, *command, "--problem-type", "regression")
    assert "--problem-type regression is for task text-classification, not text-generation" in message
    assert "--text-pair x is for task" in refused(tmp_path, capsys, *command, "--text-pair", "x")


def test_specs_that_were_not_read_from_a_file_are_held_to_the_same_limits(tmp_path: Path) -> None:
    for spec, match in (
        (TuneSpec(epochs=float("inf")), "epochs is inf"),
        (TuneSpec(batch_size=0), r"batch_size=0.*: Expected `int` >= 1 - at `\$\.batch_size`"),
        (TuneSpec(class_weights={"n": -1.0}), r"Expected `float` > 0\.0"),
        (TuneSpec(strategy="lora", lora_rank=500, max_length=16), "lora_rank is 500; a rank below the model's width"),
    ):
        with pytest.raises(PlanError, match=match):
            tune(GPT, ROWS, LABELS, spec, out=tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


# ---- rank and pretrain


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--minutes", "inf"], "minutes is inf; expected more than 0"),
        (["--minutes", "-1"], "minutes is -1.0; expected more than 0"),
        (["--keep", "0"], "keep is 0; expected 1 or more"),
        (["--threads", "0"], "--threads is 0; expected at least 1"),
        (["--seed", "-1"], "--seed is -1; expected at least 0"),
    ],
)
def test_what_rank_refuses(table: Path, tmp_path: Path, capsys, options: list[str], message: str) -> None:
    command = ("rank", f"a={GPT}", "--data", table, "--out", tmp_path / "r", *options)
    assert message in refused(tmp_path, capsys, *command)


def test_rank_fails_where_every_candidate_does(table: Path, tmp_path: Path, capsys) -> None:
    command = ["rank", f"a={GPT}", f"b={tmp_path / 'given'}", "--data", table, "--scores-only", "--out", tmp_path / "r"]
    assert main([str(a) for a in [*command, "--max-length", "9999"]]) == 2
    printed = capsys.readouterr().out
    assert "max_length is 9999, but" in printed
    assert "has no config.json" in printed
    assert main([str(a) for a in [*command, "--max-length", "16"]]) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--mask-patch", "4"], "mask_patch hides squares of images, and clm reads text"),
        (["--mean-span", "2"], "mean_span is of the spans that span hides, not of clm"),
        (["--weight-decay", "inf"], "--weight-decay is inf; expected a finite number"),
        (["--hidden", "0"], "--hidden is 0; expected `int` >= 1"),
    ],
)
def test_what_pretrain_refuses(tmp_path: Path, capsys, options: list[str], message: str) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"Text number {i} of some." for i in range(40)))
    command = ("pretrain", "clm", "--data", text, "--out", tmp_path / "p", *options)
    assert message in refused(tmp_path, capsys, *command)
