"""Models of images answer as transformers' pipelines do; what is no image is one clear error, and they live on."""

from __future__ import annotations

import base64
import io
import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import transformers as hf
from filelock import FileLock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import edgewise
from edgewise.assets import asset_path, cache_folder
from edgewise.bundle import MANIFEST, Bundle, list_files, read_bundle, write_manifest
from edgewise.data import Row, Splits, load_splits
from edgewise.errors import BundleError, EdgewiseError, InputError
from edgewise.plan import DataSpec, TuneSpec
from edgewise.runtime.image_models import ImageClassifier, ImageFeatureExtractor
from edgewise.types import Task

VIT = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
PLACE = cache_folder() / "tests" / "images"


def one_at_a_time() -> FileLock:
    """Held while something is made that the test workers share; what is finished is found by its key."""
    PLACE.mkdir(parents=True, exist_ok=True)
    return FileLock(PLACE / "lock")


@pytest.fixture(scope="module")
def clothes() -> Splits:
    share: dict[str, float | str] = {"train": 0.7, "val": 0.2, "confirm": 0.1}
    rows = {"train": 2000, "val": 220, "confirm": 10}
    return load_splits(DataSpec(path="asset:fashion-mnist", split=share, rows=rows), "image-classification", Path)


@pytest.fixture(scope="module")
def tuned_vit(clothes: Splits) -> Path:
    """A small ViT that names clothes."""
    from edgewise.trainer import tune

    start = PLACE / "start"
    spec = TuneSpec(epochs=3, batch_size=32, learning_rate=1e-3)
    with one_at_a_time():
        hf.ViTConfig(image_size=28, patch_size=7, architectures=["ViTModel"], **VIT).save_pretrained(start)
        hf.ViTImageProcessor(size={"height": 28, "width": 28}).save_pretrained(start)
        out = PLACE / "tuned"
        return tune(start, clothes.train, clothes.labels, spec, out=out, task="image-classification").path


def exported(source: Path, task: Task, out: Path, rows: Any) -> Path:
    from edgewise.exporter import export

    with one_at_a_time():
        (done,) = export(source, ["fp32"], out=out, task=task, calibration=rows)
    assert done.bundle is not None, done.reason
    return done.bundle.path


@pytest.fixture(scope="module")
def vit_bundle(tuned_vit: Path, clothes: Splits) -> Path:
    return exported(tuned_vit, "image-classification", PLACE / "classes", clothes.train[:16])


@pytest.fixture(scope="module")
def body_bundle(tuned_vit: Path, clothes: Splits) -> Path:
    """The same ViT without its head."""
    body = PLACE / "body"
    with one_at_a_time():
        hf.ViTModel.from_pretrained(tuned_vit, add_pooling_layer=False).save_pretrained(body)
        shutil.copyfile(tuned_vit / "preprocessor_config.json", body / "preprocessor_config.json")
    return exported(body, "image-feature-extraction", PLACE / "features", clothes.train[:16])


@pytest.fixture(scope="module")
def model(vit_bundle: Path) -> ImageClassifier:
    return edgewise.load(vit_bundle)


@pytest.fixture(scope="module")
def peer(tuned_vit: Path) -> Any:
    return hf.pipeline("image-classification", model=str(tuned_vit), device="cpu", use_fast=False)


@pytest.fixture(scope="module")
def files(clothes: Splits, tmp_path_factory: Any) -> list[str]:
    """Paths of 220 images, in several modes."""
    folder = tmp_path_factory.mktemp("clothes")
    for i, row in enumerate(clothes.val):
        assert row.image is not None
        image = PIL.Image.open(io.BytesIO(row.image) if isinstance(row.image, bytes) else row.image)
        image.convert(("L", "RGB", "P", "RGBA")[i % 4]).resize((28 + i % 50, 28 + i % 30)).save(folder / f"{i}.png")
    return [str(folder / f"{i}.png") for i in range(len(clothes.val))]


