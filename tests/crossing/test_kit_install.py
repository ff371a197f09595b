"""A kit on a device: it installs with no network and no package, beside older kits, and never by half."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import edgewise
from edgewise import kit_install
from edgewise.bundle import read_bundle, with_run
from edgewise.kit_install import Machine, misfit, this_machine, wheel_glibc
from edgewise.kit_install import main as run_install
from edgewise.pack import Kit

Packed = Callable[..., Kit]
Install = Callable[..., subprocess.CompletedProcess[str]]
TEXTS = ["a fine film with a warm heart", "a dull, lifeless mess", "日本の映画"]


def kit_id(kit: Kit) -> str:
    with zipfile.ZipFile(kit.path) as archive:
        return hashlib.sha256(archive.read("kit.json")).hexdigest()[:12]


def state(prefix: Path) -> tuple[str, set[str], list[str]]:
    """What is current, which kits are there, and what else stands in the prefix."""
    known = {"current", "history", "kits", ".lock"}
    kits = {folder.name for folder in (prefix / "kits").iterdir()}
    return (prefix / "current").readlink().name, kits, sorted({f.name for f in prefix.iterdir()} - known)


@pytest.fixture(scope="module")
def second(kit: Kit, int8_bundle: Path, packed: Packed, tmp_path_factory: pytest.TempPathFactory) -> Kit:
    """The same bundle with other run settings: another kit of the same content digest."""
    folder = tmp_path_factory.mktemp("second")
    bundle = read_bundle(shutil.copytree(int8_bundle, folder / "bundle"))
    with_run(bundle, replace(bundle.manifest.run, max_length=40))
    return packed(folder / "bundle", folder / "kit.zip")


@pytest.fixture(scope="module")
def first_prefix(kit: Kit, install: Install, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the kit is installed; a space in its name. Read only."""
    prefix = tmp_path_factory.mktemp("device") / "my answers"
    done = install(kit.path, prefix)
    assert done.returncode == 0, done.stderr
    assert "golden answers passed: 8 inputs, 0 changed" in done.stdout
    assert kit.told["content_digest"] in done.stdout
    return prefix


@pytest.fixture
def prefix(first_prefix: Path, tmp_path: Path) -> Path:
    """A copy of it, which a test may change."""
    made = Path(shutil.copytree(first_prefix, tmp_path / "prefix", symlinks=True, copy_function=os.link))
    (made / ".lock").unlink()  # the same file would be the same lock
    return made


# ---- does it fit: no kit is installed


def test_the_script_parses_in_an_old_python() -> None:
    """One that is older than what the kit is for must be able to say so."""
    ast.parse(Path(kit_install.__file__).read_text(encoding="utf-8"), feature_version=(3, 7))


@pytest.mark.parametrize(
    ("file", "python", "needs"),
    [
        ("numpy-2.4.6-cp311-cp311-manylinux_2_27_aarch64.manylinux_2_28_aarch64.whl", "3.11", (2, 27)),
        ("numpy-2.4.6-cp311-cp311-manylinux_2_27_aarch64.manylinux_2_28_aarch64.whl", "3.12", None),
        ("numpy-2.4.6-cp311-cp311-manylinux_2_28_x86_64.whl", "3.11", None),
        ("numpy-2.4.6-cp313-cp313t-manylinux_2_28_aarch64.whl", "3.13", None),
        ("numpy-2.4.6-cp311-cp311-musllinux_1_2_aarch64.whl", "3.11", None),
        ("numpy-2.4.6-cp311-cp311-macosx_11_0_arm64.whl", "3.11", None),
        ("numpy-2.4.6-pp311-pypy311_pp73-manylinux_2_28_aarch64.whl", "3.11", None),
        ("numpy-2.4.6.tar.gz", "3.11", None),
        ("tokenizers-0.22.2-cp39-abi3-manylinux_2_17_aarch64.manylinux2014_aarch64.whl", "3.11", (2, 17)),
        ("protobuf-7.36.2-cp310-abi3-manylinux2014_aarch64.whl", "3.14", (2, 17)),
        ("protobuf-7.36.2-cp312-abi3-manylinux2014_aarch64.whl", "3.11", None),
        ("own-1.0-2build-cp311-cp311-linux_aarch64.whl", "3.11", (0, 0)),
        ("flatbuffers-25.12.19-py2.py3-none-any.whl", "3.11", (0, 0)),
        ("old-1.0-py2-none-any.whl", "3.11", None),
        ("new-1.0-py312-none-any.whl", "3.11", None),
        ("new-1.0-py312-none-any.whl", "3.13", (0, 0)),
        ("new-1.0-cp310-none-any.whl", "3.11", None),
    ],
)
def test_tags_of_a_wheel(file: str, python: str, needs: tuple[int, int] | None) -> None:
    assert wheel_glibc(file, python, "aarch64") == needs


