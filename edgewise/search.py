"""The search of `fit`: measures what the race asks for, and stops when its time is up.

What it measures stands in the store, looks under their own stage, so that a run that is started again finds it there.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgewise.errors import PlanError, need_extra
from edgewise.progress import Reporter
from edgewise.search_steps import Steps, look_seconds, target_text
from edgewise.types import Entry, Selection

if TYPE_CHECKING:
    from edgewise.data import Splits
    from edgewise.plan import Plan
    from edgewise.profiler import Store, Subject
    from edgewise.selector.known import Known, Rules
    from edgewise.selector.race import RaceEnd, Step

CALLS_S = 0.6
"""What a process costs beside its timed calls, as a first guess."""
PART, PART_FROM = 400, 1600
"""Rows that are answered first, and the rows of val from which that is worth its processes."""

PROPOSED, TOGETHER = 240, 12
"""Points that Optuna proposes in all, and at a time."""


def check_minutes(minutes: float | None) -> float | None:
    """`minutes`, if it is a time. Raises PlanError."""
    if minutes is not None and not (math.isfinite(minutes) and minutes > 0):
        raise PlanError(f"--minutes is {minutes:g}; expected minutes of measuring above 0, for example 5")
    return minutes


def check_sampler(plan: Plan) -> None:
    """Raise MissingExtraError where the plan asks for Optuna and it is not installed."""
    if plan.search == "optuna":
        try:
            import optuna  # noqa: F401
        except ImportError as error:
            raise need_extra("search", error) from error


def rules_of(plan: Plan, rows: int) -> Rules:
    """What the race goes by. rows: of val."""
    from edgewise.selector.known import Rules

    part = sorted(random.Random(0).sample(range(rows), PART)) if rows >= PART_FROM else []
    return Rules(
        plan.budgets, plan.objective, plan.weights, plan.confidence, width=plan.profile.width, rows=rows,
        part=tuple(part),
    )  # fmt: skip


@dataclass
class Search:
    """One search over all devices of a plan."""

    plan: Plan
    store: Store
    subjects: Sequence[Subject]
    splits: Splits
    work: Path
    say: Reporter
    minutes: float | None = None
    known: dict[str, dict[str, Known]] = field(default_factory=dict)
    """Device -> key -> what is known."""
    ends: dict[str, RaceEnd] = field(default_factory=dict)
    until: float | None = None
    """When the time of the device at hand is up, on the monotonic clock."""
    forced: bool = False
    """Beyond the time: an answer needs one point that was measured in full."""
    passed_over: dict[str, set[str]] = field(default_factory=dict)
    """Device -> keys of points that Optuna did not propose."""
    costs: dict[str, float] = field(default_factory=dict)
    """Seconds that one point of each kind of step takes."""

    def __post_init__(self) -> None:
        self.rules = rules_of(self.plan, len(self.splits.val))
        self.steps = Steps(self.plan, self.store, self.subjects, self.splits, self.work, self.say, self.rules)
        rule = self.plan.profile
        rows = len(self.splits.val) * 0.002
        measure = rule.min_rounds * (CALLS_S + rule.seconds) * len(rule.scenarios)
        self.costs = {"look": CALLS_S + look_seconds(rule), "answer": CALLS_S + rows, "measure": measure}
        self.left_s = None if self.minutes is None else 60 * self.minutes
        self.devices_left = [d.name for d in self.plan.devices]

    def run(self, device: str, exclude: Collection[str] = ()) -> RaceEnd:
        """Race on one device. exclude: keys of points that did not pass when they were confirmed."""
        from edgewise.selector.race import race

        points = self.known.setdefault(device, self.steps.start(device))
        self._set_clock(device)
        started = time.monotonic()
        with self.say.step(f"search among {len(points)} points on {device}"):
            if self.plan.search == "optuna":
                self._propose(device)
            aside = self.passed_over.get(device, set())
            mine = {key: known for key, known in points.items() if key not in aside}
            end = race(mine, self.rules, lambda step: self._act(device, step, aside), exclude=exclude, told=self._tell)
            if end.open and not any(k.full and k.entry.status == "ok" for k in end.points.values()):
                end = self._one_in_full(device, exclude)
        if self.left_s is not None:
            self.left_s = max(0.0, self.left_s - (time.monotonic() - started))
        rest = {key: known for key, known in points.items() if key in aside}
        end = replace(end, points={**end.points, **rest}, passed_over=tuple(rest))
        self.ends[device] = end
        return end

    def _propose(self, device: str) -> None:
        """Look at the points that Optuna proposes, each batch by what was found of those before; the others are passed
        over."""
        from edgewise.selector.board import Board
        from edgewise.selector.dropping import drops
        from edgewise.selector.race import Step
        from edgewise.selector.sampler import Sampler

        points = self.known[device]
        broken = drops(Board(points, self.rules, (), {}, (), {}))  # by their size
        able = {key: known for key, known in points.items() if key not in broken}
        if device in self.passed_over or len(able) <= PROPOSED:
            return
        sampler, seen = Sampler(able, self.rules), list[str]()
        while len(seen) < PROPOSED and (keys := sampler.ask(min(TOGETHER, PROPOSED - len(seen)))):
            one_each = {points[k].answers: k for k in keys if points[k].answered == "no"}
            steps = [Step("look", tuple(keys)), Step("answer", tuple(one_each.values()), part=bool(self.rules.part))]
            if not all(self._act(device, step) for step in steps if step.keys):
                seen += [k for k in keys if points[k].timed != "no"]
                break
            sampler.tell(points[k] for k in keys)
            seen += keys
        over = set(able) - set(seen)
        self.passed_over[device] = over | {key for key, known in points.items() if known.same_as in over}

    def _set_clock(self, device: str) -> None:
        """What is left of the time is shared evenly by the devices that are left."""
        if self.left_s is not None:
            self.until = time.monotonic() + self.left_s / max(1, len(self.devices_left))
        if device in self.devices_left:
            self.devices_left.remove(device)

    def _tell(self, dropped: Mapping[str, str]) -> None:
        for key, reason in dropped.items():
            self.say.log(f"dropped {key}: {reason}")

    def _one_in_full(self, device: str, exclude: Collection[str]) -> RaceEnd:
        """The most promising point, whatever the time: without one there is no answer."""
        from edgewise.selector.race import race

        def act(step: Step) -> Mapping[str, Known] | None:
            if any(k.full and k.entry.status == "ok" for k in self.known[device].values()):
                return None
            self.forced = True
            try:
                return self._act(device, step, self.passed_over.get(device, set()))
            finally:
                self.forced = False

        aside = self.passed_over.get(device, set())
        mine = {key: known for key, known in self.known[device].items() if key not in aside}
        return race(mine, self.rules, act, exclude=exclude, hurry=True)

    # ---- measuring

    def _act(self, device: str, step: Step, aside: Collection[str] = ()) -> Mapping[str, Known] | None:
        """Do a step, or as much of it as there is time for; None: no time. aside: keys of points that do not run."""
        keys = step.keys
        if self.until is not None and not self.forced:
            able = int((self.until - time.monotonic() - self._kept_back(step)) / max(1e-3, self.costs[step.kind]))
            if able < 1:
                return None
            keys = keys[:able]
        started, points = time.monotonic(), self.known[device]
        ends = None if self.forced else step.ends  # forced: one point is wanted in full, whatever it is
        todo = replace(step, keys=keys, twice=tuple(k for k in step.twice if k in keys), ends=ends)
        do = {"look": self.steps.look, "answer": self.steps.answer, "measure": self.steps.measure}[step.kind]
        news = do(points, todo)
        if self.steps.ended.isdisjoint(keys):  # what ended early says nothing of what the end takes
            self.costs[step.kind] = max(0.05, (time.monotonic() - started) / len(keys))
        points |= news
        points |= self._bounded(points)
        return {key: known for key, known in points.items() if key not in aside}

    def _kept_back(self, step: Step) -> float:
        """Seconds that must stay: for the confirmation, and where nothing was measured in full yet, for one point."""
        full = any(k.full for points in self.known.values() for k in points.values())
        confirm = self.costs["measure"] + self.costs["answer"] * len(self.splits.confirm) / max(1, self.rules.rows)
        first = 0.0 if full or step.kind == "measure" else self.costs["measure"] + self.costs["answer"]
        return confirm + first

    def _bounded(self, points: Mapping[str, Known]) -> dict[str, Known]:
        from edgewise.selector.known import with_bounds

        return with_bounds(points, self.rules.level)

    # ---- what came of it

    def failed(self) -> dict[str, str]:
        """Name -> reason, of what could not be measured."""
        return {
            f"{k.entry.candidate}/{k.entry.recipe} on {target_text(k.entry)}": k.entry.reason
            for points in self.known.values()
            for k in points.values()
            if k.entry.status == "failed"
        }

    def failed_entries(self, device: str) -> list[Entry]:
        """What failed before it was measured in full."""
        return [k.entry for k in self.known.get(device, {}).values() if k.entry.status == "failed"]

    def left_open(self) -> int:
        """Points that may be the choice, and were not measured in full: the time was up."""
        return sum(len(end.open) for end in self.ends.values())

    def finish(self, selection: Selection) -> Selection:
        """The selection with all that was not measured in full, each with its reason."""
        from edgewise.selector.unmeasured import with_unmeasured

        return with_unmeasured(selection, self.ends[selection.device], self.rules, self.minutes)
