"""Weight-only quantization: matrices in blocks of 4 or 8 bits, activations in fp32."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edgewise.errors import PlanError
from edgewise.exporter.external import save_graph, subgraphs
from edgewise.exporter.graphs import all_nodes

_SMALLEST = 1024
"""Numbers in a weight below which it stays in fp32: a classifier's last matrix saves no byte, and decides."""
_DOMAIN = "com.microsoft"


@dataclass(frozen=True)
class _Blocks:
    """A matrix W [K, N] in blocks along K, as MatMulNBits stores it."""

    values: str
    """Name of uint8 [N, blocks, block_size * bits / 8]."""
    scales: str
    """Name of float32 [N, blocks]."""
    zeros: str
    """Name of uint8 [N, ceil(blocks * bits / 8)]; '' when symmetric, where the zero point is 2 ** (bits - 1)."""
    inputs: int
    """K."""
    outputs: int
    """N."""
    size: int
    """Weights that share a scale."""


@dataclass
class _Work:
    """One graph on its way."""

    model: Any
    folder: Path
    bits: int
    block_size: int
    symmetric: bool
    accuracy_level: int | None
    embeddings: bool
    kept: tuple[str, ...]
    made: dict[tuple[str, bool], _Blocks] = field(default_factory=dict)
    """By name of the fp32 weight, and whether it was turned: two branches, or a table and the output layer, share."""
    new: list[Any] = field(default_factory=list)
    """Weights for the outermost graph."""


def quantize_weights(
    graph: Path,
    out: Path,
    *,
    bits: Literal[4, 8],
    block_size: int = 32,
    symmetric: bool,
    accuracy_level: int | None,
    embeddings: bool,
    keep: Sequence[str] = (),
) -> Path:
    """Quantize the constant matrices of an ONNX graph in blocks; returns `out`.

    MatMul and Gemm become MatMulNBits and, with `embeddings`, Gather of a table becomes GatherBlockQuantized; what
    branches of a merged decoder share stays one copy, and so do embeddings that are the output layer too.

    block_size: weights that share a scale (float32), a power of 2 of at least 16; less for a matrix whose rows it
        does not divide (576 inputs, blocks of 128: 64), which padding would make larger.
    symmetric: zero point in the middle; False stores one a block.
    accuracy_level: what MatMulNBits may round activations to: None or 1 fp32, 2 fp16, 3 bf16, 4 int8 (fast).
    keep: suffixes of node names that stay in fp32.

    Raises PlanError for a value outside these, and for a suffix that no node's name ends in.
    """
    import onnx

    _check(bits, block_size, accuracy_level)
    model = onnx.load(graph, load_external_data=False)
    kept = _kept(model, keep)
    work = _Work(model, graph.parent, bits, block_size, symmetric, accuracy_level, embeddings, kept)
    _rewrite(work, model.graph, [])
    if not work.made:
        raise PlanError(f"{graph.name} has no constant matrix of {_SMALLEST} numbers or more left to quantize")
    _drop_unread(model.graph)
    _load_rest(model, graph.parent)
    model.graph.initializer.extend(work.new)
    if all(o.domain != _DOMAIN for o in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid(_DOMAIN, 1))
    return save_graph(model, out)


def _check(bits: int, block_size: int, accuracy_level: int | None) -> None:
    if bits not in (4, 8):
        raise PlanError(f"bits={bits!r}: weight-only quantization takes 4 or 8")
    if block_size < 16 or block_size & (block_size - 1):
        raise PlanError(f"block_size={block_size!r} must be a power of 2 of at least 16, for example 32")
    if accuracy_level not in (None, 0, 1, 2, 3, 4):
        raise PlanError(f"accuracy_level={accuracy_level!r} must be 1 (fp32), 2 (fp16), 3 (bf16), 4 (int8) or None")


def _kept(model: Any, keep: Sequence[str]) -> tuple[str, ...]:
    names = [node.name for node in all_nodes(model.graph)]
    for suffix in keep:
        if not any(name.endswith(suffix) for name in names):
            raise PlanError(
                f"keep={suffix!r}: no node of the graph has a name that ends so, for example {names[-1]!r} does"
            )
    return tuple(keep)


def _rewrite(work: _Work, graph: Any, outer: list[Any]) -> None:
    """Replace the nodes of a graph and of the graphs within it. outer: the graphs around it, outermost first."""
    scope = [*outer, graph]
    nodes = []
    for node in graph.node:
        for attribute in node.attribute:
            for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                _rewrite(work, inner, scope)
        nodes += list(_replaced(work, node, scope))
    del graph.node[:]
    graph.node.extend(nodes)


def _replaced(work: _Work, node: Any, scope: list[Any]) -> Iterator[Any]:
    """What stands in the node's place: the node itself where it is not quantized."""
    kept = work.kept and node.name.endswith(work.kept)
    made = None
    if not kept and node.domain in ("", "ai.onnx"):
        if node.op_type == "MatMul":
            made = _matmul(work, node, scope)
        elif node.op_type == "Gemm":
            made = _gemm(work, node, scope)
        elif node.op_type == "Gather" and work.embeddings:
            made = _gather(work, node, scope)
    yield from made or [node]


def _matmul(work: _Work, node: Any, scope: list[Any]) -> list[Any] | None:
    found = _weight(scope, node.input[1])
    blocks = _blocks(work, *found) if found else None
    return [_product(work, node, blocks, node.output[0])] if blocks else None


