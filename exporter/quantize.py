"""Graphs in other forms: Optimum's optimizer and quantizer, driven by a recipe."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any, Literal

from edgewise.data import Row
from edgewise.errors import DataError, PlanError
from edgewise.exporter.external import save_external
from edgewise.exporter.fused import ATTENTION, quantize_attention, with_types
from edgewise.exporter.lean_quantize import bring_in, is_apart, weights_on_demand, with_shapes
from edgewise.exporter.product_results import keep_results
from edgewise.exporter.tracing import DECODER, DECODER_WITH_PAST, ENCODER, MERGED
from edgewise.types import Recipe

_CALIBRATION_LENGTH = 128
"""Tokens that a row is cut to when it calibrates."""

Columns = Callable[[Sequence[Row], Sequence[str]], dict[str, list[Any]]]
"""Rows as the named inputs of a graph."""

_RANGES: ContextVar[dict[str, Any] | None] = ContextVar("ranges", default=None)
"""Ranges of activations by file name of the fp32 graph, while `calibrated_once` holds."""

Preset = Literal["avx2", "avx512", "avx512_vnni", "arm64"]


def cpu_preset() -> Preset:
    """Optimum's quantization preset for the CPU at hand, from its feature flags."""
    if platform.machine().lower() in ("aarch64", "arm64"):
        return "arm64"
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("flags", 1)[1].split("\n", 1)[0].split()
    except (OSError, IndexError):
        return "avx2"  # unsigned weights: right on every x86-64, since nothing saturates
    if "avx512_vnni" in flags or "avx_vnni" in flags:
        return "avx512_vnni"
    # AVX512 without VNNI multiplies int8 with 16-bit saturation, as AVX2 does; unsigned weights avoid it.
    return "avx2"


def resolve_recipe(recipe: Recipe) -> Recipe:
    """The recipe with its preset named, so that it says what was done and not what to find out."""
    from dataclasses import replace

    if not recipe.quantized or recipe.preset != "auto":
        return recipe
    return replace(recipe, preset=cpu_preset())


def optimize_graph(source: Path, out: Path, level: str) -> Path:
    """Apply Optimum's graph optimization `level` to the exported model in `source`; returns the new graph's path."""
    from optimum.onnxruntime import ORTOptimizer
    from optimum.onnxruntime.configuration import AutoOptimizationConfig

    optimizer = ORTOptimizer.from_pretrained(source)
    optimizer.optimize(
        optimization_config=AutoOptimizationConfig.with_optimization_level(level), save_dir=out, file_suffix=""
    )
    return out / "model.onnx"


def quantize_graph(
    source: Path,
    out: Path,
    recipe: Recipe,
    rows: Sequence[Row],
    preprocessor: Any,
    max_length: int | None = None,
    *,
    images: bool = False,
) -> Path:
    """Quantize model.onnx of the folder `source` by a resolved recipe; returns the new graph's path.

    rows: rows of train that calibrate activation ranges (int8-static only), cut to `max_length` tokens or 128.
    preprocessor: transformers' tokenizer, or for `images` its processor.
    """
    check_keep([source / "model.onnx"], recipe.keep)
    if images:
        return _quantize(source / "model.onnx", out, recipe, rows, partial(_image_columns, preprocessor))
    length = min(_CALIBRATION_LENGTH, max_length or _CALIBRATION_LENGTH)
    return _quantize(source / "model.onnx", out, recipe, rows, partial(_text_columns, preprocessor, length))


def quantize_seq2seq(source: Path, out: Path, recipe: Recipe) -> Path:
    """Quantize encoder and decoders of the folder `source` dynamically, and merge the decoders; returns `out`.

    Each decoder alone and then together: in a merged graph onnxruntime leaves the embeddings in fp32. The weights
    that the two branches share are one copy again after the merge.
    """
    from optimum.onnx import merge_decoders

    graphs = [source / name for name in (ENCODER, DECODER, DECODER_WITH_PAST)]
    check_keep(graphs, recipe.keep)
    for graph in graphs:
        _quantize(graph, out, recipe, (), None)
    merge_decoders(out / DECODER, out / DECODER_WITH_PAST, save_path=out / MERGED, strict=False)
    return out


