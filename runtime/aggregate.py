"""Tokens with scores become entities: the aggregation strategies of transformers' token classification."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

Strategy = Literal["none", "simple", "first", "average", "max"]
"""Each token by itself; neighbours with one label joined; or so, but a word has one label: its first token's, that of
the mean of its tokens' scores, or its surest token's."""
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)

Spell = Callable[[list[str]], str]
"""Tokens of the vocabulary -> text."""


@dataclass(frozen=True, slots=True)
class Token:
    """One token of a text, and what the model says of it."""

    word: str
    """As in the vocabulary."""
    scores: np.ndarray
    """float32 [labels], of sum 1."""
    index: int
    """Its place in the window, special tokens counted."""
    start: int
    """Its first character in the text, and the one behind its last."""
    end: int
    continues: bool
    """It belongs to the word of the token before it."""


@dataclass(frozen=True, slots=True)
class Entity:
    """A part of a text with its label."""

    label: str
    """Of a token as the model says it; of an aggregated entity without its 'B-' or 'I-'."""
    score: float
    """Softmax; of several tokens or words their mean."""
    word: str
    """Spelled by the tokenizer, which may have changed case; what was written is text[start:end]."""
    start: int
    """The first character in the text."""
    end: int
    """The character behind the last."""
    index: int | None = None
    """Place of a token among the text's tokens; None where tokens were aggregated."""


def aggregate(tokens: Sequence[Token], labels: Sequence[str], strategy: Strategy, spell: Spell) -> list[Entity]:
    """Entities of one window, of every label, in the order of the text."""
    if strategy in ("none", "simple"):
        entities = [_of_token(token, labels) for token in tokens]
    else:
        entities = [_of_word(word, labels, strategy, spell) for word in _words(tokens)]
    return entities if strategy == "none" else _grouped(entities, spell)


def without(entities: Sequence[Entity], ignored: Collection[str]) -> list[Entity]:
    """Entities of labels that are not ignored."""
    return [entity for entity in entities if entity.label not in ignored]


def join_windows(entities: Sequence[Entity]) -> list[Entity]:
    """Of entities of all windows that overlap the longest one, or of two of one length the surer."""
    found: list[Entity] = []
    for entity in sorted(entities, key=lambda e: e.start):
        last = found[-1] if found else None
        if last is None or not last.start <= entity.start < last.end:
            found.append(entity)
        elif (entity.end - entity.start, entity.score) > (last.end - last.start, last.score):
            found[-1] = entity
    return found


def _of_token(token: Token, labels: Sequence[str]) -> Entity:
    best = int(token.scores.argmax())
    return Entity(labels[best], float(token.scores[best]), token.word, token.start, token.end, token.index)


def _words(tokens: Sequence[Token]) -> list[list[Token]]:
    words: list[list[Token]] = []
    for token in tokens:
        if words and token.continues:
            words[-1].append(token)
        else:
            words.append([token])
    return words


def _of_word(word: Sequence[Token], labels: Sequence[str], strategy: Strategy, spell: Spell) -> Entity:
    scores = _WORD_SCORES[strategy](word)
    best = int(scores.argmax())
    text = spell([token.word for token in word])
    return Entity(labels[best], float(scores[best]), text, word[0].start, word[-1].end)


def _first(word: Sequence[Token]) -> np.ndarray:
    return word[0].scores


def _surest(word: Sequence[Token]) -> np.ndarray:
    return max(word, key=lambda token: float(token.scores.max())).scores


def _mean(word: Sequence[Token]) -> np.ndarray:
    found: np.ndarray = np.mean([token.scores for token in word], axis=0)
    return found


_WORD_SCORES: Mapping[Strategy, Callable[[Sequence[Token]], np.ndarray]] = {
    "first": _first, "average": _mean, "max": _surest,
}  # fmt: skip


def _grouped(entities: Sequence[Entity], spell: Spell) -> list[Entity]:
    """Neighbours with one tag, up to the next 'B-', as one entity."""
    groups: list[list[Entity]] = []
    for entity in entities:
        if groups and not entity.label.startswith("B-") and _tag(entity.label) == _tag(groups[-1][-1].label):
            groups[-1].append(entity)
        else:
            groups.append([entity])
    return [_as_one(group, spell) for group in groups]


def _tag(label: str) -> str:
    return label[2:] if label.startswith(("B-", "I-")) else label


def _as_one(group: Sequence[Entity], spell: Spell) -> Entity:
    score = sum(entity.score for entity in group) / len(group)
    # transformers takes what stands behind the first dash of any label, be it 'B-' or not.
    label = group[0].label.split("-", 1)[-1]
    return Entity(label, score, spell([entity.word for entity in group]), group[0].start, group[-1].end)
