"""Student's t for every room: bounds from few processes. Standard library only."""

from __future__ import annotations

import math


def student_cdf(t: float, freedom: int) -> float:
    """P(T <= t) for Student's t with a whole number of degrees of freedom.

    Closed form: Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4.
    """
    theta = math.atan(t / math.sqrt(freedom))
    cos2 = math.cos(theta) ** 2
    odd = freedom % 2
    term = math.cos(theta) if odd else 1.0
    total = 0.0
    for k in range(freedom // 2):
        total += term
        term *= cos2 * ((2 * k + 2) / (2 * k + 3) if odd else (2 * k + 1) / (2 * k + 2))
    inside = math.sin(theta) * total  # P(|T| <= t) but for the odd case's arc
    return 0.5 + ((theta + inside) / math.pi if odd else inside / 2)


def student_quantile(level: float, freedom: int) -> float:
    """t such that P(T <= t) = level, for level >= 0.5, by bisection to 1e-10."""
    low, high = 0.0, 1.0
    while student_cdf(high, freedom) < level:
        high *= 2
    while high - low > 1e-10 * max(1.0, high):
        middle = (low + high) / 2
        low, high = (middle, high) if student_cdf(middle, freedom) < level else (low, middle)
    return high
