"""One bundle on one target through its rounds: which are there, what they say, and whether they are enough.

A round is one fresh process. Its raw results are kept as a file until the measurement stands in the store, so that a
killed run loses at most the round in hand.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from edgewise.arrival import Arrival
from edgewise.errors import WorkerError
from edgewise.paired import Bounds
from edgewise.profiler.energy import Energy
from edgewise.profiler.nvml import Held
from edgewise.profiler.plumbing import Subject, token_distribution
from edgewise.profiler.queries import inputs_a_query
from edgewise.profiler.results import Calls, WorkerResult, read_result
from edgewise.profiler.roofline import Roofline, roofline, roofline_metric
from edgewise.profiler.statistics import (
    Floats,
    mean_bounds,
    percentile_bounds,
    percentile_metrics,
)
from edgewise.profiler.store import MeasurementKey, Sample
from edgewise.profiler.vitals import Memory
from edgewise.showing import show
from edgewise.types import Device, Metric, Target
from edgewise.units import METRICS, PERCENTILES, SAMPLE_NEEDED

DISTURBED = 0.10
"""Share of all cores that other processes may take before a round counts as disturbed."""


STEADY = 0.10
"""How far apart the thirds of a process may be before it is called unsteady."""


class RoundRule(Protocol):
    """How long to measure: a plan's ProfileSpec, or `Rounds`, where no plan is."""

    @property
    def percentile(self) -> str: ...
    @property
    def width(self) -> float: ...
    @property
    def min_rounds(self) -> int: ...
    @property
    def max_rounds(self) -> int: ...
    @property
    def seconds(self) -> float: ...


@dataclass(frozen=True)
class Rounds:
    """At least min_rounds fresh processes; more, up to max_rounds, while the interval is wider than `width`."""

    percentile: str = "p95"
    width: float = 0.05
    """Half width of the interval of `percentile`, relative to its value."""
    min_rounds: int = 5
    max_rounds: int = 10
    seconds: float = 1.0
    """Timed calls of one round."""


MODES: Mapping[str, Rounds] = {
    "quick": Rounds("p50", 0.1, 5, 5, 0.3),
    "standard": Rounds(),
    "mlperf": Rounds("p90", 0.05, 5, 5, 120.0),
}
"""quick: a first look. mlperf: 600 s of calls in all and the 90th percentile, as its rules have single-stream."""


