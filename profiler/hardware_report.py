"""The hardware benchmark report of a store, as Markdown: what was measured on which machine, how, and what it means."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from edgewise.errors import StoreError
from edgewise.profiler.comparison import score_words
from edgewise.profiler.joining import latest
from edgewise.profiler.statistics import too_few_calls
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
_MOST_TYPES, _MOST_INPUTS, _MOST_MOMENTS = 5, 6, 10
Who = Callable[[Measurement], tuple[str, str]]
"""A measurement to its bundle and its run, in words."""


def hardware_report(store: Store, title: str) -> str:
    """Markdown. Of the same thing measured twice the later one. Raises StoreError for a store without measurements."""
    every = latest((m for m in store.measurements() if m.target is not None and m.stage != "look"), _key)
    found = [m for key, m in every.items() if not _made_good(key, m, every)]
    if not found:
        raise StoreError(f"{store.path} holds no measurements: `edgewise profile` makes some")
    created = sorted(store.created().values())
    good = [m for m in found if m.status == "ok"]
    single = [m for m in good if m.scenario == "single-stream"]
    timed = [m for m in good if m.scenario in SCENARIOS]
    with_process = [m for m in timed if m.metric("startup") is not None]
    places = _Places(found)
    who = places.who
    parts = [
        [f"# {title}", "", f"Measured from {created[0]} to {created[-1]}; {len(found)} measurements."],
        _machines(found, places),
        _how(timed),
        _numbers("Time of a call", single, [*PERCENTILES, "latency_mean", "throughput", "roofline"], who),
        _scenarios([m for m in timed if m.scenario != "single-stream"], who),
        _over_time([m for m in timed if m.conditions.get("windows")], who),
        _numbers("Start-up", with_process, _STARTUP, places.who_did),
        _numbers("Memory and size", with_process, _MEMORY, places.who_did),
        _phases(with_process, places.who_did),
        _disk(with_process),
        _energy(timed, places),
        _inside(timed, places),
        _answers([m for m in good if m.scenario in ("accuracy", "comparison")], who),
        _failed([m for m in found if m.status == "failed"], places),
        _meaning(good),
    ]
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def _key(m: Measurement) -> tuple[Any, ...]:
    # One name may have stood for several machines: what was measured on one is not taken for the other's.
    return m.candidate, m.recipe, m.target.text() if m.target else "", m.scenario, m.stage, _fingerprint(m)


def _fingerprint(m: Measurement) -> str:
    return str(m.conditions.get("fingerprint_digest") or "")


def _made_good(key: tuple[Any, ...], m: Measurement, every: Mapping[Any, Measurement]) -> bool:
    """Whether a failure that does not say on which machine, as of a device that was off, was measured well later."""
    if m.status == "ok" or _fingerprint(m):
        return False
    return any(
        k[:-1] == key[:-1] and other.status == "ok" and (other.id or 0) > (m.id or 0) for k, other in every.items()
    )


class _Places:
    """What the machines are called: by their device, and with a number where several had that name."""

    def __init__(self, found: Sequence[Measurement]) -> None:
        self.several: dict[str, list[str]] = {}
        """Device -> its fingerprints, in the order in which they were measured."""
        for m in found:
            known = self.several.setdefault(m.target.device if m.target else "", [])
            if (digest := _fingerprint(m)) and digest not in known:
                known.append(digest)

    def name(self, m: Measurement) -> str:
        """'here', or 'here (2)'."""
        device = m.target.device if m.target else ""
        known, digest = self.several.get(device, []), _fingerprint(m)
        return f"{device} ({known.index(digest) + 1})" if len(known) > 1 and digest in known else device

    def who(self, m: Measurement) -> tuple[str, str]:
        """Bundle and run."""
        stage = ", confirm" if m.stage == "confirm" else ""
        where = f"{self.name(m)}: {m.target.run.text()}" if m.target else ""
        return f"{m.candidate}/{m.recipe}", f"{where}{stage}"

    def who_did(self, m: Measurement) -> tuple[str, str]:
        """The same with the scenario, where it is not the usual one."""
        bundle, run = self.who(m)
        return bundle, run if m.scenario == "single-stream" else f"{run}, {m.scenario}"


def _machines(found: Sequence[Measurement], places: _Places) -> list[str]:
    lines = ["## Machines"]
    seen: dict[str, Mapping[str, Any]] = {}
    for m in found:
        machine = m.conditions.get("fingerprint")
        if machine and m.target:
            seen.setdefault(places.name(m), machine)
    for device, digests in places.several.items():
        if len(digests) > 1:
            lines += ["", f"{_escape(device)} was {len(digests)} machines, or one that changed in between: "
                      "what was measured on each stands apart, under its number."]  # fmt: skip
    for device, machine in seen.items():
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
    levels = sorted({x.level for m in timed for x in m.metrics if x.level is not None})
    lines.append(
        f"- A fresh process a round, {_span(counts)} rounds each, those of all bundles in turn; {_span(calls)} timed "
        "calls of each bundle and target in all."
    )
    if levels:
        several = "; which, `edgewise measurements export` tells" if len(levels) > 1 else ""
        shown = " or ".join(f"{100 * level:.12g}%" for level in levels)
        lines.append(
            f"- Values in brackets are one-sided bounds at {shown} each{several}: of times, rates and memory over "
            "processes, of answers over rows."
        )
    notes = dict.fromkeys(n for m in timed for n in m.conditions.get("notes") or [])
    lines += [f"- {note[:1].upper()}{note[1:]}." for note in notes]
    if any(m.conditions.get("fed") for m in timed):
        lines.append("- ONNX files run by themselves, on numbers that are made up: no text, no tokenizer, no answers.")
    inputs = [text for text in dict.fromkeys(_inputs(m) for m in timed) if text]
    lines += [f"- {text}" for text in inputs[:_MOST_INPUTS]]
    if len(inputs) > _MOST_INPUTS:
        lines.append(f"- {len(inputs) - _MOST_INPUTS} more mixes of inputs: `edgewise measurements export` has them.")
    again = [len(r["repeated"]) for r in rounds if r.get("repeated")]
    if again:
        lines.append(
            f"- Repeated: {sum(again)} rounds that were disturbed, in {len(again)} measurements; the calmer one of the "
            "two counts."
        )
    late = [(m, m.conditions["late"]) for m in timed if m.conditions.get("late")]
    for m, counts_late in late:
        lines.append(
            f"- {_escape(f'{m.candidate}/{m.recipe}')}, {m.conditions.get('scenario')}: {sum(counts_late):,} of "
            f"{sum((m.conditions.get('rounds') or {}).get('calls') or []):,} calls were due before the one before them "
            "was answered."
        )
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
    if fed := m.conditions.get("fed"):
        shapes = ", ".join(f"{i['name']} {i['dtype']} {'x'.join(map(str, i['shape'])) or 'scalar'}" for i in fed)
        return _escape(f"{m.candidate}: {shapes}.")
    told = (m.conditions.get("inputs") or {}).get("tokens")
    if not told or not told.get("max"):
        return f"Inputs: {m.conditions['order']}." if m.conditions.get("order") else ""
    return (
        f"Inputs: {m.conditions.get('order', '')}; {told['min']} to {told['max']} tokens, half of them up to "
        f"{told['p50']}."
    )


def _span(values: Sequence[int]) -> str:
    return f"{min(values):,}" if min(values) == max(values) else f"{min(values):,} to {max(values):,}"


def _numbers(title: str, found: Sequence[Measurement], names: Sequence[str], who: Who) -> list[str]:
    """A percentile has its column even where no sample was large enough for it: how many calls it needs is said."""
    there = [
        n
        for n in names
        if any((x := m.metric(n)) is not None and (x.value is not None or n in PERCENTILES) for m in found)
    ]
    if not there:
        return []
    header = ("bundle", "run", *(n.replace("startup_", "").replace("_", " ") for n in there))
    return [f"## {title}", "", *_table(header, [(*who(m), *(_cell(m.metric(n)) for n in there)) for m in found])]


def _scenarios(found: Sequence[Measurement], who: Who) -> list[str]:
    lines: list[str] = []
    for scenario in SCENARIOS:
        same = [m for m in found if m.scenario == scenario]
        own = dict.fromkeys(x.name for m in same for x in m.metrics if x.value is not None or too_few_calls(x))
        names = [n for n in own if n not in (*_STARTUP, *_MEMORY, "energy")]
        if not same or not names:
            continue
        texts = dict.fromkeys(str(m.conditions.get("scenario", scenario)) for m in same)
        rows = [(*who(m), *(_cell(m.metric(n)) for n in names)) for m in same]
        header = ("bundle", "run", *(n.replace("_", " ") for n in names))
        lines += ["", f"### {'; '.join(texts)}", "", *_table(header, rows)]
    return ["## Other scenarios", *lines] if lines else []


def _over_time(found: Sequence[Measurement], who: Who) -> list[str]:
    """Throughput, clock and temperature while the bundle ran on and on."""
    lines: list[str] = []
    for m in found:
        windows, size = m.conditions["windows"], m.target.run.batch_size if m.target else 1
        count = min(_MOST_MOMENTS, len(windows))
        parts = [windows[i * len(windows) // count : (i + 1) * len(windows) // count] for i in range(count)]
        rows = [
            (
                _moment(part[0]["start_s"], windows[-1]["start_s"]),
                show(size * sum(w["calls"] for w in part) / (sum(w["span_ns"] for w in part) / 1e9), "1/s"),
                _mean(part, "mhz", "MHz"),
                _mean(part, "celsius", "°C"),
            )
            for part in parts
        ]
        lines += [
            "",
            f"### {_escape(', '.join(who(m)))}",
            "",
            *_table(("from", "throughput", "clock", "temperature"), rows),
        ]
    return ["## Over time", *lines] if lines else []


def _moment(seconds: float, last: float) -> str:
    return f"{seconds / 60:.1f} min" if last >= 300 else f"{seconds:.1f} s"


def _mean(windows: Sequence[Mapping[str, Any]], name: str, unit: str) -> str:
    known = [w[name] for w in windows if w.get(name) is not None]
    return f"{statistics.fmean(known):.0f} {unit}" if known else "unknown"


def _phases(found: Sequence[Measurement], who: Who) -> list[str]:
    """Memory at the ends of phases: the median over processes."""
    names, kinds = _PHASES, tuple(_KINDS)
    rows = []
    for m in found:
        memory = m.conditions.get("memory") or {}
        cells = [_median([r[kind] for r in memory.get(p) or () if r]) for p in names for kind in kinds]
        if any(cell != "-" for cell in cells):
            rows.append((*who(m), *cells))
    if not rows:
        return []
    header = ("bundle", "run", *(f"{kind.upper()} {text}" for text in names.values() for kind in kinds))
    return ["### At the ends of phases", "", *_table(header, list(dict.fromkeys(rows)))]


def _median(values: Sequence[int | None]) -> str:
    known = [v for v in values if v is not None]
    return show(float(statistics.median(known)), "B") if known and len(known) == len(values) else "-"


def _disk(found: Sequence[Measurement]) -> list[str]:
    """What takes the bundles' bytes."""
    disks = {f"{m.candidate}/{m.recipe}": m.conditions["disk"] for m in found if m.conditions.get("disk")}
    parts = list(dict.fromkeys(part for disk in disks.values() for part in disk))
    if not parts:
        return []
    rows = [(name, *(show(float(disk[p]), "B") if p in disk else "-" for p in parts)) for name, disk in disks.items()]
    return ["### On disk, by part", "", *_table(("bundle", *parts), rows)]


