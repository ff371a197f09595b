"""int8 products as AVX2 computes them: against a literal vpmaddubsw, ONNX Runtime, and an emulated Haswell."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info
from onnx.numpy_helper import from_array

from edgewise.assets import cache_folder
from edgewise.data import Row, Splits
from edgewise.errors import InputError
from edgewise.exporter import export, saturating
from edgewise.exporter.plain_graph import conditions, take_branches
from edgewise.exporter.quantized_graph import read_products
from edgewise.exporter.saturating import saturating_product
from edgewise.exporter.saturation import Saturation, saturation
from edgewise.exporter.staged_graph import StagedGraph, exact_sums

SIGNED = "int8-dynamic+preset=avx512_vnni"
STATIC = "int8-static+preset=avx512_vnni"
SAVED = ("int8-static+preset=avx512_vnni+offline=true", "int8-static+optimize=O2+preset=avx512_vnni",
         "int8-dynamic+optimize=O2+preset=avx512_vnni")  # fmt: skip
"""With products inside QGemm and QAttention."""
REDUCED = "int8-dynamic+reduce_range=true+preset=avx512_vnni"
UNSIGNED = ("int8-dynamic+preset=avx2", "int8-dynamic+symmetric_weights=false+preset=avx512_vnni")

Feeds = list[dict[str, np.ndarray]]


# ---- the product


def vpmaddubsw(activations: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, int]:
    """Intel's words: multiply unsigned by signed bytes, add neighbours, saturate to 16 bits; then sum in 32 bits."""
    (rows, depth), columns = activations.shape, weights.shape[1]
    total, saturated = np.zeros((rows, columns), np.int32), 0
    for m in range(rows):
        for n in range(columns):
            for k in range(0, depth, 2):
                word = int(activations[m, k]) * int(weights[k, n])
                if k + 1 < depth:
                    word += int(activations[m, k + 1]) * int(weights[k + 1, n])
                kept = max(-32768, min(32767, word))
                saturated += kept != word
                total[m, n] += kept
    return total, saturated


@pytest.mark.parametrize(("rows", "depth", "columns"), [(5, 12, 7), (1, 9, 4), (3, 1, 3), (2, 261, 2), (0, 4, 3)])
def test_the_product_is_that_of_the_instruction(rows: int, depth: int, columns: int) -> None:
    rng = np.random.default_rng(depth)
    for low, high, spread in ((0, 256, 128), (200, 256, 128), (0, 256, 20)):
        a = rng.integers(low, high, (rows, depth)).astype(np.uint8)
        w = rng.integers(-spread, spread, (depth, columns)).astype(np.int8)
        if rows and columns > 1 and depth > 1:
            w[:2, 0], w[:2, 1] = (127, 127), (-128, -128)
            a[0, :2] = 255
        wanted, count = vpmaddubsw(a, w)
        found, saturated = saturating_product(a, w)
        assert (found.dtype, saturated) == (np.int32, count)
        np.testing.assert_array_equal(found, wanted)
        assert (count >= 2) == (rows > 0 and depth > 1)


def test_a_crafted_matrix_saturates_where_it_must() -> None:
    a = np.array([[255, 255, 255, 255], [128, 129, 0, 0]], np.uint8)
    #              both ends     just at it, just below    of two signs: nothing
    w = np.array([[127, -128, 127, 127], [127, -128, 1, -127], [0, 0, -128, 1], [0, 0, -1, 1]], np.int8)
    found, saturated = saturating_product(a, w)
    assert found.tolist() == [[32767, -32768, 32640 - 32768, 510], [32639, -32768, 16385, -127]]
    exact = a.astype(np.int64) @ w
    assert saturated == (found != exact).sum() == 4
    assert (exact[:, 1] < -32768).all()


def test_seven_bits_never_saturate() -> None:
    a = np.full((2, 600), 255, np.uint8)
    for end in (-64, 64):
        found, saturated = saturating_product(a, np.full((600, 3), end, np.int8))
        assert saturated == 0
        assert (found == 255 * end * 600).all()
    assert saturating_product(a, np.full((600, 3), 65, np.int8))[1] == 2 * 300 * 3


