"""Numbers and names as the reasons, tables and reports say them. Standard library only."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

from edgewise.errors import PlanError
from edgewise.showing import show
from edgewise.types import Budget, Entry, Metric, Selection
from edgewise.units import METRICS, parse_budget

_OP = re.compile(r"<=|>=")


def label(entry: Entry) -> str:
    """A name within one device: 'l6/int8-dynamic (cpu, 1 thread, length 64)'."""
    where = f" ({entry.target.run.text()})" if entry.target else ""
    return f"{bundle_name(entry)}{where}"


def bundle_name(entry: Entry) -> str:
    """'l6/int8-dynamic', or the candidate alone where there was no export."""
    return f"{entry.candidate}/{entry.recipe}" if entry.recipe else entry.candidate


def percent(confidence: float) -> str:
    """'95%', '99.9%'."""
    return f"{100 * confidence:g}%"


def gap(difference: float, unit: str) -> str:
    """The size of a difference: of shares in percentage points, of all else in its unit."""
    if unit in ("1", "points"):
        points = abs(difference) * (100 if unit == "1" else 1)
        return "less than 0.01 points" if 0 < points < 0.005 else f"{points:.2f} points"
    return show(abs(difference), unit)


def limit_text(budget: Budget) -> str:
    """The limit as the user wrote it, '10 ms', or as we would."""
    parts = _OP.split(budget.text, maxsplit=1)
    return parts[1].strip() if len(parts) == 2 and parts[1].strip() else _shown_limit(budget, budget.limit)


def budget_text(budget: Budget, limit: float | None = None) -> str:
    """The whole budget as one types it; with another limit, which is then rounded so that it is no stricter."""
    if limit is None:
        return f"{budget.metric} {budget.op} {limit_text(budget)}"
    sign = 1.0 if budget.op == "<=" else -1.0
    return limit_between(budget, limit, sign * math.inf)


def limit_between(budget: Budget, limit: float, room: float) -> str:
    """The budget with a limit that lets the value `limit` in and not yet `room`, the next looser one (infinite where
    there is none), read as it is printed: in as many digits as that takes, three at least."""
    sign = 1.0 if budget.op == "<=" else -1.0
    for digits in range(3, 18):
        text = f"{budget.metric} {budget.op} {_shown_limit(budget, loosened(limit, budget, digits), digits)}"
        typed = _typed(text)
        if typed is None or sign * limit <= sign * typed < sign * room:
            break
    return text


def _typed(text: str) -> float | None:
    """The limit that this budget has when it is typed; None for one that cannot be, such as a rate below 0."""
    try:
        return parse_budget(text).limit
    except PlanError:
        return None


def _shown_limit(budget: Budget, limit: float, digits: int = 3) -> str:
    return show(limit, budget.unit, digits) + (f" of {budget.relative_to}" if budget.relative_to else "")


def loosened(limit: float, budget: Budget, digits: int = 3, *, stricter: bool = False) -> float:
    """`limit` rounded to the digits that `show` prints, away from strictness: what is printed must let the value in.
    stricter: the other way, so that what is printed leaves the value out."""
    if limit == 0 or not math.isfinite(limit):
        return limit
    fixed = {"1": 10.0 ** -(digits + 1), "points": 10.0 ** -(digits - 1)}.get(budget.unit)
    step = fixed or 10.0 ** (math.floor(math.log10(abs(limit))) - digits + 1)
    up = math.ceil if (budget.op == "<=") != stricter else math.floor
    nearest = round(limit / step)
    # A limit that stands on a printed digit already, but for floating point, stays there.
    steps = nearest if math.isclose(nearest * step, limit, rel_tol=1e-12) else up(limit / step)
    return steps * step


def what_if_among(selection: Selection) -> str:
    """After 'what would change it', where not all was measured in full: of whom that is said."""
    full = sum(v.entry.status == "ok" and not v.entry.partial for v in selection.verdicts)
    left = sum(v.entry.partial for v in selection.verdicts)
    if not left:
        return ""
    others = f"one of the {left} others may be better then: 'search: all' measures them"
    return f", among the {full} measured in full ({others})"


def finite(value: float | None) -> bool:
    """Is this a number that can be compared?"""
    return value is not None and math.isfinite(value)


def point(metric: Metric | None) -> float | None:
    """The point estimate, where there is one that can be compared."""
    if metric is None or metric.kind == "unavailable" or metric.value is None:
        return None
    return metric.value if math.isfinite(metric.value) else None


def plural(count: int, noun: str) -> str:
    """'1 budget', '2 budgets', '1,200 rows'."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def on_device(device: str) -> str:
    """'On pi', at the start of a sentence; 'Here' where it is this machine."""
    return "Here" if device == "here" else f"On {device}"


def all_of(budgets: Sequence[object]) -> str:
    """'its budget', 'both budgets', 'all 5 budgets'."""
    return {1: "its budget", 2: "both budgets"}.get(len(budgets), f"all {len(budgets)} budgets")


def listed(words: Iterable[str]) -> str:
    """'a', 'a and b', 'a, b and c'."""
    items = list(words)
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}" if items else ""


def unit_of(column: str) -> str:
    """Of a metric; a weighted score is a plain number."""
    return METRICS[column].unit if column in METRICS else "number"


def turned(column: str, score: float) -> float:
    """The value behind a score for which larger is better."""
    return -score if column in METRICS and METRICS[column].better == "lower" else score


def better(metric: str) -> str:
    """'lower' or 'higher'."""
    return METRICS[metric].better