def test_tags_are_read_as_the_packaging_library_reads_them() -> None:
    """On this machine: what the interpreter's own list of tags has, and nothing else."""
    from packaging.tags import sys_tags
    from packaging.utils import parse_wheel_filename

    here = this_machine()
    supported = set(sys_tags())
    for low in ("cp37", "cp39", "cp310", "cp311", "cp312", "py3", "py311", "py313", "py2"):
        for abi in ("none", "abi3", "cp310", "cp311", "cp311t", "cp312"):
            for platform in ("any", "manylinux_2_17_{}", "manylinux2014_{}", "manylinux_2_99_{}", "linux_{}", "win_{}"):
                file = f"some-1.0-{low}-{abi}-{platform.format(here.machine)}.whl"
                glibc = wheel_glibc(file, here.python, here.machine)
                if low.startswith("cp") and (abi == "none") != (platform == "any"):
                    continue  # nobody makes them: compiled code for any machine, or none for one
                fits = glibc is not None and glibc <= here.glibc
                assert fits == bool(parse_wheel_filename(file)[3] & supported), file


PI = Machine("Linux", "aarch64", 64, "3.11", (2, 36))
TOLD = {"platform": "linux-aarch64", "python": "3.11", "glibc": "2.28", "files": {}}


@pytest.mark.parametrize(
    ("here", "says"),
    [
        (PI, ""),
        (replace(PI, machine="x86_64"), "and this is Linux on x86_64, 64 bit"),
        (replace(PI, machine="armv7l", bits=32), "and this is Linux on armv7l, 32 bit"),
        (replace(PI, bits=32), "and this is Linux on aarch64, 32 bit"),
        (replace(PI, system="Darwin"), "and this is Darwin on aarch64"),
        (replace(PI, python="3.99"), "and this is Python 3.99: start it with "),
        (replace(PI, python="3.11t"), "and this is Python 3.11t"),
        (replace(PI, python="PyPy 3.11"), "and this is Python PyPy 3.11"),
        (replace(PI, glibc=(2, 27)), "with glibc 2.28 or newer, and this machine has glibc 2.27: use a newer system"),
        (replace(PI, glibc=()), "and this machine has another C library"),
    ],
)
def test_another_machine_is_told_so(here: Machine, says: str) -> None:
    told = misfit(TOLD, here)
    assert says in told
    assert bool(says) == bool(told)
    assert told == "" or told.startswith("this kit is for linux-aarch64 and Python 3.11")


def test_a_wheel_that_does_not_fit_is_told() -> None:
    told = misfit({**TOLD, "files": {"wheels/numpy-2.4.6-cp312-cp312-manylinux_2_28_aarch64.whl": {}}}, PI)
    assert "its wheels/numpy-2.4.6-cp312-cp312-manylinux_2_28_aarch64.whl is not: pack it again" in told


