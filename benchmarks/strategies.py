"""What each tuning strategy costs and gives, in each of the four families: one fresh process a cell.

The same rows and epochs for the four; the metric is that of val rows. Each family starts from a pretrained model: BERT
from MiniLM; GPT from `edgewise pretrain clm` on the King James Bible, tuned on the Brown corpus; T5 from one that has
read one epoch of other words, tuned to spell out sounds; ViT from `edgewise pretrain mim` on clothes, tuned to
name them. BERT and GPT take the strategies' own learning rates, the small T5 and ViT higher ones (`RATES`). Time is
that of the processor, measuring on val included.

    python benchmarks/strategies.py             (pretrains first; about 30 minutes on 2 cores)
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from time import process_time
from typing import Any

from conditions import RESULTS, here, save
from reviews import movie_reviews

from edgewise.data import Splits, load_splits
from edgewise.data_spec import DataSpec
from edgewise.plan import TuneSpec
from edgewise.types import Task

ROOT = Path(__file__).parents[1]
MODELS = ROOT / "examples" / "models"
STRATEGIES = ("full", "ffn", "prompt", "lora")


@dataclass(frozen=True)
class Family:
    task: Task
    about: str
    metric: str
    spec: dict[str, Any]
    rates: dict[str, float] = field(default_factory=dict)


RATES = {"full": 1e-3, "ffn": 1e-3, "prompt": 3e-2, "lora": 5e-3}
FAMILIES = {
    "BERT": Family("text-classification", "MiniLM on 1,500 movie reviews", "accuracy",
                   {"epochs": 2, "batch_size": 16, "max_length": 48}),
    "GPT": Family("text-generation", "a small GPT-2 on 6,000 sentences of Brown", "perplexity",
                  {"epochs": 1, "batch_size": 16, "max_length": 64}),
    "T5": Family("text2text-generation", "a small T5, letters to sounds, 8,000 words", "char_error",
                 {"epochs": 2, "batch_size": 64, "max_length": 32}, RATES),
    "ViT": Family("image-classification", "a small ViT on 4,000 images of clothes", "accuracy",
                  {"epochs": 4, "batch_size": 64}, RATES),
}  # fmt: skip


def splits(family: str) -> Splits:
    share: dict[str, float | str] = {"train": 0.7, "val": 0.2, "confirm": 0.1}
    if family == "BERT":
        spec = movie_reviews(split=share, rows={"train": 1500, "val": 1000, "confirm": 10})
    elif family == "GPT":
        spec = DataSpec(path="asset:brown", split=share, rows={"train": 6000, "val": 1000, "confirm": 10})
    elif family == "T5":
        spec = DataSpec(path="asset:phonemes", text="word", target="phonemes", split=share,
                        rows={"train": 20000, "val": 500, "confirm": 10})  # fmt: skip
    else:
        spec = DataSpec(path="asset:fashion-mnist", split=share, rows={"train": 4000, "val": 1000, "confirm": 10})
    return load_splits(spec, FAMILIES[family].task, Path)


def start_from(family: str, work: Path) -> Path:
    """The pretrained folder of a family; made once."""
    from edgewise.assets import asset_path
    from edgewise.trainer import tune

    out = work / f"base-{family}"
    if family == "BERT":
        return asset_path("all-minilm-l6-v2")
    if family == "T5":
        words = splits("T5").train[8000:]
        spec = TuneSpec(epochs=1, batch_size=64, learning_rate=1e-3, max_length=32)
        return tune(MODELS / "phoneme-t5", words, (), spec, out=out, task="text2text-generation").path
    model = MODELS / ("bible-gpt" if family == "GPT" else "fashion-vit")
    data = "kjv" if family == "GPT" else "fashion-mnist"
    more = ["--steps", "200"]
    if family == "GPT":
        more = ["--tokenizer", str(model), "--block-length", "64", "--learning-rate", "1e-3", "--steps", "400"]
    subprocess.run(
        [sys.executable, "-m", "edgewise", "pretrain", "clm" if family == "GPT" else "mim", "--data", f"asset:{data}",
         "--config", str(model / "config.json"), *more, "--out", str(out)],
        check=True,
    )  # fmt: skip
    return out


def cell(family: str, strategy: str, source: Path, work: Path) -> dict[str, Any]:
    """Train one cell in this process."""
    from edgewise.trainer import tune

    data = splits(family)
    shutil.rmtree(work / f"{family}-{strategy}", ignore_errors=True)  # a finished one would take no time
    rate = FAMILIES[family].rates.get(strategy)
    spec = TuneSpec(strategy=strategy, learning_rate=rate, **FAMILIES[family].spec)  # type: ignore[arg-type]
    start = process_time()
    done = tune(
        source, data.train[:8000], data.labels, spec, out=work / f"{family}-{strategy}",
        task=FAMILIES[family].task, val=data.val,
    )  # fmt: skip
    return {
        "trained": done.trainable_parameters,
        "parameters": done.parameters,
        "peak_memory": done.peak_memory,
        "seconds": done.seconds,
        "cpu_seconds": process_time() - start,
        "steps": done.steps,
        "metrics": dict(done.metrics),
    }


def before(family: str, source: Path) -> float | None:
    """The metric without any tuning; None where there is no head yet."""
    from edgewise.trainer import evaluate_checkpoint

    if family not in ("GPT", "T5"):
        return None
    found = evaluate_checkpoint(
        source, splits(family).val, task=FAMILIES[family].task,
        max_length=FAMILIES[family].spec["max_length"],
    )  # fmt: skip
    return found[FAMILIES[family].metric].value


def table(result: dict[str, Any]) -> str:
    """The committed table, as Markdown."""
    columns = ("family", "strategy", "trained", "share", "peak memory", "CPU time", "metric")
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for family, found in result["families"].items():
        metric = FAMILIES[family].metric
        if found["before"] is not None:
            lines.append(f"| {family} | none | 0 | 0% | - | - | {metric} {_show(metric, found['before'])} |")
        for strategy, one in found["cells"].items():
            lines.append(
                f"| {family} | {strategy} | {one['trained']:,} | {one['trained'] / one['parameters']:.1%} | "
                f"{one['peak_memory'] / 1e6:.0f} MB | {one['cpu_seconds']:.0f} s | "
                f"{metric} {_show(metric, one['metrics'][metric])} |"
            )
    return "\n".join(lines)


def _show(metric: str, value: float) -> str:
    return {"perplexity": f"{value:.1f}", "char_error": f"{value:.3f}"}.get(metric, f"{value:.1%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/strategies"))
    parser.add_argument("--family", choices=list(FAMILIES), action="append", help="these alone; the others stay")
    parser.add_argument("--cell", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    if args.cell:
        print(json.dumps(cell(args.cell[0], args.cell[1], Path(args.cell[2]), args.work)))
        return
    path = RESULTS / "strategies.json"
    kept = json.loads(path.read_text(encoding="utf-8"))["families"] if path.is_file() else {}
    result: dict[str, Any] = {"what": __doc__, "families": kept}
    for family in args.family or FAMILIES:
        source = start_from(family, args.work)
        cells = {}
        for strategy in STRATEGIES:
            command = [sys.executable, __file__, "--work", str(args.work), "--cell", family, strategy, str(source)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            cells[strategy] = json.loads(done.stdout.strip().splitlines()[-1])
            print(family, strategy, cells[strategy], file=sys.stderr, flush=True)
        one = FAMILIES[family]
        about = {"about": one.about, "spec": one.spec, "learning_rates": one.rates}
        result["families"][family] = {**about, "conditions": here(), "before": before(family, source), "cells": cells}
        save("strategies", result)
    print(table(result))


if __name__ == "__main__":
    main()
