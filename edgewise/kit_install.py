"""Installs a kit that `edgewise pack` made. It goes into the kit as install.py; the standard library is all it needs.

    python3.11 kit.zip --prefix /opt/answers                installs; the kit may be unpacked, or not
    python3.11 kit.zip --prefix /opt/answers --rollback     goes back to the kit before
    python3.11 kit.zip --prefix /opt/answers --prune        removes all kits but the current one and the one before

PREFIX holds: kits/ID (one folder a kit, which needs nothing outside of it), current (a link to one of them), history.
A folder appears whole, by a rename; `current` moves, in one step, to a kit that has answered its golden inputs here.
No network, no pip: a wheel is a zip file, and each one's hash and tags are checked. Parses in Python 3.7 and later, so
that an older one can be told which Python the kit is for.
"""

from __future__ import annotations

import argparse
import compileall
import errno
import hashlib
import io
import json
import os
import platform
import re
import shlex
import shutil
import struct
import subprocess
import sys
import sysconfig
import zipfile
import zlib
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

TYPE_CHECKING = False
if TYPE_CHECKING:  # the names alone: typing costs a start on a small board 20 ms
    from collections.abc import Iterator, Mapping
    from typing import Any

FORMAT = "1"
"""Of kit.json: the major version that this script reads."""
MANIFEST = "kit.json"
_LEGACY = {"manylinux1": (2, 5), "manylinux2010": (2, 12), "manylinux2014": (2, 17)}
"""Platform tags of wheels from before they named their glibc (PEP 600)."""
_LAUNCHER = """#!/bin/sh
'''exec' {python} -I -S "$0" "$@"
' '''
# Answers with the bundle beside this file, as `edgewise run BUNDLE` does. A shell runs the second line alone: the path
# of a Python may hold a space or be long, which a first line cannot.
import os
import sys

here = os.path.dirname(os.path.realpath(__file__))
sys.path.insert(0, os.path.join(here, "site"))
from edgewise.cli import main

sys.exit(main(["run", os.path.join(here, "bundle"), *sys.argv[1:]]))
"""
_LONGEST_S = 1800
"""A smoke test that has not ended after so long has failed."""


class InstallError(Exception):
    """What the person at the device must hear. code: 2, or 1 for a kit that does not answer as it should."""

    def __init__(self, message: str, code: int = 2) -> None:
        super().__init__(message)
        self.code = code


