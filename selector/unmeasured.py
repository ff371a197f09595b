"""A choice with what was not measured in full beside it: every such point, what is known of it, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from edgewise.selector.budgets import check_budgets
from edgewise.selector.dropping import double_of
from edgewise.selector.known import Known, Rules
from edgewise.selector.look import TIMED
from edgewise.selector.race import RaceEnd
from edgewise.selector.whatif import NOTHING
from edgewise.selector.words import all_of, on_device, percent, plural
from edgewise.showing import show
from edgewise.types import Metric, Selection, Verdict, WhatIf
from edgewise.units import PERCENTILES, SAMPLE_NEEDED


def with_unmeasured(selection: Selection, end: RaceEnd, rules: Rules, minutes: float | None = None) -> Selection:
    """The selection with a verdict for each point that the race dropped or did not come to.

    Points that the selection has already stay as they are. minutes: the time that was given, for the words.
    """
    there = {v.entry.key for v in selection.verdicts}
    time = f"the {minutes:g} minutes were over" if minutes is not None else "the time was over"
    reasons: dict[str, str] = {**end.dropped, **{key: _open_words(end.points[key], time) for key in end.open}}
    proposed = len(end.points) - len(end.passed_over)
    reasons |= dict.fromkeys(
        end.passed_over, f"not looked at: {proposed:,} of {len(end.points):,} points were proposed, this one was not"
    )
    more = [_verdict(end.points[key], reason, rules) for key, reason in reasons.items() if key not in there]
    more.sort(key=lambda v: (v.entry.key in end.dropped, v.entry.key))
    words = _left_out(end, rules, time)
    done = replace(
        selection,
        verdicts=(*selection.verdicts, *more),
        left_out=words,
        what_if=_among_measured(selection) if more else selection.what_if,
    )
    if more and not any(v.entry.status == "ok" for v in selection.verdicts):
        done = replace(done, sentence=_none_in_full(selection, end))
    return done


def with_left_by_a_search(selection: Selection, count: int) -> Selection:
    """The selection of a store that a search filled, which has `count` points more that were not measured in full."""
    if not count:
        return selection
    words = (
        f"A search left {plural(count, 'point')} more, looked at or answered with, but not measured in full: "
        "they are not judged here, and one of them may be better; 'search: all' in the plan measures them."
    )
    return replace(selection, left_out=words, what_if=_among_measured(selection))


def _among_measured(selection: Selection) -> tuple[WhatIf, ...]:
    """What would change the choice, said of those that were measured in full alone: with another budget one that was
    dropped could be better than any of them."""
    return tuple(replace(w, words=w.words.replace(NOTHING, f"{NOTHING} among these")) for w in selection.what_if)


def _none_in_full(selection: Selection, end: RaceEnd) -> str:
    """Where every point was dropped before it was measured in full."""
    where = on_device(selection.device)
    if end.open:
        return f"{where} nothing was measured in full, so there is nothing to choose from yet."
    return (
        f"{where} nothing keeps {all_of(selection.budgets)}: "
        "what was known of each point before it was measured in full breaks one; "
        "'search: all' measures them, and says which relaxation would be enough."
    )


def _verdict(known: Known, reason: str, rules: Rules) -> Verdict:
    metrics = {name: _with_its_sample(_its_own(known, m)) for name, m in known.entry.metrics.items()}
    entry = replace(known.entry, partial=True, metrics=metrics)
    checks = check_budgets(entry, rules.budgets, rules.confidence)
    return Verdict(entry, checks, False, False, None, None, reason=reason)


def _its_own(known: Known, metric: Metric) -> Metric:
    """Of a point that was not timed, a time is that of a shorter length: a bound, and no value of its own."""
    if known.timed != "no" or metric.name not in TIMED or metric.kind != "estimated":
        return metric
    low, high = metric.low, metric.high
    bound = f": at least {show(low, metric.unit)}" if low else f": at most {show(high, metric.unit)}" if high else ""
    return replace(
        metric, value=None, low=None, high=None, level=None, n=0, kind="unavailable", why=f"{metric.why}{bound}"
    )


def _with_its_sample(metric: Metric) -> Metric:
    """Of so few calls that none is expected beyond a percentile, the largest says nothing of it but its lower bound."""
    q = PERCENTILES.get(metric.name)
    if q is None or metric.kind != "estimated" or metric.n * (1 - q) >= 1:
        return metric
    least = f", which say that it is at least {show(metric.low, metric.unit)}" if metric.low is not None else ""
    why = f"{metric.method}{least}: its value takes {SAMPLE_NEEDED[metric.name]:,}"
    return Metric(metric.name, metric.unit, None, method=metric.method, n=metric.n, kind="unavailable", why=why)


def _open_words(known: Known, time: str) -> str:
    if known.timed == "no" and known.answered == "no":
        return f"not looked at: {time}"
    seen = {"no": "not timed", "part": "looked at", "full": "timed"}[known.timed]
    answers = {"no": "no answers", "part": "answers to some rows", "full": "all answers"}[known.answered]
    return f"not measured in full ({seen}, {answers}): {time}"


def _left_out(end: RaceEnd, rules: Rules, time: str) -> str:
    """'Measured in full: 6 of 72. Not: 40 that surely break a budget and 26 that are surely beaten, each at 99%.'"""
    if not (end.dropped or end.open or end.passed_over):
        return ""
    full = sum(k.full for k in end.points.values())
    parts = [f"{full} of {plural(len(end.points), 'point')} (bundle and run settings) measured in full"]
    if doubles := {key for key in end.dropped if double_of(end.points, end.points[key])}:
        parts.append(f"{len(doubles)} the same as one of the others, as both read every text alike")
    if bounded := set(end.dropped) - doubles:
        untouched = sum(_untouched(end.points, key) for key in bounded)
        parts.append(
            f"{len(bounded)} dropped, as they surely break a budget or cannot win, each by a bound at "
            f"{percent(rules.level)} ({untouched} without running them)"
        )
    if end.open:
        untouched = sum(_untouched(end.points, key) for key in end.open)
        answered = sum(end.points[key].timed == "no" for key in end.open) - untouched
        more = f", {answered} answered but not timed" if answered else ""
        parts.append(f"{len(end.open)} left, as {time} ({untouched} not looked at{more}); more time goes on from here")
    if end.passed_over:
        parts.append(f"{len(end.passed_over):,} not looked at, as the sampler proposed others")
    return "; ".join(parts) + "."


def _untouched(points: Mapping[str, Known], key: str) -> bool:
    return points[key].timed == "no" and points[key].answered == "no"
