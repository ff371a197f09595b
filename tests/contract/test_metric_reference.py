"""Every metric against a reference implementation or its formula, on random input and on the edges."""

from __future__ import annotations

import math
import random
import warnings
from typing import Any

import numpy as np
import pytest
import sacrebleu
import scipy.stats
import seqeval.metrics
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from edgewise.data import Row
from edgewise.errors import DataError, InputError
from edgewise.metric_scores import edit_distance, perplexity
from edgewise.metrics import default_metrics, known_metrics, load_metric, score
from edgewise.slices import Slice, by_class, by_length, make_slices
from edgewise.units import METRICS
from edgewise.windows import plan_windows

CLASS: dict[str, Any] = {"task": "text-classification"}
MULTI: dict[str, Any] = {"task": "text-classification", "problem_type": "multi_label_classification"}
NUMBER: dict[str, Any] = {"task": "text-classification", "problem_type": "regression"}
TAGS: dict[str, Any] = {"task": "token-classification"}
TEXT: dict[str, Any] = {"task": "text2text-generation"}
MODEL: dict[str, Any] = {"task": "text-generation"}
FORMS = (CLASS, MULTI, NUMBER, TAGS, TEXT, MODEL)
LABELS = ("a", "b", "c", "d")
BIO = ("O", "B-name", "I-name", "B-place", "I-place")
WORDS = ("the", "cat", "sat", "on", "a", "mat", ".", "")
HAN = "今天天气很好我们去公园"


def values(names: list[str] | tuple[str, ...], given: Any, right: Any, **options: Any) -> dict[str, float | None]:
    return {name: s.value for name, s in score(names, given, right, **options).items()}


def draw(seed: int, kind: str, rows: int) -> list[Any]:
    source = random.Random(f"{seed}{kind}")
    one = {
        "class": lambda: source.randrange(3),  # the fourth class never stands in the data
        "two": lambda: source.randrange(2),
        "multi": lambda: [source.randrange(2), source.randrange(2), 0, source.randrange(2)],
        "number": lambda: source.gauss(0, 3),
        "bio": lambda: [source.choice(BIO) for _ in range(7)],
        "plain": lambda: [source.choice(("O", "Occupancy", "Street", "Building")) for _ in range(7)],
        "text": lambda: " ".join(source.choice(WORDS) for _ in range(source.randrange(9))),
        "han": lambda: "".join(source.choice(HAN) for _ in range(source.randrange(1, 9))),
    }[kind]
    return [one() for _ in range(rows)]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["class", "two"])
def test_classes_as_scikit_learn(seed: int, kind: str) -> None:
    labels = LABELS if kind == "class" else LABELS[:2]
    given, right = draw(seed, kind, 5 + 20 * seed), draw(seed + 100, kind, 5 + 20 * seed)
    names = known_metrics(**CLASS, labels=len(labels))
    found = values(names, given, right, **CLASS, labels=labels)
    assert found["accuracy"] == pytest.approx(np.mean(np.equal(given, right)))
    assert found["mcc"] == pytest.approx(sklearn.metrics.matthews_corrcoef(right, given))
    for which in ("f1", "precision", "recall"):
        reference = getattr(sklearn.metrics, f"{which}_score")
        ways = {"macro": "macro", "micro": "micro"} | ({"binary": "binary"} if kind == "two" else {})
        for end, average in ways.items():
            assert found[f"{which}_{end}"] == pytest.approx(reference(right, given, average=average, zero_division=0))
        assert found[which] == found[f"{which}_{'binary' if kind == 'two' else 'macro'}"]
    by_name = values(names, [labels[i] for i in given], [labels[i] for i in right], **CLASS, labels=labels)
    assert by_name == found, "labels by their names are the same rows"


