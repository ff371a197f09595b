"""The metrics as `evaluate` has them: ours as `evaluate.Metric`, and those of the hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgewise.errors import DataError, need_extra
from edgewise.metric_inputs import DataKind, read_inputs
from edgewise.metric_tables import table, unknown_metric
from edgewise.units import METRICS

HUB = "hub:"


def compute(
    names: Sequence[str], predictions: Sequence[int], references: Sequence[int], labels: Sequence[str]
) -> dict[str, float]:
    """Metrics of single-label answers against labels, through `evaluate`; both are indices into `labels`.

    accuracy: share of equal pairs. f1: with two labels that of labels[1]; with more the unweighted mean over the
    classes that stand in the predictions or in the references; 0 where there is nothing to divide by.

    Raises DataError for an unknown name, no rows, lengths that differ, or an index outside `labels`.
    """
    given, right = read_inputs("class", predictions, references, labels)
    found = {}
    for name in names:
        if name.startswith(HUB):
            found[name] = hub_value(name, given, right, labels)
        else:
            metric = load_metric(name, labels=len(labels))
            found[name] = float(metric.compute(predictions=given, references=right)[name])
    return found


def load_metric(name: str, kind: DataKind = "class", labels: int = 2) -> Any:
    """An `evaluate.Metric`: one of ours for rows of one form, or 'hub:NAME' from the hub (or a local folder).

    `f1`, `precision` and `recall` of classes take `average` and `pos_label` as those of the hub do.
    Raises DataError for an unknown name, or where the hub cannot give the metric.
    """
    if name.startswith(HUB):
        return _hub_metric(name.removeprefix(HUB))
    known = table(kind, labels)
    try:
        import datasets
        import evaluate
        import sklearn.metrics  # noqa: F401 # asked for here, so that the error comes before any work
    except ImportError as error:
        raise need_extra("profile", error) from error
    if name not in known:
        raise DataError(unknown_metric(name, tuple(known)))
    function = known[name]

    class Ours(evaluate.Metric):
        def _info(self) -> Any:
            features = datasets.Features(dict.fromkeys(_sides(kind), _feature(datasets, kind)))
            return evaluate.MetricInfo(description=METRICS[name].about, citation="", features=features)

        def _compute(self, predictions: Any, references: Any = None, **options: Any) -> dict[str, float]:
            found = function(predictions, references, **options)
            return {name: found[0] if isinstance(found, tuple) else found}

    return Ours(keep_in_memory=True)


def _sides(kind: DataKind) -> tuple[str, ...]:
    return ("predictions",) if kind == "logprob" else ("predictions", "references")


def _feature(datasets: Any, kind: DataKind) -> Any:
    several = getattr(datasets, "List", datasets.Sequence)
    value = datasets.Value
    return {
        "class": value("int32"),
        "multi": several(value("int32")),
        "number": value("float64"),
        "tags": several(value("string")),
        "text": value("string"),
        "logprob": several(value("float64")),
    }[kind]


def _hub_metric(name: str) -> Any:
    try:
        import evaluate
    except ImportError as error:
        raise need_extra("profile", error) from error
    try:
        return evaluate.load(name)
    except Exception as error:  # its kinds of error differ between releases
        raise DataError(f"metric {name!r} cannot be loaded from the hub: {type(error).__name__}: {error}") from error


def hub_value(name: str, given: list[Any], right: list[Any], labels: Sequence[str]) -> float:
    bare = name.removeprefix(HUB)
    averaged = bare in ("f1", "precision", "recall") and given and isinstance(given[0], int)
    options = {"average": "binary" if len(labels) == 2 else "macro"} if averaged else {}
    metric = _hub_metric(bare)
    try:
        found: Mapping[str, Any] = metric.compute(predictions=given, references=right, **options)
        return float(found[bare] if bare in found else next(iter(found.values())))
    except Exception as error:  # the code of the hub: anything may come
        raise DataError(f"metric {name!r} raised {type(error).__name__}: {error}") from error
