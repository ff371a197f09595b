"""Accuracy-guarded quantization beside NNCF's accuracy control: the same fp32 graph, rows and allowed drop.

MiniLM (6 layers) fine-tuned on movie reviews, and static int8 that loses more than half a point of accuracy on val,
with one scale a column of a weight matrix (what both tools do unless told) and with one a matrix. Each tool quantizes
with its own quantizer (NNCF's rounds more activations), then looks for what to keep in fp32: ours by simulation
(`edgewise.exporter.guard`), NNCF by reverting one group after the other (`quantize_with_accuracy_control`). Both see
the same calibration and val rows, one row at a time on one thread, and are judged once on the same confirm rows. NNCF
runs in an environment of its own, made on the first run.

An evaluation is a run of one graph over all val rows, that of fp32 included. NNCF also ranks by the metric of subsets
of val, one subset a group: `ranking rows`. Ours simulates on calibration rows without their labels: `simulated rows`.

    python benchmarks/guard_vs_nncf.py          (tunes first: 2 minutes; then 10 to 15 on 2 busy cores)
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import venv
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

NNCF = "3.4.0"
MAX_DROP = 0.005
MAX_EVALUATIONS = 12
"""Of either tool, those of fp32 and of all int8 included."""
SCALES = {"column": True, "matrix": False}
"""What shares a scale -> per_channel."""
LENGTH = 48
CALIBRATION, VAL, CONFIRM = 100, 1000, 2000
SAMPLES = 16
"""Calibration rows that our simulation runs."""
SPLIT: dict[str, float | str] = {"train": 0.4, "val": 0.3, "confirm": 0.3}

Example = tuple[dict[str, np.ndarray], int]


def prepare(work: Path) -> tuple[Any, Any]:
    """Tune, export, and write the rows as both tools read them; what is there stays. Returns (splits, tokenizer)."""
    from reviews import movie_reviews
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from edgewise.assets import asset_path
    from edgewise.data import load_splits
    from edgewise.exporter.tracing import export_graphs
    from edgewise.plan import TuneSpec
    from edgewise.trainer import tune

    data = movie_reviews(split=SPLIT, rows={"train": 2000, "val": VAL, "confirm": CONFIRM})
    splits = load_splits(data, "text-classification", Path)
    spec = TuneSpec(epochs=2, batch_size=16, max_length=LENGTH)
    tuned = tune(asset_path("all-minilm-l6-v2"), splits.train, splits.labels, spec, out=work / "tuned").path
    tokenizer = AutoTokenizer.from_pretrained(tuned)
    if not (work / "fp32" / "model.onnx").exists():
        model = AutoModelForSequenceClassification.from_pretrained(tuned).eval()
        export_graphs(model, "text-classification", work / "fp32", None)
        tokenizer.save_pretrained(work / "fp32")
    parts = {"calibration": splits.train[:CALIBRATION], "val": splits.val, "confirm": splits.confirm}
    read = {"truncation": True, "max_length": LENGTH}
    rows = {
        name: [{"feeds": dict(tokenizer(r.text, **read)), "label": splits.labels.index(r.label)} for r in chosen]
        for name, chosen in parts.items()
    }
    (work / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    return splits, tokenizer


def read_rows(work: Path, name: str) -> list[Example]:
    rows = json.loads((work / "rows.json").read_text(encoding="utf-8"))[name]
    return [({k: np.array([v], dtype=np.int64) for k, v in r["feeds"].items()}, r["label"]) for r in rows]


def right(graph: str | bytes, rows: Iterable[Example]) -> list[float]:
    """1 or 0 a row, one row at a time."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return [float(session.run(None, feeds)[0].argmax() == label) for feeds, label in rows]


