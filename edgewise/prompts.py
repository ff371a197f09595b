"""Prompt tuning for every family: virtual tokens before the text, trained while the model stays as it is.

Lester et al., 'The power of scale for parameter-efficient prompt tuning', EMNLP 2021 (arXiv:2104.08691); for images
VPT-shallow of Jia et al., 'Visual prompt tuning', ECCV 2022 (arXiv:2203.12119).

The prompt stands inside the base transformer, so that its heads, the loss and an exported graph see hidden states
that are aligned with input_ids, and callers pass the masks and positions of the text alone:

- BERT-like: the prompt's states are cut off again, and the pooler is applied to [CLS].
- GPT-like: the same; with a key-value cache the prompt goes in with the first tokens and stays in the cache.
- T5-like: the encoder's prompt states stay, and the decoder's view of the encoder's mask grows by them.
- ViT-like: visual tokens between [CLS] and the patches, taken out after the encoder.

PEFT's own wrapper (get_peft_model with PromptTuningConfig) gives the same logits for language models and for
encoder-decoder models. It is not used for the other tasks: it pools a virtual token of BERT in the place of [CLS],
finds no token to pool for GPT in padded batches when it hands on embeddings only, and answers token classification
with rows for virtual tokens. In training it also counts the loss of the first token of a text, given the prompt;
here, as in an unprompted model, the first token is not predicted.

torch and peft are imported inside the functions: the build side alone has them.
"""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgewise.errors import CheckpointError, PlanError
from edgewise.files import write_json
from edgewise.prompting import PARAMETER, decoder_forward, encoder_forward, image_forward, patch, text_forward

if TYPE_CHECKING:
    from torch import Tensor

PROMPT_FILE = "prompt.safetensors"
"""Beside model.safetensors: one tensor, named as PARAMETER."""

_UNTRAINED = re.compile(r"\[unused\d+\]|<extra_id_\d+>|<unused\d+>|<\|?reserved.*>")