@dataclass
class Series:
    """The rounds of one bundle on one target."""

    subject: Subject
    target: Target
    device: Device
    key: MeasurementKey
    folder: Path
    fingerprint: Mapping[str, Any]
    arrival: Arrival = field(default_factory=Arrival)
    rounds: dict[int, WorkerResult] = field(default_factory=dict)
    """By round; a repeat takes the place of the disturbed one when less of the machine was taken."""
    repeats: dict[int, str] = field(default_factory=dict)
    failure: str = ""
    ended: bool = False
    """Before its rule of rounds had it so: see `Ends`."""
    n_inputs: int = 1
    """Of a job."""
    peaks: Mapping[str, Any] | None = None
    """Of the machine with the target's threads: see `edgewise.profiler.peaks`."""

    @property
    def point(self) -> tuple[str, str]:
        """What is measured and where; the same for all scenarios."""
        return self.subject.name, self.target.text()

    @property
    def text(self) -> str:
        """For people."""
        scenario = "" if self.arrival.name == "single-stream" else f", {self.arrival.text()}"
        return f"{self.subject.name} on {self.target.text()}{scenario}"

    def file(self, number: int, *, repeat: bool = False) -> Path:
        """Where the raw results of a round stand."""
        return self.folder / f"round-{number:03}{'-repeat' if repeat else ''}.jsonl"

    def resume(self) -> None:
        """Take the rounds that an earlier run finished; what cannot be read is measured again."""
        for file in sorted(self.folder.glob("round-???.jsonl")):
            try:
                self.rounds[int(file.stem.removeprefix("round-"))] = read_result(file)
            except (WorkerError, ValueError):
                file.unlink(missing_ok=True)
        for number in list(self.rounds):
            if (file := self.file(number, repeat=True)).exists():
                try:
                    self.take_repeat(number, read_result(file))
                except WorkerError:
                    file.unlink(missing_ok=True)

    def forget(self) -> None:
        """Remove the raw files: the measurement stands in the store."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def disturbed(self) -> list[int]:
        """Rounds during which other processes took more of the machine than `DISTURBED`."""
        return sorted(n for n, r in self.rounds.items() if other_cpu(r) > DISTURBED)

    def take_repeat(self, number: int, again: WorkerResult) -> None:
        """Keep the calmer one of a round and its repeat: by the machine's load, never by the times."""
        first = self.rounds[number]
        self.repeats[number] = f"other processes took {other_cpu(first):.0%}, then {other_cpu(again):.0%}"
        if other_cpu(again) < other_cpu(first):
            self.rounds[number] = again

    def seconds(self) -> list[Floats]:
        """One array of seconds a call for each process, in the order of rounds."""
        return [np.array(_calls(r).ns, dtype=np.float64) / 1e9 for _, r in sorted(self.rounds.items())]

    def samples(self) -> list[Sample]:
        """As the store keeps them."""
        return [Sample(n, r.pid, _calls(r).ns) for n, r in sorted(self.rounds.items())]

    def half_width(self, rule: RoundRule, level: float) -> float | None:
        """Half width of the interval of the asked percentile, offline of the throughput, of generation the wider of
        those of the first and of a later token, relative to its value; None when it cannot be said yet."""
        if self.arrival.name == "offline":
            return _relative(mean_bounds(self.rates(), level)) if len(self.rounds) > 1 else None
        several = [times for _, times in self.token_times()] if self.arrival.name == "generation" else [self.seconds()]
        if any(len(s) < 2 or sum(map(len, s)) < SAMPLE_NEEDED[rule.percentile] for s in several):
            return None
        q = PERCENTILES[rule.percentile]
        widths = [_relative(percentile_bounds(s, q, level)) for s in several]
        return None if None in widths else max(w for w in widths if w is not None)

    def token_times(self) -> tuple[tuple[str, list[Floats]], ...]:
        """Of the generation scenario: see the function of this name."""
        calls = [_calls(r) for _, r in sorted(self.rounds.items())]
        return token_times([c.ns for c in calls], [c.first_ns for c in calls], [c.written for c in calls])

    @property
    def inputs_a_query(self) -> int:
        """Inputs of one query."""
        return inputs_a_query(self.arrival.job(0), self.target.run.batch_size, self.n_inputs)

    def rates(self) -> list[float]:
        """Inputs a second of each process, from its first query to its last answer."""
        size, calls = self.inputs_a_query, [_calls(r) for _, r in sorted(self.rounds.items())]
        return [size * len(c.ns) / (c.span_ns / 1e9) for c in calls]

    def server_load(self, level: float) -> Bounds | None:
        """Of the server scenario: the work that comes in a second over what can be done in one, the rate times the mean
        time of an answer over the answers at once. From 1 on the queue has no end. Rounds that others disturbed do not
        count where two others are left; a bound from several rounds, by Student's t."""
        if self.arrival.name != "server" or not self.rounds:
            return None
        busy = set(self.disturbed())
        few = len(self.rounds) - len(busy) < 2  # too few calm ones for a bound: all count
        calm = [_calls(r) for n, r in sorted(self.rounds.items()) if n not in busy or few]
        loads = [(self.arrival.rate or 0) * float(np.mean(c.took_ns)) / 1e9 / c.parallel for c in calm if c.took_ns]
        return mean_bounds(loads, level) if loads else None

    def overload(self, level: float) -> str:
        """Why the server scenario is no measurement, or ''."""
        load = self.server_load(level)
        if load is None or load.value < 1 or (load.low is not None and load.low < 1):
            return ""
        rate = self.arrival.rate or 0
        able = show(rate / load.value, "1/s")
        return (
            f"server at {rate:g} queries /s: it answers about {able}, so that more and more would "
            "wait, and a percentile would tell how long the test ran: ask for a lower rate"
        )

    def rounds_of(self, rule: RoundRule) -> tuple[int, int]:
        """Rounds at least and at most. Sustained is one process: what it shows is within it."""
        return (1, 1) if self.arrival.name == "sustained" else (rule.min_rounds, rule.max_rounds)

    def enough(self, rule: RoundRule, level: float) -> bool:
        """Whether the interval is narrow enough."""
        half = self.half_width(rule, level)
        return half is not None and half <= rule.width


