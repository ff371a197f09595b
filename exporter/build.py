"""`export`: a checkpoint becomes one bundle a recipe."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter
from typing import Any

from edgewise.bundle import MANIFEST, Bundle, Manifest, digest_content, list_files, read_bundle, write_manifest
from edgewise.data import Row, digest_rows
from edgewise.errors import BundleError, DataError, EdgewiseError, PlanError, UserError, need_extra
from edgewise.exporter import checkpoint as checkpoints
from edgewise.exporter.base import Base, make_base
from edgewise.exporter.checkpoint import Checkpoint
from edgewise.exporter.forms import Made, all_recipes, make_graphs, why_not
from edgewise.exporter.graphs import read_graph
from edgewise.exporter.lean_trace import free_memory
from edgewise.exporter.pooling import Pooling, read_pooling
from edgewise.exporter.preprocessing import read_preprocessing, write_preprocessor
from edgewise.exporter.proof import Validation, prove
from edgewise.exporter.quantize import resolve_recipe
from edgewise.exporter.tolerance import decision_of
from edgewise.exporter.tracing import graph_files
from edgewise.files import check_out, digest_json, new_folder, no_space, sweep_partials
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
    validation: Sequence[Row] = (),
    confirm: Sequence[Row] = (),
    pooling: Pooling | None = None,
    opset: int | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    progress: Progress | None = None,
) -> list[ExportResult]:
    """Export a fine-tuned checkpoint, one bundle a recipe, in `out/<recipe name>` (`Recipe.folder`).

    checkpoint: a folder that transformers' save_pretrained wrote, or `edgewise.prompts.save_prompt`.
    recipes: recipes or their short names, or 'all'; one that fails is reported with its reason, and the others go on.
    task: inferred from the config unless given.
    calibration: rows of train; they calibrate int8-static, say which vocabulary is needed, and serve as inputs of the
        parity proof.
    validation: labelled rows of val: the drop of each quantized form against fp32 is measured on them, and the search
        for the nodes to keep in fp32 (`max_drop`) is judged by them.
    confirm: rows that had no part in any of this: the winner of that search is judged on them once.
    pooling: of feature extraction; what the folder says, or the family's usual one, unless given.
    opset: the ONNX opset; Optimum's default for the model unless given.
    trust_remote_code: run the code that comes with the checkpoint. allow_pickle: read pickled weights.
    progress: called as (done, total, what).

    Finished bundles with the same key are kept. Raises UserError for a checkpoint or a recipe that cannot be.
    """
    source = checkpoints.read_checkpoint(
        Path(checkpoint), trust_remote_code=trust_remote_code, allow_pickle=allow_pickle
    )
    task = checkpoints.check_task(source, task)
    chosen = _parse(recipes, task, source.family, bool(calibration))
    if opset is not None:
        check_opset(opset)
    job = _Job(
        source=source, task=task, candidate=candidate or source.path.name, calibration=tuple(calibration),
        validation=tuple(validation), confirm=tuple(confirm), opset=opset, out=Path(out), recipes=tuple(chosen),
        pooling=read_pooling(source.path, source.config, task, pooling),
        say=_Say(progress, len(chosen), candidate or source.path.name),
    )  # fmt: skip
    job.check_rows()
    job.check_places()
    sweep_partials(job.out)
    try:
        return [job.result(i, recipe) for i, recipe in enumerate(chosen)]
    finally:
        job.close()


def _parse(recipes: Sequence[Recipe | str], task: Task, family: str, rows: bool) -> list[Recipe]:
    chosen: list[Recipe] = []
    for recipe in recipes:
        if recipe == "all":
            chosen += all_recipes(task, family, rows)
        else:
            chosen.append(Recipe.parse(recipe) if isinstance(recipe, str) else recipe)
    names = [r.name for r in chosen]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"recipes {names} name {twice[0]} twice")
    return chosen


def check_opset(opset: int) -> None:
    """Raise UserError for an opset that torch's exporter or the installed onnx does not know."""
    import onnx

    newest = onnx.defs.onnx_opset_version()
    if not 11 <= opset <= newest:
        raise UserError(f"opset {opset} cannot be written: expected 11 to {newest}, or none for Optimum's default")


def bundle_key(source: Checkpoint, recipe: Recipe, calibration: Sequence[Row], opset: int | None, **more: Any) -> str:
    """Hash of what a bundle is made from."""
    return digest_json(
        {
            "weights": source.digest,
            "recipe": asdict(resolve_recipe(recipe)),
            "calibration": digest_rows(calibration),
            "opset": opset,
            "tools": tool_versions(),
            **({"results": "float32"} if recipe.precision == "int8-static" else {}),  # see product_results.py
            **{name: value for name, value in more.items() if value},
        }
    )


def tool_versions() -> dict[str, str]:
    """Versions of what makes a bundle. Raises MissingExtraError where one is not installed."""
    try:
        return {name: version(name) for name in TOOLS}
    except PackageNotFoundError as error:
        raise need_extra("build", error) from error


