"""Resident memory over 100,000 calls with texts of random lengths: does it stay flat?

Texts of 1 to 512 tokens, their logarithm evenly spread, drawn from words of the reviews; RSS every 1,000 calls. Three
ways, each in a fresh process: edgewise called text by text, edgewise given all texts as one generator (a call a core at
once), and tokenizers with a session of onnxruntime's defaults.

    python benchmarks/flat_memory.py         (about 30 minutes on an idle machine)
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from conditions import RESULTS, conditions, save
from minilm import MAIN, bundles, in_a_child, reviews

CALLS, EVERY, LONGEST = 100_000, 1000, 512
CALL, STREAM, PLAIN = "edgewise, text by text", "edgewise, a generator", "tokenizers + onnxruntime's defaults"


def texts(words: list[str], count: int) -> Iterator[str]:
    drawn = random.Random(0)
    for _ in range(count):
        yield " ".join(drawn.choices(words, k=int((LONGEST - 1) ** drawn.random())))


def rss_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def answers(way: str, bundle: str, inputs: Iterator[str]) -> Iterator[Any]:
    if way == PLAIN:
        yield from _plain(bundle, inputs)
        return
    import edgewise

    model = edgewise.load(bundle, task="text-classification")
    yield from model(inputs) if way == STREAM else map(model, inputs)


def _plain(bundle: str, inputs: Iterator[str]) -> Iterator[Any]:
    import numpy as np
    import onnxruntime as ort
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(f"{bundle}/tokenizer.json")
    tokenizer.no_padding()
    tokenizer.enable_truncation(LONGEST)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(f"{bundle}/onnx/model.onnx", options, providers=["CPUExecutionProvider"])
    for text in inputs:
        e = tokenizer.encode(text)
        feed = {"input_ids": e.ids, "attention_mask": e.attention_mask, "token_type_ids": e.type_ids}
        yield session.run(None, {name: np.array([values], dtype=np.int64) for name, values in feed.items()})


def child(job: dict[str, Any]) -> list[float]:
    """RSS in MB after each EVERY answers."""
    found = []
    for number, _ in enumerate(answers(job["way"], job["bundle"], texts(job["words"], job["calls"])), 1):
        if number % EVERY == 0:
            found.append(round(rss_mb(), 2))
    return found


def summary(found: list[float]) -> dict[str, Any]:
    """Growth after the first tenth, in which every length has been seen and the arena has its size."""
    tenth = len(found) // 10
    rest = found[tenth:]
    return {
        "first_mb": found[0],
        "after_a_tenth_mb": found[tenth],
        "last_mb": found[-1],
        "largest_mb": max(found),
        "growth_after_a_tenth_mb": round(rest[-1] - rest[0], 2),
        "growth_in_the_second_half_mb": round(found[-1] - found[len(found) // 2], 2),
        "rss_mb_every_1000_calls": found,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=CALLS)
    parser.add_argument("--way", choices=[CALL, STREAM, PLAIN], action="append", help="these alone; the others stay")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(child(json.loads(sys.stdin.read()))))
        return
    bundle = bundles([MAIN])[MAIN]
    words = " ".join(reviews(2000)).split()
    path = RESULTS / "flat_memory.json"
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"ways": {}}
    result |= {"what": __doc__, "conditions": {**conditions(bundle), "calls": args.calls, "longest": LONGEST}}
    for way in args.way or (CALL, STREAM, PLAIN):
        job = {"way": way, "bundle": str(bundle), "words": words, "calls": args.calls}
        result["ways"][way] = found = summary(in_a_child(__file__, job))
        print(f"{way}: " + ", ".join(f"{k} {v}" for k, v in found.items() if not isinstance(v, list)), flush=True)
        print(save("flat_memory", result))  # after each: one takes 15 minutes or more


if __name__ == "__main__":
    main()
