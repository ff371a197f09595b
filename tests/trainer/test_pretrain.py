"""Pretraining: the loss against its formula, what is saved, what is refused, and a killed run that goes on."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgewise.data import Splits
from edgewise.errors import CheckpointError, DataError, PlanError, TrainingError
from edgewise.plan import TuneSpec
from edgewise.trainer import PretrainSpec, pretrain, tune
from edgewise.trainer.corpus import Corpus, clean, hold_out, read_corpus
from edgewise.trainer.draws import Drawn, Prepared, collate
from edgewise.trainer.objectives import prepare_images, prepare_text
from edgewise.trainer.pretrain_images import Images, hold_out_images, pixels, read_images
from edgewise.trainer.pretrain_spec import ModelSize
from edgewise.trainer.pretrain_start import Start, start

TINY = ModelSize(layers=1, hidden=32, heads=2, image_size=8, patch_size=2)
OBJECTIVES = ("mlm", "nsp", "clm", "span", "mim")


def spec_of(objective: str, **options: Any) -> PretrainSpec:
    made = {"steps": 4, "batch_size": 8, "block_length": 40, "vocab_size": 600, "size": TINY, "val_share": 0.1}
    return PretrainSpec(objective, **{**made, **options})


@pytest.fixture(scope="session")
def text() -> Corpus:
    """A hundred documents of five reviews each."""
    rows = read_corpus("asset:movie-reviews", columns=["id", "score", "text"], quoting=False).documents[:500]
    return clean(["\n".join(" ".join(row) for row in rows[i : i + 5]) for i in range(0, 500, 5)], "reviews")


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Images:
    from PIL import Image
    from sklearn.datasets import load_digits

    folder = tmp_path_factory.mktemp("digits")
    for i, image in enumerate(load_digits().images[:150]):
        Image.fromarray((image * 15.9).astype(np.uint8)).save(folder / f"{i:03}.png")
    return read_images(folder)


@pytest.fixture
def data(text: Corpus, digits: Images):
    return lambda objective: digits if objective == "mim" else text


def still(objective: str, folder: Path) -> Path:
    """A config without dropout, so that the trained model's numbers can be had again."""
    from transformers import AutoConfig

    from edgewise.trainer.pretrain_start import _sized

    off = ("hidden_dropout_prob", "attention_probs_dropout_prob", "resid_pdrop", "embd_pdrop", "attn_pdrop")
    config = _sized(spec_of(objective))
    for name in (*off, "dropout_rate"):
        if hasattr(config, name):
            setattr(config, name, 0.0)
    config.save_pretrained(folder)
    assert AutoConfig.from_pretrained(folder).model_type == config.model_type
    return folder / "config.json"


def begin(spec: PretrainSpec, data: Corpus | Images, **given: Any) -> tuple[Start, Prepared]:
    """What `pretrain` begins with: the model with the weights that the seed draws, and the examples."""
    from transformers import set_seed

    train, val = (hold_out if isinstance(data, Corpus) else hold_out_images)(data, spec.val_share)
    set_seed(spec.seed)
    where = {"source": None, "config": None, "tokenizer": None, **given}
    begun = start(spec, **where, documents=train if isinstance(data, Corpus) else ())
    if isinstance(data, Corpus):
        return begun, prepare_text(spec, begun.model, begun.processor, train, val)
    images = pixels(train, begun.processor), pixels(val, begun.processor)
    return begun, prepare_images(spec, begun.model.config, begun.processor, *images)


def loss_by_hand(objective: str, model: Any, batch: dict[str, torch.Tensor]) -> dict[str, float]:
    """The parts of the loss from the model's own probabilities, one position at a time."""
    model.eval()
    with torch.inference_mode():
        if objective == "mim":
            return {"patches": hidden_error(model(**batch).reconstruction, batch, model.config)}
        inputs = {k: v for k, v in batch.items() if k not in ("labels", "next_sentence_label")}
        if objective == "span":
            inputs["decoder_input_ids"] = shifted(batch["labels"])
        outputs = model(**inputs)
    logits = outputs.prediction_logits if objective == "nsp" else outputs.logits
    chances = logits.double().softmax(-1)
    ahead = 1 if objective == "clm" else 0
    found = [
        -np.log(float(chances[i, j - ahead, batch["labels"][i, j]]))
        for i, j in (batch["labels"] != -100).nonzero().tolist()
    ]
    name = {"clm": "next token", "span": "spans"}.get(objective, "masked tokens")
    parts = {name: float(np.mean(found))}
    if objective == "nsp":
        pairs = outputs.seq_relationship_logits.double().softmax(-1)
        labels = batch["next_sentence_label"].tolist()
        parts["pairs"] = float(np.mean([-np.log(float(pairs[i, label])) for i, label in enumerate(labels)]))
    return parts


