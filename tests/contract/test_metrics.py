"""Quality metrics against scikit-learn and against formulas written out by hand."""

from __future__ import annotations

import random
import warnings

import pytest
import sklearn.metrics

from edgewise.errors import DataError
from edgewise.metrics import compute, load_metric

TWO, FOUR = ["negative", "positive"], ["a", "b", "c", "d"]


def f1_by_hand(predictions: list[int], references: list[int], label: int) -> float:
    right = sum(p == r == label for p, r in zip(predictions, references, strict=True))
    wrong = sum(p == label for p in predictions) + sum(r == label for r in references) - 2 * right
    return 2 * right / (2 * right + wrong) if right else 0.0


def draw(seed: int, labels: int, rows: int) -> tuple[list[int], list[int]]:
    source = random.Random(seed)
    return [source.randrange(labels) for _ in range(rows)], [source.randrange(labels) for _ in range(rows)]


@pytest.mark.parametrize("seed", range(8))
def test_two_labels(seed: int) -> None:
    predictions, references = draw(seed, 2, 1 + 7 * seed)
    found = compute(["accuracy", "f1"], predictions, references, TWO)
    equal = sum(p == r for p, r in zip(predictions, references, strict=True))
    assert found["accuracy"] == pytest.approx(equal / len(predictions), abs=1e-12)
    assert found["f1"] == pytest.approx(f1_by_hand(predictions, references, 1), abs=1e-12)
    assert found["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(references, predictions))
    assert found["f1"] == pytest.approx(sklearn.metrics.f1_score(references, predictions, zero_division=0))


@pytest.mark.parametrize("seed", range(8))
def test_more_labels(seed: int) -> None:
    predictions, references = draw(seed, 4, 3 + 10 * seed)
    present = sorted(set(predictions) | set(references))
    by_hand = sum(f1_by_hand(predictions, references, label) for label in present) / len(present)
    found = compute(["f1", "accuracy"], predictions, references, FOUR)
    assert found["f1"] == pytest.approx(by_hand, abs=1e-12)
    assert found["f1"] == pytest.approx(
        sklearn.metrics.f1_score(references, predictions, average="macro", zero_division=0)
    )


@pytest.mark.parametrize(
    ("predictions", "references", "labels", "accuracy", "f1"),
    [
        ([0, 0], [0, 0], TWO, 1.0, 0.0),  # the positive class stands nowhere
        ([1, 1], [1, 1], TWO, 1.0, 1.0),
        ([0, 0], [1, 1], TWO, 0.0, 0.0),
        ([1, 1, 0, 0], [1, 0, 0, 0], TWO, 0.75, 2 / 3),
        ([0, 1, 0], [0, 1, 2], FOUR, 2 / 3, (2 / 3 + 1 + 0) / 3),  # class 3 stands nowhere, class 2 is never answered
    ],
)
def test_missing_classes(
    predictions: list[int], references: list[int], labels: list[str], accuracy: float, f1: float
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = compute(["accuracy", "f1"], predictions, references, labels)
    assert found == pytest.approx({"accuracy": accuracy, "f1": f1})


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ([], [], "at least one row"),
        ([1], [1, 0], "1 predictions for 2 references"),
        ([2], [1], "prediction 0 is 2; expected an index of the 2 labels"),
        ([0, 1], [0, -1], "reference 1 is -1"),
    ],
)
def test_bad_input(predictions: list[int], references: list[int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        compute(["accuracy"], predictions, references, TWO)


def test_unknown_metric_and_no_hub() -> None:
    with pytest.raises(DataError, match=r"unknown metric 'acuracy': did you mean 'accuracy'.*hub:acuracy"):
        compute(["acuracy"], [0], [0], TWO)
    with pytest.raises(DataError, match="'no-such-metric' cannot be loaded from the hub"):
        load_metric("hub:no-such-metric")
