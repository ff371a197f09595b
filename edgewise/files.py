"""Files and folders that appear whole or not at all. Standard library only."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from edgewise.errors import NoSpaceError, PlanError

_CHUNK = 1 << 20
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def digest_json(value: Any) -> str:
    """'sha256:...' of a JSON-able value, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    # surrogatepass: a text with a lone surrogate must have a digest too
    return "sha256:" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


@contextmanager
def disk_full_is_clear(place: Path) -> Iterator[None]:
    """Turn 'no space left' into an error that names the place and how much room is left."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_SPACE or isinstance(error, NoSpaceError):
            raise
        raise no_space(place) from error


def no_space_error(error: OSError) -> NoSpaceError:
    """The clear error for an OSError that says the disk is full."""
    if error.filename is None:
        return NoSpaceError("no space left where this command's output goes: free some, or write it elsewhere")
    return no_space(Path(error.filename))


def no_space(place: Path, needed: int | None = None) -> NoSpaceError:
    """The error for a full disk; `needed` in bytes."""
    there = place if place.exists() else place.parent
    free = shutil.disk_usage(there).free if there.exists() else 0
    wanted = f", {needed / 1e6:.0f} MB needed" if needed else ""
    return NoSpaceError(f"no space left for {place}: {free / 1e6:.0f} MB free{wanted}; free some, or use another --out")


def write_text(path: Path, text: str) -> None:
    """Write a text file under a temporary name, then rename it into place."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file under a temporary name, then rename it into place.

    Raises PlanError for a place where no file can be written, or where something stands that is no regular file (a
    folder, a device: to rename over it would destroy it), NoSpaceError for a full disk.
    """
    if path.exists() and not path.is_file():
        raise PlanError(f"{path} is {'a folder' if path.is_dir() else 'no regular file'}: name a file to write")
    try:
        with disk_full_is_clear(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            _write_beside(path, content)
    except NoSpaceError:
        raise
    except OSError as error:
        raise PlanError(f"{path} cannot be written: {error.strerror or error}; name another place") from error


def _write_beside(path: Path, content: bytes) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)  # mkstemp makes it private to this user
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path` that becomes `path` when the block ends well, and vanishes otherwise.

    What stood at `path` before is replaced in the last step.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial"))
    try:
        with disk_full_is_clear(path):
            yield temporary
            temporary.chmod(0o755)  # mkdtemp makes it private to this user
        replace_folder(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def check_out(out: Path, record: str, sources: Sequence[Path | None] = ()) -> None:
    """Raise PlanError unless a result can be put at `out` without losing what stands there.

    It may hold nothing, or an earlier result, which has the file `record`: that is replaced. sources: what is read;
    none of them may be the folder that is replaced.
    """
    try:
        place = out.resolve()
        if reason := _kept(place, record, [source.resolve() for source in sources if source is not None]):
            raise PlanError(f"out is {str(out)!r}, {reason}")
    except OSError as error:
        raise PlanError(f"out is {str(out)!r}, which cannot be used: {error.strerror or error}") from error
    check_writable(place.parent)


def _kept(place: Path, record: str, sources: Sequence[Path]) -> str:
    """Why what stands at `place` must stay; '' where it may go."""
    if Path.cwd().is_relative_to(place):
        return "a folder that you stand in: name a new one"
    if not place.exists():
        return ""
    if not place.is_dir():
        return "a file: name a new folder"
    if place in sources:
        return "which is read from too: name another folder"
    # a run of a plan has a tune.json as well, but no config
    if any(place.iterdir()) and not ((place / record).is_file() and (place / "config.json").is_file()):
        return f"a folder whose files are no earlier result (it has no {record}) and would be lost: name a new folder"
    return ""


def check_writable(folder: Path) -> None:
    """Raise PlanError where nothing can be made in `folder`, or, where it is not there yet, in the one above it."""
    there = folder.resolve()
    try:
        while not there.exists():
            there = there.parent
        Path(tempfile.mkdtemp(dir=there, prefix=".edgewise.")).rmdir()
    except OSError as error:
        raise PlanError(
            f"nothing can be written in {there} ({error.strerror or error}): name another folder for the result"
        ) from error


def replace_folder(new: Path, path: Path) -> None:
    """Put folder `new` in the place of `path`; both on one file system."""
    if path.exists():
        old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".old"))
        path.replace(old / path.name)
        new.replace(path)
        shutil.rmtree(old, ignore_errors=True)
    else:
        new.replace(path)


def sweep_partials(folder: Path) -> None:
    """Remove what a killed run left half-written in `folder`."""
    if not folder.is_dir():
        return
    for left in folder.glob(".*.partial"):
        shutil.rmtree(left, ignore_errors=True)
    for old in folder.glob(".*.old"):
        # Killed between the two renames of replace_folder: what stood there before is still good.
        for kept in old.iterdir():
            if not (folder / kept.name).exists():
                with suppress(OSError):
                    kept.replace(folder / kept.name)
        shutil.rmtree(old, ignore_errors=True)
