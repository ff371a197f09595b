"""Guarded quantization in every task with right answers: small trained models, with a channel that int8 cannot hold."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers as hf
from filelock import FileLock

from edgewise.assets import asset_path, cache_folder
from edgewise.data import Row
from edgewise.errors import DataError, ParityError
from edgewise.exporter.base import Base, make_base
from edgewise.exporter.checkpoint import read_checkpoint
from edgewise.exporter.forms import Made, make_graphs, why_not
from edgewise.exporter.guard_rows import MEASURES, guard_judge, measure_of
from edgewise.exporter.guarded import make_guarded
from edgewise.exporter.outcomes import Example
from edgewise.exporter.proof import Validation
from edgewise.exporter.quantize import resolve_recipe
from edgewise.plan import TuneSpec
from edgewise.trainer import tune
from edgewise.types import AUTO_CLASSES, Recipe, Task

MODELS = Path(__file__).parents[2] / "examples" / "models"
LOUD = 3e4
"""One channel of the attention's context is made so large, and the next product makes it small again."""
INT8 = resolve_recipe(Recipe(precision="int8-dynamic"))


@dataclass(frozen=True)
class Given:
    """A trained model and its rows: the first 300 trained it, and the others did not."""

    task: Task
    source: Callable[[Path], Path]
    rows: Callable[[], list[Row]]
    spec: TuneSpec
    limit: float
    """Points."""
    regression: bool = False


def _films(number: bool = False) -> list[Row]:
    lines = asset_path("movie-reviews").read_text(encoding="utf-8").splitlines()
    cells = [line.split("\t") for line in lines[:4000]]
    return [Row(t, number=float(s)) if number else Row(t, label=str(float(s) > 0)) for _, s, t in cells]


def _addresses() -> list[Row]:
    lines = [json.loads(line) for line in asset_path("addresses").read_text(encoding="utf-8").splitlines()]
    return [Row(" ".join(x["tokens"]), tokens=tuple(x["tokens"]), tags=tuple(x["tags"])) for x in lines]


def _sentences() -> list[Row]:
    lines = asset_path("brown").read_text(encoding="utf-8").splitlines()
    return [Row(line) for line in lines[:6000:2]]


def _words() -> list[Row]:
    lines = asset_path("phonemes").read_text(encoding="utf-8").splitlines()
    cells = [line.split("\t") for line in islice(lines, 1, None, 20)]
    return [Row(c[0], target=c[1]) for c in cells]


def _clothes() -> list[Row]:
    from pyarrow import parquet

    table = parquet.read_table(asset_path("fashion-mnist")).slice(0, 3400).to_pylist()
    return [Row(image=r["image"], label=str(r["label"])) for r in table]


def _minilm(_: Path) -> Path:
    return asset_path("all-minilm-l6-v2")


def _small(name: str, **changes: Any) -> Callable[[Path], Path]:
    """A config of the examples, smaller, without weights."""

    def make(out: Path) -> Path:
        shutil.copytree(MODELS / name, out, dirs_exist_ok=True)
        config = json.loads((out / "config.json").read_text())
        (out / "config.json").write_text(json.dumps({**config, **changes}))
        return out

    return make


_FAST = {"epochs": 1, "batch_size": 16, "max_length": 48}
GIVEN = {
    "tags": Given(
        "token-classification", _minilm, _addresses,
        TuneSpec(**{**_FAST, "epochs": 3}, learning_rate=3e-4, keep_layers=(0, 5)), 1.0,
    ),
    "number": Given(
        "text-classification", _minilm, lambda: _films(number=True),
        TuneSpec(**{**_FAST, "epochs": 3}, learning_rate=5e-4, keep_layers=(0, 5)), 1.0, regression=True,
    ),
    "writes": Given(
        "text-generation", _small("bible-gpt", n_embd=64, n_layer=2, n_head=2, n_positions=64), _sentences,
        TuneSpec(**{**_FAST, "epochs": 4}, learning_rate=3e-3), 0.5,
    ),
    "sounds": Given(
        "text2text-generation", _small("phoneme-t5", d_model=64, d_ff=128, d_kv=32, num_heads=2, num_layers=2,
                                       num_decoder_layers=2), _words,
        TuneSpec(epochs=3, batch_size=32, learning_rate=3e-3, max_length=32), 1.0,
    ),
    "clothes": Given(
        "image-classification", _small("fashion-vit", hidden_size=64, num_hidden_layers=2, intermediate_size=128),
        _clothes, TuneSpec(epochs=2, batch_size=32, learning_rate=1e-3), 1.0,
    ),
}  # fmt: skip
VAL, CONFIRM = 200, 100


