"""Token ids in what stands beside a model: its configs, and what a tokenizer puts around a text."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgewise.errors import CheckpointError

_FORBIDDEN = ("suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "sequence_bias")
"""Of a generation config: what it names and is not kept cannot be written anyway, and is dropped."""


def has_file(folder: Path, name: str) -> bool:
    return (folder / name).is_file()


def read_json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{file} is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{file} holds a {type(found).__name__}, not an object")
    return found


# ---- in configs


def named_ids(config: Mapping[str, Any]) -> set[int]:
    """Every token id that a config names and that the model may read or write."""
    found: set[int] = set()
    for key, value in config.items():
        if isinstance(value, dict) and key not in ("id2label", "label2id"):
            found |= named_ids(value)
        elif key == "forced_decoder_ids" and value:
            found |= {i for _, i in value if i is not None}
        elif _names_ids(key):
            found |= set(_flat(value))
    return found


def _names_ids(key: str) -> bool:
    return key.endswith(("_token_id", "_token_ids")) or key == "force_words_ids"


def _flat(value: Any) -> Iterator[int]:
    if isinstance(value, list):
        for item in value:
            yield from _flat(item)
    elif isinstance(value, int) and not isinstance(value, bool):
        yield value


def map_named(config: Mapping[str, Any], new: Mapping[int, int]) -> dict[str, Any]:
    """The config with new ids. One that is no row of the model (-1; GPT-2's 50256 in a small model) stays."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict) and key not in ("id2label", "label2id"):
            found[key] = map_named(value, new)
        elif key == "forced_decoder_ids" and value:
            found[key] = [[at, new.get(i, i)] for at, i in value]
        elif _names_ids(key):
            found[key] = _map_ids(value, new)
        elif key in _FORBIDDEN and isinstance(value, list):
            possible = [v for v in value if all(i in new for i in _flat(v[0] if key == "sequence_bias" else v))]
            if possible:  # transformers takes no empty list of forbidden words
                biases = [[_map_ids(ids, new), bias] for ids, bias in possible] if key == "sequence_bias" else None
                found[key] = biases or _map_ids(possible, new)
        else:
            found[key] = value
    return found


def _map_ids(value: Any, new: Mapping[int, int]) -> Any:
    if isinstance(value, list):
        return [_map_ids(item, new) for item in value]
    return new.get(value, value) if isinstance(value, int) and not isinstance(value, bool) else value


# ---- in the post-processor of a tokenizer.json


def _processors(processor: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """A post-processor, or those that it is a sequence of."""
    if processor and processor["type"] == "Sequence":
        for inner in processor["processors"]:
            yield from _processors(inner)
    elif processor:
        yield processor


def processor_ids(processor: dict[str, Any] | None) -> Iterator[int]:
    for found in _processors(processor):
        if found["type"] == "TemplateProcessing":
            yield from (i for special in found["special_tokens"].values() for i in special["ids"])
        elif found["type"] in ("BertProcessing", "RobertaProcessing"):
            yield from (found["sep"][1], found["cls"][1])


def map_processor(processor: dict[str, Any] | None, new: Mapping[int, int]) -> None:
    for found in _processors(processor):
        if found["type"] == "TemplateProcessing":
            for special in found["special_tokens"].values():
                special["ids"] = [new[i] for i in special["ids"]]
        elif found["type"] in ("BertProcessing", "RobertaProcessing"):
            for name in ("sep", "cls"):
                found[name] = [found[name][0], new[found[name][1]]]
