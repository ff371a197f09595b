"""Plans that hold, and plans that must be refused with the file, the line, the key, the value and what was expected."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from edgewise.errors import PlanError
from edgewise.plan import Plan, check_metrics, read_plan
from edgewise.rundir import RunFolder

EXAMPLE = Path(__file__).parents[2] / "examples" / "movie-reviews.yaml"
GOOD = """\
version: 1
task: text-classification
data:
  path: rows.tsv
  columns: [id, score, text]
  quoting: false
  label: {column: score, above: 0, drop: [0]}
  split: {train: 0.5, val: 0.3, confirm: 0.2}
  rows: {train: 30}
candidates:
  - name: l6
    from: asset:all-minilm-l6-v2
    tune: {strategy: full, epochs: 1, learning_rate: 8e-5}
  - name: l3
    from: acme/tiny
    tune: {keep_layers: [0, 2, 5]}
  - {name: theirs, onnx: onnx-folder}
recipes: [fp32, int8-dynamic]
devices:
  - name: here
    run: {provider: [cpu], threads: [1, 2], max_length: [32, 64]}
budgets:
  p95: "<= 10 ms"
  size: "<= 30 MB"
  accuracy_drop: "<= 0.5 points of fp32"
objective: [accuracy, p95]
confidence: 0.95
profile: {width: 0.1, min_rounds: 5, max_rounds: 7}
"""
LAST = GOOD.count("\n") + 1


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "rows.tsv").write_text("1\t0.5\ta fine film\n")
    (tmp_path / "onnx-folder").mkdir()
    return tmp_path


def read(folder: Path, text: str | bytes) -> Plan:
    file = folder / "plan.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_plan(file)


def changed(old: str, new: str) -> str:
    assert GOOD.count(old) == 1, f"{old!r} must stand once in the good plan"
    return GOOD.replace(old, new)


def test_good_plan(folder: Path) -> None:
    plan = read(folder, GOOD)
    assert [c.name for c in plan.candidates] == ["l6", "l3", "theirs"]
    assert [r.name for r in plan.recipes] == ["fp32", "int8-dynamic"]
    assert {(t.device, t.run.threads, t.run.max_length) for t in plan.targets} == {
        ("here", threads, length) for threads in (1, 2) for length in (32, 64)
    }
    assert {b.metric: b.limit for b in plan.budgets} == {"p95": 0.01, "size": 30e6, "accuracy_drop": 0.5}
    assert plan.candidates[0].tune.learning_rate == 8e-5  # type: ignore[union-attr]
    assert plan.resolve("rows.tsv") == folder / "rows.tsv"


def test_example_plan_is_valid() -> None:
    plan = read_plan(EXAMPLE)
    assert len(plan.candidates) >= 3
    assert len(plan.recipes) >= 4
    assert {t.run.threads for t in plan.targets} >= {1, 2}
    assert {t.run.max_length for t in plan.targets} >= {32, 64}


def test_a_device_may_be_held_to_less(folder: Path) -> None:
    plan = read(folder, changed("    run: {", "    memory: 512 MB\n    cores: [1, 0]\n    run: {"))
    assert (plan.devices[0].memory, plan.devices[0].cores) == (512_000_000, (0, 1))
    free = read(folder, GOOD).devices[0]
    assert (free.memory, free.cores) == (None, None)


def test_seeds_are_candidates_of_their_own(folder: Path) -> None:
    plan = read(folder, changed("epochs: 1,", "epochs: 1, seeds: [3, 1, 2],"))
    assert [c.name for c in plan.candidates] == ["l6-s3", "l6-s1", "l6-s2", "l3", "theirs"]
    assert [c.tune.seed for c in plan.candidates[:3]] == [3, 1, 2]  # type: ignore[union-attr]
    assert all(c.tune.seeds is None for c in plan.candidates[:3])  # type: ignore[union-attr]


BAD = {
    # what is wrong: (text to replace, replacement, the text whose line must be named, words of the message)
    "unknown key": ("objective: [accuracy, p95]", "objectve: [p95]", "objectve", ["'objectve'", "'objective'"]),
    "unknown key in data": ("quoting", "quotting", "quotting", ["data.quotting", "'quoting'"]),
    "unknown key in a label rule": ("above", "abov", "abov", ["data.label.abov", "'above'"]),
    "unknown key in tune": ("epochs", "epoch", "epoch", ["candidates[0].tune.epoch", "'epochs'"]),
    "unknown key in a second candidate": ("keep_layers", "keep_layer", "keep_layer", ["[1].tune", "'keep_layers'"]),
    "unknown key in run": ("threads", "thread", "thread:", ["devices[0].run.thread", "'threads'"]),
    "unknown key in profile": ("width", "widht", "widht", ["profile.widht", "'width'"]),
    "wrong unit": ('"<= 10 ms"', '"<= 10 MB"', "p95:", ["budgets.p95", "'<= 10 MB'", "'MB'", "ms"]),
    "missing unit": ('"<= 10 ms"', '"<= 10"', "p95:", ["budgets.p95", "unit is missing", "ms"]),
    "limit the wrong way": ('"<= 10 ms"', '">= 10 ms"', "p95:", ["budgets.p95", "must start with <="]),
    "limit below zero": ('"<= 10 ms"', '"<= -10 ms"', "p95:", ["-10 ms"]),
    "limit that is a number": ('"<= 30 MB"', "30", "size:", ["budgets.size", "30", "str"]),
    "unknown metric": ("size:", "sise:", "sise", ["'sise'", "'size'"]),
    "unknown objective": ("[accuracy, p95]", "[acuracy, p95]", "objective", ["objective[0]", "'accuracy'"]),
    "objective twice": ("[accuracy, p95]", "[p95, p95]", "objective", ["objective[1]", "'p95'", "twice"]),
    "missing file": ("rows.tsv", "nope.tsv", "nope", ["data.path", "'nope.tsv'", "no such file"]),
    "missing folder": ("acme/tiny", "./nope", "nope", ["candidates[1].from", "'./nope'", "no such folder"]),
    "missing ONNX folder": ("onnx: onnx-folder", "onnx: nope", "nope", ["candidates[2].onnx", "no such folder"]),
    "unknown asset": ("all-minilm-l6-v2", "all-minilm", "all-minilm", ["candidates[0].from", "'all-minilm-l6-v2'"]),
    "candidate twice": ("name: l3", "name: l6  # again", "again", ["candidates[1]", "'l6'", "twice"]),
    "name that is a path": ("name: l3", "name: ../l3", "../l3", ["candidates[1].name", "'../l3'"]),
    "seed twice": ("epochs: 1,", "epochs: 1, seeds: [1, 1],", "seeds", ["candidates[0].tune.seeds[1]", "twice"]),
    "seed below zero": ("epochs: 1,", "epochs: 1, seeds: [-1],", "seeds", ["seeds[0]", "-1"]),
    "name that a seed takes": (
        "epochs: 1, learning_rate: 8e-5}\n  - name: l3",
        "seeds: [1]}\n  - name: l6-s1",
        "- name: l6-s1",
        ["candidates[1]", "'l6-s1'"],
    ),
    "unknown recipe": ("int8-dynamic", "int8-dynamik", "recipes", ["recipes[1]", "'int8-dynamik'", "'int8-dynamic'"]),
    "recipe twice": ("int8-dynamic]", "fp32]", "recipes", ["recipes[1]", "'fp32'", "twice"]),
    "recipe twice by meaning": ("[fp32,", "[int8-dynamic+per_channel=true, fp32,", "recipes", ["'int8-dynamic'"]),
    "unknown recipe option": ("int8-dynamic]", "int8-dynamic+perchannel=true]", "recipes", ["'per_channel'"]),
    "no reference recipe": ("[fp32, int8", "[int8", "accuracy_drop", ["budgets.accuracy_drop", "'fp32'"]),
    "word for a list": ("[fp32, int8-dynamic]", "fp32", "recipes", ["recipes", "array", "'fp32'"]),
    "empty list": ("[fp32, int8-dynamic]", "[]", "recipes", ["recipes", "length >= 1"]),
    "unknown provider": ("[cpu]", "[cpuu]", "cpuu", ["devices[0].run.provider[0]", "'cpuu'", "'cpu'"]),
    "threads twice": ("threads: [1, 2]", "threads: [1, 1]", "threads", ["devices[0].run.threads[1]", "twice"]),
    "no threads": ("threads: [1, 2]", "threads: [0]", "threads", ["devices[0].run.threads[0]", "0"]),
    "memory without a unit": ("    run: {", "    memory: 512\n    run: {", "memory", ["devices[0].memory", "'512'"]),
    "core twice": ("    run: {", "    cores: [1, 1]\n    run: {", "cores", ["devices[0].cores", "[1, 1]", "each once"]),
    "unknown strategy": ("strategy: full", "strategy: ful", "ful,", ["'ful'", "'full'"]),
    "tune that is a word": (
        "{strategy: full, epochs: 1, learning_rate: 8e-5}",
        "full",
        "tune: full",
        ["candidates[0].tune", "'full'", "none or a mapping"],
    ),
    "both kinds of source": ("from: acme/tiny", "from: acme/tiny\n    onnx: onnx-folder", "name: l3", ["either"]),
    "tuned ONNX folder": (
        "onnx: onnx-folder}", "onnx: onnx-folder, tune: {epochs: 1}}", "theirs", ["[2].tune", "cannot be tuned"]
    ),
    "layer below zero": ("[0, 2, 5]", "[0, -2]", "keep_layers", ["keep_layers[1]", "-2"]),
    "shares that do not add up": ("train: 0.5", "train: 0.6", "split", ["data.split", "0.6", "add up to 1"]),
    "share that is no number": ("train: 0.5", "train: .nan", "split", ["data.split.train", "nan"]),
    "share that is a truth value": ("train: 0.5", "train: true", "split", ["data.split.train", "bool"]),
    "share and name": ("train: 0.5", "train: train", "split", ["data.split"]),
    "unknown part": ("train: 0.5", "trian: 0.5", "split", ["data.split", "trian"]),
    "unknown part in rows": ("train: 30", "trian: 30", "rows:", ["data.rows.trian", "'train'"]),
    "rows that are no number": ("train: 30", "train: many", "rows:", ["data.rows.train", "'many'"]),
    "threshold that is no number": ("above: 0", "above: .inf", "above", ["data.label.above", "inf"]),
    "same names": ("drop: [0]", "names: [a, a]", "names", ["data.label.names", "'a'"]),
    "text outside columns": ("[id, score, text]", "[id, score, txt]", "data:", ["data.text", "'text'", "'txt'"]),
    "endless learning rate": ("8e-5", ".inf", "tune: {strategy", ["learning_rate", "inf"]),
    "other version": ("version: 1", "version: 2", "version", ["version", "2", "known: 1"]),
    "unknown task": ("text-classification", "text-clasification", "task", ["'text-classification'"]),
    "another task": ("text-classification", "fill-mask", "task", ["'fill-mask'", "text-classification"]),
    "confidence of 1": ("0.95", "1.0", "confidence", ["confidence", "1.0"]),
    "unknown search": ("confidence: 0.95", "search: foo", "search", ["search", "'foo'", "all", "race"]),
    "no data": ("data:\n", "data: null\nmore:\n", "data", ["data", "null"]),
}  # fmt: skip


@pytest.mark.parametrize("what", list(BAD))
def test_bad_plan_names_line_and_what_was_expected(folder: Path, what: str) -> None:
    old, new, mark, words = BAD[what]
    text = changed(old, new)
    with pytest.raises(PlanError) as caught:
        read(folder, text)
    message = str(caught.value)
    line = next(i for i, written in enumerate(text.split("\n"), 1) if mark in written)
    assert message.startswith(f"{folder / 'plan.yaml'}:{line}: "), f"expected line {line}: {message}"
    assert [word for word in words if word not in message] == []
    assert caught.value.exit_code == 2


def test_a_large_space_is_raced_unless_the_plan_says_otherwise(folder: Path) -> None:
    plan = read(folder, GOOD)
    assert plan.points == (2 + 2 + 1) * 4
    assert (plan.search, plan.races) == (None, False)
    larger = changed("threads: [1, 2]", "threads: [1, 2, 3, 4, 5]")
    assert read(folder, larger).points == 50
    assert read(folder, larger).races
    assert not read(folder, larger + "search: all\n").races
    assert read(folder, GOOD + "search: race\n").races


def test_fewer_rounds_at_most_than_at_least(folder: Path) -> None:
    with pytest.raises(PlanError, match=r"profile\.max_rounds: max_rounds is 7; expected at least min_rounds, 9"):
        read(folder, changed("min_rounds: 5", "min_rounds: 9"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r":1: a plan is a mapping .* found nothing"),
        ("- a\n", r":1: .* found a list"),
        ("hello", r":1: .* found 'hello'"),
        (GOOD + "confidence: 0.9\n", rf":{LAST}: no valid YAML: found duplicate key .confidence"),
        (GOOD.replace("quoting: false", "quoting: false\n  quoting: true"), r":7: .*duplicate key .quoting"),
        (GOOD.replace("recipes: [fp32, int8-dynamic]", "recipes: [fp32\n  - : ["), r":19: no valid YAML"),
        (GOOD + "---\nversion: 1\n", rf":{LAST}: no valid YAML"),
        (GOOD.encode() + b"# \xe9\n", rf":{LAST}: byte at offset \d+ is not UTF-8"),
        (GOOD.replace("budgets:\n", "budgets: &a\n  p50: *a\n"), r"budgets\.p50: .*null"),
        (GOOD.replace("0.95", "2024-13-45"), r"no valid YAML: month"),
        (GOOD.replace("version: 1\n", ""), r":1: plan: Object missing required field `version`"),
        (GOOD.replace("0.95", "!!python/object:os.system [ls]"), r"confidence"),
        ("[" * 1500, r"no valid YAML"),
    ],
)
def test_what_is_no_plan_at_all(folder: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        read(folder, text)


def test_no_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"nope\.yaml: no such plan file"):
        read_plan(tmp_path / "nope.yaml")
    with pytest.raises(PlanError, match=re.escape(str(tmp_path))):
        read_plan(tmp_path)


def test_splits_of_a_dataset_must_differ(folder: Path) -> None:
    with_names = changed("{train: 0.5, val: 0.3, confirm: 0.2}", "{train: train, val: test, confirm: test}")
    with pytest.raises(PlanError, match=r":8: data\.split: split names the splits of a dataset id"):
        read(folder, with_names)
    dataset = with_names.replace("path: rows.tsv\n  columns: [id, score, text]", "dataset: acme/reviews")
    with pytest.raises(PlanError, match=r":7: data\.split: .*the three must differ"):
        read(folder, dataset)
    assert read(folder, dataset.replace("confirm: test", "confirm: held")).data.split["confirm"] == "held"


def test_a_teacher_stands_above_its_student(folder: Path) -> None:
    taught = changed("keep_layers: [0, 2, 5]", "keep_layers: [0, 2, 5], teacher: {}")
    plan = read(folder, taught.replace("{}", "l6"))
    assert [getattr(c.tune, "teacher", None) for c in plan.candidates] == [None, "l6", None]
    (folder / "tuned").mkdir()
    assert read(folder, taught.replace("{}", "tuned")).candidates[1].name == "l3"
    with pytest.raises(
        PlanError, match=r":16: candidates\[1\]\.tune\.teacher: .*'l5'; no such candidate or folder: known: l6"
    ):
        read(folder, taught.replace("{}", "l5"))
    below = changed("epochs: 1,", "epochs: 1, teacher: l3,")
    with pytest.raises(PlanError, match=r":13: candidates\[0\]\.tune\.teacher: .*does not stand above 'l6'"):
        read(folder, below)


def test_options_of_every_strategy(folder: Path) -> None:
    extra = "strategy: prompt, prompt_tokens: 8, class_weights: {positive: 2.0}, early_stopping: 2, metric: f1"
    tune = read(folder, changed("strategy: full", extra)).candidates[0].tune
    assert tune != "none"
    assert (tune.strategy, tune.prompt_tokens, tune.early_stopping, tune.metric) == ("prompt", 8, 2, "f1")
    assert tune.class_weights == {"positive": 2.0}
    with pytest.raises(PlanError, match=r":13: candidates\[0\]\.tune"):
        read(folder, changed("strategy: full", "strategy: adapters"))
    with pytest.raises(PlanError, match=r":13: candidates\[0\]\.tune"):
        read(folder, changed("strategy: full", "class_weights: heavy"))


@pytest.mark.parametrize(
    ("budgets", "more", "words"),
    [
        (
            '{ttft_p50: "<= 10 ms"}',
            "",
            r"budgets\.ttft_p50: ttft_p50 is measured by the scenario generation, which is not",
        ),
        ('{server_p99: "<= 10 ms"}', "", "measured by the scenario server, which is not among those of the plan"),
        ('{worst_slice_accuracy: ">= 0.5"}', "", "worst_slice_accuracy is not measured without slices"),
        (
            '{p95: "<= 10 ms"}',
            "profile: {scenarios: [offline]}",
            "measured by the scenario single-stream, which is not",
        ),
        ("{}", "objective: [accuracy, server_p95]", r"objective\[1\]: server_p95 is measured by the scenario server"),
        ("{}", "objective: {accuracy: 2, bleu: 1}", r"objective\.bleu: bleu is not measured of single_label"),
    ],
)
def test_a_metric_that_the_plan_does_not_measure_is_refused_with_its_place(
    tmp_path: Path, budgets: str, more: str, words: str
) -> None:
    (tmp_path / "rows.csv").write_text("text,label\n")
    plan = tmp_path / "plan.yaml"
    plan.write_text(
        "version: 1\ntask: text-classification\ndata: {path: rows.csv, text: text, label: label}\n"
        f"candidates: [{{name: a, from: some/model}}]\nrecipes: [fp32]\nbudgets: {budgets}\n{more}\n"
    )
    with pytest.raises(PlanError, match=rf"plan\.yaml:\d+: .*{words}"):
        read_plan(plan)


def test_chosen_bundles_of_an_earlier_plan_are_removed(tmp_path: Path) -> None:
    """Of devices that the plan no longer has, too; a copy that somebody made stays."""
    folder = RunFolder(tmp_path)
    folder.forget_chosen()  # of none
    for name in ("chosen-pi", "chosen-pc", "chosen-backup"):
        (tmp_path / name).mkdir()
    told = {name: {"path": f"runs/x/chosen-{name}", "content_digest": "sha256:c"} for name in ("pi", "pc")}
    folder.selection.write_text(json.dumps({"chosen": told}))
    folder.forget_chosen()
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == ["chosen-backup"]


@pytest.mark.parametrize(
    ("profile", "quick"),
    [("{scenarios: [server], rate: 20}", "server_p95"), ("{scenarios: [offline]}", "offline_throughput"), ("{}", "p95"),
     ("{scenarios: [offline, single-stream]}", "p95")],
)  # fmt: skip
def test_without_an_objective_it_is_one_that_the_scenarios_measure(tmp_path: Path, profile: str, quick: str) -> None:
    (tmp_path / "rows.csv").write_text("text,label\n")
    plan = tmp_path / "plan.yaml"
    plan.write_text(
        "version: 1\ntask: text-classification\ndata: {path: rows.csv, text: text, label: label}\n"
        f"candidates: [{{name: a, from: some/model}}]\nrecipes: [fp32]\nprofile: {profile}\n"
    )
    found = read_plan(plan)
    assert found.objective == ("accuracy", quick)
    check_metrics(found)
