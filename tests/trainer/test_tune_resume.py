"""A training that is broken off in any strategy or family goes on as if it had not been; precision is chosen right."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from edgewise.data import Row
from edgewise.plan import TuneSpec
from edgewise.trainer import evaluate_checkpoint, tune, watch
from edgewise.types import Task

MODELS = Path(__file__).parents[2] / "examples" / "models"
TEXTS = tuple(Row(f"a {w} film, number {i}", label="p" if w in "good fine" else "n", target=f"{w} {i}")
              for i in range(8) for w in ("good", "fine", "bad", "dull"))  # fmt: skip
SPEC: dict[str, Any] = {"epochs": 2, "batch_size": 8, "max_length": 16, "learning_rate": 1e-3, "prompt_tokens": 3}
CASES: dict[str, tuple[str, Task, tuple[str, ...]]] = {
    "classes": ("bible-gpt", "text-classification", ("n", "p")),
    "text": ("bible-gpt", "text-generation", ()),
    "to text": ("phoneme-t5", "text2text-generation", ()),
}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}


@pytest.mark.parametrize(
    ("case", "strategy"),
    [("classes", "ffn"), ("classes", "prompt"), ("classes", "lora"), ("text", "full"), ("to text", "prompt")],
)
def test_interrupted_and_started_again_ends_with_the_same_weights(tmp_path: Path, case: str, strategy: str) -> None:
    source, task, labels = CASES[case]
    spec = TuneSpec(strategy=strategy, early_stopping=2 if labels else None, **SPEC)  # type: ignore[arg-type]
    steps: list[int] = []

    def run(out: str, stop: int | None = None) -> Path:
        def told(step: int, total: int, what: str) -> None:
            steps.append(step)
            if step == stop:
                raise KeyboardInterrupt

        return tune(
            MODELS / source, TEXTS, labels, spec, out=tmp_path / out, task=task, val=TEXTS[:8],
            checkpoint_seconds=0, progress=told,
        ).path  # fmt: skip

    whole = run("whole")
    last = steps[-1]
    steps.clear()
    with pytest.raises(KeyboardInterrupt):
        run("again", stop=last // 2)
    assert not (tmp_path / "again").exists()
    assert list(tmp_path.glob(".again.*.training/checkpoint-*"))
    steps.clear()
    again = run("again")
    assert steps[0] > 1
    assert steps[-1] == last
    first, second = weights(whole), weights(again)
    assert first.keys() == second.keys()
    assert all(first[k].equal(second[k]) for k in first)
    assert not list(tmp_path.glob(".again*"))


def test_interrupted_before_the_first_checkpoint_leaves_nothing(tmp_path: Path) -> None:
    def told(step: int, total: int, what: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(MODELS / "bible-gpt", TEXTS, ("n", "p"), TuneSpec(**SPEC), out=tmp_path / "m", progress=told)
    assert list(tmp_path.iterdir()) == []


# ---- precision


def gpu(bf16: bool, emulated: bool = True) -> Any:
    def supported(including_emulation: bool = True) -> bool:
        return bf16 or (emulated and including_emulation)

    return SimpleNamespace(is_available=lambda: True, is_bf16_supported=supported)


def test_bf16_on_a_gpu_that_has_it_fp16_on_one_that_emulates_it_and_fp32_on_a_cpu() -> None:
    assert watch.precision(gpu(bf16=True)) == {"use_cpu": False, "bf16": True, "fp16": False}
    assert watch.precision(gpu(bf16=False)) == {"use_cpu": False, "bf16": False, "fp16": True}
    none = SimpleNamespace(is_available=lambda: False)
    assert watch.precision(none) == {"use_cpu": True, "bf16": False, "fp16": False}


@contextmanager
def computing_in_bf16() -> Iterator[None]:
    """On the CPU. accelerate keeps its precision for the whole process, so it is told to forget it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(watch, "precision", lambda: {"use_cpu": True, "bf16": True, "fp16": False})
        patch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")  # as TrainingArguments does, and here it is put back
        AcceleratorState._reset_state()
        yield
    AcceleratorState._reset_state()


@pytest.mark.parametrize("strategy", ["full", "lora", "prompt"])
def test_bf16_trains_and_saves_fp32(tmp_path: Path, strategy: str) -> None:
    """On the CPU, which computes bf16 too: the same path as on a GPU, early stopping and merging included."""
    spec = TuneSpec(strategy=strategy, early_stopping=2, **SPEC)  # type: ignore[arg-type]
    plain = tune(MODELS / "bible-gpt", TEXTS, ("n", "p"), spec, out=tmp_path / "fp32", val=TEXTS[:8])
    with computing_in_bf16():
        half = tune(MODELS / "bible-gpt", TEXTS, ("n", "p"), spec, out=tmp_path / "bf16", val=TEXTS[:8])
    again = tune(MODELS / "bible-gpt", TEXTS, ("n", "p"), spec, out=tmp_path / "again", val=TEXTS[:8])
    assert again.train_loss == plain.train_loss
    assert (plain.precision, half.precision) == ("fp32", "bf16")
    one, other = weights(plain.path), weights(half.path)
    assert {v.dtype for v in other.values()} == {torch.float32}
    assert any(not one[k].equal(other[k]) for k in one)  # it did compute otherwise
    assert half.train_loss == pytest.approx(plain.train_loss, abs=0.05)
    found = evaluate_checkpoint(half.path, TEXTS[:8], ("n", "p"), max_length=16)
    assert found["accuracy"].value == pytest.approx(half.metrics["accuracy"], abs=0.13)  # one row of 8 may turn


def test_bf16_of_the_other_families(tmp_path: Path) -> None:
    from edgewise.trainer import PretrainSpec, pretrain
    from edgewise.trainer.corpus import clean

    spec = TuneSpec(**{**SPEC, "epochs": 1})
    corpus = clean(f"{row.text}. It went on for {i} days." for i, row in enumerate(TEXTS))
    with computing_in_bf16():
        for case in ("text", "to text"):
            source, task, labels = CASES[case]
            done = tune(MODELS / source, TEXTS, labels, spec, out=tmp_path / case, task=task, val=TEXTS[:8])
            assert done.precision == "bf16"
            assert done.metrics
        options = PretrainSpec("mlm", steps=2, block_length=16, vocab_size=400, val_share=0.2)
        made = pretrain(corpus, options, out=tmp_path / "p")
    assert made.val_loss is not None
    assert {v.dtype for v in weights(made.path).values()} == {torch.float32}
