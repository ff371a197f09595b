"""Does pretraining on in-domain text help a small BERT-like model? The same model tuned with and without it.

continued: MiniLM cut to layers 0 and 5, continued by MLM on the texts of all train rows (labels unread), then tuned on
1,000 labelled rows; against the same cut model tuned on the same rows. scratch: a tiny BERT with weights drawn anew,
pretrained on the Brown corpus and the train texts; against the same tiny BERT with its tokenizer, not pretrained.

Five seeds: each draws the masks, the heads, the order of the rows (and the weights, from scratch) anew. Test rows are
those of val and confirm, which no step sees. The interval of the difference is a bootstrap over seeds and rows at once.

    python benchmarks/pretraining_helps.py [continued] [scratch] --work runs/pretraining-helps
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from conditions import RESULTS, here, save
from reviews import movie_reviews

from edgewise.assets import asset_path
from edgewise.data import Row, Splits, load_splits
from edgewise.plan import TuneSpec
from edgewise.sources import weights_digest
from edgewise.trainer import PretrainSpec, pretrain, tune
from edgewise.trainer.corpus import clean, read_corpus
from edgewise.trainer.pretrain_spec import ModelSize

SEEDS = 5
LABELLED = 1000
LAYERS = (0, 5)
MAX_LENGTH = 48
RESAMPLES = 10_000
DATA = movie_reviews()
CONTINUED = {"epochs": 2, "batch_size": 32, "block_length": MAX_LENGTH, "learning_rate": 2e-4, "val_share": 0.03}
SCRATCH = {
    "steps": 800,
    "batch_size": 32,
    "block_length": 64,
    "learning_rate": 1e-3,
    "val_share": 0.03,
    "vocab_size": 4000,
    "size": ModelSize(layers=2, hidden=128, heads=2),
}
TUNE = {"epochs": 3, "batch_size": 32, "max_length": MAX_LENGTH}


def continued(splits: Splits, work: Path) -> dict[str, Any]:
    """MiniLM, with and without MLM on the train texts."""
    start = asset_path("all-minilm-l6-v2")
    corpus = clean([row.text for row in splits.train], "train texts of movie reviews")
    runs = []
    for seed in range(SEEDS):
        spec = PretrainSpec("mlm", keep_layers=LAYERS, seed=seed, **CONTINUED)
        done = pretrain(corpus, spec, source=start, out=work / f"mlm-{seed}", progress=_say)
        with_it = _tuned(done.path, splits, work / f"with-{seed}", TuneSpec(seed=seed, **TUNE))
        spec_without = TuneSpec(seed=seed, keep_layers=LAYERS, **TUNE)
        runs.append((done, with_it, _tuned(start, splits, work / f"without-{seed}", spec_without)))
    return _summary(runs, splits, {"pretraining": CONTINUED, "tuning": TUNE, "keep_layers": LAYERS})


def scratch(splits: Splits, work: Path) -> dict[str, Any]:
    """A tiny BERT from its config, pretrained and untrained."""
    brown = read_corpus("asset:brown", format="text")
    corpus = clean([*(" ".join(d) for d in brown.documents), *(row.text for row in splits.train)], "Brown and reviews")
    runs = []
    for seed in range(SEEDS):
        done = pretrain(corpus, PretrainSpec("mlm", seed=seed, **SCRATCH), out=work / f"tiny-{seed}", progress=_say)
        fresh = _untrained(done.path, work / f"fresh-{seed}", seed)
        spec = TuneSpec(seed=seed, learning_rate=3e-4, **TUNE)
        with_it = _tuned(done.path, splits, work / f"tiny-with-{seed}", spec)
        runs.append((done, with_it, _tuned(fresh, splits, work / f"tiny-without-{seed}", spec)))
    return _summary(runs, splits, {"pretraining": {**SCRATCH, "size": asdict(SCRATCH["size"])}, "tuning": TUNE})


def _untrained(pretrained: Path, out: Path, seed: int) -> Path:
    """The same config and tokenizer, with weights drawn anew."""
    from transformers import AutoConfig, AutoModel, AutoTokenizer, set_seed

    set_seed(seed)
    AutoModel.from_config(AutoConfig.from_pretrained(pretrained)).save_pretrained(out)
    AutoTokenizer.from_pretrained(pretrained).save_pretrained(out)
    return out


def _tuned(source: Path, splits: Splits, out: Path, spec: TuneSpec) -> np.ndarray:
    """bool [test rows]: is the answer of the model, tuned on the labelled rows, right?"""
    rows = splits.train[:LABELLED]
    done = tune(source, rows, splits.labels, spec, out=out, source_digest=weights_digest(source), progress=_say)
    return _right(done.path, test_rows(splits))


def test_rows(splits: Splits) -> tuple[Row, ...]:
    return splits.val + splits.confirm


def _right(folder: Path, rows: Sequence[Row]) -> np.ndarray:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].text))
    right = np.zeros(len(rows), dtype=bool)
    for start in range(0, len(order), 64):
        part = order[start : start + 64]
        batch = tokenizer(
            [rows[i].text for i in part], padding=True, truncation=True, max_length=MAX_LENGTH, return_tensors="pt"
        )
        with torch.inference_mode():
            found = model(**batch).logits.argmax(-1)
        right[part] = [model.config.id2label[int(f)] == rows[i].label for f, i in zip(found, part, strict=True)]
    return right


def _summary(runs: list[Any], splits: Splits, options: dict[str, Any]) -> dict[str, Any]:
    """Accuracies by seed and the difference with its interval; also over rows alone, seeds fixed."""
    with_it = np.array([w for _, w, _ in runs])
    without = np.array([w for _, _, w in runs])
    difference = with_it.astype(float) - without
    both, rows_only = (_bootstrap(difference, seeds=s) for s in (True, False))
    return {
        "accuracy_with": with_it.mean(1).round(4).tolist(),
        "accuracy_without": without.mean(1).round(4).tolist(),
        "mean_with": round(float(with_it.mean()), 4),
        "mean_without": round(float(without.mean()), 4),
        "difference_points": round(100 * float(difference.mean()), 2),
        "interval_95_points_over_seeds_and_rows": both,
        "interval_95_points_over_rows": rows_only,
        "labelled_rows": LABELLED,
        "test_rows": len(test_rows(splits)),
        "options": options,
        "pretraining": [
            {
                "seed": done.seed,
                "steps": done.steps,
                "documents": done.documents,
                "tokens": done.tokens,
                "parameters": done.parameters,
                "val_loss_before": done.val_loss_before,
                "val_loss": done.val_loss,
                "val_perplexity": done.val_perplexity,
                "seconds": round(done.seconds, 1),
            }
            for done, _, _ in runs
        ],
    }


def _bootstrap(difference: np.ndarray, *, seeds: bool) -> list[float]:
    """95% percentile interval of the mean of [seeds, rows], in points; rows are resampled, and seeds where asked."""
    rng = np.random.default_rng(0)
    number, rows = difference.shape
    means = np.empty(RESAMPLES)
    for i in range(RESAMPLES):
        chosen = rng.integers(0, number, number) if seeds else np.arange(number)
        means[i] = difference[chosen].mean(0)[rng.integers(0, rows, rows)].mean()
    return [round(100 * float(q), 2) for q in np.quantile(means, [0.025, 0.975])]


_last = [0.0]


def _say(done: int, total: int, what: str) -> None:
    if done == total or perf_counter() - _last[0] > 30:
        _last[0] = perf_counter()
        print(f"{done}/{total} {what}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variant", nargs="*", help="continued, scratch; both, unless named")
    parser.add_argument(
        "--work", type=Path, default=Path("runs/pretraining-helps"), help="finished steps are kept here"
    )
    args = parser.parse_args()
    splits = load_splits(DATA, "text-classification", Path)
    variants = {"continued": continued, "scratch": scratch}
    kept = RESULTS / "pretraining_helps.json"
    result: dict[str, Any] = json.loads(kept.read_text()) if kept.is_file() else {}
    for name in args.variant or variants:
        result |= {"what": __doc__, name: {"conditions": here(), **variants[name](splits, args.work)}}
        print(f"{name}: {result[name]}")
        print(save("pretraining_helps", result))


if __name__ == "__main__":
    main()
