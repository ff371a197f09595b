"""What several verbs read off their arguments in the same way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from edgewise.errors import PlanError, need_extra

Options = TypeVar("Options")


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
        return msgspec.convert(options, kind)
    except msgspec.ValidationError as error:
        raise PlanError(f"{where}: {error}") from error
