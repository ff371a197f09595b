"""Which files of external data an ONNX file names, read from its bytes: a device that measures has no onnx package.

Only what leads to a name is read: ModelProto.graph, its initializers and the graphs in its nodes' attributes (field
numbers of onnx.proto3, https://github.com/onnx/onnx/blob/main/onnx/onnx.proto3; wire format of Protocol Buffers).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

_GRAPH, _NODE, _INITIALIZER = 7, 1, 5
_ATTRIBUTE, _ATTRIBUTE_GRAPHS, _ATTRIBUTE_TENSORS = 5, {6, 11}, {5, 10}
_EXTERNAL, _KEY, _VALUE = 13, 1, 2


def external_files(path: Path) -> list[Path]:
    """The files that the graph's tensors stand in, beside it, in the order of their names. Raises ValueError for bytes
    that are no protocol buffer."""
    with memoryview(path.read_bytes()) as data:
        names = {name for field, part in _fields(data) if field == _GRAPH for name in _of_graph(part)}
    return sorted(path.parent / name for name in names)


def _of_graph(data: memoryview) -> Iterator[str]:
    for field, part in _fields(data):
        if field == _INITIALIZER:
            yield from _of_tensor(part)
        elif field == _NODE:
            for inner, attribute in _fields(part):
                if inner == _ATTRIBUTE:
                    yield from _of_attribute(attribute)


def _of_attribute(data: memoryview) -> Iterator[str]:
    for field, part in _fields(data):
        if field in _ATTRIBUTE_GRAPHS:
            yield from _of_graph(part)
        elif field in _ATTRIBUTE_TENSORS:
            yield from _of_tensor(part)


def _of_tensor(data: memoryview) -> Iterator[str]:
    for field, part in _fields(data):
        if field == _EXTERNAL:
            entry = {f: bytes(p) for f, p in _fields(part)}
            if entry.get(_KEY) == b"location":
                yield entry.get(_VALUE, b"").decode("utf-8")


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """(number, bytes) of the fields that have a length; the others are passed over."""
    at, end = 0, len(data)
    while at < end:
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 2:
            size, at = _varint(data, at)
            if at + size > end:
                raise ValueError("a field is longer than what holds it")
            yield key >> 3, data[at : at + size]
            at += size
        elif kind == 0:
            _, at = _varint(data, at)
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind}")


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ValueError("a number has no end")
        byte = data[at]
        value |= (byte & 127) << shift
        at += 1
        if byte < 128:
            return value, at
        shift += 7
