"""`edgewise profile`."""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgewise.errors import PlanError
from edgewise.progress import Reporter
from edgewise.showing import show
from edgewise.types import MOST_THREADS, SCENARIOS
from edgewise.units import check_cores, parse_memory

if TYPE_CHECKING:
    from edgewise.profiler.rounds import RoundRule
    from edgewise.types import Device, Measurement, Target


def add_profile(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "example:\n"
        "  edgewise profile bundles/fp32 bundles/int8-dynamic --data reviews.csv --text text --label label \\\n"
        "      --threads 1,2 --max-length 32,64 --store measurements.sqlite\n"
        "  edgewise profile model.onnx --shape input_ids=1x64 --shape attention_mask=1x64"
    )
    parser.add_argument("bundle", nargs="+", help="bundle folders, or ONNX files of anyone's")
    parser.add_argument("--data", help="rows: CSV, TSV, JSON Lines, Parquet, a folder of images, or asset:NAME")
    parser.add_argument(
        "--shape", action="append", default=[], metavar="INPUT=NxM", help="of an ONNX file's input, such as ids=1x128"
    )
    parser.add_argument("--text", default="text", help="column with the text (default: text)")
    parser.add_argument("--image", default="image", help="column with the image's file (default: image)")
    parser.add_argument("--text-pair", help="column with the second text of a pair")
    parser.add_argument(
        "--label", help="column with the label, or labels or number; without it no accuracy (language models need none)"
    )
    parser.add_argument("--tokens", default="tokens", help="column with the words, for --tags (default: tokens)")
    parser.add_argument("--tags", help="column with the tag of each word, of token classification")
    parser.add_argument("--target", help="column with the text that is right, of text to text")
    parser.add_argument(
        "--slice", metavar="C,...", help="columns, 'length' or 'class': accuracy on each of their values"
    )
    parser.add_argument("--rows", type=int, help="at most so many rows")
    parser.add_argument("--provider", default="cpu", metavar="P,...", help="providers (default: cpu)")
    parser.add_argument("--threads", default="1", metavar="N,...", help="threads (default: 1)")
    parser.add_argument("--max-length", metavar="N,...", help="lengths in tokens (default: the model's)")
    parser.add_argument("--python", help="another interpreter to measure in, with its own onnxruntime")
    parser.add_argument(
        "--device", action="append", default=[], metavar="NAME,...",
        help="devices of the inventory to measure on, at the same time (default: here, which is this machine)",
    )  # fmt: skip
    parser.add_argument("--inventory", metavar="FILE", help="devices (default: devices.yaml, where it is there)")
    parser.add_argument("--memory", metavar="SIZE", help="memory that the worker may use, by cgroup, such as 512MB")
    parser.add_argument("--cores", metavar="N,...", help="cores that the worker may run on, such as 0,1")
    parser.add_argument("--store", default="measurements.sqlite", help="measurement store (default: %(default)s)")
    parser.add_argument(
        "--mode", choices=["quick", "standard", "mlperf"], default="standard",
        help="how long: quick p50, 1.5 s of calls; standard p95, 5 s and more; mlperf p90, 600 s (default: standard)",
    )  # fmt: skip
    parser.add_argument("--percentile", choices=["p50", "p90", "p95", "p99", "p99.9"], help="of the mode, unless given")
    parser.add_argument("--seconds", type=float, help="timed calls in one round, of the mode unless given")
    parser.add_argument("--max-rounds", type=int, help="fresh processes at most, of the mode unless given")
    parser.add_argument(
        "--scenario", metavar="S,...",
        help=f"{', '.join(SCENARIOS)} (default: generation for bundles that write, single-stream for the others)",
    )  # fmt: skip
    parser.add_argument("--streams", type=int, metavar="N", help="of multi-stream: inputs of a query (default: 8)")
    parser.add_argument("--rate", metavar="R", help="of server: queries, such as '20 /s'")
    parser.add_argument("--every", metavar="T", help="of paced: from one call to the next, such as '50 ms'")
    parser.add_argument("--minutes", type=float, help="of sustained: how long")
    parser.add_argument("--new-tokens", type=int, metavar="N", help="of generation: tokens to write (default: 32)")
    parser.add_argument("--confidence", type=float, default=0.95, help="of each bound (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="the measurements as JSON on standard output")


def run_profile(args: argparse.Namespace) -> int:
    from edgewise.profile_inputs import arrivals_asked, what_to_measure
    from edgewise.profiler import Store, profile
    from edgewise.types import to_dict

    devices = _devices(args)
    subjects, rows, task = what_to_measure(args)
    say = Reporter()
    spec, arrivals = _rounds(args), arrivals_asked(args, task)
    targets = _targets(args, [device.name for device in devices])
    if not 0.5 <= args.confidence < 1:
        raise PlanError(f"--confidence is {args.confidence}; expected at least 0.5 and below 1, such as 0.95")
    with Store(args.store) as store, say.step(f"profile {len(subjects)} {'bundles' if task else 'ONNX files'}"):
        before = store.last()
        found = profile(
            subjects,
            targets,
            rows,
            store=store,
            devices=devices,
            spec=spec,
            level=args.confidence,
            arrivals=arrivals,
            slices=args.slice.split(",") if args.slice else (),
            progress=say.update,
        )
    if args.json:
        print(json.dumps([to_dict(m) for m in found], indent=2, ensure_ascii=False))
    else:
        for m in found:
            _print_measurement(m)
        if any(x.low is not None for m in found for x in m.metrics):
            print(f"\n[low, high]: a one-sided bound each, at {100 * args.confidence:.12g}%; times over processes")
        if again := sum((m.id or 0) <= before for m in found):
            print(f"{again} of {len(found)} measurements stood in {args.store} already, and were not made again")
        print(f"stored in {args.store}; `edgewise select {args.store} --budget ...` chooses from it")
    return 4 if any(m.status == "failed" for m in found) else 0


def _rounds(args: argparse.Namespace) -> RoundRule:
    """The mode's, with what was given beside it."""
    from dataclasses import replace

    from edgewise.profiler.rounds import MODES

    if args.seconds is not None and not 0 < args.seconds < float("inf"):
        raise PlanError(f"--seconds is {args.seconds}; expected more than 0")
    if args.max_rounds is not None and args.max_rounds < MODES[args.mode].min_rounds:
        raise PlanError(f"--max-rounds is {args.max_rounds}; expected at least {MODES[args.mode].min_rounds}")
    given = {n: getattr(args, n) for n in ("percentile", "seconds", "max_rounds") if getattr(args, n) is not None}
    return replace(MODES[args.mode], **given)


def _devices(args: argparse.Namespace) -> tuple[Device, ...]:
    """Those that were named, or this machine."""
    from edgewise.types import Device

    names = [name for given in args.device for name in given.split(",")]
    if args.inventory is None and not names:
        return (_held(args, Device()),)
    from edgewise.inventory import inventory_at, named

    if len(set(names)) < len(names):
        raise PlanError(f"--device {','.join(names)} names one twice")
    return tuple(
        _held(args, device) for device in named(inventory_at(args.inventory), names or ["here"], args.inventory)
    )


def _held(args: argparse.Namespace, device: Device) -> Device:
    """A device, or what a limit makes of it, under a name of its own: 'here-512MB', 'here-cores-0-1'."""
    from dataclasses import replace

    if args.python is not None:
        if device.name != "here":
            raise PlanError(f"--python {args.python}: it is one of this machine; {device.name} has its own, python")
        device = replace(device, python=args.python)
    memory = None if args.memory is None else parse_memory("--memory", args.memory)
    cores = None if args.cores is None else check_cores("--cores", _numbers("--cores", args.cores))
    parts = [device.name]
    if memory is not None:
        parts.append("".join(args.memory.split()))
    if cores is not None:
        parts += ["cores", *map(str, cores)]
    if len(parts) == 1:
        return device
    return replace(device, name="-".join(parts), memory=memory or device.memory, cores=cores or device.cores)


def _targets(args: argparse.Namespace, devices: Sequence[str]) -> tuple[Target, ...]:
    from edgewise.types import RunSettings, Target

    lengths = _numbers("--max-length", args.max_length) if args.max_length else [None]
    providers, threads = args.provider.split(","), _numbers("--threads", args.threads)
    if bad := [n for n in threads if not 1 <= n <= MOST_THREADS]:
        raise PlanError(f"--threads is {bad[0]}; expected whole numbers from 1 to {MOST_THREADS:,}")
    if short := [n for n in lengths if n is not None and n < 3]:
        raise PlanError(f"--max-length is {short[0]}; expected at least 3 tokens")
    for option, values in (("provider", providers), ("threads", threads), ("max-length", lengths)):
        if len(set(values)) < len(values):
            raise PlanError(f"--{option} {','.join(map(str, values))} names one twice")
    return tuple(
        Target(device, RunSettings(provider, {}, count, length))
        for device in devices
        for provider in providers
        for count in threads
        for length in lengths
    )


def _numbers(option: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise PlanError(f"{option} {text!r}: expected numbers such as 1,2") from error


def _print_measurement(m: Measurement) -> None:
    where = m.target.text() if m.target else ""
    print(f"\n{m.candidate}/{m.recipe} on {where}, {m.scenario}")
    if m.status == "failed":
        _print_line("failed", m.reason)
    width = max([20, *(len(x.name) for x in m.metrics)])
    for x in m.metrics:
        if x.value is None:
            print(f"  {x.name:<{width}} -            {x.why}")
            continue
        bounds = f"[{show(x.low, x.unit)}, {show(x.high, x.unit)}]" if x.low is not None and x.high is not None else ""
        kind = "" if x.kind == "measured" else f"  {x.kind}"
        print(f"  {x.name:<{width}} {show(x.value, x.unit):<12} {bounds:<28} n={x.n}{kind}")
    _print_rounds(m)
    if words := m.conditions.get("words"):
        _print_line("said", words)
    if (scores := m.conditions.get("scores")) is not None:
        from edgewise.profiler.comparison import score_words

        _print_line("scores", score_words(scores))
    for part in m.conditions.get("slices") or ():
        print(f"  {_slice_line(part)}")
    _print_nodes(m)


def _print_rounds(m: Measurement) -> None:
    """What stands out of how the rounds went."""
    rounds = m.conditions.get("rounds") or {}
    if rounds.get("wide"):
        _print_line("wide", rounds["stopped"])
    if (load := m.conditions.get("server_load")) is not None:
        _print_line("load", f"{load:.0%} of what it can answer at so many at once")
    if (ids := m.conditions.get("made_up_ids")) is not None and ids["below"] < 100:
        _print_line("ids", f"0 to {ids['below'] - 1}, since the graph refuses larger ones")
    if rounds.get("repeated"):
        print(f"  {'repeated':<20} {len(rounds['repeated'])} of {rounds['count']} rounds, which were disturbed")
    if late := m.conditions.get("late"):
        print(f"  {'late':<20} {sum(late):,} of {sum(rounds['calls']):,} calls: due before the last was answered")
    for name, about in (
        ("disturbed", "other processes took the machine"),
        ("unsteady", "the thirds of a process differ"),
    ):
        if rounds.get(name):
            print(f"  {name:<20} {len(rounds[name])} of {rounds['count']} rounds: {about}")


def _slice_line(part: Mapping[str, Any]) -> str:
    """Accuracy or perplexity on a slice; of a comparison the drop, the ratio, or the changed answers."""
    name, value = "accuracy", part.get("accuracy")
    unit = "1"
    for other in ("perplexity", "ratio"):
        if other in part:
            name, value, unit = other, part[other], "number"
    if "changed" in part:
        name, value, unit = "drop", part.get("drop"), "points"
    n = part.get("n") or len(part.get("rows", ()))
    if value is None and unit == "number":
        return f"{part['slice']:<30} {name} unknown, n={n}"
    if value is None:
        return f"{part['slice']:<30} {part.get('changed', 0)} of {n} answers changed"
    return (
        f"{part['slice']:<30} {name} {show(value, unit)} [{show(part['low'], unit)}, {show(part['high'], unit)}] n={n}"
    )


def _print_nodes(m: Measurement) -> None:
    """Which provider runs how many nodes, and what most of the graph's time goes to."""
    placed, nodes = m.conditions.get("placement"), m.conditions.get("nodes")
    if placed:
        print(f"  {'nodes':<20} {', '.join(f'{count} on {name}' for name, count in placed.items())}")
    if nodes and nodes["graph_s"] > 0:
        most = [f"{name} {s / nodes['graph_s']:.0%}" for name, s in list(nodes["by_type"].items())[:4]]
        _print_line("time in the graph", ", ".join(most))


def _print_line(name: str, text: str) -> None:
    first, *more = textwrap.wrap(text, 100 - 23) or [""]
    print(f"  {name:<20} {first}")
    for line in more:
        print(f"{'':<23}{line}")