def main(argv: list[str] | None = None) -> int:
    """Install, or go back; returns the exit code: 0 done, 1 the smoke test failed, 2 the user's, 130 interrupted."""
    parser = argparse.ArgumentParser(
        prog="install", description="Install this kit beside older ones, and switch to it when its smoke test passes."
    )
    parser.add_argument("--prefix", required=True, type=Path, help="folder for all kits; what runs is PREFIX/current")
    other = parser.add_mutually_exclusive_group()
    other.add_argument("--rollback", action="store_true", help="go back to the kit that was current before")
    other.add_argument(
        "--prune", action="store_true", help="remove all kits but the current one and the one that was so before"
    )
    args = parser.parse_args(argv)
    prefix = args.prefix.expanduser().absolute()
    try:
        if args.rollback:
            rollback(prefix)
        elif args.prune:
            prune(prefix)
        else:
            install(Path(__file__).absolute().parent, prefix)
    except InstallError as error:
        print(f"install: error: {error}", file=sys.stderr)
        return error.code
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        why = f"no space left in {prefix}" if full else f"{error.filename or prefix}: {error.strerror or error}"
        print(f"install: error: {why}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("install: interrupted; start the same command again", file=sys.stderr)
        return 130
    return 0


# ---- the steps


def install(kit: Path, prefix: Path) -> None:
    """Check the kit, put it under kits/ID, test it there, and make it current. kit: a zip file or a folder."""
    with _opened(kit) as (text, open_file):
        told = _read_manifest(text)
        why = misfit(told, this_machine())
        if why:
            raise InstallError(why)
        _verify(told["files"], open_file)
        name = hashlib.sha256(text).hexdigest()[:12]
        with _locked(prefix):
            final = prefix / "kits" / name
            if final.is_dir() and not _smoke(final, told):
                print(f"kits/{name} is there already")
            else:
                _add(told, text, open_file, prefix, final)
            _switch(prefix, name)
            past = _history(prefix)
            if past[-1:] != [name]:
                _write_history(prefix, [*past, name])
    print(f"current is kits/{name}, {told['content_digest']}\nanswer with {prefix}/current/run")


def _add(told: Mapping[str, Any], text: bytes, open_file: Any, prefix: Path, final: Path) -> None:
    """Make the folder `final`, whole and tested, or raise InstallError and leave nothing."""
    _check_room(prefix, told)
    with _partial(prefix) as partial:
        _unpack(told, text, open_file, partial, final)
        why = _smoke(partial, told)
        if why:
            left = _current(prefix)
            stays = f"kits/{left} stays current" if left else "no kit is current"
            raise InstallError(f"the smoke test failed, and {stays}: {why}", code=1)
        os.sync()  # a rename is no use where the bytes are not on the disk yet
        if final.exists():  # it stood there, but failed its test: damaged since
            final.rename(partial.parent / "old")
        partial.rename(final)


def rollback(prefix: Path) -> None:
    """Make the kit current that was so before; no test, since it passed here and may be needed at once."""
    _check_installed(prefix)
    with _locked(prefix):
        current = _current(prefix)
        before = _past(prefix, current)
        if not before:
            raise InstallError(f"{prefix} has no kit from before to go back to; current is {current or 'none'}")
        # In this order, and an installation in the other: whatever is cut short, the last name in the history is the
        # kit that is current, or the one to go back to.
        _write_history(prefix, before)
        _switch(prefix, before[-1])
    print(f"current is kits/{before[-1]} again; kits/{current} stays there")


def prune(prefix: Path) -> None:
    """Remove all kits but the current one and the one that `rollback` goes back to."""
    _check_installed(prefix)
    with _locked(prefix):
        current = _current(prefix)
        if not (prefix / "kits" / (current or " ")).is_dir():
            raise InstallError(f"{prefix} has no kit that is current: install one first")
        kept = [*_past(prefix, current)[-1:], current]
        _write_history(prefix, kept)
        old = sorted(folder for folder in (prefix / "kits").iterdir() if folder.name not in kept)
        with _partial(prefix) as partial:  # whatever is cut short, a kit that stands under kits/ is whole
            for folder in old:
                folder.rename(partial.parent / folder.name)
    print(f"removed {len(old)}, kept {' and '.join(f'kits/{name}' for name in kept)}; current is kits/{current}")


def _check_installed(prefix: Path) -> None:
    if not (prefix / "kits").is_dir():
        raise InstallError(f"{prefix} has no kits: nothing was installed there")


def _past(prefix: Path, current: str) -> list[str]:
    """The kits that were current before, in order; the last one is there to go back to."""
    past = _history(prefix)
    before = past[:-1] if past[-1:] == [current] else past
    while before and (before[-1] == current or not (prefix / "kits" / before[-1]).is_dir()):
        before.pop()  # someone removed that one
    return before


# ---- does it fit


@dataclass(frozen=True)
class Machine:
    """Where an installation runs."""

    system: str
    machine: str
    """As the kernel names it: x86_64, aarch64."""
    bits: int
    """Of this Python: a 64-bit kernel may have a 32-bit one."""
    python: str
    """'3.11'; with a 't' behind it for a Python without its global lock, and another implementation's name before."""
    glibc: tuple[int, ...]
    """() where the C library is another one."""


def this_machine() -> Machine:
    """The machine and the Python that this runs on."""
    name = platform.python_implementation()
    python = "{}{}.{}{}".format(
        "" if name == "CPython" else name + " ",
        *sys.version_info[:2],
        "t" if sysconfig.get_config_var("Py_GIL_DISABLED") else "",
    )
    try:
        told = os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (AttributeError, ValueError, OSError):
        told = ""
    glibc = tuple(int(part) for part in re.findall(r"\d+", told)) if told.startswith("glibc") else ()
    return Machine(platform.system(), platform.machine(), 8 * struct.calcsize("P"), python, glibc)


def misfit(told: Mapping[str, Any], here: Machine) -> str:
    """Why the kit is not for this machine, in one sentence; '' where it is."""
    wanted = f"this kit is for {told['platform']} and Python {told['python']}"
    machine = told["platform"].partition("-")[2]
    if (here.system, here.machine, here.bits) != ("Linux", machine, 64):
        return f"{wanted}, and this is {here.system} on {here.machine}, {here.bits} bit: pack one --for this machine"
    if here.python != told["python"]:
        there = shutil.which(f"python{told['python']}")
        remedy = there or f"that one, or pack one with --python {here.python}"
        return f"{wanted}, and this is Python {here.python}: start it with {remedy}"
    needed = tuple(int(part) for part in told["glibc"].split("."))
    if here.glibc < needed:
        found = "glibc " + ".".join(map(str, here.glibc)) if here.glibc else "another C library"
        return f"{wanted} with glibc {told['glibc']} or newer, and this machine has {found}: use a newer system"
    for name in told["files"]:
        if name.startswith("wheels/") and wheel_glibc(name, told["python"], machine) is None:
            return f"{wanted}, but its {name} is not: pack it again"
    return ""


def wheel_glibc(file: str, python: str, machine: str) -> tuple[int, int] | None:
    """The oldest glibc that this wheel runs with, (0, 0) for any; None where it is not for that Python and machine.

    file: a wheel's name (PEP 427). python: '3.11'.
    """
    parts = PurePosixPath(file).name[: -len(".whl")].split("-")
    if not file.endswith(".whl") or len(parts) not in (5, 6):
        return None
    pythons, abis, platforms = (part.split(".") for part in parts[-3:])
    minor = int(python.split(".")[1])
    fits = any(_tag_fits(tag, abi, minor) for tag in pythons for abi in abis)
    needs = [glibc for glibc in (_platform_glibc(one, machine) for one in platforms) if glibc is not None]
    return min(needs) if fits and needs else None


def _tag_fits(tag: str, abi: str, minor: int) -> bool:
    found = re.match(r"(cp|py)3(\d*)$", tag)
    if not found:
        return False
    kind, low = found[1], int(found[2] or 0)
    if abi == "none":
        return low <= minor if kind == "py" else low == minor
    return kind == "cp" and (low <= minor if abi == "abi3" else low == minor and abi == f"cp3{minor}")


def _platform_glibc(tag: str, machine: str) -> tuple[int, int] | None:
    if tag in ("any", f"linux_{machine}"):
        return (0, 0)
    found = re.match(r"(manylinux(?:_(\d+)_(\d+)|\d+))_(.+)$", tag)
    if not found or found[4] != machine:
        return None
    return (int(found[2]), int(found[3])) if found[2] else _LEGACY.get(found[1])


# ---- what the kit holds


@contextmanager
def _opened(kit: Path) -> Iterator[tuple[bytes, Any]]:
    """kit.json as bytes, and what opens a file of the kit by its name."""
    if kit.is_dir():
        try:
            text = (kit / MANIFEST).read_bytes()
        except FileNotFoundError:
            raise InstallError(f"{kit} is no kit: it has no {MANIFEST}") from None
        yield text, lambda name: (kit / name).open("rb")
        return
    try:
        archive = zipfile.ZipFile(kit)
    except zipfile.BadZipFile as error:
        raise InstallError(f"{kit} is no whole kit ({error}): copy it again") from None
    with archive:
        yield archive.read(MANIFEST), archive.open


def _read_manifest(text: bytes) -> dict[str, Any]:
    try:
        told: dict[str, Any] = json.loads(text.decode("utf-8"))
        major = str(told["format"]).partition(".")[0]
        known = {"platform", "python", "glibc", "content_digest", "files", "unpacked"} <= set(told)
    except (ValueError, KeyError, TypeError):
        major, known = "", False
    if major != FORMAT or not known:
        raise InstallError(f"{MANIFEST} is none of format {FORMAT}: copy the kit again, or pack it anew")
    return told


def _verify(files: Mapping[str, Mapping[str, Any]], open_file: Any) -> None:
    """Raise InstallError unless every file is there with its size and sha256."""
    for name, info in files.items():
        _check_inside(name)
        digest, size = hashlib.sha256(), 0
        try:
            with open_file(name) as file:
                for chunk in iter(lambda: file.read(1 << 20), b""):
                    digest.update(chunk)
                    size += len(chunk)
        except (KeyError, FileNotFoundError):
            raise InstallError(f"the kit lacks {name}: copy it again") from None
        except (zipfile.BadZipFile, zlib.error) as error:
            raise InstallError(f"{name} of the kit is damaged ({error}): copy the kit again") from None
        if (size, digest.hexdigest()) != (info["size"], info["sha256"]):
            raise InstallError(f"{name} of the kit is not the file that was packed: copy the kit again")


def _check_inside(name: str) -> None:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or not path.parts:
        raise InstallError(f"the kit names {name!r}, which would leave its folder: do not use this kit")


def _unpack(told: Mapping[str, Any], text: bytes, open_file: Any, folder: Path, final: Path) -> None:
    """Put all that runs into `folder`: the bundle, site/ with what the wheels hold, the launcher, this script."""
    for name in told["files"]:
        with open_file(name) as file:
            if name.startswith("wheels/"):
                _unpack_wheel(name, file.read(), folder / "site")
            elif name != "__main__.py":
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                with (folder / name).open("wb") as target:
                    shutil.copyfileobj(file, target, 1 << 20)
    (folder / MANIFEST).write_bytes(text)
    # That of the system, by the name that has its version: a venv, or the link python3, may be another one tomorrow.
    python = os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)
    launcher = folder / "run"
    launcher.write_text(_LAUNCHER.format(python=shlex.quote(python)), encoding="utf-8")
    launcher.chmod(0o755)
    # As pip does: the one who runs it may not write here. Some test files of packages are no valid Python: quiet.
    compileall.compile_dir(folder / "site", quiet=2, maxlevels=20, ddir=str(final / "site"))