def finished(folder: Path, key: str) -> Bundle | None:
    """The bundle in `folder`, where it was made from what `key` says; None otherwise."""
    try:
        bundle = read_bundle(folder, verify="stamp")
    except BundleError:
        return None
    return bundle if bundle.manifest.bundle_key == key else None


class _Say:
    """Progress in steps of recipes, with what is being done."""

    def __init__(self, progress: Progress | None, total: int, candidate: str) -> None:
        self.progress, self.total, self.candidate = progress, total, candidate
        self.done, self.name = 0, ""

    def __call__(self, what: str) -> None:
        if self.progress:
            name = f"{self.name}: " if self.name else ""
            self.progress(self.done, self.total, f"{self.candidate}: {name}{what}")


@dataclass(frozen=True)
class _Job:
    source: Checkpoint
    task: Task
    candidate: str
    calibration: tuple[Row, ...]
    validation: tuple[Row, ...]
    confirm: tuple[Row, ...]
    opset: int | None
    out: Path
    recipes: tuple[Recipe, ...]
    pooling: tuple[Pooling, bool] | None
    say: _Say
    bases: dict[tuple[str, int | None], Base] = field(default_factory=dict)
    """Made once for all recipes of one vocabulary and length."""
    judged: dict[Path, Validation] = field(default_factory=dict)
    """By the base's folder."""
    made: dict[Recipe, Bundle] = field(default_factory=dict)
    """By resolved recipe: two names of one recipe are made once."""

    def check_rows(self) -> None:
        """Raise DataError where a recipe needs rows that there are not, before the work."""
        for recipe in self.recipes:
            if why_not(recipe, self.task, self.source.family):
                continue
            if recipe.precision == "int8-static" and not self.calibration:
                raise DataError(
                    f"{recipe.name} needs rows to calibrate with, and there are none: give --data, or take int8-dynamic"
                )
            if recipe.vocabulary == "task" and not self.calibration:
                raise DataError(f"{recipe.name} needs the rows whose text it must know: give --data")
            if recipe.max_drop is not None and not self.validation:
                raise DataError(f"{recipe.name} needs labelled val rows to measure the drop on: give --val or --data")

    def check_places(self) -> None:
        """Raise PlanError where a folder that a bundle would replace is no bundle."""
        if self.out.is_file():
            raise PlanError(f"out is {str(self.out)!r}, a file: name a new folder")
        for recipe in self.recipes:
            check_out(self.out / recipe.folder, MANIFEST, [self.source.path])

    def result(self, number: int, recipe: Recipe) -> ExportResult:
        """Make one bundle, or find it finished; what goes wrong becomes a reason."""
        self.say.done, self.say.name = number, recipe.name
        if reason := why_not(recipe, self.task, self.source.family):
            return ExportResult(recipe, None, reason)
        start = perf_counter()
        key, resolved = self._key(recipe), resolve_recipe(recipe)
        bundle = finished(self.out / recipe.folder, key)
        if bundle is not None:
            self.made[resolved] = bundle
            return ExportResult(recipe, bundle)
        try:
            twin = self.made.get(resolved)
            bundle = self._write(recipe, key) if twin is None else self._copy(twin, recipe)
        except (UserError, OSError):
            raise
        except Exception as error:  # Optimum, onnx and onnxruntime raise many kinds; the others must go on
            kind = "" if isinstance(error, EdgewiseError) else f"{type(error).__name__}: "
            return ExportResult(recipe, None, kind + " ".join(str(error).split())[:500], perf_counter() - start)
        self.made[resolved] = bundle
        free_memory()  # of this recipe, before the graphs of the next stand beside it
        return ExportResult(recipe, bundle, seconds=perf_counter() - start)

    def close(self) -> None:
        """Remove what was made for all recipes."""
        for base in self.bases.values():
            shutil.rmtree(base.folder, ignore_errors=True)
        sweep_partials(self.out)

    # ---- what is made once

    def _key(self, recipe: Recipe) -> str:
        judged = digest_rows(self.validation) if self.validation else None
        return bundle_key(
            self.source, recipe, self.calibration, self.opset, validation=judged,
            confirm=digest_rows(self.confirm) if self.confirm and recipe.max_drop is not None else None,
            pooling=self.pooling,
        )  # fmt: skip

    def base(self, recipe: Recipe) -> Base:
        """The fp32 graphs that a recipe starts from."""
        key = (recipe.vocabulary, recipe.length)
        if key not in self.bases:
            self._release()
            self.out.mkdir(parents=True, exist_ok=True)
            if not self.bases:
                self._check_room()
            source, vocabulary = self.source, None
            if recipe.vocabulary == "task":
                from edgewise.exporter.trimmed import trim

                self.say("smaller vocabulary")
                folder = Path(tempfile.mkdtemp(dir=self.out, prefix=".trimmed.", suffix=".partial"))
                # By rows of train alone: val rows then show what an unseen text loses.
                source, vocabulary = trim(self.source, self.task, self.calibration, folder / self.source.path.name)
            self.say("PyTorch to ONNX")
            base = make_base(source, self.task, self.calibration, self.out, self.opset, recipe.length)
            self.bases[key] = replace(base, vocabulary=vocabulary)
        return self.bases[key]

    def _release(self) -> None:
        """Let go of the bases that no recipe to come starts from; of labels they are what smaller vocabularies are
        held against.
        """
        if self.validation and decision_of(self.task) != "word":
            return
        needed = {(r.vocabulary, r.length) for r in self.recipes[self.say.done :]}
        for key in [k for k in self.bases if k not in needed]:
            base = self.bases.pop(key)
            self.judged.pop(base.folder, None)
            shutil.rmtree(base.folder, ignore_errors=True)
        free_memory()

    def _check_room(self) -> None:
        """Fail before the work, not in the middle of it."""
        weights = sum(p.stat().st_size for p in self.source.weights)
        needed = weights * (2 + len(self.recipes))
        if shutil.disk_usage(self.out).free < needed:
            raise no_space(self.out, needed)

    # ---- one bundle

    def _write(self, recipe: Recipe, key: str) -> Bundle:
        base, path = self.base(recipe), self.out / recipe.folder
        with (
            new_folder(path) as folder,
            tempfile.TemporaryDirectory(dir=self.out, prefix=".graph.", suffix=".partial") as work,
        ):
            made = self._graphs(resolve_recipe(recipe), base, Path(work))
            (folder / "onnx").mkdir()
            for graph in [g for name in graph_files(self.task) for g in made.folder.glob(f"{name}*")]:
                shutil.copyfile(graph, folder / "onnx" / graph.name)  # and its external data
            shutil.copyfile(base.source.path / "config.json", folder / "config.json")
            if "generation" in self.task and (base.folder / GENERATION).is_file():
                shutil.copyfile(base.folder / GENERATION, folder / GENERATION)
            write_preprocessor(base.source.path, folder, self.task)
            draft = write_manifest(folder, self._manifest(folder, recipe, made, base, key))
            free_memory()  # of making it, before it is run
            self.say("parity with PyTorch")
            proof = prove(draft, made, self._validation(base, recipe.length))
            write_manifest(folder, replace(draft.manifest, **proof))
        return read_bundle(path)

    def _graphs(self, recipe: Recipe, base: Base, work: Path) -> Made:
        if recipe.max_drop is None:
            return make_graphs(recipe, base, work, self.calibration, self.say)
        from edgewise.exporter.guarded import make_guarded

        return make_guarded(recipe, work, self.calibration, self._validation(base, recipe.length), self.say)

    def _validation(self, base: Base, length: int | None = None) -> Validation:
        if base.folder not in self.judged:
            pooling = self.pooling[0] if self.pooling else None
            # Words of another vocabulary cannot be compared; labels and features can.
            whole = base.vocabulary is not None and decision_of(self.task) != "word"
            self.judged[base.folder] = Validation(
                base, self.source.problem_type, self.validation, self.confirm, pooling,
                against=self._validation(self.base(Recipe(length=length))) if whole else None,
            )  # fmt: skip
        return self.judged[base.folder]

    def _copy(self, twin: Bundle, recipe: Recipe) -> Bundle:
        """The same graphs under another name."""
        with new_folder(self.out / recipe.folder) as folder:
            shutil.copytree(twin.path, folder, dirs_exist_ok=True)
            write_manifest(folder, replace(twin.manifest, source={**twin.manifest.source, "recipe": recipe.name}))
        return read_bundle(self.out / recipe.folder)

    def _manifest(self, folder: Path, recipe: Recipe, made: Made, base: Base, key: str) -> Manifest:
        """Without the proof."""
        level = "extended, saved" if recipe.offline else recipe.optimize or "none"
        graphs = tuple(read_graph(folder, f"onnx/{n}", level) for n in graph_files(self.task))
        inputs = [i.name for i in graphs[0].inputs]
        preprocessing = read_preprocessing(folder, base.source.config, inputs, self.task)
        if recipe.length is not None:
            preprocessing = {**preprocessing, "max_length": base.max_length, "length": recipe.length}
        if self.pooling is not None:
            preprocessing = {**preprocessing, "normalize": self.pooling[1]}
        values: dict[str, Any] = {
            "task": self.task,
            "problem_type": self.source.problem_type if self.task == "text-classification" else None,
            "labels": self.source.labels if self.task.endswith("classification") else (),
            "pooling": self.pooling[0] if self.pooling else None,
            "preprocessing": preprocessing,
        }
        files = list_files(folder)
        return Manifest(
            **values,
            family=self.source.family,
            recipe=made.recipe,
            source={
                "recipe": recipe.name,
                "candidate": self.candidate,
                "checkpoint": self.source.path.name,
                "digest": self.source.digest,
                "calibration_rows": len(self.calibration[: recipe.calibration_rows])
                if recipe.precision == "int8-static"
                else 0,
            },
            bundle_key=key,
            content_digest=digest_content(values, files),
            graphs=graphs,
            files=files,
            versions=tool_versions(),
            run=RunSettings(),
            parity={},
            golden=(),
            loads_in={},
        )
