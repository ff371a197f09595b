"""What is made once for all recipes of a checkpoint, fp32 graphs and PyTorch's answers, and the proof against them."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgewise.data import Row
from edgewise.errors import CheckpointError, EdgewiseError
from edgewise.exporter import parity
from edgewise.exporter.checkpoint import Checkpoint
from edgewise.exporter.golden import golden_inputs, mask_token
from edgewise.exporter.lean_trace import free_memory
from edgewise.exporter.originals import load_original, read_processor, read_tokenizer
from edgewise.exporter.preprocessing import text_limit
from edgewise.exporter.probes import Probe, Written, build_probes
from edgewise.exporter.tracing import export_graphs, graph_files
from edgewise.types import IMAGE_TASKS, Task


@dataclass(frozen=True)
class Base:
    """The fp32 graphs as Optimum exports them, and PyTorch's answers."""

    folder: Path
    task: Task
    source: Checkpoint
    """What the graphs were made from: the user's checkpoint, or that with a smaller vocabulary."""
    preprocessor: Any
    """Transformers' tokenizer or image processor."""
    inputs: tuple[str, ...]
    """Names that the first graph takes."""
    max_length: int | None = None
    """Tokens that a text may have."""
    cases: tuple[parity.Case, ...] = ()
    """Of text classification."""
    probes: tuple[Probe, ...] = ()
    """Of the other tasks."""
    written: tuple[Written, ...] = ()
    """Of generation."""
    texts: tuple[Any, ...] = ()
    """A few texts, or pairs of them, for other tools to answer."""
    golden: tuple[Any, ...] = ()
    """Inputs of the golden answers."""
    vocabulary: dict[str, Any] | None = None
    """What trimming the vocabulary did, and that the answers stayed."""


def make_base(
    source: Checkpoint, task: Task, rows: Sequence[Row], out: Path, opset: int | None, length: int | None = None
) -> Base:
    """Export the checkpoint into a temporary folder in `out`, which the caller removes, and ask PyTorch.

    length: tokens that texts are cut to before PyTorch is asked, for a graph of that length.

    Raises CheckpointError for a checkpoint that does not load or export.
    """
    work = Path(tempfile.mkdtemp(dir=out, prefix=".base.", suffix=".partial"))
    try:
        _quiet()
        model = load_original(source, task)
        export_graphs(model, task, work, opset)
        base = _ask(source, task, model, work, rows, length)
        del model
        free_memory()  # the weights, which nothing needs any more
        return base
    except BaseException as error:
        shutil.rmtree(work, ignore_errors=True)
        if isinstance(error, EdgewiseError | KeyboardInterrupt | OSError):
            raise
        raise CheckpointError(f"{source.path} does not export to ONNX: {error}") from error


def _ask(source: Checkpoint, task: Task, model: Any, work: Path, rows: Sequence[Row], fixed: int | None) -> Base:
    import onnx

    graph = onnx.load(work / graph_files(task)[0], load_external_data=False).graph
    inputs = tuple(i.name for i in graph.input)
    if task in IMAGE_TASKS:
        probes, written = build_probes(source, task, model, inputs, rows, None)
        chosen = golden_inputs(task, rows)
        return Base(work, task, source, read_processor(source.path), inputs, probes=probes, golden=chosen)
    tokenizer = read_tokenizer(source.path)
    length = text_limit(source.config, tokenizer)
    length = min(x for x in (length, fixed) if x is not None) if length or fixed else None
    texts, chosen = _texts(rows), golden_inputs(task, rows, mask_token(tokenizer))
    if task == "text-classification":
        cases = parity.build_cases(model, tokenizer, inputs, rows, length)
        return Base(work, task, source, tokenizer, inputs, length, cases, texts=texts, golden=chosen)
    probes, written = build_probes(source, task, model, inputs, rows, length)
    return Base(
        work, task, source, tokenizer, inputs, length, probes=probes, written=written, texts=texts, golden=chosen
    )


def _texts(rows: Sequence[Row]) -> tuple[Any, ...]:
    """All single texts or all pairs, as the first row is; of our own without rows."""
    paired = bool(rows) and rows[0].text_pair is not None
    found = [(r.text, r.text_pair) if paired else r.text for r in rows[:8] if (r.text_pair is not None) == paired]
    return tuple(found) or parity.FALLBACK_TEXTS


def _quiet() -> None:
    """Keep Optimum's and PyTorch's notes on tracing off the terminal; errors reach us as exceptions."""
    import warnings

    from optimum.utils import logging as optimum_logging
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    optimum_logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=UserWarning)
    import torch.jit

    warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
