"""Any ONNX file as something to measure: its digest, its inputs, and numbers to fill them with. No bundle needed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

from edgewise.errors import BundleError, PlanError, nearest
from edgewise.files import digest_json, sha256_file
from edgewise.profiler.external_data import external_files

DEFAULTS: tuple[tuple[str, int], ...] = (
    ("past", 0),
    ("batch", 1),
    ("channel", 3),
    ("height", 224),
    ("width", 224),
    ("seq", 128),
    ("length", 128),
)
"""What a symbolic dimension is whose name has the word in it; the first that fits. Others are 1."""
_MOST = 2**30
"""Numbers of one input: with 8 bytes each more than 8 GB."""
_SHAPE = re.compile(r"^(?P<name>[^=]+)=(?P<shape>\d+(?:x\d+)*)$")
_TYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(int16)": "int16",
    "tensor(int8)": "int8",
    "tensor(uint64)": "uint64",
    "tensor(uint32)": "uint32",
    "tensor(uint16)": "uint16",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}


@dataclass(frozen=True)
class GraphInput:
    """One input, as it is fed."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    assumed: tuple[str, ...] = ()
    """Symbolic dimensions that nothing was said about: 'sequence_length = 128'."""

    @property
    def size(self) -> str:
        """'1x128'."""
        return "x".join(map(str, self.shape)) or "scalar"


@dataclass(frozen=True)
class GraphFile:
    """An ONNX file and how it is fed."""

    path: Path
    files: tuple[tuple[str, str], ...]
    """(name, sha256) of the file, and of its external data, from the file's folder on."""
    size: int
    """Bytes of all of them."""
    inputs: tuple[GraphInput, ...]

    @property
    def digest(self) -> str:
        """Of all files."""
        return digest_json(self.files)

    def job(self) -> dict[str, Any]:
        """As a worker's job has it."""
        return {"files": dict(self.files), "inputs": [asdict(i) for i in self.inputs]}

    @property
    def form(self) -> str:
        """The shapes in short, each once, as the name of what is measured: '1x128', '1x128,1x6x0x32'."""
        return ",".join(dict.fromkeys(i.size for i in self.inputs)) or "no-inputs"


def read_graph(path: str | Path, shapes: Mapping[str, Sequence[int]]) -> GraphFile:
    """An ONNX file with its inputs' shapes: as given; dimensions of the same name alike; else by `DEFAULTS`.

    shapes: input -> shape. Raises BundleError for a file that onnxruntime does not read or inputs that are no plain
    tensors, PlanError for a shape that does not fit.
    """
    file = Path(path)
    told = _inputs(file)
    for name in shapes:
        if name not in [i.name for i in told]:
            raise PlanError(f"--shape {name}=...: {file} has no such input: {nearest(name, [i.name for i in told])}")
    bound = _bound({i.name: i.shape for i in told}, shapes)
    inputs = tuple(_input(file, i.name, i.type, i.shape, shapes.get(i.name), bound) for i in told)
    try:
        files = _files(file)
    except (ValueError, OSError) as error:
        raise BundleError(f"{file}: its external data cannot be found: {error}") from error
    digests = tuple((str(f.relative_to(file.parent)), sha256_file(f)) for f in files)
    return GraphFile(file.resolve(), digests, sum(f.stat().st_size for f in files), inputs)


def input_names(path: str | Path) -> list[str]:
    """Of an ONNX file. Raises BundleError for a file that onnxruntime does not read."""
    return [i.name for i in _inputs(Path(path))]


def _inputs(file: Path) -> list[Any]:
    """As onnxruntime tells them: name, type, shape."""
    try:
        stat = file.stat()
    except OSError as error:
        raise BundleError(f"{file}: {error.strerror or error}; expected an ONNX file") from error
    return _read_inputs(file, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=8)
def _read_inputs(file: Path, _time: int, _size: int) -> list[Any]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    try:
        found: list[Any] = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"]).get_inputs()
    except Exception as error:  # onnxruntime raises a class of its own for each status
        why = " ".join(str(error).split())
        raise BundleError(f"{file} does not load in onnxruntime {ort.__version__}: {why}") from error
    return found


def _files(path: Path) -> list[Path]:
    """The file, and those that its weights stand in."""
    return [path, *external_files(path)]


def parse_shapes(given: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """--shape options, such as 'ids=1x128'. Raises PlanError."""
    found: dict[str, tuple[int, ...]] = {}
    for text in given:
        match = _SHAPE.match(text)
        if match is None:
            raise PlanError(f"--shape is {text!r}; expected an input and its dimensions, such as input_ids=1x128")
        if match["name"] in found:
            raise PlanError(f"--shape names {match['name']!r} twice")
        shape = tuple(map(int, match["shape"].split("x")))
        if prod(shape) > _MOST:
            raise PlanError(
                f"--shape is {text!r}: so many numbers, {float(prod(shape)):.0e}, fit into no device's memory"
            )
        found[match["name"]] = shape
    return found


def _bound(told: Mapping[str, Sequence[Any]], shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """What the given shapes say of the graph's symbolic dimensions, which mean the same in every input.

    Raises PlanError for a shape that the graph does not have, and for two that say different things.
    """
    found: dict[str, int] = {}
    for name, given in shapes.items():
        shape = told[name]
        if len(given) != len(shape) or any(isinstance(d, int) and d != g for d, g in zip(shape, given, strict=True)):
            wanted = "x".join(str(d) if isinstance(d, int) else f"<{d or '?'}>" for d in shape)
            raise PlanError(f"--shape {name}={'x'.join(map(str, given))}: the graph has {wanted or 'a scalar'}")
        for d, g in zip(shape, given, strict=True):
            if isinstance(d, str) and found.setdefault(d, g) != g:
                raise PlanError(f"--shape {name}={'x'.join(map(str, given))}: {d} is {g} here and {found[d]} before")
    return found


def _input(
    file: Path, name: str, kind: str, shape: Sequence[Any], given: Sequence[int] | None, bound: Mapping[str, int]
) -> GraphInput:
    if kind not in _TYPES:
        raise BundleError(f"{file}: input {name!r} is a {kind}; what can be made up is {', '.join(_TYPES)}")
    if given is not None:
        return GraphInput(name, _TYPES[kind], tuple(given))
    sizes = tuple(d if isinstance(d, int) else _size(d, bound) for d in shape)
    free = [(d, size) for d, size in zip(shape, sizes, strict=True) if not isinstance(d, int) and d not in bound]
    return GraphInput(name, _TYPES[kind], sizes, tuple(f"{d or 'unnamed'} = {size}" for d, size in free))


def _size(dimension: str | None, bound: Mapping[str, int]) -> int:
    """Of a symbolic dimension; of a sum, such as 'past_sequence_length + sequence_length', that of its parts."""
    if dimension is not None and dimension in bound:
        return bound[dimension]
    parts = [p.strip() for p in (dimension or "").split("+")]
    return sum(bound[p] if p in bound else _default(p.lower()) for p in parts)


def _default(name: str) -> int:
    return next((size for word, size in DEFAULTS if word in name), 1)
