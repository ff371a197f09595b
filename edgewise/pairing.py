"""Two entries compared row by row: the difference of two accuracies on the same rows has far less noise than each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgewise.types import Entry, Measurement, Target

if TYPE_CHECKING:
    import numpy as np

    from edgewise.profiler import Store


class Pairing:
    """A `PairedComparison` for the selector, from the outcomes in the store."""

    def __init__(self, store: Store, targets: Sequence[Target], stage: str = "profile") -> None:
        from edgewise.profiler.joining import answer_settings

        self._store = store
        self._settings = {t.text(): answer_settings(t) for t in targets}
        self._by_entry: dict[tuple[str, str], Measurement] = {
            (m.content_digest, answer_settings(m.target)): m
            for m in store.measurements()
            if m.scenario == "accuracy" and m.stage == stage and m.status == "ok" and m.content_digest and m.target
        }
        self._right: dict[int, np.ndarray] = {}

    def __call__(self, a: Entry, b: Entry, metric: str) -> tuple[float, float] | None:
        """(accuracy of a - accuracy of b, its standard error) on the rows that both answered; None otherwise."""
        first, second = self._find(a), self._find(b)
        if metric != "accuracy" or first is None or second is None or first.inputs_digest != second.inputs_digest:
            return None
        difference = self._correct(first) - self._correct(second)
        n = len(difference)
        mean = float(difference.mean())
        # McNemar's setting: the variance of the mean of values in {-1, 0, 1}.
        return mean, float(((difference**2).mean() - mean**2) / n) ** 0.5

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
