"""Do the scores of `edgewise rank` foretell which pretrained model is best after training?

Candidates that differ in depth, in pretraining and in kind are scored from one forward pass over a sample of the
training rows of movie reviews, then fully fine-tuned on 1,500 of them and measured on val rows. The result is the rank
correlation of each score, and of the parameter count, with that accuracy, with an interval (a bootstrap over the
candidates), and what the scores cost, in CPU time of this process, as a share of what the trainings cost.

    python benchmarks/rank.py [--seeds 0,1] [--leave-out smollm2]

What is finished is kept in runs/rank-benchmark; started again, it goes on from there.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np
from conditions import here, save

WORK = Path("runs") / "rank-benchmark"
ROWS, VAL_ROWS, SAMPLE, LENGTH, EPOCHS, BATCH, RATE = 1500, 1200, 500, 32, 2, 16, 1e-4
SCORES = ("probe", "logme", "h_score", "parameters")
DRAWS = 10_000
DOCS = Path(__file__).parent.parent / "docs" / "rank.md"
START, END = "<!-- measured: benchmarks/rank.py writes this -->", "<!-- end -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0", help="of the trainings, for example 0,1")
    parser.add_argument("--leave-out", default="", metavar="NAME,...")
    parser.add_argument("--only", default="", metavar="NAME,...")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    import torch

    os.environ["HF_HUB_OFFLINE"] = "1"
    torch.set_num_threads(args.threads)
    splits = reviews()
    chosen = [c for c in candidates(splits) if c.name not in args.leave_out.split(",")]
    if args.only:  # prepares their numbers; a run without it puts all together
        chosen = [c for c in chosen if c.name in args.only.split(",")]
    scored = {c.name: cached(f"scores-{c.name}", lambda c=c: scores_of(c, splits)) for c in chosen}
    seeds = [int(s) for s in args.seeds.split(",")]
    truth = {
        c.name: [cached(f"truth-{c.name}-{seed}", lambda c=c, seed=seed: train(c, splits, seed)) for seed in seeds]
        for c in chosen
    }
    result = {
        "what": __doc__,
        "conditions": {
            **here(), "rows": ROWS, "val_rows": len(splits.val), "sample": SAMPLE, "max_length": LENGTH,
            "epochs": EPOCHS, "batch_size": BATCH, "learning_rate": RATE, "seeds": seeds, "threads": args.threads,
        },
        **summary(scored, truth),
    }  # fmt: skip
    if args.only:
        return
    print(save("rank", result))
    write_table(result)


def reviews() -> Any:
    """Rows of movie reviews; sentences of the mean score 0 are left out."""
    from reviews import movie_reviews

    from edgewise.data import load_splits

    spec = movie_reviews(split={"train": 0.5, "val": 0.3, "confirm": 0.2}, rows={"val": VAL_ROWS, "confirm": 100})
    return load_splits(spec, "text-classification", Path)


def candidates(splits: Any) -> list[Any]:
    """Cuts of MiniLM from the bottom and across, untrained models, one continued on reviews, and other models."""
    from edgewise.assets import asset_path
    from edgewise.sources import weights_digest

    minilm = asset_path("all-minilm-l6-v2")
    cuts: dict[str, tuple[int, ...] | None] = {
        "l6": None, "l5": (0, 1, 2, 3, 4), "l4": (0, 1, 2, 3), "l3": (0, 1, 2), "l3-across": (0, 2, 5),
        "l2": (0, 1), "l2-across": (0, 5), "l1": (0,),
    }  # fmt: skip
    found = [_candidate(name, minilm, layers) for name, layers in cuts.items()]
    found += [_candidate(f"untrained-l{depth}", untrained(minilm, depth)) for depth in (6, 2)]
    found.append(_candidate("l3-continued", continued(minilm, splits)))
    for name in ("rxn-albert", "smollm2"):
        try:
            found.append(_candidate(name, asset_path(name)))
        except Exception as error:  # it may be missing on this machine; the result says which were there
            print(f"left out {name}: {error}", file=sys.stderr)
    digests = {str(c.source): weights_digest(Path(c.source)) for c in found}
    return [type(c)(c.name, c.source, c.spec, digests[str(c.source)]) for c in found]


def _candidate(name: str, source: Path, layers: tuple[int, ...] | None = None) -> Any:
    from edgewise.plan import TuneSpec
    from edgewise.trainer.rank import RankCandidate

    spec = TuneSpec(epochs=EPOCHS, batch_size=BATCH, learning_rate=RATE, max_length=LENGTH, keep_layers=layers)
    return RankCandidate(name, source, spec)


def untrained(source: Path, depth: int) -> Path:
    """The architecture of `source` at that depth with random weights, and its tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    folder = WORK / f"untrained-l{depth}"
    if not (folder / "model.safetensors").is_file():
        torch.manual_seed(0)
        config = AutoConfig.from_pretrained(source, num_hidden_layers=depth)
        AutoTokenizer.from_pretrained(source).save_pretrained(folder)
        AutoModel.from_config(config).save_pretrained(folder)
    return folder


