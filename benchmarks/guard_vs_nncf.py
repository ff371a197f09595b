"""Accuracy-guarded quantization beside NNCF's accuracy control: the same fp32 graphs, rows and allowed drops.

Four fine-tuned models (MiniLM on movie reviews with two seeds and on the words of addresses, DINOv2 on clothes), and
static int8 with one scale a column of a weight matrix, which is what both tools do unless told. Allowed: 0.5, 0.2 and 0
points of the mean score on val. Each tool quantizes with its own quantizer (NNCF's for TRANSFORMER models), then looks
for what to keep in fp32: ours by simulation (`edgewise.exporter.guard`), NNCF by reverting one group after the other
(`quantize_with_accuracy_control`, and by ranking the groups again when that does not help). Both see the same
calibration and val rows, one row at a time on one thread, and are judged once on the same confirm rows. NNCF runs in an
environment of its own, made on the first run; what it tries does not depend on the limit, which only says when it
stops, so one run with the lowest limit tells what it does at each.

At NNCF's shares of int8 (`at_the_same_share`) both are judged on confirm once more, so that luck on val plays no part.

An evaluation is a graph that val rows were run on, that of fp32 included. NNCF runs all rows of each, and ranks by the
metric of a subset of 100 val rows, one run a group: these are in its `val rows run`, and are not counted as
evaluations. Ours stops a graph once it has failed for certain; it ranks and foresees by simulating other train rows
without their labels: `simulated rows`. Seconds are those of the processor, since other work ran beside it.

    python benchmarks/guard_vs_nncf.py          (tunes first; over an hour on 2 cores; --case NAME for one alone)
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from guard_cases import CALIBRATION, CASES, SAMPLES, Example, prepare, read_rows, run

NNCF = "3.4.0"
MAX_EVALUATIONS = 12
"""Of either tool, those of fp32 and of all int8 included."""


def our_recipe() -> Any:
    from edgewise.exporter.quantize import resolve_recipe
    from edgewise.types import Recipe

    return resolve_recipe(Recipe(precision="int8-static", calibration_rows=CALIBRATION))


def quantizer(work: Path, name: str, task: str, splits: Any, reader: Any) -> Callable[[tuple[str, ...]], Path]:
    """(nodes to keep in fp32) -> our graph, each in a folder of its own under that name."""
    from edgewise.exporter.quantize import quantize_graph

    made = 0

    def quantize(keep: tuple[str, ...]) -> Path:
        nonlocal made
        made += 1
        out = work / "ours" / f"{name}-{made}"
        out.mkdir(parents=True, exist_ok=True)
        rows, wanted = splits.train[:CALIBRATION], replace(our_recipe(), keep=keep)
        return quantize_graph(work / "fp32", out / "q", wanted, rows, reader, 48, images=task.startswith("image"))

    return quantize


def run_ours(work: Path, task: str, limit: float, splits: Any, reader: Any) -> dict[str, Any]:
    from edgewise.exporter import sensitivity
    from edgewise.exporter.guard import guard
    from edgewise.exporter.quantize import calibrated_once
    from edgewise.exporter.stopping import Reference

    recipe, val, simulated = our_recipe(), read_rows(work, "val"), 0
    quantize = quantizer(work, f"{limit}", task, splits, reader)

    def score(graph: Path, numbers: Sequence[int]) -> Iterator[float]:
        return (found for found, _ in run(graph, (val[i] for i in numbers)))

    def counted(self: Any, int8: Any) -> list[np.ndarray]:
        nonlocal simulated
        simulated += len(self.feeds)
        return answers(self, int8)

    answers = sensitivity.Simulation.answers
    sensitivity.Simulation.answers = counted  # type: ignore[method-assign]  # to count, and nothing else
    feeds = [f for f, _ in read_rows(work, "samples")]
    wall, start, fp32 = time.perf_counter(), time.process_time(), work / "fp32" / "model.onnx"
    with calibrated_once():
        scores, leads = zip(*run(fp32, val), strict=True)
        reference = Reference(np.array(scores), leads=leads)
        found = guard(fp32, recipe, quantize, reference, score, feeds,
                      max_drop=limit, max_evaluations=MAX_EVALUATIONS)  # fmt: skip
    seconds, wall = time.process_time() - start, time.perf_counter() - wall
    sensitivity.Simulation.answers = answers  # type: ignore[method-assign]
    return {
        "tool": "edgewise",
        "options": recipe.name,
        "graph": str(found.graph),
        "evaluations": found.evaluations,
        "val_rows_run": found.rows_run,
        "ranking_rows": 0,
        "simulated_rows": simulated,
        "cpu_seconds": seconds,
        "wall_seconds": wall,
        "tried": [
            {"drop": round(t.drop, 6), "rows": t.rows, "stopped": t.stopped, "kept": len(t.keep)} for t in found.tried
        ],
        "val_drop": found.drop,
        "met": found.met,
        "kept": list(found.keep),
        "words": found.words,
    }


def run_nncf(work: Path, limits: Sequence[float]) -> list[dict[str, Any]]:
    """In the environment that has NNCF; nothing of edgewise is imported. What it tries does not depend on the limit,
    which only says when it stops: so one run with the lowest tells what it does at each."""
    import nncf
    import onnx
    from nncf.onnx.quantization.quantize_model import compress_quantize_weights_transformation as store_in_int8
    from nncf.quantization import advanced_parameters as advanced

    val, ranked = read_rows(work, "val"), 0
    scored: list[float] = []
    told: dict[float, dict[str, Any]] = {}
    wall, start = time.perf_counter(), time.process_time()

    def validate(model: Any, rows: Iterable[Example]) -> tuple[float, list[float]]:
        # The score by row: NNCF 3.4 ranks ONNX models by the metric alone ('Could not create backend-specific
        # implementation' where rows give logits).
        nonlocal ranked
        found = [score for score, _ in run(model.SerializeToString(), rows)]
        if len(found) < len(val):
            ranked += len(found)
        else:
            scored.append(float(np.mean(found)))
            if len(scored) > 1:
                stops(model)
        return float(np.mean(found)), found

    def stops(model: Any) -> None:
        """Note what it has done so far for the limits at which it stops here, and for those that it has not met."""
        nonlocal wall, start
        drop, here = scored[0] - scored[-1], (time.process_time(), time.perf_counter())
        for limit in [x for x in limits if not told.get(x, {"met": False})["met"]]:
            graph, stored = work / f"nncf-{limit}.onnx", onnx.ModelProto()
            stored.CopyFrom(model)
            store_in_int8(stored)  # as it does at the end
            onnx.save(stored, graph)
            told[limit] = {
                "tool": f"NNCF {NNCF}",
                "options": "model_type=TRANSFORMER",
                "graph": str(graph),
                "evaluations": len(scored),
                "val_rows_run": len(scored) * len(val) + ranked,
                "ranking_rows": ranked,
                "simulated_rows": 0,
                "cpu_seconds": here[0] - start,
                "wall_seconds": here[1] - wall,
                "tried": [
                    {"drop": round(scored[0] - one, 6), "rows": len(val), "stopped": False} for one in scored[1:]
                ],
                "val_drop": drop,
                "met": drop <= limit + 1e-9,
            }
        start += time.process_time() - here[0]  # our notes are none of its time
        wall += time.perf_counter() - here[1]

    nncf.quantize_with_accuracy_control(
        onnx.load(work / "fp32" / "model.onnx"),
        nncf.Dataset(read_rows(work, "calibration"), lambda row: row[0]),
        nncf.Dataset(val, lambda row: row[0]),
        validate,
        max_drop=min(limits),
        subset_size=CALIBRATION,
        model_type=nncf.ModelType.TRANSFORMER,
        advanced_accuracy_restorer_parameters=advanced.AdvancedAccuracyRestorerParameters(
            max_num_iterations=MAX_EVALUATIONS - 2,
            num_ranking_workers=1,  # ours takes one core too
        ),
    )
    return [told[limit] for limit in limits]


def start_nncf(work: Path, home: Path, limits: Sequence[float]) -> list[dict[str, Any]]:
    """NNCF in its own environment, in `home`, and process."""
    python = home / "bin" / "python"
    there = python.exists() and subprocess.run([python, "-c", "import nncf"], capture_output=True, check=False)
    if not there or there.returncode:
        from importlib.metadata import version

        venv.create(home, with_pip=True, clear=True)
        same = [f"{name}=={version(name)}" for name in ("onnx", "onnxruntime")]
        subprocess.run([python, "-m", "pip", "install", "-q", f"nncf=={NNCF}", *same], check=True)
    command = [str(python), __file__, "--work", str(work), "--nncf", *map(str, limits)]
    log = work / "nncf.log"
    with log.open("w", encoding="utf-8") as errors:  # NNCF_CI: no usage statistics are sent
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, check=False, env={**os.environ, "NNCF_CI": "1"}
        )
    if done.returncode:
        raise SystemExit(f"NNCF failed, see {log}")
    found: list[dict[str, Any]] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def int8_share(graph: Path, fp32: Path) -> float:
    """Numbers in int8 weights over numbers in fp32's, read from the graph; a scale's zero points are no weights."""
    import onnx

    def numbers(path: Path, kinds: tuple[int, ...]) -> int:
        model = onnx.load(path).graph
        rounding = [n for n in model.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
        zeros = {n.input[2] for n in rounding if len(n.input) > 2}
        kept = [w for w in model.initializer if w.data_type in kinds and w.dims and w.name not in zeros]
        return sum(int(np.prod(w.dims)) for w in kept)

    return numbers(graph, (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)) / numbers(fp32, (onnx.TensorProto.FLOAT,))


def judged(
    found: dict[str, Any], work: Path, fp32: np.ndarray, limit: float, known: dict[str, np.ndarray]
) -> tuple[dict[str, Any], np.ndarray]:
    """(what was found with its graph judged on confirm rows, the scores of these). known: by the graph's hash."""
    from edgewise.exporter.guard import confirm
    from edgewise.files import sha256_file

    graph = Path(found["graph"])
    if (key := sha256_file(graph)) not in known:
        known[key] = np.array([score for score, _ in run(graph, read_rows(work, "confirm"))])
    scores = known[key]
    told = {
        **{k: v for k, v in found.items() if k != "graph"},
        "int8_share": int8_share(graph, work / "fp32" / "model.onnx"),
        "file_bytes": graph.stat().st_size,
        "confirm_drop": float((fp32 - scores).mean()),
        "confirm_words": confirm(fp32.tolist(), scores.tolist(), limit),
    }
    return told, scores


