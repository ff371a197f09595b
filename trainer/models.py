"""Models before training: loaded with a head for the task, or built from a config alone, and cut to fewer layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES as _READS_BOTH_WAYS

from edgewise.errors import CheckpointError, PlanError
from edgewise.prompts import prompt_tokens
from edgewise.sources import check_model_folder
from edgewise.types import AUTO_CLASSES, ProblemType, Task


@dataclass(frozen=True)
class Goal:
    """What a model is to learn."""

    task: Task = "text-classification"
    labels: tuple[str, ...] = ()
    """In the order of the model's outputs; () where the task has none."""
    problem_type: ProblemType = "single_label_classification"
    """Of text classification."""

    @property
    def outputs(self) -> int | None:
        """Size of the head; None where the head is the vocabulary."""
        if self.task in ("text-generation", "text2text-generation"):
            return None
        return 1 if self.regression else len(self.labels)

    @property
    def regression(self) -> bool:
        return self.task == "text-classification" and self.problem_type == "regression"

    @property
    def multi_label(self) -> bool:
        return self.task == "text-classification" and self.problem_type == "multi_label_classification"


def auto_class(task: Task) -> Any:
    """Transformers' Auto class for a task. Raises PlanError for a task that is not trained."""
    if task not in AUTO_CLASSES:
        raise PlanError(f"task {task!r} is not trained; expected one of {', '.join(AUTO_CLASSES)}")
    return getattr(transformers, AUTO_CLASSES[task])


def load_config(source: str | Path, goal: Goal) -> Any:
    """The config of a checkpoint, with a head for the goal.

    Raises CheckpointError for what is no checkpoint, has no form for the task, or was prompt-tuned.
    """
    local = Path(source)
    if tokens := prompt_tokens(local):
        raise CheckpointError(
            f"{source} was prompt-tuned: a new training would lose its {tokens} virtual tokens: start from the model "
            "that it was made from"
        )
    check_folder(local, goal.task)
    try:
        config = transformers.AutoConfig.from_pretrained(source, **_head(goal))
    except Exception as error:  # transformers raises many kinds
        raise CheckpointError(f"{source} does not load as a model for {goal.task}: {first_line(error)}") from error
    check_family(source, config, goal.task)
    return config


def load_model(source: str | Path, goal: Goal) -> tuple[Any, Any]:
    """(model, tokenizer or image processor) with a head for the goal, in fp32.

    A folder without weights is initialised from its config.

    Raises CheckpointError for what transformers cannot load, or a model that was prompt-tuned.
    """
    auto = auto_class(goal.task)
    config = load_config(source, goal)
    try:
        processor = load_processor(source, goal)
        if is_fresh(source):
            model = auto.from_config(config, dtype=torch.float32)
        else:
            model = auto.from_pretrained(source, config=config, dtype=torch.float32, use_safetensors=True,
                                         ignore_mismatched_sizes=goal.outputs is not None)  # fmt: skip
    except Exception as error:  # transformers raises many kinds
        raise CheckpointError(f"{source} does not load as a model for {goal.task}: {first_line(error)}") from error
    if goal.task != "image-classification":
        _pad_token(source, model, processor)
    return model, processor


def load_tuned(folder: str | Path, goal: Goal) -> tuple[Any, Any]:
    """(model, processor) of a folder that was tuned for the goal, with its prompt where it has one.

    Raises CheckpointError where its labels are not the goal's, in the same order.
    """
    from edgewise.prompts import load_prompted

    check_folder(Path(folder), goal.task)
    try:
        config = transformers.AutoConfig.from_pretrained(folder)
        model = load_prompted(Path(folder), auto_class(goal.task), dtype=torch.float32, use_safetensors=True)
        processor = load_processor(folder, goal)
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{folder} does not load as a tuned model: {first_line(error)}") from error
    given = getattr(config, "problem_type", None)
    if goal.task == "text-classification" and (given or goal.problem_type) != goal.problem_type:
        raise CheckpointError(f"{folder} was tuned for {given}, expected {goal.problem_type}")
    if goal.regression and config.num_labels != 1:
        raise CheckpointError(f"{folder} has {config.num_labels} outputs, expected the one number of a regression")
    if goal.outputs is not None and not goal.regression:
        found = tuple(str(config.id2label[i]) for i in sorted(config.id2label))
        if found != goal.labels:
            raise CheckpointError(f"{folder} has labels {list(found)}, expected {list(goal.labels)} in this order")
    return model, processor


def check_folder(local: Path, task: Task) -> None:
    """Raise CheckpointError for what is there and is no model; a ViT's config may stand alone."""
    if local.exists() and (task != "image-classification" or not (local / "config.json").is_file()):
        check_model_folder(local)


def first_line(error: Exception) -> str:
    """What an error of a library says, in one line that can be read."""
    line = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    return line if len(line) <= 300 else line[:299] + "…"


def check_family(source: str | Path, config: Any, task: Task) -> None:
    """Raise CheckpointError for a model that has no form for the task, or that sees the tokens it should predict."""
    kind = config.model_type
    if type(config) not in auto_class(task)._model_mapping:
        fits = [name for name in AUTO_CLASSES if type(config) in auto_class(name)._model_mapping]
        hint = f"it does {', '.join(fits)}" if fits else "none of the tasks here fits it"
        raise CheckpointError(f"{source} is a {kind} model, which does not do {task}: {hint}")
    if task == "text-generation" and kind in _READS_BOTH_WAYS and not config.is_decoder:
        raise CheckpointError(
            f"{source} is a {kind} model, which reads text both ways and would see the tokens that text-generation "
            "asks for: take a GPT-like model"
        )


def is_fresh(source: str | Path) -> bool:
    """Whether a source is a folder with a config and no weights, so that its model begins at random."""
    return Path(source).is_dir() and not has_weights(Path(source))


