"""Two runs side by side: the ratio of each number with its interval, and 'no difference shown' where none is.

A process is what repeats independently, so each process gives one number (its own percentile, its mean), and Welch's
t-test compares the two sets of their logarithms: the ratio of geometric means (Kalibera and Jones, Rigorous
Benchmarking in Reasonable Time, ISMM 2013, have processes as the level of repetition too). All intervals of one
comparison hold together at the level asked for (Bonferroni), so that a job that compares the same thing with itself
is told of a difference no oftener than that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any, Literal

import numpy as np

from edgewise.arrival import prefix_of
from edgewise.errors import EdgewiseError, StoreError
from edgewise.paired import LARGEST, check_level, paired_drop
from edgewise.profiler.comparison import turned
from edgewise.profiler.joining import latest
from edgewise.profiler.likelihood import is_likelihood, paired_likelihood
from edgewise.profiler.rounds import token_times
from edgewise.profiler.statistics import process_quantile, too_few_calls
from edgewise.profiler.store import Store
from edgewise.student import student_quantile
from edgewise.types import SCENARIOS, Measurement, Metric
from edgewise.units import METRICS, OF_ANSWERS, PERCENTILES, SIGNED

Verdict = Literal["better", "worse", "none shown", "equal", "not comparable"]

COMPARED = (
    "p50", "p95", "p99", "multistream_p50", "multistream_p95", "server_p50", "server_p95", "paced_p50", "paced_p95",
    "offline_throughput", "sustained_throughput",
    "ttft_p50", "ttft_p95", "tpot_p50", "tpot_p95", "token_throughput",
    "startup", "peak_rss", "gpu_memory", "size", "energy",
    "accuracy", "f1", "perplexity", "exact_match", "bleu", "bleu_zh", "word_error", "char_error", "pearson", "mse",
    "mae",
)  # fmt: skip
"""The metrics that are compared unless others are named, where both runs have them."""
_MACHINE = ("machine", "cpu", "flags", "logical_cores", "usable_cores", "governor", "cpu_limit", "memory_limit",
            "gpus")  # fmt: skip
_BESIDE = ("system", "kernel", "memory")
"""What may differ on one machine, and is said all the same."""

_TIMED = ("s", "1/s", "J")
"""Units of what a busy or slower machine changes."""


@dataclass(frozen=True)
class Difference:
    """One metric of one bundle on one target in one scenario, in two runs."""

    subject: str
    """'l6/int8-dynamic on here: cpu, 1 thread, single-stream'."""
    metric: str
    unit: str
    """Canonical, of a and b."""
    a: float | None
    b: float | None
    verdict: Verdict
    change: float | None = None
    """b / a; of accuracy and other shares of the answers b - a in percentage points, of other scores b - a."""
    low: float | None = None
    high: float | None = None
    """The two-sided interval of the change at `level`."""
    level: float | None = None
    why: str = ""
    """Why it is not comparable, or what else the numbers depend on."""
    lost: bool = False
    """Measured in the first run, and failed or missing in the second."""

    @property
    def regression(self) -> bool:
        """What a job should stop at: shown to be worse, or failed or missing in the second run alone."""
        return self.verdict == "worse" or self.lost


@dataclass(frozen=True)
class Comparison:
    """All differences of two runs, and how their machines differ."""

    differences: tuple[Difference, ...]
    machines: tuple[str, ...]
    """'versions.onnxruntime: 1.31.0, then 1.32.0'; empty when the fingerprints are the same."""
    notes: tuple[str, ...]


def _exp(value: float) -> float:
    """exp, infinite where it overflows: an interval at a level near 1 has no end."""
    return math.exp(value) if value < LARGEST else math.inf


def ratio_bounds(a: Sequence[float], b: Sequence[float], level: float) -> tuple[float, float | None, float | None]:
    """(b / a, low, high): ratio of the geometric means of two sets of positive numbers, one of each process.

    Two-sided at `level`, by Welch's t on the logarithms, its degrees of freedom rounded down. Without bounds where a
    set has one number alone.
    """
    first, second = np.log(np.asarray(a, dtype=np.float64)), np.log(np.asarray(b, dtype=np.float64))
    centre = float(second.mean() - first.mean())
    if min(len(first), len(second)) < 2:
        return math.exp(centre), None, None
    parts = [(float(x.var(ddof=1)) / len(x), len(x) - 1) for x in (first, second)]
    return _interval(centre, parts, level)


def _interval(
    centre: float, parts: Sequence[tuple[float, int]], level: float
) -> tuple[float, float | None, float | None]:
    """exp of Welch's interval. parts: (variance of the mean, degrees of freedom) of each side, of logarithms."""
    variance = sum(v for v, _ in parts)
    if variance == 0:
        return math.exp(centre), math.exp(centre), math.exp(centre)
    freedom = max(1, math.floor(variance**2 / sum(v**2 / f for v, f in parts)))
    half = student_quantile((1 + level) / 2, freedom) * math.sqrt(variance)
    return _exp(centre), _exp(centre - half), _exp(centre + half)