def test_many_pairs_go_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    a, w = rng.integers(0, 256, (4, 20)).astype(np.uint8), rng.integers(-128, 128, (20, 9)).astype(np.int8)
    monkeypatch.setattr(saturating, "_BLOCK", 12)  # three pairs at a time: a column's pairs stand in several blocks
    wanted, count = vpmaddubsw(a, w)
    found, saturated = saturating_product(a, w)
    assert saturated == count > 12
    np.testing.assert_array_equal(found, wanted)


# ---- crafted graphs


class Crafted:
    """Graphs x [batch, length, 6] float32 -> y [batch, length, 3] with one product of the int8 `weights` each."""

    scale = np.array([0.01, 0.0199, 0.03], np.float32)

    def __init__(self, weights: np.ndarray) -> None:
        self.w = weights

    def nodes(self, kind: str) -> tuple[list[Any], dict[str, np.ndarray]]:
        values = {
            "w": self.w,
            "ws": self.scale,
            "wz": np.zeros(3, self.w.dtype),
            "b": np.array([0.1, 0.1, -0.3], np.float32),
        }
        values |= {"xs": np.array(0.02, np.float32), "xz": np.array(100, np.uint8)}
        values |= {"ys": np.array(0.5, np.float32), "yz": np.array(100, np.uint8)}
        quantize = make_node("QuantizeLinear", ["x", "xs", "xz"], ["q"])
        sides = [make_node("DequantizeLinear", ["q", "xs", "xz"], ["a"]),
                 make_node("DequantizeLinear", ["w", "ws", "wz"], ["wf"], axis=1)]  # fmt: skip
        if kind == "integer":
            nodes = [
                make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
                make_node("MatMulInteger", ["q", "w", "z"], ["i"], "product"),
                make_node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
                make_node("Mul", ["s", "ws"], ["ss"]),
                make_node("Mul", ["f", "ss"], ["y"]),
            ]
        elif kind == "signed integer":
            nodes, _ = self.nodes("integer")
            nodes[0] = make_node("QuantizeLinear", ["x", "xs", "xz"], ["q"])
            nodes[1] = make_node("MatMulInteger", ["q", "w", "xz"], ["i"], "product")
            nodes[3] = make_node("Mul", ["xs", "ws"], ["ss"])
            values["xz"] = np.array(-28, np.int8)
        elif kind in ("qdq", "signed qdq"):
            nodes = [quantize, *sides, make_node("MatMul", ["a", "wf"], ["y"], "product")]
            values["xz"] = values["xz"] if kind == "qdq" else np.array(-28, np.int8)
        elif kind in ("gemm", "float gemm"):
            values |= {"w": self.w.T.copy(), "flat": np.array([-1, 6]), "bz": np.zeros(3, np.int32)}
            values |= {"bs": self.scale * np.float32(0.02), "bq": np.array([500, 251, -500], np.int32)}
            sides[1] = make_node("DequantizeLinear", ["w", "ws", "wz"], ["wf"], axis=0)
            nodes = [
                make_node("Reshape", ["x", "flat"], ["x2"]),
                make_node("QuantizeLinear", ["x2", "xs", "xz"], ["q"]),
                *sides,
                make_node("DequantizeLinear", ["bq", "bs", "bz"], ["bf"], axis=0),
                make_node("Gemm", ["a", "wf", "bf" if kind == "gemm" else "b"], ["y2"], "product", transB=1),
                make_node("Shape", ["x"], ["dims"], end=2),
                make_node("Constant", [], ["three"], value=from_array(np.array([3]))),
                make_node("Concat", ["dims", "three"], ["whole"], axis=0),
                make_node("Reshape", ["y2", "whole"], ["y"]),
            ]
        elif kind == "fused dynamic":
            nodes = [make_node("DynamicQuantizeMatMul", ["x", "w", "ws", "wz", "b"], ["y"], "product",
                               domain="com.microsoft")]  # fmt: skip
        elif kind.startswith("fused gemm"):
            values |= {"w": self.w.T.copy(), "flat": np.array([-1, 6]), "c": np.array([500, 251, -500], np.int32)}
            values |= {"three": np.array([3])}
            if kind == "fused gemm of signed":
                values["xz"] = np.array(-28, np.int8)
            product = ["q", "xs", "xz", "w", "ws", "wz", "c"] + (["ys", "yz"] if "static" in kind else [])
            nodes = [
                make_node("Reshape", ["x", "flat"], ["x2"]),
                make_node("QuantizeLinear", ["x2", "xs", "xz"], ["q"]),
                make_node("QGemm", product, ["o"], "product", transB=1, alpha=1.0, domain="com.microsoft"),
                *([make_node("DequantizeLinear", ["o", "ys", "yz"], ["y2"])] if "static" in kind else
                  [make_node("Identity", ["o"], ["y2"])]),
                make_node("Shape", ["x"], ["dims"], end=2),
                make_node("Concat", ["dims", "three"], ["whole"], axis=0),
                make_node("Reshape", ["y2", "whole"], ["y"]),
            ]  # fmt: skip
        else:
            assert kind == "fused static"
            product = ["q", "xs", "xz", "w", "ws", "wz", "ys", "yz"]
            nodes = [quantize, make_node("QLinearMatMul", product, ["o"], "product"),
                     make_node("DequantizeLinear", ["o", "ys", "yz"], ["y"])]  # fmt: skip
        return nodes, values

    def write(self, kind: str, folder: Path) -> Path:
        nodes, values = self.nodes(kind)
        return write(folder / f"{kind}.onnx", nodes, values)


