"""Every recipe on every task that has it: proven, sized, and said in the manifest."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf

import edgewise
from edgewise.bundle import Bundle, read_bundle
from edgewise.data import Row
from edgewise.errors import BundleError, CheckpointError, DataError, PlanError, UserError
from edgewise.exporter import ExportResult, export, import_onnx
from edgewise.exporter.forms import all_recipes
from edgewise.exporter.pooling import cosine, pool, read_pooling
from edgewise.exporter.sessions import answers, open_graphs
from edgewise.recipe import RECIPES, Recipe
from edgewise.types import EXPORT_CLASSES, Task

SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
LLAMA = {**SMALL, "num_key_value_heads": 1, "max_position_embeddings": 512}
T5 = {"d_model": 64, "d_kv": 32, "d_ff": 128, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0}
IMAGE = {**SMALL, "image_size": 16, "patch_size": 4, "num_labels": 3}

MODELS: dict[str, tuple[Task, str, Callable[[int], Any]]] = {
    "bert features": ("feature-extraction", "minilm", lambda v: hf.BertConfig(v, **SMALL)),
    "llama features": ("feature-extraction", "bpe", lambda v: hf.LlamaConfig(vocab_size=v, **LLAMA, pad_token_id=0)),
    "bert mask": ("fill-mask", "minilm", lambda v: hf.BertConfig(v, **SMALL)),
    "bert tokens": ("token-classification", "minilm", lambda v: hf.BertConfig(v, **SMALL, num_labels=5)),
    "vit features": ("image-feature-extraction", "image", lambda v: hf.ViTConfig(**IMAGE)),
    "vit image": ("image-classification", "image", lambda v: hf.ViTConfig(**IMAGE)),
    "llama text": ("text-generation", "bpe", lambda v: hf.LlamaConfig(vocab_size=v, **LLAMA, eos_token_id=1)),
    "t5 text": ("text2text-generation", "unigram", lambda v: hf.T5Config(vocab_size=v, **T5)),
}


@pytest.fixture(scope="module")
def checkpoint(preprocessors: dict[str, Any], tmp_path_factory: Any) -> Callable[[str], Path]:
    """Name of MODELS -> a folder with fresh weights, large enough that answers differ."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            task, kind, config = MODELS[name]
            torch.manual_seed(3)
            preprocessor = preprocessors[kind]
            model = getattr(hf, EXPORT_CLASSES[task]).from_config(config(len(preprocessor) if kind != "image" else 0))
            with torch.no_grad():
                for key, p in model.named_parameters():
                    if p.dim() > 1 and "t5" not in name:
                        p.mul_(2)
                    elif key.endswith("bias"):
                        p.normal_(std=0.1)
            folder = tmp_path_factory.mktemp(name.replace(" ", "-")) / "checkpoint"
            model.save_pretrained(folder)
            preprocessor.save_pretrained(folder)
            made[name] = folder
        return made[name]

    return make


@pytest.fixture(scope="module")
def task_rows(rows: dict[str, tuple[Row, ...]]) -> Callable[[str], tuple[Row, ...]]:
    def of(name: str) -> tuple[Row, ...]:
        task = MODELS[name][0]
        if task == "token-classification":
            labels = [f"LABEL_{i}" for i in range(5)]
            return tuple(replace(r, tags=tuple(labels[i % 5] for i in range(len(r.tokens or ())))) for r in rows[task])
        if task == "image-classification":
            return tuple(replace(r, label=f"LABEL_{i % 3}") for i, r in enumerate(rows[task]))
        kinds: dict[Task, str] = {
            "feature-extraction": "text-classification", "fill-mask": "text-classification",
            "image-feature-extraction": "image-classification",
        }  # fmt: skip
        return rows[kinds.get(task, task)]

    return of


def made(results: list[ExportResult]) -> dict[str, Bundle]:
    assert [(r.recipe.name, r.reason) for r in results if r.reason] == []
    return {r.recipe.name: r.bundle for r in results if r.bundle is not None}


# ---- every recipe of every task


