"""int8 of the graphs that Optimum's optimizer fused: Attention becomes QAttention, and the answers stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import transformers as hf

import edgewise
from edgewise.bundle import Bundle
from edgewise.data import Row
from edgewise.exporter import ExportResult, export
from edgewise.exporter.forms import why_not
from edgewise.recipe import Recipe

SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
LLAMA = {**SMALL, "num_key_value_heads": 1, "max_position_embeddings": 512, "num_labels": 3, "pad_token_id": 0}

GPT2 = {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 512, "num_labels": 3, "pad_token_id": 0}


def made(results: list[ExportResult]) -> dict[str, Bundle]:
    assert [(r.recipe.name, r.reason) for r in results if r.reason] == []
    return {r.recipe.name: r.bundle for r in results if r.bundle is not None}


FORMS = ["int8-dynamic+optimize=O2", "int8-static+optimize=O2", "int8-static+optimize=O3", "int8-static"]


@pytest.fixture(scope="module")
def forms(tuned: Path, review_splits: Any, tmp_path_factory: Any) -> dict[str, Bundle]:
    out = tmp_path_factory.mktemp("fused")
    rows = {"calibration": review_splits.train[:100], "validation": review_splits.val[:120]}
    return made(export(tuned, FORMS, out=out, **rows))


@pytest.mark.parametrize("recipe", FORMS[:3])
def test_a_tuned_classifier_is_fused_and_int8(forms: dict[str, Bundle], fp32_bundle: Path, recipe: str) -> None:
    bundle = forms[recipe]
    nodes = bundle.manifest.graphs[0].node_types
    assert nodes["QAttention"] == 2
    assert "Attention" not in nodes
    assert nodes["BiasGelu" if "O2" in recipe else "FastGelu"] == 2
    weights = bundle.manifest.graphs[0].bytes_by_part
    assert weights["weights int8"] > 40 * weights["weights float"]
    assert bundle.manifest.size < 1.02 * forms["int8-static"].manifest.size
    told = bundle.manifest.parity
    assert told["agreement"] >= told["tolerance"]["agreement"]
    assert told["against_fp32"]["share_changed"] <= 0.08
    assert told["saturation"]["applies"]
    assert told["saturation"]["why"] == ""
    assert all(bundle.manifest.loads_in[peer]["ok"] for peer in ("optimum", "optimum_batched"))


def test_static_answers_do_not_depend_on_the_batch(forms: dict[str, Bundle], review_rows: tuple[Row, ...]) -> None:
    texts = [r.text for r in review_rows[:32]]
    moved = {}
    for recipe in FORMS[:2]:
        with edgewise.load(forms[recipe].path) as model:
            alone = np.concatenate([model.logits([t]) for t in texts])
            moved[recipe] = np.abs(model.logits(texts) - alone).max()
            assert model.check().passed
    assert moved["int8-static+optimize=O2"] < 1e-4 < moved["int8-dynamic+optimize=O2"]


@pytest.mark.slow
def test_what_is_kept_stays_in_fp32(tuned: Path, review_splits: Any, tmp_path: Path) -> None:
    for precision in ("int8-dynamic", "int8-static"):
        recipe = f"{precision}+optimize=O2+keep=Attention_1"
        (bundle,) = made(export(tuned, [recipe], out=tmp_path, calibration=review_splits.train[:20])).values()
        kinds = {n.name: n.op_type for n in onnx.load(bundle.path / "onnx" / "model.onnx").graph.node}
        assert kinds["Attention_1"] == "Attention"
        assert kinds["Attention_0_quant"] == "QAttention"


@pytest.mark.parametrize(
    "kind", ["llama", *(pytest.param(n, marks=pytest.mark.slow) for n in ("vit", "gpt2", "distilbert"))]
)
def test_other_families(kind: str, preprocessors: Any, rows: Any, tmp_path: Path) -> None:
    images = kind == "vit"
    preprocessor = preprocessors["image" if images else "minilm" if kind == "distilbert" else "bpe"]
    size = 0 if images else len(preprocessor)
    torch.manual_seed(4)
    config: Any = {
        "vit": lambda: hf.ViTConfig(**SMALL, image_size=16, patch_size=4, num_labels=3),
        "gpt2": lambda: hf.GPT2Config(size, **GPT2),
        "llama": lambda: hf.LlamaConfig(size, **LLAMA),
        "distilbert": lambda: hf.DistilBertConfig(size, dim=64, n_layers=2, n_heads=2, hidden_dim=128, num_labels=3),
    }[kind]()  # fmt: skip
    auto = hf.AutoModelForImageClassification if images else hf.AutoModelForSequenceClassification
    model = auto.from_config(config)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() > 1:
                p.mul_(2)
            elif name.endswith("bias"):
                p.normal_(std=0.1)
    folder = tmp_path / "checkpoint"
    model.save_pretrained(folder)
    preprocessor.save_pretrained(folder)
    recipes = ["int8-dynamic+optimize=O2", "int8-static+optimize=O3", "fp32-o2"]
    given = rows["image-classification" if images else "text-classification"][:12]
    bundles = made(export(folder, recipes, out=tmp_path / "out", calibration=given))
    print(kind, {r: b.manifest.graphs[0].node_types for r, b in bundles.items()})
    for recipe in recipes[:2]:
        told = bundles[recipe].manifest
        assert told.parity["saturation"]["why"] == "" or not told.parity["saturation"]["applies"]
        assert told.size < 0.5 * bundles["fp32-o2"].manifest.size
        assert told.graphs[0].node_types.get("QAttention", 0) == bundles["fp32-o2"].manifest.graphs[0].node_types.get(
            "Attention", 0
        )


def test_what_is_still_refused() -> None:
    guarded = Recipe.parse("int8-static+optimize=O2+max_drop=1")
    assert "max_drop names nodes of the graph as exported" in why_not(guarded, "text-classification", "bert")
    assert why_not(Recipe.parse("int8-static+optimize=O2"), "text-classification", "bert") == ""
    assert "no graph with a key-value cache" in why_not(
        Recipe.parse("int8-dynamic+optimize=O2"), "text-generation", "gpt2"
    )
