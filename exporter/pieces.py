"""Which tokens of a tokenizer some texts need, by its kind: WordPiece, BPE, Unigram, WordLevel (see vocabulary.py)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from edgewise.errors import CheckpointError
from edgewise.exporter.token_ids import processor_ids

Text = str | tuple[str, str]

_KINDS = ("WordPiece", "BPE", "Unigram", "WordLevel")
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


@dataclass(frozen=True)
class Pieces:
    """The vocabulary of tokenizer.json's model, without the tokens that were added to it."""

    kind: str
    ids: Mapping[str, int]
    scores: Sequence[float]
    """Of Unigram, by id."""
    merges: Sequence[tuple[str, str]]
    """Of BPE, by rank."""
    unknown: int | None
    prefix: str
    """Of a piece that goes on inside a word: '##'."""
    suffix: str
    """Of one that ends a word (BPE): '</w>'."""
    longest: int
    """Characters of a word that WordPiece reads; a longer one is unknown."""

    @classmethod
    def of(cls, document: Mapping[str, Any], source: Path) -> Pieces:
        """Raises CheckpointError for a kind of tokenizer that it does not know."""
        model = document["model"]
        kind = model.get("type")
        if kind not in _KINDS:
            raise CheckpointError(f"{source}: cannot trim a tokenizer of kind {kind!r}; known: {', '.join(_KINDS)}")
        if model.get("dropout"):
            raise CheckpointError(
                f"{source}: its BPE leaves out merges at random (dropout={model['dropout']}), so no text has one "
                "reading to keep: set model.dropout to null in tokenizer.json"
            )
        vocabulary = model["vocab"]
        listed = isinstance(vocabulary, list)
        ids = {token: i for i, (token, _) in enumerate(vocabulary)} if listed else vocabulary
        return cls(
            kind=kind,
            ids=ids,
            scores=[score for _, score in vocabulary] if listed else (),
            merges=[_pair(m) for m in model.get("merges") or ()],
            unknown=model.get("unk_id") if listed else ids.get(model.get("unk_token")),
            prefix=model.get("continuing_subword_prefix") or "",
            suffix=model.get("end_of_word_suffix") or "",
            longest=model.get("max_input_chars_per_word", 0),
        )

    @property
    def note(self) -> str:
        if self.kind != "WordLevel":
            return ""
        unknown = next((token for token, i in self.ids.items() if i == self.unknown), "unknown")
        return f"this tokenizer knows whole words only: one that is in none of the given texts now becomes {unknown}"

    def symbols(self, token: str) -> list[str]:
        """The single characters of a token, in the form in which each would stand alone: ab##, ##b."""
        inner = bool(self.prefix) and token.startswith(self.prefix) and len(token) > len(self.prefix)
        final = bool(self.suffix) and token.endswith(self.suffix) and len(token) > len(self.suffix)
        body = token[len(self.prefix) if inner else 0 : len(token) - len(self.suffix) if final else None]
        found = [(self.prefix if i or inner else "") + c for i, c in enumerate(body)]
        return [*found[:-1], found[-1] + self.suffix] if final else found

    def smallest(self) -> set[int]:
        """Ids of what any text is built from: characters, bytes, and tokens with a character that is no piece."""
        return {
            i
            for token, i in self.ids.items()
            if len(symbols := self.symbols(token)) == 1
            or _BYTE.fullmatch(token)
            or (self.kind != "WordLevel" and any(s not in self.ids for s in symbols))
        }

    def built_from(self, tokens: Iterable[str]) -> set[str]:
        """All that BPE's merges make on the way to each token.

        A merge never crosses the ends of a token that comes out of a word, so that the token alone is built as within
        the word.
        """
        ranks = {pair: rank for rank, pair in enumerate(self.merges)}
        found: set[str] = set()
        for token in tokens:
            parts = self.symbols(token)
            while len(parts) > 1:
                found.update(parts)
                pairs = list(pairwise(parts))
                at = min(range(len(pairs)), key=lambda i: ranks.get(pairs[i], len(ranks)))
                if pairs[at] not in ranks:
                    break  # a token that stands for a whole word (ignore_merges), or cannot come out
                parts[at : at + 2] = [self.merged(pairs[at])]
            found.update(parts)
        return found & self.ids.keys()

    def merged(self, pair: tuple[str, str]) -> str:
        return pair[0] + pair[1][len(self.prefix) :]

    def before_failure(self, words: Iterable[str]) -> set[int]:
        """What WordPiece takes of each word before it finds no piece and makes the whole word unknown."""
        found: set[int] = set()
        for word in set(words):
            start, taken = 0, set[int]()
            while start < len(word) <= self.longest:
                forms = ((self.prefix if start else "") + word[start:end] for end in range(len(word), start, -1))
                token = next((form for form in forms if form in self.ids), None)
                if token is None:
                    found |= taken
                    break
                taken.add(self.ids[token])
                start += len(token) - (len(self.prefix) if start else 0)
        return found


def _pair(merge: Any) -> tuple[str, str]:
    """Of 'a b', as older files write a merge, or of ['a', 'b']."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _words(backend: Any, texts: Iterable[Text]) -> Iterator[str]:
    """The words of some texts, as they reach the tokenizer's model."""
    for text in texts:
        for part in text if isinstance(text, tuple) else (text,):
            plain = backend.normalizer.normalize_str(part) if backend.normalizer else part
            if backend.pre_tokenizer:
                yield from (word for word, _ in backend.pre_tokenizer.pre_tokenize_str(plain))
            else:
                yield plain


def used_ids(backend: Any, pieces: Pieces, items: Sequence[Text], encoded: Sequence[Any]) -> set[int]:
    """Ids of all tokens of the texts, and those that a word needs to become unknown as before."""
    import numpy as np

    used = set(np.unique(np.concatenate(encoded)).tolist())
    if pieces.kind == "WordPiece" and pieces.unknown in used:
        failed = [text for text, ids in zip(items, encoded, strict=True) if pieces.unknown in ids]
        used |= pieces.before_failure(_words(backend, failed))
    return used


def choose_ids(document: Mapping[str, Any], pieces: Pieces, used: set[int]) -> list[int]:
    """The old id of each new one. The old order is kept, the model's pieces before what was added to them."""
    added = {t["id"] for t in document["added_tokens"]}
    kept = used | added | pieces.smallest() | set(processor_ids(document.get("post_processor")))
    kept |= {pieces.unknown} - {None}
    if pieces.kind == "BPE":
        kept |= {pieces.ids[t] for t in pieces.built_from(t for t, i in pieces.ids.items() if i in kept)}
    if pieces.kind == "Unigram" and pieces.scores:
        kept.add(min(range(len(pieces.scores)), key=pieces.scores.__getitem__))
    own = set(pieces.ids.values())
    return sorted(kept, key=lambda i: (0 if i in own else 1 if i in added else 2, i))
