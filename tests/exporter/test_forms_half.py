"""The fp16 form: what overflows stays in fp32, in numpy's fp16 arithmetic, which is as strict as a GPU's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
import transformers as hf
from onnx.reference import ReferenceEvaluator

from edgewise.errors import DataError, PlanError
from edgewise.exporter.external import weight_bytes, weights
from edgewise.exporter.half import LARGEST, half_seq2seq, to_half
from edgewise.exporter.tracing import DECODER, DECODER_WITH_PAST, ENCODER, MERGED, export_graphs

VOCABULARY, WIDTH = 60, 32
IDS = np.array([[5, 7, 9, 11, 3, 1], [8, 2, 4, 1, 0, 0]])
MASK = (IDS != 0).astype(np.int64)
BERT_FEEDS = {"input_ids": IDS, "attention_mask": MASK, "token_type_ids": np.zeros_like(IDS)}
T5_FEEDS = {"input_ids": IDS, "attention_mask": MASK, "decoder_input_ids": np.array([[0, 6, 8], [0, 9, 2]])}


def bert(folder: Path) -> Path:
    torch.manual_seed(1)
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    model = hf.BertForSequenceClassification(hf.BertConfig(VOCABULARY, **sizes, num_labels=3)).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.mul_(4)
    export_graphs(model, "text-classification", folder, None)
    return folder / "model.onnx"


@pytest.fixture(scope="module")
def t5(tmp_path_factory: Any) -> Path:
    """A T5 whose feed-forward gives about 1e6, as large ones do; its norm brings that back into range."""
    torch.manual_seed(2)
    sizes = {"d_model": WIDTH, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0}
    model = hf.T5ForConditionalGeneration(hf.T5Config(VOCABULARY, **sizes, initializer_factor=1.0)).eval()
    with torch.no_grad():
        model.encoder.block[0].layer[1].DenseReluDense.wo.weight.mul_(1e6)
        model.decoder.block[1].layer[2].DenseReluDense.wi.weight.mul_(1e5)
        model.decoder.block[1].layer[2].DenseReluDense.wo.weight.mul_(1e-3)
        model.shared.weight.mul_(2)
    folder: Path = tmp_path_factory.mktemp("t5")
    export_graphs(model, "text2text-generation", folder, None)
    return folder


def run(graph: Path, feeds: dict[str, np.ndarray]) -> np.ndarray:
    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(None, {i.name: feeds[i.name] for i in session.get_inputs()})[0]
    return found


def strict(model: Any, feeds: dict[str, np.ndarray]) -> np.ndarray:
    """What the graph answers where each fp16 node rounds to fp16, infinities and all. onnxruntime's CPU provider
    computes most of them in fp32, and hides them."""
    names = [i.name for i in model.graph.input]
    with np.errstate(all="ignore"):
        found: np.ndarray = ReferenceEvaluator(model).run(None, {n: feeds[n] for n in names})[0]
    return found


def half_share(graph: Path) -> float:
    """Share of the bytes of floating weights that are fp16."""
    found = dict.fromkeys((onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16), 0)
    for t in weights(onnx.load(graph).graph):
        if t.data_type in found:
            found[t.data_type] += weight_bytes(t)
    return found[onnx.TensorProto.FLOAT16] / sum(found.values())


def test_a_bert_is_all_fp16_and_close(tmp_path: Path) -> None:
    graph = bert(tmp_path)
    kept = to_half(graph, tmp_path / "half.onnx", [BERT_FEEDS])
    assert kept == ()
    assert half_share(tmp_path / "half.onnx") == 1
    model = onnx.load(tmp_path / "half.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [i.type.tensor_type.elem_type for i in model.graph.output] == [onnx.TensorProto.FLOAT]
    expected = run(graph, BERT_FEEDS)
    assert np.ptp(expected) > 0.1
    for found in (run(tmp_path / "half.onnx", BERT_FEEDS), strict(model, BERT_FEEDS)):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=2e-2 * np.abs(expected).max())


def test_where_the_weights_lie_changes_nothing(tmp_path: Path) -> None:
    graph = bert(tmp_path)
    to_half(graph, tmp_path / "half.onnx", [BERT_FEEDS])
    # As Optimum saves what is large: the tensors of constant nodes stand outside too.
    everything = {"save_as_external_data": True, "size_threshold": 0, "convert_attribute": True}
    onnx.save(onnx.load(graph), tmp_path / "apart.onnx", location="apart.onnx_data", **everything)
    assert (tmp_path / "apart.onnx_data").stat().st_size > 0.5 * graph.stat().st_size
    to_half(tmp_path / "apart.onnx", tmp_path / "again.onnx", [BERT_FEEDS])
    assert not (tmp_path / "again.onnx_data").exists()
    found, expected = (onnx.load(tmp_path / name) for name in ("again.onnx", "half.onnx"))
    assert [n.op_type for n in found.graph.node] == [n.op_type for n in expected.graph.node]
    for ours, theirs in zip(weights(found.graph), weights(expected.graph), strict=True):
        assert (ours.name, ours.data_type, ours.raw_data) == (theirs.name, theirs.data_type, theirs.raw_data)
    np.testing.assert_array_equal(run(tmp_path / "again.onnx", BERT_FEEDS), run(tmp_path / "half.onnx", BERT_FEEDS))


def test_masks_stay_finite_with_a_score_added(tmp_path: Path) -> None:
    to_half(bert(tmp_path), tmp_path / "half.onnx", [BERT_FEEDS])
    nothing = {**BERT_FEEDS, "attention_mask": np.zeros_like(MASK)}  # every place masked
    assert np.isfinite(strict(onnx.load(tmp_path / "half.onnx"), nothing)).all()
    short = {name: value[1:, :4] for name, value in BERT_FEEDS.items()}
    model = onnx.load(tmp_path / "half.onnx")
    np.testing.assert_allclose(strict(model, BERT_FEEDS)[1], strict(model, short)[0], atol=5e-3)


def test_a_t5_that_overflows_keeps_those_nodes_in_fp32(t5: Path, tmp_path: Path) -> None:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    feeds = {"input_ids": IDS, "attention_mask": MASK}
    expected = run(t5 / ENCODER, feeds)
    plain = strict(convert_float_to_float16(onnx.load(t5 / ENCODER), keep_io_types=True), feeds)
    assert not np.allclose(plain, expected, atol=0.1 * np.abs(expected).max(), equal_nan=False)
    kept = to_half(t5 / ENCODER, tmp_path / ENCODER, [feeds])
    assert "/block.0/layer.1/DenseReluDense/wo/MatMul" in kept
    assert "/block.0/layer.0/SelfAttention/q/MatMul" not in kept
    assert set(kept) <= {n.name for n in onnx.load(t5 / ENCODER).graph.node}
    assert half_share(tmp_path / ENCODER) > 0.75
    model = onnx.load(tmp_path / ENCODER)
    onnx.checker.check_model(model, full_check=True)
    for found in (run(tmp_path / ENCODER, feeds), strict(model, feeds)):
        np.testing.assert_allclose(found, expected, atol=2e-2 * np.abs(expected).max())


def test_t5_decoders_are_converted_and_merged(t5: Path, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"decoder_model_merged\.onnx has branches"):
        to_half(t5 / MERGED, tmp_path / MERGED, [T5_FEEDS])
    kept = half_seq2seq(t5, tmp_path, [T5_FEEDS])
    assert "/decoder/block.1/layer.2/DenseReluDense/wi/MatMul" in kept
    assert half_share(tmp_path / MERGED) > 0.7
    assert (tmp_path / MERGED).stat().st_size < 0.9 * (t5 / MERGED).stat().st_size
    states = run(t5 / ENCODER, T5_FEEDS)
    first = {"encoder_hidden_states": states, "encoder_attention_mask": MASK}

    def decode(graph: Path) -> tuple[np.ndarray, np.ndarray]:
        session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
        outputs = [o.name for o in session.get_outputs()]
        past = {i.name: np.zeros((2, 2, 0, 16), np.float32) for i in session.get_inputs() if "past" in i.name}
        ids, branch = T5_FEEDS["decoder_input_ids"], "use_cache_branch"
        one = session.run(None, {**first, **past, "input_ids": ids[:, :2], branch: np.array([False])})
        cache = {n.replace("present", "past_key_values"): v for n, v in zip(outputs, one, strict=True) if "pres" in n}
        two = session.run(None, {**first, **cache, "input_ids": ids[:, 2:], branch: np.array([True])})
        return one[0], two[0]

    for found, expected in zip(decode(tmp_path / MERGED), decode(t5 / MERGED), strict=True):
        np.testing.assert_allclose(found, expected, atol=3e-2 * np.abs(expected).max())
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == []
    for name in (DECODER, DECODER_WITH_PAST):
        onnx.checker.check_model(onnx.load(tmp_path / name), full_check=True)


def test_a_gpt_gets_its_cache_and_a_weight_beyond_fp16_stays(tmp_path: Path) -> None:
    torch.manual_seed(3)
    sizes = {"n_embd": WIDTH, "n_layer": 2, "n_head": 2, "n_positions": 32}
    model = hf.GPT2LMHeadModel(hf.GPT2Config(VOCABULARY, **sizes)).eval()
    with torch.no_grad():
        model.transformer.h[1].ln_2.weight[3] = 2 * LARGEST
        model.transformer.h[1].mlp.c_fc.weight[3] /= 2 * LARGEST
    export_graphs(model, "text-generation", tmp_path, None)
    given = {"input_ids": IDS, "attention_mask": MASK}
    kept = to_half(tmp_path / "model.onnx", tmp_path / "half.onnx", [given])
    assert any(name.startswith("/transformer/h.1/ln_2") for name in kept)
    assert not any(name.startswith("/transformer/h.0/mlp") for name in kept)
    past = {f"past_key_values.{i}.{k}": np.zeros((2, 2, 0, 16), np.float32) for i in (0, 1) for k in ("key", "value")}
    feeds = {**given, **past, "position_ids": np.where(MASK == 0, 1, MASK.cumsum(1) - 1)}
    expected = run(tmp_path / "model.onnx", feeds)
    model_half = onnx.load(tmp_path / "half.onnx")
    for found in (run(tmp_path / "half.onnx", feeds), strict(model_half, feeds)):
        np.testing.assert_allclose(found, expected, atol=2e-2 * np.abs(expected).max())


def test_a_real_tuned_minilm_decides_as_in_fp32(fp32_bundle: Path, review_rows: Any, tmp_path: Path) -> None:
    tokenizer = hf.AutoTokenizer.from_pretrained(fp32_bundle)
    graph = fp32_bundle / "onnx" / "model.onnx"
    names = [i.name for i in onnx.load(graph).graph.input]
    rows = [dict(tokenizer(r.text, return_tensors="np")) for r in review_rows[:40]]
    rows = [{n: v.astype(np.int64) for n, v in row.items() if n in names} for row in rows]
    kept = to_half(graph, tmp_path / "model.onnx", rows[:8])
    assert kept == ()
    assert (tmp_path / "model.onnx").stat().st_size < 0.52 * graph.stat().st_size
    expected = run_all(graph, rows)
    found = run_all(tmp_path / "model.onnx", rows)
    np.testing.assert_allclose(found, expected, atol=2e-2)
    assert (found.argmax(-1) == expected.argmax(-1)).mean() >= 0.975
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx"]


def run_all(graph: Path, rows: list[dict[str, np.ndarray]]) -> np.ndarray:
    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(["logits"], row)[0] for row in rows])


def test_it_says_what_it_lacks(tmp_path: Path) -> None:
    graph = bert(tmp_path)
    with pytest.raises(DataError, match="fp16 needs inputs"):
        to_half(graph, tmp_path / "half.onnx", [])
    with pytest.raises(PlanError, match="takes token_type_ids; the sample inputs have only input_ids, attention_mask"):
        to_half(graph, tmp_path / "half.onnx", [{"input_ids": IDS, "attention_mask": MASK}])
    assert not (tmp_path / "half.onnx").exists()