def compare_stores(
    a: Store,
    b: Store,
    *,
    metrics: Sequence[str] = (),
    confidence: float = 0.95,
    tolerance: float = 0.0,
) -> Comparison:
    """Compare the measurements that two stores have in common, the latest of each.

    metrics: names; those of COMPARED unless given. confidence: of all intervals together. tolerance: a change of so
    little, as a share (of accuracy: of one, so 0.005 is half a point), is no difference. Raises StoreError when the
    stores have nothing in common, EdgewiseError for a level or tolerance that cannot be.
    """
    check_level(confidence)
    if not 0 <= tolerance < 1:
        raise EdgewiseError(f"tolerance is {tolerance}; expected a share of at least 0 and below 1")
    names = tuple(metrics)
    left, right = _latest(a), _latest(b)
    common = [key for key in left if key in right]
    if not common:
        raise StoreError(
            f"{a.path} and {b.path} have no measurement in common: the same candidate, recipe, device, run settings "
            "and scenario in both"
        )
    pairs = [(key, left[key], right[key]) for key in common]
    for name in metrics:
        if not any(_value(m, name) is not None for _, *both in pairs for m in both):
            raise StoreError(f"{name} was measured neither in {a.path} nor in {b.path}")
    counted = sum(
        1 for _, m, n in pairs for name in names or _compared(m, n) if None not in (_value(m, name), _value(n, name))
    )
    level = 1 - (1 - confidence) / max(1, counted)
    found = [d for key, m, n in pairs for d in _differences(_subject(key), _Pair(a, b, m, n, level, tolerance), names)]
    found += [_gone(_subject(k), m, names, "not measured in the second run") for k, m in left.items() if k not in right]
    machines = {text: None for _, m, n in pairs for text in _machines(m, n)}
    notes = [
        f"{_subject(k)}: the bundle is another one (its content digest)"
        for k, m, n in pairs
        if m.content_digest != n.content_digest
    ]
    notes += [f"{_subject(k)} is in the second run alone" for k in right if k not in left]
    return Comparison(tuple(found), tuple(machines), tuple(notes))


def _compared(*both: Measurement) -> tuple[str, ...]:
    """COMPARED, and the percentile that a run was asked for, under the scenario's names."""
    asked = {
        f"{head}{percentile}": None
        for m in both
        if m.scenario in SCENARIOS and (percentile := (m.conditions.get("settings") or {}).get("percentile"))
        for head in (("ttft_", "tpot_") if m.scenario == "generation" else (prefix_of(m.scenario),))
    }
    return tuple(dict.fromkeys([*COMPARED, *asked]))


Key = tuple[str, str, str, str, str]


