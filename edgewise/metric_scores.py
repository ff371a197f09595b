"""Each quality metric as a plain function: predictions and references in, one number out.

A metric that has no value on the rows at hand raises NoValueError with the reason; none gives a NaN.
Heavy libraries (scikit-learn, scipy, seqeval, sacrebleu) are imported by the function that needs them.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Sequence
from typing import Any, Literal

Average = Literal["binary", "macro", "micro"]
Which = Literal["precision", "recall", "f1"]
Tags = Sequence[Sequence[str]]

_SCHEME = re.compile(r"^(?:O|[BIESLU]-.+)$")


class NoValueError(ValueError):
    """The metric has no value on these rows; the message says why."""


def accuracy(predictions: Any, references: Any) -> float:
    """Share of rows answered with their label; of multi-label rows, those with every label right (subset accuracy)."""
    import sklearn.metrics

    return float(sklearn.metrics.accuracy_score(references, predictions))


def averaged(
    which: Which, predictions: Any, references: Any, *, average: Average = "binary", pos_label: int = 1
) -> float:
    """Precision, recall or F1 as scikit-learn defines them; 0 where there is nothing to divide by.

    predictions, references: class numbers [rows], or 0 and 1 [rows, labels] for multi-label.
    macro: the unweighted mean over the classes that stand in the predictions or in the references.
    """
    import numpy as np
    import sklearn.metrics

    measure = getattr(sklearn.metrics, f"{which}_score")
    options: dict[str, Any] = {"average": average, "zero_division": 0.0}
    if average == "binary":
        options["pos_label"] = pos_label
    given, right = np.asarray(predictions), np.asarray(references)
    if right.ndim == 2 and average == "macro":
        present = np.flatnonzero(given.any(axis=0) | right.any(axis=0))
        if not present.size:
            return 0.0
        options["labels"] = present
    return float(measure(right, given, **options))


def mcc(predictions: Sequence[int], references: Sequence[int]) -> float:
    """Matthews' correlation coefficient, for any number of classes (Gorodkin 2004), in [-1, 1].

    0 where all answers or all labels are one class, as scikit-learn has it.
    """
    import sklearn.metrics

    return float(sklearn.metrics.matthews_corrcoef(references, predictions))


def tag_accuracy(predictions: Tags, references: Tags) -> float:
    """Share of words with their tag, over all rows together."""
    pairs = [(p, r) for row in zip(predictions, references, strict=True) for p, r in zip(*row, strict=True)]
    if not pairs:
        raise NoValueError("the rows have no words")
    return sum(p == r for p, r in pairs) / len(pairs)


def entities(which: Which, predictions: Tags, references: Tags, *, average: Average = "micro") -> float:
    """Entity-level precision, recall or F1 as seqeval defines them (its default mode, that of conlleval).

    An entity counts when its type, its first and its last word are right. Tags without a scheme (no 'B-' or 'I-')
    are read so that a run of one tag is one entity. 0 where there is nothing to divide by.
    """
    import seqeval.metrics

    measure = getattr(seqeval.metrics, f"{which}_score")
    given, right = with_scheme(predictions, references)
    if average == "macro" and not any(tag != "O" for rows in (given, right) for row in rows for tag in row):
        return 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # seqeval warns of tags that it reads all the same
        return float(measure(right, given, average=average, zero_division=0))


def with_scheme(*sets: Tags) -> tuple[list[list[str]], ...]:
    """Tags as seqeval reads them: as they are where all have a scheme, else each run of one tag as B-, I-, I-.

    seqeval takes the first letter of a tag for its scheme, so that a plain 'Occupancy' would be outside.
    """
    if all(_SCHEME.match(tag) for rows in sets for row in rows for tag in row):
        return tuple([list(row) for row in rows] for rows in sets)
    return tuple([_runs(row) for row in rows] for rows in sets)


def _runs(row: Sequence[str]) -> list[str]:
    before = ["O", *row[:-1]]
    return [
        tag if tag == "O" else f"{'I' if tag == last else 'B'}-{tag}" for tag, last in zip(row, before, strict=True)
    ]


def exact_match(predictions: Sequence[Any], references: Sequence[Any]) -> float:
    """Share of rows that equal their reference; of texts, white space at both ends apart."""

    def plain(value: Any) -> Any:
        return value.strip() if isinstance(value, str) else tuple(value)

    hits = sum(bool(plain(p) == plain(r)) for p, r in zip(predictions, references, strict=True))
    return hits / len(references)


def bleu(predictions: Sequence[str], references: Sequence[str], *, tokenize: str = "13a") -> tuple[float, str]:
    """(corpus BLEU from 0 to 100, its signature), by sacreBLEU (Post 2018) with one reference a row."""
    from sacrebleu.metrics import BLEU

    measure = BLEU(tokenize=tokenize)
    value = float(measure.corpus_score(list(predictions), [list(references)]).score)
    return value, str(measure.get_signature())


def error_rate(predictions: Sequence[str], references: Sequence[str], *, unit: Literal["word", "char"]) -> float:
    """Insertions, deletions and replacements to get from answer to reference, over the length of all references."""
    split = str.split if unit == "word" else list
    given, right = [split(p) for p in predictions], [split(r) for r in references]
    total = sum(map(len, right))
    if not total:
        raise NoValueError(f"the references have no {unit}s")
    return sum(edit_distance(p, r) for p, r in zip(given, right, strict=True)) / total


def edit_distance(left: Sequence[str], right: Sequence[str]) -> int:
    """Levenshtein's distance between two sequences."""
    import numpy as np

    if not left or not right:
        return max(len(left), len(right))
    number: dict[str, int] = {}
    columns = np.array([number.setdefault(x, len(number)) for x in right])
    steps = np.arange(len(right) + 1)
    row = steps
    for i, item in enumerate(left):
        kept = np.empty_like(row)
        kept[0] = i + 1
        kept[1:] = np.minimum(row[1:] + 1, row[:-1] + (columns != number.get(item, -1)))
        # an insertion costs one more than the cell to its left: a running minimum, once each column's own cost is off
        row = np.minimum.accumulate(kept - steps) + steps
    return int(row[-1])


