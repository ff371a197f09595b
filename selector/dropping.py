"""What a race drops: points that surely break a budget, or that a measured one surely beats; each with its reason."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

from edgewise.paired import normal_quantile, paired_drop
from edgewise.selector.board import Board
from edgewise.selector.budgets import check_budget, metric_of, over
from edgewise.selector.contest import Stage
from edgewise.selector.known import Known, Rules, at_best
from edgewise.selector.look import CALLS
from edgewise.selector.words import finite, gap, label, limit_text, percent, unit_of
from edgewise.showing import show
from edgewise.types import Metric
from edgewise.units import METRICS


def drops(board: Board) -> dict[str, str]:
    """Key -> reason of every point that need not be measured any further."""
    found: dict[str, str] = {}
    ahead = sorted(board.incumbents, key=lambda i: int(board.real.order[i]))
    for p, known in enumerate(board.items):
        if known.full:
            continue
        reason = _double(board, known) or _broken(board, known)
        if reason is None and known.entry.key not in board.needed:
            reason = next((r for a in ahead if (r := _beaten(board, a, p))), None)
        if reason:
            found[known.entry.key] = reason
    return found


def double_of(points: Mapping[str, Known], known: Known) -> Known | None:
    """The point that this one is in all but name, where that one did not fail."""
    other = points.get(known.same_as or "")
    return None if other is None or other.entry.status != "ok" else other


def _double(board: Board, known: Known) -> str | None:
    other = double_of(board.points, known)
    return f"{_start(known)}: the same as {label(other.entry)}, as both read every text alike" if other else None


def _broken(board: Board, known: Known) -> str | None:
    """The first budget that a point surely breaks."""
    rules = board.rules
    for budget in rules.budgets:
        if known.exact(budget.metric):
            check = check_budget(known.entry, budget, rules.confidence)
            if not check.met:
                return f"{_start(known)}: {check.words}"
            continue
        metric = metric_of(known.entry, budget.metric, budget.relative_to)
        best = at_best(known, metric, budget.metric)
        if metric is not None and finite(best) and best is not None and over(budget, best) > 0:
            side = "over" if budget.op == "<=" else "under"
            return (
                f"{_start(known)}: {_at_least(metric, best, rules.level)}, {gap(over(budget, best), budget.unit)} "
                f"{side} the budget of {limit_text(budget)}"
            )
    return None


def _start(known: Known) -> str:
    return "not run" if known.answered == "no" and known.timed == "no" else "not measured in full"


def _at_least(metric: Metric, best: float, level: float) -> str:
    """'its p95 is at least 14.2 ms at 99% (a look: 1 process, 83 calls)'."""
    side = "at most" if METRICS[metric.name].better == "higher" else "at least"
    sample = metric.method if metric.method.startswith("a look") else f"{metric.n:,} rows"
    return f"its {metric.name} is {side} {show(best, metric.unit)} at {percent(level)} ({sample})"


def _beaten(board: Board, a: int, p: int) -> str | None:
    """Why point p cannot win where the incumbent a is in the contest; None where it may."""
    for column in range(len(board.names)):
        if words := _surely_ahead(board, column, a, p):
            return f"{_start(board.items[p])}: {words}{_before(board, column)}"
        if not _stays_with(board, column, a, p):
            return None
    return _no_better(board, a, p)


def _no_better(board: Board, a: int, p: int) -> str | None:
    """Words, if the incumbent stays in for as long as p, and wins where all are tied: the point estimates decide then,
    that of the first objective first."""
    for column in range(len(board.names)):
        if board.items[a].answers == board.items[p].answers and board.sources(column) == ["answers"]:
            continue
        if not float(board.real.columns[column].score[a]) > float(board.hope[column][p]):
            return None
        names = " and ".join(n for c in range(len(board.names)) for n in board.names[c])
        return f"{_start(board.items[p])}: in {names} it is surely no better than {_who(board, a)}"
    return None


def _before(board: Board, column: int) -> str:
    names = [n for c in range(column) for n in board.names[c]]
    return f"; in {' and '.join(names)} it is no better, or tied with the same" if names else ""


def _surely_ahead(board: Board, column: int, a: int, p: int) -> str | None:
    """Words, if the incumbent is ahead of p by more than what would be called a tie."""
    if board.exact(column, p):
        return _ahead_by_values(board, column, a, p)
    if (paired := _paired_part(board, column, a, p)) is not None:
        return paired or None
    return _ahead_by_bounds(board, column, a, p)


def _ahead_by_values(board: Board, column: int, a: int, p: int) -> str | None:
    found, name = board.real.gap(column, a, p), board.real.columns[column].name
    if not found.ahead > found.noise:
        return None
    unit = unit_of(name)
    noise = f", more than the noise of {gap(found.noise, unit)}" if found.noise > 0 else ""
    return f"its {name} is {gap(found.ahead, unit)} worse than that of {_who(board, a)}{noise}"


def _ahead_by_bounds(board: Board, column: int, a: int, p: int) -> str | None:
    hope, real = float(board.hope[column][p]), board.real.columns[column]
    if not math.isfinite(hope):
        return None
    if not float(real.score[a]) - hope > math.hypot(float(real.worse[a]), width_in_full(board, column, a, hope)):
        return None
    level, (name, *more) = board.rules.level, board.names[column]
    if more:
        return f"its {real.name} cannot reach that of {_who(board, a)}, by bounds at {percent(level)}"
    reference = board.rules.references.get(name)
    mine, theirs = (metric_of(board.items[i].entry, name, reference) for i in (p, a))
    best = at_best(board.items[p], mine, name)
    assert mine is not None
    assert theirs is not None
    assert best is not None
    return f"{_at_least(mine, best, level)}, against {show(theirs.value, theirs.unit)} of {_who(board, a)}"


def width_in_full(board: Board, column: int, a: int, score: float) -> float:
    """Half the interval that a rival of this score will be left with when it is measured in full: at least that of the
    incumbent; of the time of calls what the rule of rounds allows. What takes longer spreads wider."""
    real, rules, names = board.real.columns[column], board.rules, board.names[column]
    own, mine = max(float(real.worse[a]), float(real.better[a])), abs(float(real.score[a]))
    if rules.weights:
        shares = zip(names, rules.weights, strict=True)
        least = math.hypot(*(w * rules.width for n, w in shares if n in CALLS))
    else:
        least = rules.width * mine if names[0] in CALLS else 0.0
    return max(own, least) * (max(1.0, abs(score) / mine) if mine else 1.0)


def _paired_part(board: Board, column: int, a: int, p: int) -> str | None:
    """Accuracy on the rows that both answered: words where the incumbent is surely ahead, '' where not; None where the
    two cannot be compared row by row."""
    rules, one, other = board.rules, board.items[a], board.items[p]
    if board.names[column] != ("accuracy",) or other.answered != "part" or one.right is None or other.right is None:
        return None
    mine = one.right[list(rules.part)] if one.answered == "full" else one.right
    if len(mine) != len(other.right):
        return None
    lost, gained, n = int((mine & ~other.right).sum()), int((~mine & other.right).sum()), len(mine)
    drop = paired_drop(lost, gained, n, rules.level).points
    moved = (lost + gained) / n - ((lost - gained) / n) ** 2
    noise = 100 * normal_quantile(rules.confidence) * math.sqrt(moved / max(1, rules.rows))
    if drop.low is None or not drop.low > noise:
        return ""
    return (
        f"on {n:,} rows its accuracy is {drop.value:.2f} points below that of {_who(board, a)}, at least "
        f"{drop.low:.2f} at {percent(rules.level)}"
    )


def _who(board: Board, a: int) -> str:
    return (
        f"{label(board.items[a].entry)}, which keeps every budget"
        if board.rules.budgets
        else label(board.items[a].entry)
    )


def _stays_with(board: Board, column: int, a: int, p: int) -> bool:
    """Whether the incumbent is still in the contest after this objective whenever p is, whoever leads."""
    one, other = board.items[a], board.items[p]
    if one.answers == other.answers and board.sources(column) == ["answers"]:
        return True
    if float(board.real.columns[column].score[a]) >= float(board.hope[column][p]):
        return True
    if not board.exact(column, p):
        return False
    return _tied_with_the_same(board, column, a, p)


def _tied_with_the_same(board: Board, column: int, a: int, p: int) -> bool:
    """Whoever p is tied with as the leader, p itself too, the incumbent is tied with as well."""
    contest = board.real
    if not contest.gap(column, p, a).tied:
        return False
    score, seen = contest.columns[column].score, set[str]()
    for leader, item in enumerate(board.items):
        if float(board.hope[column][leader]) < float(score[p]) or (item.full and leader not in board.incumbents):
            continue  # where p runs, this one does not lead
        if board.sources(column) == ["answers"]:
            if item.answers in seen:
                continue
            seen.add(item.answers)
        if not board.exact(column, leader):
            return False
        if contest.gap(column, leader, p).tied and not contest.gap(column, leader, a).tied:
            return False
    return True


def leader_in_the_way(
    points: Mapping[str, Known],
    rules: Rules,
    exclude: Collection[str],
    dropped: Mapping[str, str],
    memo: dict[tuple[str, str], tuple[float, float]],
) -> str | None:
    """Key of a dropped point that cannot win, but if it keeps every budget another than the winner of those that were
    measured would; None where there is none.

    Ties are with the leader: one that leads in an objective that decides before the last may take the winner out, as it
    is ahead of it by more than a tie, or bring another in, which is tied with it and not with the leader of those.
    """
    board = Board(points, rules, exclude, {}, (), memo)
    if len(board.names) < 2 or not board.incumbents:
        return None
    import numpy as np

    winner, stages = board.real.play(np.array(board.incumbents))
    for i in sorted(range(len(board.items)), key=lambda i: (-float(board.guess[-1][i]), int(board.real.order[i]))):
        known = board.items[i]
        if known.full or known.entry.key not in dropped or known.entry.key in exclude:
            continue
        if _double(board, known) or _broken(board, known):
            continue
        if any(board.exact(c, i) and _ahead_by_values(board, c, i, winner) for c in range(len(board.names) - 1)):
            return known.entry.key
        if _decides_otherwise(board, i, winner, stages):
            return known.entry.key
    return None


def _decides_otherwise(board: Board, i: int, winner: int, stages: Sequence[Stage]) -> bool:
    """Whether another than the winner would win where point i leads in an objective before the last."""
    last = len(board.names) - 1
    for stage in stages:
        if stage.column == last or not board.exact(stage.column, i):
            return False  # whether it is still in the contest after this one is not known
        score = board.real.columns[stage.column].score
        if float(score[i]) > float(score[stage.leader]):
            after = stage.before[board.real.tied(stage.column, i, stage.before)]
            return not len(after) or board.real.play(after, stage.column + 1)[0] != winner
        if not board.real.gap(stage.column, stage.leader, i).tied:
            return False
    return False
