"""Measuring over SSH, against a real sshd on loopback that runs as this user: what goes there, what comes back, and the
ways in which links, devices and workers fail."""

from __future__ import annotations

import fcntl
import getpass
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from edgewise import cli
from edgewise.bundle import MANIFEST, read_bundle, with_run
from edgewise.data import Row
from edgewise.errors import BundleChangedError, ProviderError, UserError, WorkerError
from edgewise.profiler import Store, Subject, measure_accuracy, measure_latency, ssh, there
from edgewise.profiler.measure import Rounds
from edgewise.profiler.plumbing import job_inputs
from edgewise.profiler.transport import Children, run_job
from edgewise.types import Device, RunSettings, Target, to_dict

SSHD = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/sbin")
pytestmark = pytest.mark.skipif(SSHD is None, reason="no sshd: `make sshd` installs openssh-server")
SHORT = Rounds(percentile="p50", width=0.9, min_rounds=2, max_rounds=2, seconds=0.02)
DESCRIBE = {"job": "describe"}


@dataclass(frozen=True)
class Board:
    """A machine that SSH reaches: this one, through its sshd."""

    keys: Path
    """Folder with the client's key and known_hosts."""
    port: int
    root: Path
    """Ours on the device."""
    temporary: Path
    """TMPDIR there, where the lock is."""

    def device(self, name: str = "board", **changes: Any) -> Device:
        device = Device(
            name,
            sys.executable,
            ssh=f"{getpass.getuser()}@127.0.0.1:{self.port}",
            identity=str(self.keys / "client"),
            known_hosts=str(self.keys / "known_hosts"),
            folder=str(self.root),
        )
        return replace(device, **changes)

    def knows(self, port: int, key: str = "host.pub") -> None:
        """Write a key down as that of a port."""
        kind, public, *_ = (self.keys / key).read_text().split()
        with (self.keys / "known_hosts").open("a") as file:
            file.write(f"[127.0.0.1]:{port} {kind} {public}\n")


StartBoard = Callable[..., Board]


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


@pytest.fixture(scope="module")
def start_board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartBoard]:
    """Starts servers; their sessions have the environment, and may write no file above the limit, in bytes."""
    running: list[subprocess.Popen[bytes]] = []
    keys = tmp_path_factory.mktemp("keys")
    for name in ("host", "other", "client", "stranger"):
        make = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(keys / name)]
        subprocess.run(make, check=True)
    if os.getuid() == 0:  # Debian's init script makes it; sshd started by root insists on it
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)

    def start(environment: Mapping[str, str] = {}, file_limit: int | None = None) -> Board:
        folder = tmp_path_factory.mktemp("board")
        board = Board(keys, free_port(), folder / "edgewise", folder / "tmp")
        board.temporary.mkdir()
        (folder / "home").mkdir()  # a home of its own: what the user's shell reads there may change PATH
        shutil.copy(keys / "client.pub", folder / "authorized_keys")
        path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
        variables = {"TMPDIR": str(board.temporary), "HOME": str(folder / "home"), "PATH": path, **environment}
        (folder / "sshd_config").write_text(
            f"Port {board.port}\nListenAddress 127.0.0.1\nHostKey {keys / 'host'}\nPidFile none\nStrictModes no\n"
            f"AuthorizedKeysFile {folder / 'authorized_keys'}\nUsePAM no\nPasswordAuthentication no\n"
            f"KbdInteractiveAuthentication no\nSetEnv {' '.join(f'{k}={v}' for k, v in variables.items())}\n"
        )
        with (folder / "sshd.log").open("wb") as log:
            command = [str(SSHD), "-D", "-e", "-f", str(folder / "sshd_config")]
            process = subprocess.Popen(command, stdout=log, stderr=log)
        running.append(process)
        if file_limit is not None:
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (file_limit, file_limit))
        end = time.monotonic() + 20
        while socket.socket().connect_ex(("127.0.0.1", board.port)):
            assert process.poll() is None, (folder / "sshd.log").read_text()
            assert time.monotonic() < end
            time.sleep(0.02)
        board.knows(board.port)
        return board

    yield start
    for process in running:
        for session in psutil.Process(process.pid).children():
            session.terminate()
        process.terminate()
        process.wait()


