"""What a short look at a bundle can say for sure: how fast it is at best, not how fast it is.

A look is a fresh process or two with few timed calls. Two things stand between it and the value that a full
measurement finds: the calls are a sample of the rows, and a process is a sample of processes. The first is bounded by
order statistics, which assume nothing of the form of the distribution but that it is the same in all processes, each
of which may be slower or faster as a whole; the second by the spread between processes, pooled over all that was run in
two processes or more, and by Student's t.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from edgewise.student import student_quantile
from edgewise.types import Metric
from edgewise.units import METRICS, PERCENTILES

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

STARTUP = ("startup", *(f"startup_{n}" for n in ("interpreter", "imports", "load", "session", "first")))
MEMORY = ("peak_rss", "empty_rss", "pss", "uss")
CALLS = (*PERCENTILES, "latency_mean", "throughput")
TIMED = (*CALLS, *STARTUP, *MEMORY)
"""The metrics that a look bounds."""


@dataclass(frozen=True)
class Spread:
    """How far processes of the same thing lie apart: standard deviation of the logarithm, and how well it is known."""

    deviation: float
    freedom: int

    def reach(self, level: float, processes: int) -> float:
        """How far, in logarithms, the mean of so many processes may lie from the true one, at a one-sided level."""
        return student_quantile(level, self.freedom) * self.deviation / math.sqrt(processes)


_PRIOR = {"time": Spread(0.05, 4), "startup": Spread(0.08, 4), "memory": Spread(0.01, 4)}
"""Where little was run twice: as if five processes had been seen to lie so far apart."""
_FLOOR = {"time": 0.02, "startup": 0.03, "memory": 0.003}
"""Calm processes that happen to agree prove no better machine."""


def spread_of_times(series: Iterable[Sequence[Floats]]) -> Spread:
    """Between processes, pooled over `series`: for each thing measured the seconds of every call, one array a process.

    One-way analysis of variance on the logarithm of the calls: what the mean of a process moves since its calls are
    few is taken off. Things with one process say nothing.
    """
    import numpy as np

    squares, freedom = 0.0, 0
    for processes in series:
        if len(processes) < 2 or any(len(p) < 2 for p in processes):
            continue
        logs = [np.log(p) for p in processes]
        between = float(np.var([x.mean() for x in logs], ddof=1))
        of_calls = float(np.mean([x.var(ddof=1) / len(x) for x in logs]))
        squares += (len(logs) - 1) * max(0.0, between - of_calls)
        freedom += len(logs) - 1
    return _pooled("time", squares, freedom)


def spread_of_numbers(kind: str, metrics: Iterable[Metric]) -> Spread:
    """Between processes, of a number that each process has once: from means over processes and their t bounds.

    kind: 'startup' or 'memory'.
    """
    squares, freedom = 0.0, 0
    for m in metrics:
        own = _squares(m)
        if own is None or m.value is None or m.value <= 0:
            continue
        squares += own / m.value**2
        freedom += m.n - 1
    return _pooled(kind, squares, freedom)


def both_means(one: Metric | None, other: Metric, level: float) -> Metric:
    """The mean over the processes of both, with Student's bounds at `level`, where each is such a mean over its own."""
    if one is None or one.value is None or other.value is None:
        return other
    n = one.n + other.n
    mean = (one.n * one.value + other.n * other.value) / n
    between = one.n * (one.value - mean) ** 2 + other.n * (other.value - mean) ** 2
    squares = between + (_squares(one) or 0.0) + (_squares(other) or 0.0)
    half = student_quantile(level, n - 1) * math.sqrt(squares / (n - 1) / n)
    return replace(other, value=mean, low=max(0.0, mean - half), high=mean + half, level=level, n=n, why="")


def _squares(m: Metric) -> float | None:
    """The squared distances of the processes from their mean, from its Student's bounds; None where it has none."""
    if m.value is None or m.high is None or m.level is None or m.n < 2 or m.level <= 0.5:
        return None
    deviation = (m.high - m.value) / student_quantile(m.level, m.n - 1) * math.sqrt(m.n)
    return (m.n - 1) * deviation**2


