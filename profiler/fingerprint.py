"""The machine that a number was measured on. Measurements whose fingerprints differ are not mixed silently.

Standard library only, but for the versions of packages that are already imported. Each reader takes the root folder,
so that recorded trees test it; what cannot be read is None, with the reason in `why`.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edgewise import __version__
from edgewise.files import digest_json
from edgewise.profiler.limits import CgroupLimits, read_limits

ROOT = Path("/")
FLAGS: dict[str, str] = {
    "f16c": "f16c",
    "fma": "fma",
    "avx": "avx",
    "avx2": "avx2",
    "avx512f": "avx512f",
    "avx512_vnni": "avx512_vnni",
    "avx_vnni": "avx_vnni",
    "avx512_bf16": "avx512_bf16",
    "amx_tile": "amx_tile",
    "amx_int8": "amx_int8",
    "neon": "neon",
    "asimd": "neon",
    "asimdhp": "fp16",
    "asimddp": "dotprod",
    "i8mm": "i8mm",
    "bf16": "bf16",
    "sve": "sve",
}
"""The kernel's names of the CPU features that decide which kernels onnxruntime takes, and ours."""
PACKAGES = ("onnxruntime", "numpy", "tokenizers")
_MUST_MATCH = (
    "machine",
    "cpu",
    "flags",
    "logical_cores",
    "usable_cores",
    "governor",
    "cpu_limit",
    "memory_limit",
    "gpus",
    "python",
    "versions",
)


