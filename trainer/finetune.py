"""`tune`: a pretrained checkpoint becomes a fine-tuned one."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

import msgspec
import torch
from transformers import DataCollatorWithPadding, Trainer, TrainerCallback, TrainingArguments, set_seed

from edgewise.data import Row, digest_rows
from edgewise.errors import DataError, TrainingError
from edgewise.files import digest_json, new_folder, write_json
from edgewise.plan import TuneSpec
from edgewise.trainer.models import DEFAULT_LEARNING_RATE, load_classifier, merged

RECORD = "tune.json"
"""Beside the model: what it was made from, and what training reported."""

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class TuneResult:
    """A fine-tuned checkpoint and how it was made."""

    path: Path
    strategy: str
    seconds: float
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
    reused: bool = False
    """True when a finished training with the same key stood there."""


def tune(
    source: str | Path,
    rows: Sequence[Row],
    labels: Sequence[str],
    spec: TuneSpec,
    *,
    out: str | Path,
    source_digest: str = "",
    progress: Progress | None = None,
) -> TuneResult:
    """Fine-tune `source` on labelled rows and save a Hugging Face folder at `out`.

    source: a folder or a hub id. labels: in the order of the model's outputs.
    source_digest: hash of the source's weights, so that another checkpoint at the same path is trained anew.
    progress: called as (step, steps, what).

    Raises DataError, CheckpointError or PlanError before training starts, TrainingError when the loss is not finite.
    """
    folder = Path(out)
    _check_rows(rows, labels)
    key = tune_key(source, rows, labels, spec, source_digest)
    if (found := _finished(folder, key)) is not None:
        return found
    _quiet()
    set_seed(spec.seed)  # the fresh head is drawn at loading
    model, tokenizer = load_classifier(source, labels, spec)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    with new_folder(folder) as work, tempfile.TemporaryDirectory() as scratch:
        trainer = Trainer(
            model=model,
            args=_arguments(spec, Path(scratch)),
            train_dataset=_Encoded(rows, labels, tokenizer, spec.max_length),
            data_collator=DataCollatorWithPadding(tokenizer),
            callbacks=[_Watch(progress, f"{spec.strategy}, {len(rows)} rows")],
        )
        trainer.remove_callback(_printer())
        start = perf_counter()
        done = trainer.train()
        seconds = perf_counter() - start
        plain = merged(model).cpu()
        plain.save_pretrained(work)
        tokenizer.save_pretrained(work)
        result = TuneResult(
            path=folder,
            strategy=spec.strategy,
            seconds=seconds,
            steps=done.global_step,
            rows=len(rows),
            train_loss=float(done.training_loss),
            trainable_parameters=trainable,
            parameters=sum(p.numel() for p in plain.parameters()),
            seed=spec.seed,
            device=str(trainer.args.device),
            key=key,
        )
        write_json(work / RECORD, {**asdict(result), "path": str(folder), "spec": msgspec.to_builtins(spec)})
    return result


def tune_key(
    source: str | Path, rows: Sequence[Row], labels: Sequence[str], spec: TuneSpec, source_digest: str = ""
) -> str:
    """Hash of what a fine-tuned checkpoint is made from."""
    return digest_json(
        {
            "source": source_digest or str(source),
            "rows": digest_rows(rows),
            "labels": list(labels),
            "spec": msgspec.to_builtins(spec),
            "tools": {name: version(name) for name in ("torch", "transformers", "peft")},
        }
    )


def _finished(folder: Path, key: str) -> TuneResult | None:
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if record.get("key") != key:
        return None
    record.pop("spec", None)
    return replace(TuneResult(**record), path=folder, reused=True)


def _check_rows(rows: Sequence[Row], labels: Sequence[str]) -> None:
    if not rows:
        raise DataError("no rows to train on")
    missing = {r.label for r in rows} - set(labels)
    if missing:
        raise DataError(f"train has labels {sorted(map(str, missing))} that are not among {list(labels)}")
    if len(labels) < 2 or len({r.label for r in rows}) < 2:
        raise DataError(f"train has one class only, {rows[0].label!r}: a classifier needs two")


def _arguments(spec: TuneSpec, folder: Path) -> TrainingArguments:
    gpu = torch.cuda.is_available()
    return TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=spec.epochs,
        per_device_train_batch_size=spec.batch_size,
        learning_rate=spec.learning_rate or DEFAULT_LEARNING_RATE[spec.strategy],
        warmup_ratio=spec.warmup,
        weight_decay=spec.weight_decay,
        seed=spec.seed,
        use_cpu=not gpu,
        bf16=gpu and torch.cuda.is_bf16_supported(),
        save_strategy="no",
        logging_steps=10,
        logging_nan_inf_filter=False,  # a NaN loss must be seen, not averaged away
        report_to=[],
        disable_tqdm=True,
        dataloader_num_workers=0,
        dataloader_pin_memory=gpu,
        remove_unused_columns=False,
    )


class _Encoded(torch.utils.data.Dataset):
    """Rows as token ids, tokenized once; padding is left to the collator."""

    def __init__(self, rows: Sequence[Row], labels: Sequence[str], tokenizer: Any, max_length: int) -> None:
        pairs = [r.text_pair for r in rows]
        encoded = tokenizer(
            [r.text for r in rows],
            [p or "" for p in pairs] if any(p is not None for p in pairs) else None,
            truncation=True,
            max_length=max_length,
        )
        index = {label: i for i, label in enumerate(labels)}
        self.items = [
            {**{k: encoded[k][i] for k in encoded}, "labels": index[str(r.label)]} for i, r in enumerate(rows)
        ]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return self.items[i]


class _Watch(TrainerCallback):
    """Tells how far training is, and stops it when the loss is no number."""

    def __init__(self, progress: Progress | None, what: str) -> None:
        self.progress, self.what, self.loss = progress, what, float("nan")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.progress:
            loss = "" if math.isnan(self.loss) else f", loss {self.loss:.3f}"
            self.progress(state.global_step, state.max_steps, self.what + loss)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        loss = (logs or {}).get("loss")
        if loss is None:
            return
        if not math.isfinite(loss):
            rate = (logs or {}).get("learning_rate", args.learning_rate)
            raise TrainingError(
                f"the loss is {loss} at step {state.global_step} with learning rate {rate:.2g}: "
                "try a lower learning_rate, more warmup, or another seed"
            )
        self.loss = loss


def _printer() -> Any:
    from transformers.trainer_callback import PrinterCallback

    return PrinterCallback


def _quiet() -> None:
    """A fresh head on a pretrained body is what fine-tuning means; transformers need not warn of it."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
