"""What `edgewise pack` puts into a kit, and what it refuses."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import requires, version
from pathlib import Path

import pytest

from edgewise.bundle import read_bundle, with_run
from edgewise.cli import main
from edgewise.errors import BundleChangedError, BundleNotFoundError, PlanError
from edgewise.pack import Kit, _chosen, _doubts, _measured_on, chosen_bundle, pack
from edgewise.pack_wheels import BASE, KitTarget, best_wheel, needed_packages, platform_tags, read_target
from edgewise.profiler import Store
from edgewise.recipe import Preset
from edgewise.results import write_selection
from edgewise.rundir import RunFolder
from edgewise.types import Measurement, Metric, RunSettings, Target

Packed = Callable[..., Kit]


def wheels(kit: Kit) -> list[str]:
    return [name.removeprefix("wheels/") for name in kit.told["files"] if name.startswith("wheels/")]


# ---- what is in it


def test_the_runtime_needs_what_a_kit_holds() -> None:
    """onnxruntime declares no more than a kit has, and our own base install neither."""
    declared = [line for name in ("onnxruntime", "edgewise") for line in requires(name) or () if "extra ==" not in line]
    assert {re.split(r"[^A-Za-z0-9_.-]", line)[0] for line in declared} <= set(BASE)


def test_a_kit_is_what_its_manifest_says(kit: Kit, int8_bundle: Path) -> None:
    bundle = read_bundle(int8_bundle)
    with zipfile.ZipFile(kit.path) as archive:
        told = json.loads(archive.read("kit.json"))
        assert told == kit.told
        assert sorted([*told["files"], "kit.json"]) == archive.namelist()
        for name, info in told["files"].items():
            data = archive.read(name)
            assert (len(data), hashlib.sha256(data).hexdigest()) == (info["size"], info["sha256"]), name
            if name.startswith("bundle/"):
                assert data == (int8_bundle / name.removeprefix("bundle/")).read_bytes()
        assert {f"bundle/{name}" for name in bundle.manifest.files} | {"bundle/edgewise.json"} <= set(told["files"])
    assert told["content_digest"] == bundle.digest
    assert (told["python"], told["glibc"]) == ("{}.{}".format(*sys.version_info), "2.28")
    assert kit.size == kit.path.stat().st_size
    assert kit.sha256 == hashlib.sha256(kit.path.read_bytes()).hexdigest()
    assert sorted(name.split("-")[0] for name in wheels(kit)) == sorted(["edgewise", *BASE])
    assert all(name.split("-")[1] == version(name.split("-")[0]) for name in wheels(kit))


def test_the_same_inputs_give_the_same_bytes(kit: Kit, int8_bundle: Path, packed: Packed, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(int8_bundle, tmp_path / "elsewhere"))
    for file in copy.rglob("*"):
        file.touch()
    assert packed(copy, tmp_path / "again.zip").sha256 == kit.sha256


AARCH64 = 183
"""EM_AARCH64: the machine in the header of an ELF file."""


@pytest.mark.slow  # asks the package index
@pytest.mark.parametrize("python", ["3.11", "3.13"])
def test_a_kit_for_aarch64_holds_what_the_index_has_for_it(
    int8_bundle: Path, packed: Packed, tmp_path: Path, python: str
) -> None:
    kit = packed(int8_bundle, tmp_path / "kit.zip", platform="linux-aarch64", python=python)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--dry-run", "--quiet", "--no-deps"]
    report = tmp_path / "report.json"
    pip += ["--ignore-installed", "--only-binary=:all:", "--target", str(tmp_path), "--report", str(report)]
    pip += [word for tag in platform_tags("aarch64") for word in ("--platform", tag)]
    pip += ["--implementation", "cp", "--python-version", python, *(f"{name}=={version(name)}" for name in BASE)]
    done = subprocess.run(pip, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = [one["download_info"] for one in json.loads(report.read_text())["install"]]
    index = {Path(one["url"]).name: one["archive_info"]["hashes"]["sha256"] for one in told}
    ours = {name: kit.told["files"][f"wheels/{name}"]["sha256"] for name in wheels(kit) if "1device" not in name}
    assert ours == index
    code = 0
    with zipfile.ZipFile(kit.path) as archive:
        for name in ours:
            with zipfile.ZipFile(io.BytesIO(archive.read(f"wheels/{name}"))) as wheel:
                for member in wheel.namelist():
                    if re.search(r"\.so(\.\d+)*$", member):
                        magic, machine = struct.unpack("<4s14xH", wheel.read(member)[:20])
                        assert (magic, machine) == (b"\x7fELF", AARCH64), member
                        code += 1
    assert code > 20


def test_images_and_chats_bring_their_packages(bundle_copy: Path) -> None:
    bundle = read_bundle(bundle_copy)
    assert list(needed_packages(bundle)) == list(BASE)
    image = replace(bundle, manifest=replace(bundle.manifest, task="image-classification"))
    assert list(needed_packages(image)) == [*BASE, "pillow"]
    config = bundle_copy / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"chat_template": "{{ messages[0].content }}"}))
    assert list(needed_packages(bundle)) == [*BASE, "Jinja2", "MarkupSafe"]


def test_a_wheelhouse_is_enough(kit: Kit, int8_bundle: Path, tmp_path: Path) -> None:
    house = tmp_path / "house"
    house.mkdir()
    with zipfile.ZipFile(kit.path) as archive:
        for name in wheels(kit):
            (house / name).write_bytes(archive.read(f"wheels/{name}"))
    assert pack(int8_bundle, tmp_path / "k.zip", wheelhouse=house).sha256 == kit.sha256
    (gone,) = house.glob("protobuf-*")
    gone.unlink()
    with pytest.raises(PlanError, match=f"no wheel for linux-.* of protobuf {version('protobuf')}: add it"):
        pack(int8_bundle, tmp_path / "l.zip", wheelhouse=house)
    gone.write_bytes(b"PK, but not for long")
    with pytest.raises(PlanError, match=r"protobuf-.*\.whl is no whole wheel .*: download it again"):
        pack(int8_bundle, tmp_path / "l.zip", wheelhouse=house)
    with pytest.raises(PlanError, match="nowhere: no such folder"):
        pack(int8_bundle, tmp_path / "l.zip", wheelhouse=tmp_path / "nowhere")
    assert [file.name for file in tmp_path.glob("*.zip")] == ["k.zip"]


def test_a_wheel_for_the_machine_goes_before_one_for_any(tmp_path: Path) -> None:
    target = KitTarget("linux-aarch64", "3.11")
    names = (
        "some_thing-1.0-py3-none-any.whl", "some_thing-1.0-cp311-cp311-manylinux2014_aarch64.whl",
        "some_thing-1.0-cp311-cp311-manylinux_2_26_aarch64.manylinux_2_28_aarch64.whl",
        "some_thing-1.0-cp311-cp311-manylinux_2_34_aarch64.whl",
        "some_thing-1.0-cp312-cp312-manylinux_2_28_aarch64.whl",
        "some_thing-1.0-cp311-cp311-manylinux_2_28_x86_64.whl", "some_thing-1.1-py3-none-any.whl", "some.whl",
    )  # fmt: skip
    found = []
    for name in names:
        (tmp_path / name).touch()
        best = best_wheel(tmp_path, "Some.Thing", "1.0", target)
        found.append(names.index(best.name) if best else None)
    assert found == [0, 1, 2, 2, 2, 2, 2, 2]
    assert best_wheel(tmp_path, "other", "1.0", target) is None


def test_a_cached_wheel_that_changed_is_not_packed(
    kit: Kit, int8_bundle: Path, packed: Packed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgewise.assets import cache_folder

    cache = tmp_path / "cache" / "wheels"
    cache.mkdir(parents=True)
    for name in wheels(kit):
        for file in (cache_folder() / "wheels").glob(f"{name}*"):
            shutil.copy(file, cache)
    (packaging,) = cache.glob("packaging-*.whl")
    packaging.write_bytes(packaging.read_bytes()[:-1])
    monkeypatch.setenv("EDGEWISE_CACHE", str(tmp_path / "cache"))
    said: list[str] = []
    assert packed(int8_bundle, tmp_path / "k.zip", say=said.append).sha256 == kit.sha256
    assert [line.split()[1] for line in said if line.startswith("downloading")] == ["packaging"]
    assert not list(cache.glob(".partial-*"))


# ---- which bundle


def test_the_bundle_that_a_run_has_chosen(int8_bundle: Path, fp32_bundle: Path, tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    chosen = {"here": run.chosen("here", 2), "pi": run.chosen("pi", 2)}
    shutil.copytree(int8_bundle, chosen["here"])
    shutil.copytree(fp32_bundle, chosen["pi"])
    write_selection(run, [], chosen)
    assert chosen_bundle(tmp_path, "pi").path == tmp_path / "chosen-pi"
    with pytest.raises(PlanError, match="a choice for each of here, pi: name one by --device"):
        chosen_bundle(tmp_path)
    with pytest.raises(PlanError, match="nothing for a device 'pie'; it has for here, pi"):
        chosen_bundle(tmp_path, "pie")
    write_selection(run, [], {"here": chosen["here"]})
    assert chosen_bundle(tmp_path).digest == read_bundle(int8_bundle).digest
    shutil.rmtree(chosen["here"])
    shutil.copytree(fp32_bundle, chosen["here"])  # not the one that the selection is about
    with pytest.raises(BundleChangedError, match="expected sha256:"):
        chosen_bundle(tmp_path)


def test_a_run_without_a_choice_is_refused(int8_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleNotFoundError, match="nowhere: no such run folder or bundle"):
        chosen_bundle(tmp_path / "nowhere")
    with pytest.raises(BundleNotFoundError, match=r"neither a run folder .* nor a bundle"):
        chosen_bundle(tmp_path)
    run = RunFolder(tmp_path)
    run.store.touch()
    with pytest.raises(PlanError, match="`edgewise fit` has not ended there"):
        chosen_bundle(tmp_path)
    write_selection(run, [], {})
    with pytest.raises(PlanError, match=r"nothing was chosen in .* meets the plan.s budgets; .*report\.html says what"):
        chosen_bundle(tmp_path)
    run.selection.write_text("[]")
    with pytest.raises(PlanError, match="cannot be read"):
        chosen_bundle(tmp_path)
    with pytest.raises(PlanError, match="is a bundle, and has no choice for a device 'pi'"):
        chosen_bundle(int8_bundle, "pi")


def test_a_choice_by_another_machine_s_numbers_is_warned_of(
    int8_bundle: Path, bundle_copy: Path, packed: Packed, tmp_path: Path
) -> None:
    """One run, measured on a PC and over there on an ARM board: the kit for the board is of the board's choice."""
    run = RunFolder(tmp_path / "run")
    bundle = read_bundle(int8_bundle)
    chosen = {name: Path(shutil.copytree(int8_bundle, run.chosen(name, 2))) for name in ("here", "pi")}
    write_selection(run, [], chosen)
    with Store(run.store) as store:
        for device, machine in (("here", "x86_64"), ("pi", "arm64")):
            store.add(
                Measurement(
                    "m", bundle.manifest.recipe.name, bundle.digest, Target(device, RunSettings()), "single-stream",
                    "profile", metrics=(Metric("p95", "s", 0.01),),
                    conditions={"fingerprint": {"machine": machine}, "fingerprint_digest": device},
                )
            )  # fmt: skip

    def warned(source: Path, device: str | None, machine: str) -> list[str]:
        name, found = _chosen(source, device)
        measured_on = _measured_on(RunFolder(source).store, name) if name else set()
        return list(_doubts(found, KitTarget(f"linux-{machine}", "3.11"), measured_on))

    assert not any("measured" in w for w in warned(run.path, "pi", "aarch64"))
    (told,) = (w for w in warned(run.path, "here", "aarch64") if "measured" in w)
    assert told.startswith("it was chosen by what was measured on x86_64, and the kit is for aarch64")
    assert not any("measured" in w for w in warned(run.path, "here", "x86_64"))
    assert not any("measured" in w for w in warned(int8_bundle, None, "aarch64"))


