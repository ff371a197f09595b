"""What `edgewise profile` measures, with which inputs, and how they come: from its options."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgewise.arrival import NUMBERS, Arrival
from edgewise.bundle import Bundle, read_bundle
from edgewise.data import Row, load_rows
from edgewise.errors import DataError, PlanError, nearest
from edgewise.run_inputs import PAIR_TASKS
from edgewise.types import IMAGE_TASKS, SCENARIOS, WRITING_TASKS, Task
from edgewise.units import parse_quantity

if TYPE_CHECKING:
    from edgewise.profiler import Subject
    from edgewise.profiler.graphs import GraphFile

_ANSWERS: dict[str, tuple[Task, ...]] = {
    "label": ("text-classification", "image-classification"),
    "tags": ("token-classification",),
    "target": ("text2text-generation",),
}
"""Option that names the column with what is right -> the tasks that have it."""
_UNITS = {"rate": "1/s", "every": "s"}
"""Of the numbers of scenarios that are typed with one."""
_OF_BUNDLES = {
    **dict.fromkeys(("data", "label", "tags", "target", "text_pair", "max_length", "rows", "slice")),
    "text": "text", "tokens": "tokens", "image": "image",
}  # fmt: skip
"""Option that is for bundles alone -> what it is unless given."""
_MADE_UP = Row(text="numbers made up for the graph's inputs")


def what_to_measure(args: argparse.Namespace) -> tuple[list[Subject], tuple[Row, ...], Task | None]:
    """(subjects, their inputs, the task of bundles; None for ONNX files, whose inputs are made up).

    Raises BundleError, DataError, PlanError for options that do not go together.
    """
    from edgewise.profiler.measure import subject_of

    for option, value in vars(args).items():
        if value == "":
            raise PlanError(f"--{option.replace('_', '-')} is empty: give it a value, or leave it out")
    graphs = [path for path in args.bundle if Path(path).suffix == ".onnx"]
    if graphs and len(graphs) < len(args.bundle):
        raise PlanError(f"{graphs[0]} is an ONNX file and others are bundles: profile one kind at a time")
    if graphs:
        return _graphs(args, graphs), (_MADE_UP,), None
    if args.rows is not None and args.rows < 1:
        raise PlanError(f"--rows is {args.rows}; expected at least 1")
    # Of several, one whose files changed is a failed measurement, and the others are measured.
    bundles = [read_bundle(path, verify="full" if len(args.bundle) == 1 else "none") for path in args.bundle]
    if args.shape:
        raise PlanError(f"--shape {args.shape[0]}: a bundle is fed with the rows of --data; shapes are for ONNX files")
    if args.data is None:
        raise PlanError("--data is missing: bundles are measured on real rows, such as --data reviews.csv")
    subjects = [subject_of(b) for b in bundles]
    for i, subject in enumerate(subjects):
        if same := next((s for s in subjects[:i] if s.name == subject.name), None):
            raise PlanError(
                f"{subject.bundle.path} and {same.bundle.path} are both called {subject.name}: profile one of them, or "
                "each into a store of its own, and compare the two"
            )
    return subjects, _rows(args, bundles), _task(bundles)


def _graphs(args: argparse.Namespace, paths: Sequence[str]) -> list[Subject]:
    from edgewise.profiler import Subject
    from edgewise.profiler.graphs import input_names, parse_shapes, read_graph

    for option, default in _OF_BUNDLES.items():
        if getattr(args, option) != default:
            raise PlanError(f"--{option.replace('_', '-')} is for bundles: what an ONNX file is fed with is made up")
    shapes = parse_shapes(args.shape)
    names = {path: input_names(path) for path in paths}
    for name in shapes:
        known = list(dict.fromkeys(n for found in names.values() for n in found))
        if name not in known:
            raise PlanError(f"--shape {name}=...: no graph has such an input: {nearest(name, known)}")
    graphs = [read_graph(path, {n: s for n, s in shapes.items() if n in names[path]}) for path in paths]
    for graph in graphs:
        for line in _fed(graph):
            print(line, file=sys.stderr if args.json else sys.stdout)
    return [Subject(name, graph.form, graph) for name, graph in zip(_told_apart(graphs), graphs, strict=True)]


def _told_apart(graphs: Sequence[GraphFile]) -> list[str]:
    """A name for each: the file's, with its folder's before it where two are the same. Raises PlanError for one file
    given twice."""
    if len({g.path for g in graphs}) < len(graphs):
        raise PlanError("an ONNX file is given twice: name each once")
    for depth in range(1, max(len(g.path.parts) for g in graphs) + 1):
        names = ["/".join([*g.path.parts[-depth:-1], g.path.stem]) for g in graphs]
        if len(set(names)) == len(names):
            break
    return names


def _fed(graph: GraphFile) -> list[str]:
    """How a graph is fed, for people; what nobody said is said."""
    lines = [f"{graph.path.name} is fed with made-up numbers:"]
    lines += [f"  {i.name:<30} {i.dtype:<8} {i.size}" for i in graph.inputs]
    assumed = dict.fromkeys(a for i in graph.inputs for a in i.assumed)
    if assumed:
        lines.append(f"  assumed: {', '.join(assumed)}; --shape INPUT=1x64 says otherwise")
    return lines


def arrivals_asked(args: argparse.Namespace, task: Task | None) -> tuple[Arrival, ...]:
    """The scenarios; that of the task unless one is named. Raises PlanError."""
    if args.scenario is not None and not all(args.scenario.split(",")):
        raise PlanError(f"--scenario {args.scenario!r}: a name is missing; expected some of {', '.join(SCENARIOS)}")
    names: list[Any] = (args.scenario or ("generation" if task in WRITING_TASKS else "single-stream")).split(",")
    if "generation" in names and task not in WRITING_TASKS:
        what = task or "an ONNX file"
        raise PlanError(f"--scenario generation is for bundles that write ({', '.join(WRITING_TASKS)}), not for {what}")
    if len(set(names)) < len(names):
        raise PlanError(f"--scenario {args.scenario!r} names one twice")
    for option, scenario in NUMBERS.items():
        if getattr(args, option) is not None and scenario not in names:
            raise PlanError(
                f"--{option.replace('_', '-')} {getattr(args, option)} is for the scenario {scenario}, which is not "
                f"asked for: --scenario {','.join([*(names if args.scenario else ()), scenario])}"
            )
    told = {name: getattr(args, name) for name in NUMBERS if getattr(args, name) is not None}
    numbers: dict[str, Any] = {n: parse_quantity(f"--{n}", v, _UNITS[n]) if n in _UNITS else v for n, v in told.items()}
    for name, number in numbers.items():
        if not 0 < number < math.inf:
            raise PlanError(f"--{name.replace('_', '-')} is {told[name]!r}; expected a number above 0")
    if "every" in numbers:
        numbers["every_s"] = numbers.pop("every")
    return tuple(Arrival(name, **numbers) for name in names)


def _task(bundles: Sequence[Bundle]) -> Task:
    """What the bundles are for, which says how the rows are read. Raises PlanError where it is not one thing."""
    tasks = list(dict.fromkeys(b.manifest.task for b in bundles))
    if len(tasks) > 1:
        raise PlanError(f"the bundles are for {' and '.join(tasks)}: profile those of one task at a time")
    return tasks[0]


def _rows(args: argparse.Namespace, bundles: Sequence[Bundle]) -> tuple[Row, ...]:
    task = _task(bundles)
    problems = list(dict.fromkeys(b.manifest.problem_type for b in bundles))
    if len(problems) > 1:
        raise PlanError(f"the bundles are for {' and '.join(map(str, problems))}: profile those of one kind at a time")
    for option, tasks in _ANSWERS.items():
        if getattr(args, option) is not None and task not in tasks:
            raise PlanError(f"--{option} {getattr(args, option)!r} is for {' and '.join(tasks)}, not for {task}")
    if args.text_pair is not None and task not in PAIR_TASKS:
        raise PlanError(f"--text-pair {args.text_pair!r}: bundles for {task} take one text each: leave it out")
    problem: Any = problems[0] if args.label is not None and problems[0] else "single_label_classification"
    rows = load_rows(
        args.data,
        task=_read_as(args, task),
        problem_type=problem,
        text=args.text,
        text_pair=args.text_pair,
        label=args.label,
        tokens=args.tokens,
        tags=args.tags,
        target=args.target,
        image=args.image,
        slices=args.slice.split(",") if args.slice else (),
    )[: args.rows]
    if not rows:
        raise DataError(f"{args.data} has no rows")
    return rows


def _read_as(args: argparse.Namespace, task: Task) -> Task:
    """The task whose rows the data has: that of the bundles where the answers are given, else plain texts or images."""
    if task in IMAGE_TASKS:
        return "image-classification"
    if task in ("text-generation", "fill-mask"):  # a text is its own answer; a .txt file is running text
        return "text-generation"
    return task if args.tags is not None or args.target is not None else "text-classification"
