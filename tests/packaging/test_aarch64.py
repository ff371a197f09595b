"""What a board installs comes as wheels: pip says so, from the index's metadata, without downloading them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ON_A_DEVICE = ("image", "chat", "worker")
"""The extras that a device may want."""
PLATFORMS = ("manylinux2014_aarch64", "manylinux_2_17_aarch64", "manylinux_2_27_aarch64", "manylinux_2_28_aarch64")
"""Of Linux with glibc 2.28 or newer: Debian 10, Ubuntu 20.04, Raspberry Pi OS of 2021, and later."""


def declared() -> list[str]:
    """Names of what the base install and the extras of a device declare."""
    lines = PROJECT["dependencies"] + [r for extra in ON_A_DEVICE for r in PROJECT["optional-dependencies"][extra]]
    return [re.split(r"[^A-Za-z0-9_.-]", line)[0] for line in lines]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    return {line.partition("==")[0].lower(): line for line in lines}


BELOW = ("protobuf", "flatbuffers", "packaging", "MarkupSafe")
"""What these need in turn: onnxruntime the first three, Jinja2 the last."""


def test_the_page_tells_of_every_package() -> None:
    page = (ROOT / "docs" / "embed.md").read_text(encoding="utf-8").lower()
    assert [name for name in [*declared(), *BELOW] if name.lower() not in page] == []


@pytest.mark.slow  # asks the package index
@pytest.mark.parametrize("python", ["3.11", "3.14"])
def test_every_package_of_a_device_has_an_aarch64_wheel(python: str, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--dry-run", "--quiet"]
    command += ["--ignore-installed", "--report", str(report), "--target", str(tmp_path / "nowhere")]
    command += ["--only-binary=:all:", "--no-deps", "--implementation", "cp", "--python-version", python]
    command += [word for platform in PLATFORMS for word in ("--platform", platform)]
    wanted = [pins()[name.lower()] for name in [*declared(), *BELOW]]
    done = subprocess.run([*command, *wanted], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    files = [Path(one["download_info"]["url"]).name for one in json.loads(report.read_text())["install"]]
    assert len(files) == len(wanted)
    assert [name for name in files if not re.search(r"(aarch64|-any)\.whl$", name)] == []
