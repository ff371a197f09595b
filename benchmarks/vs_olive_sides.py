"""What vs_olive.py gives to either tool: rows, the configuration that its documentation asks for, its environment."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
OLIVE, PYDANTIC = "0.13.0", "2.13.*"
"""With pydantic 2.14, which pip takes, Olive 0.13.0 stops at its start: 'None is not a valid ResourceType'."""
MAX_LENGTH, CALIBRATION = 64, 200
POINTS = 0.5
RECIPES = ("fp32", "int8-dynamic", "int8-static")


@dataclass(frozen=True)
class Setting:
    """What both are given. p95: milliseconds. runs: how often Olive times its input (its default is 20)."""

    checkpoint: Path
    rows: Path
    p95: float
    runs: int


def write_rows(folder: Path, quick: bool) -> dict[str, int]:
    """The reviews that the checkpoint was not tuned on, as JSON Lines that both read; the number of each part.

    Olive has one set to choose by: olive.jsonl holds validation and test (which confirms edgewise's winner). No tool
    sees held-out.jsonl. slow.jsonl is one row of validation: 95% of them are no longer, in tokens.
    """
    from minilm import checkpoint
    from reviews import movie_reviews
    from strategies import splits

    from edgewise.data import load_splits

    tuned = splits("BERT")
    shares: dict[str, float | str] = {"train": 0.7, "val": 0.2, "confirm": 0.1}
    every = load_splits(movie_reviews(split=shares), "text-classification", Path)
    seen = {r.text for r in tuned.train}
    rest = [r for part in (every.train, every.val, every.confirm) for r in part if r.text not in seen]
    rest.sort(key=lambda r: hashlib.sha256(r.text.encode()).hexdigest())
    val, confirm, held = (200, 100, 200) if quick else (3000, 1500, len(rest))
    parts = {
        "train": tuned.train,
        "validation": rest[:val],
        "test": rest[val : val + confirm],
        "olive": rest[: val + confirm],
        "held-out": rest[val + confirm : val + confirm + held],
    }
    lengths = tokens(checkpoint(), [r.text for r in parts["validation"]])
    parts["slow"] = [parts["validation"][sorted(range(val), key=lengths.__getitem__)[round(0.95 * val)]]]
    for name, rows in parts.items():
        place = folder / ("plan" if name in ("train", "validation", "test") else "") / f"{name}.jsonl"
        place.parent.mkdir(parents=True, exist_ok=True)
        wanted = [{"text": r.text, "label": r.label, "class": tuned.labels.index(str(r.label))} for r in rows]
        place.write_text("".join(json.dumps(row) + "\n" for row in wanted), encoding="utf-8")
    return {name: len(rows) for name, rows in parts.items()}


def tokens(checkpoint: Path, texts: Sequence[str]) -> list[int]:
    """How many tokens each text has, cut to MAX_LENGTH."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_LENGTH)
    return [len(e.ids) for e in tokenizer.encode_batch(list(texts))]


def plan(given: Setting) -> dict[str, Any]:
    """Edgewise's plan."""
    return {
        "version": 1,
        "task": "text-classification",
        "data": {
            "dataset": str(given.rows / "plan"),
            "split": {"train": "train", "val": "validation", "confirm": "test"},
        },
        "candidates": [{"name": "l6", "from": str(given.checkpoint), "tune": "none"}],
        "recipes": list(RECIPES),
        "devices": [{"name": "here", "run": {"threads": [1], "max_length": [MAX_LENGTH]}}],
        "budgets": {"p95": f"<= {given.p95:g} ms", "accuracy_drop": f"<= {POINTS:g} points of fp32"},
        "objective": ["size"],
    }


def olive_data(given: Setting, name: str, file: str, **options: Any) -> dict[str, Any]:
    """A data_config of Olive. Unpadded, since by default it pads 1,000 rows at a time to the longest of them."""
    return {
        "name": name,
        "type": "HuggingfaceContainer",
        "load_dataset_config": {"data_name": "json", "data_files": str(given.rows / file), "split": "train"},
        "pre_process_data_config": {
            "model_name": str(given.checkpoint), "input_cols": ["text"], "label_col": "class",
            "max_length": MAX_LENGTH, "padding": False, **options,
        },
        "post_process_data_config": {"type": "text_classification_post_process"},
        "dataloader_config": {"batch_size": 1},
    }  # fmt: skip


def olive_metrics(given: Setting) -> list[dict[str, Any]]:
    """The goals, the most important first: Olive filters by goals, and then sorts by priority."""
    one_thread = {"inference_settings": {"onnx": {"session_options": {"intra_op_num_threads": 1}}}}
    return [
        {"name": "size", "type": "size_on_disk", "sub_types": [{"name": "bytes", "priority": 1}]},
        {
            "name": "latency", "type": "latency", "data_config": "slow", "user_config": one_thread,
            "sub_types": [{
                "name": "p95", "priority": 2, "goal": {"type": "threshold", "value": given.p95},
                "metric_config": {"warmup_num": 20, "repeat_test_num": given.runs},
            }],
        },
        {
            "name": "accuracy", "type": "accuracy", "data_config": "reviews", "user_config": one_thread,
            "sub_types": [{
                "name": "accuracy_score", "priority": 3, "goal": {"type": "max-degradation", "value": POINTS / 100},
                "metric_config": {"task": "multiclass", "num_classes": 2},
            }],
        },
    ]  # fmt: skip


def olive_config(given: Setting, work: Path) -> dict[str, Any]:
    """Olive's workflow: convert (which is the fp32 candidate), then either way to quantize.

    pass-by-pass, since `joint` fails in 0.13.0 as soon as two points share a pass. uint8 activations and three
    operators, since by Olive's defaults int8-static is no faster than fp32 here, and loses more.
    """
    int8 = {"precision": "int8", "per_channel": True, "reduce_range": False, "quant_preprocess": True}
    static = {
        "type": "OnnxStaticQuantization", "data_config": "calibration", "activation_type": "uint8",
        "calibrate_method": "MinMax", "quant_format": "QDQ", "op_types_to_quantize": ["MatMul", "Gemm", "Gather"],
    }  # fmt: skip
    cpu = {"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}
    return {
        "input_model": {"type": "HfModel", "model_path": str(given.checkpoint), "task": "text-classification"},
        "systems": {"here": {"type": "LocalSystem", "accelerators": [cpu]}},
        "data_configs": [
            olive_data(given, "reviews", "olive.jsonl"),
            olive_data(given, "slow", "slow.jsonl"),
            olive_data(given, "calibration", "plan/train.jsonl", max_samples=CALIBRATION),
        ],
        "evaluators": {"goals": {"metrics": olive_metrics(given)}},
        "passes": {
            "convert": {"type": "OnnxConversion"},
            "quantize": [{"type": "OnnxDynamicQuantization", **int8}, {**static, **int8}],
        },
        "search_strategy": {"execution_order": "pass-by-pass", "sampler": "sequential"},
        "evaluator": "goals",
        "host": "here",
        "target": "here",
        "cache_dir": str(work / "cache"),
        "output_dir": str(work / "out"),
    }


def write_yaml(config: dict[str, Any], path: Path) -> dict[str, int]:
    """Write either tool's configuration with one and the same writer; its lines and its values."""
    import yaml

    text = yaml.safe_dump(config, sort_keys=False, default_flow_style=None, width=110)
    path.write_text(text, encoding="utf-8")
    return {"lines": len(text.splitlines()), "values": leaves(config)}


def leaves(value: Any) -> int:
    """How many values a user has to write, whatever the layout."""
    if isinstance(value, dict):
        return sum(map(leaves, value.values()))
    return sum(map(leaves, value)) if isinstance(value, list) else 1


def python_with_olive(home: Path) -> Path:
    """An environment with Olive, as its documentation installs it, and the onnxruntime and torch that edgewise has."""
    python = home / "bin" / "python"
    there = python.exists() and subprocess.run([python, "-c", "import olive, datasets, onnxruntime"], check=False)
    if not there or there.returncode:
        venv.create(home, with_pip=True, clear=True)
        same = [f"{name}=={version(name).partition('+')[0]}" for name in ("torch", "onnx", "onnxruntime", "datasets")]
        packages = [f"olive-ai=={OLIVE}", f"pydantic=={PYDANTIC}", "tabulate", *same]
        subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=True)
    return python


def versions_of(python: Path) -> dict[str, str]:
    names = ["olive-ai", "onnxruntime", "onnx", "torch", "transformers", "datasets", "pydantic", "tokenizers", "numpy"]
    code = f"import json; from importlib.metadata import version; print(json.dumps({{n: version(n) for n in {names}}}))"
    done = subprocess.run([python, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


def environment(work: Path) -> dict[str, str]:
    """Of either tool: one thread, no network, caches of its own and empty; Olive reports nothing home (CI)."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "HF_"))}
    more = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "CI": "1"}
    return {**kept, **more, "HF_HOME": str(work / "hf"), "OLIVE_DISABLE_TELEMETRY": "1"}


def olive_command(home: Path, config: Path) -> list[str]:
    return [str(home / "bin" / "olive"), "run", "--config", str(config)]


def edgewise_command(config: Path, out: Path) -> list[str]:
    return [str(Path(sys.executable).with_name("edgewise")), "fit", str(config), "--out", str(out)]
