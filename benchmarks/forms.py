"""Size, latency and accuracy of every recipe in four families, with PyTorch eager and Optimum's own output beside them.

The models are those that benchmarks/strategies.py tunes (`full`): MiniLM on movie reviews, a small GPT-2 on Brown, a
small T5 from letters to sounds, a small ViT on clothes; and SmolLM2-135M as it comes. Each form answers the same val
rows, batch 1, one thread, in fresh processes, five rounds, the forms in turn. A call is one forward pass of a row; for
generation the greedy writing of 24 tokens after a prompt of 16 (GPT) or after the word (T5).

Optimum's own output: its fp32 export, its O2, and its dynamic int8 with its preset for this CPU, per channel, made by
its own calls with nothing of ours.

    python benchmarks/strategies.py        (tunes what is measured here)
    python benchmarks/forms.py             (about 30 minutes on 2 cores; --family BERT for one alone)

Needs an otherwise idle machine: it says the load that it found.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter_ns
from typing import Any

from conditions import RESULTS, here, save
from strategies import FAMILIES, start_from
from strategies import splits as rows_of

DOCS = Path(__file__).parents[1] / "docs" / "recipes.md"
START, END = "<!-- measured: benchmarks/forms.py writes this -->", "<!-- end -->"
ROUNDS, CALLS, WRITES, STEPS, PROMPT = 5, 60, 6, 24, 16
VAL = {"SmolLM2": 200}
"""Val rows that are answered, where they are not 500: 135M parameters take their time in every form."""
ABOUT = {
    "BERT": "MiniLM, 22.7M parameters, movie reviews",
    "GPT": "GPT-2, 2.2M parameters, Brown",
    "T5": "T5, 2.5M parameters, letters to sounds",
    "ViT": "ViT, 0.5M parameters, Fashion-MNIST",
    "SmolLM2": "SmolLM2-135M, sentences of Brown, not tuned",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/forms"))
    parser.add_argument("--family", choices=list(ABOUT), action="append", help="these alone; the others stay")
    parser.add_argument("--make", action="store_true", help="tune and export, and measure nothing")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--table", action="store_true", help="write the page from the committed result")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(_one(Path(args.one[0]), args.one[1], Path(args.one[2]))))
        return
    path = RESULTS / "forms.json"
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"families": {}}
    result["what"] = __doc__
    for family in args.family or ABOUT if args.make else ():
        checkpoint, splits, task = _model(family, args.work / family)
        _edgewise(checkpoint, splits, task, args.work / family)
    for family in () if args.table or args.make else args.family or ABOUT:
        result["families"][family] = {"about": ABOUT[family], **measure(family, args.work / family)}
        save("forms", result)
    write_table(result)


def measure(family: str, work: Path) -> dict[str, Any]:
    """All forms of one family: made, proven, scored, and timed in turn."""
    work.mkdir(parents=True, exist_ok=True)
    checkpoint, splits, task = _model(family, work)
    forms, failed = _edgewise(checkpoint, splits, task, work)
    peers = _optimum(checkpoint, task, work)
    scored = _scores(checkpoint, splits, task, {**{n: p / "onnx" for n, p in forms.items()}, **peers})
    places = {
        **{n: p / "onnx" for n, p in forms.items()}, **peers, "PyTorch eager": checkpoint,
    }  # fmt: skip
    feeds = _write_feeds(checkpoint, splits, task, work)
    load = os.getloadavg()[0]
    times = {name: [] for name in places}
    for number in range(ROUNDS):
        for name, place in places.items():
            times[name].append(_in_a_process(place, task, feeds))
        print(f"{family}: round {number + 1} of {ROUNDS}", file=sys.stderr, flush=True)
    sizes = {name: _size(place) for name, place in places.items()}
    rows = {
        name: {
            "bytes": sizes[name],
            "ms": {
                "median": statistics.median(times[name]), "min": min(times[name]), "max": max(times[name]),
            },
            **scored.get(name, {}),
        }
        for name in places
    }  # fmt: skip
    return {
        "conditions": {
            **here(), "load_before": load, "threads": 1, "rounds": ROUNDS, "calls": CALLS, "rows": len(splits.val),
        },
        "task": task, "forms": rows, "failed": failed,
    }  # fmt: skip


def _model(family: str, place: Path) -> tuple[Path, Any, Any]:
    from edgewise.assets import asset_path
    from edgewise.plan import TuneSpec
    from edgewise.trainer import tune

    splits = rows_of("GPT" if family == "SmolLM2" else family)
    judged = replace(splits, val=splits.val[: VAL.get(family, 500)])
    if family == "SmolLM2":
        return asset_path("smollm2"), judged, "text-generation"
    work, one = Path("runs/strategies"), FAMILIES[family]
    work.mkdir(parents=True, exist_ok=True)
    source = start_from(family, work)
    spec = TuneSpec(strategy="full", learning_rate=one.rates.get("full"), **one.spec)
    done = tune(
        source, splits.train[:8000], splits.labels, spec, out=place / f"{family}-full", task=one.task, val=splits.val
    )
    return done.path, judged, one.task


def _edgewise(checkpoint: Path, splits: Any, task: Any, work: Path) -> tuple[dict[str, Path], dict[str, str]]:
    from edgewise.exporter import export

    results = export(
        checkpoint, ["all"], out=work / "bundles", task=task, calibration=splits.train[:500],
        validation=splits.val,
        progress=lambda done, total, what: print(f"  {done}/{total} {what}", file=sys.stderr, flush=True),
    )  # fmt: skip
    return (
        {r.recipe.name: r.bundle.path for r in results if r.bundle is not None},
        {r.recipe.name: r.reason for r in results if r.bundle is None},
    )


def _optimum(checkpoint: Path, task: Any, work: Path) -> dict[str, Path]:
    """Optimum's own fp32, O2 and dynamic int8, as its documentation makes them."""
    from optimum.exporters.onnx import main_export
    from optimum.onnxruntime import ORTOptimizer, ORTQuantizer
    from optimum.onnxruntime.configuration import AutoOptimizationConfig, AutoQuantizationConfig

    from edgewise.exporter.quantize import cpu_preset

    made = {"Optimum fp32": work / "optimum"}
    cached = task in ("text-generation", "text2text-generation")
    if not (made["Optimum fp32"] / "config.json").is_file():
        main_export(str(checkpoint), output=made["Optimum fp32"], task=f"{task}-with-past" if cached else task)
    if not cached:
        made["Optimum O2"] = work / "optimum-o2"
        config = AutoOptimizationConfig.with_optimization_level("O2")
        try:
            ORTOptimizer.from_pretrained(made["Optimum fp32"]).optimize(config, made["Optimum O2"], file_suffix="")
        except Exception as error:  # it does not know every family
            print(f"Optimum O2: {error}", file=sys.stderr)
            del made["Optimum O2"]
    made["Optimum int8"] = work / "optimum-int8"
    config = getattr(AutoQuantizationConfig, cpu_preset())(is_static=False, per_channel=True)
    for graph in made["Optimum fp32"].glob("*.onnx"):
        quantizer = ORTQuantizer.from_pretrained(made["Optimum fp32"], file_name=graph.name)
        quantizer.quantize(config, made["Optimum int8"], file_suffix="")
    return made


