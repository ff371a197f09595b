"""What each objective hides: pure functions of token ids (or patches) and a random generator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Flags = NDArray[np.bool_]

IGNORED = -100
"""The label of a position that does not count; what torch's cross entropy leaves out."""


def choose_tokens(open_to: Flags, share: float, rng: np.random.Generator, words: Ids | None = None) -> Flags:
    """Which positions are predicted: `share` of those that `open_to` allows, rounded, at least one.

    words: the number of the word that each position belongs to; then words are chosen whole, in random order, each
    that still fits into the count; as in Devlin et al. 2019 (arXiv:1810.04805) and its create_pretraining_data.py.
    """
    chosen = np.zeros(len(open_to), dtype=bool)
    places = np.flatnonzero(open_to)
    count = min(len(places), max(1, round(share * len(places))))
    if words is None:
        chosen[rng.choice(places, size=count, replace=False)] = True
        return chosen
    groups = [places[words[places] == word] for word in rng.permutation(np.unique(words[places]))]
    for group in groups:
        if int(chosen.sum()) + len(group) <= count:
            chosen[group] = True
    if groups and not chosen.any():  # each word alone is longer than the count
        chosen[min(groups, key=len)] = True
    return chosen


def mask_tokens(ids: Ids, chosen: Flags, mask: int, ordinary: Ids, rng: np.random.Generator) -> tuple[Ids, Ids]:
    """(input ids, labels): of the chosen positions 80% become `mask`, 10% a token drawn from `ordinary`, 10% stay.

    Labels hold the original id at the chosen positions and IGNORED elsewhere. Devlin et al. 2019, section 3.1.
    """
    labels = np.where(chosen, ids, IGNORED)
    draw = rng.random(len(ids))
    masked = np.where(chosen & (draw < 0.8), mask, ids)
    other = chosen & (draw >= 0.8) & (draw < 0.9)
    masked[other] = rng.choice(ordinary, size=int(other.sum()))
    return masked, labels


def span_counts(length: int, density: float, mean_span: float) -> tuple[int, int]:
    """(hidden tokens, spans that they stand in) of `length` tokens, at least 2."""
    hidden = min(max(round(length * density), 1), length - 1)
    return hidden, max(min(round(hidden / mean_span), hidden, length - hidden), 1)


def noise_spans(length: int, density: float, mean_span: float, rng: np.random.Generator) -> Flags:
    """Which of `length` tokens are hidden, in spans of `mean_span` tokens on average; starts open and ends hidden.

    `random_spans_noise_mask` of Raffel et al. 2020 (arXiv:1910.10683), as in run_t5_mlm_flax.py: round(length x
    density) hidden tokens in round(hidden / mean_span) spans, both kinds of spans cut at random. length: at least 2.
    """
    hidden, spans = span_counts(length, density, mean_span)
    lengths = np.empty(2 * spans, dtype=np.int64)
    lengths[0::2] = _cut(length - hidden, spans, rng)
    lengths[1::2] = _cut(hidden, spans, rng)
    return np.repeat(np.arange(2 * spans) % 2 == 1, lengths)


def _cut(total: int, parts: int, rng: np.random.Generator) -> Ids:
    """`total` in `parts` numbers of at least 1, every way equally likely."""
    ends = np.sort(rng.choice(total - 1, size=parts - 1, replace=False)) + 1
    return np.diff(np.concatenate(([0], ends, [total])))


def corrupt_spans(ids: Ids, hidden: Flags, sentinels: Ids, end: int) -> tuple[Ids, Ids]:
    """(input ids, target ids): each hidden span becomes one sentinel; the target lists sentinel and span in turn.

    Both end with `end`. As in T5's own preprocessing the hidden part ends the block, so that the target needs no
    closing sentinel. sentinels: at least one a span, in the order of use.
    """
    starts = hidden & ~np.concatenate(([False], hidden[:-1]))
    number = np.cumsum(starts) - 1
    source = np.where(starts, sentinels[np.maximum(number, 0)], ids)[~hidden | starts]
    target: list[int] = []
    for place in np.flatnonzero(hidden):
        if starts[place]:
            target.append(int(sentinels[number[place]]))
        target.append(int(ids[place]))
    return np.append(source, end), np.array([*target, end], dtype=np.int64)


def span_lengths(inputs: int, density: float, mean_span: float) -> tuple[int, int]:
    """(tokens of a raw block, tokens of its target) such that the corrupted input has at most `inputs` tokens.

    As `compute_input_and_target_lengths` in run_t5_mlm_flax.py; the end token is counted in both.
    """

    def sizes(length: int) -> tuple[int, int]:
        hidden, spans = span_counts(length, density, mean_span)
        return length - hidden + spans + 1, hidden + spans + 1

    length = 2
    while sizes(length + 1)[0] <= inputs:
        length += 1
    return length, sizes(length)[1]


@dataclass(frozen=True)
class Pair:
    """Two segments and whether the second follows the first in the text."""

    first: list[int]
    """Tokens, named as the documents that it was drawn from name them."""
    second: list[int]
    follows: bool


def truncate_pair(first: list[int], second: list[int], limit: int, rng: np.random.Generator) -> None:
    """Shorten in place to `limit` tokens together: one token at a time off the longer, from either end at random.

    As in BERT's create_pretraining_data.py; both keep at least one token. limit: at least 2.
    """
    while len(first) + len(second) > limit:
        longer = first if len(first) > len(second) else second
        longer.pop(0 if rng.random() < 0.5 else -1)


def draw_pair(
    documents: Sequence[Sequence[Sequence[int]]], place: tuple[int, int, int], limit: int, rng: np.random.Generator
) -> Pair:
    """One example of next-sentence prediction (Devlin et al. 2019, section 3.1).

    documents: of segments of tokens. place: (document, first segment, segment after the last), at least two
    segments, which are parted at random: the first part is the first segment of the pair. The second is, with even
    chances, the other part, or segments of another document. limit: tokens of both together; in one of ten examples a
    shorter one is drawn, as in BERT, so that short inputs are seen too.
    """
    document, start, stop = place
    if rng.random() < 0.1:
        limit = int(rng.integers(2, limit + 1))
    cut = int(rng.integers(start + 1, stop))
    first = [t for segment in documents[document][start:cut] for t in segment]
    follows = bool(rng.random() < 0.5)
    if follows:
        second = [t for segment in documents[document][cut:stop] for t in segment]
    else:
        other = int(rng.integers(0, len(documents) - 1))
        other += other >= document
        second = []
        for segment in documents[other][int(rng.integers(0, len(documents[other]))) :]:
            second += segment
            if len(first) + len(second) >= limit:
                break
    truncate_pair(first, second, limit, rng)
    return Pair(first, second, follows)


def mask_patches(side: int, group: int, share: float, rng: np.random.Generator) -> Flags:
    """Hidden patches of an image of side x side patches, flat: ceil(share x squares) squares of group x group patches.

    Xie et al. 2022, SimMIM (arXiv:2111.09886). group divides side.
    """
    squares = side // group
    count = int(np.ceil(squares * squares * share))
    flat = np.zeros(squares * squares, dtype=bool)
    flat[rng.permutation(squares * squares)[:count]] = True
    return flat.reshape(squares, squares).repeat(group, axis=0).repeat(group, axis=1).reshape(-1)
