"""A memory group of our own for one worker: cgroup v2 or v1, made, limited, counted and removed.

Each step takes the root folder, so that recorded trees test it.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgewise.profiler.limits import ROOT, UNIFIED, read_groups, read_text

_PATIENCE_S = 2.0
"""How long a group may take to let its last process go."""

_NEAR = 0.98
"""Share of the limit: the kernel charges several pages at a time."""


@dataclass(frozen=True)
class Counters:
    """What a group counted; None where the system does not tell."""

    kills: int | None
    """Processes of the group that the out-of-memory killer ended, for whatever limit or lack."""
    hits: int | None
    """Times that the group stood at its own limit."""
    peak: int | None
    """Bytes: the most that was charged to the group."""

    def stood_at(self, limit: int) -> bool | None:
        """Whether the group ever stood at its own limit, in bytes; None where nothing tells."""
        if self.hits is None and self.peak is None:
            return None
        # Some kernels with v1 (6.18) never count in failcnt; the peak tells there.
        return bool(self.hits) or (self.peak or 0) >= _NEAR * limit


@dataclass(frozen=True)
class Group:
    """A group with a memory limit, for one worker."""

    folder: Path
    version: Literal[1, 2]

    def enter(self, process: int) -> None:
        """Move a process into it. Raises OSError."""
        _write(self.folder / "cgroup.procs", process)

    def counters(self) -> Counters:
        """What it counted until now."""
        if self.version == 2:
            events = _pairs(self.folder / "memory.events")
            return Counters(events.get("oom_kill"), events.get("max"), _number(self.folder / "memory.peak"))
        # Memory together with swap has counters of its own; the smaller limit of the two is met first.
        kinds = ("memory", "memory.memsw")
        hits = [n for kind in kinds if (n := _number(self.folder / f"{kind}.failcnt")) is not None]
        kills = _pairs(self.folder / "memory.oom_control").get("oom_kill")  # Linux 4.13 and later
        return Counters(kills, sum(hits) if hits else None, _number(self.folder / "memory.max_usage_in_bytes"))

    def remove(self) -> None:
        """Remove it, and end what the worker started and left in it."""
        end = time.monotonic() + _PATIENCE_S
        while not _removed(self.folder) and time.monotonic() < end:
            for left in read_text(self.folder / "cgroup.procs").split():
                if left != "0":  # a process of another namespace, which has no number here
                    with suppress(OSError):
                        os.kill(int(left), signal.SIGKILL)
            time.sleep(0.01)


def make_group(name: str, memory: int, root: Path = ROOT) -> Group | list[str]:
    """A new group beside or below this process's own that may hold `memory` bytes and no swap; or what was tried.

    The caller removes it.
    """
    tried = []
    for version, key, make in ((2, UNIFIED, _limit_v2), (1, "memory", _limit_v1)):
        parents = (read_groups(root) or {}).get(key, ())
        reasons = [] if parents else ["not there"]
        for parent in parents:
            group = Group(parent / name, 2 if version == 2 else 1)
            try:
                _make(group, memory, root, make)
            except OSError as error:
                reasons.append(error.strerror or str(error))
            else:
                return group
        tried.append(f"cgroup v{version} ({'; '.join(dict.fromkeys(reasons))})")
    return tried


def sweep_groups(pattern: str, gone: Callable[[str], bool], root: Path = ROOT) -> None:
    """Remove the groups that killed runs left behind; one in which a process still runs stays."""
    for folder in _places(root):
        for group in folder.glob(pattern):
            if gone(group.name):
                _removed(group)


def _places(root: Path) -> Iterator[Path]:
    groups = read_groups(root) or {}
    yield from groups.get(UNIFIED, ())
    yield from groups.get("memory", ())


def _make(group: Group, memory: int, root: Path, limit: Callable[[Path, int, bool], None]) -> None:
    # v2 hands a controller on only where the parent says so, and only where no process stands in the parent.
    # Switching that on would change a group that is not ours.
    if group.version == 2 and "memory" not in read_text(group.folder.parent / "cgroup.subtree_control").split():
        raise OSError("its groups have no memory controller")
    group.folder.mkdir()
    try:
        limit(group.folder, memory, _has_swap(root))
    except BaseException:
        _removed(group.folder)
        raise


def _limit_v2(folder: Path, memory: int, swap: bool) -> None:
    _write(folder / "memory.max", memory)
    if (folder / "memory.swap.max").exists():
        _write(folder / "memory.swap.max", 0)
    elif swap:
        raise OSError("no memory.swap.max, and the system swaps")


def _limit_v1(folder: Path, memory: int, swap: bool) -> None:
    _write(folder / "memory.limit_in_bytes", memory)
    if (folder / "memory.memsw.limit_in_bytes").exists():
        _write(folder / "memory.memsw.limit_in_bytes", memory)
    elif swap:
        _write(folder / "memory.swappiness", 0)  # within a group, 0 means never


def _has_swap(root: Path) -> bool:
    return len(read_text(root / "proc/swaps").splitlines()) > 1


def _removed(folder: Path) -> bool:
    """True when the folder of a group is gone; its files go with it."""
    try:
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _write(path: Path, value: int) -> None:
    """Write a file of the kernel; one that is not there is not made."""
    handle = os.open(path, os.O_WRONLY)  # no O_CREAT
    try:
        os.write(handle, str(value).encode("ascii"))
    finally:
        os.close(handle)


def _number(path: Path) -> int | None:
    text = read_text(path)
    return int(text) if text.isdigit() else None


def _pairs(path: Path) -> dict[str, int]:
    """Lines such as 'oom_kill 1'."""
    parts = [line.split() for line in read_text(path).splitlines()]
    return {p[0]: int(p[1]) for p in parts if len(p) == 2 and p[1].isdigit()}
