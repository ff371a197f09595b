"""2,000 movie reviews as fast as they go: edgewise beside the pipelines of Optimum and Transformers.

Each way may use every core, and is timed from the first text in to the last answer out, loaded and warm, in a fresh
process. edgewise answers as it always does: batch 1, one call a core. The pipelines are tried with batches of 1 to 32
in one round; the two fastest sizes of each then take part in the rounds, in turn, and the faster one counts.

Checked: edgewise's logits are those of one call after the other, bit by bit; how many labels of a pipeline's batches
differ from its own at batch 1 is said, since dynamic int8 depends on what it is padded with.

    python benchmarks/offline.py             (about 10 minutes on an idle machine; it says the load that it found)
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from conditions import conditions, save, spread
from minilm import MAIN, bundles, checkpoint, in_a_child, reviews

TEXTS, SIZES, BAR = 2000, (1, 2, 4, 8, 16, 32), 1.5
OURS, OPTIMUM, TRANSFORMERS = "edgewise", "Optimum pipeline", "transformers pipeline"


def edgewise_way(folder: str, texts: list[str]) -> dict[str, Any]:
    """Seconds and labels of all texts at once, and whether every logit is that of a call for the text alone."""
    import edgewise

    with edgewise.load(folder, task="text-classification") as model:
        model(texts[:64])
        start = perf_counter()
        found = model(texts)
        seconds = perf_counter() - start
        alone = [model.predict([text])[0].logits for text in texts]
        same = [p.logits for p in model.predict(texts)] == alone
        how = {"parallel": model.parallel, "batch_size": model.run.batch_size, "threads": model.run.threads}
    return {"seconds": seconds, "labels": [a["label"] for a in found], "same_logits_as_alone": same, "how": how}


def pipeline_way(model: Any, tokenizer: Any, texts: list[str], size: int) -> dict[str, Any]:
    from transformers import pipeline

    answer = pipeline("text-classification", model=model, tokenizer=tokenizer, device="cpu")
    answer(texts[:64], batch_size=size)
    start = perf_counter()
    found = answer(texts, batch_size=size)
    return {"seconds": perf_counter() - start, "labels": [a["label"] for a in found]}


def child(job: dict[str, Any]) -> dict[str, Any]:
    """One way in this process."""
    way, folder, texts = job["way"], job["folder"], job["texts"]
    if way == OURS:
        return edgewise_way(folder, texts)
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    if way == OPTIMUM:
        from optimum.onnxruntime import ORTModelForSequenceClassification

        model = ORTModelForSequenceClassification.from_pretrained(folder)
    else:
        model = AutoModelForSequenceClassification.from_pretrained(folder)
    return pipeline_way(model, AutoTokenizer.from_pretrained(folder), texts, job["size"])


def in_a_process(way: str, size: int, folder: Path, texts: Sequence[str]) -> dict[str, Any]:
    job = {"way": way, "size": size, "folder": str(folder), "texts": texts}
    found: dict[str, Any] = in_a_child(__file__, job)
    load = os.getloadavg()[0]
    print(f"{way}, batch {size}: {found['seconds']:.2f} s, load {load:.1f}", file=sys.stderr, flush=True)
    return {**found, "load": load}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(child(json.loads(sys.stdin.read()))))
        return
    bundle, texts = bundles([MAIN])[MAIN], reviews(TEXTS)
    folders = {OURS: bundle, OPTIMUM: bundle, TRANSFORMERS: checkpoint()}
    tried = {
        way: {size: in_a_process(way, size, folders[way], texts) for size in SIZES} for way in (OPTIMUM, TRANSFORMERS)
    }
    fastest = {way: sorted(found, key=lambda s: found[s]["seconds"])[:2] for way, found in tried.items()}
    turns = [(OURS, 1)] + [(way, size) for way, sizes in fastest.items() for size in sizes]
    runs: dict[tuple[str, int], list[dict[str, Any]]] = {turn: [] for turn in turns}
    for _ in range(args.rounds):
        for way, size in turns:
            runs[way, size].append(in_a_process(way, size, folders[way], texts))
    ours = [r["seconds"] for r in runs[OURS, 1]]
    if not all(r["same_logits_as_alone"] for r in runs[OURS, 1]):
        raise SystemExit("edgewise's logits are not those of single calls")
    peers = {}
    for way, sizes in fastest.items():
        best = min(sizes, key=lambda size: median(r["seconds"] for r in runs[way, size]))
        alone = tried[way][1]["labels"]
        peers[way] = {
            "seconds_by_batch_size_tried_once": {size: found["seconds"] for size, found in tried[way].items()},
            "labels_changed_by_batch_size": {
                size: sum(a != b for a, b in zip(found["labels"], alone, strict=True))
                for size, found in tried[way].items()
            },
            "batch_size": best,
            "seconds": spread([r["seconds"] for r in runs[way, best]]),
            "times_as_fast": spread([b["seconds"] / a for a, b in zip(ours, runs[way, best], strict=True)]),
        }
    result = {
        "what": __doc__,
        "conditions": {**conditions(bundle), "texts": len(texts), "rounds": args.rounds},
        "bar": BAR,
        "load": spread([r["load"] for found in runs.values() for r in found]),
        OURS: {
            "seconds": spread(ours), **runs[OURS, 1][0]["how"], "same_logits_as_alone": True,
            "labels_that_differ_from_optimum_at_batch_1": sum(
                a != b for a, b in zip(runs[OURS, 1][0]["labels"], tried[OPTIMUM][1]["labels"], strict=True)
            ),
        },
        "peers": peers,
    }  # fmt: skip
    print(f"edgewise {median(ours):.2f} s, {len(texts) / median(ours):.0f} texts/s, logits as alone")
    for way, found in peers.items():
        print(
            f"{way}, batch {found['batch_size']}: {found['seconds']['median']:.2f} s; edgewise is "
            f"{found['times_as_fast']['median']:.2f} times as fast (bar {BAR}); labels changed by the batch size: "
            f"{found['labels_changed_by_batch_size']}"
        )
    print(save("offline", result))


if __name__ == "__main__":
    main()
