"""Features: pooled vectors as sentence-transformers makes them, states of tokens as the pipeline gives them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from filelock import FileLock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import edgewise
from edgewise.assets import asset_path, cache_folder
from edgewise.bundle import MANIFEST
from edgewise.data import Row
from edgewise.errors import BundleError, InputError
from edgewise.exporter import export
from edgewise.runtime.base import TruncationWarning
from edgewise.runtime.features import FeatureExtractor
from edgewise.runtime.pooling import normalize, pool


@pytest.fixture(scope="module")
def bundle(minilm: Path) -> Path:
    """MiniLM as it is: mean of the tokens, scaled to length 1. Kept beside the assets."""
    out = cache_folder() / "tests" / "features"
    with FileLock(f"{out}.lock"):
        (made,) = export(minilm, ["fp32"], out=out, task="feature-extraction")
    assert made.bundle is not None, made.reason
    return made.bundle.path


@pytest.fixture(scope="module")
def model(bundle: Path) -> FeatureExtractor:
    return edgewise.load(bundle)


@pytest.fixture(scope="module")
def texts(review_rows: tuple[Row, ...]) -> list[str]:
    return [r.text for r in review_rows[:200]] + ["", "Zürich 漢字 🇩🇪", "word " * 300]


@pytest.fixture(scope="module")
def states(minilm: Path, texts: list[str]) -> list[np.ndarray]:
    """Of transformers' pipeline: [1, tokens, n] a text."""
    theirs = hf.pipeline("feature-extraction", model=str(minilm), device="cpu", framework="pt")
    return [np.array(theirs(text), np.float32) for text in texts]


def bundle_of(folder: Path, tokenizer: Any, config: Any, **options: Any) -> tuple[Path, Path]:
    """(checkpoint, bundle) of fresh weights."""
    torch.manual_seed(2)
    hf.AutoModel.from_config(config).save_pretrained(folder / "checkpoint")
    tokenizer.save_pretrained(folder / "checkpoint")
    (made,) = export(folder / "checkpoint", ["fp32"], out=folder / "out", task="feature-extraction", **options)
    assert made.bundle is not None, made.reason
    return folder / "checkpoint", made.bundle.path


def test_vectors_and_states_equal_transformers_on_200_reviews(model, texts: list[str], states) -> None:
    vectors = model(texts)
    assert (vectors.shape, vectors.dtype) == ((len(texts), 384), np.float32)
    wanted = np.concatenate([s.mean(1) for s in states])
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors, wanted, atol=1e-5)
    for text, theirs in list(zip(texts, states, strict=True))[::5]:
        ours = model.hidden_states(text)
        assert (ours.shape, ours.dtype) == (theirs.shape, np.float32)
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_words_that_mean_the_same_are_near(model) -> None:
    a, b, c = model(["The film was wonderful.", "A marvellous movie!", "Boil the potatoes for ten minutes."])
    assert a @ b > a @ c + 0.3


def test_one_text_a_list_a_pair_and_an_iterator(model, texts: list[str]) -> None:
    one, listed = model(texts[0]), model(texts[:20])
    assert one.shape == (384,)
    np.testing.assert_array_equal(one, listed[0])
    np.testing.assert_array_equal(np.stack(list(model(iter(texts[:20])))), listed)
    assert model([]).shape == (0, 384)
    assert model.predict([("a", "b")])[0].n_tokens == 5
    np.testing.assert_array_equal(model({"text": "a", "text_pair": "b"}), model([("a", "b")])[0])
    assert [s.shape for s in model.hidden_states(["a", "a b"])] == [(1, 3, 384), (1, 4, 384)]


def test_batches_change_nothing_in_fp32(bundle: Path, model, texts: list[str]) -> None:
    with edgewise.load(bundle, batch_size=6, parallel=2) as batched:
        np.testing.assert_allclose(batched(texts[:30]), model(texts[:30]), atol=1e-5)


def test_a_long_text_is_cut_and_said_to_be(bundle: Path) -> None:
    with edgewise.load(bundle, max_length=16) as model, pytest.warns(TruncationWarning):
        long, short = model.predict(["word " * 50, "word"])
    assert (long.truncated, long.n_tokens, short.truncated, short.n_tokens) == (True, 16, False, 3)


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_every_pooling_of_a_small_model(minilm: Path, texts: list[str], tmp_path: Path, pooling: Any) -> None:
    tokenizer = hf.AutoTokenizer.from_pretrained(minilm)
    config = hf.BertConfig(
        len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    checkpoint, folder = bundle_of(tmp_path, tokenizer, config, pooling=pooling)
    theirs = hf.pipeline("feature-extraction", model=str(checkpoint), device="cpu")
    with edgewise.load(folder, batch_size=4) as model:
        assert model.pooling == pooling
        for text, vector in zip(texts[:40], model(texts[:40]), strict=True):
            states = np.array(theirs(text), np.float32)[0]
            wanted = {"mean": states.mean(0), "cls": states[0], "last": states[-1]}[pooling]
            np.testing.assert_allclose(vector, wanted, atol=1e-4)


def test_a_decoder_gives_its_last_token(texts: list[str], tmp_path: Path) -> None:
    tokenizer = hf.AutoTokenizer.from_pretrained(asset_path("smollm2"))
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0)
    config = hf.LlamaConfig(
        len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        num_key_value_heads=1, max_position_embeddings=64, pad_token_id=0,
    )  # fmt: skip
    checkpoint, folder = bundle_of(tmp_path, tokenizer, config)
    theirs = hf.AutoModel.from_pretrained(checkpoint).eval()
    with edgewise.load(folder, batch_size=5) as model:
        assert model.pooling == "last"
        vectors = model(texts[:40])
        with pytest.raises(InputError, match="'' has no token"):
            model("")
        for text, vector in zip(texts[:40], vectors, strict=True):
            encoded = tokenizer(text, truncation=True, max_length=64, return_tensors="pt")
            with torch.no_grad():
                wanted = theirs(input_ids=encoded["input_ids"]).last_hidden_state[0, -1].numpy()
            np.testing.assert_allclose(vector, wanted, atol=1e-4)


