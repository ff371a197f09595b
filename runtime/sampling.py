"""Which token comes next: a step's scores, changed as the options ask, and one token taken or drawn from them.

The order and the arithmetic are those of transformers' logits processors.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edgewise.runtime.generation_options import Options

Rule = Callable[[np.ndarray, int, int, np.ndarray], None]
"""(ids int64 [n] that stand so far, how many of them were given, how many there may be, scores float32 [vocabulary],
which it changes)."""


def rules_of(options: Options) -> tuple[Rule, ...]:
    """What changes the scores whether a token is then taken or drawn; mostly nothing."""
    found: list[Rule] = []
    if options.repetition_penalty != 1:
        found.append(_repetition(options.repetition_penalty))
    if options.no_repeat_ngram_size:
        found.append(_no_repeat(options.no_repeat_ngram_size))
    if options.bad_words_ids:
        found.append(_bad_words(options))
    if options.eos_token_id and (options.min_length or options.min_new_tokens):
        found.append(_at_least(options))
    if options.forced_bos_token_id is not None:
        found.append(_first(options.forced_bos_token_id))
    if options.forced_eos_token_id:
        found.append(_last(options.forced_eos_token_id))
    if options.suppress_tokens:
        found.append(_never(options.suppress_tokens))
    if options.begin_suppress_tokens:
        found.append(_not_first(options))
    return tuple(found)


def _repetition(penalty: float) -> Rule:
    def rule(ids: np.ndarray, given: int, limit: int, scores: np.ndarray) -> None:
        seen = scores[ids]
        scores[ids] = np.where(seen < 0, seen * np.float32(penalty), seen / np.float32(penalty))

    return rule


def _no_repeat(size: int) -> Rule:
    def rule(ids: np.ndarray, given: int, limit: int, scores: np.ndarray) -> None:
        windows = len(ids) - size + 1
        if windows <= 0:
            return
        same = np.ones(windows, dtype=bool)
        for i in range(size - 1):
            same &= ids[i : windows + i] == ids[len(ids) - size + 1 + i]
        scores[ids[size - 1 :][same]] = -np.inf

    return rule


def _bad_words(options: Options) -> Rule:
    ends = {(i,) for i in options.eos_token_id}
    words = [np.array(word) for word in options.bad_words_ids if word not in ends]

    def rule(ids: np.ndarray, given: int, limit: int, scores: np.ndarray) -> None:
        for word in words:
            before = len(word) - 1
            if before < len(ids) and np.array_equal(ids[len(ids) - before :], word[:-1]):
                scores[word[-1]] = -np.inf

    return rule


def _at_least(options: Options) -> Rule:
    ends = list(options.eos_token_id)

    def rule(ids: np.ndarray, given: int, limit: int, scores: np.ndarray) -> None:
        if len(ids) < options.min_length or len(ids) - given < options.min_new_tokens:
            scores[ends] = -np.inf

    return rule


def _first(token: int) -> Rule:
    def rule(ids: np.ndarray, given: int, limit: int, scores: np.ndarray) -> None:
        if len(ids) == 1:
            scores[:] = -np.inf
            scores[token] = 0

    return rule


def _last(tokens: tuple[int, ...]) -> Rule:
    def rule(ids: np.ndarray, given: int, limit: int, scores: np.ndarray) -> None:
        if len(ids) == limit - 1:
            scores[:] = -np.inf
            scores[list(tokens)] = 0

    return rule


def _never(tokens: tuple[int, ...]) -> Rule:
    def rule(ids: np.ndarray, given: int, limit: int, scores: np.ndarray) -> None:
        scores[[t for t in tokens if 0 <= t < len(scores)]] = -np.inf

    return rule


def _not_first(options: Options) -> Rule:
    never = _never(options.begin_suppress_tokens)

    def rule(ids: np.ndarray, given: int, limit: int, scores: np.ndarray) -> None:
        start = given + (given == 1 and options.forced_bos_token_id is not None)
        if len(ids) == start:
            never(ids, given, limit, scores)

    return rule


# ---- drawing


def draw(scores: np.ndarray, options: Options, generator: np.random.Generator) -> int:
    """A token at random, by its probability among those that temperature, top_k, top_p and min_p leave.

    scores: float32 [vocabulary]; -inf for what may not come.
    """
    ids, probabilities = kept(scores, options)
    sums = probabilities.cumsum(dtype=np.float64)
    at = int(sums.searchsorted(generator.random() * sums[-1], side="right"))
    return int(ids[min(at, len(ids) - 1)])


def kept(scores: np.ndarray, options: Options) -> tuple[np.ndarray, np.ndarray]:
    """(ids of the tokens that may be drawn, the more likely later, their probabilities float32, which sum to 1)."""
    if options.temperature != 1:
        scores = scores / np.float32(options.temperature)
    if 0 < options.top_k < len(scores):
        # All that tie with the last of them stay, as in transformers.
        least = np.partition(scores, -options.top_k)[-options.top_k]
        ids = np.flatnonzero(scores >= least)
    else:
        ids = np.flatnonzero(scores > -np.inf)
    scores = scores[ids]
    order = scores.argsort(kind="stable")
    ids, scores = ids[order], scores[order]
    if options.top_p < 1:
        drop = softmax(scores).cumsum() <= np.float32(1 - options.top_p)
        drop[-1] = False
        ids, scores = ids[~drop], scores[~drop]
    probabilities = softmax(scores)
    if options.min_p is not None:
        stay = probabilities >= np.float32(options.min_p) * probabilities[-1]
        ids, probabilities = ids[stay], softmax(scores[stay])
    return ids, probabilities


def softmax(scores: np.ndarray) -> np.ndarray:
    """Of the last dimension, in the scores' dtype."""
    weights: np.ndarray = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return weights


def log_softmax(scores: np.ndarray) -> np.ndarray:
    """Of the last dimension, in the scores' dtype."""
    shifted: np.ndarray = scores - scores.max(-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(-1, keepdims=True))
    return shifted
