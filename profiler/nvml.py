"""What NVIDIA's management library, which comes with the driver, says of the GPUs: energy, memory, this process's part.

Loaded by ctypes, so that a device needs no package for it; only by a worker whose provider may run on such a GPU. A
number that the driver does not tell is None. Source: NVML API Reference Manual (docs.nvidia.com/deploy/nvml-api).
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgewise.types import Kind

LIBRARY = "nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1"
_TOO_SMALL = 7  # NVML_ERROR_INSUFFICIENT_SIZE
_NOT_AVAILABLE = (1 << 64) - 1  # NVML_VALUE_NOT_AVAILABLE: Windows keeps the memory itself, and does not tell


@dataclass(frozen=True)
class Gpu:
    """One GPU at one moment."""

    index: int
    joules: float | None
    """Its counter, since the driver was loaded; None before Volta."""
    watts: float | None
    used: int | None
    """Bytes that all processes hold."""
    own: int | None
    """Bytes that this process holds; None where the driver does not show it."""


@dataclass(frozen=True)
class Held:
    """Memory of GPUs that a process holds."""

    bytes: int | None
    kind: Kind
    why: str = ""


class _ProcessInfo(ctypes.Structure):
    """nvmlProcessInfo_t of the functions that end in _v2 and _v3."""

    _fields_ = (
        ("pid", ctypes.c_uint),
        ("memory", ctypes.c_ulonglong),
        ("gpu_instance", ctypes.c_uint),
        ("compute_instance", ctypes.c_uint),
    )


class _Memory(ctypes.Structure):
    """nvmlMemory_t."""

    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


class Nvml:
    """The library, opened. `why` says why it has no GPU to tell of, if so."""

    def __init__(self, library: str | None = None) -> None:
        library, self.why = library or LIBRARY, ""
        self._devices: list[ctypes.c_void_p] = []
        try:
            self._library: Any = ctypes.CDLL(library)
        except OSError:
            self.why = f"there is no {library}, which NVIDIA's driver brings"
            return
        if code := self._call("nvmlInit_v2"):
            self.why = f"{library} cannot be used: {self._error(code)}"
            return
        count = ctypes.c_uint()
        code = self._call("nvmlDeviceGetCount_v2", ctypes.byref(count))
        for index in range(0 if code else count.value):
            device = ctypes.c_void_p()
            if not self._call("nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(index), ctypes.byref(device)):
                self._devices.append(device)
        if not self._devices:
            self.why = f"{library} shows no GPU"

    def read(self, pid: int | None = None) -> tuple[Gpu, ...]:
        """All GPUs, as they are now, with the part of the process `pid` (this one)."""
        return tuple(self._read(i, d, os.getpid() if pid is None else pid) for i, d in enumerate(self._devices))

    def _read(self, index: int, device: ctypes.c_void_p, pid: int) -> Gpu:
        energy, power, memory = ctypes.c_ulonglong(), ctypes.c_uint(), _Memory()
        no_energy = self._call("nvmlDeviceGetTotalEnergyConsumption", device, ctypes.byref(energy))
        no_power = self._call("nvmlDeviceGetPowerUsage", device, ctypes.byref(power))
        no_memory = self._call("nvmlDeviceGetMemoryInfo", device, ctypes.byref(memory))
        return Gpu(
            index,
            None if no_energy else energy.value / 1e3,
            None if no_power else power.value / 1e3,
            None if no_memory else memory.used,
            self._own(device, pid),
        )

    def _own(self, device: ctypes.c_void_p, pid: int) -> int | None:
        """The larger one, where a process computes and draws: both lists have all of it."""
        lists = [self._processes(device, kind) for kind in ("Compute", "Graphics")]
        found = [i.memory for infos in lists for i in infos if i.pid == pid and i.memory != _NOT_AVAILABLE]
        return max(found, default=None)

    def _processes(self, device: ctypes.c_void_p, kind: str) -> Sequence[_ProcessInfo]:
        for version in ("_v3", "_v2"):  # the same structure; drivers before 510 have the second alone
            name, room = f"nvmlDeviceGet{kind}RunningProcesses{version}", 64
            while hasattr(self._library, name):
                infos, count = (_ProcessInfo * room)(), ctypes.c_uint(room)
                code = self._call(name, device, ctypes.byref(count), infos)
                if code == _TOO_SMALL and room < 1 << 16:
                    room = max(2 * room, count.value)
                    continue
                return [] if code else infos[: count.value]
        return []

    def _call(self, name: str, *values: Any) -> int:
        """NVML's return code: 0 is success."""
        function = getattr(self._library, name, None)
        if function is None:
            return 13  # NVML_ERROR_FUNCTION_NOT_FOUND: an older driver
        function.restype = ctypes.c_int
        return int(function(*values))

    def _error(self, code: int) -> str:
        function = getattr(self._library, "nvmlErrorString", None)
        if function is None:
            return f"code {code}"
        function.restype = ctypes.c_char_p
        return str((function(ctypes.c_int(code)) or b"").decode("ascii", "replace")) or f"code {code}"


def mine(gpus: Sequence[Gpu]) -> Sequence[Gpu]:
    """Those that this process holds memory of; all of them where the driver shows that of none."""
    return [g for g in gpus if g.own] or gpus


def held(before: Sequence[Gpu], now: Sequence[Gpu], why: str) -> Held:
    """Memory of GPUs that this process holds `now`. before: as they were before it used one. why: of no GPU."""
    if not now:
        return Held(None, "unavailable", why)
    if any(g.own for g in now):
        return Held(sum(g.own or 0 for g in now), "measured")
    pairs = [(b.used, n.used) for b, n in zip(before, now, strict=True)]
    moved = sum(n - b for b, n in pairs if b is not None and n is not None)
    if moved <= 0:
        shared = all(n is None for _, n in pairs)
        reason = "the GPU has no memory of its own: see peak_rss" if shared else "this process took none of its memory"
        return Held(None, "unavailable", reason)
    why = "the driver does not show this process (a container, Windows): what all hold now, less what they held before"
    return Held(moved, "estimated", why)