def correlation(which: Literal["pearson", "spearman"], predictions: Sequence[float], references: Any) -> float:
    """Pearson's or Spearman's correlation, as scipy has it. A constant side has none: NoValueError."""
    import scipy.stats

    if len(references) < 2:
        raise NoValueError("a correlation needs two rows or more")
    for what, values in (("predictions", predictions), ("references", references)):
        if len({float(v) for v in values}) == 1:
            raise NoValueError(f"all {what} are {float(values[0]):g}: a constant has no correlation")
    measure = scipy.stats.pearsonr if which == "pearson" else scipy.stats.spearmanr
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nearly constant input: the value is given, or is NaN and refused
        return float(measure(predictions, references).statistic)


def mean_error(predictions: Sequence[float], references: Sequence[float], *, power: Literal[1, 2]) -> float:
    """Mean of the absolute (1) or the squared (2) differences."""
    return math.fsum(abs(p - r) ** power for p, r in zip(predictions, references, strict=True)) / len(references)


def perplexity(totals: Sequence[float], tokens: Sequence[int]) -> float:
    """exp of minus the mean log-probability a token, over the whole set: long texts count for their tokens.

    totals: for each text (or window) the sum of the natural log-probabilities of its scored tokens, at most 0;
    tokens: how many were scored. Not the mean of the texts' perplexities.

    Raises NoValueError where no token was scored, or where the value is no finite number.
    """
    count = sum(tokens)
    if count < 1:
        raise NoValueError("no token was scored: texts of one token have nothing to predict")
    try:
        return math.exp(-math.fsum(totals) / count)
    except (OverflowError, ValueError) as error:
        raise NoValueError(f"the mean log-probability is {sum(totals) / count:g}: no finite perplexity") from error