def continued(source: Path, splits: Any) -> Path:
    """MiniLM's first three layers, trained on as a masked language model on the texts of train, labels unseen."""
    from edgewise.trainer import PretrainSpec, pretrain
    from edgewise.trainer.corpus import Corpus

    corpus = Corpus("movie reviews, train", tuple((row.text,) for row in splits.train))
    spec = PretrainSpec("mlm", epochs=1, batch_size=32, block_length=64, keep_layers=(0, 1, 2))
    return pretrain(corpus, spec, out=WORK / "l3-continued", source=source).path


def cached(name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `make` returns, kept as JSON."""
    file = WORK / f"{name}.json"
    if file.is_file():
        found: dict[str, Any] = json.loads(file.read_text())
        return found
    found = make()
    print(f"{name}: {found}", file=sys.stderr, flush=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(found, indent=2))
    return found


def scores_of(candidate: Any, splits: Any) -> dict[str, Any]:
    """Scores on a sample of the training rows, and their cost."""
    from edgewise.trainer.rank import draw_sample, score_candidate

    rows = draw_sample(splits.train[:ROWS], splits.labels, SAMPLE, 0)
    start, wall = process_time(), perf_counter()
    found = score_candidate(candidate, rows, splits.labels)
    if found.failed:
        raise SystemExit(f"{candidate.name}: {found.failed}")
    return {**asdict(found), "cpu_s": process_time() - start, "wall_s": perf_counter() - wall}


def train(candidate: Any, splits: Any, seed: int) -> dict[str, Any]:
    """Accuracy on val after a whole training, and its cost, measuring included."""
    import msgspec

    from edgewise.trainer import tune

    spec = msgspec.structs.replace(candidate.spec, seed=seed)
    out = WORK / "models" / f"{candidate.name}-{seed}"
    start, wall = process_time(), perf_counter()
    done = tune(
        candidate.source, splits.train[:ROWS], splits.labels, spec, out=out, val=splits.val,
        source_digest=candidate.source_digest,
    )  # fmt: skip
    accuracy = done.metrics["accuracy"]
    for file in out.glob("*.safetensors"):
        file.unlink()  # the number is what is kept
    return {"accuracy": accuracy, "cpu_s": process_time() - start, "wall_s": perf_counter() - wall}


def summary(scored: Mapping[str, Any], truth: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """The table, the correlations with their intervals, and the cost."""
    names = sorted(scored, key=lambda name: -_mean(truth[name]))
    accuracy = np.array([_mean(truth[name]) for name in names])
    columns = {score: np.array([float(scored[name][score]) for name in names]) for score in SCORES}
    columns["mean rank of the three scores"] = np.mean([_ranks(columns[s]) for s in SCORES[:3]], axis=0)
    cost = sum(scored[name]["cpu_s"] for name in names)
    trained = sum(one["cpu_s"] for name in names for one in truth[name]) / max(len(t) for t in truth.values())
    return {
        "candidates": {
            name: {
                "accuracy": float(accuracy[i]),
                "accuracy_by_seed": [one["accuracy"] for one in truth[name]],
                **{score: scored[name][score] for score in (*SCORES, "perplexity", "bits_per_character")},
                "score_cpu_s": scored[name]["cpu_s"],
                "training_cpu_s": float(np.mean([one["cpu_s"] for one in truth[name]])),
            }
            for i, name in enumerate(names)
        },
        "correlations": {
            name: {**correlations(column, accuracy), **against(column, columns["parameters"], accuracy)}
            for name, column in columns.items()
        },
        "cost": {"scores_cpu_s": cost, "trainings_cpu_s": trained, "share": cost / trained},
    }


def write_table(result: Mapping[str, Any]) -> None:
    """Write the tables into docs/rank.md, so that its numbers are the committed ones."""
    where, cost = result["conditions"], result["cost"]
    seeds = len(where["seeds"])
    lines = [
        f"{len(result['candidates'])} candidates on movie reviews, each fully fine-tuned on {where['rows']:,} rows "
        f"({where['epochs']} epochs, {seeds} seed{'s' * (seeds > 1)}) and measured on {where['val_rows']:,} val rows; "
        f"scores from {where['sample']} of the training rows. Untrained: the same architecture with random weights. "
        "Continued: the first three layers, trained on as a masked language model on the training texts.",
        "",
        "| candidate | accuracy after training | probe | LogME | H-score | parameters | scores, s | training, s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, c in result["candidates"].items():
        lines.append(
            f"| {name} | {c['accuracy']:.1%} | {c['probe']:.1%} | {c['logme']:.4f} | {c['h_score']:.4f} "
            f"| {c['parameters'] / 1e6:.1f}M | {c['score_cpu_s']:.1f} | {c['training_cpu_s']:.0f} |"
        )
    lines += [
        "",
        "| ordered by | Kendall's tau with the accuracy | Spearman's rho | tau above that of the parameter count "
        "| what choosing its first would lose |",
        "|---|---|---|---|---|",
    ]
    for name, c in result["correlations"].items():
        gap = "" if name == "parameters" else _interval(c["kendall_over_parameters"])
        row = [name, _interval(c["kendall"]), _interval(c["spearman"]), gap, f"{c['regret_points']:.1f} points"]
        lines.append(f"| {' | '.join(row)} |")
    lines += [
        "",
        "In brackets: 95% of 10,000 draws of the candidates with replacement. All scores together cost "
        f"{cost['share']:.1%} of the CPU time of the trainings ({cost['scores_cpu_s']:.0f} s of "
        f"{cost['trainings_cpu_s']:.0f} s, loading and measuring included). `python benchmarks/rank.py` measures this "
        "again; the result with all conditions is [benchmarks/results/rank.json](../benchmarks/results/rank.json).",
    ]
    text = DOCS.read_text(encoding="utf-8")
    head, _, rest = text.partition(START)
    DOCS.write_text(head + START + "\n" + "\n".join(lines) + "\n" + END + rest.partition(END)[2], encoding="utf-8")


def _interval(found: Mapping[str, float]) -> str:
    return f"{found['value']:.2f} ({found['low']:.2f} to {found['high']:.2f})"


def _mean(found: Sequence[Any]) -> float:
    return float(np.mean([one["accuracy"] for one in found]))


def _ranks(column: Any) -> Any:
    from scipy.stats import rankdata

    return rankdata(column)


def correlations(column: Any, accuracy: Any) -> dict[str, Any]:
    """Kendall's tau-b and Spearman's rho with the accuracy; 95% intervals; what choosing by it would lose."""
    best = np.flatnonzero(column == column.max())
    return {
        "kendall": _with_interval(_kendall, column, accuracy),
        "spearman": _with_interval(_spearman, column, accuracy),
        "regret_points": 100 * float(accuracy.max() - accuracy[best].mean()),
    }


def against(column: Any, parameters: Any, accuracy: Any) -> dict[str, Any]:
    """How much higher its Kendall correlation is than that of the parameter count, on the same draws of candidates."""

    def gap(pick: Any) -> float:
        return _kendall(column[pick], accuracy[pick]) - _kendall(parameters[pick], accuracy[pick])

    draws = [gap(pick) for pick in _draws(len(accuracy))]
    low, high = np.nanquantile(draws, [0.025, 0.975])
    better = float(np.mean(np.array(draws) > 0))
    return {"kendall_over_parameters": {"value": gap(np.arange(len(accuracy))), "low": float(low), "high": float(high)},
            "share_of_draws_above_parameters": better}  # fmt: skip


def _with_interval(measure: Callable[[Any, Any], float], column: Any, accuracy: Any) -> dict[str, float]:
    drawn = [measure(column[pick], accuracy[pick]) for pick in _draws(len(accuracy))]
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return {"value": measure(column, accuracy), "low": float(low), "high": float(high)}


def _draws(count: int) -> Any:
    """Candidates drawn with replacement."""
    return np.random.default_rng(0).integers(0, count, size=(DRAWS, count))


def _kendall(a: Any, b: Any) -> float:
    """tau-b; NaN where one side is constant. By signs of pairs: fast for few candidates."""
    i, j = np.triu_indices(len(a), 1)
    x, y = np.sign(a[i] - a[j]), np.sign(b[i] - b[j])
    both = np.sqrt((x != 0).sum() * (y != 0).sum())
    return float((x * y).sum() / both) if both else float("nan")


def _spearman(a: Any, b: Any) -> float:
    x, y = _ranks(a), _ranks(b)
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    return float(np.corrcoef(x, y)[0, 1])


if __name__ == "__main__":
    main()