@pytest.fixture(scope="module")
def board(start_board: StartBoard) -> Board:
    return start_board()


class Proxy:
    """A line to a port that can be cut."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._open: list[socket.socket] = []
        self.connections = 0
        self.up = True
        self.cut_after: int | None = None
        """Bytes to the server, then the line is cut once."""
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            if not self.up:
                client.close()
                continue
            self.connections += 1
            server = socket.create_connection(("127.0.0.1", self._target))
            self._open += [client, server]
            threading.Thread(target=self._pump, args=(client, server, True), daemon=True).start()
            threading.Thread(target=self._pump, args=(server, client, False), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, upward: bool) -> None:
        passed = 0
        with suppress(OSError):
            while data := source.recv(65536):
                passed += len(data)
                if upward and self.cut_after is not None and passed > self.cut_after:
                    self.cut_after = None
                    self.cut()
                    return
                target.sendall(data)
        self._shut(source, target)

    def cut(self) -> None:
        self._shut(*self._open)
        self._open.clear()

    @staticmethod
    def _shut(*sockets: socket.socket) -> None:
        for one in sockets:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()


@pytest.fixture
def proxy(board: Board) -> Proxy:
    made = Proxy(board.port)
    board.knows(made.port)
    return made


def through(board: Board, proxy: Proxy, **changes: Any) -> Device:
    return board.device("far", ssh=f"{getpass.getuser()}@127.0.0.1:{proxy.port}", **changes)


def job_of(bundle: Path, kind: str = "latency", **changes: Any) -> dict[str, Any]:
    return {
        "job": kind,
        "bundle": str(bundle),
        "content_digest": read_bundle(bundle, verify="none").digest,
        "verify": "full",
        "run": to_dict(RunSettings(**changes.pop("run", {"max_length": 32}))),
        "warmup": {"calls": 3, "seconds": 0.01},
        "seconds": 0.05,
        "min_calls": 12,
        "placement": False,
        **changes,
    }


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """An interpreter that is this one, but for the worker, in whose place a script runs: the job's folder in $3."""
    path = tmp_path_factory.mktemp("fake") / "python"

    def make(script: str) -> str:
        other = f'exec {sys.executable} "$@"'
        path.write_text(f'#!/bin/sh\nif [ "$2" != edgewise.profiler.worker ]; then {other}; fi\n{script}\n')
        path.chmod(0o755)
        return str(path)

    return make


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "waited 30 s"
        time.sleep(0.02)


def jobs(board: Board) -> list[Path]:
    return sorted((board.root / "jobs").glob("*"))


def partials(board: Board) -> list[Path]:
    return sorted(board.root.glob(".partial-*"))


# ---- what runs there


def test_a_job_runs_there_as_it_does_here(board: Board, int8_bundle: Path, review_rows: tuple[Row, ...]) -> None:
    told: list[str] = []
    found = run_job(board.device(), job_of(int8_bundle), job_inputs(review_rows[:10]), say=told.append)
    assert found.calls is not None
    assert len(found.calls.ns) >= 12
    assert found.fingerprint["digest"] == run_job(Device(), DESCRIBE, []).fingerprint["digest"]
    assert found.startup_ns is not None
    phases = [found.startup_ns[n] for n in ("interpreter", "imports", "load", "session", "first", "other")]
    assert all(isinstance(p, int) and p > 0 for p in phases)  # stamped by the clock there, just before the start
    assert found.memory is not None
    assert (found.memory["end"].peak_rss or 0) < 350_000_000
    assert [t for t in told if t.startswith("pushing")] == told[-1:]
    assert jobs(board) == partials(board) == []


