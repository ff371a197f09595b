"""The trainer: fine-tunes candidates, pretrains, and ranks pretrained candidates."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from edgewise.errors import need_extra

_HOME = {
    "PretrainResult": "pretrain_spec",
    "PretrainSpec": "pretrain_spec",
    "TuneResult": "finetune",
    "evaluate_checkpoint": "evaluation",
    "pretrain": "pretraining",
    "tune": "finetune",
}
"""Name -> the submodule that it lives in; imported when it is first asked for."""

__all__ = ["PretrainResult", "PretrainSpec", "TuneResult", "evaluate_checkpoint", "pretrain", "tune"]

if TYPE_CHECKING:
    from edgewise.trainer.evaluation import evaluate_checkpoint
    from edgewise.trainer.finetune import TuneResult, tune
    from edgewise.trainer.pretrain_spec import PretrainResult, PretrainSpec
    from edgewise.trainer.pretraining import pretrain


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'edgewise.trainer' has no attribute {name!r}")
    try:
        return getattr(import_module(f"edgewise.trainer.{_HOME[name]}"), name)
    except ImportError as error:
        raise need_extra("build", error) from error
