"""`pretrain`: raw text or images become a pretrained checkpoint, by one of five objectives."""

from __future__ import annotations

import math
import shutil
from dataclasses import asdict, replace
from glob import escape
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from transformers import TrainingArguments, set_seed

from edgewise.errors import CheckpointError, DataError, PlanError, TrainingError
from edgewise.files import check_out, new_folder, write_json
from edgewise.progress import Progress
from edgewise.trainer.checkpoints import EVERY_SECONDS, SaveByTime, last_checkpoint, training_folder
from edgewise.trainer.corpus import Corpus, hold_out
from edgewise.trainer.draws import Drawn, Prepared, collate, val_parts
from edgewise.trainer.objectives import prepare_images, prepare_text
from edgewise.trainer.pretrain_images import Images, hold_out_images, pixels
from edgewise.trainer.pretrain_record import RECORD, Done, cleaned, finished, run_key, summarize
from edgewise.trainer.pretrain_spec import (
    LEARNING_RATE_CONTINUED,
    LEARNING_RATE_FRESH,
    PretrainResult,
    PretrainSpec,
)
from edgewise.trainer.pretrain_start import Start, start
from edgewise.trainer.watch import WatchedTrainer, quiet, training_arguments


def pretrain(
    data: Corpus | Images,
    spec: PretrainSpec,
    *,
    out: str | Path,
    source: str | Path | None = None,
    config: str | Path | None = None,
    tokenizer: str | Path | None = None,
    progress: Progress | None = None,
    checkpoint_seconds: float = EVERY_SECONDS,
) -> PretrainResult:
    """Pretrain on raw text or images and save a Hugging Face folder at `out`, which `tune` takes as its source.

    source: a checkpoint folder to go on from. config: a config.json to start from; without either, the model is built
    from `spec.size`. tokenizer: a folder; without one and without a source, a tokenizer is trained on `data`.
    progress: called as (step, steps, what). checkpoint_seconds: time between checkpoints, which a killed run goes on
    from when it is started again.

    A finished run with the same key at `out` is handed back as it is.

    Raises DataError, CheckpointError or PlanError before training starts, TrainingError when the loss is not finite.
    """
    folder = Path(out)
    places = {"source": source, "config": config, "tokenizer": tokenizer}
    given = {name: Path(place) if place is not None else None for name, place in places.items()}
    if given["config"] is not None and given["config"].is_dir():
        given["config"] /= "config.json"
    _check_data(data, spec)
    key = run_key(data, spec, given)
    if (found := finished(folder, key)) is not None:
        return found
    check_out(folder, RECORD, list(given.values()))
    quiet()
    work = training_folder(folder, key)
    train, val = _parts(data, spec)
    if spec.objective != "mim" and (work / "tokenizer").is_dir():
        given["tokenizer"] = work / "tokenizer"  # the one that the killed run trained
    set_seed(spec.seed)  # fresh weights are drawn next
    begun = start(spec, **given, documents=train if isinstance(data, Corpus) else ())
    prepared = _prepare(spec, begun, train, val)
    warnings = _check_unknown(prepared)
    try:
        if isinstance(data, Corpus) and given["source"] is None and given["tokenizer"] is None:
            with new_folder(work / "tokenizer") as place:
                begun.processor.save_pretrained(place)
        done = _train(spec, begun, prepared, work, progress, checkpoint_seconds)
    except BaseException as error:
        # nothing to go on from, or from where it would end in the same place
        if isinstance(error, TrainingError) or last_checkpoint(work) is None:
            shutil.rmtree(work, ignore_errors=True)
        raise
    result = replace(summarize(spec, begun, prepared, done, folder, key, len(train)), warnings=warnings)
    with new_folder(folder) as place:
        model = begun.model.cpu()
        model.save_pretrained(place, state_dict={**model.state_dict(), **begun.carried})
        begun.processor.save_pretrained(place)
        record = {**asdict(result), "path": str(folder), "spec": asdict(spec), "cleaned": cleaned(data)}
        write_json(place / RECORD, record)
    for left in folder.parent.glob(f".{escape(folder.name)}.*.training"):
        shutil.rmtree(left, ignore_errors=True)
    return result