def run_ours(work: Path, scale: str, splits: Any, tokenizer: Any) -> dict[str, Any]:
    from edgewise.exporter import sensitivity
    from edgewise.exporter.guard import guard
    from edgewise.exporter.quantize import quantize_graph, resolve_recipe
    from edgewise.types import Recipe

    recipe = Recipe(precision="int8-static", per_channel=SCALES[scale], calibration_rows=CALIBRATION)
    recipe = resolve_recipe(recipe)
    val, made, simulated = read_rows(work, "val"), 0, 0

    def quantize(keep: tuple[str, ...]) -> Path:
        nonlocal made
        made += 1
        out = work / "ours" / f"{scale}-{made}"
        out.mkdir(parents=True, exist_ok=True)
        rows = splits.train[:CALIBRATION]
        return quantize_graph(work / "fp32", out / "q", replace(recipe, keep=keep), rows, tokenizer, LENGTH)

    def counted(self: Any, int8: Any) -> list[np.ndarray]:
        nonlocal simulated
        simulated += len(self.feeds)
        return answers(self, int8)

    answers = sensitivity.Simulation.answers
    sensitivity.Simulation.answers = counted  # type: ignore[method-assign]  # to count, and nothing else
    feeds = [f for f, _ in read_rows(work, "calibration")[:SAMPLES]]
    start = time.perf_counter()
    fp32 = work / "fp32" / "model.onnx"
    found = guard(fp32, recipe, quantize, lambda graph: right(str(graph), val), feeds,
                  max_drop=MAX_DROP, max_evaluations=MAX_EVALUATIONS)  # fmt: skip
    seconds = time.perf_counter() - start
    sensitivity.Simulation.answers = answers  # type: ignore[method-assign]
    return {
        "tool": "edgewise",
        "options": recipe.name,
        "graph": str(found.graph),
        "evaluations": found.evaluations,
        "ranking_rows": 0,
        "simulated_rows": simulated,
        "seconds": seconds,
        "val_drops": [round(t.drop, 6) for t in found.tried],
        "val_drop": found.drop,
        "met": found.met,
        "kept": list(found.keep),
        "words": found.words,
    }


def run_nncf(work: Path, scale: str) -> dict[str, Any]:
    """In the environment that has NNCF; nothing of edgewise is imported."""
    import nncf
    import onnx
    from nncf.quantization import advanced_parameters as advanced

    val, scored, ranked = read_rows(work, "val"), [], 0

    def validate(model: Any, rows: Iterable[Example]) -> tuple[float, list[float]]:
        # Right or wrong by row: NNCF 3.4 ranks ONNX models by the metric alone ('Could not create backend-specific
        # implementation' where rows give logits).
        nonlocal ranked
        found = right(model.SerializeToString(), rows)
        if len(found) == len(val):
            scored.append(float(np.mean(found)))
        else:
            ranked += len(found)
        return float(np.mean(found)), found

    weights = advanced.QuantizationParameters(per_channel=SCALES[scale])
    start = time.perf_counter()
    model = nncf.quantize_with_accuracy_control(
        onnx.load(work / "fp32" / "model.onnx"),
        nncf.Dataset(read_rows(work, "calibration"), lambda row: row[0]),
        nncf.Dataset(val, lambda row: row[0]),
        validate,
        max_drop=MAX_DROP,
        subset_size=CALIBRATION,
        model_type=nncf.ModelType.TRANSFORMER,
        advanced_quantization_parameters=advanced.AdvancedQuantizationParameters(weights_quantization_params=weights),
        advanced_accuracy_restorer_parameters=advanced.AdvancedAccuracyRestorerParameters(
            max_num_iterations=MAX_EVALUATIONS - 2,
            num_ranking_workers=1,  # ours takes one core too
        ),
    )
    seconds = time.perf_counter() - start
    graph = work / f"nncf-{scale}.onnx"
    onnx.save(model, graph)
    drops = [scored[0] - one for one in scored[1:]]
    return {
        "tool": f"NNCF {NNCF}",
        "options": f"model_type=TRANSFORMER, per_channel={SCALES[scale]}",
        "graph": str(graph),
        "evaluations": len(scored),
        "ranking_rows": ranked,
        "simulated_rows": 0,
        "seconds": seconds,
        "val_drops": [round(drop, 6) for drop in drops],
        "val_drop": drops[-1],
        "met": drops[-1] <= MAX_DROP + 1e-12,
    }


