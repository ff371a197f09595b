"""Which metrics rows of one form have: name -> function. Standard library only; metric_scores.py has the functions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from edgewise import metric_scores as scores
from edgewise.errors import nearest
from edgewise.metric_inputs import DataKind

Function = Callable[..., "float | tuple[float, str]"]
"""(predictions, references) -> the value, or the value and what it rests on."""


def table(kind: DataKind, labels: int) -> dict[str, Function]:
    """Name -> function, for rows of one form."""
    if kind == "class":
        # 'f1' is that of the second label where there are two, the mean over classes where there are more
        found = {"accuracy": scores.accuracy, **_averages("binary" if labels == 2 else "macro", labels == 2)}
        return {**found, "mcc": scores.mcc}
    if kind == "multi":
        return {"accuracy": scores.accuracy, **_averages("macro", binary=False)}
    if kind == "tags":
        found = {which: partial(scores.entities, which) for which in ("f1", "precision", "recall")}
        found |= {f"{w}_macro": partial(scores.entities, w, average="macro") for w in ("f1", "precision", "recall")}
        found |= {f"{w}_micro": found[w] for w in ("f1", "precision", "recall")}
        return {**found, "accuracy": scores.tag_accuracy, "exact_match": scores.exact_match}
    if kind == "text":
        return {
            "exact_match": scores.exact_match,
            "bleu": scores.bleu,
            "bleu_zh": partial(scores.bleu, tokenize="zh"),
            "word_error": partial(scores.error_rate, unit="word"),
            "char_error": partial(scores.error_rate, unit="char"),
        }
    if kind == "number":
        return {
            "pearson": partial(scores.correlation, "pearson"),
            "spearman": partial(scores.correlation, "spearman"),
            "mse": partial(scores.mean_error, power=2),
            "mae": partial(scores.mean_error, power=1),
        }
    return {"perplexity": lambda p, _: scores.perplexity([t for t, _ in p], [n for _, n in p])}


def _averages(plain: scores.Average, binary: bool) -> dict[str, Function]:
    ways: list[tuple[str, scores.Average]] = [("", plain), ("_macro", "macro"), ("_micro", "micro")]
    ways += [("_binary", "binary")] if binary else []
    which: tuple[scores.Which, ...] = ("f1", "precision", "recall")
    return {f"{w}{end}": partial(scores.averaged, w, average=average) for end, average in ways for w in which}


def unknown_metric(name: str, known: tuple[str, ...]) -> str:
    """The words for a name that is not among `known`."""
    return (
        f"unknown metric {name!r}: {nearest(name, known)}; one of the hub is 'hub:{name}', "
        "one of yours 'my_metric.py:function'"
    )
