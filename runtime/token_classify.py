"""Token classification: a label for each token, or for each entity that tokens make together."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from tokenizers import Encoding

from edgewise.bundle import Golden
from edgewise.errors import EdgewiseError, InputError, nearest
from edgewise.runtime.aggregate import STRATEGIES, Entity, Strategy, Token, aggregate, join_windows, without
from edgewise.runtime.base import Model, Opened, is_iterator
from edgewise.runtime.special_tokens import read_special_tokens
from edgewise.runtime.text import TextEncoder, text_of
from edgewise.runtime.windows import windows_of

_IGNORED = ("O",)


@dataclass(frozen=True, slots=True)
class TokenPrediction:
    """The answer to one text."""

    entities: tuple[Entity, ...]
    """In the order of the text; without those of labels that are ignored."""
    truncated: bool
    """True when the text was longer than the length allows, and its end was not read."""
    n_tokens: int
    """Tokens that were read, special tokens included; of several windows all of theirs."""
    windows: int = 1
    """Parts in which the text was read."""


@dataclass(frozen=True, slots=True)
class _How:
    """What a call asks for."""

    strategy: Strategy
    ignored: Collection[str]
    stride: int | None


class TokenClassifier(Model):
    """A loaded bundle for token classification. Calls are thread-safe; use as a context manager or `close()` it."""

    def __init__(self, opened: Opened) -> None:
        super().__init__(opened)
        self._encoder = TextEncoder.read(opened.bundle, opened.run)
        tokenizer = self._encoder.tokenizer
        special = read_special_tokens(opened.bundle)
        self._unknown = special.id_of(tokenizer, special.unknown)
        # A vocabulary that marks what goes on inside a word tells words from their parts.
        self._knows_words = bool(getattr(tokenizer.model, "continuing_subword_prefix", None))

    def __call__(
        self,
        inputs: Any,
        *,
        aggregation_strategy: Strategy = "none",
        ignore_labels: Collection[str] = _IGNORED,
        stride: int | None = None,
    ) -> Any:
        """Find entities as `transformers.pipeline('token-classification')` does.

        inputs: a text, a list or tuple of texts, or an iterator of them.
        aggregation_strategy: 'none', a token each; 'simple', neighbours with one label joined; 'first', 'average' and
        'max' so too, with one label for all tokens of a word. A tokenizer that does not mark what goes on inside a
        word (others than WordPiece) has words wherever there is a space.
        ignore_labels: labels that are left out.
        stride: read a long text to its end, in windows that share so many tokens; needs a strategy other than 'none'.
        None: the end of such a text is not read.

        Returns for a text a list of {'entity', 'score', 'index', 'word', 'start', 'end'}, or, aggregated,
        {'entity_group', 'score', 'word', 'start', 'end'}; start and end are characters. For a list: such a list an
        input. For an iterator: an iterator of them, in order, with no more than a few inputs held at a time.

        Raises InputError for what is no text, and for options that cannot be.
        """
        how = self._how(aggregation_strategy, ignore_labels, stride)
        if is_iterator(inputs):
            self.session()  # what is wrong already is said now, not at the first answer
            return self._stream(inputs, how)
        if isinstance(inputs, list | tuple):
            return [_as_dicts(p, how) for p in self._predict([text_of(i) for i in inputs], how)]
        (prediction,) = self._predict([text_of(inputs)], how)
        return _as_dicts(prediction, how)

    def predict(
        self,
        items: Sequence[str],
        *,
        aggregation_strategy: Strategy = "none",
        ignore_labels: Collection[str] = _IGNORED,
        stride: int | None = None,
    ) -> list[TokenPrediction]:
        """Typed answers, in order; `run.batch_size` texts, or windows of one, go through the graph together.

        The options are those of a call. Raises InputError for anything but texts.
        """
        if isinstance(items, str) or not isinstance(items, Sequence):
            raise InputError(f"predict takes a list of texts, got {type(items).__name__}: put a single text in a list")
        return self._predict([text_of(i) for i in items], self._how(aggregation_strategy, ignore_labels, stride))

    def logits(self, items: Sequence[str]) -> np.ndarray:
        """What the graph gives for one batch, whatever `run.batch_size` is: float32 [len(items), longest, labels].

        Rows of padding say nothing.
        """
        return self._run(self._encoder.encode(items))

    def token_ids(self, item: str) -> list[int]:
        """Token ids of one text, special tokens included, cut to the length of the run settings."""
        ids: list[int] = self._encoder.encode([item])[0].ids
        return ids

    def golden(self, item: str) -> Golden:
        """One text, alone, with its token ids and the logits of each."""
        encodings = self._encoder.encode([item])
        logits = self._run(encodings)[:, : len(encodings[0])]
        return Golden(item, None, tuple(encodings[0].ids), tuple(logits.ravel().tolist()), logits.shape)

    def _how(self, strategy: object, ignored: Collection[str], stride: int | None) -> _How:
        chosen = next((known for known in STRATEGIES if known == strategy), None)
        if chosen is None:
            raise InputError(f"aggregation_strategy is {strategy!r}: {nearest(str(strategy), STRATEGIES)}")
        if isinstance(ignored, str):
            raise InputError(f"ignore_labels is {ignored!r}; expected a list of labels: [{ignored!r}]")
        if stride is not None and chosen == "none":
            raise InputError(
                f"stride is {stride!r} with aggregation_strategy 'none', which would tell tokens that windows share "
                "twice: take 'simple', 'first', 'average' or 'max'"
            )
        return _How(chosen, ignored, stride)

    def _predict(self, items: Sequence[str], how: _How) -> list[TokenPrediction]:
        return self.all_of(items, self._way(how))

    def _stream(self, inputs: Iterator[Any], how: _How) -> Iterator[Any]:
        # Inputs are checked where they are answered, so that an error stands where its answer would.
        answer = self._way(how)
        for prediction in self.many(inputs, lambda batch: answer([text_of(i) for i in batch])):
            yield _as_dicts(prediction, how)

    def _way(self, how: _How) -> Callable[[Sequence[str]], list[TokenPrediction]]:
        return partial(self._batch if how.stride is None else self._windows, how)

    def _batch(self, how: _How, items: Sequence[str]) -> list[TokenPrediction]:
        encodings = self._encoder.encode(items)
        answers = []
        for item, encoding, rows in zip(items, encodings, self._run(encodings), strict=True):
            cut = bool(encoding.overflowing)
            if cut:
                self.warn_truncated(len(encoding))
            entities = self._entities(item, encoding, rows, how)
            answers.append(TokenPrediction(tuple(entities), cut, len(encoding)))
        return answers

    def _windows(self, how: _How, items: Sequence[str]) -> list[TokenPrediction]:
        answers = []
        size = self.run.batch_size
        for item in items:
            parts = windows_of(self._encoder, item, how.stride)
            entities: list[Entity] = []
            for i in range(0, len(parts), size):
                some = parts[i : i + size]
                for part, rows in zip(some, self._run(some), strict=True):
                    entities += self._entities(item, part, rows, how)
            if len(parts) > 1:
                entities = join_windows(entities)
            answers.append(TokenPrediction(tuple(entities), False, sum(map(len, parts)), len(parts)))
        return answers

    def _run(self, encodings: Sequence[Encoding]) -> np.ndarray:
        logits: np.ndarray = self.session().run(None, self._encoder.arrays(encodings))[0]
        return logits

    def _entities(self, text: str, encoding: Encoding, rows: np.ndarray, how: _How) -> list[Entity]:
        rows = rows[: len(encoding)]
        scores = np.exp(rows - rows.max(-1, keepdims=True))
        scores /= scores.sum(-1, keepdims=True)
        if np.isnan(scores).any():
            raise EdgewiseError(
                f"{self.bundle.path} answered NaN on {self.run.text()}: take another recipe or provider"
            )
        found = aggregate(self._tokens(text, encoding, scores), self.labels, how.strategy, self._spell)
        return without(found, how.ignored)

    def _tokens(self, text: str, encoding: Encoding, scores: np.ndarray) -> list[Token]:
        tokens = []
        parts = zip(encoding.tokens, encoding.ids, encoding.offsets, encoding.special_tokens_mask, scores, strict=True)
        for index, (word, token, (start, end), special, row) in enumerate(parts):
            if special:
                continue
            continues = self._continues(text, word, start, end)
            if token == self._unknown:
                word, continues = text[start:end], False  # noqa: PLW2901  # what was written says more than '[UNK]'
            tokens.append(Token(word, row, index, start, end, continues))
        return tokens

    def _continues(self, text: str, word: str, start: int, end: int) -> bool:
        if self._knows_words:  # '##ing' is longer than what was written
            return len(word) != end - start
        return start > 0 and " " not in text[start - 1 : start + 1]

    def _spell(self, tokens: list[str]) -> str:
        decoder = self._encoder.tokenizer.decoder
        text: str = " ".join(tokens) if decoder is None else decoder.decode(tokens)
        return text


def _as_dicts(prediction: TokenPrediction, how: _How) -> list[dict[str, Any]]:
    if how.strategy == "none":
        return [
            {"entity": e.label, "score": e.score, "index": e.index, "word": e.word, "start": e.start, "end": e.end}
            for e in prediction.entities
        ]
    return [
        {"entity_group": e.label, "score": e.score, "word": e.word, "start": e.start, "end": e.end}
        for e in prediction.entities
    ]