def test_mcc_by_its_formula() -> None:
    given, right = draw(1, "two", 40), draw(2, "two", 40)
    pairs = list(zip(given, right, strict=True))
    tp, tn, fp, fn = (pairs.count(c) for c in ((1, 1), (0, 0), (1, 0), (0, 1)))
    by_hand = (tp * tn - fp * fn) / math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    assert values(["mcc"], given, right, **CLASS, labels=LABELS[:2])["mcc"] == pytest.approx(by_hand)
    assert values(["mcc"], [0] * 40, right, **CLASS, labels=LABELS[:2])["mcc"] == 0


@pytest.mark.parametrize("seed", range(4))
def test_multi_label_as_scikit_learn(seed: int) -> None:
    given, right = draw(seed, "multi", 4 + 15 * seed), draw(seed + 50, "multi", 4 + 15 * seed)
    found = values(known_metrics(**MULTI, labels=4), given, right, **MULTI, labels=LABELS)
    assert found["accuracy"] == pytest.approx(np.mean([g == r for g, r in zip(given, right, strict=True)]))
    a, b = np.array(given), np.array(right)
    present = [i for i in range(4) if a[:, i].any() or b[:, i].any()]
    by_class = [sklearn.metrics.f1_score(b[:, i], a[:, i], zero_division=0) for i in present]
    assert found["f1"] == found["f1_macro"] == pytest.approx(np.mean(by_class))
    tp = int((a & b).sum())
    assert found["f1_micro"] == pytest.approx(2 * tp / max(1, int(a.sum() + b.sum())))
    assert found["precision_micro"] == pytest.approx(tp / max(1, int(a.sum())))
    names = [tuple(label for label, holds in zip(LABELS, row, strict=True) if holds) for row in given]
    assert values(["f1", "accuracy"], names, right, **MULTI, labels=LABELS) == {
        "f1": found["f1"],
        "accuracy": found["accuracy"],
    }


def test_multi_label_with_nothing_predicted() -> None:
    found = values(["accuracy", "f1", "f1_micro", "precision"], [(), ()], [("a",), ()], **MULTI, labels=LABELS)
    assert found == {"accuracy": 0.5, "f1": 0, "f1_micro": 0, "precision": 0}
    assert values(["f1"], [(), ()], [(), ()], **MULTI, labels=LABELS) == {"f1": 0}


def spans(row: list[str]) -> set[tuple[str, int, int]]:
    """Entities of one row of valid BIO tags, by hand."""
    found, start = set(), None
    for i, tag in enumerate([*row, "O"]):
        if start is not None and not (tag.startswith("I-") and tag[2:] == row[start][2:]):
            found.add((row[start][2:], start, i))
            start = None
        if tag.startswith("B-"):
            start = i
    return found


def valid(row: list[str]) -> list[str]:
    """The row with each I- that continues nothing turned into B-."""
    fixed: list[str] = []
    for tag in row:
        before = fixed[-1] if fixed else "O"
        fixed.append(f"B{tag[1:]}" if tag.startswith("I-") and before[2:] != tag[2:] else tag)
    return fixed