def _unpack_wheel(name: str, data: bytes, site: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(data)) as wheel:
        for member in wheel.infolist():
            _check_inside(member.filename)
            parts = PurePosixPath(member.filename).parts
            if parts[0].endswith(".data"):  # what belongs elsewhere (PEP 427); scripts and headers serve nobody here
                if len(parts) < 3 or parts[1] not in ("purelib", "platlib"):
                    continue
                member.filename = "/".join(parts[2:])
            wheel.extract(member, site)


def _smoke(folder: Path, told: Mapping[str, Any]) -> str:
    """Why the kit in `folder` does not answer its golden inputs as it should; '' where it does. Says what it found."""
    command = [str(folder / "run"), "--check", "--verify", "full", "--expect", told["content_digest"]]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_LONGEST_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    words = [part.decode("utf-8", "replace").strip() for part in (done.stdout, done.stderr)]
    if done.returncode == 0:
        print(words[0])
        return ""
    return "\n".join(word for word in words if word) or f"exit code {done.returncode}"


# ---- the prefix


@contextmanager
def _locked(prefix: Path) -> Iterator[None]:
    """One installation at a time; sweeps what a killed one left."""
    import fcntl

    link = prefix / "current"
    if link.exists() and not link.is_symlink():
        raise InstallError(f"{link} is no link of ours: name another --prefix")
    (prefix / "kits").mkdir(parents=True, exist_ok=True)
    with (prefix / ".lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InstallError(f"another installation is under way in {prefix}: wait for its end") from None
        for left in prefix.glob(".partial-*"):
            shutil.rmtree(left, ignore_errors=True)
        yield


@contextmanager
def _partial(prefix: Path) -> Iterator[Path]:
    """A folder that is gone at the end, unless it was renamed."""
    folder = prefix / f".partial-{os.getpid()}" / "kit"
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder.parent, ignore_errors=True)


