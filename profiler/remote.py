"""What is copied to a device and runs there under its own Python, before edgewise is there: standard library alone.

    python remote.py VERB ROOT PARAMETERS       (JSON; see the verbs below)

It receives files, installs, starts the worker apart from the link, waits for its end and hands its files back. What it
says is lines of `MARK` and JSON on standard output: {"say": ...}, {"file": name, "size": n} with n bytes behind it, and
at the end {"answer": {...}} or {"error": kind, "message": ...}. Lines without the mark are noise of the login shell.

ROOT holds: edgewise-DIGEST (our wheel, unpacked), venv-KEY (what it needs), bundles/DIGEST, jobs/ID, these scripts,
and a file that says that the folder is ours. A folder appears whole, by a rename, or not at all.
"""

from __future__ import annotations

import errno
import getpass
import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

if sys.platform != "win32":  # the host reads the constants here, and may be anything
    import fcntl

MARK = "EDGEWISE> "
OWN = ".edgewise"
"""A file that marks ROOT as ours: put into a folder that was not there or empty, and nothing is done in one without."""
_OURS = {
    "edgewise-": r"edgewise-[0-9a-f]{16}",
    "venv-": r"venv-[0-9a-f]{16}",
    "bundles": r"[0-9a-f]{64}",
    "jobs": r"[0-9a-f]{32}",
    "script": r"remote-[0-9a-f]{16}\.py(\.\d+)?",
    "partial": r"\.partial-\d+-\w+",
    "rest": r"install\.lock|\.edgewise",
}
"""What ROOT, its bundles and its jobs may hold of ours, by its full name; nothing else is removed."""
RESULTS = ("results.jsonl", "stdout.txt", "stderr.txt")
"""The files of a job that go back."""
READY = "edgewise-ready"
_PARTIAL = ".partial-"
_CHUNK = 1 << 20
_TAIL = 64 << 10
_OLD_S = 3600.0
"""A job that ended so long ago, and whose host did not come back for it, is removed."""
_UNUSED_S = 30 * 86400.0
"""Versions of edgewise and environments that no run asked for in so long are removed."""
_TELL_AGAIN_S = 15.0

Parameters = Mapping[str, Any]


class TroubleError(Exception):
    """What the host must hear: a kind that it knows, and words."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def main(argv: list[str]) -> int:
    """Do one verb; 0 when there is an answer, 1 when there is an error."""
    os.umask(0o077)  # jobs hold texts of the data
    verb, root, given = argv[0], Path(argv[1]).expanduser(), json.loads(argv[2])
    try:
        answer = VERBS[verb](root, given)
    except TroubleError as trouble:
        _tell(error=trouble.kind, message=str(trouble))
    except EOFError:
        return 1  # the link was cut: nobody listens
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        left = f"; {shutil.disk_usage(root).free / 1e6:.0f} MB free" if root.exists() else ""
        _tell(error="space" if full else "files", message=f"{error}{left}")
    else:
        if answer is not None:
            _tell(answer=answer)
        return 0
    return 1


def _tell(**message: Any) -> None:
    sys.stdout.write(f"\n{MARK}{json.dumps(message)}\n")  # a newline first: the shell may have left a line open
    sys.stdout.flush()


# ---- what the host sends: lines of {"file": name, "size": n}, each with n bytes behind it, then {"end": true}


def _incoming(source: BinaryIO) -> Iterator[tuple[str, int]]:
    while True:
        line = source.readline()
        if not line.endswith(b"\n"):
            raise EOFError
        header = json.loads(line)
        if "end" in header:
            return
        name = str(header["file"])
        if name.startswith("/") or ".." in name.split("/"):
            raise TroubleError("files", f"a file named {name!r} would leave its folder")
        yield name, int(header["size"])


def _take(source: BinaryIO, path: Path, size: int) -> str:
    """Write `size` bytes into a file; their sha256."""
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        while size:
            chunk = source.read(min(_CHUNK, size))
            if not chunk:
                raise EOFError
            file.write(chunk)
            digest.update(chunk)
            size -= len(chunk)
        file.flush()
        os.fsync(file.fileno())  # a rename is no use where the bytes are not on the disk yet
    return digest.hexdigest()


@contextmanager
def _partial(root: Path) -> Iterator[Path]:
    """A folder that vanishes unless it was renamed; its name tells the process, so that the next one can sweep."""
    root.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=root, prefix=f"{_PARTIAL}{os.getpid()}-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _place(partial: Path, path: Path) -> bool:
    """Rename a folder into its place; False when another process was first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        partial.rename(path)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True