def compared(ours: np.ndarray, theirs: np.ndarray) -> dict[str, float]:
    """What ours loses against NNCF's graph on the same confirm rows, in points, with the 90% interval of the mean."""
    drop = 100 * (theirs - ours)
    draws = np.random.default_rng(0).integers(0, len(drop), size=(4000, len(drop)))
    low, high = np.quantile(drop[draws].mean(1), [0.05, 0.95])
    return {"points": float(drop.mean()), "low": float(low), "high": float(high), "rows": len(drop)}


def at_the_same_share(
    work: Path, task: str, splits: Any, reader: Any, nncf: Sequence[tuple[float, Path]], fp32: np.ndarray
) -> list[dict[str, Any]]:
    """Our ranking cut where NNCF's graphs are, so that neither tool's luck on val says how much is in int8.

    nncf: (share in int8, graph), each once. fp32: scores of the confirm rows. Of our graphs that keep more and more of
    the ranked parts in fp32, the last with at least NNCF's share, or all int8 where that has less: both judged on
    confirm. No val row is run.
    """
    from edgewise.exporter.guard_search import INT8, Search
    from edgewise.exporter.quantize import calibrated_once
    from edgewise.exporter.sensitivity import simulate
    from edgewise.exporter.stopping import Reference

    graph, confirm = work / "fp32" / "model.onnx", read_rows(work, "confirm")
    scores, leads = zip(*run(graph, read_rows(work, "val")), strict=True)
    search = Search(quantizer(work, "same", task, splits, reader), lambda *_: iter(()),
                    Reference(np.array(scores), leads=leads), 0.0, 1)  # fmt: skip
    told = []
    with calibrated_once():
        feeds = [f for f, _ in read_rows(work, "samples")]
        search.begin(simulate(graph, search.graph(INT8), feeds).nearest(16), None)
        search.rank()
        for share, theirs in nncf:
            count = 0
            while int8_share(search.graph(search.prefix(count + 1)), graph) >= share - 1e-4:
                count += 1
            ours = search.graph(search.prefix(count))
            mine, other = (np.array([score for score, _ in run(g, confirm)]) for g in (ours, theirs))
            told.append({
                "nncf_int8_share": share, "int8_share": int8_share(ours, graph), "kept": count,
                "confirm_drop": float((fp32 - mine).mean()), "nncf_confirm_drop": float((fp32 - other).mean()),
                "ours_loses_to_nncf": compared(mine, other),
            })  # fmt: skip
    return told