@pytest.mark.parametrize("seed", range(4))
def test_entities_as_seqeval_and_by_hand(seed: int) -> None:
    given, right = draw(seed, "bio", 30), draw(seed + 50, "bio", 30)
    found = values(known_metrics(**TAGS), given, right, **TAGS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for which in ("f1", "precision", "recall"):
            reference = getattr(seqeval.metrics, f"{which}_score")
            assert found[which] == found[f"{which}_micro"] == pytest.approx(reference(right, given))
            assert found[f"{which}_macro"] == pytest.approx(reference(right, given, average="macro"))
    assert found["accuracy"] == pytest.approx(seqeval.metrics.accuracy_score(right, given))
    a, b = [spans(valid(row)) for row in given], [spans(valid(row)) for row in right]
    hits = sum(len(x & y) for x, y in zip(a, b, strict=True))
    by_hand = 2 * hits / (sum(map(len, a)) + sum(map(len, b)))
    assert found["f1"] == pytest.approx(by_hand)


def test_tags_without_a_scheme_are_runs() -> None:
    """seqeval alone reads 'Occupancy' as outside, as it starts with O."""
    given, right = draw(1, "plain", 40), draw(2, "plain", 40)

    def runs(row: list[str]) -> set[tuple[str, int, int]]:
        ends = [i for i in range(1, 8) if i == 7 or row[i] != row[i - 1]]
        return {(row[s], s, e) for s, e in zip([0, *ends], ends, strict=False) if row[s] != "O"}

    a, b = [runs(row) for row in given], [runs(row) for row in right]
    hits = sum(len(x & y) for x, y in zip(a, b, strict=True))
    found = values(["precision", "recall"], given, right, **TAGS)
    assert found["precision"] == pytest.approx(hits / sum(map(len, a)))
    assert found["recall"] == pytest.approx(hits / sum(map(len, b)))
    assert values(["f1", "f1_macro"], given, given, **TAGS) == {"f1": 1, "f1_macro": 1}


def test_tags_on_the_edges() -> None:
    outside, one = [["O", "O"]], [["B-name", "O"]]
    assert values(["f1", "f1_macro", "accuracy"], outside, one, **TAGS) == {"f1": 0, "f1_macro": 0, "accuracy": 0.5}
    assert values(["f1", "f1_macro"], outside, outside, **TAGS) == {"f1": 0, "f1_macro": 0}
    assert values(["f1", "exact_match"], [[1, 2]], [["B-name", "I-name"]], **TAGS, labels=BIO) == {
        "f1": 1,
        "exact_match": 1,
    }
    empty = score(["accuracy"], [[]], [[]], **TAGS)["accuracy"]
    assert (empty.value, empty.kind, empty.why) == (None, "unavailable", "the rows have no words")
    with pytest.raises(DataError, match="row 0 has 1 predicted tags for 2 words"):
        score(["f1"], [["O"]], one, **TAGS)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("name", "kind", "tokenizer"), [("bleu", "text", "13a"), ("bleu_zh", "han", "zh")])
def test_bleu_as_sacrebleu_with_its_signature(seed: int, name: str, kind: str, tokenizer: str) -> None:
    right = draw(seed, kind, 30)
    given = [text if i % 3 else other for i, (text, other) in enumerate(zip(right, draw(9, kind, 30), strict=True))]
    found = score([name], given, right, **TEXT)[name]
    assert found.value == pytest.approx(sacrebleu.corpus_bleu(given, [right], tokenize=tokenizer).score)
    assert found.value is not None and 0 < found.value < 100
    parts = found.method.split("|")
    assert {"nrefs:1", "case:mixed", "eff:no", f"tok:{tokenizer}", "smooth:exp"} < set(parts)
    assert f"version:{sacrebleu.__version__}" in parts


def test_bleu_of_chinese_needs_its_tokenizer() -> None:
    """13a takes a Chinese sentence for one word: one wrong character and nothing matches."""
    right, given = ["今天天气很好我们去公园"], ["今天天气很好我们去学校"]
    found = values(["bleu", "bleu_zh"], given, right, **TEXT)
    assert found["bleu"] == 0
    assert found["bleu_zh"] is not None and found["bleu_zh"] > 70


def test_text_on_the_edges() -> None:
    found = values(["bleu", "exact_match", "word_error", "char_error"], ["", ""], ["the cat", "sat"], **TEXT)
    assert found == {"bleu": 0, "exact_match": 0, "word_error": 1, "char_error": 1}
    assert values(["exact_match"], [" a b\n", "a"], ["a b", "A"], **TEXT) == {"exact_match": 0.5}
    none = score(["word_error"], ["a"], [" "], **TEXT)["word_error"]
    assert none.kind == "unavailable" and "no words" in none.why


def distance_by_recursion(a: str, b: str) -> int:
    table = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, table[0] = table[0], i
        for j, y in enumerate(b, 1):
            last, table[j] = table[j], min(table[j] + 1, table[j - 1] + 1, last + (x != y))
    return table[-1]


@given(st.text("abc", max_size=12), st.text("abcd", max_size=12))
def test_edit_distance(a: str, b: str) -> None:
    assert edit_distance(a, b) == distance_by_recursion(a, b)


