"""A device sends nothing that nobody asked for: onnxruntime's telemetry does not start."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_LOAD = "import sys, edgewise; edgewise.load(sys.argv[1])('a fine film')"
_SILENT = ("CI", "TF_BUILD", "GITHUB_ACTIONS", "ORT_RUNNING_UNIT_TESTS", "ORT_DISABLE_TELEMETRY")
"""What keeps it from starting, so that the test would show nothing."""


def _left(code: str, bundle: Path, home: Path, **told: str) -> list[str]:
    """Names of the files that a process leaves in its home and its folder for temporary files."""
    (home / "tmp").mkdir(parents=True)
    keep = {k: v for k, v in os.environ.items() if k not in _SILENT and not k.startswith("XDG_")}
    told |= {"HOME": str(home), "TMPDIR": str(home / "tmp")}
    subprocess.run([sys.executable, "-c", code, str(bundle)], env=keep | told, check=True, timeout=120)
    return sorted(f.name for f in home.rglob("*") if f.is_file())


def test_nothing_is_gathered_unless_it_is_asked_for(int8_bundle: Path, tmp_path: Path) -> None:
    theirs = {".ses", "deviceid", "onnxruntime.db"}
    assert theirs.isdisjoint(_left(_LOAD, int8_bundle, tmp_path / "ours"))
    asked = set(_left(_LOAD, int8_bundle, tmp_path / "asked", ORT_DISABLE_TELEMETRY="0"))
    plain = set(_left("import onnxruntime", int8_bundle, tmp_path / "plain"))
    assert theirs & asked == theirs & plain  # as the wheel does by itself, which on Linux is to gather
