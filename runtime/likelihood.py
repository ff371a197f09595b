"""How likely a model finds a text: the log-probabilities of its tokens, which perplexity is made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice

import numpy as np

from edgewise.errors import EdgewiseError
from edgewise.windows import plan_windows

WINDOW = 1024
"""Tokens of a window where neither the bundle nor the run settings say how many the model reads."""
SHARE = 0.15
"""Of a text's tokens, so many are masked: as BERT was trained (Devlin et al. 2019)."""

Read = Callable[[Sequence[int]], Iterable[np.ndarray]]
"""Token ids to the scores of what follows each: [some tokens, vocabulary], piece by piece."""


@dataclass(frozen=True, slots=True)
class Likelihood:
    """Of one text."""

    log_probability: float
    """Sum of the natural log-probabilities (nats) of the scored tokens, float64."""
    scored: int
    """Tokens that were predicted; 0 for a text with nothing to predict."""
    right: int
    """Of these, the tokens that the model held for the likeliest."""
    n_tokens: int
    """Tokens that were read, special tokens included."""
    truncated: bool = False
    """The end of the text was not read."""


def likelihood(logits: Iterable[np.ndarray], ids: Iterable[int], n_tokens: int, truncated: bool = False) -> Likelihood:
    """Of the tokens `ids`, each predicted by its logits [vocabulary]. Raises EdgewiseError for logits that are NaN."""
    return _summed([_score(row, token) for row, token in zip(logits, ids, strict=True)], n_tokens, truncated)


def of_stream(texts: Sequence[Sequence[int]], size: int, read: Read) -> Iterator[Likelihood]:
    """Texts as one running text, in windows of `size` tokens that move by half: each token but the very first is scored
    once, after all that stands before it in its window.

    texts: token ids, each text with what ends it. Each answer comes as soon as its text was read.
    """
    stream = list(chain.from_iterable(texts))
    scores = _scores(stream, size, read)
    first = 1
    for ids in texts:
        count = max(0, len(ids) - first)
        first -= len(ids) - count
        yield _summed(list(islice(scores, count)), len(ids))


def hidden(text: str, places: Sequence[int]) -> list[int]:
    """The places that are masked: SHARE of them, one at least, drawn by the text alone, so always the same; ascending.

    places: where the text's own tokens stand, without special tokens.
    """
    from random import Random

    draw = Random(text)
    order = sorted(places, key=lambda _: draw.random())
    return sorted(order[: max(1, round(SHARE * len(places)))])


def _scores(stream: Sequence[int], size: int, read: Read) -> Iterator[tuple[float, bool]]:
    """Of each token but the first, in order."""
    for window in plan_windows(len(stream), size, max(1, size // 2)):
        place = window.start + 1
        for logits in read(stream[window.start : window.end]):
            known = max(0, window.first - place)
            tokens = stream[place + known : min(place + len(logits), window.end)]
            yield from map(_score, logits[known:], tokens)
            place += len(logits)


def _score(logits: np.ndarray, token: int) -> tuple[float, bool]:
    """(natural log-probability of the token, whether it is the likeliest). One token at a time: no second copy of all
    logits."""
    row = logits.astype(np.float32, copy=False)
    most = int(row.argmax())
    rest = row - row[most]
    found = float(rest[token]) - math.log(float(np.exp(rest).sum(dtype=np.float64)))
    if math.isnan(found):
        raise EdgewiseError("the model answered NaN: take another recipe or provider")
    return found, most == token


def _summed(scores: Sequence[tuple[float, bool]], n_tokens: int, truncated: bool = False) -> Likelihood:
    total = math.fsum(score for score, _ in scores)
    return Likelihood(total, len(scores), sum(right for _, right in scores), n_tokens, truncated)