def test_answers_are_those_of_this_machine_and_the_wheel_is_all_that_is_there(
    board: Board, int8_bundle: Path, review_rows: tuple[Row, ...]
) -> None:
    job, inputs = job_of(int8_bundle, "accuracy"), job_inputs(review_rows[:20])
    assert run_job(board.device(), job, inputs).answers == run_job(Device(), job, inputs).answers
    names = [p.relative_to(board.root).as_posix() for p in board.root.rglob("*.py") if p.parent != board.root]
    assert any(name.endswith("edgewise/profiler/worker.py") for name in names)
    assert not [name for name in names if "/exporter/" in name or "/trainer/" in name or name.endswith("/ssh.py")]


def test_a_bundle_is_pushed_once_and_again_only_when_it_is_broken_there(
    board: Board, bundle_copy: Path, fake: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    def run() -> list[str]:
        monkeypatch.setattr(there, "THERE", {})  # as another process would
        told.clear()
        with pytest.raises(WorkerError, match="ended early"):  # what is pushed, not what is measured
            run_job(board.device(python=fake("exit 0")), job_of(bundle_copy), [], say=told.append)
        return [t for t in told if t.startswith("pushing")]

    run()
    assert run() == []
    with_run(read_bundle(bundle_copy), RunSettings(threads=2))  # the manifest changes, its digest does not
    assert run() == []
    place = board.root / "bundles" / read_bundle(bundle_copy).digest.removeprefix("sha256:")
    assert read_bundle(place).manifest.run.threads == 2
    graph = next((place / "onnx").iterdir())
    graph.write_bytes(graph.read_bytes()[:-1] + b"?")
    assert len(run()) == 1
    read_bundle(place)


def test_errors_keep_their_kind(board: Board, int8_bundle: Path, review_rows: tuple[Row, ...]) -> None:
    inputs = job_inputs(review_rows[:2])
    with pytest.raises(ProviderError, match="cuda"):
        run_job(board.device(), job_of(int8_bundle, run={"provider": "cuda"}), inputs)
    with pytest.raises(BundleChangedError, match="content digest"):
        run_job(board.device(), job_of(int8_bundle, content_digest="sha256:other"), inputs)


def test_a_bundle_that_changed_is_not_taken_in(
    board: Board, bundle_copy: Path, review_rows: tuple[Row, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of(bundle_copy)
    manifest = json.loads((bundle_copy / MANIFEST).read_text())
    (bundle_copy / "config.json").write_bytes(b"?" * manifest["files"]["config.json"]["size"])
    monkeypatch.setattr(there, "THERE", {})
    shutil.rmtree(board.root / "bundles", ignore_errors=True)
    with pytest.raises(BundleChangedError, match=r"config\.json differs"):
        run_job(board.device(), job, job_inputs(review_rows[:2]))
    assert list((board.root / "bundles").glob("*")) == partials(board) == []


def test_cores_hold_there(board: Board) -> None:
    found = run_job(board.device(cores=(0,)), DESCRIBE, [])
    assert found.fingerprint["usable_cores"] == 1
    with pytest.raises(UserError, match="core 4096 is not there"):
        run_job(board.device(cores=(4096,)), DESCRIBE, [])


# ---- the link is cut


def test_a_link_that_is_cut_while_the_worker_runs(
    board: Board, proxy: Proxy, int8_bundle: Path, review_rows: tuple[Row, ...], tmp_path: Path
) -> None:
    told: list[str] = []

    def cut() -> None:
        until(lambda: any((j / "running").exists() for j in jobs(board)))
        proxy.cut()

    cutter = threading.Thread(target=cut)
    cutter.start()
    job = job_of(int8_bundle, seconds=0.5)
    found = run_job(
        through(board, proxy), job, job_inputs(review_rows[:5]), say=told.append, keep=tmp_path / "kept.jsonl"
    )
    cutter.join()
    assert found.calls is not None
    assert sum(found.calls.ns) >= 0.3e9
    assert "the link to far was cut: connecting again" in told
    events = [json.loads(line)["event"] for line in (tmp_path / "kept.jsonl").read_text().splitlines()]
    assert events.count("start") == events.count("end") == 1  # the same worker, not a second one
    assert jobs(board) == []


def test_a_link_that_is_cut_in_the_middle_of_a_push(
    board: Board, proxy: Proxy, int8_bundle: Path, fake: Callable[[str], str]
) -> None:
    shutil.rmtree(board.root / "bundles", ignore_errors=True)
    proxy.cut_after = 2_000_000
    told: list[str] = []
    with pytest.raises(WorkerError, match="ended early"):  # it came so far that the worker, which does nothing, ran
        run_job(through(board, proxy, python=fake("exit 0")), job_of(int8_bundle), [], say=told.append)
    assert any("was cut" in t for t in told)
    until(lambda: partials(board) == [])
    (place,) = (board.root / "bundles").iterdir()
    read_bundle(place)


def test_a_link_that_stays_cut_is_a_worker_error(
    board: Board, proxy: Proxy, fake: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(there, "PATIENCE_S", 0.3)
    monkeypatch.setattr(ssh, "_KILL_S", 0.2)

    def cut() -> None:
        until(lambda: any((j / "running").exists() for j in jobs(board)))
        proxy.up = False
        proxy.cut()

    cutter = threading.Thread(target=cut)
    cutter.start()
    with pytest.raises(WorkerError, match=r"'far': the link was cut and did not come back in 0\.3 s"):
        run_job(through(board, proxy, python=fake("sleep 1")), DESCRIBE, [])
    cutter.join()
    until(lambda: all((j / "exit.json").exists() for j in jobs(board)))  # it ends by itself
    shutil.rmtree(board.root / "jobs")


# ---- one at a time


def test_a_timed_job_waits_for_the_one_that_runs_and_says_so(
    board: Board, int8_bundle: Path, review_rows: tuple[Row, ...]
) -> None:
    job, inputs, told = job_of(int8_bundle), job_inputs(review_rows[:2]), list[str]()
    run = partial(run_job, board.device(), job, inputs, say=told.append)
    (board.temporary / "edgewise-device.lock").write_text(f"of {getpass.getuser()}, process 4194304, since 00:00:00")
    run()
    assert not any("waiting" in t for t in told)  # what the lock's file says of a process that is gone stops nobody
    told.clear()
    with (board.temporary / "edgewise-device.lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        thread = threading.Thread(target=run)
        thread.start()
        until(lambda: told)
        assert told[0].startswith(f"waiting for the device: another measurement runs there (of {getpass.getuser()}, ")
        assert not [j for j in jobs(board) if (j / "running").exists()]
        run_job(board.device(), DESCRIBE, [])  # disturbs nothing, and waits for nothing
    thread.join(60)
    assert not thread.is_alive()


# ---- workers that break


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo oh dear >&2; kill -9 $$", "signal 9.*memory.*oh dear"),
        ("echo broken pipe >&2; exit 3", "exit code 3.*broken pipe"),
        ("printf 'garbage\\nmore\\n' > $3/results.jsonl", "garbage"),
        ("exit 130", "was interrupted"),
        ("kill -9 $PPID; exec sleep 0.3", "did not come to its end: what started it was killed"),
    ],
)
def test_a_worker_that_breaks_there(board: Board, fake: Callable[[str], str], script: str, words: str) -> None:
    import re

    with pytest.raises(WorkerError) as caught:
        run_job(board.device(python=fake(script)), DESCRIBE, [])
    assert re.search(words, str(caught.value), re.DOTALL)
    until(lambda: jobs(board) == [])


def test_a_worker_that_hangs_there_is_killed(board: Board, fake: Callable[[str], str], tmp_path: Path) -> None:
    device = board.device(python=fake(f"echo $$ > {tmp_path}/pid; echo waiting >&2; exec sleep 300"))
    with pytest.raises(WorkerError, match=r"killed after 0.5 s without an end.*waiting"):
        run_job(device, DESCRIBE, [], timeout_s=0.5)
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))


def test_an_interrupted_run_kills_the_worker_there(board: Board, fake: Callable[[str], str], tmp_path: Path) -> None:
    device, children = board.device(python=fake(f"echo $$ > {tmp_path}/pid; exec sleep 300")), Children()
    caught: list[str] = []

    def run() -> None:
        try:
            run_job(device, DESCRIBE, [], children=children)
        except WorkerError as error:
            caught.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip())
    children.kill_all()
    thread.join(30)
    assert caught == ["the worker was killed: this run was interrupted"]
    until(lambda: not psutil.pid_exists(int((tmp_path / "pid").read_text())))
    assert jobs(board) == []
    run()
    assert len(caught) == 2


