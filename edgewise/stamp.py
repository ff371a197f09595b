"""Files of a bundle that were hashed once are not hashed again while size, time and inode stay what they were.

The stamp of a bundle stands in $XDG_CACHE_HOME/edgewise/stamps, else in ~/.cache/edgewise/stamps; where that cannot
be written, every start hashes. A stamp guards against corruption and half-copied files, as the hashes do, and not
against someone who can write to the disk. Standard library only.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

Stamp = dict[str, list[int]]
"""By the file's name in the bundle: size, time of the last change to content and to inode in ns, inode, device."""


def read_stamp(folder: Path, names: Iterable[str]) -> Stamp:
    """What the file system tells of the files now; raises OSError for one that is missing."""
    found = {}
    for name in names:
        told = (folder / name).stat()
        found[name] = [told.st_size, told.st_mtime_ns, told.st_ctime_ns, told.st_ino, told.st_dev]
    return found


def is_stamped(folder: Path, manifest: str, stamp: Stamp) -> bool:
    """True where this manifest's files, as they are now, were hashed before and found right."""
    try:
        kept = json.loads(_file(folder).read_text(encoding="utf-8"))
        return isinstance(kept, dict) and kept.get("manifest") == _digest(manifest) and kept.get("files") == stamp
    except (OSError, ValueError, RuntimeError):  # RuntimeError: no home
        return False


def write_stamp(folder: Path, manifest: str, stamp: Stamp) -> None:
    """Keep that the files are as the manifest says; in silence nothing where the cache cannot be written."""
    with suppress(OSError, RuntimeError):
        file = _file(folder)
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps({"manifest": _digest(manifest), "files": stamp}), encoding="utf-8")
        temporary.replace(file)


def _file(folder: Path) -> Path:
    cache = os.environ.get("XDG_CACHE_HOME")
    root = Path(cache) if cache else Path.home() / ".cache"
    return root / "edgewise" / "stamps" / f"{_digest(str(folder.resolve()))[:32]}.json"


def _digest(text: str) -> str:
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