def shifted(labels: torch.Tensor) -> torch.Tensor:
    """T5's decoder reads the pad token (0), then the target but for its last token."""
    ids = torch.where(labels == -100, 0, labels)
    return torch.cat([torch.zeros_like(ids[:, :1]), ids[:, :-1]], dim=1)


def hidden_error(made: torch.Tensor, batch: dict[str, torch.Tensor], config: Any) -> float:
    """Mean absolute error over hidden pixels and channels, patch by patch."""
    side, patch = config.image_size // config.patch_size, config.patch_size
    errors = []
    for i, number in batch["bool_masked_pos"].nonzero().tolist():
        y, x = (number // side) * patch, (number % side) * patch
        here = np.s_[i, :, y : y + patch, x : x + patch]
        errors.append((made[here] - batch["pixel_values"][here]).abs().mean())
    return float(torch.stack(errors).mean())


@pytest.mark.parametrize(
    ("objective", "pack"), [*((o, True) for o in OBJECTIVES), ("mlm", False), ("clm", False), ("span", False)]
)
def test_the_loss_that_the_trainer_reports_is_the_formula_s(data, tmp_path: Path, objective: str, pack: bool) -> None:
    spec = spec_of(objective, steps=1, pack=pack, block_length=40 if pack else 300)
    config = still(objective, tmp_path / "config")
    begun, prepared = begin(spec, data(objective), config=config)
    drawn = Drawn(prepared, 8, spec.seed)
    batch = collate([drawn[i] for i in range(8)], prepared.pads)
    if not pack:
        assert (batch["attention_mask"] == 0).any()  # padding is among what is checked
    done = pretrain(data(objective), spec, out=tmp_path / "m", config=config)
    assert done.steps == 1
    assert done.train_loss == pytest.approx(sum(loss_by_hand(objective, begun.model, batch).values()), rel=1e-5)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_what_is_saved_has_the_reported_val_loss_by_hand_and_when_it_goes_on(data, tmp_path, objective) -> None:
    spec = spec_of(objective, steps=30, learning_rate=3e-3)
    first = pretrain(data(objective), spec, out=tmp_path / "first")
    assert first.val_loss < first.val_loss_before
    begun, prepared = begin(spec, data(objective), source=first.path)
    assert begun.fresh == ()
    items = [prepared.draw(prepared.val[i], np.random.default_rng([spec.seed, 2, i])) for i in range(len(prepared.val))]
    by_hand = loss_by_hand(objective, begun.model, collate(items, prepared.pads))
    assert by_hand == pytest.approx(dict(first.val_parts), rel=1e-4)
    assert first.val_loss == pytest.approx(sum(by_hand.values()), rel=1e-4)
    if objective == "mim":
        assert first.val_perplexity is None
    else:
        assert first.val_perplexity == pytest.approx(np.exp(next(iter(by_hand.values()))), rel=1e-3)
    second = pretrain(data(objective), replace(spec, steps=1), source=first.path, out=tmp_path / "second")
    assert second.val_loss_before == pytest.approx(first.val_loss, rel=1e-5)
    assert second.model_type == first.model_type


@pytest.mark.parametrize("whole_word", [False, True])
@pytest.mark.parametrize("objective", ["mlm", "nsp"])
def test_masked_tokens_of_real_text(text, objective, whole_word) -> None:
    begun, prepared = begin(spec_of(objective, whole_word=whole_word), text)
    tokenizer = begun.processor
    special = {tokenizer.cls_token_id, tokenizer.sep_token_id}
    hidden = wanted = 0
    for i, example in enumerate(prepared.train):
        made = prepared.draw(example, np.random.default_rng(i))
        chosen = made["labels"] != -100
        original = np.where(chosen, made["labels"], made["input_ids"])
        tokens = tokenizer.convert_ids_to_tokens(original)
        assert tokens[0] == "[CLS]"
        assert tokens[-1] == "[SEP]"
        assert not {int(t) for t in original[chosen]} & special
        if whole_word:  # a piece '##x' is hidden with the piece before it
            cut = [j for j in range(1, len(tokens)) if tokens[j].startswith("##") and chosen[j] != chosen[j - 1]]
            assert not [j for j in cut if tokens[j - 1] not in ("[CLS]", "[SEP]")]
        count = max(1, round(0.15 * sum(int(t) not in special for t in original)))
        assert chosen.sum() == count or (whole_word and chosen.any())
        hidden, wanted = hidden + int(chosen.sum()), wanted + count
    assert 0.97 < hidden / wanted < 1.03
    if objective == "nsp":
        parts = [t for e in prepared.train for t in prepared.draw(e, np.random.default_rng(1))["token_type_ids"]]
        assert set(parts) == {0, 1}


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("objective", ["mlm", "clm", "span"])
def test_blocks_hold_the_whole_text(text, objective, pack) -> None:
    spec = spec_of(objective, pack=pack)
    begun, prepared = begin(spec, text)
    lengths = [len(block[0]) for block in prepared.train]
    for block in (prepared.train[0], prepared.train[-1]):
        made = prepared.draw(block, np.random.default_rng(0))
        assert len(made["input_ids"]) <= spec.block_length
    full = begun.processor.decode(np.concatenate([b[0] for b in prepared.train]), skip_special_tokens=True)
    words = "".join(w for d in hold_out(text, spec.val_share)[0] for line in d for w in line.split())
    lower = words.lower() if objective == "mlm" else words
    assert len(full.replace(" ", "").replace("\n", "")) >= 0.98 * len(lower)
    assert (len(set(lengths)) > 3) != pack


def test_span_inputs_and_targets_give_the_block_again(text) -> None:
    begun, prepared = begin(spec_of("span"), text)
    tokenizer = begun.processor
    ids = tokenizer.convert_tokens_to_ids([f"<extra_id_{i}>" for i in range(100)])
    for i, block in enumerate(prepared.train[:50]):
        made = prepared.draw(block, np.random.default_rng(i))
        spans: dict[int, list[int]] = {}
        for token in made["labels"][:-1]:
            if token in ids:
                spans[int(token)] = (last := [])
            else:
                last.append(int(token))
        assert list(spans) == ids[: len(spans)]
        back = [t for token in made["input_ids"][:-1] for t in spans.get(int(token), [int(token)])]
        assert back == list(block[0])


def test_every_epoch_hides_something_else_and_the_same_seed_the_same(text) -> None:
    _, prepared = begin(spec_of("mlm"), text)
    n = len(prepared.train)
    drawn, again, other = Drawn(prepared, 2 * n, 0), Drawn(prepared, 2 * n, 0), Drawn(prepared, 2 * n, 1)
    assert sorted(drawn.order[:n]) == sorted(drawn.order[n:]) == list(range(n))
    assert list(drawn.order[:n]) != list(drawn.order[n:])
    second = n + int(np.flatnonzero(drawn.order[n:] == drawn.order[0])[0])
    assert (drawn[0]["input_ids"] == again[0]["input_ids"]).all()
    assert not np.array_equal(drawn[0]["labels"], drawn[second]["labels"])
    assert list(drawn.order) != list(other.order)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("objective", ["mlm", "span", "mim"])
def test_a_killed_run_ends_with_the_weights_of_an_uninterrupted_one(data, tmp_path, objective) -> None:
    from safetensors.torch import load_file

    spec = spec_of(objective, steps=9)

    def kill(step: int, steps: int, what: str) -> None:
        if step == 6:
            raise Killed

    with pytest.raises(Killed):
        pretrain(data(objective), spec, out=tmp_path / "killed", progress=kill, checkpoint_seconds=0)
    assert not (tmp_path / "killed").exists()
    (kept,) = tmp_path.glob(".killed.*.training/checkpoint-*")
    # A checkpoint that was being written when the run was killed is left aside.
    shutil.copytree(kept, kept.with_name("checkpoint-8"))
    (kept.with_name("checkpoint-8") / "losses.json").unlink()
    seen: list[int] = []
    resumed = pretrain(data(objective), spec, out=tmp_path / "killed", progress=lambda step, *_: seen.append(step))
    whole = pretrain(data(objective), spec, out=tmp_path / "whole")
    assert seen == list(range(int(kept.name[11:]) + 1, 10))
    assert seen[0] > 2
    assert resumed.losses == whole.losses
    assert resumed.train_loss == whole.train_loss
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("killed", "whole"))
    assert all(first[name].equal(second[name]) for name in second)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["killed", "whole"]