# ---- devices that cannot be used


def test_a_host_key_that_is_not_the_known_one_is_refused(board: Board, tmp_path: Path) -> None:
    fingerprint = subprocess.run(
        ["ssh-keygen", "-lf", str(board.keys / "host.pub")], capture_output=True, text=True, check=True
    ).stdout.split()[1]
    known = tmp_path / "known_hosts"
    known.write_text("")
    with pytest.raises(UserError) as unknown:
        run_job(board.device("pi", known_hosts=str(known)), DESCRIBE, [])
    kind, public, *_ = (board.keys / "other.pub").read_text().split()
    known.write_text(f"[127.0.0.1]:{board.port} {kind} {public}\n")
    with pytest.raises(UserError) as wrong:
        run_job(board.device("pi", known_hosts=str(known)), DESCRIBE, [])
    for caught, words in ((unknown, f"is not in {known}"), (wrong, "has another host key than")):
        for part in ("device 'pi'", f"127.0.0.1:{board.port}", fingerprint, words):
            assert part in str(caught.value)
    assert f"ssh-keygen -f {known} -R '[127.0.0.1]:{board.port}'" in str(wrong.value)
    assert known.read_text().count("\n") == 1  # nothing is written down by us


def test_a_host_that_has_no_key_of_the_known_kind_is_refused(board: Board, tmp_path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ecdsa", "-N", "", "-f", str(tmp_path / "ec")], check=True)
    kind, public, *_ = (tmp_path / "ec.pub").read_text().split()
    known = tmp_path / "known_hosts"
    known.write_text(f"[127.0.0.1]:{board.port} {kind} {public}\n")
    with pytest.raises(UserError, match=r"has another host key than.*SHA256:"):
        run_job(board.device("pi", known_hosts=str(known)), DESCRIBE, [])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"identity": "KEYS/stranger"}, r"'pi': .*127\.0\.0\.1.* does not let us in: .*ssh -o BatchMode=yes -p \d+ "),
        ({"identity": "KEYS/none"}, r"identity is '.*/none': No such file"),
        ({"identity": "KEYS/known_hosts"}, r"identity .*/known_hosts cannot be used"),
        ({"known_hosts": "KEYS/none"}, r"known_hosts is '.*/none': No such file"),
        ({"ssh": "127.0.0.1:1"}, r"'pi': cannot reach 127\.0\.0\.1:1: "),
        ({"ssh": "no-such-host.invalid"}, r"cannot reach no-such-host\.invalid: "),
        ({"python": "/no/such/python"}, r"interpreter '/no/such/python' does not start: No such file"),
        ({"folder": "KEYS/client.pub/x"}, r"its folder cannot be made.*or name another folder"),
    ],
)
def test_a_device_that_cannot_be_used_is_one_clear_error(board: Board, changes: dict[str, str], words: str) -> None:
    changes = {name: text.replace("KEYS", str(board.keys)) for name, text in changes.items()}
    with pytest.raises(UserError, match=words) as caught:
        run_job(board.device("pi", **changes), DESCRIBE, [])
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("verb", [["devices"], ["devices", "board"], ["devices", "--clean", "board"]])
def test_a_folder_that_is_not_ours_is_left_as_it_is(
    board: Board, inventory: Path, tmp_path: Path, verb: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "home"
    inventory.write_text(inventory.read_text().replace(str(board.root), str(home)))
    theirs = [home / name / "file.txt" for name in ("jobs/thesis", "bundles", "venv-project", "edgewise-notes")]
    for file in theirs:
        file.parent.mkdir(parents=True)
        file.write_text("mine")
        os.utime(file.parent, (0, 0))
    assert cli.main(verb) in (2, 4)
    told = capsys.readouterr()
    words = f"its folder is not empty, and not edgewise's own: name one that is empty or not there, such as {home}/"
    assert words in told.out + told.err
    assert all(file.read_text() == "mine" for file in theirs)
    assert sorted(p.name for p in home.iterdir()) == ["bundles", "edgewise-notes", "jobs", "venv-project"]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda root: (root / "remote-0123456789abcdef.py").touch(), None),  # of a version without the mark
        (lambda root: (root / ".edgewise").mkdir(), "not empty, and not edgewise's own"),
        (lambda root: (root / ".edgewise").write_text("mine"), "not empty, and not edgewise's own"),
        (lambda root: (root / ".edgewise").symlink_to(root.parent / "mine.txt"), "not empty, and not edgewise's own"),
        (lambda root: (root / "..mine").touch(), "not empty, and not edgewise's own"),
    ],
)
def test_only_a_mark_of_ours_makes_a_folder_ours(
    board: Board, tmp_path: Path, make: Callable[[Path], Any], words: str | None
) -> None:
    root = tmp_path / "folder"
    root.mkdir()
    (tmp_path / "mine.txt").write_text("mine")
    make(root)
    if words is None:
        run_job(board.device("pi", folder=str(root)), DESCRIBE, [])
    else:
        with pytest.raises(UserError, match=words):
            run_job(board.device("pi", folder=str(root)), DESCRIBE, [])
    assert (tmp_path / "mine.txt").read_text() == "mine"


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="a folder that not even root can write")
def test_a_folder_that_cannot_be_written_is_one_clear_error(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgewise.profiler import ssh

    monkeypatch.setattr(ssh, "_GUARD", "")  # it is not empty either
    with pytest.raises(
        UserError, match=r"nothing can be written there.*give this user the right to write in /sys/kernel"
    ):
        run_job(board.device("pi", folder="/sys/kernel"), DESCRIBE, [])


def test_what_somebody_put_into_our_folder_stays(
    board: Board, inventory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_job(board.device(), DESCRIBE, [])
    theirs = [board.root / name / "file.txt" for name in ("jobs/thesis", "bundles", "venv-project", "edgewise-notes")]
    for file in theirs:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("mine")
        os.utime(file.parent, (0, 0))
    run_job(board.device(), DESCRIBE, [])
    assert cli.main(["devices", "--clean", "board"]) == 0
    assert "not ours and left: bundles, edgewise-notes, jobs, venv-project" in capsys.readouterr().out
    assert all(file.read_text() == "mine" for file in theirs)
    assert not list(board.root.glob("remote-*"))
    shutil.rmtree(board.root)  # for the next test


def test_a_device_without_python_and_one_without_pip(start_board: StartBoard, tmp_path: Path) -> None:
    for tool in ("sh", "mkdir", "head", "wc", "mv", "rm"):
        (tmp_path / tool).symlink_to(str(shutil.which(tool)))
    bare = start_board({"PATH": str(tmp_path)})
    with pytest.raises(UserError, match=r"no Python 3\.11 or newer: install one there"):
        run_job(bare.device(python=None), DESCRIBE, [])
    python = tmp_path / "python3"
    python.write_text(f'#!/bin/sh\n[ "$2" = pip ] && exit 1\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    (tmp_path / "house").mkdir()
    (tmp_path / "house" / "numpy-1-py3-none-any.whl").write_bytes(b"no wheel")
    with pytest.raises(UserError, match=r"pip fails: .*name a wheelhouse"):
        run_job(bare.device(python=None, wheelhouse=str(tmp_path / "house")), DESCRIBE, [])
    assert not list(bare.root.glob("venv-*/edgewise-ready"))


def test_a_device_whose_disk_is_full_in_the_middle_of_a_push(
    start_board: StartBoard, int8_bundle: Path, review_rows: tuple[Row, ...]
) -> None:
    small = start_board(file_limit=1_000_000)  # a write beyond fails, as one on a full disk does
    with pytest.raises(UserError, match=r"no space left: .*free some there.*--clean small"):
        run_job(small.device("small"), job_of(int8_bundle), job_inputs(review_rows[:2]))
    assert list((small.root / "bundles").glob("*")) == partials(small) == jobs(small) == []


# ---- the profiler and the command line


def test_devices_are_measured_side_by_side_and_one_that_is_gone_stops_no_other(
    board: Board, proxy: Proxy, int8_bundle: Path, review_rows: tuple[Row, ...], tmp_path: Path
) -> None:
    subject = Subject("tiny", "int8-dynamic", read_bundle(int8_bundle))
    gone = board.device("gone", ssh="127.0.0.1:1")
    devices = [board.device(), through(board, proxy), gone]
    targets = [Target(d.name, RunSettings(max_length=16)) for d in devices]
    with Store(tmp_path / "m.sqlite") as store:
        answered = measure_accuracy([subject], targets, review_rows[:12], store=store, devices=devices)
        timed = measure_latency([subject], targets, review_rows[:12], store=store, devices=devices, spec=SHORT)
        again = measure_latency([subject], targets[:2], review_rows[:12], store=store, devices=devices, spec=SHORT)
    for found in (answered[:3], timed):
        assert [m.status for m in found] == ["ok", "ok", "failed"], [m.reason for m in found]
        assert "'gone': cannot reach 127.0.0.1:1" in found[2].reason
    assert [m.id for m in again] == [m.id for m in timed[:2]]
    assert timed[1].conditions["device"]["ssh"] == devices[1].ssh
    assert len(timed[1].conditions["rounds"]["calls"]) == 2
    startup = timed[0].metric("startup")
    assert startup is not None
    assert startup.value is not None
    with Store(tmp_path / "n.sqlite") as store, pytest.raises(UserError, match="cannot reach"):
        measure_latency([subject], targets[2:], review_rows[:3], store=store, devices=devices, spec=SHORT)


@pytest.fixture
def inventory(board: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """devices.yaml in the working directory: a board, and one that is off."""
    d = board.device()
    (tmp_path / "devices.yaml").write_text(
        f"version: 1\ndevices:\n  - name: board\n    ssh: {d.ssh}\n    python: {d.python}\n    folder: {d.folder}\n"
        f"    identity: {d.identity}\n    known_hosts: {d.known_hosts}\n  - {{name: off, ssh: '127.0.0.1:1'}}\n"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path / "devices.yaml"


def test_the_devices_verb_lists_checks_and_cleans(
    board: Board, inventory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["devices", "--json"]) == 4
    here = json.loads(capsys.readouterr().out)
    checked, off = here["devices"]
    assert checked["fingerprint"]["digest"] == here["fingerprint"]["digest"]
    assert [t["provider"] for t in checked["providers"] if t["runs"]] == ["cpu"]
    assert "cannot reach 127.0.0.1:1" in off["why"]
    assert cli.main(["devices", "board"]) == 0
    assert "provider         cpu: runs" in capsys.readouterr().out
    assert cli.main(["devices", "of"]) == 2
    assert "unknown device 'of': did you mean 'off'?" in capsys.readouterr().err
    (board.root / "mine.txt").write_text("not ours")
    assert cli.main(["devices", "--clean", "board"]) == 0
    assert "not ours and left: mine.txt" in capsys.readouterr().out
    assert [p.name for p in board.root.iterdir()] == ["mine.txt"]
    (board.root / "mine.txt").unlink()
    assert cli.main(["devices", "--clean", "board"]) == 0
    assert not board.root.exists()
    run_job(board.device(), DESCRIBE, [])  # what was cleaned is put there again


def test_a_device_that_measures_is_not_cleaned(
    board: Board, inventory: Path, fake: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    device, children = board.device(python=fake("exec sleep 300")), Children()

    def run() -> None:
        with pytest.raises(WorkerError):
            run_job(device, DESCRIBE, [], children=children)

    thread = threading.Thread(target=run)
    thread.start()
    until(lambda: any((j / "running").exists() for j in jobs(board)))
    assert cli.main(["devices", "--clean", "board"]) == 2
    assert "a measurement is running there" in capsys.readouterr().err
    children.kill_all()
    thread.join(30)


def test_profile_measures_on_a_device_of_the_inventory(
    board: Board,
    inventory: Path,
    int8_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked: list[Any] = []

    def profile(subjects: Any, targets: Any, rows: Any, **settings: Any) -> list[Any]:
        asked.append((settings["devices"], [t.device for t in targets]))
        return []

    monkeypatch.setattr("edgewise.profiler.measure.profile", profile)
    (tmp_path / "rows.csv").write_text("text\n" + "".join(f"a film of {i} hours\n" for i in range(8)))
    command = ["profile", str(int8_bundle), "--data", str(tmp_path / "rows.csv"), "--max-length", "16"]
    command += ["--store", str(tmp_path / "m.sqlite")]
    assert cli.main([*command, "--device", "board,here", "--device", "off", "--threads", "1,2"]) == 0
    assert cli.main([*command, "--device", "board", "--cores", "0"]) == 0
    (devices, targets), (held, _) = asked
    assert devices == (board.device(), Device(), Device("off", ssh="127.0.0.1:1"))
    assert targets == ["board", "board", "here", "here", "off", "off"]
    assert held == (board.device("board-cores-0", cores=(0,)),)
    for wrong, words in (("board,here,here", "names one twice"), ("boar", "did you mean 'board'?")):
        assert cli.main([*command, "--device", wrong]) == 2
        assert words in capsys.readouterr().err
    assert cli.main([*command, "--device", "board", "--python", "python3"]) == 2
    assert "--python python3: it is one of this machine" in capsys.readouterr().err


# ---- a whole installation


@pytest.mark.slow  # asks the package index
@pytest.mark.parametrize("offline", [False, True])
def test_a_device_with_python_and_pip_alone_is_made_ready(
    start_board: StartBoard, int8_bundle: Path, review_rows: tuple[Row, ...], tmp_path: Path, offline: bool
) -> None:
    board = start_board()
    house = tmp_path / "house"
    if offline:
        wanted = ["numpy", "onnxruntime", "tokenizers"]
        constraints = Path(__file__).parents[2] / "constraints.txt"
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(house)]
        subprocess.run([*pip, "--constraint", str(constraints), *wanted], check=True)
    device = board.device(python=None, wheelhouse=str(house) if offline else None)
    told: list[str] = []
    job, inputs = job_of(int8_bundle), job_inputs(review_rows[:3])
    found = run_job(device, job, inputs, say=told.append)
    assert found.calls is not None
    assert any(t.startswith("installing numpy") for t in told)
    (environment,) = board.root.glob("venv-*")
    python = environment / "bin" / "python"
    names = ("torch", "edgewise", "datasets", "psutil")
    code = f"import importlib.util as u; print([m for m in {names} if u.find_spec(m)])"
    assert subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
    told.clear()
    run_job(device, job, inputs, say=told.append)
    assert told == []