@dataclass(frozen=True)
class Interim:
    """What the rounds of one bundle on one target say before they have ended."""

    subject: Subject
    target: Target
    seconds: tuple[Floats, ...]
    """Of each call, one array a process."""
    metrics: tuple[Metric, ...]
    """Start-up and memory, means over these processes."""


Ends = Callable[[Sequence[Interim]], Collection[int]]
"""Places of those that need no more rounds; asked after every round from the third on, of those that would go on."""
ENDS_FROM = 3
"""Rounds before that: fewer processes say little that a look did not."""


def interim(series: Series, level: float) -> Interim:
    """So far; of the single-stream scenario. level: of the intervals of the means."""
    results = [r for _, r in sorted(series.rounds.items())]
    metrics = (*_startup_metrics(results, level), *_memory_metrics(results, level))
    return Interim(series.subject, series.target, tuple(series.seconds()), metrics)


def _relative(bounds: Bounds) -> float | None:
    if bounds.low is None or bounds.high is None:
        return None
    return (bounds.high - bounds.low) / 2 / bounds.value


def calls_a_round(rule: RoundRule, arrival: Arrival) -> int:
    """Timed calls of a round at least: so many that min_rounds of them give the asked percentile its sample; offline
    has none."""
    if arrival.name in ("offline", "sustained"):
        return 1
    return math.ceil(SAMPLE_NEEDED[rule.percentile] / rule.min_rounds)


def unsteady(calls: Calls) -> bool:
    """Whether the time of a call moved while a process was measured: the medians of the three thirds of its calls
    differ by more than `STEADY` (perf_analyzer's rule). Long and short inputs come in any order, so that each time is
    held against the line through all of them by their tokens. False where a third has fewer than 10 calls."""
    ns = np.array(calls.ns, dtype=np.float64)
    if len(ns) < 30:
        return False
    tokens = np.array(calls.tokens, dtype=np.float64)
    expected = np.polyval(np.polyfit(tokens, ns, 1), tokens) if np.ptp(tokens) > 0 else np.full_like(ns, ns.mean())
    thirds = [float(np.median(part)) for part in np.array_split(ns / np.maximum(expected, 1.0), 3)]
    return max(thirds) > (1 + STEADY) * min(thirds)


def other_cpu(result: WorkerResult) -> float:
    """Share of the machine that others took during the timed calls; 0 where it is not known."""
    return (result.load.other_cpu or 0.0) if result.load else 0.0


def _calls(result: WorkerResult) -> Any:
    if result.calls is None:
        raise WorkerError("a latency worker ended without timed calls")
    return result.calls


def latency_metrics(series: Series, level: float) -> tuple[Metric, ...]:
    """All that the rounds say: times, throughput, start-up, memory, size; of the scenarios beside single-stream what
    these alone say, under names of their own."""
    seconds = series.seconds()
    if series.arrival.name != "single-stream":
        return _scenario_metrics(series, seconds, level)
    means = mean_bounds([float(np.mean(s)) for s in seconds], level)
    calls = sum(map(len, seconds))
    mean = means.as_metric("latency_mean", "s", level)
    return (
        *percentile_metrics(seconds, level),
        mean,
        _throughput(mean, series.target.run.batch_size, calls),
        roofline_metric(_roofline(series), mean.value),
        *_process_metrics(series, level),
    )


