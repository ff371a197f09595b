"""What the full example found: each seed in fp32 and int8 on val, and the chosen one on confirm.

edgewise fit examples/movie-reviews-full.yaml --out RUN
python benchmarks/full_example.py RUN
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from conditions import save

from edgewise.profiler import Store
from edgewise.results import machines_of

METRICS = ("accuracy", "accuracy_drop", "changed_answers", "f1", "train_time")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    run = parser.parse_args().run
    (device,) = json.loads((run / "selection.json").read_text(encoding="utf-8"))["devices"]
    with Store(run / "measurements.sqlite") as store:
        machines = machines_of(store.measurements())
    entries = [verdict["entry"] for verdict in device["verdicts"]]
    result = {
        "what": __doc__,
        "conditions": {"machines": machines, "plan": (run / "plan.yaml").read_text(encoding="utf-8")},
        "val": {f"{e['candidate']}/{e['recipe']}": picked(e["metrics"]) for e in entries},
        "confirm": {tried["key"]: picked(tried["metrics"]) for tried in device["confirmed"]},
        "sentence": device["sentence"],
    }
    print(save("movie-reviews-full", result))


def picked(metrics: dict[str, Any]) -> dict[str, Any]:
    """Value, bounds and sample of the metrics that do not depend on what else the machine did."""
    kept = ("value", "low", "high", "level", "method", "n")
    return {name: {k: metrics[name][k] for k in kept} for name in METRICS if name in metrics}


if __name__ == "__main__":
    main()
