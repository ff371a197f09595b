"""Where the time goes inside a graph: ONNX Runtime's own profile, summed by node type. Part of the worker."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

_INT8 = (
    "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QLinearMatMul", "QGemm", "ConvInteger",
    "QLinearConv", "QAttention",
)  # fmt: skip
_PRODUCTS = (
    "MatMul", "FusedMatMul", "Gemm", "FusedGemm", "MatMulNBits", "MatMulInteger", "MatMulIntegerToFloat",
    "DynamicQuantizeMatMul", "QLinearMatMul", "QGemm",
)  # fmt: skip
_CONVOLUTIONS = ("Conv", "FusedConv", "ConvInteger", "QLinearConv")
_WITH_SUBGRAPHS = ("If", "Loop", "Scan")
"""Their time is that of the nodes in them, which are events of their own."""


def time_by_node(files: Sequence[str | Path]) -> dict[str, Any]:
    """The kernels' seconds of each node type, and the graphs' runs.

    files: as `model.end_profiling()` gives them. The first run of each graph, which allocates, is left out. Returns
    'runs', 'graph_s' (seconds of all runs), 'by_type' (node type -> seconds, longest first), 'operations' ('float32'
    and 'int8': of the products in all runs, a multiplication and an addition being two), 'runs_by_graph' (the first
    runs too), 'placed' (provider -> nodes that ran on it). The profile costs time itself, so that the shares say more
    than the seconds.
    """
    runs, graph_us = 0, 0
    by_graph: list[int] = []
    by_type: Counter[str] = Counter()
    operations = {"float32": 0.0, "int8": 0.0}
    placed: set[tuple[str, str, str]] = set()
    for file in files:
        events = json.loads(Path(file).read_text(encoding="utf-8"))
        whole = [e for e in events if e.get("name") == "model_run"]
        by_graph.append(len(whole))
        whole = whole[1:]
        if not whole:
            continue
        start = min(e["ts"] for e in whole)
        runs += len(whole)
        graph_us += sum(e["dur"] for e in whole)
        for event in events:
            if _is_kernel(event) and event["ts"] >= start:
                by_type[event["args"]["op_name"]] += event["dur"]
                _count(event["args"], operations)
                placed.add((event["args"].get("provider", ""), str(file), event["name"]))
    return {
        "runs": runs,
        "graph_s": graph_us / 1e6,
        "by_type": {name: us / 1e6 for name, us in by_type.most_common()},
        "operations": operations,
        "runs_by_graph": by_graph,
        "placed": dict(Counter(provider for provider, _, _ in placed if provider)),
    }


def _count(args: Mapping[str, Any], operations: dict[str, float]) -> None:
    """Add a node's products, from the shapes that it had. Weights that were packed at the start have none there, so
    that what is needed is taken from the first input and the output."""
    name = args["op_name"]
    kind = "int8" if name in _INT8 else "float32"
    inputs = [shape for told in args.get("input_type_shape", ()) for shape in told.values()]
    outputs = [shape for told in args.get("output_type_shape", ()) for shape in told.values()]
    if not inputs or not outputs or not inputs[0]:
        return
    if name in _PRODUCTS:
        operations[kind] += 2.0 * prod(outputs[0]) * inputs[0][-1]
    elif name in _CONVOLUTIONS and len(inputs) > 1 and len(inputs[1]) > 2:
        operations[kind] += 2.0 * prod(outputs[0]) * prod(inputs[1][1:])
    elif name in ("Attention", "QAttention") and len(inputs[0]) == 3 and len(outputs[0]) == 3:
        batch, length, width = inputs[0]
        operations[kind] += 2.0 * batch * length * width * 3 * outputs[0][-1]
        operations["float32"] += 4.0 * batch * length * length * outputs[0][-1]
    elif name == "MultiHeadAttention" and len(inputs) > 1 and len(inputs[0]) == 3 and len(inputs[1]) == 3:
        operations["float32"] += 4.0 * prod(inputs[0]) * inputs[1][1]


def _is_kernel(event: Mapping[str, Any]) -> bool:
    name = event.get("args", {}).get("op_name")
    timed = event.get("cat") == "Node" and str(event.get("name")).endswith("_kernel_time")
    return timed and name is not None and name not in _WITH_SUBGRAPHS
