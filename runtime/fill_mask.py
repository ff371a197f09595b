"""Fill-mask: which words stand where a text has a mask."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from tokenizers import Encoding

from edgewise.bundle import Golden
from edgewise.errors import BundleError, EdgewiseError, InputError
from edgewise.runtime.base import Model, Opened, is_iterator
from edgewise.runtime.special_tokens import read_special_tokens
from edgewise.runtime.text import TextEncoder, text_of

if TYPE_CHECKING:  # few need it, and a start is short
    from edgewise.runtime.likelihood import Likelihood


@dataclass(frozen=True, slots=True)
class Fill:
    """One token for one mask."""

    score: float
    """Softmax over the vocabulary, whatever `targets` say."""
    token: int
    token_str: str
    sequence: str
    """The text with it; other masks are left as they are."""


@dataclass(frozen=True, slots=True)
class MaskPrediction:
    """The answer to one text."""

    masks: tuple[tuple[Fill, ...], ...]
    """A mask each, in the order of the text: its tokens, best first. Masks are filled each by itself."""
    truncated: bool
    """True when the text was longer than the length allows, and its end was not read."""
    n_tokens: int
    """Tokens that were read, special tokens included."""


class MaskFiller(Model):
    """A loaded bundle for fill-mask. Calls are thread-safe; use as a context manager or `close()` it."""

    decides: ClassVar[bool] = False

    def __init__(self, opened: Opened) -> None:
        super().__init__(opened)
        self._encoder = TextEncoder.read(opened.bundle, opened.run)
        self._special = read_special_tokens(opened.bundle)
        tokenizer = self._encoder.tokenizer
        mask, mask_id = self._special.mask, self._special.id_of(tokenizer, self._special.mask)
        if mask is None or mask_id is None:
            raise BundleError(
                f"{opened.bundle.path}: its tokenizer has no mask token (mask_token is {mask!r} in its "
                "tokenizer_config.json), so no text can have a mask: export a model with one"
            )
        self.mask_token: str = mask
        """What stands in a text where a word is wanted."""
        self._mask_id = mask_id
        self._padding = self._special.id_of(tokenizer, self._special.padding)

    def __call__(self, inputs: Any, *, top_k: int = 5, targets: str | Sequence[str] | None = None) -> Any:
        """Fill masks as `transformers.pipeline('fill-mask')` does.

        inputs: a text with `mask_token` in it, a list of such texts, or an iterator of them.
        top_k: how many tokens to give for a mask, best first.
        targets: words to choose from, instead of the whole vocabulary; of one that is no single token the first token
        is taken, with a UserWarning.

        Returns for a text with one mask: [{'score', 'token', 'token_str', 'sequence'}]; with several: such a list a
        mask. For a list: that for each input; for a list of one text what the text itself would give, as the pipeline
        does. For an iterator: an iterator, in order, with no more than a few inputs held at a time.

        Raises InputError for a text without a mask, and for options that cannot be.
        """
        answer = self._way(top_k, targets)
        if is_iterator(inputs):
            self.session()  # what is wrong already is said now, not at the first answer
            return self._stream(inputs, answer)
        if isinstance(inputs, list):
            found = [_as_dicts(p) for p in self.many([text_of(i) for i in inputs], answer)]
            return found[0] if len(found) == 1 else found
        return _as_dicts(next(self.many([text_of(inputs)], answer)))

    def _stream(self, inputs: Iterator[Any], answer: Callable[[Sequence[str]], list[MaskPrediction]]) -> Iterator[Any]:
        # Inputs are checked where they are answered, so that an error stands where its answer would.
        for prediction in self.many(inputs, lambda batch: answer([text_of(i) for i in batch])):
            yield _as_dicts(prediction)

    def predict(
        self, items: Sequence[str], *, top_k: int = 5, targets: str | Sequence[str] | None = None
    ) -> list[MaskPrediction]:
        """Typed answers, in order; `run.batch_size` texts go through the graph together.

        The options are those of a call. Raises InputError for anything but texts with a mask.
        """
        if isinstance(items, str) or not isinstance(items, Sequence):
            raise InputError(f"predict takes a list of texts, got {type(items).__name__}: put a single text in a list")
        return self.all_of([text_of(i) for i in items], self._way(top_k, targets))

    def log_likelihood(self, texts: Sequence[str]) -> Iterator[Likelihood]:
        """How likely the model finds words of each text that it does not see, in order.

        15% of a text's tokens, one at least, are masked together and scored; which ones, a hash of the text says, so
        that they are always the same. Masks that stand in a text already stay, and are not scored. `run.batch_size`
        texts go through the graph together; of a text that is too long the end is not read.

        Raises InputError for what is no list of texts.
        """
        if isinstance(texts, str) or not isinstance(texts, Sequence):
            raise InputError(f"expected a list of texts, got {type(texts).__name__}: put a single text in a list")
        return self.many([text_of(t) for t in texts], self._likelihoods)

    def _likelihoods(self, texts: Sequence[str]) -> list[Likelihood]:
        from edgewise.runtime.likelihood import hidden, likelihood

        encodings = self._encoder.encode(texts)
        arrays = self._encoder.arrays(encodings)
        places = [hidden(text, self._own(encoding)) for text, encoding in zip(texts, encodings, strict=True)]
        for ids, some in zip(arrays["input_ids"], places, strict=True):
            ids[some] = self._mask_id
        if cut := [len(e) for e in encodings if e.overflowing]:
            self.warn_truncated(cut[0])
        logits = self._logits(arrays)
        return [
            likelihood(rows[some], [e.ids[i] for i in some], len(e), bool(e.overflowing))
            for rows, some, e in zip(logits, places, encodings, strict=True)
        ]

    def _own(self, encoding: Encoding) -> list[int]:
        """Where the words of a text stand: no special tokens, no masks."""
        marks = zip(encoding.ids, encoding.special_tokens_mask, strict=True)
        return [i for i, (token, special) in enumerate(marks) if not special and token != self._mask_id]

    def token_ids(self, item: str) -> list[int]:
        """Token ids of one text, special tokens included, cut to the length of the run settings."""
        ids: list[int] = self._encoder.encode([item])[0].ids
        return ids

    def golden(self, item: str) -> Golden:
        """One text, alone, with its token ids, the best token for each mask, and its logit."""
        encodings = self._encoder.encode([item])
        places = self._places(item, encodings[0])
        rows = self._run(encodings)[0, places]
        best = rows.argmax(-1)
        logits = rows[np.arange(len(places)), best].tolist()
        return Golden(item, None, tuple(encodings[0].ids), tuple(logits), (1, len(logits)), tokens=tuple(best.tolist()))

    def _way(self, top_k: int, targets: str | Sequence[str] | None) -> Callable[[Sequence[str]], list[MaskPrediction]]:
        if isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1:
            raise InputError(f"top_k is {top_k!r}; expected a whole number of at least 1")
        return partial(self._predict_batch, top_k, None if targets is None else self._target_ids(targets))

    def _target_ids(self, targets: str | Sequence[str]) -> np.ndarray:
        """int64 [n], sorted, each once."""
        tokenizer, found = self._encoder.tokenizer, set()
        for target in [targets] if isinstance(targets, str) else targets:
            token = tokenizer.token_to_id(text_of(target))
            if token is None:
                ids = tokenizer.encode(target, add_special_tokens=False).ids
                token = ids[0] if ids else None
                instead = "it is left out" if token is None else f"{tokenizer.id_to_token(token)!r} is taken instead"
                warnings.warn(f"the target {target!r} is no token of the vocabulary: {instead}", stacklevel=4)
            if token is not None:
                found.add(token)
        if not found:
            raise InputError(
                f"none of the targets {targets!r} has a token for this model: name words of its vocabulary"
            )
        return np.array(sorted(found))

    def _predict_batch(self, top_k: int, targets: np.ndarray | None, items: Sequence[str]) -> list[MaskPrediction]:
        encodings = self._encoder.encode(items)
        places = [self._places(item, encoding) for item, encoding in zip(items, encodings, strict=True)]
        answers = []
        for encoding, some, rows in zip(encodings, places, self._run(encodings), strict=True):
            cut = bool(encoding.overflowing)
            if cut:
                self.warn_truncated(len(encoding))
            scores = self._scores(rows[some])
            masks = [self._fill(encoding.ids, some, i, row, top_k, targets) for i, row in enumerate(scores)]
            answers.append(MaskPrediction(tuple(masks), cut, len(encoding)))
        return answers

    def _places(self, item: str, encoding: Encoding) -> list[int]:
        found = [i for i, token in enumerate(encoding.ids) if token == self._mask_id]
        if not found and encoding.overflowing and self.mask_token in item:
            raise InputError(
                f"the mask of a text stands behind its first {len(encoding)} tokens, which are all that is read: cut "
                "the text before it, or raise max_length where the model allows it"
            )
        if not found:
            shown = ascii(item if len(item) <= 60 else item[:57] + "...")
            raise InputError(f"the text {shown} has no {self.mask_token}: put {self.mask_token} where a word is wanted")
        return found

    def _run(self, encodings: Sequence[Encoding]) -> np.ndarray:
        """Logits float32 [batch, length, vocabulary]."""
        return self._logits(self._encoder.arrays(encodings))

    def _logits(self, arrays: dict[str, np.ndarray]) -> np.ndarray:
        logits: np.ndarray = self.session().run(None, arrays)[0]
        return logits

    def _scores(self, rows: np.ndarray) -> np.ndarray:
        scores: np.ndarray = np.exp(rows - rows.max(-1, keepdims=True))
        scores /= scores.sum(-1, keepdims=True)
        if np.isnan(scores).any():
            raise EdgewiseError(
                f"{self.bundle.path} answered NaN on {self.run.text()}: take another recipe or provider"
            )
        return scores

    def _fill(
        self, ids: list[int], places: list[int], which: int, scores: np.ndarray, top_k: int, targets: np.ndarray | None
    ) -> tuple[Fill, ...]:
        """The best tokens for mask number `which`."""
        chosen = scores if targets is None else scores[targets]
        best = np.arange(len(chosen)) if top_k >= len(chosen) else np.argpartition(-chosen, top_k)[:top_k]
        best = best[np.argsort(-chosen[best], kind="stable")]
        tokens = best if targets is None else targets[best]
        tokenizer, special = self._encoder.tokenizer, self._special
        found = []
        for token, score in zip(tokens.tolist(), chosen[best].tolist(), strict=True):
            filled = [*ids[: places[which]], token, *ids[places[which] + 1 :]]
            filled = [i for i in filled if i != self._padding]
            # Of several masks the others are to be seen, and they are special tokens, too.
            sequence = special.decode(tokenizer, filled, skip_special=len(places) == 1)
            found.append(Fill(score, token, special.decode(tokenizer, [token]), sequence))
        return tuple(found)


def _as_dicts(prediction: MaskPrediction) -> list[Any]:
    masks = [
        [{"score": f.score, "token": f.token, "token_str": f.token_str, "sequence": f.sequence} for f in fills]
        for fills in prediction.masks
    ]
    return masks[0] if len(masks) == 1 else masks
