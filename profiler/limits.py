"""What a container grants: CPU and memory limits of cgroup v2 and v1."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

ROOT = Path("/")
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


def read_limits(root: Path = ROOT) -> CgroupLimits:
    """The limits that hold for this process."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return CgroupLimits(None, None, "no cgroups on this system")
    cores: list[float] = []
    memory: list[int] = []
    for line in lines:
        number, controllers, group = line.split(":", 2)
        if number == "0":
            for folder in _way_up(root / "sys/fs/cgroup", group):
                cores += _v2_cores(folder)
                memory += _bytes(folder / "memory.max")
        else:
            for name in controllers.split(","):
                for folder in _way_up(root / "sys/fs/cgroup" / name, group):
                    cores += _v1_cores(folder) if name == "cpu" else []
                    memory += _bytes(folder / "memory.limit_in_bytes") if name == "memory" else []
    return CgroupLimits(min(cores, default=None), min(memory, default=None))


def _way_up(mount: Path, group: str) -> list[Path]:
    """The folders of a group and of its ancestors. In a container the group's own path may not be mounted."""
    inner = PurePosixPath(group.lstrip("/"))
    folders = [mount / inner, *(mount / parent for parent in inner.parents)]
    return [f for f in dict.fromkeys(folders) if f.is_dir()]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _bytes(path: Path) -> list[int]:
    text = _text(path)
    return [int(text)] if text.isdigit() and int(text) < _NO_LIMIT else []


def _v2_cores(folder: Path) -> list[float]:
    parts = _text(folder / "cpu.max").split()
    return [int(parts[0]) / int(parts[1])] if len(parts) == 2 and parts[0].isdigit() else []


def _v1_cores(folder: Path) -> list[float]:
    quota, period = _text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")
    return [int(quota) / int(period)] if quota.isdigit() and period.isdigit() and int(quota) > 0 else []
