"""Text classification: one label a text, several labels a text, or a number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock
from types import TracebackType
from typing import Any

import numpy as np
import onnxruntime as ort
from tokenizers import Encoding

from edgewise.bundle import Bundle
from edgewise.errors import EdgewiseError, InputError
from edgewise.runtime.session import placement
from edgewise.runtime.text import TextEncoder, TextInput, texts_of
from edgewise.types import RunSettings


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer to one text."""

    label: str
    index: int
    """Of the label among the model's labels."""
    score: float
    """Of that label: softmax (one label a text), sigmoid (several), or the number itself (regression)."""
    scores: tuple[float, ...]
    """Of every label, in the model's order."""
    logits: tuple[float, ...]
    """What the graph gave, float32."""
    truncated: bool
    """True when the text was longer than the length allows, and its end was not read."""
    n_tokens: int
    """Tokens that were read, special tokens included."""


@dataclass(frozen=True)
class GoldenCheck:
    """How far today's answers are from those in the manifest."""

    passed: bool
    """Every answer has the label it had, and no logit moved further than `tolerance`."""
    largest_difference: float
    changed_labels: int
    n: int
    tolerance: float


class TextClassifier:
    """A loaded bundle for text classification. Calls are thread-safe; use as a context manager or `close()` it."""

    def __init__(
        self,
        bundle: Bundle,
        run: RunSettings,
        session: ort.InferenceSession,
        encoder: TextEncoder,
        phases: dict[str, int],
    ) -> None:
        self.bundle = bundle
        self.run = run
        self.phases = phases
        """Nanoseconds that loading spent on 'imports', 'load' (manifest, hashes, tokenizer) and 'session'."""
        self.labels = bundle.manifest.labels
        self.providers: tuple[str, ...] = tuple(session.get_providers())
        self._session: ort.InferenceSession | None = session
        self._encoder = encoder
        self._scores = _scoring(bundle.manifest.problem_type)
        self._lock = Lock()

    def __call__(self, inputs: Any, *, top_k: int | None = 1) -> Any:
        """Classify as `transformers.pipeline('text-classification')` does.

        inputs: a text, a dict with 'text' and 'text_pair', or a list of these.
        top_k: how many labels to give, best first; None for all.

        Returns for a text: [{'label', 'score'}] with its top_k labels. For a list: one such dict an input when
        top_k is 1, else a list of dicts an input. For a dict: one dict when top_k is 1, else a list of dicts.
        """
        if top_k is not None and (not isinstance(top_k, int) or top_k < 1):
            raise InputError(f"top_k is {top_k!r}; expected a whole number of at least 1, or None for all labels")
        if isinstance(inputs, list):
            answers = [self._as_dicts(p, top_k) for p in self.predict([texts_of(i) for i in inputs])]
            return [a[0] for a in answers] if top_k == 1 else answers
        (prediction,) = self.predict([texts_of(inputs)])
        answer = self._as_dicts(prediction, top_k)
        return answer[0] if isinstance(inputs, dict) and top_k == 1 else answer

    def predict(self, items: Sequence[TextInput]) -> list[Prediction]:
        """Typed answers, in order; `run.batch_size` texts go through the graph together.

        items: texts or (text, text) pairs. Raises InputError for anything else.
        """
        if isinstance(items, str) or not isinstance(items, Sequence):
            raise InputError(f"predict takes a list of texts, got {type(items).__name__}: put a single text in a list")
        size = self.run.batch_size
        found: list[Prediction] = []
        for start in range(0, len(items), size):
            found += self._predict_batch(items[start : start + size])
        return found

    def logits(self, items: Sequence[TextInput]) -> np.ndarray:
        """What the graph gives for one batch, whatever `run.batch_size` is: float32 [len(items), labels]."""
        return self._run(self._encoder.encode(items))

    def token_ids(self, item: TextInput) -> list[int]:
        """Token ids of one text, special tokens included, cut to the length of the run settings."""
        ids: list[int] = self._encoder.encode([item])[0].ids
        return ids

    def _run(self, encodings: Sequence[Encoding]) -> np.ndarray:
        session = self._session
        if session is None:
            raise InputError("this model was closed: load the bundle again")
        logits: np.ndarray = session.run(None, self._encoder.arrays(encodings))[0]
        return logits

    def _predict_batch(self, items: Sequence[TextInput]) -> list[Prediction]:
        encodings = self._encoder.encode(items)
        logits = self._run(encodings)
        answers = []
        for row, encoding in zip(logits.tolist(), encodings, strict=True):
            if any(map(math.isnan, row)):
                raise EdgewiseError(
                    f"{self.bundle.path} answered NaN on {self.run.text()}: take another recipe or provider"
                )
            scores = self._scores(row)
            best = max(range(len(scores)), key=scores.__getitem__)
            answers.append(
                Prediction(
                    self.labels[best], best, scores[best], scores, tuple(row), bool(encoding.overflowing), len(encoding)
                )
            )
        return answers

    def _as_dicts(self, prediction: Prediction, top_k: int | None) -> list[dict[str, Any]]:
        if top_k == 1:
            return [{"label": prediction.label, "score": prediction.score}]
        order = sorted(range(len(self.labels)), key=prediction.scores.__getitem__, reverse=True)
        return [{"label": self.labels[i], "score": prediction.scores[i]} for i in order[:top_k]]

    def check(self, tolerance: float = 0.05) -> GoldenCheck:
        """Answer the manifest's golden inputs again and compare.

        tolerance: largest absolute difference of a logit; int8 kernels differ between CPUs, labels should not.
        """
        golden = self.bundle.manifest.golden
        differences, changed = [0.0], 0
        for g in golden:
            # One at a time, as when they were made.
            encodings = self._encoder.encode([g.text if g.text_pair is None else (g.text, g.text_pair)])
            if len(encodings[0]) < len(g.input_ids):
                continue  # cut by the run settings: nothing to compare with
            logits = self._run(encodings)[0]
            differences.append(float(np.abs(logits - np.array(g.output, dtype=np.float32)).max()))
            same_label = len(g.output) == 1 or int(logits.argmax()) == int(np.argmax(g.output))
            changed += not (same_label and tuple(encodings[0].ids) == g.input_ids)
        worst = max(differences)
        return GoldenCheck(changed == 0 and worst <= tolerance, worst, changed, len(golden), tolerance)

    def placement(self) -> dict[str, int]:
        """Provider -> number of graph nodes that run on it. Needs `load(..., record_placement=True)`."""
        if self._session is None:
            raise InputError("this model was closed: load the bundle again")
        return placement(self._session)

    def close(self) -> None:
        """Free the session; calls after this raise InputError."""
        with self._lock:
            self._session = None

    def __enter__(self) -> TextClassifier:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _softmax(row: list[float]) -> tuple[float, ...]:
    # In plain Python: for a handful of labels it is several times faster than numpy's call overhead.
    top = max(row)
    weights = [math.exp(x - top) for x in row]
    total = sum(weights)
    return tuple(w / total for w in weights)


def _sigmoid(row: list[float]) -> tuple[float, ...]:
    # Two forms, since exp overflows for large arguments.
    return tuple(1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x)) for x in row)


def _scoring(problem_type: str | None) -> Any:
    return {"multi_label_classification": _sigmoid, "regression": tuple}.get(problem_type or "", _softmax)
