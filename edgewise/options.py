"""What several verbs read off their arguments in the same way."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, TypeVar

from edgewise.errors import PlanError, need_extra

Options = TypeVar("Options")

_PLACE = re.compile(r" - at `\$(?P<path>[^`]*)`$")


def layers(text: str | None) -> list[int] | None:
    """The numbers of --keep-layers, '0,2,5'; None where it was not given. Raises PlanError."""
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise PlanError(f"--keep-layers {text!r}: expected numbers such as 0,2,5") from error


def need_build() -> None:
    """Raise MissingExtraError where the build side is not installed: before a module of it is imported."""
    try:
        import msgspec  # noqa: F401  # the first package that the specs need
    except ImportError as error:
        raise need_extra("build", error) from error


def checked(options: Mapping[str, Any], kind: type[Options], where: str) -> Options:
    """Options as the frozen type of a plan, held against its limits. Raises PlanError, which names `where`."""
    import msgspec

    try:
        found = msgspec.convert(options, kind)
    except msgspec.ValidationError as error:
        raise PlanError(f"{where}: {_explained(str(error), options)}") from error
    _finite(options, where)
    return found


def _explained(message: str, options: Mapping[str, Any]) -> str:
    """msgspec's message as '--epochs is 0; expected `float` > 0.0'."""
    place = _PLACE.search(message)
    if place is None:
        return message
    value: Any = options
    name = ""
    for key in re.findall(r"[^.\[\]]+", place["path"].replace("[...]", "")):  # [...]: one value of a mapping
        value = value[int(key)] if key.isdigit() else value[key]
        name = name if key.isdigit() else key
    text = message[: place.start()]
    return f"{_flag(name)} is {value!r}; {text[:1].lower()}{text[1:]}" if name else message


def _finite(options: Mapping[str, Any], where: str) -> None:
    """Infinity passes every lower limit; no option takes it."""
    for name, value in options.items():
        if isinstance(value, Mapping):
            _finite(value, where)
        elif isinstance(value, float) and not math.isfinite(value):
            raise PlanError(f"{where}: {_flag(name)} is {value}; expected a finite number")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
