"""Every family and strategy trains on its own task, changes only what it should, and measures what it saved."""

from __future__ import annotations

import math
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image

from edgewise.data import Row
from edgewise.errors import CheckpointError, DataError, PlanError
from edgewise.exporter import export
from edgewise.plan import TuneSpec
from edgewise.trainer import evaluate_checkpoint, tune
from edgewise.trainer.models import Goal, load_model, load_tuned
from edgewise.trainer.strategies import prepare
from edgewise.types import ProblemType, Task

EXAMPLES = Path(__file__).parents[2] / "examples" / "models"
GOOD = ("good", "fine", "great", "nice", "warm", "witty")
BAD = ("bad", "dull", "poor", "weak", "cold", "slow")
STRATEGIES = ("full", "ffn", "prompt", "lora")


def sentences() -> list[Row]:
    return [Row(f"a {w} film, number {i}", label="p" if w in GOOD else "n") for i in range(4) for w in GOOD + BAD]


def image(label: str, seed: int) -> Row:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 90, (28, 28), np.uint8)
    pixels[: 14 if label == "top" else 28, :] += np.uint8(0 if label == "bottom" else 150)
    pixels[14:, :] += np.uint8(0 if label == "top" else 150 if label == "bottom" else 0)
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return Row(image=file.getvalue(), label=label)


@dataclass(frozen=True)
class Case:
    source: str
    task: Task
    rows: tuple[Row, ...]
    labels: tuple[str, ...] = ()
    problem_type: ProblemType = "single_label_classification"
    keep: tuple[int, ...] | None = None

    @property
    def goal(self) -> Goal:
        return Goal(self.task, self.labels, self.problem_type)


def cases() -> dict[str, Case]:
    plain = sentences()
    numbers = [Row(r.text, number=1.0 if r.label == "p" else -1.0) for r in plain]
    several = [Row(r.text, labels=("p",) if r.label == "p" else ("n", "x")) for r in plain]
    pairs = [Row(r.text, text_pair="so it is", label=r.label) for r in plain]
    words = [
        Row(r.text, tokens=tuple(r.text.split()), tags=tuple("B-W" if w in GOOD + BAD else "O" for w in r.text.split()))
        for r in plain
    ]
    spelled = [Row(w, target=" ".join("AH" if c in "aeiouy" else "T" for c in w)) for w in (*GOOD, *BAD)]
    text = [Row(f"In the beginning, number {i}, there was light, and it was good.") for i in range(60)]
    images = [image(label, i) for i in range(8) for label in ("top", "bottom")]
    bert, two = "bert", ("n", "p")
    return {
        "bert single": Case(bert, "text-classification", tuple(plain), two, keep=(0,)),
        "bert pair": Case(bert, "text-classification", tuple(pairs), two, keep=(0,)),
        "bert several": Case(
            bert, "text-classification", tuple(several), ("n", "p", "x"), "multi_label_classification", (0,)
        ),
        "bert number": Case(bert, "text-classification", tuple(numbers), (), "regression", (0,)),
        "bert tokens": Case(bert, "token-classification", tuple(words), ("O", "B-W"), keep=(0,)),
        "gpt text": Case("bible-gpt", "text-generation", tuple(text)),
        "gpt single": Case("bible-gpt", "text-classification", tuple(plain), two),
        "t5 text": Case("phoneme-t5", "text2text-generation", tuple(spelled)),
        "vit image": Case("fashion-vit", "image-classification", tuple(images), ("bottom", "top")),
    }


CASES = cases()
CELLS = [(name, strategy) for name in CASES for strategy in STRATEGIES]
FAST = TuneSpec(epochs=1, batch_size=16, max_length=16, prompt_tokens=3, lora_rank=2, learning_rate=1e-2)


def source(case: Case, minilm: Path) -> Path:
    return minilm if case.source == "bert" else EXAMPLES / case.source


def spec(case: Case, strategy: str, **changes: object) -> TuneSpec:
    return msgspec.structs.replace(FAST, strategy=strategy, keep_layers=case.keep, **changes)


# Heads of the same encoder differ in their loss, not in what a strategy trains: one head has each in `make test`.
SLOW = (
    ("t5 text", "prompt"),
    ("t5 text", "lora"),
    *(
        (name, strategy)
        for name in ("bert pair", "bert several", "bert number")
        for strategy in ("ffn", "prompt", "lora")
    ),
)


