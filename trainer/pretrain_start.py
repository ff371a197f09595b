"""What pretraining starts from: a checkpoint, a config file, or sizes; checked against the objective."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer
from transformers.models.auto import modeling_auto as auto

from edgewise.errors import CheckpointError, PlanError
from edgewise.sources import check_model_folder
from edgewise.trainer.corpus import Document
from edgewise.trainer.fresh_tokenizer import train_tokenizer
from edgewise.trainer.models import cut_depth, first_line
from edgewise.trainer.pretrain_spec import MODEL_TYPE, OBJECTIVES, Objective, PretrainSpec

_AUTO: dict[Objective, str] = {
    "mlm": "AutoModelForMaskedLM",
    "nsp": "AutoModelForPreTraining",
    "clm": "AutoModelForCausalLM",
    "span": "AutoModelForSeq2SeqLM",
    "mim": "AutoModelForMaskedImageModeling",
}
_NO_LIMIT = 1 << 20
"""A tokenizer's model_max_length above this means that none is known."""


@dataclass(frozen=True)
class Start:
    """A model and what prepares its input, before the first step."""

    model: Any
    processor: Any
    """The tokenizer; the image processor for `mim`."""
    fresh: tuple[str, ...]
    """Weights drawn anew; ('all',) for a model from its config."""
    carried: dict[str, torch.Tensor]
    """Weights of the checkpoint that the objective has no use for, such as BERT's pooler: saved as they were."""


