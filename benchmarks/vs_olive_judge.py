"""The same judge for what either tool chose: MLPerf LoadGen's p95, and accuracy on rows that neither has seen.

One harness for every graph, of neither tool: the checkpoint's tokenizer, cut to 64 tokens and not padded, and one
onnxruntime session of one thread on the CPU. See vs_olive.py; the child runs where LoadGen is, and imports no edgewise.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from loadgen import run


def answerer(graph: str, tokenizer: str, max_length: int) -> Callable[[str], int]:
    """Text -> the number of its class."""
    import numpy as np
    import onnxruntime as ort
    from tokenizers import Tokenizer

    encoder = Tokenizer.from_file(tokenizer)
    encoder.no_padding()
    encoder.enable_truncation(max_length)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]

    def answer(text: str) -> int:
        found = encoder.encode(text)
        known = {"input_ids": found.ids, "attention_mask": found.attention_mask, "token_type_ids": found.type_ids}
        return int(session.run(None, {n: np.array([known[n]], dtype=np.int64) for n in names})[0].argmax())

    return answer


def single_stream(answer: Callable[[str], int], texts: Sequence[str], seconds: float) -> dict[str, float]:
    """LoadGen's own percentiles in milliseconds: one query after the other, for at least `seconds`."""
    import mlperf_loadgen as lg

    settings = lg.TestSettings()
    settings.scenario, settings.mode = lg.TestScenario.SingleStream, lg.TestMode.PerformanceOnly
    settings.min_duration_ms, settings.min_query_count = round(1000 * seconds), 130
    settings.single_stream_expected_latency_ns = 5_000_000
    settings.sample_index_rng_seed = random.randrange(2**31)

    def ask(samples: Any) -> None:
        for sample in samples:
            answer(texts[sample.index])

    told = run(settings, texts, ask)
    found = {f"p{q}": told[f"result_{q}.00_percentile_latency_ns"] / 1e6 for q in (50, 90, 95)}
    return {**found, "calls": float(told["result_query_count"])}


def child(job: dict[str, Any]) -> Any:
    """One fresh process: LoadGen's percentiles, or the answers to all texts."""
    answer = answerer(job["graph"], job["tokenizer"], job["max_length"])
    if not job["seconds"]:
        return [answer(text) for text in job["texts"]]
    random.seed(job["seed"])
    for text in job["texts"][:50]:
        answer(text)
    return single_stream(answer, job["texts"], job["seconds"])


# ---- the host


def judge(
    graphs: Mapping[str, Path], tokenizer: Path, rows: Path, python: Path, rounds: int, seconds: float, max_length: int
) -> dict[str, Any]:
    """Name -> LoadGen's percentiles in fresh processes, the graphs in turn; and what is lost against `fp32`.

    graphs: `fp32`, and what was chosen. rows: JSON Lines with text and class.
    """
    from minilm import in_a_child

    from edgewise.paired import paired_drop

    read = [json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()]
    texts, right = [r["text"] for r in read], [r["class"] for r in read]
    job = {"tokenizer": str(tokenizer), "texts": texts, "max_length": max_length}
    speed: dict[str, list[dict[str, float]]] = {name: [] for name in graphs}
    for seed in range(rounds):
        for name in random.Random(seed).sample(list(graphs), len(graphs)):
            asked = {**job, "graph": str(graphs[name]), "seconds": seconds, "seed": seed}
            speed[name].append(in_a_child(__file__, asked, python, OMP_NUM_THREADS="1"))
            print(f"LoadGen, round {seed + 1}, {name}: {speed[name][-1]}", file=sys.stderr, flush=True)
    ok = {}
    for name, graph in graphs.items():
        answers = in_a_child(__file__, {**job, "graph": str(graph), "seconds": 0}, python, OMP_NUM_THREADS="1")
        ok[name] = [a == b for a, b in zip(answers, right, strict=True)]
    found = {}
    for name in graphs:
        pairs = list(zip(ok["fp32"], ok[name], strict=True))
        drop = paired_drop(pairs.count((True, False)), pairs.count((False, True)), len(pairs), 0.95)
        found[name] = {
            "loadgen": speed[name],
            "accuracy": sum(ok[name]) / len(right),
            "drop_points": drop.points.value,
            "drop_at_most_points": drop.points.high,
            "rows": len(right),
        }
    return found


def site_bytes(*folders: Path) -> int:
    """Bytes of the files there, without what Python compiles when it first imports them."""
    files = (p for folder in folders for p in folder.rglob("*") if p.is_file() and not p.is_symlink())
    return sum(p.stat().st_size for p in files if "__pycache__" not in p.parts)


def packages(python: Path, wanted: Sequence[str], work: Path) -> dict[str, Any]:
    """What pip downloads and installs for these packages: how many, bytes of wheels, bytes installed."""
    wheels, site = work / "wheels", work / "site"
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "-qq"]
    if not site.exists():
        subprocess.run([*pip, "download", "--only-binary=:all:", "--dest", str(wheels), *wanted], check=True)
        found = [str(p) for p in sorted(wheels.glob("*.whl"))]
        subprocess.run([*pip, "install", "--no-deps", "--no-compile", "--target", str(site), *found], check=True)
    return {
        "packages": len(list(wheels.glob("*.whl"))),
        "download_bytes": site_bytes(wheels),
        "installed_bytes": site_bytes(site),
    }


if __name__ == "__main__":
    if "--child" not in sys.argv:
        raise SystemExit("python benchmarks/vs_olive.py starts this")
    print(json.dumps(child(json.loads(sys.stdin.read()))))
