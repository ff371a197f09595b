"""A recipe with `max_drop`: the search for the nodes to keep in fp32, driven with the forms and rows of one export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from edgewise.data import Row
from edgewise.errors import ParityError
from edgewise.exporter.base import Base
from edgewise.exporter.forms import Made, Say, finish_graphs, half_feeds, make_graphs
from edgewise.exporter.guard import Guarded, confirm, guard
from edgewise.exporter.guard_rows import Judge, fp32_reference, guard_judge, measure_of, scorer
from edgewise.exporter.joined import PREFIX, join
from edgewise.exporter.outcomes import Example
from edgewise.exporter.proof import Validation
from edgewise.exporter.quantize import calibrated_once
from edgewise.exporter.sessions import first_feeds, open_graphs
from edgewise.types import Recipe

_POINTS = 100
_FEEDS, _MANY = 32, 100
_JOINED = "joined.onnx"


def make_guarded(recipe: Recipe, work: Path, calibration: Sequence[Row], validation: Validation, say: Say) -> Made:
    """Make the graphs of a resolved int8 recipe whose `max_drop` is set, in folders under `work`.

    The recipe that comes back names the nodes kept in fp32; its notes tell what was found, and what the rows of confirm
    say of it, which are looked at once, at the end. Raises ParityError where no graph keeps the allowed drop, DataError
    where val rows have nothing that is right or wrong.
    """
    base, number = validation.base, count()
    assert recipe.max_drop is not None
    plain = replace(recipe, max_drop=None, length=None, offline=False, external=False)
    judge = guard_judge(base.task, validation.problem_type, validation.chosen)
    two = base.task == "text2text-generation"

    def quantize(keep: tuple[str, ...]) -> Path:
        place = work / f"trial-{next(number)}"
        place.mkdir()
        return make_graphs(plain, base, place, calibration, say, _own(keep)).folder / "model.onnx"

    say("evaluate fp32")
    whole = validation.against or validation
    with calibrated_once():
        found = guard(
            join(base.folder, work / _JOINED) if two else base.folder / "model.onnx",
            plain,
            quantize,
            fp32_reference(whole.base.folder, base.task, whole.chosen, judge),
            scorer(base.task, validation.chosen, judge),
            _feeds(base, validation.chosen),
            max_drop=recipe.max_drop / _POINTS,
            joined=(lambda graph: join(graph.parent, graph.with_name(_JOINED))) if two else None,
            say=say,
        )
    if not found.met:
        raise ParityError(found.words)
    folder = finish_graphs(recipe, found.graph.parent, base.task, work, say)
    told = {"measure": measure_of(base.task, validation.problem_type), **_told(found)}
    notes = {"guard": {**told, **_confirmed(found, validation, judge, recipe.max_drop)}}
    return Made(folder, replace(recipe, keep=(*recipe.keep, *_own(found.keep))), notes)


def _feeds(base: Base, rows: Sequence[Example]) -> list[Mapping[str, np.ndarray]]:
    """Sample inputs, one row each, of the one graph that is simulated; of two that are joined, what they read from
    outside. Of a task whose answers are small many, since those nearest to another answer are chosen among them."""
    if base.task in ("text-classification", "image-classification") and rows:
        return [example.feeds for example in rows[:_MANY]]
    if base.cases:
        return half_feeds(base)["model.onnx"][:_FEEDS]
    feeds = [probe.feeds for probe in base.probes if probe.name.startswith("row")][:_FEEDS]
    if base.task == "text2text-generation":
        return feeds
    graphs = open_graphs(base.folder, base.task)
    return [first_feeds(graphs, one)[0]["model.onnx"] for one in feeds]


def _own(names: Sequence[str]) -> tuple[str, ...]:
    """Names of nodes as the graphs themselves have them, each once, where encoder and decoder were joined."""
    return tuple(dict.fromkeys(name.removeprefix(PREFIX) for name in names))


def _told(found: Guarded) -> dict[str, Any]:
    """For the manifest; drops in points."""
    return {
        "met": found.met,
        "words": found.words,
        "kept_in_fp32": list(_own(found.keep)),
        "share_int8": found.share_int8,
        "given_away_bytes": found.given,
        "evaluations": found.evaluations,
        "rows": found.rows,
        "rows_run": found.rows_run,
        "drop": _POINTS * found.drop,
        "drop_relative": found.drop_relative,
        "drop_at_most": _POINTS * found.bound,
        "tried": [
            {
                "kept": len(t.keep),
                "drop": _POINTS * t.drop,
                "stopped_after": t.rows if t.stopped else None,
                "given_away_bytes": t.given,
                "within": t.within,
            }
            for t in found.tried
        ],
    }


def _confirmed(found: Guarded, validation: Validation, judge: Judge, points: float) -> dict[str, str]:
    whole, task, chosen = validation.against or validation, validation.base.task, validation.confirm_examples()
    if not chosen:
        return {}
    fp32 = fp32_reference(whole.base.folder, task, whole.confirm_examples(), judge).scores
    int8 = scorer(task, chosen, judge)(found.graph, range(len(chosen)))
    return {"confirmed": confirm(fp32.tolist(), list(int8), points / _POINTS)}
