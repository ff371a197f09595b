"""What is made once for all recipes of a checkpoint, fp32 graphs and PyTorch's answers, and the proof against them."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgewise.bundle import Bundle
from edgewise.data import Row
from edgewise.errors import CheckpointError, EdgewiseError
from edgewise.exporter import parity
from edgewise.exporter.checkpoint import Checkpoint
from edgewise.exporter.originals import load_original, read_processor, read_tokenizer
from edgewise.exporter.preprocessing import text_limit
from edgewise.exporter.probes import Probe, Written, build_probes
from edgewise.exporter.sessions import open_graphs
from edgewise.exporter.task_parity import compare_graphs, graphs_load_in
from edgewise.exporter.tracing import export_graphs, graph_files
from edgewise.types import Recipe, Task


@dataclass(frozen=True)
class Base:
    """The fp32 graphs as Optimum exports them, and PyTorch's answers."""

    folder: Path
    task: Task
    preprocessor: Any
    """Transformers' tokenizer or image processor."""
    max_length: int | None = None
    """Tokens that a text may have."""
    cases: tuple[parity.Case, ...] = ()
    """Of text classification."""
    probes: tuple[Probe, ...] = ()
    """Of the other tasks."""
    written: tuple[Written, ...] = ()
    """Of generation."""


def make_base(source: Checkpoint, task: Task, rows: Sequence[Row], out: Path, opset: int | None) -> Base:
    """Export the checkpoint into a temporary folder in `out`, which the caller removes, and ask PyTorch.

    Raises CheckpointError for a checkpoint that does not load or export.
    """
    work = Path(tempfile.mkdtemp(dir=out, prefix=".base.", suffix=".partial"))
    try:
        _quiet()
        model = load_original(source, task)
        export_graphs(model, task, work, opset)
        return _ask(source, task, model, work, rows)
    except BaseException as error:
        shutil.rmtree(work, ignore_errors=True)
        if isinstance(error, EdgewiseError | KeyboardInterrupt | OSError):
            raise
        raise CheckpointError(f"{source.path} does not export to ONNX: {error}") from error


def _ask(source: Checkpoint, task: Task, model: Any, work: Path, rows: Sequence[Row]) -> Base:
    import onnx

    graph = onnx.load(work / graph_files(task)[0], load_external_data=False).graph
    inputs = [i.name for i in graph.input]
    if task == "image-classification":
        probes, written = build_probes(source, task, model, inputs, rows, None)
        return Base(work, task, read_processor(source.path), probes=probes)
    tokenizer = read_tokenizer(source.path)
    length = text_limit(source.config, tokenizer)
    if task == "text-classification":
        cases = parity.build_cases(model, tokenizer, inputs, rows, length)
        return Base(work, task, tokenizer, length, cases)
    probes, written = build_probes(source, task, model, inputs, rows, length)
    return Base(work, task, tokenizer, length, probes=probes, written=written)


def prove(draft: Bundle, base: Base, recipe: Recipe) -> dict[str, Any]:
    """Hold a bundle, whose manifest is a draft, against PyTorch: the manifest's parity, golden and loads_in.

    Text classification through the runtime; the other tasks, which it does not answer yet, in plain onnxruntime
    sessions, and so without golden answers. Raises ParityError.
    """
    from edgewise.runtime import load

    if base.task != "text-classification":
        graphs = open_graphs(draft.path, base.task)
        proof = compare_graphs(graphs, base.probes, base.written, recipe)
        return {"parity": proof, "loads_in": graphs_load_in(draft, graphs, base.probes, base.written)}
    with load(draft.path, verify="none") as model:
        return {
            "parity": parity.compare(model, base.cases, recipe),
            "golden": parity.golden_answers(model, base.cases),
            "loads_in": parity.loads_in(draft, model, base.cases),
        }


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