def write(path: Path, nodes: Sequence[Any], values: dict[str, np.ndarray], inputs: Sequence[Any] = ()) -> Path:
    x = make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "length", 6])
    y = make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "length", 3])
    used = {name for node in nodes for name in node.input}
    constants = [from_array(v, n) for n, v in values.items() if n in used]
    graph = make_graph(list(nodes), "crafted", [x, *inputs], [y], constants)
    opsets = [make_opsetid("", 17), make_opsetid("com.microsoft", 1)]
    onnx.save(make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


def session(path: Path) -> ort.InferenceSession:
    """One that does not saturate on any x86 CPU."""
    options = ort.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    options.log_severity_level = 3
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def emulated(path: Path, feeds: Feeds, saturating: bool) -> list[np.ndarray]:
    """What the emulation answers to each call."""
    found = []
    for feed in feeds:
        model = onnx.load(path)
        known = {name: bool(feed[name][0]) for name in conditions(model) & feed.keys()}
        model = take_branches(model, known)
        pieces = StagedGraph(model, read_products(model)[0])
        multiply = (lambda p, a: saturating_product(a, p.weights)[0]) if saturating else exact_sums
        found.append(pieces.finish(pieces.start(feed), multiply))
    return found


# The first two columns are near each other until the first saturates; the third saturates below.
HEAVY = np.array([[127, 63, -127], [127, 63, -127], [127, 64, 60], [127, 63, 5], [11, -3, 90], [-7, 2, 70]], np.int8)
EXACT = ["signed integer", "float gemm", "fused gemm of signed", UNSIGNED[0]]
KINDS = ["integer", "qdq", "signed qdq", "gemm", "fused dynamic", "fused static", "fused gemm", "fused gemm static"]


def some_rows() -> np.ndarray:
    """float32 [2, 4, 6], with activations at both ends."""
    x = np.random.default_rng(3).normal(1, 1.5, (2, 4, 6)).astype(np.float32)
    x[0, 0], x[1, 3] = 3.1, -2.0
    return x


@pytest.mark.parametrize("kind", KINDS)
def test_every_form_of_a_product_is_emulated(kind: str, tmp_path: Path) -> None:
    path = Crafted(HEAVY).write(kind, tmp_path)
    x = some_rows()
    (exact,) = emulated(path, [{"x": x}], saturating=False)
    np.testing.assert_allclose(exact, session(path).run(None, {"x": x})[0], atol=1e-5)
    found = saturation(path, [{"x": x}])
    # the same by hand: quantized, multiplied literally, scaled
    scale, zero = (0.02, 100) if "dynamic" not in kind and kind != "integer" else dynamic_scale(x)
    quantized = np.clip(np.rint(x / np.float32(scale)) + zero, 0, 255).astype(np.uint8).reshape(-1, 6)
    literal, count = vpmaddubsw(quantized, HEAVY)
    lost = (literal - quantized.astype(np.int64) @ HEAVY).reshape(2, 4, 3) * scale * Crafted.scale
    rounded = kind in ("fused static", "fused gemm static")  # the output is quantized too
    assert count > 5
    assert found.saturated_share == pytest.approx(count / (8 * 3 * 3))
    assert found.by_node == {"product": found.saturated_share}
    assert found.largest_output_difference == pytest.approx(np.abs(lost).max(), abs=0.6 if rounded else 1e-4)
    assert (found.applies, found.why, found.products, found.n) == (True, "", 1, 2)
    if not rounded:
        moved = (exact + lost).argmax(-1) != exact.argmax(-1)
        assert found.changed == moved.any(1).sum() > 0


def dynamic_scale(x: np.ndarray) -> tuple[float, int]:
    """As ONNX's DynamicQuantizeLinear."""
    low, high = min(0, x.min()), max(0, x.max())
    scale = np.float32(high - low) / np.float32(255)
    return float(scale), int(np.rint(-low / scale))


@pytest.mark.parametrize("kind", KINDS)
def test_light_and_unsigned_weights_do_not_saturate(kind: str, tmp_path: Path) -> None:
    path = Crafted((HEAVY // 2).astype(np.int8)).write(kind, tmp_path)
    found = saturation(path, [{"x": some_rows()}])
    assert (found.applies, found.saturated_share, found.products, found.advice) == (False, 0, 1, "")
    assert "no two weights side by side" in found.why
    unsigned = Crafted((HEAVY.astype(np.int16) + 128).astype(np.uint8)).write(kind, tmp_path)
    found = saturation(unsigned, [{"x": some_rows()}])
    assert (found.applies, found.products) == (False, 1)
    assert "unsigned" in found.why


@pytest.mark.parametrize("kind", ["signed integer", "fused gemm of signed"])
def test_signed_activations_in_operator_form_do_not_saturate(kind: str, tmp_path: Path) -> None:
    path = Crafted(HEAVY).write(kind, tmp_path)
    found = saturation(path, [{"x": some_rows()}])
    assert (found.applies, found.products) == (False, 1)
    assert "signed" in found.why


def test_a_gemm_with_a_float_bias_runs_in_float(tmp_path: Path) -> None:
    found = saturation(Crafted(HEAVY).write("float gemm", tmp_path), [{"x": some_rows()}])
    assert found == Saturation(False, "there is no matrix product in int8")


def test_small_activations_do_not_saturate(tmp_path: Path) -> None:
    path = Crafted(HEAVY).write("qdq", tmp_path)
    found = saturation(path, [{"x": np.zeros((3, 1, 6), np.float32)}])
    assert (found.applies, found.saturated_share, found.by_node, found.changed, found.n) == (True, 0, {}, 0, 3)
    assert "none of the 16-bit sums saturates on these 3 inputs" in found.advice


def test_padding_is_not_counted(tmp_path: Path) -> None:
    path = Crafted(HEAVY).write("integer", tmp_path)
    x = some_rows()
    whole = saturation(path, [{"x": x}])
    assert whole.changed > 0
    hidden = saturation(path, [{"x": x, "attention_mask": np.zeros((2, 4), np.int64)}])
    assert (hidden.changed, hidden.n, hidden.largest_output_difference) == (0, 2, 0)
    shown = saturation(path, [{"x": x, "attention_mask": np.ones((2, 9), np.int64)}])  # of a cache: longer
    assert (shown.changed, shown.largest_output_difference) == (whole.changed, whole.largest_output_difference)


# ---- branches


def branches(path: Path, before: Sequence[Any] = (), reads: str = "x", flag: str = "flag") -> Path:
    """An If whose both branches hold a product: then of x, else of x and a half."""
    x = make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "length", 6])
    y = make_tensor_value_info("y", TensorProto.FLOAT, None)
    inner = {}
    for end in ("then", "else"):
        nodes, values = Crafted(HEAVY).nodes("integer")
        start = make_node("Add", [reads, "half" if end == "else" else "nothing"], ["given"])
        nodes[0].input[:] = ["given"]
        # a weight that is the branch's own, and one of the outer graph
        inner[f"{end}_branch"] = make_graph([start, *nodes], end, [], [y], [from_array(values["ws"], "ws")])
    choice = make_node("If", [flag], ["y"], **inner)
    values |= {"turn": np.eye(3, 6, dtype=np.float32), "half": np.array(0.5, np.float32)}
    values |= {"nothing": np.array(0, np.float32)}
    del values["ws"]
    constants = [from_array(v, n) for n, v in values.items()]
    chooses = make_tensor_value_info("flag", TensorProto.BOOL, [1])
    graph = make_graph([*before, choice], "outer", [x, chooses], [y], constants)
    onnx.save(make_model(graph, opset_imports=[make_opsetid("", 17)], ir_version=8), path)
    return path


def test_the_branch_that_an_input_chooses_is_looked_into(tmp_path: Path) -> None:
    path = branches(tmp_path / "inside.onnx")
    for flag, given in ((True, some_rows()), (False, some_rows() + np.float32(0.5))):
        feed = {"x": some_rows(), "flag": np.array([flag])}
        found = saturation(path, [feed])
        plain = saturation(Crafted(HEAVY).write("integer", tmp_path), [{"x": given}])
        assert (found.applies, found.products, found.why) == (True, 1, "")
        assert found == plain  # which is held against the instruction above
        assert found.saturated_share > 0
        (exact,) = emulated(path, [feed], saturating=False)
        np.testing.assert_allclose(exact, session(path).run(None, feed)[0], atol=1e-5)
    both = saturation(path, [{"x": some_rows(), "flag": np.array([flag])} for flag in (True, False)])
    assert (both.n, both.products) == (4, 1)


def test_a_product_before_the_branches_counts_too(tmp_path: Path) -> None:
    def outer(name: str) -> str:
        return name if name in ("w", "x") else f"outer_{name}"

    before, values = Crafted(HEAVY).nodes("integer")
    for node in before:
        node.input[:], node.output[:] = map(outer, node.input), map(outer, node.output)
        node.name = node.name and "before"
    before.insert(0, make_node("Constant", [], ["outer_ws"], value=from_array(values["ws"])))
    before.append(make_node("MatMul", ["outer_y", "turn"], ["six"]))
    path = branches(tmp_path / "both.onnx", before, "six")
    feed = {"x": some_rows(), "flag": np.array([True])}
    found = saturation(path, [feed])
    assert (found.applies, found.products, found.why) == (True, 2, "")
    (exact,) = emulated(path, [feed], saturating=False)
    np.testing.assert_allclose(exact, session(path).run(None, feed)[0], atol=1e-5)


def test_a_branch_that_the_graph_itself_chooses_is_not_looked_into(tmp_path: Path) -> None:
    path = branches(tmp_path / "own.onnx", [make_node("Not", ["flag"], ["other"])], flag="other")
    found = saturation(path, [{"x": some_rows(), "flag": np.array([True])}])
    assert (found.applies, found.products) == (False, 0)
    assert "not looked into: 2 in branches" in found.why


# ---- attention


@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_emulated(masked: bool, tmp_path: Path) -> None:
    """QAttention against numpy, line by line."""
    path, x = attention(tmp_path / "attention.onnx", masked), some_rows()
    feed = {"x": x, **({"mask": np.array([4, 2], np.int32)} if masked else {})}
    scale, zero = dynamic_scale(x)
    quantized = np.clip(np.rint(x / np.float32(scale)) + zero, 0, 255).astype(np.uint8).reshape(-1, 6)
    literal, count = vpmaddubsw(quantized, WIDE)
    exact = quantized.astype(np.int64) @ WIDE
    assert count > 20
    wanted = [attend(p - zero * WIDE.sum(0, dtype=np.int64), scale, masked) for p in (exact, literal)]
    np.testing.assert_allclose(session(path).run(None, feed)[0], wanted[0], atol=1e-5)
    for saturates, answer in zip((False, True), wanted, strict=True):
        np.testing.assert_allclose(emulated(path, [feed], saturates)[0], answer, atol=1e-5)
    found = saturation(path, [feed])
    assert (found.applies, found.products, found.why) == (True, 1, "")
    assert found.saturated_share == pytest.approx(count / (8 * 3 * 12))
    assert found.largest_output_difference == pytest.approx(np.abs(wanted[0] - wanted[1]).max(), abs=1e-5)
    assert found.largest_output_difference > 0.01


WIDE = np.concatenate([HEAVY, HEAVY[:, ::-1], HEAVY, HEAVY // 2], axis=1)
"""Weights of queries, keys and values of width 4, by two heads: int8 [6, 12]."""
WIDE_SCALES = np.linspace(0.004, 0.01, 12).astype(np.float32)
WIDE_BIAS = np.linspace(-0.4, 0.4, 12).astype(np.float32)


def attention(path: Path, masked: bool) -> Path:
    """x [batch, length, 6] -> y [batch, length, 4]; mask: the length of each row."""
    parts = ["q", "w", "b", "s", "ws", "mask" if masked else "", "z", "wz"]
    nodes = [
        make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        make_node("QAttention", parts, ["y"], "attention", num_heads=2, domain="com.microsoft"),
    ]
    values = {"w": WIDE, "b": WIDE_BIAS, "ws": WIDE_SCALES, "wz": np.zeros(12, np.int8)}
    inputs = [make_tensor_value_info("mask", TensorProto.INT32, ["batch"])] if masked else []
    write(path, nodes, values, inputs)
    model = onnx.load(path)
    model.graph.output[0].type.tensor_type.shape.dim[2].dim_value = 4
    onnx.save(model, path)
    return path


def attend(products: np.ndarray, scale: float, masked: bool) -> np.ndarray:
    """Attention of two rows of four tokens by two heads, from int [8, 12]."""
    given = (products * (np.float32(scale) * WIDE_SCALES) + WIDE_BIAS).reshape(2, 4, 3, 2, 2)
    queries, keys, values = given.transpose(2, 0, 3, 1, 4)  # [batch, head, length, width] each
    scores = queries @ keys.swapaxes(2, 3) / np.sqrt(2)
    if masked:
        scores[1, :, :, 2:] = -np.inf
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    found: np.ndarray = (weights / weights.sum(-1, keepdims=True)) @ values
    return found.transpose(0, 2, 1, 3).reshape(2, 4, 4)


def test_a_graph_without_int8_and_bad_feeds(fp32_bundle: Path, tmp_path: Path) -> None:
    found = saturation(fp32_bundle / "onnx/model.onnx", [])
    assert found == Saturation(False, "there is no matrix product in int8")
    path = Crafted(HEAVY).write("integer", tmp_path)
    with pytest.raises(InputError, match="there are none"):
        saturation(path, [])
    with pytest.raises(InputError, match="call 1 has no x: the graph takes x"):
        saturation(path, [{"x": some_rows()}, {"z": some_rows()}])


# ---- real bundles


@pytest.fixture(scope="module")
def forms(tuned: Path, review_splits: Splits) -> dict[str, Path]:
    """Recipe -> graph, of the tuned two-layer MiniLM."""
    recipes = [SIGNED, STATIC, *SAVED, REDUCED, *UNSIGNED]
    out = cache_folder() / "tests" / "saturation"
    results = export(tuned, recipes, out=out, candidate="tiny", calibration=review_splits.train)
    assert [r.reason for r in results] == [""] * len(recipes)
    return {name: r.bundle.path / "onnx/model.onnx" for name, r in zip(recipes, results, strict=True) if r.bundle}


@pytest.fixture(scope="module")
def feeds(tuned: Path, review_rows: tuple[Row, ...]) -> Callable[[int], Feeds]:
    """The first rows of val, one a call."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tuned)

    def make(n: int) -> Feeds:
        encoded = [tokenizer([r.text], truncation=True, max_length=48, return_tensors="np") for r in review_rows[:n]]
        return [{name: value.astype(np.int64) for name, value in e.items()} for e in encoded]

    return make


def answers(path: Path, feeds: Feeds) -> np.ndarray:
    opened = session(path)
    names = [i.name for i in opened.get_inputs()]
    return np.concatenate([opened.run(None, {n: feed[n] for n in names})[0] for feed in feeds])


@pytest.mark.parametrize("recipe", [SIGNED, STATIC, *SAVED])
def test_signed_weights_saturate_and_the_exact_run_is_onnxruntimes(forms, feeds, recipe: str) -> None:
    rows = feeds(16)
    exact, found = (np.concatenate(emulated(forms[recipe], rows, s)) for s in (False, True))
    off = np.abs(exact - answers(forms[recipe], rows)).max(1)
    # A value between two steps of quantization may be rounded the other way where ONNX Runtime fuses nodes.
    assert np.median(off) < 1e-5
    assert off.max() < 0.02
    told = saturation(forms[recipe], rows)
    print(recipe, told)
    fused = "optimize=O2" in recipe  # three products of a layer are one
    assert (told.applies, told.why, told.products, told.n) == (True, "", 10 if fused else 14, 16)
    assert 1e-6 < told.saturated_share < 1e-3
    shares = list(told.by_node.values())
    assert shares == sorted(shares, reverse=True)
    assert fused or "attention/output/dense" in "".join([*told.by_node][:2])
    assert told.largest_output_difference == pytest.approx(np.abs(found - exact).max(), rel=1e-6)
    assert told.largest_output_difference > 2 * off.max()
    assert told.changed == (found.argmax(1) != exact.argmax(1)).sum()
    assert "reduce_range=true" in told.advice
    assert "symmetric_weights=false" in told.advice


@pytest.mark.parametrize("recipe", [REDUCED, *UNSIGNED])
def test_the_options_that_avoid_it_do(forms, feeds, recipe: str) -> None:
    rows = feeds(4)
    found = saturation(forms[recipe], rows)
    assert (found.applies, found.saturated_share, found.changed, found.products) == (False, 0, 0, 14)
    assert ("reduce_range" if recipe == REDUCED else "unsigned") in found.why
    exact = np.concatenate(emulated(forms[recipe], rows, saturating=False))
    assert np.abs(exact - answers(forms[recipe], rows)).max() < 0.02


def test_a_batch_is_several_inputs(forms, feeds) -> None:
    short = [{name: value[:, :6] for name, value in feed.items()} for feed in feeds(3)]
    batch = {name: np.concatenate([feed[name] for feed in short]) for name in short[0]}
    found = saturation(forms[STATIC], [batch, short[0]])
    assert found.n == 4
    single = saturation(forms[STATIC], short)
    assert (single.n, single.largest_output_difference) == (3, pytest.approx(found.largest_output_difference, abs=1e-4))


# ---- the real thing: ONNX Runtime on a CPU with AVX2 alone

_PLAIN = """
import sys, numpy, onnxruntime
feeds = numpy.load(sys.argv[1])
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[2], options, providers=["CPUExecutionProvider"])
names = [i.name for i in session.get_inputs()]
calls = range(len({name.split(".")[0] for name in feeds.files}))
numpy.save(sys.argv[3], numpy.concatenate([session.run(None, {n: feeds[f"{i}.{n}"] for n in names})[0] for i in calls]))
"""


def on_haswell(path: Path, feeds: Feeds, folder: Path) -> np.ndarray:
    """Answers of ONNX Runtime's AVX2 kernels, in QEMU's user mode."""
    given, script, out = folder / "feeds.npz", folder / "plain.py", folder / "out.npy"
    np.savez(given, **{f"{i}.{name}": value for i, feed in enumerate(feeds) for name, value in feed.items()})
    script.write_text(_PLAIN)
    command = ["qemu-x86_64", "-cpu", "Haswell", sys.executable, script, given, path, out]
    subprocess.run(command, check=True, timeout=500, capture_output=True)
    return np.load(out)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("qemu-x86_64") is None, reason="needs qemu-x86_64 (Debian's qemu-user)")
@pytest.mark.parametrize("form", [*KINDS, "attention", *EXACT, SIGNED, STATIC, *SAVED])
def test_an_avx2_cpu_answers_as_emulated(forms, feeds, form: str, tmp_path: Path) -> None:
    rows = feeds(8) if form in forms else [{"x": some_rows()}]
    if form == "attention":
        path = attention(tmp_path / "attention.onnx", masked=False)
    else:
        path = forms[form] if form in forms else Crafted(HEAVY).write(form, tmp_path)
    saturates = form not in EXACT
    exact = np.concatenate(emulated(path, rows, saturating=False))
    wanted = np.concatenate(emulated(path, rows, saturating=True)) if saturates else exact
    found = on_haswell(path, rows, tmp_path)
    off = np.abs(found - wanted).reshape(len(found), -1).max(1)
    print(form, "from the emulation", off.max(), "from the exact run", np.abs(found - exact).max())
    assert np.median(off) < 1e-5
    assert off.max() < 0.02
    moved = np.abs(wanted - exact).reshape(len(found), -1).max(1)
    # Static products give float32, so that less comes of what saturates.
    assert (moved.max() > (0.01 if form.startswith("int8-static") else 0.04)) == saturates
    if saturates:  # the answer that saturation moves most is moved so
        assert off[moved.argmax()] < moved.max() / 10
