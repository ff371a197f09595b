"""What each objective hides, against its definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise.trainer.noise import (
    IGNORED,
    choose_tokens,
    corrupt_spans,
    draw_pair,
    mask_patches,
    mask_tokens,
    noise_spans,
    span_counts,
    span_lengths,
    truncate_pair,
)

MASK = 1


def within(found: int, trials: int, chance: float) -> bool:
    """Less than 4.5 standard deviations of a binomial away: one honest failure in 150,000 runs."""
    return abs(found - trials * chance) < 4.5 * math.sqrt(trials * chance * (1 - chance))


@given(st.integers(1, 200), st.floats(0.01, 0.99), st.integers(0, 2**32 - 1))
def test_the_share_of_chosen_tokens_is_exact_and_never_nothing(open_count: int, share: float, seed: int) -> None:
    open_to = np.arange(2 * open_count) % 2 == 0
    chosen = choose_tokens(open_to, share, np.random.default_rng(seed))
    assert chosen.sum() == max(1, round(share * open_count))
    assert not chosen[~open_to].any()


def test_every_token_is_chosen_equally_often() -> None:
    rng = np.random.default_rng(0)
    times = sum(choose_tokens(np.ones(20, dtype=bool), 0.15, rng).astype(int) for _ in range(4000))
    assert all(within(int(n), 4000, 0.15) for n in times)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=40), st.integers(0, 2**32 - 1))
def test_whole_words_are_chosen_whole(lengths: list[int], seed: int) -> None:
    words = np.repeat(np.arange(len(lengths)), lengths)
    chosen = choose_tokens(np.ones(len(words), dtype=bool), 0.15, np.random.default_rng(seed), words)
    assert chosen.any()
    for word in range(len(lengths)):
        assert len(set(chosen[words == word])) == 1
    count = max(1, round(0.15 * len(words)))
    assert chosen.sum() <= count or chosen.sum() == min(lengths)


def test_of_the_chosen_80_percent_are_masked_10_random_10_kept() -> None:
    rng = np.random.default_rng(1)
    ids = np.full(40_000, 7)
    chosen = np.arange(40_000) % 2 == 0
    ordinary = np.arange(100, 1100)
    masked, labels = mask_tokens(ids, chosen, MASK, ordinary, rng)
    assert (masked[~chosen] == 7).all()
    assert (labels[~chosen] == IGNORED).all()
    assert (labels[chosen] == 7).all()
    found = masked[chosen]
    others = found[(found != MASK) & (found != 7)]
    assert within(int((found == MASK).sum()), 20_000, 0.8)
    assert within(int((found == 7).sum()), 20_000, 0.1)
    assert within(len(others), 20_000, 0.1)
    assert np.isin(others, ordinary).all()
    # drawn evenly: each half of the vocabulary has half of them
    assert within(int((others < 600).sum()), len(others), 0.5)


@given(st.integers(2, 600), st.floats(0.05, 0.8), st.floats(1, 8), st.integers(0, 2**32 - 1))
def test_hidden_spans_have_the_density_and_number_of_the_reference(
    length: int, density: float, mean: float, seed: int
) -> None:
    hidden = noise_spans(length, density, mean, np.random.default_rng(seed))
    count, spans = span_counts(length, density, mean)
    assert len(hidden) == length
    assert hidden.sum() == count == min(max(round(length * density), 1), length - 1)
    starts = hidden & ~np.concatenate(([False], hidden[:-1]))
    assert starts.sum() == spans
    assert not hidden[0]
    assert hidden[-1]


def test_spans_are_three_tokens_long_on_average_and_of_many_lengths() -> None:
    rng = np.random.default_rng(2)
    lengths: list[int] = []
    for _ in range(200):
        hidden = np.concatenate(([False], noise_spans(500, 0.15, 3.0, rng), [False]))
        edges = np.flatnonzero(np.diff(hidden.astype(int)))
        lengths += list(edges[1::2] - edges[::2])
    assert np.mean(lengths) == pytest.approx(3.0)
    # `parts` random cuts: a span of one token is the most frequent, with chance (spans - 1) / (hidden - 1)
    assert within(lengths.count(1), len(lengths), 24 / 74)
    assert max(lengths) > 9


def test_block_sizes_are_those_of_the_t5_reference() -> None:
    # run_t5_mlm_flax.py states: inputs of 512 tokens come from 568, with targets of 114
    assert span_lengths(512, 0.15, 3.0) == (568, 114)


@given(st.integers(2, 300), st.floats(0.05, 0.6), st.integers(0, 2**32 - 1))
def test_a_corrupted_text_can_be_put_together_again(length: int, density: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    ids = rng.integers(10, 1000, length)
    sentinels, end = np.arange(5000, 5200), 1
    hidden = noise_spans(length, density, 3.0, rng)
    source, target = corrupt_spans(ids, hidden, sentinels, end)
    spans = span_counts(length, density, 3.0)[1]
    assert len(source) == length - hidden.sum() + spans + 1
    assert len(target) == hidden.sum() + spans + 1
    for row in (source, target):
        assert row[-1] == end
        assert [t for t in row if t >= 5000] == list(sentinels[:spans])
    assert rebuilt(source, target) == list(ids)


def rebuilt(source: np.ndarray, target: np.ndarray) -> list[int]:
    """The text again: each sentinel of the input replaced by what stands behind it in the target."""
    spans: dict[int, list[int]] = {}
    for token in target[:-1]:
        if token >= 5000:
            spans[int(token)] = (last := [])
        else:
            last.append(int(token))
    return [t for token in source[:-1] for t in (spans[int(token)] if token >= 5000 else [int(token)])]


def numbered(*sizes: tuple[int, ...]) -> list[list[list[int]]]:
    """Documents of segments of these sizes; every token is a number of its own."""
    counter = iter(range(10**6))
    return [[[next(counter) for _ in range(size)] for size in document] for document in sizes]


def test_half_of_the_pairs_follow_and_the_others_come_from_another_document() -> None:
    documents = numbered((5, 6, 7), (4, 8), (9, 3, 3))
    own = {t for segment in documents[0] for t in segment}
    rng = np.random.default_rng(3)
    followed = 0
    for _ in range(4000):
        pair = draw_pair(documents, (0, 0, 3), 100, rng)
        assert pair.first
        assert pair.second
        assert set(pair.first) <= own
        if pair.follows:
            followed += 1
            if len(pair.first) + len(pair.second) == 18:  # nothing was cut off
                assert pair.first + pair.second == list(range(18))
                assert len(pair.first) in (5, 11)
        else:
            assert not set(pair.second) & own
    assert within(followed, 4000, 0.5)


@given(st.integers(2, 60), st.integers(0, 2**32 - 1))
def test_pairs_keep_the_limit(limit: int, seed: int) -> None:
    pair = draw_pair(numbered((30, 20), (40,)), (0, 0, 2), limit, np.random.default_rng(seed))
    assert 2 <= len(pair.first) + len(pair.second) <= limit
    assert min(len(pair.first), len(pair.second)) >= 1


def test_truncation_takes_from_the_longer_and_from_both_ends() -> None:
    ends = set()
    for seed in range(20):
        first, second = list(range(10)), [100, 101]
        truncate_pair(first, second, 8, np.random.default_rng(seed))
        assert second == [100, 101]
        assert first == list(range(first[0], first[0] + 6))
        ends.add(first[0])
    assert len(ends) > 1


@given(st.integers(1, 6), st.integers(1, 4), st.floats(0.05, 0.95), st.integers(0, 2**32 - 1))
def test_hidden_patches_are_whole_squares_in_the_share_asked_for(squares, group, share, seed) -> None:
    side = squares * group
    hidden = mask_patches(side, group, share, np.random.default_rng(seed)).reshape(side, side)
    assert hidden.sum() == math.ceil(squares * squares * share) * group * group
    blocks = hidden.reshape(squares, group, squares, group).swapaxes(1, 2).reshape(squares * squares, -1)
    assert (blocks == blocks[:, :1]).all()
