"""Edgewise beside Microsoft Olive: the same tuned checkpoint, recipes, rows and goals; what each chooses, and is it so?

MiniLM tuned on movie reviews, as benchmarks/forms.py makes it. Candidates: fp32, int8-dynamic, int8-static. Goals: p95
of a text at most 10 ms on one thread, accuracy at most 0.5 points below fp32's, then the smallest. Each tool runs once,
as its documentation says (`edgewise fit`, `olive run`), in a fresh process with empty caches and no network. Time is
that of the wall; memory is the sum of the process tree, sampled ten times a second from outside, so a shorter peak may
be missed: PSS, in which a shared page counts once, and RSS, in which it counts in each process.

What is chosen is measured again by neither: MLPerf LoadGen's SingleStream in fresh processes, through one harness
(tokenizers and onnxruntime), and accuracy on reviews that no tool has seen. What Olive makes of goals is probed with
small workflows. Sizes are of what a device needs to answer: for edgewise its kit; for Olive its output folder, the
checkpoint's tokenizer and what the sample of its own BERT recipe imports (onnxruntime, transformers).

    python benchmarks/vs_olive.py              (about 12 minutes on an idle machine; started again, it goes on)
    python benchmarks/vs_olive.py --again      (forgets what an earlier run has measured)
    python benchmarks/vs_olive.py --quick      (does it work? few rows, into runs/olive/quick, nothing is committed)
    python benchmarks/vs_olive.py --table      (the table of the committed result, also into docs/olive.md)
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from conditions import RESULTS, here, save
from minilm import WORK, bundles, checkpoint
from vs_loadgen import LOADGEN, python_with_loadgen
from vs_olive_judge import judge, packages, site_bytes
from vs_olive_probes import measured, probe
from vs_olive_sides import (
    CALIBRATION,
    MAX_LENGTH,
    POINTS,
    Setting,
    edgewise_command,
    environment,
    olive_command,
    olive_config,
    plan,
    python_with_olive,
    versions_of,
    write_rows,
    write_yaml,
)
from vs_olive_table import BY_HAND, PASSES, SAMPLE, TOOLS, probed, table, write_docs

P95_MS, OLIVE_RUNS = 10.0, 200
ROUNDS, SECONDS = 5, 6.0
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "config.json")


def watched(command: Sequence[str], work: Path) -> dict[str, Any]:
    """Run a tool and look at its process tree ten times a second. Bytes; seconds of the wall and of the processors."""
    import psutil

    work.mkdir(parents=True, exist_ok=True)
    peak = {"rss": 0, "pss": 0}
    load, start, samples = os.getloadavg()[0], time.perf_counter(), 0
    with (work / "log").open("w", encoding="utf-8") as log:
        root = psutil.Popen(
            list(command), stdout=log, stderr=subprocess.STDOUT, env=environment(work), cwd=work, text=True
        )
        while os.waitid(os.P_PID, root.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            now = _tree_bytes(root)
            peak = {kind: max(peak[kind], now[kind]) for kind in peak}
            samples += 1
            time.sleep(0.1)
        seconds = time.perf_counter() - start
        _, status, used = os.wait4(root.pid, 0)
    return {
        "exit_code": os.waitstatus_to_exitcode(status),
        "wall_seconds": seconds,
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "peak_pss_bytes": peak["pss"],
        "peak_rss_bytes": peak["rss"],
        "samples": samples,
        "load_before": load,
    }


def _tree_bytes(root: Any) -> dict[str, int]:
    """RSS and PSS of a process and all below it, in bytes."""
    import psutil

    total = {"rss": 0, "pss": 0}
    try:
        tree = [root, *root.children(recursive=True)]
    except psutil.Error:
        return total
    for process in tree:
        try:
            found = process.memory_full_info()
        except psutil.Error:  # it has just ended
            continue
        total["rss"] += found.rss
        total["pss"] += found.pss
    return total


def run_edgewise(given: Setting, work: Path) -> dict[str, Any]:
    """`edgewise fit` on the plan: what it took, what it chose, and what it says of each candidate."""
    config, out = work / "plan.yaml", work / "run"
    written = write_yaml(plan(given), config)
    told = watched(edgewise_command(config, out), work)
    selection = json.loads((out / "selection.json").read_text(encoding="utf-8"))["devices"][0]
    graph = out / "chosen" / "onnx" / "model.onnx"
    candidates = {
        v["entry"]["recipe"]: {
            **{k: v["entry"]["metrics"][k]["value"] for k in ("size", "p95", "accuracy", "accuracy_drop")},
            "reason": v["reason"],
        }
        for v in selection["verdicts"]
    }
    chosen = json.loads((out / "chosen" / "edgewise.json").read_text(encoding="utf-8")) if graph.is_file() else None
    return {
        **told,
        "configuration": written,
        "chosen": chosen and chosen["recipe"]["precision"],
        "graph": str(graph) if chosen else None,
        "graph_bytes": graph.stat().st_size if chosen else None,
        "sentence": selection["sentence"],
        "candidates": candidates,
    }


def run_olive(given: Setting, work: Path, home: Path) -> dict[str, Any]:
    """`olive run` on the workflow, told in the same way."""
    config, out = work / "workflow.yaml", work / "out"
    written = write_yaml(olive_config(given, work), config)
    told = watched(olive_command(home, config), work)
    graph = out / "model.onnx"
    return {
        **told,
        "configuration": written,
        "chosen": _chosen_by_olive(graph, work / "cache", out) if graph.is_file() else None,
        "graph": str(graph) if graph.is_file() else None,
        "graph_bytes": graph.stat().st_size if graph.is_file() else None,
        "output_files": sorted(p.name for p in out.iterdir()),
        "candidates": measured(out),
    }


def _chosen_by_olive(graph: Path, cache: Path, out: Path) -> str:
    """The recipe of the output: that of the cached graph with the same bytes, since nothing in its folder says so."""
    digest = hashlib.sha256(graph.read_bytes()).hexdigest()
    nodes = json.loads((out / "footprint.json").read_text(encoding="utf-8"))
    for path in cache.glob("*/runs/*/models/model.onnx"):
        if hashlib.sha256(path.read_bytes()).hexdigest() == digest:
            return PASSES[nodes[path.parents[1].name]["from_pass"]]
    raise SystemExit(f"no cached graph is {graph}")


def judged(given: Setting, sides: dict[str, Any], rounds: int, seconds: float) -> dict[str, Any]:
    """LoadGen's p95 and the held-out accuracy of fp32 and of what either chose, held against the budgets."""
    graphs = {"fp32": bundles(["fp32"])["fp32"] / "onnx" / "model.onnx"}
    graphs |= {name: Path(sides[name]["graph"]) for name in TOOLS if sides[name]["graph"]}
    python = python_with_loadgen((WORK / "venv-loadgen").resolve())
    rows = given.rows / "held-out.jsonl"
    found = judge(graphs, given.checkpoint / "tokenizer.json", rows, python, rounds, seconds, MAX_LENGTH)
    for one in found.values():
        p95 = sorted(turn["p95"] for turn in one["loadgen"])
        one["p95_ms"] = {"median": p95[len(p95) // 2], "min": p95[0], "max": p95[-1]}
        one["keeps_p95"] = p95[len(p95) // 2] <= given.p95
        one["keeps_drop"] = one["drop_points"] <= POINTS
        one["drop_is_shown"] = one["drop_at_most_points"] <= POINTS
    return found


def on_a_device(given: Setting, sides: dict[str, Any], work: Path) -> dict[str, Any]:
    """Bytes to send and bytes installed, for all that answers there but Python itself."""
    version = here()["versions"]["onnxruntime"]
    found: dict[str, Any] = {}
    if sides["edgewise"]["graph"]:
        kit, prefix = work / "kit.zip", work / "kit"
        run = Path(sides["edgewise"]["graph"]).parents[2]
        subprocess.run([Path(sys.executable).with_name("edgewise"), "pack", run, "-o", kit], check=True)
        subprocess.run([sys.executable, kit, "--prefix", prefix], check=True)
        (root,) = (prefix / "kits").iterdir()
        model = site_bytes(root / "bundle")
        found["edgewise"] = {
            "model_bytes": model,
            "packages_bytes": site_bytes(root) - model,
            "send_bytes": kit.stat().st_size,
            "packages": len(list((root / "site").glob("*.dist-info"))),
        }
    if sides["olive"]["graph"]:
        tokenizer = sum(p.stat().st_size for n in TOKENIZER if (p := given.checkpoint / n).is_file())
        model = site_bytes(Path(sides["olive"]["graph"]).parent) + tokenizer
        for name, library in {SAMPLE: "transformers", BY_HAND: "tokenizers"}.items():
            told = packages(Path(sys.executable), [f"onnxruntime=={version}", library], work / library)
            found[name] = {
                "model_bytes": model,
                "packages_bytes": told["installed_bytes"],
                "send_bytes": model + told["download_bytes"],
                "packages": told["packages"],
            }
    return found


def once(path: Path, key: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `make` gives, kept in a file until the key changes: so a benchmark that was stopped goes on."""
    if path.is_file():
        kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if kept["key"] == key:
            return kept["found"]  # type: ignore[no-any-return]
    work = path.with_suffix("")
    shutil.rmtree(work, ignore_errors=True)  # caches, and what a stopped run left
    work.mkdir(parents=True)
    print(f"{path.stem} …", file=sys.stderr, flush=True)
    found = make()
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps({"key": key, "found": found}, indent=1), encoding="utf-8")
    temporary.replace(path)
    return found


def measure(root: Path, quick: bool) -> dict[str, Any]:
    """All of it; each part is kept in `root` as soon as it is there."""
    root.mkdir(parents=True, exist_ok=True)
    p95, runs, rounds, seconds = (200.0, 20, 2, 1.0) if quick else (P95_MS, OLIVE_RUNS, ROUNDS, SECONDS)
    given = Setting(checkpoint(), root / "rows", p95, runs)
    rows = write_rows(given.rows, quick)
    home = root.parent.parent / "venv-olive" if quick else root.parent / "venv-olive"
    versions = versions_of(python_with_olive(home))
    (given.checkpoint / "model.safetensors").read_bytes()  # both find it in the page cache
    key = json.dumps([rows, plan(given), olive_config(given, root), versions, rounds, seconds], sort_keys=True)
    key = hashlib.sha256(key.encode()).hexdigest()
    made: dict[str, Any] = {}
    for name, make in {
        "edgewise": lambda work: run_edgewise(given, work),
        "olive": lambda work: run_olive(given, work, home),
        "judge": lambda _: judged(given, made, rounds, seconds),
        "device": lambda work: on_a_device(given, made, work),
        "probes": lambda work: probe(given, work, home),
    }.items():
        made[name] = once(root / f"{name}.json", key, lambda make=make, name=name: make(root / name))
    goals = {"p95_ms": p95, "accuracy_drop_points": POINTS, "then": "size"}
    return {
        "what": __doc__,
        "conditions": {**here(), "olive": versions, "loadgen": LOADGEN, "threads": 1, "batch_size": 1,
                       "max_length": MAX_LENGTH, "rows": rows, "calibration_rows": CALIBRATION,
                       "olive_times_its_input": runs, "rounds": rounds, "seconds_a_round": seconds},
        "goals": goals,
        **{part: {k: v for k, v in found.items() if k != "graph"} for part, found in made.items()},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/olive"))
    parser.add_argument("--again", action="store_true", help="forget what an earlier run has measured")
    parser.add_argument("--quick", action="store_true", help="few rows, nothing is committed")
    parser.add_argument("--table", action="store_true", help="the table of the committed result")
    args = parser.parse_args()
    if args.table:
        result = json.loads((RESULTS / "vs_olive.json").read_text(encoding="utf-8"))
    else:
        root = args.work.resolve() / "quick" if args.quick else args.work.resolve()
        if args.again:
            for name in ("edgewise", "olive", "judge", "device", "probes"):
                (root / f"{name}.json").unlink(missing_ok=True)
        result = measure(root, args.quick)
    print(table(result) + "\n\n" + probed(result))
    if not args.quick:
        write_docs(result)
        if not args.table:
            print(save("vs_olive", result))


if __name__ == "__main__":
    main()
