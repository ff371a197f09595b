"""One entry held against the budgets: on the bound of its interval, not on the point estimate.

Standard library only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from edgewise.selector.words import finite, gap, limit_text, percent, point
from edgewise.showing import show
from edgewise.types import Budget, BudgetCheck, Entry, Metric, Verdict
from edgewise.units import METRICS, OF_THE_REFERENCE, RELATIVE

ROW_METRICS = ("accuracy", "f1", "accuracy_drop", "changed_answers", "agreement", "perplexity", "perplexity_ratio")
"""Metrics that are counted over rows: more rows make their interval narrower, and two entries can be compared row by
row."""


def check_budgets(entry: Entry, budgets: Sequence[Budget], confidence: float = 0.95) -> tuple[BudgetCheck, ...]:
    """Each budget held against one entry, in the order of `budgets`.

    A budget is met only when the bound of the metric's interval keeps the limit at `confidence`. A measured metric
    without bounds (size) is compared by its value, and the words say so. What is missing, unavailable, not finite,
    estimated without bounds, or bounded at a lower level than `confidence` is never met.
    """
    return tuple(check_budget(entry, budget, confidence) for budget in budgets)


def over(budget: Budget, value: float) -> float:
    """By how much a value breaks the limit, canonical unit; 0 or less where it keeps it."""
    return value - budget.limit if budget.op == "<=" else budget.limit - value


def check_budget(entry: Entry, budget: Budget, confidence: float) -> BudgetCheck:
    """One budget held against one entry."""
    metric = metric_of(entry, budget.metric, budget.relative_to)
    value = point(metric)
    if metric is None or value is None:
        return BudgetCheck(budget, None, None, None, False, _unknown(entry, budget, metric))
    bound, trouble = _bound(metric, budget, confidence)
    if bound is None:
        words = f"{budget.metric} is {show(value, budget.unit)}, {trouble}: not shown to keep {limit_text(budget)}"
        return BudgetCheck(budget, value, None, None, False, words)
    margin = budget.limit - bound if budget.op == "<=" else bound - budget.limit
    return BudgetCheck(budget, value, bound, margin, margin >= 0, _words(metric, budget, bound, confidence))


def metric_of(entry: Entry, name: str, reference: str | None = None) -> Metric | None:
    """An entry's metric. What compares with a reference recipe is 0 for that one by definition, agreement and the ratio
    of perplexities 1; against another recipe than the one that it was measured against it is unavailable.

    reference: the recipe that is asked for; None: the one that it was measured against.
    """
    metric = entry.metrics.get(name)
    if name not in RELATIVE or entry.status != "ok":
        return metric
    asked = reference or entry.reference
    other = asked != entry.reference
    # Of a model that has no perplexity the ratio is not 1: there is none.
    defined = entry.recipe == asked and (name != "perplexity_ratio" or "perplexity" in entry.metrics)
    if defined and (other or point(metric) is None):
        return Metric(name, METRICS[name].unit, OF_THE_REFERENCE[name], method="the reference itself")
    if other and point(metric) is not None:
        why = f"it was measured against {entry.reference}, not against {asked}"
        return Metric(name, METRICS[name].unit, None, kind="unavailable", why=why)
    return metric


def _bound(metric: Metric, budget: Budget, confidence: float) -> tuple[float | None, str]:
    """The bound that must keep the limit, or None and why there is none that can be used."""
    side = "upper" if budget.op == "<=" else "lower"
    bound = metric.high if budget.op == "<=" else metric.low
    if metric.low is None and metric.high is None:
        if metric.kind == "estimated":
            return None, "an estimate without bounds"
        return metric.value, ""
    if bound is None or not math.isfinite(bound):
        return None, f"but its {side} bound is unknown"
    if metric.level is None:
        return None, f"but its {side} bound of {show(bound, budget.unit)} does not say at which level it holds"
    if metric.level < confidence - 1e-9:
        held = f"its {side} bound of {show(bound, budget.unit)} holds at {percent(metric.level)} only"
        return None, f"but {held}, {percent(confidence)} is asked for"
    return bound, ""


def _unknown(entry: Entry, budget: Budget, metric: Metric | None) -> str:
    if metric is None:
        return f"{budget.metric} was not measured, so its budget of {limit_text(budget)} is not met"
    why = f": {metric.why}" if metric.why else ""
    if metric.kind == "unavailable" or metric.value is None:
        return f"{budget.metric} is unavailable{why}, so its budget of {limit_text(budget)} is not met"
    return (
        f"{budget.metric} is {metric.value}, no number to compare{why}: its budget of {limit_text(budget)} is not met"
    )


def _words(metric: Metric, budget: Budget, bound: float, confidence: float) -> str:
    margin = budget.limit - bound if budget.op == "<=" else bound - budget.limit
    value = metric.value if metric.value is not None else bound
    text = f"{budget.metric} is {show(value, budget.unit)}"
    if metric.low is None and metric.high is None:
        text += f" ({metric.method or 'one value, no interval'})"
    else:
        most = "at most" if budget.op == "<=" else "at least"
        text += f", {most} {show(bound, budget.unit)} at {percent(confidence)}"
    if margin >= 0:
        return f"{text}: within the budget of {limit_text(budget)} by {gap(margin, budget.unit)}"
    side = "over" if budget.op == "<=" else "under"
    return f"{text}: {gap(margin, budget.unit)} {side} the budget of {limit_text(budget)}{_more_rows(metric, budget)}"


def _more_rows(metric: Metric, budget: Budget) -> str:
    """How many rows would show that the budget holds, were the point estimate right."""
    bound = metric.high if budget.op == "<=" else metric.low
    if metric.name not in ROW_METRICS or not metric.n or metric.value is None or bound is None:
        return ""
    room = budget.limit - metric.value if budget.op == "<=" else metric.value - budget.limit
    if room <= 0:
        return ""
    # The half width of the interval shrinks with the square root of the number of rows.
    needed = metric.n * ((bound - metric.value) / room) ** 2
    if needed > 1e9:
        return ""
    what = "tokens" if "token" in metric.method else "rows"
    some = f"{float(f'{needed:.2g}'):,.0f} {what}"
    return f"; at this value about {some} instead of {metric.n:,} would show that it holds"


def relative_room(check: BudgetCheck) -> float:
    """Room as a share of the limit; below 0 when broken, -inf when unknown. A limit of 0: in its canonical unit."""
    if check.margin is None or not finite(check.margin):
        return -math.inf
    return check.margin / abs(check.budget.limit) if check.budget.limit else check.margin


def overshoot(checks: Sequence[BudgetCheck]) -> float:
    """The largest relative overshoot of the broken budgets; 0 when none is broken, inf when one is unknown."""
    return max((-relative_room(c) for c in checks if not c.met), default=0.0)


def binding(verdict: Verdict) -> BudgetCheck | None:
    """The budget with the least relative room; None without budgets."""
    return min(verdict.checks, key=relative_room, default=None)