def _check_room(prefix: Path, told: Mapping[str, Any]) -> None:
    free = shutil.disk_usage(prefix).free
    if free < told["unpacked"]:
        raise InstallError(f"{prefix} has {free / 1e6:.0f} MB free, and {told['unpacked'] / 1e6:.0f} MB are needed")


def _current(prefix: Path) -> str:
    """The name of the kit that is current; '' for none."""
    try:
        return Path(os.readlink(prefix / "current")).name  # noqa: PTH115 - Path.readlink came with Python 3.9
    except OSError:
        return ""


def _switch(prefix: Path, name: str) -> None:
    """Let `current` lead to kits/NAME, in one step."""
    if _current(prefix) == name:
        return
    new = prefix / f".partial-{os.getpid()}"
    new.mkdir()
    try:
        (new / "link").symlink_to(Path("kits") / name)
        (new / "link").replace(prefix / "current")
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _history(prefix: Path) -> list[str]:
    """The kits that became current, in order, up to the one that is so."""
    try:
        return (prefix / "history").read_text(encoding="utf-8").split()
    except FileNotFoundError:
        return []


def _write_history(prefix: Path, names: list[str]) -> None:
    new = prefix / ".history"
    new.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    new.replace(prefix / "history")


if __name__ == "__main__":
    sys.exit(main())
