"""Models before training: loaded with a fresh head, cut to fewer layers, wrapped for LoRA."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from edgewise.errors import CheckpointError, PlanError
from edgewise.plan import TuneSpec
from edgewise.sources import check_model_folder

DEFAULT_LEARNING_RATE = {"full": 5e-5, "lora": 5e-4}


def load_classifier(source: str | Path, labels: Sequence[str], spec: TuneSpec) -> tuple[Any, Any]:
    """(model, tokenizer) with a head for `labels`, prepared for the strategy of `spec`.

    Raises CheckpointError for what transformers cannot load, PlanError for layers that the model does not have.
    """
    if Path(source).is_dir():
        check_model_folder(Path(source))
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        config = AutoConfig.from_pretrained(
            source,
            num_labels=len(labels),
            id2label=dict(enumerate(labels)),
            label2id={label: i for i, label in enumerate(labels)},
            problem_type="single_label_classification",
        )
        model = AutoModelForSequenceClassification.from_pretrained(
            source, config=config, dtype=torch.float32, use_safetensors=True
        )
    except Exception as error:  # transformers raises many kinds
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{source} does not load as a model for text classification: {first}") from error
    if tokenizer.pad_token_id is None:
        raise CheckpointError(f"{source}: its tokenizer has no padding token, which training in batches needs")
    if spec.keep_layers is not None:
        cut_depth(model, spec.keep_layers)
    if spec.strategy == "lora":
        model = add_lora(model, spec.lora_rank)
    return model, tokenizer


def cut_depth(model: Any, keep: Sequence[int]) -> None:
    """Keep only the named encoder layers, in the order given; the config follows.

    Layer dropping as in Sajjad et al., 'On the effect of dropping layers of pre-trained transformer models',
    Computer Speech & Language 77, 2023.
    """
    depth = model.config.num_hidden_layers
    if not keep or len(set(keep)) < len(keep) or any(not 0 <= i < depth for i in keep):
        raise PlanError(f"keep_layers is {list(keep)}; expected different layers from 0 to {depth - 1}")
    for parent in model.modules():
        for name, child in parent.named_children():
            if isinstance(child, torch.nn.ModuleList) and len(child) == depth:
                setattr(parent, name, torch.nn.ModuleList([child[i] for i in keep]))
                model.config.num_hidden_layers = len(keep)
                return
    raise PlanError(f"keep_layers: found no list of {depth} layers in a {model.config.model_type} model")


def add_lora(model: Any, rank: int) -> Any:
    """Wrap for LoRA (Hu et al. 2021, arXiv:2106.09685) on the attention matrices that PEFT names for the family."""
    from peft import LoraConfig, TaskType, get_peft_model

    config = LoraConfig(task_type=TaskType.SEQ_CLS, r=rank, lora_alpha=2 * rank, lora_dropout=0.0)
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise PlanError(f"LoRA does not know where to go in a {model.config.model_type} model: {error}") from error


def merged(model: Any) -> Any:
    """The plain model, with LoRA's matrices added into the weights that they adapt."""
    return model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