@pytest.mark.parametrize("name", MODELS)
def test_which_recipes_a_task_has(name: str) -> None:
    """What they answer is held against PyTorch in test_real_cells.py, test_real_t5.py and test_real_vit.py."""
    task, family = MODELS[name][0], name.split(maxsplit=1)[0]
    found = {r.name for r in all_recipes(task, family, rows=True)}
    assert {"fp32", "fp16", "int8-dynamic", "int8-weights", "int4-weights"} <= found
    assert ("fp32-in-place" in found) == (name == "llama text")
    assert ("int8-static" in found) == ("generation" not in task)


@pytest.mark.slow
def test_every_recipe_of_vectors_of_a_decoder(checkpoint, task_rows, tmp_path: Path) -> None:
    given = task_rows("llama features")
    bundles = made(
        export(checkpoint("llama features"), ["all"], out=tmp_path, calibration=given[:8], validation=given[8:])
    )
    assert set(bundles) == {r.name for r in all_recipes("feature-extraction", "llama", rows=True)}
    fp32 = bundles["fp32"].manifest
    for recipe, bundle in bundles.items():
        manifest = read_bundle(bundle.path).manifest
        assert manifest.task == "feature-extraction"
        assert manifest.parity["against"] == "pytorch"
        assert manifest.parity["agreement"] >= manifest.parity["tolerance"]["agreement"]
        if manifest.recipe.precision != "fp32":
            told = manifest.parity["against_fp32"]
            assert 0 <= told["share_changed"] <= 1
            assert told["batch"]["batch_size"] == 8
            assert told["drop"] <= told["drop_at_most"]
        if not manifest.recipe.offline:
            for peer in ("optimum", "optimum_batched"):
                assert manifest.loads_in[peer]["ok"], (recipe, manifest.loads_in)
    assert bundles["fp16"].manifest.size < 0.8 * fp32.size
    assert bundles["int8-weights"].manifest.size < 0.8 * fp32.size
    assert bundles["int4-weights"].manifest.size < bundles["int8-weights"].manifest.size
    assert not list(tmp_path.glob("*.partial")) + list(tmp_path.glob(".*"))


@pytest.mark.slow
def test_recipes_of_a_real_classifier(tuned: Path, review_splits, tmp_path: Path) -> None:
    train, val = review_splits.train[:400], review_splits.val[:100]
    bundles = made(export(tuned, ["all"], out=tmp_path, calibration=train, validation=val))
    known, unseen = [r.text for r in train[:60]], [r.text for r in review_splits.confirm[:60]]
    with edgewise.load(bundles["fp32"].path) as model:
        wanted = {True: model.logits(known), False: model.logits(unseen)}
    for recipe, bundle in bundles.items():
        manifest = bundle.manifest
        trimmed = manifest.recipe.vocabulary == "task"
        with edgewise.load(bundle.path) as model:
            assert model.check().passed, recipe
            found = np.concatenate([model.logits([t]) for t in (known if trimmed else unseen)])
        same = (found.argmax(1) == wanted[trimmed].argmax(1)).mean()
        assert same >= (0.99 if manifest.recipe.precision in ("fp32", "fp16", "int8-weights") else 0.85), recipe
        told = manifest.parity.get("against_fp32")
        if told is not None:
            assert told["measure"] == "share of labels right"
            assert told["value"] == pytest.approx(told["fp32"] - told["drop"])
            assert "points" in told["words"]
        if trimmed:
            assert manifest.parity["vocabulary"]["tokens"] < manifest.parity["vocabulary"]["tokens_before"] / 3
            assert manifest.size < 0.6 * read_bundle(bundles["fp32"].path).manifest.size / 3
            # rows that it was not trimmed by show what that costs
            assert told["answers_changed"] > 0
        if manifest.recipe.int8 and not trimmed:
            assert manifest.parity["saturation"]["n"] > 0


# ---- single options


