"""Another machine over SSH: puts edgewise, bundles and jobs there, waits for the worker and brings its files back.

`remote.py` is copied there and does what is done there. The worker runs apart from the link: when that is cut, it is
opened again and the job found by its id. Every step may be done twice, so a cut link only repeats one.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import shlex
import uuid
from collections.abc import AsyncIterator, Awaitable, Coroutine, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from edgewise.bundle import MANIFEST, read_bundle
from edgewise.errors import BundleChangedError, EdgewiseError, UserError, WorkerError
from edgewise.files import sha256_file
from edgewise.profiler import remote
from edgewise.profiler.device_wheel import installed_wheel
from edgewise.profiler.link import Connection, LinkCutError, where
from edgewise.profiler.session import Piece, RefusedError, run_session
from edgewise.profiler.tasks import Task, wait_for
from edgewise.profiler.there import Facts, There, script_name, there_of
from edgewise.progress import Say, no_words
from edgewise.types import Device

_KILL_S = 10.0
_AGAIN_S = 20.0
_LOCKS = {"latency": "exclusive", "accuracy": "shared"}
"""What is timed has the device to itself; answers may be asked side by side, but not beside what is timed."""

T = TypeVar("T")


@dataclass(frozen=True)
class Ended:
    """How a worker ended."""

    code: int
    late: bool = False
    """Killed when its time was over."""
    words: str = ""
    """What the device's memory group says of it."""


# ---- the calls: each blocks its thread, while one loop in the background moves the bytes of all devices


def run_there(device: Device, folder: Path, *, timeout_s: float, say: Say) -> Task:
    """Run the job in `folder` on the device and bring results.jsonl, stdout.txt and stderr.txt back; it gives `Ended`.

    timeout_s: of the worker, without the time for pushing and for its turn. say: what it waits for.

    The task raises UserError for a device that cannot be reached, trusted or made ready; WorkerError where the link
    stays cut or the launcher was killed; BundleChangedError.
    """
    return Task(_run(device, folder, timeout_s, say))


def check_there(device: Device, *, install: bool) -> Facts:
    """Connect, and see what stands there; with `install`, make the device ready. Raises as `run_there` does."""
    facts: Facts = wait_for(Task(_check(device, install)))
    return facts


def clean_there(device: Device) -> Mapping[str, Any]:
    """Remove what is ours there: {'freed': bytes, 'left': names of what is not ours}. Raises UserError."""
    found: Mapping[str, Any] = wait_for(Task(_clean(device)))
    return found


# ---- the steps


async def _run(device: Device, folder: Path, timeout_s: float, say: Say) -> Ended:
    there, job_id = there_of(device), uuid.uuid4().hex
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    with _clear(there):
        facts = await _ready(there, say)
        if "bundle" in job:
            job["bundle"] = await _pushed(there, _content(job), say)
        files = [(f.relative_to(folder).as_posix(), f) for f in sorted(folder.rglob("*")) if f.is_file()]
        pieces: list[Piece] = [(name, f) for name, f in files if name != "job.json"]
        pieces.append(("job.json", json.dumps(job).encode()))
        asked = {"id": job_id}
        whole = asked | {
            "python": facts.python,
            "edgewise": facts.edgewise,
            "timeout_s": timeout_s,
            "lock": _LOCKS.get(job["job"]),
            "device": device.name,
            "memory": device.memory,
            "cores": device.cores,
        }
        sent = False

        async def step(connection: Connection) -> dict[str, Any]:
            nonlocal sent
            if sent:
                answer = await there.ask(connection, "wait", asked, say=say, into=folder)
                if "unknown" not in answer:
                    return answer
            sent = True
            return await there.ask(connection, "start", whole, pieces, say=say, into=folder)

        try:
            return _ended(there, await there.steady(step, say))
        except (asyncio.CancelledError, EdgewiseError):
            if sent:
                with suppress(Exception):  # the link may be what is broken: a worker there ends when its time is over
                    async with asyncio.timeout(_KILL_S):
                        await there.steady(lambda c: there.ask(c, "kill", asked, say=say), say)
            raise


def _ended(there: There, answer: Mapping[str, Any]) -> Ended:
    if "user" in answer:
        raise UserError(f"{answer['user']} (on {where(there.device)})")
    if "code" in answer:
        return Ended(int(answer["code"]), bool(answer["late"]), str(answer["words"]))
    why = answer.get("why") or "what started it was killed, or the device was restarted"
    raise WorkerError(f"the worker on {where(there.device)} did not come to its end: {why}")


