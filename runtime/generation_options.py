"""What a call of a model that writes may ask for, and what its bundle says where a call asks nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypedDict

from edgewise.bundle import Bundle
from edgewise.errors import BundleError, InputError, UserError, nearest

CONFIG = "generation_config.json"
_NEW_TOKENS = 256
"""Where neither the call nor the bundle says how long an answer may be; as transformers' pipelines."""

_UNSAID = 20
"""The max_length of a generation_config.json that says none, as transformers reads it."""


class GenerateOptions(TypedDict, total=False):
    """What a call of a model that writes takes beside its input; None, or nothing, is what the bundle says."""

    max_new_tokens: int | None
    max_length: int | None
    min_new_tokens: int | None
    min_length: int | None
    do_sample: bool | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    no_repeat_ngram_size: int | None
    num_beams: int | None
    length_penalty: float | None
    early_stopping: bool | Literal["never"] | None
    seed: int | None
    stop: str | Sequence[str] | None


@dataclass(frozen=True)
class Options:
    """How to write: one call's options over those of the bundle. Names and meanings are transformers'."""

    max_new_tokens: int | None = None
    max_length: int | None = None
    """Tokens with the prompt (text to text: with the decoder's start), where `max_new_tokens` is None."""
    min_new_tokens: int = 0
    min_length: int = 0
    """Tokens with the prompt, before which nothing ends."""
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 50
    """Draw among so many tokens; 0: among all."""
    top_p: float = 1.0
    min_p: float | None = None
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    renormalize_logits: bool = False
    seed: int | None = None
    stop: tuple[str, ...] = ()
    """Strings that end the text, which stands before them."""
    eos_token_id: tuple[int, ...] = ()
    pad_token_id: int = 0
    bos_token_id: int | None = None
    decoder_start_token_id: int | None = None
    forced_bos_token_id: int | None = None
    forced_eos_token_id: tuple[int, ...] = ()
    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    prefix: str = ""
    """What the model wants before each text."""

    def new_tokens(self, given: int) -> int:
        """Tokens to write after `given` ones at most; below 1 where `max_length` leaves no room."""
        if self.max_new_tokens is not None:
            return self.max_new_tokens
        return _NEW_TOKENS if self.max_length is None else self.max_length - given


_WHOLE = {
    "max_new_tokens": 1, "max_length": 1, "min_new_tokens": 0, "min_length": 0, "top_k": 0, "no_repeat_ngram_size": 0,
    "num_beams": 1, "seed": 0,
}  # fmt: skip
"""Option -> the least that it may be."""
_TOKEN = ("pad_token_id", "bos_token_id", "decoder_start_token_id", "forced_bos_token_id")
_TOKENS = ("eos_token_id", "forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens")
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "encoder_repetition_penalty": (1.0,), "encoder_no_repeat_ngram_size": (0,), "typical_p": (1.0,),
    "epsilon_cutoff": (0.0,), "eta_cutoff": (0.0,), "diversity_penalty": (0.0,), "num_beam_groups": (1,),
    "num_return_sequences": (1,), "guidance_scale": (1, 1.0), "sequence_bias": (), "force_words_ids": (),
    "constraints": (), "exponential_decay_length_penalty": (), "forced_decoder_ids": (), "penalty_alpha": (0, 0.0),
    "max_time": (), "watermarking_config": (), "dola_layers": (),
}  # fmt: skip
"""What changes the answer and is not done here -> the values that say nothing, beside None."""


