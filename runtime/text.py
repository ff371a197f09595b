"""Texts to token ids, with tokenizers alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from tokenizers import Encoding, Tokenizer

from edgewise.bundle import Bundle
from edgewise.errors import BundleError, InputError
from edgewise.types import RunSettings

TextInput = str | tuple[str, str]
"""One text, or a pair of texts for a model that compares two."""

INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
"""Inputs that a text can be turned into."""

_FAR = 16
"""Characters a token from which a text is far longer than the limit; English has 4 to 5."""


@dataclass(frozen=True)
class TextEncoder:
    """Turns texts into the arrays that a graph takes."""

    tokenizer: Tokenizer
    inputs: tuple[str, ...]
    """Names that the graph takes, of INPUTS."""
    pad_id: int
    fixed: int | None = None
    """Tokens that every text is padded to, for a graph of a fixed length."""
    length: int | None = None
    """Tokens that a text is cut to, special tokens included; None: it is read whole."""

    @classmethod
    def read(cls, bundle: Bundle, run: RunSettings) -> TextEncoder:
        """Read the bundle's tokenizer.json; raises BundleError for one that is broken."""
        preprocessing = bundle.manifest.preprocessing
        file = bundle.path / preprocessing["tokenizer"]
        try:
            tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # tokenizers raises bare Exception
            raise BundleError(f"{file} is no tokenizer that tokenizers can read: {error}") from error
        # What the file says of padding and length is for training; here the run settings rule.
        tokenizer.no_padding()
        tokenizer.no_truncation()
        length = run.max_length or preprocessing.get("max_length")
        if length is not None:
            tokenizer.enable_truncation(length)
        inputs = tuple(i.name for i in bundle.manifest.graphs[0].inputs)
        if unknown := [name for name in inputs if name not in INPUTS]:
            raise BundleError(f"{bundle.path}: its graph takes {', '.join(unknown)}, which no text can be turned into")
        return cls(tokenizer, inputs, preprocessing.get("pad_id") or 0, preprocessing.get("length"), length)

    @cached_property
    def uncut(self) -> Tokenizer:
        """The tokenizer without a limit: a copy, as tokenizers keeps the limit in the tokenizer. Made when needed."""
        tokenizer = Tokenizer.from_str(self.tokenizer.to_str())
        tokenizer.no_truncation()
        return tokenizer

    def encode(self, items: Sequence[TextInput]) -> list[Encoding]:
        """Tokenize; raises InputError for what is no text, or has no token (an empty text, for GPT's kind)."""
        encodings = self._encode(items)
        for item, encoding in zip(items, encodings, strict=True):
            if not len(encoding):
                raise InputError(f"the text {_short(item)} has no token for this model: leave it out, or say more")
        return encodings

    def _encode(self, items: Sequence[TextInput]) -> list[Encoding]:
        try:
            first = items[0] if len(items) == 1 else None
            if isinstance(first, str) and (self.length is None or len(first) <= _FAR * self.length):
                return [self.tokenizer.encode(first)]  # most calls: nothing else stands before them
            if self.length is not None and any(is_far_longer(item, self.length) for item in items):
                return self._encode_far(items, self.length)
            if len(items) == 1:
                return [self.tokenizer.encode(*_pair(first))]
            many: list[Encoding] = self.tokenizer.encode_batch([i if isinstance(i, str) else _pair(i) for i in items])
            return many
        except (UnicodeEncodeError, TypeError, ValueError) as error:
            for item in items:
                _explain(item)
            raise InputError(f"the tokenizer cannot read {_short(items)}: {error}") from error

    def _encode_far(self, items: Sequence[TextInput], length: int) -> list[Encoding]:
        from edgewise.runtime.long_text import encode_start  # few need it, and a start is short

        return [encode_start(self.tokenizer, i if isinstance(i, str) else _pair(i), length) for i in items]

    def arrays(self, encodings: Sequence[Encoding]) -> dict[str, np.ndarray]:
        """int64 arrays [batch, longest or fixed length], padded on the right, by the names that the graph takes."""
        if not encodings:
            raise InputError("a batch of no texts: give at least one")
        if len(encodings) == 1 and self.fixed is None:
            return {n: np.array([_column(encodings[0], n)], dtype=np.int64) for n in self.inputs}
        longest = self.fixed or max(len(e) for e in encodings)
        columns = {
            n: [(c := _column(e, n)) + [self.pad_id if n == "input_ids" else 0] * (longest - len(c)) for e in encodings]
            for n in self.inputs
        }
        return {name: np.array(rows, dtype=np.int64) for name, rows in columns.items()}


def is_far_longer(item: object, limit: int) -> bool:
    """True for a text, or a pair with one, that is far longer than `limit` tokens."""
    if isinstance(item, tuple):
        return any(is_far_longer(text, limit) for text in item)
    return isinstance(item, str) and len(item) > _FAR * limit


def _column(encoding: Encoding, name: str) -> list[int]:
    if name == "input_ids":
        ids: list[int] = encoding.ids
        return ids
    if name == "position_ids":
        return list(range(len(encoding)))  # padding stands behind the text, and is masked whatever its position
    values: list[int] = encoding.attention_mask if name == "attention_mask" else encoding.type_ids
    return values


def _pair(item: object) -> tuple[str, str]:
    if isinstance(item, tuple) and len(item) == 2 and all(isinstance(t, str) for t in item):
        return item
    raise InputError(f"expected a text or a pair of texts, got {_short(item)} of type {type(item).__name__}")


def _explain(item: object) -> None:
    """Raise the error that names what is wrong with one input, if anything is."""
    for text in (item,) if isinstance(item, str) else _pair(item):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(
                f"the text {_short(text)} has a lone surrogate at character {error.start}, which is no Unicode text: "
                "decode its bytes with errors='replace'"
            ) from error


def _short(value: object) -> str:
    shown = ascii(value)  # a lone surrogate cannot be printed
    return shown if len(shown) <= 60 else shown[:57] + "..."


def texts_of(value: object) -> TextInput:
    """What `transformers.pipeline` takes for one input: a text, or {'text': ..., 'text_pair': ...}."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict) and isinstance(value.get("text"), str) and set(value) <= {"text", "text_pair"}:
        pair = value.get("text_pair")
        return value["text"] if pair is None else _pair((value["text"], pair))
    return _pair(value)


def text_of(value: object) -> str:
    """One text, for a task that reads no pairs; raises InputError for anything else."""
    if isinstance(value, str):
        return value
    raise InputError(f"expected a text, got {_short(value)} of type {type(value).__name__}")
