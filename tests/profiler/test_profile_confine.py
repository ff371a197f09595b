"""Workers held to less memory and fewer cores: real groups where the machine lets us, recorded trees for the others."""

from __future__ import annotations

import ast
import os
import re
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgewise.bundle import read_bundle
from edgewise.cli import main
from edgewise.data import Row
from edgewise.errors import PlanError, UserError, WorkerError
from edgewise.profiler import Store, Subject, entries, measure_latency
from edgewise.profiler.cgroups import Counters, Group, make_group
from edgewise.profiler.confine import _words, check_cores, confined
from edgewise.profiler.limits import read_groups, read_limits
from edgewise.profiler.measure import Rounds
from edgewise.profiler.plumbing import held_to, job_inputs
from edgewise.profiler.transport import run_job, sweep_jobs
from edgewise.types import Device, Measurement, Metric, RunSettings, Target, to_dict
from edgewise.units import check_cores as checked_cores
from edgewise.units import parse_memory

MB = 10**6
DESCRIBE = {"job": "describe"}
SHORT = Rounds(percentile="p50", width=0.9, min_rounds=5, max_rounds=5, seconds=0.02)
linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has cgroups and this affinity")


def _tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.fixture
def limited() -> Path:
    """Where this machine lets us make memory groups; the test is skipped where it does not."""
    made = make_group(f"edgewise-try-{os.getpid()}", 50 * MB)
    if not isinstance(made, Group):
        pytest.skip(f"no memory groups can be made here: {', '.join(made)}")
    made.remove()
    return made.folder.parent


@pytest.fixture
def stand_in(tmp_path: Path) -> Callable[..., Device]:
    """A device whose interpreter is a shell script; the job folder is its $3."""

    def make(script: str, **limits: Any) -> Device:
        path = tmp_path / "python"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return Device("small", str(path), **limits)

    return make


def _groups(place: Path) -> list[str]:
    return [f.name for f in place.glob(f"edgewise-job-{os.getpid()}-*")]


# The real thing


def test_a_worker_sees_its_limit_and_its_cores(limited: Path) -> None:
    core = max(os.sched_getaffinity(0))
    device = Device("small", memory=200 * MB, cores=(core,))
    found, free = (run_job(d, DESCRIBE, []).fingerprint for d in (device, Device()))
    assert 199 * MB < found["memory_limit"] <= 200 * MB  # the kernel counts pages
    assert found["usable_cores"] == 1
    assert found["digest"] != free["digest"]
    assert os.sched_getaffinity(0) >= {core}
    assert free["usable_cores"] == len(os.sched_getaffinity(0))  # this process is not pinned
    assert _groups(limited) == []


def test_startup_counts_neither_the_group_nor_its_shell(
    limited: Path, int8_bundle: Path, review_rows: tuple[Row, ...]
) -> None:
    job = {
        "job": "latency",
        "bundle": str(int8_bundle),
        "content_digest": read_bundle(int8_bundle).digest,
        "verify": "full",
        "run": to_dict(RunSettings(max_length=32)),
        "warmup": {"calls": 1, "seconds": 0.0},
        "seconds": 0.0,
        "min_calls": 1,
    }
    ns = {}
    for device in (Device(), Device("small", memory=1000 * MB)):
        found = run_job(device, job, job_inputs(review_rows[:2])).startup_ns
        assert found is not None
        phases = [found[n] for n in ("interpreter", "imports", "load", "session", "first", "other")]
        assert all(p is not None and p > 0 for p in phases)
        assert sum(p for p in phases if p is not None) == found["total"]
        ns[device.name] = found["interpreter"] or 0
    assert ns["small"] < 3 * ns["here"] + 100_000_000  # a busy machine; the next start of the group would be seconds


def test_a_worker_that_wants_more_is_killed_and_says_why(limited: Path, stand_in: Callable[..., Device]) -> None:
    hungry = f"echo so far >&2; exec {sys.executable} -c 'bytearray(1) * 300_000_000'"
    with pytest.raises(WorkerError) as caught:
        run_job(stand_in(hungry, memory=60 * MB), DESCRIBE, [], timeout_s=60)
    assert re.match(
        r"out of memory: the worker was killed at its limit of 60.0 MB, peak (60.0|59.\d) MB; .*so far",
        str(caught.value),
    )
    assert _groups(limited) == []


