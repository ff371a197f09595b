"""How far a bundle's answers may be from PyTorch's, by precision; one that is further is not written."""

from __future__ import annotations

from typing import Any, Literal

from edgewise.errors import ParityError
from edgewise.types import Precision, Recipe, Task

Decision = Literal["label", "word", "direction"]
"""What is agreed on: one label of a few, one word of a vocabulary, or the direction of a feature vector."""

_EXACT = 1e-3
"""Largest difference of a logit of an fp32 graph: float32 sums in another order."""
_GELU = 5e-2
"""The same where O3 computes GELU by its tanh form, which is off by up to 5e-4 a layer (Hendrycks and Gimpel 2016)."""

_LOWEST: dict[Precision, dict[Decision, float]] = {
    "fp32": {"label": 1.0, "word": 1.0, "direction": 0.9999},
    "fp16": {"label": 0.95, "word": 0.9, "direction": 0.999},
    "int8-dynamic": {"label": 0.8, "word": 0.5, "direction": 0.8},
    "int8-static": {"label": 0.8, "word": 0.5, "direction": 0.8},
    "int8-weights": {"label": 0.95, "word": 0.8, "direction": 0.98},
    "int4-weights": {"label": 0.8, "word": 0.4, "direction": 0.8},
}
"""Share of decisions that must be PyTorch's; for features the mean cosine. Below it a graph has collapsed.

Words are one of a whole vocabulary, where close calls are many (SmolLM2-135M in int8-dynamic: 75%); what a difference
costs in perplexity or BLEU is for the measurements to say."""


def largest_difference(recipe: Recipe) -> float | None:
    """Largest absolute difference of a logit from PyTorch's; None for what is judged by its decisions alone.

    Hidden states, which have no scale of their own, are held to it relative to the largest of their input, where that
    is above 1.
    """
    if recipe.precision != "fp32":
        return None
    return _GELU if recipe.optimize == "O3" else _EXACT


def decision_of(task: Task) -> Decision:
    """What the graphs of a task are compared by."""
    if task.endswith("feature-extraction"):
        return "direction"
    return "word" if task in ("text-generation", "text2text-generation", "fill-mask") else "label"


def lowest_agreement(recipe: Recipe, task: Task) -> float:
    """Share of decisions that must be PyTorch's (features: mean cosine)."""
    if recipe.optimize == "O3":
        return min(0.98, _LOWEST[recipe.precision][decision_of(task)])
    return _LOWEST[recipe.precision][decision_of(task)]


def judge(parity: dict[str, Any], recipe: Recipe) -> None:
    """Raise ParityError when what was found is outside the tolerance that it names."""
    limit, lowest = parity["tolerance"]["largest_absolute_difference"], parity["tolerance"]["agreement"]
    found = parity.get("largest_scaled_difference", parity["largest_absolute_difference"])
    if limit is not None and found > limit:
        raise ParityError(
            f"the {recipe.name} graph differs from PyTorch by {found:.2g} in a number of its answer "
            f"({parity['worst_case']}), allowed is {limit:g}: it is not written"
        )
    if parity["agreement"] < lowest:
        raise ParityError(
            f"the {recipe.name} graph decides as PyTorch in {parity['agreement']:.1%} of {parity['inputs']} inputs, "
            f"needed are {lowest:.0%}: it is not written; try another recipe"
        )


def tolerance(recipe: Recipe, task: Task) -> dict[str, float | None]:
    """What a manifest stores of it."""
    return {
        "largest_absolute_difference": largest_difference(recipe),
        "agreement": lowest_agreement(recipe, task),
    }