def read_options(bundle: Bundle) -> Options:
    """What the bundle's generation_config.json says; its config.json where that says more (older models).

    Raises BundleError for a value that cannot be, and for what would change the answer and is not known here.
    """
    config = _read(bundle.path / "config.json")
    file = bundle.path / CONFIG
    tokens = {n: config.get(n) for n in (*_TOKEN, "eos_token_id")}
    told = {n: v for n, v in tokens.items() if v is not None} | _read(file)
    prefix = config.get("prefix")
    more = (config.get("task_specific_params") or {}).get(bundle.manifest.task)
    if more is not None:  # as the pipeline reads it
        told |= {n: v for n, v in more.items() if n != "prefix"}
        prefix = more.get("prefix", prefix)
    for name, neutral in _NEUTRAL.items():
        if told.get(name) is not None and told[name] not in neutral:
            raise BundleError(
                f"{file} asks for {name}={told[name]!r}, which edgewise does not do: take it out before the export, "
                "if the model is good without it"
            )
    if told.get("max_length") == _UNSAID:
        del told["max_length"]
    if "stop_strings" in told:
        told["stop"] = told["stop_strings"]
    known = {f.name for f in fields(Options)} - {"prefix", "seed"}
    found = {n: _checked(n, v, BundleError, f"{file}: ") for n, v in told.items() if n in known and v is not None}
    return replace(Options(pad_token_id=bundle.manifest.preprocessing.get("pad_id") or 0), prefix=prefix or "", **found)


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BundleError(f"{file} is no JSON: {error}; export the bundle again") from error
    if not isinstance(found, dict):
        raise BundleError(f"{file} holds no JSON object: export the bundle again")
    return found


def with_given(options: Options, given: Mapping[str, Any]) -> Options:
    """`options` with those of a call; raises InputError for one that is not known, or that cannot be."""
    try:
        return _remembered(options, **given)
    except TypeError:  # a list, say of stop strings, is nothing that can be looked up
        return _with_given(options, given)


@lru_cache(maxsize=64, typed=True)
def _remembered(options: Options, /, **given: Any) -> Options:
    # Most calls ask for what the one before asked for, and a new Options takes longer than to decode a short answer.
    return _with_given(options, given)


def _with_given(options: Options, given: Mapping[str, Any]) -> Options:
    allowed = tuple(GenerateOptions.__annotations__)
    found = {}
    for name, value in given.items():
        if name not in allowed:
            raise InputError(f"unknown option {name!r}: {nearest(name, allowed)}")
        if value is not None:
            found[name] = _checked(name, value, InputError, "")
    if "max_length" in found and "max_new_tokens" not in found:
        found["max_new_tokens"] = None  # the call's word is over the bundle's
    changed = replace(options, **found) if found else options
    if changed.num_beams > 1 and changed.do_sample:
        raise InputError("beam search takes the best, and do_sample draws: set num_beams=1 or do_sample=False")
    if changed.num_beams > 1 and changed.stop:
        raise InputError("stop strings end one text, and beam search writes several at once: set num_beams=1")
    return changed


def _checked(name: str, value: Any, error: type[UserError], where: str) -> Any:
    """The value as Options keeps it; raises `error` for one that cannot be."""

    def wrong(expected: str) -> UserError:
        return error(f"{where}{name} is {value!r}; expected {expected}")

    if name in _WHOLE:
        if not _is_whole(value) or value < _WHOLE[name]:
            raise wrong(f"a whole number of at least {_WHOLE[name]}")
        return value
    if name in ("do_sample", "renormalize_logits"):
        if not isinstance(value, bool):
            raise wrong("True or False")
        return value
    if name == "early_stopping":
        if not isinstance(value, bool) and value != "never":
            raise wrong("True, False or 'never'")
        return value
    if name == "stop":
        stop = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, Sequence) else (None,)
        if not all(isinstance(s, str) and s for s in stop):
            raise wrong("a text of at least one character, or a list of such texts")
        return stop
    if name in _TOKEN or name in _TOKENS or name == "bad_words_ids":
        return _tokens(name, value, wrong("token ids"))
    return _number(name, value, wrong)


def _number(name: str, value: Any, wrong: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        raise wrong("a number")
    if name in ("top_p", "min_p") and not 0 <= value <= 1:
        raise wrong("a number of 0 to 1")
    if name == "temperature" and value <= 0:
        raise wrong("a number above 0; for the most likely token, do_sample=False")
    if name == "repetition_penalty" and value <= 0:
        raise wrong("a number above 0")
    return float(value)


def _tokens(name: str, value: Any, wrong: UserError) -> Any:
    if name in _TOKEN:
        if not _is_whole(value):
            raise wrong
        return value
    if name == "bad_words_ids":
        if not isinstance(value, list) or not all(isinstance(word, list) and word for word in value):
            raise wrong
        return tuple(tuple(_tokens("eos_token_id", word, wrong)) for word in value)
    ids = [value] if _is_whole(value) else value
    if not isinstance(ids, list) or not all(map(_is_whole, ids)):
        raise wrong
    return tuple(ids)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
