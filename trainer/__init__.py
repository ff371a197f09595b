"""The trainer: fine-tunes candidates. Later: pretraining objectives and the ranking of pretrained candidates."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from edgewise.errors import need_extra

__all__ = ["TuneResult", "tune"]

if TYPE_CHECKING:
    from edgewise.trainer.finetune import TuneResult, tune


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'edgewise.trainer' has no attribute {name!r}")
    try:
        return getattr(import_module("edgewise.trainer.finetune"), name)
    except ImportError as error:
        raise need_extra("build", error) from error
