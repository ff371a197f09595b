"""`tune`: a pretrained checkpoint becomes a fine-tuned one."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from time import perf_counter
from typing import Any

import msgspec
from transformers import TrainingArguments, set_seed

from edgewise.data import Row, digest_rows
from edgewise.errors import CheckpointError, TrainingError
from edgewise.files import check_out, digest_json, new_folder, sha256_file, write_json
from edgewise.metric_user import is_own, own_file
from edgewise.metrics import Score
from edgewise.plan import TuneSpec
from edgewise.progress import Progress
from edgewise.trainer.checkpoints import (
    EVERY_SECONDS,
    SaveByTime,
    last_checkpoint,
    read_record,
    training_folder,
)
from edgewise.trainer.encode import collator, encode
from edgewise.trainer.evaluation import evaluate, metrics_for
from edgewise.trainer.losses import LossTrainer, class_weights
from edgewise.trainer.memory import PeakMemory
from edgewise.trainer.models import Goal, auto_class, cut_depth, is_fresh, load_model, load_tuned
from edgewise.trainer.row_checks import check_rows
from edgewise.trainer.start_checks import check_fit, check_spec
from edgewise.trainer.strategies import DEFAULT_LEARNING_RATE, merged, prepare, trainable_parameters
from edgewise.trainer.watch import BestEpoch, plain, precision_name, quiet, training_arguments
from edgewise.types import ProblemType, Task

RECORD = "tune.json"
"""Beside the model: what it was made from, and what training reported."""


@dataclass(frozen=True)
class TuneResult:
    """A fine-tuned checkpoint and how it was made."""

    path: Path
    strategy: str
    seconds: float
    """Wall time of training, without loading and saving; after a resumption, of its last part."""
    steps: int
    rows: int
    train_loss: float
    """Mean over all steps."""
    trainable_parameters: int
    parameters: int
    """Of the model as saved: depth cut, LoRA merged."""
    seed: int
    device: str
    key: str
    """Hash of source, rows, labels, options and versions."""
    metrics: Mapping[str, float] = field(default_factory=dict, hash=False)
    """On the val rows, where they were given; of the best epoch under early stopping."""
    epochs: float = 0.0
    """That were run; fewer than planned where training stopped early."""
    peak_memory: int | None = None
    """Bytes: the largest RSS of this process while training; on a GPU the largest allocation there. None where the
    system does not tell."""
    precision: str = "fp32"
    """Of the arithmetic: fp32, or bf16 or fp16 on a GPU. The weights are saved in fp32."""
    warnings: tuple[str, ...] = ()
    reused: bool = False
    """True when a finished training with the same key stood there."""


def tune(
    source: str | Path,
    rows: Sequence[Row],
    labels: Sequence[str],
    spec: TuneSpec,
    *,
    out: str | Path,
    task: Task = "text-classification",
    problem_type: ProblemType = "single_label_classification",
    val: Sequence[Row] = (),
    teacher: str | Path | None = None,
    source_digest: str = "",
    checkpoint_seconds: float = EVERY_SECONDS,
    progress: Progress | None = None,
) -> TuneResult:
    """Fine-tune `source` on rows of the task and save a Hugging Face folder at `out`.

    source: a folder or a hub id; a folder with a config and no weights is initialised at random.
    labels: in the order of the model's outputs; () for language models and regression.
    val: rows for the metrics and for early stopping.
    teacher: a tuned folder for the same task and labels; its answers are learned too (spec.teacher_weight).
    source_digest: hash of the source's weights, so that another checkpoint at the same path is trained anew.
    checkpoint_seconds: time between two checkpoints; a killed training goes on from the last one.
    progress: called as (step, steps, what).

    Raises DataError, CheckpointError or PlanError before training starts, TrainingError when the loss is not finite.
    """
    folder = Path(out)
    goal = Goal(task, tuple(labels), problem_type)
    auto_class(task)
    check_rows(rows, goal, "train")
    check_rows(val, goal, "val")
    key = tune_key(source, rows, spec, goal, source_digest=source_digest, val=val, teacher=teacher)
    if (found := _finished(folder, key)) is not None:
        return found
    check_out(folder, RECORD, [Path(source), Path(teacher) if teacher is not None else None])
    check_spec(spec, teacher, val, goal)
    quiet()
    set_seed(spec.seed)  # the fresh head is drawn at loading
    model, processor = load_model(source, goal)
    if spec.keep_layers is not None:
        cut_depth(model, spec.keep_layers)
    warnings = check_fit(model, processor, rows, spec, goal, fresh=is_fresh(source))
    model = prepare(model, processor, spec, goal)
    trainable = trainable_parameters(model)
    master = _teacher(teacher, processor, goal) if teacher is not None else None
    work = training_folder(folder, key)
    training = _Training(model, processor, spec, goal, rows, val, master, work, checkpoint_seconds, progress)
    try:
        done = training.run()
    except BaseException as error:
        if isinstance(error, TrainingError) or last_checkpoint(work) is None:
            shutil.rmtree(work, ignore_errors=True)  # nothing to go on from
        raise
    with new_folder(folder) as new:
        parameters = _save(model, processor, new, spec)
        result = TuneResult(
            path=folder,
            strategy=spec.strategy,
            rows=len(rows),
            trainable_parameters=trainable,
            parameters=parameters,
            seed=spec.seed,
            key=key,
            warnings=(*warnings, *training.warnings),
            **done,
        )
        write_json(new / RECORD, {**asdict(result), "path": str(folder), "spec": msgspec.to_builtins(spec)})
    shutil.rmtree(work, ignore_errors=True)
    return result


def tune_key(
    source: str | Path,
    rows: Sequence[Row],
    spec: TuneSpec,
    goal: Goal,
    *,
    source_digest: str = "",
    val: Sequence[Row] = (),
    teacher: str | Path | None = None,
) -> str:
    """Hash of what a fine-tuned checkpoint is made from."""
    return digest_json(
        {
            "source": source_digest or str(source),
            "rows": digest_rows(rows),
            "val": digest_rows(val),
            "labels": list(goal.labels),
            "goal": [goal.task, goal.problem_type],
            "teacher": _teacher_key(teacher),
            "spec": {k: v for k, v in msgspec.to_builtins(spec).items() if k != "teacher"},
            "tools": {name: version(name) for name in ("torch", "transformers", "peft")},
            **_metric_key(spec),
        }
    )


def _metric_key(spec: TuneSpec) -> dict[str, str]:
    """A user's own metric is another one when its file is another one."""
    if spec.metric is None or not is_own(spec.metric):
        return {}
    return {"metric": sha256_file(own_file(spec.metric))}


