"""What a container grants: CPU and memory limits of cgroup v2 and v1, and where a process's own groups stand."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

ROOT = Path("/")
UNIFIED = "unified"
"""The name of cgroup v2 beside the controllers of v1."""
_NO_LIMIT = 1 << 60
"""cgroup v1 writes 'no limit' as a number near 2^63."""


@dataclass(frozen=True)
class CgroupLimits:
    """The tightest limits on the way from this process's group to the root."""

    cores: float | None
    memory: int | None
    """Bytes."""
    why: str = ""
    """Why nothing could be read; '' when the answer is 'no limit'."""


def read_limits(root: Path = ROOT, process: str | int = "self") -> CgroupLimits:
    """The limits that hold for a process, this one unless given."""
    groups = read_groups(root, process)
    if groups is None:
        return CgroupLimits(None, None, "no cgroups on this system")
    cores: list[float] = []
    memory: list[int] = []
    for folder in groups.get(UNIFIED, ()):
        cores += _v2_cores(folder)
        memory += _bytes(folder / "memory.max")
    for folder in groups.get("cpu", ()):
        cores += _v1_cores(folder)
    for folder in groups.get("memory", ()):
        memory += _bytes(folder / "memory.limit_in_bytes")
    return CgroupLimits(min(cores, default=None), min(memory, default=None))


def read_groups(root: Path = ROOT, process: str | int = "self") -> dict[str, tuple[Path, ...]] | None:
    """The folders of a process's groups and of their ancestors, nearest first: by controller for v1, UNIFIED for v2.

    None where the system has no cgroups, or no such process.
    """
    try:
        lines = (root / "proc" / str(process) / "cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    mounts = _mounts(root)
    found: dict[str, tuple[Path, ...]] = {}
    for line in lines:
        number, controllers, group = line.split(":", 2)
        for name in [UNIFIED] if number == "0" else controllers.split(","):
            mount, top = mounts.get(name) or (_usual(root, name), "/")
            found[name] = _way_up(mount, _below(group, top))
    return found


def _mounts(root: Path) -> Mapping[str, tuple[Path, str]]:
    """Controller -> where it is mounted, and which group stands there: a container may see its own group alone."""
    try:
        lines = (root / "proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    found: dict[str, tuple[Path, str]] = {}
    for line in lines:
        front, _, back = line.partition(" - ")
        kind, _, options = [*back.split(" ", 2), "", "", ""][:3]
        if kind in ("cgroup", "cgroup2"):
            top, place = map(_unescaped, front.split()[3:5])
            for name in [UNIFIED] if kind == "cgroup2" else options.split(","):
                found.setdefault(name, (root / place.lstrip("/"), top))
    return found


def _unescaped(text: str) -> str:
    """A path as the kernel writes it in a list of mounts: blanks as \\040."""
    return re.sub(r"\\(\d{3})", lambda m: chr(int(m[1], 8)), text)


def _usual(root: Path, name: str) -> Path:
    return root / "sys/fs/cgroup" / ("" if name == UNIFIED else name)


def _below(group: str, top: str) -> PurePosixPath:
    """A group's path from the one that is mounted; that one itself where the group is not seen below it."""
    path = PurePosixPath(group)
    if ".." in path.parts:
        return PurePosixPath()
    return path.relative_to(top) if path.is_relative_to(top) else PurePosixPath(group.lstrip("/"))


def _way_up(mount: Path, inner: PurePosixPath) -> tuple[Path, ...]:
    """The folders of a group and of its ancestors. In a container the group's own path may not be mounted."""
    folders = [mount / inner, *(mount / parent for parent in inner.parents)]
    return tuple(f for f in dict.fromkeys(folders) if f.is_dir())


def read_text(path: Path) -> str:
    """A file of the kernel without the blanks around it; '' where it cannot be read."""
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _bytes(path: Path) -> list[int]:
    text = read_text(path)
    return [int(text)] if text.isdigit() and int(text) < _NO_LIMIT else []


def _v2_cores(folder: Path) -> list[float]:
    parts = read_text(folder / "cpu.max").split()
    return [int(parts[0]) / int(parts[1])] if len(parts) == 2 and parts[0].isdigit() else []


def _v1_cores(folder: Path) -> list[float]:
    quota, period = read_text(folder / "cpu.cfs_quota_us"), read_text(folder / "cpu.cfs_period_us")
    return [int(quota) / int(period)] if quota.isdigit() and period.isdigit() and int(quota) > 0 else []