def _energy(timed: Sequence[Measurement], places: _Places) -> list[str]:
    """What a sensor counted, or why there is none."""
    told = [(m, x) for m in timed if (x := m.metric("energy")) is not None]
    known = [(*places.who_did(m), _cell(x), x.kind, x.method) for m, x in told if x.value is not None]
    why = dict.fromkeys((places.name(m), x.why) for m, x in told if x.value is None)
    if not known and not why:
        return []
    lines = ["## Energy of an input", ""]
    if known:
        lines += [*_table(("bundle", "run", "energy", "how known", "from"), known), ""]
    return [*lines, *(f"- Unavailable on {_escape(name)}: {_escape(text)}" for name, text in why)]


def _inside(timed: Sequence[Measurement], places: _Places) -> list[str]:
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
        work, metric = "-", m.metric("roofline")
        if limit and not (metric is not None and metric.kind == "unavailable"):
            operations = " + ".join(f"{n / 1e9:.3g} G {kind}" for kind, n in limit["operations"].items() if n)
            bound = "memory" if limit["memory_s"] > limit["compute_s"] else "products"
            work = f"{operations}; at least {show(max(limit['memory_s'], limit['compute_s']), 's')}, by {bound}"
        rows.append((*places.who_did(m), where, shares, work))
    if not rows:
        return []
    header = ("bundle", "run", "nodes that ran", "time in the graph", "operations a call, and what the machine allows")
    peaks: dict[str, Mapping[str, float]] = {}
    for m in timed:
        if m.conditions.get("roofline") and m.target:
            threads = f"{m.target.run.threads} thread{'s' * (m.target.run.threads != 1)}"
            peaks.setdefault(f"{places.name(m)} with {threads}", m.conditions["roofline"]["peaks"])
    lines = ["## Inside the graph", ""]
    for name, peak in peaks.items():
        lines.append(
            f"- Measured peaks of {_escape(name)}: {peak['float32'] / 1e9:.3g} G operations a second in float32, "
            f"{peak['int8'] / 1e9:.3g} in int8, {peak['bytes'] / 1e9:.3g} GB/s from memory."
        )
    return [*lines, *([""] if peaks else []), *_table(header, rows)]


