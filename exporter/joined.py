"""Encoder and decoder as one graph that reads a text and the start of another: to look at, not to ship."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgewise.exporter.external import save_graph
from edgewise.exporter.tracing import DECODER, ENCODER

_STATES, _MASK = "encoder_hidden_states", "encoder_attention_mask"
PREFIX = "encoder/"
"""Before the names of the encoder's weights and, where the decoder has a node of the same name, of its nodes."""


def join(folder: Path, out: Path) -> Path:
    """Write encoder_model.onnx and decoder_model.onnx of `folder` as one graph; returns `out`.

    Inputs: input_ids, attention_mask, decoder_input_ids, int64 [batch, length]; the outputs are the decoder's. Names
    stay what they are, but for those of the encoder that begin with `PREFIX`.
    """
    import onnx

    encoder, decoder = onnx.load(folder / ENCODER), onnx.load(folder / DECODER)
    read = {i.name for i in encoder.graph.input}
    made = {w.name for w in encoder.graph.initializer} | {o for n in encoder.graph.node for o in n.output}
    names = {name: f"{PREFIX}{name}" for name in made if name}
    _rename(encoder.graph, names)
    taken = {n.name for n in decoder.graph.node}
    for node in encoder.graph.node:
        node.name = f"{PREFIX}{node.name}" if node.name in taken else node.name
    states = names["last_hidden_state"]
    _rename(decoder.graph, {_STATES: states, _MASK: "attention_mask", "input_ids": "decoder_input_ids"})
    inputs = [i for i in decoder.graph.input if i.name not in (states, *read)]
    graph = encoder.graph
    graph.input.extend(inputs)
    del graph.output[:]
    graph.output.extend(decoder.graph.output)
    graph.node.extend(decoder.graph.node)
    graph.initializer.extend(decoder.graph.initializer)
    del graph.value_info[:]
    known = {o.domain for o in encoder.opset_import}
    encoder.opset_import.extend(o for o in decoder.opset_import if o.domain not in known)
    return save_graph(encoder, out)


def _rename(graph: Any, names: Mapping[str, str]) -> None:
    """Give tensors of a graph other names, in the graphs of its branches too, which read them."""
    import onnx

    for node in graph.node:
        for place in (node.input, node.output):
            for i, name in enumerate(place):
                place[i] = names.get(name, name)
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                _rename(attribute.g, names)
    for value in (*graph.initializer, *graph.input, *graph.output):
        value.name = names.get(value.name, value.name)
