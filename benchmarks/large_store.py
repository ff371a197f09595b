"""How long `edgewise select` takes on a store of one million measurements, and with how much memory.

    python benchmarks/large_store.py

The store is made up: 15,000 bundles, each answered at 12 settings and timed on 48. Each choice is made in a fresh
process, five times in turn for each set of budgets; the file is in the page cache, as after a first look.
"""

from __future__ import annotations

import argparse
import json
import resource
import sqlite3
import statistics
import subprocess
import sys
import time
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from conditions import here, save

from edgewise.profiler import Store
from edgewise.types import Metric, RunSettings, Target, to_dict
from edgewise.units import METRICS

RECIPES = ("fp32", "fp32-o2", "int8-dynamic", "int8-static")
BUNDLES = 15_000
ASKED: dict[str, list[str]] = {
    "five budgets": [
        "p95 <= 10 ms", "peak_rss <= 100 MB", "size <= 30 MB", "accuracy >= 80 %", "accuracy_drop <= 0.5 points",
    ],
    "few keep them": ["p95 <= 3 ms", "size <= 8 MB"],
    "nearly all keep it": ["p95 <= 40 ms"],
    "none keeps it": ["p95 <= 0.1 ms"],
}  # fmt: skip
ROUNDS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, default=Path("runs/large.sqlite"))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(choose(args.store, ASKED[args.one])))
        return
    if not args.store.is_file():
        make(args.store)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in ASKED}
    for _ in range(ROUNDS):
        for name in ASKED:
            command = [sys.executable, __file__, "--store", str(args.store), "--one", name]
            found[name].append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    rows = {name: summary(runs) for name, runs in found.items()}
    for name, row in rows.items():
        print(f"{name:<20} {row['wall_s']:.2f} s (CPU {row['cpu_s']:.2f} s), {row['peak_mb']:.0f} MB: {row['answer']}")
    with Store(args.store) as store:
        measurements = store.last()
    save("large_store", {"conditions": here(), "measurements": measurements, "budgets": ASKED, "rows": rows})


def choose(path: Path, texts: list[str]) -> dict[str, Any]:
    """One choice: what the verb does once Python and the modules are there."""
    from edgewise.units import parse_budget
    from edgewise.verbs_select import Asked, large_selection

    budgets = tuple(parse_budget(t) for t in texts)
    # Imported before the clock starts.
    import edgewise.profiler.shortlist
    import edgewise.selector.large  # noqa: F401

    wall, cpu = time.perf_counter(), time.process_time()
    with Store(path) as store:
        selection = large_selection(store, "here", Asked(budgets, ("accuracy", "p95"), (), 0.95))
    return {
        "wall_s": time.perf_counter() - wall,
        "cpu_s": time.process_time() - cpu,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
        "answer": selection.chosen.entry.key if selection.chosen else "nothing",
    }


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians, and the least and most seconds."""
    walls = [r["wall_s"] for r in runs]
    return {
        "wall_s": statistics.median(walls),
        "wall_s_least": min(walls),
        "wall_s_most": max(walls),
        "cpu_s": statistics.median(r["cpu_s"] for r in runs),
        "peak_mb": max(r["peak_mb"] for r in runs),
        "answer": runs[0]["answer"],
    }


def make(path: Path) -> None:
    """The store, written as `Store` would, without its transactions: minutes instead of hours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    Store(partial).close()
    db = sqlite3.connect(partial)
    db.execute("PRAGMA journal_mode = OFF")
    db.execute("PRAGMA synchronous = OFF")
    rng, number = np.random.default_rng(0), 0
    targets = [
        Target("here", RunSettings(threads=t, max_length=n, batch_size=b))
        for t, n, b in product((1, 2, 3, 4), (32, 64, 128, 256), (1, 2, 4))
    ]
    for bundle in range(BUNDLES):
        name = (f"c{bundle // 4}", RECIPES[bundle % 4], f"sha256:{bundle:064x}")
        accuracy, drop, size = rng.normal(0.8, 0.02), abs(rng.normal(0, 0.6)), rng.uniform(5e6, 1e8)
        for target in targets:
            p95 = rng.gamma(4, 0.004)
            timed = {"p50": (0.8 * p95, 0.02 * p95), "p95": (p95, 0.04 * p95), "peak_rss": (1.5 * size + 7e7, 1e6),
                     "throughput": (1 / p95, 0.03 / p95), "startup": (0.2, 0.01), "size": (size, None)}  # fmt: skip
            found = {"single-stream": timed}
            if target.run.threads == 1:
                found["accuracy"] = {"accuracy": (accuracy, 0.013)}
                if name[1] != "fp32":
                    found["comparison"] = {"accuracy_drop": (drop, 0.4)}
            for scenario, values in found.items():
                number += 1
                _add(db, number, name, target, scenario, values)
    db.commit()
    db.close()
    partial.rename(path)


def _add(
    db: sqlite3.Connection, number: int, name: tuple[str, str, str], target: Target, scenario: str,
    values: dict[str, tuple[float, float | None]],
) -> None:  # fmt: skip
    print_ = {"machine": "x86_64", "cpu": "made up", "flags": ["avx2"], "logical_cores": 4}
    kept = json.dumps({"fingerprint": print_, "fingerprint_digest": "sha256:f", "settings_digest": "sha256:s"})
    db.execute(
        "INSERT INTO measurements VALUES (?, ?, ?, ?, ?, ?, ?, 'profile', 'ok', '', 'sha256:rows', ?, '2026')",
        (number, f"key {number}", *name, json.dumps(to_dict(target)), scenario, kept),
    )
    metrics = [
        Metric(n, METRICS[n].unit, v, *((None, None, None) if h is None else (v - h, v + h, 0.95)), "made up", 500)
        for n, (v, h) in values.items()
    ]
    db.executemany(
        "INSERT INTO metrics VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [(number, m.name, m.unit, m.value, m.low, m.high, m.level, m.method, m.n, m.kind, m.why) for m in metrics],
    )
    run = target.run
    head = {
        "measurement_id": number, "candidate": name[0], "recipe": name[1], "content_digest": name[2], "device": "here",
        "provider": run.provider, "threads": run.threads, "max_length": run.max_length, "batch_size": run.batch_size,
        "scenario": scenario, "stage": "profile", "status": "ok", "reason": "", "fingerprint_digest": "sha256:f",
        **{m.name: m.value for m in metrics},
    }  # fmt: skip
    columns = ", ".join(f'"{c}"' for c in head)
    db.execute(f"INSERT INTO summary ({columns}) VALUES ({', '.join('?' * len(head))})", tuple(head.values()))


if __name__ == "__main__":
    main()
