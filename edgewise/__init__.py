"""Edgewise: which model, in which form, should run on this device?

>>> import edgewise
>>> model = edgewise.load("chosen")          # doctest: +SKIP
>>> model("a fine film")                     # doctest: +SKIP
[{'label': 'positive', 'score': 0.98}]

Importing this package imports nothing heavy: numpy, onnxruntime and tokenizers come with the first `load`,
torch and its kin only with the steps that build.

ONNX Runtime's wheels for Linux send usage data from version 1.29 on, unless `ORT_DISABLE_TELEMETRY` is set before they
are loaded (https://github.com/microsoft/onnxruntime/blob/main/docs/Privacy.md). Where it is not set, this sets it to 1:
a device sends nothing that nobody asked for. Set it to 0 to have it as ONNX Runtime does.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"
__all__ = ["__version__", "fit", "load"]

if TYPE_CHECKING:
    from edgewise.pipeline import fit
    from edgewise.runtime import load


def __getattr__(name: str) -> Any:
    if name == "load":
        from edgewise.runtime import load

        return load
    if name == "fit":
        from edgewise.pipeline import fit

        return fit
    raise AttributeError(f"module 'edgewise' has no attribute {name!r}")
