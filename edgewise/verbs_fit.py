"""`edgewise fit` and `export`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgewise.errors import DataError, PlanError
from edgewise.progress import Reporter
from edgewise.types import RECIPES, TASKS, Task

if TYPE_CHECKING:
    from edgewise.data import Row
    from edgewise.pipeline import FitResult


def add_fit(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "examples:\n"
        "  edgewise fit examples/movie-reviews.yaml --dry-run    what would be done, how long, how much disk\n"
        "  edgewise fit examples/movie-reviews.yaml              the chosen bundle in runs/movie-reviews/chosen\n\n"
        "exit codes: 0 done; 3 nothing meets the budgets; 4 done, but some candidates failed; 2 a mistake to mend"
    )
    parser.add_argument("plan", help="plan file (YAML)")
    parser.add_argument("--out", help="run folder (default: runs/ and the plan's name)")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and touch nothing")
    parser.add_argument("--keep", action="store_true", help="keep the bundles that were not chosen")
    parser.add_argument("--json", action="store_true", help="the result as JSON on standard output")


def run_fit(args: argparse.Namespace) -> int:
    if args.dry_run:
        return _dry_run(args)
    from edgewise.pipeline import fit

    result = fit(args.plan, out=args.out, keep=args.keep)
    if args.json:
        print(json.dumps(_fit_json(result), indent=2, ensure_ascii=False))
    else:
        _print_fit(result)
    return result.exit_code


def _dry_run(args: argparse.Namespace) -> int:
    from edgewise import estimate
    from edgewise.assets import cache_folder
    from edgewise.data import load_splits
    from edgewise.pipeline import check_task
    from edgewise.plan import read_plan

    plan = read_plan(args.plan)
    check_task(plan)
    if plan.data.path is not None and plan.data.path.startswith("asset:"):
        name = plan.data.path.removeprefix("asset:")
        if not (cache_folder() / name.partition("/")[0]).is_dir():
            raise DataError(f"a dry run fetches nothing: `python -m edgewise.assets fetch {name}` brings the rows")
    splits = load_splits(plan.data, plan.task, plan.resolve)
    steps = estimate.estimate(plan, splits)
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
        "devices": [to_json(s) for s in result.selections],
    }


def _print_fit(result: FitResult) -> None:
    from edgewise.bundle import read_bundle
    from edgewise.verbs_measure import print_selections

    print_selections(result.selections)
    for reason in result.failed:
        print(f"failed: {reason}")
    print()
    for device, path in result.chosen.items():
        print(f"chosen for {device}: {path}  {read_bundle(path, verify='none').digest}")
    print(f"report: {result.out / 'report.html'}")


def add_export(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "examples:\n"
        "  edgewise export tuned --out bundles --recipe fp32 --recipe int8-dynamic\n"
        "  edgewise export tuned --out bundles --recipe int8-static --data reviews.csv --text text\n"
        "  edgewise export --from-onnx their-folder --out bundle\n\n"
        f"recipes: {', '.join(RECIPES)}; options are added as in int8-dynamic+per_channel=false"
    )
    parser.add_argument("checkpoint", nargs="?", help="a fine-tuned model: a folder or a hub id")
    parser.add_argument("--from-onnx", metavar="FOLDER", help="a folder with an ONNX file that someone else exported")
    parser.add_argument("--out", required=True, help="folder for the bundles, one a recipe")
    parser.add_argument("--recipe", action="append", metavar="R", help="a recipe's short name; give it again for more")
    parser.add_argument("--task", choices=TASKS, help="inferred from the config unless given")
    parser.add_argument("--labels", metavar="A,B,...", help="labels in the order of the outputs (--from-onnx)")
    parser.add_argument("--opset", type=int, help="ONNX opset (default: Optimum's for the model)")
    _add_data(parser, required=False, label=False)
    parser.add_argument("--json", action="store_true", help="the result as JSON on standard output")


def run_export(args: argparse.Namespace) -> int:
    if (args.checkpoint is None) == (args.from_onnx is None):
        raise PlanError("export: give either a checkpoint or --from-onnx FOLDER")
    if args.from_onnx:
        return _from_onnx(args, _rows(args, "text-classification") if args.data else [])
    from edgewise.exporter import export
    from edgewise.exporter.checkpoint import check_task, read_checkpoint
    from edgewise.sources import local_folder

    folder = local_folder(args.checkpoint, Path)
    task = check_task(read_checkpoint(folder), args.task)
    say = Reporter()
    with say.step(f"export {args.checkpoint}"):
        results = export(
            folder,
            args.recipe or ["fp32"],
            out=args.out,
            task=task,
            calibration=_rows(args, task) if args.data else [],
            opset=args.opset,
            progress=say.update,
        )
    if args.json:
        made = [
            {"recipe": r.recipe.name, "reason": r.reason, "seconds": r.seconds, **_bundle_json(r.bundle)}
            for r in results
        ]
        print(json.dumps(made, indent=2))
    else:
        for r in results:
            print(f"{r.recipe.name:<16} {_bundle_words(r.bundle) if r.bundle else 'failed: ' + r.reason}")
    return 4 if any(r.bundle is None for r in results) else 0


def _from_onnx(args: argparse.Namespace, rows: list[Row]) -> int:
    from edgewise.exporter import import_onnx

    labels = args.labels.split(",") if args.labels else None
    bundle = import_onnx(
        args.from_onnx, out=args.out, task=args.task or "text-classification", labels=labels, rows=rows
    )
    print(json.dumps(_bundle_json(bundle), indent=2) if args.json else _bundle_words(bundle))
    if not args.json:
        print(f"no parity: {bundle.manifest.parity['why']}", file=sys.stderr)
    return 0


def _bundle_json(bundle: Any) -> dict[str, Any]:
    if bundle is None:
        return {"path": None}
    m = bundle.manifest
    return {"path": str(bundle.path), "content_digest": m.content_digest, "size": m.size, "parity": dict(m.parity)}


def _bundle_words(bundle: Any) -> str:
    m = bundle.manifest
    text = f"{bundle.path}  {m.size / 1e6:.1f} MB"
    if m.parity.get("against"):
        text += f", {m.parity['agreement']:.1%} of {m.parity['inputs']} answers as PyTorch"
    return text


def _add_data(parser: argparse.ArgumentParser, *, required: bool, label: bool) -> None:
    parser.add_argument("--data", required=required, help="rows: a CSV, TSV, JSON Lines or Parquet file, or asset:NAME")
    parser.add_argument("--text", default="text", help="column with the text (default: text)")
    parser.add_argument("--text-pair", help="column with the second text of a pair")
    if label:
        parser.add_argument("--label", default="label", help="column with the label (default: label)")


def _rows(args: argparse.Namespace, task: Task) -> list[Row]:
    from edgewise.data import load_rows

    label = getattr(args, "label", None)
    rows = load_rows(args.data, task=task, text=args.text, text_pair=args.text_pair, label=label)
    if not rows:
        raise DataError(f"{args.data} has no rows")
    return list(rows)
