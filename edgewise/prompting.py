"""How a prompt runs inside a transformers model: one forward for each kind, put over the model's own.

`edgewise.prompts` decides where the prompt stands and what its values are; here it goes in and, after the layers,
out again. torch is imported inside the functions: the build side alone has it.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from edgewise.errors import PlanError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

PARAMETER = "edgewise_prompt"
"""Name of the parameter in the module that holds it, and of the mark in config.json."""


def patch(module: Any, forward: Callable[..., Any]) -> None:
    """Let `module.forward` be `forward(module, original, arguments by name)`, with the original's signature.

    A bound method, so that a deep copy of the module gets its own; no functools.wraps, since Optimum calls what it
    finds under __wrapped__ instead.
    """
    from types import MethodType

    original = type(module).forward
    signature = inspect.signature(original)
    more = next((p.name for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD), "")

    def prompted(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = dict(signature.bind(self, *args, **kwargs).arguments)
        given.pop("self")
        given |= given.pop(more, {})
        return forward(self, original, given)

    prompted.__signature__ = signature  # type: ignore[attr-defined]
    module.forward = MethodType(prompted, module)


def text_forward(self: Any, original: Callable[..., Any], given: dict[str, Any]) -> Any:
    """BERT-like and GPT-like: prompt in, run, prompt out."""
    past = _past_length(given.get("past_key_values"))
    added = _prepend(self, given, past)
    given.pop("cache_position", None)  # counts the text alone; the model counts again, with what the cache holds
    as_tuple = given.pop("return_dict", None) is False
    outputs = original(self, **given, return_dict=True)
    outputs.last_hidden_state = outputs.last_hidden_state[:, added:]
    if getattr(outputs, "hidden_states", None) is not None:
        outputs.hidden_states = tuple(h[:, added:] for h in outputs.hidden_states)
    if getattr(outputs, "pooler_output", None) is not None:
        outputs.pooler_output = _pool(self, outputs.last_hidden_state)
    return outputs.to_tuple() if as_tuple else outputs


def encoder_forward(self: Any, original: Callable[..., Any], given: dict[str, Any]) -> Any:
    """The encoder of T5: prompt in, run; its states are read by the decoder too."""
    _prepend(self, given, 0)
    return original(self, **given)


def decoder_forward(self: Any, original: Callable[..., Any], given: dict[str, Any]) -> Any:
    """The decoder of T5: the text's mask grows by the prompt, however the encoder's states come (cache or input)."""
    import torch

    mask: Any = given.get("encoder_attention_mask")
    states: Any = given.get("encoder_hidden_states")
    if mask is not None:
        cross = getattr(given.get("past_key_values"), "cross_attention_cache", None)
        kept = _past_length(cross)
        length = states.shape[1] if isinstance(kept, int) and kept == 0 else kept
        # The difference and not the prompt's length: Optimum traces with states and mask of one length.
        ones = mask.new_ones((mask.shape[0], length - mask.shape[1]))
        given["encoder_attention_mask"] = torch.cat([ones, mask], dim=1)
    return original(self, **given)


def image_forward(self: Any, original: Callable[..., Any], given: dict[str, Any]) -> Any:
    """The encoder of a ViT: visual tokens in after [CLS], run, out again."""
    import torch

    states = given.pop("hidden_states")
    prompt, n = self.edgewise_prompt, self.edgewise_prompt_tokens
    tokens = prompt.to(states.dtype).unsqueeze(0).expand(states.shape[0], -1, -1)
    outputs = original(self, torch.cat([states[:, :1], tokens, states[:, 1:]], dim=1), **given)

    def without(h: Tensor) -> Tensor:
        return torch.cat([h[:, :1], h[:, 1 + n :]], dim=1)

    if isinstance(outputs, tuple):
        return (without(outputs[0]), *outputs[1:])
    outputs.last_hidden_state = without(outputs.last_hidden_state)
    if outputs.hidden_states is not None:
        outputs.hidden_states = tuple(without(h) for h in outputs.hidden_states)
    return outputs


def _prepend(self: Any, given: dict[str, Any], past: Any) -> Any:
    """Put the prompt before the embeddings unless the cache holds it; returns how many positions came in.

    past: length of the cache; an int, or a traced tensor in an export, so that one graph serves prefill and steps.
    """
    import torch

    prompt, n = self.edgewise_prompt, self.edgewise_prompt_tokens
    added = n * torch.clamp(1 - past, min=0) if isinstance(past, torch.Tensor) else n * int(past == 0)
    ids, embeds = given.pop("input_ids", None), given.get("inputs_embeds")
    embeds = self.get_input_embeddings()(ids) if embeds is None else embeds
    batch = embeds.shape[0]
    tokens = prompt.to(embeds.dtype).unsqueeze(0).expand(batch, -1, -1)
    given["inputs_embeds"] = torch.cat([tokens[:, :added], embeds], dim=1)
    mask = given.get("attention_mask")
    if mask is not None:
        if mask.dim() != 2:
            raise PlanError(f"a prompt needs a mask [batch, length], got {mask.dim()} dimensions (a static cache?)")
        given["attention_mask"] = torch.cat([mask.new_ones((mask.shape[0], n)), mask], dim=1)
    types, positions = given.get("token_type_ids"), given.get("position_ids")
    if types is not None:
        given["token_type_ids"] = torch.cat([types.new_zeros((types.shape[0], n))[:, :added], types], dim=1)
    if positions is not None:
        first = torch.arange(n, device=positions.device).unsqueeze(0).expand(positions.shape[0], -1)[:, :added]
        given["position_ids"] = torch.cat([first, positions + n], dim=1)
    return added


def _past_length(past: Any) -> Any:
    """Positions in a cache of any form; 0 without one."""
    if past is None:
        return 0
    return past.get_seq_length() if hasattr(past, "get_seq_length") else past[0][0].shape[-2]


def _pool(self: Any, states: Any) -> Any:
    """The pooled output from [CLS]: BERT's pooler takes the states, ALBERT's the first of them."""
    if hasattr(self, "pooler_activation"):
        return self.pooler_activation(self.pooler(states[:, 0]))
    return self.pooler(states)
