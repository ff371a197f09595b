"""An ONNX file in a worker: a session fed with made-up numbers, that looks like a loaded bundle. Part of the worker."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from edgewise.errors import BundleChangedError, InputError
from edgewise.files import sha256_file
from edgewise.types import RunSettings

IDS = (100, 10, 2)
"""Ids are made up below the first of these; where the graph refuses them, its vocabulary being smaller, the next."""


class Ran(NamedTuple):
    """One call."""

    n_tokens: int = 0
    truncated: bool = False


class GraphModel:
    """A graph with its feeds."""

    parallel = 1

    def __init__(self, path: str, graph: Mapping[str, Any], run: RunSettings, *, verify: str, **recorded: Any) -> None:
        """graph: of `GraphFile.job()`. recorded: of `SessionOptions`.

        Raises BundleChangedError, ProviderError, and BundleError for a file that cannot be read.
        """
        start = time.perf_counter_ns()
        import numpy as np

        from edgewise.runtime.session import SessionOptions, open_graph, placement

        imported = time.perf_counter_ns()
        self._file = file = Path(path)
        if verify == "full":
            for name, digest in graph["files"].items():
                _check(file.parent / name, digest)
        hashed = time.perf_counter_ns()
        self._placement = placement
        self._session = open_graph(file, run, SessionOptions(**recorded))
        self.providers = tuple(self._session.get_providers())
        opened = time.perf_counter_ns()
        self._np, self._inputs, self._ran, self._refused = np, graph["inputs"], False, ""
        self._feed(IDS[0])
        self.phases = {"imports": imported - start, "load": hashed - imported, "session": opened - hashed}

    def _feed(self, ids: int) -> None:
        self.ids, random = ids, self._np.random.default_rng(0)
        self._feeds = {i["name"]: _values(i, ids, random, self._np) for i in self._inputs}

    def predict(self, batch: Sequence[Any]) -> list[Ran]:
        """Run the graph once for each input: its shapes are fixed, so that several are no batch."""
        try:
            for _ in batch:
                self._session.run(None, self._feeds)
        except Exception as error:  # onnxruntime raises a class of its own for each status
            self._refused = self._refused or " ".join(str(error).split())
            smaller = [ids for ids in IDS if ids < self.ids]
            if not self._ran and smaller and any(_is_id(i) for i in self._inputs):
                self._feed(smaller[0])
                return self.predict(batch)
            tried = "" if self.ids == IDS[0] else f", nor with ids of 0 to {self.ids - 1}"
            raise InputError(
                f"{self._file} does not run on the numbers made up for it (ids are 0 to 99){tried}: {self._refused}; "
                "--shape says other shapes"
            ) from error
        self._ran = True
        return [Ran()] * len(batch)

    def placement(self) -> dict[str, int]:
        """Provider -> number of nodes."""
        return self._placement(self._session)

    def end_profiling(self) -> list[str]:
        """The file of onnxruntime's profile."""
        return [self._session.end_profiling()]

    def close(self) -> None:
        """Free the session."""
        del self._session

    def __enter__(self) -> GraphModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _check(file: Path, digest: str) -> None:
    try:
        found = sha256_file(file)
    except OSError as error:
        raise BundleChangedError(f"{file} is gone, or cannot be read any more: {error.strerror or error}") from error
    if found != digest:
        raise BundleChangedError(f"{file} changed while it was measured: start again")


def _is_id(told: Mapping[str, Any]) -> bool:
    """Whether an input takes whole numbers that are no mask, type or position."""
    name, dtype = told["name"].lower(), told["dtype"]
    return "int" in dtype and not any(word in name for word in ("mask", "type", "position"))


def _values(told: Mapping[str, Any], ids: int, random: Any, np: Any) -> Any:
    """Numbers that a graph can take: ids below a number, masks of ones, positions in order."""
    name, shape, dtype = told["name"].lower(), tuple(told["shape"]), told["dtype"]
    if dtype == "bool" or "mask" in name:
        return np.ones(shape, dtype)
    if dtype.startswith("float"):
        return random.standard_normal(shape).astype(dtype)
    if "type" in name:
        return np.zeros(shape, dtype)
    if "position" in name:
        return np.broadcast_to(np.arange(shape[-1] if shape else 1, dtype=dtype), shape).copy()
    return random.integers(0, ids, shape).astype(dtype)
