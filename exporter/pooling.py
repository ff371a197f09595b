"""Which pooling makes one vector of a text or an image out of its hidden states; the maths is the runtime's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from edgewise.errors import CheckpointError
from edgewise.runtime.pooling import POOLINGS, Pooling, pool
from edgewise.types import Task

__all__ = ["POOLINGS", "Pooling", "cosine", "pool", "read_pooling"]

_MODES: dict[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last",
}
"""How sentence-transformers names them in 1_Pooling/config.json."""
_DECODERS = ("gpt2", "gpt_neo", "gpt_neox", "llama", "mistral", "qwen2", "qwen3", "phi", "gemma", "opt")


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Row by row, float [batch]."""
    size = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    found: np.ndarray = (a * b).sum(-1) / np.maximum(size, 1e-12)
    return found


def read_pooling(
    folder: Path, config: dict[str, Any], task: Task, asked: Pooling | None
) -> tuple[Pooling, bool] | None:
    """(pooling, whether vectors are scaled to length 1) of a model for features; None for another task.

    As asked, as a sentence-transformers folder says, or by the kind of model: the first token of images, the last one
    of decoders, the mean of everything else. Raises CheckpointError for a pooling that edgewise does not know.
    """
    if not task.endswith("feature-extraction"):
        if asked is not None:
            raise CheckpointError(f"pooling {asked!r} is for feature-extraction, not for {task}")
        return None
    if asked is not None:
        return asked, _normalized(folder)
    file = folder / "1_Pooling" / "config.json"
    if file.is_file():
        modes = [name for name, on in json.loads(file.read_text(encoding="utf-8")).items() if on is True]
        named = [mode for mode in modes if mode.startswith("pooling_mode")]
        if len(named) == 1 and named[0] in _MODES:
            return _MODES[named[0]], _normalized(folder)
        raise CheckpointError(f"{file} pools by {', '.join(named)}: name one of {', '.join(POOLINGS)} with --pooling")
    if task == "image-feature-extraction":
        return "cls", False
    return ("last" if config.get("model_type") in _DECODERS else "mean"), _normalized(folder)


def _normalized(folder: Path) -> bool:
    """True where a sentence-transformers folder ends with a Normalize module."""
    file = folder / "modules.json"
    if not file.is_file():
        return False
    return any(str(m.get("type", "")).endswith("Normalize") for m in json.loads(file.read_text(encoding="utf-8")))
