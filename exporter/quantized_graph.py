"""The int8 products of a quantized graph with constant weights, in whichever nodes they stand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from edgewise.exporter.plain_graph import inner_nodes, take_apart
from edgewise.exporter.saturating import Pairs, heavy_pairs

if TYPE_CHECKING:
    import onnx

_PRODUCTS = {
    "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QLinearMatMul", "QAttention", "QGemm",
    "ConvInteger", "QLinearConv", "DynamicQuantizeLSTM",
}  # fmt: skip
"""Operators with int8 products inside; the last three are not emulated."""


@dataclass(frozen=True)
class Product:
    """One matrix product with constant int8 or uint8 weights. Names are of values in the graph; '' is none."""

    name: str
    output: str
    activations: str
    zero_point: str
    weights: np.ndarray
    """int8 or uint8 [K, N]."""
    weight_zero_point: np.ndarray
    """int32 [1] or [N]."""
    qdq: bool = False
    """Between DequantizeLinear nodes: int8 activations are turned into uint8 on x86."""
    signed: bool = False
    """int8 activations that stay so: no kernel of x86 saturates."""
    scale: str = ""
    """Of the activations; '' for MatMulInteger, whose output is int32."""
    weight_scale: np.ndarray | None = None
    """float32 [1] or [N]."""
    bias: str = ""
    """float32, added to the scaled product."""

    @property
    def reads(self) -> tuple[str, ...]:
        return tuple(name for name in (self.activations, self.zero_point, self.scale, self.bias) if name)

    @cached_property
    def heavy(self) -> Pairs | None:
        """The pairs of weights that could saturate; None where the kernel of x86 does not."""
        return None if self.signed or self.weights.dtype != np.int8 else heavy_pairs(self.weights)

    @cached_property
    def column_sums(self) -> np.ndarray:
        """int32 [N]."""
        found: np.ndarray = self.weights.sum(0, dtype=np.int32)
        return found


# ---- reading a graph


def read_products(model: onnx.ModelProto) -> tuple[list[Product], str]:
    """The products that can be emulated, and what stands in closed operators or branches, in words ('' for nothing).

    `model` is changed: what is fused is taken apart (`plain_graph.take_apart`).
    """
    from onnx.numpy_helper import to_array

    take_apart(model)
    nodes = list(model.graph.node)
    constants = {i.name: i for i in model.graph.initializer}
    makers = {name: node for node in nodes for name in node.output}

    def constant(name: str) -> np.ndarray | None:
        return to_array(constants[name]) if name in constants else None

    found = [p for node in nodes if (p := _read_product(node, makers, constant)) is not None]
    outputs = {p.output for p in found}
    unseen = [n for n in nodes if n.op_type in _PRODUCTS and n.output[0] not in outputs]
    inside = [n for node in nodes for n in inner_nodes(node) if n.op_type in _PRODUCTS]
    why = [f"{len(unseen)} in {', '.join(sorted({n.op_type for n in unseen}))} nodes"] if unseen else []
    why += [f"{len(inside)} in branches (If, Loop)"] if inside else []
    return found, f"int8 products that are not looked into: {' and '.join(why)}" if why else ""


def _read_product(
    node: onnx.NodeProto, makers: Mapping[str, onnx.NodeProto], constant: Callable[[str], np.ndarray | None]
) -> Product | None:
    """The node as a product in int8 with constant weights, or None."""
    given = [*node.input, *[""] * 7]
    if node.op_type == "MatMulInteger":
        a, b, zero, b_zero = given[:4]
        return _make(node, constant, (a, "", zero), (b, "", b_zero))
    if node.op_type == "MatMulIntegerToFloat":
        a, b, scale, b_scale, zero, b_zero, bias = given[:7]
        return _make(node, constant, (a, scale, zero), (b, b_scale, b_zero), bias=bias)
    return _read_qdq(node, makers, constant) if node.op_type in ("MatMul", "Gemm") else None


def _read_qdq(
    node: onnx.NodeProto, makers: Mapping[str, onnx.NodeProto], constant: Callable[[str], np.ndarray | None]
) -> Product | None:
    """A MatMul or Gemm whose two sides come from DequantizeLinear nodes, the second of constants; or None."""
    sides = [maker for name in node.input[:2] if (maker := makers.get(name)) is not None]
    options = {a.name: (a.f if a.name in ("alpha", "beta") else a.i) for a in node.attribute}
    plain = not options.get("transA") and options.get("alpha", 1) == options.get("beta", 1) == 1
    if [side.op_type for side in sides] != ["DequantizeLinear"] * 2 or not plain:
        return None
    (a, scale, zero), weights = ((*side.input, "")[:3] for side in sides)
    turned, bias = bool(options.get("transB")), (*node.input, "")[2]
    # With a float32 bias ONNX Runtime leaves a Gemm in float32 (qdq_selectors.cc, GemmNodeGroupSelector).
    in_float = bias and (bias not in makers or makers[bias].op_type != "DequantizeLinear")
    if in_float or not _one_scale_a_column(sides[1], constant(weights[1]), turned):
        return None
    return _make(node, constant, (a, scale, zero), weights, bias=bias, turned=turned, qdq=True)


def _one_scale_a_column(node: onnx.NodeProto, scale: np.ndarray | None, turned: bool) -> bool:
    """Whether a DequantizeLinear node's scale is one number, or one a column of the product (no blocks)."""
    if scale is None:
        return False
    axis = next((a.i for a in node.attribute if a.name == "axis"), 1) % 2
    return scale.size == 1 or (scale.ndim == 1 and axis == (0 if turned else 1))


def _make(
    node: onnx.NodeProto,
    constant: Callable[[str], np.ndarray | None],
    activations: tuple[str, str, str],
    weights: tuple[str, ...],
    *,
    bias: str = "",
    turned: bool = False,
    qdq: bool = False,
) -> Product | None:
    """activations, weights: (values, scale, zero point); None where the weights are no constant matrix of 8 bits."""
    w, scale, w_zero = (constant(name) if name else None for name in weights)
    if w is None or w.ndim != 2 or w.dtype not in (np.int8, np.uint8) or (weights[1] and scale is None):
        return None
    name, a_scale, zero = activations
    zeros = np.zeros(1, np.int32) if w_zero is None else w_zero.reshape(-1).astype(np.int32)
    kind = constant(zero) if zero else None
    signed = kind is not None and kind.dtype == np.int8
    return Product(
        node.name or node.output[0], node.output[0], name, zero, w.T if turned else w, zeros, qdq,
        signed and not qdq, a_scale, None if scale is None else scale.reshape(-1), bias,
    )  # fmt: skip
