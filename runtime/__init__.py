"""The embedded runtime: loads a bundle and answers, without torch.

`load` is all an application needs. numpy, onnxruntime and tokenizers are imported by the first `load`, not before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = ["Prediction", "TextClassifier", "load"]

if TYPE_CHECKING:
    from edgewise.runtime.classify import Prediction, TextClassifier
    from edgewise.runtime.model import load


def __getattr__(name: str) -> Any:
    if name == "load":
        from edgewise.runtime.model import load

        return load
    if name in ("Prediction", "TextClassifier"):
        from edgewise.runtime import classify

        return getattr(classify, name)
    raise AttributeError(f"module 'edgewise.runtime' has no attribute {name!r}")
