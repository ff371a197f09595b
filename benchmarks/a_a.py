"""The same thing measured again and again: how often `compare` calls it different, and what a busy neighbour does.

`take` measures one bundle some times, each a whole run of `profile` with a store of its own; call it again an hour
later. `busy` takes runs beside processes that burn every core. `judge` compares every pair of runs, and counts the
pairs of which any metric is called better or worse: within one sitting, between sittings, with the yardstick and
without it; and how many of the busy runs are flagged. `compare` says 5% at the most.

    python benchmarks/a_a.py take --runs 6   (about 3 minutes; then once more, an hour later)
    python benchmarks/a_a.py busy --runs 3
    python benchmarks/a_a.py judge
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

from conditions import conditions, save
from minilm import MAIN, bundles

WORK = Path("runs/a_a")
ROWS, LENGTH, CONFIDENCE = 500, 64, 0.95
NEIGHBOURS = 2
"""Busy processes for each core."""
SETUP = {"rows": ROWS, "length": LENGTH, "threads": 1, "mode": "standard", "busy_processes_a_core": NEIGHBOURS}
SITTING_S = 1200
"""Runs that are further apart than this belong to two sittings."""


def take(runs: int, kind: str) -> None:
    from edgewise.data import load_rows
    from edgewise.profiler import Store, profile
    from edgewise.types import RunSettings, Target

    folder = bundles([MAIN])[MAIN]
    rows = load_rows("asset:movie-reviews", text="text", columns=["id", "score", "text"], quoting=False)[:ROWS]
    for _ in range(runs):
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        with Store(WORK / f"{kind}-{stamp}.sqlite") as store:
            profile([folder], [Target("here", RunSettings(max_length=LENGTH))], rows, store=store)
        print(f"{kind} {stamp}", flush=True)


def busy(runs: int) -> None:
    """Beside two processes for each core, which never rest."""
    import os

    burn = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(NEIGHBOURS * (os.cpu_count() or 1))
    ]
    try:
        take(runs, "busy")
    finally:
        for process in burn:
            process.kill()
            process.wait()


def judge() -> None:
    from edgewise.profiler import Store, compare

    calm = sorted(WORK.glob("calm-*.sqlite"))
    sittings = _sittings(calm)
    found: dict[str, Any] = {"pairs": Counter(), "alarms": Counter(), "alarms_without_yardstick": Counter()}
    ratios: dict[str, list[float]] = {"within": [], "between": []}
    for a, b in itertools.combinations(calm, 2):
        where = "within" if sittings[a] == sittings[b] else "between"
        with Store(a) as first, Store(b) as second:
            result = compare.compare_stores(first, second, confidence=CONFIDENCE)
            with patch.object(compare, "_machine_moved", lambda pair: (1.0, 1.0)):
                blind = compare.compare_stores(first, second, confidence=CONFIDENCE)
        found["pairs"][where] += 1
        found["alarms"][where] += any(d.verdict in ("better", "worse") for d in result.differences)
        found["alarms_without_yardstick"][where] += any(d.verdict in ("better", "worse") for d in blind.differences)
        ratios[where] += [d.change for d in result.differences if d.metric == "p95" and d.change]
    flagged, called_equal, beside = 0, 0, sorted(WORK.glob("busy-*.sqlite"))
    for a, b in itertools.product(calm, beside):
        with Store(a) as first, Store(b) as second:
            times = [d for d in compare.compare_stores(first, second).differences if d.unit == "s"]
        flagged += all(d.verdict == "not comparable" for d in times)
        called_equal += any(d.verdict in ("none shown", "equal") for d in times)
    result = {
        **conditions(bundles([MAIN])[MAIN]),
        "claim": f"two runs of the same thing: a difference is called in at most {1 - CONFIDENCE:.0%} of the pairs",
        "setup": SETUP,
        "runs": {"calm": len(calm), "sittings": len(set(sittings.values())), "busy": len(beside)},
        "stamps": [p.stem for p in (*calm, *beside)],
        **{name: dict(counter) for name, counter in found.items()},
        "p95_ratio": {k: {"min": min(v), "max": max(v)} for k, v in ratios.items() if v},
        "busy": {"pairs": len(calm) * len(beside), "flagged": flagged, "called_equal": called_equal},
    }
    for key in ("runs", "pairs", "alarms", "alarms_without_yardstick", "p95_ratio", "busy"):
        print(f"{key}: {result[key]}")
    print(save("a_a", result))


def _sittings(runs: list[Path]) -> dict[Path, int]:
    """The sitting of each run, from the stamp in its name."""
    found: dict[Path, int] = {}
    number, before = 0, None
    for path in runs:
        when = datetime.strptime(path.stem.partition("-")[2], "%Y%m%d-%H%M%S").replace(tzinfo=UTC)
        number += before is not None and (when - before).total_seconds() > SITTING_S
        found[path], before = number, when
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("action", choices=["take", "busy", "judge"])
    parser.add_argument("--runs", type=int, default=6)
    args = parser.parse_args()
    if args.action == "take":
        take(args.runs, "calm")
    elif args.action == "busy":
        busy(args.runs)
    else:
        judge()
    return 0


if __name__ == "__main__":
    sys.exit(main())
