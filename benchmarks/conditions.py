"""What every benchmark here writes beside its numbers, and how it sums up paired rounds."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from edgewise.profiler.fingerprint import read_fingerprint

RESULTS = Path(__file__).parent / "results"
TOOLS = ("edgewise", "onnxruntime", "tokenizers", "numpy", "torch", "transformers", "optimum", "optimum-onnx")


def here() -> dict[str, Any]:
    """Machine and versions of a run."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": asdict(read_fingerprint()),
        "versions": {tool: version(tool) for tool in TOOLS},
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),  # None: as many as the machine has
    }


def conditions(bundle: Path) -> dict[str, Any]:
    """Machine, versions and bundle of a run."""
    from edgewise.bundle import read_bundle

    manifest = read_bundle(bundle).manifest
    return {
        **here(),
        "bundle": {
            "candidate": manifest.source.get("candidate"),
            "recipe": manifest.recipe.name,
            "size": manifest.size,
            "content_digest": manifest.content_digest,
        },
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median with the quartiles and the ends."""
    q = statistics.quantiles(values, n=4)
    return {"median": statistics.median(values), "q1": q[0], "q3": q[2], "min": min(values), "max": max(values)}


def save(name: str, result: dict[str, Any]) -> Path:
    """Write benchmarks/results/NAME.json."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return path