def fitting_types(objective: Objective) -> frozenset[str]:
    """The model types that an objective can train."""
    if objective == "mlm":
        return frozenset(auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES) - set(
            auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES
        )
    if objective == "nsp":
        return frozenset({"bert"})
    if objective == "clm":
        # BERT and its like have a causal head too, but see the token that they should predict.
        return frozenset(auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - set(auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES)
    if objective == "span":
        return frozenset({"t5", "mt5", "umt5", "longt5", "switch_transformers"})
    return frozenset(auto.MODEL_FOR_MASKED_IMAGE_MODELING_MAPPING_NAMES)


def start(
    spec: PretrainSpec,
    *,
    source: Path | None,
    config: Path | None,
    tokenizer: Path | None,
    documents: Iterable[Document] = (),
) -> Start:
    """Load or build the model of `spec`, with the weights that `torch`'s generator draws.

    source: a checkpoint folder, with its own tokenizer. config: a config.json. tokenizer: a folder; None trains one on
    `documents`.

    Raises CheckpointError or PlanError for what does not load or does not fit the objective.
    """
    if source is not None and (config is not None or tokenizer is not None):
        raise PlanError(f"{source} brings its own config and tokenizer: give neither of them beside a checkpoint")
    if spec.keep_layers is not None and source is None:
        raise PlanError("keep_layers cuts a checkpoint, and none is given; set the number of layers instead")
    made = _continue(spec, source) if source is not None else _fresh(spec, config, tokenizer, documents)
    if spec.objective == "mim":
        _check_patches(made.model.config, spec)
    else:
        _check_tokenizer(made, spec)
    return made


def _continue(spec: PretrainSpec, source: Path) -> Start:
    image = spec.objective == "mim"
    if not image:
        check_model_folder(source)
    elif not (source / "config.json").is_file():
        raise CheckpointError(f"{source} is no checkpoint: it has no config.json")
    if not any(source.glob("*.safetensors")):
        raise CheckpointError(
            f"{source} has no weights (*.safetensors): to draw new ones, give it as the config and as the tokenizer"
        )
    found = _load_config(source)
    _check_type(found.model_type, spec.objective, str(source))
    if image:
        found.encoder_stride = found.patch_size
    loader = getattr(transformers, _AUTO[spec.objective])
    options = {"dtype": torch.float32, "use_safetensors": True, "config": found}
    try:
        processor = (AutoImageProcessor if image else AutoTokenizer).from_pretrained(source, use_fast=not image)
        model, info = loader.from_pretrained(source, output_loading_info=True, **options)
        body = AutoModel.from_pretrained(source, **options)
    except Exception as error:  # transformers raises many kinds
        raise CheckpointError(
            f"{source} does not load as a model for {spec.objective} ({OBJECTIVES[spec.objective]}): "
            f"{first_line(error)}"
        ) from error
    if spec.keep_layers is not None:
        cut_depth(model, spec.keep_layers)
        cut_depth(body, spec.keep_layers)
    fresh = tuple(sorted(name for name in info["missing_keys"] if name in model.state_dict()))
    known = {*_weights(source)}
    prefix = model.base_model_prefix
    carried = {
        f"{prefix}.{name}": weight
        for name, weight in body.state_dict().items()
        if f"{prefix}.{name}" not in model.state_dict() and {name, f"{prefix}.{name}"} & known
    }
    return Start(model, processor, fresh, carried)


def _fresh(spec: PretrainSpec, config: Path | None, tokenizer: Path | None, documents: Iterable[Document]) -> Start:
    if config is not None:
        built = _load_config(config)
        _check_type(built.model_type, spec.objective, str(config))
    else:
        built = _sized(spec)
    if spec.objective == "mim":
        processor = _image_processor(built)
        built.encoder_stride = built.patch_size
    else:
        processor = _tokenizer(spec, tokenizer, documents, _positions(built) or spec.block_length)
        built.vocab_size = len(processor)
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            setattr(built, name, getattr(processor, name))
        if built.is_encoder_decoder:
            built.decoder_start_token_id = processor.pad_token_id
    try:
        model = getattr(transformers, _AUTO[spec.objective]).from_config(built)
    except (ValueError, AssertionError, KeyError, RuntimeError) as error:
        raise PlanError(f"no {built.model_type} model can be built from these sizes: {first_line(error)}") from error
    return Start(model, processor, ("all",), {})


def _sized(spec: PretrainSpec) -> Any:
    """A config from `spec.size`, of the model type that belongs to the objective."""
    s = spec.size
    if s.hidden % s.heads:
        raise PlanError(f"hidden is {s.hidden} and heads is {s.heads}; expected hidden to be a multiple of heads")
    kind = MODEL_TYPE[spec.objective]
    positions = max(spec.block_length, 512)
    if kind == "gpt2":
        sizes = {"n_layer": s.layers, "n_embd": s.hidden, "n_head": s.heads, "n_positions": positions}
    elif kind == "t5":
        sizes = {"num_layers": s.layers, "d_model": s.hidden, "num_heads": s.heads, "d_kv": s.hidden // s.heads}
        sizes["d_ff"] = 4 * s.hidden
    else:
        sizes = {"num_hidden_layers": s.layers, "hidden_size": s.hidden, "num_attention_heads": s.heads}
        sizes["intermediate_size"] = 4 * s.hidden
        if kind == "vit":
            sizes |= {"image_size": s.image_size, "patch_size": s.patch_size}
        else:
            sizes["max_position_embeddings"] = positions
    return AutoConfig.for_model(kind, **sizes)


def _tokenizer(spec: PretrainSpec, folder: Path | None, documents: Iterable[Document], positions: int) -> Any:
    if folder is None:
        return train_tokenizer(spec.objective, documents, spec.vocab_size, positions, spec.lowercase)
    try:
        return AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # transformers raises many kinds
        raise CheckpointError(f"{folder} does not load as a tokenizer: {first_line(error)}") from error


def _image_processor(config: Any) -> Any:
    from transformers import ViTImageProcessor

    side = config.image_size
    return ViTImageProcessor(size={"height": side, "width": side}, image_mean=[0.5] * 3, image_std=[0.5] * 3)


def _load_config(place: Path) -> Any:
    try:
        return AutoConfig.from_pretrained(place)
    except Exception as error:  # transformers raises many kinds
        raise CheckpointError(f"{place} is no model config that transformers knows: {first_line(error)}") from error


def _check_type(model_type: str, objective: Objective, place: str) -> None:
    if model_type in fitting_types(objective):
        return
    fits = [o for o in OBJECTIVES if model_type in fitting_types(o)]
    hint = f"it fits {', '.join(fits)}" if fits else "no objective here fits it"
    raise CheckpointError(
        f"{place} is a {model_type} model, which {objective} ({OBJECTIVES[objective]}) cannot train; {hint}"
    )


def _check_tokenizer(made: Start, spec: PretrainSpec) -> None:
    tokenizer, config = made.processor, made.model.config
    name = spec.objective
    if not tokenizer.is_fast:
        raise CheckpointError(f"{tokenizer.name_or_path}: {name} needs a fast tokenizer (tokenizer.json)")
    if name in ("mlm", "nsp") and tokenizer.mask_token_id is None:
        raise CheckpointError(
            f"{tokenizer.name_or_path or 'the tokenizer'} has no mask token, which {name} hides tokens with: "
            "give a tokenizer with mask_token, or use clm or span"
        )
    if name == "nsp" and (tokenizer.cls_token_id is None or tokenizer.sep_token_id is None):
        raise CheckpointError("nsp frames pairs with a cls and a sep token, and the tokenizer lacks one of them")
    if name == "span" and tokenizer.convert_tokens_to_ids("<extra_id_0>") in (None, tokenizer.unk_token_id):
        raise CheckpointError(
            f"{tokenizer.name_or_path or 'the tokenizer'} has no sentinel tokens <extra_id_0>, <extra_id_1>, …, which "
            "span corruption needs: give a T5 tokenizer, or let one be trained"
        )
    if name in ("clm", "span") and tokenizer.eos_token_id is None:
        raise CheckpointError(f"the tokenizer has no eos token, which ends a text in {name}")
    if name != "clm" and tokenizer.pad_token_id is None:
        raise CheckpointError("the tokenizer has no padding token, which training in batches needs")
    if (vocab := made.model.get_input_embeddings().num_embeddings) < len(tokenizer):
        raise CheckpointError(f"the tokenizer has {len(tokenizer)} entries and the model {vocab} embeddings")
    limit = min(_positions(config) or _NO_LIMIT, tokenizer.model_max_length)
    if name != "span" and spec.block_length > limit:
        raise PlanError(f"block_length is {spec.block_length}, and the model reads at most {limit} tokens: lower it")


def _check_patches(config: Any, spec: PretrainSpec) -> None:
    side, patch = config.image_size, config.patch_size
    if not isinstance(side, int) or not isinstance(patch, int) or side % patch:
        raise PlanError(f"image_size {side} is no multiple of patch_size {patch}; expected square patches that fill it")
    square = spec.mask_patch or patch
    if square % patch or side % square:
        raise PlanError(
            f"mask_patch is {square}; expected a multiple of the model's patch ({patch} pixels) that divides the image "
            f"({side} pixels)"
        )


def _positions(config: Any) -> int | None:
    """Tokens that the model's position embeddings reach; None where positions are relative."""
    if config.model_type in fitting_types("span"):
        return None
    return getattr(config, "max_position_embeddings", None)


def _weights(folder: Path) -> list[str]:
    """Names of the weights in a checkpoint folder."""
    from safetensors import safe_open

    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return list(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        return list(file.keys())
