"""Our latency and throughput beside MLPerf LoadGen's, of the same loaded model in one process.

Each process loads the bundle once and lets both drive `model.predict`, in turn, several times, in an order drawn anew:
the loop of our worker (`edgewise.profiler.queries`), and LoadGen (PyPI mlcommons-loadgen, in an environment of its own)
with its SingleStream and Offline scenarios, on the same movie reviews. Compared are p50 and p90 of a turn and inputs a
second, by the mean over the turns of a process; the ratio of each process, and its median over them. LoadGen draws its
samples with replacement and ours go round, so that a turn needs calls enough to see the same lengths.

    python benchmarks/vs_loadgen.py          (about 6 minutes on an idle machine; the bar is 5% either way)
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loadgen import run

ROOT = Path(__file__).parents[1]
LOADGEN = "6.0.17"
MAX_LENGTH, TEXTS, TURNS, SECONDS, PROCESSES = 64, 500, 3, 5.0, 5
BAR = 0.05
OURS, PEER = "edgewise", "LoadGen"


# ---- in the environment that has LoadGen; of edgewise the runtime and the worker's loops


def child(job: dict[str, Any]) -> dict[str, dict[str, float]]:
    """One process: what is compared -> tool -> its mean over the turns."""
    import edgewise
    from edgewise.profiler.queries import ask

    model = edgewise.load(job["bundle"], task="text-classification", threads=1, max_length=MAX_LENGTH)
    texts = job["texts"]
    model.predict(texts[:50])
    random.seed(job["seed"])
    found: dict[str, dict[str, list[float]]] = {}

    def note(tool: str, numbers: dict[str, float]) -> None:
        for name, value in numbers.items():
            found.setdefault(name, {}).setdefault(tool, []).append(value)

    for _ in range(TURNS):
        for tool in random.sample([OURS, PEER], 2):
            if tool == PEER:
                note(PEER, _single_stream(model, texts))
                continue
            start = random.randrange(len(texts))
            turned = [[t] for t in texts[start:] + texts[:start]]
            ns = ask(model.predict, turned, {"name": "single-stream"}, SECONDS, 1, model.parallel)["ns"]
            note(OURS, {"p50 ms": _rank(ns, 0.5), "p90 ms": _rank(ns, 0.9), "calls": len(ns)})
    for _ in range(TURNS):
        for tool in random.sample([OURS, PEER], 2):
            if tool == PEER:
                note(PEER, {"offline /s": _offline(model, texts, found)})
                continue
            asked = ask(model.predict, [texts], {"name": "offline"}, SECONDS, 1, model.parallel)
            note(OURS, {"offline /s": len(texts) * len(asked["ns"]) / (asked["span_ns"] / 1e9)})
    return {name: {tool: sum(v) / len(v) for tool, v in by_tool.items()} for name, by_tool in found.items()}


def _rank(ns: Sequence[int], q: float) -> float:
    """Milliseconds: the smallest call that a share of q does not exceed."""
    ordered = sorted(ns)
    return ordered[min(len(ordered) - 1, int(q * (len(ordered) + 1)))] / 1e6


def _single_stream(model: Any, texts: Sequence[str]) -> dict[str, float]:
    """As LoadGen counted them."""
    import mlperf_loadgen as lg

    settings = _settings(lg.TestScenario.SingleStream)
    settings.single_stream_expected_latency_ns = 3_000_000
    told = run(settings, texts, lambda samples: [model.predict([texts[s.index]]) for s in samples])
    return {
        "p50 ms": told["result_50.00_percentile_latency_ns"] / 1e6,
        "p90 ms": told["result_90.00_percentile_latency_ns"] / 1e6,
        "calls": float(told["result_query_count"]),
    }


def _offline(model: Any, texts: Sequence[str], found: dict[str, dict[str, list[float]]]) -> float:
    """Inputs a second as LoadGen counted them: one query with all samples, of which it needs to know about how many."""
    import mlperf_loadgen as lg

    settings = _settings(lg.TestScenario.Offline)
    known = [rate for rates in found.get("offline /s", {}).values() for rate in rates]
    settings.offline_expected_qps = max([*known, 100.0])
    told = run(settings, texts, lambda samples: model.predict([texts[s.index] for s in samples]))
    return float(told["result_samples_per_second"])


def _settings(scenario: Any) -> Any:
    import mlperf_loadgen as lg

    settings = lg.TestSettings()
    settings.scenario, settings.mode = scenario, lg.TestMode.PerformanceOnly
    settings.min_duration_ms, settings.min_query_count = round(1000 * SECONDS), 1
    return settings


# ---- the host


def python_with_loadgen(home: Path) -> Path:
    """An environment with LoadGen and what the runtime needs; edgewise comes from this tree."""
    python = home / "bin" / "python"
    if not python.exists():
        venv.create(home, with_pip=True)
        base = ["numpy", "onnxruntime", "tokenizers"]
        command = [str(python), "-m", "pip", "install", "-q", *base, f"mlcommons-loadgen=={LOADGEN}"]
        subprocess.run([*command, "--constraint", str(ROOT / "constraints.txt")], check=True)
    return python


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=PROCESSES)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(child(json.loads(sys.stdin.read()))))
        return
    from conditions import conditions, save, spread
    from minilm import MAIN, WORK, bundles, in_a_child, reviews

    bundle, texts = bundles([MAIN])[MAIN], reviews(TEXTS)
    python = python_with_loadgen((WORK / "venv-loadgen").resolve())
    found, loads = [], []
    for seed in range(args.processes):
        job = {"bundle": str(bundle), "texts": texts, "seed": seed}
        found.append(in_a_child(__file__, job, python, PYTHONPATH=str(ROOT)))
        loads.append(os.getloadavg()[0])
        print(f"process {seed + 1} of {args.processes}, load {loads[-1]:.1f}: {found[-1]}", file=sys.stderr, flush=True)
    ratios = {
        name: spread([one[name][OURS] / one[name][PEER] for one in found])
        for name in ("p50 ms", "p90 ms", "offline /s")
    }
    result = {
        "what": __doc__,
        "conditions": {**conditions(bundle), "loadgen": LOADGEN, "threads": 1, "max_length": MAX_LENGTH,
                       "texts": TEXTS, "turns": TURNS, "seconds_a_turn": SECONDS},
        "load": spread(loads),
        "bar": BAR,
        "processes": found,
        f"{OURS} / {PEER}": ratios,
    }  # fmt: skip
    for name, ratio in ratios.items():
        print(f"{name}, {OURS} / {PEER}: {ratio['median']:.4f} ({ratio['min']:.4f}-{ratio['max']:.4f}), bar ±{BAR:.0%}")
    print(save("vs_loadgen", result))


if __name__ == "__main__":
    main()
