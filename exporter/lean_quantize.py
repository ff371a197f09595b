"""Let the quantizer read the weights of a large graph one at a time, where it would hold them all, and copies of them.

Of a graph with external data ONNX Runtime's quantizer loads every weight, copies the model to infer its shapes, and
loads it again. Here the shapes are inferred first, which needs no weight, the graph is loaded without its data, and a
weight is read when it is quantized. Tried with onnxruntime 1.32, optimum-onnx 0.1 and SmolLM2-135M (538 MB).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from edgewise.exporter.fused import with_types


def is_apart(graph: Path) -> bool:
    """True where a graph's weights are in a file beside it."""
    return graph.with_name(f"{graph.name}_data").exists()


def with_shapes(graph: Path) -> Path:
    """A graph once more, beside it and its data, with its shapes inferred and marked so."""
    import onnx
    from onnxruntime.quantization.quant_utils import add_infer_metadata

    made = graph.with_name(f"shapes_{graph.name}")
    with with_types(graph) as typed:
        onnx.shape_inference.infer_shapes_path(str(typed), str(made))
    model = onnx.load(made, load_external_data=False)
    add_infer_metadata(model)
    made.write_bytes(model.SerializeToString())
    return made


@contextmanager
def weights_on_demand(folder: Path) -> Iterator[None]:
    """While this holds, graphs are loaded without their external data, and the quantizer reads it from `folder`."""
    import onnx
    from onnxruntime.quantization import base_quantizer, onnx_quantizer, quant_utils

    modules = (base_quantizer, onnx_quantizer, quant_utils)
    load, read = onnx.load, quant_utils.tensor_proto_to_array

    def read_one(tensor: Any) -> Any:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            return read(tensor)
        copy = onnx.TensorProto()
        copy.CopyFrom(tensor)
        onnx.external_data_helper.load_external_data_for_tensor(copy, str(folder))
        copy.data_location = onnx.TensorProto.DEFAULT
        return read(copy)

    onnx.load = partial(load, load_external_data=False)
    for module in modules:
        module.tensor_proto_to_array = read_one
    try:
        yield
    finally:
        onnx.load = load
        for module in modules:
            module.tensor_proto_to_array = read


def bring_in(graph: Path, folder: Path) -> None:
    """Put the weights that a quantized graph still reads from the data in `folder` inside it."""
    import onnx

    from edgewise.exporter.external import save_graph

    model = onnx.load(graph, load_external_data=False)
    onnx.load_external_data_for_model(model, str(folder))
    save_graph(model, graph)
