"""`export`: a checkpoint becomes one bundle a recipe."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter
from typing import Any

from edgewise.bundle import Bundle, Manifest, digest_content, list_files, read_bundle, write_manifest
from edgewise.data import Row, digest_rows
from edgewise.errors import BundleError, EdgewiseError, UserError, need_extra
from edgewise.exporter import checkpoint as checkpoints
from edgewise.exporter.base import Base, make_base, prove
from edgewise.exporter.checkpoint import Checkpoint
from edgewise.exporter.graphs import read_graph
from edgewise.exporter.preprocessing import read_preprocessing, write_preprocessor
from edgewise.exporter.quantize import optimize_graph, quantize_graph, quantize_seq2seq, resolve_recipe, why_not
from edgewise.exporter.tracing import graph_files
from edgewise.files import digest_json, new_folder, no_space, sweep_partials
from edgewise.progress import Progress
from edgewise.types import Recipe, RunSettings, Task

GENERATION = "generation_config.json"
TOOLS = ("edgewise", "torch", "transformers", "optimum", "optimum-onnx", "onnx", "onnxruntime", "tokenizers")


@dataclass(frozen=True)
class ExportResult:
    """What came of one recipe."""

    recipe: Recipe
    bundle: Bundle | None
    """None when it failed."""
    reason: str = ""
    seconds: float = 0.0
    """0 when a finished bundle was found."""


def export(
    checkpoint: str | Path,
    recipes: Sequence[Recipe | str],
    *,
    out: str | Path,
    task: Task | None = None,
    candidate: str | None = None,
    calibration: Sequence[Row] = (),
    opset: int | None = None,
    progress: Progress | None = None,
) -> list[ExportResult]:
    """Export a fine-tuned checkpoint, one bundle a recipe, in `out/<recipe name>`.

    checkpoint: a folder that transformers' save_pretrained wrote, or `edgewise.prompts.save_prompt`.
    recipes: recipes or their short names; one that fails is reported with its reason, and the others go on.
    task: inferred from the config unless given.
    calibration: rows of train; they calibrate int8-static, and serve as inputs of the parity proof.
    opset: the ONNX opset; Optimum's default for the model unless given.
    progress: called as (done, total, what).

    Finished bundles with the same key are kept. Raises UserError for a checkpoint or a recipe that cannot be.
    """
    chosen = [Recipe.parse(r) if isinstance(r, str) else r for r in recipes]
    names = [r.name for r in chosen]
    source = checkpoints.read_checkpoint(Path(checkpoint))
    task = checkpoints.check_task(source, task)
    if len(set(names)) < len(names):
        raise UserError(f"recipes {names} name one recipe twice")
    folder = Path(out)
    sweep_partials(folder)
    keys = {r: bundle_key(source, r, calibration, opset) for r in chosen}
    done = {r: b for r in chosen if (b := _finished(folder / r.name, keys[r])) is not None}
    job = _Job(source, task, candidate or source.path.name, tuple(calibration), opset, folder, keys)
    results = []
    todo = [r for r in chosen if r not in done]
    base = job.export_base(progress, len(chosen)) if todo else None
    try:
        for i, recipe in enumerate(chosen):
            if progress:
                progress(i, len(chosen), f"{job.candidate}: {recipe.name}")
            results.append(ExportResult(recipe, done[recipe]) if recipe in done else job.make(recipe, base))
        if progress:
            progress(len(chosen), len(chosen), f"{job.candidate}: exported")
    finally:
        if base is not None:
            shutil.rmtree(base.folder, ignore_errors=True)
    return results


def bundle_key(source: Checkpoint, recipe: Recipe, calibration: Sequence[Row], opset: int | None) -> str:
    """Hash of what a bundle is made from."""
    return digest_json(
        {
            "weights": source.digest,
            "recipe": asdict(resolve_recipe(recipe)),
            "calibration": digest_rows(calibration),
            "opset": opset,
            "tools": tool_versions(),
        }
    )


def tool_versions() -> dict[str, str]:
    """Versions of what makes a bundle. Raises MissingExtraError where one is not installed."""
    try:
        return {name: version(name) for name in TOOLS}
    except PackageNotFoundError as error:
        raise need_extra("build", error) from error


def _finished(folder: Path, key: str) -> Bundle | None:
    try:
        bundle = read_bundle(folder, verify="size")
    except BundleError:
        return None
    return bundle if bundle.manifest.bundle_key == key else None


@dataclass(frozen=True)
class _Job:
    source: Checkpoint
    task: Task
    candidate: str
    calibration: tuple[Row, ...]
    opset: int | None
    out: Path
    keys: dict[Recipe, str]

    def export_base(self, progress: Progress | None, total: int) -> Base:
        if progress:
            progress(0, total, f"{self.candidate}: PyTorch to ONNX")
        self.out.mkdir(parents=True, exist_ok=True)
        self._check_room()
        return make_base(self.source, self.task, self.calibration, self.out, self.opset)

    def _check_room(self) -> None:
        """Fail before the work, not in the middle of it."""
        weights = sum(p.stat().st_size for p in self.source.path.glob("*.safetensors"))
        needed = weights * (2 + len(self.keys))
        if shutil.disk_usage(self.out).free < needed:
            raise no_space(self.out, needed)

    def make(self, recipe: Recipe, base: Base | None) -> ExportResult:
        """Make one bundle; what goes wrong becomes a reason."""
        assert base is not None
        if reason := why_not(recipe, self.task):
            return ExportResult(recipe, None, reason)
        start = perf_counter()
        try:
            bundle = self._write(recipe, base)
        except (UserError, OSError):
            raise
        except Exception as error:  # Optimum, onnx and onnxruntime raise many kinds; the others must go on
            kind = "" if isinstance(error, EdgewiseError) else f"{type(error).__name__}: "
            return ExportResult(recipe, None, kind + " ".join(str(error).split())[:500], perf_counter() - start)
        return ExportResult(recipe, bundle, seconds=perf_counter() - start)

    def _write(self, recipe: Recipe, base: Base) -> Bundle:
        path = self.out / recipe.name
        with new_folder(path) as folder:
            (folder / "onnx").mkdir()
            with tempfile.TemporaryDirectory(dir=self.out, prefix=".graph.", suffix=".partial") as work:
                graphs = self._graphs(recipe, base, Path(work))
                for graph in [g for name in graph_files(self.task) for g in graphs.glob(f"{name}*")]:
                    shutil.copyfile(graph, folder / "onnx" / graph.name)  # and its external data
            shutil.copyfile(self.source.path / "config.json", folder / "config.json")
            if "generation" in self.task and (base.folder / GENERATION).is_file():
                shutil.copyfile(base.folder / GENERATION, folder / GENERATION)
            write_preprocessor(self.source.path, folder, self.task)
            draft = write_manifest(folder, self._manifest(folder, recipe))
            write_manifest(folder, self._manifest(folder, recipe, **prove(draft, base, recipe)))
        return read_bundle(path)

    def _graphs(self, recipe: Recipe, base: Base, work: Path) -> Path:
        """The folder that holds the recipe's graphs, made from those of `base`."""
        source = base.folder
        if recipe.optimize:
            source = optimize_graph(source, work / "optimized", recipe.optimize).parent
        if recipe.quantized:
            chosen, out = resolve_recipe(recipe), work / "quantized"
            if self.task == "text2text-generation":
                return quantize_seq2seq(source, out, chosen)
            return quantize_graph(source, out, chosen, self.calibration, base.preprocessor, base.max_length).parent
        return source

    def _manifest(self, folder: Path, recipe: Recipe, **proof: Any) -> Manifest:
        graphs = tuple(read_graph(folder, f"onnx/{n}", recipe.optimize or "none") for n in graph_files(self.task))
        inputs = [i.name for i in graphs[0].inputs]
        files = list_files(folder)
        values: dict[str, Any] = {
            "task": self.task,
            "problem_type": self.source.problem_type if self.task == "text-classification" else None,
            "labels": () if "generation" in self.task else self.source.labels,
            "pooling": None,
            "preprocessing": read_preprocessing(folder, self.source.config, inputs, self.task),
        }
        return Manifest(
            **values,
            family=self.source.family,
            recipe=resolve_recipe(recipe),
            source={
                "recipe": recipe.name,
                "candidate": self.candidate,
                "checkpoint": self.source.path.name,
                "digest": self.source.digest,
                "calibration_rows": len(self.calibration[: recipe.calibration_rows])
                if recipe.precision == "int8-static"
                else 0,
            },
            bundle_key=self.keys[recipe],
            content_digest=digest_content(values, files),
            graphs=graphs,
            files=files,
            versions=tool_versions(),
            run=RunSettings(),
            **{"parity": {}, "golden": (), "loads_in": {}, **proof},
        )
