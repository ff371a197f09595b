"""Edgewise: which model, in which form, should run on this device?

>>> import edgewise
>>> model = edgewise.load("chosen")          # doctest: +SKIP
>>> model("a fine film")                     # doctest: +SKIP
[{'label': 'positive', 'score': 0.98}]

Importing this package imports nothing heavy: numpy, onnxruntime and tokenizers come with the first `load`,
torch and its kin only with the steps that build.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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
