"""Bundles answer as PyTorch does, load in Optimum as they are, and a bad checkpoint is one clear error."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

import edgewise
from edgewise.bundle import read_bundle
from edgewise.data import Row
from edgewise.errors import BundleError, CheckpointError, DataError, NoSpaceError, ParityError, PlanError, UserError
from edgewise.exporter import build, export, forms, import_onnx
from edgewise.exporter.graphs import read_graph
from edgewise.exporter.parity import Case, agreement, compare
from edgewise.types import Recipe


@pytest.fixture(scope="module")
def torch_logits(tuned: Path, review_rows: tuple[Row, ...]) -> np.ndarray:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(tuned).eval()
    tokenizer = AutoTokenizer.from_pretrained(tuned)
    with torch.inference_mode():
        return np.concatenate(
            [model(**tokenizer(r.text, return_tensors="pt", truncation=True)).logits for r in review_rows[:200]]
        )


@pytest.mark.parametrize(
    ("recipe", "largest", "agreement"),
    [("fp32", 1e-4, 1.0), ("fp32-o2", 1e-4, 1.0), ("int8-dynamic", None, 0.93), ("int8-static", None, 0.88)],
)
def test_logits_against_pytorch(bundles, review_rows, torch_logits, recipe, largest, agreement) -> None:
    with edgewise.load(bundles[recipe]) as model:
        found = np.array([p.logits for p in model.predict([r.text for r in review_rows[:200]])])
    if largest is not None:
        assert np.abs(found - torch_logits).max() < largest
    assert (found.argmax(1) == torch_logits.argmax(1)).mean() >= agreement


@pytest.mark.parametrize("recipe", ["fp32", "fp32-o2", "int8-dynamic", "int8-static"])
def test_loads_in_optimum_as_it_is_with_the_same_logits(bundles, review_rows, recipe) -> None:
    from optimum.onnxruntime import ORTModelForSequenceClassification
    from transformers import AutoTokenizer

    peer = ORTModelForSequenceClassification.from_pretrained(bundles[recipe])
    tokenizer = AutoTokenizer.from_pretrained(bundles[recipe])
    texts = [r.text for r in review_rows[:40]]
    with edgewise.load(bundles[recipe]) as model:
        for text in texts:
            theirs = np.asarray(peer(**tokenizer(text, return_tensors="pt")).logits)
            np.testing.assert_allclose(model.logits([text]), theirs, atol=1e-5)
        theirs = np.asarray(peer(**tokenizer(texts[:8], padding=True, return_tensors="pt")).logits)
        np.testing.assert_allclose(model.logits(texts[:8]), theirs, atol=1e-5)
    told = read_bundle(bundles[recipe]).manifest.loads_in
    assert told["optimum"]["ok"]
    assert told["optimum_batched"]["ok"]


def test_optimum_pipeline_takes_the_bundle(int8_bundle: Path) -> None:
    from optimum.onnxruntime import ORTModelForSequenceClassification
    from transformers import AutoTokenizer, pipeline

    peer = pipeline(
        "text-classification",
        model=ORTModelForSequenceClassification.from_pretrained(int8_bundle),
        tokenizer=AutoTokenizer.from_pretrained(int8_bundle),
    )
    with edgewise.load(int8_bundle) as model:
        ours, theirs = model("a wonderful film"), peer("a wonderful film")
    assert ours[0]["label"] == theirs[0]["label"] == "positive"
    assert ours[0]["score"] == pytest.approx(theirs[0]["score"], abs=1e-6)


def test_int8_is_a_quarter_and_holds_int8_matrices(bundles) -> None:
    sizes = {name: read_bundle(path).manifest.size for name, path in bundles.items()}
    assert sizes["int8-dynamic"] < 0.3 * sizes["fp32"]
    assert sizes["int8-static"] < 0.3 * sizes["fp32"]
    kinds = read_bundle(bundles["int8-dynamic"]).manifest.graphs[0].node_types
    # Weights only: attention scores stay in fp32.
    assert kinds["MatMulInteger"] == 2 * 6 + 2
    assert "QuantizeLinear" in read_bundle(bundles["int8-static"]).manifest.graphs[0].node_types


def test_manifest_tells_what_it_was_made_from_and_what_it_is(bundles, tuned) -> None:
    manifest = read_bundle(bundles["int8-static"]).manifest
    assert manifest.labels == ("negative", "positive")
    assert manifest.source["calibration_rows"] == 200
    assert manifest.parity["against"] == "pytorch"
    assert manifest.parity["inputs"] >= 40
    assert len(manifest.golden) == 8
    assert manifest.recipe.preset != "auto"
    graph = manifest.graphs[0]
    onnx.checker.check_model(onnx.load(bundles["int8-static"] / graph.file), full_check=True)
    assert graph.opset == onnx.load(bundles["int8-static"] / graph.file).opset_import[0].version
    parts = graph.bytes_by_part
    whole = parts["embeddings"] + parts["other weights"] + parts["structure"]
    assert whole == (bundles["int8-static"] / graph.file).stat().st_size


def test_static_answers_do_not_depend_on_the_batch(bundles, review_rows) -> None:
    texts = [r.text for r in review_rows[:16]]
    with edgewise.load(bundles["int8-static"]) as model:
        together = model.logits(texts)
        alone = np.concatenate([model.logits([t]) for t in texts])
    assert (together.argmax(1) == alone.argmax(1)).all()


def test_a_finished_bundle_is_not_made_again(tuned, bundles, review_splits, monkeypatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("made again")

    monkeypatch.setattr(build._Job, "_write", fail)
    (found,) = export(
        tuned, ["int8-static"], out=bundles["fp32"].parent, candidate="tiny", calibration=review_splits.train
    )
    assert found.bundle is not None
    assert found.seconds == 0


def test_one_failing_recipe_does_not_stop_the_others(tuned: Path, tmp_path: Path, monkeypatch) -> None:
    def broken(*_: object) -> Path:
        raise RuntimeError("no such optimizer")

    monkeypatch.setattr(forms, "optimize_graph", broken)
    bad, good = export(tuned, ["fp32-o2", "fp32"], out=tmp_path)
    assert bad.bundle is None
    assert bad.reason == "RuntimeError: no such optimizer"
    assert good.bundle is not None
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fp32"]  # nothing half-written


def test_a_graph_that_answers_otherwise_is_not_written(fp32_bundle: Path) -> None:
    with edgewise.load(fp32_bundle) as model:
        ids = tuple(model.token_ids("a fine film"))
        right = model.logits(["a fine film"])
        with pytest.raises(ParityError, match="differs from PyTorch by"):
            compare(model, [Case("row", ("a fine film",), right + 0.1, (ids,))], Recipe())
        with pytest.raises(ParityError, match="decides as PyTorch in"):
            compare(model, [Case("row", ("a fine film",), -right, (ids,))], Recipe(precision="int8-dynamic"))
        with pytest.raises(ParityError, match="tokenizes"):
            compare(model, [Case("row", ("a fine film",), right, ((1, 2, 3),))], Recipe())


@pytest.mark.slow
def test_keep_leaves_the_named_nodes_in_fp32(tuned: Path, tmp_path: Path) -> None:
    (found,) = export(tuned, ["int8-dynamic+keep=layer.0/output/dense/MatMul"], out=tmp_path)
    assert found.bundle is not None
    assert found.bundle.manifest.graphs[0].node_types["MatMulInteger"] == 2 * 6 + 2 - 1
    with pytest.raises(PlanError, match="no node of the graph"):
        export(tuned, [Recipe(precision="int8-dynamic", keep=("nothing",))], out=tmp_path)


# ---- bad checkpoints


def test_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        export(tmp_path / "x", ["fp32"], out=tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        export(tmp_path, ["fp32"], out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def copy(tuned: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tuned, tmp_path / "checkpoint"))


def test_no_tokenizer(copy: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "vocab.txt"):
        (copy / name).unlink()
    with pytest.raises(CheckpointError, match=r"no tokenizer .*save_pretrained"):
        export(copy, ["fp32"], out=tmp_path / "out")


def test_pickled_weights_are_refused_with_the_remedy(copy: Path, tmp_path: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="safe_serialization=True"):
        export(copy, ["fp32"], out=tmp_path / "out")


def test_a_task_that_cannot_be_told(copy: Path, tmp_path: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "architectures": None}))
    with pytest.raises(CheckpointError, match="name it with --task"):
        export(copy, ["fp32"], out=tmp_path / "out")


def test_static_without_rows(tuned: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="rows to calibrate"):
        export(tuned, ["int8-static"], out=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_unknown_and_doubled_recipes(tuned: Path, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="did you mean 'int8-dynamic'"):
        export(tuned, ["int8-dinamic"], out=tmp_path)
    with pytest.raises(UserError, match="twice"):
        export(tuned, ["fp32", "fp32"], out=tmp_path)


def test_full_disk_is_said_before_the_work(tuned: Path, tmp_path: Path, monkeypatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1_000_000))
    with pytest.raises(NoSpaceError, match=r"1 MB free, .* MB needed"):
        export(tuned, ["fp32"], out=tmp_path / "out")


# ---- ONNX files of others


def test_an_onnx_folder_of_someone_else_becomes_a_bundle(bundles, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    shutil.copytree(bundles["int8-dynamic"], theirs)
    for name in ("edgewise.json", "special_tokens_map.json"):
        (theirs / name).unlink()
    bundle = import_onnx(theirs, out=tmp_path / "bundle")
    assert bundle.manifest.parity["against"] is None
    assert "exported elsewhere" in bundle.manifest.parity["why"]
    assert bundle.manifest.recipe.precision == "int8-dynamic"
    with edgewise.load(tmp_path / "bundle") as model, edgewise.load(bundles["int8-dynamic"]) as original:
        np.testing.assert_array_equal(model.logits(["a fine film"]), original.logits(["a fine film"]))
        assert model.check().passed
    assert import_onnx(theirs, out=tmp_path / "bundle").digest == bundle.digest


def test_what_is_wrong_with_an_onnx_folder_is_said(bundles, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no ONNX file"):
        import_onnx(tmp_path, out=tmp_path / "out")
    theirs = Path(shutil.copytree(bundles["fp32"], tmp_path / "theirs"))
    with pytest.raises(CheckpointError, match="gives 2 numbers, but there are 3 labels"):
        import_onnx(theirs, out=tmp_path / "out", labels=["a", "b", "c"])
    (theirs / "onnx" / "model.onnx").write_bytes(b"no graph")
    with pytest.raises((BundleError, CheckpointError)):
        import_onnx(theirs, out=tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["theirs"]


def test_graph_description_counts_external_data(fp32_bundle: Path, tmp_path: Path) -> None:
    model = onnx.load(fp32_bundle / "onnx" / "model.onnx")
    onnx.save(model, tmp_path / "model.onnx", save_as_external_data=True, location="model.onnx_data", size_threshold=0)
    info = read_graph(tmp_path, "model.onnx", "none")
    inside = read_graph(fp32_bundle, "onnx/model.onnx", "none")
    assert replace(info, file="", bytes_by_part={}) == replace(inside, file="", bytes_by_part={})
    assert info.bytes_by_part["embeddings"] == inside.bytes_by_part["embeddings"]


@pytest.mark.parametrize("unit", [0.01, 1.0, 1000.0])
def test_a_number_is_compared_in_the_range_of_the_answers(unit: float) -> None:
    """A unit is the user's choice, and what stands near 0 is no more exact than the rest."""
    wanted = unit * np.array([[-2.0], [-0.5], [0.0], [0.1], [2.0]])
    span = np.ptp(wanted, axis=0)
    assert agreement(wanted + 0.3 * unit, wanted, "regression", span).tolist() == [1.0] * 5
    assert agreement(wanted + 0.5 * unit, wanted, "regression", span).tolist() == [0.0] * 5
    assert agreement(0 * wanted, wanted, "regression", span).mean() < 0.8  # one that always says the same