def test_other_kills_are_told_apart(limited: Path, stand_in: Callable[..., Device]) -> None:
    with pytest.raises(WorkerError, match=r"signal 9 \(SIGKILL\), not for memory: its limit is 60.0 MB, peak "):
        run_job(stand_in("kill -9 $$", memory=60 * MB), DESCRIBE, [], timeout_s=60)
    with pytest.raises(WorkerError, match=r"killed after 0.5 s without an end$"):
        run_job(stand_in("exec sleep 60", memory=60 * MB), DESCRIBE, [], timeout_s=0.5)
    with pytest.raises(WorkerError, match=r"signal 11 \(SIGSEGV\)"):
        run_job(stand_in("kill -11 $$", memory=60 * MB), DESCRIBE, [], timeout_s=60)
    with pytest.raises(UserError, match="'/no/python' does not start"):
        run_job(Device("small", "/no/python", memory=60 * MB), DESCRIBE, [])
    assert _groups(limited) == []


def test_what_a_worker_leaves_behind_ends_with_its_group(
    limited: Path, stand_in: Callable[..., Device], tmp_path: Path
) -> None:
    device = stand_in(f"sleep 60 & echo $! > {tmp_path}/left; exit 3", memory=60 * MB)
    with pytest.raises(WorkerError, match="exit code 3"):
        run_job(device, DESCRIBE, [], timeout_s=60)
    left = int((tmp_path / "left").read_text())
    state = Path(f"/proc/{left}/stat")
    assert not state.exists() or state.read_text().split(")")[1].split()[0] == "Z"
    assert _groups(limited) == []