def _latest(store: Store) -> dict[Key, Measurement]:
    """Of each thing measured the last measurement; later ones take the place of earlier ones."""
    timed = (m for m in store.measurements() if m.target is not None and m.stage in ("profile", "confirm"))
    return latest((m for m in timed if m.scenario != "comparison"), _key)


def _key(m: Measurement) -> Key:
    return m.candidate, m.recipe, m.target.text() if m.target else "", m.scenario, m.stage


def _subject(key: Key) -> str:
    candidate, recipe, target, scenario, stage = key
    return f"{candidate}/{recipe} on {target}, {scenario}{', confirm' if stage == 'confirm' else ''}"


@dataclass(frozen=True)
class _Pair:
    """The same thing in both runs."""

    a: Store
    b: Store
    m: Measurement
    n: Measurement
    level: float
    tolerance: float


def _value(m: Measurement, name: str) -> float | None:
    """A metric that is a finite number."""
    metric = m.metric(name)
    if metric is None or metric.value is None or not math.isfinite(metric.value):
        return None
    return metric.value


def _differences(subject: str, pair: _Pair, names: Sequence[str]) -> list[Difference]:
    m, n = pair.m, pair.n
    if n.status == "failed" and m.status == "ok":
        return [_gone(subject, m, names, f"failed in the second run: {n.reason}")]
    if m.status == "failed":
        state = "also in the second" if n.status == "failed" else "measured in the second"
        return [Difference(subject, "", "", None, None, "not comparable", why=f"failed in the first run, {state}")]
    taken = names or _compared(m, n)
    known = [name for name in taken if _value(m, name) is not None or _value(n, name) is not None]
    if not known and not names:
        there = dict.fromkeys(x.name for both in (m, n) for x in both.metrics if _value(both, x.name) is not None)
        more = f"; --metric takes {', '.join(there)}" if there else ""
        why = f"none of the metrics that are compared is known of either run{more}"
        return [Difference(subject, "", "", None, None, "not comparable", why=why)]
    return [_of_metric(subject, pair, name) for name in known]


def _of_metric(subject: str, pair: _Pair, name: str) -> Difference:
    x, y = pair.m.metric(name), pair.n.metric(name)
    a, b = _value(pair.m, name), _value(pair.n, name)
    unit = x.unit if x is not None else y.unit if y is not None else ""
    if x is None or y is None or a is None or b is None:
        where, metric = ("second", y) if b is None else ("first", x)
        why = f": {metric.why}" if metric is not None and metric.why else ""
        # The first run was asked for one percentile; of another one the sample may be a little too small by chance.
        asked = (pair.m.conditions.get("settings") or {}).get("percentile", "p95")
        by_chance = y is not None and too_few_calls(y) and not name.endswith(asked)
        lost = b is None and not by_chance
        why = f"not known of the {where} run{why}"
        return Difference(subject, name, unit, a, b, "not comparable", why=why, lost=lost)
    reason = "" if x.unit == "B" else _not_the_same(pair.m, pair.n)
    if reason:
        return Difference(subject, name, unit, a, b, "not comparable", why=reason)
    return _difference(subject, pair, x, y)


def _gone(subject: str, m: Measurement, names: Sequence[str], why: str) -> Difference:
    taken = names or _compared(m)
    first = next((x for name in taken if (x := m.metric(name)) is not None and x.value is not None), None)
    lost = m.status == "ok" and (first is not None or not names)
    gone = Difference(subject, "", "", None, None, "not comparable", why=why, lost=lost)
    return gone if first is None else replace(gone, metric=first.name, unit=first.unit, a=first.value)


def _not_the_same(m: Measurement, n: Measurement) -> str:
    """Why two measurements are of different things, or ''."""
    if m.inputs_digest != n.inputs_digest and _rows_of(m) != _rows_of(n):
        return "the rows, or their labels, are not the same"
    scenarios = [x.conditions.get("scenario") for x in (m, n)]
    return "" if scenarios[0] == scenarios[1] else f"the scenarios differ: {scenarios[0]}, then {scenarios[1]}"