def _answers(found: Sequence[Measurement], who: Who) -> list[str]:
    """Accuracy and what it compares with, joined by bundle and run."""
    joined: dict[tuple[str, str], dict[str, Metric]] = {}
    for m in found:
        joined.setdefault(who(m), {}).update({x.name: x for x in m.metrics})
    there = [n for n in OF_ANSWERS if any(n in x and x[n].value is not None for x in joined.values())]
    if not there:
        return []
    rows = [(*names, *(_cell(x.get(n)) for n in there)) for names, x in joined.items()]
    said: dict[str, None] = {}
    for m in (m for m in found if m.scenario == "comparison"):
        scores = m.conditions.get("scores")
        texts = [m.conditions.get("words"), None if scores is None else f"Scores: {score_words(scores)}."]
        if any(texts):
            said[f"- {_escape(', '.join(who(m)))}: {_escape(' '.join(filter(None, texts)))}"] = None
    table = _table(("bundle", "run", *(n.replace("_", " ") for n in there)), rows)
    return ["## Answers", "", *table, *(["", *said] if said else [])]


def _failed(found: Sequence[Measurement], places: _Places) -> list[str]:
    if not found:
        return []
    return ["## What failed", "", *_table(("bundle", "run", "why"), [(*places.who_did(m), m.reason) for m in found])]


