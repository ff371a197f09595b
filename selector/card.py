"""The model card of the chosen bundle: README.md with the front matter that the Hugging Face hub reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from edgewise.bundle import Manifest
from edgewise.selector import views
from edgewise.selector.conditions import machine_facts
from edgewise.selector.markdown import budget_table, escape, fence, table
from edgewise.selector.report_data import confirm_words, confirmation
from edgewise.selector.select import with_confirmed
from edgewise.selector.words import percent
from edgewise.showing import show
from edgewise.types import IMAGE_TASKS, Selection
from edgewise.units import METRICS, WORST


def model_card(
    manifest: Manifest,
    selection: Selection,
    *,
    machine: Mapping[str, Any] | None = None,
    license: str | None = None,  # the word that the front matter uses
    language: str | None = None,
    data: str = "",
) -> str:
    """README.md of the bundle that `selection` chose.

    machine: fingerprint of the device. license and language: left out unless known. data: one sentence on the rows
    that trained and tested it. Texts of the rows never stand in the card.
    """
    recipe = manifest.source.get("recipe", manifest.recipe.name)
    name = f"{manifest.source.get('candidate', manifest.family)}/{recipe}"
    lines = [
        *_front_matter(manifest, license, language),
        f"# {escape(str(name))}",
        "",
        *_what(manifest, selection, data),
        *_how(manifest),
        *_numbers(manifest, selection),
        *_where(selection, machine),
        *_limits(manifest, selection),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _front_matter(manifest: Manifest, license_: str | None, language: str | None) -> list[str]:
    # JSON strings are YAML strings: no name in them can break the block.
    quoted = json.dumps
    tags = ["edgewise", "onnx", "onnxruntime", manifest.family, manifest.recipe.precision]
    lines = ["---", "library_name: onnx", f"pipeline_tag: {quoted(manifest.task)}"]
    lines += [f"license: {quoted(license_)}"] if license_ else []
    lines += [f"language: {quoted(language)}"] if language else []
    lines += ["tags:", *[f"- {quoted(t)}" for t in dict.fromkeys(tags)], "---", ""]
    return lines


def _what(manifest: Manifest, selection: Selection, data: str) -> list[str]:
    source = (
        manifest.source.get("checkpoint")
        or manifest.source.get("onnx")
        or manifest.source.get("candidate")
        or "unknown"
    )
    labels = ", ".join(escape(label) for label in manifest.labels)
    graph = manifest.graphs[0] if manifest.graphs else None
    lines = [
        f"A {manifest.task} model ({escape(manifest.family)}) as ONNX, made from {escape(str(source))} with the recipe "
        f"{escape(manifest.recipe.name)} and chosen by Edgewise for a device by measuring it there.",
        "",
        f"- Labels: {labels}" if labels else "- Labels: none",
        f"- Size on disk: {show(manifest.size, 'B')}"
        + (f"; opset {graph.opset}, onnxruntime {graph.min_onnxruntime} or newer" if graph else ""),
        f"- Run settings that were measured and ship with it: {escape(manifest.run.text())}",
        f"- Content digest: `{manifest.content_digest}`",
    ]
    if data:
        lines.append(f"- Data: {escape(data)}")
    return [*lines, "", escape(with_confirmed(selection, selection.confirmed).sentence), ""]


def _how(manifest: Manifest) -> list[str]:
    example = "photo.jpg" if manifest.task in IMAGE_TASKS else "your text here"
    lines = ["## How to run it", "", "With Edgewise (no torch needed), in Python or in a shell:", ""]
    lines += ["```python", "import edgewise", "", f'model = edgewise.load(".", expect="{manifest.content_digest}")']
    lines += [f'print(model("{example}"))', "```", ""]
    lines += ["```sh", f'edgewise run . "{example}"', "```", ""]
    if _loads(manifest, "optimum") and manifest.task == "text-classification":
        lines += ["With Optimum, which was tested to give the same logits:", ""]
        lines += ["```python", "from optimum.onnxruntime import ORTModelForSequenceClassification", ""]
        lines += ['model = ORTModelForSequenceClassification.from_pretrained(".")', "```", ""]
    if manifest.loads_in:
        words = [f"{escape(peer)}: {_tested(manifest.loads_in[peer])}" for peer in manifest.loads_in]
        lines += [f"Loads elsewhere, as tested: {'; '.join(words)}.", ""]
    return lines


def _loads(manifest: Manifest, peer: str) -> bool:
    found = manifest.loads_in.get(peer)
    return isinstance(found, Mapping) and bool(found.get("tested")) and bool(found.get("ok"))


def _tested(found: Any) -> str:
    """'yes', 'no (why)', 'not tested (needs Node)'."""
    if not isinstance(found, Mapping):
        return escape(str(found))
    why = f" ({escape(str(found['why']))})" if found.get("why") else ""
    if not found.get("tested"):
        return f"not tested{why}"
    return "yes" if found.get("ok") else f"no{why}"


def _numbers(manifest: Manifest, selection: Selection) -> list[str]:
    chosen = selection.chosen
    if chosen is None:
        return []
    tried = confirmation(selection)
    where = "on fresh rows and in fresh processes" if tried else "on the rows that served the choice"
    lines = ["## What was measured", "", escape(confirm_words(selection)), ""]
    checks = tried.checks if tried and tried.checks else chosen.checks
    if checks:
        lines += [f"Budgets, {where}:", "", *budget_table(checks, selection.confidence)]
    rows = [_number(selection, name) for name in dict.fromkeys([*selection.objective, *chosen.entry.metrics])]
    header = ["Metric", "Value", "Bounds", "n", "From"]
    return [*lines, "All numbers of the chosen run settings:", "", *table(header, [r for r in rows if r])]


def _number(selection: Selection, name: str) -> list[str]:
    """One row of the table of numbers; empty where there is nothing to print."""
    metric = views.chosen_metric(selection, name)
    if metric is None or name not in METRICS:
        return []
    shown = views.cell(metric)
    words = f"{shown.text} estimated" if shown.kind == "estimated" else shown.text
    bounds = shown.small
    if bounds and metric.level:
        bounds = f"{bounds} (each end at {percent(metric.level)})"
    sample = f"{metric.n:,}" if metric.n else "-"
    return [
        escape(views.name_of(name)),
        escape(words),
        escape(bounds or shown.why or "-"),
        sample,
        views.source(selection, name),
    ]


def _where(selection: Selection, machine: Mapping[str, Any] | None) -> list[str]:
    lines = ["## Where it was measured", ""]
    if selection.chosen and selection.chosen.entry.target:
        lines += [f"On {escape(selection.chosen.entry.target.text())}.", ""]
    if machine:
        lines += table(["", ""], [[escape(k), escape(v)] for k, v in machine_facts(machine)])
    return lines


def _limits(manifest: Manifest, selection: Selection) -> list[str]:
    lines = [
        "## Limits",
        "",
        "- The budgets were shown to hold on that machine, with those run settings. On another machine, or with other "
        "threads, length or batch, measure again: `edgewise profile`.",
        "- Accuracy was measured on rows like those it was trained on; nothing is said of other text, "
        + _groups(selection),
    ]
    if manifest.recipe.precision == "int8-dynamic":
        lines.append(
            f"- Dynamic int8 answers depend on what shares a batch: the numbers hold for batches of "
            f"{manifest.run.batch_size}."
        )
    if selection.confirmed and len(selection.confirmed) > 1:
        lines.append(
            f"- {len(selection.confirmed)} candidates were confirmed in turn on the same rows until one passed."
        )
    made = ", ".join(f"{k} {v}" for k, v in manifest.versions.items())
    return [*lines, "", *(["Made with:", "", *fence(made)] if made else [])]


def _groups(selection: Selection) -> str:
    """What is known of groups within the data: the worst slice, where there are any."""
    worst = views.chosen_metric(selection, f"{WORST}accuracy")
    if worst is None or worst.value is None:
        return "other languages, or of groups within the data."
    bounds = views.interval(worst)
    return (
        f"or other languages. Of its slices it is worst with {show(worst.value, worst.unit)}"
        f"{f' ({bounds})' if bounds else ''} on {worst.n:,} rows{f': {escape(worst.method)}' if worst.method else ''}."
    )