def _rows_of(m: Measurement) -> str:
    """The digest of the rows, whatever slices they were put in."""
    return str(m.conditions.get("rows_digest") or m.inputs_digest)


def _difference(subject: str, pair: _Pair, x: Metric, y: Metric) -> Difference:
    base = Difference(subject, x.name, x.unit, x.value, y.value, "none shown")
    if x.name in OF_ANSWERS:
        return _of_answers(base, pair, x, y)
    assert x.value is not None
    assert y.value is not None
    if x.low is None and y.low is None and x.unit == "B" and x.kind == y.kind == "measured":
        return _exact(base, x.value, y.value, pair.tolerance)
    timed = x.unit in _TIMED
    if timed and (reason := _disturbed(pair)):
        ratio = y.value / x.value if x.value > 0 else None
        return replace(base, change=ratio, verdict="not comparable", why=reason)
    if min(x.value, y.value) <= 0:
        return replace(base, verdict="not comparable", why="a value of 0 or below has no ratio")
    ratio, low, high = _ratio(pair, x, y)
    if low is None or high is None:
        estimated = "estimated" in (x.kind, y.kind)
        why = "an estimate" if estimated else "without several processes in both runs"
        why += " has no interval" if estimated else " there is no interval"
        return replace(base, change=ratio, verdict="not comparable", why=why)
    moved = _machine_moved(pair) if timed else (1.0, 1.0)
    if x.unit == "1/s":  # a machine of twice the speed has half the time and twice the rate
        moved = (1 / moved[1], 1 / moved[0])
    verdict = _verdict(x.name, low, high, moved[0] / (1 + pair.tolerance), moved[1] * (1 + pair.tolerance))
    why = _why(pair, verdict, low, high, moved)
    return replace(base, change=ratio, low=low, high=high, level=pair.level, verdict=verdict, why=why)


def _why(pair: _Pair, verdict: Verdict, low: float, high: float, moved: tuple[float, float]) -> str:
    texts = []
    if verdict == "none shown" and (low > 1 or high < 1) and (moved[0] < 1 or moved[1] > 1):
        texts.append(f"the machine itself moved: the same fixed work took {moved[0]:.2f} to {moved[1]:.2f} of its time")
    some = {name: _rounds(x).get("disturbed") for name, x in (("first", pair.m), ("second", pair.n))}
    texts += [f"{len(r)} rounds of the {name} run were disturbed" for name, r in some.items() if r]
    return "; ".join(texts)


def _exact(base: Difference, a: float, b: float, tolerance: float) -> Difference:
    """Bytes on disk and the like, which do not vary from run to run."""
    if a == b:
        return replace(base, change=1.0, verdict="equal")
    if min(a, b) <= 0:
        return replace(base, verdict="not comparable", why="a value of 0 or below has no ratio")
    ratio = b / a
    verdict = _verdict(base.metric, ratio, ratio, 1 / (1 + tolerance), 1 + tolerance)
    return replace(base, change=ratio, low=ratio, high=ratio, verdict=verdict)


def _of_accuracy(base: Difference, pair: _Pair) -> Difference:
    """The paired difference, row by row."""
    assert pair.m.id is not None
    assert pair.n.id is not None
    rows = list(zip(pair.a.outcomes(pair.m.id), pair.b.outcomes(pair.n.id), strict=True))
    lost, gained, changed = turned(rows)
    if changed == 0:
        return replace(base, change=0.0, low=0.0, high=0.0, verdict="equal", why="every answer is the same")
    drop = paired_drop(lost, gained, len(rows), (1 + pair.level) / 2).points
    low, high = -(drop.high or 0.0), -(drop.low or 0.0)
    limit = 100 * pair.tolerance
    verdict: Verdict = "better" if low > limit else "worse" if high < -limit else "none shown"
    why = f"{changed} of {len(rows)} answers changed"
    return replace(base, change=-drop.value, low=low, high=high, level=pair.level, verdict=verdict, why=why)


