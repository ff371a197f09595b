"""One definition of each quality metric, computed through `evaluate`, with scikit-learn behind it.

accuracy and f1 are defined here, so that they need no network; 'hub:NAME' takes a metric of the hub.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from edgewise.errors import DataError, nearest, need_extra

HUB = "hub:"


@cache
def _local_metrics() -> Mapping[str, Any]:
    """Our `evaluate.Metric` classes, with the names and the arguments that the hub's metrics have."""
    try:
        import datasets
        import evaluate
        import sklearn.metrics
    except ImportError as error:
        raise need_extra("profile", error) from error

    def info(description: str) -> Any:
        features = datasets.Features({"predictions": datasets.Value("int32"), "references": datasets.Value("int32")})
        return evaluate.MetricInfo(description=description, citation="", features=features)

    class Accuracy(evaluate.Metric):
        def _info(self) -> Any:
            return info("Share of rows answered with their label.")

        def _compute(self, predictions: Sequence[int], references: Sequence[int]) -> dict[str, float]:
            return {"accuracy": float(sklearn.metrics.accuracy_score(references, predictions))}

    class F1(evaluate.Metric):
        def _info(self) -> Any:
            return info("Harmonic mean of precision and recall.")

        def _compute(
            self, predictions: Sequence[int], references: Sequence[int], average: str = "binary", pos_label: int = 1
        ) -> dict[str, float]:
            # zero_division: a class that is neither predicted nor right in any row has an F1 of 0, not a warning
            value = sklearn.metrics.f1_score(
                references, predictions, average=average, pos_label=pos_label, zero_division=0.0
            )
            return {"f1": float(value)}

    return {"accuracy": Accuracy, "f1": F1}


def load_metric(name: str) -> Any:
    """An `evaluate.Metric`: 'accuracy' or 'f1' as defined here, or 'hub:NAME' from the hub (or a local folder).

    Raises DataError for an unknown name, or where the hub cannot give the metric.
    """
    if name.startswith(HUB):
        return _hub_metric(name.removeprefix(HUB))
    local = _local_metrics()
    if name not in local:
        raise DataError(f"unknown metric {name!r}: {nearest(name, tuple(local))}; one of the hub is 'hub:{name}'")
    return local[name](keep_in_memory=True)


def _hub_metric(name: str) -> Any:
    try:
        import evaluate
    except ImportError as error:
        raise need_extra("profile", error) from error
    try:
        return evaluate.load(name)
    except Exception as error:  # its kinds of error differ between releases
        raise DataError(f"metric {name!r} cannot be loaded from the hub: {type(error).__name__}: {error}") from error


def compute(
    names: Sequence[str], predictions: Sequence[int], references: Sequence[int], labels: Sequence[str]
) -> dict[str, float]:
    """Metrics of answers against labels, both given as indices into `labels`.

    accuracy: share of equal pairs. f1: with two labels that of labels[1]; with more the unweighted mean over the
    classes that stand in the predictions or in the references; 0 where there is nothing to divide by.

    Raises DataError for no rows, lengths that differ, or an index outside `labels`.
    """
    if len(predictions) != len(references):
        raise DataError(f"{len(predictions)} predictions for {len(references)} references; expected one each")
    if len(predictions) == 0:
        raise DataError("no predictions: a metric needs at least one row")
    for what, values in (("prediction", predictions), ("reference", references)):
        for row, value in enumerate(values):
            if not 0 <= value < len(labels):
                raise DataError(f"{what} {row} is {value}; expected an index of the {len(labels)} labels")
    return {name: _value(name, predictions, references, labels) for name in names}


def _value(name: str, predictions: Sequence[int], references: Sequence[int], labels: Sequence[str]) -> float:
    bare = name.removeprefix(HUB)
    averaged = bare in ("f1", "precision", "recall")
    options = {"average": "binary" if len(labels) == 2 else "macro"} if averaged else {}
    found: Mapping[str, Any] = load_metric(name).compute(
        predictions=[int(p) for p in predictions], references=[int(r) for r in references], **options
    )
    return float(found[bare] if bare in found else next(iter(found.values())))