def test_groups_of_killed_runs_are_swept(limited: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    names = {pid: f"edgewise-job-{pid}-sweep" for pid in (gone.pid, os.getpid())}
    for name in names.values():
        (limited / name).mkdir()
    try:
        sweep_jobs()
        assert not (limited / names[gone.pid]).exists()
        assert (limited / names[os.getpid()]).exists()
    finally:
        for name in names.values():
            if (limited / name).exists():
                (limited / name).rmdir()


def test_out_of_memory_is_a_measurement_and_numbers_do_not_mix(
    limited: Path, bundles: dict[str, Path], review_rows: tuple[Row, ...], tmp_path: Path
) -> None:
    # The interpreter with onnxruntime fits into what the bundle's weights do not.
    subject = Subject("tiny", "fp32", read_bundle(bundles["fp32"]))
    target = Target("small", RunSettings(max_length=16))
    found = []
    with Store(tmp_path / "m.sqlite") as store:
        for memory in (None, 60 * MB):
            found += measure_latency(
                [subject], [target], review_rows[:10], store=store, spec=SHORT, repeat_disturbed=False,
                devices=[Device("small", memory=memory)],
            )  # fmt: skip
        free, held = found
        assert free.status == "ok"
        assert held.status == "failed"
        assert re.match(
            r"round 1: out of memory: the worker was killed at its limit of 60.0 MB, peak \d\d.\d MB", held.reason
        )
        assert held.conditions["device"]["memory"] == 60 * MB
        assert free.conditions["fingerprint_digest"] != held.conditions["fingerprint_digest"]
        assert free.conditions["settings_digest"] != held.conditions["settings_digest"]
        assert "memory" not in free.conditions["settings"]
        assert [e.status for e in entries(store)] == ["failed"]
    assert _groups(limited) == []


@linux
def test_a_scope_of_systemd_is_entered_before_the_worker_starts(
    limited: Path, stand_in: Callable[..., Device], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A stand-in for systemd-run, which does slowly what systemd does: a real group, entered, then exec."""
    v1 = "memory" in str(limited.relative_to("/sys/fs/cgroup").parts[:1])
    limit = "memory.limit_in_bytes" if v1 else "memory.max"
    script = (
        'for a in "$@"; do case $a in --unit=*) u=${a#--unit=};; --property=MemoryMax=*) m=${a##*=};; esac; done\n'
        'while [ "$1" != -- ]; do shift; done; shift\n'
        '[ "$1" = true ] && exit 0\n'
        f"sleep 0.3; mkdir {limited}/$u.scope; echo $m > {limited}/$u.scope/{limit}\n"
        f'echo {limited}/$u.scope > {tmp_path}/made; echo $$ > {limited}/$u.scope/cgroup.procs; exec "$@"\n'
    )
    for name, text in (("systemd-run", script), ("systemctl", "case $3 in show) echo oom-kill;; esac; true")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr("edgewise.profiler.confine.make_group", lambda *a: ["cgroup v2 (not here)"])
    try:
        found = run_job(Device("small", memory=100 * MB), DESCRIBE, [])
        assert 99 * MB < found.fingerprint["memory_limit"] <= 100 * MB
        Path((tmp_path / "made").read_text().strip()).rmdir()
        hungry = stand_in(f"exec {sys.executable} -c 'bytearray(1) * 300_000_000'", memory=60 * MB)
        with pytest.raises(WorkerError, match=r"out of memory: the worker was killed at its limit of 60.0 MB"):
            run_job(hungry, DESCRIBE, [])
    finally:
        Path((tmp_path / "made").read_text().strip()).rmdir()
    (tmp_path / "systemd-run").write_text('#!/bin/sh\nwhile [ "$1" != -- ]; do shift; done; shift; exec "$@"\n')
    monkeypatch.setattr("edgewise.profiler.confine._SYSTEMD_S", 0.3)
    with pytest.raises(UserError, match=r"did not bring the worker into edgewise-job-.*\.scope"):
        run_job(Device("small", memory=100 * MB), DESCRIBE, [])


def test_what_only_our_own_extras_need_does_not_fail_a_measurement(
    limited: Path, int8_bundle: Path, review_rows: tuple[Row, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """All is measured, then the yardstick or the second session meets the limit: played by a yardstick that is fat."""
    (tmp_path / "sitecustomize.py").write_text(
        "import edgewise.profiler.yardstick as y\ny.read_yardstick = lambda: len(bytearray(1) * 10**9)\n"
    )
    monkeypatch.setattr(
        "edgewise.profiler.transport.worker_environment",
        lambda device: {**os.environ, "PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[2]}"},
    )
    subject = Subject("tiny", "int8-dynamic", read_bundle(int8_bundle))
    with Store(tmp_path / "m.sqlite") as store:
        (found,) = measure_latency(
            [subject], [Target("small", RunSettings(max_length=16))], review_rows[:10], store=store, spec=SHORT,
            repeat_disturbed=False, devices=[Device("small", memory=150 * MB)],
        )  # fmt: skip
    assert (found.status, found.reason) == ("ok", "")
    assert found.conditions["rounds"]["yardstick"] == [None] * 5
    assert re.match(
        "not recorded, after all was measured: out of memory: the worker was killed at its limit of 150 MB",
        found.conditions["placement_why"],
    )


# Where no limit can be had


@linux
def test_a_limit_that_nothing_enforces_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    tree = _tree(tmp_path, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cgroup.subtree_control": "cpu pids\n"})
    words = (
        r"device 'small': cannot enforce a memory limit of 512 MB here; tried cgroup v2 \(its groups have no memory "
        r"controller\), cgroup v1 \(not there\), systemd-run \(not installed\)\. Run as root, .* or measure without"
    )
    with pytest.raises(UserError, match=words), confined(Device("small", memory=512 * MB), "x", tree):
        pass
    (tmp_path / "systemd-run").write_text("#!/bin/sh\necho 'Failed to connect to bus: No medium found' >&2; exit 1\n")
    (tmp_path / "systemd-run").chmod(0o755)
    with (
        pytest.raises(UserError, match=r"systemd-run --user \(Failed to connect to bus: No medium found\)"),
        confined(Device("small", memory=512 * MB), "x", tree),
    ):
        pass


@linux
def test_a_limit_above_the_machines_own_is_refused(tmp_path: Path) -> None:
    tree = _tree(tmp_path, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "268435456\n"})
    with (
        pytest.raises(UserError, match=r"memory is 512 MB, but this process itself may use only 268 MB"),
        confined(Device("small", memory=512 * MB), "x", tree),
    ):
        pass
    with (
        pytest.raises(UserError, match=r"memory is 1000000 GB, but this process"),
        confined(Device("small", memory=10**15), "x"),
    ):
        pass


def test_a_limit_that_the_kernel_does_not_show_is_no_limit(
    limited: Path, stand_in: Callable[..., Device], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgewise.profiler.cgroups._limit_v1", lambda *a: None)
    monkeypatch.setattr("edgewise.profiler.cgroups._limit_v2", lambda *a: None)
    with pytest.raises(UserError, match=r"tried cgroup v\d: the kernel says no limit of the worker"):
        run_job(stand_in("exit 0", memory=60 * MB), DESCRIBE, [])
    assert _groups(limited) == []


def test_another_system_has_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    with (
        pytest.raises(UserError, match="cannot enforce a memory limit of 512 MB on darwin"),
        confined(Device("mac", memory=512 * MB), "x"),
    ):
        pass
    with pytest.raises(UserError, match=r"cores 0, 1 cannot be enforced: darwin has no affinity"):
        check_cores(Device("mac", cores=(0, 1)))


@linux
def test_a_core_that_is_not_there_is_the_users_error() -> None:
    with pytest.raises(UserError, match=r"device 'small': core 4000, 4001 is not there: this process may use \d"):
        run_job(Device("small", cores=(0, 4000, 4001)), DESCRIBE, [])


# Recorded trees

V2 = {
    "proc/self/cgroup": "0::/user.slice/user@1000.service/app.slice/editor.scope\n",
    "proc/self/mountinfo": "31 23 0:28 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n",
    "proc/swaps": "Filename Type Size Used Priority\n/dev/sda2 partition 1000 0 -2\n",
    "sys/fs/cgroup/user.slice/cgroup.subtree_control": "cpu memory pids\n",
    "sys/fs/cgroup/user.slice/user@1000.service/cgroup.subtree_control": "cpu memory pids\n",
    "sys/fs/cgroup/user.slice/user@1000.service/app.slice/cgroup.subtree_control": "memory pids\n",
    "sys/fs/cgroup/user.slice/user@1000.service/app.slice/editor.scope/cgroup.subtree_control": "\n",
}
V1 = {
    "proc/self/cgroup": "4:memory:/docker/x\n0::/\n",
    "proc/self/mountinfo": "35 31 0:32 /docker/x /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n",
    "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
}


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, list[str]]]:
    """A kernel that fills the folder of a new group: the files it makes, by the name of the group's folder."""
    files = {"v2": ["memory.max", "memory.swap.max", "cgroup.procs"], "v1": ["memory.limit_in_bytes", "cgroup.procs"]}
    make = Path.mkdir

    def mkdir(self: Path, *args: Any, **kwargs: Any) -> None:
        new = not self.exists()
        make(self, *args, **kwargs)
        for name in files.get(self.name, []) if new else []:
            (self / name).write_text("")

    monkeypatch.setattr(Path, "mkdir", mkdir)
    yield files


def test_v2_takes_the_nearest_group_that_hands_memory_on(tmp_path: Path, kernel: dict[str, list[str]]) -> None:
    made = make_group("v2", 512 * MB, _tree(tmp_path, V2))
    assert made == Group(tmp_path / "sys/fs/cgroup/user.slice/user@1000.service/app.slice/v2", 2)
    assert (made.folder / "memory.max").read_text() == "512000000"
    assert (made.folder / "memory.swap.max").read_text() == "0"
    made.enter(77)
    assert (made.folder / "cgroup.procs").read_text() == "77"
    assert made.counters() == Counters(None, None, None)
    _tree(made.folder, {"memory.events": "low 0\nhigh 0\nmax 90\noom 2\noom_kill 1\n", "memory.peak": "511000000\n"})
    assert made.counters() == Counters(1, 90, 511 * MB)


def test_v2_without_control_of_swap_is_refused_where_the_system_swaps(
    tmp_path: Path, kernel: dict[str, list[str]]
) -> None:
    kernel["v2"].remove("memory.swap.max")
    tried = make_group("v2", 512 * MB, _tree(tmp_path, V2))
    assert isinstance(tried, list)
    assert "no memory.swap.max, and the system swaps" in tried[0]
    kernel["other"] = ["memory.max"]
    _tree(tmp_path, {"proc/swaps": "Filename Type Size Used Priority\n"})
    assert isinstance(make_group("other", 512 * MB, tmp_path), Group)


def test_v1_in_a_container_that_sees_its_own_group_alone(tmp_path: Path, kernel: dict[str, list[str]]) -> None:
    made = make_group("v1", 512 * MB, _tree(tmp_path, V1))
    assert made == Group(tmp_path / "sys/fs/cgroup/memory/v1", 1)
    assert (made.folder / "memory.limit_in_bytes").read_text() == "512000000"
    assert not (made.folder / "memory.swappiness").exists()
    oom = {"memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n", "memory.failcnt": "3\n"}
    _tree(made.folder, {**oom, "memory.memsw.failcnt": "4\n", "memory.max_usage_in_bytes": "512000000\n"})
    assert made.counters() == Counters(1, 7, 512 * MB)
    # The worker's own group, as it reads it itself.
    _tree(tmp_path, {"proc/self/cgroup": "4:memory:/docker/x/v1\n0::/\n"})
    assert read_limits(tmp_path).memory == 512 * MB


def test_v1_counts_memory_and_swap_together_where_it_can(tmp_path: Path, kernel: dict[str, list[str]]) -> None:
    kernel["v1"] += ["memory.memsw.limit_in_bytes", "memory.swappiness"]
    swaps = {"proc/swaps": "Filename Type Size Used Priority\n/dev/sda2 partition 1000 0 -2\n"}
    both = make_group("v1", 512 * MB, _tree(tmp_path / "both", {**V1, **swaps}))
    assert isinstance(both, Group)
    assert (both.folder / "memory.memsw.limit_in_bytes").read_text() == "512000000"
    kernel["v1"].remove("memory.memsw.limit_in_bytes")
    alone = make_group("v1", 512 * MB, _tree(tmp_path / "alone", {**V1, **swaps}))
    assert isinstance(alone, Group)
    assert (alone.folder / "memory.swappiness").read_text() == "0"


def test_groups_are_found_where_they_are_mounted(tmp_path: Path) -> None:
    hybrid = {
        "proc/self/cgroup": "5:cpu,cpuacct:/a\n1:name=systemd:/a\n0::/a b\n",
        "proc/self/mountinfo": (
            "30 23 0:27 / /sys/fs/cgroup/with\\040blank rw - cgroup2 cgroup2 rw\n"
            "31 23 0:28 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
        ),
    }
    _tree(tmp_path, hybrid)
    for name in ("with blank/a b", "cpu,cpuacct/a"):
        (tmp_path / "sys/fs/cgroup" / name).mkdir(parents=True)
    found = read_groups(tmp_path)
    assert found is not None
    assert found["unified"][0] == tmp_path / "sys/fs/cgroup/with blank/a b"
    assert found["cpu"] == (tmp_path / "sys/fs/cgroup/cpu,cpuacct/a", tmp_path / "sys/fs/cgroup/cpu,cpuacct")
    assert read_groups(tmp_path, 99999) is None


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (Counters(1, 5, 511 * MB), "out of memory: the worker was killed at its limit of 512 MB, peak 511 MB"),
        (Counters(1, 0, 511 * MB), "out of memory: the worker was killed at its limit of 512 MB, peak 511 MB"),
        (Counters(1, 5, None), "out of memory: the worker was killed at its limit of 512 MB"),
        (Counters(1, 0, 90 * MB), "out of memory: the machine or a group around the worker ran out, not its limit"),
        (Counters(0, 0, 90 * MB), "the worker was killed by signal 9 (SIGKILL), not for memory: its limit is 512 MB"),
        (Counters(None, 9, 512 * MB), "the worker was killed by signal 9 (SIGKILL), most likely at its memory limit"),
        (Counters(None, 0, 9 * MB), "the worker was killed by signal 9 (SIGKILL), though it was never at its memory"),
        (Counters(None, None, None), "the worker was killed by signal 9 (SIGKILL), most likely at its memory limit"),
    ],
)
def test_words_for_a_kill(found: Counters, words: str) -> None:
    assert _words(found, 512 * MB).startswith(words)


