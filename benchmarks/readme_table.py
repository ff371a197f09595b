"""Write the README's 'Measured' section from the committed results, so that its numbers are theirs.

python benchmarks/readme_table.py
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
START, END = "<!-- measured: benchmarks/readme_table.py writes this -->", "<!-- end -->"


def section() -> str:
    """The text between the marks."""
    startup, overhead = _read("startup"), _read("overhead")
    machine = startup["conditions"]["machine"]
    versions = startup["conditions"]["versions"]
    lines = [
        f"On {machine['cpu']} ({', '.join(machine['flags'])}), {machine['logical_cores']} cores, shared and noisy; "
        f"onnxruntime {versions['onnxruntime']}; MiniLM {startup['conditions']['bundle']['recipe']}, "
        f"{startup['conditions']['bundle']['size'] / 1e6:.1f} MB. Medians of {startup['rounds']} fresh processes each, "
        f"interleaved, with their range.",
        "",
        "| cold process to the first answer | time | peak RSS | time, edgewise / peer | memory, edgewise / peer |",
        "|---|---|---|---|---|",
    ]
    for name, found in startup["peers"].items():
        s, m = found["seconds"], found["peak_rss_mb"]
        ratio = startup["ratios"].get(f"edgewise run / {name}")
        time = f"{ratio['seconds']['median']:.3f}" if ratio else ""
        memory = f"{ratio['peak_rss']['median']:.3f}" if ratio else ""
        cells = [name, f"{s['median']:.2f} s ({s['min']:.2f}–{s['max']:.2f})", f"{m['median']:.0f} MB", time, memory]
        lines.append(f"| {' | '.join(cells)} |")
    offline = _read("offline")
    hand, torch = overhead["edgewise / by hand"], overhead["PyTorch eager / edgewise"]
    between = f"({hand['min']:.3f}–{hand['max']:.3f})"
    peers = []
    for name, found in offline["peers"].items():
        times = found["times_as_fast"]
        took = f"{times['median']:.2f} times as long ({times['min']:.2f}–{times['max']:.2f})"
        peers.append(f"the {name} at its best batch size ({found['batch_size']}) takes {took}")
    loads = [f"{found['load']['median']:.0f}" for found in (startup, overhead, offline)]
    lines += [
        "",
        f"`import edgewise` takes {startup['import_edgewise_ms']['median']:.0f} ms. One call at batch 1 takes "
        f"{hand['median']:.3f} times what tokenizer + `session.run` take by hand on the same session {between}, and "
        f"PyTorch eager (fp32) {torch['median']:.1f} times as long as edgewise (int8), one thread each.",
        "",
        f"2,000 movie reviews on every core take {offline['edgewise']['seconds']['median']:.1f} s, the answers bit by "
        "bit "
        f"those of batch 1; {'; '.join(peers)}.",
        "",
        f"The machine's load (1 minute) was {loads[0]} in the first table, {loads[1]} for the calls and {loads[2]} for "
        "the reviews: all of them shared its two cores with other work.",
        "",
        "All that is asked of the runtime and the profiler, as ratios (one thread; the peers in the same runs):",
        "",
        *bars(),
        "",
        "`python benchmarks/startup.py`, `overhead.py`, `offline.py`, `generation.py` and `vs_loadgen.py` measure this "
        "again; their results with all conditions are in [benchmarks/results](benchmarks/results).",
    ]
    return "\n".join(lines)


def bars() -> list[str]:
    """What is asked of the runtime, with what was measured: Markdown rows."""
    startup, overhead, offline = _read("startup"), _read("overhead"), _read("offline")
    rows = []
    for peer, bar in startup["bars"].items():
        found = startup["ratios"][f"edgewise run / {peer}"]
        rows.append((f"cold start, time / {peer}", found["seconds"], "<=", bar["seconds"]))
        if bar["peak_rss"]:
            rows.append((f"cold start, peak RSS / {peer}", found["peak_rss"], "<=", bar["peak_rss"]))
    for pair, bar in overhead["bars"].items():
        rows.append((f"one call, {pair}", overhead[pair], ">=" if "PyTorch" in pair else "<=", bar))
    for peer, found in offline["peers"].items():
        rows.append((f"2,000 reviews, times as fast as the {peer}", found["times_as_fast"], ">=", offline["bar"]))
    generation = _read("generation")
    for pair, wanted in generation["bars"].items():
        for family, bar in wanted.items():
            found = generation["families"].get(family, {}).get("1 threads", {}).get("ratios", {}).get(pair)
            if found:
                rows.append((f"{family}, tokens/s, {pair}", found["tokens_a_second"], ">=", bar))
    loadgen = _read("vs_loadgen")
    for what, found in loadgen["edgewise / LoadGen"].items():
        rows.append((f"profiler, {what} / MLPerf LoadGen's", found, "within", loadgen["bar"]))
    lines = ["| what | measured: median (quartiles) | asked |", "|---|---|---|"]
    for what, x, op, bar in rows:
        met = {"<=": x["median"] <= bar, ">=": x["median"] >= bar, "within": abs(x["median"] - 1) <= bar}[op]
        asked = {"<=": f"at most {bar:.3g}", ">=": f"at least {bar:.3g}", "within": f"1 within {bar:.0%}"}[op]
        missed = "" if met else " **missed**"
        lines.append(f"| {what} | {x['median']:.3f} ({x['q1']:.3f}–{x['q3']:.3f}){missed} | {asked} |")
    return lines


def _read(name: str) -> Any:
    return json.loads((HERE / "results" / f"{name}.json").read_text(encoding="utf-8"))


def main() -> None:
    text = README.read_text(encoding="utf-8")
    pattern = re.compile(re.escape(START) + ".*?" + re.escape(END), re.DOTALL)
    README.write_text(pattern.sub(f"{START}\n{section()}\n{END}", text), encoding="utf-8")


if __name__ == "__main__":
    main()
