"""Token by token: several rows written at once, each until it ends, by taking the best token or drawing one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from edgewise.errors import EdgewiseError
from edgewise.runtime.generation_options import Options
from edgewise.runtime.sampling import Rule, draw, rules_of

if TYPE_CHECKING:
    from edgewise.runtime.cache import Cache
    from edgewise.runtime.streaming import TextStream

Finish = Literal["eos", "length", "stop"]
"""Why a text ends: the model's own end, the tokens that were allowed, or a stop string."""


@dataclass(frozen=True, slots=True)
class Generation:
    """What was written for one input."""

    text: str
    """Without special tokens, and without the stop string that ended it."""
    token_ids: tuple[int, ...]
    """All that were written, the one that ended it included."""
    finish: Finish
    n_tokens: int
    """Of the input, as they were read, special tokens included."""
    truncated: bool
    """True when the input was too long, and a part of it was not read."""


@dataclass(frozen=True, slots=True)
class TokenStream:
    """One answer, token by token: the input is read when this is made, a token is written when it is asked for."""

    n_tokens: int
    """Of the input, as it was read, special tokens included."""
    truncated: bool
    """True when the input was too long, and a part of it was not read."""
    tokens: Iterator[int]
    """Ids of the tokens that are written, each as soon as it stands."""

    def __iter__(self) -> Iterator[int]:
        return self.tokens


@dataclass(slots=True)
class Row:
    """One text while it is written."""

    ids: np.ndarray
    """int64, of the length that it may have; what was given, then what is written."""
    given: int
    """How many ids were given."""
    n: int
    """How many stand."""
    generator: np.random.Generator | None = None
    """Of a text whose tokens are drawn."""
    stream: TextStream | None = None
    """Of a text that is shown while it is written, or that a stop string may end."""
    pieces: list[str] = field(default_factory=list)
    """What the stream gave."""
    finish: Finish | None = None

    @classmethod
    def of(
        cls, given: Sequence[int], room: int, generator: np.random.Generator | None, stream: TextStream | None
    ) -> Row:
        """room: tokens to write at most."""
        ids = np.empty(len(given) + room, np.int64)
        ids[: len(given)] = given
        return cls(ids, len(given), len(given), generator, stream)

    def add(self, token: int, ends: Sequence[int]) -> bool:
        """Write a token; True when the text is finished."""
        self.ids[self.n] = token
        self.n += 1
        if self.stream is not None:
            self.pieces.append(self.stream.put(token))
            if self.stream.finished:
                self.finish = "stop"
                return True
        if token in ends:
            self.finish = "eos"
        elif self.n == len(self.ids):
            self.finish = "length"
        return self.finish is not None

    def rest(self) -> str:
        """What the stream held back, once the text is finished."""
        return self.stream.end() if self.stream is not None else ""

    @property
    def written(self) -> list[int]:
        """Token ids that were written."""
        found: list[int] = self.ids[self.given : self.n].tolist()
        return found


def decode(cache: Cache, scores: np.ndarray, rows: Sequence[Row], options: Options) -> Iterator[None]:
    """Write the rows to their ends; a yield a step, so that one can be shown as it is written.

    scores: float32 [rows, vocabulary], of the first token to write.
    """
    rules, ends = rules_of(options), options.eos_token_id
    if len(rows) == 1 and not rules and not options.do_sample:
        yield from _decode_alone(cache, scores, rows[0], ends)
        return
    while True:
        tokens = _choose(scores, rows, options, rules)
        over = [row.add(token, ends) for row, token in zip(rows, tokens.tolist(), strict=True)]
        yield
        if True in over:
            going = [i for i, ended in enumerate(over) if not ended]
            if not going:
                return
            rows, tokens = [rows[i] for i in going], tokens[going]
            cache.keep(np.array(going))
        scores = cache.step(tokens)


def _decode_alone(cache: Cache, scores: np.ndarray, row: Row, ends: Sequence[int]) -> Iterator[None]:
    """The best token each time, with as little as can be done between two calls of the graph."""
    tokens = np.zeros(1, np.int64)
    while True:
        token = int(scores.argmax())
        if not (best := scores.item(token)) > -math.inf:
            check_score(best)
        over = row.add(token, ends)
        yield
        if over:
            return
        tokens[0] = token
        scores = cache.step(tokens)


def written_one_by_one(cache: Cache, scores: np.ndarray, row: Row, options: Options) -> Iterator[int]:
    """Write one row; the id of each token."""
    for _ in decode(cache, scores, [row], options):
        yield row.ids.item(row.n - 1)


def without_end(options: Options, ignore_eos: bool) -> Options:
    """The options, with no token that ends a text where `ignore_eos` says so."""
    return replace(options, eos_token_id=()) if ignore_eos else options


def shown(cache: Cache, scores: np.ndarray, row: Row, options: Options) -> Iterator[str]:
    """Write one row that has a stream; pieces of its text, none of them empty, which joined are the whole."""
    for _ in decode(cache, scores, [row], options):
        if row.pieces[-1]:
            yield row.pieces[-1]
    if rest := row.rest():
        yield rest


def generator_of(options: Options, index: int) -> np.random.Generator | None:
    """What draws the tokens of input number `index`: by its seed and number alone, whatever is written beside it."""
    if not options.do_sample:
        return None
    return np.random.default_rng(None if options.seed is None else [options.seed, index])


def _choose(scores: np.ndarray, rows: Sequence[Row], options: Options, rules: Sequence[Rule]) -> np.ndarray:
    """A token for each row: int64 [rows]. Raises EdgewiseError for NaN, and where no token is left."""
    if rules:
        scores = scores.copy()
        for row, own in zip(rows, scores, strict=True):
            for rule in rules:
                rule(row.ids[: row.n], row.given, len(row.ids), own)
    tokens: np.ndarray = scores.argmax(-1)
    for i, token in enumerate(tokens):
        check_score(float(scores[i, token]))
    if options.do_sample:
        drawn = [draw(own, options, row.generator) for row, own in zip(rows, scores, strict=True) if row.generator]
        tokens = np.array(drawn, dtype=np.int64)
    return tokens


def check_score(best: float) -> None:
    """Raise EdgewiseError where the best score, which argmax and max take NaN for, is no number."""
    if math.isnan(best):
        raise EdgewiseError("the model answered NaN: take another recipe or provider")
    if best == -np.inf:
        raise EdgewiseError("the options leave no token to write: allow some of those that were ruled out")
