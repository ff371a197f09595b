"""From the fp32 graphs of a checkpoint to those of one recipe: optimize, change the precision, fix, save."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edgewise.data import Row
from edgewise.exporter.base import Base
from edgewise.exporter.guard_rows import MEASURES
from edgewise.exporter.in_place import IN_PLACE_FAMILIES, InPlacePrecision
from edgewise.exporter.quantize import check_keep, kept_nodes, optimize_graph, quantize_graph, quantize_seq2seq
from edgewise.exporter.tracing import graph_files
from edgewise.types import Recipe, Task

Say = Callable[[str], None]
"""Told what is being done, in a word or two."""
_DECODER_TASKS = ("text-generation", "text2text-generation")


@dataclass(frozen=True)
class Made:
    """The graphs of one recipe."""

    folder: Path
    recipe: Recipe
    """With its preset named, and the nodes that were found to need fp32."""
    notes: dict[str, Any] = field(default_factory=dict)
    """For the manifest's parity: what was kept in fp32, and why."""


def why_not(recipe: Recipe, task: Task, family: str) -> str:
    """Why this recipe is not made for this task; '' where it is."""
    cached, images, name = task in _DECODER_TASKS, task.startswith("image"), recipe.name
    in_place = task == "text-generation" and family in IN_PLACE_FAMILIES
    reasons = {
        f"{name} is not made for {task}: Optimum's optimizer takes no graph with a key-value cache": recipe.optimize
        and cached,
        f"int8-static is not made for {task}, whose first call has an empty cache to calibrate with: use "
        "int8-dynamic": recipe.precision == "int8-static" and cached,
        f"{name} is made for text-generation with {', '.join(IN_PLACE_FAMILIES)}, not for {task} with {family}": (
            recipe.cache == "in-place" and not in_place
        ),
        f"{name}: the graph with an in-place cache takes no option but block_size, offline and external": (
            recipe.cache == "in-place"
            and replace(recipe, offline=False, external=False, block_size=32) != _in_place(recipe)
        ),
        f"{name}: max_drop names nodes of the graph as exported, and optimize={recipe.optimize} fuses them: "
        "offline=true fuses after quantizing": recipe.max_drop is not None and recipe.optimize in ("O2", "O3"),
        f"length={recipe.length} is for texts that are read whole, not for {task}": recipe.length is not None
        and (cached or images),
        f"vocabulary=task is for texts, not for {task}": recipe.vocabulary == "task" and images,
        f"max_drop is for int8-dynamic and int8-static, not for {name}": recipe.max_drop is not None
        and not recipe.int8,
        f"{name}: max_drop is of the share of right answers, which {task} has not": recipe.max_drop is not None
        and task not in MEASURES,
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def _in_place(recipe: Recipe) -> Recipe:
    """The plain recipe of its kind."""
    return Recipe(precision=recipe.precision, cache=recipe.cache, preset=recipe.preset)


def all_recipes(task: Task, family: str, rows: bool) -> list[Recipe]:
    """Every short name that this task and family have; those that need rows only where there are rows."""
    from edgewise.types import RECIPES

    extra = [] if "generation" in task else [Recipe(optimize="O2", offline=True)]
    extra += [replace(RECIPES["int8-dynamic"], offline="generation" not in task, per_channel=False)]
    if rows and not task.startswith("image"):
        extra.append(replace(RECIPES["int8-dynamic"], vocabulary="task"))
    made = [r for r in (*RECIPES.values(), *extra) if not why_not(r, task, family)]
    return [r for r in made if rows or r.precision != "int8-static"]


def make_graphs(
    recipe: Recipe, base: Base, work: Path, calibration: Sequence[Row], say: Say, keep: Sequence[str] = ()
) -> Made:
    """Make the graphs of a resolved recipe in folders under `work`; those of `base` are not changed.

    keep: names of nodes that stay in fp32, beside the recipe's own.
    """
    if recipe.cache == "in-place":
        from edgewise.exporter.in_place import build_in_place

        say("graph with an in-place cache")
        precision: InPlacePrecision = "int4" if recipe.precision == "int4-weights" else "fp32"
        build_in_place(base.source.path, work / "in-place", precision=precision, block_size=recipe.block_size)
        return Made(finish_graphs(recipe, work / "in-place", base.task, work, say), recipe)
    source = _optimized(recipe, base, say)
    recipe = replace(recipe, keep=(*recipe.keep, *keep))
    notes: dict[str, Any] = {}
    if recipe.precision == "fp16":
        say("half precision")
        source, notes = _half(source, base, work / "half")
    elif recipe.precision in ("int8-weights", "int4-weights"):
        say(f"weights to int{4 if recipe.precision == 'int4-weights' else 8}")
        source = _weights(recipe, source, base.task, work / "weights")
    elif recipe.int8:
        say("int8")
        source = _int8(recipe, source, base, work / "quantized", calibration)
    return Made(finish_graphs(recipe, source, base.task, work, say), recipe, notes)


def _optimized(recipe: Recipe, base: Base, say: Say) -> Path:
    """Made once a level, beside the graphs that it was made from."""
    if recipe.optimize is None:
        return base.folder
    folder = base.folder / recipe.optimize
    if not folder.exists():
        say(f"optimize {recipe.optimize}")
        optimize_graph(base.folder, folder, recipe.optimize)
    return folder


def _int8(recipe: Recipe, source: Path, base: Base, out: Path, calibration: Sequence[Row]) -> Path:
    if base.task == "text2text-generation":
        return quantize_seq2seq(source, out, recipe)
    images = base.task.startswith("image")
    return quantize_graph(source, out, recipe, calibration, base.preprocessor, base.max_length, images=images).parent


def _half(source: Path, base: Base, out: Path) -> tuple[Path, dict[str, Any]]:
    """Half precision; the sample inputs that show which nodes overflow are those of the parity proof."""
    from edgewise.exporter.half import half_seq2seq, to_half

    out.mkdir()
    if base.task == "text2text-generation":
        return out, {"kept_in_fp32": list(half_seq2seq(source, out, [p.feeds for p in base.probes[:16]]))}
    feeds = half_feeds(base)
    kept = {name: to_half(source / name, out / name, feeds.get(name, ())) for name in graph_files(base.task)}
    return out, {"kept_in_fp32": [node for nodes in kept.values() for node in nodes]}


def half_feeds(base: Base) -> dict[str, list[Any]]:
    """Sample feeds by graph: complete for graphs without a cache, and for the encoder."""
    from edgewise.exporter.sessions import first_feeds, open_graphs

    if base.cases:
        return {"model.onnx": [_case_feeds(base, case.input_ids[0]) for case in base.cases[:16]]}
    graphs = open_graphs(base.folder, base.task)
    found: dict[str, list[Any]] = {}
    for probe in base.probes[:16]:
        for name, feeds in first_feeds(graphs, probe.feeds)[0].items():
            found.setdefault(name, []).append(feeds)
    return found


def _case_feeds(base: Base, ids: Sequence[int]) -> dict[str, Any]:
    import numpy as np

    row = np.array([ids], dtype=np.int64)
    made = {"input_ids": row, "attention_mask": np.ones_like(row), "token_type_ids": np.zeros_like(row)}
    made["position_ids"] = np.arange(row.shape[1], dtype=np.int64)[None]
    return {name: made[name] for name in base.inputs}


def _weights(recipe: Recipe, source: Path, task: Task, out: Path) -> Path:
    from edgewise.exporter.weights import quantize_weights

    out.mkdir()
    graphs = [source / name for name in graph_files(task)]
    check_keep(graphs, recipe.keep)
    for graph in graphs:
        quantize_weights(
            graph, out / graph.name, bits=4 if recipe.precision == "int4-weights" else 8,
            block_size=recipe.block_size, symmetric=recipe.symmetric_weights is not False, accuracy_level=4,
            embeddings=recipe.embeddings, keep=[k for k in recipe.keep if _names(graph, k)],
        )  # fmt: skip
    return out


def _names(graph: Path, suffix: str) -> bool:
    """True where a node of the graph has a name that ends so: a suffix may be for one of two graphs."""
    return bool(kept_nodes(graph, [suffix]))


def finish_graphs(recipe: Recipe, source: Path, task: Task, work: Path, say: Say) -> Path:
    """Fixed length, saved optimized, weights apart: in this order, each where the recipe asks for it."""
    if recipe.length is not None:
        source = fix_length(source / "model.onnx", work / "fixed", recipe.length).parent
    for wanted, step, what in (
        (recipe.offline, _offline, "optimize and save"),
        (recipe.external, _external, "weights apart"),
    ):
        if wanted:
            say(what)
            out = work / what.replace(" ", "-")
            out.mkdir()
            for name in graph_files(task):
                step(source / name, out / name)
            source = out
    return source


def _offline(graph: Path, out: Path) -> None:
    from edgewise.exporter.offline import optimize_offline

    optimize_offline(graph, out)


def _external(graph: Path, out: Path) -> None:
    from edgewise.exporter.external import externalize

    externalize(graph, out)


def fix_length(graph: Path, out: Path, length: int) -> Path:
    """The graph with its sequence dimension fixed to `length` tokens, in the folder `out`; the batch stays free."""
    import onnx
    from onnxruntime.tools.onnx_model_utils import make_dim_param_fixed

    model = onnx.load(graph)
    names = {d.dim_param for i in model.graph.input for d in i.type.tensor_type.shape.dim[1:] if d.dim_param}
    for name in names:
        make_dim_param_fixed(model.graph, name, length)
    out.mkdir(parents=True, exist_ok=True)
    for config in graph.parent.glob("*.json"):
        shutil.copyfile(config, out / config.name)
    onnx.save(model, out / graph.name)
    return out / graph.name
