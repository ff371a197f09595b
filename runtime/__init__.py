"""The embedded runtime: loads a bundle and answers, without torch.

`load` is all an application needs. numpy, onnxruntime and tokenizers are imported by the first `load`, not before.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__all__ = ["Model", "Prediction", "TextClassifier", "TruncationWarning", "load"]

if TYPE_CHECKING:
    from edgewise.runtime.base import Model, TruncationWarning
    from edgewise.runtime.classify import Prediction, TextClassifier
    from edgewise.runtime.model import load

_PLACES = {
    "Model": "base",
    "Prediction": "classify",
    "TextClassifier": "classify",
    "TruncationWarning": "base",
    "load": "model",
}
"""Name -> the module that has it."""


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(import_module(f"edgewise.runtime.{_PLACES[name]}"), name)
    raise AttributeError(f"module 'edgewise.runtime' has no attribute {name!r}")
