"""How often does a choice break its accuracy budget? The rule of `edgewise fit` beside a comparison of values.

MiniLM tuned on movie reviews, in seven recipes as benchmarks/forms.py makes them; each answers the 9,068 reviews that
it was not tuned on, which stand for all there are: what a recipe loses against fp32 on all of them is the truth. A
choice sees 3,000 rows drawn from these (with replacement), and 1,500 more to confirm, as in benchmarks/vs_olive.py:
the smallest recipe that loses at most so many points. `edgewise`: the upper bound of the paired difference at 95% on
the 3,000, then the value on the 1,500, else the next one. `values`: the value on all 4,500, which is how Olive reads a
goal. Among the budgets are those that each recipe misses by a hair, where a wrong choice is likeliest. 2,000
draws each.

    python benchmarks/choice_risk.py    (about 10 minutes to answer, kept in runs/choice-risk; then one to draw)

Needs the rows of benchmarks/vs_olive.py.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from conditions import here, save
from minilm import bundles, checkpoint, in_a_child

WORK, ROWS = Path("runs/choice-risk"), Path("runs/olive/rows")
RECIPES = (
    "fp32", "fp16", "int8-weights", "int8-dynamic", "int8-dynamic+per_channel=false+offline=true", "int8-static",
    "int4-weights",
)  # fmt: skip
VAL, CONFIRM, DRAWS, LEVEL, HAIR = 3000, 1500, 2000, 0.95, 0.01
Rule = Callable[["Draw", float], int | None]


@dataclass(frozen=True)
class Draw:
    """What each recipe loses against fp32 on the rows drawn, in points: (recipes,) each."""

    at_most: np.ndarray
    """The bound on the rows of val."""
    confirmed: np.ndarray
    """The value on those of confirm."""
    together: np.ndarray
    """The value on both."""


def answered() -> tuple[np.ndarray, list[int]]:
    """(recipes, rows) which rows each answers right; bytes of each graph."""
    files = [ROWS / "olive.jsonl", ROWS / "held-out.jsonl"]
    if not all(f.is_file() for f in files):
        raise SystemExit(f"{ROWS} lacks its rows: run benchmarks/vs_olive.py first")
    read = [json.loads(line) for f in files for line in f.read_text(encoding="utf-8").splitlines()]
    job = {"tokenizer": str(checkpoint() / "tokenizer.json"), "texts": [r["text"] for r in read], "max_length": 64}
    judge, made = str(Path(__file__).with_name("vs_olive_judge.py")), bundles(RECIPES)
    WORK.mkdir(parents=True, exist_ok=True)
    right, sizes = [], []
    for recipe in RECIPES:
        graph = made[recipe] / "onnx" / "model.onnx"
        kept = WORK / f"{hashlib.sha256(graph.read_bytes()).hexdigest()[:16]}.json"
        if not kept.is_file():
            print(f"answers of {recipe} …", file=sys.stderr, flush=True)
            asked = {**job, "graph": str(graph), "seconds": 0}
            kept.write_text(json.dumps(in_a_child(judge, asked, Path(sys.executable), OMP_NUM_THREADS="1")))
        right.append([a == r["class"] for a, r in zip(json.loads(kept.read_text()), read, strict=True)])
        sizes.append(graph.stat().st_size)
    return np.array(right), sizes


def drawn(right: np.ndarray, random: np.random.Generator) -> Draw:
    from edgewise.paired import paired_drop

    def counts(n: int) -> tuple[np.ndarray, np.ndarray]:
        """(recipes,) rows that fp32 alone answers right, and that the recipe alone does."""
        seen = right[:, random.integers(0, right.shape[1], n)]
        return (seen[0] & ~seen).sum(axis=1), (~seen[0] & seen).sum(axis=1)

    (lost, gained), (lost_again, gained_again) = counts(VAL), counts(CONFIRM)
    drops = [paired_drop(int(a), int(b), VAL, LEVEL).points.high for a, b in zip(lost, gained, strict=True)]
    at_most = np.array([0.0, *(np.inf if high is None else high for high in drops[1:])])  # fp32 loses nothing to itself
    confirmed = lost_again - gained_again
    return Draw(at_most, 100 * confirmed / CONFIRM, 100 * (lost - gained + confirmed) / (VAL + CONFIRM))


def by_bounds(order: Sequence[int]) -> Rule:
    """The rule of `edgewise fit`."""
    return lambda draw, limit: next((i for i in order if max(draw.at_most[i], draw.confirmed[i]) <= limit), None)


def by_values(order: Sequence[int]) -> Rule:
    """How Olive reads a goal."""
    return lambda draw, limit: next((i for i in order if draw.together[i] <= limit), None)


def judged(right: np.ndarray, sizes: Sequence[int]) -> dict[str, Any]:
    """For each budget and rule: how often the choice truly breaks it, is the smallest that keeps it, is none."""
    truth = [100 * float((right[0] & ~r).mean() - (~right[0] & r).mean()) for r in right]
    order = sorted(range(len(sizes)), key=lambda i: sizes[i])
    rules: Mapping[str, Rule] = {"edgewise": by_bounds(order), "values": by_values(order)}
    draws = [drawn(right, np.random.default_rng(seed)) for seed in range(DRAWS)]
    limits = sorted({0.25, 0.5, 0.75, 1.0, *(round(t - HAIR, 4) for t in truth if t > HAIR)})
    found = []
    for limit in limits:
        best = next(i for i in order if truth[i] <= limit)
        for name, rule in rules.items():
            chosen = [rule(d, limit) for d in draws]
            broken = sum(c is not None and truth[c] > limit for c in chosen)
            found.append({
                "budget_points": limit, "rule": name, "breaks": broken / DRAWS,
                "breaks_by_points": max((truth[c] - limit for c in set(chosen) if c is not None), default=0.0),
                "smallest_that_keeps": sum(c == best for c in chosen) / DRAWS,
                "fp32": sum(c == 0 for c in chosen) / DRAWS,
            })  # fmt: skip
            print(found[-1], flush=True)
    recipes = {r: {"bytes": s, "drop_points": t} for r, s, t in zip(RECIPES, sizes, truth, strict=True)}
    return {"recipes": recipes, "budgets": found}


def main() -> None:
    right, sizes = answered()
    conditions = {**here(), "rows": right.shape[1], "val": VAL, "confirm": CONFIRM, "draws": DRAWS, "level": LEVEL}
    print(save("choice_risk", {"what": __doc__, "conditions": conditions, **judged(right, sizes)}))


if __name__ == "__main__":
    main()