async def _check(device: Device, install: bool) -> Facts:
    there = there_of(device)
    with _clear(there):
        return await _ready(there, no_words, install=install)


async def _clean(device: Device) -> dict[str, Any]:
    there = there_of(device)
    with _clear(there):
        there.facts = await there.steady(lambda c: _hello(there, c), no_words)
        found = await there.steady(lambda c: there.ask(c, "clean", {}, say=no_words), no_words)
        there.facts = None
        there.bundles.clear()
        return found


async def _telling(what: str, work: Coroutine[Any, Any, T], say: Say) -> T:
    """Say what takes long, again and again until it is done: who looks on may have missed it."""
    task = asyncio.ensure_future(work)
    try:
        done = False
        while not done:
            say(what)
            done = bool((await asyncio.wait({task}, timeout=_AGAIN_S))[0])
        return await task
    finally:
        task.cancel()


async def _ready(there: There, say: Say, *, install: bool = True) -> Facts:
    """Make the device ready: our script, our wheel, an interpreter with what it needs. Once in this process."""
    async with there.preparing:
        if there.facts is None or there.facts.python is None:
            wheel = await asyncio.to_thread(installed_wheel)
            there.facts = await there.steady(lambda c: _hello(there, c), say)
            house = _wheelhouse(there.device)
            key = [wheel.requires, [(f.name, f.stat().st_size) for f in house], there.facts.version.rpartition(".")[0]]
            asked = {
                "wheel": wheel.digest,
                "python": there.device.python,
                "venv": f"venv-{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]}",
                "requires": wheel.requires,
                "offline": bool(house),
            }

            def prepare(connection: Connection) -> Awaitable[dict[str, Any]]:
                return there.ask(connection, "prepare", asked, [("edgewise.whl", wheel.data)], say=say)

            def fill(connection: Connection) -> Awaitable[dict[str, Any]]:
                return there.ask(connection, "packages", asked, [(f.name, f) for f in house], say=say)

            found = await there.steady(prepare, say)
            if "need" in found and install:
                what = f"making an environment on {there.device.name}: this takes minutes, once"
                await _telling(what, there.steady(fill, say), say)
                found = await there.steady(prepare, say)
            there.facts = _with(there.facts, found)
        return there.facts


def _with(facts: Facts, found: Mapping[str, Any]) -> Facts:
    return Facts(facts.root, facts.base, facts.version, found.get("python"), found["edgewise"])


def _wheelhouse(device: Device) -> list[Path]:
    if device.wheelhouse is None:
        return []
    found = sorted(Path(device.wheelhouse).expanduser().glob("*.whl"))
    if not found:
        raise UserError(
            f"device {device.name!r}: wheelhouse {device.wheelhouse} holds no wheels: `pip download` fills it"
        )
    return found


async def _hello(there: There, connection: Connection) -> Facts:
    """Find a Python there and leave our script; a plain shell is all that this needs."""
    source = Path(remote.__file__).read_bytes()

    async def once() -> AsyncIterator[bytes]:
        yield source

    found = await run_session(connection, _bootstrap(there, len(source)), once(), no_words, None)
    return Facts(found["root"], found["python"], found["version"])


_GUARD = """
  for file in "$root"/* "$root"/.[!.]* "$root"/..?*; do
    [ -e "$file" ] || [ -L "$file" ] || continue
    ours || say foreign "its folder is not empty, and not edgewise's own"
  done
"""


def _bootstrap(there: There, size: int) -> str:
    """The first command: which Python is there, and our script in its place, whole or not at all.

    A folder that somebody named must be empty, or ours already: in `/home/pi` stands what must not be touched.
    """
    mine = [there.device.python] if there.device.python else []
    pythons = " ".join(map(shlex.quote, [*mine, "python3", "python3.14", "python3.13", "python3.12", "python3.11"]))
    script = f"""
umask 077
home() {{ case $1 in "~/"*) printf '%s' "$HOME/${{1#"~/"}}" ;; *) printf '%s' "$1" ;; esac; }}
say() {{ printf '\\n%s{{"error": "%s", "message": "%s"}}\\n' '{remote.MARK}' "$1" "$2"; exit 1; }}
root=$(home {shlex.quote(there.root)})
own=$root/{remote.OWN}
ours() {{
  [ -f "$own" ] && [ ! -L "$own" ] && [ ! -s "$own" ] && return
  for left in "$root"/remote-????????????????.py; do [ -f "$left" ] && return; done
  return 1
}}
for python in {pythons}; do
  python=$(home "$python")
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue
  mkdir -p "$root" || say files "its folder cannot be made"
{"" if there.device.folder is None else _GUARD}  # In a shell of its own: a redirection that fails ends its shell.
  [ -e "$own" ] || (: > "$own") 2>/dev/null || say files "nothing can be written there"
  script=$root/{script_name()}
  if [ ! -s "$script" ]; then
    head -c {size} > "$script.$$" && [ "$(wc -c < "$script.$$")" -eq {size} ] && mv "$script.$$" "$script" ||
      {{ rm -f "$script.$$"; say files "our script cannot be written"; }}
  fi
  exec "$python" "$script" hello "$root" '{{}}'
done
say no-python "no Python 3.11 or newer"
"""
    return f"exec sh -c {shlex.quote(script)}"


