"""Generation, text in and text out: edgewise beside a loop by hand, Optimum's `generate` and onnxruntime-genai.

SmolLM2-135M in fp32 (portable graph, and with the cache in place) and int4 (in place), a small GPT-2 on Brown, a small
T5 from letters to sounds. All ways on one graph write the same tokens greedily, each to its own end or 48 (GPT, T5:
64) tokens; they open and take turns in an order drawn anew, in several fresh processes. `first` is a call that
writes one token, `whole` one that writes all; both tokenize the text and decode the answer. Wall time and processor
time are kept: threads that wait spin, so that processor time says more with one thread.

The loops by hand are tokenizer, `session.run` on numpy arrays (in place: one binding, buffers of the final length) and
argmax, with nothing that a call could be spared. onnxruntime-genai runs the very graph of our in-place bundle; in int4
its own builder's graph beside it, whose weights are other ones (worse: see exporter/in_place.py).

    python benchmarks/forms.py --make --family GPT --family T5     (tunes the small models)
    python benchmarks/generation.py                                (about 15 minutes on 2 cores)
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

from conditions import RESULTS, conditions, here, save, spread
from generation_peers import Way, genai, in_place_loop, optimum, portable_loop, text_to_text_loop

WORK = Path("runs/generation")
FORMS = Path("runs/forms")
PROCESSES, ROUNDS = 5, 6
STEPS = {"SmolLM2 fp32": 48, "SmolLM2 int4": 48, "GPT": 64, "T5": 64}
BARS = {
    "edgewise / Optimum": {"SmolLM2 fp32": 1.25, "GPT": 1.25, "T5": 1.5},
    "edgewise / loop": {"SmolLM2 fp32": 0.97, "GPT": 0.97, "T5": 0.95},
    "edgewise in place / genai": {"SmolLM2 fp32": 1.0, "SmolLM2 int4": 0.95},
}
PAIRS = (
    ("edgewise", "Optimum"), ("edgewise", "loop"), ("edgewise in place", "Optimum"),
    ("edgewise in place", "loop in place"), ("edgewise in place", "genai"),
    ("edgewise in place", "genai, its own int4"),
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=list(STEPS), action="append", help="these alone; the others stay")
    parser.add_argument("--threads", type=int, action="append", help="1 and all cores unless given")
    parser.add_argument("--processes", type=int, default=PROCESSES)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        family, threads, seed, rounds = args.child
        print(json.dumps(measure(family, int(threads), int(seed), int(rounds))))
        return
    make_bundles(args.family or list(STEPS))
    path = RESULTS / "generation.json"
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"families": {}}
    result |= {"what": __doc__, "bars": BARS}
    for family in args.family or STEPS:
        for threads in args.threads or (1, os.cpu_count() or 1):
            found = _processes(family, threads, args.processes, args.rounds)
            result["families"].setdefault(family, {})[f"{threads} threads"] = found
            save("generation", result)
            print(f"{family}, {threads} threads: {json.dumps(found['ratios'], indent=1)}", file=sys.stderr)


def _processes(family: str, threads: int, processes: int, rounds: int) -> dict[str, Any]:
    load = os.getloadavg()[0]
    runs = []
    for seed in range(processes):
        command = [sys.executable, __file__, "--child", family, str(threads), str(seed), str(rounds)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr[-4000:])
        runs.append(json.loads(done.stdout.splitlines()[-1]))
        print(f"{family}, {threads} threads: process {seed + 1} of {processes}", file=sys.stderr, flush=True)
    samples = [sample for run in runs for sample in run["rounds"]]
    tokens = runs[0]["tokens"]
    return {
        "conditions": {
            **here(), "bundles": {n: conditions(Path(p))["bundle"] for n, p in runs[0]["bundles"].items()},
            "threads": threads, "load_before": load, "load_after": os.getloadavg()[0], "processes": processes,
            "rounds": rounds, "texts": runs[0]["texts"], "prompt_tokens": runs[0]["prompt_tokens"],
            "tokens_written_a_round": tokens,
        },
        "ways": {way: _numbers([s[way] for s in samples], tokens[way]) for way in samples[0]},
        "ratios": {
            f"{ours} / {peer}": _ratios([(s[ours], s[peer]) for s in samples])
            for ours, peer in PAIRS if ours in samples[0] and peer in samples[0]
        },
        "memory_bandwidth_gb_s": statistics.median(run["bandwidth"] for run in runs),
    }  # fmt: skip


def _numbers(samples: list[dict[str, float]], tokens: int) -> dict[str, Any]:
    return {
        "tokens_a_second": spread([tokens / s["whole"] for s in samples]),
        "first_token_ms": spread([1000 * s["first"] for s in samples]),
        "cpu_ms_a_token": spread([1000 * s["whole_cpu"] / tokens for s in samples]),
    }


def _ratios(samples: list[tuple[dict[str, float], dict[str, float]]]) -> dict[str, Any]:
    """How many times as fast as the peer, by round."""
    return {
        "tokens_a_second": spread([peer["whole"] / ours["whole"] for ours, peer in samples]),
        "first_token": spread([peer["first"] / ours["first"] for ours, peer in samples]),
        "tokens_a_cpu_second": spread([peer["whole_cpu"] / ours["whole_cpu"] for ours, peer in samples]),
    }


# ---- what is measured


def make_bundles(families: list[str]) -> None:
    """Export SmolLM2, and give the in-place bundles the files that onnxruntime-genai wants; what is there stays."""
    for family in {"GPT", "T5"} & set(families):
        if not (FORMS / family / "bundles" / "fp32").is_dir():
            raise SystemExit("run `python benchmarks/forms.py --make --family GPT --family T5` first")
    if not {"SmolLM2 fp32", "SmolLM2 int4"} & set(families):
        return
    from edgewise.assets import asset_path
    from edgewise.exporter import export

    recipes = ["fp32", "fp32-in-place", "int4-in-place"]
    for made in export(asset_path("smollm2"), recipes, out=WORK / "SmolLM2", task="text-generation"):
        if made.bundle is None:
            raise SystemExit(made.reason)
    _genai_folders(asset_path("smollm2"))


def _genai_folders(source: Path) -> None:
    """WORK/genai-fp32 and genai-int4 (our graphs), genai-own-int4 (its builder's)."""
    import shutil

    own = WORK / "genai-own-int4"
    if not (own / "genai_config.json").is_file():
        from onnxruntime_genai.models.builder import create_model

        cache = str(WORK / "cache")
        create_model(None, str(source), str(own), "int4", "cpu", cache, hf_token="false", hf_remote=False)
    for precision in ("fp32", "int4"):
        folder = WORK / f"genai-{precision}"
        folder.mkdir(exist_ok=True)
        for old in folder.glob("*.onnx*"):
            old.unlink()
        shutil.copyfile(own / "genai_config.json", folder / "genai_config.json")
        for file in (WORK / "SmolLM2" / f"{precision}-in-place" / "onnx").iterdir():
            os.link(file, folder / file.name)


def ways_of(family: str, threads: int) -> tuple[dict[str, Callable[[], Way]], dict[str, Path], list[str]]:
    """(way -> what opens it: text and number of tokens to the ids written; its bundles; the texts)."""

    def opens(way: Callable[..., Way], *args: Any) -> Callable[[], Way]:
        return partial(way, *args)

    if family == "T5":
        bundle = FORMS / "T5" / "bundles" / "fp32"
        return {
            "edgewise": opens(edgewise_way, bundle, threads), "loop": opens(text_to_text_loop, bundle, threads),
            "Optimum": opens(optimum, bundle, threads, "text2text-generation"),
        }, {"fp32": bundle}, words(40)  # fmt: skip
    if family == "GPT":
        bundle = FORMS / "GPT" / "bundles" / "fp32"
        return {
            "edgewise": opens(edgewise_way, bundle, threads), "loop": opens(portable_loop, bundle, threads),
            "Optimum": opens(optimum, bundle, threads, "text-generation"),
        }, {"fp32": bundle}, sentences(6, 4)  # fmt: skip
    smollm2 = WORK / "SmolLM2"
    precision = family.rpartition(" ")[2]
    placed = smollm2 / f"{precision}-in-place"
    ways = {
        "edgewise in place": opens(edgewise_way, placed, threads),
        "loop in place": opens(in_place_loop, placed, threads),
        "genai": opens(genai, WORK / f"genai-{precision}", placed, threads),
    }
    if precision == "int4":
        ways["genai, its own int4"] = opens(genai, WORK / "genai-own-int4", placed, threads)
        return ways, {"int4-in-place": placed}, sentences(2, 40)
    portable = smollm2 / "fp32"
    ways |= {
        "edgewise": opens(edgewise_way, portable, threads), "loop": opens(portable_loop, portable, threads),
        "Optimum": opens(optimum, portable, threads, "text-generation"),
    }  # fmt: skip
    return ways, {"fp32": portable, "fp32-in-place": placed}, sentences(2, 40)


def edgewise_way(bundle: Path, threads: int) -> Way:
    """As users call it."""
    import edgewise

    model = edgewise.load(bundle, threads=threads)
    return lambda text, steps: list(model.predict([text], max_new_tokens=steps)[0].token_ids)


def measure(family: str, threads: int, seed: int, rounds: int) -> dict[str, Any]:
    """In this process: seconds a round and way."""
    import torch

    torch.set_num_threads(threads)
    openers, bundles, texts = ways_of(family, threads)
    random.seed(seed)
    # Where a session's weights lie changes its time by some percent, and the first that is made lies otherwise.
    opened = {name: openers[name]() for name in random.sample(list(openers), len(openers))}
    ways = {name: opened[name] for name in openers}
    steps = STEPS[family]
    tokens = {}
    for name, way in ways.items():  # also warms it up
        written = [way(text, steps) for text in texts]
        tokens[name] = sum(map(len, written))
        if name == next(iter(ways)):
            ours = written
        elif written != ours and name != "genai, its own int4":
            raise SystemExit(f"{family}: {name} writes other tokens than {next(iter(ways))}")
    found = []
    for _ in range(rounds):
        sample = {}
        for name in random.sample(list(ways), len(ways)):
            sample[name] = _timed(ways[name], texts, steps)
        found.append(sample)
    return {
        "rounds": found, "tokens": tokens, "texts": len(texts), "bandwidth": bandwidth(),
        "prompt_tokens": prompt_tokens(next(iter(bundles.values())), texts),
        "bundles": {name: str(path) for name, path in bundles.items()},
    }  # fmt: skip


def _timed(way: Way, texts: list[str], steps: int) -> dict[str, float]:
    """Seconds: `first` a text, `whole` and `whole_cpu` for all texts."""
    start = perf_counter()
    for text in texts:
        way(text, 1)
    middle, cpu = perf_counter(), process_time()
    for text in texts:
        way(text, steps)
    return {
        "first": (middle - start) / len(texts),
        "whole": perf_counter() - middle,
        "whole_cpu": process_time() - cpu,
    }


def bandwidth() -> float:
    """GB a second that one thread reads: what bounds a step that reads every weight once."""
    import numpy as np

    values = np.ones(1 << 27, np.float32)
    best = 0.0
    for _ in range(5):
        start = process_time()
        values.max()
        best = max(best, values.nbytes / 1e9 / (process_time() - start))
    return best


def prompt_tokens(bundle: Path, texts: list[str]) -> list[int]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(bundle / "tokenizer.json"))
    return [len(tokenizer.encode(text)) for text in texts]


def sentences(count: int, words_each: int) -> list[str]:
    """Sentences of Brown, several in one, of so many words."""
    from strategies import splits

    rows = splits("GPT").val
    texts = [" ".join(r.text for r in rows[8 * i : 8 * i + 8]).split() for i in range(count)]
    return [" ".join(t[:words_each]) for t in texts]


def words(count: int) -> list[str]:
    from strategies import splits

    return [r.text for r in splits("T5").val[:count]]


if __name__ == "__main__":
    main()