@pytest.mark.slow
def test_a_fixed_length_pads_every_text_to_it(tuned: Path, review_splits, tmp_path: Path) -> None:
    (bundle,) = made(export(tuned, ["fp32+length=32"], out=tmp_path, calibration=review_splits.train[:20])).values()
    assert {i.shape[1] for i in bundle.manifest.graphs[0].inputs} == {32}
    assert bundle.manifest.preprocessing["max_length"] == 32
    model = hf.AutoModelForSequenceClassification.from_pretrained(tuned).eval()
    tokenizer = hf.AutoTokenizer.from_pretrained(tuned)
    texts = ["A fine film.", " ".join(["a very long film"] * 30)]
    with edgewise.load(bundle.path) as runtime, torch.no_grad():
        together = runtime.logits(texts)
        for text, row in zip(texts, together, strict=True):
            encoded = tokenizer(text, truncation=True, max_length=32, return_tensors="pt")
            np.testing.assert_allclose(row, model(**encoded).logits[0].numpy(), atol=1e-4)
            np.testing.assert_allclose(row, runtime.logits([text])[0], atol=1e-5)
        with pytest.raises(UserError, match="allows at most 32 tokens"):
            edgewise.load(bundle.path, max_length=64)


def test_weights_apart_are_hashed_like_the_rest(tuned: Path, tmp_path: Path) -> None:
    (bundle,) = made(export(tuned, ["fp32+external=true"], out=tmp_path)).values()
    files = bundle.manifest.files
    assert files["onnx/model.onnx_data"].size > 10 * files["onnx/model.onnx"].size
    with edgewise.load(bundle.path) as model:
        assert model.check().passed
    with (bundle.path / "onnx" / "model.onnx_data").open("r+b") as file:
        file.write(b"\x01")
    with pytest.raises(BundleError, match=r"model\.onnx_data has sha256"):
        edgewise.load(bundle.path)


def test_a_saved_graph_answers_the_same_and_says_so(tuned: Path, bundles, tmp_path: Path, review_rows) -> None:
    (bundle,) = made(export(tuned, ["int8-dynamic+offline=true"], out=tmp_path)).values()
    assert bundle.manifest.graphs[0].optimization_level == "extended, saved"
    texts = [r.text for r in review_rows[:20]]
    with edgewise.load(bundle.path) as saved, edgewise.load(bundles["int8-dynamic"]) as plain:
        for text in texts:
            np.testing.assert_allclose(saved.logits([text]), plain.logits([text]), atol=1e-4)


@pytest.mark.slow
def test_two_names_of_one_recipe_are_made_once(tuned: Path, tmp_path: Path, monkeypatch) -> None:
    from edgewise.exporter import build
    from edgewise.exporter.quantize import cpu_preset

    count = []
    write = build._Job._write
    monkeypatch.setattr(build._Job, "_write", lambda *a: count.append(1) or write(*a))
    other = f"int8-dynamic+preset={cpu_preset()}"
    bundles = made(export(tuned, ["int8-dynamic", other], out=tmp_path))
    assert len(count) == 1
    assert bundles[other].digest == bundles["int8-dynamic"].digest
    assert bundles[other].manifest.source["recipe"] == other
    read_bundle(tmp_path / other)


def test_short_names_are_read_back() -> None:
    for name in (
        *RECIPES, "int8-dynamic+optimize=O2+keep=a/b,c", "int4-weights+block_size=128+embeddings=false",
        "fp16+vocabulary=task", "int8-static+calibration=entropy+max_drop=0.5+offline=true+external=true+length=64",
    ):  # fmt: skip
        assert Recipe.parse(Recipe.parse(name).name) == Recipe.parse(name)
        assert "/" not in Recipe.parse(name).folder
    for name, why in (
        ("int4-weights+block_size=31", "must be one of 16, 32"),
        ("int8-dynamic+max_drop=lots", "number of points from 0 to 100"),
        ("fp32+length=2", "whole number of at least 3"),
        ("fp32+cache=in-place", "unknown option 'cache'"),
    ):
        with pytest.raises(PlanError, match=why):
            Recipe.parse(name)