@pytest.fixture(scope="module")
def unpacked(kit: Kit, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked") / "kit"
    with zipfile.ZipFile(kit.path) as archive:
        archive.extractall(folder)
    return folder


def changed(unpacked: Path, out: Path, changes: dict[str, bytes | None]) -> Path:
    """A copy of an unpacked kit with other bytes for some of its files, or without them."""
    shutil.copytree(unpacked, out, copy_function=os.link)
    for name, data in changes.items():
        (out / name).unlink()
        if data is not None:
            (out / name).write_bytes(data)
    return out


def test_a_kit_that_is_not_as_it_was_packed_is_refused(
    kit: Kit, unpacked: Path, install: Install, tmp_path: Path
) -> None:
    told = dict(kit.told)
    config = (unpacked / "bundle" / "config.json").read_bytes()
    wheel = next(name for name in told["files"] if name.startswith("wheels/packaging"))
    leaving = {**told, "files": {**told["files"], "../out": {"size": 0, "sha256": ""}}}
    cases: list[tuple[dict[str, bytes | None], str]] = [
        ({"bundle/config.json": config.swapcase()}, "bundle/config.json of the kit is not the file that was packed"),
        ({wheel: b""}, "packaging-.* of the kit is not the file that was packed"),
        ({"bundle/config.json": None}, "the kit lacks bundle/config.json: copy it again"),
        ({"kit.json": None}, "is no kit: it has no kit.json"),
        ({"kit.json": b"{}"}, "kit.json is none of format 1"),
        ({"kit.json": json.dumps({**told, "format": "2.0"}).encode()}, "kit.json is none of format 1"),
        ({"kit.json": json.dumps(leaving).encode()}, "names '../out', which would leave its folder"),
        ({"kit.json": json.dumps({**told, "python": "3.99"}).encode()}, "for linux-.* and Python 3.99, and this is"),
    ]
    for number, (changes, says) in enumerate(cases):
        done = install(changed(unpacked, tmp_path / str(number), changes), tmp_path / "prefix")
        assert done.returncode == 2, done.stderr
        assert re.search(says, done.stderr), done.stderr
        assert len(done.stderr.splitlines()) == 1
    with zipfile.ZipFile(kit.path) as archive:
        start = archive.getinfo("bundle/tokenizer.json").header_offset + 1000
    with Path(shutil.copy(kit.path, tmp_path / "damaged.zip")).open("r+b") as file:
        file.seek(start)
        file.write(b"\0" * 64)
    done = install(tmp_path / "damaged.zip", tmp_path / "prefix")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "bundle/tokenizer.json of the kit" in done.stderr
    assert not (tmp_path / "prefix").exists()


def test_a_kit_for_another_machine_is_refused(kit: Kit, unpacked: Path, install: Install, tmp_path: Path) -> None:
    other = "linux-aarch64" if kit.told["platform"] == "linux-x86_64" else "linux-x86_64"
    told = json.dumps({**kit.told, "platform": other}).encode()
    done = install(changed(unpacked, tmp_path / "other", {"kit.json": told}), tmp_path / "prefix")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert f"this kit is for {other} and Python {kit.told['python']}, and this is Linux on " in done.stderr
    assert not (tmp_path / "prefix").exists()


def test_a_prefix_that_cannot_be_is_refused(kit: Kit, install: Install, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "own" / "current").mkdir(parents=True)
    for place, options, says in (
        ("file", [], "file"),
        ("own", [], "current is no link of ours: name another --prefix"),
        ("empty", ["--rollback"], "empty has no kits: nothing was installed there"),
    ):
        done = install(kit.path, tmp_path / place, *options)
        assert done.returncode == 2
        assert says in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert sorted(f.name for f in tmp_path.iterdir()) == ["file", "own"]


# ---- installed: each of these unpacks 180 MB and compiles it


@pytest.mark.slow
def test_what_is_installed_answers_as_the_bundle_does(first_prefix: Path, kit: Kit, int8_bundle: Path) -> None:
    assert state(first_prefix) == (kit_id(kit), {kit_id(kit)}, [])
    with edgewise.load(int8_bundle) as model:
        expected = model(TEXTS)
    alone = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "PYTHONPATH": "/nonexistent"}
    run = [str(first_prefix / "current" / "run"), *TEXTS, "--json"]
    done = subprocess.run(run, capture_output=True, encoding="utf-8", check=False, cwd="/", env=alone)
    assert done.returncode == 0, done.stderr
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(one["text"], one["label"], one["score"]) for one in told] == [
        (text, one["label"], one["score"]) for text, one in zip(TEXTS, expected, strict=True)
    ]
    code = "import sys; sys.path[:0] = [sys.argv[1] + '/site']; import edgewise; print(edgewise.load("
    code += "sys.argv[1] + '/bundle', expect=sys.argv[2])(sys.argv[3])[0]['score'])"
    home = str(first_prefix / "current")
    python = [sys.executable, "-I", "-S", "-c", code, home, kit.told["content_digest"], TEXTS[0]]
    done = subprocess.run(python, capture_output=True, text=True, check=False, cwd="/")
    assert done.stdout.strip() == str(expected[0]["score"]), done.stderr


@pytest.mark.slow
def test_twice_is_harmless_and_damage_is_mended(prefix: Path, kit: Kit, unpacked: Path, install: Install) -> None:
    folder = prefix / "kits" / kit_id(kit)
    before = {f: f.stat().st_ino for f in folder.rglob("*")}
    done = install(kit.path, prefix)
    assert (done.returncode, done.stderr) == (0, "")
    assert "is there already" in done.stdout
    assert {f: f.stat().st_ino for f in folder.rglob("*")} == before
    (folder / "bundle" / "config.json").unlink()
    done = install(unpacked, prefix)  # from a folder, too
    assert done.returncode == 0, done.stderr
    assert (folder / "bundle" / "config.json").is_file()
    assert state(prefix) == (kit_id(kit), {kit_id(kit)}, [])