def totals(cases: dict[str, Any]) -> dict[str, Any]:
    """Sums over the pairs of a case and a limit, by tool, and what NNCF takes for one of ours."""
    sums: dict[str, dict[str, float]] = {}
    keys = ("evaluations", "val_rows_run", "ranking_rows", "simulated_rows", "cpu_seconds", "met")
    pairs = [pair for case in cases.values() for pair in case["limits"].values()]
    for number, tool in enumerate(("edgewise", "nncf")):
        told = [pair["tools"][number] for pair in pairs]
        sums[tool] = {key: sum(t[key] for t in told) for key in keys}
        sums[tool]["mean_int8_share"] = float(np.mean([t["int8_share"] for t in told]))
        sums[tool]["mean_confirm_drop"] = float(np.mean([t["confirm_drop"] for t in told]))
    ratio = {key: sums["nncf"][key] / sums["edgewise"][key] for key in ("evaluations", "val_rows_run", "cpu_seconds")}
    return {"pairs": len(pairs), **sums, "nncf_takes_times": ratio}


def table(result: dict[str, Any]) -> str:
    """The committed table, as Markdown."""
    lines = [
        "| model | allowed | tool | drop on val, first tried → found | weights in int8 | drop on confirm | "
        "evaluations | val rows run | CPU seconds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, case in result["cases"].items():
        for limit, pair in case["limits"].items():
            for one in pair["tools"]:
                first = one["tried"][0]
                start = f"{'over ' if first['stopped'] else ''}{100 * first['drop']:.1f}"
                end = f"{100 * one['val_drop']:.1f}{'' if one['met'] else ', not met'}"
                lines.append(
                    f"| {name} | {100 * float(limit):g} | {one['tool']} | {start} → {end} | {one['int8_share']:.1%} | "
                    f"{100 * one['confirm_drop']:.2f} | {one['evaluations']} | {one['val_rows_run']:,} | "
                    f"{one['cpu_seconds']:.0f} |"
                )
    for tool in ("edgewise", "nncf"):
        t, pairs = result["totals"][tool], result["totals"]["pairs"]
        lines.append(
            f"| all | | {tool} | {t['met']} of {pairs} met | {t['mean_int8_share']:.1%} | "
            f"{100 * t['mean_confirm_drop']:.2f} | {t['evaluations']} | {t['val_rows_run']:,} | "
            f"{t['cpu_seconds']:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/guard"))
    parser.add_argument("--case", choices=list(CASES), action="append", help="these alone; the others stay")
    parser.add_argument("--table", action="store_true", help="print the table of the committed result")
    parser.add_argument(
        "--same-share", action="store_true", help="compare at NNCF's shares of int8 alone, the rest stays"
    )
    parser.add_argument("--keep-nncf", action="store_true", help="ours anew beside NNCF's run that is there")
    parser.add_argument("--nncf", type=float, nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.nncf is not None:
        print(json.dumps(run_nncf(args.work, args.nncf)))
        return
    from conditions import RESULTS, save

    path = RESULTS / "guard_vs_nncf.json"
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    result = {"what": __doc__, "cases": {n: c for n, c in result.get("cases", {}).items() if n in CASES}}
    for name in () if args.table else args.case or CASES:
        if args.same_share:
            work = args.work.resolve() / name
            splits, reader = prepare(name, work)
            fp32 = np.array([score for score, _ in run(work / "fp32", read_rows(work, "confirm"))])
            same_share(name, work, result["cases"][name], splits, reader, fp32)
            save("guard_vs_nncf", {**result, "totals": totals(result["cases"])})
        else:
            measure(name, args.work.resolve(), result, keep_nncf=args.keep_nncf)
    result["totals"] = totals(result["cases"])
    print(table(result))


def measure(name: str, root: Path, result: dict[str, Any], *, keep_nncf: bool) -> None:
    """Both tools on one case, at each of its limits; saved after each."""
    from conditions import here, save

    case, work = CASES[name], root / name
    work.mkdir(parents=True, exist_ok=True)
    splits, reader = prepare(name, work)
    fp32 = {part: np.array([s for s, _ in run(work / "fp32", read_rows(work, part))]) for part in ("val", "confirm")}
    found: dict[str, Any] = {
        "about": case.about,
        "conditions": {**here(), "nncf": NNCF, "load_before": os.getloadavg()[0]},
        "rows": {"calibration": CALIBRATION, "samples": SAMPLES, **{k: len(v) for k, v in fp32.items()}},
        "fp32": {k: float(v.mean()) for k, v in fp32.items()},
        "limits": {},
    }
    known: dict[str, np.ndarray] = {}
    if keep_nncf:
        before = result["cases"][name]
        found["conditions"]["nncf_date"] = before["conditions"].get("nncf_date", before["conditions"]["date"])
        told = {x: before["limits"][str(x)]["tools"][1] for x in case.limits}
        by_limit = [{**one, "graph": str(work / f"nncf-{x}.onnx")} for x, one in told.items()]
    else:
        by_limit = start_nncf(work, root.parent / "venv-nncf", case.limits)
    result["cases"][name] = found
    for limit, nncf in zip(case.limits, by_limit, strict=True):
        pair = (run_ours(work, case.task, limit, splits, reader), nncf)
        (ours, our_scores), (theirs, their_scores) = (judged(one, work, fp32["confirm"], limit, known) for one in pair)
        for one in (ours, theirs):
            print(name, limit, {k: v for k, v in one.items() if k != "kept"}, file=sys.stderr, flush=True)
        loss = compared(our_scores, their_scores)
        found["limits"][str(limit)] = {"tools": [ours, theirs], "ours_loses_to_nncf": loss}
        result["totals"] = totals(result["cases"])
        save("guard_vs_nncf", result)
    same_share(name, work, found, splits, reader, fp32["confirm"])
    save("guard_vs_nncf", result)


def same_share(name: str, work: Path, found: dict[str, Any], splits: Any, reader: Any, fp32: np.ndarray) -> None:
    """Add `at_the_same_share` to a case whose pairs are there."""
    ends = {p["tools"][1]["int8_share"]: work / f"nncf-{x}.onnx" for x, p in found["limits"].items()}
    found["at_the_same_share"] = at_the_same_share(
        work, CASES[name].task, splits, reader, sorted(ends.items(), reverse=True), fp32
    )
    print(name, found["at_the_same_share"], file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
