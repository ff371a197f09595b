"""A fixed piece of work beside every round: how fast the machine itself was, whatever was measured on it.

Two runs an hour apart on a shared or warm machine differ though nothing in the bundle did. The yardstick tells one
from the other: `edgewise compare` calls a difference shown only where it is larger than the yardstick's own.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

_SIDE, _PRODUCTS = 48, 200
"""A product so small that no BLAS splits it over threads: 22 MFLOP and more a repeat, on one core."""
_COPIED = 8_000_000
"""Bytes a copy; more than most second-level caches hold."""
_REPEATS = 9


def read_yardstick() -> dict[str, int]:
    """Nanoseconds, the median of nine: 'product' of 200 products of 48 x 48 float32, 'copy' of 8 MB within memory.

    Takes some 30 ms of one core of a laptop. Its memory is not that of what was measured: read memory before.
    """
    import numpy as np

    left = np.full((_SIDE, _SIDE), 0.5, dtype=np.float32)
    out = np.empty_like(left)
    source = np.ones(_COPIED, dtype=np.uint8)
    target = np.zeros_like(source)  # written, so that the copies meet no page for the first time

    def products() -> None:
        for _ in range(_PRODUCTS):
            np.matmul(left, left, out=out)

    return {"product": _median_ns(products), "copy": _median_ns(lambda: np.copyto(target, source))}


def _median_ns(work: Callable[[], None]) -> int:
    work()  # not timed: the first one wakes the clock and the caches
    times = []
    for _ in range(_REPEATS):
        start = time.perf_counter_ns()
        work()
        times.append(time.perf_counter_ns() - start)
    return round(median(times))