@dataclass(frozen=True)
class _Content:
    """What a job measures, as it stands here."""

    path: Path
    digest: str
    files: Mapping[str, Mapping[str, Any]]
    """Name -> size and sha256, as they must be."""
    manifest: Path | None
    """Outside the digest: it goes again where it differs."""


def _content(job: Mapping[str, Any]) -> _Content:
    path, digest = Path(job["bundle"]), str(job["content_digest"]).removeprefix("sha256:")
    if "graph" in job:  # an ONNX file, and those of external data beside it
        sums: Mapping[str, str] = job["graph"]["files"]
        files = {name: {"size": (path.parent / name).stat().st_size, "sha256": s} for name, s in sums.items()}
        return _Content(path, digest, files, None)
    bundle = read_bundle(path, verify="none")
    files = {name: {"size": info.size, "sha256": info.sha256} for name, info in bundle.manifest.files.items()}
    return _Content(path, bundle.digest.removeprefix("sha256:"), files, path / MANIFEST)


async def _pushed(there: There, content: _Content, say: Say) -> str:
    """Where the bundle, or the ONNX file, is there; its files go over the link where they do not stand there whole."""
    assert there.facts is not None
    place = f"{there.facts.root}/bundles/{content.digest}"
    home, end = (content.path, "") if content.manifest else (content.path.parent, f"/{content.path.name}")
    manifest = sha256_file(content.manifest) if content.manifest else ""
    async with there.pushing:
        if there.bundles.get(content.digest) != manifest:
            asked = {"digest": content.digest, "files": content.files, "manifest": MANIFEST}
            pieces: list[Piece] = [(MANIFEST, content.manifest)] if content.manifest else []
            found = await there.steady(lambda c: there.ask(c, "have", asked, pieces, say=say), say)
            if not found["have"]:
                size = sum(info["size"] for info in content.files.values())
                whole = [*pieces, *((name, home / name) for name in content.files)]
                push = there.steady(lambda c: there.ask(c, "receive", asked, whole, say=say), say)
                await _telling(f"pushing {content.path.name} to {there.device.name}: {size / 1e6:.0f} MB", push, say)
            there.bundles[content.digest] = manifest
    return place + end


@contextmanager
def _clear(there: There) -> Iterator[None]:
    """Turn what the link or remote.py met into an error that names the device and the remedy."""
    try:
        yield
    except LinkCutError as cut:
        raise UserError(f"device {there.device.name!r}: {cut}") from cut
    except RefusedError as error:
        raise _refused(there.device, there.root, error) from error


def _refused(device: Device, root: str, error: RefusedError) -> EdgewiseError:
    other = "name by python one that has onnxruntime and tokenizers"
    remedies = {
        "space": f"free some there (`edgewise devices --clean {device.name}` removes ours), or name another folder",
        "files": f"give this user the right to write in {root}, or name another folder",
        "foreign": f"name one that is empty or not there, such as {root}/edgewise",
        "no-python": "install one there, or name it by python",
        "python": f"{other}, or none, and one is made",
        "venv": f"install the venv module there (python3-venv), or {other}",
        "no-pip": f"install pip there (python3-pip), or {other}",
        "pip": "see that pip reaches a package index there, or name a wheelhouse with wheels for it",
        "busy": "wait for its end",
    }
    here = where(device)
    if error.kind == "changed":
        return BundleChangedError(f"{error.message}; export or copy the bundle again")
    if error.kind not in remedies:
        return WorkerError(f"device {device.name!r} ({here}): {error.message}{error.told}")
    what = {"space": "no space left: ", "pip": "pip fails: "}.get(error.kind, "")
    words = f"{what}{error.message}: {remedies[error.kind]}{error.told}"
    return UserError(f"device {device.name!r} ({here}): {words}")