def _train(
    spec: PretrainSpec,
    begun: Start,
    prepared: Prepared,
    work: Path,
    progress: Progress | None,
    checkpoint_seconds: float,
) -> Done:
    steps = spec.steps or max(1, math.ceil(round(spec.epochs * len(prepared.train)) / spec.batch_size))
    count = steps * spec.batch_size if spec.steps else max(1, round(spec.epochs * len(prepared.train)))
    rate = spec.learning_rate or (LEARNING_RATE_FRESH if begun.fresh == ("all",) else LEARNING_RATE_CONTINUED)
    kept = last_checkpoint(work)
    trainer = _InOrder(
        prepared,
        progress=progress,
        what=f"{spec.objective}, {len(prepared.train)} examples",
        losses=kept.losses if kept else (),
        model=begun.model,
        args=_arguments(spec, rate, steps, work),
        train_dataset=Drawn(prepared, count, spec.seed),
        data_collator=lambda items: collate(items, prepared.pads),
    )
    trainer.add_callback(SaveByTime(trainer.losses, checkpoint_seconds))
    before = val_parts(begun.model, prepared, spec.batch_size, spec.seed)
    begin = perf_counter()
    trainer.train(resume_from_checkpoint=str(kept.path) if kept else None)
    seconds = perf_counter() - begin
    after = val_parts(begun.model, prepared, spec.batch_size, spec.seed)
    return Done(tuple(trainer.losses), before, after, seconds, str(trainer.args.device))


class _InOrder(WatchedTrainer):
    """Takes the examples in the order that `Drawn` gives them."""

    def __init__(self, prepared: Prepared, **options: Any) -> None:
        super().__init__(**options)
        self.loss_of = prepared.loss

    def _get_train_sampler(self, *_: Any) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)

    def compute_loss(self, model: Any, inputs: Any, **options: Any) -> Any:
        return self.loss_of(model, inputs) if self.loss_of else super().compute_loss(model, inputs, **options)


def _arguments(spec: PretrainSpec, rate: float, steps: int, folder: Path) -> TrainingArguments:
    return training_arguments(
        folder,
        num_train_epochs=1,  # `Drawn` holds the examples of all epochs
        per_device_train_batch_size=spec.batch_size,
        learning_rate=rate,
        warmup_steps=round(spec.warmup * steps),
        weight_decay=spec.weight_decay,
        seed=spec.seed,
    )


def _check_data(data: Corpus | Images, spec: PretrainSpec) -> None:
    if (spec.objective == "mim") != isinstance(data, Images):
        wanted = "images" if spec.objective == "mim" else "text"
        raise DataError(f"{data.source}: {spec.objective} trains on {wanted}")
    if spec.whole_word and spec.objective not in ("mlm", "nsp"):
        raise PlanError(f"whole_word masks words, which {spec.objective} does not; leave it out")
    if spec.mask_patch is not None and spec.objective != "mim":
        raise PlanError(f"mask_patch hides squares of images, and {spec.objective} reads text; leave it out")
    if spec.mean_span != PretrainSpec.mean_span and spec.objective != "span":
        raise PlanError(f"mean_span is of the spans that span hides, not of {spec.objective}; leave it out")


def _parts(data: Corpus | Images, spec: PretrainSpec) -> tuple[Any, Any]:
    return hold_out(data, spec.val_share) if isinstance(data, Corpus) else hold_out_images(data, spec.val_share)


def _prepare(spec: PretrainSpec, begun: Start, train: Any, val: Any) -> Prepared:
    if spec.objective != "mim":
        return prepare_text(spec, begun.model, begun.processor, train, val)
    images = [pixels(part, begun.processor) for part in (train, val)]
    side = begun.model.config.image_size
    if images[0].shape[1:3] != (side, side):
        raise CheckpointError(f"the image processor makes {images[0].shape[1:3]} pixels, and the model reads {side}")
    return prepare_images(spec, begun.model.config, begun.processor, *images)


def _check_unknown(prepared: Prepared) -> tuple[str, ...]:
    """A tokenizer that knows little of the text is worth a warning; one that knows less than half cannot teach it."""
    share = prepared.unknown / max(prepared.tokens, 1)
    text = f"the tokenizer does not know {share:.0%} of the tokens of this text"
    remedy = "let a tokenizer be trained on it, or take a checkpoint made for this language"
    if share > 0.5:
        raise DataError(f"{text}: {remedy}")
    return (f"{text}: {remedy}",) if share > 0.05 else ()
