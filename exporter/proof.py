"""What proves a bundle, for its manifest: PyTorch, fp32 on labelled rows, other CPUs, other tools.

Text classification is proven through the runtime; the other tasks in plain onnxruntime sessions, number by number. The
golden answers of every task come from the runtime.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from edgewise.bundle import Bundle
from edgewise.data import Row
from edgewise.exporter import parity
from edgewise.exporter.against_fp32 import against_fp32, batch_effect
from edgewise.exporter.base import Base
from edgewise.exporter.forms import Made, half_feeds
from edgewise.exporter.golden import golden_answers
from edgewise.exporter.lean_trace import free_memory
from edgewise.exporter.outcomes import Example, Outcomes, examples, judge_of, outcomes
from edgewise.exporter.pooling import Pooling
from edgewise.exporter.sessions import open_graphs
from edgewise.exporter.task_parity import compare_graphs, graphs_load_in, read_ours
from edgewise.exporter.transformersjs import loads_in_transformersjs

_SATURATION_ROWS = 8
_SCRIPT_TEXTS = 4
_ARGMAX = (None, "single_label_classification")
"""Problem types whose answer is the largest number."""


@dataclass
class Validation:
    """Labelled rows that the forms of one base are judged by; what fp32 answers to them is found once."""

    base: Base
    problem_type: str | None
    rows: tuple[Row, ...]
    """Of val."""
    confirm: tuple[Row, ...] = ()
    pooling: Pooling | None = None
    against: Validation | None = None
    """Of the whole vocabulary, where the base has a smaller one: its fp32 is what the forms are held against."""

    @cached_property
    def judge(self) -> Callable[..., tuple[float, Any]]:
        return judge_of(self.base.task, self.problem_type, self.pooling)

    @cached_property
    def chosen(self) -> tuple[Example, ...]:
        return tuple(examples(self.base.source, self.base, self.rows, self.pooling))

    @cached_property
    def fp32(self) -> Outcomes:
        """Of the graphs as exported, with the whole vocabulary."""
        return self.against.fp32 if self.against else self.outcomes(self.base.folder, self.chosen)

    def outcomes(self, folder: Path, chosen: Sequence[Example]) -> Outcomes:
        """Of the graphs in `folder`, one row after the other."""
        return outcomes(open_graphs(folder, self.base.task), chosen, self.judge)

    def confirm_examples(self) -> tuple[Example, ...]:
        return tuple(examples(self.base.source, self.base, self.confirm, self.pooling)) if self.confirm else ()


def prove(draft: Bundle, made: Made, validation: Validation) -> dict[str, Any]:
    """Hold a bundle, whose manifest is a draft, against PyTorch: the manifest's parity, golden and loads_in.

    Raises ParityError for one that is outside the tolerance of its precision.
    """
    base = validation.base
    if made.recipe.cache == "in-place":
        from edgewise.exporter.in_place_proof import prove_in_place

        proof: dict[str, Any] = prove_in_place(draft, base, made.recipe)
    elif base.task == "text-classification":
        proof = _through_the_runtime(draft, base, made)
    else:
        graphs = open_graphs(draft.path, base.task)
        found = compare_graphs(graphs, base.probes, base.written, made.recipe)
        ours = read_ours(graphs, base.probes, base.written)
        del graphs  # large ones would stand in memory twice
        proof = {"parity": found, "loads_in": graphs_load_in(draft, ours, base.probes, base.written)}
        del ours  # the logits of a whole vocabulary
    script = loads_in_transformersjs(
        draft.path, base.task, base.texts[:_SCRIPT_TEXTS], pooling=validation.pooling or "mean",
        normalize=bool(draft.manifest.preprocessing.get("normalize")),
    )  # fmt: skip
    proof["loads_in"]["transformersjs"] = script
    free_memory()  # the runtime opens the graphs once more
    proof["golden"] = golden_answers(draft.path, base.golden)
    return {**proof, "parity": {**proof["parity"], **_more(draft, made, validation)}}


def _through_the_runtime(draft: Bundle, base: Base, made: Made) -> dict[str, Any]:
    from edgewise.runtime import load

    with load(draft.path, verify="none") as model:
        return {
            "parity": parity.compare(model, base.cases, made.recipe),
            "loads_in": parity.loads_in(draft, model, base.cases),
        }


def _more(draft: Bundle, made: Made, validation: Validation) -> dict[str, Any]:
    """Beside PyTorch: the notes of how it was made, the vocabulary, fp32 on val rows, and what other CPUs would do."""
    base = validation.base
    found: dict[str, Any] = dict(made.notes)
    if base.vocabulary is not None:
        found["vocabulary"] = base.vocabulary
    other = made.recipe.precision != "fp32" or made.recipe.vocabulary == "task"
    if validation.rows and other and made.recipe.cache == "portable":
        graphs = open_graphs(draft.path, base.task)
        ours = outcomes(graphs, validation.chosen, validation.judge)
        found["against_fp32"] = {
            **against_fp32(base.task, validation.fp32, ours, validation.problem_type),
            "batch": batch_effect(graphs, validation.chosen, ours, validation.judge, _pad(draft)),
        }
    if made.recipe.int8:
        from edgewise.exporter.saturation import bundle_saturation

        feeds = {draft.path / "onnx" / name: some[:_SATURATION_ROWS] for name, some in half_feeds(base).items()}
        labels = base.task.endswith(("classification", "generation")) and validation.problem_type in _ARGMAX
        found["saturation"] = asdict(bundle_saturation(feeds, labels=labels))
    return found


def _pad(draft: Bundle) -> int:
    return int(draft.manifest.preprocessing.get("pad_id") or 0)
