"""Text classification: one label a text, several labels a text, or a number."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Encoding

from edgewise.bundle import Golden
from edgewise.errors import EdgewiseError, InputError
from edgewise.runtime.base import Model, Opened, is_iterator
from edgewise.runtime.labels import choose
from edgewise.runtime.text import TextEncoder, TextInput, text_of, texts_of

if TYPE_CHECKING:  # few need windows, and a start is short
    from edgewise.runtime.windows import Windows


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer to one text."""

    label: str
    """The best one, or of two labels the one that the threshold of the run settings says."""
    index: int
    """Of the label among the model's labels."""
    score: float
    """Of that label: softmax (one label a text), sigmoid (several), or the number itself (regression)."""
    scores: tuple[float, ...]
    """Of every label, in the model's order."""
    logits: tuple[float, ...]
    """What the graph gave, float32; of several windows joined as the scores are."""
    truncated: bool
    """True when the text was longer than the length allows, and its end was not read."""
    n_tokens: int
    """Tokens that were read, special tokens included; of several windows all of theirs."""
    labels: tuple[str, ...] = ()
    """All labels that are said: those from the threshold up where a text may have several, else the one."""
    windows: int = 1
    """Parts in which the text was read."""


_Way = Callable[[Sequence[TextInput]], list[Prediction]]


