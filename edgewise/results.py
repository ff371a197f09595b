"""What `fit` and `report` write for people and programs: the chosen bundle, selection.json, report.html."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgewise.bundle import CARD, Bundle, read_bundle, with_run
from edgewise.errors import StoreError
from edgewise.files import new_folder, write_json, write_text
from edgewise.rundir import RunFolder
from edgewise.types import Entry, Measurement, Selection

if TYPE_CHECKING:
    from edgewise.profiler import Store
    from edgewise.selector import ChangedAnswer, ReportData, TrainingRow

_TOOLS = ("edgewise", "torch", "transformers", "optimum", "optimum-onnx", "peft", "onnx", "onnxruntime", "tokenizers")
_EXAMPLES = 40
"""Changed answers a bundle that the report shows."""
_SAMPLES = 400
"""Calls an entry that the report draws."""


def write_chosen(
    bundle: Bundle, selection: Selection, path: Path, *, machine: Mapping[str, Any] | None = None, data: str = ""
) -> Bundle:
    """Copy the chosen bundle to `path` with its run settings, the reason, and a model card.

    machine: fingerprint of the device. data: one sentence on the rows.
    """
    from edgewise.selector import model_card

    assert selection.chosen is not None
    verdict = selection.chosen
    assert verdict.entry.target is not None
    with new_folder(path) as folder:
        shutil.copytree(bundle.path, folder, dirs_exist_ok=True)
        why = {
            "sentence": selection.sentence,
            "reason": verdict.reason,
            "device": selection.device,
            "confidence": selection.confidence,
            "budgets": [b.text for b in selection.budgets],
            "objective": list(selection.objective),
        }
        written = with_run(Bundle(folder, bundle.manifest), verdict.entry.target.run, why)
        write_text(folder / CARD, model_card(written.manifest, selection, machine=machine, data=data))
    return read_bundle(path)


def write_selection(folder: RunFolder, selections: Sequence[Selection], chosen: Mapping[str, Path]) -> None:
    """selection.json: every verdict with its reasons, one selection a device."""
    from edgewise.selector import to_json

    digests = {device: read_bundle(path, verify="none").digest for device, path in chosen.items()}
    write_json(
        folder.selection,
        {
            "format": "1.0",
            "chosen": {d: {"path": p.name, "content_digest": digests[d]} for d, p in chosen.items()},
            "devices": [to_json(s) for s in selections],
        },
    )


def write_report_files(folder: RunFolder, data: ReportData) -> None:
    """report.html and report.md in the run folder."""
    from edgewise.selector import write_markdown, write_report

    write_report(folder.report, data)
    write_markdown(folder.report.with_suffix(".md"), data)


def report_data(
    store: Store,
    selections: Sequence[Selection],
    *,
    title: str,
    command: str,
    plan: str = "",
    texts: Mapping[str, str] | None = None,
    labels: Sequence[str] = (),
    bundle: str = "chosen",
) -> ReportData:
    """Everything that the report shows, from the store. texts: row id -> text, for the examples; none without."""
    from edgewise.selector import ReportData

    measurements = tuple(store.measurements())
    entries = [v.entry for s in selections for v in s.verdicts]
    return ReportData(
        title=title,
        generated=datetime.now(UTC),
        plan=plan,
        command=command,
        versions={name: found for name in _TOOLS if (found := _version(name))},
        selections=tuple(selections),
        measurements=measurements,
        machines=machines_of(measurements),
        training=_training(measurements),
        changed=tuple(_changed(store, measurements, texts or {}, labels)),
        samples=_samples(store, measurements, entries),
        bundle=bundle,
    )


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def machines_of(measurements: Sequence[Measurement]) -> dict[str, Mapping[str, Any]]:
    """Device -> fingerprint; a device that changed in between stands here once for each."""
    found: dict[str, Mapping[str, Any]] = {}
    for m in measurements:
        fingerprint = m.conditions.get("fingerprint")
        if m.target is None or not isinstance(fingerprint, Mapping):
            continue
        name, count = m.target.device, 1
        while name in found and _machine_digest(m) != found[name].get("digest"):
            count += 1
            name = f"{m.target.device} ({count})"
        found.setdefault(name, {**fingerprint, "digest": _machine_digest(m)})
    return found


def _machine_digest(measurement: Measurement) -> Any:
    return measurement.conditions.get("fingerprint_digest")


def _training(measurements: Sequence[Measurement]) -> tuple[TrainingRow, ...]:
    from edgewise.selector import TrainingRow

    rows: dict[str, TrainingRow] = {}
    for m in measurements:
        if m.stage != "train":
            continue
        c, time = m.conditions, m.metric("train_time")
        parameters = f"{c['trainable_parameters']:,} of {c['parameters']:,} parameters trained" if c else ""
        rows[m.candidate] = TrainingRow(
            m.candidate,
            str(c.get("strategy", "?")),
            time.value if time else None,
            rows=c.get("rows"),
            note=m.reason or f"seed {c.get('seed')}, {parameters}, loss {c.get('train_loss', float('nan')):.3f}",
        )
    return tuple(rows.values())


def _samples(store: Store, measurements: Sequence[Measurement], entries: Sequence[Entry]) -> dict[str, list[float]]:
    """Entry key -> seconds of single calls, thinned evenly over all processes."""
    wanted = {(e.content_digest, e.target.text()): e.key for e in entries if e.target is not None}
    found: dict[str, list[float]] = {}
    for m in measurements:
        if m.scenario != "single-stream" or m.stage != "profile" or m.target is None or m.id is None:
            continue
        key = wanted.get((m.content_digest, m.target.text()))
        if key is None:
            continue
        calls = [ns / 1e9 for sample in store.samples(m.id) for ns in sample.ns]
        found[key] = calls[:: max(1, len(calls) // _SAMPLES)]
    return found


def _changed(
    store: Store, measurements: Sequence[Measurement], texts: Mapping[str, str], labels: Sequence[str]
) -> Iterator[ChangedAnswer]:
    """Rows of val that a quantized bundle answers otherwise than fp32 of the same candidate, at the same length."""
    from edgewise.selector import ChangedAnswer

    if not texts:
        return
    answered = [m for m in measurements if m.scenario == "accuracy" and m.stage == "profile" and m.status == "ok"]
    by_place = {(m.candidate, m.recipe, _length(m)): m for m in answered}
    for (candidate, recipe, length), m in by_place.items():
        reference = by_place.get((candidate, "fp32", length))
        if recipe == "fp32" or reference is None or reference.inputs_digest != m.inputs_digest:
            continue
        assert m.id is not None
        assert reference.id is not None
        pairs = zip(store.outcomes(reference.id), store.outcomes(m.id), strict=True)
        for theirs, ours in [(a, b) for a, b in pairs if a.answer != b.answer][:_EXAMPLES]:
            told = "?" if ours.label is None else labels[ours.label]
            yield ChangedAnswer(
                f"{candidate}/{recipe}, length {length}",
                texts.get(ours.row_id, "(text not kept)"),
                told,
                labels[theirs.answer],
                labels[ours.answer],
            )


def _length(measurement: Measurement) -> int | None:
    return measurement.target.run.max_length if measurement.target else None


def read_selections(path: Path) -> tuple[Selection, ...]:
    """The selections of a selection.json. Raises StoreError."""
    import json

    from edgewise.selector import from_json

    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return tuple(from_json(s) for s in data["devices"])
    except FileNotFoundError as error:
        raise StoreError(f"{path}: no such file; `edgewise fit` writes it") from error
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path} is no selection.json: {error}") from error