def _roofline(series: Series) -> Roofline | None:
    """From the one round that was profiled, and the peaks of its machine."""
    profiled = next((r for r in series.rounds.values() if r.nodes is not None), None)
    return None if profiled is None else roofline(series.subject, profiled.nodes, series.peaks)


def _process_metrics(series: Series, level: float) -> tuple[Metric, ...]:
    """What is of the process and the bundle, not of a call: start-up, memory, energy, size."""
    results = [r for _, r in sorted(series.rounds.items())]
    return (
        *_startup_metrics(results, level),
        *_memory_metrics(results, level),
        *_gpu_memory(results, level),
        _energy(results, series.inputs_a_query, level),
        Metric("size", "B", float(series.subject.size), method="sum of its files", n=1),
    )


def _generation_metrics(series: Series, level: float) -> tuple[Metric, ...]:
    """Time to the first token, time of each token after it (the mean of a query), tokens a second."""
    calls = [_calls(r) for _, r in sorted(series.rounds.items())]
    found: list[Metric] = []
    for name, per_process in series.token_times():
        found += [replace(m, name=f"{name}_{m.name}") for m in percentile_metrics(per_process, level)]
        means = mean_bounds([float(np.mean(x)) for x in per_process], level)
        found.append(means.as_metric(f"{name}_mean", "s", level))
    rates = mean_bounds([sum(c.written) / (c.span_ns / 1e9) for c in calls], level)
    limit = roofline_metric(_roofline(series), float(np.mean([np.mean(s) for s in series.seconds()])))
    return (*found, rates.as_metric("token_throughput", "1/s", level), limit, *_process_metrics(series, level))


def token_times(
    ns: Sequence[Sequence[int]], first_ns: Sequence[Sequence[int]], written: Sequence[Sequence[int]]
) -> tuple[tuple[str, list[Floats]], tuple[str, list[Floats]]]:
    """'ttft', seconds to the first token, and 'tpot', seconds of a later one, the mean of a query: an array a process.

    ns: of whole queries. A query that wrote one token has no later one.
    """
    first = [np.array(f, dtype=np.float64) / 1e9 for f in first_ns]
    later = []
    for whole, f, count in zip(ns, first, written, strict=True):
        tokens = np.array(count, dtype=np.float64)
        several = tokens > 1
        rest = np.array(whole, dtype=np.float64) / 1e9 - f
        later.append(rest[several] / (tokens[several] - 1))
    return ("ttft", first), ("tpot", later)


def _scenario_metrics(series: Series, seconds: Sequence[Floats], level: float) -> tuple[Metric, ...]:
    prefix = series.arrival.prefix
    if series.arrival.name == "sustained":
        return _sustained_metrics(series)
    if series.arrival.name == "generation":
        return _generation_metrics(series, level)
    rate = mean_bounds(series.rates(), level).as_metric(f"{prefix}throughput", "1/s", level)
    if series.arrival.name == "offline":
        return (rate,)
    means = mean_bounds([float(np.mean(s)) for s in seconds], level)
    found = [replace(m, name=f"{prefix}{m.name}") for m in percentile_metrics(seconds, level)]
    found.append(means.as_metric(f"{prefix}mean", "s", level))
    return (*found, rate) if series.arrival.name == "multi-stream" else tuple(found)


