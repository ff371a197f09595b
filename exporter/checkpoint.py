"""Checkpoints: a folder or a hub id that transformers reads, checked before anything long starts."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgewise.errors import CheckpointError
from edgewise.files import digest_json, sha256_file
from edgewise.sources import PROCESSOR, check_model_folder
from edgewise.types import TASKS, Task

_TASK_BY_HEAD = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForMaskedLM": "fill-mask",
    "ForCausalLM": "text-generation",
    "LMHeadModel": "text-generation",
    "ForConditionalGeneration": "text2text-generation",
    "ForImageClassification": "image-classification",
    "ForPreTraining": "fill-mask",  # BERT's: masked words, and a head for the next sentence, which is left out
    "ForMaskedImageModeling": "image-feature-extraction",
    "Model": "feature-extraction",
}
_FEATURES: tuple[Task, ...] = ("feature-extraction", "image-feature-extraction")
"""Tasks without a head: the body of any checkpoint can do them."""


@dataclass(frozen=True)
class Checkpoint:
    """A model folder that can be exported."""

    path: Path
    config: dict[str, Any]
    digest: str
    """Over config and weights."""
    trust_remote_code: bool = False
    """Code that comes with the checkpoint may run."""
    allow_pickle: bool = False
    """Its weights are pickled, and may be read all the same."""

    @property
    def family(self) -> str:
        return str(self.config.get("model_type", "unknown"))

    @property
    def weights(self) -> list[Path]:
        """The files of the weights."""
        return sorted(self.path.glob("*.bin" if self.allow_pickle else "*.safetensors"))

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


def read_checkpoint(path: Path, *, trust_remote_code: bool = False, allow_pickle: bool = False) -> Checkpoint:
    """Check a local folder: config, safetensors weights, tokenizer.

    Raises CheckpointError; also for a model that brings code of its own, or pickled weights, unless asked for.
    """
    check_model_folder(path)
    config_file = path / "config.json"
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{config_file} is no JSON: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{config_file} is no JSON object: expected what save_pretrained wrote")
    if config.get("auto_map") and not trust_remote_code:
        raise CheckpointError(
            f"{path} brings code of its own ({', '.join(sorted(config['auto_map']))} in auto_map of config.json), "
            "which would run on this machine: read it, then say --trust-remote-code (trust_remote_code=True)"
        )
    pickled = not list(path.glob("*.safetensors")) and bool(list(path.glob("*.bin")))
    if pickled and not allow_pickle:
        raise CheckpointError(
            f"{path} has pickled weights only, which can run code: save them again with "
            "model.save_pretrained(folder, safe_serialization=True), or say --allow-pickle (allow_pickle=True)"
        )
    found = Checkpoint(path, config, "", trust_remote_code, pickled)
    if not found.weights:
        raise CheckpointError(f"{path} has no weights: expected model.safetensors")
    return replace(found, digest=digest_json([config, [[w.name, sha256_file(w)] for w in found.weights]]))


def infer_task(checkpoint: Checkpoint) -> Task:
    """The task of the checkpoint's head, from config.architectures. Raises CheckpointError where it cannot be told."""
    for name in checkpoint.config.get("architectures") or ():
        for head, task in _TASK_BY_HEAD.items():
            if name.endswith(head):
                found: Task = task  # type: ignore[assignment]  # the table holds tasks alone
                return _of_images(checkpoint) if found == "feature-extraction" else found
    raise CheckpointError(
        f"{checkpoint.path}: the task cannot be told from architectures={checkpoint.config.get('architectures')}: "
        f"name it with --task, one of {', '.join(TASKS)}"
    )


def _of_images(checkpoint: Checkpoint) -> Task:
    """Features of images where the folder has what prepares them."""
    return "image-feature-extraction" if (checkpoint.path / PROCESSOR).is_file() else "feature-extraction"


def check_task(checkpoint: Checkpoint, task: Task | None) -> Task:
    """The task to export for: `task`, or that of the checkpoint's head.

    Features can be had of any checkpoint, its head left out. Raises CheckpointError where the task cannot be told, or
    is not that of the head: transformers would put a fresh, random one in its place.
    """
    heads = checkpoint.config.get("architectures") or ()
    found = infer_task(checkpoint) if task is None or heads else task
    if task in _FEATURES and task == _of_images(checkpoint):
        found = task
    if task is not None and found != task:
        raise CheckpointError(f"{checkpoint.path} is for {found} (architectures={list(heads)}), not for {task}")
    if found == "feature-extraction" and checkpoint.config.get("is_encoder_decoder"):
        raise CheckpointError(
            f"{checkpoint.path} reads with an encoder and writes with a decoder: edgewise takes no features of such a "
            "model; save its encoder alone (model.get_encoder().save_pretrained(folder)), or fine-tune it to write"
        )
    return found