# What the user writes


def test_a_limit_has_a_unit_and_cores_are_numbers() -> None:
    assert parse_memory("--memory", "512MB") == 512 * MB
    assert parse_memory("--memory", "0.5 GiB") == 2**29
    for text in ("512", 512, "512 ms", "-1 MB", "lots", "nan MB", ""):
        with pytest.raises(PlanError, match=r"--memory is '.*'; expected a number and one of B, kB, KB, MB, GB"):
            parse_memory("--memory", text)
    with pytest.raises(PlanError, match=r"--memory is '9 kB'; expected at least 1.00 MB"):
        parse_memory("--memory", "9 kB")
    assert checked_cores("--cores", [1, 0]) == (0, 1)
    for cores in ([], [1, 1], [-1]):
        with pytest.raises(PlanError, match=r"--cores is .*; expected numbers of cores from 0 on, each once"):
            checked_cores("--cores", cores)


def test_limits_are_part_of_what_is_the_same_measurement() -> None:
    assert held_to(Device()) == {}
    assert held_to(Device(memory=512 * MB, cores=(0, 1))) == {"memory": 512 * MB, "cores": [0, 1]}
    assert held_to(Device(cores=(0,))) != held_to(Device(cores=(1,)))  # the fingerprint would not tell


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--memory", "512"], "--memory is '512'; expected a number and one of B, kB"),
        (["--cores", "a"], "--cores 'a': expected numbers such as 1,2"),
        (["--cores", "0,0"], "--cores is [0, 0]; expected numbers of cores"),
        (["--cores", "4000"], "device 'here-cores-4000': core 4000 is not there"),
    ],
)
def test_the_command_line_says_what_is_wrong(
    given: list[str], words: str, int8_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rows.csv").write_text("text\nA fine film\n")
    store = tmp_path / "m.sqlite"
    code = main(["profile", str(int8_bundle), "--data", str(tmp_path / "rows.csv"), "--store", str(store), *given])
    assert code == 2
    assert words in capsys.readouterr().err


# Hygiene


def test_only_scenarios_of_the_machine_measured_last_are_joined(tmp_path: Path) -> None:
    free, held = ({"fingerprint_digest": d, "settings_digest": "s"} for d in ("free", "held"))
    base = Measurement("a", "fp32", "sha256:c", Target("small"), "server", "profile")
    with Store(tmp_path / "m.sqlite") as store:
        store.add(replace(base, conditions=free, metrics=(Metric("server_p99", "s", 0.1),)))
        store.add(replace(base, scenario="single-stream", conditions=held, metrics=(Metric("p95", "s", 0.2),)))
        (entry,) = entries(store)
    assert set(entry.metrics) == {"p95"}


def test_a_bundle_that_changes_between_rounds_fails_and_says_which_file(
    bundle_copy: Path, review_rows: tuple[Row, ...], tmp_path: Path
) -> None:
    def spoil(done: int, total: int, what: str) -> None:
        if done == 2:
            (bundle_copy / "tokenizer.json").write_text("{}")

    subject = Subject("tiny", "fp32", read_bundle(bundle_copy))
    with Store(tmp_path / "m.sqlite") as store:
        (found,) = measure_latency(
            [subject], [Target("here", RunSettings(max_length=16))], review_rows[:5], store=store, spec=SHORT,
            repeat_disturbed=False, progress=spoil,
        )  # fmt: skip
    assert found.status == "failed"
    assert "tokenizer.json" in found.reason
    assert found.conditions["device"]["name"] == "here"
    assert found.metrics == ()


@pytest.mark.skipif(os.name != "posix", reason="the stand-in is a shell script")
@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("head -c 100000 /dev/zero | tr '\\0' '[' > $3/results.jsonl; echo >> $3/results.jsonl", "garbage"),
        (
            """echo '{"event": "start", "protocol": 1, "pid": 1e999}' > $3/results.jsonl\n"""
            """echo '{"event": "fingerprint"}\n{"event": "end"}' >> $3/results.jsonl""",
            "not of protocol 1",
        ),
        ("mkdir $3/results.jsonl", "cannot be read: Is a directory"),
        ("rm -rf $3", "ended early|No such file"),
    ],
)
def test_odd_results_are_a_worker_error(stand_in: Callable[..., Device], script: str, words: str) -> None:
    with pytest.raises(WorkerError, match=words):
        run_job(stand_in(script), DESCRIBE, [], timeout_s=60)


def test_no_time_is_taken_from_a_clock_that_can_jump() -> None:
    """Durations by monotonic clocks alone; the wall clock only says when a measurement was stored."""
    wall = {("time", "time"), ("time", "time_ns"), ("datetime", "now"), ("datetime", "utcnow")}
    found = set()
    for file in (Path(__file__).parents[2] / "profiler").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                found |= {(file.name, node.attr)} if (node.value.id, node.attr) in wall else set()
    assert found <= {("store.py", "now"), ("remote.py", "time")}  # remote: how old a left folder is, by its date
    assert time.get_clock_info("monotonic").monotonic
    assert time.get_clock_info("perf_counter").monotonic
