"""`edgewise tune` as typed: one strategy, several side by side, a plan, and what is typed wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgewise.cli import main
from edgewise.data import Splits

SMALL = ["--keep-layers", "0", "--max-length", "16", "--epochs", "1", "--batch-size", "16"]


@pytest.fixture(scope="module")
def rows(review_splits: Splits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    parts = [r for part in (review_splits.train, review_splits.val, review_splits.confirm) for r in part[:50]]
    text = [json.dumps({"text": r.text, "label": r.label, "half": f"h{i % 2}"}) for i, r in enumerate(parts)]
    file.write_text("\n".join(text), encoding="utf-8")
    return file


def tune(*args: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgewise", "tune", *map(str, args)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, env=os.environ.copy())


@pytest.mark.slow
def test_strategies_side_by_side(minilm: Path, rows: Path, tmp_path: Path) -> None:
    both = ["--strategy", "ffn,lora", "--val-share", "0.2", "--data", rows, *SMALL]
    done = tune(minilm, "--out", "m", *both, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["strategy", "trained", "of", "memory", "time", "accuracy", "f1"]
    assert [line.split()[0] for line in lines[1:]] == ["ffn", "lora"]
    assert all(" MB " in line and "%" in line for line in lines[1:])
    again = json.loads(tune(minilm, "--out", "m", *both, "--json", cwd=tmp_path).stdout)
    assert again["ffn"]["reused"]
    assert again["lora"]["trainable_parameters"] < again["ffn"]["trainable_parameters"]
    assert (tmp_path / "m" / "lora" / "model.safetensors").is_file()


@pytest.mark.slow
def test_a_plan_trains_each_candidate_and_one_that_fails_stops_none(minilm: Path, rows: Path, tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text(
        f"""version: 1
task: text-classification
data: {{path: {rows}, slices: [half], split: {{train: 0.5, val: 0.2, confirm: 0.3}}}}
candidates:
  - {{name: big, from: {minilm}, tune: {{epochs: 1, max_length: 16, keep_layers: [0, 5], batch_size: 16}}}}
  - {{name: broken, from: {minilm}, tune: {{keep_layers: [77]}}}}
  - {{name: small, from: {minilm}, tune: {{epochs: 1, max_length: 16, keep_layers: [0], teacher: big, batch_size: 16}}}}
recipes: [fp32]
""",
        encoding="utf-8",
    )
    done = tune("plan.yaml", cwd=tmp_path)
    assert done.returncode == 4, done.stderr
    assert "broken: failed: keep_layers is [77]" in done.stdout
    found = {one["name"]: one for one in json.loads((tmp_path / "runs" / "plan" / "tune.json").read_text())}
    assert set(found) == {"big", "broken", "small"}
    for name in ("big", "small"):
        assert 0 <= found[name]["confirm"]["accuracy"]["value"] <= 1
        assert f"{name} (full, " in done.stdout
    score = found["small"]["confirm"]["accuracy"]
    assert {s["slice"] for s in score["slices"]} == {"h0", "h1"}
    assert sum(s["n"] for s in score["slices"]) == score["n"] > 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--strategy", "full,adapters"], "--strategy 'full,adapters': expected different ones of full, ffn"),
        (["--strategy", "full,full"], "expected different ones"),
        (["--val-share", "1.5"], "--val-share 1.5: expected a share"),
        (["--keep-layers", "a"], "--keep-layers 'a': expected numbers"),
        (["--label", "lable"], "no column 'lable'"),
        (["--task", "token-classification"], "tokens"),
        (["--teacher", "nowhere"], "teacher nowhere: no such folder"),
        (["--early-stopping", "2"], "early_stopping needs val rows"),
        (["--epochs", "-1"], "epochs"),
    ],
)
def test_what_is_typed_wrong_is_said_in_one_line(
    minilm: Path, rows: Path, tmp_path: Path, monkeypatch, capsys, more, message
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["tune", str(minilm), "--out", "m", "--data", str(rows), *more]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("edgewise: error:")]
    assert len(errors) == 1
    assert message in errors[0]
    assert list(tmp_path.iterdir()) == []
