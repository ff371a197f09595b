"""Beam search: several ways to write one text are followed at once, and the best of those that end is taken.

As transformers' own beam search (4.57), step by step in float32, so that the same tokens come out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgewise.errors import InputError
from edgewise.runtime.cache import Cache
from edgewise.runtime.decode import check_score
from edgewise.runtime.generation_options import Options
from edgewise.runtime.sampling import Rule, log_softmax, rules_of

_NEVER = np.float32(-1e9)
"""Added to the score of what is out of the running."""


def beam_search(
    cache: Cache, scores: np.ndarray, first: int, rooms: Sequence[int], options: Options
) -> list[list[int]]:
    """The best text that was found for each row: the token ids that were written, an end included.

    scores: float32 [rows, vocabulary], of the first token to write; the cache holds the same rows.
    first: the id that every text begins with. rooms: tokens to write at most, a row.

    Raises InputError for more beams than the vocabulary can fill.
    """
    most = scores.shape[1] // max(2, 1 + len(options.eos_token_id))
    if options.num_beams > most:
        raise InputError(f"num_beams is {options.num_beams}; expected at most {most} with this vocabulary")
    rules = rules_of(options)
    texts = [_Text(first, room, options, rules) for room in rooms]
    for text, own in zip(texts, scores, strict=True):
        text.step(own[None])
    running, size = texts, options.num_beams
    starts = list(range(len(texts)))  # until now there is one row a text, whose cache all its beams go on from
    while True:
        going = [i for i, text in enumerate(running) if not text.done]
        if not going:
            return [text.best() for text in texts]
        cache.keep(np.concatenate([starts[i] + running[i].parents for i in going]))
        running = [running[i] for i in going]
        starts = [i * size for i in range(len(running))]
        scores = cache.step(np.concatenate([text.tokens for text in running]))
        for start, text in zip(starts, running, strict=True):
            text.step(scores[start : start + size])


class _Text:
    """The beams of one text."""

    def __init__(self, first: int, room: int, options: Options, rules: Sequence[Rule]) -> None:
        self.done = False
        self.parents = np.zeros(options.num_beams, np.int64)
        """Which beam of the last step each beam goes on from."""
        self.tokens = np.zeros(options.num_beams, np.int64)
        """The last token of each beam."""
        self._options = options
        self._rules = rules
        self._limit = 1 + room
        self._ids = np.full((1, 1), first, np.int64)
        """Of each beam: the first id and what was written. One beam in the first step, as all would be the same."""
        self._scores = np.zeros(1, np.float32)
        """Log-probability of each beam."""
        self._found: list[np.ndarray] = [self._ids[0]] * options.num_beams
        self._found_scores = np.full(options.num_beams, _NEVER)
        """With the length penalty."""
        self._ended = np.zeros(options.num_beams, bool)
        """Which of those found are texts that ended."""

    def step(self, logits: np.ndarray) -> None:
        """One token more a beam. logits: float32 [beams, vocabulary]."""
        options, beams, length = self._options, self._options.num_beams, self._ids.shape[1]
        check_score(float(logits.max()))
        scores = log_softmax(logits)
        for ids, own in zip(self._ids, scores, strict=True):
            for rule in self._rules:
                rule(ids, 1, self._limit, own)
        if options.renormalize_logits:
            scores = log_softmax(scores)
        scores = (scores + self._scores[:, None]).ravel()
        count = max(2, 1 + len(options.eos_token_id)) * beams
        top = np.argpartition(scores, -count)[-count:]
        top = top[np.argsort(-scores[top], kind="stable")]
        best = scores[top]
        check_score(float(best[0]))
        parents, tokens = np.divmod(top, logits.shape[1])
        ids = np.concatenate([self._ids[parents], tokens[:, None]], axis=1)
        over = np.isin(tokens, options.eos_token_id) | (length + 1 >= self._limit)

        running: np.ndarray = best + over * _NEVER
        go = np.argsort(-running, kind="stable")[:beams]
        self._find(ids, best, over, length)
        self.parents, self.tokens, self._ids, self._scores = parents[go], tokens[go], ids[go], running[go]
        self.done = not self._can_improve(length) or bool(over.all())

    def _find(self, ids: np.ndarray, best: np.ndarray, over: np.ndarray, length: int) -> None:
        """Take those that ended among the best into what was found."""
        options, beams = self._options, self._options.num_beams
        ended = over & (np.arange(len(over)) < beams)
        scores: np.ndarray = best / np.float32(length**options.length_penalty)
        if options.early_stopping is True and self._ended.all():
            scores = scores + _NEVER
        scores = scores + ~ended * _NEVER
        merged = np.concatenate([self._found_scores, scores])
        go = np.argsort(-merged, kind="stable")[:beams]
        self._found = [self._found[i] if i < beams else ids[i - beams] for i in go]
        self._found_scores = merged[go]
        self._ended = np.concatenate([self._ended, ended])[go]

    def _can_improve(self, length: int) -> bool:
        """A beam that goes on may become better than those found, as far as the heuristic of the options can tell."""
        options = self._options
        if options.early_stopping is True and self._ended.all():
            return False
        longest = length
        if options.early_stopping == "never" and options.length_penalty > 0:
            longest = self._limit - 1
        possible = self._scores[0] / np.float32(longest**options.length_penalty)
        worst = np.where(self._ended, self._found_scores.min(), _NEVER)
        return bool((possible > worst).any())

    def best(self) -> list[int]:
        """Token ids that were written."""
        found: list[int] = self._found[0][1:].tolist()
        return found
