"""The product of bytes on x86 without VNNI: sums of two products saturate at int16 (saturation.py tells why)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_LOW, _HIGH = -(1 << 15), (1 << 15) - 1
_BLOCK = 1 << 22
"""Pair sums that are held at a time: 16 MB."""
_EXACT = 256
"""Products of a byte by a byte whose sum float32 holds: 256 * 255^2 < 2^24."""


def saturating_product(activations: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, int]:
    """The product as `vpmaddubsw` makes it: each sum of two products, along K in pairs, saturated at int16.

    activations: uint8 [M, K]; weights: int8 [K, N]. Returns int32 [M, N] and how many of the M * ceil(K / 2) * N sums
    were saturated. Zero points are no part of it. Only pairs that the extremes of their two columns of activations
    could bring beyond int16 are summed one by one; the rest is one exact matrix product.
    """
    return saturate(activations, weights, heavy_pairs(weights))


@dataclass(frozen=True)
class Pairs:
    """Pairs of weights side by side along K, ordered by column."""

    column: np.ndarray
    """int64 [pairs]."""
    k: np.ndarray
    """int64 [pairs]: the pair is weights[2 k] and weights[2 k + 1]."""
    first: np.ndarray
    """int32 [pairs]: the weight at 2 k."""
    second: np.ndarray

    def at(self, chosen: np.ndarray | slice) -> Pairs:
        return Pairs(self.column[chosen], self.k[chosen], self.first[chosen], self.second[chosen])


def heavy_pairs(weights: np.ndarray) -> Pairs:
    """The pairs that some uint8 activations bring beyond int16: only those of one sign are long enough."""
    if len(weights) % 2:  # MLAS fills up with zeros
        weights = np.pad(weights, ((0, 1), (0, 0)))
    first, second = weights[0::2].T.astype(np.int16), weights[1::2].T.astype(np.int16)  # [N, ceil(K / 2)]
    most, least = np.maximum(first, 0) + np.maximum(second, 0), np.minimum(first, 0) + np.minimum(second, 0)
    column, k = np.nonzero((most > _HIGH // 255) | (least < _LOW // 255 + 1))
    return Pairs(column, k, first[column, k].astype(np.int32), second[column, k].astype(np.int32))


def saturate(activations: np.ndarray, weights: np.ndarray, heavy: Pairs) -> tuple[np.ndarray, int]:
    total = exact_product(activations, weights)
    a = np.pad(activations, ((0, 0), (0, activations.shape[1] % 2))).astype(np.int32)
    if not len(a):
        return total, 0
    # A first look at the extremes of each column of activations, instead of at every row.
    pairs = heavy.at(_beyond(a.min(0), a.max(0), heavy))
    step, saturated = max(1, _BLOCK // len(a)), 0
    for start in range(0, len(pairs.k), step):
        some = pairs.at(slice(start, start + step))
        sums = a[:, 2 * some.k] * some.first + a[:, 2 * some.k + 1] * some.second  # [M, step]
        excess = np.clip(sums, _LOW, _HIGH) - sums
        saturated += int(np.count_nonzero(excess))
        columns, starts = np.unique(some.column, return_index=True)
        if len(columns):
            total[:, columns] += np.add.reduceat(excess, starts, axis=1)
    return total, saturated


def _beyond(low: np.ndarray, high: np.ndarray, pairs: Pairs) -> np.ndarray:
    """bool [pairs]: whether activations between `low` and `high`, int32 [K], can bring the sum beyond int16."""
    upper = np.zeros(len(pairs.k), np.int32)
    lower = np.zeros(len(pairs.k), np.int32)
    for offset, w in ((0, pairs.first), (1, pairs.second)):
        ends = low[2 * pairs.k + offset] * w, high[2 * pairs.k + offset] * w
        upper += np.maximum(*ends)
        lower += np.minimum(*ends)
    return (upper > _HIGH) | (lower < _LOW)


def exact_product(activations: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """int32 [M, N], exact, in slices of K whose sums float32 holds."""
    total = np.zeros((len(activations), weights.shape[1]), np.int32)
    for start in range(0, len(weights), _EXACT):
        part = slice(start, start + _EXACT)
        product = activations[:, part].astype(np.float32) @ weights[part].astype(np.float32)
        total += product.astype(np.int32)
    return total
