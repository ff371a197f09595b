"""What is expected of a graph before it is evaluated, against what noise does in truth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgewise.exporter.guard_outlook import Guess, Outlook
from edgewise.exporter.guard_search import INT8, Search
from edgewise.exporter.sensitivity import Part
from edgewise.exporter.stopping import Evaluation, Reference


def reference(leads: list[np.ndarray]) -> Reference:
    return Reference(np.array([(row > 0).mean() for row in leads]), leads=leads)


@pytest.mark.parametrize("answers", [1, 7])
@pytest.mark.parametrize("width", [0.05, 0.5, 3.0])
def test_guess_is_what_noise_does(answers: int, width: float) -> None:
    random = np.random.default_rng(answers)
    leads = [random.normal(1.5, 1.5, answers) for _ in range(300)]
    known = reference(leads)
    drops = []
    for _ in range(1500):
        noisy = [row + random.normal(0, width, answers) for row in leads]
        drops.append(known.mean - np.mean([(row > 0).mean() for row in noisy]))
    found = Outlook(known).guess(np.full(16, width))
    assert found.mean == pytest.approx(np.mean(drops), abs=4 * np.std(drops) / np.sqrt(len(drops)))
    assert found.sd == pytest.approx(np.std(drops), rel=0.1)


def test_guess_leaves_out_rows_that_do_not_count_and_holds_for_no_number() -> None:
    leads = [np.array([2.0]), np.empty(0), np.array([-1.0]), np.array([1.0])]
    known = Reference(np.array([1.0, np.nan, 0.0, 1.0]), leads=leads)
    assert Outlook(known).guess(np.array([np.inf, 1.0])) == Guess(pytest.approx(2 / 3), 0.0)
    assert Outlook(known).guess(np.zeros(4)).mean == pytest.approx(0, abs=1e-12)


class Noise:
    """Stands for a Simulation: each part in int8 adds noise of its own."""

    parts = tuple(Part((f"node{i}",), 100) for i in range(4))
    widths = np.array([1.0, 0.3, 0.1, 0.05])

    def errors(self, int8: frozenset[int]) -> tuple[float, np.ndarray]:
        energy = float((self.widths[sorted(int8)] ** 2).sum())
        return energy / 10, np.full(8, np.sqrt(energy))

    def error(self, int8: frozenset[int]) -> float:
        return self.errors(int8)[0]


def searching(max_drop: float) -> Search:
    random = np.random.default_rng(0)
    leads = [random.normal(1.5, 1.5, 1) for _ in range(1000)]
    search = Search(lambda keep: Path("unused"), lambda graph, rows: (), reference(leads), max_drop, 12)
    search.begin(Noise(), None)  # type: ignore[arg-type]
    search.rank()
    return search


def test_chance_grows_with_what_is_kept_and_with_what_is_allowed() -> None:
    search = searching(0.01)
    chances = [search.chance(search.prefix(count)) for count in range(4)]
    assert chances == sorted(chances)
    assert chances[0] < 0.01, "the loud part alone decides"
    assert chances[1] > 0.9
    assert searching(0.2).chance(INT8) > 0.9


def test_what_was_measured_corrects_what_is_expected() -> None:
    search = searching(0.01)
    kept = search.prefix(1)
    before = search.expected(search.prefix(2)).mean
    for seen in (0.05, 0.0):
        search.seen[kept] = Evaluation(np.zeros(1000), 1000, True, seen, seen)
        assert search.expected(kept) == Guess(seen, 0.0)
        after = search.expected(search.prefix(2))
        assert (after.mean > before) == (seen > search._simulate(kept)[1].mean)
        assert search.expected(search.prefix(3)).mean < max(after.mean, 1e-3)