@pytest.mark.parametrize(
    ("name", "strategy"), [pytest.param(*c, marks=pytest.mark.slow) if tuple(c) in SLOW else c for c in CELLS]
)
def test_a_cell_trains_measures_what_it_saved_and_exports(
    minilm: Path, tmp_path: Path, name: str, strategy: str
) -> None:
    case = CASES[name]
    done = tune(
        source(case, minilm), case.rows, case.labels, spec(case, strategy), out=tmp_path / "m",
        task=case.task, problem_type=case.problem_type, val=case.rows,
    )  # fmt: skip
    assert 0 < done.trainable_parameters <= done.parameters + 10_000
    assert (done.trainable_parameters < 0.5 * done.parameters) == (strategy != "full") or "gpt" in name or "t5" in name
    again = evaluate_checkpoint(
        done.path, case.rows, case.labels, task=case.task, problem_type=case.problem_type, max_length=16
    )
    assert {n: s.value for n, s in again.items() if s.value is not None} == pytest.approx(dict(done.metrics), rel=1e-3)
    assert not list(done.path.glob("adapter*"))  # nothing of PEFT is left
    assert (done.path / "prompt.safetensors").exists() == (strategy == "prompt")
    assert [p.name for p in tmp_path.iterdir()] == ["m"]
    (made,) = export(done.path, ["fp32"], out=tmp_path / "bundles", task=case.task, calibration=case.rows[:6])
    assert made.bundle is not None, made.reason
    proof = made.bundle.manifest.parity
    assert proof["against"] == "pytorch"
    assert proof["largest_absolute_difference"] < 1e-3
    assert proof["agreement"] == 1.0
    assert proof["batch_dependence"] < 1e-3  # a padded batch answers as each alone
    assert all(found.get("ok", True) for found in made.bundle.manifest.loads_in.values())
    if case.task in ("text-generation", "text2text-generation"):
        assert proof["greedy"]["equal"] == proof["greedy"]["sequences"]


@pytest.mark.parametrize("name", ["bert single", "gpt text", "t5 text", "vit image"])
@pytest.mark.parametrize("strategy", ["ffn", "prompt", "lora"])
def test_a_strategy_changes_only_its_own_weights(minilm: Path, name: str, strategy: str) -> None:
    case = CASES[name]
    model, processor = load_model(source(case, minilm), case.goal)
    before = {n for n, _ in model.named_parameters()}
    model = prepare(model, processor, spec(case, strategy), case.goal)
    trained = {n.removeprefix("base_model.model.") for n, p in model.named_parameters() if p.requires_grad}
    inner = {n for n in trained if not ("classifier" in n or "pooler" in n)}
    assert inner
    if strategy == "ffn":
        assert inner < before
        assert all("attention" not in n.lower() and "embed" not in n.lower() for n in inner)
    elif strategy == "lora":
        assert all("lora_" in n for n in inner)
    else:
        assert len(inner - before) == len(inner) == 1


def test_a_prompt_tuned_model_is_no_start_of_another_training(minilm: Path, tmp_path: Path) -> None:
    case = CASES["bert single"]
    first = tune(minilm, case.rows, case.labels, spec(case, "prompt"), out=tmp_path / "m").path
    with pytest.raises(CheckpointError, match=r"was prompt-tuned: .* lose its 3 virtual tokens"):
        tune(first, case.rows, case.labels, FAST, out=tmp_path / "again")
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_tuning_teaches_the_task(minilm: Path, tmp_path: Path) -> None:
    case = CASES["bert tokens"]
    done = tune(
        minilm, case.rows, case.labels, spec(case, "full", epochs=6, learning_rate=1e-3), out=tmp_path / "m",
        task=case.task, val=case.rows,
    )  # fmt: skip
    assert done.metrics["f1"] > 0.9


def test_perplexity_is_that_of_the_models_own_probabilities(tmp_path: Path) -> None:
    """A text of one window: exp of the cross entropy that transformers computes itself."""
    case = CASES["gpt text"]
    done = tune(EXAMPLES / "bible-gpt", case.rows, (), spec(case, "full"), out=tmp_path / "m", task=case.task)
    rows = (Row("And the light was good."),)
    found = evaluate_checkpoint(done.path, rows, task="text-generation", max_length=64)["perplexity"].value
    model, tokenizer = load_tuned(done.path, case.goal)
    ids = torch.tensor([[*tokenizer(rows[0].text)["input_ids"], tokenizer.eos_token_id]])
    with torch.inference_mode():
        loss = float(model.eval()(ids, labels=ids).loss)
    assert found == pytest.approx(math.exp(loss), rel=1e-5)


def test_long_text_is_scored_once_a_token_whatever_the_batch(tmp_path: Path) -> None:
    case = CASES["gpt text"]
    done = tune(EXAMPLES / "bible-gpt", case.rows, (), spec(case, "full"), out=tmp_path / "m", task=case.task)

    def value(batch: int) -> float | None:
        return evaluate_checkpoint(
            done.path, case.rows, task="text-generation", max_length=32, batch_size=batch
        )["perplexity"].value  # fmt: skip

    assert value(1) == pytest.approx(value(7), rel=1e-5)


