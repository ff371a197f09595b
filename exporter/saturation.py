"""int8 products as CPUs without VNNI compute them: what their 16-bit sums change, found on any CPU.

What ONNX Runtime does on x86 with uint8 activations and int8 weights, by its sources (onnxruntime/core/mlas/lib):

- amd64/QgemmU8X8KernelAvx2.asm: without VNNI the product is `vpmaddubsw`, then `vpmaddwd` by ones, `vpaddd`. The first
  adds the products of two neighbouring bytes and **saturates at int16**; the rest is exact. With VNNI `vpdpbusds` sums
  four products in 32 bits: nothing saturates. platform.cpp: AVX512 without VNNI has a kernel of the first kind too.
- qgemm_kernel_avx2.cpp: PackedK = 4, and K is cut in slices of 128 or 384, so the pairs are (0, 1), (2, 3), ... along K
  for every shape, and an odd K is filled up with a zero.
- qgemm.h: activations are packed as they are; sums of rows and columns mend the zero points afterwards. So it is the
  raw bytes that saturate.
- qgemm.h, MlasGemmQuantGetDispatch: unsigned weights go to a kernel that widens to 16 bits before it multiplies: exact.
  int8 activations of a MatMulInteger go to neither: exact.
- ../../optimizer/qdq_transformer/qdq_s8_to_u8.cc: on x86 a pair of QuantizeLinear and DequantizeLinear of int8 becomes
  uint8 (values + 128). So S8S8 in QDQ form is U8S8 there and saturates likewise: it is no remedy.

Each was seen in onnxruntime 1.32 on a Haswell emulated by QEMU, which answers as this module says (the slow tests).
The remedies at export are 7-bit weights (255 * (64 + 64) < 2^15) and unsigned weights.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgewise.errors import InputError
from edgewise.exporter.plain_graph import conditions, take_branches
from edgewise.exporter.quantized_graph import Product, read_products
from edgewise.exporter.staged_graph import StagedGraph, counted_sums, exact_sums

if TYPE_CHECKING:
    import onnx

_LARGEST = (1 << 31) - (1 << 24)
"""Bytes of a graph that protobuf can still write."""


@dataclass(frozen=True)
class Saturation:
    """What 16-bit saturation would do to a quantized graph on an x86 CPU without VNNI."""

    applies: bool
    """Whether there is a product of uint8 activations and int8 weights that could saturate."""
    why: str = ""
    """Why it does not apply; where it does, what was not looked into."""
    products: int = 0
    """Matrix products in int8 with constant weights that were looked at."""
    saturated_share: float = 0.0
    """Of all sums of two products, those beyond int16, from 0 to 1."""
    sums: int = 0
    """Sums of two products that were looked at."""
    by_node: Mapping[str, float] = field(default_factory=dict, hash=False)
    """Node name -> its share, the largest first; nodes without any are left out."""
    largest_output_difference: float = 0.0
    """Of the first output, in its unit, against the exact run; padding (attention_mask 0) is not counted."""
    changed: int = 0
    """Inputs (rows of the first output) whose argmax over the last axis changed somewhere: for a classifier or a
    language model its answer; for embeddings, regression and several labels look at the difference instead."""
    n: int = 0
    """Inputs that were run."""
    advice: str = ""
    """In words: what happens, and the recipe option that avoids it. '' where it does not apply."""


def saturation(graph: Path, feeds: Sequence[Mapping[str, np.ndarray]], *, labels: bool = True) -> Saturation:
    """Run a quantized graph exactly and with saturating int8 products, forward through the whole graph, and compare.

    graph: a .onnx file with MatMulInteger (int8-dynamic), MatMul or Gemm between DequantizeLinear nodes (int8-static),
    or what ONNX Runtime fuses them to and saves. feeds: one mapping a call, a value for each graph input, rows along
    the first axis. labels: the largest number of the last axis is the answer, and the advice counts those that change.
    What stands between the products is run by onnxruntime; the products themselves are done in numpy, both times, so
    the answer is the same on every CPU. A value that a saturated sum brings into another step of
    quantization moves later ones: differences are not proportional to the share.

    Raises InputError for no feeds, or for feeds that lack an input of the graph.
    """
    import onnx

    model = onnx.load(graph)
    if model.ByteSize() > _LARGEST:
        return Saturation(False, f"{graph.name} has {model.ByteSize() / 1e9:.1f} GB: too large to be cut into pieces")
    chosen = [_branches(model, feed) for feed in feeds]
    views = {known: _View.of(take_branches(model, dict(known))) for known in dict.fromkeys(chosen or [()])}
    products = list({p.name: p for view in views.values() for p in view.products}.values())
    why = "; ".join(dict.fromkeys(view.why for view in views.values() if view.why))
    if not any(p.heavy is not None and len(p.heavy.k) for p in products):
        return Saturation(False, why or _why_not(products), len(products))
    _check_feeds(model, feeds)
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    difference, changed, n = 0.0, 0, 0
    for feed, known in zip(feeds, chosen, strict=True):
        pieces = views[known].pieces
        start = pieces.start(feed)
        exact = pieces.finish(start, exact_sums)
        found = pieces.finish(start, lambda p, a: counted_sums(p, a, counts))
        rows, largest = _compare(exact, found, feed.get("attention_mask"))
        difference, changed, n = max(difference, largest), changed + int(rows.sum()), n + len(rows)
    shares = {name: hit / total for name, (hit, total) in counts.items() if hit}
    sums = sum(total for _, total in counts.values())
    share = sum(hit for hit, _ in counts.values()) / max(1, sums)
    by_node = dict(sorted(shares.items(), key=lambda item: -item[1]))
    advice = _advice(share, difference, changed if labels else None, n)
    return Saturation(True, why, len(products), share, sums, by_node, difference, changed, n, advice)


def bundle_saturation(graphs: Mapping[Path, Sequence[Mapping[str, np.ndarray]]], *, labels: bool = True) -> Saturation:
    """What `saturation` says of the graphs of one bundle, each by itself: an encoder, and the decoder that answers.

    graphs: graph -> its feeds, the one that answers last: its inputs are counted. Raises InputError as `saturation`.
    """
    found = [saturation(graph, feeds, labels=labels) for graph, feeds in graphs.items()]
    why, products = "; ".join(dict.fromkeys(f.why for f in found if f.why)), sum(f.products for f in found)
    seen = [f for f in found if f.applies]
    if len(found) == 1 or not seen:
        return replace(found[-1], why=why, products=products)
    sums = sum(f.sums for f in seen)
    share = sum(f.saturated_share * f.sums for f in seen) / max(1, sums)
    by_node = {name: s for f in seen for name, s in f.by_node.items()}
    by_node = dict(sorted(by_node.items(), key=lambda item: -item[1]))
    difference, last = max(f.largest_output_difference for f in seen), found[-1]
    advice = _advice(share, difference, last.changed if labels else None, last.n)
    return Saturation(True, why, products, share, sums, by_node, difference, last.changed, last.n, advice)


@dataclass(frozen=True)
class _View:
    """The graph as some inputs run it: of its branches, those that they choose."""

    model: onnx.ModelProto
    products: Sequence[Product]
    why: str
    """What is not looked into."""

    @classmethod
    def of(cls, model: onnx.ModelProto) -> _View:
        return cls(model, *read_products(model))

    @cached_property
    def pieces(self) -> StagedGraph:
        return StagedGraph(self.model, self.products)


_Known = tuple[tuple[str, bool], ...]
"""Names of inputs that choose a branch, and what they say."""


def _branches(model: onnx.ModelProto, feed: Mapping[str, np.ndarray]) -> _Known:
    given = {name: np.asarray(feed[name]) for name in conditions(model) & feed.keys()}
    return tuple(sorted((name, bool(value.reshape(-1)[0])) for name, value in given.items() if value.size == 1))


def _check_feeds(model: onnx.ModelProto, feeds: Sequence[Mapping[str, np.ndarray]]) -> None:
    constants = {i.name for i in model.graph.initializer}
    wanted = [i.name for i in model.graph.input if i.name not in constants]
    if not feeds:
        raise InputError("saturation is found on real inputs, and there are none: give one mapping a call at least")
    for i, feed in enumerate(feeds):
        if missing := [name for name in wanted if name not in feed]:
            raise InputError(f"call {i} has no {', '.join(missing)}: the graph takes {', '.join(wanted)}")


def _compare(exact: np.ndarray, found: np.ndarray, mask: np.ndarray | None) -> tuple[np.ndarray, float]:
    """(bool [rows]: whether an argmax changed, largest absolute difference), padding left out."""
    counts: np.ndarray = np.ones(exact.shape[:-1], bool)
    # A cache makes the mask longer than the output: then only what is asked now has answers.
    if mask is not None and counts.ndim == 2 and len(mask) == len(counts) and mask.shape[1] >= counts.shape[1]:
        counts = mask[:, mask.shape[1] - counts.shape[1] :] != 0
    moved = (exact.argmax(-1) != found.argmax(-1)) & counts
    differences = np.abs(found.astype(np.float64) - exact)[counts]
    return moved.reshape(len(moved), -1).any(1), float(differences.max(initial=0.0))


def _why_not(products: Sequence[Product]) -> str:
    if not products:
        return "there is no matrix product in int8"
    if all(p.weights.dtype == np.uint8 for p in products):
        return "weights are unsigned: x86 multiplies them in 16 bits and sums in 32"
    if any(p.signed for p in products):
        return "activations are signed: x86 multiplies them one by one, exactly"
    return "no two weights side by side can bring a sum beyond int16, as with 7-bit weights (reduce_range=true)"


def _advice(share: float, difference: float, changed: int | None, n: int) -> str:
    where = "On x86 CPUs without VNNI (AVX2, AVX512)"
    if not share:
        return f"{where} none of the 16-bit sums saturates on these {n} inputs"
    answers = f"{changed} of {n} inputs get another argmax, " if changed else f"no argmax of {n} inputs changes, "
    answers = "" if changed is None else answers
    return (
        f"{where} {100 * share:.2g}% of the 16-bit sums saturate: {answers}outputs move by up to {difference:.2g}. "
        "7-bit weights (recipe option reduce_range=true) or unsigned weights (symmetric_weights=false) avoid it"
    )
