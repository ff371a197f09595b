"""`edgewise export`: bundles from a fine-tuned model, or from an ONNX file that someone else exported."""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgewise.errors import DataError, PlanError
from edgewise.progress import Reporter
from edgewise.types import RECIPES, TASKS, Task

if TYPE_CHECKING:
    from edgewise.data import Row


def add_export(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "examples:\n"
        "  edgewise export tuned --out bundles --recipe fp32 --recipe int8-dynamic\n"
        "  edgewise export tuned --out bundles --recipe all --data reviews.csv --text text --label label\n"
        "  edgewise export tuned --out bundles --recipe int8-static --data reviews.csv --max-accuracy-drop 0.5\n"
        "  edgewise export --from-onnx their-folder --out bundle\n\n"
        f"recipes: all, {', '.join(RECIPES)};\noptions are added as in int8-dynamic+per_channel=false+offline=true"
    )
    parser.add_argument("checkpoint", nargs="?", help="a fine-tuned model: a folder or a hub id")
    parser.add_argument("--from-onnx", metavar="FOLDER", help="a folder with an ONNX file that someone else exported")
    parser.add_argument("--out", required=True, help="folder for the bundles, one a recipe")
    parser.add_argument(
        "--recipe", action="append", metavar="R", help="a recipe's short name, or all; give it again for more"
    )
    parser.add_argument("--task", choices=TASKS, help="inferred from the config unless given")
    parser.add_argument("--opset", type=int, help="ONNX opset (default: Optimum's for the model)")
    parser.add_argument("--optimize", choices=["O1", "O2", "O3"], help="Optimum's level, for every recipe without one")
    parser.add_argument("--pooling", choices=["mean", "cls", "last"], help="of feature extraction")
    parser.add_argument("--labels", metavar="A,B,...", help="labels in the order of the outputs (--from-onnx)")
    parser.add_argument("--tokenizer", metavar="FOLDER", help="where the tokenizer is (--from-onnx)")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the checkpoint")
    parser.add_argument("--allow-pickle", action="store_true", help="read weights that are pickled")
    _add_export_rows(parser)
    parser.add_argument("--json", action="store_true", help="the result as JSON on standard output")


