"""What edgewise adds to one call at batch 1 over tokenizer + session.run called by hand, and int8 beside PyTorch.

By hand means twice: on the session that edgewise made, and on one that a script makes with onnxruntime's defaults. All
ways answer the same reviews in turn, each text three times in an order drawn anew; the ratio is of the sums over the
texts of the fastest of the three. In other processes the same for edgewise (int8) and PyTorch eager (fp32, the same
checkpoint, tokenizer and forward pass). One thread each; repeated in fresh processes.

    python benchmarks/overhead.py            (about 3 minutes on an idle machine; it says the load that it found)
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter_ns
from typing import Any

from conditions import conditions, save, spread
from minilm import MAIN, bundles, checkpoint, in_a_child, reviews

MAX_LENGTH, REPEATS = 64, 3
BARS = {"edgewise / by hand": 1.03, "edgewise / by hand, own session": 1.03, "PyTorch eager / edgewise": 3.3}
"""The first two are upper limits; the last is a lower one, for CPUs with VNNI (2 without)."""


def by_hand(tokenizer: Any, session: Any) -> Callable[[str], Any]:
    """What a script does that was written for this one model."""
    import numpy as np

    def answer(text: str) -> Any:
        e = tokenizer.encode(text)
        feed = {
            "input_ids": np.array([e.ids], dtype=np.int64),
            "attention_mask": np.array([e.attention_mask], dtype=np.int64),
            "token_type_ids": np.array([e.type_ids], dtype=np.int64),
        }
        return session.run(None, feed)

    return answer


def hand_ways(bundle: Path) -> dict[str, Callable[[str], Any]]:
    import onnxruntime as ort
    from tokenizers import Tokenizer

    import edgewise

    model = edgewise.load(bundle, task="text-classification", threads=1, max_length=MAX_LENGTH)
    tokenizer = Tokenizer.from_file(str(bundle / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_LENGTH)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    own = ort.InferenceSession(bundle / "onnx" / "model.onnx", options, providers=["CPUExecutionProvider"])
    return {
        "edgewise": model,
        "by hand": by_hand(tokenizer, model.session()),
        "by hand, own session": by_hand(tokenizer, own),
    }


def torch_ways(bundle: Path, source: Path) -> dict[str, Callable[[str], Any]]:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    import edgewise

    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(source)
    eager = AutoModelForSequenceClassification.from_pretrained(source).eval()

    def answer(text: str) -> Any:
        with torch.inference_mode():
            return eager(**tokenizer(text, truncation=True, max_length=MAX_LENGTH, return_tensors="pt")).logits

    return {"edgewise": edgewise.load(bundle, threads=1, max_length=MAX_LENGTH), "PyTorch eager": answer}


def measure(ways: dict[str, Callable[[str], Any]], texts: list[str], seed: int) -> dict[str, float]:
    """Mean microseconds a call of each way, in this process; of each text the fastest call, others are disturbed."""
    spent = dict.fromkeys(ways, 0)
    for text in texts[:50]:
        for way in ways.values():
            way(text)
    order = list(ways) * REPEATS
    random.seed(seed)
    for text in texts:
        random.shuffle(order)
        calls: dict[str, list[int]] = {name: [] for name in ways}
        for name in order:
            start = perf_counter_ns()
            ways[name](text)
            calls[name].append(perf_counter_ns() - start)
        for name, found in calls.items():
            spent[name] += min(found)
    return {name: ns / len(texts) / 1000 for name, ns in spent.items()}


def child(job: dict[str, Any]) -> dict[str, float]:
    bundle = Path(job["bundle"])
    ways = torch_ways(bundle, Path(job["source"])) if job["source"] else hand_ways(bundle)
    return measure(ways, job["texts"], job["seed"])


def in_a_process(**job: Any) -> dict[str, float]:
    found: dict[str, float] = in_a_child(__file__, job, OMP_NUM_THREADS="1")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, nargs="?", help="another bundle of the same checkpoint")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--texts", type=int, default=600)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(child(json.loads(sys.stdin.read()))))
        return
    source, bundle = checkpoint(), args.bundle.resolve() if args.bundle else bundles([MAIN])[MAIN]
    texts = reviews(args.texts)
    by_hand_rounds, torch_rounds, loads = [], [], []
    for seed in range(args.rounds):
        by_hand_rounds.append(in_a_process(bundle=str(bundle), source=None, texts=texts, seed=seed))
        few = texts[:: max(1, len(texts) // 150)]
        torch_rounds.append(in_a_process(bundle=str(bundle), source=str(source), texts=few, seed=seed))
        loads.append(os.getloadavg()[0])
        print(f"round {seed + 1} of {args.rounds}, load {loads[-1]:.1f}: {by_hand_rounds[-1]} {torch_rounds[-1]}",
              file=sys.stderr)  # fmt: skip
    ratios = {
        "edgewise / by hand": [r["edgewise"] / r["by hand"] for r in by_hand_rounds],
        "edgewise / by hand, own session": [r["edgewise"] / r["by hand, own session"] for r in by_hand_rounds],
        "PyTorch eager / edgewise": [r["PyTorch eager"] / r["edgewise"] for r in torch_rounds],
    }
    result = {
        "what": __doc__,
        "conditions": {**conditions(bundle), "threads": 1, "max_length": MAX_LENGTH, "texts": len(texts)},
        "load": spread(loads),
        "bars": BARS,
        "microseconds_a_call": {
            **{name: spread([r[name] for r in by_hand_rounds]) for name in by_hand_rounds[0]},
            **{f"{n}, with PyTorch": spread([r[n] for r in torch_rounds]) for n in torch_rounds[0]},
        },
        **{name: spread(values) for name, values in ratios.items()},
    }
    for name, values in ratios.items():
        s = spread(values)
        print(f"{name}: {s['median']:.4f} ({s['min']:.4f}-{s['max']:.4f}), bar {BARS[name]}")
    print(save("overhead", result))


if __name__ == "__main__":
    main()