@pytest.mark.parametrize(
    ("preset", "machine", "better"),
    [
        ("avx512_vnni", "aarch64", "arm64"),
        ("arm64", "x86_64", "avx2"),
        ("arm64", "aarch64", ""),
        ("avx2", "x86_64", ""),
    ],
)
def test_weights_for_another_kind_of_processor_are_warned_of(
    int8_bundle: Path, preset: Preset, machine: str, better: str
) -> None:
    bundle = read_bundle(int8_bundle)
    bundle = replace(bundle, manifest=replace(bundle.manifest, recipe=replace(bundle.manifest.recipe, preset=preset)))
    told = list(_doubts(bundle, KitTarget(f"linux-{machine}", "3.11"), set()))
    assert [re.search(r"preset=(\w+)", one)[1] for one in told] == ([better] if better else [])  # type: ignore[index]


def test_a_provider_that_a_kit_has_not_is_refused(bundle_copy: Path, tmp_path: Path) -> None:
    bundle = read_bundle(bundle_copy)
    with_run(bundle, replace(bundle.manifest.run, provider="cuda"))
    with pytest.raises(PlanError, match="provider 'cuda', and the onnxruntime of a kit has 'cpu' alone"):
        pack(bundle_copy, tmp_path / "k.zip")


# ---- the command


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--for", "linux-armv7"], "--for 'linux-armv7': expected linux-x86_64 or linux-aarch64, or 'here'"),
        (["--for", "windows"], "--for 'windows': expected linux-x86_64 or linux-aarch64"),
        (["--python", "3"], "--python '3': expected the device's version in two numbers, 3.11 or newer"),
        (["--python", "3.11.2"], "--python '3.11.2': expected"),
        (["--python", "3.9"], "--python '3.9': expected"),
        (["--python", "python3.11"], "--python 'python3.11': expected"),
        (["-o", "."], "--out . is a folder: name a file to write"),
        (["-o", "{bundle}/kit.zip"], "is inside the bundle"),
        (["-o", "/dev/null"], "--out /dev/null is no regular file"),
        (["-o", "/proc/kit.zip"], "nothing can be written in /proc"),
    ],
)
def test_bad_options(
    int8_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    options: list[str], says: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    options = [word.format(bundle=int8_bundle) for word in options]
    assert main(["pack", str(int8_bundle), "-o", "kit.zip", *options]) == 2
    told = capsys.readouterr().err.strip()
    assert says in told
    assert "\n" not in told
    assert not list(tmp_path.iterdir())


def test_a_version_that_the_index_has_not_is_named(
    int8_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EDGEWISE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    assert main(["pack", str(int8_bundle), "--for", "linux-aarch64", "-o", str(tmp_path / "kit.zip")]) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"pip found no wheel of numpy {version('numpy')} for linux-aarch64, Python 3." in told
    assert "or name a --wheelhouse" in told
    assert [file.name for file in tmp_path.rglob("*")] == ["cache", "wheels"]


def test_what_the_command_says(kit: Kit, int8_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "kit.zip"
    assert main(["pack", str(int8_bundle), "--for", "here", "-o", str(out)]) == 0
    told = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())
    assert told["content"] == read_bundle(int8_bundle).digest
    assert told["sha256"] == kit.sha256
    assert told["kit"].startswith(f"{out}, {out.stat().st_size / 1e6:.1f} MB, ")
    assert told["for"] == f"{read_target(None, None).platform}, Python {kit.told['python']}, glibc 2.28 or newer"
    assert f"onnxruntime {version('onnxruntime')}" in told["wheels"]
    assert main(["pack", str(int8_bundle), "-o", str(out), "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["sha256"], made["files"]) == (kit.sha256, kit.told["files"])
