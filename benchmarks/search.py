"""What the search of `fit` finds, and what it costs, beside measuring everything.

The space: three fine-tuned models (MiniLM with 6, 3 and 2 layers, movie reviews) x four recipes x 1 and 2 threads x
three lengths, 72 points. No text has more than 64 tokens, the longest of these: a longer one would be the same by
another name, which a search does not measure. `--run first` and `--run second` measure all of it, each for itself, as
`search: all` does by its defaults: five to ten fresh processes of a second a point, until the interval of p95 is within
5%, and all val rows.
`--replay` lets the search decide on what the first run recorded: a look is the beginning of a recorded process, a
measurement is all of its processes. The second run is the truth: for each of 20 sets of budgets, is the search's choice
the same, or one that is tied with its own there (as the rule of the choice has it; and beside it, whether the second
run could tell them apart were all points compared at once)? Where it differs its regret is printed, beside that of the
whole first run, which sees the same noise.

Cost is the seconds of worker processes from start to end, answers divided by the cores that share them, and a process
that describes the machine. What training and export cost is in neither.

    python benchmarks/search.py --make           (tunes and exports what is measured here; about 5 minutes)
    python benchmarks/search.py --run first      (about 18 minutes; stopped, it goes on where it was)
    python benchmarks/search.py --run second     (as long; better an hour later)
    python benchmarks/search.py --replay         (four minutes; writes benchmarks/results/search.json)

Needs an otherwise idle machine. --small: two bundles and short rounds, to try the script itself. --swap: the search on
the second run, and the first is the truth; nothing is written.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minilm import ROOT
from reviews import movie_reviews

WORK = ROOT / "runs" / "search"
MODELS: dict[str, tuple[int, ...] | None] = {"l6": None, "l3": (0, 2, 5), "l2": (0, 5)}
RECIPES = ("fp32", "fp32-o2", "int8-dynamic", "int8-static")
THREADS, LENGTHS, ROWS = (1, 2), (16, 32, 64), 1500
RUNS = {"first": 0, "second": 1}
"""Name of a run -> the seed that its texts are shuffled with."""


def splits() -> Any:
    from edgewise.data import load_splits

    spec = movie_reviews(
        split={"train": 0.7, "val": 0.2, "confirm": 0.1}, rows={"train": 1500, "val": ROWS, "confirm": 10}
    )
    return load_splits(spec, "text-classification", Path)


def subjects(small: bool) -> list[Any]:
    """All bundles with their names; made where they are not there."""
    from edgewise.assets import asset_path
    from edgewise.exporter import export
    from edgewise.plan import TuneSpec
    from edgewise.profiler import Subject
    from edgewise.trainer import tune

    data, found = splits(), []
    for name, layers in list(MODELS.items())[-1:] if small else MODELS.items():
        spec = TuneSpec(epochs=2, batch_size=16, max_length=64, keep_layers=layers)
        tuned = tune(
            asset_path("all-minilm-l6-v2"), data.train, data.labels, spec, out=WORK / "tuned" / name,
            task="text-classification",
        )  # fmt: skip
        recipes = ("fp32", "int8-dynamic") if small else RECIPES
        results = export(tuned.path, recipes, out=WORK / "bundles" / name, candidate=name, calibration=data.train[:500])
        if failed := {r.recipe.name: r.reason for r in results if r.bundle is None}:
            raise SystemExit(f"not exported: {failed}")
        # By the names of the recipes: a device's preset is part of the bundle's own.
        found += [Subject(name, recipe, r.bundle) for recipe, r in zip(recipes, results, strict=True) if r.bundle]
    return found


def targets(small: bool) -> list[Any]:
    from edgewise.types import RunSettings, Target

    lengths = LENGTHS[:1] if small else LENGTHS
    return [Target("here", RunSettings(threads=t, max_length=n)) for t in THREADS for n in lengths]


def store_of(name: str, small: bool) -> Path:
    return WORK / f"{'small-' if small else ''}{name}.sqlite"


def run(name: str, small: bool) -> None:
    """Measure all of the space; what is there already is not measured again."""
    from edgewise.profiler import Store, measure_accuracy, measure_latency
    from edgewise.profiler.rounds import Rounds

    rows = splits().val[: 300 if small else None]
    made, places = subjects(small), targets(small)
    with Store(store_of(name, small)) as store:
        print(f"{len(made) * len(places)} points, {len(rows)} rows", flush=True)
        measure_accuracy(made, places, rows, store=store, progress=_tell)
        rule = Rounds("p95", 0.05, 5, 5, 0.3) if small else Rounds()  # the defaults of a plan
        measure_latency(made, places, rows, store=store, spec=rule, seed=RUNS[name], progress=_tell)


def _tell(done: int, total: int, what: str) -> None:
    if done % 20 == 0 or done == total:
        print(f"  {done}/{total} {what}", file=sys.stderr, flush=True)


def replay(small: bool, swap: bool) -> None:
    """The search on the first run, judged by the second; the table, and the committed result.

    swap: the other way round, and the table alone.
    """
    from conditions import here, save
    from search_replay import Recorded, judged

    first, second = (Recorded(store_of(n, small)) for n in (reversed(RUNS) if swap else RUNS))
    cases = [judged(first, second, number) for number in range(len(first.sets()))]
    result = {
        **here(),
        "what": __doc__,
        "points": len(first.points),
        "rows": first.rows,
        "seconds_of_everything": {"first": first.whole_cost(), "second": second.whole_cost()},
        "summary": summary(cases),
        "cases": cases,
    }
    print(table(cases))
    print("\n".join(f"{k}: {v}" for k, v in result["summary"].items()))
    if not small and not swap:
        print(save("search", result))


def summary(cases: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Over all sets; of the five replays of each set, which take their looks from other processes."""
    replays = [r for c in cases for r in c["replays"]]
    ratios = sorted(r["speedup"] for r in replays)
    return {
        "sets": len(cases),
        "replays": len(replays),
        "search_same_or_tied": sum(r["same_or_tied"] for r in replays),
        "search_not_told_apart": sum(r["not_told_apart"] for r in replays),
        "first_run_not_told_apart": sum(c["first"]["not_told_apart"] for c in cases),
        "first_run_same_or_tied": sum(c["first"]["same_or_tied"] for c in cases),
        "sets_all_five_same_or_tied": sum(all(r["same_or_tied"] for r in c["replays"]) for c in cases),
        "same_as_first_run": sum(r["as_first_run"] for r in replays),
        "same_as_first_run_or_tied": sum(r["as_first_run_or_tied"] for r in replays),
        "speedup": {"min": ratios[0], "median": ratios[len(ratios) // 2], "max": ratios[-1]},
        "sets_with_5x": sum(min(r["speedup"] for r in c["replays"]) >= 5 for c in cases),
        "speedup_over_all": sum(r["whole_s"] for r in replays) / sum(r["seconds"] for r in replays),
    }


def table(cases: Sequence[dict[str, Any]]) -> str:
    lines = [
        "| budgets | objective | feasible | looks | in full | time | same or tied | not told apart | regret "
        "| of the first run |"
    ]
    lines.append("|---" * 10 + "|")
    for c in cases:
        replays = c["replays"]
        good = sum(r["same_or_tied"] for r in replays)
        worst = max(replays, key=lambda r: (not r["same_or_tied"], r["regret_size"]))
        lines.append(
            f"| {', '.join(c['budgets']) or 'none'} | {', '.join(c['objective'])} | {c['feasible']} "
            f"| {_mean(replays, 'looks'):.0f} | {_mean(replays, 'in_full'):.1f} "
            f"| {_mean(replays, 'seconds'):.0f} s, {min(r['speedup'] for r in replays):.1f}x "
            f"| {good} of {len(replays)} | {sum(r['not_told_apart'] for r in replays)} "
            f"| {worst['regret']} | {c['first']['regret']} |"
        )
    return "\n".join(lines)


def _mean(replays: Sequence[dict[str, Any]], name: str) -> float:
    return float(sum(r[name] for r in replays) / len(replays))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--make", action="store_true", help="tune and export, and measure nothing")
    parser.add_argument("--run", choices=list(RUNS))
    parser.add_argument("--replay", action="store_true")
    parser.add_argument("--swap", action="store_true", help="with --replay: the runs the other way round")
    parser.add_argument("--small", action="store_true", help="a small space, to try the script")
    args = parser.parse_args()
    if not (args.make or args.run or args.replay):
        parser.error("expected --make, --run first, --run second or --replay")
    WORK.mkdir(parents=True, exist_ok=True)
    if args.make:
        print(f"{len(subjects(args.small))} bundles in {WORK / 'bundles'}")
    if args.run:
        run(args.run, args.small)
    if args.replay:
        replay(args.small, args.swap)
    return 0


if __name__ == "__main__":
    sys.exit(main())