def test_tune_takes_what_pretrain_saves_and_the_pooler_is_handed_on(
    minilm: Path, review_splits: Splits, text, tmp_path
) -> None:
    from safetensors.torch import load_file

    done = pretrain(text, spec_of("mlm", steps=2, keep_layers=(0, 5)), source=minilm, out=tmp_path / "adapted")
    assert all(name.startswith("cls.") for name in done.fresh)
    saved, before = load_file(done.path / "model.safetensors"), load_file(minilm / "model.safetensors")
    assert saved["bert.pooler.dense.weight"].equal(before["pooler.dense.weight"])
    name = "attention.self.query.weight"
    moved = saved[f"bert.encoder.layer.1.{name}"] - before[f"encoder.layer.5.{name}"]
    assert 0 < moved.abs().max() < 1e-3
    spec = TuneSpec(epochs=1, batch_size=8, max_length=24)
    tuned = tune(done.path, review_splits.train[:32], review_splits.labels, spec, out=tmp_path / "tuned")
    assert tuned.steps == 4


def test_the_record_and_finished_runs(text, tmp_path) -> None:
    spec = spec_of("clm")
    done = pretrain(text, spec, out=tmp_path / "m")
    record = json.loads((tmp_path / "m" / "pretrain.json").read_text())
    assert record["key"] == done.key
    assert record["seed"] == 0
    assert record["spec"]["objective"] == "clm"
    assert set(record["versions"]) >= {"torch", "transformers", "tokenizers"}
    assert record["cleaned"]["documents"] == len(text.documents)
    again = pretrain(text, spec, out=tmp_path / "m")
    assert again == replace(done, reused=True)
    assert not pretrain(text, replace(spec, seed=1), out=tmp_path / "m").reused


