"""int8 products as CPUs without VNNI compute them: what their 16-bit sums change, found on any CPU.

What ONNX Runtime does on x86 with uint8 activations and int8 weights, by its sources (onnxruntime/core/mlas/lib):

- amd64/QgemmU8X8KernelAvx2.asm: without VNNI the product is `vpmaddubsw`, then `vpmaddwd` by ones, `vpaddd`. The first
  adds the products of two neighbouring bytes and **saturates at int16**; the rest is exact. With VNNI `vpdpbusds` sums
  four products in 32 bits: nothing saturates. platform.cpp: AVX512 without VNNI has a kernel of the first kind too.
- qgemm_kernel_avx2.cpp: PackedK = 4, and K is cut in slices of 128 or 384, so the pairs are (0, 1), (2, 3), ... along K
  for every shape, and an odd K is filled up with a zero.
- qgemm.h: activations are packed as they are; sums of rows and columns mend the zero points afterwards. So it is the
  raw bytes that saturate.
- qgemm.h, MlasGemmQuantGetDispatch: unsigned weights go to a kernel that widens to 16 bits before it multiplies: exact.
  int8 activations of a MatMulInteger go to neither: exact.
- ../../optimizer/qdq_transformer/qdq_s8_to_u8.cc: on x86 a pair of QuantizeLinear and DequantizeLinear of int8 becomes
  uint8 (values + 128). So S8S8 in QDQ form is U8S8 there and saturates likewise: it is no remedy.

Each was seen in onnxruntime 1.32 on a Haswell emulated by QEMU, which answers as this module says (the slow tests).
The remedies at export are 7-bit weights (255 * (64 + 64) < 2^15) and unsigned weights.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgewise.errors import InputError

if TYPE_CHECKING:
    import onnx

_LOW, _HIGH = -(1 << 15), (1 << 15) - 1
_BLOCK = 1 << 22
"""Pair sums that are held at a time: 16 MB."""
_EXACT = 256
"""Products of a byte by a byte whose sum float32 holds: 256 * 255^2 < 2^24."""
_LARGEST = (1 << 31) - (1 << 24)
"""Bytes of a graph that protobuf can still write."""
_CLOSED = {"QAttention", "QGemm", "ConvInteger", "QLinearConv", "DynamicQuantizeLSTM", "QEmbedLayerNormalization"}
"""Operators with int8 weights inside whose products are not emulated."""
_PRODUCTS = {"MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QLinearMatMul", *_CLOSED}


@dataclass(frozen=True)
class Saturation:
    """What 16-bit saturation would do to a quantized graph on an x86 CPU without VNNI."""

    applies: bool
    """Whether there is a product of uint8 activations and int8 weights that could saturate."""
    why: str = ""
    """Why it does not apply; where it does, what was not looked into."""
    products: int = 0
    """Matrix products in int8 with constant weights that were looked at."""
    saturated_share: float = 0.0
    """Of all sums of two products, those beyond int16, from 0 to 1."""
    by_node: Mapping[str, float] = field(default_factory=dict, hash=False)
    """Node name -> its share, the largest first; nodes without any are left out."""
    largest_output_difference: float = 0.0
    """Of the first output, in its unit, against the exact run; padding (attention_mask 0) is not counted."""
    changed: int = 0
    """Inputs (rows of the first output) whose argmax over the last axis changed somewhere: for a classifier or a
    language model its answer; for embeddings, regression and several labels look at the difference instead."""
    n: int = 0
    """Inputs that were run."""
    advice: str = ""
    """In words: what happens, and the recipe option that avoids it. '' where it does not apply."""


def saturation(graph: Path, feeds: Sequence[Mapping[str, np.ndarray]], *, labels: bool = True) -> Saturation:
    """Run a quantized graph exactly and with saturating int8 products, forward through the whole graph, and compare.

    graph: a .onnx file with MatMulInteger (int8-dynamic), MatMul or Gemm between DequantizeLinear nodes (int8-static),
    or what ONNX Runtime fuses them to and saves. feeds: one mapping a call, a value for each graph input, rows along
    the first axis. labels: the largest number of the last axis is the answer, and the advice counts those that change.
    What stands between the products is run by onnxruntime; the products themselves are done in numpy, both times, so
    the answer is the same on every CPU. A value that a saturated sum brings into another step of
    quantization moves later ones: differences are not proportional to the share.

    Raises InputError for no feeds, or for feeds that lack an input of the graph.
    """
    import onnx

    model = onnx.load(graph)
    if model.ByteSize() > _LARGEST:
        return Saturation(False, f"{graph.name} has {model.ByteSize() / 1e9:.1f} GB: too large to be cut into pieces")
    products, why = _read(model)
    if not any(p.heavy is not None and len(p.heavy.k) for p in products):
        return Saturation(False, why or _why_not(products), len(products))
    _check_feeds(model, feeds)
    pieces = _Pieces(model, products)
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    difference, changed, n = 0.0, 0, 0
    for feed in feeds:
        start = pieces.start(feed)
        exact = pieces.finish(start, _exact)
        found = pieces.finish(start, lambda p, a: _counted(p, a, counts))
        rows, largest = _compare(exact, found, feed.get("attention_mask"))
        difference, changed, n = max(difference, largest), changed + int(rows.sum()), n + len(rows)
    shares = {name: hit / total for name, (hit, total) in counts.items() if hit}
    share = sum(hit for hit, _ in counts.values()) / max(1, sum(total for _, total in counts.values()))
    by_node = dict(sorted(shares.items(), key=lambda item: -item[1]))
    advice = _advice(share, difference, changed if labels else None, n)
    return Saturation(True, why, len(products), share, by_node, difference, changed, n, advice)


def saturating_product(activations: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, int]:
    """The product as `vpmaddubsw` makes it: each sum of two products, along K in pairs, saturated at int16.

    activations: uint8 [M, K]; weights: int8 [K, N]. Returns int32 [M, N] and how many of the M * ceil(K / 2) * N sums
    were saturated. Zero points are no part of it. Only pairs that the extremes of their two columns of activations
    could bring beyond int16 are summed one by one; the rest is one exact matrix product.
    """
    return _saturating(activations, weights, _heavy_pairs(weights))


@dataclass(frozen=True)
class _Pairs:
    """Pairs of weights side by side along K, ordered by column."""

    column: np.ndarray
    """int64 [pairs]."""
    k: np.ndarray
    """int64 [pairs]: the pair is weights[2 k] and weights[2 k + 1]."""
    first: np.ndarray
    """int32 [pairs]: the weight at 2 k."""
    second: np.ndarray

    def at(self, chosen: np.ndarray | slice) -> _Pairs:
        return _Pairs(self.column[chosen], self.k[chosen], self.first[chosen], self.second[chosen])


def _heavy_pairs(weights: np.ndarray) -> _Pairs:
    """The pairs that some uint8 activations bring beyond int16: only those of one sign are long enough."""
    if len(weights) % 2:  # MLAS fills up with zeros
        weights = np.pad(weights, ((0, 1), (0, 0)))
    first, second = weights[0::2].T.astype(np.int16), weights[1::2].T.astype(np.int16)  # [N, ceil(K / 2)]
    most, least = np.maximum(first, 0) + np.maximum(second, 0), np.minimum(first, 0) + np.minimum(second, 0)
    column, k = np.nonzero((most > _HIGH // 255) | (least < _LOW // 255 + 1))
    return _Pairs(column, k, first[column, k].astype(np.int32), second[column, k].astype(np.int32))


def _saturating(activations: np.ndarray, weights: np.ndarray, heavy: _Pairs) -> tuple[np.ndarray, int]:
    total = _product(activations, weights)
    a = np.pad(activations, ((0, 0), (0, activations.shape[1] % 2))).astype(np.int32)
    if not len(a):
        return total, 0
    # A first look at the extremes of each column of activations, instead of at every row.
    pairs = heavy.at(_beyond(a.min(0), a.max(0), heavy))
    step, saturated = max(1, _BLOCK // len(a)), 0
    for start in range(0, len(pairs.k), step):
        some = pairs.at(slice(start, start + step))
        sums = a[:, 2 * some.k] * some.first + a[:, 2 * some.k + 1] * some.second  # [M, step]
        excess = np.clip(sums, _LOW, _HIGH) - sums
        saturated += int(np.count_nonzero(excess))
        columns, starts = np.unique(some.column, return_index=True)
        if len(columns):
            total[:, columns] += np.add.reduceat(excess, starts, axis=1)
    return total, saturated


def _beyond(low: np.ndarray, high: np.ndarray, pairs: _Pairs) -> np.ndarray:
    """bool [pairs]: whether activations between `low` and `high`, int32 [K], can bring the sum beyond int16."""
    upper = np.zeros(len(pairs.k), np.int32)
    lower = np.zeros(len(pairs.k), np.int32)
    for offset, w in ((0, pairs.first), (1, pairs.second)):
        ends = low[2 * pairs.k + offset] * w, high[2 * pairs.k + offset] * w
        upper += np.maximum(*ends)
        lower += np.minimum(*ends)
    return (upper > _HIGH) | (lower < _LOW)


def _product(activations: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """int32 [M, N], exact, in slices of K whose sums float32 holds."""
    total = np.zeros((len(activations), weights.shape[1]), np.int32)
    for start in range(0, len(weights), _EXACT):
        part = slice(start, start + _EXACT)
        product = activations[:, part].astype(np.float32) @ weights[part].astype(np.float32)
        total += product.astype(np.int32)
    return total


# ---- products


@dataclass(frozen=True)
class _Product:
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
    def heavy(self) -> _Pairs | None:
        """The pairs of weights that could saturate; None where the kernel of x86 does not."""
        return None if self.signed or self.weights.dtype != np.int8 else _heavy_pairs(self.weights)

    @cached_property
    def column_sums(self) -> np.ndarray:
        """int32 [N]."""
        found: np.ndarray = self.weights.sum(0, dtype=np.int32)
        return found


_Multiply = Callable[[_Product, np.ndarray], np.ndarray]
"""(product, activations [M, K]) -> int32 [M, N], zero points not yet applied."""


def _exact(product: _Product, activations: np.ndarray) -> np.ndarray:
    return _product(activations, product.weights)


def _counted(product: _Product, activations: np.ndarray, counts: dict[str, list[int]]) -> np.ndarray:
    """Saturating where it saturates on x86; adds to counts[name] = [saturated sums, sums]."""
    if product.heavy is None or activations.dtype != np.uint8:
        return _exact(product, activations)
    total, saturated = _saturating(activations, product.weights, product.heavy)
    counts[product.name][0] += saturated
    counts[product.name][1] += total.size * -(-activations.shape[1] // 2)
    return total


def _compute(product: _Product, values: Mapping[str, np.ndarray], multiply: _Multiply) -> np.ndarray:
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


# ---- reading a graph


def _read(model: onnx.ModelProto) -> tuple[list[_Product], str]:
    """The products that can be emulated, and what stands in closed operators or branches, in words ('' for nothing).

    In `model`, Constant nodes become initializers, and nodes that ONNX Runtime fused the plain ones they stand for.
    """
    from onnx.numpy_helper import to_array

    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            tensor = model.graph.initializer.add()
            tensor.CopyFrom(node.attribute[0].t)
            tensor.name = node.output[0]
        else:
            nodes += _unfused(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    constants = {i.name: i for i in model.graph.initializer}
    makers = {name: node for node in nodes for name in node.output}

    def constant(name: str) -> np.ndarray | None:
        return to_array(constants[name]) if name in constants else None

    found = [p for node in nodes if (p := _read_product(node, makers, constant)) is not None]
    outputs = {p.output for p in found}
    unseen = [n for n in nodes if n.op_type in _PRODUCTS and n.output[0] not in outputs]
    inside = [n for node in nodes for n in _inner(node) if n.op_type in _PRODUCTS]
    why = [f"{len(unseen)} in {', '.join(sorted({n.op_type for n in unseen}))} nodes"] if unseen else []
    why += [f"{len(inside)} in branches (If, Loop)"] if inside else []
    return found, f"int8 products that are not looked into: {' and '.join(why)}" if why else ""


def _unfused(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """The node, or what ONNX Runtime fused into it: quantization of the input or the output beside the product."""
    from onnx.helper import make_node

    given, domain = list(node.input), "com.microsoft"
    if node.op_type == "DynamicQuantizeMatMul":
        a, b, scale, zero, bias = [*given, "", ""][:5]
        parts = [f"{node.output[0]}_{part}" for part in ("quantized", "scale", "zero_point")]
        product = [parts[0], b, parts[1], scale, parts[2], zero, bias]
        return [
            make_node("DynamicQuantizeLinear", [a], parts),
            make_node("MatMulIntegerToFloat", product, node.output, node.name, domain=domain),
        ]
    if node.op_type == "QLinearMatMul":
        a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = given
        inner = f"{node.output[0]}_float"
        product = [a, b, a_scale, b_scale, a_zero, b_zero]
        return [
            make_node("MatMulIntegerToFloat", product, [inner], node.name, domain=domain),
            make_node("QuantizeLinear", [inner, y_scale, y_zero], node.output),
        ]
    return [node]


def _read_product(
    node: onnx.NodeProto, makers: Mapping[str, onnx.NodeProto], constant: Callable[[str], np.ndarray | None]
) -> _Product | None:
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
) -> _Product | None:
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
) -> _Product | None:
    """activations, weights: (values, scale, zero point); None where the weights are no constant matrix of 8 bits."""
    w, scale, w_zero = (constant(name) if name else None for name in weights)
    if w is None or w.ndim != 2 or w.dtype not in (np.int8, np.uint8) or (weights[1] and scale is None):
        return None
    name, a_scale, zero = activations
    zeros = np.zeros(1, np.int32) if w_zero is None else w_zero.reshape(-1).astype(np.int32)
    kind = constant(zero) if zero else None
    signed = kind is not None and kind.dtype == np.int8
    return _Product(
        node.name or node.output[0], node.output[0], name, zero, w.T if turned else w, zeros, qdq,
        signed and not qdq, a_scale, None if scale is None else scale.reshape(-1), bias,
    )  # fmt: skip


def _inner(node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    """The nodes of a node's subgraphs, at any depth."""
    for attribute in node.attribute:
        for graph in [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]:
            for inner in graph.node:
                yield inner
                yield from _inner(inner)