def _quantize(graph: Path, out: Path, recipe: Recipe, rows: Sequence[Row], columns: Columns | None) -> Path:
    graph = _untied(graph, out.parent / "untied")
    if not is_apart(graph) or recipe.precision == "int8-static":
        with with_types(graph) as typed:
            return _run_quantizer(typed, out, recipe, rows, columns).replace(out / graph.name)
    shaped = with_shapes(graph)
    with weights_on_demand(graph.parent):
        made = _run_quantizer(shaped, out, recipe, rows, columns)
    shaped.unlink()
    bring_in(made, graph.parent)
    return made.replace(out / graph.name)


def _run_quantizer(graph: Path, out: Path, recipe: Recipe, rows: Sequence[Row], columns: Columns | None) -> Path:
    from optimum.onnxruntime import ORTQuantizer

    static = recipe.precision == "int8-static"
    kept = kept_nodes(graph, recipe.keep)
    kept += [f"{name}_MatMul" for name in kept]  # a Gemm, once the dynamic quantizer has made a MatMul and an Add of it
    config = _config(recipe, kept + _products_without_weights(graph), static)
    source, ranges = graph, None
    if static:
        if not rows or columns is None:
            raise DataError(
                "int8-static needs rows to calibrate with, and there are none: give --data, or take int8-dynamic"
            )
        known = _RANGES.get()
        ranges = None if known is None else deepcopy(known.get(graph.name))  # the quantizer adjusts what it is given
        if ranges is None:
            ranges = ORTQuantizer.from_pretrained(graph.parent, file_name=graph.name).fit(
                dataset=_calibration_dataset(rows[: recipe.calibration_rows], columns, graph),
                calibration_config=_calibration(recipe, len(rows)),
                onnx_augmented_model_name=str(out.parent / "augmented_model.onnx"),
                operators_to_quantize=[*config.operators_to_quantize, ATTENTION],
            )
            (out.parent / "augmented_model.onnx").unlink(missing_ok=True)
            if known is not None:
                known[graph.name] = deepcopy(ranges)
        source = quantize_attention(graph, out.parent / "attention", config, ranges)
    quantizer = ORTQuantizer.from_pretrained(source.parent, file_name=source.name)
    quantizer.quantize(save_dir=out, file_suffix="", quantization_config=config, calibration_tensors_range=ranges)
    return keep_results(out / graph.name) if static else out / graph.name


@contextmanager
def calibrated_once() -> Iterator[None]:
    """While this holds, int8-static finds the ranges of a graph once: they are those of the fp32 graph, whatever is
    kept in fp32. For one graph, quantized again and again with the same rows and the same options but `keep`.
    """
    before = _RANGES.set({})
    try:
        yield
    finally:
        _RANGES.reset(before)


def check_keep(graphs: Sequence[Path], suffixes: Sequence[str]) -> None:
    """Raise PlanError for a suffix that no node of the graphs has."""
    if not suffixes:
        return
    names = [name for graph in graphs for name in _node_names(graph)]
    for suffix in suffixes:
        if not any(name.endswith(suffix) for name in names):
            raise PlanError(
                f"keep={suffix!r}: no node of the graph has a name that ends so, for example {names[-1]!r} does"
            )


def kept_nodes(graph: Path, suffixes: Sequence[str]) -> list[str]:
    """Names of the nodes that end in one of `suffixes`."""
    return [name for name in _node_names(graph) if name.endswith(tuple(suffixes))] if suffixes else []


def _node_names(graph: Path) -> list[str]:
    import onnx

    return [n.name for n in onnx.load(graph, load_external_data=False).graph.node]


def _products_without_weights(graph: Path) -> list[str]:
    """Names of the MatMul nodes whose both sides are activations (attention scores and their use).

    They hold no weights, so quantizing them saves no byte, and it changes more answers (movie reviews, MiniLM,
    3,210 rows, AVX2: 56 answers changed with them in int8, 48 with them in fp32).
    """
    import onnx

    model = onnx.load(graph, load_external_data=False).graph
    weights = {i.name for i in model.initializer}
    return [n.name for n in model.node if n.op_type == "MatMul" and not weights & set(n.input)]