@pytest.mark.parametrize("seed", range(4))
def test_numbers_as_scipy_and_scikit_learn(seed: int) -> None:
    given, right = draw(seed, "number", 3 + 20 * seed), draw(seed + 50, "number", 3 + 20 * seed)
    given[0] = given[1]  # a tie
    found = values(known_metrics(**NUMBER), given, right, **NUMBER)
    assert found["pearson"] == pytest.approx(np.corrcoef(given, right)[0, 1])
    ranks = [scipy.stats.rankdata(x) for x in (given, right)]
    assert found["spearman"] == pytest.approx(np.corrcoef(*ranks)[0, 1])
    assert found["mse"] == pytest.approx(sklearn.metrics.mean_squared_error(right, given))
    assert found["mae"] == pytest.approx(sklearn.metrics.mean_absolute_error(right, given))


@pytest.mark.parametrize(
    ("given", "right", "words"),
    [
        ([2.0, 2.0, 2.0], [1.0, 2.0, 3.0], "all predictions are 2: a constant has no correlation"),
        ([1.0, 2.0, 3.0], [5, 5, 5], "all references are 5: a constant"),
        ([1.0], [2.0], "two rows or more"),
        ([1.0, math.nan, 2.0], [1.0, 2.0, 3.0], "no finite number"),
    ],
)
def test_a_correlation_that_is_none(given: list[float], right: list[float], words: str) -> None:
    for name in ("pearson", "spearman"):
        found = score([name], given, right, **NUMBER)[name]
        assert (found.value, found.kind) == (None, "unavailable")
        assert words in found.why
    with pytest.raises(DataError, match="reference 1 is nan; expected a finite number"):
        score(["mse"], [1.0, 2.0], [1.0, math.nan], **NUMBER)


@given(st.lists(st.lists(st.floats(-20, -1e-3), min_size=1, max_size=9), min_size=1, max_size=9))
def test_perplexity_weighs_tokens(texts: list[list[float]]) -> None:
    flat = [x for text in texts for x in text]
    pairs = [(sum(text), len(text)) for text in texts]
    found = values(["perplexity"], pairs, None, **MODEL)["perplexity"]
    assert found == pytest.approx(math.exp(-sum(flat) / len(flat)), rel=1e-9)


def test_perplexity_on_the_edges() -> None:
    assert perplexity([math.log(1 / 50) * 3, 0.0], [3, 0]) == pytest.approx(50), "a uniform model over 50 words"
    for pair in [(0.0, 0), (-math.inf, 3), (-1e6, 3), (math.nan, 2)]:
        found = score(["perplexity"], [pair], None, **MODEL)["perplexity"]
        assert found.kind == "unavailable" and found.why, pair
    with pytest.raises(DataError, match="sum of log-probabilities"):
        score(["perplexity"], [-3.0], None, **MODEL)


@given(st.integers(0, 300), st.integers(2, 40), st.data())
def test_windows_score_every_token_once(length: int, size: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, size - 1))
    windows = plan_windows(length, size, stride)
    scored = [i for w in windows for i in range(w.first, w.end)]
    assert scored == list(range(1, length))
    assert all(w.start < w.first < w.end <= w.start + size for w in windows)
    # as in the loop of transformers' documentation
    before = 0
    for w, start in zip(windows, range(0, length, stride), strict=False):
        assert (w.start, w.end, max(1, before)) == (start, min(start + size, length), w.first)
        before = w.end


@pytest.mark.parametrize(("size", "stride"), [(1, 1), (8, 0), (8, 8), (8, 9)])
def test_windows_that_cannot_be(size: int, stride: int) -> None:
    with pytest.raises(InputError, match="expected"):
        plan_windows(100, size, stride)


