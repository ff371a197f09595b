"""Latency, start-up and memory: a fresh worker process for each bundle, target and round, interleaved."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

from edgewise.arrival import Arrival
from edgewise.data import Row
from edgewise.errors import EdgewiseError, NoSpaceError, UserError, WorkerError
from edgewise.files import digest_json
from edgewise.paired import check_level
from edgewise.profiler.graphs import GraphFile
from edgewise.profiler.masking import MASKED, needs_masks, with_masks
from edgewise.profiler.plumbing import (
    Prints,
    Subject,
    Wanted,
    all_of_them,
    check_rows,
    check_subject,
    device_conditions,
    fingerprints,
    hashing_s,
    held_to,
    job_inputs,
    job_run,
    job_subject,
    no_progress,
    pick_devices,
    rows_apart_from_slices,
    side_by_side,
)
from edgewise.profiler.results import WorkerResult
from edgewise.profiler.rounds import (
    ENDS_FROM,
    Ends,
    RoundRule,
    Rounds,
    Series,
    calls_a_round,
    interim,
    latency_metrics,
    series_conditions,
)
from edgewise.profiler.store import MeasurementKey, Store
from edgewise.profiler.transport import Children, run_job
from edgewise.progress import Progress
from edgewise.types import Device, Measurement, Stage, Target

WARM_UP: Mapping[str, float] = {"calls": 5, "seconds": 0.05}
"""Untimed calls of a round: at least so many, and for so long."""
_WARM_UP_WRITING: Mapping[str, float] = {"calls": 1, "seconds": 0.05}
"""Of generation, whose one call is many of the graph."""
_NOTES = (
    "a fresh process a round; files in the page cache; start-up includes hashing the bundle's files",
    "garbage collected and frozen before the timed calls; memory is never read during them",
)
_BUSY = "disturbed in more than half of all rounds: the machine was busy, and none was repeated"
_MAX_INPUTS = 1000
_BUSY_SHARE = 0.5


def measure_latency(
    subjects: Sequence[Subject],
    targets: Sequence[Target],
    rows: Sequence[Row],
    *,
    store: Store,
    devices: Sequence[Device] = (Device(),),
    spec: RoundRule | None = None,
    level: float = 0.95,
    stage: Stage = "profile",
    work: Path | None = None,
    seed: int = 0,
    repeat_disturbed: bool = True,
    arrivals: Sequence[Arrival] = (Arrival(),),
    wanted: Wanted = all_of_them,
    prints: Prints | None = None,
    ends: Ends | None = None,
    progress: Progress = no_progress,
) -> list[Measurement]:
    """Measure every subject on every target in every scenario; the measurements, in that order, as they stand in the
    store.

    rows: inputs, in an order shuffled by `seed`, the same for all; round r starts at another place of it.
    spec: a plan's `profile`, or `Rounds`. arrivals: the scenarios. wanted: which subjects on which targets. prints: as
    of `fingerprints`, where they were asked for before. work: where raw rounds wait (beside the store, unless given).
    ends: says who needs no more rounds. Of these the single-stream rounds that were made stand in the store as a look,
    and nothing of other scenarios.

    What the store has already is not measured again, and finished rounds of an interrupted run are taken up. A bundle
    that fails becomes a measurement with its reason, and so does an SSH device among others. Raises UserError for a
    device whose interpreter cannot run the worker or that cannot be reached, PlanError for an unknown device, DataError
    for no rows.
    """
    run = _Run(list(rows), store, spec or Rounds(), check_level(level), stage, seed, progress)
    run.ends = ends
    run.inputs_digest, run.apart = check_rows(rows), rows_apart_from_slices(rows)
    run.work = work or store.path.with_name(f"{store.path.name}.rounds")
    by_name = pick_devices(devices, targets)
    try:
        prints = fingerprints(by_name, run.children, run.say, prints)
        faults = {id(s): check_subject(s) for s in subjects}
        series = [
            run.series(s, t, a, by_name[t.device], prints[t.device], faults[id(s)])
            for s in subjects
            for t in targets
            if wanted(s, t)
            for a in arrivals
        ]
        stored = {id(s): run.stored(s) for s in series}
        _end(series, {s.point for s in series if (m := stored[id(s)]) is not None and m.stage != stage})
        open_ones = [s for s in series if stored[id(s)] is None and not s.ended]
        run.measure(open_ones, repeat_disturbed)
    except BaseException:
        run.children.kill_all()
        raise
    found = [m for s in series if (m := stored[id(s)] or run.finish(s))]
    with suppress(OSError):  # not empty: rounds of what failed, or of another run
        run.work.rmdir()
    return found


def warm_up(arrival: Arrival) -> dict[str, float]:
    """The rule of a scenario."""
    return dict(_WARM_UP_WRITING if arrival.name == "generation" else WARM_UP)


def _end(series: Sequence[Series], points: Collection[tuple[str, str]]) -> None:
    """No more rounds of these points, in no scenario."""
    for s in series:
        s.ended = s.ended or s.point in points


def _peaks_key(s: Series) -> tuple[str, int]:
    return s.device.name, s.target.run.threads


class _Run:
    """One call of measure_latency: its settings, and the steps that share them."""

    inputs_digest: str
    apart: dict[str, str]
    """Of `rows_apart_from_slices`."""
    work: Path
    ends: Ends | None = None

    def __init__(
        self, rows: list[Row], store: Store, rule: RoundRule, level: float, stage: Stage, seed: int, progress: Progress
    ) -> None:
        random.Random(seed).shuffle(rows)  # files come sorted by label or length
        self.rows, self.store, self.rule, self.level = rows, store, rule, level
        self.stage, self.seed, self.progress = stage, seed, progress
        self.children = Children()
        self.done = self.total = 0
        self.counting = Lock()
        self.peaks: dict[tuple[str, int], Mapping[str, Any]] = {}
        """(device, threads) -> what the machine can do with so many: the same for every bundle."""
        self.busy: set[str | None] = set()
        """The machines, by their address, that were disturbed all the time."""
        self.settings: dict[str, Any] = {
            "percentile": rule.percentile,
            "width": rule.width,
            "min_rounds": rule.min_rounds,
            "max_rounds": rule.max_rounds,
            "seconds": rule.seconds,
            "level": level,
            "seed": seed,
            "verify": "full",
        }

    def series(
        self,
        subject: Subject,
        target: Target,
        arrival: Arrival,
        device: Device,
        fingerprint: dict[str, Any] | str,
        fault: str,
    ) -> Series:
        """A subject on a target in a scenario, with the rounds that are there already."""
        known = fingerprint if isinstance(fingerprint, dict) else {}
        key = MeasurementKey(
            subject.candidate,
            subject.recipe,
            subject.bundle.digest,
            target,
            arrival.name,
            self.stage,
            self.inputs_digest,
            str(known.get("digest", "")),
            digest_json(self._settings(arrival, device)),
        )
        folder = self.work / key.digest.removeprefix("sha256:")[:24]
        failure = fault or (fingerprint if isinstance(fingerprint, str) else "")
        inputs = min(len(self.rows), _MAX_INPUTS)
        series = Series(subject, target, device, key, folder, known, arrival, failure=failure, n_inputs=inputs)
        series.resume()
        for result in series.rounds.values():
            self._keep_peaks(series, result)
        return series

    def _keep_peaks(self, s: Series, result: WorkerResult) -> None:
        if result.peaks is not None:
            self.peaks.setdefault(_peaks_key(s), result.peaks)

    def _settings(self, arrival: Arrival, device: Device) -> dict[str, Any]:
        calls = {"min_calls": calls_a_round(self.rule, arrival), "warmup": warm_up(arrival)}
        return {**self.settings, **calls, **arrival.settings(), **held_to(device)}

    def measure(self, series: Sequence[Series], repeat_disturbed: bool) -> None:
        """All machines: this one by itself, since driving the others would disturb it, then they at the same time."""
        self.total = sum(s.rounds_of(self.rule)[0] for s in series if not s.failure)
        machines: dict[str | None, list[Series]] = {}
        for s in series:
            machines.setdefault(s.device.ssh, []).append(s)
        self._measure_machine(machines.pop(None, []), repeat_disturbed)
        side_by_side([partial(self._measure_machine, m, repeat_disturbed) for m in machines.values()], self.children)

    def _measure_machine(self, series: Sequence[Series], repeat_disturbed: bool) -> None:
        """All rounds: round-robin, in an order shuffled anew each round, so that a slow minute hits all alike."""
        wanted = [s for s in series if self._wants(s, 0)]
        for number in range(self.rule.max_rounds):
            self._expect(sum(number >= s.rounds_of(self.rule)[0] for s in wanted))
            for s in self._shuffled(wanted, number):
                if number not in s.rounds:
                    self._one_round(s, number)
                self._step(f"round {number + 1}: {s.text}")
            wanted = [s for s in series if self._wants(s, number + 1)]
            if self.ends is not None and number + 1 >= ENDS_FROM:
                wanted = self._end_early(self.ends, series, wanted, number + 1)
        if repeat_disturbed:
            self._repeat_disturbed([s for s in series if not s.failure and not s.ended])

    def _end_early(self, ends: Ends, series: Sequence[Series], going: list[Series], rounds: int) -> list[Series]:
        """Those that go on, of all that would: asked is of each that is single-stream."""
        asked = [s for s in going if s.arrival.name == "single-stream"]
        if asked:
            _end(series, {asked[i].point for i in ends([interim(s, self.level) for s in asked])})
            self._expect(-sum(max(0, s.rounds_of(self.rule)[0] - rounds) for s in going if s.ended))
        return [s for s in going if not s.ended]

    def _wants(self, s: Series, number: int) -> bool:
        if s.failure or s.ended:
            return False
        least, most = s.rounds_of(self.rule)
        return number < least or (number < most and (number in s.rounds or not s.enough(self.rule, self.level)))

    def _shuffled(self, series: list[Series], number: int) -> list[Series]:
        order = list(series)
        random.Random(f"{self.seed}:{number}").shuffle(order)
        return order

    def _expect(self, rounds: int) -> None:
        with self.counting:
            self.total += rounds

    def _step(self, what: str) -> None:
        with self.counting:
            self.done += 1
            self.progress(self.done, self.total, what)

    def say(self, what: str) -> None:
        with self.counting:
            self.progress(self.done, self.total, what)

    def _repeat_disturbed(self, series: list[Series]) -> None:
        """Each disturbed round once more, unless the machine is busy all the time, when it would help nothing."""
        disturbed = [(s, n) for s in series if s.arrival.name != "sustained" for n in s.disturbed()]
        if len(disturbed) > _BUSY_SHARE * sum(len(s.rounds) for s in series):
            self.busy.add(series[0].device.ssh)
            return
        again = [(s, n) for s, n in disturbed if n not in s.repeats]
        self._expect(len(again))
        for s, number in again:
            if not s.failure:
                self._one_round(s, number, repeat=True)
            self._step(f"round {number + 1} again, it was disturbed: {s.text}")

    def _one_round(self, s: Series, number: int, *, repeat: bool = False) -> None:
        """Run one fresh process; what goes wrong ends this series, not the others."""
        try:
            result = self._job(s, number, s.file(number, repeat=repeat))
            if result.calls is None:
                raise WorkerError("the worker ended without timed calls")
            if result.fingerprint.get("digest") != s.key.fingerprint_digest:
                raise WorkerError("the machine's fingerprint changed while it was measured: start again")
            self._keep_peaks(s, result)
        except NoSpaceError:
            raise  # not the bundle's fault, and the next one would meet it too
        except EdgewiseError as error:
            if repeat:
                return  # the first one stands
            s.failure = str(error) if isinstance(error, UserError) else f"round {number + 1}: {error}"
        else:
            if repeat:
                s.take_repeat(number, result)
            else:
                s.rounds[number] = result

    def _job(self, s: Series, number: int, keep: Path) -> WorkerResult:
        # Every round sees other rows first, so that few calls a round still see many rows over all rounds.
        stride = -(-len(self.rows) // self.rule.max_rounds)
        start = number * stride % len(self.rows)
        turned = (self.rows[start:] + self.rows[:start])[:_MAX_INPUTS]
        if needs_masks(s.subject.bundle):
            turned = with_masks(turned, s.subject.bundle, s.target.run)
        first = number == 0 and self.stage != "look"  # a look is short, and asks for nothing beside
        job = {
            "job": "latency",
            **job_subject(s.subject),
            "verify": self.settings["verify"],
            "run": job_run(s.target.run, s.subject.bundle),
            "warmup": warm_up(s.arrival),
            "seconds": self.rule.seconds,
            "min_calls": calls_a_round(self.rule, s.arrival),
            "scenario": s.arrival.job(1_000_003 * self.seed + number),
            "placement": first,
            "peaks": first and s.target.run.provider == "cpu" and _peaks_key(s) not in self.peaks,
        }
        timeout_s = 120 + 20 * max(self.rule.seconds, s.arrival.seconds(job["min_calls"])) + hashing_s(s.subject)
        return run_job(
            s.device, job, job_inputs(turned), children=self.children, timeout_s=timeout_s, keep=keep, say=self.say
        )

    def stored(self, s: Series) -> Measurement | None:
        """What the store has of it; where it may end early, what it had when it did."""
        found = self.store.find(s.key)
        if found is None and self.ends is not None and s.arrival.name == "single-stream":
            return self.store.find(replace(s.key, stage="look"))
        return found

    def finish(self, s: Series) -> Measurement | None:
        """Compute the metrics, append the measurement to the store, forget the raw files. None: it ended early, and
        nothing is kept of this scenario."""
        if s.ended and s.arrival.name != "single-stream":
            s.forget()
            return None
        overload = "" if s.failure else s.overload(self.level)
        s.failure = s.failure or overload
        s.peaks = self.peaks.get(_peaks_key(s)) if s.target.run.provider == "cpu" else None
        measurement = Measurement(
            candidate=s.subject.candidate,
            recipe=s.subject.recipe,
            content_digest=s.subject.bundle.digest,
            target=s.target,
            scenario=s.arrival.name,
            stage="look" if s.ended else self.stage,
            status="failed" if s.failure else "ok",
            reason=s.failure,
            inputs_digest=self.inputs_digest,
            conditions=self._conditions(s),
            metrics=() if s.failure else latency_metrics(s, self.level),
        )
        number = self.store.add(measurement, () if s.failure else s.samples())
        if overload or not s.failure:  # every round was made: another try makes them anew
            s.forget()
        return replace(measurement, id=number)

    def _conditions(self, s: Series) -> dict[str, Any]:
        base = {
            "fingerprint": dict(s.fingerprint),
            "fingerprint_digest": s.key.fingerprint_digest,
            "settings": self._settings(s.arrival, s.device),
            "settings_digest": s.key.settings_digest,
            "device": device_conditions(s.device),
            "scenario": s.arrival.text(),
            **(
                {"fed": [asdict(i) for i in s.subject.bundle.inputs]} if isinstance(s.subject.bundle, GraphFile) else {}
            ),
            **self.apart,
            "order": f"{len(self.rows)} rows shuffled with seed {self.seed}, {s.arrival.order}",
            "notes": [
                *_NOTES,
                *([_BUSY] if s.device.ssh in self.busy else []),
                *([MASKED] if needs_masks(s.subject.bundle) else []),
            ],
        }
        return base if s.failure else base | series_conditions(s, self.rule, self.level, self._stopped(s))

    def _stopped(self, s: Series) -> str:
        """By which rule it stopped, in words."""
        if s.arrival.name == "sustained":
            return f"after {s.arrival.minutes or 0:g} minutes in one process"
        half = s.half_width(self.rule, self.level)
        rounds, asked = len(s.rounds), self.rule.percentile
        if s.ended:
            return f"after {rounds} rounds, early: a search needed no more of it"
        name = {"offline": "throughput", "generation": f"ttft_{asked} or tpot_{asked}, the wider one,"}.get(
            s.arrival.name, f"{s.arrival.prefix}{asked}"
        )
        if half is None:
            return f"after {rounds} rounds, the most allowed; {name} has no interval yet"
        width = f"interval of {name} is ±{half:.1%}, asked for ±{self.rule.width:.1%}"
        if half <= self.rule.width:
            return f"after {rounds} rounds: the {width}"
        return f"after {rounds} rounds, the most allowed: the {width}"
