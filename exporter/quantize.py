"""Graphs in other forms: Optimum's optimizer and quantizer, driven by a recipe."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from edgewise.data import Row
from edgewise.errors import DataError, PlanError
from edgewise.types import Recipe

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


def quantize_graph(source: Path, out: Path, recipe: Recipe, rows: Sequence[Row], tokenizer: Any) -> Path:
    """Quantize the model in folder `source` by a resolved recipe; returns the new graph's path.

    rows: rows of train that calibrate activation ranges (int8-static only).
    """
    from optimum.onnxruntime import ORTQuantizer

    quantizer = ORTQuantizer.from_pretrained(source, file_name="model.onnx")
    keep = kept_nodes(source / "model.onnx", recipe.keep)
    static = recipe.precision == "int8-static"
    keep = keep + _products_without_weights(source / "model.onnx")
    config = _config(recipe, keep, static)
    ranges = None
    if static:
        if not rows:
            raise DataError(
                "int8-static needs rows to calibrate with, and there are none: give --data, or take int8-dynamic"
            )
        ranges = quantizer.fit(
            dataset=_calibration_dataset(rows[: recipe.calibration_rows], tokenizer, source / "model.onnx"),
            calibration_config=_calibration(recipe, len(rows)),
            onnx_augmented_model_name=str(out.parent / "augmented_model.onnx"),
            operators_to_quantize=config.operators_to_quantize,
        )
        (out.parent / "augmented_model.onnx").unlink(missing_ok=True)
    quantizer.quantize(save_dir=out, file_suffix="", quantization_config=config, calibration_tensors_range=ranges)
    return out / "model.onnx"


def kept_nodes(graph: Path, suffixes: Sequence[str]) -> list[str]:
    """Names of the nodes that end in one of `suffixes`. Raises PlanError for a suffix that no node has."""
    if not suffixes:
        return []
    import onnx

    names = [n.name for n in onnx.load(graph, load_external_data=False).graph.node]
    for suffix in suffixes:
        if not any(name.endswith(suffix) for name in names):
            raise PlanError(
                f"keep={suffix!r}: no node of the graph has a name that ends so, for example {names[-1]!r} does"
            )
    return [name for name in names if name.endswith(tuple(suffixes))]


def _products_without_weights(graph: Path) -> list[str]:
    """Names of the MatMul nodes whose both sides are activations (attention scores and their use).

    They hold no weights, so quantizing them saves no byte, and it changes more answers (movie reviews, MiniLM,
    3,210 rows, AVX2: 56 answers changed with them in int8, 48 with them in fp32).
    """
    import onnx

    model = onnx.load(graph, load_external_data=False).graph
    weights = {i.name for i in model.initializer}
    return [n.name for n in model.node if n.op_type == "MatMul" and not weights & set(n.input)]


def _config(recipe: Recipe, keep: list[str], static: bool) -> Any:
    from onnxruntime.quantization import QuantType
    from optimum.onnxruntime.configuration import AutoQuantizationConfig

    # Matrix products and embeddings hold the weights; quantizing the small elementwise nodes between them
    # costs accuracy and time, and saves no byte.
    operators = ["MatMul", "Gemm", "Gather", "Attention", "EmbedLayerNormalization"]
    make = getattr(AutoQuantizationConfig, recipe.preset)
    options: dict[str, Any] = {"per_channel": recipe.per_channel, "nodes_to_exclude": keep, "is_static": static}
    if static:
        options["operators_to_quantize"] = ["MatMul", "Gemm", "Gather"]
    else:
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


def _calibration_dataset(rows: Sequence[Row], tokenizer: Any, graph: Path) -> Any:
    """A datasets.Dataset of the graph's inputs, one row of real length each (calibrated at batch 1, unpadded)."""
    import onnx
    from datasets import Dataset

    inputs = [i.name for i in onnx.load(graph, load_external_data=False).graph.input]
    encoded = [tokenizer(r.text, r.text_pair, truncation=True, max_length=128) for r in rows]
    return Dataset.from_dict({name: [e[name] for e in encoded] for name in inputs})
