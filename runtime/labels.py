"""Which labels an answer says, from the scores of all of them."""

from __future__ import annotations

from collections.abc import Sequence


def choose(
    scores: Sequence[float], labels: Sequence[str], threshold: float | None, several: bool
) -> tuple[int, tuple[str, ...]]:
    """(index of the answer, every label that is said).

    several: an input may have several labels, all those from the threshold up (0.5 unless set) are said, and the answer
    is the best. Else one label is said: the best, or of two the second where its score reaches the threshold.
    """
    best = scores.index(max(scores))
    if several:
        limit = 0.5 if threshold is None else threshold
        return best, tuple(label for label, score in zip(labels, scores, strict=True) if score >= limit)
    if threshold is not None:
        best = int(scores[1] >= threshold)
    return best, (labels[best],)
