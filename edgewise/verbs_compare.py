"""`edgewise compare` and `edgewise measurements`."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from edgewise.errors import PlanError, StoreError
from edgewise.rundir import store_path
from edgewise.showing import show
from edgewise.units import OF_ANSWERS, check_metric

if TYPE_CHECKING:
    from edgewise.profiler.compare import Comparison, Difference


def add_compare(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "example:\n"
        "  edgewise compare before.sqlite after.sqlite --tolerance 5% --fail-on-regression\n\n"
        "exit codes: 0 compared; 3 with --fail-on-regression, something is shown to be worse, failed or is missing"
    )
    parser.add_argument("a", help="measurement store, or a run folder that has one: the first run")
    parser.add_argument("b", help="the second run")
    parser.add_argument("--metric", metavar="M,...", help="only these (default: times, memory, size, accuracy)")
    parser.add_argument("--confidence", type=float, default=0.95, help="of all intervals together (default: 0.95)")
    parser.add_argument("--tolerance", default="0%", metavar="T", help="a change of so little is none, such as 5%%")
    parser.add_argument("--fail-on-regression", action="store_true", help="exit code 3 when something is worse")
    parser.add_argument("--json", action="store_true", help="as JSON on standard output")


def run_compare(args: argparse.Namespace) -> int:
    from edgewise.profiler import Store
    from edgewise.profiler.compare import compare_stores

    metrics = [check_metric(name) for name in args.metric.split(",")] if args.metric else []
    if len(set(metrics)) < len(metrics):
        raise PlanError(f"--metric {args.metric!r} names one twice")
    paths = [store_path(args.a), store_path(args.b)]
    if paths[0].samefile(paths[1]):
        raise StoreError(f"{args.a} and {args.b} are the same store: `edgewise profile --store` makes another one")
    with Store(paths[0], reading=True) as a, Store(paths[1], reading=True) as b:
        found = compare_stores(
            a, b, metrics=metrics, confidence=args.confidence, tolerance=_share("--tolerance", args.tolerance)
        )
    worse = [d for d in found.differences if d.regression]
    if args.json:
        print(json.dumps({**asdict(found), "regressions": len(worse)}, indent=2, ensure_ascii=False))
    else:
        _print_comparison(found, args.confidence)
    return 3 if worse and args.fail_on_regression else 0


def _share(option: str, text: str) -> float:
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise PlanError(f"{option} is {text!r}; expected a share of at least 0 and below 1, such as 5% or 0.05")
    return value


def _print_comparison(found: Comparison, confidence: float) -> None:
    for line in found.machines:
        print(f"the machines differ: {line}")
    subject = None
    for d in found.differences:
        if d.subject != subject:
            subject = d.subject
            print(f"\n{subject}")
        print(f"  {_line(d)}")
    for note in found.notes:
        print(f"\n{note}")
    words = {"worse": 0, "better": 0, "none shown": 0, "equal": 0, "not comparable": 0}
    for d in found.differences:
        words[d.verdict] += 1
    lost = sum(d.lost for d in found.differences)
    gone = f" ({lost} of them failed or missing in the second run alone, which counts as worse)" if lost else ""
    print(
        f"\n{words['worse']} worse, {words['better']} better, {words['none shown']} with no difference shown, "
        f"{words['equal']} equal, {words['not comparable']} not comparable{gone}; "
        f"all intervals together hold at {100 * confidence:.12g}%"
    )


def _line(d: Difference) -> str:
    if not d.metric:
        return d.why
    head = f"{d.metric:<20} {show(d.a, d.unit):>9} -> {show(d.b, d.unit):<9}"
    verdict = "no difference shown" if d.verdict == "none shown" else d.verdict
    why = f" ({d.why})" if d.why else ""
    return f"{head} {_change(d):<24} {verdict}{why}".rstrip()


def _change(d: Difference) -> str:
    if d.change is None:
        return ""
    if d.metric in OF_ANSWERS and d.metric != "perplexity":
        points = " points" if d.unit == "1" else ""
        bounds = "" if d.low is None or d.high is None else f" [{d.low:+.2f}, {d.high:+.2f}]"
        return f"{d.change:+.2f}{points}{bounds}"
    bounds = "" if d.low is None or d.high is None or d.low == d.high else f" [{d.low:.3f}, {d.high:.3f}]"
    return f"x {d.change:.3f}{bounds}"


def add_measurements(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "examples:\n"
        "  edgewise measurements export runs/movie-reviews --format csv -o measurements.csv\n"
        "  edgewise measurements export measurements.sqlite --format json --samples\n"
        "  edgewise measurements report measurements.sqlite -o hardware.md"
    )
    parser.add_argument(
        "action", choices=["export", "report"],
        help="export: what a store holds, in a format of others; report: the hardware benchmark report, as Markdown",
    )  # fmt: skip
    parser.add_argument("store", help="measurement store, or a run folder that has one")
    parser.add_argument("--format", choices=["json", "csv", "parquet"], help="of export (default: json)")
    parser.add_argument("-o", "--out", help="file (default: standard output; parquet needs a file)")
    parser.add_argument("--samples", action="store_true", help="with json: the nanoseconds of every call too")


def run_measurements(args: argparse.Namespace) -> int:
    from edgewise.profiler import Store
    from edgewise.profiler.exporting import as_csv, as_json, write_parquet
    from edgewise.profiler.hardware_report import hardware_report

    if args.action == "report" and (args.samples or args.format):
        raise PlanError("--format and --samples are for export: the report is Markdown")
    kind = args.format or "json"
    if args.samples and kind != "json":
        raise PlanError(f"--samples goes with --format json, not {kind}: a table has one line for each metric")
    if kind == "parquet" and not args.out:
        raise PlanError("--format parquet is binary: name a file with -o")
    path = store_path(args.store)
    if args.out and Path(args.out).exists() and Path(args.out).samefile(path):
        raise PlanError(f"-o {args.out} is the store itself: name another file")
    with Store(path, reading=True) as store:
        if kind == "parquet":
            write_parquet(store, Path(args.out))
            print(args.out)
            return 0
        if args.action == "report":
            text = hardware_report(store, f"Hardware report of {Path(args.store).resolve().name}")
        else:
            text = as_csv(store) if kind == "csv" else as_json(store, samples=args.samples)
    if not args.out:
        sys.stdout.write(text)
        return 0
    from edgewise.files import write_text

    write_text(Path(args.out), text)
    print(args.out)
    return 0
