"""Features of a pretrained model for a sample of rows: one forward pass, the hidden states of every layer, averaged
over each text's real tokens (each image's patches). Of a causal language model the same pass also gives the perplexity
of the texts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from edgewise.data import Row
from edgewise.errors import CheckpointError, DataError, PlanError
from edgewise.metric_scores import NoValueError, perplexity
from edgewise.progress import Progress
from edgewise.trainer.encode import pixel_batch, text_columns
from edgewise.trainer.models import (
    Goal,
    check_folder,
    cut_depth,
    first_line,
    is_fresh,
    load_processor,
    longest_input,
)
from edgewise.types import Task

_CAUSAL = ("ForCausalLM", "LMHeadModel")


@dataclass(frozen=True, eq=False)
class Features:
    """Pooled features of some rows, and what they cost."""

    values: Any
    """float32 [rows, (layers + 1) x width], in the order of the rows: the embeddings first, the last layer last. Every
    layer, because training can use what any of them holds: the last one of a deep model has often moved on."""
    width: int
    """Of one layer."""
    parameters: int
    """Of the model without a head, depth cut; of a language model with its head."""
    load_s: float
    forward_s: float
    """The pass over all rows, tokenizing included."""
    tokens: int
    """Real tokens that went through the model."""
    perplexity: float | None = None
    """Of the texts, token-weighted; None where the model is no causal language model."""
    bits_per_character: float | None = None
    """The same in a unit that models with other tokenizers share."""
    why_no_perplexity: str = ""


def pooled_features(
    source: str | Path,
    rows: Sequence[Row],
    *,
    task: Task = "text-classification",
    max_length: int = 64,
    keep_layers: Sequence[int] | None = None,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> Features:
    """Mean of the hidden states of every layer over each text's real tokens, in fp32, with dropout off.

    source: a folder or a hub id of an encoder, a decoder, or an encoder-decoder (of which the encoder is taken); for
    image classification, of a model of patches, and the mean is over all of them. Texts are cut to `max_length`
    tokens. keep_layers: a depth cut before the pass, as in `tune`.

    Raises DataError for no rows, CheckpointError for what transformers cannot load, PlanError for layers that are not
    there.
    """
    if not rows:
        raise DataError("no rows to make features of")
    start = perf_counter()
    model, processor, causal = _load(source, keep_layers, task)
    longest = None if task == "image-classification" else longest_input(model.config)
    if longest is not None and max_length > longest:
        raise PlanError(f"max_length is {max_length}, but {source} has {longest} positions: lower max_length")
    load_s = perf_counter() - start
    start = perf_counter()
    values: Any = None
    width = 0
    log_probability, scored, tokens = 0.0, 0, 0
    # texts of like length together: less padding
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].text) + len(rows[i].text_pair or ""))
    for done, first in enumerate(range(0, len(order), batch_size), 1):
        places = order[first : first + batch_size]
        batch = _encoded([rows[i] for i in places], processor, task, max_length)
        with torch.inference_mode():
            layers, logits = _forward(model, batch, causal)
            mask = batch.get("attention_mask", torch.ones(layers[-1].shape[:2], dtype=torch.int64))
            width = layers[-1].shape[-1]
            pooled = torch.cat([mean_of_real(hidden, mask) for hidden in layers], dim=1)
            if logits is not None:
                total, count = log_probabilities(logits, batch["input_ids"], mask)
                log_probability, scored = log_probability + total, scored + count
        if values is None:
            values = np.empty((len(rows), pooled.shape[1]), np.float32)
        values[places] = pooled.float().numpy()
        tokens += int(mask.sum())
        if progress:
            progress(min(done * batch_size, len(rows)), len(rows), "features")
    seconds = perf_counter() - start
    parameters = sum(p.numel() for p in model.parameters())
    characters = sum(len(r.text) + len(r.text_pair or "") for r in rows)
    return Features(
        values, width, parameters, load_s, seconds, tokens, *_language(causal, log_probability, scored, characters)
    )


def mean_of_real(hidden: Any, mask: Any) -> Any:
    """[batch, width] from hidden states [batch, length, width] and a mask [batch, length]; padding has no part."""
    weight = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)


def log_probabilities(logits: Any, ids: Any, mask: Any) -> tuple[float, int]:
    """(sum of the natural log-probabilities, tokens) of each real token but the first, given those before it.

    logits: [batch, length, vocabulary]; ids, mask: int64 [batch, length], padded on the right.
    """
    rest = mask[:, 1:].bool()
    losses = torch.nn.functional.cross_entropy(logits[:, :-1][rest].float(), ids[:, 1:][rest], reduction="sum")
    return -float(losses), int(rest.sum())


def _language(causal: bool, total: float, scored: int, characters: int) -> tuple[float | None, float | None, str]:
    if not causal:
        return None, None, "no causal language model"
    try:
        value = perplexity([total], [scored])
    except NoValueError as error:
        return None, None, str(error)
    return value, -total / math.log(2) / max(1, characters), ""


def _load(source: str | Path, keep_layers: Sequence[int] | None, task: Task) -> tuple[Any, Any, bool]:
    """(model in eval mode, tokenizer or image processor, whether it is a causal language model with its head)."""
    images = task == "image-classification"
    check_folder(Path(source), task)
    try:
        config = AutoConfig.from_pretrained(source)
        causal = not images and any(name.endswith(_CAUSAL) for name in config.architectures or ())
        kind = AutoModelForCausalLM if causal else AutoModel
        if is_fresh(source):
            torch.manual_seed(0)  # a config alone: random weights, the same ones each time
            model = kind.from_config(config, dtype=torch.float32)
        else:
            model = kind.from_pretrained(source, dtype=torch.float32, use_safetensors=True)
        processor = load_processor(source, Goal(task))
    except Exception as error:  # transformers raises many kinds
        raise CheckpointError(f"{source} does not load as a model for {task}: {first_line(error)}") from error
    if not images:
        if processor.pad_token_id is None:
            processor.pad_token = processor.eos_token or processor.unk_token
        processor.padding_side = "right"
    if keep_layers is not None:
        cut_depth(model, keep_layers)
    if model.config.is_encoder_decoder:
        model = model.get_encoder()
    return model.eval(), processor, causal


def _encoded(rows: Sequence[Row], processor: Any, task: Task, max_length: int) -> Any:
    """One batch of tensors."""
    if task == "image-classification":
        return {"pixel_values": pixel_batch(rows, processor)}
    return processor(*text_columns(rows), truncation=True, max_length=max_length, padding=True, return_tensors="pt")


def _forward(model: Any, batch: Any, causal: bool) -> tuple[list[Any], Any]:
    """(hidden states of the embeddings and of each layer, logits or None)."""
    kept = {k: v for k, v in batch.items() if not (causal and k == "token_type_ids")}
    if causal:
        out = model(**kept, output_hidden_states=True, use_cache=False)
        return list(out.hidden_states), out.logits
    out = model(**kept, output_hidden_states=True)
    # of some families the last of hidden_states stands before the last normalisation
    return [*out.hidden_states[:-1], out.last_hidden_state], None
