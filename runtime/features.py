"""Feature extraction: one vector a text, for search, grouping and classifiers of one's own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from tokenizers import Encoding

from edgewise.bundle import Golden, Manifest
from edgewise.errors import BundleError, EdgewiseError, InputError
from edgewise.runtime.base import Model, Opened, is_iterator
from edgewise.runtime.pooling import POOLINGS, Pooling, normalize, pool
from edgewise.runtime.text import TextEncoder, TextInput, texts_of

_STATES = ("last_hidden_state", "token_embeddings")
"""How exporters name the states of all tokens; a graph that has none of them is read by its first output."""


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """The vector of one text."""

    vector: np.ndarray
    """float32 [n], pooled, of length 1 where the manifest says `normalize`."""
    truncated: bool
    """True when the text was longer than the length allows, and its end was not read."""
    n_tokens: int
    """Tokens that were read, special tokens included."""


class FeatureExtractor(Model):
    """A loaded bundle for feature extraction. Calls are thread-safe; use as a context manager or `close()` it.

    Unlike `transformers.pipeline('feature-extraction')`, which leaves the pooling to its user, a call gives the pooled
    vector, as sentence-transformers does; the pipeline's states of single tokens are what `hidden_states` gives.
    """

    decides: ClassVar[bool] = False

    def __init__(self, opened: Opened) -> None:
        super().__init__(opened)
        manifest = opened.bundle.manifest
        self._encoder = TextEncoder.read(opened.bundle, opened.run)
        self._normalize = bool(manifest.preprocessing.get("normalize"))
        self._output, self.width = _output(manifest)
        self.pooling: Pooling = _pooling(opened)
        """How states become a vector: 'mean', 'cls' or 'last'."""

    def __call__(self, inputs: Any) -> Any:
        """The pooled vectors.

        inputs: a text, a dict with 'text' and 'text_pair', a list of these, or an iterator of them.

        Returns for one text float32 [n]; for a list float32 [len(inputs), n]; for an iterator an iterator of [n], in
        order, with no more than a few inputs held at a time.

        Raises InputError for what is no text.
        """
        if is_iterator(inputs):
            self.session()  # what is wrong already is said now, not at the first answer
            return self._stream(inputs)
        if isinstance(inputs, list):
            found = [f.vector for f in self.predict([texts_of(i) for i in inputs])]
            return np.stack(found) if found else np.zeros((0, self.width or 0), np.float32)
        return self.predict([texts_of(inputs)])[0].vector

    def _stream(self, inputs: Iterator[Any]) -> Iterator[np.ndarray]:
        # Inputs are checked where they are answered, so that an error stands where its answer would.
        for features in self.many(inputs, lambda batch: self._predict_batch([texts_of(i) for i in batch])):
            yield features.vector

    def predict(self, items: Sequence[TextInput]) -> list[Features]:
        """Typed answers, in order; `run.batch_size` texts go through the graph together.

        items: texts or (text, text) pairs. Raises InputError for anything else.
        """
        return self.all_of(_listed(items), self._predict_batch)

    def hidden_states(self, inputs: Any) -> Any:
        """The states of every token, as `transformers.pipeline('feature-extraction')` gives them, but as arrays.

        Returns for one text float32 [1, tokens, n], special tokens included; for a list one such array an input.

        Raises InputError for what is no text, and for a graph that gives pooled vectors alone.
        """
        if isinstance(inputs, list):
            return [self._states(texts_of(i)) for i in inputs]
        return self._states(texts_of(inputs))

    def token_ids(self, item: TextInput) -> list[int]:
        """Token ids of one text, special tokens included, cut to the length of the run settings."""
        ids: list[int] = self._encoder.encode([item])[0].ids
        return ids

    def golden(self, item: TextInput) -> Golden:
        """One text, alone, with its token ids and its vector."""
        encodings = self._encoder.encode([item])
        text, pair = (item, None) if isinstance(item, str) else item
        vector = self._vectors(encodings)[0].tolist()
        return Golden(text, pair, tuple(encodings[0].ids), tuple(vector), (1, len(vector)))

    def _states(self, item: TextInput) -> np.ndarray:
        (encoding,) = self._encoder.encode([item])
        states, _ = self._run([encoding])
        if states.ndim != 3:
            raise InputError(f"{self.bundle.path} gives one vector a text, and no states of tokens: call it instead")
        return states[:, : len(encoding)]

    def _predict_batch(self, items: Sequence[TextInput]) -> list[Features]:
        encodings = self._encoder.encode(items)
        answers = []
        for vector, encoding in zip(self._vectors(encodings), encodings, strict=True):
            cut = bool(encoding.overflowing)
            if cut:
                self.warn_truncated(len(encoding))
            answers.append(Features(vector, cut, len(encoding)))
        return answers

    def _vectors(self, encodings: Sequence[Encoding]) -> np.ndarray:
        """float32 [batch, n]."""
        states, counts = self._run(encodings)
        vectors = pool(states, counts, self.pooling) if states.ndim == 3 else states
        if np.isnan(vectors).any():
            raise EdgewiseError(
                f"{self.bundle.path} answered NaN on {self.run.text()}: take another recipe or provider"
            )
        return normalize(vectors) if self._normalize else vectors

    def _run(self, encodings: Sequence[Encoding]) -> tuple[np.ndarray, np.ndarray]:
        """States float32 [batch, length, n], and bool [batch, length], what is no padding."""
        arrays = self._encoder.arrays(encodings)
        (states,) = self.session().run([self._output], arrays)
        lengths = np.array([len(e) for e in encodings])
        length = next(iter(arrays.values())).shape[1]
        return states.astype(np.float32, copy=False), np.arange(length) < lengths[:, None]


def _listed(items: Any) -> Sequence[TextInput]:
    if isinstance(items, str) or not isinstance(items, Sequence):
        raise InputError(f"predict takes a list of texts, got {type(items).__name__}: put a single text in a list")
    return items


def _output(manifest: Manifest) -> tuple[str, int | None]:
    """(name of the output that has the states, its numbers a token where the graph tells)."""
    outputs = {o.name: o for o in manifest.graphs[0].outputs}
    name = next((name for name in _STATES if name in outputs), next(iter(outputs)))
    shape = outputs[name].shape
    return name, shape[-1] if shape and isinstance(shape[-1], int) else None


def _pooling(opened: Opened) -> Pooling:
    told = opened.bundle.manifest.pooling or "mean"
    found = next((known for known in POOLINGS if known == told), None)
    if found is None:
        raise BundleError(f"{opened.bundle.path} pools by {told!r}, which this edgewise does not know: update it")
    return found