# ---- verbs: what stands there


def hello(root: Path, given: Parameters) -> dict[str, Any]:
    """Which Python this is."""
    return {"python": sys.executable, "version": "{}.{}.{}".format(*sys.version_info), "root": str(root)}


def prepare(root: Path, given: Parameters) -> dict[str, Any]:
    """Put edgewise's wheel in a folder of its own, and say which interpreter the worker runs in.

    wheel: digest; its bytes come in. python: the interpreter to take, or null for the environment `venv`.
    Answers {"need": "packages"} where that environment is not there yet.
    """
    _sweep(root)
    folder = root / f"edgewise-{given['wheel']}"
    for _, size in _incoming(sys.stdin.buffer):
        wheel = sys.stdin.buffer.read(size)
        if len(wheel) < size:
            raise EOFError
        if not folder.is_dir():
            with _partial(root) as partial, zipfile.ZipFile(io.BytesIO(wheel)) as archive:
                archive.extractall(partial / "wheel")
                _place(partial / "wheel", folder)
    os.utime(folder)
    if given["python"] is None:
        environment = root / given["venv"]
        if not (environment / READY).is_file():
            return {"need": "packages", "edgewise": str(folder)}
        os.utime(environment)
        python = str(environment / "bin" / "python")
    else:
        path = Path(given["python"]).expanduser()
        python = str(path.absolute()) if len(path.parts) > 1 else shutil.which(path) or str(path)
    compiled = folder / f"compiled-{hashlib.sha256(python.encode()).hexdigest()[:16]}"
    if not compiled.exists():
        _compile(python, folder)
        compiled.touch()
    return {"python": python, "edgewise": str(folder)}


def _compile(python: str, folder: Path) -> None:
    """As pip does after an installation, so that no measured start does it."""
    try:
        done = subprocess.run([python, "-m", "compileall", "-q", str(folder)], stdin=subprocess.DEVNULL, check=False)
    except OSError as error:
        raise TroubleError("python", f"interpreter {python!r} does not start: {error.strerror or error}") from error
    if done.returncode:
        raise TroubleError("python", f"interpreter {python!r} does not compile edgewise (exit code {done.returncode})")


def packages(root: Path, given: Parameters) -> dict[str, Any]:
    """Make the environment `venv` with `requires`, from the wheels that come in where `offline`, else as pip is set."""
    environment = root / given["venv"]
    with _partial(root) as house, (root / "install.lock").open("a") as lock:
        for name, size in _incoming(sys.stdin.buffer):
            _take(sys.stdin.buffer, house / name, size)
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (environment / READY).is_file():
            return {}  # another run was first
        shutil.rmtree(environment, ignore_errors=True)  # left by one that was killed
        source = ["--no-index", "--find-links", str(house)] if given["offline"] else []
        _tell(say=f"installing {', '.join(given['requires'])}")
        pip = [*_environment(environment), "--disable-pip-version-check", "install", "--no-input", "--quiet"]
        _run([*pip, *source, *given["requires"]], "pip")
        (environment / READY).touch()
    return {}


def _environment(folder: Path) -> list[str]:
    """A new environment, and the pip that fills it: that of this Python, or one that Python brings along."""
    _run([sys.executable, "-m", "venv", "--without-pip", str(folder)], "venv")
    python = str(folder / "bin" / "python")
    told = subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True, text=True, check=False)
    words = told.stdout.split()
    if told.returncode == 0 and len(words) > 1 and tuple(map(int, words[1].split(".")[:2])) >= (22, 3):
        return [sys.executable, "-m", "pip", "--python", python]
    _run([python, "-m", "ensurepip"], "no-pip")
    return [python, "-m", "pip"]


def _run(command: list[str], kind: str) -> None:
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode:
        full = "No space left" in done.stdout
        raise TroubleError(
            "space" if full else kind, " ".join(done.stdout.split())[-1500:] or f"exit {done.returncode}"
        )


