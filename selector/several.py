"""One bundle for several devices: feasible on all of them, with the smallest loss against each one's own choice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from edgewise.selector.budgets import metric_of
from edgewise.selector.weighted import difference
from edgewise.selector.words import bundle_name, gap, listed, point
from edgewise.showing import show
from edgewise.types import Entry, Selection, Verdict


@dataclass(frozen=True)
class Place:
    """One bundle on one device."""

    device: str
    entry: Entry | None
    """With its best run settings there; None where none of them keeps every budget."""
    losses: tuple[float | None, ...]
    """Of each objective against the device's own choice: 0.01 is one point of a share, or one per cent of anything
    else; 0 where it cannot be told from it, or is better; None where one of the two lacks it. With weights below 0
    where it is better, as one objective may make up for another."""
    rank: int
    """Of the entry on the device, from 1; 0 where there is none."""
    words: str
    """'accuracy 82.10% (0.40 points worse), p95 8.1 ms (the same)'; or why there is none."""


@dataclass(frozen=True)
class Shared:
    """One bundle on all devices."""

    name: str
    content_digest: str | None
    places: tuple[Place, ...]
    """In the order of the selections."""
    loss: tuple[float, ...]
    """The worst of the devices in each objective, with weights in their weighted sum; inf where it is not known."""

    @property
    def feasible(self) -> bool:
        """On every device."""
        return all(p.entry is not None for p in self.places)


@dataclass(frozen=True)
class Joint:
    """The one bundle for all devices, and the others."""

    bundles: tuple[Shared, ...]
    """Feasible everywhere by their loss, then the others by how many devices they are feasible on."""
    sentence: str

    @property
    def chosen(self) -> Shared | None:
        return self.bundles[0] if self.bundles and self.bundles[0].feasible else None


def one_for_all(selections: Sequence[Selection]) -> Joint | None:
    """The bundle that is feasible on all devices with the smallest loss, which is the worst of the devices in the first
    objective, then in the next one; None with fewer than two devices.

    A device's own choice has no loss there, and none is better: of several without any, that which ranks best on the
    device where it ranks worst is taken, so that the choice of all devices is the one for all.
    """
    if len(selections) < 2:
        return None
    names = {_identity(v.entry): bundle_name(v.entry) for s in selections for v in s.verdicts if v.entry.content_digest}
    bundles = sorted((_shared(key, name, selections) for key, name in names.items()), key=_order)
    return Joint(tuple(bundles), _sentence(bundles, selections))


def _identity(entry: Entry) -> tuple[str, str | None]:
    return bundle_name(entry), entry.content_digest


def _order(bundle: Shared) -> tuple[object, ...]:
    lacking = sum(p.entry is None for p in bundle.places)
    ranks = sorted((p.rank for p in bundle.places), reverse=True)
    return lacking, bundle.loss, ranks, bundle.name, bundle.content_digest or ""


def _shared(key: tuple[str, str | None], name: str, selections: Sequence[Selection]) -> Shared:
    places = tuple(_place(key, s) for s in selections)
    known = [[math.inf if x is None else x for x in p.losses] for p in places if p.entry is not None]
    if weights := selections[0].weights:
        known = [[max(0.0, sum(w * x for w, x in zip(weights, losses, strict=True)))] for losses in known]
    return Shared(name, key[1], places, tuple(map(max, zip(*known, strict=True))) if known else ())


def _place(key: tuple[str, str | None], selection: Selection) -> Place:
    ranked = [v for v in selection.verdicts if _identity(v.entry) == key and v.rank is not None]
    if not ranked:
        return Place(selection.device, None, (), 0, _why_not(key, selection))
    best = min(ranked, key=lambda v: v.rank or 0)
    assert selection.chosen is not None
    losses, words = zip(*(_loss(selection, best, name) for name in selection.objective), strict=True)
    return Place(selection.device, best.entry, losses, best.rank or 0, ", ".join(words))


def _loss(selection: Selection, verdict: Verdict, name: str) -> tuple[float | None, str]:
    assert selection.chosen is not None
    reference = next((b.relative_to for b in selection.budgets if b.metric == name), None)
    metric = metric_of(verdict.entry, name, reference)
    value, best = point(metric), point(metric_of(selection.chosen.entry, name, reference))
    if metric is None or value is None or best is None:
        return None, f"{name} not measured"
    loss = difference(name, best, value)
    text = f"{name} {show(value, metric.unit)}"
    if verdict is selection.chosen or value == best:
        return 0.0, text
    if not selection.weights and name == selection.objective[0] and selection.chosen.entry.key in verdict.tied_with:
        return 0.0, f"{text} (tied)"  # with weights it is the score that is tied
    if loss is None:
        return None, text
    text += f" ({gap(value - best, metric.unit)} {'worse' if loss > 0 else 'better'})"
    return loss if selection.weights else max(0.0, loss), text


def _why_not(key: tuple[str, str | None], selection: Selection) -> str:
    found = [v for v in selection.verdicts if _identity(v.entry) == key]
    if not found:
        return "not measured there"
    # The verdicts stand by how near they are.
    return next((c.words for c in found[0].checks if not c.met), found[0].reason)


def _sentence(bundles: Sequence[Shared], selections: Sequence[Selection]) -> str:
    devices = listed([s.device for s in selections])
    if not bundles:
        return f"No bundle was measured on {devices}."
    first = bundles[0]
    if first.feasible:
        return f"One for all: {first.name} keeps every budget on {devices}."
    there = [p.device for p in first.places if p.entry is not None]
    where = f"; {first.name} does on {listed(there)}" if there else ""
    return f"No bundle keeps every budget on all of {devices}{where}."