def _of_answers(base: Difference, pair: _Pair, x: Metric, y: Metric) -> Difference:
    """Row by row where a row is right or wrong, or has a likelihood."""
    if x.name not in ("accuracy", "perplexity"):
        return _of_score(base, pair, x, y)
    both = is_likelihood(pair.m) and is_likelihood(pair.n)
    return _of_likelihoods(base, pair) if both else _of_accuracy(base, pair)


def _of_score(base: Difference, pair: _Pair, x: Metric, y: Metric) -> Difference:
    """The difference, with an interval from those of the two, as if they were of other rows. They are of the same,
    which makes this one wider than it need be."""
    assert x.value is not None
    assert y.value is not None
    scale = 100.0 if x.unit == "1" else 1.0
    change = scale * (y.value - x.value)
    if x.value == y.value and x.low == y.low and x.high == y.high:
        return replace(base, change=0.0, low=0.0, high=0.0, verdict="equal")
    errors = []
    for m in (x, y):
        if m.low is None or m.high is None or m.level is None or not 0.5 < m.level < 1:
            return replace(base, change=change, verdict="not comparable", why="a value without bounds has no interval")
        errors.append((m.high - m.low) / 2 / NormalDist().inv_cdf(m.level))
    half = scale * NormalDist().inv_cdf((1 + pair.level) / 2) * math.hypot(*errors)
    # A share of what is a share or lies between -1 and 1 itself, of another score a share of its value.
    whole = 1.0 if x.unit == "1" or x.name in SIGNED else abs(x.value)
    low, high, limit = change - half, change + half, scale * pair.tolerance * whole
    verdict = _verdict(x.name, low, high, -limit, limit)
    why = "as if of other rows: the interval is wider than it need be"
    return replace(base, change=change, low=low, high=high, level=pair.level, verdict=verdict, why=why)


def _of_likelihoods(base: Difference, pair: _Pair) -> Difference:
    """Of a language model: the ratio of perplexities, or the paired difference of its accuracy on masked words."""
    rows = list(zip(pair.a.outcomes(pair.m.id or 0), pair.b.outcomes(pair.n.id or 0), strict=True))
    found = paired_likelihood(rows, (1 + pair.level) / 2)
    if isinstance(found, str):
        return replace(base, verdict="not comparable", why=found)
    of_accuracy = base.metric == "accuracy"
    if found.same:
        same = 0.0 if of_accuracy else 1.0
        return replace(base, change=same, low=same, high=same, verdict="equal", why="every token's is the same")
    if of_accuracy:
        change, low, high = (None if x is None else -x for x in (found.drop.value, found.drop.high, found.drop.low))
        below, above = -100 * pair.tolerance, 100 * pair.tolerance
    else:
        change, low, high = found.ratio.value, found.ratio.low, found.ratio.high
        below, above = 1 / (1 + pair.tolerance), 1 + pair.tolerance
    if low is None or high is None:
        return replace(base, change=change, verdict="not comparable", why="one row alone has no interval")
    verdict = _verdict(base.metric, low, high, below, above)
    return replace(base, change=change, low=low, high=high, level=pair.level, verdict=verdict)


def _verdict(metric: str, low: float, high: float, below: float, above: float) -> Verdict:
    """What an interval says that lies beside [below, above], the ratios that are no difference."""
    if low <= above and high >= below:
        return "none shown"
    rose = low > above
    better_when_lower = metric not in METRICS or METRICS[metric].better == "lower"
    return "worse" if rose == better_when_lower else "better"


