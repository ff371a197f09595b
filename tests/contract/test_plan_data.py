"""The data part of plans of every task: what holds, and what is refused with its line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from edgewise.errors import PlanError
from edgewise.plan import Plan, check_metrics, read_plan

TASKS = {
    "text-classification": "{path: a.csv, text: body, label: [rude, kind], problem_type: multi_label_classification}",
    "token-classification": "{path: a.jsonl, tokens: words, tags: ner, slices: [source], unseen: leave_out}",
    "text-generation": "{path: asset:brown/brown.txt}",
    "text2text-generation": "{path: asset:phonemes, text: word, target: phonemes}",
    "image-classification": "{path: images}",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.csv", "a.jsonl"):
        (tmp_path / name).write_text("")
    (tmp_path / "images").mkdir()
    return tmp_path


def read(folder: Path, task: str, data: str) -> Plan:
    file = folder / "plan.yaml"
    file.write_text(
        f"version: 1\ntask: {task}\ndata: {data}\ncandidates: [{{name: a, from: acme/tiny}}]\nrecipes: [fp32]\n"
    )
    return read_plan(file)


@pytest.mark.parametrize("task", TASKS)
def test_every_task_may_be_planned(folder: Path, task: str) -> None:
    plan = read(folder, task, TASKS[task])
    assert plan.task == task
    check_metrics(plan)
    writes = task in ("text-generation", "text2text-generation")
    assert plan.objective[1] == ("token_throughput" if writes else "p95")
    assert plan.profile.scenarios == (("generation",) if writes else ("single-stream",))


MULTI, RULE = "problem_type: multi_label_classification", "label: {column: s, above: 0}"
BAD = {
    # what is wrong: (task, data, key of the error, what the message must match)
    "no rows for it": ("feature-extraction", "{path: a.csv}", "task",
        "'feature-extraction'; expected text-classification, "),
    "folder for texts": ("text-generation", "{path: images}",
        "data.path", "'images', a folder; text-generation takes a"),
    "format folder": ("text-generation", "{path: a.csv, format: folder}",
        "data.format", "for task image-classification"),
    "unknown format": ("text-generation", "{path: a.csv, format: texts}", "data.format", "did you mean 'text'"),
    "format of an id": ("text-generation", "{dataset: d, format: text}", "data.format", "a dataset id needs none"),
    "no such path": ("image-classification", "{path: imagse}", "data.path", "'imagse'; no such file"),
    "no such asset file": ("text-generation", "{path: asset:brown/b.txt}",
        "data.path", "no file 'b.txt': did you mean"),
    "regression of tags": ("token-classification", "{path: a.csv, problem_type: regression}",
        "data.problem_type", "not token"),
    "pair to write": ("text2text-generation", "{path: a.csv, text_pair: b}", "data.text_pair", "for task text-class"),
    "columns of one label": ("text-classification", "{path: a.csv, label: [a, b]}",
        "data.label", "several columns are"),
    "one column in a list": ("text-classification", f"{{path: a.csv, label: [a], {MULTI}}}",
        "data.label", "two columns or"),
    "column twice": ("text-classification", f"{{path: a.csv, label: [a, b, a], {MULTI}}}",
        "data.label", "'a' stands here"),
    "rule and number": ("text-classification", f"{{path: a.csv, {RULE}, problem_type: regression}}",
        "data.label", "a rule"),
    "rule of images": ("image-classification", f"{{path: a.csv, {RULE}}}",
        "data.label", "a rule makes labels of text-"),
    "tags not in columns": ("token-classification", "{path: a.csv, columns: [tokens, tag]}", "data.tags", "mean 'tag'"),
    "label not in columns": ("text-classification", f"{{path: a.csv, label: [a, b], {MULTI}, columns: [text, a]}}",
        "data.label[1]", "column 'b' is not in columns"),
    "slice not in columns": ("text-generation", "{path: a.csv, slices: [x], columns: [text]}", "data.slices[0]", "'x'"),
    "slice twice": ("text-generation", "{path: a.csv, slices: [x, x]}", "data.slices", "'x' stands here twice"),
    "unknown word": ("text-generation", "{path: a.csv, unseen: drop}", "data.unseen", "'drop'"),
    "named parts of a file": ("text-generation", "{path: a.csv, split: {train: a, val: b, confirm: c}}",
        "data.split", "shares"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_bad_data_names_line_key_and_remedy(folder: Path, what: str) -> None:
    task, data, key, message = BAD[what]
    line = 2 if key == "task" else 3
    with pytest.raises(PlanError, match=rf"^{re.escape(str(folder))}/plan\.yaml:{line}: {re.escape(key)}.*{message}"):
        read(folder, task, data)
