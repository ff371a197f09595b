"""`edgewise select`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgewise.errors import StoreError
from edgewise.rundir import store_path
from edgewise.units import OF_ANSWERS, RELATIVE

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgewise.profiler import Store
    from edgewise.profiler.shortlist import Points
    from edgewise.types import Budget, Selection

    Indices = NDArray[np.int64]


def add_select(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "example:\n"
        "  edgewise select runs/movie-reviews/measurements.sqlite --budget 'p95 <= 10 ms' \\\n"
        "      --budget 'size <= 30 MB' --objective accuracy,p95\n"
        "  edgewise select measurements.sqlite --objective accuracy=2,p95=1    a point is worth 2% of p95\n\n"
        "exit codes: 0 chosen; 3 nothing meets the budgets"
    )
    parser.add_argument("store", help="measurement store, or a run folder that has one")
    parser.add_argument("--budget", action="append", default=[], metavar="B", help="such as 'p95 <= 10 ms'")
    parser.add_argument(
        "--objective", metavar="M,...",
        help="in order, or weighed as in accuracy=2,p95=1 (default: accuracy,p95, or what the store has instead)",
    )  # fmt: skip
    parser.add_argument("--confidence", type=float, help="of each bound (default: 0.95)")
    parser.add_argument("--device", help="only this device")
    parser.add_argument(
        "--machine",
        metavar="NAME",
        help="of a device that stands for several: part of its CPU's name (default: the last)",
    )
    parser.add_argument(
        "--all", action="store_true", help="judge every point of a store of more than 20,000 measurements"
    )
    parser.add_argument("--json", action="store_true", help="the selection as JSON on standard output")


def run_select(args: argparse.Namespace) -> int:
    from edgewise.profiler import Store
    from edgewise.profiler.shortlist import LARGE
    from edgewise.selector import joint_json, one_for_all, to_json

    asked = asked_of(args)
    with Store(store_path(args.store), reading=True) as store:
        large = store.last() > LARGE and not args.all
        selections = _from_large(args, store, asked) if large else choose(store, asked, args.machine, args.device)
    if args.json:
        joint = one_for_all(selections)
        shared = {"one_for_all": joint_json(joint)} if joint else {}
        print(json.dumps({"devices": [to_json(s) for s in selections], **shared}, indent=2, ensure_ascii=False))
    else:
        print_selections(selections)
    return 0 if all(s.chosen for s in selections) else 3


_ANSWERS = (*(n for n in OF_ANSWERS if n not in RELATIVE and not n.startswith("worst_slice_")), "agreement")
_TIMES = ("p95", "token_throughput", "p90", "p50", "offline_throughput", "multistream_throughput", "server_p95",
          "paced_p95", "sustained_throughput")  # fmt: skip
"""By what is chosen where nothing else is said: the first of each that the store has."""


@dataclass(frozen=True)
class Asked:
    """What is chosen by."""

    budgets: tuple[Budget, ...]
    objective: tuple[str, ...]
    """Empty: what the store has."""
    weights: tuple[float, ...]
    confidence: float


def asked_of(args: argparse.Namespace) -> Asked:
    """From --budget, --objective and --confidence. Raises PlanError."""
    from edgewise.units import parse_budget, parse_objective

    names, weights = parse_objective(args.objective) if args.objective is not None else ((), ())
    confidence = 0.95 if args.confidence is None else args.confidence
    return Asked(tuple(parse_budget(b) for b in args.budget), names, weights, confidence)


def aimed(asked: Asked, known: Collection[str], store: Store) -> Asked:
    """With an objective: the one asked for, or the first of those for answers and for time that something in the store
    was measured by. Raises StoreError for an objective that nothing was measured by."""
    from dataclasses import replace

    if missing := [name for name in asked.objective if name not in known]:
        found = ", ".join(n for n in (*_ANSWERS, *_TIMES, "size") if n in known)
        raise StoreError(
            f"--objective {missing[0]}: nothing in {store.path} was measured by it; it has {found or 'no metric'}"
        )
    if asked.objective:
        return asked
    firsts = [next((n for n in names if n in known), None) for names in (_ANSWERS, _TIMES)]
    return replace(asked, objective=tuple(n for n in firsts if n) or ("size",))


def choose(store: Store, asked: Asked, machine: str | None = None, device: str | None = None) -> tuple[Selection, ...]:
    """One selection a device, of all that stands in a store. Raises StoreError where that is nothing."""
    from edgewise.pairing import Pairing
    from edgewise.profiler import entries
    from edgewise.profiler.joining import left_by_a_search
    from edgewise.profiler.machines import one_machine
    from edgewise.selector import select_by_device
    from edgewise.selector.unmeasured import with_left_by_a_search

    found = entries(store, machine=machine, say=_note)
    if device is not None:
        _check_device(device, {e.target.device for e in found if e.target is not None})
        found = [e for e in found if e.target is None or e.target.device == device]
    if not found:
        raise StoreError(f"{store.path} holds no measurements to choose from: `edgewise profile` makes some")
    asked = aimed(asked, {n for e in found for n, m in e.metrics.items() if m.value is not None}, store)
    targets = list({e.target.text(): e.target for e in found if e.target is not None}.values())
    chosen = select_by_device(
        found, asked.budgets, asked.objective, confidence=asked.confidence, weights=asked.weights,
        paired=Pairing(store, targets, machine=machine),
    )  # fmt: skip
    left = left_by_a_search(one_machine(store.measurements(), machine)[0], found)
    return tuple(with_left_by_a_search(s, left.get(s.device, 0)) for s in chosen)


def _from_large(args: argparse.Namespace, store: Store, asked: Asked) -> tuple[Selection, ...]:
    """Of a store that is too large to read it all: the best points, judged by their intervals."""
    from edgewise.profiler.shortlist import devices_of

    if args.machine is not None:
        raise StoreError(f"--machine {args.machine}: {args.store} is too large for it without --all")
    devices = devices_of(store)
    if args.device is not None:
        _check_device(args.device, devices)
    return tuple(large_selection(store, device, asked) for device in ([args.device] if args.device else devices))


def large_selection(store: Store, device: str, asked: Asked) -> Selection:
    """The choice of `select` among all points of the device, without comparing row by row, and the next best ones."""
    from edgewise.profiler.shortlist import check_reference, machines_of, nearest, points, read_points
    from edgewise.selector import select
    from edgewise.selector.large import may_be_beaten
    from edgewise.selector.select import check_arguments, of_a_part

    asked = _aimed_in(store, asked)
    check_arguments(asked.budgets, asked.objective, asked.confidence, asked.weights)
    first = None if asked.weights else asked.objective[0]
    check_reference(store, device, asked.budgets)
    names = [*asked.objective, "size"]
    ours, words = machines_of(store, device)
    if words:
        _note(words)
    found = points(store, device, asked.budgets, names, first, ours)
    found, best, count = _best_of(store, device, found, asked)
    if found.cut is not None and not count:  # what was not read might be all that keeps the budgets
        found, best, count = _best_of(store, device, points(store, device, asked.budgets, names, None, ours), asked)
    unread = found.cut is not None and may_be_beaten(found.columns[asked.objective[0]][best[0]], found.cut)
    ids = [found.ids[i] for i in best] if count else nearest(store, device, asked.budgets, ours)
    shown = read_points(store, ids, ours)
    many = f"{'at least ' if found.cut is not None else ''}{count:,}"
    judged = (
        f"{store.last():,} measurements: {many} points of {device} keep every budget; {len(shown):,} were judged, by "
        "their intervals and not row by row"
        + (f"; others, which were not read, may tie with the best in {asked.objective[0]}" if unread else "")
        + "; --all judges each"
    )
    _note(judged)
    chosen = select(
        shown, asked.budgets, asked.objective, confidence=asked.confidence, weights=asked.weights, device=device
    )
    return of_a_part(chosen, (count - 1, found.cut is not None), f"{judged[:1].upper()}{judged[1:]}.")


def _best_of(store: Store, device: str, found: Points, asked: Asked) -> tuple[Points, Indices, int]:
    """(the points without those that failed as far as the best of them go, places of the best, how many keep all)."""
    from edgewise.profiler.shortlist import failed
    from edgewise.selector.large import best_points

    while True:
        best, count = best_points(
            found.columns, asked.budgets, asked.objective, confidence=asked.confidence, weights=asked.weights
        )
        bad = failed(store, device, found, (int(i) for i in best)) if count else set()
        if not bad:
            return found, best, count
        found = found.without(bad)


def _aimed_in(store: Store, asked: Asked) -> Asked:
    """`aimed` of a store that is too large to read it."""
    columns = {name for (name,) in store.query("SELECT name FROM pragma_table_info('summary')")}

    def known(name: str) -> bool:
        return name in columns and bool(store.query(f'SELECT 1 FROM summary WHERE "{name}" IS NOT NULL LIMIT 1'))

    if asked.objective and all(map(known, asked.objective)):
        return asked
    return aimed(asked, [n for n in (*asked.objective, *_ANSWERS, *_TIMES, "size") if known(n)], store)


def _note(words: str) -> None:
    print(f"note: {words}", file=sys.stderr)


def _check_device(device: str, names: Collection[str]) -> None:
    from edgewise.errors import nearest

    if device not in names:
        raise StoreError(f"no measurements of device {device!r}: {nearest(device, sorted(names))}")


def print_selections(selections: Sequence[Selection]) -> None:
    """The choice and the table of each device, and the one bundle for all of them, 80 columns wide."""
    from edgewise.selector import joint_table, near_misses, one_for_all, ranking_table

    for selection in selections:
        print()
        print(ranking_table(selection) if selection.chosen else near_misses(selection))
    if (joint := one_for_all(selections)) is not None:
        print(joint_table(joint))
