"""The profiler: bundle x target -> measurements, taken by fresh worker processes on the device itself.

`profile` is the one call; `python -m edgewise.profiler.worker` is what runs on the device. Importing this package
imports nothing heavy, since the worker imports it where only numpy, onnxruntime, tokenizers and psutil are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = ["Store", "Subject", "entries", "measure_accuracy", "measure_latency", "profile"]

if TYPE_CHECKING:
    from edgewise.profiler.accuracy import measure_accuracy
    from edgewise.profiler.joining import entries
    from edgewise.profiler.latency import measure_latency
    from edgewise.profiler.measure import profile
    from edgewise.profiler.plumbing import Subject
    from edgewise.profiler.store import Store


def __getattr__(name: str) -> Any:
    if name in __all__:
        from edgewise.profiler import measure

        return getattr(measure, name)
    raise AttributeError(f"module 'edgewise.profiler' has no attribute {name!r}")
