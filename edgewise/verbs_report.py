"""`edgewise report`."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from edgewise.errors import PlanError
from edgewise.rundir import RunFolder, store_path

if TYPE_CHECKING:
    from edgewise.profiler import Store
    from edgewise.selector import ReportData
    from edgewise.types import Selection


def add_report(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "examples:\n"
        "  edgewise report runs/movie-reviews -o report.html\n"
        "  edgewise report runs/movie-reviews -o report.html --no-examples      without any text of the data\n"
        "  edgewise report measurements.sqlite --budget 'p95 <= 10 ms' --data reviews.csv --label label"
    )
    parser.add_argument("run", help="run folder that `fit` wrote, or a measurement store")
    parser.add_argument("-o", "--out", default="report.html", help="file: .html, .md or .json (default: %(default)s)")
    parser.add_argument(
        "--no-examples", action="store_true", help="leave out the examples, and so every text of the data"
    )
    parser.add_argument(
        "--budget", action="append", default=[], metavar="B", help="for a store, or to choose anew: 'p95 <= 10 ms'"
    )
    parser.add_argument(
        "--objective", metavar="M,...",
        help="with --budget or a store: in order, or weighed as in accuracy=2,p95=1 (default: accuracy,p95, or what "
        "the store has instead)",
    )  # fmt: skip
    parser.add_argument("--confidence", type=float, help="with --budget or a store (default: 0.95)")
    parser.add_argument("--machine", metavar="NAME", help="for a store of several machines: part of the CPU's name")
    parser.add_argument("--data", metavar="ROWS", help="for a store: the rows it was measured on, for the examples")
    parser.add_argument("--text", default="text", help="of --data: column with the text (default: %(default)s)")
    parser.add_argument("--text-pair", help="of --data: column with the second text of a pair")
    parser.add_argument("--label", default="label", help="of --data: column with the label (default: %(default)s)")


def run_report(args: argparse.Namespace) -> int:
    from edgewise.profiler import Store
    from edgewise.selector import write_markdown, write_report
    from edgewise.selector.report_json import write_report_json

    out = Path(args.out)
    if out.suffix not in (".html", ".md", ".json"):
        raise PlanError(f"-o {args.out}: expected a name that ends in .html, .md or .json")
    with Store(store_path(args.run), reading=True) as store:
        data = _data(args, store)
    if out.suffix == ".html":
        write_report(out, data, examples=not args.no_examples)
    elif out.suffix == ".json":
        write_report_json(out, data, examples=not args.no_examples)
    else:
        write_markdown(out, data)  # holds no text of the data at all
    print(out)
    return 0


def _data(args: argparse.Namespace, store: Store) -> ReportData:
    from edgewise.results import read_examples, report_data

    folder = RunFolder(Path(args.run))
    if args.data is None and (given := _differ(args, _COLUMNS)):
        raise PlanError(f"{given[0]} {_value(args, given[0])}: names a column of --data, which is not given")
    texts, labels = _texts(args, store) if args.data is not None else ({}, {})
    return report_data(
        store,
        _selections(args, store),
        title=f"{Path(args.run).resolve().name}: which model, in which form, on this device?",
        command=_command(args, folder),
        plan=folder.plan.read_text(encoding="utf-8") if folder.plan.is_file() else "",
        texts=texts,
        labels=labels,
        changed=() if args.data is not None else read_examples(folder),
        bundle=str(folder.path / "chosen"),
        machine=args.machine,
    )


_COLUMNS: dict[str, str | None] = {"--text": "text", "--text-pair": None, "--label": "label"}
"""Options of --data -> what they are unless given."""


def _value(args: argparse.Namespace, option: str) -> object:
    return getattr(args, option.removeprefix("--").replace("-", "_"))


def _differ(args: argparse.Namespace, defaults: Mapping[str, str | None]) -> list[str]:
    return [option for option, default in defaults.items() if _value(args, option) != default]


def _command(args: argparse.Namespace, folder: RunFolder) -> str:
    """What to type to get this report again, and before it what made the run."""
    words = ["edgewise", "report", args.run]
    for budget in args.budget:
        words += ["--budget", budget]
    options = dict.fromkeys(("--objective", "--confidence", "--machine", "--data")) | _COLUMNS
    for option in _differ(args, options):
        words += [option, str(_value(args, option))]
    words += ["--no-examples"] if args.no_examples else []
    again = shlex.join([*words, "-o", args.out])
    if not folder.plan.is_file():
        return again
    return f"{shlex.join(['edgewise', 'fit', str(folder.plan), '--out', args.run])}\n{again}"


def _texts(args: argparse.Namespace, store: Store) -> tuple[dict[str, str], dict[int, str]]:
    """Row id -> text of --data, and what the numbers of answers stand for. Raises DataError."""
    from edgewise.data import load_rows
    from edgewise.results import labels_by_number

    rows = load_rows(args.data, text=args.text, text_pair=args.text_pair, label=args.label)
    texts = {r.id: r.text if r.text_pair is None else f"{r.text} / {r.text_pair}" for r in rows}
    labels = labels_by_number(store, rows)
    if not labels:
        raise PlanError(f"--data {args.data}: none of its rows was measured in {args.run}: give those of `profile`")
    return texts, labels


def _selections(args: argparse.Namespace, store: Store) -> tuple[Selection, ...]:
    """Of a run folder: as `fit` chose and confirmed. Of a store, or with budgets: chosen now."""
    from edgewise.results import read_selections
    from edgewise.verbs_select import asked_of, choose

    run = Path(args.run)
    folder = RunFolder(run)
    if run.is_dir() and not args.budget and (folder.selection.is_file() or folder.plan.is_file()):
        for option in ("objective", "confidence", "machine"):
            if getattr(args, option) is not None:
                raise PlanError(
                    f"--{option} {getattr(args, option)}: the plan of {run} chose; to choose anew give --budget too, "
                    f"or name its store, {store_path(args.run)}"
                )
        return read_selections(folder.selection)
    return choose(store, asked_of(args), args.machine)
