"""The largest memory of a training."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

import torch

_PROC = Path("/proc/self")


class PeakMemory:
    """Measures while it is entered; `peak` holds bytes afterwards, None where the system does not tell.

    On a CPU VmHWM, which is reset at the start (proc(5), clear_refs 5): the process as a whole, libraries included.
    On a GPU the largest allocation of PyTorch there.
    """

    def __init__(self, device: Any) -> None:
        self.gpu = getattr(device, "type", "cpu") == "cuda"
        self.peak: int | None = None

    def __enter__(self) -> PeakMemory:
        if self.gpu:
            torch.cuda.reset_peak_memory_stats()
            return self
        try:
            (_PROC / "clear_refs").write_text("5")
            self.readable = True
        except OSError:
            self.readable = False  # without a reset the number would be that of something else
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.gpu:
            self.peak = int(torch.cuda.max_memory_allocated())
        elif self.readable:
            self.peak = _high_water_mark()


def _high_water_mark() -> int | None:
    for line in (_PROC / "status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None
