"""A quantized graph run with its int8 products done here, exactly or saturating, and the rest by onnxruntime."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgewise.exporter.plain_graph import values_read
from edgewise.exporter.quantized_graph import Product
from edgewise.exporter.saturating import exact_product, saturate

if TYPE_CHECKING:
    import onnx

Multiply = Callable[[Product, np.ndarray], np.ndarray]
"""(product, activations [M, K]) -> int32 [M, N], zero points not yet applied."""


def exact_sums(product: Product, activations: np.ndarray) -> np.ndarray:
    return exact_product(activations, product.weights)


def counted_sums(product: Product, activations: np.ndarray, counts: dict[str, list[int]]) -> np.ndarray:
    """Saturating where it saturates on x86; adds to counts[name] = [saturated sums, sums]."""
    if product.heavy is None or activations.dtype != np.uint8:
        return exact_sums(product, activations)
    total, saturated = saturate(activations, product.weights, product.heavy)
    counts[product.name][0] += saturated
    counts[product.name][1] += total.size * -(-activations.shape[1] // 2)
    return total


def _compute(product: Product, values: Mapping[str, np.ndarray], multiply: Multiply) -> np.ndarray:
    """The node's output from the values it reads: (A - a0) (W - w0) = A W - a0 sum(W) - w0 sum(A) + K a0 w0."""
    given = values[product.activations]
    zero = values[product.zero_point].astype(np.int32).reshape(-1)[:1] if product.zero_point else np.zeros(1, np.int32)
    a = given.reshape(-1, given.shape[-1])
    if product.qdq and a.dtype == np.int8:
        a, zero = (a.astype(np.int16) + 128).astype(np.uint8), zero + 128
    w0 = product.weight_zero_point
    total: np.ndarray = multiply(product, a)
    total = total - zero * product.column_sums - w0 * a.sum(1, dtype=np.int32)[:, None]
    total = (total + a.shape[1] * zero * w0).reshape(*given.shape[:-1], -1)
    if product.weight_scale is None:
        return total
    result: np.ndarray = total.astype(np.float32) * (values[product.scale].reshape(-1)[:1] * product.weight_scale)
    return result + values[product.bias] if product.bias else result


# ---- running it in pieces


class StagedGraph:
    """A graph cut at its products: piece i is all that can be known once the products of the stages before i are."""

    def __init__(self, model: onnx.ModelProto, products: Sequence[Product]) -> None:
        self._model = model
        self._constants = {i.name: i for i in model.graph.initializer}
        self._outputs = [o.name for o in model.graph.output]
        by_output = {p.output: p for p in products}
        stages: dict[str, int] = defaultdict(int)
        self._nodes: dict[int, list[onnx.NodeProto]] = defaultdict(list)
        self._products: dict[int, list[Product]] = defaultdict(list)
        used = self._used(by_output)
        for node in model.graph.node:
            product = by_output.get(node.output[0])
            if not used.intersection(node.output):
                continue
            stage = max((stages[name] for name in (product.reads if product else values_read(node))), default=0)
            if product:
                self._products[stage].append(product)
            else:
                self._nodes[stage].append(node)
            stages.update(dict.fromkeys(node.output, stage + 1 if product else stage))
        self._last = max([*self._nodes, *self._products])
        self._sessions: dict[int, Any] = {}

    def _used(self, by_output: Mapping[str, Product]) -> set[str]:
        """Values that an output or a product needs: DequantizeLinear nodes that only fed a product are not."""
        used = set(self._outputs)
        for node in reversed(self._model.graph.node):
            if used.intersection(node.output):
                product = by_output.get(node.output[0])
                used.update(product.reads if product else values_read(node))
        return used

    def start(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """All values before the first products, by name."""
        from onnx.numpy_helper import to_array

        values = dict(feeds)
        wanted = {name for products in self._products.values() for p in products for name in p.reads}
        values |= {name: to_array(self._constants[name]) for name in wanted if name in self._constants}
        self._run(0, values)
        return values

    def finish(self, start: Mapping[str, np.ndarray], multiply: Multiply) -> np.ndarray:
        """The graph's first output."""
        values = dict(start)
        for stage in range(self._last + 1):
            if stage:
                self._run(stage, values)
            for product in self._products[stage]:
                values[product.output] = _compute(product, values, multiply)
        return values[self._outputs[0]]

    def _run(self, stage: int, values: dict[str, np.ndarray]) -> None:
        """Add to `values` what the nodes of a stage give."""
        if not self._nodes[stage]:
            return
        if stage not in self._sessions:
            self._sessions[stage] = self._open(stage, values)
        session = self._sessions[stage]
        names = [o.name for o in session.get_outputs()]
        given = {i.name: values[i.name] for i in session.get_inputs()}
        values.update(zip(names, session.run(names, given), strict=True))

    def _open(self, stage: int, values: Mapping[str, np.ndarray]) -> Any:
        """A session of one piece; its inputs have the types of `values`, and any shape."""
        import onnxruntime as ort
        from onnx.helper import make_graph, make_model, make_tensor_value_info, np_dtype_to_tensor_dtype

        nodes = self._nodes[stage]
        made = {name for node in nodes for name in node.output if name}
        reads = set().union(*(values_read(node) for node in nodes)) - made
        wanted = set(self._outputs)
        wanted.update(*(values_read(n) for s, later in self._nodes.items() if s > stage for n in later))
        wanted.update(*(p.reads for s, later in self._products.items() if s >= stage for p in later))
        inputs = sorted(reads & (values.keys() - self._constants.keys()))
        types = {name: np_dtype_to_tensor_dtype(values[name].dtype) for name in inputs}
        graph = make_graph(
            nodes,
            f"stage {stage}",
            [make_tensor_value_info(name, types[name], None) for name in inputs],
            [_untyped(name) for name in sorted(made & wanted)],
            [self._constants[name] for name in sorted(reads & self._constants.keys())],
        )
        opsets = [*self._model.opset_import]
        if not any(o.domain == "com.microsoft" for o in opsets):
            opsets.append(type(opsets[0])(domain="com.microsoft", version=1))
        piece = make_model(graph, opset_imports=opsets, functions=self._model.functions)
        piece.ir_version = self._model.ir_version
        options = ort.SessionOptions()
        options.log_severity_level = 3
        # Extended: a table of embeddings is not turned into float32 whole before its rows are taken.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.intra_op_num_threads = 1
        return ort.InferenceSession(piece.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _untyped(name: str) -> onnx.ValueInfoProto:
    """An output whose type onnxruntime infers."""
    import onnx

    return onnx.ValueInfoProto(name=name)
