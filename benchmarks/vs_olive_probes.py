"""What Olive makes of goals: small workflows, each with the question that it answers. See vs_olive.py.

Few rows, so that a workflow takes seconds. Nothing here is a measurement of speed but `first row`, which times one
graph in two workflows that differ in nothing but the order of the rows.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from copy import deepcopy
from pathlib import Path
from typing import Any

from vs_olive_sides import POINTS, Setting, environment, olive_command, olive_config, tokens

NEVER = 0.001
"""Milliseconds that no graph here can keep."""
LONGEST_S = 300
TELLING = ("expected candidates", "No output model", "no field", "FAILED", "Error during metric sorting")


def probe(given: Setting, work: Path, home: Path) -> dict[str, Any]:
    """Question -> what Olive did. given.rows must have what vs_olive_sides.write_rows writes."""
    small = _few_rows(given, work)
    found = {}
    for name, (question, config) in _configs(small, work).items():
        found[name] = {"question": question, **_one(config, work / name, home)}
    lengths = {name: found[name].pop("metrics") for name in ("shortest first", "longest first")}
    found["first row"] = {
        "question": "does latency depend on which row of the data comes first?",
        "tokens_of_first_row": small_lengths(small),
        "metrics": lengths,
        "runs": 20,
    }
    for name in lengths:
        del found[name]
    return found


def small_lengths(small: Setting) -> dict[str, int]:
    """Tokens of the first row of either file."""
    first = {}
    for name in ("shortest", "longest"):
        line = (small.rows / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()[0]
        first[f"{name} first"] = tokens(small.checkpoint, [json.loads(line)["text"]])[0]
    return first


def _few_rows(given: Setting, work: Path) -> Setting:
    """64 rows in the order of Olive's file, and the same with the shortest or the longest first."""
    rows = work / "rows"
    (rows / "plan").mkdir(parents=True, exist_ok=True)
    for name in ("slow.jsonl", "plan/train.jsonl"):
        (rows / name).write_bytes((given.rows / name).read_bytes())
    lines = (given.rows / "olive.jsonl").read_text(encoding="utf-8").splitlines()[:64]
    (rows / "olive.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    lengths = tokens(given.checkpoint, [json.loads(line)["text"] for line in lines])
    by_length = [line for _, line in sorted(zip(lengths, lines, strict=True))]
    (rows / "shortest.jsonl").write_text("\n".join(by_length) + "\n", encoding="utf-8")
    (rows / "longest.jsonl").write_text("\n".join(reversed(by_length)) + "\n", encoding="utf-8")
    return Setting(given.checkpoint, rows, given.p95, 20)


def _configs(small: Setting, work: Path) -> dict[str, tuple[str, dict[str, Any]]]:
    """Probe -> (question, workflow)."""
    plain = olive_config(small, work)
    dynamic = plain["passes"]["quantize"][0]
    quick = {**plain, "passes": {"convert": plain["passes"]["convert"], "quantize": [dynamic]}}
    never = _with_goals(quick, latency={"type": "threshold", "value": NEVER}, accuracy=None)
    both = _with_goals(
        quick,
        latency={"type": "threshold", "value": NEVER},
        accuracy={"type": "max-degradation", "value": POINTS / 100},
    )
    unseen = _with_goals(quick, latency=None, accuracy={"type": "min-improvement", "value": 0.5})
    size_only = {"name": "size_only", "metrics": deepcopy(plain["evaluators"]["goals"]["metrics"][:1])}
    unseen["passes"]["quantize"] = [{**dynamic, "evaluator": size_only}]
    defaults = _with_goals(plain, latency=None, accuracy=None)
    static = {
        "type": "OnnxStaticQuantization", "data_config": "calibration", "precision": "int8", "activation_type": "int8",
        "per_channel": False, "reduce_range": False, "quant_preprocess": True, "calibrate_method": "MinMax",
        "quant_format": "QDQ",  # the defaults, named since a search tries the others, and disable_search is ignored
    }  # fmt: skip
    defaults["passes"] = {**plain["passes"], "quantize": [static]}
    (p95,) = defaults["evaluators"]["goals"]["metrics"][1]["sub_types"]
    p95["metric_config"]["repeat_test_num"] = 200
    defaults["evaluators"]["goals"]["metrics"][1]["sub_types"] = [p95, {"name": "p50"}]
    joint = {**plain, "search_strategy": {"execution_order": "joint", "sampler": "sequential"}}
    timed = {}
    for name in ("shortest", "longest"):
        one = _with_goals(plain, latency=None, accuracy=None)
        one["data_configs"][0]["load_dataset_config"]["data_files"] = str(small.rows / f"{name}.jsonl")
        latency = one["evaluators"]["goals"]["metrics"][1]
        latency["data_config"], latency["sub_types"][0]["priority"] = "reviews", 1
        del latency["sub_types"][0]["metric_config"]  # the defaults: 10 calls to warm up, 20 that count
        latency["sub_types"].append({"name": "p50"})
        one["evaluators"]["goals"]["metrics"] = [latency]
        one["passes"] = {"convert": one["passes"]["convert"]}
        one["search_strategy"], one["evaluate_input_model"] = False, False
        timed[f"{name} first"] = ("", one)
    return {
        "a threshold alone": (f"is p95 <= {NEVER} ms kept, where it is the only goal?", never),
        "nothing meets the goals": (f"p95 <= {NEVER} ms and a drop of accuracy: what is the exit code?", both),
        "a metric that is missing": (
            "is int8 chosen for accuracy 50 points above fp32's, where its evaluator measures its size alone?", unseen,
        ),
        "joint search": ("do search points that share a pass work in the order of Olive's own examples?", joint),
        "static defaults": ("how fast is int8-static by Olive's defaults, beside fp32?", defaults),
        **timed,
    }  # fmt: skip


def _with_goals(config: dict[str, Any], **goals: dict[str, Any] | None) -> dict[str, Any]:
    """A copy with these goals in place of its own."""
    changed = deepcopy(config)
    for metric in changed["evaluators"]["goals"]["metrics"]:
        if metric["name"] in goals:
            (sub,) = metric["sub_types"]
            sub.pop("goal", None)
            if goals[metric["name"]]:
                sub["goal"] = goals[metric["name"]]
    return changed


def _one(config: dict[str, Any], work: Path, home: Path) -> dict[str, Any]:
    """Run a workflow: its exit code, whether it made a model, what it measured, and the lines that tell why."""
    work.mkdir(parents=True, exist_ok=True)
    path = work / "workflow.json"
    out = work / "out"
    path.write_text(json.dumps({**config, "cache_dir": str(work / "cache"), "output_dir": str(out)}), encoding="utf-8")
    with (work / "log").open("w", encoding="utf-8") as log:
        done = subprocess.run(
            olive_command(home, path),
            stdout=log,
            stderr=subprocess.STDOUT,
            check=False,
            env=environment(work),
            cwd=work,
        )
    text, made = (work / "log").read_text(encoding="utf-8"), (out / "model.onnx").is_file()
    shutil.rmtree(work / "cache", ignore_errors=True)  # 200 MB each
    return {
        "exit_code": done.returncode,
        "made_a_model": made,
        "search_points_that_failed": text.count("... FAILED."),
        "metrics": measured(out),
        "log": [line.strip()[:200] for line in text.splitlines() if any(t in line for t in TELLING)][:6],
    }


def measured(out: Path) -> dict[str, dict[str, float]]:
    """Pass -> metric -> value, from Olive's footprint; what was not evaluated is not there."""
    path = out / "footprint.json"
    nodes = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return {
        node["from_pass"] or "input": {k: v["value"] for k, v in node["metrics"]["value"].items()}
        for node in nodes.values()
        if node.get("metrics") and node["metrics"].get("value")
    }
