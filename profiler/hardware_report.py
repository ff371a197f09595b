"""The hardware benchmark report of a store, as Markdown: what was measured on which machine, how, and what it means."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from edgewise.errors import StoreError
from edgewise.profiler.joining import latest
from edgewise.profiler.store import Store
from edgewise.showing import show, show_fact
from edgewise.types import SCENARIOS, Measurement, Metric
from edgewise.units import METRICS, OF_ANSWERS, PERCENTILES

_MACHINE = (
    "machine", "cpu", "flags", "logical_cores", "usable_cores", "governor", "mhz", "mhz_max", "celsius", "memory",
    "cpu_limit", "memory_limit", "system", "kernel", "python",
)  # fmt: skip
_STARTUP = ("startup", *(f"startup_{n}" for n in ("interpreter", "imports", "load", "session", "first")))
_MEMORY = ("peak_rss", "empty_rss", "pss", "uss", "gpu_memory", "size")
_MOST_TYPES, _MOST_INPUTS = 5, 6


def hardware_report(store: Store, title: str) -> str:
    """Markdown. Of the same thing measured twice the later one. Raises StoreError for a store without measurements."""
    found = list(latest((m for m in store.measurements() if m.target is not None and m.stage != "look"), _key).values())
    if not found:
        raise StoreError(f"{store.path} holds no measurements: `edgewise profile` makes some")
    created = sorted(store.created().values())
    good = [m for m in found if m.status == "ok"]
    single = [m for m in good if m.scenario == "single-stream"]
    timed = [m for m in good if m.scenario in SCENARIOS]
    with_process = [m for m in timed if m.metric("startup") is not None]
    parts = [
        [f"# {title}", "", f"Measured from {created[0]} to {created[-1]}; {len(found)} measurements."],
        _machines(found),
        _how(timed),
        _numbers("Time of a call", single, [*PERCENTILES, "latency_mean", "throughput", "roofline"]),
        _scenarios([m for m in timed if m.scenario != "single-stream"]),
        _numbers("Start-up", with_process, _STARTUP),
        _numbers("Memory and size", with_process, _MEMORY),
        _inside(timed),
        _answers([m for m in good if m.scenario in ("accuracy", "comparison")]),
        _failed([m for m in found if m.status == "failed"]),
        _meaning(good),
    ]
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def _key(m: Measurement) -> tuple[Any, ...]:
    return m.candidate, m.recipe, m.target.text() if m.target else "", m.scenario, m.stage


def _machines(found: Sequence[Measurement]) -> list[str]:
    lines = ["## Machines"]
    seen: dict[tuple[str, str | None], Mapping[str, Any]] = {}
    for m in found:
        machine = m.conditions.get("fingerprint")
        if machine and m.target:
            seen.setdefault((m.target.device, machine.get("digest")), machine)
    for (device, _), machine in seen.items():
        rows = [(name, show_fact(name, machine)) for name in _MACHINE]
        rows += [(f"version of {p}", str(v)) for p, v in (machine.get("versions") or {}).items()]
        lines += ["", f"**{_escape(device)}**", "", *_table(("what", "value"), rows)]
    return lines


def _how(timed: Sequence[Measurement]) -> list[str]:
    """The conditions that the times share, and those of each that stand out."""
    if not timed:
        return []
    lines = ["## How it was measured", ""]
    rounds = [m.conditions.get("rounds") or {} for m in timed]
    counts = [int(r.get("count") or 0) for r in rounds]
    calls = [sum(r.get("calls") or []) for r in rounds]
    level = next((x.level for m in timed for x in m.metrics if x.level is not None), None)
    lines.append(
        f"- A fresh process a round, {_span(counts)} rounds each, those of all bundles in turn; {_span(calls)} timed "
        "calls of each bundle and target in all."
    )
    if level is not None:
        lines.append(f"- Values in brackets are one-sided bounds at {level:.0%} each, over processes.")
    notes = dict.fromkeys(n for m in timed for n in m.conditions.get("notes") or [])
    lines += [f"- {note[:1].upper()}{note[1:]}." for note in notes]
    inputs = [text for text in dict.fromkeys(_inputs(m) for m in timed) if text]
    lines += [f"- {text}" for text in inputs[:_MOST_INPUTS]]
    if len(inputs) > _MOST_INPUTS:
        lines.append(f"- {len(inputs) - _MOST_INPUTS} more mixes of inputs: `edgewise measurements export` has them.")
    for name, about in (
        ("disturbed", "other processes took more than a tenth of the machine"),
        ("unsteady", "the time of a call moved within the round by more than a tenth"),
    ):
        hit = [(m, r[name]) for m, r in zip(timed, rounds, strict=True) if r.get(name)]
        if hit:
            total = sum(len(n) for _, n in hit)
            lines.append(
                f"- {name.capitalize()}: {total} of {sum(counts)} rounds ({about}), in {len(hit)} measurements."
            )
    wide = sum(bool(r.get("wide")) for r in rounds)
    if wide:
        lines.append(f"- The interval stayed wider than asked for in {wide} of {len(timed)} measurements.")
    return lines


def _inputs(m: Measurement) -> str:
    told = (m.conditions.get("inputs") or {}).get("tokens")
    if not told or not told.get("max"):
        return ""
    return (
        f"Inputs: {m.conditions.get('order', '')}; {told['min']} to {told['max']} tokens, half of them up to "
        f"{told['p50']}."
    )


def _span(values: Sequence[int]) -> str:
    return f"{min(values):,}" if min(values) == max(values) else f"{min(values):,} to {max(values):,}"


def _numbers(title: str, found: Sequence[Measurement], names: Sequence[str]) -> list[str]:
    there = [n for n in names if any((x := m.metric(n)) is not None and x.value is not None for m in found)]
    if not there:
        return []
    header = ("bundle", "run", *(n.replace("startup_", "").replace("_", " ") for n in there))
    return [f"## {title}", "", *_table(header, [(*_who(m), *(_cell(m.metric(n)) for n in there)) for m in found])]


def _scenarios(found: Sequence[Measurement]) -> list[str]:
    lines: list[str] = []
    for scenario in SCENARIOS:
        same = [m for m in found if m.scenario == scenario]
        own = dict.fromkeys(x.name for m in same for x in m.metrics if x.value is not None)
        names = [n for n in own if n not in (*_STARTUP, *_MEMORY, "energy")]
        if not same or not names:
            continue
        texts = dict.fromkeys(str(m.conditions.get("scenario", scenario)) for m in same)
        rows = [(*_who(m), *(_cell(m.metric(n)) for n in names)) for m in same]
        header = ("bundle", "run", *(n.replace("_", " ") for n in names))
        lines += ["", f"### {'; '.join(texts)}", "", *_table(header, rows)]
    return ["## Other scenarios", *lines] if lines else []


def _inside(timed: Sequence[Measurement]) -> list[str]:
    """Placement, time by node type, and the limit of the machine."""
    rows = []
    for m in timed:
        nodes, limit = m.conditions.get("nodes"), m.conditions.get("roofline")
        placed = m.conditions.get("placement") or {}
        if not nodes or not nodes.get("graph_s"):
            continue
        types = list(nodes["by_type"].items())[:_MOST_TYPES]
        shares = ", ".join(f"{name} {s / nodes['graph_s']:.0%}" for name, s in types)
        where = ", ".join(f"{count} {name.removesuffix('ExecutionProvider')}" for name, count in placed.items())
        work = "-"
        if limit:
            operations = " + ".join(f"{n / 1e9:.3g} G {kind}" for kind, n in limit["operations"].items() if n)
            bound = "memory" if limit["memory_s"] > limit["compute_s"] else "products"
            work = f"{operations}; at least {show(max(limit['memory_s'], limit['compute_s']), 's')}, by {bound}"
        rows.append((*_who(m), where, shares, work))
    if not rows:
        return []
    header = ("bundle", "run", "nodes that ran", "time in the graph", "operations a call, and what the machine allows")
    peaks = next((m.conditions["roofline"]["peaks"] for m in timed if m.conditions.get("roofline")), None)
    lines = ["## Inside the graph", ""]
    if peaks:
        lines += [
            f"Measured peaks of this machine with the threads of the first: {peaks['float32'] / 1e9:.3g} G operations "
            f"a second in float32, {peaks['int8'] / 1e9:.3g} in int8, {peaks['bytes'] / 1e9:.3g} GB/s from memory.",
            "",
        ]
    return [*lines, *_table(header, rows)]


def _answers(found: Sequence[Measurement]) -> list[str]:
    """Accuracy and what it compares with, joined by bundle and run."""
    joined: dict[tuple[str, str], dict[str, Metric]] = {}
    for m in found:
        joined.setdefault(_who(m), {}).update({x.name: x for x in m.metrics})
    there = [n for n in OF_ANSWERS if any(n in x and x[n].value is not None for x in joined.values())]
    if not there:
        return []
    rows = [(*who, *(_cell(x.get(n)) for n in there)) for who, x in joined.items()]
    return ["## Answers", "", *_table(("bundle", "run", *(n.replace("_", " ") for n in there)), rows)]


def _failed(found: Sequence[Measurement]) -> list[str]:
    if not found:
        return []
    return ["## What failed", "", *_table(("bundle", "run", "why"), [(*_who(m), m.reason) for m in found])]


def _meaning(found: Sequence[Measurement]) -> list[str]:
    """Every number of the report in a sentence."""
    there = {x.name for m in found for x in m.metrics if x.value is not None}
    return [
        "## What the numbers mean",
        "",
        *(f"- **{name.replace('_', ' ')}**: {METRICS[name].about}" for name in METRICS if name in there),
    ]


def _who(m: Measurement) -> tuple[str, str]:
    stage = ", confirm" if m.stage == "confirm" else ""
    where = f"{m.target.device}: {m.target.run.text()}" if m.target else ""
    return f"{m.candidate}/{m.recipe}", f"{where}{stage}"


def _cell(metric: Metric | None) -> str:
    if metric is None or metric.value is None:
        return "-"
    value = show(metric.value, metric.unit)
    if metric.low is None or metric.high is None or metric.low == metric.high:
        return f"{value}{' (estimated)' if metric.kind == 'estimated' else ''}"
    return f"{value} [{show(metric.low, metric.unit)}, {show(metric.high, metric.unit)}]"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [
        f"| {' | '.join(header)} |",
        f"|{'---|' * len(header)}",
        *(f"| {' | '.join(_escape(cell) for cell in row)} |" for row in rows),
    ]


def _escape(text: str) -> str:
    """A text that Markdown shows as it is, in one line."""
    for mark in "\\|*_`<>":
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())
