"""What the calls of one length say of a longer one: the same bundle, with no fewer tokens of any row, is no faster."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from edgewise.selector.look import Spread, bounds_of_look
from edgewise.types import Metric, Target

if TYPE_CHECKING:
    from edgewise.selector.known import Known

SLACK = 0.05
"""By how much a longer length may be faster all the same: kernels like some lengths better than others."""


def bounds_of_shorter(
    points: Iterable[Known], spreads: Mapping[str, Spread], level: float
) -> dict[str, dict[str, Metric]]:
    """Key -> bounds of the calls' times, of each point that was not timed and has a shorter length that was.

    Of several that were, the longest speaks. Memory and start-up are left out: they move with the length by less than
    from process to process.
    """
    timed: dict[tuple[str | None, Target], Known] = {}
    bounds: dict[str, dict[str, Metric]] = {}
    """By the key of the shorter one."""
    found: dict[str, dict[str, Metric]] = {}
    for known in sorted(points, key=length_of):
        family = family_of(known)
        if family is None:
            continue
        if known.times:
            timed[family] = known
        elif known.timed == "no" and (shorter := timed.get(family)) is not None:
            if shorter.entry.key not in bounds:
                bounds[shorter.entry.key] = _bounds(shorter, spreads, level)
            found[known.entry.key] = bounds[shorter.entry.key]
    return found


def length_of(known: Known) -> float:
    """Tokens that a text is cut to; infinity where nothing is said."""
    target = known.entry.target
    return math.inf if target is None or target.run.max_length is None else target.run.max_length


def family_of(known: Known) -> tuple[str | None, Target] | None:
    """What points share that differ in their length alone."""
    target = known.entry.target
    return None if target is None else (known.entry.content_digest, target.at_any_length())


def _bounds(shorter: Known, spreads: Mapping[str, Spread], level: float) -> dict[str, Metric]:
    assert shorter.entry.target is not None
    run = shorter.entry.target.run
    bounds = bounds_of_look(shorter.times, {}, spreads, level, batch_size=run.batch_size)
    return {name: _moved(m, run.max_length) for name, m in bounds.items()}


def _moved(metric: Metric, length: int | None) -> Metric:
    low, high = metric.low, metric.high
    return replace(
        metric,
        low=None if low is None else low * (1 - SLACK),
        high=None if high is None else high / (1 - SLACK),
        method=f"a look at length {length}{metric.method.removeprefix('a look')}",
        why=f"not timed itself; at length {length} it was",
    )