@pytest.mark.slow
def test_a_newer_kit_and_back(prefix: Path, kit: Kit, second: Kit, install: Install) -> None:
    one, two = kit_id(kit), kit_id(second)
    done = install(second.path, prefix)
    assert done.returncode == 0, done.stderr
    assert state(prefix) == (two, {one, two}, [])
    script = prefix / "current" / "install.py"  # needs no kit file to go back
    done = install(script, prefix, "--rollback")
    assert (done.returncode, done.stdout) == (0, f"current is kits/{one} again; kits/{two} stays there\n")
    assert state(prefix) == (one, {one, two}, [])
    done = install(kit.path, prefix, "--rollback")
    assert done.returncode == 2
    assert f"no kit from before to go back to; current is {one}" in done.stderr
    assert install(second.path, prefix).returncode == 0  # forward again
    assert install(kit.path, prefix).returncode == 0  # the older one, chosen anew
    assert state(prefix)[0] == one
    assert install(kit.path, prefix, "--rollback").returncode == 0
    assert state(prefix)[0] == two


def test_old_kits_are_removed_but_the_one_to_go_back_to(tmp_path: Path) -> None:
    """Kits as an installation leaves them, empty ones: what is kept does not hang on what is in them."""
    prefix = tmp_path / "answers"
    for name in ("one", "two", "three", "aside"):
        (prefix / "kits" / name / "bundle").mkdir(parents=True)
    (prefix / "current").symlink_to(Path("kits") / "three")
    (prefix / "history").write_text("one\ntwo\ngone\nthree\n")
    assert run_install(["--prefix", str(prefix), "--prune"]) == 0
    assert state(prefix) == ("three", {"two", "three"}, [])
    assert run_install(["--prefix", str(prefix), "--prune"]) == 0  # nothing left to remove
    assert run_install(["--prefix", str(prefix), "--rollback"]) == 0
    assert state(prefix)[0] == "two"
    assert run_install(["--prefix", str(prefix), "--prune"]) == 0  # after it, what it came from is an old one
    assert state(prefix) == ("two", {"two"}, [])


def test_nothing_is_removed_where_no_kit_is_current(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_install(["--prefix", str(tmp_path), "--prune"]) == 2
    assert "has no kits: nothing was installed there" in capsys.readouterr().err
    (tmp_path / "kits" / "one").mkdir(parents=True)
    assert run_install(["--prefix", str(tmp_path), "--prune"]) == 2
    assert "has no kit that is current: install one first" in capsys.readouterr().err
    assert (tmp_path / "kits" / "one").is_dir()
    with pytest.raises(SystemExit, match="2"):
        run_install(["--prefix", str(tmp_path), "--prune", "--rollback"])


@pytest.mark.slow
def test_a_kit_that_answers_otherwise_is_not_switched_to(
    prefix: Path, kit: Kit, bundle_copy: Path, packed: Packed, install: Install, tmp_path: Path
) -> None:
    manifest = json.loads((bundle_copy / "edgewise.json").read_text())
    for golden in manifest["golden"]:
        golden["output"] = golden["output"][::-1]  # the other label
    (bundle_copy / "edgewise.json").write_text(json.dumps(manifest))
    wrong = packed(bundle_copy, tmp_path / "wrong.zip")
    assert wrong.told["content_digest"] == kit.told["content_digest"]
    done = install(wrong.path, prefix)
    assert done.returncode == 1
    assert f"the smoke test failed, and kits/{kit_id(kit)} stays current: golden answers FAILED" in done.stderr
    assert state(prefix) == (kit_id(kit), {kit_id(kit)}, [])
    done = install(wrong.path, tmp_path / "new")
    assert "the smoke test failed, and no kit is current" in done.stderr
    assert not list((tmp_path / "new" / "kits").iterdir())
    assert not (tmp_path / "new" / "current").exists()


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_installation_leaves_the_old_kit(
    prefix: Path, kit: Kit, second: Kit, install: Install, clean_python: list[str], how: signal.Signals
) -> None:
    command = [*clean_python[-3:], str(second.path), "--prefix", str(prefix)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not list(prefix.glob(".partial-*/kit/site/numpy")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGSTOP)  # so that it is interrupted here, however long the other one takes
    busy = install(second.path, prefix)
    assert busy.returncode == 2
    assert "another installation is under way" in busy.stderr
    process.send_signal(how)
    process.send_signal(signal.SIGCONT)
    _, told = process.communicate(timeout=60)
    current, kits, left = state(prefix)
    assert (current, kits) == (kit_id(kit), {kit_id(kit)})
    if how == signal.SIGINT:
        assert (process.returncode, left) == (130, [])
        assert told == "install: interrupted; start the same command again\n"
    assert install(second.path, prefix).returncode == 0
    assert state(prefix) == (kit_id(second), {kit_id(kit), kit_id(second)}, [])
