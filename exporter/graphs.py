"""What a manifest says of a graph, read with the onnx package at build time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from edgewise.bundle import GraphInfo, TensorInfo
from edgewise.errors import CheckpointError

# onnxruntime's documentation, 'ONNX Runtime compatibility': the release that first carried each opset and IR version.
_FIRST_FOR_OPSET = (
    (14, "1.8"), (15, "1.10"), (16, "1.11"), (17, "1.12"), (18, "1.14"), (19, "1.16"),
    (20, "1.17"), (21, "1.18"), (22, "1.21"), (23, "1.22"), (24, "1.23"),
)  # fmt: skip
_FIRST_FOR_OPERATOR = {"MatMulNBits": "1.17", "GroupQueryAttention": "1.18", "GatherBlockQuantized": "1.20"}
"""Of ONNX Runtime's own operators, on the CPU; from its release notes."""
_FIRST_FOR_8_BITS = "1.22"
"""MatMulNBits with 8 bits a weight."""
_FIRST_FOR_IR = ((8, "1.10"), (9, "1.15"), (10, "1.18"), (11, "1.21"), (12, "1.23"))


def read_graph(folder: Path, file: str, optimization_level: str) -> GraphInfo:
    """Describe `folder/file`, an ONNX graph, without loading external data."""
    import onnx

    try:
        model = onnx.load(folder / file, load_external_data=False)
    except Exception as error:  # protobuf's own kind
        raise CheckpointError(f"{file} is no ONNX graph: {error}") from error
    opset = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=1)
    return GraphInfo(
        file=file,
        inputs=tuple(_tensor(v) for v in model.graph.input if v.name not in {i.name for i in model.graph.initializer}),
        outputs=tuple(_tensor(v) for v in model.graph.output),
        opset=opset,
        optimization_level=optimization_level,
        min_onnxruntime=_min_onnxruntime(opset, model.ir_version, list(all_nodes(model.graph))),
        node_types=dict(sorted(Counter(n.op_type for n in all_nodes(model.graph)).items())),
        bytes_by_part=_bytes_by_part(model, folder, file),
    )


def all_nodes(graph: Any) -> Iterator[Any]:
    """The nodes of a graph and of the branches within it (a merged decoder has two)."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from all_nodes(attribute.g)


def _tensor(value: Any) -> TensorInfo:
    import onnx

    kind = value.type.tensor_type
    shape = tuple(d.dim_param or int(d.dim_value) for d in kind.shape.dim)
    name = onnx.TensorProto.DataType.Name(kind.elem_type).lower()
    return TensorInfo(value.name, {"float": "float32", "double": "float64"}.get(name, name), shape)


def _min_onnxruntime(opset: int, ir: int, nodes: Sequence[Any]) -> str:
    def first(table: tuple[tuple[int, str], ...], version: int) -> str:
        return next((release for v, release in table if v >= version), table[-1][1])

    candidates = [first(_FIRST_FOR_OPSET, opset), first(_FIRST_FOR_IR, ir)]
    candidates += [_FIRST_FOR_OPERATOR[kind] for kind in {n.op_type for n in nodes} if kind in _FIRST_FOR_OPERATOR]
    if any(n.op_type == "MatMulNBits" and a.name == "bits" and a.i == 8 for n in nodes for a in n.attribute):
        candidates.append(_FIRST_FOR_8_BITS)
    return max(candidates, key=lambda release: [int(p) for p in release.split(".")])


def _bytes_by_part(model: Any, folder: Path, file: str) -> dict[str, int]:
    """File size (with external data) split into embeddings, other weights and structure, and weights by dtype."""
    import onnx

    nodes = list(all_nodes(model.graph))
    gathered = {n.input[0] for n in nodes if n.op_type in ("Gather", "EmbedLayerNormalization")}
    # A quantized table is gathered through its dequantized or quantized name.
    for node in nodes:
        if node.op_type == "DequantizeLinear" and node.output[0] in gathered:
            gathered.add(node.input[0])
    parts: Counter[str] = Counter()
    for weight in model.graph.initializer:
        kind = onnx.TensorProto.DataType.Name(weight.data_type).lower()
        size = _weight_bytes(weight)
        table = weight.name in gathered and len(weight.dims) == 2
        parts["embeddings" if table else "other weights"] += size
        parts[f"weights {kind}"] += size
    whole = sum(p.stat().st_size for p in (folder / file).parent.glob((folder / file).name + "*"))
    parts["structure"] = whole - parts["embeddings"] - parts["other weights"]
    return dict(sorted(parts.items()))


def _weight_bytes(weight: Any) -> int:
    import onnx

    count = 1
    for d in weight.dims:
        count *= d
    return int(count * onnx.helper.tensor_dtype_to_np_dtype(weight.data_type).itemsize)
