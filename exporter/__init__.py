"""The exporter: from a fine-tuned checkpoint to bundles, each proven against PyTorch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from edgewise.errors import need_extra

__all__ = ["ExportResult", "export", "import_onnx"]

if TYPE_CHECKING:
    from edgewise.exporter.build import ExportResult, export
    from edgewise.exporter.foreign import import_onnx

_HOMES = {"ExportResult": "build", "export": "build", "import_onnx": "foreign"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'edgewise.exporter' has no attribute {name!r}")
    try:
        return getattr(import_module(f"edgewise.exporter.{_HOMES[name]}"), name)
    except ImportError as error:
        raise need_extra("build", error) from error