def _make_loud(model: Any) -> None:
    """What the model answers stays the same; in 8 bits the loud channel drowns the others."""
    import torch

    with torch.no_grad():
        for name, module in model.named_modules():
            if name.endswith(("attention", "attention.attention", "SelfAttention", "attn")):
                if hasattr(module, "c_attn"):  # GPT-2: one product for query, key and value, weights [in, out]
                    value = 2 * module.c_proj.weight.shape[0] + 7
                    module.c_attn.weight[:, value] *= LOUD
                    module.c_attn.bias[value] *= LOUD
                    module.c_proj.weight[7] /= LOUD
                elif hasattr(module, "o"):  # T5
                    module.v.weight[7] *= LOUD
                    module.o.weight[:, 7] /= LOUD
                elif hasattr(module, "output") and hasattr(module.output, "dense"):  # BERT, ViT
                    inner = module.self if hasattr(module, "self") else module.attention
                    inner.value.weight[7] *= LOUD
                    inner.value.bias[7] *= LOUD
                    module.output.dense.weight[:, 7] /= LOUD


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Validation]]:
    """The fp32 graphs of a loud model with its val and confirm rows, made once."""
    found: dict[str, Validation] = {}

    def make(name: str) -> Validation:
        if name not in found:
            given, work = GIVEN[name], tmp_path_factory.mktemp(name)
            rows = given.rows()
            held, train = rows[: VAL + CONFIRM], rows[VAL + CONFIRM :][:2500]
            known = {tag for r in train for tag in r.tags or ()}
            held = [r for r in held if known.issuperset(r.tags or ())]
            labels = sorted({r.label for r in train if r.label is not None} | known)
            kept = cache_folder() / "tests" / f"guard-{name}"
            kept.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(kept.with_name(f"guard-{name}.lock")):
                tuned = tune(
                    given.source(work / "source"), train, labels, given.spec, out=kept,
                    task=given.task, problem_type="regression" if given.regression else "single_label_classification",
                    source_digest=f"{name} of the guard's tests",
                ).path  # fmt: skip
            folder = Path(shutil.copytree(tuned, work / "loud"))
            model = getattr(hf, AUTO_CLASSES[given.task]).from_pretrained(tuned)
            _make_loud(model)
            model.save_pretrained(folder)
            base = make_base(read_checkpoint(folder), given.task, train[:16], work, None)
            problem = read_checkpoint(folder).problem_type
            found[name] = Validation(base, problem, tuple(held[:VAL]), tuple(held[VAL:]))
        return found[name]

    yield make


def _guarded(validation: Validation, limit: float, work: Path, recipe: Recipe = INT8) -> Made:
    said: list[str] = []
    return make_guarded(replace(recipe, max_drop=limit), work, validation.rows, validation, said.append)


def _scores(base: Base, folder: Path, rows: Sequence[Row]) -> np.ndarray:
    """Right answers as Transformers' own preprocessing and Optimum's sessions give them: a share a row."""
    import optimum.onnxruntime as peers
    import torch

    name = {
        "token-classification": "ORTModelForTokenClassification",
        "text-classification": "ORTModelForSequenceClassification",
        "text-generation": "ORTModelForCausalLM", "text2text-generation": "ORTModelForSeq2SeqLM",
        "image-classification": "ORTModelForImageClassification",
    }[base.task]  # fmt: skip
    for file in base.source.path.glob("*.json"):
        if not (folder / file.name).exists():
            shutil.copyfile(file, folder / file.name)
    peer, read, found = getattr(peers, name).from_pretrained(folder), base.preprocessor, []
    labels = {v: k for k, v in enumerate(base.source.labels)}
    for row in rows:
        if base.task == "token-classification":
            given = read([list(row.tokens or ())], is_split_into_words=True, return_tensors="pt")
            best = peer(**given).logits[0].argmax(-1).tolist()
            first = {w: i for i, w in reversed(list(enumerate(given.word_ids(0)))) if w is not None}
            found.append(np.mean([best[i] == labels[(row.tags or ())[w]] for w, i in first.items()]))
        elif base.task == "text-generation":
            ids = read(row.text, truncation=True, max_length=base.max_length, return_tensors="pt")
            best = peer(**ids).logits[0].argmax(-1)
            if ids["input_ids"].shape[1] > 1:
                found.append(float((best[:-1] == ids["input_ids"][0, 1:]).float().mean()))
        elif base.task == "text2text-generation":
            ids, target = read(row.text, return_tensors="pt"), read(text_target=row.target, return_tensors="pt")
            wanted = target["input_ids"][0]
            start = torch.tensor([[0, *wanted[:-1].tolist()]])
            best = peer(**ids, decoder_input_ids=start).logits[0].argmax(-1)
            found.append(float((best == wanted).float().mean()))
        elif base.task == "image-classification":
            from edgewise.images import open_rgb

            pixels = read([open_rgb(row.image)], return_tensors="pt")["pixel_values"]  # type: ignore[arg-type]
            found.append(float(int(peer(pixel_values=pixels).logits[0].argmax()) == labels[str(row.label)]))
        else:
            ids = read(row.text, truncation=True, return_tensors="pt")
            found.append(float(peer(**ids).logits[0, 0]))
    return np.array(found)