@pytest.mark.parametrize(
    ("name", "broken", "kind", "message"),
    [
        ("bert tokens", Row("a b", tokens=("a", "b"), tags=("O",)), DataError, "2 words and 1 tags"),
        ("bert tokens", Row("a", tokens=("a",), tags=("B-Z",)), DataError, "tags .*B-Z.* not among"),
        ("bert number", Row("a"), DataError, "no number"),
        ("bert several", Row("a", labels=("zz",)), DataError, "zz.* not among"),
        ("t5 text", Row("a"), DataError, "no target text"),
        ("vit image", Row(label="top"), DataError, "no image"),
    ],
)
def test_rows_that_do_not_fit_the_task(minilm, tmp_path, name, broken, kind, message) -> None:
    case = CASES[name]
    with pytest.raises(kind, match=message):
        tune(
            source(case, minilm), (*case.rows, broken), case.labels, spec(case, "full"), out=tmp_path / "m",
            task=case.task, problem_type=case.problem_type,
        )  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_options_that_do_not_fit_are_said_before_training(minilm: Path, tmp_path: Path) -> None:
    def wrong(name: str, match: str, kind: type[Exception] = PlanError, strategy: str = "full", **options) -> None:
        case, teacher = CASES[name], options.pop("teacher", None)
        with pytest.raises(kind, match=match):
            tune(
                source(case, minilm), case.rows, case.labels, spec(case, strategy, **options), out=tmp_path / "m",
                task=case.task, problem_type=case.problem_type, teacher=teacher,
            )  # fmt: skip
        assert list(tmp_path.iterdir()) == []

    wrong("bert single", "max_length is 600, but the model has 512 positions", max_length=600)
    wrong("bert single", "virtual tokens are more than the 512 positions", strategy="prompt", max_length=510)
    wrong("bert single", "early_stopping needs val rows", early_stopping=1)
    wrong("bert single", "class_weights names .*zz", class_weights={"zz": 2.0})
    wrong("bert number", "class_weights need classes", class_weights="balanced")
    wrong("bert single", "unknown metric 'acuracy' .*did you mean 'accuracy'", metric="acuracy")
    wrong("bert tokens", "unknown metric 'bleu' for token-classification", metric="bleu")
    wrong("bert single", "no such file", DataError, metric="nowhere.py:own")
    wrong("bert single", "no such folder", CheckpointError, teacher=tmp_path / "nowhere")


def test_unknown_script_is_a_warning_with_its_share(tmp_path: Path) -> None:
    rows = [Row("电影很好" if i % 2 else "hello", target="AH") for i in range(16)]
    case = CASES["t5 text"]
    done = tune(EXAMPLES / "phoneme-t5", rows, (), spec(case, "full"), out=tmp_path / "m", task=case.task)
    assert len(done.warnings) == 1
    assert "of the tokens of the training text are unknown to the tokenizer" in done.warnings[0]
    known = tune(EXAMPLES / "phoneme-t5", case.rows, (), spec(case, "full"), out=tmp_path / "k", task=case.task)
    assert known.warnings == ()


def test_positions_that_are_not_trained_are_a_warning(tmp_path: Path) -> None:
    case = CASES["gpt text"]
    first = tune(EXAMPLES / "bible-gpt", case.rows, (), spec(case, "full"), out=tmp_path / "m", task=case.task)
    assert len(first.warnings) == 1
    assert "of the 256 positions of the config 16 are trained" in first.warnings[0]
    assert "`max_length: [16]`" in first.warnings[0]
    again = tune(first.path, case.rows, (), spec(case, "full"), out=tmp_path / "again", task=case.task)
    assert again.warnings == ()  # its weights may know the rest


@pytest.mark.parametrize("mode", ["L", "RGBA", "1x1"])
def test_images_of_every_mode_train(tmp_path: Path, mode: str) -> None:
    file = BytesIO()
    Image.new("RGB" if mode == "1x1" else mode, (1, 1) if mode == "1x1" else (40, 30), 255).save(file, "PNG")
    case = CASES["vit image"]
    rows = (*case.rows, Row(image=file.getvalue(), label="top"))
    done = tune(EXAMPLES / "fashion-vit", rows, case.labels, spec(case, "full"), out=tmp_path / "m", task=case.task)
    assert done.rows == len(rows)


@pytest.mark.parametrize(("name", "strategy"), [("gpt single", "prompt"), ("t5 text", "ffn"), ("vit image", "lora")])
def test_int8_of_a_tuned_model_decides_as_pytorch(minilm: Path, tmp_path: Path, name: str, strategy: str) -> None:
    case = CASES[name]
    done = tune(
        source(case, minilm), case.rows, case.labels, spec(case, strategy), out=tmp_path / "m",
        task=case.task, problem_type=case.problem_type,
    )  # fmt: skip
    (made,) = export(done.path, ["int8-dynamic"], out=tmp_path / "b", task=case.task, calibration=case.rows)
    assert made.bundle is not None, made.reason
    assert made.bundle.manifest.parity["agreement"] > 0.9