def _teacher_key(teacher: str | Path | None) -> str | None:
    from edgewise.sources import weights_digest

    if teacher is None:
        return None
    return weights_digest(Path(teacher)) if Path(teacher).is_dir() else str(teacher)


def _finished(folder: Path, key: str) -> TuneResult | None:
    record = read_record(folder / RECORD, key)
    if record is None:
        return None
    record.pop("spec", None)
    record["warnings"] = tuple(record.get("warnings", ()))
    return replace(TuneResult(**record), path=folder, reused=True)


def _teacher(folder: str | Path, processor: Any, goal: Goal) -> Any:
    """The teacher in evaluation mode. It reads the student's inputs, so the two must mean the same by them."""
    model, own = load_tuned(folder, goal)
    same = own.to_dict() == processor.to_dict() if goal.task == "image-classification" else (
        own.get_vocab() == processor.get_vocab()
    )  # fmt: skip
    if not same:
        raise CheckpointError(
            f"teacher {folder} reads its inputs otherwise than the student (another vocabulary, or other image "
            "sizes): distillation needs the same tokenizer or image processor"
        )
    return model


def _save(model: Any, processor: Any, folder: Path, spec: TuneSpec) -> int:
    """Write a plain Hugging Face folder; returns the number of parameters in it."""
    plain = merged(model).cpu()
    for parameter in plain.parameters():
        parameter.requires_grad = True  # what the strategy froze is nothing that a folder tells
    if spec.strategy == "prompt":
        from edgewise.prompts import save_prompt

        save_prompt(plain, folder)
    else:
        plain.save_pretrained(folder)
    processor.save_pretrained(folder)
    return sum(p.numel() for p in plain.parameters())


@dataclass
class _Training:
    """One run of the Trainer: what its parts share."""

    model: Any
    processor: Any
    spec: TuneSpec
    goal: Goal
    rows: Sequence[Row]
    val: Sequence[Row]
    teacher: Any
    work: Path
    checkpoint_seconds: float
    progress: Progress | None
    warnings: list[str] = field(default_factory=list)
    """Metrics that had no value in the end."""

    def evaluate(self) -> dict[str, Score]:
        return evaluate(
            self.model, self.processor, self.val, self.goal,
            max_length=self.spec.max_length, batch_size=self.spec.batch_size,
            metrics=metrics_for(self.goal, self.spec.metric),
        )  # fmt: skip

    def run(self) -> dict[str, Any]:
        spec = self.spec
        found = last_checkpoint(self.work)
        best = BestEpoch(self.work, self.evaluate, spec.early_stopping) if spec.early_stopping else None
        trainer = LossTrainer(
            goal=self.goal,
            weights=class_weights(spec.class_weights, self.rows, self.goal),
            teacher=self.teacher,
            temperature=spec.temperature,
            share=spec.teacher_weight,
            progress=self.progress,
            what=f"{spec.strategy}, {len(self.rows)} rows",
            losses=found.losses if found else (),
            model=self.model,
            args=_arguments(spec, self.work),
            train_dataset=encode(self.rows, self.goal, self.processor, spec.max_length),
            data_collator=collator(self.goal, self.processor),
            # The best epoch is noted before a checkpoint is written, so that a resumed training knows of it.
            callbacks=[best] if best else [],
        )
        trainer.add_callback(SaveByTime(trainer.losses, self.checkpoint_seconds))
        start = perf_counter()
        with PeakMemory(trainer.args.device) as memory:
            trainer.train(resume_from_checkpoint=str(found.path) if found else None)
        seconds = perf_counter() - start
        if best is not None:
            best.restore(self.model)
        return {
            "seconds": seconds,
            "steps": trainer.state.global_step,
            "epochs": float(trainer.state.epoch or 0.0),
            "train_loss": fmean(trainer.losses),
            "device": str(trainer.args.device),
            "precision": precision_name(trainer.args),
            "peak_memory": memory.peak,
            "metrics": (best.metrics if best else self._measured()) if self.val else {},
        }

    def _measured(self) -> dict[str, float]:
        found = self.evaluate()
        self.warnings += [f"no {s.name} on the val rows: {s.why}" for s in found.values() if s.value is None]
        return plain(found)


def _arguments(spec: TuneSpec, folder: Path) -> TrainingArguments:
    return training_arguments(
        folder,
        num_train_epochs=spec.epochs,
        per_device_train_batch_size=spec.batch_size,
        learning_rate=spec.learning_rate or DEFAULT_LEARNING_RATE[spec.strategy],
        warmup_ratio=spec.warmup,
        weight_decay=spec.weight_decay,
        seed=spec.seed,
    )
