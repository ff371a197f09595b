"""`fit`: plan in, chosen bundle and report out. Tune, export, measure, select, confirm, report.

Each step finds what an earlier run finished, by a key of its inputs; one failing candidate becomes a measurement with
a reason, and the others go on.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from edgewise.arrival import arrivals_of
from edgewise.data import PARTS
from edgewise.errors import EdgewiseError
from edgewise.files import digest_json, sweep_partials
from edgewise.progress import Reporter
from edgewise.rundir import RunFolder
from edgewise.types import Measurement, Metric, Selection, Stage

if TYPE_CHECKING:
    from edgewise.bundle import Bundle
    from edgewise.data import Splits
    from edgewise.plan import CandidateSpec, Plan
    from edgewise.profiler import Store, Subject
    from edgewise.search import Search
    from edgewise.trainer import TuneResult


@dataclass(frozen=True)
class FitResult:
    """What came of a plan."""

    out: Path
    selections: tuple[Selection, ...]
    """One a device."""
    failed: tuple[str, ...] = ()
    """Candidates and recipes that failed, with their reasons."""
    left_open: int = 0
    """Points that may be better than the chosen one, and were not measured in full: the time was up."""
    chosen: Mapping[str, Path] = field(default_factory=dict, hash=False)
    """Device -> folder of the chosen bundle; a device for which nothing meets the budgets is not in it."""
    reused: bool = False
    """True when the plan had been finished before, and nothing was done."""

    @property
    def exit_code(self) -> int:
        """0 done; 3 nothing meets the budgets on some device; 4 done, but some candidates failed."""
        if any(s.device not in self.chosen for s in self.selections):
            return 3
        return 4 if self.failed else 0


def fit(
    plan: str | Path | Plan,
    *,
    out: str | Path | None = None,
    keep: bool = False,
    minutes: float | None = None,
    reporter: Reporter | None = None,
) -> FitResult:
    """Run a whole plan; started again, it repeats nothing that was finished.

    out: run folder, 'runs/<name of the plan>' unless given. keep: keep the bundles that were not chosen. minutes: of
    measuring; the best answer that they can give, and started again it goes on from there.

    Raises UserError for a plan, data or an environment that cannot be. Interrupted, it leaves finished steps in place.
    """
    from edgewise.data import load_splits
    from edgewise.plan import check_metrics, read_plan
    from edgewise.search import check_minutes, check_sampler

    check_minutes(minutes)
    plan = read_plan(plan) if isinstance(plan, str | Path) else plan
    check_metrics(plan)
    check_sampler(plan)
    folder = RunFolder(Path(out) if out is not None else Path("runs") / plan.path.stem)
    with folder.locked():
        say = reporter or Reporter(folder.log)
        with say.step("data"):
            splits = load_splits(plan.data, plan.task, plan.resolve)
        say.say(_rows_words(splits))
        races = plan.races or minutes is not None
        key = plan_key(plan, splits, races=races)
        if (done := _finished(folder, plan, key)) is not None:
            say.say(f"this plan was finished before: nothing to do (remove {folder.path} to start anew)")
            return done
        return _Fit(plan, folder, splits, say, key, keep, races=races, minutes=minutes).run()


def plan_key(plan: Plan, splits: Splits, *, races: bool = False) -> str:
    """Hash of what a run's answer depends on: the plan, the rows, the tools, whether it measured everything."""
    from edgewise.data import digest_rows
    from edgewise.exporter.build import TOOLS

    return digest_json(
        {
            "plan": repr((plan.candidates, plan.recipes, plan.targets, plan.devices, plan.budgets)),
            "choice": repr((plan.objective, plan.weights, plan.confidence, plan.profile)),
            **({"search": plan.search or "race"} if races else {}),
            "rows": {part: digest_rows(splits.part(part)) for part in PARTS},
            "labels": splits.labels,
            "tools": {name: version(name) for name in (*TOOLS, "peft")},
        }
    )


