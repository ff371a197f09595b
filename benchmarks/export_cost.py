"""What exporting SmolLM2-135M to all its recipes costs: peak memory of the process, as a multiple of the fp32 weights.

One fresh process a set of recipes, so that each has a peak of its own (VmHWM, which a child does not inherit).

    python benchmarks/export_cost.py
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

from conditions import here, save

BAR = 4.0
"""Peak memory over the size of the fp32 weights."""


def one(recipes: list[str], work: Path) -> dict[str, Any]:
    """Export in this process."""
    from edgewise.assets import asset_path
    from edgewise.exporter import export

    source = asset_path("smollm2")
    rows = _rows()
    start, cpu = perf_counter(), process_time()
    results = export(source, recipes, out=work, calibration=rows)
    spent = {"seconds": perf_counter() - start, "cpu_seconds": process_time() - cpu}
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    peak = int(status.split("VmHWM:")[1].split()[0]) * 1024
    weights = sum(p.stat().st_size for p in source.glob("*.safetensors"))
    made = {
        r.recipe.name: {"bytes": r.bundle.manifest.size, "seconds": r.seconds} if r.bundle else {"reason": r.reason}
        for r in results
    }
    return {**spent, "peak_memory": peak, "weights": weights, "ratio": peak / weights, "recipes": made}


def _rows() -> Any:
    from edgewise.data import load_rows

    return load_rows("asset:brown", task="text-generation")[:16]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/export-cost"))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one(args.one.split(" "), args.work)))
        return
    found = {}
    for recipes in ("all", "fp32", "int8-dynamic", "int4-weights", "fp32-in-place", "int4-in-place"):
        shutil.rmtree(args.work, ignore_errors=True)
        command = [sys.executable, __file__, "--work", str(args.work), "--one", recipes]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found[recipes] = json.loads(done.stdout.strip().splitlines()[-1])
        save("export_cost", {"what": __doc__, "bar": BAR, "conditions": here(), "runs": found})
        print(
            f"{recipes}: {found[recipes]['ratio']:.2f} x the fp32 weights, {found[recipes]['seconds']:.0f} s",
            flush=True,
        )
    shutil.rmtree(args.work, ignore_errors=True)


if __name__ == "__main__":
    main()