def start_nncf(work: Path, scale: str) -> dict[str, Any]:
    """NNCF in its own environment and process."""
    home = work.parent / "venv-nncf"
    python = home / "bin" / "python"
    there = python.exists() and subprocess.run([python, "-c", "import nncf"], capture_output=True, check=False)
    if not there or there.returncode:
        from importlib.metadata import version

        venv.create(home, with_pip=True, clear=True)
        same = [f"{name}=={version(name)}" for name in ("onnx", "onnxruntime")]
        subprocess.run([python, "-m", "pip", "install", "-q", f"nncf=={NNCF}", *same], check=True)
    # NNCF_CI: no usage statistics are sent.
    command = [str(python), __file__, "--work", str(work), "--nncf", scale]
    log = work / f"nncf-{scale}.log"
    with log.open("w", encoding="utf-8") as errors:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, check=False, env={**os.environ, "NNCF_CI": "1"}
        )
    if done.returncode:
        raise SystemExit(f"NNCF failed, see {log}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
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


def judged(found: dict[str, Any], work: Path, rows: list[Example], fp32: list[float]) -> tuple[dict[str, Any], Any]:
    """(what was found with its graph judged on confirm rows, 1 or 0 for each of them)."""
    from edgewise.exporter.guard import confirm

    scores = right(found["graph"], rows)
    graph = Path(found["graph"])
    told = {
        **{k: v for k, v in found.items() if k != "graph"},
        "val_rows_run": found["evaluations"] * VAL + found["ranking_rows"],
        "int8_share": int8_share(graph, work / "fp32" / "model.onnx"),
        "file_bytes": graph.stat().st_size,
        "confirm_accuracy": float(np.mean(scores)),
        "confirm_words": confirm(fp32, scores, MAX_DROP),
    }
    return told, np.array(scores)


def compared(ours: np.ndarray, theirs: np.ndarray) -> dict[str, Any]:
    """What ours loses against NNCF's graph on the same confirm rows, in points, with one-sided 95% bounds."""
    from edgewise.paired import paired_drop

    drop = paired_drop(int((ours < theirs).sum()), int((ours > theirs).sum()), len(ours), 0.95)
    return {"points": drop.points.value, "low": drop.points.low, "high": drop.points.high, "rows": drop.n}


def table(result: dict[str, Any]) -> str:
    """The committed table, as Markdown."""
    lines = [
        f"fp32: {result['fp32_val']:.2%} on val, {result['fp32_confirm']:.2%} on confirm; allowed on val: "
        f"{100 * MAX_DROP:g} points.",
        "",
        "| scale a | tool | drop of all int8 | drop found | weights in int8 | confirm accuracy | evaluations | "
        "val rows run, ranking included | simulated rows | seconds |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for scale, case in result["cases"].items():
        for one in case["tools"]:
            lines.append(
                f"| {scale} | {one['tool']} | {100 * one['val_drops'][0]:.1f} | {100 * one['val_drop']:.1f}"
                f"{'' if one['met'] else ' (not met)'} | {one['int8_share']:.1%} | {one['confirm_accuracy']:.2%} | "
                f"{one['evaluations']} | {one['val_rows_run']:,} | {one['simulated_rows']:,} | {one['seconds']:.0f} |"
            )
    for scale, case in result["cases"].items():
        loss = case["ours_loses_to_nncf"]
        lines += ["", f"Scale a {scale}: against NNCF's graph ours loses {loss['points']:.2f} points on "
                  f"{loss['rows']:,} confirm rows, {loss['low']:.2f} to {loss['high']:.2f} at 90%."]  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/guard"))
    parser.add_argument("--scale", choices=list(SCALES), action="append", help="these alone; the others stay")
    parser.add_argument("--nncf", choices=list(SCALES), help=argparse.SUPPRESS)
    args = parser.parse_args()
    work = args.work.resolve()
    if args.nncf:
        print(json.dumps(run_nncf(work, args.nncf)))
        return
    from conditions import RESULTS, here, save

    work.mkdir(parents=True, exist_ok=True)
    splits, tokenizer = prepare(work)
    fp32, confirm_rows = str(work / "fp32" / "model.onnx"), read_rows(work, "confirm")
    known = right(fp32, confirm_rows)
    path = RESULTS / "guard_vs_nncf.json"
    kept = json.loads(path.read_text(encoding="utf-8"))["cases"] if args.scale and path.is_file() else {}
    result: dict[str, Any] = {
        "what": __doc__,
        "conditions": {**here(), "nncf": NNCF},
        "rows": {"calibration": CALIBRATION, "samples": SAMPLES, "val": len(splits.val), "confirm": len(confirm_rows)},
        "max_drop": MAX_DROP,
        "fp32_val": float(np.mean(right(fp32, read_rows(work, "val")))),
        "fp32_confirm": float(np.mean(known)),
        "cases": kept,
    }
    for scale in args.scale or SCALES:
        ours, our_scores = judged(run_ours(work, scale, splits, tokenizer), work, confirm_rows, known)
        print(scale, ours, file=sys.stderr, flush=True)
        theirs, their_scores = judged(start_nncf(work, scale), work, confirm_rows, known)
        print(scale, theirs, file=sys.stderr, flush=True)
        loss = compared(our_scores, their_scores)
        result["cases"][scale] = {"tools": [ours, theirs], "ours_loses_to_nncf": loss}
        save("guard_vs_nncf", result)
    print(table(result))


if __name__ == "__main__":
    main()
