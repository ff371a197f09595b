"""A quantized graph in plain nodes: branches whose condition is known taken, and fused int8 products taken apart."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx

_DOMAIN = "com.microsoft"
_IDENTITY = "identity/"
"""What names of identity matrices begin with; their width follows."""


# ---- branches


def conditions(model: onnx.ModelProto) -> set[str]:
    """Names of the values that choose a branch, at any depth."""
    return {n.input[0] for n in _all_nodes(model.graph) if n.op_type == "If"}


def take_branches(model: onnx.ModelProto, known: Mapping[str, bool]) -> onnx.ModelProto:
    """A copy in which the If nodes whose condition is known are replaced by the nodes of the branch that it chooses.

    Of two branches one is left, so that its nodes keep their names; values get a prefix, since a branch may name its
    output as the If node does. The model itself where no condition is known.
    """
    import onnx

    if not known.keys() & conditions(model):
        return model
    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    while any(n.op_type == "If" and n.input[0] in known for n in graph.node):
        nodes = list[Any]()
        for node in graph.node:
            chosen = node.op_type == "If" and node.input[0] in known
            nodes += _branch(graph, node, known[node.input[0]]) if chosen else [node]
        nodes = [_copy(node) for node in nodes]  # of what is cleared now
        del graph.node[:]
        graph.node.extend(nodes)
    return made


def _branch(graph: onnx.GraphProto, node: onnx.NodeProto, condition: bool) -> list[onnx.NodeProto]:
    """The nodes of one branch; its weights go to the outer graph."""
    from onnx.helper import make_node

    wanted = "then_branch" if condition else "else_branch"
    inner = next(a.g for a in node.attribute if a.name == wanted)
    made = [name for n in inner.node for name in n.output if name] + [t.name for t in inner.initializer]
    names = {name: f"{node.name or node.output[0]}/{wanted}/{name}" for name in made}
    _rename(inner, names)
    graph.initializer.extend(inner.initializer)
    ends = zip(inner.output, node.output, strict=True)
    return [*inner.node, *(make_node("Identity", [end.name], [name]) for end, name in ends if name)]


def _rename(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        for inner in _graphs(node):
            _rename(inner, names)
    for value in (*graph.initializer, *graph.output):
        value.name = names.get(value.name, value.name)


def _copy(node: onnx.NodeProto) -> onnx.NodeProto:
    made = type(node)()
    made.CopyFrom(node)
    return made


def _graphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        yield from [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]


def _all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        yield from inner_nodes(node)


def inner_nodes(node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    """The nodes of a node's subgraphs, at any depth."""
    for graph in _graphs(node):
        yield from _all_nodes(graph)


def values_read(node: onnx.NodeProto) -> set[str]:
    """Values that a node reads, those of the outer graph that its branches read included."""
    names = set(node.input).union(*(inner.input for inner in inner_nodes(node)))
    for graph in _graphs(node):
        names |= {output.name for output in graph.output}
    return names - {""}


# ---- fused products


def take_apart(model: onnx.ModelProto) -> None:
    """Turn Constant nodes of `model` into initializers, and int8 products that are fused with what stands before or
    after them into MatMulIntegerToFloat and that.
    """
    from onnx.numpy_helper import from_array, to_array

    constants = {i.name: i for i in model.graph.initializer}
    nodes: list[onnx.NodeProto] = []

    def constant(name: str) -> np.ndarray | None:
        return to_array(constants[name]) if name in constants else None

    def add(name: str, values: np.ndarray) -> str:
        if name not in constants:
            constants[name] = from_array(values, name)
            model.graph.initializer.append(constants[name])
        return name

    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            add(node.output[0], to_array(node.attribute[0].t))
        else:
            made = _FUSED[node.op_type](node, constant, add) if node.op_type in _FUSED else None
            nodes += made or [node]
    nodes = [_copy(node) for node in (*_identities(nodes, add), *nodes)]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


_Constant = Callable[[str], np.ndarray | None]
_Add = Callable[[str, np.ndarray], str]


def _dynamic_matmul(node: onnx.NodeProto, constant: _Constant, add: _Add) -> list[onnx.NodeProto]:
    from onnx.helper import make_node

    a, b, scale, zero, bias = [*node.input, "", ""][:5]
    parts = [f"{node.output[0]}_{part}" for part in ("quantized", "scale", "zero_point")]
    product = [parts[0], b, parts[1], scale, parts[2], zero, bias]
    return [make_node("DynamicQuantizeLinear", [a], parts), _product(node, product, node.output[0])]


