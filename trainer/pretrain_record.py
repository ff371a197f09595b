"""The record of a pretraining run: its key, its figures, and a finished run found again."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

from edgewise.files import digest_json, sha256_file
from edgewise.sources import weights_digest
from edgewise.trainer.checkpoints import read_record
from edgewise.trainer.corpus import Corpus
from edgewise.trainer.draws import Prepared
from edgewise.trainer.pretrain_images import Images
from edgewise.trainer.pretrain_spec import PretrainResult, PretrainSpec
from edgewise.trainer.pretrain_start import Start

RECORD = "pretrain.json"
"""Beside the model: what it was made from, and what training reported."""
TOOLS = ("torch", "transformers", "tokenizers", "numpy")
CURVE = 100
"""Points of the training loss in the record, at most."""


@dataclass(frozen=True)
class Done:
    """What training reported."""

    losses: tuple[float, ...]
    """Of every step."""
    before: Mapping[str, float]
    after: Mapping[str, float]
    seconds: float
    device: str


def run_key(data: Corpus | Images, spec: PretrainSpec, given: Mapping[str, Path | None]) -> str:
    """Hash of what a pretrained checkpoint is made from."""
    source, config, tokenizer = given["source"], given["config"], given["tokenizer"]
    return digest_json(
        {
            "data": data.digest,
            "spec": asdict(spec),
            "source": weights_digest(source) if source else None,
            "config": sha256_file(config) if config and config.is_file() else None,
            "tokenizer": [sha256_file(f) for f in sorted(tokenizer.glob("*.json"))] if tokenizer else None,
            "tools": {name: version(name) for name in TOOLS},
        }
    )


def finished(folder: Path, key: str) -> PretrainResult | None:
    record = read_record(folder / RECORD, key)
    if record is None:
        return None
    record = {name: value for name, value in record.items() if name not in ("spec", "cleaned")}
    for name in ("losses", "fresh", "warnings"):  # JSON knows no tuples
        record[name] = tuple(tuple(v) if isinstance(v, list) else v for v in record[name])
    found = PretrainResult(**record)
    return replace(found, path=folder, reused=True)


def summarize(
    spec: PretrainSpec, begun: Start, prepared: Prepared, done: Done, folder: Path, key: str, documents: int
) -> PretrainResult:
    nll = next((v for name, v in done.after.items() if name not in ("pairs", "patches")), None)
    return PretrainResult(
        path=folder,
        objective=spec.objective,
        model_type=begun.model.config.model_type,
        steps=len(done.losses),
        documents=documents,
        examples=len(prepared.train),
        val_examples=len(prepared.val),
        tokens=prepared.tokens,
        unknown_share=prepared.unknown / max(prepared.tokens, 1),
        train_loss=sum(done.losses) / len(done.losses),
        losses=_curve(done.losses),
        val_loss=sum(done.after.values()) if done.after else None,
        val_loss_before=sum(done.before.values()) if done.before else None,
        val_parts=dict(done.after),
        val_perplexity=math.exp(min(nll, 700)) if nll is not None else None,
        parameters=begun.model.num_parameters(),
        fresh=begun.fresh,
        seconds=done.seconds,
        seed=spec.seed,
        device=done.device,
        versions={name: version(name) for name in TOOLS},
        key=key,
    )


def _curve(losses: tuple[float, ...]) -> tuple[tuple[int, float], ...]:
    every = max(1, math.ceil(len(losses) / CURVE))
    ends = [*range(every, len(losses), every), len(losses)]
    starts = [0, *ends[:-1]]
    return tuple((b, sum(losses[a:b]) / (b - a)) for a, b in zip(starts, ends, strict=True))


def cleaned(data: Corpus | Images) -> dict[str, int]:
    if isinstance(data, Images):
        return {"images": len(data.items), "duplicates": data.duplicates}
    return {
        "documents": len(data.documents),
        "characters": data.characters,
        "control_characters_removed": data.controls,
        "empty_rows": data.empty,
        "duplicates": data.duplicates,
    }