class TextClassifier(Model):
    """A loaded bundle for text classification. Calls are thread-safe; use as a context manager or `close()` it."""

    def __init__(self, opened: Opened) -> None:
        super().__init__(opened)
        self._encoder = TextEncoder.read(opened.bundle, opened.run)
        self._scores = _scoring(opened.bundle.manifest.problem_type)
        self._several = opened.bundle.manifest.problem_type == "multi_label_classification"

    def __call__(
        self, inputs: Any, *, top_k: int | None = 1, windows: Windows | None = None, stride: int | None = None
    ) -> Any:
        """Classify as `transformers.pipeline('text-classification')` does.

        inputs: a text, a dict with 'text' and 'text_pair', a list of these, or an iterator of them.
        top_k: how many labels to give, best first; None for all.
        windows: read a text that is longer than the model allows to its end, in windows that overlap, and give the
        'mean' of their scores, or each label's largest, 'max'; None: the end of such a text is not read.
        stride: tokens that a window shares with the one before it; a quarter of the window unless given.

        Returns for a text: [{'label', 'score'}] with its top_k labels. For a list: one such dict an input when
        top_k is 1, else a list of dicts an input. For a dict: one dict when top_k is 1, else a list of dicts. For an
        iterator: an iterator of what a list gives, in order, with no more than a few inputs held at a time.

        Raises InputError for what cannot be read, and for pairs with `windows`.
        """
        if top_k is not None and (not isinstance(top_k, int) or top_k < 1):
            raise InputError(f"top_k is {top_k!r}; expected a whole number of at least 1, or None for all labels")
        if is_iterator(inputs):
            self.session()  # what is wrong already is said now, not at the first answer
            return self._stream(inputs, top_k, *self._way(windows, stride))
        if isinstance(inputs, list):
            found = self.predict([texts_of(i) for i in inputs], windows=windows, stride=stride)
            answers = [self._as_dicts(p, top_k) for p in found]
            return [a[0] for a in answers] if top_k == 1 else answers
        (prediction,) = self.predict([texts_of(inputs)], windows=windows, stride=stride)
        answer = self._as_dicts(prediction, top_k)
        return answer[0] if isinstance(inputs, dict) and top_k == 1 else answer

    def _stream(self, inputs: Iterable[Any], top_k: int | None, way: _Way, size: int | None) -> Iterator[Any]:
        # Inputs are checked where they are answered, so that an error stands where its answer would.
        for prediction in self.many(inputs, lambda batch: way([texts_of(i) for i in batch]), size=size):
            answer = self._as_dicts(prediction, top_k)
            yield answer[0] if top_k == 1 else answer

    def predict(
        self, items: Sequence[TextInput], *, windows: Windows | None = None, stride: int | None = None
    ) -> list[Prediction]:
        """Typed answers, in order; `run.batch_size` texts go through the graph together.

        items: texts or (text, text) pairs. windows, stride: as of a call. Raises InputError for anything else.
        """
        if isinstance(items, str) or not isinstance(items, Sequence):
            raise InputError(f"predict takes a list of texts, got {type(items).__name__}: put a single text in a list")
        way, size = self._way(windows, stride)
        return self.all_of(items, way, size=size)

    def _way(self, windows: Windows | None, stride: int | None) -> tuple[_Way, int | None]:
        """(what answers a batch, its size where it is not that of the run settings)."""
        if windows is not None:
            from edgewise.runtime.windows import check_windows

            return partial(self._predict_windows, check_windows(windows), stride), 1
        if stride is not None:
            raise InputError(f"stride is {stride!r}, but there are no windows: say windows='mean' or 'max', too")
        return self._predict_batch, None

    def logits(self, items: Sequence[TextInput]) -> np.ndarray:
        """What the graph gives for one batch, whatever `run.batch_size` is: float32 [len(items), labels]."""
        return self._run(self._encoder.encode(items))

    def token_ids(self, item: TextInput) -> list[int]:
        """Token ids of one text, special tokens included, cut to the length of the run settings."""
        ids: list[int] = self._encoder.encode([item])[0].ids
        return ids

    def _run(self, encodings: Sequence[Encoding]) -> np.ndarray:
        logits: np.ndarray = self.session().run(None, self._encoder.arrays(encodings))[0]
        return logits

    def _predict_batch(self, items: Sequence[TextInput]) -> list[Prediction]:
        encodings = self._encoder.encode(items)
        logits = self._run(encodings)
        answers = []
        for row, encoding in zip(logits.tolist(), encodings, strict=True):
            scores = self._score(row)
            best, said = self._choose(scores)
            cut = bool(encoding.overflowing)
            if cut:
                self.warn_truncated(len(encoding))
            answers.append(
                Prediction(self.labels[best], best, scores[best], scores, tuple(row), cut, len(encoding), said)
            )
        return answers

    def _predict_windows(self, windows: Windows, stride: int | None, items: Sequence[TextInput]) -> list[Prediction]:
        """Each text to its end. No window is padded to another's length unless the run settings batch."""
        from edgewise.runtime.windows import join, windows_of

        answers = []
        for item in items:
            if isinstance(item, tuple):
                raise InputError("a pair of texts cannot be read in windows: leave windows out, or cut the longer text")
            parts = windows_of(self._encoder, text_of(item), stride)
            size = self.run.batch_size
            rows = [r for i in range(0, len(parts), size) for r in self._run(parts[i : i + size]).tolist()]
            scores = join([self._score(row) for row in rows], windows)
            best, said = self._choose(scores)
            logits, tokens = join([tuple(row) for row in rows], windows), sum(map(len, parts))
            answers.append(
                Prediction(self.labels[best], best, scores[best], scores, logits, False, tokens, said, len(parts))
            )
        return answers

    def _score(self, row: list[float]) -> tuple[float, ...]:
        scores: tuple[float, ...] = self._scores(row)
        if math.isnan(sum(scores)):
            raise EdgewiseError(
                f"{self.bundle.path} answered NaN on {self.run.text()}: take another recipe or provider"
            )
        return scores

    def _choose(self, scores: tuple[float, ...]) -> tuple[int, tuple[str, ...]]:
        return choose(scores, self.labels, self.run.threshold, self._several)

    def _as_dicts(self, prediction: Prediction, top_k: int | None) -> list[dict[str, Any]]:
        if top_k == 1:
            return [{"label": prediction.label, "score": prediction.score}]
        order = sorted(range(len(self.labels)), key=prediction.scores.__getitem__, reverse=True)
        return [{"label": self.labels[i], "score": prediction.scores[i]} for i in order[:top_k]]

    def golden(self, item: TextInput) -> Golden:
        """One text, alone, with its token ids and logits."""
        encodings = self._encoder.encode([item])
        text, pair = (item, None) if isinstance(item, str) else item
        logits = self._run(encodings)[0].tolist()
        return Golden(text, pair, tuple(encodings[0].ids), tuple(logits), (1, len(logits)))


def _softmax(row: list[float]) -> tuple[float, ...]:
    # In plain Python: for a handful of labels it is several times faster than numpy's call overhead.
    top = max(row)
    weights = [math.exp(x - top) for x in row]
    total = sum(weights)
    return tuple([w / total for w in weights])


def _sigmoid(row: list[float]) -> tuple[float, ...]:
    # Two forms, since exp overflows for large arguments.
    return tuple(1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x)) for x in row)


def _scoring(problem_type: str | None) -> Any:
    return {"multi_label_classification": _sigmoid, "regression": tuple}.get(problem_type or "", _softmax)
