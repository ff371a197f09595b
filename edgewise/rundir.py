"""The run folder that `fit` writes, and the lock that keeps two plans from writing to one."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgewise.errors import PlanError, StoreError
from edgewise.files import write_json


@dataclass(frozen=True)
class RunFolder:
    """Knows the names in a run folder."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        """Fine-tuned models, one folder a candidate."""
        return self.path / "checkpoints"

    @property
    def bundles(self) -> Path:
        """One folder a candidate, in it one bundle a recipe; pruned at the end unless kept."""
        return self.path / "bundles"

    @property
    def store(self) -> Path:
        return self.path / "measurements.sqlite"

    @property
    def rounds(self) -> Path:
        """Raw rounds of an interrupted measurement."""
        return self.path / "rounds"

    @property
    def selection(self) -> Path:
        return self.path / "selection.json"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def log(self) -> Path:
        return self.path / "fit.log"

    @property
    def plan(self) -> Path:
        """The plan as it was run."""
        return self.path / "plan.yaml"

    def chosen(self, device: str, devices: int) -> Path:
        """The chosen bundle; named after its device where the plan has several."""
        return self.path / ("chosen" if devices == 1 else f"chosen-{device}")

    def forget_chosen(self) -> None:
        """Remove the chosen bundles of the run before, of whichever devices, as its selection names them."""
        try:
            told = json.loads(self.selection.read_text(encoding="utf-8"))["chosen"].values()
            names = [Path(one["path"]).name for one in told]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return
        for name in names:
            if name == "chosen" or name.startswith("chosen-"):
                shutil.rmtree(self.path / name, ignore_errors=True)

    def read_state(self) -> dict[str, Any]:
        """What an earlier run wrote at its end; {} when there was none."""
        try:
            state = json.loads((self.path / "fit.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return state if isinstance(state, dict) else {}

    def write_state(self, state: dict[str, Any]) -> None:
        write_json(self.path / "fit.json", state)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for one `fit` at a time; the lock goes with the process, however it ends."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            file = (self.path / ".lock").open("a+")
        except (FileExistsError, NotADirectoryError, PermissionError) as error:
            raise PlanError(f"--out {self.path} cannot be a run folder: {error.strerror}") from error
        with file:
            if not _lock(file.fileno()):
                raise PlanError(f"another `edgewise fit` is writing to {self.path}: wait for it, or use another --out")
            yield


def _lock(handle: int) -> bool:
    if os.name == "nt":
        return True  # no flock there; two plans in one folder are the user's care
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def store_path(given: str) -> Path:
    """The measurement store that a user means: a file, or a run folder that has one. Raises StoreError."""
    path = Path(given)
    path = RunFolder(path).store if path.is_dir() else path
    if not path.is_file():
        raise StoreError(f"{path}: no such measurement store; `edgewise fit` or `edgewise profile` makes one")
    if path.stat().st_size == 0:  # to open it would make a store of it
        raise StoreError(
            f"{path} is an empty file, no measurement store; `edgewise fit` or `edgewise profile` makes one"
        )
    return path
