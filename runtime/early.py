"""The sessions of a bundle that was hashed before, begun before the rest of edgewise is imported.

onnxruntime leaves the interpreter free while it makes a session, which takes as long as all else that a start does
between its own import and the first answer: the modules that read the bundle, the manifest, the tokenizer. So only
what onnxruntime must be told is read first, without any of these modules. What is made here is used where it is what
the bundle, read in full, asks for; anything that is wrong is left to those who say it.
"""

# pathlib costs a start 2 ms, before onnxruntime can begin.
# ruff: noqa: PTH118, PTH123

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, NamedTuple

from edgewise.stamp import is_stamped, read_stamp

if TYPE_CHECKING:
    from edgewise.runtime.session import Made
    from edgewise.types import GraphLevel


class Early(NamedTuple):
    """Sessions that are being made."""

    wait: Callable[[], tuple[list[Made], int]]
    """Gives what was made, less what failed, and `perf_counter_ns` of when it was there."""
    read_ns: int
    """When the import of onnxruntime began."""
    imported_ns: int
    """When the sessions were begun."""


def begin_early(
    path: str | os.PathLike[str], *, threads: int | None, level: GraphLevel | None, allow_spinning: bool
) -> Early | None:
    """Begin to make a bundle's sessions on the CPU; None for a bundle whose hashes are not known to be right.

    threads, level (of graph optimization): None for those of the bundle's run settings.
    """
    told = _told(os.fspath(path))
    if told is None:
        return None
    read_ns = perf_counter_ns()
    from edgewise.runtime.many import begin
    from edgewise.runtime.session import PROVIDER_NAMES, Made, SessionOptions, Settings, create, level_told

    imported_ns = perf_counter_ns()

    def make() -> tuple[list[Made], int]:
        made = []
        with suppress(Exception):  # the load makes it again, and says what is wrong
            run = told.get("run", {})
            wanted = level_told(level or run.get("graph_optimization", "all"), offline=told["recipe"]["offline"])
            threads_told = threads or run.get("threads", 1)
            settings = Settings(PROVIDER_NAMES["cpu"], {}, threads_told, wanted, SessionOptions(allow_spinning))
            for graph in told["graphs"]:
                session = create(os.path.join(path, graph["file"]), settings)
                made.append(Made(graph["file"], settings, session))
        return made, perf_counter_ns()

    return Early(begin(make), read_ns, imported_ns)


def _told(path: str) -> dict[str, Any] | None:
    """The manifest as it stands; None unless all its files were hashed before, and are for the CPU."""
    try:
        with open(os.path.join(path, "edgewise.json"), encoding="utf-8") as file:
            text = file.read()
        told: dict[str, Any] = json.loads(text)
        plain = told.get("run", {}).get("provider", "cpu") == "cpu" and not told["run"].get("provider_options")
        return told if plain and is_stamped(path, text, read_stamp(path, told["files"])) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # the load says what is wrong
