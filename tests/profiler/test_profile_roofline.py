"""Operations, peaks and the limit that they set: counted by hand, and on a real bundle."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from edgewise.bundle import read_bundle
from edgewise.data import Row
from edgewise.profiler import Store, Subject, measure_latency
from edgewise.profiler.nodes import _count
from edgewise.profiler.peaks import INT8_PRODUCT, PRODUCT, last_cache, read_peaks
from edgewise.profiler.roofline import roofline, roofline_metric
from edgewise.profiler.rounds import MODES
from edgewise.types import RunSettings, Target

PEAKS = {"float32": 1e11, "int8": 4e11, "bytes": 2e10, "cache": 10_000_000}


@pytest.mark.parametrize(
    ("model", "name", "kinds"),
    [
        (PRODUCT, "MatMul", (TensorProto.FLOAT, TensorProto.FLOAT, TensorProto.FLOAT)),
        (INT8_PRODUCT, "MatMulInteger", (TensorProto.UINT8, TensorProto.INT8, TensorProto.INT32)),
    ],
)
def test_the_products_are_those_that_onnx_would_write(model: bytes, name: str, kinds: tuple[int, int, int]) -> None:
    a, b, y = (helper.make_tensor_value_info(n, k, None) for n, k in zip("aby", kinds, strict=True))
    graph = helper.make_graph([helper.make_node(name, ["a", "b"], ["y"])], "g", [a, b], [y])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    assert onnx.load_from_string(model) == made
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    kind = np.float32 if name == "MatMul" else np.int8
    (found,) = session.run(
        None, {"a": np.full((2, 3), 2, kind if name == "MatMul" else np.uint8), "b": np.ones((3, 2), kind)}
    )
    assert found.tolist() == [[6, 6], [6, 6]]


def test_peaks_are_measured_on_this_machine() -> None:
    found = read_peaks(1)
    assert sorted(found) == ["bytes", "cache", "float32", "int8"]
    for name in ("float32", "int8", "bytes"):
        assert found[name] is not None
        assert 1e8 < found[name] < 1e14  # type: ignore[operator]


def test_the_last_cache_is_the_largest(tmp_path: Path) -> None:
    for index, size in enumerate(("32K", "1024K", "16M", "odd")):
        folder = tmp_path / f"sys/devices/system/cpu/cpu0/cache/index{index}"
        folder.mkdir(parents=True)
        (folder / "size").write_text(f"{size}\n", encoding="ascii")
    assert last_cache(tmp_path) == 16 * 2**20
    assert last_cache(tmp_path / "none") is None


@pytest.mark.parametrize(
    ("name", "inputs", "output", "expected"),
    [
        ("MatMul", [[1, 32, 384], [384, 1536]], [1, 32, 1536], {"float32": 2 * 32 * 384 * 1536}),
        ("MatMul", [[1, 12, 32, 32], [1, 12, 32, 64]], [1, 12, 32, 64], {"float32": 2 * 12 * 32 * 32 * 64}),
        ("DynamicQuantizeMatMul", [[1, 32, 384], [384]], [1, 32, 384], {"int8": 2 * 32 * 384 * 384}),  # packed weights
        ("Gemm", [[4, 8], [8, 2]], [4, 2], {"float32": 2 * 4 * 8 * 2}),
        ("Conv", [[1, 3, 28, 28], [64, 3, 7, 7]], [1, 64, 4, 4], {"float32": 2 * 64 * 16 * 3 * 49}),
        ("MultiHeadAttention", [[1, 8, 64], [1, 10, 64]], [1, 8, 64], {"float32": 4 * 8 * 64 * 10}),
        ("QAttention", [[1, 8, 64], [64, 192]], [1, 8, 64], {"int8": 2 * 8 * 64 * 192, "float32": 4 * 8 * 8 * 64}),
        ("Add", [[4, 8], [4, 8]], [4, 8], {}),
        ("MatMul", [], [4, 8], {}),
    ],
)
def test_operations_of_a_node(name: str, inputs: list[Any], output: list[int], expected: dict[str, int]) -> None:
    found = {"float32": 0.0, "int8": 0.0}
    shapes = [{"float": i} for i in inputs]
    _count({"op_name": name, "input_type_shape": shapes, "output_type_shape": [{"float": output}]}, found)
    assert found == {"float32": 0.0, "int8": 0.0, **expected}


def _nodes(**changed: Any) -> dict[str, Any]:
    base = {"runs": 9, "runs_by_graph": [10], "calls": 10, "operations": {"float32": 9e8, "int8": 18e8}}
    return {**base, **changed}


def test_the_limit_is_the_larger_of_products_and_memory(fp32_bundle: Path) -> None:
    subject = Subject("tiny", "fp32", read_bundle(fp32_bundle))
    weights = subject.manifest.graphs[0].bytes_by_part["other weights"]
    found = roofline(subject, _nodes(), {**PEAKS, "cache": weights - 1})
    assert found is not None
    assert found.compute_s == pytest.approx(1e8 / 1e11 + 2e8 / 4e11)  # of one call, the first run among them
    assert found.memory_s == pytest.approx(weights / 2e10)
    assert found.limit_s == max(found.compute_s, found.memory_s)
    metric = roofline_metric(found, 2 * found.limit_s)
    assert metric.value == pytest.approx(0.5)
    assert metric.kind == "estimated"
    cached = roofline(subject, _nodes(), {**PEAKS, "cache": weights})
    assert cached is not None
    assert cached.memory_s == 0
    assert roofline(subject, None, PEAKS) is None
    assert roofline(subject, _nodes(operations={"float32": 0.0, "int8": 0.0}), PEAKS) is None
    assert roofline_metric(None, 1.0).kind == "unavailable"
    above = roofline_metric(found, 0.5 * found.limit_s)
    assert (above.value, above.kind) == (None, "unavailable")
    assert "is above the mean: the machine was slower while they were measured" in above.why


def test_of_a_real_bundle_the_operations_are_those_of_its_weights(bundles: dict[str, Path], tmp_path: Path) -> None:
    """All weights but the embeddings are multiplied with every token, and attention adds a little."""
    subjects = [Subject("tiny", r, read_bundle(bundles[r])) for r in ("fp32", "int8-dynamic")]
    rows = [Row(text="a film of a certain length and no other")]
    spec = replace(MODES["quick"], seconds=0.05)
    with Store(tmp_path / "m.sqlite") as store:
        found = measure_latency(subjects, [Target("here", RunSettings())], rows, store=store, spec=spec)
    told = [m.conditions["roofline"] for m in found]
    tokens = found[0].conditions["inputs"]["tokens"]["mean"]
    layers = 2 * (4 * 384 * 384 + 2 * 384 * 1536)  # the pooler and the classifier see one token
    expected = 2 * layers * tokens + 2 * 384 * 384 + 4 * 2 * tokens * tokens * 384
    assert told[0]["operations"]["float32"] == pytest.approx(expected, rel=0.01)
    assert sum(told[1]["operations"].values()) == pytest.approx(expected, rel=0.01)
    assert told[1]["operations"]["int8"] > 0.95 * expected
    shares = [m.metric("roofline") for m in found]
    assert all(x is not None and x.value is not None and 0 < x.value < 1 for x in shares)
