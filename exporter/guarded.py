"""A recipe with `max_drop`: the search for the nodes to keep in fp32, driven with the forms and rows of one export."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

from edgewise.data import Row
from edgewise.errors import ParityError
from edgewise.exporter.base import Base
from edgewise.exporter.forms import Made, Say, finish_graphs, half_feeds, make_graphs
from edgewise.exporter.guard import Guarded, confirm, guard
from edgewise.exporter.proof import Validation
from edgewise.types import Recipe

_POINTS = 100
_FEEDS = 32


def make_guarded(recipe: Recipe, work: Path, calibration: Sequence[Row], validation: Validation, say: Say) -> Made:
    """Make the graphs of a resolved int8 recipe whose `max_drop` is set, in folders under `work`.

    The recipe that comes back names the nodes kept in fp32; its notes tell what was found, and what the rows of confirm
    say of it, which are looked at once, at the end. Raises ParityError where no graph keeps the allowed drop.
    """
    base, number = validation.base, count()
    assert recipe.max_drop is not None
    plain = replace(recipe, max_drop=None, length=None, offline=False, external=False)

    def quantize(keep: tuple[str, ...]) -> Path:
        place = work / f"trial-{next(number)}"
        place.mkdir()
        return make_graphs(plain, base, place, calibration, say, keep).folder / "model.onnx"

    def score(graph: Path) -> Any:
        if graph.parent == base.folder:
            return validation.fp32.scores
        return validation.outcomes(graph.parent, validation.chosen).scores

    found = guard(
        base.folder / "model.onnx",
        plain,
        quantize,
        score,
        half_feeds(base)["model.onnx"][:_FEEDS],
        max_drop=recipe.max_drop / _POINTS,
        say=say,
    )
    if not found.met:
        raise ParityError(found.words)
    folder = finish_graphs(recipe, found.graph.parent, base.task, work, say)
    notes = {"guard": {**_told(found), **_confirmed(found, base, validation, recipe.max_drop)}}
    return Made(folder, replace(recipe, keep=(*recipe.keep, *found.keep)), notes)


def _told(found: Guarded) -> dict[str, Any]:
    """For the manifest; drops in points."""
    return {
        "met": found.met,
        "words": found.words,
        "kept_in_fp32": list(found.keep),
        "share_int8": found.share_int8,
        "given_away_bytes": found.given,
        "evaluations": found.evaluations,
        "rows": found.rows,
        "drop": _POINTS * found.drop,
        "drop_relative": found.drop_relative,
        "drop_at_most": _POINTS * found.bound,
        "tried": [
            {"kept": len(t.keep), "drop": _POINTS * t.drop, "given_away_bytes": t.given, "within": t.within}
            for t in found.tried
        ],
    }


def _confirmed(found: Guarded, base: Base, validation: Validation, points: float) -> dict[str, str]:
    chosen = validation.confirm_examples()
    if not chosen:
        return {}
    fp32 = validation.outcomes(base.folder, chosen).scores
    int8 = validation.outcomes(found.graph.parent, chosen).scores
    return {"confirmed": confirm(fp32.tolist(), int8.tolist(), points / _POINTS)}
