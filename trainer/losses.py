"""The Trainer with a loss of our own where a plan asks for class weights or a teacher."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch.nn import functional

from edgewise.data import Row
from edgewise.errors import PlanError
from edgewise.trainer.encode import IGNORED
from edgewise.trainer.models import Goal
from edgewise.trainer.watch import WatchedTrainer


class LossTrainer(WatchedTrainer):
    """A Trainer whose loss may weigh the classes and learn a teacher's answers."""

    def __init__(self, *, goal: Goal, weights: torch.Tensor | None, teacher: Any, temperature: float,
                 share: float, **kwargs: Any) -> None:  # fmt: skip
        super().__init__(**kwargs)
        self.goal, self.class_weights, self.teacher = goal, weights, teacher
        self.temperature, self.share = temperature, share
        if teacher is not None:
            teacher.to(self.args.device).eval()

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        if self.class_weights is None and self.teacher is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        outputs = model(**inputs)
        loss = outputs.loss
        if self.class_weights is not None:
            loss = weighted_loss(outputs.logits, inputs["labels"], self.class_weights.to(loss.device), self.goal)
        if self.teacher is not None:
            with torch.no_grad():
                answers = self.teacher(**inputs).logits
            taught = distillation_loss(outputs.logits, answers, inputs["labels"], self.goal, self.temperature)
            loss = (1 - self.share) * loss + self.share * taught
        return (loss, outputs) if return_outputs else loss


def weighted_loss(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor, goal: Goal) -> torch.Tensor:
    """Cross entropy with one weight a class: the weighted mean over the rows (or words), as in torch.

    logits: [..., classes]; labels: [...] int, -100 ignored; or [rows, classes] of 0 and 1 (multi-label), where the
    weight multiplies the binary cross entropy of its label.
    """
    if goal.multi_label:
        return functional.binary_cross_entropy_with_logits(logits, labels.float(), weight=weights)
    return functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), labels.reshape(-1), weights, ignore_index=IGNORED
    )


def distillation_loss(
    student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor, goal: Goal, temperature: float
) -> torch.Tensor:
    """T^2 KL(teacher || student) of the softened answers, mean over rows or tokens (Hinton et al., arXiv:1503.02531).

    student, teacher: logits [..., classes]. Tokens whose label is -100 are left out; those of a causal language model
    are shifted, as its labels are. Regression: mean squared difference; multi-label: the binary form.
    """
    if goal.regression:
        return functional.mse_loss(student, teacher)
    if goal.multi_label:
        return functional.binary_cross_entropy_with_logits(student, torch.sigmoid(teacher))
    if goal.task == "text-generation":
        student, teacher, labels = student[:, :-1], teacher[:, :-1], labels[:, 1:]
    told = functional.softmax(teacher / temperature, -1)
    said = functional.log_softmax(student / temperature, -1)
    each = functional.kl_div(said, told, reduction="none").sum(-1)
    kept = labels != IGNORED
    return temperature**2 * each[kept].mean()


def class_weights(
    given: Literal["balanced"] | Mapping[str, float] | None, rows: Sequence[Row], goal: Goal
) -> torch.Tensor | None:
    """Weights in the order of the labels, float32 [labels]; balanced: rows / (classes x rows of the class).

    Raises PlanError for a task without classes or a label that the data does not have.
    """
    if given is None:
        return None
    if goal.outputs is None or goal.regression:
        raise PlanError(f"class_weights need classes; {goal.task} ({goal.problem_type}) has none")
    if given == "balanced":
        counts = Counter(label for row in rows for label in _labels_of(row, goal))
        total = sum(counts.values())
        return torch.tensor([total / (len(goal.labels) * max(1, counts[label])) for label in goal.labels])
    assert not isinstance(given, str)
    unknown = sorted(set(given) - set(goal.labels))
    if unknown:
        raise PlanError(f"class_weights names {unknown}, which are not among the labels {list(goal.labels)}")
    return torch.tensor([float(given.get(label, 1.0)) for label in goal.labels])


def _labels_of(row: Row, goal: Goal) -> Sequence[str]:
    if goal.task == "token-classification":
        return row.tags or ()
    return row.labels or () if goal.multi_label else (str(row.label),)
