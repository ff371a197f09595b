"""Training the candidates of a plan: what `fit` and `tune PLAN` share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from edgewise.errors import EdgewiseError, PlanError
from edgewise.progress import Progress, Reporter

if TYPE_CHECKING:
    from edgewise.data import Row, Splits
    from edgewise.metrics import Score
    from edgewise.plan import CandidateSpec, Plan, TuneSpec
    from edgewise.trainer import TuneResult


@dataclass(frozen=True)
class TrainedCandidate:
    """One candidate of a plan after `tune PLAN`."""

    name: str
    result: TuneResult | None
    """None when it failed, or when it came tuned."""
    path: Path | None
    """Of the tuned folder; None when it failed."""
    val: Mapping[str, Score] = field(default_factory=dict, hash=False)
    confirm: Mapping[str, Score] = field(default_factory=dict, hash=False)
    reason: str = ""
    """Why it failed."""


def needs_training(candidate: CandidateSpec) -> bool:
    """False for a candidate that is tuned already, or that is an ONNX folder."""
    from edgewise.plan import TuneSpec

    return isinstance(candidate.tune, TuneSpec) and candidate.tune.strategy != "none"


def spec_of(plan: Plan, candidate: CandidateSpec) -> TuneSpec:
    """How a candidate is tuned, its own metric's file looked for beside the plan; the defaults where it is not."""
    from msgspec.structs import replace

    from edgewise.metric_user import is_own
    from edgewise.plan import TuneSpec

    spec = candidate.tune if isinstance(candidate.tune, TuneSpec) else TuneSpec()
    if spec.metric is None or not is_own(spec.metric):
        return spec
    file, _, function = spec.metric.rpartition(":")
    return replace(spec, metric=f"{plan.resolve(file)}:{function}")


def train_candidate(
    plan: Plan,
    candidate: CandidateSpec,
    splits: Splits,
    out: Path,
    *,
    finished: Mapping[str, Path],
    val: Sequence[Row] = (),
    progress: Progress | None = None,
) -> TuneResult:
    """Fine-tune one candidate of a plan into `out`.

    finished: candidate -> tuned folder, of those that can be a teacher. val: rows to measure on while training;
    under early stopping the plan's own val rows are taken.
    """
    from edgewise.sources import local_folder, weights_digest
    from edgewise.trainer import tune

    assert candidate.from_ is not None
    assert needs_training(candidate)
    source = local_folder(candidate.from_, plan.resolve)
    spec = spec_of(plan, candidate)
    return tune(
        source,
        splits.train,
        splits.labels,
        spec,
        out=out,
        task=plan.task,
        problem_type=plan.data.problem_type,
        val=splits.val if spec.early_stopping else val,
        teacher=_teacher(spec.teacher, finished, plan),
        source_digest=weights_digest(source),
        progress=progress,
    )


def _teacher(name: str | None, finished: Mapping[str, Path], plan: Plan) -> Path | None:
    if name is None:
        return None
    if name in finished:
        return finished[name]
    if name in {c.name for c in plan.candidates}:
        raise PlanError(f"teacher {name!r} was not trained: see its own reason above")
    return plan.resolve(name)


def tune_plan(plan: Plan, splits: Splits, out: Path, say: Reporter) -> list[TrainedCandidate]:
    """Fine-tune every candidate of a plan and measure it on val and on confirm, in PyTorch.

    What cannot be is said of every candidate before the first one trains. A candidate that fails keeps its reason, and
    the others go on. Finished ones are found again.
    """
    done: list[TrainedCandidate] = []
    wrong = _what_cannot_be(plan, splits, say)
    for candidate in plan.candidates:
        if candidate.name in wrong:
            done.append(TrainedCandidate(candidate.name, None, None, reason=wrong[candidate.name]))
            continue
        finished = {d.name: d.path for d in done if d.path is not None}
        try:
            done.append(_tune_one(plan, candidate, splits, out, say, finished))
        except EdgewiseError as error:
            say.say(f"  {candidate.name} failed: {error}")
            done.append(TrainedCandidate(candidate.name, None, None, reason=str(error)))
    return done


def _what_cannot_be(plan: Plan, splits: Splits, say: Reporter) -> dict[str, str]:
    """Candidate -> why it cannot be trained, of those where that can be told before any training."""
    from edgewise.sources import local_folder
    from edgewise.trainer.start_checks import check_start

    wrong = {}
    for candidate in plan.candidates:
        if candidate.from_ is None or not needs_training(candidate):
            continue
        try:
            source = local_folder(candidate.from_, plan.resolve)
            spec = spec_of(plan, candidate)
            check_start(
                source, splits.train, splits.labels, spec,
                task=plan.task, problem_type=plan.data.problem_type, val=splits.val,
            )  # fmt: skip
        except EdgewiseError as error:
            say.say(f"  {candidate.name} cannot be trained: {error}")
            wrong[candidate.name] = str(error)
    return wrong


def _tune_one(
    plan: Plan, candidate: CandidateSpec, splits: Splits, out: Path, say: Reporter, finished: Mapping[str, Path]
) -> TrainedCandidate:
    from edgewise.sources import local_folder
    from edgewise.trainer import evaluate_checkpoint
    from edgewise.trainer.evaluation import metrics_for
    from edgewise.trainer.models import Goal

    if candidate.from_ is None:
        raise PlanError("an ONNX folder is not trained: `edgewise fit` measures it")
    result = None
    path = out / candidate.name
    if needs_training(candidate):
        with say.step(f"tune {candidate.name}"):
            result = train_candidate(plan, candidate, splits, path, finished=finished, progress=say.update)
        for warning in result.warnings:
            say.say(f"  {candidate.name}: {warning}")
    else:
        path = local_folder(candidate.from_, plan.resolve)
    spec = spec_of(plan, candidate)
    names = metrics_for(Goal(plan.task, splits.labels, plan.data.problem_type), spec.metric)

    def measure(part: str, rows: Sequence[Row]) -> dict[str, Score]:
        with say.step(f"measure {candidate.name} on {len(rows)} {part} rows"):
            return evaluate_checkpoint(
                path,
                rows,
                splits.labels,
                task=plan.task,
                problem_type=plan.data.problem_type,
                metrics=names,
                slices=plan.data.slices,
                max_length=spec.max_length,
            )

    return TrainedCandidate(
        candidate.name, result, path, measure("val", splits.val), measure("confirm", splits.confirm)
    )
