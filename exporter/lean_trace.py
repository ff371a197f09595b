"""Let PyTorch's exporter write large weights beside the graph, one at a time, instead of four copies in memory.

torch.onnx (TorchScript) puts every weight into one protobuf message, serializes it into a string, and writes that: with
the folded, transposed matrices four copies of the model stand in memory at once. Here its C++ side writes the graph
alone, as it does for `export_params=False`, and the weights follow from where they are into the external data file.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LARGE = 100_000_000
"""Bytes of weights from which on they are written apart; below, one file is simpler and no copy hurts."""
_PAGE = 4096


@contextmanager
def weights_apart() -> Iterator[None]:
    """While this holds, torch.onnx.export writes `<file>_data` beside each file, and Optimum leaves it as it is."""
    import torch
    from optimum.exporters.onnx import convert
    from torch.onnx._internal.torchscript_exporter import onnx_proto_utils

    graph = torch._C.Graph
    export, write, apart = graph._export_onnx, onnx_proto_utils._export_file, convert.check_model_uses_external_data
    held: dict[str, Any] = {}

    def without_weights(self: Any, weights: Mapping[str, Any], *more: Any) -> Any:
        held.clear()
        held.update(weights)
        return export(self, {}, *more)

    def with_weights(message: bytes, file: str, _: Any) -> None:
        _write(message, Path(file), held)
        held.clear()

    graph._export_onnx, onnx_proto_utils._export_file = without_weights, with_weights
    convert.check_model_uses_external_data = lambda _: False
    try:
        yield
    finally:
        graph._export_onnx, onnx_proto_utils._export_file = export, write
        convert.check_model_uses_external_data = apart


def _write(message: bytes, file: Path, weights: Mapping[str, Any]) -> None:
    """The graph in `message`, whose inputs include the weights, with these as external data beside `file`."""
    import onnx

    model = onnx.load_model_from_string(message)
    inputs = {value.name: value for value in model.graph.input}
    data = file.with_name(f"{file.name}_data")
    tied = _tied(weights)
    for name, table in tied.items():
        turned = onnx.helper.make_node("Transpose", [table], [name], name=f"{name}_turned", perm=[1, 0])
        model.graph.node.insert(0, turned)
    with data.open("wb") as out:
        for name, weight in weights.items():
            if name not in inputs or name in tied:
                continue  # folded away, or there already
            kind = inputs[name].type.tensor_type.elem_type
            offset = out.seek(-out.tell() % _PAGE, 1)
            size = out.write(memoryview(weight.detach().contiguous().numpy().reshape(-1)).cast("B"))
            tensor = onnx.TensorProto(name=name, data_type=kind, dims=list(weight.shape), raw_data=b"")
            onnx.external_data_helper.set_external_data(tensor, data.name, offset, size)
            tensor.ClearField("raw_data")
            model.graph.initializer.append(tensor)
    kept = [value for name, value in inputs.items() if name not in weights]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    onnx.save(model, file)


def _tied(weights: Mapping[str, Any]) -> dict[str, str]:
    """Name of a folded matrix -> the embedding table that it is the transpose of, as Optimum ties them afterwards."""
    tables = {n: w for n, w in weights.items() if w.dim() == 2 and ("embed" in n or n.endswith("wte.weight"))}
    found = {}
    for name, weight in weights.items():
        for table, rows in tables.items():
            if name not in tables and weight.dim() == 2 and weight.shape == rows.shape[::-1] and weight.T.equal(rows):
                found[name] = table
    return found


def free_memory() -> None:
    """Collect what stands in cycles (PyTorch's modules do), and give freed memory back where glibc can."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
