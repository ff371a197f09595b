"""Holds a worker to the memory and the cores of a smaller device.

Memory: a cgroup of its own (v2, v1), else a scope of systemd, else the run is refused; never RLIMIT_AS, which counts
addresses and not memory. Cores: the affinity that the worker inherits. Both hold from the worker's first instruction.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from edgewise.errors import UserError
from edgewise.profiler.cgroups import Counters, Group, make_group
from edgewise.profiler.limits import ROOT, read_groups, read_limits
from edgewise.profiler.worker import SPAWNED
from edgewise.showing import show
from edgewise.types import Device

_GATE = f'read -r {SPAWNED} && export {SPAWNED} && exec "$@" < /dev/null'
"""A shell that waits until it stands in its group, takes the time of that moment and becomes the worker: so that
start-up counts neither the group nor systemd, and the worker allocates nothing before it is limited."""
_SYSTEMD_S = 20.0


class Hold(Protocol):
    """What keeps a worker under its memory limit."""

    @property
    def prefix(self) -> tuple[str, ...]:
        """What stands before the command."""

    @property
    def text(self) -> str:
        """For people."""

    def enter(self, process: subprocess.Popen[bytes]) -> None:
        """Take in a process that waits. Raises OSError, UserError."""

    def counters(self) -> Counters:
        """What was counted until now."""

    def remove(self) -> None:
        """Remove what was made for it."""


@dataclass(frozen=True)
class GroupHold:
    """A cgroup that we made."""

    group: Group
    prefix: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        return f"cgroup v{self.group.version}"

    def enter(self, process: subprocess.Popen[bytes]) -> None:
        self.group.enter(process.pid)

    def counters(self) -> Counters:
        return self.group.counters()

    def remove(self) -> None:
        self.group.remove()


@dataclass(frozen=True)
class ScopeHold:
    """A scope that systemd makes: it moves the command there itself, and removes the group when it is empty."""

    unit: str
    manager: str
    """--user or --system."""
    memory: int

    @property
    def prefix(self) -> tuple[str, ...]:
        return (*_scope(self.manager, self.memory), f"--unit={self.unit}", "--")

    @property
    def text(self) -> str:
        return f"systemd-run {self.manager}"

    def enter(self, process: subprocess.Popen[bytes]) -> None:
        end = time.monotonic() + _SYSTEMD_S
        while not any(self.unit in str(f[0]) for f in (read_groups(ROOT, process.pid) or {}).values() if f):
            if process.poll() is not None or time.monotonic() > end:
                raise UserError(f"systemd-run {self.manager} did not bring the worker into {self.unit}.scope")
            time.sleep(0.002)

    def counters(self) -> Counters:
        # The group is gone as soon as its last process is, its own counters with it.
        killed = self._systemctl("show", "--property=Result", "--value").strip() == "oom-kill"
        return Counters(1, 1, None) if killed else Counters(None, None, None)

    def remove(self) -> None:
        self._systemctl("reset-failed")

    def _systemctl(self, *arguments: str) -> str:
        command = ["systemctl", self.manager, "--no-ask-password", *arguments, f"{self.unit}.scope"]
        return _output(command)[1]


@dataclass(frozen=True)
class Room:
    """Where one worker runs: on which cores, and under what limit."""

    device: Device
    hold: Hold | None = None

    def start(
        self, command: Sequence[str], *, cwd: Path, environment: Mapping[str, str], out: IO[bytes], err: IO[bytes]
    ) -> subprocess.Popen[bytes]:
        """Start the worker, with the time of its start in its environment.

        Raises OSError for a command that does not start, UserError for a limit that does not hold.
        """
        if self.hold is None:
            with _pinned(self.device):
                stamped = {**environment, SPAWNED: str(time.monotonic_ns())}
                return subprocess.Popen(command, cwd=cwd, env=stamped, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
        if shutil.which(command[0], path=environment.get("PATH")) is None:  # the shell would only print it
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        gated = [*self.hold.prefix, "sh", "-c", _GATE, "sh", *command]
        with _pinned(self.device):
            process = subprocess.Popen(
                gated, cwd=cwd, env=dict(environment), stdin=subprocess.PIPE, stdout=out, stderr=err
            )
        try:
            self._enter(process, self.hold)
            if process.stdin is not None:
                with suppress(BrokenPipeError), process.stdin as gate:  # one that ended is judged by its exit code
                    gate.write(f"{time.monotonic_ns()}\n".encode("ascii"))
        except BaseException:
            process.kill()
            process.wait()
            raise
        return process

    def _enter(self, process: subprocess.Popen[bytes], hold: Hold) -> None:
        try:
            hold.enter(process)
        except OSError as error:
            raise cannot_limit(self.device, [f"moving the worker into its group: {error.strerror or error}"]) from error
        # What the kernel says of the process, not what was asked for: a limit that does not hold is no limit.
        seen = read_limits(ROOT, process.pid).memory
        if seen is None or seen > (self.device.memory or 0):
            held = "no limit" if seen is None else show(seen, "B")
            raise cannot_limit(self.device, [f"{hold.text}: the kernel says {held} of the worker"])

    def why_killed(self, code: int) -> str:
        """Why a worker with this exit code was killed, as its group tells; '' where no group is, or nothing killed it.

        To be asked before the room is left.
        """
        if self.hold is None or self.device.memory is None or code != -signal.SIGKILL:
            return ""
        return _words(self.hold.counters(), self.device.memory)

    def pressure(self) -> str:
        """For a worker that did not end: that it stood at its memory limit; '' where it did not, or has none."""
        if self.hold is None or self.device.memory is None or not self.hold.counters().stood_at(self.device.memory):
            return ""
        limit = show(self.device.memory, "B")
        return f"; it stood at its memory limit of {limit}, where reading files again and again makes it slow"


@contextmanager
def confined(device: Device, name: str, root: Path = ROOT) -> Iterator[Room]:
    """The room of one worker of a device; what was made for it is removed in the end.

    name: of the group or scope; it must be new. Raises UserError for a limit or cores that cannot be had here.
    """
    check_cores(device)
    if device.memory is None:
        yield Room(device)
        return
    hold = _hold(device, device.memory, name, root)
    try:
        yield Room(device, hold)
    finally:
        hold.remove()


def check_cores(device: Device) -> None:
    """Raise UserError where the device names a core that this process may not use, or the system has no affinity."""
    if device.cores is None:
        return
    if sys.platform != "linux":
        raise UserError(
            f"device {device.name!r}: cores {_list(device.cores)} cannot be enforced: {sys.platform} has no "
            f"affinity of processes; measure without cores"
        )
    there = os.sched_getaffinity(0)
    missing = [core for core in device.cores if core not in there]
    if missing:
        raise UserError(
            f"device {device.name!r}: core {_list(missing)} is not there: this process may use {_list(sorted(there))}"
        )


def cannot_limit(device: Device, tried: Sequence[str]) -> UserError:
    """The error for a memory limit that nothing here enforces."""
    return UserError(
        f"device {device.name!r}: cannot enforce a memory limit of {show(device.memory, 'B')} here; tried "
        f"{', '.join(tried)}. Run as root, or in a systemd session with the memory controller (Delegate=memory in "
        f"user@.service), or in a container that has the limit itself (docker run --memory), or measure without memory"
    )


def _hold(device: Device, memory: int, name: str, root: Path) -> Hold:
    if sys.platform != "linux":
        raise UserError(
            f"device {device.name!r}: cannot enforce a memory limit of {show(memory, 'B')} on {sys.platform}: only "
            f"Linux has cgroups; measure without memory"
        )
    here = min(read_limits(root).memory or memory, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    if memory > here:
        raise UserError(
            f"device {device.name!r}: memory is {show(memory, 'B')}, but this process itself may use only "
            f"{show(here, 'B')}: name less, or measure on a larger machine"
        )
    made = make_group(name, memory, root)
    if isinstance(made, Group):
        return GroupHold(made)
    tried = made
    if shutil.which("systemd-run") is None:
        raise cannot_limit(device, [*tried, "systemd-run (not installed)"])
    for manager in ("--user", "--system"):
        code, said = _output([*_scope(manager, memory), "--", "true"])
        if code == 0:
            return ScopeHold(name, manager, memory)
        last = [f"exit code {code}", *said.strip().splitlines()][-1]
        tried.append(f"systemd-run {manager} ({last})")
    raise cannot_limit(device, tried)


def _scope(manager: str, memory: int) -> tuple[str, ...]:
    limits = (f"--property=MemoryMax={memory}", "--property=MemorySwapMax=0")
    return ("systemd-run", manager, "--scope", "--quiet", "--no-ask-password", *limits)


def _output(command: Sequence[str]) -> tuple[int, str]:
    """Exit code and what was said of a short command; it never hangs."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_SYSTEMD_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, str(error)
    return done.returncode, done.stdout.decode("utf-8", errors="replace")


@contextmanager
def _pinned(device: Device) -> Iterator[None]:
    """This thread, and with it what it starts, on the device's cores; other threads stay where they are."""
    if device.cores is None or sys.platform != "linux":
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, device.cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _words(found: Counters, memory: int) -> str:
    """Why a group's process was killed, told apart by what the group counted."""
    limit, at = show(memory, "B"), found.stood_at(memory)
    peak = "" if found.peak is None else f", peak {show(found.peak, 'B')}"
    if found.kills is None:
        near = "though it was never at" if at is False else "most likely at"
        return f"the worker was killed by signal 9 (SIGKILL), {near} its memory limit of {limit}{peak}"
    if found.kills == 0:
        return f"the worker was killed by signal 9 (SIGKILL), not for memory: its limit is {limit}{peak}"
    if at is False:
        return f"out of memory: the machine or a group around the worker ran out, not its limit of {limit}{peak}"
    return f"out of memory: the worker was killed at its limit of {limit}{peak}"


def _list(cores: Sequence[int]) -> str:
    return ", ".join(map(str, cores))
