"""The PyTorch side: the model that is exported and compared with, and what prepares its inputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from edgewise.errors import CheckpointError
from edgewise.exporter.checkpoint import Checkpoint
from edgewise.prompts import load_prompted
from edgewise.types import EXPORT_CLASSES, Task


def load_original(source: Checkpoint, task: Task) -> Any:
    """The checkpoint as a float32 transformers model in eval mode, with its prompt where it was prompt-tuned.

    Raises CheckpointError for what does not load, or a classifier that cannot tell padding from text.
    """
    import torch
    import transformers

    try:
        auto = getattr(transformers, EXPORT_CLASSES[task])
        model = load_prompted(
            source.path,
            auto,
            dtype=torch.float32,
            use_safetensors=not source.allow_pickle,
            trust_remote_code=source.trust_remote_code,
        ).eval()
    except CheckpointError:
        raise
    except Exception as error:  # transformers raises many kinds
        first = " ".join(str(error).split())[:300] or type(error).__name__
        raise CheckpointError(f"{source.path} does not load as a model for {task}: {first}") from error
    if task == "text-classification" and model.config.pad_token_id is None:
        model.config.pad_token_id = _padding(source)
    return model


def _padding(source: Checkpoint) -> int:
    """The tokenizer's padding token: a GPT-like classifier finds the last token of a padded text by it."""
    found = read_tokenizer(source.path).pad_token_id
    if found is None:
        raise CheckpointError(
            f"{source.path} has no padding token, in config.json nor in its tokenizer, so that texts of different "
            "length cannot go through it together: set tokenizer.pad_token and model.config.pad_token_id, save both"
        )
    return int(found)


def padding_side(task: Task) -> Literal["left", "right"]:
    """Generation goes on at the end of a row, so its padding stands on the left; everything else pads on the right."""
    return "left" if task == "text-generation" else "right"


def read_tokenizer(folder: Path) -> Any:
    """The folder's tokenizer, in its fast form. Raises CheckpointError."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=True)
    except Exception as error:  # transformers raises many kinds
        raise CheckpointError(f"{folder}: its tokenizer does not load: {error}") from error
    if not tokenizer.is_fast:
        raise CheckpointError(f"{folder}: its tokenizer has no fast form, which the runtime needs")
    if tokenizer.pad_token_id is None and (pad := _config_padding(folder)) is not None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)
    return tokenizer


def _config_padding(folder: Path) -> int | None:
    """The padding id that the model was trained with, for a tokenizer that names none (GPT-2's)."""
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("pad_token_id")
    except (OSError, ValueError):
        return None
    return found if isinstance(found, int) and found >= 0 else None


def read_processor(folder: Path) -> Any:
    """The folder's image processor, in its plain numpy form. Raises CheckpointError."""
    from transformers import AutoImageProcessor

    try:
        return AutoImageProcessor.from_pretrained(folder, use_fast=False)
    except Exception as error:  # transformers raises many kinds
        raise CheckpointError(
            f"{folder}: its image processor does not load ({' '.join(str(error).split())[:200]}): save it beside the "
            "model with processor.save_pretrained(folder)"
        ) from error