def make_prompt(model: Any, tokens: int, tokenizer: Any = None, seed: int = 0) -> Tensor:
    """Virtual tokens to start from: float32 [tokens, width of the word embeddings, or of the ViT's states].

    For text PEFT's PromptEmbedding, sampled from the model's own word vectors, which Lester et al. found better than
    random ones; with a tokenizer, from those of ordinary tokens only (special and unused ones were hardly trained).
    For images uniform noise of VPT's width (Xavier over patch and hidden size).

    Raises PlanError for a model that has no place for a prompt.
    """
    import torch

    kind, module = _place(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind == "image":
            hidden, patch = model.config.hidden_size, model.config.patch_size
            limit = (6 / (3 * patch * patch + hidden)) ** 0.5
            return torch.empty(tokens, hidden).uniform_(-limit, limit)
        from peft import PromptEmbedding, PromptTuningConfig, PromptTuningInit, TaskType

        words = module.get_input_embeddings().weight.detach()
        words = words[_ordinary_ids(tokenizer, len(words))].float().cpu()
        config = PromptTuningConfig(
            task_type=TaskType.FEATURE_EXTRACTION,  # not used by the embedding, but without one PEFT warns
            num_virtual_tokens=tokens,
            token_dim=words.shape[1],
            num_transformer_submodules=1,
            prompt_tuning_init=PromptTuningInit.SAMPLE_VOCAB,
        )
        embedding = PromptEmbedding(config, torch.nn.Embedding.from_pretrained(words))
        vectors: Tensor = embedding.embedding.weight.detach().clone()
        return vectors


def install_prompt(model: Any, prompt: Tensor) -> None:
    """Put `prompt` [tokens, width] into a transformers model, in place: its ordinary forward then reads it.

    The prompt becomes an nn.Parameter of the base transformer (`<base>.edgewise_prompt`), so that the optimizer,
    `.to()`, state_dict() and the export see it. Nothing is frozen here. Positions move up by its length: a model with
    learned positions reads that much less text (`text_limit`). Attention maps, where asked for, include the prompt.

    Raises PlanError for a model that has no place for a prompt, or a prompt of another width.
    """
    import torch

    kind, module = _place(model)
    if hasattr(module, PARAMETER):
        raise PlanError(f"this {model.config.model_type} model has a prompt already")
    width = model.config.hidden_size if kind == "image" else module.get_input_embeddings().embedding_dim
    if prompt.dim() != 2 or prompt.shape[1] != width or not len(prompt):
        raise PlanError(f"the prompt has shape {list(prompt.shape)}; this model needs [tokens, {width}]")
    reference = next(module.parameters())
    values = prompt.detach().clone().to(device=reference.device, dtype=reference.dtype)
    module.register_parameter(PARAMETER, torch.nn.Parameter(values))
    module.edgewise_prompt_tokens = len(values)  # a plain number: in an export a tensor's length is traced
    if kind == "encoder-decoder":
        patch(module, encoder_forward)
        patch(_stacks(model)[1], decoder_forward)
    else:
        patch(module, {"image": image_forward, "text": text_forward}[kind])


def prompt_of(model: Any) -> Tensor | None:
    """The installed prompt, an nn.Parameter [tokens, width]; None where there is none."""
    found: Tensor | None = next((p for name, p in model.named_parameters() if _is_prompt(name)), None)
    return found


def save_prompt(model: Any, folder: str | Path) -> None:
    """Write the model without its prompt as transformers does, prompt.safetensors beside it, and mark config.json.

    So transformers reads the folder as the plain base model, and `load_prompted` as the prompted one. Raises PlanError
    for a model without a prompt.
    """
    from safetensors.torch import save_file

    prompt = prompt_of(model)
    if prompt is None:
        raise PlanError("the model has no prompt to save: install_prompt puts one in")
    folder = Path(folder)
    plain = {name: value for name, value in model.state_dict().items() if not _is_prompt(name)}
    model.save_pretrained(folder, state_dict=plain)
    save_file({PARAMETER: prompt.detach().cpu().contiguous()}, folder / PROMPT_FILE)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    write_json(folder / "config.json", {**config, PARAMETER: {"tokens": len(prompt)}})


def load_prompted(folder: str | Path, auto_class: Any, **kw: Any) -> Any:
    """`auto_class.from_pretrained(folder, **kw)`, with the prompt installed where the folder has one.

    Raises CheckpointError where config.json marks a prompt and its file is missing, broken or of another shape.
    """
    folder = Path(folder)
    tokens = prompt_tokens(folder)
    prompt = read_prompt(folder) if tokens else None
    model = auto_class.from_pretrained(folder, **kw)
    if prompt is not None:
        try:
            install_prompt(model, prompt)
        except PlanError as error:
            raise CheckpointError(f"{folder / PROMPT_FILE} does not fit the model beside it: {error}") from error
    return model


def prompt_tokens(folder: str | Path) -> int:
    """How many virtual tokens the model in `folder` reads before its text, from config.json; 0 without a prompt."""
    try:
        mark = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8")).get(PARAMETER)
    except (OSError, ValueError):
        return 0  # transformers says better what is wrong with the file
    return int(mark["tokens"]) if mark else 0


def read_prompt(folder: str | Path) -> Tensor:
    """The prompt beside a model, float32 [tokens, width]. Raises CheckpointError unless it is as config.json says."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file, tokens = Path(folder) / PROMPT_FILE, prompt_tokens(folder)
    if not file.is_file():
        raise CheckpointError(
            f"{folder} was prompt-tuned ({tokens} virtual tokens in config.json), but has no {PROMPT_FILE}: "
            "copy it from where the model was tuned, or tune again"
        )
    try:
        prompt: Tensor = load_file(file)[PARAMETER]
    except (SafetensorError, KeyError, OSError) as error:
        raise CheckpointError(f"{file} cannot be read ({error}): copy it again, or tune again") from error
    if prompt.dim() != 2 or len(prompt) != tokens:
        raise CheckpointError(
            f"{file} has shape {list(prompt.shape)}, config.json marks {tokens} tokens: they are not from one training"
        )
    return prompt


def _is_prompt(name: str) -> bool:
    return name == PARAMETER or name.endswith(f".{PARAMETER}")


def _ordinary_ids(tokenizer: Any, size: int) -> list[int]:
    if tokenizer is None:
        return list(range(size))
    special = set(tokenizer.all_special_ids)
    return sorted(i for t, i in tokenizer.get_vocab().items() if i < size and i not in special and not _untrained(t))


def _untrained(token: str) -> bool:
    return _UNTRAINED.fullmatch(token) is not None


# ---- where the prompt stands


def _place(model: Any) -> tuple[str, Any]:
    """(kind, module that holds the prompt): kind is text, encoder-decoder or image."""
    base = model.base_model
    if getattr(model.config, "is_encoder_decoder", False):
        return "encoder-decoder", _stacks(model)[0]
    if getattr(model, "main_input_name", "") == "pixel_values":
        if hasattr(base, "encoder") and hasattr(getattr(base, "embeddings", None), "cls_token"):
            return "image", base.encoder
    elif "inputs_embeds" in inspect.signature(type(base).forward).parameters:
        return "text", base
    raise PlanError(
        f"prompt tuning does not know where to put the prompt in a {model.config.model_type} model: "
        "take full, ffn or lora"
    )


def _stacks(model: Any) -> tuple[Any, Any]:
    return model.get_encoder(), model.get_decoder()