# ---- large weights


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) for n in ("llama tied", "gpt2 tied", "bert features")]
)
def test_weights_that_pytorch_writes_apart_are_the_same_graph(
    name: str, checkpoint, preprocessors, rows, tmp_path: Path, monkeypatch
) -> None:
    """As for models of gigabytes, by a lower threshold."""
    from edgewise.exporter import lean_trace, sessions, tracing

    if name == "bert features":
        folder = checkpoint(name)
    else:
        folder, tokenizer = tmp_path / "checkpoint", preprocessors["bpe"]
        torch.manual_seed(5)
        gpt2 = hf.GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=512)
        llama = hf.LlamaConfig(vocab_size=len(tokenizer), **LLAMA, tie_word_embeddings=True)
        hf.AutoModelForCausalLM.from_config(gpt2 if "gpt2" in name else llama).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    given = rows["text-generation"][:8]
    whole = made(export(folder, ["fp32", "int8-dynamic"], out=tmp_path / "whole", calibration=given))
    for module in (lean_trace, sessions, tracing):
        monkeypatch.setattr(module, "LARGE", 1)
    apart = made(export(folder, ["fp32", "int8-dynamic"], out=tmp_path / "apart", calibration=given))
    assert apart["fp32"].manifest.files["onnx/model.onnx_data"].size > 10_000
    for recipe, bundle in apart.items():
        other = whole[recipe].manifest
        read_bundle(bundle.path)  # hashes and all
        ours, theirs = (b.graphs[0].bytes_by_part for b in (bundle.manifest, other))
        assert {k: v for k, v in ours.items() if k.startswith("weights")} == {
            k: v for k, v in theirs.items() if k.startswith("weights")
        }
        for key in ("agreement", "largest_absolute_difference", "batch_dependence"):
            assert bundle.manifest.parity[key] == pytest.approx(other.parity[key], abs=1e-5)
        assert all(found.get("ok", True) for found in bundle.manifest.loads_in.values())


# ---- features


@pytest.mark.slow
def test_pooling_is_named_by_the_folder_the_family_or_the_user(minilm: Path, checkpoint, tmp_path: Path) -> None:
    (bundle,) = made(export(checkpoint("bert features"), ["fp32"], out=tmp_path / "a")).values()
    assert bundle.manifest.pooling == "mean"
    (bundle,) = made(export(checkpoint("llama features"), ["fp32"], out=tmp_path / "b")).values()
    assert bundle.manifest.pooling == "last"
    (bundle,) = made(export(checkpoint("bert features"), ["fp32"], out=tmp_path / "c", pooling="cls")).values()
    assert bundle.manifest.pooling == "cls"
    assert read_pooling(minilm, {}, "feature-extraction", None) == ("mean", True)  # as sentence-transformers says
    with pytest.raises(CheckpointError, match="pooling 'cls' is for feature-extraction"):
        export(checkpoint("bert mask"), ["fp32"], out=tmp_path / "d", pooling="cls")


def test_pooling_leaves_padding_out() -> None:
    states = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    counts = np.array([[True, True, True], [True, False, False]])
    np.testing.assert_array_equal(pool(states, counts, "mean"), [states[0].mean(0), states[1, 0]])
    np.testing.assert_array_equal(pool(states, counts, "last"), [states[0, 2], states[1, 0]])
    np.testing.assert_array_equal(pool(states, counts, "cls"), states[:, 0])
    left = np.array([[False, True, True], [False, False, True]])
    np.testing.assert_array_equal(pool(states, left, "last"), states[:, 2])


def test_features_of_a_padded_batch_are_those_of_single_texts(checkpoint, tmp_path: Path) -> None:
    folder = checkpoint("bert features")
    (bundle,) = made(export(folder, ["fp32"], out=tmp_path)).values()
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    graphs = open_graphs(bundle.path, "feature-extraction")

    def vectors(texts: list[str]) -> np.ndarray:
        given = {k: v.astype(np.int64) for k, v in tokenizer(texts, padding=True, return_tensors="np").items()}
        return pool(answers(graphs, given), given["attention_mask"].astype(bool), "mean")

    texts = ["A fine film.", "Dull, and far too long for what it has to say, as everyone knew."]
    assert cosine(vectors(texts), np.concatenate([vectors([t]) for t in texts])).min() > 0.99999