def _reads(node: onnx.NodeProto) -> set[str]:
    """Values that a node reads, those of the outer graph that its branches read included."""
    names = set(node.input).union(*(inner.input for inner in _inner(node)))
    for attribute in node.attribute:
        for graph in [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]:
            names |= {output.name for output in graph.output}
    return names - {""}


# ---- running it in pieces


class _Pieces:
    """A graph cut at its products: piece i is all that can be known once the products of the stages before i are."""

    def __init__(self, model: onnx.ModelProto, products: Sequence[_Product]) -> None:
        self._model = model
        self._constants = {i.name: i for i in model.graph.initializer}
        self._outputs = [o.name for o in model.graph.output]
        by_output = {p.output: p for p in products}
        stages: dict[str, int] = defaultdict(int)
        self._nodes: dict[int, list[onnx.NodeProto]] = defaultdict(list)
        self._products: dict[int, list[_Product]] = defaultdict(list)
        used = self._used(by_output)
        for node in model.graph.node:
            product = by_output.get(node.output[0])
            if not used.intersection(node.output):
                continue
            stage = max((stages[name] for name in (product.reads if product else _reads(node))), default=0)
            if product:
                self._products[stage].append(product)
            else:
                self._nodes[stage].append(node)
            stages.update(dict.fromkeys(node.output, stage + 1 if product else stage))
        self._last = max([*self._nodes, *self._products])
        self._sessions: dict[int, Any] = {}

    def _used(self, by_output: Mapping[str, _Product]) -> set[str]:
        """Values that an output or a product needs: DequantizeLinear nodes that only fed a product are not."""
        used = set(self._outputs)
        for node in reversed(self._model.graph.node):
            if used.intersection(node.output):
                product = by_output.get(node.output[0])
                used.update(product.reads if product else _reads(node))
        return used

    def start(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """All values before the first products, by name."""
        from onnx.numpy_helper import to_array

        values = dict(feeds)
        wanted = {name for products in self._products.values() for p in products for name in p.reads}
        values |= {name: to_array(self._constants[name]) for name in wanted if name in self._constants}
        self._run(0, values)
        return values

    def finish(self, start: Mapping[str, np.ndarray], multiply: _Multiply) -> np.ndarray:
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
        reads = set().union(*(_reads(node) for node in nodes)) - made
        wanted = set(self._outputs)
        wanted.update(*(_reads(n) for s, later in self._nodes.items() if s > stage for n in later))
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


# ---- comparing


def _check_feeds(model: onnx.ModelProto, feeds: Sequence[Mapping[str, np.ndarray]]) -> None:
    constants = {i.name for i in model.graph.initializer}
    wanted = [i.name for i in model.graph.input if i.name not in constants]
    if not feeds:
        raise InputError("saturation is found on real inputs, and there are none: give one mapping a call at least")
    for i, feed in enumerate(feeds):
        if missing := [name for name in wanted if name not in feed]:
            raise InputError(f"call {i} has no {', '.join(missing)}: the graph takes {', '.join(wanted)}")


def _compare(exact: np.ndarray, found: np.ndarray, mask: np.ndarray | None) -> tuple[np.ndarray, float]:
    """(bool [rows]: whether an argmax changed, largest absolute difference), padding left out."""
    counts: np.ndarray = np.ones(exact.shape[:-1], bool)
    # A cache makes the mask longer than the output: then only what is asked now has answers.
    if mask is not None and counts.ndim == 2 and len(mask) == len(counts) and mask.shape[1] >= counts.shape[1]:
        counts = mask[:, mask.shape[1] - counts.shape[1] :] != 0
    moved = (exact.argmax(-1) != found.argmax(-1)) & counts
    differences = np.abs(found.astype(np.float64) - exact)[counts]
    return moved.reshape(len(moved), -1).any(1), float(differences.max(initial=0.0))


def _why_not(products: Sequence[_Product]) -> str:
    if not products:
        return "there is no matrix product in int8"
    if all(p.weights.dtype == np.uint8 for p in products):
        return "weights are unsigned: x86 multiplies them in 16 bits and sums in 32"
    if any(p.signed for p in products):
        return "activations are signed: x86 multiplies them one by one, exactly"
    return "no two weights side by side can bring a sum beyond int16, as with 7-bit weights (reduce_range=true)"


def _advice(share: float, difference: float, changed: int | None, n: int) -> str:
    where = "On x86 CPUs without VNNI (AVX2, AVX512)"
    if not share:
        return f"{where} none of the 16-bit sums saturates on these {n} inputs"
    answers = f"{changed} of {n} inputs get another argmax, " if changed else f"no argmax of {n} inputs changes, "
    answers = "" if changed is None else answers
    return (
        f"{where} {100 * share:.2g}% of the 16-bit sums saturate: {answers}outputs move by up to {difference:.2g}. "
        "7-bit weights (recipe option reduce_range=true) or unsigned weights (symmetric_weights=false) avoid it"
    )
