"""Fine-tuning learns, is repeatable, keeps what is finished, and refuses what cannot be trained."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgewise.assets import asset_path
from edgewise.data import Row, Splits
from edgewise.errors import CheckpointError, DataError, PlanError, TrainingError
from edgewise.plan import TuneSpec
from edgewise.trainer import tune

SMALL = TuneSpec(epochs=1, batch_size=8, max_length=24, keep_layers=(0,), learning_rate=3e-4)


@pytest.fixture(scope="module")
def rows(review_splits: Splits) -> tuple[Row, ...]:
    return review_splits.train[:64]


def accuracy(folder: Path, rows: tuple[Row, ...]) -> float:
    from transformers import pipeline

    found = pipeline("text-classification", model=str(folder), device="cpu")([r.text for r in rows], batch_size=16)
    return sum(f["label"] == r.label for f, r in zip(found, rows, strict=True)) / len(rows)


def test_a_tuned_model_beats_the_larger_class(tuned: Path, review_rows) -> None:
    share = max(sum(r.label == label for r in review_rows) / len(review_rows) for label in ("negative", "positive"))
    assert accuracy(tuned, review_rows) > share + 0.1


def test_the_same_seed_gives_the_same_weights_and_another_does_not(minilm, rows, review_splits, tmp_path) -> None:
    import msgspec
    from safetensors.torch import load_file

    def weights(name: str, spec: TuneSpec):
        return load_file(tune(minilm, rows, review_splits.labels, spec, out=tmp_path / name).path / "model.safetensors")

    first, second = weights("a", SMALL), weights("b", SMALL)
    other = weights("c", msgspec.structs.replace(SMALL, seed=1))
    assert all(first[k].equal(second[k]) for k in first)
    assert not first["classifier.weight"].equal(other["classifier.weight"])


@pytest.mark.parametrize("strategy", ["full", "lora"])
def test_strategies_report_what_they_train(minilm, rows, review_splits, tmp_path, strategy) -> None:
    seen: list[tuple[int, int]] = []
    spec = TuneSpec(strategy=strategy, epochs=1, batch_size=16, max_length=24, keep_layers=(0, 5))
    done = tune(
        minilm, rows, review_splits.labels, spec, out=tmp_path / "m", progress=lambda a, b, _: seen.append((a, b))
    )
    assert done.steps == 4
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert (done.trainable_parameters < 0.01 * done.parameters) == (strategy == "lora")
    # A plain checkpoint comes out: LoRA's matrices are merged, nothing of PEFT is left.
    assert not list((tmp_path / "m").glob("adapter*"))
    assert 0 <= accuracy(tmp_path / "m", rows) <= 1


def test_lora_merged_answers_as_the_adapted_model(minilm, rows, review_splits) -> None:
    import torch

    from edgewise.trainer.models import Goal, cut_depth, load_model
    from edgewise.trainer.strategies import merged, prepare

    goal = Goal(labels=review_splits.labels)
    model, tokenizer = load_model(minilm, goal)
    cut_depth(model, (0,))
    model = prepare(model, tokenizer, TuneSpec(strategy="lora"), goal)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.05)  # as after training; B starts at zero
    model.eval()
    batch = tokenizer([r.text for r in rows[:8]], padding=True, return_tensors="pt")
    with torch.inference_mode():
        before = model(**batch).logits
        after = merged(model)(**batch).logits
    torch.testing.assert_close(before, after, atol=1e-5, rtol=1e-4)


def test_finished_training_is_not_repeated_and_changed_options_are(minilm, rows, review_splits, tmp_path) -> None:
    import msgspec

    def again(spec: TuneSpec):
        return tune(minilm, rows, review_splits.labels, spec, out=tmp_path / "m")

    assert not again(SMALL).reused
    assert again(SMALL).reused
    assert not again(msgspec.structs.replace(SMALL, learning_rate=1e-4)).reused


def test_keep_layers_keeps_those_layers(minilm, rows, review_splits) -> None:
    from transformers import AutoModel

    from edgewise.trainer.models import Goal, cut_depth, load_model

    whole = AutoModel.from_pretrained(minilm)
    cut, _ = load_model(minilm, Goal(labels=review_splits.labels))
    cut_depth(cut, (0, 4))
    assert cut.config.num_hidden_layers == 2
    for ours, theirs in zip(cut.bert.encoder.layer, (whole.encoder.layer[0], whole.encoder.layer[4]), strict=True):
        assert ours.output.dense.weight.equal(theirs.output.dense.weight)


def test_a_cut_backbone_loads_again(tmp_path: Path) -> None:
    """DINOv2's config names its layers as stages of a backbone."""
    from transformers import AutoModelForImageClassification

    from edgewise.trainer.models import cut_depth

    model = AutoModelForImageClassification.from_pretrained(asset_path("vit-small"))
    cut_depth(model, (0, 5, 11))
    model.save_pretrained(tmp_path)
    again = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert again.config.stage_names == ["stem", "stage1", "stage2", "stage3"]
    assert again.config.out_features == ["stage3"]
    for ours, theirs in zip(model.state_dict().values(), again.state_dict().values(), strict=True):
        assert ours.equal(theirs)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ((0, 6), r"keep_layers is \[0, 6\]; expected different layers from 0 to 5"),
        ((0, 0), "different layers from 0 to 5"),
        ((-1,), r"Expected `int` >= 0 - at `\$\.keep_layers"),
        ((), r"Expected `array` of length >= 1 - at `\$\.keep_layers"),
    ],
)
def test_layers_that_are_not_there(minilm, rows, review_splits, tmp_path, layers, message) -> None:
    with pytest.raises(PlanError, match=message):
        tune(minilm, rows, review_splits.labels, TuneSpec(keep_layers=layers), out=tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


def test_rows_that_cannot_train(minilm, rows, review_splits, tmp_path) -> None:
    labels = review_splits.labels
    with pytest.raises(DataError, match="no rows"):
        tune(minilm, [], labels, SMALL, out=tmp_path / "m")
    with pytest.raises(DataError, match="one class only"):
        tune(minilm, [r for r in rows if r.label == "positive"], labels, SMALL, out=tmp_path / "m")
    with pytest.raises(DataError, match=r"\['mixed'\] that are not among"):
        tune(minilm, [*rows, Row("so so", None, "mixed")], labels, SMALL, out=tmp_path / "m")


def test_a_source_that_is_no_model(rows, review_splits, tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        tune(tmp_path / "empty", rows, review_splits.labels, SMALL, out=tmp_path / "m")
    (tmp_path / "empty" / "config.json").write_text("{}")
    (tmp_path / "empty" / "vocab.txt").write_text("[PAD]")
    with pytest.raises(CheckpointError, match="does not load as a model"):
        tune(tmp_path / "empty", rows, review_splits.labels, SMALL, out=tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_nan_loss_stops_with_the_step_and_leaves_nothing(minilm, rows, review_splits, tmp_path) -> None:
    spec = TuneSpec(epochs=8, batch_size=4, max_length=16, keep_layers=(0,), learning_rate=1e30, warmup=0)
    with pytest.raises(TrainingError, match=r"the loss is nan at step \d+ with learning rate"):
        tune(minilm, rows, review_splits.labels, spec, out=tmp_path / "m")
    assert list(tmp_path.iterdir()) == []
