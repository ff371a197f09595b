"""How much each weight in int8 changes what a graph answers: simulated on a few inputs, without an evaluation.

One fp32 graph holds every product twice, in fp32 and as int8 computes it (weights read back from the int8 graph,
activations rounded to the same scales), and a switch a weight says which one counts. So any mix of precisions is one
run, with no quantizer and no calibration in between.

What is not simulated: the 16-bit saturation of CPUs without VNNI, and that a product which reads a table's rows as they
stand does not round them again.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from edgewise.errors import PlanError
from edgewise.exporter.external import save_graph

_PRODUCTS = ("MatMul", "Gemm", "Attention")
"""Nodes whose first inputs are activations that int8 rounds too; tables (Gather) are only read."""
_QUANTIZED = (*_PRODUCTS, "Gather", "EmbedLayerNormalization")
_CLONE = "/int8"
_GATE = "edgewise.int8."


@dataclass(frozen=True)
class Part:
    """A weight that the quantizer turned into int8, with the nodes that read it: int8 together or fp32 together."""

    nodes: tuple[str, ...]
    """Names, in the order of the graph."""
    numbers: int
    """Numbers in the weights of these nodes."""

    @property
    def given(self) -> int:
        """Bytes given away when it stays in fp32: four a number instead of one."""
        return 3 * self.numbers


@dataclass(frozen=True)
class Simulation:
    """A graph whose weights can be int8 or fp32, one by one, on sample inputs."""

    parts: tuple[Part, ...]
    session: ort.InferenceSession
    feeds: tuple[Mapping[str, np.ndarray], ...]
    reference: tuple[np.ndarray, ...]
    """What fp32 answers, one array a feed."""
    gates: Mapping[str, frozenset[int]]
    """Switch -> the parts of which any in int8 turns it on."""

    def error(self, int8: Collection[int]) -> float:
        """Squared error of the answers against fp32, relative to theirs, with the parts of these numbers in int8.

        What all classes share in an answer is taken away first: it decides nothing. inf where int8 gives no number.
        """
        return self.errors(int8)[0]

    def errors(self, int8: Collection[int]) -> tuple[float, np.ndarray]:
        """(as `error` says; by how much each answer's lead over the next one changes, float64 [answers])."""
        found = self.answers(int8)
        wrong = sum(_energy(one - right) for one, right in zip(found, self.reference, strict=True))
        size = sum(_energy(right) for right in self.reference)
        moved = [_moved(one, right) for one, right in zip(found, self.reference, strict=True)]
        return wrong / max(size, 1e-30) if np.isfinite(wrong) else float("inf"), np.concatenate(moved)

    def nearest(self, count: int) -> Simulation:
        """The same on those `count` feeds whose best class leads by the least: there noise turns answers, and there a
        classifier that is sure of most of what it was trained on answers as it does on what it was not."""
        leads = [float(_lead(r, *_best_two(r)).min()) if r.shape[-1] > 1 else 0.0 for r in self.reference]
        chosen = sorted(sorted(range(len(leads)), key=leads.__getitem__)[:count])
        return replace(
            self, feeds=tuple(self.feeds[i] for i in chosen), reference=tuple(self.reference[i] for i in chosen)
        )

    def answers(self, int8: Collection[int]) -> list[np.ndarray]:
        """The first output for each feed, float32."""
        gates = {name: np.array(not parts.isdisjoint(int8)) for name, parts in self.gates.items()}
        first = [self.session.get_outputs()[0].name]  # those of a cache need not be handed over
        return [self.session.run(first, {**feeds, **gates})[0] for feeds in self.feeds]


def _energy(values: np.ndarray) -> float:
    wide = values.astype(np.float64)
    if wide.ndim and wide.shape[-1] > 1:
        wide = wide - wide.mean(-1, keepdims=True)
    return float((wide * wide).sum())


def _best_two(answer: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places of the largest and the next along the last dimension, which stays, of length 1."""
    two = np.argpartition(answer, -2)[..., -2:]
    return two[..., 1:], two[..., :1]


def _lead(answer: np.ndarray, best: np.ndarray, other: np.ndarray) -> np.ndarray:
    wide = answer.astype(np.float64)
    return np.asarray(np.take_along_axis(wide, best, -1) - np.take_along_axis(wide, other, -1))


def _moved(found: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Change of the lead of fp32's best class over its next, for each place of the last dimension; of one number its
    own."""
    if right.shape[-1] < 2:
        return np.asarray(np.abs(found.astype(np.float64) - right)).ravel()
    pair = _best_two(right)
    return np.asarray(np.abs(_lead(found, *pair) - _lead(right, *pair))).ravel()


def simulate(graph: Path, int8: Path, feeds: Sequence[Mapping[str, np.ndarray]]) -> Simulation:
    """A simulation of the fp32 `graph` and of `int8`, which onnxruntime's quantizer made from it (dynamic or QDQ).

    feeds: sample inputs, each with the batch that the graph will be run with; inputs that it lacks are left out.
    Memory: the fp32 weights twice.

    Raises PlanError where no weight of `int8` is in int8, or where there are no feeds.
    """
    import onnx

    if not feeds:
        raise PlanError("the sensitivity of a graph needs sample inputs, and there are none: give some rows")
    work = _Work(onnx.load(graph), onnx.load(int8))
    parts = _parts(work)
    if not parts:
        raise PlanError(f"{int8} holds no int8 weights that {graph} has in fp32: was it quantized from that graph?")
    names = {i.name for i in work.fp32.graph.input}
    given = tuple({n: v for n, v in one.items() if n in names} for one in feeds)
    for i, part in enumerate(parts):
        work.part.update(dict.fromkeys(part.nodes, i))
    gates = _rewrite(work)
    simulation = Simulation(parts, _open(work.fp32), given, (), gates)
    return replace(simulation, reference=tuple(simulation.answers(())))


def weights_in_int8(graph: Path, int8: Path, keep: Collection[str] = ()) -> tuple[int, int]:
    """(numbers in the weights that are int8 when the nodes `keep` stay in fp32, numbers in all weights).

    Embeddings that are the output layer too count twice, as the int8 graph stores them.
    """
    import onnx

    work = _Work(onnx.load(graph, load_external_data=False), onnx.load(int8, load_external_data=False))
    parts = _parts(work)
    wide = [w for w in work.weights.values() if w.data_type == onnx.TensorProto.FLOAT and not work.stored_as(w.name)]
    total = sum(p.numbers for p in parts) + sum(int(np.prod(w.dims)) for w in wide)
    return sum(p.numbers for p in parts if not set(p.nodes) & set(keep)), total


@dataclass
class _Work:
    """The fp32 graph on its way, and the int8 graph to read from."""

    fp32: Any
    int8: Any
    part: dict[str, int] = field(default_factory=dict)
    """Name of a node -> number of its part."""
    made: set[str] = field(default_factory=set)
    """Tensors made so far."""

    def __post_init__(self) -> None:
        self.weights = {i.name: i for i in self.fp32.graph.initializer}
        self.stored = {i.name: i for i in self.int8.graph.initializer}
        self.axes = {n.input[0]: _axis(n) for n in self.int8.graph.node if n.op_type == "DequantizeLinear"}
        self.turned = {n.output[0]: n.input[0] for n in self.fp32.graph.node
                       if n.op_type == "Transpose" and n.input[0] in self.weights}  # fmt: skip

    def stored_as(self, name: str) -> str | None:
        """The name under which the int8 graph keeps this weight, without '_quantized'; None where it does not."""
        if name not in self.weights and name not in self.turned:
            return None
        # Gemm becomes a product with the transposed weight, and tied embeddings have an output layer of their own.
        for found in (name, f"{name}_Transposed", f"{name}_own"):
            # A bias is kept in 32 bits, under another name for its scale: no weight of ours.
            if f"{found}_quantized" in self.stored and f"{found}_scale" in self.stored:
                return found
        return None

    def count(self, name: str) -> int:
        return int(np.prod(self.weights[self.turned.get(name, name)].dims))

    def array(self, name: str) -> np.ndarray:
        """An initializer of the int8 graph."""
        from onnx.numpy_helper import to_array

        return np.asarray(to_array(self.stored[name]))

    def dequantized(self, stored: str) -> np.ndarray:
        """float32, in the shape of the fp32 weight."""
        values, scale = self.array(f"{stored}_quantized"), self.array(f"{stored}_scale")
        zero = self.array(f"{stored}_zero_point")
        if scale.size > 1:
            shape = [1] * values.ndim
            # MatMulInteger and QAttention scale by column; a DequantizeLinear of the weight itself names its axis.
            shape[self.axes.get(f"{stored}_quantized", -1)] = scale.size
            scale, zero = scale.reshape(shape), zero.reshape(shape)
        wide = (values.astype(np.float32) - zero.astype(np.float32)) * scale.astype(np.float32)
        return np.ascontiguousarray(wide.T) if stored.endswith("_Transposed") else np.asarray(wide)


def _axis(node: Any) -> int:
    return next((a.i for a in node.attribute if a.name == "axis"), 1)


def _parts(work: _Work) -> tuple[Part, ...]:
    """Nodes that share a weight (ALBERT's layers do) are one part, and so are nodes of which one's name ends in the
    other's: a suffix keeps both (T5's encoder has /block.0/..., its decoder /decoder/block.0/...)."""
    groups: list[tuple[list[str], set[str]]] = []
    for node in work.fp32.graph.node:
        weights = {name for name in node.input if work.stored_as(name)}
        if node.op_type not in _QUANTIZED or not weights or not node.name:
            continue
        same = [g for g in groups if g[1] & weights or any(_one_suffix(node.name, name) for name in g[0])]
        groups = [g for g in groups if g not in same]
        names = [name for group in same for name in group[0]]
        groups.append(([*names, node.name], weights.union(*(g[1] for g in same))))
    return tuple(Part(tuple(names), sum(work.count(w) for w in weights)) for names, weights in groups)


def _one_suffix(one: str, other: str) -> bool:
    return one.endswith(other) or other.endswith(one)


def _rewrite(work: _Work) -> dict[str, frozenset[int]]:
    """Put the int8 form of each part into the fp32 graph; returns the switches, by the name of the input."""
    from onnx import TensorProto, helper

    graph = work.fp32.graph
    rounded = _static_roundings(work)
    entered = {i.name for i in graph.input} & set(rounded)
    nodes = [new for name in sorted(entered) for new in _round(work, name, f"{name}/entered")]
    for node in graph.node:
        for i, name in enumerate(node.input):
            if name in entered:
                node.input[i] = f"{name}/entered"
        outputs = [name for name in node.output if name in rounded]
        nodes += _both(work, node) if node.name in work.part else [node]
        for name in outputs:
            _rename(nodes, name, f"{name}/exact")
            nodes += _round(work, f"{name}/exact", name)
    gates = {f"{_GATE}{i}": frozenset({i}) for i in set(work.part.values())}
    gates |= {f"{_GATE}{name}": parts for name, parts in rounded.items()}
    del graph.node[:]
    graph.node.extend(nodes)
    graph.input.extend(helper.make_tensor_value_info(name, TensorProto.BOOL, []) for name in gates)
    # Shapes stay as they were, but a renamed output must not keep the record of another.
    del graph.value_info[:]
    return gates


def _static_roundings(work: _Work) -> dict[str, frozenset[int]]:
    """Tensors that a QDQ graph rounds for all who read them, a kept product or a residual included -> the parts that
    cause it: those that read the tensor, and the one that writes it."""
    found: dict[str, set[int]] = {}
    for node in work.fp32.graph.node:
        if node.name in work.part and node.op_type in _PRODUCTS:
            for name in (*node.input, *node.output):
                if f"{name}_scale" in work.stored and not work.stored_as(name):
                    found.setdefault(name, set()).add(work.part[node.name])
    return {name: frozenset(parts) for name, parts in found.items()}


def _rename(nodes: list[Any], name: str, new: str) -> None:
    """Give the output `name` of the newest nodes a new name."""
    for node in reversed(nodes):
        for i, output in enumerate(node.output):
            if output == name:
                node.output[i] = new
                return


def _round(work: _Work, name: str, out: str) -> list[Any]:
    """`out` is the tensor `name`, or what 8 bits with the int8 graph's own scale make of it, as a switch says."""
    from onnx import helper

    plain = out.removesuffix("/entered")
    pair = [f"{plain}_scale", f"{plain}_zero_point"]
    work.fp32.graph.initializer.extend(work.stored[constant] for constant in pair)
    short, wide = f"{name}/8bit", f"{name}/rounded"
    return [
        helper.make_node("QuantizeLinear", [name, *pair], [short], f"{name}/quantize"),
        helper.make_node("DequantizeLinear", [short, *pair], [wide], f"{name}/dequantize"),
        helper.make_node("Where", [f"{_GATE}{plain}", wide, name], [out], f"{name}/switch"),
    ]


def _both(work: _Work, node: Any) -> list[Any]:
    """The node, the same as int8 computes it, and the switch between them."""
    from onnx import helper

    out = node.output[0]
    clone = type(node)()
    clone.CopyFrom(node)
    clone.name += _CLONE
    before: list[Any] = []
    activations = {"Attention": 1, "MatMul": 2, "Gemm": 1}.get(node.op_type, 0)
    for i, name in enumerate(node.input):
        if stored := work.stored_as(name):
            clone.input[i] = _weight(work, name, stored)
        elif i < activations and f"{name.removesuffix('/entered')}_scale" not in work.stored:
            clone.input[i] = _rounded_dynamically(work, name, before)
    for i, name in enumerate(node.output):
        clone.output[i] = f"{name}{_CLONE}" if name else ""
    node.output[0] = f"{out}/fp32"
    gate = f"{_GATE}{work.part[node.name]}"
    switch = helper.make_node("Where", [gate, clone.output[0], node.output[0]], [out], f"{node.name}/switch")
    return [*before, node, clone, switch]


def _weight(work: _Work, name: str, stored: str) -> str:
    from onnx.numpy_helper import from_array

    new = f"{name}{_CLONE}"
    if new not in work.made:
        work.made.add(new)
        work.fp32.graph.initializer.append(from_array(work.dequantized(stored), new))
    return new


def _rounded_dynamically(work: _Work, name: str, nodes: list[Any]) -> str:
    """The tensor in 8 bits of its own range, for the one product that reads it so; appends what makes it."""
    from onnx import helper

    new, short = f"{name}/rounded", f"{name}/8bit"
    if new not in work.made:
        work.made.add(new)
        pair = [f"{short}/scale", f"{short}/zero"]
        nodes.append(helper.make_node("DynamicQuantizeLinear", [name], [short, *pair], f"{name}/quantize"))
        nodes.append(helper.make_node("DequantizeLinear", [short, *pair], [new], f"{name}/dequantize"))
    return new


def _open(model: Any) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1  # the same sums in the same order, wherever it runs
    # Else onnxruntime would turn our rounding back into int8 kernels, or take it out.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        path = save_graph(model, Path(folder) / "simulation.onnx")
        return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
