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

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from conditions import here, save
from forms import _model
from minilm import in_a_child

WORK, ROWS = Path("runs/choice-risk"), Path("runs/olive/rows")
RECIPES = (
    "fp32", "fp16", "int8-weights", "int8-dynamic", "int8-dynamic+per_channel=false+offline=true", "int8-static",
    "int4-weights",
)  # fmt: skip
VAL, CONFIRM, DRAWS, LEVEL, HAIR = 3000, 1500, 2000, 0.95, 0.01
Draw = tuple[np.ndarray, np.ndarray]
"""(2, recipes) rows that fp32 alone answers right, and that the recipe alone does: of val, of confirm."""
Rule = Callable[[Draw, float], int | None]


def answered() -> tuple[np.ndarray, list[int]]:
    """(recipes, rows) which rows each answers right; bytes of each graph."""
    from edgewise.exporter import export

    tuned, splits, _ = _model("BERT", Path("runs/forms/BERT"))
    results = export(
        tuned, RECIPES, out=Path("runs/forms/BERT/bundles"), candidate="BERT", calibration=splits.train[:200]
    )
    files = [ROWS / "olive.jsonl", ROWS / "held-out.jsonl"]
    if not all(f.is_file() for f in files):
        raise SystemExit(f"{ROWS} lacks its rows: run benchmarks/vs_olive.py first")
    read = [json.loads(line) for f in files for line in f.read_text(encoding="utf-8").splitlines()]
    job = {"tokenizer": str((tuned / "tokenizer.json").resolve()), "texts": [r["text"] for r in read], "max_length": 64}
    WORK.mkdir(parents=True, exist_ok=True)
    right, sizes = [], []
    for recipe, result in zip(RECIPES, results, strict=True):
        if result.bundle is None:
            raise SystemExit(f"{recipe} was not exported: {result.reason}")
        graph, kept = (
            (result.bundle.path / "onnx" / "model.onnx").resolve(),
            WORK / f"{result.bundle.digest[7:23]}.json",
        )
        if not kept.is_file():
            print(f"answers of {recipe} …", file=sys.stderr, flush=True)
            judge = str(Path(__file__).with_name("vs_olive_judge.py"))
            asked = {**job, "graph": str(graph), "seconds": 0}
            kept.write_text(json.dumps(in_a_child(judge, asked, Path(sys.executable), OMP_NUM_THREADS="1")))
        right.append([a == r["class"] for a, r in zip(json.loads(kept.read_text()), read, strict=True)])
        sizes.append(graph.stat().st_size)
    return np.array(right), sizes


def drawn(right: np.ndarray, random: np.random.Generator) -> Draw:
    def counts(n: int) -> np.ndarray:
        seen = right[:, random.integers(0, right.shape[1], n)]
        return np.array([(seen[0] & ~seen).sum(axis=1), (~seen[0] & seen).sum(axis=1)])

    return counts(VAL), counts(CONFIRM)


def by_bounds(order: Sequence[int], level: float) -> Rule:
    """The rule of `edgewise fit`."""
    from edgewise.paired import paired_drop

    def rule(draw: Draw, limit: float) -> int | None:
        val, confirm = draw
        for i in order:
            high = paired_drop(int(val[0, i]), int(val[1, i]), VAL, level).points.high if i else 0.0
            if high is not None and high <= limit and 100 * (confirm[0, i] - confirm[1, i]) / CONFIRM <= limit:
                return i
        return None

    return rule


def by_values(order: Sequence[int]) -> Rule:
    def rule(draw: Draw, limit: float) -> int | None:
        both = draw[0] + draw[1]
        lost = 100 * (both[0] - both[1]) / (VAL + CONFIRM)
        return next((i for i in order if lost[i] <= limit), None)

    return rule


def judged(right: np.ndarray, sizes: Sequence[int]) -> dict[str, Any]:
    """For each budget and rule: how often the choice truly breaks it, is the smallest that keeps it, is none."""
    truth = [100 * float((right[0] & ~r).mean() - (~right[0] & r).mean()) for r in right]
    order = sorted(range(len(sizes)), key=lambda i: sizes[i])
    rules: Mapping[str, Rule] = {"edgewise": by_bounds(order, LEVEL), "values": by_values(order)}
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
