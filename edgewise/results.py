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
    from edgewise.rows import Row
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
    """report.html and report.md in the run folder, and the examples, so that the report can be written anew."""
    from dataclasses import asdict

    from edgewise.selector import write_markdown, write_report

    write_report(folder.report, data)
    write_markdown(folder.report.with_suffix(".md"), data)
    write_json(_examples(folder), [asdict(c) for c in data.changed])


def _examples(folder: RunFolder) -> Path:
    """The texts of the data that the report shows, and the only file of a run folder beside it that holds any."""
    return folder.path / "examples.json"


def read_examples(folder: RunFolder) -> tuple[ChangedAnswer, ...]:
    """What `write_report_files` kept; none where the file was removed. Raises StoreError for another file."""
    import json

    from edgewise.selector import ChangedAnswer

    path = _examples(folder)
    try:
        return tuple(ChangedAnswer(**row) for row in json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError):  # a store of its own is no run folder
        return ()
    except (ValueError, TypeError) as error:
        raise StoreError(f"{path} is no file of examples: {error}; remove it, and the report does without") from error


def report_data(
    store: Store,
    selections: Sequence[Selection],
    *,
    title: str,
    command: str,
    plan: str = "",
    texts: Mapping[str, str] | None = None,
    labels: Sequence[str] | Mapping[int, str] = (),
    changed: Sequence[ChangedAnswer] = (),
    bundle: str = "chosen",
    machine: str | None = None,
) -> ReportData:
    """Everything that the report shows, from the store.

    machine: part of the CPU's name, where a device stood for several; what was measured on the others is left out, and
    said. texts: row id -> text, for the examples; none without. labels: by the number of an answer. changed: examples
    that are at hand already.
    """
    from edgewise.profiler.machines import one_machine
    from edgewise.selector import ReportData

    kept, others = one_machine(store.measurements(), machine)
    measurements, pairs = tuple(kept), _pairs(kept)
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
        changed=tuple(changed) or _changed(store, pairs, selections, texts or {}, _named(labels)),
        changed_count=sum(map(_count_changed, pairs)),
        samples=_samples(store, measurements, entries),
        bundle=bundle,
        notes=others,
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


def labels_by_number(store: Store, rows: Sequence[Row]) -> dict[int, str]:
    """What the numbers of answers stand for, from rows that know their labels."""
    names = {row.id: row.label for row in rows if row.label is not None}
    found: dict[int, str] = {}
    for m in store.measurements():
        if m.scenario == "accuracy" and m.id is not None:
            for o in store.outcomes(m.id):
                if o.label is not None and o.row_id in names:
                    found.setdefault(o.label, names[o.row_id])
    return found


def _named(labels: Sequence[str] | Mapping[int, str]) -> Mapping[int, str]:
    return labels if isinstance(labels, Mapping) else dict(enumerate(labels))


def _changed(
    store: Store,
    pairs: Sequence[tuple[Measurement, Measurement, Measurement]],
    selections: Sequence[Selection],
    texts: Mapping[str, str],
    labels: Mapping[int, str],
) -> tuple[ChangedAnswer, ...]:
    """Rows of val that a bundle answers otherwise than the reference recipe of the same candidate, with the same
    settings: the chosen ones first, of each bundle the right answers that were lost first."""
    if not texts or not labels:
        return ()
    chosen = {_answers_as(s.chosen.entry) for s in selections if s.chosen}
    ordered = sorted(pairs, key=lambda pair: _answers_as(pair[1]) not in chosen)
    several = len({ours.target.device for _, ours, _ in ordered if ours.target}) > 1
    return tuple(
        example for _, ours, theirs in ordered for example in _examples_of(store, ours, theirs, several, texts, labels)
    )


def _pairs(measurements: Sequence[Measurement]) -> list[tuple[Measurement, Measurement, Measurement]]:
    """(comparison, the bundle's answers, the reference's) of each bundle and target, the latest."""
    by_id = {m.id: m for m in measurements}
    found: dict[Any, tuple[Measurement, Measurement, Measurement]] = {}
    for m in measurements:
        if m.scenario != "comparison" or m.stage != "profile" or m.status != "ok":
            continue
        ours, theirs = (by_id.get(m.conditions.get(n)) for n in ("measurement", "reference_measurement"))
        if ours is not None and theirs is not None and ours.content_digest != theirs.content_digest:
            found[ours.candidate, ours.recipe, ours.target] = m, ours, theirs
    return list(found.values())


def _count_changed(pair: tuple[Measurement, Measurement, Measurement]) -> int:
    """Rows that a bundle answers otherwise than the reference."""
    share, rows = pair[0].metric("changed_answers"), pair[1].conditions.get("rows")
    if share is None or share.value is None or not isinstance(rows, int):
        return 0
    return round(share.value * rows)


def _answers_as(found: Entry | Measurement) -> tuple[str | None, str]:
    """What two have in common that answer alike: threads do not change an answer."""
    from edgewise.profiler.joining import answer_settings

    return found.content_digest, answer_settings(found.target) if found.target else ""


def _examples_of(
    store: Store,
    ours: Measurement,
    theirs: Measurement,
    several: bool,
    texts: Mapping[str, str],
    labels: Mapping[int, str],
) -> Iterator[ChangedAnswer]:
    from edgewise.selector import ChangedAnswer

    assert ours.id is not None
    assert theirs.id is not None
    pairs = zip(store.outcomes(theirs.id), store.outcomes(ours.id), strict=True)
    moved = [(a, b) for a, b in pairs if a.answer != b.answer and b.row_id in texts]
    moved.sort(key=lambda pair: pair[0].answer != pair[0].label)
    for a, b in moved[:_EXAMPLES]:
        told = "?" if b.label is None else labels.get(b.label, "?")
        yield ChangedAnswer(
            f"{ours.candidate}/{ours.recipe}{_where(ours, several)}",
            texts[b.row_id],
            told,
            labels.get(a.answer, "one answer"),
            labels.get(b.answer, "another one"),
        )


def _where(measurement: Measurement, several: bool) -> str:
    """', length 64 on board': what of the settings tells two examples apart."""
    if measurement.target is None:
        return ""
    length = measurement.target.run.max_length
    place = f" on {measurement.target.device}" if several else ""
    return (f", length {length}" if length else "") + place


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