def test_a_loss_that_is_no_number_stops_and_leaves_nothing(text, tmp_path) -> None:
    with pytest.raises(TrainingError, match=r"the loss is nan at step \d+ with learning rate \S+e\+\d\d: try"):
        pretrain(text, spec_of("mlm", steps=20, learning_rate=1e30, warmup=0), out=tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="session")
def gpt(text: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretrain(text, spec_of("clm", steps=1), out=tmp_path_factory.mktemp("gpt") / "m").path


@pytest.mark.parametrize(
    ("objective", "options", "kind", "match"),
    [
        ("clm", {"block_length": 20_000}, PlanError, "block_length is 20000, and the model reads at most 512"),
        ("mlm", {"block_length": 513}, PlanError, "at most 512 tokens"),
        ("clm", {}, CheckpointError, r"a bert model, which clm .* cannot train; it fits mlm, nsp"),
        ("span", {}, CheckpointError, "a bert model"),
        ("mlm", {"keep_layers": (0, 9)}, PlanError, "different layers from 0 to 5"),
        ("clm", {"whole_word": True}, PlanError, "whole_word masks words, which clm does not"),
        ("mim", {}, DataError, "mim trains on images"),
    ],
)
def test_what_does_not_fit(text, minilm, gpt, tmp_path, objective, options, kind, match) -> None:
    source = gpt if "block_length" in options and objective == "clm" else minilm
    with pytest.raises(kind, match=match):
        pretrain(text, spec_of(objective, **options), source=source, out=tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_that_does_not_fit(text, gpt, tmp_path) -> None:
    with pytest.raises(CheckpointError, match="has no mask token"):
        pretrain(text, spec_of("mlm"), tokenizer=gpt, out=tmp_path / "m")
    with pytest.raises(CheckpointError, match="no sentinel tokens <extra_id_0>"):
        pretrain(text, spec_of("span"), tokenizer=gpt, out=tmp_path / "m")
    with pytest.raises(PlanError, match="give neither of them beside a checkpoint"):
        pretrain(text, spec_of("clm"), tokenizer=gpt, source=gpt, out=tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_a_config_and_no_weights(text, gpt, tmp_path) -> None:
    bare = shutil.copytree(gpt, tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(CheckpointError, match=r"bare has no weights .* give it as the config and as the tokenizer"):
        pretrain(text, spec_of("clm"), source=bare, out=tmp_path / "m")
    done = pretrain(text, spec_of("clm", steps=1), config=bare, tokenizer=bare, out=tmp_path / "m")
    assert done.fresh == ("all",)
    assert (done.path / "tokenizer.json").read_bytes() == (gpt / "tokenizer.json").read_bytes()


def test_too_little_text(tmp_path) -> None:
    short = clean(["just a few words here"])
    with pytest.raises(DataError, match="less than one block of 38: give more text"):
        pretrain(short, spec_of("mlm", val_share=0.0), out=tmp_path / "m")
    lines = clean([f"One sentence {i}." for i in range(50)])
    with pytest.raises(DataError, match="0 of 50 documents have two"):
        pretrain(lines, spec_of("nsp", val_share=0.0, block_length=8), out=tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


def test_a_language_that_the_tokenizer_does_not_know(text, gpt, tmp_path) -> None:
    made = pretrain(text, spec_of("mlm", steps=1), out=tmp_path / "bert")
    chinese = clean([f"我们去看了第{i}部电影，非常好看。" for i in range(100)])
    with pytest.raises(DataError, match=r"does not know \d\d% of the tokens"):
        pretrain(chinese, spec_of("mlm"), source=made.path, out=tmp_path / "m")
    mixed = Corpus("mixed", chinese.documents + text.documents)
    done = pretrain(mixed, spec_of("mlm", steps=1), source=made.path, out=tmp_path / "m")
    assert 0.05 < done.unknown_share < 0.5
    assert f"does not know {done.unknown_share:.0%} of the tokens" in done.warnings[0]
    # bytes know every language
    assert pretrain(chinese, spec_of("clm", steps=1), source=gpt, out=tmp_path / "g").unknown_share == 0


def test_images_that_do_not_fit_the_patches(digits, tmp_path) -> None:
    with pytest.raises(PlanError, match="image_size 8 is no multiple of patch_size 3"):
        pretrain(digits, spec_of("mim", size=replace(TINY, patch_size=3)), out=tmp_path / "m")
    with pytest.raises(PlanError, match="mask_patch is 3; expected a multiple"):
        pretrain(digits, spec_of("mim", mask_patch=3), out=tmp_path / "m")
    assert pretrain(digits, spec_of("mim", steps=1, mask_patch=4), out=tmp_path / "m").steps == 1


def test_the_command_line(text, tmp_path, capsys, monkeypatch) -> None:
    from edgewise.cli import main

    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("\n\n".join("\n".join(d) for d in text.documents), encoding="utf-8")
    sizes = ["--layers", "1", "--hidden", "32", "--heads", "2", "--vocab-size", "600", "--block-length", "40"]
    command = ["pretrain", "mlm", "--data", "a.txt", "--out", "m", "--steps", "2", "--val-share", "0.1", *sizes]
    assert main(command) == 0
    assert "held out: loss" in capsys.readouterr().out
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["reused"]
    assert main(["pretrain", "clm", "--data", "a.txt", "--from", "m", "--out", "x"]) == 2
    assert "m is a bert model, which clm" in capsys.readouterr().err
    assert main(["pretrain", "mlm", "--data", "a.txt", "--out", "x", "--batch-size", "0"]) == 2
    assert "--batch-size is 0; expected `int` >= 1" in capsys.readouterr().err
    assert not Path("x").exists()
