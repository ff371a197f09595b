"""`import edgewise` brings next to nothing; what a verb or a load needs comes with it."""

from __future__ import annotations

import subprocess
import sys

import pytest


def modules(code: str) -> set[str]:
    """Names of the modules that a fresh interpreter has after running `code`, less those it has anyway."""
    found = [
        set(subprocess.run(
            [sys.executable, "-c", f"{text}\nimport sys\nprint(*sys.modules)"],
            stdout=subprocess.PIPE, text=True, check=True, timeout=120,
        ).stdout.split())
        for text in ("", code)
    ]  # fmt: skip
    return found[1] - found[0]


def test_import_edgewise_imports_no_other_module_of_ours() -> None:
    assert {m for m in modules("import edgewise") if m.startswith("edgewise")} == {"edgewise"}


@pytest.mark.parametrize("name", ["edgewise", "edgewise.runtime", "edgewise.runtime.model", "edgewise.stamp"])
def test_light_modules_leave_the_slow_ones_of_the_standard_library_alone(name: str) -> None:
    slow = {"logging", "asyncio", "concurrent.futures", "dataclasses", "inspect", "hashlib", "tempfile", "argparse"}
    assert slow & modules(f"import {name}") == set()


def test_load_and_fit_are_found_when_asked_for() -> None:
    found = modules("import edgewise\nassert callable(edgewise.load)")
    assert "onnxruntime" not in found
    assert "edgewise.bundle" not in found
