"""The choice for one device: which budgets hold, who is best of those that keep them all, and why.

Nothing here imports numpy before the first choice.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from edgewise.errors import PlanError, StoreError
from edgewise.selector.budgets import check_budgets, overshoot
from edgewise.selector.contest import Contest, PairedComparison, Stage, set_up
from edgewise.selector.pareto import dominators
from edgewise.selector.reasons import (
    dominated_words,
    reason_beaten,
    reason_chosen,
    reason_rejected,
    reason_set_aside,
    sentence_chosen,
    sentence_none,
)
from edgewise.selector.weighted import normalised
from edgewise.selector.whatif import changes
from edgewise.selector.words import budget_text
from edgewise.types import Budget, BudgetCheck, ConfirmTry, Entry, Selection, Verdict, WhatIf
from edgewise.units import METRICS, check_metric

_WHAT_IF = 2000
"""Entries up to which `what_if` is worked out."""


def select(
    entries: Sequence[Entry],
    budgets: Sequence[Budget],
    objective: Sequence[str],
    *,
    confidence: float = 0.95,
    paired: PairedComparison | None = None,
    exclude: Collection[str] = (),
    device: str | None = None,
    weights: Sequence[float] = (),
) -> Selection:
    """Choose among the entries of one device.

    budgets hold on the bound of the interval (see `check_budgets`). The feasible are ranked by `objective` in order:
    those that cannot be told from the leader at `confidence` are tied, and the next objective decides among them (see
    `contest`). paired: compares two entries row by row, for accuracy and its kin; without it the noise of a difference
    comes from the bounds of the two. exclude: keys that did not pass when they were confirmed; they keep their checks
    and get no rank. An entry without target (it failed before there was one) belongs to the device. weights: of the
    objectives, which then count all at once (see `weighted`); ties are then broken by the point estimate.

    Verdicts: the feasible by rank; the excluded; the others by how near they are, which is the number of broken
    budgets, then the largest overshoot relative to its limit (unknown last); the failed.
    `tied_with` names for the chosen all that tied with the leader of the first objective in the deciding round, and
    for each of these the chosen. The Pareto flags look at every entry that has all objectives, feasible or not.

    `what_if` has the limits at which the choice would change, where there are at most 2,000 entries.

    Raises PlanError for an unknown metric, two budgets of one metric, no objective, weights that do not fit, a
    confidence outside [0.5, 1) or entries of several devices; StoreError when two entries that did not fail have the
    same key.
    """
    check_arguments(budgets, objective, confidence, weights)
    weights = normalised(weights)
    where = _one_device(entries, device)
    entries = sorted(entries, key=lambda e: e.key)  # so that the answer does not depend on the order they come in
    ok = [e for e in entries if e.status == "ok"]
    _check_unique(ok)
    ground = _judge(ok, budgets, objective, confidence, paired=paired, exclude=exclude, weights=weights)
    verdicts = _verdicts(ground, set_up(ok, objective, _references(budgets), confidence))
    verdicts += [Verdict(e, (), False, False, None, None, reason=_failed(e)) for e in entries if e.status != "ok"]
    chosen = next((v for v in verdicts if v.rank == 1), None)
    sentence = (
        sentence_chosen(where, verdicts, budgets, objective, confidence)
        if chosen
        else sentence_none(where, verdicts, budgets, confidence)
    )
    return Selection(
        where, tuple(budgets), tuple(objective), confidence, chosen, tuple(verdicts), sentence, weights=weights,
        what_if=_what_if(ground, budgets, objective, confidence, paired=paired, exclude=exclude, weights=weights),
    )  # fmt: skip


def select_by_device(
    entries: Sequence[Entry],
    budgets: Sequence[Budget],
    objective: Sequence[str],
    *,
    confidence: float = 0.95,
    paired: PairedComparison | None = None,
    exclude: Collection[str] = (),
    weights: Sequence[float] = (),
) -> tuple[Selection, ...]:
    """One selection a device, in the order in which the devices appear; entries without target belong to each."""
    devices = list(dict.fromkeys(e.target.device for e in entries if e.target))
    return tuple(
        select(
            [e for e in entries if e.target is None or e.target.device == device],
            budgets,
            objective,
            confidence=confidence,
            paired=paired,
            exclude=exclude,
            device=device,
            weights=weights,
        )
        for device in devices or ["here"]
    )


def with_confirmed(selection: Selection, tries: Sequence[ConfirmTry]) -> Selection:
    """The selection with its confirmation: where the chosen one passed, the sentence says the fresh numbers."""
    done = replace(selection, confirmed=tuple(tries))
    passed = next(
        (t for t in reversed(tries) if selection.chosen and t.key == selection.chosen.entry.key and t.passed), None
    )
    if passed is None:
        return done
    s = selection
    sentence = sentence_chosen(s.device, s.verdicts, s.budgets, s.objective, s.confidence, fresh=passed.metrics)
    return replace(done, sentence=sentence)


def of_a_part(selection: Selection, others: tuple[int, bool], words: str) -> Selection:
    """The selection as one among more points than were judged. others: how many more keep the budgets, and whether that
    is the least; words: what was left out.

    What would change the choice is left out: among all points it may be another budget.
    """
    s = replace(selection, what_if=(), left_out=words)
    if s.chosen is None:
        return s
    sentence = sentence_chosen(s.device, s.verdicts, s.budgets, s.objective, s.confidence, others=others)
    return replace(s, sentence=sentence)


def check_arguments(
    budgets: Sequence[Budget], objective: Sequence[str], confidence: float, weights: Sequence[float] = ()
) -> None:
    """Raise PlanError for what `select` cannot choose by."""
    for name in (*objective, *(b.metric for b in budgets)):
        check_metric(name)
    if not objective:
        raise PlanError("objective is empty; expected at least one metric, for example accuracy")
    if not 0.5 <= confidence < 1:
        raise PlanError(f"confidence is {confidence!r}; expected at least 0.5 and below 1, for example 0.95")
    if len(set(objective)) < len(objective):
        raise PlanError(f"objective {', '.join(objective)} names one metric twice")
    if weights and (len(weights) != len(objective) or not all(0 < w < math.inf for w in weights)):
        given = ", ".join(f"{w:g}" for w in weights)
        raise PlanError(f"weights are {given}; expected a number above 0 for each of {', '.join(objective)}")
    for first, second in combinations(budgets, 2):
        if first.metric == second.metric:
            raise PlanError(
                f"two budgets of {first.metric}, '{first.text or budget_text(first)}' and "
                f"'{second.text or budget_text(second)}': keep one, the stricter holds anyway"
            )
    for budget in budgets:
        if budget.op != (wanted := "<=" if METRICS[budget.metric].better == "lower" else ">="):
            raise PlanError(f"budget {budget.text or budget.metric!r} must use {wanted}")


def _one_device(entries: Sequence[Entry], device: str | None) -> str:
    found = dict.fromkeys(e.target.device for e in entries if e.target)
    if len(found) > 1:
        raise PlanError(f"entries of {len(found)} devices ({', '.join(found)}): use select_by_device")
    return device or next(iter(found), "here")


def _check_unique(entries: Sequence[Entry]) -> None:
    seen: set[str] = set()
    for entry in entries:
        if entry.key in seen:
            raise StoreError(f"{entry.key} stands here twice: keep the newest measurement of each, then select")
        seen.add(entry.key)


def _references(budgets: Sequence[Budget]) -> dict[str, str]:
    return {b.metric: b.relative_to for b in budgets if b.relative_to}


def _judge(
    entries: Sequence[Entry],
    budgets: Sequence[Budget],
    objective: Sequence[str],
    confidence: float,
    *,
    paired: PairedComparison | None,
    exclude: Collection[str],
    weights: Sequence[float],
) -> _Ground:
    """Which of the entries, none of which failed, keep their budgets, and who wins among these."""
    references = _references(budgets)
    checks = [check_budgets(e, budgets, confidence) for e in entries]
    feasible = [i for i, c in enumerate(checks) if all(one.met for one in c)]
    running = [i for i in feasible if entries[i].key not in exclude]
    contest = set_up([entries[i] for i in running], objective, references, confidence, weights=weights, paired=paired)
    return _Ground(entries, checks, feasible, running, _Outcome(contest, *contest.rank()))


def _what_if(
    ground: _Ground,
    budgets: Sequence[Budget],
    objective: Sequence[str],
    confidence: float,
    *,
    paired: PairedComparison | None,
    exclude: Collection[str],
    weights: Sequence[float],
) -> tuple[WhatIf, ...]:
    able = [i for i, e in enumerate(ground.entries) if e.key not in exclude]
    if not budgets or not able or len(able) > _WHAT_IF:
        return ()
    entries, checks = [ground.entries[i] for i in able], [ground.checks[i] for i in able]
    contest = set_up(entries, objective, _references(budgets), confidence, weights=weights, paired=paired)
    return changes(contest, checks, budgets)


class _Outcome:
    """Who won, and where each of the others dropped out of the deciding round."""

    def __init__(self, contest: Contest, ranked: list[int], stages: list[Stage]) -> None:
        self.contest, self.stages = contest, stages
        self.winner = ranked[0] if ranked else -1
        self.places = {i: place for place, i in enumerate(ranked, start=1)}
        self._lost: dict[int, int] = {}
        for number, stage in enumerate(stages):
            self._lost.update(dict.fromkeys(set(stage.before.tolist()) - set(stage.after.tolist()), number))
        # Where nothing has the first objective there is no leader, and nothing to be tied with.
        known = stages and not math.isnan(contest.columns[0].score[stages[0].leader])
        self._tied = set(stages[0].after.tolist()) if known else set()

    def reason(self, i: int, checks: tuple[BudgetCheck, ...]) -> str:
        if i == self.winner:
            return reason_chosen(self.contest, self.stages, i, checks)
        return reason_beaten(self.contest, self.stages, self.winner, other=i, lost=self._lost.get(i))

    def tied_with(self, i: int) -> tuple[str, ...]:
        if i not in self._tied:
            return ()
        others = sorted(self._tied - {i}) if i == self.winner else [self.winner]
        return tuple(self.contest.entries[j].key for j in others)


@dataclass(frozen=True)
class _Ground:
    """What the verdicts stand on."""

    entries: Sequence[Entry]
    """That did not fail."""
    checks: Sequence[tuple[BudgetCheck, ...]]
    feasible: Sequence[int]
    running: Sequence[int]
    """The feasible but the excluded; the contest numbers its entries by their place here."""
    outcome: _Outcome


def _verdicts(ground: _Ground, everyone: Contest) -> list[Verdict]:
    """Of all entries that did not fail, in the order that `select` documents."""
    import numpy as np

    scores = np.column_stack([c.score for c in everyone.columns])
    by = dominators(scores)
    on_front = ~np.isnan(scores).any(axis=1) & (by < 0)
    position = {i: j for j, i in enumerate(ground.running)}
    aside = set(ground.feasible) - set(position)

    def place(i: int) -> tuple[object, ...]:
        if i in position:
            return 0, ground.outcome.places[position[i]]
        broken = sum(not c.met for c in ground.checks[i])
        return 1 if i in aside else 2, broken, overshoot(ground.checks[i]), ground.entries[i].key

    verdicts = []
    for i in sorted(range(len(ground.entries)), key=place):
        dominator = int(by[i])
        verdicts.append(
            Verdict(
                entry=ground.entries[i],
                checks=ground.checks[i],
                feasible=i in position or i in aside,
                pareto=bool(on_front[i]),
                dominated_by=ground.entries[dominator].key if dominator >= 0 else None,
                rank=ground.outcome.places[position[i]] if i in position else None,
                tied_with=ground.outcome.tied_with(position[i]) if i in position else (),
                reason=_reason(ground, position.get(i), i, aside).removesuffix(".")
                + (dominated_words(everyone, i, dominator) if dominator >= 0 else "")
                + ("." if position.get(i) == ground.outcome.winner else ""),
            )
        )
    return verdicts


def _reason(ground: _Ground, runner: int | None, i: int, aside: set[int]) -> str:
    if runner is not None:
        return ground.outcome.reason(runner, ground.checks[i])
    return reason_set_aside(ground.checks[i]) if i in aside else reason_rejected(ground.checks[i])


def _failed(entry: Entry) -> str:
    return f"failed: {entry.reason or 'no reason was recorded'}"
