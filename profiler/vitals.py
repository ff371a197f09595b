"""What a worker reads of itself and of its machine while it measures: memory at the ends of phases, and CPU load.

Each reader takes the root folder, so that recorded trees test it. What only Linux can tell is None elsewhere, with
the reason.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/")


@dataclass(frozen=True)
class Memory:
    """Bytes at one moment; None where the system does not tell."""

    rss: int | None
    peak_rss: int | None
    """VmHWM: of this process alone, since it was started (never ru_maxrss, which a child inherits)."""
    pss: int | None = None
    uss: int | None = None
    why: str = ""
    """Why a number is missing."""


def read_memory(*, shares: bool, root: Path = ROOT) -> Memory:
    """Memory of this process. `shares` adds PSS and USS, which take the kernel milliseconds."""
    status = _fields(root / "proc/self/status")
    if "VmRSS" not in status:
        return _portable_memory()
    rss, peak = status.get("VmRSS"), status.get("VmHWM")
    if not shares:
        return Memory(rss, peak)
    rollup = _fields(root / "proc/self/smaps_rollup")
    if "Pss" not in rollup:
        return Memory(rss, peak, why="no readable /proc/self/smaps_rollup: no PSS and USS")
    return Memory(rss, peak, rollup["Pss"], rollup.get("Private_Clean", 0) + rollup.get("Private_Dirty", 0))


def _fields(path: Path) -> dict[str, int]:
    """The 'Name:  123 kB' lines of a file of /proc, in bytes."""
    found = {}
    try:
        lines = path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return {}
    for line in lines:
        parts = line.split()
        if len(parts) == 3 and parts[2] == "kB" and parts[1].isdigit():
            found[parts[0].rstrip(":")] = 1024 * int(parts[1])
    return found


def _portable_memory() -> Memory:
    why = "this system has no /proc with VmHWM: no peak of this process alone"
    try:
        import psutil  # not on the path of a Linux worker, whose start-up it would lengthen
    except ImportError:
        return Memory(None, None, why=f"{why}; psutil is not installed: no memory at all")
    info = psutil.Process().memory_info()
    # Windows has a true peak of the process; macOS has none.
    return Memory(info.rss, getattr(info, "peak_wset", None), why=why if not hasattr(info, "peak_wset") else "")


@dataclass(frozen=True)
class LoadMark:
    """Counters at one moment; two of them give the load between."""

    total_s: float
    busy_s: float
    steal_s: float
    own_s: float


@dataclass(frozen=True)
class Load:
    """What else the machine did between two moments, as shares of all its cores."""

    other_cpu: float | None
    """CPU time of all other processes, and what the hypervisor took."""
    steal: float | None
    seconds: float
    why: str = ""


def mark_load(root: Path = ROOT) -> tuple[float, LoadMark | None]:
    """Now, for `load_since`. Its resolution is that of the kernel's counters, 10 ms on most systems."""
    now = time.monotonic()
    try:
        first = (root / "proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()
        ticks = [int(x) for x in first[1:9]]
    except (OSError, ValueError):
        return now, None
    if len(ticks) < 8:
        return now, None
    second = os.sysconf("SC_CLK_TCK")
    idle, steal = ticks[3] + ticks[4], ticks[7]
    total = sum(ticks)
    return now, LoadMark(total / second, (total - idle) / second, steal / second, time.process_time())


def load_since(start: tuple[float, LoadMark | None], root: Path = ROOT) -> Load:
    """The load of the machine since `start`, without this process's own."""
    now, after = mark_load(root)
    before = start[1]
    seconds = now - start[0]
    if before is None or after is None:
        return Load(None, None, seconds, "no readable /proc/stat: the load of the machine is not known")
    total = after.total_s - before.total_s
    if total <= 0:
        return Load(None, None, seconds, "too short for the kernel's counters")
    other = (after.busy_s - before.busy_s) - (after.own_s - before.own_s)
    return Load(min(1.0, max(0.0, other / total)), max(0.0, (after.steal_s - before.steal_s) / total), seconds)
