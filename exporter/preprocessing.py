"""What turns a text or an image into a graph's inputs: files that a bundle keeps of it, words of its manifest."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgewise.errors import CheckpointError
from edgewise.exporter.originals import padding_side, read_processor, read_tokenizer
from edgewise.prompting import PARAMETER
from edgewise.sources import PROCESSOR
from edgewise.types import IMAGE_TASKS, Task

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
"""What a bundle keeps of a tokenizer: tokenizer.json holds the vocabulary, so vocab.txt would be a second copy."""
MORE_TEMPLATES = "additional_chat_templates"
"""The folder of a tokenizer with several chat templates; its default one stands in chat_template.jinja."""


def write_preprocessor(source: Path, folder: Path, task: Task) -> None:
    """Write the tokenizer, or for images the processor's config, of a model folder into a bundle folder."""
    if task not in IMAGE_TASKS:
        write_tokenizer(source, folder, task)
    elif (source / PROCESSOR).is_file():
        read_processor(source)  # one that does not load is said here
        shutil.copyfile(source / PROCESSOR, folder / PROCESSOR)
    else:
        raise CheckpointError(f"{source} has no {PROCESSOR}: save it there with processor.save_pretrained(folder)")


def write_tokenizer(source: Path, folder: Path, task: Task = "text-classification") -> None:
    """Write the tokenizer as tokenizer.json (made from the slow one where there is no fast one) with its configs.

    Its padding side becomes that of the task: a classifier of GPT's kind is right with padding on the right only,
    since its positions count from the left.
    """
    tokenizer = read_tokenizer(source)
    if tokenizer.padding_side != padding_side(task):
        tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = padding_side(task)
    written = tokenizer.save_pretrained(folder)
    for file in map(Path, written):
        if file.name not in TOKENIZER_FILES and file.parent.name != MORE_TEMPLATES:
            file.unlink(missing_ok=True)


def read_preprocessing(
    folder: Path, config: dict[str, Any], graph_inputs: Sequence[str], task: Task = "text-classification"
) -> dict[str, Any]:
    """What the runtime needs to know of the tokenizer or the image processor in a bundle folder."""
    if task in IMAGE_TASKS:
        return {"processor": PROCESSOR, "inputs": list(graph_inputs)}
    tokenizer = read_tokenizer(folder)
    pad = config.get("pad_token_id")
    # A classifier of GPT's kind finds the end of a padded text by the id in its config.
    pad = tokenizer.pad_token_id if pad is None or not 0 <= pad < len(tokenizer) else pad
    found = {
        "tokenizer": "tokenizer.json",
        "max_length": text_limit(config, tokenizer),
        "pad_id": pad or 0,
        "inputs": list(graph_inputs),
    }
    prompt = prompt_length(config)
    return {**found, "prompt_tokens": prompt} if prompt else found


def prompt_length(config: dict[str, Any]) -> int:
    """Virtual tokens that the model puts before a text; 0 for one that was not prompt-tuned."""
    mark = config.get(PARAMETER) or {}
    return int(mark.get("tokens", 0))


def text_limit(config: dict[str, Any], tokenizer: Any) -> int | None:
    """Tokens that a text may have, special tokens included; None where nothing sets a limit."""
    limits = []
    for name in ("max_position_embeddings", "n_positions"):
        if config.get(name):
            limits.append(config[name] - _first_position(config))
    if not config.get("is_encoder_decoder"):  # their positions are relative
        limits = [limit - prompt_length(config) for limit in limits]
    if tokenizer.model_max_length and tokenizer.model_max_length < 1_000_000:  # transformers' 'unknown' is 1e30
        limits.append(tokenizer.model_max_length)
    return int(min(limits)) if limits else None


def _first_position(config: dict[str, Any]) -> int:
    """RoBERTa and its kin count positions from behind that of padding, and so have room for fewer."""
    kin = ("roberta", "xlm-roberta", "camembert", "roberta-prelayernorm", "mpnet")
    return int(config.get("pad_token_id") or 0) + 1 if config.get("model_type") in kin else 0