def _qlinear_matmul(node: onnx.NodeProto, constant: _Constant, add: _Add) -> list[onnx.NodeProto]:
    from onnx.helper import make_node

    a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = node.input
    inner = f"{node.output[0]}_float"
    return [
        _product(node, [a, b, a_scale, b_scale, a_zero, b_zero], inner),
        make_node("QuantizeLinear", [inner, y_scale, y_zero], node.output),
    ]


def _qgemm(node: onnx.NodeProto, constant: _Constant, add: _Add) -> list[onnx.NodeProto] | None:
    """The int32 bias C has the scale of the product: alpha * a_scale * b_scale."""
    from onnx import TensorProto
    from onnx.helper import get_attribute_value, make_node

    a, a_scale, a_zero, b, b_scale, b_zero, c, y_scale, y_zero = [*node.input, *[""] * 3][:9]
    options = {x.name: get_attribute_value(x) for x in node.attribute}
    weights = constant(b)
    if weights is None or options.get("transA"):
        return None
    out, nodes, bias = node.output[0], list[Any](), ""
    if options.get("alpha", 1.0) != 1:
        alpha = add(f"{out}_alpha", np.array(options["alpha"], np.float32))
        nodes.append(make_node("Mul", [a_scale, alpha], [f"{out}_a_scale"]))
        a_scale = f"{out}_a_scale"
    if c:
        bias = f"{out}_bias"
        nodes += [
            make_node("Mul", [a_scale, b_scale], [f"{bias}_scale"]),
            make_node("Cast", [c], [f"{bias}_float"], to=TensorProto.FLOAT),
            make_node("Mul", [f"{bias}_float", f"{bias}_scale"], [bias]),
        ]
    if options.get("transB"):
        b = add(f"{b}_turned", np.ascontiguousarray(weights.T))
    product = [a, b, a_scale, b_scale, a_zero, b_zero, bias]
    if not y_scale:
        return [*nodes, _product(node, product, out)]
    inner = f"{out}_float"
    return [*nodes, _product(node, product, inner), make_node("QuantizeLinear", [inner, y_scale, y_zero], [out])]


def _qattention(node: onnx.NodeProto, constant: _Constant, add: _Add) -> list[onnx.NodeProto] | None:
    """The product with the weights of queries, keys and values, and Attention of what comes out.

    Attention multiplies by weights too: by the identity (`_identities`), which changes nothing.
    """
    from onnx.helper import make_node

    x, w, bias, x_scale, w_scale, mask, x_zero, w_zero, past = [*node.input, *[""] * 6][:9]
    weights = constant(w)
    if weights is None:
        return None
    width, inner = weights.shape[1], f"{node.output[0]}_qkv"
    zeros = add(f"zeros/{width}", np.zeros(width, np.float32))
    attention = make_node("Attention", [inner, f"{_IDENTITY}{width}", zeros, mask, past], node.output, domain=_DOMAIN)
    attention.attribute.extend(node.attribute)
    return [_product(node, [x, w, x_scale, w_scale, x_zero, w_zero, bias], inner), attention]


def _identities(nodes: Iterable[onnx.NodeProto], add: _Add) -> Iterator[onnx.NodeProto]:
    """The identity matrices that nodes read, as nodes and not as constants: pieces of the graph then share them."""
    from onnx.helper import make_node

    for name in sorted({name for node in nodes for name in node.input if name.startswith(_IDENTITY)}):
        width = int(name.removeprefix(_IDENTITY))
        size = add(f"size of {name}", np.array([width, width]))
        yield make_node("ConstantOfShape", [size], [f"{name}/zeros"])
        yield make_node("EyeLike", [f"{name}/zeros"], [name])


def _product(node: onnx.NodeProto, reads: list[str], output: str) -> onnx.NodeProto:
    from onnx.helper import make_node

    return make_node("MatMulIntegerToFloat", reads, [output], node.name, domain=_DOMAIN)


_FUSED: dict[str, Callable[[Any, _Constant, _Add], list[Any] | None]] = {
    "DynamicQuantizeMatMul": _dynamic_matmul,
    "QLinearMatMul": _qlinear_matmul,
    "QGemm": _qgemm,
    "QAttention": _qattention,
}