def same(ours: Any, theirs: Any) -> None:
    """Labels in the same order, scores within 1e-5, lists and dicts nested alike."""
    assert type(ours) is type(theirs)
    if isinstance(ours, list):
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs, strict=True):
            same(a, b)
    elif isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for key in ours:
            same(ours[key], theirs[key])
    elif isinstance(ours, float):
        assert ours == pytest.approx(theirs, abs=1e-5)
    else:
        assert ours == theirs


# ---- classification


def test_answers_equal_transformers_on_220_images(model, peer, files: list[str], clothes: Splits) -> None:
    ours = model(files)
    same(ours, peer(files))
    right = [a[0]["label"] == row.label for a, row in zip(ours, clothes.val, strict=True)]
    assert np.mean(right) > 0.6, "ten labels: chance is 0.1"


@pytest.mark.parametrize(
    "options",
    [
        {"top_k": 1},
        {"top_k": 3},
        {"top_k": None},
        {"top_k": 99},
        {"function_to_apply": "none", "top_k": 99},
        {"function_to_apply": "Sigmoid"},
        {"function_to_apply": "softmax"},
    ],
)
def test_options_are_those_of_the_pipeline(model, peer, files: list[str], options) -> None:
    for inputs in (files[0], files[:3], [files[0]], PIL.Image.open(files[1])):
        same(model(inputs, **options), peer(inputs, **options))


def test_an_iterator_gives_an_iterator_in_order(model, files: list[str]) -> None:
    seen = []

    def source() -> Iterator[str]:
        for file in files:
            seen.append(file)
            yield file

    answers = model(source())
    first = next(answers)
    assert len(seen) < 20
    assert [first, *answers] == model(files)


def test_typed_answers(model, files: list[str]) -> None:
    answers = model.predict(files[:20])
    for answer, dicts in zip(answers, model(files[:20], top_k=1), strict=True):
        assert dicts == [{"label": answer.label, "score": answer.score}]
        assert answer.label == model.labels[answer.index]
        assert answer.scores[answer.index] == answer.score == max(answer.scores)
        assert sum(answer.scores) == pytest.approx(1)
        assert (answer.truncated, answer.n_tokens, answer.labels) == (False, 0, (answer.label,))
    np.testing.assert_array_equal([a.logits for a in answers[:1]], model.logits(files[:1]))


def test_batches_and_threads_change_nothing(vit_bundle: Path, model, files: list[str]) -> None:
    expected = [a.logits for a in model.predict(files[:64])]
    with edgewise.load(vit_bundle, batch_size=8) as batched:
        np.testing.assert_allclose([a.logits for a in batched.predict(files[:64])], expected, atol=1e-4)
    with ThreadPoolExecutor(4) as pool:
        assert [a[0].logits for a in pool.map(lambda f: model.predict([f]), files[:64])] == expected


def changed(bundle: Path, to: Path, **changes: Any) -> Path:
    """A copy of a bundle with other words in its manifest."""
    shutil.copytree(bundle, to)
    file = to / MANIFEST
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return to


def test_several_labels_an_image(vit_bundle: Path, tuned_vit: Path, files: list[str], tmp_path: Path) -> None:
    other = Path(shutil.copytree(tuned_vit, tmp_path / "checkpoint"))
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "problem_type": "multi_label_classification"}))
    peer = hf.pipeline("image-classification", model=str(other), device="cpu", use_fast=False)
    several = changed(vit_bundle, tmp_path / "several", problem_type="multi_label_classification")
    with edgewise.load(several, verify="none", threshold=0.2) as model:
        same(model(files[:20]), peer(files[:20]))
        for answer in model.predict(files[:20]):
            assert answer.labels == tuple(n for n, s in zip(model.labels, answer.scores, strict=True) if s >= 0.2)


