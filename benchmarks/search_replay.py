"""The search on a recorded run: what it would have measured, what that would have cost, and what another run says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgewise.pairing import Pairing
from edgewise.plan import ProfileSpec
from edgewise.profiler import Store, entries
from edgewise.profiler.joining import answer_settings
from edgewise.profiler.rounds import ENDS_FROM
from edgewise.profiler.statistics import mean_bounds
from edgewise.search import PART_FROM, rules_of
from edgewise.search_steps import look_seconds
from edgewise.selector import check_budgets, select
from edgewise.selector.contest import set_up
from edgewise.selector.known import Known, Rules, with_bounds
from edgewise.selector.race import Step, race
from edgewise.selector.words import gap, unit_of
from edgewise.types import Budget, Entry, Measurement, Metric, Selection, Target
from edgewise.units import METRICS, RELATIVE, parse_budget

WORKERS = 2
"""Processes that answer at the same time."""
LEVEL = 0.95
FEWEST = 6
"""Calls of a look at least, as the profiler has it."""
Q = tuple[tuple[str, float], ...]
SETS: tuple[tuple[Q, tuple[str, ...], tuple[str, ...]], ...] = (
    ((), (), ("accuracy", "p95")),
    ((("p95", 0.5),), (), ("accuracy", "p95")),
    ((("p95", 0.3),), (), ("accuracy", "p95")),
    ((("p95", 0.15),), (), ("accuracy", "p95")),
    ((("size", 0.5),), (), ("accuracy", "p95")),
    ((("size", 0.3), ("p95", 0.4)), (), ("accuracy", "p95")),
    ((("peak_rss", 0.4),), (), ("accuracy", "p95")),
    ((("peak_rss", 0.2),), (), ("p95", "accuracy")),
    ((("accuracy", 0.5),), (), ("p95", "accuracy")),
    ((("accuracy", 0.25),), (), ("p95", "accuracy")),
    ((("accuracy", 0.4),), (), ("size", "p95")),
    ((), ("accuracy_drop <= 2 points of fp32",), ("p95", "accuracy")),
    ((("p95", 0.5),), ("accuracy_drop <= 1.5 points of fp32",), ("accuracy", "p95")),
    ((("size", 0.5),), ("accuracy_drop <= 2 points of fp32",), ("size", "p95")),
    ((("accuracy", 0.5),), (), ("peak_rss", "accuracy")),
    ((("accuracy", 0.5), ("size", 0.5)), (), ("throughput", "accuracy")),
    ((("p95", 0.5), ("peak_rss", 0.5), ("size", 0.6), ("accuracy", 0.7)), (), ("accuracy", "p95")),
    ((("p95", 0.3), ("accuracy", 0.5)), (), ("size", "p95")),
    ((("startup", 0.4), ("accuracy", 0.6)), (), ("accuracy", "startup")),
    ((("p95", 0.4), ("peak_rss", 0.6)), (), ("accuracy", "peak_rss")),
)
"""(metric, share of the first run's points that keep a budget there), budgets as they stand, objective."""


@dataclass(frozen=True)
class Case:
    """One set of budgets."""

    budgets: tuple[Budget, ...]
    objective: tuple[str, ...]


@dataclass(frozen=True)
class Point:
    """What a run recorded of one bundle on one target."""

    entry: Entry
    answers: str
    times: tuple[Any, ...]
    """Seconds of the calls, an array a process."""
    walls: tuple[float, ...]
    startups: tuple[float, ...]
    peaks: tuple[float, ...]
    answered: Measurement
    compared: Measurement | None

    @property
    def family(self) -> tuple[str | None, Target]:
        """What points share that differ in their length alone."""
        assert self.entry.target is not None
        return self.entry.content_digest, self.entry.target.at_any_length()

    @property
    def beside(self) -> float:
        """Seconds of a process beside its timed calls; the first round also lists the nodes of the graph."""
        return float(np.median([w - t.sum() for w, t in zip(self.walls[1:], self.times[1:], strict=True)]))


class Recorded:
    """A run of everything, as its store has it."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise SystemExit(f"{path} is not there: measure it first, with --run")
        self.store = Store(path)
        found = self.store.measurements()
        timed = {(m.content_digest, m.target): m for m in found if m.scenario == "single-stream" and m.status == "ok"}
        by_answers = {
            (m.scenario, f"{m.content_digest} {answer_settings(m.target)}"): m
            for m in found
            if m.scenario in ("accuracy", "comparison") and m.status == "ok" and m.target
        }
        self.points: dict[str, Point] = {}
        for entry in entries(self.store):
            assert entry.target is not None
            self.points[entry.key] = self._point(entry, timed[entry.content_digest, entry.target], by_answers)
        self.rows = max(p.entry.metrics["accuracy"].n for p in self.points.values())
        self.pairing = Pairing(self.store, [p.entry.target for p in self.points.values() if p.entry.target])
        self.right = {p.answers: self._right(p) for p in self.points.values()}
        self.describe = min(p.beside for p in self.points.values())

    def _point(self, entry: Entry, m: Measurement, by_answers: dict[Any, Measurement]) -> Point:
        rounds, answers = m.conditions["rounds"], f"{entry.content_digest} {answer_settings(entry.target)}"  # type: ignore[arg-type]
        times = tuple(np.array(s.ns, dtype=np.float64) / 1e9 for s in self.store.samples(m.id or 0))
        return Point(
            entry, answers, times, tuple(rounds["wall_s"]), tuple(rounds["startup_s"]), tuple(rounds["peak_rss"]),
            by_answers["accuracy", answers], by_answers.get(("comparison", answers)),
        )  # fmt: skip

    def _right(self, point: Point) -> Any:
        return np.array([o.answer == o.label for o in self.store.outcomes(point.answered.id or 0)], dtype=np.bool_)

    def whole_cost(self) -> float:
        """Seconds that measuring everything took."""
        answers = {p.answers: p.answered.conditions["wall_s"] for p in self.points.values()}
        timed = sum(sum(p.walls) for p in self.points.values())
        return float(timed + sum(answers.values()) / WORKERS + 2 * self.describe)

    def sets(self) -> list[Case]:
        """The budgets with their limits: such that a share of this run's points keeps each."""
        return [
            Case((*[self._limit(*q) for q in quantiles], *map(parse_budget, fixed)), o) for quantiles, fixed, o in SETS
        ]

    def same_as(self, point: Point) -> str | None:
        """Key of the shortest length of its bundle and threads that cuts no row, where it is a longer one."""
        alike = (p for p in self.points.values() if p.family == point.family and not _cuts(p))
        shortest = min(alike, key=_length, default=point)
        return shortest.entry.key if _length(shortest) < _length(point) else None

    def _limit(self, metric: str, share: float) -> Budget:
        higher = METRICS[metric].better == "higher"
        found = [p.entry.metrics[metric] for p in self.points.values()]
        bounds = [b for m in found if (b := (m.low if higher else m.high) or m.value) is not None]
        limit = float(np.quantile(bounds, 1 - share if higher else share))
        step = 10.0 ** (np.floor(np.log10(limit)) - 2)  # three digits, rounded so that the point at the limit keeps it
        limit = float(step * (np.floor(limit / step) if higher else np.ceil(limit / step)))
        unit, factor = {"s": ("ms", 1e3), "B": ("MB", 1e-6), "1": ("", 1.0)}[METRICS[metric].unit]
        return parse_budget(f"{metric} {'>=' if higher else '<='} {limit * factor:.6g} {unit}".strip())

    def choose(self, case: Case, keys: Sequence[str] | None = None) -> Selection:
        chosen = [self.points[k].entry for k in (self.points if keys is None else keys)]
        return select(chosen, case.budgets, case.objective, confidence=LEVEL, paired=self.pairing)


def judged(first: Recorded, second: Recorded, number: int) -> dict[str, Any]:
    """One set of budgets: five replays of the search, and the whole first run, against the second run."""
    case = first.sets()[number]
    truth, whole = second.choose(case), first.choose(case)
    base, best = _key(whole), _key(truth)
    replays = []
    for offset in range(5):
        found = Replay(first, case, offset)
        key = _key(found.run())
        replays.append(
            {
                "choice": key, "as_first_run": key == base,
                "as_first_run_or_tied": against(first, case, key, base)["same_or_tied"],
                **against(second, case, key, best), **found.counts(),
                "seconds": found.cost, "whole_s": first.whole_cost(), "speedup": first.whole_cost() / found.cost,
            }
        )  # fmt: skip
    return {
        "budgets": [b.text for b in case.budgets],
        "objective": list(case.objective),
        "feasible": sum(v.feasible for v in truth.verdicts),
        "truth": best,
        "first": {"choice": base, **against(second, case, base, best)},
        "replays": replays,
    }


def _key(selection: Selection) -> str | None:
    return selection.chosen.entry.key if selection.chosen else None


def against(second: Recorded, case: Case, key: str | None, best: str | None) -> dict[str, Any]:
    """A choice as the second run sees it: the same or tied by the rule of the choice, not told apart by any number of
    comparisons at once, and what it loses."""
    if key == best:
        return {"same_or_tied": True, "not_told_apart": True, "regret": "none", "regret_size": 0.0}
    if key is None:
        return {"same_or_tied": False, "not_told_apart": False, "regret": "chose nothing", "regret_size": 9.0}
    checks = check_budgets(second.points[key].entry, case.budgets, LEVEL)
    if broken := [c for c in checks if not c.met]:
        over = max(-(c.margin or 0.0) / (abs(c.budget.limit) or 1.0) for c in broken)
        names = ", ".join(c.budget.metric for c in broken)
        told = {"regret": f"{names} {over:.1%} over", "regret_size": 1 + over}
        return {"same_or_tied": False, "not_told_apart": False, **told}
    assert best is not None  # what keeps every budget there is chosen or beaten
    kept = [p.entry for p in second.points.values() if all(c.met for c in check_budgets(p.entry, case.budgets, LEVEL))]
    lost = _lost(second, case, kept, key, LEVEL)
    if lost is None:
        return {"same_or_tied": True, "not_told_apart": True, "regret": "tied", "regret_size": 0.0}
    # The best of many is the luckiest of those that are as good: to tell one from it takes a level that holds for all
    # comparisons at once (Bonferroni, in the place of Hsu's constrained comparisons with the best).
    together = 1 - (1 - LEVEL) / max(1, len(kept) - 1)
    name, unit, behind, size = lost
    return {
        "same_or_tied": False, "not_told_apart": _lost(second, case, kept, key, together) is None,
        "regret": f"{name} {gap(behind, unit)} ({size:.1%})", "regret_size": size,
    }  # fmt: skip


def _lost(
    run: Recorded, case: Case, kept: Sequence[Entry], key: str, level: float
) -> tuple[str, str, float, float] | None:
    """(objective, its unit, how far behind, relative) of the stage in which an entry drops out of the contest; None
    where it stays to the end."""
    contest = set_up(kept, case.objective, dict.fromkeys(RELATIVE, "fp32"), level, paired=run.pairing)
    mine = next(i for i, e in enumerate(kept) if e.key == key)
    _, stages = contest.play(np.arange(len(kept), dtype=np.int64))
    stage = next((s for s in stages if mine not in s.after), None)
    if stage is None:
        return None
    column = contest.columns[stage.column]
    behind = float(column.score[stage.leader] - column.score[mine])
    return column.name, unit_of(column.name), behind, behind / abs(float(column.score[stage.leader]))


class Replay:
    """One search on a recorded run. offset: the round that looks are taken from."""

    def __init__(self, run: Recorded, case: Case, offset: int) -> None:
        self.run_, self.case, self.offset = run, case, offset
        self.cost, self.done = run.describe, {"look": 0, "answer": 0, "measure": 0}
        self.ended: set[str] = set()
        self.rules: Rules = rules_of(_Plan(case), run.rows)  # type: ignore[arg-type]
        self.points = {k: Known(_bare(p.entry), p.answers, same_as=run.same_as(p)) for k, p in run.points.items()}

    def run(self) -> Selection:
        end = race(self.points, self.rules, self._act)
        return self.run_.choose(self.case, [k for k, known in end.points.items() if known.full])

    def counts(self) -> dict[str, int]:
        full = sum(k.full for k in self.points.values())
        ended = sum(not self.points[k].full for k in self.ended)
        return {"looks": self.done["look"], "answers": self.done["answer"], "in_full": full, "ended_early": ended}

    def _act(self, step: Step) -> dict[str, Known]:
        looks = [step.processes(key, len(self.points[key].times)) for key in step.keys]
        self.done[step.kind] += sum(looks) if step.kind == "look" else len(step.keys)
        news = {"look": self._look, "answer": self._answer, "measure": self._measure}[step.kind](step)
        self.points |= news
        self.points |= with_bounds(self.points, self.rules.level)
        return self.points

    def _look(self, step: Step) -> dict[str, Known]:
        news = {}
        for key in step.keys:
            p = self.run_.points[key]
            so_far = len(self.points[key].times)
            rounds = [(self.offset + i) % len(p.times) for i in range(so_far + step.processes(key, so_far))]
            news[key] = self._looked(key, rounds, _beginning)
            self.cost += sum(p.beside + float(t.sum()) for t in news[key].times[so_far:])
        return news

    def _measure(self, step: Step) -> dict[str, Known]:
        """Round by round, as the profiler does; who surely is out has no more."""
        news: dict[str, Known] = {}
        going, number = list(step.keys), 0
        while going:
            number += 1
            for key in list(going):
                self.cost += self.run_.points[key].walls[number - 1]
                if number == len(self.run_.points[key].times):
                    news[key] = self._in_full(key)
                    going.remove(key)
            if number >= ENDS_FROM and going and step.ends is not None and self.ended.isdisjoint(step.keys):
                so_far = {key: self._looked(key, range(number), _whole) for key in going}
                out = step.ends(with_bounds({**self.points, **so_far}, self.rules.level))
                for key in [k for k in going if k in out]:
                    news[key] = so_far[key]
                    going.remove(key)
                    self.ended.add(key)
        return news

    def _in_full(self, key: str) -> Known:
        p, known = self.run_.points[key], self.points[key]
        whole = {n: m for n, m in p.entry.metrics.items() if n not in _of_answers(p)}
        entry = replace(known.entry, metrics={**known.entry.metrics, **whole})
        return replace(known, entry=entry, timed="full", times=p.times)

    def _looked(self, key: str, rounds: Sequence[int], calls: Callable[[Any], Any]) -> Known:
        """After these rounds. calls: of each, what was made of it. All that a point was looked at before are rounds of
        the same run, so that none is counted twice here; real looks are processes of their own, and count."""
        p, level = self.run_.points[key], self.rules.level
        numbers = {
            name: mean_bounds([values[r] for r in rounds], level).as_metric(name, unit, level)
            for name, unit, values in (("startup", "s", p.startups), ("peak_rss", "B", p.peaks))
        }
        times = tuple(calls(p.times[r]) for r in rounds)
        return replace(self.points[key], timed="part", times=times, numbers=numbers)

    def _answer(self, step: Step) -> dict[str, Known]:
        wanted = {self.run_.points[k].answers: self.run_.points[k] for k in step.keys}
        if {*self.case.objective, *(b.metric for b in self.case.budgets)} & set(RELATIVE):
            wanted |= {p.answers: p for p in self._references(list(wanted.values()))}
        fresh = [p for p in wanted.values() if step.part or not self._answered(p)]
        self.cost += sum(self._answer_cost(p, fresh) for p in fresh) / WORKERS
        if step.part:
            raise SystemExit(f"{self.run_.rows} rows: a replay of {PART_FROM} rows or more is not written")
        news = {}
        for key, known in self.points.items():
            p = self.run_.points[key]
            if p.answers in wanted:
                metrics = {**known.entry.metrics, **_of_answers(p)}
                entry = replace(known.entry, metrics=metrics)
                news[key] = replace(known, entry=entry, answered="full", right=self.run_.right[p.answers])
        return news

    def _answered(self, point: Point) -> bool:
        return self.points[point.entry.key].answered == "full"

    def _references(self, points: Sequence[Point]) -> list[Point]:
        settings = {(p.entry.candidate, p.answers.partition(" ")[2]) for p in points}
        return [
            p
            for p in self.run_.points.values()
            if p.entry.recipe == "fp32" and (p.entry.candidate, p.answers.partition(" ")[2]) in settings
        ]

    def _answer_cost(self, point: Point, asked: Sequence[Point]) -> float:
        """Seconds of the process. Where a longer length of the bundle is asked for too, only the rows that this one
        cuts are answered anew, as recorded; else all of them are, each as long as at the longest length."""
        longer = [p for p in self._lengths(point) if _length(p) > _length(point)]
        if not longer or any(p.answers == q.answers for p in longer for q in asked):
            return float(point.answered.conditions["wall_s"])
        longest = max(longer, key=_length)
        return float(longest.answered.conditions["wall_s"])

    def _lengths(self, point: Point) -> list[Point]:
        return [p for p in self.run_.points.values() if p.entry.content_digest == point.entry.content_digest]


def _length(point: Point) -> int:
    assert point.entry.target is not None
    return point.entry.target.run.max_length or 0


def _cuts(point: Point) -> bool:
    return bool(point.answered.conditions["inputs"]["truncated"])


def _whole(times: Any) -> Any:
    """The calls of a round that was made to its end."""
    return times


def _beginning(times: Any) -> Any:
    """The calls of a process that a look would have made."""
    count = int(np.searchsorted(np.cumsum(times), look_seconds(ProfileSpec())) + 1)
    return times[: max(FEWEST, count)]


def _of_answers(point: Point) -> dict[str, Metric]:
    found = [*point.answered.metrics, *(point.compared.metrics if point.compared else ())]
    return {m.name: m for m in found}


def _bare(entry: Entry) -> Entry:
    return replace(entry, metrics={"size": entry.metrics["size"]})


class _Plan:
    """What `rules_of` reads of a plan."""

    weights: tuple[float, ...] = ()
    confidence = LEVEL

    def __init__(self, case: Case) -> None:
        self.budgets, self.objective = case.budgets, case.objective

    @property
    def profile(self) -> Any:
        from edgewise.profiler.rounds import Rounds

        return Rounds()
