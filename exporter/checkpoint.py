"""Checkpoints: a folder or a hub id that transformers reads, checked before anything long starts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgewise.errors import CheckpointError
from edgewise.files import digest_json, sha256_file
from edgewise.sources import check_model_folder
from edgewise.types import TASKS, Task

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
"""What a bundle keeps of a tokenizer: tokenizer.json holds the vocabulary, so vocab.txt would be a second copy."""

_TASK_BY_HEAD = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForMaskedLM": "fill-mask",
    "ForCausalLM": "text-generation",
    "LMHeadModel": "text-generation",
    "ForConditionalGeneration": "text2text-generation",
    "ForImageClassification": "image-classification",
    "Model": "feature-extraction",
}


@dataclass(frozen=True)
class Checkpoint:
    """A model folder that can be exported."""

    path: Path
    config: dict[str, Any]
    digest: str
    """Over config and weights."""

    @property
    def family(self) -> str:
        return str(self.config.get("model_type", "unknown"))

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels in the order of the outputs."""
        names = self.config.get("id2label") or {}
        if names:
            return tuple(str(names[str(i)]) for i in range(len(names)))
        return tuple(f"LABEL_{i}" for i in range(int(self.config.get("num_labels", 2))))

    @property
    def problem_type(self) -> str:
        """As transformers infers it at training time, where the config does not say."""
        told = self.config.get("problem_type")
        if told:
            return str(told)
        return "regression" if len(self.labels) == 1 else "single_label_classification"


def read_checkpoint(path: Path) -> Checkpoint:
    """Check a local folder: config, safetensors weights, tokenizer. Raises CheckpointError."""
    check_model_folder(path)
    config_file = path / "config.json"
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{config_file} is no JSON: {error}") from error
    weights = sorted(path.glob("*.safetensors"))
    if not weights:
        if list(path.glob("*.bin")):
            raise CheckpointError(
                f"{path} has pickled weights only, which can run code: save them again with "
                "model.save_pretrained(folder, safe_serialization=True)"
            )
        raise CheckpointError(f"{path} has no weights: expected model.safetensors")
    digest = digest_json([config, [[w.name, sha256_file(w)] for w in weights]])
    return Checkpoint(path, config, digest)


def infer_task(checkpoint: Checkpoint) -> Task:
    """The task of the checkpoint's head, from config.architectures. Raises CheckpointError where it cannot be told."""
    for name in checkpoint.config.get("architectures") or ():
        for head, task in _TASK_BY_HEAD.items():
            if name.endswith(head):
                return task  # type: ignore[return-value]  # the table holds tasks alone
    raise CheckpointError(
        f"{checkpoint.path}: the task cannot be told from architectures={checkpoint.config.get('architectures')}: "
        f"name it with --task, one of {', '.join(TASKS)}"
    )


def write_tokenizer(source: Path, folder: Path) -> None:
    """Write the tokenizer as tokenizer.json (made from the slow one where there is no fast one) with its configs."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source, use_fast=True)
    except Exception as error:  # transformers raises many kinds
        raise CheckpointError(f"{source}: its tokenizer does not load: {error}") from error
    if not tokenizer.is_fast:
        raise CheckpointError(f"{source}: its tokenizer has no fast form, which the runtime needs")
    written = tokenizer.save_pretrained(folder)
    for file in map(Path, written):
        if file.name not in TOKENIZER_FILES:
            file.unlink(missing_ok=True)


def read_preprocessing(folder: Path, config: dict[str, Any], graph_inputs: Sequence[str]) -> dict[str, Any]:
    """What the runtime needs to know of the tokenizer in a bundle folder."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    limits = [n for n in (config.get("max_position_embeddings"), config.get("n_positions")) if n]
    if (
        tokenizer.model_max_length and tokenizer.model_max_length < 1_000_000
    ):  # transformers' word for 'unknown' is 1e30
        limits.append(tokenizer.model_max_length)
    return {
        "tokenizer": "tokenizer.json",
        "max_length": int(min(limits)) if limits else None,
        "pad_id": tokenizer.pad_token_id or 0,
        "inputs": list(graph_inputs),
    }
