"""The fp16 form of a graph, for providers of GPUs, with what would overflow left in fp32."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from edgewise.errors import DataError, PlanError
from edgewise.exporter.external import save_external, save_graph, subgraphs, weights
from edgewise.exporter.fused import element_types
from edgewise.exporter.lean_half import convert_apart, half_content
from edgewise.exporter.lean_trace import free_memory
from edgewise.exporter.sessions import Feeds, positions
from edgewise.exporter.tracing import DECODER, DECODER_WITH_PAST, ENCODER, MERGED

LARGEST = 65504.0
"""Largest number in fp16 (IEEE 754 binary16)."""
SAFETY = 4.0
"""How far an activation of the sample inputs must stay below LARGEST: other inputs may give larger ones."""
_MASK = -8000.0
"""What a mask of -3.4e38 becomes: exp(-8000) is 0, and two of them and a score still stay below LARGEST / SAFETY."""
_CLAMPS = ("Clip", "Max", "Min")


def to_half(graph: Path, out: Path, feeds: Sequence[Feeds]) -> tuple[str, ...]:
    """Write the fp16 form of an fp32 ONNX graph to `out`; returns the names of the nodes that stay in fp32.

    Inputs and outputs keep their types. In fp32 stay the nodes that read or write a number beyond the range of fp16 on
    one of the sample inputs (a weight beyond LARGEST, an activation beyond LARGEST / SAFETY), found by running the
    graph on the CPU, those that only count (`_counting`), and node types that the converter of onnxruntime.transformers
    never converts (Range, CumSum...).
    Masks of about -3.4e38 become -8000, which fp16 holds with a score added.

    feeds: inputs by name; an empty key-value cache and positions are added where the graph takes them.
    Raises DataError without sample inputs, and PlanError for a graph with branches (a merged decoder): the converter
    puts all its casts into the outermost graph. `half_seq2seq` converts decoders before they are merged.
    """
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f"{out.name}.partial") as place:
        source = _soften_graph(graph, Path(place) / graph.name)
        kept = _overflowing(source, feeds)
        free_memory()  # of the runs that found them
        _convert(source, out, kept)
    return kept


def half_seq2seq(source: Path, out: Path, feeds: Sequence[Feeds]) -> tuple[str, ...]:
    """Convert encoder and decoders of the folder `source` to fp16, and merge the decoders; returns the fp32 nodes.

    feeds: input_ids, attention_mask and decoder_input_ids, as PyTorch's model takes them. A node that overflows in
    one decoder stays in fp32 in both, so that they go on sharing its weights.
    """
    from optimum.onnx import merge_decoders

    given = _decoder_feeds(source, feeds)
    with tempfile.TemporaryDirectory(dir=out, prefix="half.partial") as place:
        graphs = {name: _soften_graph(source / name, Path(place) / name) for name in given}
        found = {name: _overflowing(graphs[name], given[name]) for name in given}
        both = {*found[DECODER], *found[DECODER_WITH_PAST]}
        free_memory()  # of the runs that found them
        _convert(graphs[ENCODER], out / ENCODER, found[ENCODER])
        for name in (DECODER, DECODER_WITH_PAST):
            _convert(graphs[name], out / name, tuple(both))
    merge_decoders(out / DECODER, out / DECODER_WITH_PAST, save_path=out / MERGED, strict=False)
    return tuple(dict.fromkeys([*found[ENCODER], *found[DECODER], *found[DECODER_WITH_PAST]]))


# ---- masks


def _soften_graph(graph: Path, out: Path) -> Path:
    """Write the graph with masks that fp16 can hold and a name for each node; returns `out`.

    Its weights lie outside, so that the graphs that are made of it to look into it share one copy, and the converter
    need not hold them.
    """
    import onnx

    model, folder = onnx.load(graph, load_external_data=False), graph.parent
    if sum(1 for _ in subgraphs(model.graph)) > 1:
        raise PlanError(
            f"{graph.name} has branches, and the fp16 converter puts the casts of a branch outside of it: "
            "convert the decoders one by one and merge them then"
        )
    clamps = {name for n in model.graph.node if n.op_type in _CLAMPS for name in n.input}
    for i, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{i}"
        for attribute in node.attribute:
            if attribute.HasField("t"):
                if attribute.t.data_location == onnx.TensorProto.EXTERNAL:
                    onnx.external_data_helper.load_external_data_for_tensor(attribute.t, str(folder))
                    attribute.t.data_location = onnx.TensorProto.DEFAULT
                if not clamps & set(node.output):
                    _soften(attribute.t, folder)
    for tensor in model.graph.initializer:
        if tensor.name not in clamps:
            _soften(tensor, folder)
    return save_external(model, folder, out)


def _soften(tensor: Any, folder: Path) -> None:
    """folder: where its values lie, if outside the graph."""
    import onnx

    if tensor.data_type != onnx.TensorProto.FLOAT:
        return
    values = onnx.numpy_helper.to_array(tensor, str(folder))
    masks = np.isfinite(values) & (values < -1e30)
    if masks.any():
        tensor.CopyFrom(onnx.numpy_helper.from_array(np.where(masks, np.float32(_MASK), values), tensor.name))


# ---- what overflows


def _overflowing(graph: Path, feeds: Sequence[Feeds]) -> tuple[str, ...]:
    """Names of the nodes that read or write what fp16 cannot hold, or that count, in the order of the graph."""
    import onnx

    if not feeds:
        raise DataError("fp16 needs inputs to find what overflows with, and there are none: give --data")
    model = onnx.load(graph, load_external_data=False)
    large = {t.name for t in weights(model.graph) if _peak_of_weight(t, graph.parent) > LARGEST}
    kinds = element_types(graph)
    large |= {name for name, peak in _peaks(graph, kinds, feeds).items() if peak * SAFETY > LARGEST}
    counting = _counting(model.graph, kinds)
    return tuple(n.name for n in model.graph.node if n.name in counting or large & {*n.input, *n.output})


def _counting(graph: Any, kinds: Mapping[str, int]) -> set[str]:
    """Names of the nodes whose float32 numbers only become integers, as the side of an image from its patches.

    fp16 counts to 2048. And on a CPU onnxruntime 1.32 does not fold its Pow, so that it no longer knows the side of
    DINOv2's position embeddings, moves their Transpose behind the Resize, and refuses to run that.
    kinds: element type by the name of a tensor.
    """
    import onnx

    types = onnx.TensorProto
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    outputs, found = {o.name for o in graph.output}, set[str]()

    def counts(reader: Any) -> bool:
        cast = reader.op_type == "Cast" and reader.attribute[0].i in (types.INT32, types.INT64)
        return cast or reader.name in found

    for node in reversed(graph.node):  # who reads stands behind
        reading = [reader for name in node.output for reader in readers.get(name, ())]
        floats = all(kinds.get(name) == types.FLOAT for name in node.output)
        if reading and floats and not outputs & set(node.output) and all(map(counts, reading)):
            found.add(node.name)
    return found


def _peak_of_weight(tensor: Any, folder: Path) -> float:
    import onnx

    if tensor.data_type != onnx.TensorProto.FLOAT:
        return 0.0
    values = onnx.numpy_helper.to_array(tensor, str(folder))
    return float(np.abs(values[np.isfinite(values)]).max(initial=0))


def _peaks(graph: Path, kinds: Mapping[str, int], feeds: Sequence[Feeds]) -> dict[str, float]:
    """Largest finite magnitude of each float32 activation over all feeds. kinds: as of `_counting`.

    Each is measured within the graph, so that no activation lives longer than it would.
    """
    import onnx

    model = onnx.load(graph, load_external_data=False)
    names = [name for name, kind in kinds.items() if kind == onnx.TensorProto.FLOAT]
    outputs = []
    for i, name in enumerate(names):
        model.graph.node.extend(_peak_nodes(name, i))
        outputs.append(onnx.helper.make_tensor_value_info(f"peak/{i}", onnx.TensorProto.FLOAT, []))
    constants = {"peak/flat": np.array([-1], np.int64), "peak/zero": np.zeros(1, np.float32)}
    constants["peak/infinite"] = np.array(np.inf, np.float32)
    model.graph.initializer.extend(onnx.numpy_helper.from_array(v, n) for n, v in constants.items())
    del model.graph.output[:]
    model.graph.output.extend(outputs)
    session = _session(_beside(graph, "peaks.onnx", model))
    given = [_complete(session, f) for f in feeds]
    found = [np.array(session.run(None, f), np.float32) for f in given]
    return dict(zip(names, np.max(found, axis=0).tolist(), strict=True))


def _beside(graph: Path, name: str, model: Any) -> Path:
    """Write a model that reads the data of `graph`."""
    out = graph.with_name(name)
    out.write_bytes(model.SerializeToString())
    return out


def _peak_nodes(name: str, i: int) -> list[Any]:
    """The largest finite magnitude of a tensor, 0 where it has no number, as nodes."""
    import onnx

    def node(kind: str, inputs: list[str], output: str, **options: Any) -> Any:
        return onnx.helper.make_node(kind, inputs, [f"peak/{i}{output}"], name=f"peak/{i}{output}_node", **options)

    at = f"peak/{i}"
    return [
        node("Abs", [name], "/abs"),
        node("Less", [f"{at}/abs", "peak/infinite"], "/finite"),  # false for NaN too
        node("Where", [f"{at}/finite", f"{at}/abs", "peak/zero"], "/counted"),
        node("Reshape", [f"{at}/counted", "peak/flat"], "/line"),
        node("Concat", [f"{at}/line", "peak/zero"], "/some", axis=0),
        node("ReduceMax", [f"{at}/some"], "", keepdims=0),
    ]


def _session(graph: Path) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def _complete(session: Any, feeds: Feeds) -> dict[str, np.ndarray]:
    """The inputs that the graph takes, with positions and an empty cache where they are not given."""
    batch = len(next(iter(feeds.values())))
    found = {}
    for wanted in session.get_inputs():
        if wanted.name in feeds:
            found[wanted.name] = np.asarray(feeds[wanted.name])
        elif wanted.name == "position_ids" and "attention_mask" in feeds:
            found[wanted.name] = positions(np.asarray(feeds["attention_mask"]))
        elif wanted.name.startswith("past_key_values"):
            found[wanted.name] = np.zeros((batch, wanted.shape[1], 0, wanted.shape[3]), np.float32)
        else:
            raise PlanError(f"the graph takes {wanted.name}; the sample inputs have only {', '.join(feeds)}")
    return found


def _decoder_feeds(source: Path, feeds: Sequence[Feeds]) -> dict[str, list[Mapping[str, np.ndarray]]]:
    """Inputs of the encoder and of both decoders, from the answers of those before them."""
    encoder, decoder = (_session(source / name) for name in (ENCODER, DECODER))
    found: dict[str, list[Mapping[str, np.ndarray]]] = {ENCODER: [], DECODER: [], DECODER_WITH_PAST: []}
    for given in feeds:
        read = {name: given[name] for name in ("input_ids", "attention_mask")}
        states = _run(encoder, read)["last_hidden_state"]
        ids = np.asarray(given["decoder_input_ids"])
        repeated = {"encoder_hidden_states": states, "encoder_attention_mask": given["attention_mask"]}
        past = _run(decoder, {**repeated, "input_ids": ids[:, :-1] if ids.shape[1] > 1 else ids})
        cache = {n.replace("present", "past_key_values", 1): v for n, v in past.items() if n.startswith("present")}
        found[ENCODER].append(read)
        found[DECODER].append({**repeated, "input_ids": ids})
        found[DECODER_WITH_PAST].append({**repeated, "input_ids": ids[:, -1:], **cache})
    return found


def _run(session: Any, feeds: Feeds) -> dict[str, np.ndarray]:
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, _complete(session, feeds)), strict=True))


# ---- conversion


def _convert(graph: Path, out: Path, kept: Sequence[str]) -> None:
    model, waiting = convert_apart(graph, kept)
    _join_kept(model.graph)
    _sort(model.graph)
    save_graph(model, out, graph.parent, partial(half_content, waiting=waiting))


def _join_kept(graph: Any) -> None:
    """Hand fp32 numbers from one node that stayed in fp32 to the next as they are.

    The converter casts each output of such a node to fp16, and back before the next one: what overflows would
    be infinite in between.
    """
    import onnx

    kinds = onnx.TensorProto
    casts = {n.output[0]: n for n in graph.node if n.op_type == "Cast"}
    to = {name: next(a.i for a in n.attribute if a.name == "to") for name, n in casts.items()}
    known = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input)}
    source = {}
    for name, node in casts.items():
        half = node.input[0]
        if to[name] == kinds.FLOAT and to.get(half) == kinds.FLOAT16:
            first = casts[half].input[0]
            if known.get(first) == kinds.FLOAT:
                source[name] = first
    outputs = {o.name for o in graph.output}
    for node in graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = source.get(name, name)
    for name in outputs & source.keys():
        casts[name].op_type = "Identity"
        casts[name].input[0] = source[name]
        del casts[name].attribute[:]
    _drop_casts(graph, outputs)


def _drop_casts(graph: Any, outputs: set[str]) -> None:
    """Remove the casts that nothing reads any more."""
    while True:
        read = {name for n in graph.node for name in n.input} | outputs
        unread = [i for i, n in enumerate(graph.node) if n.op_type == "Cast" and n.output[0] not in read]
        for i in reversed(unread):
            del graph.node[i]
        if not unread:
            return


def _sort(graph: Any) -> None:
    """Put each node after what it reads; the converter appends its casts at the end."""
    given = {i.name for i in (*graph.input, *graph.initializer)} | {""}
    waiting = list(graph.node)
    done: list[Any] = []
    while waiting:
        later = []
        for node in waiting:
            if given.issuperset(node.input):
                given.update(node.output)
                done.append(node)
            else:
                later.append(node)
        if len(later) == len(waiting):
            raise PlanError(f"node {later[0].name!r} reads {sorted(set(later[0].input) - given)}, which nothing gives")
        waiting = later
    del graph.node[:]
    graph.node.extend(done)
