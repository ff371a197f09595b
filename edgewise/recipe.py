"""How a bundle is made from a checkpoint: composable options with short names. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from hashlib import sha256
from typing import Any, Literal, get_args

from edgewise.errors import PlanError, nearest

_LONGEST_NAME = 120
Precision = Literal["fp32", "fp16", "int8-dynamic", "int8-static", "int8-weights", "int4-weights"]
Calibration = Literal["minmax", "entropy", "percentile"]
OptimizationLevel = Literal["O1", "O2", "O3"]
Preset = Literal["auto", "avx2", "avx512", "avx512_vnni", "arm64"]
Cache = Literal["portable", "in-place"]
Vocabulary = Literal["full", "task"]


@dataclass(frozen=True)
class Recipe:
    """How a bundle is made from a checkpoint. `name` is its short name; `Recipe.parse` reads one."""

    precision: Precision = "fp32"
    optimize: OptimizationLevel | None = None
    """Optimum's graph optimization level, applied and saved at export time; None leaves the graph as exported."""
    cache: Cache = "portable"
    """text-generation: 'in-place' is a graph of GroupQueryAttention nodes that write into the key-value cache."""
    per_channel: bool = True
    """One scale a column of a weight matrix instead of one a matrix (int8-dynamic, int8-static)."""
    symmetric_weights: bool | None = None
    """int8 weights signed and symmetric (True), unsigned (False), or by the CPU preset (None)."""
    reduce_range: bool = False
    """7-bit weights: avoids the 16-bit saturation of AVX2 and AVX512 without VNNI."""
    preset: Preset = "auto"
    """Optimum's quantization preset; auto takes that of the CPU at hand."""
    calibration: Calibration = "minmax"
    calibration_rows: int = 200
    """Rows of train that calibrate the activation ranges (int8-static only)."""
    block_size: int = 32
    """Weights of one column that share a scale (int8-weights, int4-weights)."""
    embeddings: bool = True
    """Quantize the embedding tables too (any integer precision)."""
    keep: tuple[str, ...] = ()
    """Suffixes of node names that stay in fp32 (any integer precision), for example 'output/dense/MatMul'."""
    max_drop: float | None = None
    """Points that the metric may drop on val rows: the nodes to keep in fp32 are searched for (int8)."""
    vocabulary: Vocabulary = "full"
    """'task' keeps the tokens alone that the task's rows need, and what any other text can be spelled with."""
    length: int | None = None
    """A fixed sequence length that every text is padded to; None: as long as the text."""
    offline: bool = False
    """Saved as ONNX Runtime optimizes it (level extended), so that a start does not optimize again."""
    external: bool = False
    """Weights in a file of their own, model.onnx_data, which ONNX Runtime maps into memory."""

    @property
    def name(self) -> str:
        """Short and unique: the base name and what differs from its defaults."""
        base, start = _base(self)
        changed = [
            f"{f.name}={_option_text(getattr(self, f.name))}"
            for f in fields(self)
            if getattr(self, f.name) != getattr(start, f.name)
        ]
        return "+".join([base, *changed])

    @property
    def folder(self) -> str:
        """The name as one folder's: without slashes, and cut where it would be too long for a file system."""
        safe = self.name.replace("/", "_")
        if len(safe) <= _LONGEST_NAME:
            return safe
        return f"{safe[:_LONGEST_NAME]}-{sha256(self.name.encode()).hexdigest()[:8]}"

    @property
    def quantized(self) -> bool:
        """True where weights are integers."""
        return self.precision not in ("fp32", "fp16")

    @property
    def int8(self) -> bool:
        """True where products are of int8 by int8."""
        return self.precision in ("int8-dynamic", "int8-static")

    @classmethod
    def parse(cls, text: str) -> Recipe:
        """Read a short name such as 'int8-dynamic' or 'int8-dynamic+per_channel=false'.

        Raises PlanError for a name or an option that does not exist.
        """
        base, *options = text.split("+")
        if base not in RECIPES:
            raise PlanError(f"unknown recipe {base!r}: {nearest(base, tuple(RECIPES))}")
        changes: dict[str, Any] = {}
        allowed = tuple(f.name for f in fields(cls) if f.name not in ("precision", "cache"))
        for option in options:
            key, eq, value = option.partition("=")
            if not eq or key not in allowed:
                raise PlanError(f"recipe {text!r}: unknown option {key!r}: {nearest(key, allowed)}")
            changes[key] = _read_option(text, key, value)
        return replace(RECIPES[base], **changes)


