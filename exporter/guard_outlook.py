"""How likely a graph keeps an allowed drop, before it is evaluated: from the fp32 answers and a simulation.

Noise in the logits turns an answer where it is larger than the answer's lead. The leads on the val rows are known from
fp32, the noise from the simulation (`sensitivity`), so that the expected drop and its spread follow: right answers that
turn are lost, wrong ones that turn are gained, and where few answers turn, luck decides.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import sqrt

import numpy as np

from edgewise.exporter.stopping import Reference

_NOISES = 64
"""Sizes of noise that stand for all that were simulated."""


@dataclass(frozen=True)
class Guess:
    """The drop of the mean score that is expected, and its standard deviation."""

    mean: float
    sd: float


@dataclass(frozen=True)
class Outlook:
    """Answers on the val rows, as what noise can turn."""

    reference: Reference

    @cached_property
    def _answers(self) -> tuple[np.ndarray, np.ndarray]:
        """(lead of each answer that counts, what it weighs in the mean), float64 [answers]."""
        assert self.reference.leads is not None
        rows = [self.reference.leads[i] for i in self.reference.order]
        weights = [np.full(len(row), 1 / (len(row) * len(rows))) for row in rows if len(row)]
        return np.concatenate([row for row in rows if len(row)]), np.concatenate(weights)

    def guess(self, moved: np.ndarray) -> Guess:
        """moved: sizes of the noise in leads, float64 [any]; each stands for a normal distribution as wide."""
        leads, weights = self._answers
        if not np.isfinite(moved).all():
            return Guess(float(weights[leads > 0].sum()), 0.0)
        widths = np.quantile(moved, (np.arange(_NOISES) + 0.5) / _NOISES)
        turns = _normal_tail(np.abs(leads)[:, None] / np.maximum(widths, 1e-12)).mean(-1)
        mean = float((np.sign(leads) * weights * turns).sum())
        return Guess(mean, sqrt(float((weights**2 * turns * (1 - turns)).sum())))


def _normal_tail(z: np.ndarray) -> np.ndarray:
    """P(Z > z)."""
    import torch

    return np.asarray(torch.special.erfc(torch.from_numpy(z / sqrt(2))) / 2)
