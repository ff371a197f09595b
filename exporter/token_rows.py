"""The tensors of a model that have a row for each token: found without knowing its family, and cut."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgewise.errors import CheckpointError
from edgewise.exporter.token_ids import has_file, map_named, read_json
from edgewise.files import no_space
from edgewise.types import EXPORT_CLASSES, IMAGE_TASKS, Task


@dataclass(frozen=True)
class TokenRows:
    """What of a model, and of its files, is as long as its vocabulary."""

    rows: int
    """config.vocab_size."""
    key: str
    """Its name in config.json: n_words in XLM."""
    cuts: Mapping[str, tuple[int, ...]]
    """Tensor -> its dimensions that are as long as the vocabulary."""
    names: frozenset[str]
    """Of all tensors."""
    prefix: str
    """Of the base model's tensors in the whole: a file may hold them with or without it."""
    pad_fixed: int | None
    """The padding id, where positions count from it (RoBERTa), so that it must stay."""
    defaults: Mapping[str, int]
    """Token ids that the config leaves to the class's defaults."""

    @property
    def required(self) -> range:
        return range(0 if self.pad_fixed is None else self.pad_fixed + 1)

    def own_name(self, name: str) -> str | None:
        """The model's name of a tensor of the file; None where the model does not read it."""
        forms = (name, f"{self.prefix}.{name}", name.removeprefix(f"{self.prefix}."))
        return next((form for form in forms if form in self.names), None)

    def dims(self, name: str, shape: Sequence[int]) -> tuple[int, ...]:
        """The dimensions to cut of a tensor of the file."""
        own = self.own_name(name)
        if own is not None:
            return self.cuts.get(own, ())
        # A head that this task does not read (BERT's decoder under a classifier) is kept in step.
        return (0,) if shape and shape[0] == self.rows else ()


def find_token_rows(source: Path, task: Task) -> TokenRows:
    """Build the model twice without weights, with one token more the second time: what grows has a row for each token.

    So that no family's names need be known: tied and untied output layers and separate biases are found alike.
    """
    import copy

    import torch
    import transformers

    if task in IMAGE_TASKS or task not in EXPORT_CLASSES:
        raise CheckpointError(f"{source} is for {task}, which has no vocabulary to trim")
    auto = getattr(transformers, EXPORT_CLASSES[task])
    try:
        config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
        rows = int(config.vocab_size)
        larger = copy.deepcopy(config)
        larger.vocab_size = rows + 1
        if getattr(config, "decoder_vocab_size", None) == rows:
            larger.decoder_vocab_size = rows + 1
        with torch.device("meta"):
            model, grown = auto.from_config(config), auto.from_config(larger)
    except Exception as error:  # transformers raises many kinds
        first = " ".join(str(error).split())[:300] or type(error).__name__
        raise CheckpointError(f"{source} has no vocabulary that edgewise can trim for {task}: {first}") from error
    shapes = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    cuts = {
        name: dims
        for name, t in grown.state_dict().items()
        if (dims := tuple(d for d, (a, b) in enumerate(zip(shapes[name], t.shape, strict=True)) if a != b))
    }
    if not cuts or any(shapes[name][d] != rows for name, dims in cuts.items() for d in dims):
        raise CheckpointError(f"{source}: no tensor of this {config.model_type} model has one row a token to cut")
    return TokenRows(
        rows=rows,
        key=config.attribute_map.get("vocab_size", "vocab_size"),
        cuts=cuts,
        names=frozenset(shapes),
        prefix=model.base_model_prefix,
        pad_fixed=config.pad_token_id if _positions_from_padding(model, cuts) else None,
        defaults={k: v for k, v in config.to_dict().items() if k.endswith("_token_id") and isinstance(v, int)},
    )


def _positions_from_padding(model: Any, cuts: Mapping[str, Any]) -> bool:
    """True where something beside the word embeddings knows the padding id: RoBERTa's position embeddings."""
    from transformers import PreTrainedModel

    return any(
        getattr(module, "padding_idx", None) is not None
        and not isinstance(module, PreTrainedModel)  # Llama notes it and does not use it
        and f"{name}.weight" not in cuts
        for name, module in model.named_modules()
    )


def new_config(config: Mapping[str, Any], new: Mapping[int, int], model: TokenRows) -> dict[str, Any]:
    found = map_named(config, new)
    found[model.key] = len(new)
    if found.get("decoder_vocab_size") == model.rows:
        found["decoder_vocab_size"] = len(new)
    return found


# ---- the weights


def cut_weights(source: Path, folder: Path, model: TokenRows, old_ids: Sequence[int]) -> tuple[int, int]:
    """Write model.safetensors; returns the bytes of what has a row for each token, before and after."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    index = torch.tensor(old_ids)
    tensors: dict[str, Any] = {}
    before = after = 0
    seen: set[str | None] = set()
    for file in _weight_files(source):
        with safe_open(file, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118 - safe_open is no mapping
                tensor = weights.get_tensor(name)
                dims = model.dims(name, tensor.shape)
                for dim in dims:
                    if tensor.shape[dim] != model.rows:
                        raise CheckpointError(
                            f"{file}: {name} has {tensor.shape[dim]} rows, but config.json has {model.key}={model.rows}"
                        )
                before += tensor.nbytes if dims else 0
                for dim in dims:
                    tensor = tensor.index_select(dim, index)
                after += tensor.nbytes if dims else 0
                tensors[name] = tensor.contiguous()
                seen.add(model.own_name(name) if dims else None)
    if not seen & model.cuts.keys():
        raise CheckpointError(f"{source}: none of its weights has a row for each token (expected {min(model.cuts)})")
    needed = sum(t.nbytes for t in tensors.values())
    if shutil.disk_usage(folder).free < needed:
        raise no_space(folder, needed)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)  # safetensors makes its files private to this user
    return before, after


def _weight_files(source: Path) -> list[Path]:
    index = source / "model.safetensors.index.json"
    if index.is_file() and not has_file(source, "model.safetensors"):
        names = sorted(set(read_json(index).get("weight_map", {}).values()))
        files = [source / Path(name).name for name in names]
    else:
        files = [source / "model.safetensors"]
    for file in files:
        if not file.is_file():
            raise CheckpointError(
                f"{source} has no weights to trim: {file.name} is missing; save the model there with "
                "model.save_pretrained(folder, safe_serialization=True)"
            )
    return files