def have(root: Path, given: Parameters) -> dict[str, Any]:
    """Whether bundle `digest` stands there whole: size and sha256 of every file, as `files` has them.

    What is not whole is removed. Its manifest, which comes in, takes the place of the one that stands there: run
    settings are no part of the digest.
    """
    folder = _bundle(root, given)
    manifests = [sys.stdin.buffer.read(size) for _, size in _incoming(sys.stdin.buffer)]
    if not folder.is_dir():
        return {"have": False}
    for name, info in given["files"].items():
        file = folder / name
        if not file.is_file() or file.stat().st_size != info["size"] or _sha256(file) != info["sha256"]:
            shutil.rmtree(folder)
            return {"have": False}
    for manifest in manifests:
        file = folder / given["manifest"]
        if not file.is_file() or file.read_bytes() != manifest:
            temporary = file.with_name(f".{file.name}.{os.getpid()}")
            temporary.write_bytes(manifest)
            temporary.replace(file)
    return {"have": True, "path": str(folder)}


def receive(root: Path, given: Parameters) -> dict[str, Any]:
    """Take bundle `digest` in: all of its files, each with the sha256 that `files` says, or nothing."""
    folder = _bundle(root, given)
    files = given["files"]
    root.mkdir(parents=True, exist_ok=True)
    needed, free = sum(info["size"] for info in files.values()), shutil.disk_usage(root).free
    if free < needed:
        raise TroubleError("space", f"{needed / 1e6:.0f} MB needed, {free / 1e6:.0f} MB free in {root}")
    with _partial(root) as partial:
        for name, size in _incoming(sys.stdin.buffer):
            found = _take(sys.stdin.buffer, partial / "bundle" / name, size)
            if name in files and found != files[name]["sha256"]:
                raise TroubleError("changed", f"{name} differs from the manifest")
        missing = [name for name in files if not (partial / "bundle" / name).is_file()]
        if missing:
            raise TroubleError("changed", f"{missing[0]} did not come")
        _place(partial / "bundle", folder)
    return {"path": str(folder)}


def _bundle(root: Path, given: Parameters) -> Path:
    return root / "bundles" / str(given["digest"])


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def clean(root: Path, given: Parameters) -> dict[str, Any]:
    """Remove what is ours in ROOT, and ROOT where nothing else is in it. Refused while a job runs there."""
    running = [job.name for job in _jobs(root) if _runs(job)]
    if running:
        raise TroubleError("busy", f"a measurement is running there (job {running[0]})")
    freed = 0
    for path in [*_jobs(root), *_named("bundles", root / "bundles"), *_in_root(root)]:
        freed += sum(f.lstat().st_size for f in [path, *path.rglob("*")] if f.is_file())
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    for parent in ("jobs", "bundles"):
        with suppress(OSError):  # not there, or something else is in it
            (root / parent).rmdir()
    left = sorted(p.name for p in root.iterdir()) if root.is_dir() else []
    if root.is_dir() and not left:
        root.rmdir()
    return {"freed": freed, "left": left}


def _named(kind: str, folder: Path) -> list[Path]:
    """What has a name that only we give."""
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(p for p in found if re.fullmatch(_OURS[kind], p.name))


def _in_root(root: Path) -> list[Path]:
    return [p for kind in _OURS if kind not in ("bundles", "jobs") for p in _named(kind, root)]