def has_weights(folder: Path) -> bool:
    """False for a folder with a config alone."""
    return any(any(folder.glob(pattern)) for pattern in ("*.safetensors", "*.bin", "*.h5", "*.msgpack"))


def _head(goal: Goal) -> dict[str, Any]:
    if goal.outputs is None:
        return {}
    names = goal.labels or ("value",)
    head: dict[str, Any] = {
        "num_labels": goal.outputs,
        "id2label": dict(enumerate(names)),
        "label2id": {label: i for i, label in enumerate(names)},
    }
    if goal.task == "text-classification":
        head["problem_type"] = goal.problem_type
    return head


def load_processor(source: str | Path, goal: Goal) -> Any:
    """The tokenizer, or the image processor."""
    if goal.task == "image-classification":
        try:
            return transformers.AutoImageProcessor.from_pretrained(source, use_fast=False)
        except (OSError, ValueError):  # a bare config: its own size, and ViT's way with pixels
            size = transformers.AutoConfig.from_pretrained(source).image_size
            return transformers.ViTImageProcessor(size={"height": size, "width": size})
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    if goal.task == "token-classification" and getattr(tokenizer, "add_prefix_space", True) is False:
        # Byte-level tokenizers take a list of words only where each starts with a space.
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, add_prefix_space=True)
    return tokenizer


def _pad_token(source: str | Path, model: Any, tokenizer: Any) -> None:
    """GPT-like tokenizers often have no padding token: the end of text serves, and the model must know it."""
    if getattr(model.config, "type_vocab_size", 0) < 1:
        # A tokenizer without a class of its own gives them to every model; GPT-2 would add word vectors for them.
        tokenizer.model_input_names = [n for n in tokenizer.model_input_names if n != "token_type_ids"]
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise CheckpointError(
                f"{source}: its tokenizer has no padding token, nor one for the end of text, which training in "
                "batches needs: set tokenizer.pad_token and save it again"
            )
        tokenizer.pad_token = tokenizer.eos_token
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        raise CheckpointError(
            f"{source}: its tokenizer has {len(tokenizer)} tokens, its model only "
            f"{model.get_input_embeddings().num_embeddings}: save the two that belong together"
        )


def longest_input(config: Any) -> int | None:
    """Positions that a model of this config has, in tokens; None where there is no limit (relative positions)."""
    if getattr(config, "model_type", "") in ("t5", "mt5", "umt5", "longt5"):
        return None  # relative positions; n_positions in its config binds nothing
    for name in ("max_position_embeddings", "n_positions"):
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            # RoBERTa counts its positions from the padding id on.
            return value - (config.pad_token_id + 1) if config.model_type in ("roberta", "xlm-roberta") else value
    return None


def check_depth(config: Any, keep: Sequence[int]) -> None:
    """Raise PlanError for layers that a model of this config does not have."""
    if config.model_type == "albert":
        raise PlanError("keep_layers: ALBERT's layers share their weights; there is nothing to cut")
    depth = config.num_hidden_layers
    if not keep or len(set(keep)) < len(keep) or any(not 0 <= i < depth for i in keep):
        raise PlanError(f"keep_layers is {list(keep)}; expected different layers from 0 to {depth - 1}")


def cut_depth(model: Any, keep: Sequence[int]) -> None:
    """Keep only the named layers, in the order given, of the encoder and of the decoder; the config follows.

    Layer dropping as in Sajjad et al., 'On the effect of dropping layers of pre-trained transformer models',
    Computer Speech & Language 77, 2023.
    """
    check_depth(model.config, keep)
    depth = model.config.num_hidden_layers
    stacks = [
        (parent, name)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, torch.nn.ModuleList) and len(child) == depth
    ]
    wanted = 2 if model.config.is_encoder_decoder else 1
    if len(stacks) < wanted:
        raise PlanError(f"keep_layers: found no list of {depth} layers in a {model.config.model_type} model")
    for parent, name in stacks[:wanted]:
        kept = torch.nn.ModuleList([getattr(parent, name)[i] for i in keep])
        _renumber(kept)
        if model.config.is_encoder_decoder and 0 not in keep:
            _move_relative_bias(getattr(parent, name)[0], kept[0])
        setattr(parent, name, kept)
        if hasattr(parent, "config") and parent.config is not model.config:
            parent.config.num_hidden_layers = len(keep)
            if hasattr(parent.config, "num_layers"):
                parent.config.num_layers = len(keep)
    _set_depth(model.config, keep)


def _renumber(layers: torch.nn.ModuleList) -> None:
    """The key-value cache finds a layer by its number."""
    for i, layer in enumerate(layers):
        for module in layer.modules():
            if isinstance(getattr(module, "layer_idx", None), int):
                module.layer_idx = i


def _move_relative_bias(old: torch.nn.Module, new: torch.nn.Module) -> None:
    """T5's first layer holds the position bias of all: it must not be cut off with it."""
    source = old.layer[0].SelfAttention
    target = new.layer[0].SelfAttention
    if getattr(source, "has_relative_attention_bias", False):
        target.relative_attention_bias = source.relative_attention_bias
        target.has_relative_attention_bias = True


def _set_depth(config: Any, keep: Sequence[int]) -> None:
    config.num_hidden_layers = len(keep)
    if hasattr(config, "num_decoder_layers"):
        config.num_decoder_layers = len(keep)
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[i] for i in keep]
    if getattr(config, "stage_names", None):  # of a backbone (DINOv2): names of layers that it must have, to load
        config.stage_names = [config.stage_names[0], *(f"stage{i}" for i in range(1, len(keep) + 1))]
        config._out_features, config._out_indices = config.stage_names[-1:], [len(keep)]
