"""One vector out of the hidden states of a text's tokens, or an image's."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

Pooling = Literal["mean", "cls", "last"]
"""Mean of the real tokens, the first token, or the last real one."""
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)


def pool(states: np.ndarray, counts: np.ndarray, pooling: Pooling) -> np.ndarray:
    """float32 [batch, n] of hidden states [batch, length, n]; counts: bool [batch, length], what is no padding."""
    if pooling == "cls":
        found: np.ndarray = states[:, 0]
        return found
    if pooling == "last":
        last = counts.shape[1] - 1 - counts[:, ::-1].argmax(1)
        found = states[np.arange(len(states)), last]
    else:
        weights = counts[..., None].astype(states.dtype)
        found = (states * weights).sum(1) / np.maximum(1, weights.sum(1))
    return found


def normalize(vectors: np.ndarray) -> np.ndarray:
    """Scaled to length 1, row by row: float [batch, n]; a row of zeros stays."""
    found: np.ndarray = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
    return found