def _scores(checkpoint: Path, splits: Any, task: Any, places: dict[str, Path]) -> dict[str, Any]:
    """Against the fp32 graphs, on val rows: the score, and the answers that changed."""
    from tempfile import TemporaryDirectory

    from edgewise.exporter.against_fp32 import against_fp32
    from edgewise.exporter.base import make_base
    from edgewise.exporter.checkpoint import read_checkpoint
    from edgewise.exporter.proof import Validation

    source = read_checkpoint(checkpoint)
    with TemporaryDirectory() as folder:
        base = make_base(source, task, splits.train[:16], Path(folder), None)
        validation = Validation(base, source.problem_type, tuple(splits.val))
        found = {}
        for name, place in places.items():
            if "vocabulary" in name:  # other token ids: its manifest says what it was found to do
                manifest = json.loads((place.parent / "edgewise.json").read_text(encoding="utf-8"))
                found[name] = manifest["parity"]["against_fp32"]
                continue
            try:
                ours = validation.outcomes(place, validation.chosen)
                found[name] = against_fp32(task, validation.fp32, ours, source.problem_type)
            except Exception as error:
                found[name] = {"why": " ".join(str(error).split())[:200]}
    return found


def _write_feeds(checkpoint: Path, splits: Any, task: Any, work: Path) -> Path:
    """Real rows as feeds of batch 1, and the path to them."""
    from tempfile import TemporaryDirectory

    from edgewise.exporter.base import make_base
    from edgewise.exporter.checkpoint import read_checkpoint
    from edgewise.exporter.outcomes import examples

    source = read_checkpoint(checkpoint)
    with TemporaryDirectory() as folder:
        base = make_base(source, task, splits.train[:16], Path(folder), None)
        feeds = [e.feeds for e in examples(source, base, splits.val[: 3 * CALLS])][:CALLS]
    if task == "text-generation":
        feeds = [{n: v[:, :PROMPT] for n, v in f.items()} for f in feeds if f["input_ids"].shape[1] >= PROMPT][:WRITES]
    elif task == "text2text-generation":
        feeds = feeds[:WRITES]
    path = work / "feeds.pickle"
    path.write_bytes(pickle.dumps(feeds))
    return path


