"""`edgewise rank`."""

from __future__ import annotations

import argparse
import json
import re
import statistics
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import TYPE_CHECKING, Any

from edgewise.errors import DataError, PlanError, need_extra
from edgewise.options import checked, layers, need_build
from edgewise.progress import Reporter

if TYPE_CHECKING:
    from edgewise.data import Row
    from edgewise.trainer.rank import RankCandidate, RankResult
    from edgewise.types import Task

Ranked = tuple[list["RankCandidate"], Sequence["Row"], Sequence["Row"], tuple[str, ...], "Task"]
"""Candidates, rows to train on, rows to judge by, labels, task."""

_CANDIDATE = re.compile(r"^(?:(?P<name>[A-Za-z0-9][A-Za-z0-9_.-]*)=)?(?P<source>[^#]+)(?:#(?P<layers>\d+(?:,\d+)*))?$")
_VAL_SHARE = 0.2
"""Of the rows of a file; a plan has its own split."""


def add_rank(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "examples:\n"
        "  edgewise rank examples/movie-reviews.yaml --minutes 10     the candidates of a plan, on its rows\n"
        "  edgewise rank l6=asset:all-minilm-l6-v2 l2=asset:all-minilm-l6-v2#0,5 \\\n"
        "      --data reviews.csv --text text --label label --budget 'p50 <= 10 ms'\n\n"
        "a candidate is [NAME=]SOURCE[#LAYERS]: a folder, a hub id or asset:NAME, with the layers that stay\n"
        "docs/rank.md says what the scores are, and how far they can be trusted"
    )
    parser.add_argument("candidate", nargs="+", help="pretrained models, or one plan file")
    parser.add_argument("--data", help="rows: a CSV, TSV, JSON Lines or Parquet file, or asset:NAME (not with a plan)")
    parser.add_argument("--text", default="text", help="column with the text (default: text)")
    parser.add_argument("--text-pair", help="column with the second text of a pair")
    parser.add_argument("--label", default="label", help="column with the label (default: label)")
    parser.add_argument("--minutes", type=float, default=10, help="for scores and short trainings (default: 10)")
    parser.add_argument("--scores-only", action="store_true", help="no trainings")
    parser.add_argument("--by", choices=["logme", "probe", "h_score"], default="logme", help="the score that decides")
    parser.add_argument("--rows", type=int, default=500, help="rows that the scores are made from (default: 500)")
    parser.add_argument("--keep", type=int, help="at most so many candidates are trained (default: what time allows)")
    parser.add_argument("--max-length", type=int, default=64, help="tokens of a text (default: 64; a plan has its own)")
    parser.add_argument("--latency", action="store_true", help="export each as fp32 and time calls on this machine")
    parser.add_argument("--budget", metavar="LIMIT", help="'p50 <= 10 ms': slower candidates are dropped at once")
    parser.add_argument("--threads", type=int, default=1, help="of the timed calls (default: 1)")
    parser.add_argument("--out", default="runs/rank", help="keeps what was found (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="the result as JSON on standard output")


def run_rank(args: argparse.Namespace) -> int:
    if args.rows < 10:
        raise PlanError(f"--rows is {args.rows}; expected at least 10")
    if args.threads < 1:
        raise PlanError(f"--threads is {args.threads}; expected at least 1")
    if args.seed < 0:
        raise PlanError(f"--seed is {args.seed}; expected at least 0")
    limit = _limit(args.budget)
    say = Reporter()
    candidates, train, val, labels, task = _task(args, say)
    try:
        from edgewise.trainer.rank import rank
    except ImportError as error:
        raise need_extra("build", error) from error
    with say.step(f"rank {len(candidates)} candidates"):
        result = rank(
            candidates,
            train,
            labels,
            task=task,
            val=val,
            minutes=None if args.scores_only else args.minutes,
            out=args.out,
            by=args.by,
            sample=args.rows,
            keep=args.keep,
            latency=measured_latency(labels, train, args.threads, task) if args.latency or limit is not None else None,
            max_latency_s=limit,
            seed=args.seed,
            say=say.say,
            progress=say.update,
        )
    if args.json:
        from dataclasses import asdict

        print(json.dumps(asdict(result), indent=2, ensure_ascii=False))
    else:
        print(table(result))
    failed = [s for s in result.scores if s.failed]
    return 0 if not failed else (2 if len(failed) == len(result.scores) else 4)


def _limit(budget: str | None) -> float | None:
    """Seconds of a limit on p50."""
    if budget is None:
        return None
    from edgewise.units import parse_budget

    found = parse_budget(budget)
    if found.metric != "p50":
        raise PlanError(f"--budget {budget!r}: rank knows the median time of a call alone, as in 'p50 <= 10 ms'")
    return found.limit


def _task(args: argparse.Namespace, say: Reporter) -> Ranked:
    """Of a plan, or of the command line."""
    if args.candidate[0].endswith((".yaml", ".yml")):
        if len(args.candidate) > 1 or args.data:
            raise PlanError("rank: a plan brings its candidates and its data; give neither beside it")
        return _of_plan(args.candidate[0], say)
    if not args.data:
        raise PlanError("rank: --data is missing: the rows that the candidates are judged on (or give a plan file)")
    return _of_line(args)


def _of_plan(path: str, say: Reporter) -> Ranked:
    from edgewise.data import load_splits
    from edgewise.plan import TuneSpec, read_plan

    plan = read_plan(path)
    if plan.data.problem_type != "single_label_classification":
        raise PlanError(f"{path}: problem_type is {plan.data.problem_type}; rank takes one label a text")
    splits = load_splits(plan.data, plan.task, plan.resolve)
    found = []
    for c in plan.candidates:
        if c.from_ is None:
            say.say(f"left out {c.name}: an ONNX folder cannot be trained")
        else:
            spec = c.tune if isinstance(c.tune, TuneSpec) else TuneSpec()
            found.append(_candidate(c.name, c.from_, spec, plan.resolve))
    return found, splits.train, splits.val, splits.labels, plan.task


def _of_line(args: argparse.Namespace) -> Ranked:
    need_build()
    from edgewise.data import hold_out, labels_of, load_rows
    from edgewise.plan import TuneSpec

    found = []
    for text in args.candidate:
        match = _CANDIDATE.match(text)
        if match is None:
            raise PlanError(f"candidate {text!r}: expected [NAME=]SOURCE[#LAYERS], as in l2=asset:all-minilm-l6-v2#0,5")
        kept = layers(match["layers"])
        name = match["name"] or Path(match["source"]).name + (f"-{'-'.join(map(str, kept))}" if kept else "")
        spec = checked({"keep_layers": kept, "max_length": args.max_length}, TuneSpec, f"candidate {text!r}")
        found.append(_candidate(name.removeprefix("asset:"), match["source"], spec, Path))
    rows = load_rows(args.data, text=args.text, text_pair=args.text_pair, label=args.label)
    train, val = hold_out(rows, _VAL_SHARE, "rank", lambda row: row.key)
    if not train or not val:
        raise DataError(f"{args.data}: {len(rows)} rows give {len(train)} to train on and {len(val)} to judge by")
    return found, train, val, labels_of(rows, "text-classification"), "text-classification"


def _candidate(name: str, source: str, spec: Any, resolve: Callable[[str], Path]) -> RankCandidate:
    from edgewise.sources import local_folder
    from edgewise.trainer.rank import RankCandidate

    folder = local_folder(source, resolve)
    return RankCandidate(name, folder, spec, _digest(folder))


@cache  # several depths of one checkpoint are candidates: 90 MB need not be hashed for each
def _digest(folder: Path) -> str:
    from edgewise.sources import weights_digest

    return weights_digest(folder)


def measured_latency(
    labels: Sequence[str], rows: Sequence[Row], threads: int, task: Task, calls: int = 50
) -> Callable[[RankCandidate], float]:
    """Seconds of the median call of a candidate: exported with a fresh head as fp32, timed in this process.

    Time depends on the architecture, not on the weights, so candidates of one architecture are timed once. It is what
    to expect, not a measurement: `edgewise profile` measures in fresh processes, with bounds.
    """
    known: dict[str, float] = {}
    inputs = [row.text if row.image is None else row.image for row in rows[:calls]]

    def latency(candidate: RankCandidate) -> float:
        import edgewise
        from edgewise.exporter import export
        from edgewise.trainer.models import Goal, cut_depth, load_model
        from edgewise.trainer.watch import quiet

        quiet()
        spec = candidate.spec
        with TemporaryDirectory(prefix="edgewise-latency-") as work:
            model, tokenizer = load_model(candidate.source, Goal(task, tuple(labels)))
            if spec.keep_layers is not None:
                cut_depth(model, spec.keep_layers)
            shape = json.dumps(model.config.to_dict(), sort_keys=True, default=str) + str(spec.max_length)
            if shape not in known:
                model.save_pretrained(f"{work}/model")
                tokenizer.save_pretrained(f"{work}/model")
                made = export(f"{work}/model", ["fp32"], out=f"{work}/bundles", candidate=candidate.name)[0]
                if made.bundle is None:
                    raise PlanError(f"it cannot be exported: {made.reason}")
                model = edgewise.load(made.bundle.path, threads=threads, max_length=spec.max_length)
                known[shape] = _median_call(model, inputs)
        return known[shape]

    return latency


def _median_call(model: Callable[[Any], Any], inputs: Sequence[Any]) -> float:
    for one in inputs[:5]:
        model(one)
    spent = []
    for one in inputs:
        start = perf_counter()
        model(one)
        spent.append(perf_counter() - start)
    return statistics.median(spent)


def table(result: RankResult) -> str:
    """The ranking for people, best first, and what was dropped."""
    from edgewise.showing import show

    last = {t.name: t for t in result.trials if t.accuracy is not None}
    lines = ["#  candidate             probe   LogME    H-score   params  p50        trained    val accuracy"]
    for place, name in enumerate(result.order, 1):
        s, trial = result.of(name), last.get(name)
        numbers = "-       -        -      " if s.failed else f"{s.probe:<7.1%} {s.logme:<8.4f} {s.h_score:<8.4f}"
        size = f"{s.parameters / 1e6:.1f}M" if s.parameters is not None else "-"
        trained = f"{trial.rows} rows" if trial else "-"
        accuracy = f"{trial.accuracy:.1%}" if trial and trial.accuracy is not None else "-"
        lines.append(
            f"{place:<2} {name:<20}  {numbers}  {size:>6}  {show(s.latency_s, 's'):<9}  {trained:<9}  {accuracy}"
        )
    perplexities = [
        f"perplexity of {s.name}: {s.perplexity:.1f} a token, {s.bits_per_character:.3f} bits a character"
        for s in result.scores
        if s.perplexity is not None
    ]
    lines += ["", *perplexities, *result.dropped]
    return "\n".join([*lines, f"{result.seconds:.0f} s, ordered by {result.by} before the trainings"])