def _ratio(pair: _Pair, x: Metric, y: Metric) -> tuple[float, float | None, float | None]:
    per_process = [_per_process(s, m, x.name) for s, m in ((pair.a, pair.m), (pair.b, pair.n))]
    assert x.value is not None
    assert y.value is not None
    if all(per_process):
        if min(map(min, per_process)) <= 0:  # no clock gives that: the store was changed
            return y.value / x.value, None, None
        return ratio_bounds(per_process[0], per_process[1], pair.level)
    parts = [p for p in (_variance(x, pair.m), _variance(y, pair.n)) if p is not None]
    centre = math.log(y.value / x.value)
    return _interval(centre, parts, pair.level) if len(parts) == 2 else (math.exp(centre), None, None)


def _per_process(store: Store, m: Measurement, metric: str) -> list[float]:
    """One number of each process, from the raw samples; none for what is not of them."""
    name = metric.rpartition("_")[2]
    if m.id is None or (name not in PERCENTILES and name != "mean"):
        return []
    samples = [np.array(s.ns, dtype=np.float64) for s in store.samples(m.id)]
    if any(len(s) == 0 for s in samples):
        return []
    if (written := m.conditions.get("generation")) is not None:
        columns = [[r[n] for r in written] for n in ("first_ns", "written")]
        times = dict(token_times([s.ns for s in store.samples(m.id)], columns[0], columns[1]))
        samples = times[metric.partition("_")[0]]
    if name == "mean":
        return [float(s.mean()) for s in samples]
    return [process_quantile(s, PERCENTILES[name]) for s in samples]


def _variance(metric: Metric, m: Measurement) -> tuple[float, int] | None:
    """(variance of the logarithm of a mean over processes, degrees of freedom), from its bounds by Student's t."""
    count = int(_rounds(m).get("count") or 0)
    if metric.value is None or metric.high is None or metric.low is None or metric.level is None or count < 2:
        return None
    # A lower bound that was cut at 0 is none: the upper one has the width.
    width = 2 * (metric.high - metric.value) if metric.low == 0 else metric.high - metric.low
    half = width / 2 / metric.value
    if not math.isfinite(half):
        return None
    return (half / student_quantile(metric.level, count - 1)) ** 2, count - 1


def _rounds(m: Measurement) -> Mapping[str, Any]:
    found: Mapping[str, Any] = m.conditions.get("rounds") or {}
    return found


def _disturbed(pair: _Pair) -> str:
    """Why the times of a run say nothing of the bundle, or ''."""
    for name, m in (("first", pair.m), ("second", pair.n)):
        rounds = _rounds(m)
        count, disturbed = int(rounds.get("count") or 0), rounds.get("disturbed") or []
        if 2 * len(disturbed) > count:
            return f"other processes took the machine in {len(disturbed)} of {count} rounds of the {name} run"
    return ""


def _machine_moved(pair: _Pair) -> tuple[float, float]:
    """How much longer fixed work took in the second run: the smallest and the largest of 1 and the two yardsticks."""
    ratios = [1.0]
    marks = [[y for y in _rounds(m).get("yardstick") or [] if y] for m in (pair.m, pair.n)]
    if all(marks):
        for name in ("product", "copy"):
            ratios.append(ratio_bounds([y[name] for y in marks[0]], [y[name] for y in marks[1]], 0.95)[0])
    return min(ratios), max(ratios)


def _machines(m: Measurement, n: Measurement) -> list[str]:
    """How the fingerprints differ, field by field."""
    first, second = (x.conditions.get("fingerprint") or {} for x in (m, n))
    beside = [(f, first.get(f), second.get(f)) for f in _BESIDE]
    if first.get("digest") == second.get("digest"):
        return [f"{field}: {_text(x)}, then {_text(y)}" for field, x, y in beside if x != y]
    one, other = first.get("versions") or {}, second.get("versions") or {}
    named = [(f, first.get(f) or None, second.get(f) or None) for f in (*_MACHINE, "python")]
    named += beside
    named += [(f"version of {p}", one.get(p), other.get(p)) for p in dict.fromkeys([*one, *other])]
    return [f"{field}: {_text(x)}, then {_text(y)}" for field, x, y in named if x != y]


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)