@dataclass(frozen=True)
class Fingerprint:
    """A machine and the software on it that decides how fast and how a model answers."""

    machine: str
    """Architecture: x86_64, aarch64."""
    system: str
    kernel: str
    cpu: str | None
    """Model name."""
    flags: tuple[str, ...] | None
    """CPU features that matter, sorted."""
    logical_cores: int
    usable_cores: int
    """Cores that this process may run on (affinity)."""
    governor: str | None
    mhz: float | None
    """Clock now, mean over cores."""
    mhz_max: float | None
    celsius: float | None
    """Hottest thermal zone now."""
    memory: int | None
    """Bytes of RAM."""
    cpu_limit: float | None
    """Cores that the cgroup grants; None: no limit, or not known."""
    memory_limit: int | None
    """Bytes that the cgroup grants."""
    gpus: tuple[str, ...]
    """Name or PCI number, and driver, of each that the kernel shows."""
    python: str
    versions: Mapping[str, str | None] = field(hash=False)
    why: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Field -> why it is None."""

    @property
    def digest(self) -> str:
        """Of the parts that must match before two measurements are compared: not clocks, heat or kernel."""
        data = asdict(self)
        # Without a GPU as it was before GPUs were told of: numbers of that time are not those of another machine.
        return digest_json({k: data[k] for k in _MUST_MATCH if k != "gpus" or data[k]})

    def as_dict(self) -> dict[str, Any]:
        """JSON-able, with its digest."""
        return {**asdict(self), "digest": self.digest}


def read_fingerprint(root: Path = ROOT) -> Fingerprint:
    """The fingerprint of this machine and this process."""
    why: dict[str, str] = {}
    cpu, flags = _cpu(root)
    if cpu is None:
        cpu = platform.processor() or None
    if cpu is None:
        why["cpu"] = "neither /proc/cpuinfo nor the platform names it"
    if flags is None:
        why["flags"] = "no readable /proc/cpuinfo"
    governor, mhz, mhz_max = _clocks(root, why)
    limits: CgroupLimits = read_limits(root)
    for name, limit in (("cpu_limit", limits.cores), ("memory_limit", limits.memory)):
        if limit is None:
            why[name] = limits.why or "the cgroup sets no limit"
    return Fingerprint(
        machine=platform.machine(),
        system=platform.system(),
        kernel=platform.release(),
        cpu=cpu,
        flags=flags,
        logical_cores=os.cpu_count() or 1,
        usable_cores=_usable_cores(),
        governor=governor,
        mhz=mhz,
        mhz_max=mhz_max,
        celsius=_celsius(root, why),
        memory=_memory(root, why),
        cpu_limit=limits.cores,
        memory_limit=limits.memory,
        gpus=_gpus(root),
        python=platform.python_version(),
        versions={"edgewise": __version__, **{name: package_version(name) for name in PACKAGES}},
        why=why,
    )


def read_heat(root: Path = ROOT) -> dict[str, float | None]:
    """Clock in MHz (mean over cores) and temperature in degrees Celsius now; None where the system does not tell."""
    why: dict[str, str] = {}
    return {"mhz": _clocks(root, why)[1], "celsius": _celsius(root, why)}


def package_version(name: str) -> str | None:
    """Version of an imported or installed package; None when it is neither."""
    # The imported module's own word is free; metadata costs milliseconds, and onnxruntime's builds differ in name.
    known = getattr(sys.modules.get(name), "__version__", None)
    if known is not None:
        return str(known)
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _usable_cores() -> int:
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def _cpu(root: Path) -> tuple[str | None, tuple[str, ...] | None]:
    text = _read(root / "proc/cpuinfo")
    if text is None:
        return None, None
    values: dict[str, str] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            values.setdefault(key.strip().lower(), value.strip())  # the first core speaks for all
    # ARM names the model by numbers only; a board's name stands in 'hardware' or 'model', or in the device tree.
    board = _read(root / "proc/device-tree/model")
    name = values.get("model name") or values.get("hardware") or (board.rstrip("\0") if board else None)
    if name is None and "cpu implementer" in values:
        name = f"ARM implementer {values['cpu implementer']} part {values.get('cpu part')}"
    listed = set((values.get("flags") or values.get("features") or "").split())
    return name, tuple(sorted({ours for kernel, ours in FLAGS.items() if kernel in listed}))


def _clocks(root: Path, why: dict[str, str]) -> tuple[str | None, float | None, float | None]:
    """Governor, clock now and highest clock in MHz."""
    folders = sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq"))
    governors = {g for f in folders if (g := _read(f / "scaling_governor"))}
    now = [int(v) / 1000 for f in folders if (v := _read(f / "scaling_cur_freq")) and v.isdigit()]
    top = [int(v) / 1000 for f in folders if (v := _read(f / "cpuinfo_max_freq")) and v.isdigit()]
    for name, found in (("governor", governors), ("mhz", now), ("mhz_max", top)):
        if not found:
            why[name] = "the system shows no cpufreq (a virtual machine, or no rights)"
    return (
        "+".join(sorted(governors)) or None,
        round(sum(now) / len(now), 1) if now else None,
        max(top) if top else None,
    )


def _celsius(root: Path, why: dict[str, str]) -> float | None:
    texts = [_read(f) for f in sorted((root / "sys/class/thermal").glob("thermal_zone*/temp"))]
    found = [int(t) / 1000 for t in texts if t and t.lstrip("-").isdigit()]
    if not found:
        why["celsius"] = "the system shows no thermal zone"
    return max(found, default=None)


def _gpus(root: Path) -> tuple[str, ...]:
    """NVIDIA's driver names its GPUs; of others the kernel has the driver's name and the numbers of the PCI bus."""
    found = []
    words = (_read(root / "proc/driver/nvidia/version") or "").split("\n", 1)[0].split()
    number = next((w for w in words if w[:1].isdigit() and "." in w), "of unknown version")
    for file in sorted((root / "proc/driver/nvidia/gpus").glob("*/information")):
        found.append(f"{_told(file, ':').get('Model', 'NVIDIA').strip()}, driver {number}")
    for file in sorted((root / "sys/class/drm").glob("card*/device/uevent")):
        told = _told(file, "=")
        driver, pci = told.get("DRIVER"), told.get("PCI_ID")
        if driver and driver != "nvidia" and "-" not in file.parts[-3]:  # card0-HDMI-A-1 is a plug
            found.append(f"{driver} {pci}" if pci else driver)
    return tuple(found)


def _told(path: Path, between: str) -> dict[str, str]:
    """The lines 'name between value' of a file."""
    return dict(line.split(between, 1) for line in (_read(path) or "").splitlines() if between in line)


def _memory(root: Path, why: dict[str, str]) -> int | None:
    for line in (_read(root / "proc/meminfo") or "").splitlines():
        if line.startswith("MemTotal:"):
            return 1024 * int(line.split()[1])
    try:
        import psutil

        return int(psutil.virtual_memory().total)
    except ImportError:
        why["memory"] = "no /proc/meminfo, and psutil is not installed"
        return None
