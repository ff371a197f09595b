"""Weights beside the graph: a file that onnxruntime maps into memory instead of parsing it, and no 2 GB limit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

Content = Callable[[Any, Path], bytes | None]
"""(onnx.TensorProto, the folder of its data) -> its values, as `content` gives them."""

_LIMIT = 2**31 - 2**26
"""Bytes of weights that a protobuf file takes: its limit of 2 GiB, less 64 MiB for nodes, names and shapes."""
_PAGE = 4096
_LARGE = 16 * _PAGE
"""Bytes from which a tensor starts on a page; smaller ones start on a cache line, so that padding stays below 7%."""
_LINE = 64


def needs_external(size: int) -> bool:
    """Whether a graph with `size` bytes of weights is too large for one protobuf file (2 GiB)."""
    return size > _LIMIT


def externalize(graph: Path, out: Path, threshold: int = 1024) -> Path:
    """Write the ONNX graph to `out` with every weight of at least `threshold` bytes in `<out>_data`; returns `out`.

    The name is that of Optimum and Transformers.js. Offsets follow the ONNX specification ('External Tensor Data'):
    multiples of the page for tensors of 64 KiB or more, so that each can be mapped. `out` may be `graph` itself.
    One weight at a time is in memory beside the graph as it was stored.
    """
    import onnx

    return save_external(onnx.load(graph, load_external_data=False), graph.parent, out, threshold)


def save_external(model: Any, folder: Path, out: Path, threshold: int = 1024, read: Content | None = None) -> Path:
    """As `externalize`, for an onnx.ModelProto, which is changed; data that it keeps outside lies in `folder`.

    read: gives the values of a weight; `content` unless given.
    """
    import onnx

    read = read or content
    data = out.with_name(f"{out.name}_data")
    written = data.with_name(f"{data.name}.partial")
    with written.open("wb") as file:
        for tensor in weights(model.graph):
            if (found := read(tensor, folder)) is not None:
                if len(found) >= threshold:
                    _move(tensor, found, file, data.name)
                elif tensor.data_location == onnx.TensorProto.EXTERNAL:
                    _keep_inside(tensor, found)
    any_outside = written.stat().st_size > 0
    # A new graph over a file it was read from: the old data goes only now that all of it was read.
    (written.replace if any_outside else lambda _: written.unlink())(data)
    if not any_outside:
        data.unlink(missing_ok=True)
    partial = out.with_name(f"{out.name}.partial")
    partial.write_bytes(model.SerializeToString())
    partial.replace(out)
    return out


def save_graph(model: Any, out: Path, folder: Path | None = None, read: Content | None = None) -> Path:
    """Write an onnx.ModelProto with its weights inside to one file, or with `<out>_data` where that is too large.

    folder: where data that it keeps outside lies; that of `out` unless given. read: as for `save_external`.
    """
    import onnx

    read, folder = read or content, folder or out.parent
    if needs_external(sum(weight_bytes(tensor) for tensor in weights(model.graph))):
        return save_external(model, folder, out, read=read)
    for tensor in weights(model.graph):
        if tensor.data_location == onnx.TensorProto.EXTERNAL and (found := read(tensor, folder)) is not None:
            _keep_inside(tensor, found)
    partial = out.with_name(f"{out.name}.partial")
    onnx.save(model, partial)
    partial.replace(out)
    out.with_name(f"{out.name}_data").unlink(missing_ok=True)
    return out


def weights(graph: Any) -> Iterator[Any]:
    """The initializers of a graph and of the branches within it (a merged decoder has two)."""
    for inner in subgraphs(graph):
        yield from inner.initializer


def subgraphs(graph: Any) -> Iterator[Any]:
    """The graph and the graphs within its nodes, outer ones first."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from subgraphs(attribute.g)
            for inner in attribute.graphs:
                yield from subgraphs(inner)


def weight_bytes(tensor: Any) -> int:
    """Bytes of a tensor's values, wherever they are stored; 0 for text."""
    import math

    import onnx

    kinds = onnx.TensorProto
    if tensor.data_type == kinds.STRING:
        return 0
    bits = {kinds.INT4: 4, kinds.UINT4: 4}.get(tensor.data_type)
    bits = bits or 8 * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return int(math.prod(tensor.dims) * bits + 7) // 8


def content(tensor: Any, folder: Path) -> bytes | None:
    """The values as raw little-endian bytes; None for text, which cannot stand outside.

    folder: where they lie, if outside. The tensor stays as it is.
    """
    import onnx

    if tensor.data_type == onnx.TensorProto.STRING:
        return None
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        # Into a message of its own: a model's keeps the memory of what once stood in it until the whole model goes.
        alone = onnx.TensorProto()
        alone.CopyFrom(tensor)
        onnx.external_data_helper.load_external_data_for_tensor(alone, str(folder))
        return bytes(alone.raw_data)
    if tensor.HasField("raw_data"):
        return bytes(tensor.raw_data)
    packed = onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor))
    return bytes(packed.raw_data)


def _move(tensor: Any, found: bytes, file: BinaryIO, location: str) -> None:
    import onnx

    step = _PAGE if len(found) >= _LARGE else _LINE
    file.write(b"\0" * (-file.tell() % step))
    kept = {"name": tensor.name, "data_type": tensor.data_type, "dims": list(tensor.dims)}
    places = {"location": location, "offset": str(file.tell()), "length": str(len(found))}
    file.write(found)
    tensor.Clear()
    tensor.name, tensor.data_type = kept["name"], kept["data_type"]
    tensor.dims.extend(kept["dims"])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in places.items():
        tensor.external_data.add(key=key, value=value)


def _keep_inside(tensor: Any, found: bytes) -> None:
    import onnx

    tensor.raw_data = found
    tensor.data_location = onnx.TensorProto.DEFAULT
    del tensor.external_data[:]