_KINDS = {
    "rss": "Resident memory of the process at that moment.",
    "pss": "Proportional memory at that moment: a page that several processes share counts in part.",
    "uss": "Memory at that moment that ending the process would free.",
}
"""Of memory at the end of a phase."""
_PHASES = {"first": "after the first answer", "end": "after the last call"}
_PARTS = {
    "embeddings": "On disk: weights of which an id takes one row, that of a word or a position.",
    "other weights": "On disk: all other weights of the graph.",
    "structure": "On disk: what is left of the ONNX files, their nodes, names and shapes.",
    "other files": "On disk: all other files of the bundle, tokenizer, configs and manifest.",
    "graph": "On disk: the ONNX file, and the external data that belongs to it.",
}
"""Part of a bundle's bytes -> what it is."""


def _meaning(found: Sequence[Measurement]) -> list[str]:
    """Every number of the report in a sentence."""
    there = {x.name for m in found for x in m.metrics if x.value is not None or too_few_calls(x)}
    if not there:
        return []
    lines = [f"- **{name.replace('_', ' ')}**: {METRICS[name].about}" for name in METRICS if name in there]
    if any(m.conditions.get("memory") for m in found):
        lines += [f"- **{kind.upper()} {when}**: {_KINDS[kind]}" for when in _PHASES.values() for kind in _KINDS]
    parts = dict.fromkeys(p for m in found for p in m.conditions.get("disk") or {})
    lines += [f"- **{part}**: {_PARTS[part]}" for part in parts if part in _PARTS]
    return ["## What the numbers mean", "", *lines]


def _cell(metric: Metric | None) -> str:
    if metric is None or metric.value is None:
        return metric.why.partition(":")[0] if metric is not None and too_few_calls(metric) else "-"
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
