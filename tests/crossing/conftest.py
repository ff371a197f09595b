"""Kits that `edgewise pack` makes of a real bundle, and a clean Python that installs them with no network."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgewise.errors import UserError
from edgewise.pack import Kit, pack

Packed = Callable[..., Kit]
Install = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def clean_python() -> list[str]:
    """The system's Python with its standard library alone, in a network that leads nowhere where this user may."""
    python = [os.path.realpath(getattr(sys, "_base_executable", sys.executable)), "-I", "-S"]
    code = "import importlib.util as u; print([m for m in ('numpy', 'onnxruntime', 'pip') if u.find_spec(m)])"
    done = subprocess.run([*python, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    for cut in (["unshare", "-n"], ["unshare", "-rn"]):
        if shutil.which("unshare") and not subprocess.run([*cut, "true"], capture_output=True, check=False).returncode:
            return [*cut, *python]
    return python


@pytest.fixture(scope="session")
def install(clean_python: list[str]) -> Install:
    """Starts a kit as its page says, without network, packages and environment."""

    def run(kit: Path, prefix: Path, *options: str) -> subprocess.CompletedProcess[str]:
        command = [*clean_python, str(kit), "--prefix", str(prefix), *options]
        path = {"PATH": os.environ["PATH"]}
        return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd="/", env=path)

    return run


@pytest.fixture(scope="session")
def packed() -> Packed:
    """`pack`, or a skipped test where no package index can be reached at all."""

    def run(bundle: Path, out: Path, **options: str) -> Kit:
        try:
            return pack(bundle, out, **options)
        except UserError as error:
            if "pip found no wheel" not in str(error):
                raise
            command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(out.parent), "packaging"]
            if subprocess.run(command, capture_output=True, check=False).returncode == 0:
                raise
            pytest.skip(f"no package index can be reached: {error}")

    return run


@pytest.fixture(scope="session")
def kit(packed: Packed, int8_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Kit:
    """Of the int8 bundle, for this machine and this Python."""
    return packed(int8_bundle, tmp_path_factory.mktemp("kit") / "kit.zip")
