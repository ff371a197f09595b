"""Files of a bundle that were hashed once are not hashed again while size, time and inode stay what they were.

The stamp of a bundle stands in $XDG_CACHE_HOME/edgewise/stamps, else in ~/.cache/edgewise/stamps; where that cannot
be written, every start hashes. A stamp guards against corruption and half-copied files, as the hashes do, and not
against someone who can write to the disk. Standard library only, and little of it: the first thing that a start needs.
"""

# pathlib costs a start 2 ms, before onnxruntime can begin.
# ruff: noqa: PTH103, PTH105, PTH108, PTH111, PTH116, PTH118, PTH120, PTH123

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from contextlib import suppress
from typing import Any
from zlib import crc32

Folder = str | os.PathLike[str]
Stamp = dict[str, list[int]]
"""By the file's name in the bundle: size, time of the last change to content and to inode in ns, inode, device."""


def read_stamp(folder: Folder, names: Iterable[str]) -> Stamp:
    """What the file system tells of the files now; raises OSError for one that is missing."""
    found = {}
    for name in names:
        told = os.stat(os.path.join(folder, name))
        found[name] = [told.st_size, told.st_mtime_ns, told.st_ctime_ns, told.st_ino, told.st_dev]
    return found


def is_stamped(folder: Folder, manifest: str, stamp: Stamp) -> bool:
    """True where this manifest's files, as they are now, were hashed before and found right."""
    try:
        with open(_file(folder), encoding="utf-8") as file:
            return bool(json.load(file) == _told(folder, manifest, stamp))
    except (OSError, ValueError):
        return False


def write_stamp(folder: Folder, manifest: str, stamp: Stamp) -> None:
    """Keep that the files are as the manifest says; in silence nothing where the cache cannot be written."""
    with suppress(OSError):
        name = _file(folder)
        os.makedirs(os.path.dirname(name), exist_ok=True)
        temporary = f"{name}.{os.getpid()}.{id(stamp)}"  # a thread its own
        try:
            with open(temporary, "w", encoding="utf-8") as file:
                json.dump(_told(folder, manifest, stamp), file)
            os.replace(temporary, name)
        except OSError:  # a full disk
            os.unlink(temporary)


def _told(folder: Folder, manifest: str, stamp: Stamp) -> dict[str, Any]:
    # The whole path, since the name of the file is too short to tell two bundles apart for certain.
    return {"folder": os.path.realpath(folder), "manifest": [len(manifest), _checksum(manifest)], "files": stamp}


def _file(folder: Folder) -> str:
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(cache, "edgewise", "stamps", f"{_checksum(os.path.realpath(folder)):08x}.json")


def _checksum(text: str) -> int:
    # Not sha256: hashlib loads OpenSSL, which costs a start 3 ms and 4 MB, and no attacker is kept out here anyway.
    return crc32(text.encode("utf-8", "surrogatepass"))