def _finished(folder: RunFolder, plan: Plan, key: str) -> FitResult | None:
    from edgewise.bundle import read_bundle
    from edgewise.selector.record import from_json

    state = folder.read_state()
    if state.get("key") != key or state.get("open") or not folder.selection.is_file():
        return None
    try:
        chosen = {device: folder.path / name for device, name in state["chosen"].items()}
        for path in chosen.values():
            read_bundle(path, verify="stamp")
        data = json.loads(folder.selection.read_text(encoding="utf-8"))
        selections = tuple(from_json(s) for s in data["devices"])
    except (EdgewiseError, ValueError, KeyError, TypeError):
        return None  # something was removed or changed: run the steps again, which find what is still there
    return FitResult(folder.path, selections, tuple(state["failed"]), chosen=chosen, reused=True)


def _rows_words(splits: Splits) -> str:
    parts = ", ".join(f"{len(splits.part(p))} {p}" for p in PARTS)
    left_out = f"; {splits.dropped} left out by the plan's rule" if splits.dropped else ""
    labels = f"; labels: {_some(splits.labels)}" if splits.labels else ""
    return f"  rows: {parts}{labels}{left_out}"


def _some(labels: Sequence[str], most: int = 12) -> str:
    more = f" and {len(labels) - most} more" if len(labels) > most else ""
    return ", ".join(labels[:most]) + more


