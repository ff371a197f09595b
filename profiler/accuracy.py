"""Accuracy and F1 through the runtime, with the outcome of every row; and what a bundle loses against its reference.

Nothing is timed here, so as many workers run at the same time as there are cores.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any, cast

from edgewise.data import Row
from edgewise.errors import DataError, EdgewiseError, NoSpaceError, WorkerError
from edgewise.files import digest_json
from edgewise.paired import check_level
from edgewise.profiler import likelihood
from edgewise.profiler.comparison import compare_with_reference
from edgewise.profiler.joining import answer_settings
from edgewise.profiler.plumbing import (
    Prints,
    Subject,
    Wanted,
    all_of_them,
    check_rows,
    check_subject,
    cores,
    device_conditions,
    fingerprints,
    hashing_s,
    held_to,
    job_inputs,
    job_run,
    job_subject,
    length_of,
    no_progress,
    pick_devices,
    rows_apart_from_slices,
    token_distribution,
)
from edgewise.profiler.proportions import confusion, f1_bounds, wilson_bounds
from edgewise.profiler.quality import (
    answer_number,
    judged_without_labels,
    kind_of_subject,
    quality_metrics,
    reference_of,
)
from edgewise.profiler.results import Answer, WorkerResult
from edgewise.profiler.store import MeasurementKey, Outcome, Store
from edgewise.profiler.transport import Children, run_job
from edgewise.progress import Progress
from edgewise.runtime.likelihood import SHARE, WINDOW
from edgewise.slices import Slice, make_slices
from edgewise.types import Device, Measurement, Metric, Stage, Target
from edgewise.units import WORST

_REUSED = "rows that are not cut at this length were answered once, at the longer one: the same tokens, one text a call"


def measure_accuracy(
    subjects: Sequence[Subject],
    targets: Sequence[Target],
    rows: Sequence[Row],
    *,
    store: Store,
    devices: Sequence[Device] = (Device(),),
    level: float = 0.95,
    stage: Stage = "profile",
    reference: str = "fp32",
    workers: int | None = None,
    slices: Sequence[str] = (),
    wanted: Wanted = all_of_them,
    prints: Prints | None = None,
    progress: Progress = no_progress,
) -> list[Measurement]:
    """Answer every row once per subject, provider and length, and compare with the reference recipe of the candidate.

    targets: those that differ in threads alone are measured once, with the fewest. workers: processes at the same
    time (as many as the cores allow, unless given). slices: columns that the rows carry, 'length' or 'class': accuracy
    on each of their values too, and against the reference (`edgewise.slices`). wanted: which subjects on which targets.
    prints: as of `fingerprints`, where they were asked for before.

    Returns the measurements of scenario 'accuracy', then those of scenario 'comparison', as they stand in the store;
    what the store has already is not measured again. A bundle that fails becomes a measurement with its reason.
    Without labels the answers are kept, and compared with those of the reference (`agreement`): no accuracy then.
    Raises DataError for no rows, or labels on some of them alone; UserError for a device that cannot run the worker.
    """
    if len({has_reference(row) for row in rows}) > 1:
        raise DataError("some rows have a label and others none: give labels to all of them or none")
    run = _Run(list(rows), check_rows(rows), store, check_level(level), stage, progress)
    run.slice_by(slices)
    by_name = pick_devices(devices, targets)
    try:
        prints = fingerprints(by_name, run.children, run.say, prints)
        faults = {id(s): check_subject(s) for s in subjects}
        tasks = [
            run.task(s, t, by_name[t.device], prints[t.device], faults[id(s)])
            for s in subjects
            for t in fewest_threads(targets)
            if wanted(s, t)
        ]
        run.measure(tasks, workers)
    except BaseException:
        run.children.kill_all()
        raise
    found = [run.finished[id(t)] for t in tasks]
    return found + compare_with_reference(store, found, reference=reference, level=level)


def fewest_threads(targets: Iterable[Target]) -> list[Target]:
    """One target for each setting that may change an answer; threads do not, so the fewest of them."""
    found: dict[str, Target] = {}
    for target in targets:
        key = answer_settings(target)
        if key not in found or target.run.threads < found[key].run.threads:
            found[key] = target
    return list(found.values())


@dataclass(frozen=True, eq=False)
class _Task:
    """One subject on one setting."""

    subject: Subject
    target: Target
    device: Device
    fingerprint: dict[str, Any]
    key: MeasurementKey
    failure: str

    @property
    def length(self) -> float:
        return length_of(self.subject, self.target)

    @property
    def chain(self) -> tuple[int, str]:
        """Tasks with the same chain differ in length alone."""
        return id(self.subject), answer_settings(self.target.at_any_length())


@dataclass(frozen=True)
class _Answers:
    """The answers to all rows, and how they came."""

    answers: tuple[Answer, ...]
    result: WorkerResult
    """Of the process that gave those that were not taken over."""
    reused: int


def _check_answers(answers: Sequence[Answer], rows: Sequence[str], subject: Subject) -> None:
    """Raise WorkerError for answers that cannot be those to these rows."""
    if len(answers) != len(rows):
        raise WorkerError(f"the worker gave {len(answers)} answers to {len(rows)} rows")
    labels = len(subject.manifest.labels)
    for number, (answer, row) in enumerate(zip(answers, rows, strict=True), 1):
        if answer.row_id != row:
            raise WorkerError(f"answer {number} of the worker is to the row {answer.row_id!r}, not to {row!r}")
        if subject.manifest.task == "image-classification" and answer.index < 0 and not answer.logits:
            raise WorkerError(
                f"this version does not judge images of {subject.manifest.problem_type}, their times alone"
            )
        if kind_of_subject(subject) == "class" and not (0 <= answer.index < labels == len(answer.logits)):
            raise WorkerError(
                f"answer {number} of the worker is label {answer.index} of {len(answer.logits)} logits, where the "
                f"bundle has {labels} labels"
            )


def _workers(tasks: Sequence[_Task]) -> int:
    """So many processes that each thread has a core."""
    if not tasks:
        return 1
    threads = max(t.target.run.threads for t in tasks)
    return max(1, min(cores(t.fingerprint) for t in tasks) // threads)


class _Run:
    """One call of measure_accuracy: its settings, and the steps that share them."""

    def __init__(
        self, rows: list[Row], inputs_digest: str, store: Store, level: float, stage: Stage, progress: Progress
    ) -> None:
        self.rows, self.inputs_digest, self.store = rows, inputs_digest, store
        self.apart = rows_apart_from_slices(rows)
        self.level, self.stage, self.progress = level, stage, progress
        self.children = Children()
        self.finished: dict[int, Measurement] = {}
        self.done = self.total = 0
        self.telling = Lock()
        self.settings: dict[str, Any] = {"level": level}
        self.slices: tuple[Slice, ...] = ()

    def slice_by(self, names: Sequence[str]) -> None:
        """Raises DataError for a slice that the rows do not carry."""
        if names:
            self.slices = make_slices(self.rows, names)
            self.settings["slices"] = list(names)

    def task(
        self, subject: Subject, target: Target, device: Device, fingerprint: dict[str, Any] | str, fault: str
    ) -> _Task:
        known = fingerprint if isinstance(fingerprint, dict) else {}
        key = MeasurementKey(
            subject.candidate,
            subject.recipe,
            subject.bundle.digest,
            target,
            "accuracy",
            self.stage,
            self.inputs_digest,
            str(known.get("digest", "")),
            digest_json(self._settings(device, subject)),
        )
        failure = fault or (fingerprint if isinstance(fingerprint, str) else "") or self._label_fault(subject)
        return _Task(subject, target, device, known, key, failure)

    def _settings(self, device: Device, subject: Subject) -> dict[str, Any]:
        return {**self.settings, "metrics": self._names(subject), **held_to(device)}

    @staticmethod
    def _names(subject: Subject) -> list[str]:
        """Of the metrics."""
        from edgewise.metrics import default_metrics

        if kind_of_subject(subject) is None:
            return []
        task, problem = subject.manifest.task, cast(Any, subject.manifest.problem_type)
        return [*default_metrics(task, problem), *(["accuracy"] if task == "fill-mask" else [])]

    def _label_fault(self, subject: Subject) -> str:
        """Why these rows cannot judge this bundle, or ''."""
        kind, known = kind_of_subject(subject), set(subject.manifest.labels)
        if kind is None:
            return f"this version measures no answers of {subject.manifest.task}, its times alone"
        if kind in ("class", "multi", "tags"):
            told = [reference_of(row, kind) for row in self.rows]
            named = {x for r in told if r is not None for x in ([r] if kind == "class" else r)}
            if unknown := sorted(named - known):
                return f"the rows have labels {unknown} that {subject.name} does not know: it has {sorted(known)}"
        if kind == "logprob":
            return ""
        if has_reference(self.rows[0]) and reference_of(self.rows[0], kind) is None:
            return f"the rows have no answers to compare with, as {subject.manifest.task} wants them"
        return ""

    def measure(self, tasks: Sequence[_Task], workers: int | None) -> None:
        """All tasks, `workers` at a time on each machine; those of one chain in turn, the longest length first."""
        chains: dict[tuple[int, str], list[_Task]] = {}
        for task in tasks:
            stored = self.store.find(task.key)
            if stored is not None:
                self.finished[id(task)] = stored
            elif task.failure:
                self._fail(task, task.failure)
            else:
                chains.setdefault(task.chain, []).append(task)
        self.total = sum(map(len, chains.values()))
        machines = {t.device.ssh: [other for other in tasks if other.device.ssh == t.device.ssh] for t in tasks}
        pools = {machine: ThreadPoolExecutor(workers or _workers(its)) for machine, its in machines.items()}
        try:
            # The store belongs to this thread: the others run workers, and what they find is stored here.
            running: dict[Future[_Answers], tuple[_Task, list[_Task]]] = {}
            for chain in chains.values():
                first, *rest = sorted(chain, key=lambda t: -t.length)
                running[pools[first.device.ssh].submit(self._answer, first, None)] = (first, rest)
            while running:
                ready, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in ready:
                    task, rest = running.pop(future)
                    answers = self._finish(task, future)
                    if rest:
                        again = pools[task.device.ssh].submit(self._answer, rest[0], answers)
                        running[again] = (rest[0], rest[1:])
                    self.done += 1
                    self.say(f"{task.subject.name} on {task.target.text()}")
        except BaseException:
            self.children.kill_all()
            raise
        finally:
            for pool in pools.values():
                pool.shutdown(wait=True, cancel_futures=True)

    def say(self, what: str) -> None:
        with self.telling:  # the threads of the pools say what they wait for
            self.progress(self.done, self.total, what)

    def _answer(self, task: _Task, longer: _Answers | None) -> _Answers:
        """Run the worker over the rows whose answers are not known from a longer length."""
        kept = self._known(task, longer)
        wanted = [i for i in range(len(self.rows)) if i not in kept] or [0]
        job = {
            "job": "accuracy",
            **job_subject(task.subject),
            "verify": "full",  # those before this one may have taken hours
            "run": job_run(task.target.run, task.subject.bundle),
            "placement": self.stage != "look",
        }
        lines = job_inputs([self.rows[i] for i in wanted])
        timeout_s = 120 + 0.5 * len(lines) + hashing_s(task.subject)
        if judged_without_labels(task.subject):  # each token costs a pass of the model: up to one a character
            timeout_s += sum(len(row.text) for row in self.rows) * max(0.01, task.subject.size / 1e10)
        result = run_job(task.device, job, lines, children=self.children, timeout_s=timeout_s, say=self.say)
        _check_answers(result.answers, [self.rows[i].id for i in wanted], task.subject)
        if judged_without_labels(task.subject):
            for answer in result.answers:
                likelihood.outcome_of(answer.row_id, answer.given)  # what is none is the worker's failure
        if result.fingerprint.get("digest") != task.key.fingerprint_digest:
            raise EdgewiseError("the machine's fingerprint changed while it was measured: start again")
        kept |= dict(zip(wanted, result.answers, strict=True))
        return _Answers(tuple(kept[i] for i in range(len(self.rows))), result, len(self.rows) - len(wanted))

    @staticmethod
    def _known(task: _Task, longer: _Answers | None) -> dict[int, Answer]:
        """Row -> answer that cannot change at this length: a text that is not cut has the same tokens.

        Only one text a call: in a batch, the other texts set the padding. Not of a running text: there the length says
        how many of the texts before it are read, too.
        """
        running = task.subject.manifest.task == "text-generation"
        if longer is None or task.target.run.batch_size != 1 or running:
            return {}
        return {i: a for i, a in enumerate(longer.answers) if a.n_tokens <= task.length and not a.truncated}

    def _finish(self, task: _Task, future: Future[_Answers]) -> _Answers | None:
        """Store what came of a task; None when it failed."""
        try:
            answers = future.result()
        except NoSpaceError:
            raise  # not the bundle's fault, and the next one would meet it too
        except EdgewiseError as error:
            self._fail(task, str(error))
            return None
        metrics, outcomes, hits = self._judge(task, answers.answers)
        conditions = self._conditions(task, answers)
        if self.slices:
            conditions["slices"] = [{"slice": s.name, "rows": list(s.rows)} for s in self.slices]
        if self.slices and hits:
            metrics = (*metrics, on_slices(hits, conditions["slices"], self.level))
        elif self.slices and judged_without_labels(task.subject):
            metrics = (*metrics, likelihood.on_slices(outcomes, conditions["slices"], self.level))
        self._add(task, conditions, metrics, outcomes)
        return answers

    def _judge(self, task: _Task, answers: Sequence[Answer]) -> tuple[tuple[Metric, ...], list[Outcome], list[bool]]:
        """(metrics, the outcome of each row, whether each is right; none without labels, or where right is no yes or
        no)."""
        kind, labels = kind_of_subject(task.subject) or "class", task.subject.manifest.labels
        if kind == "logprob":
            outcomes = [likelihood.outcome_of(row.id, a.given) for row, a in zip(self.rows, answers, strict=True)]
            about, accuracy = self._about(task), "accuracy" in self._names(task.subject)
            return likelihood.likelihood_metrics(outcomes, self.level, accuracy=accuracy, about=about), outcomes, []
        told = [reference_of(row, kind) for row in self.rows]
        labelled = None not in told
        if kind == "class":
            right = [None if r is None else labels.index(r) for r in told]
            outcomes = [
                Outcome(row.id, a.index, label, a.score, a.logits)
                for row, a, label in zip(self.rows, answers, right, strict=True)
            ]
            known = [label for label in right if label is not None]
            metrics = _metrics([a.index for a in answers], known, labels, self.level) if known else ()
        else:
            given = [a.given for a in answers]
            numbers = [[None if v is None else answer_number(v, kind) for v in side] for side in (given, told)]
            # Of regression no two answers are the same: it has no outcomes.
            outcomes = [
                Outcome(row.id, answer or 0, label, 0.0)
                for row, answer, label in zip(self.rows, *numbers, strict=True)
                if kind != "number"
            ]
            names = self._names(task.subject)
            metrics = quality_metrics(task.subject, names, given, told, self.level) if labelled else ()
        hits = [o.answer == o.label for o in outcomes] if labelled and kind in ("class", "multi") else []
        return metrics, outcomes, hits

    @staticmethod
    def _about(task: _Task) -> str:
        """Which tokens a likelihood is of."""
        if task.subject.manifest.task == "fill-mask":
            return f"of tokens that are masked, {SHARE:.0%} of each text"
        size = WINDOW if math.isinf(task.length) else int(task.length)
        return f"the rows as one running text, in windows of {size} tokens that move by half"

    def _fail(self, task: _Task, reason: str) -> None:
        measurement = self._measurement(task, self._base(task), (), "failed", reason)
        self.finished[id(task)] = replace(measurement, id=self.store.add(measurement))

    def _add(
        self, task: _Task, conditions: dict[str, Any], metrics: tuple[Metric, ...], outcomes: list[Outcome]
    ) -> None:
        measurement = self._measurement(task, conditions, metrics)
        self.finished[id(task)] = replace(measurement, id=self.store.add(measurement, outcomes=outcomes))

    def _measurement(
        self, task: _Task, conditions: dict[str, Any], metrics: tuple[Metric, ...], status: Any = "ok", reason: str = ""
    ) -> Measurement:
        key = task.key
        return Measurement(
            key.candidate,
            key.recipe,
            key.content_digest,
            task.target,
            "accuracy",
            self.stage,
            status,
            reason,
            self.inputs_digest,
            conditions,
            metrics,
        )

    def _base(self, task: _Task) -> dict[str, Any]:
        return {
            "fingerprint": task.fingerprint,
            "fingerprint_digest": task.key.fingerprint_digest,
            "settings": self._settings(task.device, task.subject),
            "settings_digest": task.key.settings_digest,
            "device": device_conditions(task.device),
            **self.apart,
        }

    def _conditions(self, task: _Task, answers: _Answers) -> dict[str, Any]:
        tokens = [a.n_tokens for a in answers.answers]
        return self._base(task) | {
            "rows": len(self.rows),
            "reused": answers.reused,
            "wall_s": answers.result.wall_s,
            "notes": [_REUSED] if answers.reused else [],
            "inputs": token_distribution(tokens, sum(a.truncated for a in answers.answers), len(self.rows)),
            "providers": list(answers.result.providers),
            "placement": answers.result.placement,
            "placement_why": answers.result.placement_why,
        }


def has_reference(row: Row) -> bool:
    """Whether a row says what is right."""
    return any(x is not None for x in (row.label, row.labels, row.number, row.tags, row.target))


def on_slices(hits: Sequence[bool], slices: Sequence[dict[str, Any]], level: float) -> Metric:
    """Accuracy on each slice, written into it as 'accuracy', 'low' and 'high'; the worst of those of 20 rows or more.

    All bounds of the slices hold together at `level` (Bonferroni): the worst of many is low by chance alone.
    """
    from edgewise.metrics import SMALLEST_SLICE

    together = 1 - (1 - level) / len(slices)
    for part in slices:
        bounds = wilson_bounds(sum(hits[i] for i in part["rows"]), len(part["rows"]), together)
        part |= {"accuracy": bounds.value, "low": bounds.low, "high": bounds.high}
    able = [part for part in slices if len(part["rows"]) >= SMALLEST_SLICE]
    name = f"{WORST}accuracy"
    if not able:
        return Metric(name, "1", None, n=0, kind="unavailable", why=f"no slice has {SMALLEST_SLICE} rows")
    worst = min(able, key=lambda part: part["accuracy"])
    method = f"Wilson, {len(slices)} slices together; the worst is {worst['slice']}"
    return Metric(name, "1", worst["accuracy"], worst["low"], worst["high"], level, method, len(worst["rows"]))


def _metrics(predicted: list[int], right: list[int], labels: Sequence[str], level: float) -> tuple[Metric, ...]:
    """Values as `edgewise.metrics` defines them, bounds from this room."""
    from edgewise.metrics import compute  # imports evaluate and scikit-learn: seconds

    values = compute(("accuracy", "f1"), predicted, right, labels)
    hits = sum(p == r for p, r in zip(predicted, right, strict=True))
    bounds = {
        "accuracy": wilson_bounds(hits, len(right), level),
        "f1": f1_bounds(confusion(predicted, right, len(labels)), level),
    }
    return tuple(replace(b.as_metric(name, "1", level), value=values[name]) for name, b in bounds.items())