def test_a_threshold_decides_between_two_labels(tmp_path: Path) -> None:
    torch_model = hf.ViTForImageClassification(hf.ViTConfig(image_size=28, patch_size=7, num_labels=2, **VIT))
    torch_model.save_pretrained(tmp_path / "two")
    hf.ViTImageProcessor(size={"height": 28, "width": 28}).save_pretrained(tmp_path / "two")
    image = noise(3)
    bundle = exported(tmp_path / "two", "image-classification", tmp_path / "out", [Row(image=image)])
    with edgewise.load(bundle) as model:
        score = model.predict([image])[0].scores[1]
    for limit in (score - 0.01, score + 0.01):
        with edgewise.load(bundle, threshold=limit) as model:
            (answer,) = model.predict([image])
            assert answer.label == model.labels[score >= limit]
            assert model(image)[0] == {"label": answer.label, "score": answer.score}
            assert len(model(image)) == 2


def noise(seed: int, size: tuple[int, int] = (90, 40)) -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


# ---- golden answers


def with_golden(bundle: Path, to: Path, items: list[Any], **wrong: Any) -> Path:
    shutil.copytree(bundle, to)
    with edgewise.load(to, verify="none") as model:
        golden = [model.golden(item) for item in items]
    golden[-1] = replace(golden[-1], **wrong)
    return write_manifest(to, replace(read_bundle(to).manifest, golden=tuple(golden))).path


def test_golden_answers(vit_bundle: Path, body_bundle: Path, files: list[str], tmp_path: Path) -> None:
    items = [*files[:4], noise(0), PIL.Image.open(files[5])]
    for name, bundle in (("classes", vit_bundle), ("features", body_bundle)):
        with edgewise.load(with_golden(bundle, tmp_path / name, items)) as model:
            found = model.check()
            assert found.passed
            assert (found.n, found.largest_difference) == (6, 0)
            golden = model.bundle.manifest.golden[4]
            assert (golden.text, golden.input_ids, golden.shape) == ("", (), (1, len(golden.output)))
            image = PIL.Image.open(io.BytesIO(base64.b64decode(golden.image)))
            assert (image.format, image.size) == ("PNG", (28, 64))
            assert model.golden(model.golden_input(golden)) == golden
        with edgewise.load(with_golden(bundle, tmp_path / f"{name}2", items, output=(9.0,) * len(golden.output))) as m:
            assert not m.check().passed
    for image, message in ((None, "has no image"), ("%%", "no base64"), ("AAAA", "no image of a known format")):
        broken = with_golden(vit_bundle, tmp_path / message, items, image=image)
        with edgewise.load(broken) as m, pytest.raises(EdgewiseError, match=message):
            m.check()


# ---- bad input


BAD = [
    None, 3, b"bytes", (noise(0), noise(1)), [None], [[noise(0)]], {"image": noise(0)}, "/nowhere.png", noise(0)[:99],
    np.zeros((4, 4, 3)), np.zeros((2, 4, 4, 3), np.uint8), PIL.Image.new("F", (3, 3)), ["https://example.com/a.png"],
]  # fmt: skip


@pytest.mark.parametrize("bad", BAD, ids=lambda b: type(b).__name__)
def test_what_is_no_image_is_one_clear_error_and_the_model_lives_on(model, body_bundle: Path, bad) -> None:
    with edgewise.load(body_bundle) as features:
        for loaded in (model, features):
            with pytest.raises(InputError) as caught:
                loaded(bad)
            assert "\n" not in str(caught.value)
            assert loaded(noise(0))


def test_empty_and_odd_arguments(model, files: list[str]) -> None:
    assert model([]) == []
    assert model.predict([]) == []
    for inputs in ("one.png", noise(0), iter(files)):
        with pytest.raises(InputError, match="put a single image in a list"):
            model.predict(inputs)
    for top_k in (0, -1, 1.5, "2", True):
        with pytest.raises(InputError, match="top_k is "):
            model(files[0], top_k=top_k)
    for function in ("tanh", 3):
        with pytest.raises(InputError, match="'softmax', 'sigmoid', 'none', or None"):
            model(files[0], function_to_apply=function)


