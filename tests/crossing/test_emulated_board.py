"""A kit, and a measurement, on an emulated aarch64: Debian's Python for it and onnxruntime's own kernels, under QEMU.

What is not emulated: speed, and a board's own kernel.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from edgewise.assets import cache_folder
from edgewise.bundle import read_bundle
from edgewise.data import Row
from edgewise.pack import Kit
from edgewise.profiler import Store, Subject, measure_accuracy
from edgewise.runtime import load
from edgewise.types import Device, RunSettings, Target

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not all(map(shutil.which, ("qemu-aarch64", "apt-get", "dpkg"))), reason="needs qemu-aarch64 and Debian's apt"
    ),
]
PYTHON = "3.11"
CORE = """processor\t: {}
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm crc32 cpuid
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd08
CPU revision\t: 3
"""
"""Of /proc/cpuinfo of a Raspberry Pi 4: with that of this machine onnxruntime does not start."""


@pytest.fixture(scope="session")
def board() -> Path:
    """A Python of aarch64, in a root folder with what it needs of Debian."""
    home = cache_folder() / "tests" / "aarch64"
    home.parent.mkdir(parents=True, exist_ok=True)
    python = home / "root" / "usr" / "bin" / f"python{PYTHON}"
    with FileLock(home.with_suffix(".lock")):
        if not (home / "made").exists():
            shutil.rmtree(home, ignore_errors=True)
            _download(home)
            for package in (home / "cache" / "archives").glob("*.deb"):
                subprocess.run(["dpkg", "-x", package, home / "root"], check=True)
            (home / "root" / "proc").mkdir()
            (home / "root" / "proc" / "cpuinfo").write_text("\n".join(CORE.format(i) for i in range(2)) + "\n")
            python.rename(real := python.with_name("emulated"))
            emulator = f"qemu-aarch64 -cpu cortex-a72 -L {home / 'root'}"
            # Started by this name: Python looks for its library from there, and a kit's launcher starts it again.
            python.write_text(f'#!/bin/sh\nexec {emulator} -0 "$0" {real} "$@"\n')
            python.chmod(0o755)
            (home / "made").touch()
    return python


def _download(home: Path) -> None:
    """Debian's packages for aarch64, by an apt with a state of its own: the one of this machine is not touched."""
    for folder in ("state/lists/partial", "cache/archives/partial"):
        (home / folder).mkdir(parents=True)
    (home / "status").touch()
    own = {"Dir::State": home / "state", "Dir::State::status": home / "status", "Dir::Cache": home / "cache"}
    options = [*(f"-o{k}={v}" for k, v in own.items()), "-oAPT::Architecture=arm64", "-oAPT::Architectures=arm64"]
    wanted = ["install", "--download-only", "--yes", "--no-install-recommends", f"python{PYTHON}", "libstdc++6"]
    for command in (["update"], wanted):
        done = subprocess.run(["apt-get", *options, *command], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"no Python {PYTHON} for aarch64 from Debian: {done.stderr[-300:]}")


@pytest.fixture(scope="module")
def arm_kit(packed: Callable[..., Kit], int8_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Kit:
    """Of the int8 bundle, which was made here."""
    out = tmp_path_factory.mktemp("arm") / "kit.zip"
    return packed(int8_bundle, out, platform="linux-aarch64", python=PYTHON)


def test_a_kit_installs_and_answers_as_here(board: Path, arm_kit: Kit, int8_bundle: Path, tmp_path: Path) -> None:
    prefix, texts = tmp_path / "answers", ["a fine film", "a dull mess"]
    done = subprocess.run(
        [board, arm_kit.path, "--prefix", prefix], capture_output=True, text=True, check=False,
        env={"PATH": os.environ["PATH"]},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "golden answers passed: 8 inputs, 0 changed" in done.stdout
    told = subprocess.run([prefix / "current" / "run", *texts], capture_output=True, text=True, check=True).stdout
    with load(int8_bundle) as model:
        here = model(texts)
    lines = [line.split("\t") for line in told.splitlines()]
    assert [line[0] for line in lines] == [answer["label"] for answer in here]
    assert [float(line[1]) for line in lines] == pytest.approx([answer["score"] for answer in here], abs=0.02)


def test_it_is_measured_as_another_machine(
    board: Path, arm_kit: Kit, int8_bundle: Path, review_rows: tuple[Row, ...], tmp_path: Path
) -> None:
    """As a device with an interpreter of its own, which has what a kit has."""
    site = board.parents[1] / "lib" / "python3" / "dist-packages"
    shutil.rmtree(site, ignore_errors=True)
    with zipfile.ZipFile(arm_kit.path) as archive:
        for name in arm_kit.told["files"]:
            if name.startswith("wheels/"):
                with archive.open(name) as file, zipfile.ZipFile(file) as wheel:
                    wheel.extractall(site)
    subject = Subject("tiny", "int8", read_bundle(int8_bundle))
    devices = (Device(), Device("board", python=str(board)))
    targets = [Target(device.name, RunSettings(max_length=32)) for device in devices]
    rows = [row for row in review_rows[:40] if row.label is not None]
    with Store(tmp_path / "m.sqlite") as store:
        found = measure_accuracy([subject], targets, rows, store=store, devices=devices)
        answered = [m for m in found if m.scenario == "accuracy"]
        answers = [[o.answer for o in store.outcomes(m.id or 0)] for m in answered]
    assert [m.reason for m in answered] == ["", ""]
    machines = [m.conditions["fingerprint"]["machine"] for m in answered]
    assert machines[1] == "aarch64"
    assert len({m.conditions["fingerprint_digest"] for m in answered}) == len(set(machines))
    assert answered[1].conditions["fingerprint"]["flags"] == ["neon"]
    assert len(answers[0]) == len(answers[1]) == len(rows)
    # The sums of int8 products are whole numbers everywhere; what is float between them differs in the last digits.
    assert sum(a != b for a, b in zip(*answers, strict=True)) <= 1