def _untied(graph: Path, folder: Path) -> Path:
    """The graph with an output layer of its own where it is the transposed embeddings; itself where it is not.

    Tied, only the embeddings become int8, and each token would turn the whole table back into fp32 to multiply by it.
    """
    import onnx
    from onnx.numpy_helper import from_array, to_array

    model = onnx.load(graph, load_external_data=False)
    weights = {i.name: i for i in model.graph.initializer}
    turned = {n.output[0]: weights[n.input[0]] for n in model.graph.node
              if n.op_type == "Transpose" and n.input[0] in weights and len(weights[n.input[0]].dims) == 2}  # fmt: skip
    tied = [n for n in model.graph.node if n.op_type == "MatMul" and n.input[1] in turned]
    if not tied:
        return graph
    folder.mkdir(exist_ok=True)
    for config in graph.parent.glob("*.json"):
        shutil.copyfile(config, folder / config.name)
    for name in {n.input[1] for n in tied}:
        table = to_array(turned[name], str(graph.parent))
        model.graph.initializer.append(from_array(table.T.copy(), f"{name}_own"))
    for node in tied:
        node.input[1] += "_own"
    read = {name for n in model.graph.node for name in n.input} | {o.name for o in model.graph.output}
    for node in [n for n in model.graph.node if n.output[0] in turned and n.output[0] not in read]:
        model.graph.node.remove(node)  # it would keep the table in fp32
    if is_apart(graph):
        return save_external(model, graph.parent, folder / graph.name)
    onnx.save(model, folder / graph.name)
    return folder / graph.name


def _config(recipe: Recipe, keep: list[str], static: bool) -> Any:
    from onnxruntime.quantization import QuantType
    from optimum.onnxruntime.configuration import AutoQuantizationConfig

    # Matrix products and embeddings hold the weights; quantizing the small elementwise nodes between them
    # costs accuracy and time, and saves no byte.
    operators = ["MatMul", "Gemm", "Attention"]
    if recipe.embeddings:
        operators += ["Gather", "EmbedLayerNormalization"]
    make = getattr(AutoQuantizationConfig, recipe.preset)
    options: dict[str, Any] = {"per_channel": recipe.per_channel, "nodes_to_exclude": keep, "is_static": static}
    if static:
        operators = [o for o in operators if o in ("MatMul", "Gemm", "Gather")]
    options["operators_to_quantize"] = operators
    config = make(**options)
    config.reduce_range = recipe.reduce_range
    if recipe.symmetric_weights is not None:
        config.weights_dtype = QuantType.QInt8 if recipe.symmetric_weights else QuantType.QUInt8
        config.weights_symmetric = recipe.symmetric_weights
    return config


def _calibration(recipe: Recipe, rows: int) -> Any:
    from onnxruntime.quantization import CalibrationMethod
    from optimum.onnxruntime.configuration import CalibrationConfig

    method = {
        "minmax": CalibrationMethod.MinMax,
        "entropy": CalibrationMethod.Entropy,
        "percentile": CalibrationMethod.Percentile,
    }[recipe.calibration]
    more = {"num_bins": 2048, "percentile": 99.999} if recipe.calibration == "percentile" else {}
    return CalibrationConfig(
        dataset_name="train",
        dataset_config_name="",
        dataset_split="train",
        dataset_num_samples=min(rows, recipe.calibration_rows),
        method=method,
        **more,
    )


def _calibration_dataset(rows: Sequence[Row], columns: Columns, graph: Path) -> Any:
    """A datasets.Dataset of the graph's inputs, one row each (texts at their real length, unpadded)."""
    import onnx
    from datasets import Dataset

    inputs = [i.name for i in onnx.load(graph, load_external_data=False).graph.input]
    return Dataset.from_dict(columns(rows, inputs))


def _text_columns(tokenizer: Any, length: int, rows: Sequence[Row], names: Sequence[str]) -> dict[str, list[Any]]:
    encoded = [tokenizer(r.text, r.text_pair, truncation=True, max_length=length) for r in rows]
    known = {"position_ids": lambda e: list(range(len(e["input_ids"])))}
    return {name: [known[name](e) if name not in e else e[name] for e in encoded] for name in names}


def _image_columns(processor: Any, rows: Sequence[Row], names: Sequence[str]) -> dict[str, list[Any]]:
    import numpy as np

    from edgewise.images import open_rgb

    images = [np.asarray(open_rgb(r.image)) for r in rows if r.image is not None]
    made = processor(images, return_tensors="np", input_data_format="channels_last")["pixel_values"]
    return {name: list(made.astype(np.float32)) for name in names}
