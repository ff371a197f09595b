"""The profiler's one call, and its parts under one name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgewise.arrival import Arrival
from edgewise.bundle import Bundle, read_bundle
from edgewise.data import Row
from edgewise.errors import DataError
from edgewise.profiler.accuracy import has_reference, measure_accuracy
from edgewise.profiler.comparison import compare_with_reference
from edgewise.profiler.joining import entries
from edgewise.profiler.latency import measure_latency
from edgewise.profiler.plumbing import Subject, no_progress
from edgewise.profiler.quality import judged_without_labels, kind_of_subject
from edgewise.profiler.rounds import RoundRule, Rounds
from edgewise.profiler.store import Store
from edgewise.progress import Progress
from edgewise.types import Device, Measurement, Target

__all__ = [
    "Rounds",
    "Store",
    "Subject",
    "compare_with_reference",
    "entries",
    "measure_accuracy",
    "measure_latency",
    "profile",
]


def profile(
    bundles: Sequence[Subject | str | Path],
    targets: Sequence[Target],
    rows: Sequence[Row],
    *,
    store: Store,
    devices: Sequence[Device] = (Device(),),
    spec: RoundRule | None = None,
    level: float = 0.95,
    reference: str = "fp32",
    work: Path | None = None,
    seed: int = 0,
    arrivals: Sequence[Arrival] = (Arrival(),),
    slices: Sequence[str] = (),
    progress: Progress = no_progress,
) -> list[Measurement]:
    """Measure bundles on targets: accuracy where the rows have labels, perplexity of language models, else agreement
    with the reference where it is among them; then latency, start-up, memory and size.

    bundles: folders, or `Subject`s that name candidate and recipe. rows: real inputs; labels on all of them or none.
    spec: how long (`Rounds`, or a plan's `profile`). arrivals: the scenarios. slices: as of
    `measure_accuracy`. Returns the measurements as they stand in
    the store; what it has already is not measured again, and what fails is a measurement with its reason.

    Raises BundleError for a folder that is no bundle, DataError, PlanError for a device that is not among `devices`,
    UserError for a device whose interpreter cannot run the worker.
    """
    labelled = sum(has_reference(row) for row in rows)
    if 0 < labelled < len(rows):
        raise DataError(f"{len(rows) - labelled} of {len(rows)} rows have no label: give labels to all of them or none")
    subjects = [b if isinstance(b, Subject) else subject_of(b) for b in bundles]
    found: list[Measurement] = []
    if labelled or all(map(judged_without_labels, subjects)) or _comparable(subjects, reference):
        found += measure_accuracy(
            subjects,
            targets,
            rows,
            store=store,
            devices=devices,
            level=level,
            reference=reference,
            slices=slices,
            progress=progress,
        )
    found += measure_latency(
        subjects,
        targets,
        rows,
        store=store,
        devices=devices,
        spec=spec,
        level=level,
        work=work,
        seed=seed,
        arrivals=arrivals,
        progress=progress,
    )
    return found


def _comparable(subjects: Sequence[Subject], reference: str) -> bool:
    """Whether answers without labels say something: one label an input, a reference, and others beside it."""
    recipes = {s.recipe for s in subjects}
    return reference in recipes and len(recipes) > 1 and all(kind_of_subject(s) == "class" for s in subjects)


def subject_of(given: Bundle | str | Path) -> Subject:
    """A bundle, or the folder of one, with the names that its manifest gives: its candidate, its recipe."""
    bundle = given if isinstance(given, Bundle) else read_bundle(given)
    source = bundle.manifest.source
    candidate = source.get("candidate") or bundle.path.name
    return Subject(str(candidate), str(source.get("recipe") or bundle.manifest.recipe.name), bundle)
