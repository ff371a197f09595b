"""`edgewise tune`: one model on rows, several strategies side by side, or the candidates of a plan."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from edgewise.errors import DataError, PlanError
from edgewise.options import checked, layers, need_build
from edgewise.progress import Reporter
from edgewise.types import TRAINED_TASKS, ProblemType

if TYPE_CHECKING:
    from edgewise.data import Row
    from edgewise.metrics import Score
    from edgewise.plan import TuneSpec
    from edgewise.trainer import TuneResult
    from edgewise.training import TrainedCandidate
    from edgewise.types import Task

STRATEGIES = ("full", "ffn", "prompt", "lora")


def add_tune(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "examples:\n"
        "  edgewise tune asset:all-minilm-l6-v2 --out tuned --data reviews.csv --text text --label label --epochs 2\n"
        "  edgewise tune bert --out t --data tags.jsonl --task token-classification --val-share 0.1\n"
        "  edgewise tune bert --out t --data reviews.csv --strategy full,ffn,prompt,lora    one table of the four\n"
        "  edgewise tune examples/addresses.yaml       every candidate of a plan, measured on val and confirm rows"
    )
    parser.add_argument("source", help="a folder, a hub id, asset:NAME, or a plan (.yaml)")
    parser.add_argument("--out", help="folder for the fine-tuned model (of a plan: runs/ and the plan's name)")
    parser.add_argument("--task", choices=TRAINED_TASKS, default="text-classification")
    _add_rows(parser)
    _add_options(parser)
    parser.add_argument("--json", action="store_true", help="the result as JSON on standard output")


def _add_rows(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("rows")
    group.add_argument("--data", help="a CSV, TSV, JSON Lines, Parquet or text file, a folder of images, asset:NAME")
    group.add_argument("--text", default="text", help="column with the text (default: text)")
    group.add_argument("--text-pair", help="column with the second text of a pair")
    group.add_argument("--label", default="label", help="column with the label (default: label)")
    group.add_argument("--problem-type", choices=get_args(ProblemType), default="single_label_classification")
    group.add_argument("--tokens", default="tokens", help="column with the words (token classification)")
    group.add_argument("--tags", default="tags", help="column with one tag a word (token classification)")
    group.add_argument("--target", default="target", help="column with the text to write (text to text)")
    group.add_argument("--image", default="image", help="column with the image (image classification)")
    group.add_argument("--val", metavar="FILE", help="rows to measure on; same columns")
    group.add_argument("--val-share", type=float, metavar="X", help="or this share of the rows, by a hash of the row")
    group.add_argument(
        "--unseen",
        choices=["error", "leave_out"],
        default="error",
        help="val rows with a label that training never shows: refused, or left out and counted",
    )


def _add_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("training")
    group.add_argument("--strategy", default="full", metavar="S[,S...]", help=f"of {', '.join(STRATEGIES)}")
    group.add_argument("--epochs", type=float, default=2)
    group.add_argument("--learning-rate", type=float)
    group.add_argument("--batch-size", type=int, default=32)
    group.add_argument("--max-length", type=int, default=64, help="tokens (default: 64)")
    group.add_argument("--keep-layers", metavar="I,J,...", help="depth cut: the layers that stay")
    group.add_argument("--lora-rank", type=int, default=8)
    group.add_argument("--prompt-tokens", type=int, default=16, help="virtual tokens of prompt tuning")
    group.add_argument("--teacher", metavar="FOLDER", help="a larger tuned model whose answers are learned too")
    group.add_argument("--class-weights", choices=["balanced"], help="weigh rare classes up in the loss")
    group.add_argument(
        "--early-stopping", type=int, metavar="N", help="stop after N epochs without a better val metric"
    )
    group.add_argument("--metric", help="the val metric: a name, hub:NAME or file.py:function")
    group.add_argument("--seed", type=int, default=0)


def run_tune(args: argparse.Namespace) -> int:
    if args.source.endswith((".yaml", ".yml")):
        return _plan(args)
    if not args.out or not args.data:
        raise PlanError("tune: --out and --data are needed, unless SOURCE is a plan (.yaml)")
    strategies = args.strategy.split(",")
    unknown = [s for s in strategies if s not in STRATEGIES]
    if unknown or len(set(strategies)) < len(strategies):
        raise PlanError(f"--strategy {args.strategy!r}: expected different ones of {', '.join(STRATEGIES)}")
    return _one(args) if len(strategies) == 1 else _several(args, strategies)


def _spec(args: argparse.Namespace) -> TuneSpec:
    need_build()
    from edgewise.plan import TuneSpec

    names = (
        "strategy", "epochs", "learning_rate", "batch_size", "max_length", "lora_rank", "prompt_tokens",
        "class_weights", "early_stopping", "metric", "seed",
    )  # fmt: skip
    options = {name: getattr(args, name) for name in names}
    return checked({**options, "keep_layers": layers(args.keep_layers)}, TuneSpec, "tune")


def _one(args: argparse.Namespace) -> int:
    from dataclasses import asdict

    from edgewise.data import labels_of
    from edgewise.sources import local_folder, weights_digest

    spec = _spec(args)
    _check_kind(args)
    rows, val = _rows(args)
    labels = labels_of(rows, args.task)
    if args.unseen == "leave_out":
        val = _without_unseen(val, labels, args.task)
    if spec.metric is not None and not val:
        raise PlanError(f"--metric {spec.metric}: nothing to measure it on: give --val FILE or --val-share X")
    source = local_folder(args.source, Path)
    from edgewise.trainer import tune  # seconds of imports: what is typed wrong was said before

    say = Reporter()
    with say.step(f"tune {args.source}"):
        done = tune(
            source,
            rows,
            labels,
            spec,
            out=args.out,
            task=args.task,
            problem_type=args.problem_type,
            val=val,
            teacher=args.teacher,
            source_digest=weights_digest(source),
            progress=say.update,
        )
    for warning in done.warnings:
        say.say(f"  warning: {warning}")
    if args.json:
        print(json.dumps({**asdict(done), "path": str(done.path)}, indent=2))
    else:
        _print(done, labels)
    return 0


def _check_kind(args: argparse.Namespace) -> None:
    """Options that the task would pass over in silence."""
    if args.task == "text-classification":
        return
    for name, usual in (("problem_type", "single_label_classification"), ("text_pair", None)):
        if getattr(args, name) != usual:
            flag = f"--{name.replace('_', '-')}"
            raise PlanError(f"{flag} {getattr(args, name)} is for task text-classification, not {args.task}")


def _without_unseen(val: list[Row], labels: Sequence[str], task: Task) -> list[Row]:
    from edgewise.data import labels_of

    kept = [row for row in val if set(labels_of([row], task)).issubset(labels)]
    if len(kept) < len(val):
        print(f"{len(val) - len(kept)} val rows left out: training shows none of their labels", file=sys.stderr)
    return kept


def _print(done: TuneResult, labels: Sequence[str]) -> None:
    state = "found finished" if done.reused else f"trained in {done.seconds:.0f} s"
    print(f"{done.path}: {state}, {done.steps} steps on {done.device}, loss {done.train_loss:.3f}")
    named = f"; labels {', '.join(labels)}" if labels else ""
    print(f"{done.trainable_parameters:,} of {done.parameters:,} parameters trained{named}")
    if done.metrics:
        print(f"on the val rows: {metric_words(done.metrics)}")


def metric_words(metrics: Mapping[str, float]) -> str:
    """'accuracy 85.40%, f1 0.853'."""
    return ", ".join(f"{name} {_value(name, value)}" for name, value in metrics.items())


def _value(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{100 * value:.2f}%" if name in ("accuracy", "exact_match") else f"{value:.4g}"


def _rows(args: argparse.Namespace) -> tuple[list[Row], list[Row]]:
    """Rows to train on, and rows to measure on."""
    from edgewise.data import hold_out

    if args.val and args.val_share is not None:
        raise PlanError("tune: give --val FILE or --val-share, not both")
    share = args.val_share or 0.0
    if not 0 <= share < 1:
        raise PlanError(f"--val-share {share}: expected a share from 0 to less than 1")
    rows = _load(args, args.data)
    if args.val:
        return rows, _load(args, args.val)
    kept, held = hold_out(rows, share, "val", lambda row: row.key)
    if share and not (held and kept):
        raise DataError(f"--val-share {share} leaves {len(kept)} rows to train on and {len(held)} to measure on")
    return kept, held


def _load(args: argparse.Namespace, path: str) -> list[Row]:
    from edgewise.data import load_rows

    fields: dict[str, Any] = {"text": args.text, "text_pair": args.text_pair}
    if args.task in ("text-classification", "image-classification"):
        fields["label"] = args.label
    elif args.task == "token-classification":
        fields |= {"tokens": args.tokens, "tags": args.tags}
    elif args.task == "text2text-generation":
        fields["target"] = args.target
    rows = load_rows(path, task=args.task, problem_type=args.problem_type, image=args.image, **fields)
    if not rows:
        raise DataError(f"{path} has no rows")
    return list(rows)


# ---- several strategies, one table


def _several(args: argparse.Namespace, strategies: Sequence[str]) -> int:
    """One process a strategy, so that the peak memory of each is its own."""
    _spec(argparse.Namespace(**{**vars(args), "strategy": strategies[0]}))  # a wrong option is said once, and at once
    found: dict[str, dict[str, Any]] = {}
    worst = 0
    for strategy in strategies:
        command = [sys.executable, "-m", "edgewise", "tune", *_again(args), "--strategy", strategy, "--json"]
        done = subprocess.run(
            [*command, "--out", str(Path(args.out) / strategy)], stdout=subprocess.PIPE, text=True, check=False
        )
        if done.returncode in (0,):
            found[strategy] = json.loads(done.stdout)
        elif done.returncode in (130, -2):
            raise KeyboardInterrupt
        else:
            worst = 4
    if not found:
        return 2
    if args.json:
        print(json.dumps(found, indent=2))
    else:
        print(strategy_table(found))
    return worst


def _again(args: argparse.Namespace) -> list[str]:
    """The arguments of this command but --strategy, --out and --json."""
    words = [args.source]
    for name, value in vars(args).items():
        if name not in ("source", "strategy", "out", "json") and value is not None:
            words += [f"--{name.replace('_', '-')}", str(value)]
    return words


def strategy_table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """What each strategy costs and gives: trained parameters, memory, time, the val metrics."""
    names = list(dict.fromkeys(name for one in found.values() for name in one["metrics"]))
    lines = [
        f"{'strategy':<9} {'trained':>11} {'of':>11} {'memory':>8} {'time':>7}" + "".join(f" {n:>11}" for n in names)
    ]
    for strategy, one in found.items():
        memory = f"{one['peak_memory'] / 1e6:.0f} MB" if one["peak_memory"] else "-"
        metrics = "".join(f" {_value(n, one['metrics'].get(n)):>11}" for n in names)
        lines.append(
            f"{strategy:<9} {one['trainable_parameters']:>11,} {one['parameters']:>11,} {memory:>8} "
            f"{one['seconds']:>5.0f} s{metrics}"
        )
    return "\n".join(lines)


# ---- a plan


def _plan(args: argparse.Namespace) -> int:
    from edgewise.data import load_splits
    from edgewise.files import write_json
    from edgewise.plan import read_plan
    from edgewise.training import tune_plan

    plan = read_plan(args.source)
    if plan.task == "text-generation" and plan.data.slices:
        raise PlanError(
            f"{plan.path}: data.slices is {list(plan.data.slices)}, but perplexity is that of the running text as a "
            "whole: remove slices"
        )
    with Reporter().step("data"):
        splits = load_splits(plan.data, plan.task, plan.resolve)
    out = Path(args.out) if args.out else Path("runs") / plan.path.stem
    try:
        out.mkdir(parents=True, exist_ok=True)
        say = Reporter(out / "tune.log")
        say.log(f"start: {args.source}")
    except OSError as error:
        raise PlanError(f"--out {out} cannot be written ({error.strerror or error}): name another folder") from error
    say.say(f"  rows: {len(splits.train)} train, {len(splits.val)} val, {len(splits.confirm)} confirm")
    done = tune_plan(plan, splits, out / "checkpoints", say)
    record = [_as_json(d) for d in done]
    write_json(out / "tune.json", record)
    print(json.dumps(record, indent=2) if args.json else plan_table(done))
    failed = [d for d in done if d.reason]
    return 0 if not failed else (2 if len(failed) == len(done) else 4)


def _as_json(done: TrainedCandidate) -> dict[str, Any]:
    from dataclasses import asdict

    result = None
    if done.result is not None:
        result = {**asdict(done.result), "path": str(done.result.path)}
    return {
        "name": done.name,
        "path": str(done.path) if done.path else None,
        "reason": done.reason,
        "result": result,
        "val": {name: asdict(score) for name, score in done.val.items()},
        "confirm": {name: asdict(score) for name, score in done.confirm.items()},
    }


def plan_table(done: Sequence[TrainedCandidate]) -> str:
    """One line a candidate: strategy, parameters, time, and each metric on val and on confirm rows."""
    lines = []
    for one in done:
        if one.reason:
            lines.append(f"{one.name}: failed: {one.reason}")
            continue
        how = "as it came"
        if one.result is not None:
            r = one.result
            how = f"{r.strategy}, {r.trainable_parameters:,} of {r.parameters:,} parameters, {r.seconds:.0f} s"
        lines.append(f"{one.name} ({how}): {one.path}")
        for part, scores in (("val", one.val), ("confirm", one.confirm)):
            lines.append(f"  {part:<8} {_score_words(scores)}")
    return "\n".join(lines)


def _score_words(scores: Mapping[str, Score]) -> str:
    from edgewise.units import WORST

    words = []
    for name, score in scores.items():
        why = score.method if name.startswith(WORST) else score.why  # of a worst slice its name
        words.append(f"{name} {_value(name, score.value)}" + (f" ({why})" if why else ""))
    return ", ".join(words)
