"""`edgewise fit`: the whole pipeline."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from edgewise.errors import DataError

if TYPE_CHECKING:
    from edgewise.pipeline import FitResult


def add_fit(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "examples:\n"
        "  edgewise fit examples/movie-reviews.yaml --dry-run    what would be done, how long, how much disk\n"
        "  edgewise fit examples/movie-reviews.yaml              the chosen bundle in runs/movie-reviews/chosen\n"
        "  edgewise fit examples/movie-reviews.yaml --minutes 3  the best answer of 3 minutes of measuring\n\n"
        "exit codes: 0 done; 3 nothing meets the budgets; 4 done, but some candidates failed; 2 a mistake to mend"
    )
    parser.add_argument("plan", help="plan file (YAML)")
    parser.add_argument("--out", help="run folder (default: runs/ and the plan's name)")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and touch nothing")
    parser.add_argument(
        "--minutes", type=float, metavar="N", help="the best answer that N minutes of measuring can give"
    )
    parser.add_argument("--keep", action="store_true", help="keep the bundles that were not chosen")
    parser.add_argument("--json", action="store_true", help="the result as JSON on standard output")


def run_fit(args: argparse.Namespace) -> int:
    if args.dry_run:
        return _dry_run(args)
    from edgewise.pipeline import fit

    result = fit(args.plan, out=args.out, keep=args.keep, minutes=args.minutes)
    if args.json:
        print(json.dumps(_fit_json(result), indent=2, ensure_ascii=False))
    else:
        _print_fit(result)
    return result.exit_code


def _dry_run(args: argparse.Namespace) -> int:
    from edgewise import estimate
    from edgewise.assets import cache_folder
    from edgewise.data import load_splits
    from edgewise.plan import read_plan
    from edgewise.search import check_minutes

    check_minutes(args.minutes)
    plan = read_plan(args.plan)
    if plan.data.path is not None and plan.data.path.startswith("asset:"):
        name = plan.data.path.removeprefix("asset:")
        if not (cache_folder() / name.partition("/")[0]).is_dir():
            raise DataError(f"a dry run fetches nothing: `python -m edgewise.assets fetch {name}` brings the rows")
    splits = load_splits(plan.data, plan.task, plan.resolve)
    steps = estimate.estimate(plan, splits, minutes=args.minutes)
    if args.json:
        from dataclasses import asdict

        print(json.dumps([asdict(s) for s in steps], indent=2))
    else:
        print(estimate.words(steps))
    return 0


def _fit_json(result: FitResult) -> dict[str, Any]:
    from edgewise.bundle import read_bundle
    from edgewise.selector import to_json

    return {
        "out": str(result.out),
        "exit_code": result.exit_code,
        "chosen": {
            device: {"path": str(path), "content_digest": read_bundle(path, verify="none").digest}
            for device, path in result.chosen.items()
        },
        "failed": list(result.failed),
        "left_open": result.left_open,
        "devices": [to_json(s) for s in result.selections],
    }


def _print_fit(result: FitResult) -> None:
    from edgewise.bundle import read_bundle
    from edgewise.verbs_select import print_selections

    print_selections(result.selections)
    for reason in result.failed:
        print(f"failed: {reason}")
    if result.left_open:
        print(f"\nnot the last word: {result.left_open} more may be better; start the same command again to go on")
    print()
    for device, path in result.chosen.items():
        print(f"chosen for {device}: {path}  {read_bundle(path, verify='none').digest}")
    print(f"report: {result.out / 'report.html'}")
