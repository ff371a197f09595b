"""Graphs that ONNX Runtime optimized at export time, so that the device need not do it at every start."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, Literal

from edgewise.errors import EdgewiseError, PlanError
from edgewise.exporter.external import needs_external, subgraphs, weight_bytes, weights
from edgewise.exporter.graphs import all_nodes

Level = Literal["basic", "extended"]
"""The levels whose result depends on no CPU. See `optimize_offline`."""

_PORTABLE_DOMAINS = {"", "ai.onnx", "ai.onnx.ml", "com.microsoft"}
"""What every full build of onnxruntime has kernels for. NCHWc and NHWC nodes stand in com.microsoft.nchwc and
com.ms.internal.nhwc."""


def optimize_offline(graph: Path, out: Path, level: Level = "extended") -> Path:
    """Write the ONNX graph as ONNX Runtime's CPU provider optimizes it; returns `out`.

    Load it with graph optimization 'disabled': the same nodes run as if the original were loaded at `level`.
    Weights go to `<out>_data` where one file cannot hold them (2 GiB).

    What makes it portable, from onnxruntime's source (graph_transformer_utils.cc, inference_session.cc):
    - 'all' adds the NCHWc and NHWC layouts that the CPU at hand prefers; 'extended' ends before them, and the fused
      nodes that it makes choose their kernel from the CPU's features at run time.
    - One step of 'extended' differs between builds: on x86-64 it turns signed activations of a QDQ graph into unsigned
      ones, on ARM it does not. `session.qdqisint8allowed` = 1 leaves them as they are everywhere.
    - The fix of U8S8 saturation on AVX2 (session.x64quantprecision) and prepacked weights
      (session.save_external_prepacked_constant_initializers) depend on the CPU; both are off unless asked for.

    What it is tied to: the CPU provider (another one may not know the fused nodes), and onnxruntime's com.microsoft
    nodes. It is larger than the graph where a constant is folded that two nodes read in two shapes (tied embeddings).

    Raises PlanError for a graph in fp16, which the CPU provider would write with casts to fp32 around each node.
    """
    import onnx

    proto = onnx.load(graph, load_external_data=False)
    if any(t.data_type == onnx.TensorProto.FLOAT16 for t in weights(proto.graph)):
        raise PlanError(
            f"{graph.name} is in fp16, which onnxruntime's CPU provider would turn into fp32 between casts: "
            "optimize the fp32 or int8 graph offline, or let the GPU's provider optimize when it loads"
        )
    size = sum(weight_bytes(t) for t in weights(proto.graph)) + _folded_bytes(proto)
    del proto
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f"{out.name}.partial") as place:
        made = Path(place) / out.name
        _save(graph, made, level, outside=needs_external(size))
        check_portable(made)
        data = made.with_name(f"{made.name}_data")
        old = out.with_name(data.name)
        shutil.move(data, old) if data.exists() else old.unlink(missing_ok=True)
        made.replace(out)
    return out


def check_portable(graph: Path) -> None:
    """Raise EdgewiseError where the graph has nodes or weights that belong to one kind of CPU."""
    import onnx

    proto = onnx.load(graph, load_external_data=False)
    tied = Counter(f"{n.domain}.{n.op_type}" for n in all_nodes(proto.graph) if n.domain not in _PORTABLE_DOMAINS)
    keys = {entry.key for t in weights(proto.graph) for entry in t.external_data}
    packed = sorted(key for key in keys if key.startswith("prepacked"))
    if tied or packed:
        raise EdgewiseError(f"{graph.name} is tied to the CPU it was made on by {dict(tied) or packed}")


def _save(graph: Path, out: Path, level: Level, outside: bool) -> None:
    import onnxruntime as ort

    levels = {
        "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
        "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    }
    if level not in levels:
        raise PlanError(f"offline optimization level {level!r}: expected {', '.join(levels)}; 'all' is tied to a CPU")
    options = ort.SessionOptions()
    options.graph_optimization_level = levels[level]
    options.optimized_model_filepath = str(out)
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.qdqisint8allowed", "1")
    options.add_session_config_entry("session.disable_prepacking", "1")  # it is not saved, so it is time lost
    if outside:
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", f"{out.name}_data")
        options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
    try:
        ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's classes share no base but Exception
        raise PlanError(f"onnxruntime {ort.__version__} does not optimize {graph.name}: {error}") from error


def _folded_bytes(proto: Any) -> int:
    """Bytes that constant folding adds: a transposed copy of each weight that is also read as it is."""
    sizes = {t.name: weight_bytes(t) for t in weights(proto.graph)}
    nodes = [node for inner in subgraphs(proto.graph) for node in inner.node if node.op_type == "Transpose"]
    return sum(sizes.get(node.input[0], 0) for node in nodes)
