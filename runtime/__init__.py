"""The embedded runtime: loads a bundle and answers, without torch.

`load` is all an application needs. numpy, onnxruntime and tokenizers are imported by the first `load`, not before.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__all__ = [
    "FeatureExtractor",
    "ImageClassifier",
    "ImageFeatureExtractor",
    "MaskFiller",
    "Model",
    "Prediction",
    "TextClassifier",
    "TextGenerator",
    "TextToText",
    "TokenClassifier",
    "TruncationWarning",
    "load",
]

if TYPE_CHECKING:
    from edgewise.runtime.base import Model, TruncationWarning
    from edgewise.runtime.classify import Prediction, TextClassifier
    from edgewise.runtime.features import FeatureExtractor
    from edgewise.runtime.fill_mask import MaskFiller
    from edgewise.runtime.generation import TextGenerator
    from edgewise.runtime.image_models import ImageClassifier, ImageFeatureExtractor
    from edgewise.runtime.model import load
    from edgewise.runtime.text2text import TextToText
    from edgewise.runtime.token_classify import TokenClassifier

_PLACES = {
    "FeatureExtractor": "features",
    "ImageClassifier": "image_models",
    "ImageFeatureExtractor": "image_models",
    "MaskFiller": "fill_mask",
    "Model": "base",
    "Prediction": "classify",
    "TextClassifier": "classify",
    "TextGenerator": "generation",
    "TextToText": "text2text",
    "TokenClassifier": "token_classify",
    "TruncationWarning": "base",
    "load": "model",
}
"""Name -> the module that has it."""


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(import_module(f"edgewise.runtime.{_PLACES[name]}"), name)
    raise AttributeError(f"module 'edgewise.runtime' has no attribute {name!r}")
