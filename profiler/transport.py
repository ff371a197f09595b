"""Moves a job to where it runs, starts the worker there and brings the results back: this machine, any interpreter,
another machine over SSH."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Event, Lock, Timer
from typing import Any, Protocol

import edgewise
from edgewise import errors
from edgewise.errors import EdgewiseError, UserError, WorkerError, need_extra
from edgewise.files import disk_full_is_clear
from edgewise.profiler.cgroups import sweep_groups
from edgewise.profiler.confine import confined
from edgewise.profiler.results import (
    WorkerFailure,
    WorkerResult,
    find_failure,
    finish_measured,
    read_events,
    read_result,
)
from edgewise.profiler.worker import PROTOCOL
from edgewise.progress import Say, no_words
from edgewise.types import Device

DEFAULT_TIMEOUT_S = 600.0
_TAIL = 1500
_FOLDER = "edgewise-job-"
_MODULE = "edgewise.profiler.worker"


def sweep_jobs() -> None:
    """Remove the job folders that killed runs left behind: they hold texts of the data. Their memory groups too."""
    try:
        import psutil
    except ImportError as error:
        raise need_extra("profile", error) from error

    def gone(name: str) -> bool:
        owner = name.removeprefix(_FOLDER).partition("-")[0]
        return owner.isdigit() and not psutil.pid_exists(int(owner))

    for folder in Path(tempfile.gettempdir()).glob(f"{_FOLDER}*"):
        if gone(folder.name):
            shutil.rmtree(folder, ignore_errors=True)
    sweep_groups(f"{_FOLDER}*", gone)


class Running(Protocol):
    """A worker that runs: a process here, or a task that stands for one elsewhere."""

    def poll(self) -> int | None:
        """None while it runs."""

    def kill(self) -> None:
        """End it."""

    def wait(self) -> object:
        """Until it has ended."""


class Children:
    """The workers that are running, so that an interrupted run leaves none behind."""

    def __init__(self) -> None:
        self._running: set[Running] = set()
        self._lock = Lock()
        self._closed = False

    @contextmanager
    def running(self, process: Running) -> Iterator[None]:
        """Keep a process in the set while the block runs; kill it if the block is left before it ended."""
        with self._lock:
            self._running.add(process)
            closed = self._closed
        try:
            if closed:
                process.kill()
            yield
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            with self._lock:
                self._running.discard(process)

    def kill_all(self) -> None:
        """Kill what runs, and whatever is started after this."""
        with self._lock:
            self._closed = True
            for process in self._running:
                process.kill()


def run_job(
    device: Device,
    job: Mapping[str, Any],
    inputs: Sequence[Mapping[str, Any]],
    *,
    children: Children | None = None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    keep: Path | None = None,
    say: Say = no_words,
) -> WorkerResult:
    """Run one job in a fresh process and return what it found.

    job: without 'protocol'; see `edgewise.profiler.worker`. inputs: dicts with 'text', 'text_pair' and 'id', or
    'image' (a file, or encoded bytes) and 'id'.
    keep: where results.jsonl goes when the worker ended well, whole or not at all.
    say: is told what an SSH device waits for; timeout_s is the worker's own time, without that.

    Raises WorkerError when the worker died, hung or wrote garbage; the error of ours that the worker met
    (ProviderError, BundleChangedError, ...); UserError for an interpreter that cannot run the worker, and for an SSH
    device that cannot be reached, trusted or made ready.
    """
    folder = Path(tempfile.mkdtemp(prefix=f"{_FOLDER}{os.getpid()}-"))
    try:
        with disk_full_is_clear(folder):
            (folder / "job.json").write_text(json.dumps({"protocol": PROTOCOL, **job}), encoding="utf-8")
            with (folder / "inputs.jsonl").open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(_beside(folder, i, line)) + "\n" for i, line in enumerate(inputs))
        run = _run_worker if device.ssh is None else partial(_run_there, say=say)
        code = run(device, folder, children or Children(), timeout_s)
        result = _judge(device, folder, code)
        if keep is not None:
            _keep(folder / "results.jsonl", keep)
        return result
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _beside(folder: Path, number: int, line: Mapping[str, Any]) -> Mapping[str, Any]:
    """A line of inputs.jsonl; an image is copied into the job's folder, so that it goes where the folder goes."""
    if "image" not in line:
        return line
    (folder / "images").mkdir(exist_ok=True)
    name = f"images/{number}"
    image = line["image"]
    (folder / name).write_bytes(image if isinstance(image, bytes) else Path(image).read_bytes())
    return {**line, "image": name}


def _run_worker(device: Device, folder: Path, children: Children, timeout_s: float) -> int:
    """Start the worker and wait; its exit code. Blocks in the kernel, so that the parent is idle meanwhile."""
    python = _interpreter(device)
    with (
        (folder / "stdout.txt").open("wb") as out,
        (folder / "stderr.txt").open("wb") as err,
        confined(device, folder.name) as room,
    ):
        try:
            process = room.start(
                [python, "-m", _MODULE, str(folder)],
                cwd=folder,  # so that no folder named edgewise in the user's place is imported
                environment=worker_environment(device),
                out=out,
                err=err,
            )
        except OSError as error:
            raise UserError(
                f"device {device.name!r}: interpreter {python!r} does not start: {error.strerror or error}"
            ) from error
        hung = Event()

        def give_up() -> None:
            hung.set()
            process.kill()

        timer = Timer(timeout_s, give_up)
        timer.daemon = True
        with children.running(process):
            timer.start()
            try:
                code = process.wait()
            finally:
                timer.cancel()
        if hung.is_set():
            late = f"the worker was killed after {timeout_s:g} s without an end{room.pressure()}"
            raise WorkerError(f"{late}{_stderr(folder)}")
        killed = room.why_killed(code)
    return _killed(folder, killed) if killed else code


