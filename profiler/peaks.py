"""What this machine can do at most: products of float32 and of int8, and memory bandwidth. Part of the worker.

Each peak is the best of some tries with onnxruntime's own kernels and the threads of the run settings, so that the
roofline of a bundle (S. Williams, A. Waterman, D. Patterson, Communications of the ACM 52(4), 2009) is that of the
library that runs it, not of a data sheet.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

PRODUCT = (
    b'\x08\x08:7\n\x11\n\x01a\n\x01b\x12\x01y"\x06MatMul\x12\x01gZ\t\n\x01a\x12\x04\n\x02\x08\x01Z\t\n\x01b\x12\x04\n'
    b"\x02\x08\x01b\t\n\x01y\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\r"
)
"""An ONNX model, y = MatMul(a, b) of float32. As bytes, since a device has no onnx package to make it with."""
INT8_PRODUCT = (
    b'\x08\x08:>\n\x18\n\x01a\n\x01b\x12\x01y"\rMatMulInteger\x12\x01gZ\t\n\x01a\x12\x04\n\x02\x08\x02Z\t\n\x01b\x12'
    b"\x04\n\x02\x08\x03b\t\n\x01y\x12\x04\n\x02\x08\x06B\x04\n\x00\x10\r"
)
"""y = MatMulInteger(a, b): uint8 by int8 to int32."""
_SIDE = 768
_STREAMED = 4096
"""A row times a square of so many float32 (67 MB) reads memory and does little else."""
_TRIES = 5
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}
ROOT = Path("/")


def read_peaks(threads: int, root: Path = ROOT) -> dict[str, float | None]:
    """'float32' and 'int8': operations a second in products (a multiplication and an addition are two); 'bytes': a
    second from memory; 'cache': bytes of the last cache, None where the system does not tell. Takes half a second and
    140 MB."""
    import numpy as np
    import onnxruntime as ort

    def rate(model: bytes, rows: int, side: int, kinds: tuple[str, str], work: float) -> float:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        feeds: dict[str, Any] = {"a": np.ones((rows, side), kinds[0]), "b": np.ones((side, side), kinds[1])}
        best = float("inf")
        for _ in range(_TRIES):
            start = time.perf_counter()
            session.run(None, feeds)
            best = min(best, time.perf_counter() - start)
        return work / best

    operations = 2.0 * _SIDE**3
    return {
        "float32": rate(PRODUCT, _SIDE, _SIDE, ("float32", "float32"), operations),
        "int8": rate(INT8_PRODUCT, _SIDE, _SIDE, ("uint8", "int8"), operations),
        "bytes": rate(PRODUCT, 1, _STREAMED, ("float32", "float32"), 4.0 * _STREAMED**2),
        "cache": last_cache(root),
    }


def last_cache(root: Path = ROOT) -> int | None:
    """Bytes of the largest cache that the first core sees."""
    sizes = []
    for file in (root / "sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = file.read_text(encoding="ascii", errors="replace").strip()
        number, unit = text[:-1], text[-1:]
        if number.isdigit() and unit in _UNITS:
            sizes.append(int(number) * _UNITS[unit])
    return max(sizes, default=0) or None