@pytest.mark.parametrize("form", FORMS, ids=lambda f: f.get("problem_type", f["task"]))
def test_every_metric_has_a_unit_and_is_an_evaluate_metric(form: dict[str, Any]) -> None:
    kind = {"regression": "number", "multi_label_classification": "multi"}.get(form.get("problem_type", ""))
    kind = kind or {"text-classification": "class", "token-classification": "bio"}.get(form["task"], "text")
    given, right = draw(3, kind, 12), draw(4, kind, 12)
    if form is MODEL:
        kind, given, right = "logprob", [(-3.0, 2), (-1.0, 1)], None
    names = known_metrics(**form, labels=4)
    assert set(default_metrics(**form)) <= set(names) <= set(METRICS)
    for name, found in score(names, given, right, **form, labels=LABELS if kind != "bio" else BIO).items():
        assert (found.unit, found.better) == (METRICS[name].unit, METRICS[name].better)
        sides = {"predictions": given} | ({} if right is None else {"references": right})
        through = load_metric(name, {"bio": "tags"}.get(kind, kind), 4).compute(**sides)  # type: ignore[arg-type]
        assert through == {name: pytest.approx(found.value)}


def test_options_of_the_hubs_f1() -> None:
    given, right = draw(1, "class", 30), draw(2, "class", 30)
    found = load_metric("f1").compute(predictions=given, references=right, average="macro")
    assert found == {"f1": pytest.approx(sklearn.metrics.f1_score(right, given, average="macro"))}


def test_unknown_names() -> None:
    with pytest.raises(DataError, match=r"unknown metric 'blue': did you mean 'bleu'\?.*my_metric\.py:function"):
        score(["blue"], ["a"], ["a"], **TEXT)
    with pytest.raises(DataError, match="unknown metric 'f1_binary'"):
        score(["f1_binary"], [0], [0], **CLASS, labels=LABELS)
    with pytest.raises(DataError, match="no answers"):
        score(["accuracy"], [0], [0], task="feature-extraction")
    with pytest.raises(DataError, match=r"prediction 1 is 'e'; expected one of the labels"):
        score(["accuracy"], ["a", "e"], ["a", "a"], **CLASS, labels=LABELS)
    with pytest.raises(DataError, match=r"prediction 0 is 0\.5; expected an index"):
        score(["accuracy"], [0.5], [0], **CLASS, labels=LABELS)
    with pytest.raises(DataError, match="2 predictions for 0 references"):
        score(["bleu"], ["a", "b"], None, **TEXT)


# slices


def rows_of(seed: int, count: int) -> list[Row]:
    source = random.Random(seed)
    return [
        Row("x" * source.randrange(1, 500), label=source.choice(LABELS), slices=(("genre", source.choice("uvw")),))
        for _ in range(count)
    ]


@settings(max_examples=20)
@given(st.integers(0, 10**6))
def test_slices_by_hand(seed: int) -> None:
    rows = rows_of(seed, 150)
    right = [LABELS.index(str(r.label)) for r in rows]
    given = [r if (seed + i) % 3 else 0 for i, r in enumerate(right)]
    parts = make_slices(rows, ("genre", "length", "class"))
    found = score(["accuracy"], given, right, **CLASS, labels=LABELS, slices=parts, smallest=10)
    accuracy, worst = found["accuracy"], found["worst_slice_accuracy"]
    for by in ("genre", "length", "class"):
        assert sorted(i for part in parts if part.by == by for i in part.rows) == list(range(150))
        assert sum(s.n for s in accuracy.slices if s.by == by) == 150
    for part, one in zip(parts, accuracy.slices, strict=True):
        assert (part.by, part.value) == (one.by, one.slice)
        assert one.value == pytest.approx(sum(given[i] == right[i] for i in part.rows) / one.n)
    assert worst.value == min(s.value for s in accuracy.slices if s.n >= 10 and s.value is not None)
    assert worst.unit == "1" and worst.better == "higher" and " = " in worst.method


