"""The fp16 converter without the weights: what it makes is, number by number, what it makes of the whole graph."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import transformers as hf
from onnxruntime.transformers import float16

from edgewise.exporter import external
from edgewise.exporter.external import content, externalize, save_external, save_graph, weights
from edgewise.exporter.lean_half import convert_apart, half_content
from edgewise.exporter.tracing import DECODER, DECODER_WITH_PAST, ENCODER, export_graphs

EXTREMES = [
    1e-9,
    -1e-9,
    3e-8,
    5.96e-8,
    -5.96e-8,
    1e-40,
    0.0,
    -0.0,
    65504,
    65519.9,
    -65520,
    1e30,
    np.inf,
    -np.inf,
    np.nan,
]
"""Below and at the smallest number of fp16, beyond its largest, and what is none."""


def with_extremes(graph: Path, out: Path) -> Path:
    """The graph with these numbers in each matrix, and its weights beside it."""
    model = onnx.load(graph)
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) > 1:
            values = onnx.numpy_helper.to_array(tensor).copy()
            values.reshape(-1)[: len(EXTREMES)] = EXTREMES
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    for i, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{i}"
    return save_external(model, graph.parent, out)


def whole(graph: Path, kept: list[str]) -> Any:
    """As the converter makes it of the graph with all its weights."""
    return float16.convert_float_to_float16(str(graph), keep_io_types=True, node_block_list=kept)


def written(graph: Path, kept: list[str], out: Path) -> Any:
    model, waiting = convert_apart(graph, kept)
    save_graph(model, out, graph.parent, partial(half_content, waiting=waiting))
    return onnx.load(out)


def assert_same(found: Any, expected: Any) -> None:
    assert len(found.graph.initializer) > 10
    for ours, theirs in zip(found.graph.initializer, expected.graph.initializer, strict=True):
        assert (ours.name, ours.data_type, ours.dims) == (theirs.name, theirs.data_type, theirs.dims)
        assert content(ours, Path()) == content(theirs, Path()), ours.name
        del ours.external_data[:], theirs.external_data[:]
        ours.ClearField("data_location")
        theirs.ClearField("data_location")
    assert found == expected  # and so the nodes, the casts, and all that is known of shapes


def kinds(model: Any) -> set[int]:
    return {t.data_type for t in weights(model.graph)} & {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16}


def test_a_real_minilm_is_what_the_converter_makes(fp32_bundle: Path, tmp_path: Path) -> None:
    graph = with_extremes(fp32_bundle / "onnx" / "model.onnx", tmp_path / "model.onnx")
    nodes = [n.name for n in onnx.load(graph, load_external_data=False).graph.node]
    for kept in ([], [n for n in nodes if "layer.1" in n], nodes):
        found = written(graph, kept, tmp_path / "half.onnx")
        assert len(kinds(found)) == (2 if 0 < len(kept) < len(nodes) else 1)
        assert_same(found, whole(graph, kept))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["half.onnx", "model.onnx", "model.onnx_data"]


def test_weights_that_nodes_of_both_precisions_read(tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = hf.GPT2LMHeadModel(hf.GPT2Config(60, n_embd=32, n_layer=2, n_head=2, n_positions=32)).eval()
    export_graphs(model, "text-generation", tmp_path, None)
    graph = with_extremes(tmp_path / "model.onnx", tmp_path / "apart.onnx")
    readers: dict[str, list[str]] = {}
    nodes = onnx.load(graph, load_external_data=False).graph
    for node in nodes.node:
        for name in {*node.input} & {t.name for t in nodes.initializer if t.data_location and t.data_type == 1}:
            readers.setdefault(name, []).append(node.name)
    table, both = next((name, found) for name, found in readers.items() if len(found) > 1)
    for kept in ([both[0]], [both[-1]], both):
        found = written(graph, kept, tmp_path / "half.onnx")
        tensor = next(t for t in found.graph.initializer if t.name == table)
        assert (tensor.data_type == onnx.TensorProto.FLOAT) == (kept == both)
        assert_same(found, whole(graph, kept))


def test_the_graphs_of_a_t5(tmp_path: Path) -> None:
    torch.manual_seed(2)
    sizes = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0}
    model = hf.T5ForConditionalGeneration(hf.T5Config(60, **sizes)).eval()
    export_graphs(model, "text2text-generation", tmp_path, None)
    for name in (ENCODER, DECODER, DECODER_WITH_PAST):
        graph = with_extremes(tmp_path / name, tmp_path / f"apart_{name}")
        nodes = [n.name for n in onnx.load(graph, load_external_data=False).graph.node]
        kept = [n for n in nodes if "DenseReluDense/wo" in n]
        assert kept
        assert_same(written(graph, kept, tmp_path / "half.onnx"), whole(graph, kept))


def test_no_weight_is_read_before_it_is_written(fp32_bundle: Path, tmp_path: Path) -> None:
    graph = externalize(fp32_bundle / "onnx" / "model.onnx", tmp_path / "model.onnx")
    data = tmp_path / "model.onnx_data"
    moved = data.rename(tmp_path / "elsewhere")
    model, waiting = convert_apart(graph, [])
    assert model.ByteSize() < 0.02 * moved.stat().st_size
    moved.rename(data)
    before = model.SerializeToString()
    sizes = {t.name: len(half_content(t, tmp_path, waiting) or b"") for t in weights(model.graph)}
    assert sum(sizes.values()) > 0.49 * data.stat().st_size
    assert model.SerializeToString() == before  # reading leaves nothing in the message


def test_over_the_limit_they_go_beside_the_graph(
    fp32_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = with_extremes(fp32_bundle / "onnx" / "model.onnx", tmp_path / "model.onnx")
    monkeypatch.setattr(external, "_LIMIT", 1 << 20)  # instead of a model of 2 GB
    found = written(graph, [], tmp_path / "half.onnx")
    assert (tmp_path / "half.onnx_data").stat().st_size < 0.52 * (tmp_path / "model.onnx_data").stat().st_size
    assert_same(found, whole(graph, []))


def test_the_converter_is_left_as_it_was(tmp_path: Path) -> None:
    original = float16.make_value_info_from_tensor
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [2])
    twice = [onnx.numpy_helper.from_array(np.ones(2, np.float32), "w")] * 2
    node = onnx.helper.make_node("Add", ["x", "w"], ["y"])
    output = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [2])
    onnx.save(
        onnx.helper.make_model(onnx.helper.make_graph([node], "g", [value], [output], twice)), tmp_path / "g.onnx"
    )
    with pytest.raises(AssertionError):  # the converter's own
        convert_apart(tmp_path / "g.onnx", [])
    assert float16.make_value_info_from_tensor is original
    assert [p.name for p in tmp_path.iterdir()] == ["g.onnx"]
