"""The committed result of vs_olive.py as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vs_olive_sides import POINTS

DOCS = Path(__file__).parents[1] / "docs" / "olive.md"
START, END = "<!-- measured: benchmarks/vs_olive.py writes this -->", "<!-- end -->"
TOOLS = ("edgewise", "olive")
PASSES = {
    "onnxconversion": "fp32",
    "onnxdynamicquantization": "int8-dynamic",
    "onnxstaticquantization": "int8-static",
}
"""Olive's pass that makes it last -> the recipe's name here."""
SAMPLE, BY_HAND = "olive, as its recipe's sample", "olive, a tokenizer by hand"


def table(result: dict[str, Any]) -> str:
    """The comparison as Markdown."""
    sides = [result[name] for name in TOOLS]
    judges = [result["judge"].get(name) for name in TOOLS]
    device = [result["device"].get(n) for n in ("edgewise", SAMPLE)]
    goal = result["goals"]["p95_ms"]

    def line(name: str, cells: Sequence[str]) -> str:
        return f"| {name} | {' | '.join(cells)} |"

    def of(found: Sequence[dict[str, Any] | None], words: Callable[[dict[str, Any]], str]) -> list[str]:
        return [words(one) if one else "nothing chosen" for one in found]

    said = [_said(result, name) for name in TOOLS]
    lines = [
        "| | edgewise | Olive |",
        "|---|---|---|",
        line("chosen", [s["chosen"] or "nothing" for s in sides]),
        line("time", [f"{s['wall_seconds']:.0f} s ({s['cpu_seconds']:.0f} s of processors)" for s in sides]),
        line("peak memory of its processes, PSS", [f"{s['peak_pss_bytes'] / 1e6:,.0f} MB" for s in sides]),
        line("the same, RSS", [f"{s['peak_rss_bytes'] / 1e6:,.0f} MB" for s in sides]),
        line("configuration, lines (values)",
             [f"{s['configuration']['lines']} ({s['configuration']['values']})" for s in sides]),
        line("graph", [f"{s['graph_bytes'] / 1e6:.2f} MB" if s["graph_bytes"] else "nothing chosen" for s in sides]),
        line("p95 as the tool says", said),
        line(f"p95 by LoadGen (budget {goal:g} ms)",
             of(judges, lambda j: f"{j['p95_ms']['median']:.2f} ms ({j['p95_ms']['min']:.2f}–{j['p95_ms']['max']:.2f})"
                                  f", {'kept' if j['keeps_p95'] else 'broken'}")),
        line(f"drop on held-out rows (budget {POINTS:g} points)",
             of(judges, lambda j: f"{j['drop_points']:.2f}, at most {j['drop_at_most_points']:.2f} at 95%: "
                                  f"{'kept' if j['keeps_drop'] else 'broken'}"
                                  f"{', and shown' if j['drop_is_shown'] else ', not shown'}")),
        line("to the device: model and what belongs to it", of(device, lambda d: f"{d['model_bytes'] / 1e6:.1f} MB")),
        line("packages to answer, installed", of(device, lambda d: f"{d['packages_bytes'] / 1e6:.0f} MB")),
        line("bytes to send, all in all", of(device, lambda d: f"{d['send_bytes'] / 1e6:.0f} MB")),
    ]  # fmt: skip
    return "\n".join([*lines, "", *_conditions(result)])


def _conditions(result: dict[str, Any]) -> list[str]:
    """What stands below the table."""
    conditions, hand = result["conditions"], result["device"].get(BY_HAND)
    rows, lines = conditions["rows"], []
    if hand:
        lines += [
            f"With a tokenizer written by hand instead of transformers, Olive's model needs "
            f"{hand['packages_bytes'] / 1e6:.0f} MB of packages, {hand['send_bytes'] / 1e6:.0f} MB to send.",
            "",
        ]
    return [
        *lines,
        f"{conditions['machine']['cpu']}, {conditions['date']}, one thread, batch 1; load before: edgewise "
        f"{result['edgewise']['load_before']:.1f}, Olive {result['olive']['load_before']:.1f}. Rows: "
        f"{rows['validation']:,} to choose and {rows['test']:,} to confirm, of which Olive chooses by all "
        f"{rows['olive']:,}; {rows['held-out']:,} held out. Olive {conditions['olive']['olive-ai']}, "
        f"transformers {conditions['olive']['transformers']}; both with onnxruntime "
        f"{conditions['olive']['onnxruntime']}.",
    ]


def _said(result: dict[str, Any], tool: str) -> str:
    """p95 of the chosen one as its tool measured it, in milliseconds."""
    side = result[tool]
    if not side["chosen"]:
        return "nothing chosen"
    if tool == "olive":
        (found,) = (c for name, c in side["candidates"].items() if PASSES.get(name) == side["chosen"])
        return f"{found['latency-p95']:.2f} ms (session alone, one input)"
    (found,) = (c for name, c in side["candidates"].items() if name.startswith(side["chosen"]))
    return f"{1e3 * found['p95']:.2f} ms"


def probed(result: dict[str, Any]) -> str:
    """What the probes found, as a list."""
    lines = []
    for name, found in result["probes"].items():
        if name == "first row":
            values = {k: next(iter(v.values())) for k, v in found["metrics"].items() if v}
            lengths = found["tokens_of_first_row"]
            told = ", ".join(
                f"p50 {v['latency-p50']:.2f} and p95 {v['latency-p95']:.2f} ms with {lengths[k]} tokens"
                for k, v in values.items()
            )
            lines.append(f"- {found['question']} The same fp32 graph, the default of {found['runs']} calls: {told}.")
            continue
        if name == "static defaults":
            values = {PASSES[k]: v["latency-p50"] for k, v in found["metrics"].items() if k in PASSES}
            told = ", ".join(f"{k}: {v:.2f} ms" for k, v in values.items())
            lines.append(f"- {found['question']} p50 by Olive, {told}.")
            continue
        made = "a model is written" if found["made_a_model"] else "no model is written"
        failed = found["search_points_that_failed"]
        failed = f", {failed} of the search points failed" if failed else ""
        lines.append(f"- {found['question']} Exit code {found['exit_code']}, {made}{failed}.")
    return "\n".join(lines)


def write_docs(result: dict[str, Any]) -> None:
    """Put the committed numbers into the page."""
    text = DOCS.read_text(encoding="utf-8")
    head, _, rest = text.partition(START)
    body = f"\n\n{table(result)}\n\n## What Olive makes of goals\n\n{probed(result)}\n\n"
    DOCS.write_text(head + START + body + END + rest.partition(END)[2], encoding="utf-8")