SLOW = ("number", "sounds", "tags", "writes")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in GIVEN])
def test_finds_what_int8_cannot_hold(bases: Callable[[str], Validation], name: str, tmp_path: Path) -> None:
    given, validation = GIVEN[name], bases(name)
    base, rows = validation.base, validation.rows
    made = _guarded(validation, given.limit, tmp_path)
    told = made.notes["guard"]
    print(name, told)
    assert told["measure"] == measure_of(given.task, validation.problem_type)
    assert told["drop"] <= given.limit
    assert told["kept_in_fp32"]
    assert told["share_int8"] > 0.5
    assert told["rows"] == len(validation.chosen)
    assert "within" in told["confirmed"].lower()
    assert made.recipe.keep == tuple(told["kept_in_fp32"])
    # measured again, by other means
    (tmp_path / "alone").mkdir()
    alone = make_graphs(INT8, base, tmp_path / "alone", rows, print).folder
    fp32, int8, all_int8 = (_scores(base, folder, rows) for folder in (base.folder, made.folder, alone))
    if given.regression:
        numbers = np.array([r.number for r in rows], dtype=np.float64)
        fp32, int8, all_int8 = (1 - (x - numbers) ** 2 / numbers.var() for x in (fp32, int8, all_int8))
    print(name, fp32.mean(), int8.mean(), all_int8.mean())
    assert fp32.mean() > 0.1, "a model that knows something"
    assert 100 * (fp32.mean() - all_int8.mean()) > given.limit, "int8 alone must fail, or there is nothing to find"
    assert 100 * (fp32.mean() - int8.mean()) == pytest.approx(told["drop"], abs=0.02)
    # and the recipe that comes back makes these graphs without a search
    place = tmp_path / "again"
    place.mkdir()
    again = make_graphs(replace(made.recipe, max_drop=None), base, place, rows, print)
    assert np.array_equal(_scores(base, again.folder, rows[:40]), _scores(base, made.folder, rows[:40]))


@pytest.mark.slow
def test_masked_tokens_of_real_weights(tmp_path: Path) -> None:
    """RXNMapper's ALBERT as it comes: its layers share their weights, so that they are int8 together or not at all."""
    salts = ("Cl", "Br", "I", "F")
    chains = ("CC", "CCC", "CC(C)", "CCCC", "c1ccccc1C", "OCC", "NCC", "CC(=O)CC")
    rows = [Row(f"{a}{x}.{b}O>>{a}O{b}") for a in chains for b in chains for x in salts]
    base = make_base(read_checkpoint(asset_path("rxn-albert")), "fill-mask", rows[:8], tmp_path, None)
    validation = Validation(base, None, tuple(rows[:120]))
    (tmp_path / "loose").mkdir()
    told = _guarded(validation, 100, tmp_path / "loose").notes["guard"]
    print(told)
    assert told["evaluations"] == 2
    assert told["fp32"] > 50 if "fp32" in told else True
    assert told["measure"] == "share of masked tokens right"
    drop = told["drop"]
    if drop > 0:
        (tmp_path / "tight").mkdir()
        try:
            tight = _guarded(validation, drop / 2, tmp_path / "tight").notes["guard"]
        except ParityError as error:
            assert "Not within" in str(error)
        else:
            assert tight["drop"] <= drop / 2


@pytest.mark.parametrize("task", MEASURES)
def test_each_task_with_right_answers_takes_a_limit(task: Task) -> None:
    family = {"text2text-generation": "t5", "text-generation": "gpt2", "image-classification": "vit"}.get(task, "bert")
    assert not why_not(replace(INT8, max_drop=0.5), task, family)


def test_tasks_without_right_answers_are_refused() -> None:
    assert "which feature-extraction has not" in why_not(replace(INT8, max_drop=0.5), "feature-extraction", "bert")
    for task in ("feature-extraction", "image-feature-extraction"):
        with pytest.raises(DataError, match=f"{task} has none"):
            guard_judge(task, None, [])
    alike = [Example({}, 2.0), Example({}, 2.0)]
    with pytest.raises(DataError, match="the 2 numbers of val do not vary"):
        guard_judge("text-classification", "regression", alike)


def test_judges_score_and_tell_by_how_much_answers_are_right() -> None:
    def same(found: tuple[float, np.ndarray], score: float, leads: list[float]) -> bool:
        return found[0] == score and found[1].tolist() == leads

    one = guard_judge("text-classification", None, [])
    assert same(one(np.array([0.5, 2.0, 1.25]), 1), 1.0, [0.75])
    assert same(one(np.array([0.5, 2.0, 1.25]), 0), 0.0, [-1.5])
    score, leads = one(np.array([0.5, 2.0]), None)
    assert np.isnan(score)
    assert not len(leads)
    several = guard_judge("text-classification", "multi_label_classification", [])
    assert same(several(np.array([0.5, -2.0, -0.25, 3.0]), np.array([1, 0, 1, 0])), 0.5, [0.5, 2.0, -0.25, -3.0])
    number = guard_judge("text-classification", "regression", [Example({}, 1.0), Example({}, 3.0), Example({}, None)])
    assert number(np.array([2.5]), 3.0)[0] == pytest.approx(0.75)
    words = guard_judge("text-generation", None, [])
    logits = np.array([[3.0, 1.0], [0.0, 0.5], [9.0, 1.0]])
    assert same(words(logits, np.array([0, 0, -100])), 0.5, [2.0, -0.5])