class _Fit:
    """One run of a plan: what the steps share."""

    def __init__(
        self,
        plan: Plan,
        folder: RunFolder,
        splits: Splits,
        say: Reporter,
        key: str,
        keep: bool,
        *,
        races: bool,
        minutes: float | None,
    ) -> None:
        """races: measure as much as the choice needs, in so many minutes where they are limited."""
        self.plan, self.folder, self.splits, self.say, self.key, self.keep = plan, folder, splits, say, key, keep
        self.races, self.minutes = races, minutes
        self.failed: dict[str, str] = {}
        self.trained: dict[str, TuneResult] = {}

    def run(self) -> FitResult:
        from edgewise.profiler import Store

        folder = self.folder
        if self.plan.path.is_file():
            shutil.copyfile(self.plan.path, folder.plan)
        for place in (folder.path, folder.checkpoints, folder.bundles):
            sweep_partials(place)
        with Store(folder.store) as store:
            subjects = self._make_bundles(store)
            for subject in subjects:
                self._note_training(store, subject)
            search = self._search(store, subjects)
            if search is None:
                self._measure(store, subjects)
            selections = self._select(store, subjects, search)
            chosen = self._write_chosen(store, selections, subjects)
            self._write_results(store, selections, chosen)
        left_open = search.left_open() if search else 0
        if not self.keep and not left_open:
            self._prune()
        failed = tuple(f"{name}: {reason}" for name, reason in self.failed.items())
        names = {device: path.name for device, path in chosen.items()}
        folder.write_state({"key": self.key, "failed": failed, "chosen": names, "open": left_open})
        return FitResult(folder.path, selections, failed, left_open, chosen)

    # ---- tune and export

    def _make_bundles(self, store: Store) -> list[Subject]:
        subjects: list[Subject] = []
        for candidate in self.plan.candidates:
            try:
                subjects += self._candidate(store, candidate)
            except EdgewiseError as error:
                stage: Stage = "export" if candidate.name in self.trained or candidate.tune == "none" else "train"
                self._fail(store, candidate.name, "", stage, str(error))
        return subjects

    def _candidate(self, store: Store, candidate: CandidateSpec) -> list[Subject]:
        from edgewise.profiler import Subject

        if candidate.onnx is not None:
            bundle = self._import(candidate, candidate.onnx)
            return [Subject(candidate.name, bundle.manifest.source["recipe"], bundle)]
        checkpoint = self._checkpoint(candidate)
        from edgewise.exporter import export

        with self.say.step(f"export {candidate.name}"):
            results = export(
                checkpoint,
                self.plan.recipes,
                out=self.folder.bundles / candidate.name,
                task=self.plan.task,
                candidate=candidate.name,
                calibration=self.splits.train,
                # What int8 loses is measured on the device later; here val rows serve the search of max_drop alone.
                validation=self.splits.val if any(r.max_drop is not None for r in self.plan.recipes) else (),
                progress=self.say.update,
            )
        found = []
        for result in results:
            if result.bundle is None:
                self._fail(store, candidate.name, result.recipe.name, "export", result.reason)
            else:
                self._check_labels(candidate, result.bundle)
                found.append(Subject(candidate.name, result.recipe.name, result.bundle))
        return found

    def _checkpoint(self, candidate: CandidateSpec) -> Path:
        """The fine-tuned folder of a candidate: trained now, found finished, or given."""
        from edgewise.sources import local_folder
        from edgewise.training import needs_training, train_candidate

        if not needs_training(candidate):
            assert candidate.from_ is not None
            return local_folder(candidate.from_, self.plan.resolve)
        with self.say.step(f"tune {candidate.name}"):
            done = train_candidate(
                self.plan,
                candidate,
                self.splits,
                self.folder.checkpoints / candidate.name,
                finished={name: result.path for name, result in self.trained.items()},
                progress=self.say.update,
            )
        for warning in done.warnings:
            self.say.say(f"  {candidate.name}: {warning}")
        self.trained[candidate.name] = done
        return done.path

    def _import(self, candidate: CandidateSpec, onnx: str) -> Bundle:
        from edgewise.exporter import import_onnx

        with self.say.step(f"import {candidate.name}"):
            bundle = import_onnx(
                self.plan.resolve(onnx),
                out=self.folder.bundles / candidate.name / "given",
                task=self.plan.task,
                candidate=candidate.name,
                rows=self.splits.train,
            )
        self._check_labels(candidate, bundle)
        return bundle

    def _check_labels(self, candidate: CandidateSpec, bundle: Bundle) -> None:
        """A model that knows other labels than the data would be measured as wrong everywhere."""
        from edgewise.errors import CheckpointError

        if self.splits.labels and set(bundle.manifest.labels) != set(self.splits.labels):
            raise CheckpointError(
                f"candidate {candidate.name!r} has labels {list(bundle.manifest.labels)}, the data has "
                f"{list(self.splits.labels)}: set id2label in its config.json to the data's labels"
            )

    def _fail(self, store: Store, candidate: str, recipe: str, stage: Stage, reason: str) -> None:
        name = f"{candidate}/{recipe}" if recipe else candidate
        self.failed[name] = reason
        self.say.say(f"  {name} failed: {reason}")
        store.add(Measurement(candidate, recipe, None, None, "none", stage, "failed", reason))

    # ---- measure, select, confirm

    def _measure(self, store: Store, subjects: Sequence[Subject]) -> None:
        from edgewise.profiler import measure_accuracy, measure_latency

        plan, rows = self.plan, self.splits.val
        if not subjects:
            return
        with self.say.step(f"accuracy on {len(rows)} val rows"):
            measured = measure_accuracy(
                subjects, plan.targets, rows, store=store, devices=plan.devices, level=plan.confidence,
                reference=plan.reference, slices=plan.data.slices, progress=self.say.update,
            )  # fmt: skip
        with self.say.step("latency, start-up and memory in fresh processes"):
            measured += measure_latency(
                subjects, plan.targets, rows, store=store, devices=plan.devices, spec=plan.profile,
                level=plan.confidence, work=self.folder.rounds, arrivals=arrivals_of(plan.profile),
                progress=self.say.update,
            )  # fmt: skip
        for m in measured:
            if m.status == "failed" and m.target is not None:
                self.failed[f"{m.candidate}/{m.recipe} on {m.target.text()}"] = m.reason

    def _note_training(self, store: Store, subject: Subject) -> None:
        done = self.trained.get(subject.candidate)
        if done is None:
            return
        noted = [m for m in store.measurements() if m.stage == "train" and m.candidate == subject.candidate]
        if noted and noted[-1].status == "ok" and noted[-1].conditions.get("key") == done.key:
            return  # the latest counts: one that was trained anew, or mended, is another training
        conditions = {
            "strategy": done.strategy,
            "rows": done.rows,
            "steps": done.steps,
            "seed": done.seed,
            "train_loss": done.train_loss,
            "device": done.device,
            "trainable_parameters": done.trainable_parameters,
            "parameters": done.parameters,
            "key": done.key,
        }
        time = Metric("train_time", "s", done.seconds, method="wall time, one run", n=1, why="one run has no interval")
        store.add(
            Measurement(subject.candidate, "", None, None, "none", "train", conditions=conditions, metrics=(time,))
        )

    def _search(self, store: Store, subjects: Sequence[Subject]) -> Search | None:
        """What measures as much as the choice needs; None where everything is measured."""
        from edgewise.search import Search

        if not self.races or not subjects:
            return None
        return Search(self.plan, store, subjects, self.splits, self.folder.rounds, self.say, self.minutes)

    def _select(self, store: Store, subjects: Sequence[Subject], search: Search | None) -> tuple[Selection, ...]:
        from edgewise.confirm import Confirmer

        confirmer = Confirmer(self.plan, store, subjects, self.splits, self.folder.rounds, self.say, search)
        selections = tuple(confirmer.choose(device.name) for device in self.plan.devices)
        if search is not None:
            self.failed |= search.failed()
        return selections

    # ---- results

    def _write_chosen(
        self, store: Store, selections: Sequence[Selection], subjects: Sequence[Subject]
    ) -> dict[str, Path]:
        from edgewise.bundle import Bundle
        from edgewise.results import machines_of, write_chosen

        machines = machines_of(store.measurements())
        source = self.plan.data.path or self.plan.data.dataset
        counts = ", ".join(f"{len(self.splits.part(p))} {p}" for p in PARTS)
        data = f"{source}, {counts} rows, split by a hash of the text"

        by_digest = {s.bundle.digest: s.bundle for s in subjects if isinstance(s.bundle, Bundle)}
        chosen = {}
        self.folder.forget_chosen()  # of an earlier plan: they must not outlive their selection
        for selection in selections:
            path = self.folder.chosen(selection.device, len(selections))
            shutil.rmtree(path, ignore_errors=True)  # of a run that was killed before its selection stood there
            if selection.chosen is not None and selection.chosen.entry.content_digest is not None:
                bundle = by_digest[selection.chosen.entry.content_digest]
                write_chosen(bundle, selection, path, machine=machines.get(selection.device), data=data)
                chosen[selection.device] = path
        return chosen

    def _write_results(self, store: Store, selections: Sequence[Selection], chosen: Mapping[str, Path]) -> None:
        from edgewise.results import report_data, write_report_files, write_selection

        with self.say.step("report"):
            write_selection(self.folder, selections, chosen)
            data = report_data(
                store,
                selections,
                title=f"{self.plan.path.stem}: which model, in which form, on this device?",
                command=f"edgewise fit {self.plan.path} --out {self.folder.path}",
                plan=self.folder.plan.read_text(encoding="utf-8") if self.folder.plan.is_file() else "",
                texts={r.id: r.text or str(r.image or "") for r in self.splits.val},
                # Examples of changed answers are shown where an answer is one label.
                labels=self.splits.labels if self._one_label() else (),
                bundle=str(next(iter(chosen.values()), "chosen")),
            )
            write_report_files(self.folder, data)

    def _one_label(self) -> bool:
        from edgewise.metric_inputs import kind_of

        return kind_of(self.plan.task, self.plan.data.problem_type) == "class"

    def _prune(self) -> None:
        """Remove the bundles; the chosen one stands in its own folder, and every measurement stays."""
        for folder in (self.folder.bundles, self.folder.rounds):
            shutil.rmtree(folder, ignore_errors=True)