RECIPES: dict[str, Recipe] = {
    "fp32": Recipe(),
    "fp32-o1": Recipe(optimize="O1"),
    "fp32-o2": Recipe(optimize="O2"),
    "fp32-o3": Recipe(optimize="O3"),
    "fp16": Recipe(precision="fp16"),
    "int8-dynamic": Recipe(precision="int8-dynamic"),
    "int8-static": Recipe(precision="int8-static"),
    "int8-weights": Recipe(precision="int8-weights"),
    "int4-weights": Recipe(precision="int4-weights"),
    "fp32-in-place": Recipe(cache="in-place"),
    "int4-in-place": Recipe(precision="int4-weights", cache="in-place"),
}
"""Short names; options are added as in int8-dynamic+per_channel=false."""

_BASES = {(r.precision, r.optimize, r.cache): (name, r) for name, r in RECIPES.items()}


def _base(recipe: Recipe) -> tuple[str, Recipe]:
    """The named recipe that `recipe` is a variant of; its optimization level may be an option."""
    for level in (recipe.optimize, None):
        if (found := _BASES.get((recipe.precision, level, recipe.cache))) is not None:
            return found
    return _BASES[(recipe.precision, None, "portable")]


def recipe_from_dict(data: Mapping[str, Any]) -> Recipe:
    """A recipe from JSON; keys of a newer minor format are ignored."""
    known = {f.name for f in fields(Recipe)}
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items() if k in known}
    return Recipe(**values)


_TRUTH = {"true": True, "false": False}
_OPTION_VALUES: dict[str, dict[str, Any]] = {
    "optimize": {level: level for level in get_args(OptimizationLevel)},
    "per_channel": _TRUTH,
    "reduce_range": _TRUTH,
    "symmetric_weights": _TRUTH,
    "embeddings": _TRUTH,
    "offline": _TRUTH,
    "external": _TRUTH,
    "preset": {p: p for p in get_args(Preset)},
    "calibration": {c: c for c in get_args(Calibration)},
    "vocabulary": {v: v for v in get_args(Vocabulary)},
    "block_size": {str(b): b for b in (16, 32, 64, 128, 256)},
}
_SMALLEST = {"calibration_rows": 1, "length": 3}


def _option_text(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _read_option(recipe: str, key: str, value: str) -> Any:
    if key == "keep":
        return tuple(part for part in value.split(",") if part)
    if key in _SMALLEST:
        if not value.isdigit() or int(value) < _SMALLEST[key]:
            raise PlanError(f"recipe {recipe!r}: {key}={value!r} must be a whole number of at least {_SMALLEST[key]}")
        return int(value)
    if key == "max_drop":
        return read_points(value, f"recipe {recipe!r}: max_drop")
    known = _OPTION_VALUES[key]
    if value not in known:
        raise PlanError(f"recipe {recipe!r}: {key}={value!r} must be one of {', '.join(known)}")
    return known[value]


def read_points(text: str, what: str) -> float:
    """A drop in points, from 0 to 100. Raises PlanError, which names `what`."""
    try:
        points = float(text)
    except ValueError:
        points = -1.0
    if not 0 <= points <= 100:
        raise PlanError(f"{what}={text!r} must be a number of points from 0 to 100, for example 0.5")
    return points
