"""What tests of the profiler share."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def fake_nvml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A libnvidia-ml.so.1 that answers what the file $FAKE_NVML says."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    made, source = tmp_path_factory.mktemp("nvml") / "libnvidia-ml.so.1", Path(__file__).with_name("fake_nvml.c")
    subprocess.run(["cc", "-Wall", "-Werror", "-shared", "-fPIC", "-o", made, source], check=True)
    return made
