"""Which of many bundles and targets to measure, and which need not be: decisions alone, no measuring.

A point is one bundle on one target. What is known of it grows in steps: its size, which needs no run; a look, a process
or two with few calls; its answers, to some rows and then to all; a full measurement. After every step, and between the
rounds of a full measurement, the race drops what surely cannot be chosen; it names what to do next. The same code
drives real measuring and the replay of a recorded run.

A point is dropped when it is the same as another in all but name, and when

1. a budget is surely broken: by its size or training time, by the bound of the answers so far, by the bound of a look
   at it or at a shorter length;
2. a point that was measured in full and keeps every budget surely beats it under the rule of `contest`: ahead by more
   than a tie in one objective, and in each objective before it still in the contest whenever the other one is; or it is
   surely no better than such a point in any.

'Surely' is one-sided at `Rules.level`, each test for itself: the odds of losing the winner are the number of tests that
*it* meets times 1 - level. What is left is measured in full, the most promising first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

from edgewise.selector.board import Board
from edgewise.selector.budgets import over
from edgewise.selector.dropping import drops, leader_in_the_way, width_in_full
from edgewise.selector.known import Known, Rules, source_of
from edgewise.selector.look import CALLS
from edgewise.selector.shorter import family_of, length_of
from edgewise.selector.words import point
from edgewise.types import Budget


@dataclass(frozen=True)
class Step:
    """What to measure next."""

    kind: Literal["look", "answer", "measure", "done"]
    keys: tuple[str, ...] = ()
    """Of the points; of an answer one for each that answers differently. A look at what was looked at before is as many
    processes more as there are."""
    twice: tuple[str, ...] = ()
    """Those of a first look that are looked at in two processes."""
    part: bool = False
    """An answer to some of the rows alone."""
    ends: Callable[[Mapping[str, Known]], Collection[str]] | None = field(default=None, compare=False)
    """Of a full measurement: from what its rounds so far make known, with the bounds of a look, the keys of points that
    need no more of them."""

    def processes(self, key: str, so_far: int) -> int:
        """In how many processes a look looks at a point that was looked at in `so_far` before."""
        return so_far or (2 if key in self.twice else 1)


@dataclass(frozen=True)
class RaceEnd:
    """What a race came to."""

    points: Mapping[str, Known]
    dropped: Mapping[str, str]
    """Key -> reason, of points that were not measured in full and cannot be the choice."""
    open: tuple[str, ...]
    """Keys of points that may be the choice and were not measured in full: the time was up."""
    passed_over: tuple[str, ...] = ()
    """Keys of points that a sampler did not propose: nothing was looked at."""


Act = Callable[[Step], Mapping[str, Known] | None]
"""Does a step, or as much of it as the time allows; what is known now of the points that it touched. None: no time."""


def race(
    points: Mapping[str, Known],
    rules: Rules,
    act: Act,
    *,
    exclude: Collection[str] = (),
    told: Callable[[Mapping[str, str]], None] = lambda dropped: None,
    hurry: bool = False,
) -> RaceEnd:
    """Measure until every point is dropped or measured in full, or the time is up.

    exclude: keys of points that did not pass when they were confirmed; they beat nobody. told: hears what was dropped.
    hurry: no cheap steps, the point that looks best is measured in full.
    """
    points, dropped, needed = dict(points), dict[str, str](), set[str]()
    memo: dict[tuple[str, str], tuple[float, float]] = {}
    while True:
        board = Board(points, rules, exclude, dropped, needed, memo)
        new = drops(board)
        dropped |= new
        told(new)
        step = next_step(board, dropped, hurry=hurry)
        if step.kind == "done" and (spoiler := leader_in_the_way(points, rules, exclude, dropped, memo)):
            needed.add(spoiler)
            del dropped[spoiler]
            continue
        if step.kind == "measure":
            step = replace(step, ends=partial(_surely_out, points, board, dropped))
        news = None if step.kind == "done" else act(step)
        if news is not None and any(_depth(news[key]) != _depth(points[key]) for key in news if key in points):
            points |= news
        elif step.kind in ("done", "measure") or hurry:
            return RaceEnd(points, dropped, tuple(k.entry.key for k in board.open(dropped)))
        else:
            hurry = True  # no time for a cheap step: what is known must do


def _surely_out(
    points: Mapping[str, Known], board: Board, dropped: Mapping[str, str], news: Mapping[str, Known]
) -> Collection[str]:
    """What the race would drop if it knew `news` too."""
    known = {key: news.get(key, k) for key, k in points.items()}
    return drops(replace(board, points=known, gone=dropped))


def _depth(known: Known) -> tuple[str, str, str, int]:
    """How much is known of a point: a step that leaves all points as they were brought nothing."""
    return known.entry.status, known.answered, known.timed, sum(map(len, known.times))


def next_step(board: Board, dropped: Mapping[str, str], *, hurry: bool = False) -> Step:
    """What to measure next: the cheap knowledge that decides who is promising, then the most promising in full.

    The contest is played with what is known: all that may still tie with the leader of the first objective go on to the
    second, and so on. hurry: no looks and no answers but those of the point that is measured in full next.
    """
    pool = [i for i, k in enumerate(board.items) if not k.full and k.entry.key not in dropped]
    if not pool:
        return Step("done")
    for column in range(len(board.names)):
        step, pool = (None, _seen(board, column, pool)) if hurry else (_missing(board, column, pool), pool)
        if step:
            return (_look_first(board, pool) or step) if step.kind == "answer" else step
        pool = _may_lead(board, column, pool)
        partly = [i for i in pool if "answers" in board.sources(column) and board.items[i].answered == "part"]
        if partly and not hurry:
            return _answer(board, partly, part=False)
    # What the values of the looks would drop, were they bounds, needs a closer look. The others are not dropped by any
    # number of looks, if these are right: they are measured in full.
    guessed = board.as_guessed()
    lost, ties = drops(guessed), pool
    for column in range(len(board.names) - 1):
        ties = _may_lead(guessed, column, ties)
    near = [i for i in pool if board.items[i].entry.key in lost]
    if board.incumbents and not hurry and (again := _look_again(board, near)):
        return again
    behind = {*near, *set(pool).difference(ties)}
    pool = sorted(pool, key=lambda i: (i in behind, -float(board.guess[-1][i]), int(board.real.order[i])))
    if not hurry:  # beside it the one that looks best in the first objective: where all tie, it is the choice
        best = min(pool, key=lambda i: (i in near, -float(board.guess[0][i]), int(board.real.order[i])))
        pool = list(dict.fromkeys([pool[0], best, *pool]))
    return _finish(board, pool[: 1 if hurry else board.rules.batch], hurry)


def _may_lead(board: Board, column: int, pool: list[int]) -> list[int]:
    """Those of the pool that may tie with the one that looks best in an objective, or be ahead of it."""
    leader = max(pool, key=lambda i: (float(board.guess[column][i]), -int(board.real.order[i])))
    return [i for i in pool if _may_tie(board, column, leader, i)]


def _may_tie(board: Board, column: int, leader: int, i: int) -> bool:
    """Whether a point may turn out to be tied with, or ahead of, the one that looks best."""
    if board.exact(column, leader) and board.exact(column, i):
        return board.real.gap(column, leader, i).tied
    best = float(board.guess[column][leader])
    width = width_in_full(board, column, leader, best) if math.isfinite(best) else 0.0
    return float(board.hope[column][i]) >= best - width


def _missing(board: Board, column: int, pool: list[int]) -> Step | None:
    """The cheap knowledge of one objective that points of the pool lack."""
    for source in board.sources(column):
        lacking = [i for i in pool if board.items[i].depth(source) == "no"]
        if lacking and source == "look" and (worth := _worth_a_look(board, column, pool, lacking)):
            return _look(board, worth)
        if lacking and source == "answers":
            part = bool(board.rules.part)
            return _answer(board, lacking if part else _with_siblings(board, lacking), part=part)
    return None


def _worth_a_look(board: Board, column: int, pool: list[int], lacking: list[int]) -> list[int]:
    """Of each bundle the shortest length, as it bounds the longer ones; then of these who may lead."""
    timed = [name for name in board.names[column] if source_of(name) == "look"]
    if unknown := [i for i in lacking if any(name not in board.items[i].entry.metrics for name in timed)]:
        return _shortest(board, unknown)
    if "answers" in board.sources(column) and any(board.items[i].answered == "no" for i in pool):
        return []  # weights: who may lead is not known without them
    leads = set(_may_lead(board, column, pool))
    return [i for i in lacking if i in leads]


def _shortest(board: Board, points: list[int]) -> list[int]:
    """Of each bundle with the same settings but for the length."""
    found: dict[object, int] = {}
    for i in sorted(points, key=lambda i: length_of(board.items[i])):
        found.setdefault(family_of(board.items[i]), i)
    return sorted(found.values())


def _look_first(board: Board, pool: list[int]) -> Step | None:
    """A look before the answers, where a budget of times seems to break most of the pool: what it surely breaks need
    not be answered, nor its longer lengths. A few looks tell, from all over the pool."""
    rules = board.rules
    timed = [b for b in rules.budgets if b.metric in CALLS]
    if not timed:
        return None
    seen = [k for k in board.points.values() if k.timed != "no"]
    known = {family_of(k) for k in seen}
    unknown = _shortest(board, [i for i in pool if family_of(board.items[i]) not in known])
    if not unknown:
        return None
    if len(seen) < rules.tried:
        return _look(board, unknown[:: max(1, len(unknown) // rules.tried)][: rules.tried])
    broken = sum(any(_breaks(k, b) for b in timed) for k in seen)
    return _look(board, unknown) if broken >= rules.most * len(seen) else None


def _breaks(known: Known, budget: Budget) -> bool:
    """By the value alone."""
    value = point(known.entry.metrics.get(budget.metric))
    return value is not None and over(budget, value) > 0


def _seen(board: Board, column: int, pool: list[int]) -> list[int]:
    """Those of the pool of which something of their own is known in this objective; all, where there is none."""
    needs_look = "look" in board.sources(column)
    own = [i for i in pool if not (needs_look and board.items[i].timed == "no")]
    return [i for i in own if math.isfinite(float(board.guess[column][i]))] or pool


def _finish(board: Board, top: list[int], hurry: bool) -> Step:
    """What the most promising lack: a look where a budget could end it, all their answers, a full measurement."""
    timed_budget = any(source_of(b.metric) == "look" for b in board.rules.budgets)
    unseen = [i for i in top if board.items[i].timed == "no"]
    if unseen and timed_budget and not hurry:
        return _look(board, unseen)
    if unanswered := [i for i in top if board.items[i].answered != "full"]:
        return _answer(board, unanswered if hurry else _with_siblings(board, unanswered), part=False)
    return Step("measure", tuple(board.items[i].entry.key for i in top))


def _look_again(board: Board, pool: list[int]) -> Step | None:
    """As many processes more of those that were looked at in the fewest: ten looks cost what one of them costs in
    full, and processes, not calls, are what a look has too few of."""
    used = {source_of(n) for names in board.names for n in names} | {source_of(b.metric) for b in board.rules.budgets}
    few = [i for i in pool if board.items[i].timed == "part" and 0 < len(board.items[i].times) < board.rules.looks]
    if "look" not in used or not few:
        return None
    fewest = min(len(board.items[i].times) for i in few)
    return Step("look", tuple(board.items[i].entry.key for i in few if len(board.items[i].times) == fewest))


def _with_siblings(board: Board, points: list[int]) -> list[int]:
    """Also the other lengths of their bundles: asked together, only the rows that a length cuts are answered anew."""
    digests = {board.items[i].entry.content_digest for i in points}
    more = (
        i
        for i, k in enumerate(board.items)
        if k.answered == "no" and k.entry.content_digest in digests and k.entry.key not in board.gone
    )
    return list(dict.fromkeys([*points, *more]))


def _look(board: Board, points: list[int]) -> Step:
    keys = tuple(board.items[i].entry.key for i in points)
    left = board.rules.twice - sum(len(k.times) > 1 for k in board.points.values())
    if left <= 0:
        return Step("look", keys)
    return Step("look", keys, twice=keys[:: max(1, len(keys) // left)][:left])


def _answer(board: Board, points: list[int], *, part: bool) -> Step:
    by_answers = {board.items[i].answers: board.items[i].entry.key for i in reversed(points)}
    return Step("answer", tuple(reversed(by_answers.values())), part=part)
