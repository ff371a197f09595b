"""How near a bundle comes to what its machine can do: the roofline (Williams, Waterman, Patterson, 2009).

The least time of a call is the larger of two: that of its products at the machine's measured peaks, and that of
reading its weights from memory once a run. Weights that fit into the last cache need not be read from memory, so that
they do not count; nor do embeddings, not even those that the last product of a language model reads whole. What is no
product (normalizations, softmax, tokenizing) counts as nothing: it is a limit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgewise.profiler.graphs import GraphFile
from edgewise.profiler.plumbing import Subject
from edgewise.types import Metric


@dataclass(frozen=True)
class Roofline:
    """Of one call, the mean of those that were profiled."""

    operations: Mapping[str, float]
    """'float32' and 'int8': a multiplication and an addition are two."""
    weights: float
    """Bytes of weights that are read from memory; 0 where they fit into the last cache."""
    peaks: Mapping[str, Any]
    """Operations and bytes a second, and 'cache': bytes of the last cache."""

    @property
    def compute_s(self) -> float:
        """Seconds of the products at the peaks."""
        return sum(float(self.operations[kind] / self.peaks[kind]) for kind in ("float32", "int8"))

    @property
    def memory_s(self) -> float:
        """Seconds of reading the weights."""
        return float(self.weights / self.peaks["bytes"])

    @property
    def limit_s(self) -> float:
        return max(self.compute_s, self.memory_s)

    def as_dict(self) -> dict[str, Any]:
        """For the conditions."""
        told = {"operations": dict(self.operations), "weights": self.weights, "peaks": dict(self.peaks)}
        return {**told, "compute_s": self.compute_s, "memory_s": self.memory_s}


def roofline(subject: Subject, nodes: Mapping[str, Any] | None, peaks: Mapping[str, Any] | None) -> Roofline | None:
    """From a worker's profile and peaks; None where it has none, or no products were seen."""
    if not nodes or not peaks or not nodes["runs"] or not any(nodes["operations"].values()):
        return None
    # The first run of each graph is not in the profile's sums, but it was one of the calls'.
    scale = sum(nodes["runs_by_graph"]) / nodes["runs"] / nodes["calls"]
    weights = _weights(subject)
    cache = peaks.get("cache") or 0
    read = sum(
        size * runs / nodes["calls"]
        for size, runs in zip(weights, nodes["runs_by_graph"], strict=False)
        if size > cache
    )
    return Roofline({kind: n * scale for kind, n in nodes["operations"].items()}, read, peaks)


def _weights(subject: Subject) -> Sequence[int]:
    """Bytes that a run of each graph reads: all weights but the embeddings, of which it reads a few rows. Of an ONNX
    file nobody says which are embeddings: its products alone make the limit."""
    if isinstance(subject.bundle, GraphFile):
        return [0]
    return [graph.bytes_by_part.get("other weights", 0) for graph in subject.manifest.graphs]


def roofline_metric(found: Roofline | None, mean_s: float | None) -> Metric:
    """The limit over the mean time of a call."""
    if found is None or not mean_s:
        why = "no products were seen, or the provider's peak is not measured"
        return Metric("roofline", "1", None, n=0, kind="unavailable", why=why)
    if found.limit_s > mean_s:
        limit = f"{1000 * found.limit_s:.3g} ms"
        why = f"the limit by the peaks, {limit}, is above the mean: the machine was slower while they were measured"
        return Metric("roofline", "1", None, n=0, kind="unavailable", why=why)
    bound = "memory" if found.memory_s > found.compute_s else "products"
    method = f"limit by {bound}, {1000 * found.limit_s:.3g} ms, over the mean time"
    why = "operations are those of a few profiled calls, peaks the best of five tries"
    return Metric("roofline", "1", found.limit_s / mean_s, method=method, n=1, kind="estimated", why=why)