@pytest.mark.slow
def test_the_body_of_any_checkpoint_gives_features(tuned: Path, tmp_path: Path) -> None:
    (bundle,) = made(export(tuned, ["fp32"], out=tmp_path, task="feature-extraction")).values()
    assert bundle.manifest.task == "feature-extraction"
    assert bundle.manifest.graphs[0].outputs[0].name == "last_hidden_state"


# ---- rows


def test_recipes_that_need_rows_say_so_before_the_work(tuned: Path, review_splits, tmp_path: Path) -> None:
    rows = review_splits.train[:4]
    for recipe, given, why in (
        ("int8-static", {}, "needs rows to calibrate with"),
        ("int8-dynamic+vocabulary=task", {}, "needs the rows whose text it must know"),
        ("int8-dynamic+max_drop=1", {"calibration": rows}, "needs labelled val rows"),
    ):
        with pytest.raises(DataError, match=why):
            export(tuned, [recipe], out=tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_guarded_recipe_tells_what_it_kept_and_what_confirm_says(tuned: Path, review_splits, tmp_path: Path) -> None:
    rows = {"calibration": review_splits.train[:50], "validation": review_splits.val[:150]}
    rows["confirm"] = review_splits.confirm[:100]
    recipe = Recipe.parse("int8-static+per_channel=false+max_drop=3")
    (bundle,) = made(export(tuned, [recipe], out=tmp_path, **rows)).values()
    told = bundle.manifest.parity["guard"]
    assert told["met"]
    assert told["drop"] <= 3
    assert told["drop"] <= told["drop_at_most"]
    assert told["rows"] == 150
    assert told["words"].startswith("Within 3 points on val")
    assert "within 3 points of fp32" in told["confirmed"].replace("Within", "within")
    assert bundle.manifest.recipe.keep == tuple(told["kept_in_fp32"])
    assert told["drop"] == pytest.approx(bundle.manifest.parity["against_fp32"]["drop"])


def test_the_command_asks_for_what_the_guard_needs(tuned: Path, tmp_path: Path, capsys) -> None:
    from edgewise.cli import main

    data = tmp_path / "rows.csv"
    data.write_text("text,label\n" + "".join(f"film {i},{'positive' if i % 2 else 'negative'}\n" for i in range(20)))
    start = ["export", str(tuned), "--out", str(tmp_path / "out"), "--data", str(data)]
    for more, why in (
        (["--max-accuracy-drop", "0.5"], "needs labelled val rows to measure the drop on: give --val or --data"),
        (["--max-accuracy-drop", "lots"], "--max-accuracy-drop ='lots' must be a number of points"),
        (["--val-share", "2"], "--val-share 2.0: expected a share between 0 and 1"),
        (["--recipe", "int8-dynamik"], "did you mean 'int8-dynamic'"),
        (["--label", "stars", "--val-share", "0.5"], "stars"),
        (["--opset", "99"], "opset 99 cannot be written"),
        (["--task", "fill-mask"], "is for text-classification"),
        (["--recipe", "int8-dynamic+keep=nothing/here"], "no node of the graph has a name that ends so"),
    ):
        assert main([*start, *more]) == 2, more
        assert why in capsys.readouterr().err, more
    assert list((tmp_path / "out").rglob("*")) == []


# ---- what is refused


def test_code_and_pickles_are_refused_unless_asked_for(tuned: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tuned, tmp_path / "code"))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "modeling.Mine"}}))
    with pytest.raises(CheckpointError, match=r"brings code of its own \(AutoModel.*--trust-remote-code"):
        export(copy, ["fp32"], out=tmp_path / "out")
    pickled = tmp_path / "pickled"
    model = hf.AutoModelForSequenceClassification.from_pretrained(tuned)
    model.save_pretrained(pickled, safe_serialization=False)
    hf.AutoTokenizer.from_pretrained(tuned).save_pretrained(pickled)
    with pytest.raises(CheckpointError, match=r"safe_serialization=True\), or say --allow-pickle"):
        export(pickled, ["fp32"], out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (bundle,) = made(export(pickled, ["fp32"], out=tmp_path / "out", allow_pickle=True)).values()
    with edgewise.load(bundle.path) as model:
        assert model.check().passed


def test_files_that_are_no_bundle_are_not_replaced(tuned: Path, fp32_bundle: Path, tmp_path: Path) -> None:
    mine = tmp_path / "out" / "fp32"
    mine.mkdir(parents=True)
    (mine / "thesis.txt").write_text("years of work")
    with pytest.raises(PlanError, match=r"no earlier result \(it has no edgewise\.json\)"):
        export(tuned, ["fp32"], out=tmp_path / "out")
    with pytest.raises(PlanError, match="no earlier result"):
        import_onnx(fp32_bundle, out=mine)
    with pytest.raises(PlanError, match="which is read from too"):
        import_onnx(Path(shutil.copytree(fp32_bundle, tmp_path / "same")), out=tmp_path / "same")
    (tmp_path / "file").write_text("")
    with pytest.raises(PlanError, match="a file: name a new folder"):
        export(tuned, ["fp32"], out=tmp_path / "file")
    assert (mine / "thesis.txt").read_text() == "years of work"


@pytest.mark.slow
def test_an_opset_that_cannot_be(tuned: Path, tmp_path: Path) -> None:
    for opset in (3, 99):
        with pytest.raises(UserError, match=f"opset {opset} cannot be written: expected 11 to"):
            export(tuned, ["fp32"], out=tmp_path / "out", opset=opset)
    assert not (tmp_path / "out").exists()
    (bundle,) = made(export(tuned, ["fp32"], out=tmp_path / "out", opset=17)).values()
    assert bundle.manifest.graphs[0].opset == 17


# ---- ONNX files of others


FOREIGN = [n for n in MODELS if n != "llama features"]
LONG = ("t5 text", "bert mask")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in LONG else n for n in FOREIGN])
def test_an_onnx_file_of_every_task_becomes_a_bundle(name: str, checkpoint, tmp_path: Path) -> None:
    (ours,) = made(export(checkpoint(name), ["fp32"], out=tmp_path / "ours")).values()
    theirs = Path(shutil.copytree(ours.path, tmp_path / "theirs"))
    (theirs / "edgewise.json").unlink()
    task = MODELS[name][0]
    bundle = import_onnx(theirs, out=tmp_path / "bundle", task=task)
    assert bundle.manifest.parity["against"] is None
    assert bundle.manifest.task == task
    assert [g.node_types for g in bundle.manifest.graphs] == [g.node_types for g in ours.manifest.graphs]
    assert bundle.manifest.pooling == ours.manifest.pooling
    assert import_onnx(theirs, out=tmp_path / "bundle", task=task).digest == bundle.digest


def test_a_single_file_with_its_tokenizer_elsewhere(tuned: Path, fp32_bundle: Path, tmp_path: Path) -> None:
    place = tmp_path / "alone"
    place.mkdir()
    shutil.copyfile(fp32_bundle / "onnx" / "model.onnx", place / "reviews.onnx")
    shutil.copyfile(fp32_bundle / "config.json", place / "config.json")
    with pytest.raises(CheckpointError, match="name its folder with --tokenizer"):
        import_onnx(place / "reviews.onnx", out=tmp_path / "out")
    bundle = import_onnx(place / "reviews.onnx", out=tmp_path / "out", tokenizer=tuned, labels=["bad", "good"])
    with edgewise.load(bundle.path) as model:
        assert model("a wonderful film")[0]["label"] == "good"
    with pytest.raises(CheckpointError, match="no such file or folder"):
        import_onnx(tmp_path / "nothing.onnx", out=tmp_path / "out2")