def _gemm(work: _Work, node: Any, scope: list[Any]) -> list[Any] | None:
    """x W + b as a product and a sum, where Gemm does no more than that."""
    import onnx

    options = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    plain = options.get("alpha", 1.0) == 1 and options.get("beta", 1.0) == 1 and not options.get("transA")
    found = _weight(scope, node.input[1])
    if not plain or found is None:
        return None
    tensor, turned = found
    blocks = _blocks(work, tensor, turned != bool(options.get("transB")))
    if blocks is None:
        return None
    if len(node.input) < 3 or not node.input[2]:
        return [_product(work, node, blocks, node.output[0])]
    product = f"{node.output[0]}_product"
    add = onnx.helper.make_node("Add", [product, node.input[2]], list(node.output), name=f"{node.name}_bias")
    return [_product(work, node, blocks, product), add]


def _product(work: _Work, node: Any, blocks: _Blocks, output: str) -> Any:
    import onnx

    options = {"K": blocks.inputs, "N": blocks.outputs, "bits": work.bits, "block_size": blocks.size}
    if work.accuracy_level:
        options["accuracy_level"] = work.accuracy_level
    names = [name for name in (blocks.values, blocks.scales, blocks.zeros) if name]
    return onnx.helper.make_node(
        "MatMulNBits", [node.input[0], *names], [output], name=node.name, domain=_DOMAIN, **options
    )


def _gather(work: _Work, node: Any, scope: list[Any]) -> list[Any] | None:
    """Rows of a table in blocks. The table [V, D] is stored as the matrix [D, V] of an output layer is."""
    import onnx

    axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
    found = _weight(scope, node.input[0])
    if axis != 0 or found is None or found[1]:
        return None
    blocks = _blocks(work, found[0], True)
    if blocks is None or blocks.inputs % blocks.size:
        return None
    shape = f"{blocks.values}_rows"
    if all(t.name != shape for t in work.new):
        size = np.array([blocks.outputs, blocks.inputs * work.bits // 8], dtype=np.int64)
        work.new.append(onnx.numpy_helper.from_array(size, shape))
    rows = f"{node.output[0]}_rows"
    names = [rows, node.input[1], *(name for name in (blocks.scales, blocks.zeros) if name)]
    options = {"gather_axis": 0, "quantize_axis": 1, "block_size": blocks.size, "bits": work.bits}
    return [
        onnx.helper.make_node("Reshape", [blocks.values, shape], [rows], name=f"{node.name}_rows"),
        onnx.helper.make_node(
            "GatherBlockQuantized", names, list(node.output), name=node.name, domain=_DOMAIN, **options
        ),
    ]


def _weight(scope: list[Any], name: str) -> tuple[Any, bool] | None:
    """The fp32 matrix of that name and whether it is read transposed, through a node of its own (tied embeddings)."""
    import onnx

    for graph in reversed(scope):
        for tensor in graph.initializer:
            if tensor.name == name:
                matrix = tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) == 2
                return (tensor, False) if matrix else None
        for node in graph.node:
            if name in node.output:
                # both dimensions change places with and without the attribute
                found = _weight(scope, node.input[0]) if node.op_type == "Transpose" else None
                return (found[0], not found[1]) if found else None
    return None


def _blocks(work: _Work, tensor: Any, turned: bool) -> _Blocks | None:
    """Quantize a matrix, once; None for a small one."""
    import onnx

    if (tensor.name, turned) in work.made:
        return work.made[tensor.name, turned]
    if tensor.dims[0] * tensor.dims[1] < _SMALLEST:
        return None
    matrix = onnx.numpy_helper.to_array(tensor, str(work.folder))
    matrix = np.ascontiguousarray(matrix.T if turned else matrix)
    size = _block_size(work.block_size, matrix.shape[0])
    values, scales, zeros = _quantize(matrix, work.bits, size, work.symmetric)
    name = f"{tensor.name}{'_turned' if turned else ''}_Q{work.bits}"
    zeros_name = "" if work.symmetric else f"{name}_zeros"
    blocks = _Blocks(name, f"{name}_scales", zeros_name, matrix.shape[0], matrix.shape[1], size)
    named = {blocks.values: values, blocks.scales: scales, blocks.zeros: zeros}
    work.new += [onnx.numpy_helper.from_array(value, key) for key, value in named.items() if key]
    work.made[tensor.name, turned] = blocks
    return blocks


def _block_size(largest: int, inputs: int) -> int:
    """The largest power of 2 that divides `inputs`, from 16 to `largest`; `largest`, with padding, where none does."""
    return next((size for size in (largest >> i for i in range(10)) if size >= 16 and inputs % size == 0), largest)


def _quantize(
    matrix: np.ndarray, bits: int, block_size: int, symmetric: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(values, scales, zero points) of a float32 matrix [K, N], by onnxruntime's own kernel."""
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, DefaultWeightOnlyQuantizer

    config = DefaultWeightOnlyQuantConfig(block_size=block_size, is_symmetric=symmetric, bits=bits)
    values, scales, zeros = DefaultWeightOnlyQuantizer(config).qbits_block_quant(matrix)
    return values, scales, zeros


def _drop_unread(graph: Any) -> None:
    """Remove the fp32 weights that nothing reads any more, and the nodes that turned them."""
    unread = True
    while unread:
        graphs = list(subgraphs(graph))
        read = {name for g in graphs for node in g.node for name in node.input}
        read |= {o.name for g in graphs for o in g.output}
        unread = False
        for g in graphs:
            nodes = [i for i, n in enumerate(g.node) if n.op_type == "Transpose" and n.output[0] not in read]
            tensors = [i for i, t in enumerate(g.initializer) if t.name not in read]
            for i in reversed(nodes):
                del g.node[i]
            for i in reversed(tensors):
                del g.initializer[i]
            unread = unread or bool(nodes or tensors)


def _load_rest(model: Any, folder: Path) -> None:
    """Bring in the weights that stay in fp32 where they lie outside."""
    import onnx

    onnx.load_external_data_for_model(model, str(folder))