def _add_export_rows(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("rows")
    group.add_argument(
        "--data", help="rows of train, which calibrate: a CSV, TSV, JSON Lines or Parquet file, asset:NAME, or a plan"
    )
    for name, default, what in (
        ("text", "text", "the text"), ("text-pair", None, "the second text of a pair"), ("label", None, "the label"),
        ("tokens", "tokens", "the words (token classification)"), ("tags", "tags", "one tag a word"),
        ("target", "target", "the text to write (text to text)"), ("image", "image", "the image"),
    ):  # fmt: skip
        group.add_argument(f"--{name}", default=default, help=f"column with {what}{f' ({default})' if default else ''}")
    group.add_argument("--val", metavar="FILE", help="labelled rows that the drop against fp32 is measured on")
    group.add_argument("--val-share", type=float, metavar="X", help="or this share of --data, by a hash of the row")
    group.add_argument("--confirm", metavar="FILE", help="rows that --max-accuracy-drop is judged on, once")
    group.add_argument(
        "--max-accuracy-drop", metavar="POINTS",
        help="keep nodes of int8 recipes in fp32 until val loses no more than so many points, for example 0.5",
    )  # fmt: skip


def run_export(args: argparse.Namespace) -> int:
    if (args.checkpoint is None) == (args.from_onnx is None):
        raise PlanError("export: give either a checkpoint or --from-onnx FOLDER")
    if args.from_onnx:
        return _from_onnx(args)
    from edgewise.exporter import export
    from edgewise.exporter.checkpoint import check_task, read_checkpoint
    from edgewise.sources import local_folder

    recipes = _recipes(args)
    folder = local_folder(args.checkpoint, Path)
    allowed = {"trust_remote_code": args.trust_remote_code, "allow_pickle": args.allow_pickle}
    source = read_checkpoint(folder, **allowed)
    task = check_task(source, args.task)
    rows = _export_rows(args, task, source.problem_type)
    say = Reporter()
    say.say(f"task: {task}{'' if args.task else ', from ' + ', '.join(source.config.get('architectures') or ['?'])}")
    with say.step(f"export {args.checkpoint}"):
        results = export(
            folder,
            recipes,
            out=args.out,
            task=task,
            calibration=rows.train,
            validation=rows.val,
            confirm=rows.confirm,
            pooling=args.pooling,
            opset=args.opset,
            progress=say.update,
            **allowed,
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


def _recipes(args: argparse.Namespace) -> list[Any]:
    """Recipes of the command line with --optimize and --max-accuracy-drop in them; 'all' as it stands."""
    from dataclasses import replace

    from edgewise.recipe import Recipe, read_points

    drop = None
    if args.max_accuracy_drop is not None:
        drop = read_points(args.max_accuracy_drop, "--max-accuracy-drop ")
    chosen: list[Any] = []
    for name in args.recipe or (["int8-dynamic"] if drop is not None else ["fp32"]):
        if name == "all":
            chosen.append(name)
            continue
        recipe = Recipe.parse(name)
        if args.optimize and recipe.optimize is None:
            recipe = replace(recipe, optimize=args.optimize)
        chosen.append(replace(recipe, max_drop=drop) if drop is not None and recipe.int8 else recipe)
    return chosen


def _export_rows(args: argparse.Namespace, task: Task, problem_type: str) -> Any:
    """Rows of the command line, or of a plan, by what they are for."""
    from edgewise.data import Splits, hold_out, load_splits

    if args.data and args.data.endswith((".yaml", ".yml")):
        from edgewise.plan import read_plan

        plan = read_plan(args.data)
        return load_splits(plan.data, plan.task, plan.resolve)
    if args.val and args.val_share is not None:
        raise PlanError("export: give --val FILE or --val-share, not both")
    if args.val_share is not None and not 0 < args.val_share < 1:
        raise PlanError(f"--val-share {args.val_share}: expected a share between 0 and 1, for example 0.2")
    read = partial(_task_rows, args, task, problem_type)
    rows = read(args.data) if args.data else ()
    val = read(args.val) if args.val else ()
    if args.val_share is not None:
        kept, held = hold_out(rows, args.val_share, "val", lambda row: row.key)
        rows, val = tuple(kept), tuple(held)
    return Splits(rows, val, read(args.confirm) if args.confirm else (), ())


def _task_rows(args: argparse.Namespace, task: Task, problem_type: str, path: str) -> tuple[Row, ...]:
    """Rows of a file with the columns that the task reads; what is right in them only where it is asked for."""
    from edgewise.data import load_rows

    judged = any(x is not None for x in (args.val, args.val_share, args.confirm, args.label))
    label = args.label or ("label" if judged and task.endswith("classification") else None)
    kinds: dict[Task, Task] = {
        "feature-extraction": "text-classification", "fill-mask": "text-generation",
        "image-feature-extraction": "image-classification",
    }  # fmt: skip
    kind = kinds.get(task, task)
    rows = load_rows(
        path,
        task=kind,
        problem_type=problem_type if kind == "text-classification" and label else "single_label_classification",  # type: ignore[arg-type]  # a Checkpoint names it in a str
        text=args.text,
        text_pair=args.text_pair,
        label=None if kind != task or task == "token-classification" else label,
        tokens=args.tokens,
        tags=args.tags if judged and task == "token-classification" else None,
        target=args.target if task == "text2text-generation" else None,
        image=args.image,
    )
    if not rows:
        raise DataError(f"{path} has no rows")
    return rows


def _from_onnx(args: argparse.Namespace) -> int:
    from edgewise.exporter import import_onnx

    labels = args.labels.split(",") if args.labels else None
    task: Task = args.task or "text-classification"
    bundle = import_onnx(
        args.from_onnx,
        out=args.out,
        task=task,
        labels=labels,
        rows=_task_rows(args, task, "", args.data) if args.data else (),
        tokenizer=args.tokenizer,
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
