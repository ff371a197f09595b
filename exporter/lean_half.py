"""Let the fp16 converter see a graph without its weights, which are converted one at a time when they are written.

The converter of onnxruntime.transformers loads every weight, and converts it within the protobuf message, which keeps
the fp32 bytes beside the fp16 ones until it goes. All that it needs to know of a weight is its type, its shape and who
reads it. Tried with onnxruntime 1.32, onnx 1.23 and SmolLM2-135M (538 MB): the same file, byte for byte.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from edgewise.exporter.external import content

_BLOCK = 1 << 20
"""Numbers that are converted at a time: the converter makes some ten copies of them."""


def convert_apart(graph: Path, kept: Sequence[str]) -> tuple[Any, frozenset[str]]:
    """(fp16 onnx.ModelProto, names of the weights that are yet to be converted).

    graph: an fp32 graph without branches; weights that stand inside it are converted, those that lie beside it are only
    marked as FLOAT16 where the converter would make them so: `half_content` gives their values.
    kept: names of the nodes that stay in fp32.
    """
    import onnx
    from onnxruntime.transformers import float16

    shaped = graph.with_name(f"shapes_{graph.name}")
    try:
        onnx.shape_inference.infer_shapes_path(str(graph), str(shaped))  # in files: needs no weights, knows no 2 GB
        model = onnx.load(shaped, load_external_data=False)
    finally:
        shaped.unlink(missing_ok=True)
    kinds = onnx.TensorProto
    apart = {
        t.name for t in model.graph.initializer if t.data_location == kinds.EXTERNAL and t.data_type == kinds.FLOAT
    }
    with _shapes_of_weights_apart():
        model = float16.convert_float_to_float16(
            model, keep_io_types=True, disable_shape_infer=True, node_block_list=list(kept)
        )
    return model, frozenset(t.name for t in model.graph.initializer if t.name in apart and t.data_type == kinds.FLOAT16)


def half_content(tensor: Any, folder: Path, waiting: frozenset[str]) -> bytes | None:
    """As `external.content`, for a graph of `convert_apart`: weights in `waiting` are float32 in `folder`, and come out
    as float16, with what fp16 cannot hold moved to the nearest number that it can, as the converter does."""
    from onnxruntime.transformers.float16 import convert_np_to_float16

    found = content(tensor, folder)
    if found is None or tensor.name not in waiting:
        return found
    values = np.frombuffer(found, "<f4")
    blocks = (values[start : start + _BLOCK] for start in range(0, len(values), _BLOCK))
    return b"".join(convert_np_to_float16(block).tobytes() for block in blocks)


@contextmanager
def _shapes_of_weights_apart() -> Iterator[None]:
    """While this holds, the converter takes the shape of a weight from its description, not from its values."""
    import onnx
    from onnxruntime.transformers import float16

    def described(tensor: Any) -> Any:
        return onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tuple(tensor.dims))

    original, float16.make_value_info_from_tensor = float16.make_value_info_from_tensor, described
    try:
        yield
    finally:
        float16.make_value_info_from_tensor = original