def _sustained_metrics(series: Series) -> tuple[Metric, ...]:
    """Inputs a second over all the time, its first tenth and its last, and how the last stands to the first."""
    ((_, result),) = sorted(series.rounds.items())
    windows = _calls(result).windows
    tenth, size = max(1, len(windows) // 10), series.inputs_a_query

    method, why = f"one process, {len(windows)} windows", "one process has no interval"

    def rate(name: str, part: Sequence[Mapping[str, Any]], which: str) -> Metric:
        calls = sum(int(w["calls"]) for w in part)
        value = size * calls / (sum(int(w["span_ns"]) for w in part) / 1e9)
        return Metric(f"sustained_{name}", "1/s", value, method=f"{method}{which}", n=calls, why=why)

    whole = rate("throughput", windows, "")
    first, last = (
        rate("first", windows[:tenth], ", the first tenth"),
        rate("last", windows[-tenth:], ", the last tenth"),
    )
    assert first.value is not None
    assert last.value is not None
    ratio, n = last.value / first.value, first.n + last.n
    moved = Metric("sustained_ratio", "number", ratio, method="last tenth over the first", n=n, why=why)
    return whole, first, last, moved


def _throughput(mean: Metric, batch_size: int, calls: int) -> Metric:
    """Inputs a second: the reciprocal of the mean time of a call, its bounds turned round."""
    value, low, high = (None if x is None or x <= 0 else batch_size / x for x in (mean.value, mean.high, mean.low))
    method = f"reciprocal of {mean.method}"
    return Metric("throughput", "1/s", value, low, high, mean.level, method, calls, why=mean.why)


def _startup_metrics(results: Sequence[WorkerResult], level: float) -> list[Metric]:
    names = {"startup": "total", **{f"startup_{n}": n for n in ("interpreter", "imports", "load", "session", "first")}}
    found = []
    for name, phase in names.items():
        values = [(r.startup_ns or {}).get(phase) for r in results]
        why = "the worker's clock is not that of the process that started it"
        found.append(_over_processes(name, "s", values, level, 1e-9, why))
    return found


def _memory_metrics(results: Sequence[WorkerResult], level: float) -> list[Metric]:
    places = {n: ("end", n) for n in ("peak_rss", "pss", "uss")} | {"empty_rss": ("empty", "rss")}
    found = []
    for name, (phase, attribute) in places.items():
        at: list[Memory | None] = [(r.memory or {}).get(phase) for r in results]
        why = next((m.why for m in at if m is not None and m.why), "not read")
        values = [None if m is None else getattr(m, attribute) for m in at]
        found.append(_over_processes(name, METRICS[name].unit, values, level, 1.0, why))
    return found


def _gpu_memory(results: Sequence[WorkerResult], level: float) -> tuple[Metric, ...]:
    """After the last call; nothing for a provider that runs on no GPU."""
    read = [r.gpu_memory for r in results if r.gpu_memory is not None]
    if not read:
        return ()
    missing = next((h.why for h in read if h.bytes is None), "not read")
    found = _over_processes("gpu_memory", "B", [h.bytes for h in read], level, 1.0, missing)
    return (found if found.value is None else _as_read(found, read),)


def _energy(results: Sequence[WorkerResult], inputs: int, level: float) -> Metric:
    """Of an input: all that the sensor counted during the timed calls, over the inputs answered in them."""
    read = [r.energy for r in results if r.energy is not None]
    joules = [
        None if r.energy is None or r.energy.joules is None else r.energy.joules / (inputs * len(_calls(r).ns))
        for r in results
    ]
    missing = next((e.why for e in read if e.joules is None), "not read")
    if not read or None in joules:
        return Metric("energy", "J", None, n=0, kind="unavailable", why=missing)
    mean = mean_bounds([j for j in joules if j is not None], level).as_metric("energy", "J", level)
    return _as_read(replace(mean, method=f"{read[0].source}, {mean.method}"), read)


def _as_read(metric: Metric, read: Sequence[Energy | Held]) -> Metric:
    """The metric over processes, an estimate where one of them read no better."""
    estimated = next((r for r in read if r.kind == "estimated"), None)
    return metric if estimated is None else replace(metric, kind="estimated", why=estimated.why)


def _over_processes(name: str, unit: str, values: Sequence[int | None], level: float, scale: float, why: str) -> Metric:
    """The mean over processes of one number each; unavailable when one of them has none."""
    known = [float(v) for v in values if v is not None]
    if len(known) < len(values) or not known:
        return Metric(name, unit, None, n=len(known), kind="unavailable", why=why)
    return mean_bounds(known, level).as_metric(name, unit, level, scale)


def series_conditions(series: Series, rule: RoundRule, level: float, stopped: str) -> dict[str, Any]:
    """What the numbers depend on, beside the machine and the settings."""
    results = sorted(series.rounds.items())
    calls = [_calls(r) for _, r in results]
    size = series.inputs_a_query
    texts = size * sum(len(c.ns) for c in calls)
    # A query of several inputs counts each: they are what is long or short.
    tokens = [t for c in calls for t in (c.lengths or [round(t / size) for t in c.tokens])]
    asked = [r for _, r in results if r.placement_why != "not asked for"]
    placed = asked[0] if asked else results[0][1]
    half = series.half_width(rule, level)
    return {
        "inputs": token_distribution(tokens, sum(sum(c.truncated) for c in calls), texts),
        "rounds": {
            "count": len(results),
            "calls": [len(c.ns) for c in calls],
            "stopped": stopped,
            "half_width": half,
            # Sustained is one process: it was asked for no interval.
            "wide": series.arrival.name != "sustained" and (half is None or half > rule.width),
            "load_average": [None if r.load_average is None else list(r.load_average) for _, r in results],
            "other_cpu_before": [None if r.load_before is None else r.load_before.other_cpu for _, r in results],
            "other_cpu": [None if r.load is None else r.load.other_cpu for _, r in results],
            "steal": [None if r.load is None else r.load.steal for _, r in results],
            "disturbed": series.disturbed(),
            # The wait in a queue moves by nature.
            "unsteady": [n for n, r in results if series.arrival.name != "server" and unsteady(_calls(r))],
            "repeated": {str(n): text for n, text in series.repeats.items()},
            "yardstick": [None if r.yardstick is None else dict(r.yardstick) for _, r in results],
            "wall_s": [r.wall_s for _, r in results],
            "startup_s": [None if (ns := (r.startup_ns or {}).get("total")) is None else ns / 1e9 for _, r in results],
            "peak_rss": [None if (m := (r.memory or {}).get("end")) is None else m.peak_rss for _, r in results],
        },
        "warmup": [dict(r.warmup or {}) for _, r in results],
        **({"made_up_ids": {"below": ids}} if (ids := results[0][1].ids) is not None else {}),
        **({"windows": [dict(w) for w in calls[0].windows]} if calls[0].windows else {}),
        **(
            {"generation": [{"first_ns": list(c.first_ns), "written": list(c.written)} for c in calls]}
            if calls[0].written
            else {}
        ),
        **({} if (load := series.server_load(level)) is None else {"server_load": load.value}),
        **({"late": [c.late or 0 for c in calls]} if any(c.late for c in calls) else {}),
        "memory": {phase: [_memory_of(r, phase) for _, r in results] for phase in ("empty", "first", "end")},
        "disk": series.subject.disk(),
        "providers": list(results[0][1].providers),
        "placement": placed.placement,
        "placement_why": placed.placement_why,
        "nodes": None if placed.nodes is None else dict(placed.nodes),
        "roofline": None if (limit := _roofline(series)) is None else limit.as_dict(),
    }


def _memory_of(result: WorkerResult, phase: str) -> dict[str, int | None] | None:
    """Bytes at the end of a phase: before the imports, after the first answer, after the last call."""
    memory = (result.memory or {}).get(phase)
    return None if memory is None else {n: getattr(memory, n) for n in ("rss", "peak_rss", "pss", "uss")}
