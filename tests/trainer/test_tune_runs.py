"""A training that is killed goes on as if it had not been; the best epoch is kept; a teacher's answers are learned."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import load_file

from edgewise.data import Row
from edgewise.errors import CheckpointError, TrainingError
from edgewise.plan import TuneSpec
from edgewise.trainer import evaluate_checkpoint, tune
from edgewise.trainer.encode import IGNORED
from edgewise.trainer.losses import class_weights, distillation_loss, weighted_loss
from edgewise.trainer.models import Goal

SMALL = TuneSpec(epochs=3, batch_size=8, max_length=24, keep_layers=(0,), learning_rate=3e-4, early_stopping=3)

SOURCE = Path(__file__).parents[2] / "examples" / "models" / "bible-gpt"
"""A config alone: small, so that a checkpoint a step is soon written."""

CHILD = """
import sys
from pathlib import Path
from edgewise.data import Row
from edgewise.plan import TuneSpec
from edgewise.trainer import tune
import msgspec, json
spec = msgspec.json.decode(sys.argv[1], type=TuneSpec)
rows = [json.loads(line) for line in Path(sys.argv[2]).read_text().splitlines()]
rows = [Row(**r) for r in rows]
def told(done, total, what):
    print(done, flush=True)
tune(sys.argv[3], rows[:64], ("negative", "positive"), spec, out=sys.argv[4], val=rows[64:], checkpoint_seconds=0,
     progress=told)