def _in_a_process(place: Path, task: str, feeds: Path) -> float:
    """Median milliseconds a call in a fresh process."""
    command = [sys.executable, __file__, "--one", str(place), task, str(feeds)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return float(json.loads(done.stdout.strip().splitlines()[-1]))


def _one(place: Path, task: str, feeds: Path) -> float:
    """This process: one form, all calls; the median of their times in milliseconds."""
    given = [_known(feed, place.parent) for feed in pickle.loads(feeds.read_bytes())]
    call = _onnx(place, task) if list(place.glob("*.onnx")) else _torch(place, task)
    for feed in given[:3]:
        call(feed)
    spent = []
    for feed in given:
        start = perf_counter_ns()
        call(feed)
        spent.append((perf_counter_ns() - start) / 1e6)
    return statistics.median(spent)


def _known(feed: Any, bundle: Path) -> Any:
    """The feed with ids that a smaller vocabulary has: time depends on how many there are, not on which."""
    config = bundle / "config.json"
    size = json.loads(config.read_text(encoding="utf-8")).get("vocab_size") if config.is_file() else None
    return {n: v % size if size and n.endswith("input_ids") else v for n, v in feed.items()}


def _onnx(place: Path, task: Any) -> Callable[[Any], Any]:
    from edgewise.exporter import sessions

    manifest = place.parent / "edgewise.json"
    told = json.loads(manifest.read_text(encoding="utf-8")) if manifest.is_file() else {"recipe": {}}
    graphs = sessions.open_graphs(place, task, threads=1, saved=bool(told["recipe"].get("offline")))
    if told["recipe"].get("cache") == "in-place":
        from edgewise.exporter.in_place import greedy_in_place, open_in_place

        session = open_in_place(place / "model.onnx", threads=1)
        return lambda feed: greedy_in_place(session, feed["input_ids"], STEPS)
    if "generation" in task:
        return lambda feed: sessions.greedy(graphs, feed, STEPS)
    return lambda feed: sessions.answers(graphs, feed)


def _torch(place: Path, task: Any) -> Callable[[Any], Any]:
    import torch

    from edgewise.exporter.checkpoint import read_checkpoint
    from edgewise.exporter.originals import load_original

    torch.set_num_threads(1)
    model = load_original(read_checkpoint(place), task)

    def call(feed: Any) -> Any:
        tensors = {n: torch.from_numpy(v) for n, v in feed.items() if not n.startswith("decoder_")}
        with torch.inference_mode():
            if "generation" in task:
                return model.generate(**tensors, max_new_tokens=STEPS, min_new_tokens=STEPS, do_sample=False)
            return model(**tensors)

    return call


def _size(place: Path) -> int:
    """Bytes of what a device needs to answer: graphs, or weights."""
    names: Sequence[str] = ("*.safetensors",)
    if list(place.glob("*.onnx")):
        merged = (place / "decoder_model_merged.onnx").is_file()
        names = ("encoder_model.onnx*", "decoder_model_merged.onnx*") if merged else ("model*.onnx", "model*.onnx_data")
        if not merged and (place / "decoder_model.onnx").is_file():
            names = ("*.onnx", "*.onnx_data")
    return sum(p.stat().st_size for name in names for p in place.glob(name))


# ---- the page


def write_table(result: dict[str, Any]) -> None:
    """Write the tables into docs/recipes.md, so that its numbers are the committed ones."""
    lines = []
    for family, found in result["families"].items():
        machine = found["conditions"]["machine"]
        forms = found["forms"]
        eager = forms["PyTorch eager"]["ms"]["median"]
        measure = next((f["measure"] for f in forms.values() if "measure" in f), "")
        lines += [
            f"### {family}: {found['about']}",
            "",
            f"On {machine['cpu']} ({', '.join(f for f in machine['flags'] if 'avx' in f or 'amx' in f)}), one thread, "
            f"{found['conditions']['date']}. Score: {measure}.",
            "",
            "| form | MB | ms a call (range of rounds) | times as fast as PyTorch | score | drop | answers changed |",
            "|---|---|---|---|---|---|---|",
        ]
        for name, form in sorted(forms.items(), key=lambda item: item[1]["ms"]["median"]):
            ms = form["ms"]
            score = f"{form['value']:.4g}" if "value" in form else ""
            drop = f"{form['drop']:.3g}, at most {form['drop_at_most']:.3g}" if "drop" in form else ""
            changed = f"{form['share_changed']:.1%}" if "share_changed" in form else ""
            lines.append(
                f"| {name} | {form['bytes'] / 1e6:.1f} | {ms['median']:.2f} ({ms['min']:.2f}–{ms['max']:.2f}) "
                f"| {eager / ms['median']:.2f} | {score} | {drop} | {changed} |"
            )
        lines += [f"\n{name}: {why}" for name, why in found["failed"].items()]
        lines.append("")
    text = DOCS.read_text(encoding="utf-8")
    head, _, rest = text.partition(START)
    DOCS.write_text(head + START + "\n\n" + "\n".join(lines) + END + rest.partition(END)[2], encoding="utf-8")


if __name__ == "__main__":
    main()
