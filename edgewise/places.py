"""A YAML file as a struct, and where its keys stand, so that every error can point at its line."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import msgspec
from msgspec import Struct
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from edgewise.errors import PlanError, nearest

Key = str | int
T = TypeVar("T", bound=Struct)


def read_yaml(file: Path, kind: type[T], what: str) -> tuple[T, Places]:
    """A file of that kind, and its places. what: for people, such as 'plan'. Raises PlanError."""
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise PlanError(f"{file}: no such {what} file") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise PlanError(f"{file}:{line}: byte at offset {error.start} is not UTF-8; save the file as UTF-8") from error
    except OSError as error:
        raise PlanError(f"{file}: cannot be read: {error.strerror or error}") from error
    tree = _parse(file, text, what)
    at = Places(file, tree, kind, what)
    plain = _plain(tree)
    try:
        parsed = msgspec.convert(plain, kind)
    except msgspec.ValidationError as error:
        raise at.explain(str(error)) from error
    at.finite(plain)
    return parsed, at


def _parse(file: Path, text: str, what: str) -> Any:
    """The tree of a YAML mapping, with the lines of its keys."""
    try:
        tree = YAML(typ="rt").load(text)
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise PlanError(f"{file}:{line}: no valid YAML: {error.problem or error.context}") from error
    except (YAMLError, ValueError) as error:
        raise PlanError(f"{file}: no valid YAML: {error}") from error
    except RecursionError as error:
        raise PlanError(f"{file}: no valid YAML: nested too deeply") from error
    if not isinstance(tree, dict):
        found = {type(None): "nothing", list: "a list"}.get(type(_plain(tree)), repr(tree))
        article = "an" if what[0] in "aeiou" else "a"
        raise PlanError(f"{file}:1: {article} {what} is a mapping that starts with 'version: 1'; found {found}")
    return tree


def _plain(node: Any) -> Any:
    """ruamel's round-trip containers and scalars as plain ones, which msgspec takes."""
    if isinstance(node, dict):
        return {str(k): _plain(v) for k, v in node.items()}
    if isinstance(node, list):
        return [_plain(v) for v in node]
    for kind in (bool, int, float, str):
        if isinstance(node, kind):
            return kind(node)
    return node


class Places:
    """The lines of one YAML file, read by ruamel in round-trip mode, and the struct that the file should be."""

    _AT = re.compile(r" - at `(?P<path>[^`]*)`$")
    _STEP = re.compile(r"\.(?P<key>[^.\[]+)|\[(?P<index>\d+|\.\.\.)\]")
    _UNKNOWN = re.compile(r"^Object contains unknown field `(?P<key>.*)`$")

    def __init__(self, file: Path, tree: Any, kind: type[Struct], what: str = "plan") -> None:
        self.file, self.tree, self.kind, self.what = file, tree, kind, what

    def error(self, message: str, *keys: Key) -> PlanError:
        return PlanError(f"{self.file}:{self.line(keys)}: {_path(keys) or self.what}: {message}")

    def guard(self, check: Any, value: Any, *keys: Key) -> Any:
        """The result of `check(value)`; its PlanError gets the place."""
        try:
            return check(value)
        except PlanError as error:
            raise self.error(str(error), *keys) from error

    def unique(self, names: Iterable[Any], what: str, *keys: Key) -> None:
        """Raise where a value stands twice in the list at `keys`."""
        seen: set[Any] = set()
        for i, name in enumerate(names):
            if name in seen:
                raise self.error(f"{what} {name!r} stands here twice; each must differ", *keys, i)
            seen.add(name)

    def finite(self, node: Any, *keys: Key) -> None:
        """Raise for .nan and .inf: no setting of a plan takes one, and comparisons let them through."""
        if isinstance(node, float) and not math.isfinite(node):
            raise self.error(f"{node} is no finite number", *keys)
        if isinstance(node, dict | list):
            for key, value in node.items() if isinstance(node, dict) else enumerate(node):
                self.finite(value, *keys, key)

    def explain(self, message: str) -> PlanError:
        """msgspec's message with the line, the value, and the nearest key or value where one is unknown."""
        found = self._AT.search(message)
        text = message[: found.start()] if found else message
        keys: list[Key] = []
        for step in self._STEP.finditer(found["path"][1:] if found else ""):
            if step["index"] == "...":  # msgspec's word for 'some value of this mapping'
                keys += self._culprit(keys)
            else:
                keys.append(int(step["index"]) if step["index"] else step["key"])
        if unknown := self._UNKNOWN.match(text):
            known = tuple(f.encode_name for f in msgspec.structs.fields(_struct(self._type(keys))))
            key = unknown["key"]
            return self.error(f"unknown key {key!r}: {nearest(key, known)}", *keys, key)
        value = self._value(keys)
        if text.startswith("Invalid enum value"):
            return self.error(f"unknown value {value!r}: {_options(value, self._type(keys))}", *keys)
        if value is not None and not isinstance(value, dict | list):
            text += f"; the value is {value!r}"
        return self.error(text, *keys)

    def _type(self, keys: Iterable[Key]) -> Any:
        """The type that the struct's annotations give for a place."""
        kind: Any = self.kind
        for key in keys:
            mapping = next((a for a in _arms(kind) if get_origin(a) is dict), None)
            if isinstance(key, int) or mapping:
                kind = get_args(mapping)[1] if mapping else _item(kind)
            else:
                kind = next(f.type for f in msgspec.structs.fields(_struct(kind)) if f.encode_name == key)
        return kind

    def _culprit(self, keys: list[Key]) -> list[Key]:
        """The key of the first value of a mapping that does not fit its type."""
        kind = self._type([*keys, ""])
        for key, value in (self._value(keys) or {}).items():
            try:
                msgspec.convert(value, kind)
            except msgspec.ValidationError:
                return [key]
        return []

    def _value(self, keys: Iterable[Key]) -> Any:
        node = self.tree
        for key in keys:
            try:
                node = node[key]
            except (KeyError, IndexError, TypeError):
                return None
        return node

    def line(self, keys: Iterable[Key]) -> int:
        """1-based line of the deepest key that the file has."""
        node: Any = self.tree
        line = 0
        for key in keys:
            try:
                place: Any = node.lc  # ruamel's record of lines and columns
                line = place.item(key)[0] if isinstance(key, int) else place.key(key)[0]
                node = node[key]
            except (KeyError, IndexError, TypeError, AttributeError):
                break
        return int(line) + 1


def _path(keys: Iterable[Key]) -> str:
    text = ""
    for key in keys:
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else key
    return text


def _arms(kind: Any) -> list[Any]:
    """The types that a value may have: through unions and annotations."""
    if isinstance(kind, type) or get_origin(kind) in (tuple, dict, Literal):
        return [kind]
    return [arm for arg in get_args(kind) for arm in _arms(arg)]


def _item(kind: Any) -> Any:
    return next(get_args(arm)[0] for arm in _arms(kind) if get_origin(arm) is tuple)


def _struct(kind: Any) -> type[Struct]:
    return next(arm for arm in _arms(kind) if isinstance(arm, type) and issubclass(arm, Struct))


def _options(value: Any, kind: Any) -> str:
    """What would have been right where one of a few values was expected."""
    arms = _arms(kind)
    known = tuple(str(option) for arm in arms if get_origin(arm) is Literal for option in get_args(arm))
    mapping = any(isinstance(arm, type) and issubclass(arm, Struct) for arm in arms)
    return f"expected {', '.join(known)} or a mapping" if mapping else nearest(str(value), known)
