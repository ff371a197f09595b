"""Every recipe of two ViTs that name clothes, and of the features of one, held against PyTorch once more by Optimum.

ViT-S/14 (22M parameters, DINOv2's kind) has real weights, here fine-tuned for half a minute on images of 56 x 56, and
cut to four layers for its features; the small ViT is trained from its config. Both are kept in the cache folder.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from optimum.onnxruntime import ORTModelForFeatureExtraction, ORTModelForImageClassification

from edgewise.assets import asset_path
from edgewise.data import Row, Splits, load_splits
from edgewise.exporter import ExportResult, export
from edgewise.exporter.forms import all_recipes
from edgewise.images import open_rgb
from edgewise.plan import DataSpec, TuneSpec
from edgewise.types import Task

CONFIG = Path(__file__).parents[2] / "examples" / "models" / "fashion-vit"
SIDE = 56
CLASSES: Task = "image-classification"
FEATURES: Task = "image-feature-extraction"
FEATURE_LAYERS = 4
STAGES = ("out_features", "out_indices", "stage_names")
"""What the config says of the layers of a backbone, and of the last one."""
OPTIONS = ("fp32+external=true", "int8-static+calibration=percentile", "int8-dynamic+reduce_range=true")
CASES = [
    (name, recipe)
    for name, task, options in (("vit", CLASSES, OPTIONS), ("dinov2", CLASSES, ()), ("features", FEATURES, ()))
    for recipe in (*(r.name for r in all_recipes(task, "vit", rows=True)), *options)
]
LOWEST_ACCURACY = 0.6
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def clothes() -> Splits:
    spec = DataSpec(
        path="asset:fashion-mnist", split={"train": 0.9, "val": 0.05, "confirm": 0.05}, rows={"train": 3000, "val": 96}
    )
    return load_splits(spec, CLASSES, Path)


@pytest.fixture(scope="module")
def checkpoint(
    clothes: Splits, train_once: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """'vit', 'dinov2' or 'features' -> its folder."""

    def small_images() -> Path:
        folder = Path(shutil.copytree(asset_path("vit-small"), tmp_path_factory.mktemp("dinov2") / "source"))
        told = json.loads((folder / "preprocessor_config.json").read_text())
        sides = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
        (folder / "preprocessor_config.json").write_text(json.dumps({**told, **sides}))
        return folder

    def make(name: str) -> Path:
        if name == "features":
            folder = small_images()  # of its first layers, in a third of the time
            config = {n: v for n, v in json.loads((folder / "config.json").read_text()).items() if n not in STAGES}
            (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": FEATURE_LAYERS}))
            cut = hf.AutoConfig.from_pretrained(folder)
            hf.AutoModel.from_pretrained(asset_path("vit-small"), config=cut).save_pretrained(folder)
            return folder
        if name == "vit":
            spec = TuneSpec(epochs=4, batch_size=32, learning_rate=1e-3)
            return train_once("fashion-vit", CONFIG, clothes.train, clothes.labels, spec, task=CLASSES)
        spec = TuneSpec(strategy="lora", epochs=1, batch_size=16, learning_rate=1e-3)
        return train_once("fashion-dinov2", small_images(), clothes.train[:1600], clothes.labels, spec, task=CLASSES)

    return make


@pytest.fixture(scope="module")
def made(clothes: Splits, checkpoint: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """Name -> (what came of each recipe, PyTorch's answers to val images), made once."""
    kept: dict[str, tuple[dict[str, ExportResult], np.ndarray]] = {}

    def make(name: str) -> tuple[dict[str, ExportResult], np.ndarray]:
        if name not in kept:
            task = FEATURES if name == "features" else CLASSES
            folder, recipes = checkpoint(name), [r for n, r in CASES if n == name]
            rows = {"calibration": clothes.train[:8], "validation": clothes.val[:24]}
            results = export(folder, recipes, out=tmp_path_factory.mktemp(name), task=task, **rows)
            auto = hf.AutoModel if name == "features" else hf.AutoModelForImageClassification
            told = answers(auto.from_pretrained(folder).eval(), folder, clothes.val)
            kept[name] = {r.recipe.name: r for r in results}, told
        return kept[name]

    return make


def answers(model: Any, folder: Path, rows: Sequence[Row]) -> np.ndarray:
    """Logits, or the mean of the last hidden states: float32 [images, n], in batches of 16."""
    processor, found = hf.AutoImageProcessor.from_pretrained(folder, use_fast=False), []
    for start in range(0, len(rows), 16):
        images = [open_rgb(r.image) for r in rows[start : start + 16] if r.image is not None]
        with torch.inference_mode():
            told = model(pixel_values=processor(images, return_tensors="pt")["pixel_values"])
        found.append(np.asarray(told.logits if "logits" in told else told.last_hidden_state.mean(1)))
    return np.concatenate(found)


def right(logits: np.ndarray, clothes: Splits) -> float:
    wanted = [clothes.labels.index(str(r.label)) for r in clothes.val]
    return float((logits.argmax(-1) == wanted).mean())


@pytest.mark.parametrize("name", ["vit", "dinov2"])
def test_it_names_clothes(name: str, made: Any, clothes: Splits) -> None:
    """Otherwise equal answers would say little."""
    assert right(made(name)[1], clothes) > LOWEST_ACCURACY


@pytest.mark.parametrize(("name", "recipe"), CASES)
def test_a_recipe_answers_as_pytorch_does(name: str, recipe: str, made: Any, clothes: Splits, hold: Any) -> None:
    results, told = made(name)
    bundle = results[recipe].bundle
    assert bundle is not None, results[recipe].reason
    peer = ORTModelForFeatureExtraction if name == "features" else ORTModelForImageClassification
    found = answers(peer.from_pretrained(bundle.path), bundle.path, clothes.val)
    print(name, recipe, np.abs(found - told).max(), bundle.manifest.parity)
    hold(bundle, found, told)
    if name != "features":
        assert right(found, clothes) > right(told, clothes) - 0.06
    if bundle.manifest.recipe.precision != "fp32":
        assert bundle.manifest.parity["against_fp32"]["rows"] == 24
    if not bundle.manifest.recipe.offline:
        assert all(f.get("ok", True) for f in bundle.manifest.loads_in.values()), bundle.manifest.loads_in
