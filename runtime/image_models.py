"""Image classification, and features of images."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, get_args

import numpy as np

from edgewise.bundle import Golden
from edgewise.errors import BundleError, EdgewiseError, InputError
from edgewise.runtime.base import Model, Opened, is_iterator
from edgewise.runtime.image_input import ImageEncoder, ImageInput, golden_bytes
from edgewise.runtime.labels import choose

Function = Literal["softmax", "sigmoid", "none"]
"""What makes scores of the graph's numbers."""


@dataclass(frozen=True, slots=True)
class ImagePrediction:
    """The answer to one image."""

    label: str
    """The best one, or of two labels the one that the threshold of the run settings says."""
    index: int
    """Of the label among the model's labels."""
    score: float
    """Of that label."""
    scores: tuple[float, ...]
    """Of every label, in the model's order: softmax (one label an image), or sigmoid (several, or a single number)."""
    logits: tuple[float, ...]
    """What the graph gave, float32."""
    labels: tuple[str, ...] = ()
    """All labels that are said: those from the threshold up where an image may have several, else the one."""

    # An image is read whole, and has no tokens; these are here for who asks every task's answers.
    truncated: ClassVar[bool] = False
    n_tokens: ClassVar[int] = 0


@dataclass(frozen=True, slots=True)
class ImageFeatures:
    """What a model without a head says of one image."""

    vector: np.ndarray
    """float32 [n], pooled as the manifest says."""

    truncated: ClassVar[bool] = False
    n_tokens: ClassVar[int] = 0


class ImageModel(Model):
    """What the models of images share."""

    def __init__(self, opened: Opened) -> None:
        super().__init__(opened)
        self._encoder = ImageEncoder.read(opened.bundle)

    def arrays(self, items: Sequence[ImageInput]) -> dict[str, np.ndarray]:
        """What the graph takes of one batch: float32 [len(items), channels, height, width] by its name.

        Raises InputError for what is no image, or cannot be decoded.
        """
        return self._encoder.arrays(items)

    def _outputs(self, items: Sequence[ImageInput], index: int = 0) -> np.ndarray:
        """Of the graph's output number `index`: float32. Raises EdgewiseError for NaN."""
        feeds = self._encoder.arrays(items)
        session = self.session()
        try:
            found = session.run(None, feeds)[index].astype(np.float32, copy=False)
        except Exception as error:  # onnxruntime raises a class of its own for each status
            shape = list(next(iter(feeds.values())).shape)
            raise InputError(
                f"the graph of {self.bundle.path} does not take images of {shape} (batch, channels, height, width): "
                f"{' '.join(str(error).split())[:300]}"
            ) from error
        if np.isnan(found).any():
            raise EdgewiseError(
                f"{self.bundle.path} answered NaN on {self.run.text()}: take another recipe or provider"
            )
        return np.asarray(found)

    def _answer(self, inputs: Any, answer: Callable[[Sequence[Any]], Sequence[Any]]) -> Any:
        """One input, a list, or an iterator of them, in the form that they came in."""
        if is_iterator(inputs):
            return self.many(inputs, answer)
        if isinstance(inputs, list):
            return list(self.many(inputs, answer))
        (found,) = answer([inputs])
        return found

    def _listed(self, items: Sequence[ImageInput]) -> Sequence[ImageInput]:
        if not isinstance(items, list | tuple):
            raise InputError(f"expected a list of images, got {type(items).__name__}: put a single image in a list")
        return items

    def golden_input(self, golden: Golden) -> bytes:
        """The PNG of a golden answer."""
        return golden_bytes(golden)


class ImageClassifier(ImageModel):
    """A loaded bundle for image classification. Calls are thread-safe; use as a context manager or `close()` it."""

    def __init__(self, opened: Opened) -> None:
        super().__init__(opened)
        self._several = opened.bundle.manifest.problem_type == "multi_label_classification"
        self._function: Function = "sigmoid" if self._several or len(self.labels) == 1 else "softmax"

    def __call__(self, inputs: Any, *, top_k: int | None = 5, function_to_apply: str | None = None) -> Any:
        """Classify as `transformers.pipeline('image-classification')` does.

        inputs: an image (a path, a file's bytes, an image of Pillow's, or a uint8 array [height, width, 3]), a list of
        these, or an iterator of them.
        top_k: how many labels to give, best first; None for 5.
        function_to_apply: 'softmax', 'sigmoid' or 'none' to the logits; None for what fits the model.

        Returns for an image its [{'label', 'score'}], for a list a list of these, for an iterator an iterator of
        these, in order, with no more than a few images held at a time.

        Raises InputError for what is no image, or cannot be decoded.
        """
        top_k = 5 if top_k is None else top_k
        if isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1:
            raise InputError(f"top_k is {top_k!r}; expected a whole number of at least 1, or None for 5")
        return self._answer(inputs, partial(self._as_dicts, top_k=top_k, function=_function(function_to_apply)))

    def predict(self, items: Sequence[ImageInput]) -> list[ImagePrediction]:
        """Typed answers, in order; `run.batch_size` images go through the graph together.

        Raises InputError for what is no image, or cannot be decoded.
        """
        return self.all_of(self._listed(items), self._predict_batch)

    def logits(self, items: Sequence[ImageInput]) -> np.ndarray:
        """What the graph gives for one batch, whatever `run.batch_size` is: float32 [len(items), labels]."""
        return self._outputs(self._listed(items))

    def _as_dicts(
        self, items: Sequence[ImageInput], *, top_k: int, function: Function | None
    ) -> list[list[dict[str, Any]]]:
        answers = []
        for row in _scored(self._outputs(items), function or self._function).tolist():
            order = sorted(range(len(row)), key=row.__getitem__, reverse=True)
            if function is None and self.run.threshold is not None:
                best, _ = self._choose(row)
                order.sort(key=lambda i: i != best)  # the label that the threshold says stands first
            answers.append([{"label": self.labels[i], "score": row[i]} for i in order[:top_k]])
        return answers

    def _predict_batch(self, items: Sequence[ImageInput]) -> list[ImagePrediction]:
        logits = self._outputs(items)
        answers = []
        for row, numbers in zip(_scored(logits, self._function).tolist(), logits.tolist(), strict=True):
            best, said = self._choose(row)
            answers.append(ImagePrediction(self.labels[best], best, row[best], tuple(row), tuple(numbers), said))
        return answers

    def _choose(self, scores: Sequence[float]) -> tuple[int, tuple[str, ...]]:
        return choose(scores, self.labels, self.run.threshold, self._several)

    def golden(self, item: ImageInput) -> Golden:
        """One image, made small, with its logits."""
        png = self._encoder.small_png(item)
        logits = self._outputs([png])[0].tolist()
        return Golden("", None, (), tuple(logits), (1, len(logits)), image=base64.b64encode(png).decode())


