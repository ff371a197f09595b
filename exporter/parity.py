"""Proof that a bundle answers as the PyTorch model does, on real rows and on edge cases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgewise.bundle import Bundle
from edgewise.data import Row
from edgewise.errors import ParityError
from edgewise.exporter.tolerance import judge, tolerance
from edgewise.types import Recipe

if TYPE_CHECKING:
    import numpy as np

    from edgewise.runtime import TextClassifier

GOLDEN_ROWS = 8
PARITY_ROWS = 32
LONGEST = 1024
"""Tokens of the longest text that is compared; the longest that the model allows where that is less."""
_BATCH = 8

FALLBACK_TEXTS = (
    "A fine film.", "Dull, and far too long.", "It works.", "I would not watch it again, and neither should you.",
    "What a surprise this was!", "Two hours of my life that nobody gives back.", "Good.", "An honest, quiet story.",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """Texts that go through the graph together, and PyTorch's answer."""

    name: str
    items: tuple[Any, ...]
    """Texts or pairs."""
    logits: np.ndarray
    """float32 [len(items), labels]."""
    input_ids: tuple[tuple[int, ...], ...]
    """As transformers' tokenizer gives them, unpadded."""


def build_cases(
    model: Any, tokenizer: Any, inputs: Sequence[str], rows: Sequence[Row], max_length: int | None
) -> tuple[Case, ...]:
    """Run PyTorch on real rows one by one, a padded batch, an empty text, one word, and the longest text allowed.

    model, tokenizer: transformers' own. inputs: names that the graph takes; PyTorch is given no other, since a
    tokenizer may give token types to a model that has none.
    """
    import torch

    length = max_length or 512
    # Of a model that reads thousands of tokens no text is made that long: attention would take gigabytes.
    cut = None if length <= LONGEST else 2 * LONGEST
    items = [r.text[:cut] if r.text_pair is None else (r.text[:cut], r.text_pair[:cut]) for r in rows[:PARITY_ROWS]]
    items = items or list(FALLBACK_TEXTS)
    words = " ".join(i if isinstance(i, str) else i[0] for i in items)
    longest = " ".join([words] * (1 + length // max(1, len(words.split()))))[:cut]
    groups: list[tuple[str, list[Any]]] = [(f"row {i}", [item]) for i, item in enumerate(items)]
    groups += [("one word", ["good"]), ("longest text", [longest])]
    if tokenizer("")["input_ids"]:  # some tokenizers of GPT's kind give an empty text no token: nothing to answer
        groups.insert(len(items), ("empty text", [""]))
    if isinstance(items[0], tuple):
        groups.append(("longest pair", [(longest, longest)]))
    groups.append(("padded batch", items[:_BATCH]))
    tokenizer.padding_side = "right"  # as the runtime pads, and the only side that is right for every family
    cases = []
    with torch.inference_mode():
        for name, texts in groups:
            encoded = _tokenize(tokenizer, texts, length)
            logits = model(**{n: encoded[n] for n in inputs if n in encoded}).logits.float().numpy()
            ids = tuple(
                tuple(row[mask.bool()].tolist())
                for row, mask in zip(encoded["input_ids"], encoded["attention_mask"], strict=True)
            )
            cases.append(Case(name, tuple(texts), logits, ids))
    return tuple(cases)


def _tokenize(tokenizer: Any, texts: Sequence[Any], length: int) -> Any:
    pairs = [t if isinstance(t, tuple) else (t, None) for t in texts]
    second = [b for _, b in pairs]
    return tokenizer(
        [a for a, _ in pairs],
        second if second[0] is not None else None,
        padding=True,
        truncation=True,
        max_length=length,
        return_tensors="pt",
    )


def compare(model: TextClassifier, cases: Sequence[Case], recipe: Recipe) -> dict[str, Any]:
    """Hold a loaded bundle against PyTorch's answers; what the manifest stores as parity.

    Raises ParityError when it is outside the tolerance of its precision, or tokenizes differently.
    """
    import numpy as np

    problem_type = model.bundle.manifest.problem_type
    worst_abs, worst_rel, worst_case = 0.0, 0.0, ""
    agree, total = 0.0, 0
    by_batch = 0.0
    span = np.ptp(np.concatenate([case.logits for case in cases]), axis=0)
    for case in cases:
        got = model.logits(case.items)
        for item, ids in zip(case.items, case.input_ids, strict=True):
            if tuple(model.token_ids(item)) != ids:
                raise ParityError(f"the runtime tokenizes {str(item)[:60]!r} differently from transformers")
        difference = np.abs(got - case.logits)
        if not np.isfinite(got).all():
            raise ParityError(f"the {recipe.name} graph answers {case.name} with NaN or infinity")
        if difference.max() > worst_abs:
            worst_abs, worst_case = float(difference.max()), case.name
        worst_rel = max(worst_rel, float((difference / np.maximum(np.abs(case.logits), 1e-6)).max()))
        agree += float(agreement(got, case.logits, problem_type, span).sum())
        total += len(case.items)
        if len(case.items) > 1:
            alone = np.concatenate([model.logits([item]) for item in case.items])
            by_batch = float(np.abs(alone - got).max())
    parity = {
        "against": "pytorch",
        "inputs": total,
        "largest_absolute_difference": worst_abs,
        "largest_relative_difference": worst_rel,
        "worst_case": worst_case,
        "agreement": agree / total,
        "batch_dependence": by_batch,
        "tolerance": tolerance(recipe, "text-classification"),
        "tokens_equal": True,
    }
    judge(parity, recipe)
    return parity


def agreement(got: np.ndarray, wanted: np.ndarray, problem_type: str | None, span: np.ndarray) -> np.ndarray:
    """How far each answer [n, labels] decides as PyTorch does, from 0 to 1: float [n].

    One label a text: the same label. Several: the share of labels on the same side of 0 (a score of 0.5). Regression:
    1 where the number is off by at most a tenth of PyTorch's, or of `span`, the range of PyTorch's answers to all
    inputs [labels]: numbers near 0 are no more exact than the others, and a unit is the user's choice.
    """
    import numpy as np

    if problem_type == "multi_label_classification":
        same: np.ndarray = ((got > 0) == (wanted > 0)).mean(-1)
    elif problem_type == "regression":
        same = (np.abs(got - wanted) <= 0.1 * np.maximum(span, np.abs(wanted))).all(-1).astype(float)
    else:
        same = (got.argmax(-1) == wanted.argmax(-1)).astype(float)
    return same


def loads_in(bundle: Bundle, model: TextClassifier, cases: Sequence[Case]) -> dict[str, Any]:
    """Load the bundle as it stands in Optimum and compare its logits with the runtime's, alone and in a batch."""
    import numpy as np

    try:
        from optimum.onnxruntime import ORTModelForSequenceClassification
        from transformers import AutoTokenizer

        peer = ORTModelForSequenceClassification.from_pretrained(bundle.path)
        tokenizer = AutoTokenizer.from_pretrained(bundle.path)
        length = bundle.manifest.preprocessing.get("max_length") or 512
        found = {"optimum": 0.0, "optimum_batched": 0.0}
        for case in cases:
            encoded = _tokenize(tokenizer, case.items, length)
            theirs = np.asarray(peer(**{n: v for n, v in encoded.items() if n in peer.input_names}).logits)
            key = "optimum" if len(case.items) == 1 else "optimum_batched"
            found[key] = max(found[key], float(np.abs(theirs - model.logits(case.items)).max()))
    except Exception as error:  # whatever Optimum raises is the finding
        failed = {"tested": True, "ok": False, "why": f"{type(error).__name__}: {error}"[:300]}
        return {"optimum": failed, "optimum_batched": failed}
    return {k: {"tested": True, "ok": v <= 1e-4, "largest_absolute_difference": v} for k, v in found.items()}
