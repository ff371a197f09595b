"""Fingerprint, memory and load: read from recorded trees, and from this machine."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from edgewise.profiler.describe import describe_here
from edgewise.profiler.fingerprint import read_fingerprint
from edgewise.profiler.limits import read_limits
from edgewise.profiler.vitals import load_since, mark_load, read_memory

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells this")


def _tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


RASPBERRY_PI_5 = {
    "proc/cpuinfo": "processor\t: 0\nFeatures\t: fp asimd asimdhp asimddp\nCPU implementer\t: 0x41\n",
    "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
    "proc/meminfo": "MemTotal:        8245840 kB\nMemFree: 1 kB\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "ondemand\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1500000\n",
    "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq": "2400000\n",
    "sys/class/thermal/thermal_zone0/temp": "51200\n",
    "proc/self/cgroup": "0::/user.slice/a\n",
    "sys/fs/cgroup/user.slice/cpu.max": "150000 100000\n",
    "sys/fs/cgroup/user.slice/a/cpu.max": "max 100000\n",
    "sys/fs/cgroup/user.slice/a/memory.max": "536870912\n",
}


def test_a_board_from_its_recorded_tree(tmp_path: Path) -> None:
    found = read_fingerprint(_tree(tmp_path, RASPBERRY_PI_5))
    assert found.cpu == "Raspberry Pi 5 Model B Rev 1.0"
    assert found.flags == ("dotprod", "fp16", "neon")
    assert (found.governor, found.mhz, found.mhz_max, found.celsius) == ("ondemand", 1500.0, 2400.0, 51.2)
    assert found.memory == 8245840 * 1024
    assert (found.cpu_limit, found.memory_limit) == (1.5, 512 * 2**20)
    assert found.why == {}


def test_a_bare_tree_gives_none_with_the_reason(tmp_path: Path) -> None:
    found = read_fingerprint(_tree(tmp_path, {"proc/meminfo": "MemTotal: 1 kB\n"}))
    for name in ("governor", "mhz", "mhz_max", "celsius", "flags", "cpu_limit", "memory_limit"):
        assert getattr(found, name) is None
        assert found.why[name]


def test_cgroup_v1_limits(tmp_path: Path) -> None:
    tree = {
        "proc/self/cgroup": "4:memory:/docker/x\n3:cpu,cpuacct:/docker/x\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "sys/fs/cgroup/memory/docker/x/memory.limit_in_bytes": "268435456\n",
        "sys/fs/cgroup/cpu/docker/x/cpu.cfs_quota_us": "50000\n",
        "sys/fs/cgroup/cpu/docker/x/cpu.cfs_period_us": "100000\n",
    }
    found = read_limits(_tree(tmp_path, tree))
    assert (found.cores, found.memory, found.why) == (0.5, 2**28, "")


def test_digest_holds_what_must_match_and_nothing_that_drifts() -> None:
    found = read_fingerprint()
    assert found.machine == platform.machine()
    same = replace(found, mhz=1.0, celsius=80.0, kernel="other", memory=1)
    assert same.digest == found.digest
    assert replace(found, governor="powersave").digest != found.digest
    assert replace(found, versions={**found.versions, "onnxruntime": "0"}).digest != found.digest
    assert found.as_dict()["digest"] == found.digest
    assert json.loads(json.dumps(found.as_dict()))["cpu"] == found.cpu


def test_this_machine_runs_the_cpu_provider_and_says_why_not_the_others() -> None:
    found = describe_here()
    by_name = {p.provider: p for p in found.providers}
    assert by_name["cpu"].runs
    assert all(p.runs or p.why for p in found.providers)


@linux
def test_peak_memory_is_not_inherited_from_a_fat_parent() -> None:
    fat = bytearray(os.urandom(1)) * 300_000_000
    code = "from edgewise.profiler.vitals import read_memory as r; m = r(shares=True); print(m.peak_rss, m.pss, m.uss)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    peak, pss, uss = map(int, out.split())
    assert len(fat) == 300_000_000
    assert uss <= pss <= peak < 100_000_000


@linux
def test_peak_memory_sees_what_was_given_back() -> None:
    code = (
        "from edgewise.profiler.vitals import read_memory as r; a = bytearray(1) * 80_000_000; del a;"
        "m = r(shares=False); print(m.rss, m.peak_rss, m.pss)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    rss, peak, pss = out.split()
    assert int(peak) - int(rss) > 60_000_000
    assert pss == "None"


def test_memory_of_a_recorded_process(tmp_path: Path) -> None:
    tree = {
        "proc/self/status": "Name:\tpython\nVmHWM:\t  2048 kB\nVmRSS:\t  1024 kB\n",
        "proc/self/smaps_rollup": "0-f [rollup]\nPss: 700 kB\nPrivate_Clean: 100 kB\nPrivate_Dirty: 400 kB\n",
    }
    found = read_memory(shares=True, root=_tree(tmp_path, tree))
    assert (found.rss, found.peak_rss, found.pss, found.uss) == (2**20, 2**21, 700 * 1024, 500 * 1024)
    (tmp_path / "proc/self/smaps_rollup").unlink()
    without = read_memory(shares=True, root=tmp_path)
    assert without.pss is None
    assert "smaps_rollup" in without.why


@linux
def test_a_busy_neighbour_is_seen_and_own_work_is_not() -> None:
    start = mark_load()
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(0.7)
        beside = load_since(start).other_cpu
    finally:
        busy.kill()
        busy.wait()
    assert beside is not None
    assert beside > 0.5 / (os.cpu_count() or 1)


def test_load_is_unknown_without_counters(tmp_path: Path) -> None:
    found = load_since(mark_load(tmp_path), tmp_path)
    assert found.other_cpu is None
    assert "/proc/stat" in found.why


def test_load_from_recorded_counters(tmp_path: Path) -> None:
    _tree(tmp_path, {"proc/stat": "cpu  100 0 0 900 0 0 0 0 0 0\ncpu0 1\n"})
    start = mark_load(tmp_path)
    _tree(tmp_path, {"proc/stat": "cpu  140 0 0 940 0 0 0 20 0 0\ncpu0 1\n"})
    found = load_since(start, tmp_path)
    assert found.other_cpu == pytest.approx(0.6, abs=0.05)  # less this process's own hundredths
    assert found.steal == pytest.approx(0.2)