class ImageFeatureExtractor(ImageModel):
    """A loaded bundle for features of images. Calls are thread-safe; use as a context manager or `close()` it."""

    decides = False

    def __init__(self, opened: Opened) -> None:
        super().__init__(opened)
        manifest = opened.bundle.manifest
        self._pooling = manifest.pooling or "cls"
        self._normalize = bool(manifest.preprocessing.get("normalize"))
        outputs = manifest.graphs[0].outputs
        self._names = [o.name for o in outputs]
        self._index = self._names.index("last_hidden_state") if "last_hidden_state" in self._names else 0
        shape = outputs[self._index].shape
        if len(shape) not in (2, 3):
            raise BundleError(
                f"{opened.bundle.path} gives {outputs[self._index].name} of shape {list(shape)}; expected [batch, "
                "tokens, n], or [batch, n]"
            )

    def __call__(self, inputs: Any, *, pool: bool | None = None) -> Any:
        """Features as `transformers.pipeline('image-feature-extraction')` gives them.

        inputs: an image (a path, a file's bytes, an image of Pillow's, or a uint8 array [height, width, 3]), a list of
        these, or an iterator of them.
        pool: the model's own pooled output, where the graph has one.

        Returns for an image nested lists of floats [1][tokens][n] (pooled: [1][n]), for a list a list of these, for an
        iterator an iterator of these. `vectors` gives one vector an image, as an array, which is far faster.

        Raises InputError for what is no image, or cannot be decoded.
        """
        index = self._index
        if pool:
            if "pooler_output" not in self._names:
                raise InputError(f"{self.bundle.path} has no pooled output: call it without pool, or take vectors()")
            index = self._names.index("pooler_output")

        def answer(items: Sequence[ImageInput]) -> list[list[Any]]:
            return [[row] for row in self._outputs(items, index).tolist()]

        return self._answer(inputs, answer)

    def predict(self, items: Sequence[ImageInput]) -> list[ImageFeatures]:
        """Typed answers, in order; `run.batch_size` images go through the graph together.

        Raises InputError for what is no image, or cannot be decoded.
        """
        return self.all_of(self._listed(items), self._predict_batch)

    def vectors(self, items: Sequence[ImageInput]) -> np.ndarray:
        """One vector an image, pooled as the manifest says: float32 [len(items), n]."""
        found = [answer.vector for answer in self.predict(items)]
        return np.stack(found) if found else np.empty((0, 0), np.float32)

    def hidden_states(self, items: Sequence[ImageInput]) -> np.ndarray:
        """What the graph gives for one batch, whatever `run.batch_size` is: float32 [len(items), tokens, n]."""
        return self._outputs(self._listed(items), self._index)

    def _predict_batch(self, items: Sequence[ImageInput]) -> list[ImageFeatures]:
        return [ImageFeatures(vector) for vector in self._pooled(items)]

    def _pooled(self, items: Sequence[ImageInput]) -> np.ndarray:
        states = self._outputs(items, self._index)
        if states.ndim == 2:
            found = states
        elif self._pooling == "mean":
            found = states.mean(1)
        else:
            found = states[:, 0 if self._pooling == "cls" else -1].copy()  # else it would keep all states in memory
        if self._normalize:
            found = found / np.maximum(np.linalg.norm(found, axis=-1, keepdims=True), 1e-12)
        return np.asarray(found)

    def golden(self, item: ImageInput) -> Golden:
        """One image, made small, with its vector."""
        png = self._encoder.small_png(item)
        vector = self._pooled([png])[0].tolist()
        return Golden("", None, (), tuple(vector), (1, len(vector)), image=base64.b64encode(png).decode())


def _function(name: str | None) -> Function | None:
    if name is None:
        return None
    for known in get_args(Function):
        if isinstance(name, str) and name.lower() == known:
            found: Function = known
            return found
    raise InputError(f"function_to_apply is {name!r}; expected {', '.join(map(repr, get_args(Function)))}, or None")


def _scored(logits: np.ndarray, function: Function) -> np.ndarray:
    """float32 [n, labels], by the same operations as transformers'."""
    if function == "none":
        return logits
    if function == "sigmoid":
        with np.errstate(over="ignore"):  # of exp, and then the score is 0
            return np.asarray(1.0 / (1.0 + np.exp(-logits)))
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True))
