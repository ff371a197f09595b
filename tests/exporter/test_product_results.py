"""Results of int8 products stay in float32, and what reads them rounded stays right."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper
from onnx.numpy_helper import from_array

import edgewise
from edgewise.data import Row
from edgewise.exporter.product_results import keep_results

RNG = np.random.default_rng(0)


def _pair(name: str, out: str, scale: str, zero: str) -> list[Any]:
    return [
        helper.make_node("QuantizeLinear", [name, scale, zero], [f"{out}/8"]),
        helper.make_node("DequantizeLinear", [f"{out}/8", scale, zero], [out]),
    ]


def _graph(path: Path, *, chained: bool, last: bool) -> Path:
    """x -> product -> (rounded) -> sum, or another product; `last`: the rounded result is the graph's output too."""
    weights = RNG.integers(-127, 127, (8, 8)).astype(np.int8)
    tensors = [
        from_array(weights, "w8"), from_array(np.float32(0.01), "ws"), from_array(np.int8(0), "wz"),
        from_array(np.float32(0.02), "xs"), from_array(np.uint8(128), "xz"), from_array(np.float32(0.3), "rs"),
        from_array(np.uint8(120), "rz"), from_array(np.ones(8, np.float32), "one"),
    ]  # fmt: skip
    nodes = [
        *_pair("x", "xr", "xs", "xz"),
        helper.make_node("DequantizeLinear", ["w8", "ws", "wz"], ["w"]),
        helper.make_node("MatMul", ["xr", "w"], ["r"], "first"),
        *_pair("r", "rr", "rs", "rz"),
        helper.make_node("MatMul", ["rr", "w"], ["y"]) if chained else helper.make_node("Add", ["rr", "one"], ["y"]),
    ]
    form = ["rows", 8]
    outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, form) for n in (["y", "rr"] if last else ["y"])]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, form)], outputs, tensors
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def _run(path: Path, x: np.ndarray) -> Sequence[np.ndarray]:
    found: Sequence[np.ndarray] = ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"x": x})
    return found


def _kinds(path: Path) -> list[str]:
    return [n.op_type for n in onnx.load(path).graph.node]


@pytest.mark.parametrize("last", [False, True])
def test_a_sum_reads_the_result_itself(tmp_path: Path, last: bool) -> None:
    path = _graph(tmp_path / "g.onnx", chained=False, last=last)
    x = RNG.standard_normal((5, 8)).astype(np.float32)
    before = _run(path, x)
    assert keep_results(path) == path
    after = _run(path, x)
    assert _kinds(path) == ["QuantizeLinear", "DequantizeLinear", "DequantizeLinear", "MatMul", "Add"]
    assert {t.name for t in onnx.load(path).graph.initializer}.isdisjoint({"rs", "rz"})
    onnx.checker.check_model(onnx.load(path), full_check=True)
    # Half a step of the rounding that is gone, at most.
    assert 0 < np.abs(after[0] - before[0]).max() <= 0.3 / 2 + 1e-5
    xr = np.clip(np.round(x / 0.02) + 128, 0, 255) - 128
    w = onnx.numpy_helper.to_array(onnx.load(path).graph.initializer[0]).astype(np.float64) * 0.01
    np.testing.assert_allclose(after[0], xr * 0.02 @ w + 1, rtol=1e-4, atol=1e-4)
    if last:
        np.testing.assert_allclose(after[1], after[0] - 1, rtol=1e-5, atol=1e-5)


def test_a_product_that_reads_the_result_in_8_bits_still_does(tmp_path: Path) -> None:
    path = _graph(tmp_path / "g.onnx", chained=True, last=False)
    whole = path.read_bytes()
    keep_results(path)
    assert path.read_bytes() == whole


def test_no_product_of_a_bundle_is_rounded_behind(bundles: dict[str, Path]) -> None:
    graph = onnx.load(bundles["int8-static"] / "onnx" / "model.onnx").graph
    readers: dict[str, set[str]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, set()).add(node.op_type)
    products = [n for n in graph.node if n.op_type in ("MatMul", "Gemm")]
    assert products
    assert all("QuantizeLinear" not in readers.get(n.output[0], set()) for n in products)


def test_the_products_run_in_int8(bundles: dict[str, Path], review_rows: tuple[Row, ...], tmp_path: Path) -> None:
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(bundles["int8-static"] / "onnx" / "model.onnx", options, providers=["CPUExecutionProvider"])
    kinds = _kinds(tmp_path / "optimized.onnx")
    assert "MatMulIntegerToFloat" in kinds
    with edgewise.load(bundles["int8-static"]) as model:
        assert len(model.predict([r.text for r in review_rows[:3]])) == 3
