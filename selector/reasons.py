"""Why an entry was chosen or not, in words and numbers. Standard library only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from edgewise.selector.budgets import metric_of, relative_room
from edgewise.selector.words import (
    all_of,
    budget_text,
    finite,
    gap,
    label,
    limit_text,
    listed,
    on_device,
    percent,
    plural,
    point,
    turned,
    unit_of,
)
from edgewise.showing import show
from edgewise.types import Budget, BudgetCheck, Metric, Verdict

if TYPE_CHECKING:
    from edgewise.selector.contest import Contest, Stage


def reason_chosen(contest: Contest, stages: Sequence[Stage], winner: int, checks: Sequence[BudgetCheck]) -> str:
    """The ties on the way, what decided, and the budget that leaves the least room."""
    parts = _won(contest, stages, winner)
    return "Chosen: " + "; ".join([*parts, *_tightest(checks)]) + "."


def _won(contest: Contest, stages: Sequence[Stage], winner: int) -> list[str]:
    parts: list[str] = []
    for stage in stages:
        column = contest.columns[stage.column]
        others = [int(i) for i in stage.after if i != winner]
        if column.score[winner] != column.score[winner]:
            parts.append(f"{column.name} was not measured and decides nothing")
        elif not others:
            parts.append(_best(contest, stage, winner, bool(parts)))
            return parts
        else:
            rival = stage.leader if stage.leader != winner else max(others, key=lambda i: float(column.score[i]))
            more = f" ({_more(len(others) - 1)} tied)" if len(others) > 1 else ""
            parts.append(f"{_tie(contest, stage.column, stage.leader, rival, winner)}{more}")
    others = [int(i) for i in stages[-1].after if i != winner] if stages else []
    if not others:
        return parts or ["the only one that keeps every budget"]
    rival = min(others, key=lambda i: int(contest.order[i]))
    return [*parts, f"chosen for {_last_word(contest, winner, rival)}"]


def _best(contest: Contest, stage: Stage, winner: int, after_tie: bool) -> str:
    column = contest.columns[stage.column]
    value = _value(contest, winner, column.name)
    others = [int(i) for i in stage.before if i != winner]
    rest = [i for i in others if column.score[i] == column.score[i]]
    start = f"chosen for {column.name}" if after_tie else f"best in {column.name}"
    if not rest:
        only = "the only one that keeps every budget" if not others else f"the only one with {column.name}"
        return f"{only}, {column.name} {value}" if not after_tie else f"{start}: {value}"
    rival = max(rest, key=lambda i: float(column.score[i]))
    return f"{start}: {value} against {_value(contest, rival, column.name)} of {label(contest.entries[rival])}"


def _tie(contest: Contest, column: int, leader: int, rival: int, winner: int) -> str:
    """'tied with X in accuracy: the difference of 0.20 points is within the noise of 0.90 points'."""
    name = contest.columns[column].name
    other = rival if rival != winner else leader
    found = contest.gap(column, leader, rival if leader == winner else winner)
    who = f"tied with {label(contest.entries[other])} in {name}"
    unit = unit_of(name)
    if found.ahead == 0:
        return f"{who}: both have {_value(contest, winner, name)}"
    return f"{who}: the difference of {gap(found.ahead, unit)} is within the noise of {gap(found.noise, unit)}"


def _last_word(contest: Contest, winner: int, rival: int) -> str:
    """What tells two apart that tie in every objective: a point estimate, the size, or the name."""
    other = label(contest.entries[rival])
    for column in contest.columns:
        if column.score[winner] > column.score[rival]:
            return f"the point estimate of {column.name}: {_value(contest, winner, column.name)} against " + (
                f"{_value(contest, rival, column.name)} of {other}"
            )
        lacks = [math.isnan(float(column.score[i])) for i in (winner, rival)]
        if lacks == [False, True]:
            return f"{column.name}, which {other} lacks"
    sizes = [point(contest.entries[i].metrics.get("size")) for i in (winner, rival)]
    if sizes[0] is not None and sizes[0] != sizes[1]:
        against = f"against {show(sizes[1], 'B')}" if sizes[1] is not None else "that was measured, against none"
        return f"its size: {show(sizes[0], 'B')} {against} of {other}"
    return f"its name, as nothing else tells it from {other}"


def _tightest(checks: Sequence[BudgetCheck]) -> list[str]:
    tight = min(checks, key=relative_room, default=None)
    if tight is None or tight.bound is None or tight.margin is None:
        return []
    share = f", {100 * relative_room(tight):.0f}% of the limit" if tight.budget.limit else ""
    room = gap(tight.margin, tight.budget.unit)
    return [f"the tightest of its budgets is {tight.budget.metric} with {room} of room{share}"]


def reason_beaten(contest: Contest, stages: Sequence[Stage], winner: int, *, other: int, lost: int | None) -> str:
    """By how much, and in which objective, a feasible entry lost.

    lost: number of the stage in which it dropped out; None when only the last tie-break told it from the winner.
    """
    i = other
    if lost is None:
        return f"keeps every budget; tied with the chosen in {_tied_names(contest, stages)}: the chosen one won by " + (
            f"{_last_word(contest, winner, i)}"
        )
    stage = stages[lost]
    column = contest.columns[stage.column]
    before = _tied_names(contest, stages[:lost])
    start = f"keeps every budget; tied with the chosen in {before}, but" if before else "keeps every budget, but"
    if column.score[i] != column.score[i]:
        return f"{start} its {column.name} was not measured"
    found = contest.gap(stage.column, stage.leader, i)
    unit = unit_of(column.name)
    best = _value(contest, stage.leader, column.name)
    leader = "the chosen one" if stage.leader == winner else label(contest.entries[stage.leader])
    noise = f", more than the noise of {gap(found.noise, unit)}" if found.noise > 0 else ""
    return (
        f"{start} its {column.name} of {_value(contest, i, column.name)} is {gap(found.ahead, unit)} worse than the "
        f"{best} of {leader}{noise}"
    )


def _tied_names(contest: Contest, stages: Sequence[Stage]) -> str:
    return listed([contest.columns[s.column].name for s in stages])


def _value(contest: Contest, i: int, name: str) -> str:
    column = next(c for c in contest.columns if c.name == name)
    return show(turned(name, float(column.score[i])), unit_of(name))


def reason_rejected(checks: Sequence[BudgetCheck]) -> str:
    """Each budget that it breaks, with value, bound and margin."""
    broken = [c for c in checks if not c.met]
    return f"breaks {len(broken)} of {plural(len(checks), 'budget')}: " + "; ".join(c.words for c in broken)


def reason_set_aside(checks: Sequence[BudgetCheck]) -> str:
    """It kept its budgets on the rows that serve the choice, but not when it was measured again."""
    kept = f"kept {all_of(checks)} on val" if checks else "was feasible"
    return f"{kept}, but was set aside: it did not pass when it was confirmed"


def dominated_words(contest: Contest, i: int, by: int) -> str:
    """'; dominated by X: accuracy 82.90% against 81.00% and the same p95'."""
    shown = [
        f"the same {c.name}"
        if c.score[i] == c.score[by]
        else f"{c.name} {_value(contest, by, c.name)} against {_value(contest, i, c.name)}"
        for c in contest.columns
    ]
    return f"; dominated by {label(contest.entries[by])}: {listed(shown)}"


def sentence_chosen(
    device: str,
    verdicts: Sequence[Verdict],
    budgets: Sequence[Budget],
    objective: Sequence[str],
    confidence: float,
    *,
    fresh: Mapping[str, Metric] | None = None,
    others: tuple[int, bool] | None = None,
) -> str:
    """The answer in one sentence. fresh: metrics of the confirmation, which then stand in place of the others, and are
    said to be its. others: where the verdicts are a part of the points, how many more keep the budgets, and whether
    that is the least."""
    verdicts = [v for v in verdicts if not v.entry.partial]
    entry = verdicts[0].entry
    references = {b.metric: b.relative_to for b in budgets}
    numbers = []
    for name in objective:
        metric = (fresh or {}).get(name) or metric_of(entry, name, references.get(name))
        if metric is not None and point(metric) is not None:
            numbers.append(f"{name} {show(metric.value, metric.unit)}")
    kept = all_of(budgets)
    count = sum(v.feasible for v in verdicts)
    tail = _like_so_many(*others) if others else _like_others(count - 1, len(verdicts) - 1)
    when = " when confirmed" if fresh and not set(objective).isdisjoint(fresh) else ""
    with_numbers = f": {', '.join(numbers)}{when}" if numbers else ""
    holds = f"; it keeps {kept} at {percent(confidence)} confidence{tail}" if budgets else "; no budget was set"
    run = f" with {entry.target.run.text()}" if entry.target else ""
    name = f"{entry.candidate}/{entry.recipe}" if entry.recipe else entry.candidate
    return f"{on_device(device)}, {name}{run}{with_numbers}{holds}."


def _like_others(count: int, others: int) -> str:
    """', as 3 of the 47 others do', ', as all 5 others do'."""
    if not others:
        return ""
    if not count:
        return f"; none of the {others:,} others does" if others > 1 else "; the other one does not"
    if others == 1:
        return ", as the other one does"
    if count == others:
        return ", as both others do" if others == 2 else f", as all {others:,} others do"
    return f", as {count:,} of the {others:,} others {'does' if count == 1 else 'do'}"


def _like_so_many(count: int, at_least: bool) -> str:
    """', as at least 25,000 others do'."""
    if not count:
        return "" if at_least else "; no other does"
    least = "at least " if at_least else ""
    return f", as {least}{count:,} {'other does' if count == 1 else 'others do'}"


def _more(count: int) -> str:
    return "one more is" if count == 1 else f"{count:,} more are"


def sentence_none(device: str, verdicts: Sequence[Verdict], budgets: Sequence[Budget], confidence: float) -> str:
    """Why there is no answer, and the smallest relaxation of one budget that would give one."""
    where = on_device(device)
    if not verdicts:
        return f"{where} there is nothing to choose from."
    if all(v.entry.status != "ok" for v in verdicts):
        return f"{where} all {plural(len(verdicts), 'candidate')} failed, so there is nothing to choose from."
    aside = sum(v.feasible for v in verdicts)
    if aside:
        kept = f"all {aside} that kept" if aside > 1 else "the one that kept"
        start = f"{where} nothing was chosen: {kept} {all_of(budgets)} did not pass when confirmed"
    else:
        start = f"{where} nothing keeps {all_of(budgets)} at {percent(confidence)} confidence"
    found = smallest_relaxation(verdicts)
    if found is None:
        nearest, lacks = _lacking(verdicts)
        return (
            f"{start}, and no relaxation can be said, as each lacks a bound that a budget needs: of {nearest} {lacks}."
        )
    verdict, broken = found
    changes = [f"'{budget_text(c.budget, c.bound)}' instead of '{limit_text(c.budget)}'" for c in broken]
    return f"{start}; {listed(changes)} would be enough for {label(verdict.entry)}."


def _lacking(verdicts: Sequence[Verdict]) -> tuple[str, str]:
    """The first that lacks a bound, and which, in the words of its check."""
    lacking = [(v, c) for v in verdicts for c in v.checks if not c.met and (c.bound is None or not finite(c.bound))]
    # What has a value and no bound says more than what was not measured at all.
    for verdict, check in sorted(lacking, key=lambda pair: pair[1].value is None):
        return label(verdict.entry), check.words
    return "all", "nothing is known"


def smallest_relaxation(verdicts: Sequence[Verdict]) -> tuple[Verdict, tuple[BudgetCheck, ...]] | None:
    """The entry that is let in by the smallest relaxation, and the budgets that it breaks: the sum of what each limit
    must move, relative to itself, is the least, then their number. None where every entry lacks a bound."""
    near = []
    for verdict in verdicts:
        broken = tuple(c for c in verdict.checks if not c.met)
        if broken and all(c.bound is not None and finite(c.bound) for c in broken):
            near.append((verdict, broken))
    return min(near, key=lambda pair: (sum(-relative_room(c) for c in pair[1]), len(pair[1])), default=None)
