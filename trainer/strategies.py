"""What is trained of a model: all of it, its feed-forward layers, virtual tokens before the input, or LoRA matrices."""

from __future__ import annotations

import re
from typing import Any

from edgewise.errors import PlanError
from edgewise.plan import TuneSpec
from edgewise.trainer.models import Goal, longest_input

DEFAULT_LEARNING_RATE = {"full": 5e-5, "ffn": 1e-4, "prompt": 1e-2, "lora": 5e-4}

_FEED_FORWARD = re.compile(
    r"(?<!attention)\.(intermediate|output)\.dense\."  # BERT, RoBERTa, ELECTRA, ViT, DeiT
    r"|\.mlp\."  # GPT-2, Llama, Dinov2
    r"|\.ffn(_output)?\."  # ALBERT, DistilBERT
    r"|\.DenseReluDense\."  # T5
    r"|\.fc[12]\."  # BART, OPT
)
"""Parameters of the feed-forward layers, by the names that transformers gives them."""

_LORA_TARGETS = {
    "albert": ["query", "value"],
    "distilbert": ["q_lin", "v_lin"],
    "vit": ["query", "value"],
    "deit": ["query", "value"],
    "dinov2": ["query", "value"],
}
"""Families that PEFT does not know by name; the same matrices as in its own list for BERT."""


def prepare(model: Any, processor: Any, spec: TuneSpec, goal: Goal) -> Any:
    """Freeze, wrap or extend a model for the strategy of `spec`; returns what the Trainer trains.

    full: all parameters. ffn: the feed-forward layers and the head (as in He et al. 2022, arXiv:2110.04366, adapting
    the feed-forward part serves the task best for its size). prompt: virtual tokens (Lester et al. 2021,
    arXiv:2104.08691; for images VPT, Jia et al. 2022, arXiv:2203.12119) and the head. lora: low-rank matrices beside
    the attention's (Hu et al. 2021, arXiv:2106.09685) and the head.

    Raises PlanError for a strategy that does not fit the model.
    """
    if spec.strategy == "ffn":
        _freeze_all_but_feed_forward(model, goal)
    elif spec.strategy == "prompt":
        _add_prompt(model, processor, spec, goal)
    elif spec.strategy == "lora":
        return _add_lora(model, spec.lora_rank, goal)
    return model


def merged(model: Any) -> Any:
    """The plain model, with LoRA's matrices added into the weights that they adapt."""
    return model.merge_and_unload() if hasattr(model, "merge_and_unload") else model


def trainable_parameters(model: Any) -> int:
    """How many numbers the optimizer changes."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def head_names(model: Any) -> list[str]:
    """Names of the parameters of a classification head: all outside the base model, and BERT's pooler."""
    prefix = model.base_model_prefix + "."
    return [n for n, _ in model.named_parameters() if not n.startswith(prefix) or ".pooler." in n]


def _freeze(model: Any, trained: set[str]) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name in trained


def _head(model: Any, goal: Goal) -> set[str]:
    # A language model's head is pretrained, and often the embedding itself: it stays as it is.
    return set(head_names(model)) if goal.outputs is not None else set()


def _freeze_all_but_feed_forward(model: Any, goal: Goal) -> None:
    inner = {n for n, _ in model.named_parameters() if _FEED_FORWARD.search(n) and "attention.output" not in n}
    if not inner:
        raise PlanError(f"strategy ffn: found no feed-forward layers in a {model.config.model_type} model")
    _freeze(model, inner | _head(model, goal))


def _add_prompt(model: Any, processor: Any, spec: TuneSpec, goal: Goal) -> None:
    from edgewise.prompts import install_prompt, make_prompt

    longest = longest_input(model.config)
    if longest is not None and goal.task != "image-classification" and spec.max_length + spec.prompt_tokens > longest:
        raise PlanError(
            f"strategy prompt: {spec.max_length} tokens of text and {spec.prompt_tokens} virtual tokens are more than "
            f"the {longest} positions of the model: lower max_length or prompt_tokens"
        )
    before = {n for n, _ in model.named_parameters()}
    head = _head(model, goal)
    tokenizer = None if goal.task == "image-classification" else processor
    install_prompt(model, make_prompt(model, spec.prompt_tokens, tokenizer=tokenizer, seed=spec.seed))
    prompt = {n for n, _ in model.named_parameters()} - before
    _freeze(model, prompt | head)


def _add_lora(model: Any, rank: int, goal: Goal) -> Any:
    from peft import LoraConfig, get_peft_model

    kind = model.config.model_type
    width = model.config.hidden_size
    if rank >= width:
        raise PlanError(f"strategy lora: lora_rank is {rank}; a rank below the model's width, {width}, is what saves")
    heads = sorted({n.removesuffix(".weight").removesuffix(".bias").split(".")[0] for n in _head(model, goal)})
    outside = [h for h in heads if h != model.base_model_prefix]  # a pooler stays frozen, as PEFT has it
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        lora_dropout=0.0,
        target_modules=_LORA_TARGETS.get(kind),
        fan_in_fan_out=kind == "gpt2",  # its Conv1D stores the weight the other way round
        modules_to_save=outside or None,
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise PlanError(f"strategy lora does not know where to go in a {kind} model: {error}") from error