"""


@pytest.fixture(scope="module")
def rows(review_splits) -> tuple[Row, ...]:
    return review_splits.train[:96]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.slow
def test_killed_and_started_again_ends_with_the_same_weights(rows, tmp_path) -> None:
    """By a signal that no process can catch; test_tune_resume.py has the other strategies and families."""
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps({"text": r.text, "label": r.label}) for r in rows), encoding="utf-8")

    def child(out: str) -> subprocess.Popen[str]:
        code = [sys.executable, "-c", CHILD, msgspec.json.encode(SMALL).decode(), str(file), str(SOURCE)]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}  # sums in the same order, whatever else runs
        return subprocess.Popen([*code, str(tmp_path / out)], stdout=subprocess.PIPE, text=True, env=env)

    whole = child("whole")
    assert whole.wait() == 0
    killed = child("again")
    assert killed.stdout is not None
    for line in killed.stdout:
        if int(line) >= 13:  # in the second of three epochs
            killed.send_signal(signal.SIGKILL)
            break
    killed.wait()
    left = list(tmp_path.glob(".again.*.training/checkpoint-*"))
    assert left
    assert not (tmp_path / "again").exists()
    again = child("again")
    assert again.stdout is not None
    steps = [int(line) for line in again.stdout]
    assert again.wait() == 0
    assert steps[0] > 1  # it did not start anew
    first, second = weights(tmp_path / "whole"), weights(tmp_path / "again")
    assert all(first[k].equal(second[k]) for k in first)
    records = [json.loads((tmp_path / n / "tune.json").read_text()) for n in ("whole", "again")]
    assert records[0]["metrics"] == records[1]["metrics"]
    assert records[0]["train_loss"] == pytest.approx(records[1]["train_loss"])
    assert not list(tmp_path.glob(".again*"))


def test_a_half_written_checkpoint_is_passed_over(minilm, rows, tmp_path) -> None:
    from edgewise.trainer.checkpoints import last_checkpoint

    whole = tmp_path / "checkpoint-4"
    whole.mkdir()
    (whole / "trainer_state.json").write_text('{"global_step": 2}')
    (whole / "losses.json").write_text("[0.5, 0.4]")
    broken = tmp_path / "checkpoint-8"
    broken.mkdir()
    (broken / "trainer_state.json").write_text('{"global_st')
    found = last_checkpoint(tmp_path)
    assert found is not None
    assert found.path == whole


def test_early_stopping_keeps_the_best_epoch(minilm, rows, review_splits, tmp_path) -> None:
    """A learning rate that breaks the model after the first epochs: the last epoch must not be what is saved."""
    spec = msgspec.structs.replace(SMALL, epochs=8, early_stopping=2, learning_rate=2e-3, warmup=0.0)
    done = tune(minilm, rows[:64], review_splits.labels, spec, out=tmp_path / "m", val=rows[64:])
    again = evaluate_checkpoint(done.path, rows[64:], review_splits.labels, max_length=24)
    assert again["accuracy"].value == pytest.approx(done.metrics["accuracy"])
    assert done.epochs <= 8
    assert done.steps == round(done.epochs * 8)


def test_early_stopping_stops(minilm, rows, review_splits, tmp_path) -> None:
    spec = msgspec.structs.replace(SMALL, epochs=10, early_stopping=1, learning_rate=1e-9)
    done = tune(minilm, rows[:32], review_splits.labels, spec, out=tmp_path / "m", val=rows[64:])
    assert done.epochs == 2  # nothing changes at that learning rate, so the second epoch is no better


def test_a_users_own_metric_decides(minilm, rows, review_splits, tmp_path) -> None:
    own = tmp_path / "own.py"
    own.write_text("def least(predictions, references):\n    return predictions.count('negative') / len(predictions)\n")
    spec = msgspec.structs.replace(SMALL, epochs=1, metric=f"{own}:least")
    done = tune(minilm, rows[:32], review_splits.labels, spec, out=tmp_path / "m", val=rows[64:])
    assert f"{own}:least" in done.metrics or "least" in " ".join(done.metrics)


def test_nan_says_the_step_at_which_it_came(minilm, rows, review_splits, tmp_path) -> None:
    spec = msgspec.structs.replace(SMALL, learning_rate=1e30, warmup=0.0)
    with pytest.raises(TrainingError, match=r"the loss is nan at step [1-9] with learning rate"):
        tune(minilm, rows[:64], review_splits.labels, spec, out=tmp_path / "m", val=rows[64:])


# ---- losses


def test_balanced_weights_are_rows_over_classes_times_rows_of_the_class() -> None:
    rows = [Row("a", label="x")] * 6 + [Row("b", label="y")] * 2
    found = class_weights("balanced", rows, Goal(labels=("x", "y")))
    assert found is not None
    assert found.tolist() == pytest.approx([8 / (2 * 6), 8 / (2 * 2)])


def test_weighted_loss_is_the_weighted_mean() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(5, 3), torch.tensor([0, 1, 2, IGNORED, 1])
    weight = torch.tensor([1.0, 2.0, 0.5])
    each = -torch.log_softmax(logits, -1)
    kept = [(i, int(y)) for i, y in enumerate(labels) if y != IGNORED]
    by_hand = sum(weight[y] * each[i, y] for i, y in kept) / sum(weight[y] for _, y in kept)
    assert weighted_loss(logits, labels, weight, Goal(labels=("a", "b", "c"))) == pytest.approx(float(by_hand))


def test_distillation_is_the_softened_divergence_of_the_positions_that_count() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 4, 5), torch.randn(2, 4, 5)
    labels = torch.tensor([[1, 2, IGNORED, IGNORED], [1, 2, 3, 4]])
    goal, t = Goal("text-generation"), 2.0
    p, q = torch.softmax(teacher / t, -1), torch.softmax(student / t, -1)
    each = (p * (p / q).log()).sum(-1)
    # position i predicts token i + 1, so position i counts where label i + 1 does
    counted = [each[b, i] for b in range(2) for i in range(3) if labels[b, i + 1] != IGNORED]
    assert len(counted) == 4
    expected = t * t * float(sum(counted) / len(counted))
    assert float(distillation_loss(student, teacher, labels, goal, t)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_a_student_learns_its_teachers_answers_and_not_the_labels(minilm, rows, review_splits, tuned, tmp_path) -> None:
    """The labels are turned round, and count nothing: what is learned can only come from the teacher."""
    from dataclasses import replace

    from edgewise.trainer.answers import answer
    from edgewise.trainer.models import load_tuned

    goal = Goal(labels=review_splits.labels)
    other = {"negative": "positive", "positive": "negative"}
    turned = [replace(r, label=other[str(r.label)]) for r in rows]
    spec = TuneSpec(epochs=6, batch_size=8, max_length=24, keep_layers=(0,), learning_rate=1e-3, teacher_weight=1.0)
    taught = tune(minilm, turned, goal.labels, spec, out=tmp_path / "t", teacher=tuned)
    alone = tune(minilm, turned, goal.labels, spec, out=tmp_path / "a")
    assert taught.key != alone.key

    def answers(folder: Path) -> list[str]:
        return list(answer(*load_tuned(folder, goal), rows, goal, max_length=24).predictions)

    right = answers(tuned)
    agree = [sum(a == b for a, b in zip(answers(d.path), right, strict=True)) / len(rows) for d in (alone, taught)]
    assert agree[0] < 0.5
    assert agree[1] > 0.8


def test_a_teacher_for_other_labels_or_words_is_refused(minilm, rows, review_splits, tuned, tmp_path) -> None:
    with pytest.raises(CheckpointError, match=r"has labels \['negative', 'positive'\], expected"):
        tune(minilm, [Row("a", label="x"), Row("b", label="y")], ("x", "y"), SMALL_ONE, out=tmp_path / "m",
             teacher=tuned)  # fmt: skip


SMALL_ONE = TuneSpec(epochs=1, batch_size=2, max_length=16, keep_layers=(0,))


def test_the_time_between_checkpoints_is_kept(minilm, rows, review_splits, tmp_path) -> None:
    """With an hour between them a short training writes none."""
    seen: list[int] = []

    def look(step: int, steps: int, what: str) -> None:
        seen.append(len(list(tmp_path.glob(".m.*.training/checkpoint-*"))))

    start = time.monotonic()
    tune(minilm, rows[:32], review_splits.labels, SMALL_ONE, out=tmp_path / "m", progress=look)
    assert time.monotonic() - start < 3600
    assert set(seen) == {0}