def _run_there(device: Device, folder: Path, children: Children, timeout_s: float, *, say: Say) -> int:
    """The same on another machine; its exit code."""
    from edgewise.profiler.ssh import run_there

    task = run_there(device, folder, timeout_s=timeout_s, say=say)
    with children.running(task):
        ended = task.result()
    if ended.late:
        late = f"the worker was killed after {timeout_s:g} s without an end{ended.words}"
        raise WorkerError(f"{late}{_stderr(folder)}")
    if ended.words:
        return _killed(folder, ended.words)
    if ended.code == 130:  # interrupted there, not here
        raise WorkerError(f"the worker on {device.ssh} was interrupted{_stderr(folder)}")
    return int(ended.code)


def _killed(folder: Path, why: str) -> int:
    """0 for a worker that was killed under a memory limit when all was measured. Raises WorkerError for another."""
    if not finish_measured(folder / "results.jsonl", why):
        raise WorkerError(f"{why}{_stderr(folder)}")
    return 0


def _interpreter(device: Device) -> str:
    """The interpreter's path, seen from the job's folder too; a bare name is looked up on PATH."""
    if device.ssh is not None:
        return f"{device.python or 'the environment'} on {device.ssh}"
    if device.python is None:
        return sys.executable
    # Not resolved: the link in a venv's bin folder is what makes it that venv. './python' is no bare name.
    return str(Path(device.python).expanduser().absolute()) if os.sep in device.python else device.python


def worker_environment(device: Device) -> dict[str, str]:
    """The worker's environment: that of this process, offline, without what would lead it to other packages."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONIOENCODING": "utf-8"}
    root = str(Path(edgewise.__file__).resolve().parent.parent)
    path = environment.get("PYTHONPATH", "").split(os.pathsep)
    # PYTHONPATH stays only where it is what makes edgewise importable for this very interpreter.
    if device.python is not None or root not in [str(Path(p).resolve()) for p in path if p]:
        environment.pop("PYTHONPATH", None)
    if device.python is not None:
        for name in ("PYTHONHOME", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__"):
            environment.pop(name, None)
    return environment


def _judge(device: Device, folder: Path, code: int) -> WorkerResult:
    """The result of a worker that ended, or the error that says why there is none."""
    events = read_events(folder / "results.jsonl")
    failure = find_failure(events)
    if failure is not None:
        raise _error_of(device, failure, folder)
    if code < 0:
        name = signal.Signals(-code).name if -code in {s.value for s in signal.Signals} else "unknown"
        guess = ": most likely the system ran out of memory" if -code == signal.SIGKILL else ""
        raise WorkerError(f"the worker was killed by signal {-code} ({name}){guess}{_stderr(folder)}")
    if code == 130:
        raise KeyboardInterrupt
    if not events and (remedy := _not_importable(device, folder)):
        raise UserError(remedy)
    if code != 0:
        raise WorkerError(f"the worker ended with exit code {code}{_stderr(folder)}")
    try:
        return read_result(folder / "results.jsonl")
    except WorkerError as error:
        raise WorkerError(f"{error}{_stderr(folder)}") from error


def _error_of(device: Device, failure: WorkerFailure, folder: Path) -> EdgewiseError:
    """The worker's error as ours: a leaf of edgewise's tree keeps its kind."""
    if failure.missing and failure.missing.partition(".")[0] != "edgewise":
        return UserError(
            f"device {device.name!r}: {failure.missing} is not installed for {_interpreter(device)}: {_install(device)}"
        )
    kind = getattr(errors, failure.kind, None)
    if isinstance(kind, type) and issubclass(kind, EdgewiseError):
        known: EdgewiseError = kind(failure.message)
        return known
    return WorkerError(f"the worker met {failure.kind}: {failure.message}{_stderr(folder)}")


def _not_importable(device: Device, folder: Path) -> str:
    """What to do about an interpreter that has no edgewise, or one without the worker; '' when it is something else."""
    text = _read(folder / "stderr.txt")
    if "No module named" not in text or "edgewise" not in text:
        return ""
    python, version = _interpreter(device), edgewise.__version__
    return f"device {device.name!r}: {python} has no edgewise {version}: {_install(device)}"


def _install(device: Device) -> str:
    if device.ssh is not None and device.python is not None:
        return f"run `{device.python} -m pip install numpy onnxruntime tokenizers` there"
    if device.ssh is not None:
        return f"run `edgewise devices --clean {device.name}` and measure again, which installs it anew"
    root = Path(edgewise.__file__).resolve().parent.parent
    # From a source tree by its path: boards never take our wheel by name from an index.
    place = str(root) if (root / "pyproject.toml").is_file() else "PATH-TO-EDGEWISE-WHEEL"
    return f"run `{_interpreter(device)} -m pip install '{place}[worker]'`"


def _stderr(folder: Path) -> str:
    text = _read(folder / "stderr.txt").strip()
    return f"; it said last: {text[-_TAIL:]}" if text else ""


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def _keep(source: Path, target: Path) -> None:
    """Copy to a temporary name beside the target, then rename: the job folder may lie on another file system."""
    with disk_full_is_clear(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            shutil.copyfile(source, temporary)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
