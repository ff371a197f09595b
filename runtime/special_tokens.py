"""What the tokenizer's configs say beside tokenizer.json: which tokens mean a mask, padding, an end, no word."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from edgewise.bundle import Bundle
from edgewise.errors import BundleError

_FILES = ("special_tokens_map.json", "tokenizer_config.json")
"""The later one rules."""
_SPACES = ((" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"), (" 'm", "'m"),
           (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"))  # fmt: skip
"""What transformers' clean_up_tokenization replaces, in its order."""


@dataclass(frozen=True)
class SpecialTokens:
    """Tokens with a meaning of their own, as written; None for what the tokenizer has not."""

    mask: str | None
    unknown: str | None
    padding: str | None
    end: str | None
    """Of a text."""
    clean_up: bool
    """Spaces before punctuation are taken out of text that is made of tokens."""

    def id_of(self, tokenizer: Tokenizer, token: str | None) -> int | None:
        """Its id; None for a token that is not in the vocabulary."""
        found: int | None = None if token is None else tokenizer.token_to_id(token)
        return found

    def decode(self, tokenizer: Tokenizer, ids: list[int], *, skip_special: bool = False) -> str:
        """Text of token ids, as `decode` of a tokenizer of transformers gives it."""
        text: str = tokenizer.decode(ids, skip_special_tokens=skip_special)
        if self.clean_up:
            for old, new in _SPACES:
                text = text.replace(old, new)
        return text


def read_special_tokens(bundle: Bundle) -> SpecialTokens:
    """Read them from a bundle's folder; raises BundleError for a config that is no JSON object."""
    told: dict[str, Any] = {}
    for name in _FILES:
        file = bundle.path / name
        if not file.is_file():
            continue
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise BundleError(f"{file} is no JSON: {error}; export the bundle again") from error
        if not isinstance(values, dict):
            raise BundleError(f"{file} is no JSON object; export the bundle again")
        told |= {key: value for key, value in values.items() if value is not None}
    return SpecialTokens(
        _text(told.get("mask_token")),
        _text(told.get("unk_token")),
        _text(told.get("pad_token")),
        _text(told.get("eos_token")),
        told.get("clean_up_tokenization_spaces") is True,
    )


def _text(token: Any) -> str | None:
    """A token is written as text, or as an object with its content."""
    found = token.get("content") if isinstance(token, dict) else token
    return found if isinstance(found, str) else None