def test_worst_slice_is_the_largest_where_less_is_better() -> None:
    parts = (Slice("g", "a", (0, 1)), Slice("g", "b", (2, 3)), Slice("g", "c", (4,)))
    options = {**NUMBER, "slices": parts, "smallest": 2}
    found = score(["worst_slice_mae", "pearson"], [1.0, 2, 3, 4, 9], [1, 2, 5, 6, 1], **options)
    assert found["worst_slice_mae"].value == 2
    assert found["worst_slice_mae"].n == 2
    assert found["pearson"].slices[2].value is None and "two rows" in found["pearson"].slices[2].why
    none = score(["mae"], [1.0], [2], **NUMBER, slices=(Slice("g", "a", (0,)),))["worst_slice_mae"]
    assert none.kind == "unavailable" and "20 rows" in none.why
    with pytest.raises(DataError, match="needs slices"):
        score(["worst_slice_mae"], [1.0], [2], **NUMBER)


def test_slices_of_other_rows() -> None:
    assert [s.value for s in by_length(["今天", "x" * 50, "x" * 51, "x" * 1000])] == [
        "up to 50 characters",
        "51 to 100 characters",
        "over 400 characters",
    ]
    tagged = [Row("a b", tokens=("a", "b"), tags=("B-name", "Street")), Row("c", tokens=("c",), tags=("O",))]
    assert [(s.value, s.rows) for s in by_class(tagged)] == [("Street", (0,)), ("name", (0,))]
    assert [(s.value, s.rows) for s in by_class([Row(labels=("x", "y")), Row(labels=("y",))])] == [
        ("x", (0,)),
        ("y", (0, 1)),
    ]
    with pytest.raises(DataError, match=r"no slice 'genr': did you mean 'genre'\?"):
        make_slices(rows_of(0, 3), ("genr",))


# a user's own


def own(folder: Any, text: str) -> str:
    file = folder / "my_metric.py"
    file.write_text(text, encoding="utf-8")
    return f"{file}:cost"


def test_own_metric_gets_names_and_gives_a_number(tmp_path: Any) -> None:
    name = own(
        tmp_path, "def cost(p, r):\n    return sum(a == 'b' and b == 'a' for a, b in zip(p, r))\ncost.better='lower'"
    )
    found = score([name], [1, 1, 0], [0, 1, 1], **CLASS, labels=LABELS, slices=(Slice("g", "x", (1, 2)),))
    assert (found[name].value, found[name].better, found[name].unit) == (1, "lower", "number")
    assert found[name].slices[0].value == 0
    # a changed file is read anew
    own(tmp_path, "def cost(p, r):\n    return {'a': len(p), 'b': 0.5}")
    again = values([name], [1, 1, 0], [0, 1, 1], **CLASS, labels=LABELS)
    assert again == {f"{name}/a": 3, f"{name}/b": 0.5}
    own(tmp_path, "def cost(p, r):\n    return float('nan')")
    nan = score([name], [1], [0], **CLASS, labels=LABELS)[name]
    assert nan.kind == "unavailable" and "nan" in nan.why


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def coast(p, r):\n    return 1", r"'cost' is not there in .*did you mean 'coast'"),
        ("cost = 3", "'cost' is no function"),
        ("def cost(p, r):\n    return 1 / 0", r"raised ZeroDivisionError: division by zero .*line 2"),
        ("def cost(p, r):\n    return 'good'", "returned 'good'; expected a number"),
        ("def cost(p, r):\n    return None", "returned None; expected a number"),
        ("def cost(p, r):\n    return {'x': [1]}", r"returned 'x': \[1\]; expected a number"),
        ("def cost(p, r):\n    return {}", "empty dict"),
        ("def cost(p):\n    return 1", "raised TypeError"),
        ("import no_such_module", "does not run: ModuleNotFoundError"),
        ("def cost(:", "does not run: SyntaxError"),
        ("def cost(p, r):\n    return 1\ncost.better = 'less'", "expected 'lower' or 'higher'"),
    ],
)
def test_own_metric_that_cannot_be(tmp_path: Any, text: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        score([own(tmp_path, text)], [1], [0], **CLASS, labels=LABELS)


def test_own_metric_without_a_file() -> None:
    with pytest.raises(DataError, match=r"metric 'none\.py:f': no such file 'none\.py'"):
        score(["none.py:f"], [1], [0], **CLASS, labels=LABELS)