def test_a_batch_of_none_is_one_clear_error(model) -> None:
    assert model([]) == model.predict([]) == []
    with pytest.raises(InputError, match="a batch of no images"):
        model.logits([])


def test_an_error_stands_where_its_answer_would(model, files: list[str]) -> None:
    answers = model(iter([*files[:5], "/nowhere.png", *files[5:9]]))
    assert [next(answers) for _ in range(5)] == model(files[:5])
    with pytest.raises(InputError, match=r"nowhere\.png"):
        next(answers)


@given(
    shape=st.tuples(st.integers(0, 40), st.integers(0, 40), st.integers(0, 5)),
    kind=st.sampled_from(["uint8", "float32", "int64", "bool"]),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_array_is_answered_or_refused(model, shape, kind: str, seed: int) -> None:
    array = np.random.default_rng(seed).integers(0, 256, shape).astype(kind)
    try:
        found = model(array)
    except InputError:
        assert kind != "uint8" or 0 in shape or shape[2] not in (1, 3, 4)
    else:
        assert sum(d["score"] for d in found) <= 1.001


@given(data=st.binary(max_size=300))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_answered_or_refused(model, data: bytes) -> None:
    try:
        found = model([data, noise(0)[: len(data)] + data])
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert len(found) == 2


# ---- bundles


def test_a_bundle_that_does_not_fit_its_processor(vit_bundle: Path, tmp_path: Path) -> None:
    manifest = read_bundle(vit_bundle).manifest
    (graph,) = manifest.graphs
    (pixels,) = graph.inputs

    def refused(message: str, name: str, **change: Any) -> None:
        other = replace(manifest, graphs=(replace(graph, **change),))
        from edgewise.runtime.image_input import ImageEncoder

        with pytest.raises(BundleError, match=message):
            ImageEncoder.read(Bundle(vit_bundle, other))

    refused("takes pixel_values, mask", "mask", inputs=(pixels, replace(pixels, name="mask")))
    refused("expected 4 dimensions", "flat", inputs=(replace(pixels, shape=("batch", 3)),))
    refused("takes 4 channels", "four", inputs=(replace(pixels, shape=("batch", 4, 28, 28)),))
    refused(r"makes images of \(28, 28\)", "large", inputs=(replace(pixels, shape=("batch", 3, 28, 32)),))
    broken = Path(shutil.copytree(vit_bundle, tmp_path / "broken"))
    (broken / "preprocessor_config.json").write_text("{}")
    write_manifest(broken, replace(manifest, family="fox"))
    with pytest.raises(BundleError, match="image_processor_type is missing"):
        edgewise.load(broken, verify="none")


def test_a_graph_that_refuses_the_size(vit_bundle: Path, tmp_path: Path) -> None:
    """The processor leaves images as they are, and ViT's positions are for 28 x 28."""
    other = Path(shutil.copytree(vit_bundle, tmp_path / "other"))
    config = json.loads((other / "preprocessor_config.json").read_text())
    (other / "preprocessor_config.json").write_text(json.dumps({**config, "do_resize": False}))
    with edgewise.load(other, verify="none") as model:
        assert model(noise(0, (28, 28)))
        with pytest.raises(InputError, match=r"does not take images of \[1, 3, 90, 40\]"):
            model(noise(0))
        assert model(noise(0, (28, 28)))


def test_nan_is_said(vit_bundle: Path, tmp_path: Path) -> None:
    import onnx

    other = Path(shutil.copytree(vit_bundle, tmp_path / "nan"))
    graph = onnx.load(other / "onnx" / "model.onnx")
    for weight in graph.graph.initializer:
        if weight.name.endswith("classifier.bias"):
            weight.raw_data = np.full(10, np.nan, np.float32).tobytes()
    onnx.save(graph, other / "onnx" / "model.onnx")
    manifest = read_bundle(vit_bundle).manifest
    write_manifest(other, replace(manifest, files=list_files(other)))
    with edgewise.load(other, verify="none") as model, pytest.raises(EdgewiseError, match="answered NaN"):
        model(noise(0))


# ---- features


def test_features_equal_transformers_on_200_images(body_bundle: Path, files: list[str]) -> None:
    peer = hf.pipeline("image-feature-extraction", model=str(PLACE / "body"), device="cpu", use_fast=False)
    with edgewise.load(body_bundle) as model:
        assert isinstance(model, ImageFeatureExtractor)
        ours, theirs = model(files[:200]), peer(files[:200])
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
        assert np.shape(ours) == (200, 1, 17, 64)
        np.testing.assert_allclose(model(files[0]), peer(files[0]), atol=1e-4)
        states = model.hidden_states(files[:4])
        np.testing.assert_allclose(states, np.array(theirs[:4])[:, 0], atol=1e-4)
        np.testing.assert_allclose(model.vectors(files[:4]), states[:, 0], atol=1e-4)
        np.testing.assert_array_equal(model.predict(files[:1])[0].vector, model.vectors(files[:1])[0])
        assert [np.shape(v) for v in model(iter(files[:3]))] == [(1, 17, 64)] * 3
        assert model.vectors([]).shape == (0, 0)
        with pytest.raises(InputError, match="no pooled output"):
            model(files[0], pool=True)


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_pooling_is_that_of_the_manifest(body_bundle: Path, files: list[str], tmp_path: Path, pooling: str) -> None:
    preprocessing = read_bundle(body_bundle).manifest.preprocessing
    for normalize in (False, True):
        other = changed(body_bundle, tmp_path / str(normalize), pooling=pooling,
                        preprocessing={**preprocessing, "normalize": normalize})  # fmt: skip
        with edgewise.load(other, verify="none") as model:
            states = model.hidden_states(files[:3])
            expected = {"mean": states.mean(1), "cls": states[:, 0], "last": states[:, -1]}[pooling]
            if normalize:
                expected = expected / np.linalg.norm(expected, axis=-1, keepdims=True)
            np.testing.assert_allclose(model.vectors(files[:3]), expected, atol=1e-4)


@pytest.fixture(scope="module")
def small_bundle() -> Path:
    """ViT-S/14 of the assets."""
    return exported(asset_path("vit-small"), "image-feature-extraction", PLACE / "vit-small", ())


def against_transformers(bundle: Path, images: list[PIL.Image.Image]) -> None:
    peer = hf.pipeline("image-feature-extraction", model=str(asset_path("vit-small")), device="cpu", use_fast=False)
    with edgewise.load(bundle) as model:
        for image in images:
            ours, theirs = np.array(model(image)), np.array(peer(image))
            assert ours.shape == (1, 257, 384)
            assert np.abs(theirs).max() > 1
            np.testing.assert_allclose(ours, theirs, atol=1e-3)


@pytest.mark.slow
def test_vit_small_on_50_images(small_bundle: Path, files: list[str]) -> None:
    against_transformers(small_bundle, [PIL.Image.open(f) for f in files[:50]])


def test_a_profile_measures_images(vit_bundle: Path, clothes: Splits, tmp_path: Path) -> None:
    from edgewise.profiler import Store, profile
    from edgewise.profiler.rounds import MODES
    from edgewise.types import Target

    rows = clothes.val[:60]
    with Store(tmp_path / "m.sqlite") as store:
        found = {m.scenario: m for m in profile([vit_bundle], [Target()], rows, store=store, spec=MODES["quick"])}
    assert [m.reason for m in found.values()] == [""] * 3
    p50 = found["single-stream"].metric("p50")
    assert p50 is not None
    assert p50.value is not None
    assert p50.value > 0
    accuracy = found["accuracy"].metric("accuracy")
    with edgewise.load(vit_bundle) as model:
        right = sum(a.label == row.label for a, row in zip(model.predict([r.image for r in rows]), rows, strict=True))
    assert accuracy is not None
    assert accuracy.value == pytest.approx(right / len(rows))