def test_pooling_leaves_padding_out() -> None:
    states = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    counts = np.array([[True, True, False], [True, True, True]])
    np.testing.assert_array_equal(pool(states, counts, "mean"), [states[0, :2].mean(0), states[1].mean(0)])
    np.testing.assert_array_equal(pool(states, counts, "last"), [states[0, 1], states[1, 2]])
    np.testing.assert_array_equal(pool(states, counts, "cls"), states[:, 0])
    left = np.array([[False, True, True], [True, True, True]])
    np.testing.assert_array_equal(pool(states, left, "last"), states[:, 2])
    found = normalize(np.array([[3, 4], [0, 0]], np.float32))
    np.testing.assert_allclose(found, [[0.6, 0.8], [0, 0]])


def test_a_graph_that_pools_itself(bundle: Path, model, texts: list[str], tmp_path: Path) -> None:
    """As some publishers export them: one vector a text is all it gives."""
    import onnx
    from onnx import TensorProto, helper

    folder = Path(shutil.copytree(bundle, tmp_path / "pooled"))
    graph = onnx.load(folder / "onnx" / "model.onnx")
    (states,) = graph.graph.output
    graph.graph.initializer.append(helper.make_tensor("axis", TensorProto.INT64, [1], [1]))
    graph.graph.node.append(helper.make_node("ReduceMean", [states.name, "axis"], ["sentence_embedding"], keepdims=0))
    graph.graph.output.remove(states)
    graph.graph.output.append(helper.make_tensor_value_info("sentence_embedding", TensorProto.FLOAT, ["batch", 384]))
    onnx.save(graph, folder / "onnx" / "model.onnx")
    told = json.loads((folder / MANIFEST).read_text())
    told["graphs"][0]["outputs"] = [{"name": "sentence_embedding", "dtype": "float32", "shape": ["batch", 384]}]
    (folder / MANIFEST).write_text(json.dumps(told))
    with edgewise.load(folder, verify="none") as pooled:
        np.testing.assert_allclose(pooled(texts[:9]), model(texts[:9]), atol=1e-5)
        with pytest.raises(InputError, match="gives one vector a text, and no states of tokens"):
            pooled.hidden_states("a")


def test_golden_answers(bundle: Path, texts: list[str], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    told = json.loads((copy / MANIFEST).read_text())
    with edgewise.load(copy, verify="none") as model:
        golden = [model.golden(text) for text in (texts[0], ("a", "b"))]
    assert golden[0].shape == (1, 384)
    rows: list[dict[str, Any]] = [
        {"text": g.text, "text_pair": g.text_pair, "input_ids": g.input_ids, "output": g.output} for g in golden
    ]
    (copy / MANIFEST).write_text(json.dumps({**told, "golden": rows}))
    with edgewise.load(copy, verify="none") as model:
        assert model.check().passed
    rows[0]["output"] = [0.0] * 384
    (copy / MANIFEST).write_text(json.dumps({**told, "golden": rows}))
    with edgewise.load(copy, verify="none") as model:
        assert not model.check().passed


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m(None), "expected a text or a pair of texts, got None"),
        (lambda m: m(["fine", 3]), "got 3 of type int"),
        (lambda m: m({"words": "x"}), "got {'words': 'x'}"),
        (lambda m: m("\ud800"), "lone surrogate"),
        (lambda m: m.predict("x"), "predict takes a list of texts, got str"),
        (lambda m: m.predict(iter("x")), "predict takes a list of texts"),
        (lambda m: m.hidden_states(7), "got 7 of type int"),
        (lambda m: list(m(iter(["fine", b"x"]))), "got b'x' of type bytes"),
    ],
)
def test_a_mistake_is_one_clear_error_and_the_model_lives_on(model, call: Callable[[Any], Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        call(model)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert model("fine").shape == (384,)


def test_a_pooling_that_is_not_known(bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    told = json.loads((copy / MANIFEST).read_text())
    (copy / MANIFEST).write_text(json.dumps({**told, "pooling": "weighted"}))
    with pytest.raises(BundleError, match="pools by 'weighted', which this edgewise does not know"):
        edgewise.load(copy, verify="none")


@given(text=st.text(max_size=200))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_has_a_vector_or_is_refused(model, text: str) -> None:
    try:
        vector = model(text)
    except InputError:
        assert any(0xD800 <= ord(c) <= 0xDFFF for c in text)
    else:
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