def _sweep(root: Path) -> None:
    """Remove what killed processes left, half folders and jobs that nobody came back for; and old versions of ours."""
    for left in _named("partial", root):
        owner = left.name.removeprefix(_PARTIAL).partition("-")[0]
        if owner.isdigit() and not _alive(int(owner)):
            shutil.rmtree(left, ignore_errors=True)
    for unused in (*_named("edgewise-", root), *_named("venv-", root)):
        with suppress(OSError):
            if time.time() - unused.stat().st_mtime > _UNUSED_S:
                shutil.rmtree(unused, ignore_errors=True)
    for job in _jobs(root):
        with suppress(OSError):
            if time.time() - job.stat().st_mtime > _OLD_S and not _runs(job):
                shutil.rmtree(job, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


# ---- verbs: a job. Its process holds a lock on jobs/ID/alive until its end, however it ends, so that waiting for it is
# waiting for a lock: in the kernel, without a look at the clock that would disturb what is measured.


def start(root: Path, given: Parameters) -> None:
    """Take job `id` in, start its worker apart from the link, and wait. Done again, it only waits.

    python, edgewise: as `prepare` said. timeout_s: of the worker. lock: 'exclusive' where it is timed, 'shared' for
    those that may run side by side, null where it disturbs nothing. device, memory, cores: see edgewise.types.Device.
    """
    job = root / "jobs" / given["id"]
    with _partial(root) as partial:
        for name, size in _incoming(sys.stdin.buffer):
            _take(sys.stdin.buffer, partial / "job" / name, size)
        alive = os.open(partial / "job" / "alive", os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(alive, fcntl.LOCK_EX)
        if _place(partial / "job", job) and os.fork() == 0:
            _launch(job, given, alive)  # does not return
        os.close(alive)
    _hand_back(job)


def wait(root: Path, given: Parameters) -> None:
    """Wait for the end of job `id`, hand back its files, and remove it once the host has them.

    Answers {"unknown": true} for a job that never came whole, {"lost": true} for one whose launcher did not live to
    say how the worker ended, else what the launcher wrote.
    """
    list(_incoming(sys.stdin.buffer))
    job = root / "jobs" / given["id"]
    if job.is_dir():
        _hand_back(job)
    else:
        _tell(answer={"unknown": True})


def _hand_back(job: Path) -> None:
    _await_end(job)
    answer: dict[str, Any] = {"lost": True}
    with suppress(OSError, ValueError):
        answer = json.loads((job / "exit.json").read_text())
    for name in RESULTS:
        with suppress(FileNotFoundError):
            data = (job / name).read_bytes()
            data = data if name == RESULTS[0] else data[-_TAIL:]
            _tell(file=name, size=len(data))
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
    _tell(answer=answer)
    if sys.stdin.buffer.readline() == b"got\n":
        shutil.rmtree(job, ignore_errors=True)


def _await_end(job: Path) -> None:
    told = 0.0
    with (job / "alive").open("rb") as alive:
        while not (job / "running").exists():
            try:
                fcntl.flock(alive, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                queued = job / "queued"
                if queued.exists() and time.monotonic() - told > _TELL_AGAIN_S:
                    told = time.monotonic()
                    _tell(say=f"waiting for the device: {queued.read_text()}")
                time.sleep(0.5 if told else 0.02)
            else:
                return
        fcntl.flock(alive, fcntl.LOCK_SH)


def kill(root: Path, given: Parameters) -> dict[str, Any]:
    """End job `id` and remove it."""
    job = root / "jobs" / given["id"]
    while _runs(job):
        with suppress(OSError, ValueError):  # no number there yet: it was started just now
            os.killpg(int((job / "pid").read_text()), signal.SIGKILL)
        time.sleep(0.02)
    shutil.rmtree(job, ignore_errors=True)
    return {}


def _jobs(root: Path) -> list[Path]:
    return _named("jobs", root / "jobs")


def _runs(job: Path) -> bool:
    try:
        with (job / "alive").open("rb") as alive:
            fcntl.flock(alive, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _launch(job: Path, given: Parameters, alive: int) -> None:
    """In a session of its own, with nothing of the link: take the device's lock, run the worker, say how it ended."""
    try:
        os.setsid()
        (job / "pid").write_text(str(os.getpid()))
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        lock = _device_lock(given["lock"], job)
        _write(job / "exit.json", _work(job, given, [alive, *lock]))
    except TroubleError as trouble:
        _write(job / "exit.json", {trouble.kind: str(trouble)})
    except BaseException as error:
        with suppress(OSError):
            _write(job / "exit.json", {"why": f"{type(error).__name__}: {error}"})
    finally:
        os._exit(0)


def _work(job: Path, given: Parameters, keep: list[int]) -> dict[str, Any]:
    """Run the worker; {"code": exit code or minus its signal, "late": ..., "words": why it was killed, if known}."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONIOENCODING": "utf-8", "PYTHONPATH": given["edgewise"]}
    for name in ("PYTHONHOME", "VIRTUAL_ENV"):
        environment.pop(name, None)
    with (
        (job / "stdout.txt").open("wb") as out,
        (job / "stderr.txt").open("wb") as err,
        _room(given, job.name, keep) as room,
    ):
        (job / "running").touch()
        (job / "queued").unlink(missing_ok=True)
        command = [given["python"], "-m", "edgewise.profiler.worker", str(job)]
        try:
            process = room.start(command, cwd=job, environment=environment, out=out, err=err)
        except OSError as error:
            return {"user": f"interpreter {given['python']!r} does not start: {error.strerror or error}"}
        late = False

        def give_up(number: int, frame: Any) -> None:
            nonlocal late
            late = True
            process.kill()

        # An alarm, since Popen.wait(timeout) looks at the clock twenty times a second.
        signal.signal(signal.SIGALRM, give_up)
        signal.setitimer(signal.ITIMER_REAL, given["timeout_s"])
        code = process.wait()
        signal.setitimer(signal.ITIMER_REAL, 0)
        return {"code": code, "late": late, "words": room.pressure() if late else room.why_killed(code)}


class _Plain:
    """Where a worker runs that has the whole machine; `edgewise.profiler.confine.Room` is where it does not."""

    def __init__(self, keep: list[int]) -> None:
        self._keep = keep

    def start(
        self, command: list[str], *, cwd: Path, environment: dict[str, str], out: BinaryIO, err: BinaryIO
    ) -> subprocess.Popen[bytes]:
        # This machine's clock, just before the start. The locks are held while the worker lives, whatever becomes of
        # this process.
        stamped = {**environment, "EDGEWISE_SPAWNED_NS": str(time.monotonic_ns())}
        return subprocess.Popen(
            command, cwd=cwd, env=stamped, stdin=subprocess.DEVNULL, stdout=out, stderr=err, pass_fds=self._keep
        )

    def why_killed(self, code: int) -> str:
        return ""

    def pressure(self) -> str:
        return ""


@contextmanager
def _room(given: Parameters, name: str, keep: list[int]) -> Iterator[Any]:
    if given["memory"] is None and given["cores"] is None:
        yield _Plain(keep)
        return
    sys.path.insert(0, given["edgewise"])
    from edgewise.errors import UserError
    from edgewise.profiler.confine import confined
    from edgewise.types import Device

    cores = None if given["cores"] is None else tuple(given["cores"])
    try:
        with confined(Device(given["device"], memory=given["memory"], cores=cores), f"edgewise-job-{name}") as room:
            yield room
    except UserError as error:
        raise TroubleError("user", str(error)) from error


def _device_lock(kind: str | None, job: Path) -> list[int]:
    """Hold the machine's lock: one timed measurement at a time, of whichever user, folder and host.

    The kernel frees it when the last process that holds it is gone, so no stale one stays behind.
    """
    if kind is None:
        return []
    lock = _open_lock(Path(tempfile.gettempdir()) / "edgewise-device.lock")
    how = fcntl.LOCK_EX if kind == "exclusive" else fcntl.LOCK_SH
    try:
        fcntl.flock(lock, how | fcntl.LOCK_NB)
    except BlockingIOError:
        held = os.pread(lock, 200, 0).decode(errors="replace").strip()
        _write_text(job / "queued", f"another measurement runs there{f' ({held})' if held else ''}")
        fcntl.flock(lock, how)
    with suppress(OSError):  # another user's file can be locked, but not written
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"of {getpass.getuser()}, process {os.getpid()}, since {time.strftime('%H:%M:%S')}".encode(), 0)
    return [lock]


def _open_lock(path: Path) -> int:
    # Without O_CREAT first: in a sticky folder the kernel refuses to create over a file of another user.
    for flags in (os.O_RDWR, os.O_RDWR | os.O_CREAT | os.O_EXCL, os.O_RDWR, os.O_RDONLY):
        try:
            lock = os.open(path, flags | os.O_NOFOLLOW, 0o666)
        except (FileNotFoundError, FileExistsError, PermissionError):
            continue
        if flags & os.O_CREAT:
            os.fchmod(lock, 0o666)
        return lock
    raise PermissionError(errno.EACCES, "the device's lock cannot be opened", str(path))


def _write(path: Path, value: Any) -> None:
    _write_text(path, json.dumps(value))


def _write_text(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(text)
    temporary.replace(path)


VERBS: dict[str, Callable[[Path, Parameters], dict[str, Any] | None]] = {
    "hello": hello,
    "prepare": prepare,
    "packages": packages,
    "have": have,
    "receive": receive,
    "start": start,
    "wait": wait,
    "kill": kill,
    "clean": clean,
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
