"""How well fixed features of a pretrained model fit a task, without training it: three scores, higher is better.

All take features [rows, width] (float32 or float64) and targets [rows]: class numbers from 0, or floats for regression.
None knows the model; trainer/features.py makes the features. Scores of one kind compare between models on the same
rows; their values mean nothing across tasks.

They can mislead: features that a training would change a lot (an untrained model's, for one) are judged as they are.
docs/rank.md shows how far each agrees with the accuracy after training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from edgewise.errors import DataError

RIDGES = tuple(10.0**k for k in range(-1, 6))
"""Penalties that the linear probe tries, on standardised features."""
FOLDS = 5


def logme(features: Any, targets: Any, *, classes: int | None = None) -> float:
    """LogME: the mean over rows of the log evidence of a Bayesian linear model, maximised over both its precisions.

    For classes, the mean over the columns of the one-hot labels. 'You et al., LogME: Practical assessment of
    pre-trained models for transfer learning, ICML 2021' (arXiv:2102.11005), by the fixed point of its algorithm 1, on
    the singular values of the features. No intercept and no centring, as there.

    Raises DataError for shapes that do not fit.
    """
    x, y = _checked(features, targets, classes)
    columns = y[:, None].astype(np.float64) if classes is None else np.eye(classes)[y]
    u, s, _ = np.linalg.svd(x, full_matrices=False)
    return float(np.mean([_evidence(u, s**2, column, x.shape[1]) for column in columns.T]))


def _evidence(u: Any, squares: Any, y: Any, width: int, rounds: int = 200) -> float:
    """Log evidence a row at its fixed point. u: left singular vectors [n, k]; squares: of the singular values [k]."""
    n = len(y)
    z2 = (u.T @ y) ** 2
    outside = max(float(y @ y - z2.sum()), 0.0)  # of y, what no linear model of the features can reach
    alpha, beta = 1.0, 1.0
    for _ in range(rounds):
        t = alpha / beta
        gamma = float((squares / (squares + t)).sum())
        m2 = float((squares * z2 / (squares + t) ** 2).sum())
        residual = float((z2 * (t / (squares + t)) ** 2).sum()) + outside
        new_alpha, new_beta = gamma / (m2 + 1e-12), (n - gamma) / (residual + 1e-12)
        done = abs(new_alpha / new_beta - t) <= 1e-6 * t
        alpha, beta = new_alpha, new_beta
        if done:
            break
    t = alpha / beta
    m2 = float((squares * z2 / (squares + t) ** 2).sum())
    residual = float((z2 * (t / (squares + t)) ** 2).sum()) + outside
    # log|A| of A = alpha I + beta X'X; directions that the rows do not span have eigenvalue alpha
    log_det = float(np.log(alpha + beta * squares).sum()) + (width - len(squares)) * np.log(alpha)
    log_evidence = width * np.log(alpha) + n * np.log(beta) - n * np.log(2 * np.pi) - beta * residual - alpha * m2
    return float((log_evidence - log_det) / 2 / n)


def h_score(features: Any, targets: Any, *, classes: int) -> float:
    """Shrinkage-based H-score: how much of the features' spread lies between the classes.

    tr(cov_a(x)^-1 (1 - a) cov(E[x | y])), with the shrinkage a of Ledoit and Wolf. 'Bao et al., An
    information-theoretic approach to transferability in task transfer learning, ICIP 2019', made stable for fewer rows
    than features in 'Ibrahim et al., Newer is not always better, ECML PKDD 2022' (arXiv:2110.06893).

    Raises DataError for shapes that do not fit.
    """
    from sklearn.covariance import ledoit_wolf

    x, y = _checked(features, targets, classes)
    x = x - x.mean(axis=0)
    covariance, shrinkage = ledoit_wolf(x, assume_centered=True)
    means = np.stack([x[y == c].mean(axis=0) if (y == c).any() else np.zeros(x.shape[1]) for c in range(classes)])
    share = np.bincount(y, minlength=classes) / len(y)
    # cov(E[x | y]) = sum of share * mean mean'; the trace needs no matrix of that size
    solved = np.linalg.solve(covariance, means.T)
    return float((1 - shrinkage) * np.einsum("c,cd,dc->", share, means, solved))


def linear_probe(
    features: Any,
    targets: Any,
    *,
    classes: int | None = None,
    folds: int = FOLDS,
    ridges: Sequence[float] = RIDGES,
    seed: int = 0,
) -> float:
    """Cross-validated accuracy (R^2 for regression) of a ridge regression on the features, at its best penalty.

    Classes by the largest of one regression each on labels of -1 and 1, as scikit-learn's RidgeClassifier. Probes as in
    'Alain and Bengio, Understanding intermediate layers using linear classifier probes, 2016' (arXiv:1610.01644).
    The penalty is chosen on the same folds, so that the value is slightly high; alike for every model.

    Raises DataError for shapes that do not fit, or fewer rows than folds.
    """
    x, y = _checked(features, targets, classes)
    if len(y) < 2 * folds:
        raise DataError(f"{len(y)} rows for a probe of {folds} folds; expected at least {2 * folds}")
    columns = y[:, None].astype(np.float64) if classes is None else 2 * np.eye(classes)[y] - 1
    parts = _folds(y, folds, seed, shuffle_only=classes is None)
    predicted = np.empty((len(ridges), *columns.shape))
    for part in parts:
        rest = np.setdiff1d(np.arange(len(y)), part)
        predicted[:, part] = _ridge_predictions(x[rest], columns[rest], x[part], ridges)
    if classes is None:
        residual = ((predicted - columns) ** 2).sum(axis=(1, 2))
        return float(1 - residual.min() / max(((columns - columns.mean()) ** 2).sum(), 1e-300))
    return float((predicted.argmax(axis=2) == y).mean(axis=1).max())


def _ridge_predictions(x: Any, y: Any, new: Any, ridges: Sequence[float]) -> Any:
    """[ridges, new rows, columns]: one singular value decomposition serves every penalty."""
    mean, spread = x.mean(axis=0), x.std(axis=0)
    spread[spread < 1e-12] = 1.0  # a constant feature says nothing
    u, s, vt = np.linalg.svd((x - mean) / spread, full_matrices=False)
    middle = y.mean(axis=0)
    inside, outside = u.T @ (y - middle), ((new - mean) / spread) @ vt.T
    return np.stack([outside @ ((s / (s**2 + ridge))[:, None] * inside) + middle for ridge in ridges])


def _folds(y: Any, folds: int, seed: int, *, shuffle_only: bool) -> list[Any]:
    """Rows of each fold; of classes, each fold has its share of each."""
    order = np.random.default_rng(seed).permutation(len(y))
    if not shuffle_only:
        order = order[np.argsort(y[order], kind="stable")]
    return [order[i::folds] for i in range(folds)]


def _checked(features: Any, targets: Any, classes: int | None) -> tuple[Any, Any]:
    x = np.asarray(features, dtype=np.float64)
    y = np.asarray(targets)
    if x.ndim != 2 or y.shape != (len(x),) or len(x) < 2:
        raise DataError(f"features {x.shape} and targets {y.shape}; expected [rows, width] and [rows], 2 rows or more")
    if not np.isfinite(x).all():
        raise DataError(
            f"{int((~np.isfinite(x)).any(axis=1).sum())} of {len(x)} rows have features that are no numbers"
        )
    if classes is not None:
        y = y.astype(np.int64)
        if y.min() < 0 or y.max() >= classes or len(np.unique(y)) < 2:
            raise DataError(f"targets are classes {sorted(set(y.tolist()))[:5]} of {classes}; expected two or more")
    return x, y
