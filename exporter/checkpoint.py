"""Checkpoints: a folder or a hub id that transformers reads, checked before anything long starts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgewise.errors import CheckpointError
from edgewise.files import digest_json, sha256_file
from edgewise.sources import check_model_folder
from edgewise.types import TASKS, TRAINED_TASKS, Task

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


def check_task(checkpoint: Checkpoint, task: Task | None) -> Task:
    """The task to export for: `task`, or that of the checkpoint's head.

    Raises CheckpointError where it cannot be told, cannot be exported, or is not that of the head: transformers would
    put a fresh, random one in its place.
    """
    heads = checkpoint.config.get("architectures") or ()
    found = infer_task(checkpoint) if task is None or heads else task
    if task is not None and found != task:
        raise CheckpointError(f"{checkpoint.path} is for {found} (architectures={list(heads)}), not for {task}")
    if found not in TRAINED_TASKS:
        raise CheckpointError(
            f"{checkpoint.path} is for {found}; edgewise exports {', '.join(TRAINED_TASKS)}: "
            "fine-tune it for one of these"
        )
    return found
