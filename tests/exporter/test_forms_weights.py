"""Weight-only quantization: what is stored, that it answers as its own dequantized weights do, and in branches too."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
import transformers as hf
from onnx.numpy_helper import from_array, to_array

from edgewise.errors import PlanError
from edgewise.exporter.external import externalize, weights
from edgewise.exporter.graphs import all_nodes
from edgewise.exporter.tracing import ENCODER, MERGED, export_graphs
from edgewise.exporter.weights import quantize_weights

VOCABULARY, WIDTH = 90, 64
INT8 = {"bits": 8, "symmetric": True, "accuracy_level": 4, "embeddings": True}
INT4 = {**INT8, "bits": 4}
IDS = np.array([[5, 7, 9, 11], [8, 2, 4, 1]])
STARTS = np.array([[0, 6, 8], [0, 9, 2]])
MASK = np.ones_like(IDS)


def causal(kind: str, folder: Path) -> Path:
    torch.manual_seed(1)
    if kind == "gpt2":
        config = hf.GPT2Config(VOCABULARY, n_embd=WIDTH, n_layer=2, n_head=2, n_positions=32)
    else:
        sizes = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
        config = hf.LlamaConfig(VOCABULARY, **sizes, num_key_value_heads=1, tie_word_embeddings=True)
    model = hf.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(4 if p.dim() > 1 else 1)
    export_graphs(model, "text-generation", folder, None)
    return folder / "model.onnx"


@pytest.fixture(scope="module")
def gpts(tmp_path_factory: Any) -> dict[str, Path]:
    return {kind: causal(kind, tmp_path_factory.mktemp(kind)) for kind in ("gpt2", "llama")}


@pytest.fixture(scope="module")
def t5(tmp_path_factory: Any) -> Path:
    torch.manual_seed(2)
    sizes = {"d_model": WIDTH, "d_kv": 32, "d_ff": 128, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0}
    folder: Path = tmp_path_factory.mktemp("t5")
    export_graphs(hf.T5ForConditionalGeneration(hf.T5Config(VOCABULARY, **sizes)).eval(), "text2text-generation",
                  folder, None)  # fmt: skip
    return folder


def answer(graph: Path, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    given = {}
    for i in session.get_inputs():
        past = "past" in i.name and i.name not in feeds
        given[i.name] = np.zeros((2, i.shape[1], 0, i.shape[3]), np.float32) if past else feeds[i.name]
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, given), strict=True))


def gpt(graph: Path) -> np.ndarray:
    return answer(graph, {"input_ids": IDS, "attention_mask": MASK, "position_ids": MASK.cumsum(1) - 1})["logits"]


def kinds(graph: Path) -> Counter[str]:
    return Counter(n.op_type for n in all_nodes(onnx.load(graph).graph))


def stored(graph: Path) -> dict[str, np.ndarray]:
    return {t.name: to_array(t) for t in weights(onnx.load(graph).graph)}


def nearness(found: np.ndarray, expected: np.ndarray) -> float:
    """Correlation of two answers."""
    return float(np.corrcoef(found.ravel(), expected.ravel())[0, 1])


def rounded(graph: Path, out: Path, bits: int, block: int) -> Path:
    """The fp32 graph with each matrix rounded as symmetric blocks are, by arithmetic of our own."""
    model = onnx.load(graph)
    turned = {n.input[0] for n in model.graph.node if n.op_type == "Transpose"}
    turned |= {n.input[0] for n in model.graph.node if n.op_type == "Gather"}
    for t in model.graph.initializer:
        if t.data_type == onnx.TensorProto.FLOAT and len(t.dims) == 2 and t.dims[0] * t.dims[1] >= 1024:
            w = to_array(t) if t.name in turned else to_array(t).T
            parts = w.reshape(w.shape[0], -1, block)
            largest = np.take_along_axis(parts, np.abs(parts).argmax(-1)[..., None], -1)
            scale = largest / -(2 ** (bits - 1))
            top = 2 ** (bits - 1)
            w = (np.clip(np.round(parts / scale), -top, top - 1) * scale).reshape(w.shape).astype(np.float32)
            t.CopyFrom(from_array(np.ascontiguousarray(w if t.name in turned else w.T), t.name))
    onnx.save(model, out)
    return out


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("bits", [4, 8])
def test_it_answers_as_its_rounded_weights_do(gpts: dict[str, Path], tmp_path: Path, kind: str, bits: Any) -> None:
    graph = gpts[kind]
    made = quantize_weights(
        graph, tmp_path / "model.onnx", bits=bits, symmetric=True, accuracy_level=None, embeddings=True
    )
    same = gpt(rounded(graph, tmp_path / "rounded.onnx", bits, 32))
    np.testing.assert_allclose(gpt(made), same, atol=1e-3 * np.abs(same).max())
    expected = gpt(graph)
    assert nearness(gpt(made), expected) > {4: 0.9, 8: 0.999}[bits]
    assert not np.allclose(gpt(made), expected, atol=1e-4)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_every_matrix_is_in_blocks_and_tied_embeddings_are_one_copy(
    gpts: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    made = quantize_weights(gpts[kind], tmp_path / "model.onnx", **INT4)
    found, before = kinds(made), kinds(gpts[kind])
    products = {"gpt2": 2 * 4 + 1, "llama": 2 * 7 + 1}[kind]
    assert found["MatMulNBits"] == products
    assert found["Gemm"] == 0
    assert found["Transpose"] == before["Transpose"] - 1  # that of the output layer
    # no position of 2,048 numbers or more, and no matrix of the model, is left in fp32
    large = [n for n, w in stored(made).items() if w.ndim == 2 and w.dtype == np.float32 and "scales" not in n]
    assert [n for n in large if stored(made)[n].size >= 1024] == []
    tables = [w for n, w in stored(made).items() if w.dtype == np.uint8 and w.shape[0] == VOCABULARY]
    assert [t.shape for t in tables] == [(VOCABULARY, WIDTH // 32, 16)]
    assert found["GatherBlockQuantized"] == {"gpt2": 2, "llama": 1}[kind]
    assert onnx.load(made).opset_import[0].version == onnx.load(gpts[kind]).opset_import[0].version


def test_accuracy_level_and_zero_points_are_written(gpts: dict[str, Path], tmp_path: Path) -> None:
    expected = gpt(gpts["llama"])
    signed = quantize_weights(gpts["llama"], tmp_path / "signed.onnx", **INT8)
    unsigned = quantize_weights(gpts["llama"], tmp_path / "unsigned.onnx", **{**INT8, "symmetric": False})
    for made, inputs in ((signed, 3), (unsigned, 4)):
        nodes = [n for n in onnx.load(made).graph.node if n.op_type == "MatMulNBits"]
        assert {len(n.input) for n in nodes} == {inputs}
        assert {a.i for n in nodes for a in n.attribute if a.name == "accuracy_level"} == {4}
        assert nearness(gpt(made), expected) > 0.998


def test_kept_nodes_and_embeddings_stay_in_fp32(gpts: dict[str, Path], tmp_path: Path) -> None:
    options = {**INT8, "embeddings": False, "keep": ("mlp/down_proj/MatMul", "lm_head/MatMul")}
    made = quantize_weights(gpts["llama"], tmp_path / "model.onnx", **options)
    found = kinds(made)
    assert found["MatMulNBits"] == 2 * 6
    assert found["GatherBlockQuantized"] == 0
    assert found["Transpose"] == kinds(gpts["llama"])["Transpose"]
    assert nearness(gpt(made), gpt(gpts["llama"])) > 0.998
    alone = quantize_weights(gpts["llama"], tmp_path / "alone.onnx", **{**INT8, "keep": ("lm_head/MatMul",)})
    assert sorted(w.dtype.name for w in stored(alone).values() if w.shape[:1] == (VOCABULARY,)) == [
        "float32", "float32", "uint8",
    ]  # fmt: skip  # the table that the output layer reads, and scales and values of that of the embeddings


def test_both_branches_of_a_merged_decoder_share_blocks(t5: Path, tmp_path: Path) -> None:
    for name in (ENCODER, MERGED):
        quantize_weights(t5 / name, tmp_path / name, **INT8)
    # 2 layers: self-attention, cross-attention (keys and values in the first call only), feed-forward; output layer
    assert kinds(tmp_path / MERGED)["MatMulNBits"] == (2 * (4 + 4 + 2) + 1) + (2 * (4 + 2 + 2) + 1)
    assert kinds(tmp_path / MERGED)["GatherBlockQuantized"] == 2
    names = [t.name for t in weights(onnx.load(tmp_path / MERGED).graph)]
    assert len(names) == len(set(names))
    assert (tmp_path / MERGED).stat().st_size < 0.55 * (t5 / MERGED).stat().st_size

    def steps(folder: Path) -> tuple[np.ndarray, ...]:
        states = answer(folder / ENCODER, {"input_ids": IDS, "attention_mask": MASK})["last_hidden_state"]
        read = {"encoder_hidden_states": states, "encoder_attention_mask": MASK}
        one = answer(folder / MERGED, {**read, "input_ids": STARTS[:, :2], "use_cache_branch": np.array([False])})
        past = {n.replace("present", "past_key_values"): v for n, v in one.items() if "present" in n}
        last = {**read, **past, "input_ids": STARTS[:, 2:], "use_cache_branch": np.array([True])}
        return states, one["logits"], answer(folder / MERGED, last)["logits"]

    for found, expected in zip(steps(tmp_path), steps(t5), strict=True):
        assert nearness(found, expected) > 0.998


def test_the_block_follows_the_matrix(gpts: dict[str, Path], tmp_path: Path) -> None:
    # 64 inputs, or 128 for the second matrix of a feed-forward
    made = quantize_weights(gpts["llama"], tmp_path / "model.onnx", **INT8, block_size=128)
    model = onnx.load(made)
    blocks = {
        n.name: {a.name: a.i for a in n.attribute}["block_size"] for n in model.graph.node if "NBits" in n.op_type
    }
    assert blocks["/model/layers.0/mlp/down_proj/MatMul"] == 128
    assert blocks["/model/layers.0/mlp/up_proj/MatMul"] == blocks["/lm_head/MatMul"] == 64
    assert nearness(gpt(made), gpt(gpts["llama"])) > 0.998


def test_weights_outside_are_read_and_names_are_kept(gpts: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    outside = externalize(gpts["llama"], tmp_path / "outside" / "model.onnx", threshold=64)
    a = quantize_weights(outside, tmp_path / "a.onnx", **INT4)
    b = quantize_weights(gpts["llama"], tmp_path / "b.onnx", **INT4)
    np.testing.assert_array_equal(gpt(a), gpt(b))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.onnx", "b.onnx", "outside"]
    names = {n.name for n in onnx.load(gpts["llama"]).graph.node if n.op_type == "MatMul"}
    assert {n.name for n in onnx.load(a).graph.node if n.op_type == "MatMulNBits"} < names


def test_a_real_tuned_minilm_decides_as_in_fp32(fp32_bundle: Path, review_rows: Any, tmp_path: Path) -> None:
    tokenizer = hf.AutoTokenizer.from_pretrained(fp32_bundle)
    graph = fp32_bundle / "onnx" / "model.onnx"
    made = quantize_weights(graph, tmp_path / "model.onnx", **INT8)
    assert made.stat().st_size < 0.31 * graph.stat().st_size
    sessions = [ort.InferenceSession(g, providers=["CPUExecutionProvider"]) for g in (graph, made)]
    names = [i.name for i in sessions[0].get_inputs()]
    logits: list[list[np.ndarray]] = [[], []]
    for row in review_rows[:60]:
        feeds = {n: v.astype(np.int64) for n, v in tokenizer(row.text, return_tensors="np").items() if n in names}
        for session, found in zip(sessions, logits, strict=True):
            found.append(session.run(["logits"], feeds)[0][0])
    expected, found = np.array(logits[0]), np.array(logits[1])
    assert (found.argmax(-1) == expected.argmax(-1)).mean() > 0.95
    assert nearness(found, expected) > 0.99


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"bits": 5}, "bits=5: weight-only quantization takes 4 or 8"),
        ({"block_size": 48}, "block_size=48 must be a power of 2 of at least 16"),
        ({"accuracy_level": 7}, r"accuracy_level=7 must be 1 \(fp32\)"),
        ({"keep": ("nothing/MatMul",)}, "keep='nothing/MatMul': no node of the graph has a name that ends so"),
        ({"keep": ("MatMul", "Gather", "Gemm")}, "no constant matrix of 1024 numbers or more left to quantize"),
    ],
)
def test_what_cannot_be_says_so(gpts: dict[str, Path], tmp_path: Path, options: dict[str, Any], why: str) -> None:
    with pytest.raises(PlanError, match=why):
        quantize_weights(gpts["gpt2"], tmp_path / "model.onnx", **{**INT8, **options})
    assert list(tmp_path.iterdir()) == []