def _pooled(kind: str, squares: float, freedom: int) -> Spread:
    prior = _PRIOR[kind]
    total = freedom + prior.freedom
    deviation = math.sqrt((squares + prior.freedom * prior.deviation**2) / total)
    return Spread(max(deviation, _FLOOR[kind]), total)


def rank_below(n: int, q: float, level: float) -> int:
    """The largest k such that the k-th smallest of n calls lies at or below the q-quantile with this confidence; 0
    where none does.

    The calls below the quantile are a binomial number: k of them or more with probability `level`.
    """
    share, k = 1.0, 0  # P(at least k of n)
    log = n * math.log1p(-q)  # of P(exactly k of n)
    while k < n:
        share -= math.exp(log) if log > -700 else 0.0
        if share < level:
            break
        log += math.log((n - k) / (k + 1)) + math.log(q) - math.log1p(-q)
        k += 1
    return k


def bounds_of_look(
    times: Sequence[Floats],
    numbers: Mapping[str, Metric],
    spreads: Mapping[str, Spread],
    level: float,
    *,
    batch_size: int = 1,
) -> dict[str, Metric]:
    """Metrics of a look, each with the one bound that a look can give: how good it may be at best, at `level`.

    times: seconds of the calls, one array a process. numbers: start-up and memory as the profiler has them, means over
    these processes. spreads: of 'time', 'startup' and 'memory'. The values are what the few calls say, 'estimated'.
    """
    half = 1 - (1 - level) / 2  # one half of the risk for the calls, one for the processes
    calls = sum(len(t) for t in times)
    count = f"{len(times)} process{'es' * (len(times) > 1)}"
    method, why = f"a look: {count}, {calls:,} calls", "a look at few calls bounds one side alone"
    found = {}
    reach = spreads["time"].reach(half, len(times))
    for name, q in PERCENTILES.items():
        value, low = _percentile(times, q, half, reach)
        found[name] = Metric(name, "s", value, low, None, level if low else None, method, calls, "estimated", why)
    mean, low = _mean(times, half, reach)
    found["latency_mean"] = Metric("latency_mean", "s", mean, low, None, level, method, calls, "estimated", why)
    most = batch_size / low if low > 0 else None
    found["throughput"] = Metric(
        "throughput", "1/s", batch_size / mean, None, most, level if most else None, method, calls, "estimated", why
    )
    for name in (*STARTUP, *MEMORY):
        known = numbers.get(name)
        if known is not None and known.value is not None and known.value > 0:
            spread = spreads["startup" if name in STARTUP else "memory"]
            low = known.value * math.exp(-spread.reach(level, len(times)))
            unit = METRICS[name].unit
            found[name] = Metric(
                name, unit, known.value, low, None, level, f"a look: {count}", len(times), "estimated", why
            )
    return found


def _percentile(times: Sequence[Floats], q: float, level: float, reach: float) -> tuple[float, float | None]:
    """(what the calls say, the lower bound; None where the calls are too few for any).

    The calls of all processes together, each held against the mean of its own process: what remains is taken to be
    spread alike in all, so that a process that is slow as a whole does not pass for the slow calls of all.
    """
    import numpy as np

    value = float(np.mean([np.quantile(t, q) for t in times]))
    logs = [np.log(t) for t in times]
    pooled = np.sort(np.concatenate([x - x.mean() for x in logs]))
    rank = rank_below(len(pooled), q, level)
    if rank == 0:
        return value, None
    centre = float(np.mean([x.mean() for x in logs]))
    return value, min(value, math.exp(centre + float(pooled[rank - 1]) - reach))


def _mean(times: Sequence[Floats], level: float, reach: float) -> tuple[float, float]:
    """(mean of the processes' means, the lower bound; 0 where the calls are too few for one)."""
    import numpy as np

    mean, freedom = float(np.mean([t.mean() for t in times])), sum(len(t) - 1 for t in times)
    if min(map(len, times)) < 2:
        return mean, 0.0
    error = math.sqrt(sum(float(t.var(ddof=1)) / len(t) for t in times)) / len(times)
    return mean, max(0.0, mean - student_quantile(level, freedom) * error) * math.exp(-reach)
