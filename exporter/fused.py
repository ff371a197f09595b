"""int8 of graphs that Optimum's optimizer fused (O2, O3), whose nodes ONNX Runtime's quantizer does not know by itself.

Two things are added to it. It asks onnx for the types of tensors, and onnx knows none behind a node of ONNX Runtime's
own: the types are written into the graph first, as ONNX Runtime infers them. And in QDQ form it leaves Attention in
fp32, which holds a third of a BERT layer's matrices: that becomes QAttention with the calibrated scale, so that
answers do not depend on the batch. Tried with onnxruntime 1.32 and optimum-onnx 0.1.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

OWN_DOMAIN = "com.microsoft"
"""Of the nodes that only ONNX Runtime knows."""
ATTENTION = "Attention"


@contextmanager
def with_types(graph: Path) -> Iterator[Path]:
    """The graph itself, or while this holds a copy beside it, and its data, whose tensors are typed."""
    import onnx

    model = onnx.load(graph, load_external_data=False)
    if all(node.domain != OWN_DOMAIN for node in model.graph.node):
        yield graph
        return
    known = {value.name for value in (*model.graph.value_info, *model.graph.output)}
    for name, kind in element_types(graph).items():
        if name not in known:
            model.graph.value_info.append(onnx.helper.make_tensor_value_info(name, kind, None))
    made = graph.with_name(f"typed_{graph.name}")
    made.write_bytes(model.SerializeToString())
    try:
        yield made
    finally:
        made.unlink()


def element_types(graph: Path) -> dict[str, int]:
    """onnx.TensorProto.DataType of each tensor that a node gives, by onnxruntime's own inference."""
    import onnx
    import onnxruntime as ort

    model = onnx.load(graph, load_external_data=False)
    del model.graph.output[:]
    names = [name for n in model.graph.node for name in n.output if name]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    asked = graph.with_name(f"types_{graph.name}")
    asked.write_bytes(model.SerializeToString())
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = ort.InferenceSession(asked, options, providers=["CPUExecutionProvider"])
    finally:
        asked.unlink()
    return {o.name: _KINDS[o.type] for o in session.get_outputs() if o.type in _KINDS}


_KINDS = {
    "tensor(float)": 1, "tensor(uint8)": 2, "tensor(int8)": 3, "tensor(int32)": 6, "tensor(int64)": 7,
    "tensor(string)": 8, "tensor(bool)": 9, "tensor(float16)": 10, "tensor(double)": 11,
}  # fmt: skip
"""ONNX Runtime's names of types -> onnx.TensorProto.DataType."""


def quantize_attention(graph: Path, out: Path, config: Any, ranges: Any) -> Path:
    """The graph with its Attention nodes turned into QAttention, in the folder `out`; itself where it has none.

    For static quantization, and before it: the quantizer takes what is quantized already as it is.
    config: Optimum's QuantizationConfig of the static quantization. ranges: those of the activations, in which the
    first input of each Attention node is.
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantizationMode
    from optimum.onnxruntime import ORTQuantizer

    nodes = onnx.load(graph, load_external_data=False).graph.node
    if all(n.op_type != ATTENTION or n.name in config.nodes_to_exclude for n in nodes):
        return graph
    first = copy.copy(config)
    # An operator that reads int8: no pair of QuantizeLinear and DequantizeLinear is fused into QAttention.
    first.format, first.mode, first.operators_to_quantize = (
        QuantFormat.QOperator,
        QuantizationMode.IntegerOps,
        [ATTENTION],
    )
    quantizer = ORTQuantizer.from_pretrained(graph.parent, file_name=graph.name)
    quantizer.quantize(save_dir=out, file_suffix="", quantization_config=first, calibration_tensors_range=ranges)
    return out / graph.name
