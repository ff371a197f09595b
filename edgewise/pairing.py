"""Two entries compared row by row: the difference of two accuracies (or perplexities) on the same rows has far less
noise than each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgewise.paired import LARGEST, ratio_of, spread_of
from edgewise.types import Entry, Measurement, Target

if TYPE_CHECKING:
    import numpy as np

    from edgewise.profiler import Store


class Pairing:
    """A `PairedComparison` for the selector, from the outcomes in the store."""

    def __init__(
        self, store: Store, targets: Sequence[Target], stage: str = "profile", machine: str | None = None
    ) -> None:
        """machine: as of `edgewise.profiler.entries`."""
        from edgewise.profiler.joining import answer_settings
        from edgewise.profiler.machines import one_machine

        self._store = store
        self._settings = {t.text(): answer_settings(t) for t in targets}
        self._by_entry: dict[tuple[str, str], Measurement] = {
            (m.content_digest, answer_settings(m.target)): m
            for m in one_machine(store.measurements(), machine)[0]
            if m.scenario == "accuracy" and m.stage == stage and m.status == "ok" and m.content_digest and m.target
        }
        self._right: dict[int, np.ndarray] = {}

    def __call__(self, a: Entry, b: Entry, metric: str) -> tuple[float, float] | None:
        """(accuracy of a - accuracy of b, its standard error) on the rows that both answered, and so for the perplexity
        of language models; None otherwise."""
        first, second = self._find(a), self._find(b)
        if first is None or second is None or first.inputs_digest != second.inputs_digest:
            return None
        if first.metric("perplexity") is not None and second.metric("perplexity") is not None:
            return self._of_likelihoods(first, second, metric)
        if metric != "accuracy":
            return None
        sides = [self._correct(m) for m in (first, second)]
        # Of tags, accuracy is a share of words, and no row is right or wrong by itself.
        if any(not len(side) or not _is_mean(side, m) for side, m in zip(sides, (first, second), strict=True)):
            return None
        difference = sides[0] - sides[1]
        n = len(difference)
        mean = float(difference.mean())
        # McNemar's setting: the variance of the mean of values in {-1, 0, 1}.
        return mean, float(((difference**2).mean() - mean**2) / n) ** 0.5

    def _of_likelihoods(self, first: Measurement, second: Measurement, metric: str) -> tuple[float, float] | None:
        """Of perplexity, or of the share of tokens that were the likeliest; None where the tokens are not the same."""
        sides = [self._store.outcomes(m.id or 0) for m in (first, second)]
        sizes = [[o.label or 0 for o in side] for side in sides]
        if metric not in ("accuracy", "perplexity") or sizes[0] != sizes[1] or not any(sizes[0]):
            return None
        values, moves = [], []
        for side in sides:
            tops = [float(o.answer) if metric == "accuracy" else -o.score for o in side]
            value, moved = ratio_of(tops, sizes[0])
            slope = 1.0
            if metric == "perplexity":  # exp of the mean, and by the delta method its slope there
                value = slope = math.exp(value) if value < LARGEST else math.inf
            values.append(value)
            moves.append([slope * m for m in moved])
        return values[0] - values[1], spread_of([a - b for a, b in zip(*moves, strict=True)])

    def _find(self, entry: Entry) -> Measurement | None:
        if entry.content_digest is None or entry.target is None:
            return None
        return self._by_entry.get((entry.content_digest, self._settings.get(entry.target.text(), "")))

    def _correct(self, measurement: Measurement) -> np.ndarray:
        import numpy as np

        number = measurement.id or 0
        if number not in self._right:
            outcomes = self._store.outcomes(number)
            self._right[number] = np.array([o.answer == o.label for o in outcomes], dtype=np.float64)
        return self._right[number]


def _is_mean(right: np.ndarray, measurement: Measurement) -> bool:
    """Whether the accuracy that was measured is the share of rows that are right."""
    accuracy = measurement.metric("accuracy")
    return accuracy is not None and accuracy.value is not None and abs(float(right.mean()) - accuracy.value) < 1e-9
