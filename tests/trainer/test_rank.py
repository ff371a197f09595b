"""Which model to start from: the scores against naive code, features against the model, and the ranking itself."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import scipy.optimize
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import PredefinedSplit, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from edgewise.cli import main
from edgewise.data import Row, Splits
from edgewise.errors import CheckpointError, DataError, PlanError
from edgewise.plan import TuneSpec
from edgewise.trainer.features import pooled_features
from edgewise.trainer.halving import Entrant, Runner, Trial, _judge, halve
from edgewise.trainer.rank import RankCandidate, draw_sample, rank, score_candidate
from edgewise.trainer.scores import _folds, h_score, linear_probe, logme

SHORT = TuneSpec(epochs=1, batch_size=16, max_length=24, learning_rate=3e-4)


def made(seed: int, rows: int, width: int, signal: float, classes: int = 2) -> tuple[Any, Any]:
    """Random features of which the first tells the class, the more the larger `signal`."""
    source = np.random.default_rng(seed)
    y = np.arange(rows) % classes
    x = source.normal(size=(rows, width))
    x[:, 0] += signal * y
    return x, y


# scores


def evidence(x: Any, y: Any, alpha: float, beta: float) -> float:
    """Log evidence a row of y = x w + noise, w ~ N(0, 1/alpha), noise ~ N(0, 1/beta): y's own normal density."""
    n = len(y)
    covariance = x @ x.T / alpha + np.eye(n) / beta
    return (
        -0.5 * (y @ np.linalg.solve(covariance, y) + np.linalg.slogdet(covariance)[1] + n * math.log(2 * math.pi)) / n
    )


@pytest.mark.parametrize(("rows", "width"), [(40, 8), (24, 60)])
def test_logme_is_the_largest_evidence(rows: int, width: int) -> None:
    x, y = made(1, rows, width, 1.0)

    def largest(column: Any) -> float:
        done = scipy.optimize.minimize(
            lambda p: -evidence(x, column, math.exp(p[0]), math.exp(p[1])), [1.0, 1.0], method="Nelder-Mead",
            options={"xatol": 1e-7, "fatol": 1e-10, "maxiter": 4000},
        )  # fmt: skip
        return -float(done.fun)

    by_hand = np.mean([largest((y == c).astype(float)) for c in (0, 1)])
    assert logme(x, y, classes=2) == pytest.approx(by_hand, abs=2e-4)
    number = x[:, 0] * 2 + np.random.default_rng(3).normal(size=rows)
    assert logme(x, number) == pytest.approx(largest(number), abs=2e-4)


def test_h_score_by_loops() -> None:
    from sklearn.covariance import LedoitWolf

    x, y = made(2, 60, 10, 1.5, classes=3)
    found = LedoitWolf().fit(x)
    centred = x - x.mean(axis=0)
    between = np.zeros((10, 10))
    for row in range(60):
        mean = centred[y == y[row]].mean(axis=0)
        between += np.outer(mean, mean) / 60
    by_hand = np.trace(np.linalg.inv(found.covariance_) @ between) * (1 - found.shrinkage_)
    assert h_score(x, y, classes=3) == pytest.approx(by_hand, rel=1e-9)


def test_probe_as_scikit_learns_ridge_classifier() -> None:
    x, y = made(3, 90, 30, 1.0, classes=3)
    part = np.empty(90, int)
    for i, rows in enumerate(_folds(y, 5, 0, shuffle_only=False)):
        part[rows] = i
        assert sorted(np.bincount(y[rows])) == [6, 6, 6], "each fold has its share of each class"
    for ridge in (0.1, 10.0, 1000.0):
        model = make_pipeline(StandardScaler(), RidgeClassifier(alpha=ridge))
        theirs = cross_val_predict(model, x, y, cv=PredefinedSplit(part))
        assert linear_probe(x, y, classes=3, ridges=[ridge]) == pytest.approx((theirs == y).mean())
    assert linear_probe(x, y, classes=3) >= linear_probe(x, y, classes=3, ridges=[10.0])
    assert linear_probe(x, 3 * x[:, 1] + 1) > 0.95, "R^2 where the target is a feature"
    assert abs(linear_probe(x, np.random.default_rng(0).normal(size=90))) < 0.3


@pytest.mark.parametrize("score", [logme, h_score, linear_probe])
def test_a_score_grows_with_the_signal_and_ignores_the_order(score: Any) -> None:
    values = [score(*made(4, 120, 20, signal), classes=2) for signal in (0.0, 1.0, 3.0)]
    assert values[0] < values[1] < values[2]
    if score is not linear_probe:
        x, y = made(4, 120, 20, 1.0)
        order = np.random.default_rng(1).permutation(120)
        assert score(x[order], y[order], classes=2) == pytest.approx(values[1])


@pytest.mark.parametrize("score", [logme, h_score, linear_probe])
def test_scores_of_what_cannot_be_scored(score: Any) -> None:
    x, y = made(5, 20, 4, 1.0)
    with pytest.raises(DataError, match="expected two or more"):
        score(x, np.zeros(20), classes=2)
    with pytest.raises(DataError, match="2 rows or more"):
        score(x, y[:5], classes=2)
    x[3, 1] = np.nan
    with pytest.raises(DataError, match="1 of 20 rows"):
        score(x, y, classes=2)
    x[:, 1] = 7.0  # a constant feature is none
    assert math.isfinite(score(x, y, classes=2))


# features


@pytest.fixture(scope="module")
def few(review_splits: Splits) -> tuple[Row, ...]:
    return review_splits.train[:40]


def test_features_are_the_mean_over_real_tokens(minilm: Path, few: tuple[Row, ...]) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    found = pooled_features(minilm, few, max_length=24, keep_layers=(0, 3), batch_size=7)
    model, tokenizer = AutoModel.from_pretrained(minilm).eval(), AutoTokenizer.from_pretrained(minilm)
    model.encoder.layer = torch.nn.ModuleList([model.encoder.layer[0], model.encoder.layer[3]])
    tokens = 0
    for row, values in zip(few, found.values, strict=True):
        batch = tokenizer(row.text, truncation=True, max_length=24, return_tensors="pt")  # alone: no padding
        with torch.inference_mode():
            layers = model(**batch, output_hidden_states=True).hidden_states
        by_hand = np.concatenate([hidden[0].mean(dim=0).numpy() for hidden in layers])
        np.testing.assert_allclose(values, by_hand, atol=2e-5)
        tokens += layers[-1].shape[1]
    assert found.tokens == tokens
    assert found.values.dtype == np.float32 and found.values.shape == (40, 3 * 384) and found.width == 384
    assert found.parameters == sum(p.numel() for p in model.parameters())
    assert found.perplexity is None and "no causal" in found.why_no_perplexity


@pytest.fixture(scope="module")
def small_gpt(minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 of random weights, with MiniLM's tokenizer."""
    import torch
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("rank") / "gpt"
    tokenizer = AutoTokenizer.from_pretrained(minilm)
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=64, n_embd=32, n_layer=2, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_perplexity_of_a_language_model_by_hand(small_gpt: Path, few: tuple[Row, ...]) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    found = pooled_features(small_gpt, few, max_length=24, batch_size=9)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(small_gpt).eval(), AutoTokenizer.from_pretrained(small_gpt)
    total, count = 0.0, 0
    for row in few:
        ids = tokenizer(row.text, truncation=True, max_length=24, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            p = model(ids).logits[0].double().softmax(dim=-1)
        total += sum(math.log(p[i - 1, ids[0, i]]) for i in range(1, ids.shape[1]))
        count += ids.shape[1] - 1
    assert found.perplexity == pytest.approx(math.exp(-total / count), rel=1e-4)
    characters = sum(len(r.text) for r in few)
    assert found.bits_per_character == pytest.approx(-total / math.log(2) / characters, rel=1e-4)
    assert found.values.shape == (40, 3 * 32)


def test_features_of_what_is_no_model(few: tuple[Row, ...], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        pooled_features(tmp_path, few)
    with pytest.raises(DataError, match="no rows"):
        pooled_features(tmp_path, [])


@pytest.fixture(scope="module")
def digits() -> tuple[Row, ...]:
    """scikit-learn's handwritten zeros and ones, as PNG bytes."""
    import io

    from PIL import Image
    from sklearn.datasets import load_digits

    found = load_digits()
    rows = []
    for values, label in zip(found.images, found.target, strict=True):
        if label < 2 and len(rows) < 80:
            file = io.BytesIO()
            Image.fromarray((values * 15).astype("uint8")).save(file, format="PNG")
            rows.append(Row(label=str(label), image=file.getvalue()))
    return tuple(rows)


@pytest.fixture(scope="module")
def small_vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The config of a ViT, without weights."""
    from transformers import ViTConfig

    folder = tmp_path_factory.mktemp("rank-vit")
    ViTConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=16,
              patch_size=4).save_pretrained(folder)  # fmt: skip
    return folder


def test_images_are_ranked_too(small_vit: Path, digits: tuple[Row, ...], tmp_path: Path) -> None:
    found = pooled_features(small_vit, digits, task="image-classification", batch_size=9)
    assert found.values.shape == (80, 3 * 16) and found.perplexity is None
    assert found.tokens == 80 * 17, "sixteen patches and the class token"
    alone = pooled_features(small_vit, digits[7:8], task="image-classification")
    np.testing.assert_allclose(alone.values[0], found.values[7], atol=1e-5)
    one = RankCandidate("vit", small_vit, TuneSpec(batch_size=8, learning_rate=1e-3))
    result = rank([one], digits[:64], ("0", "1"), task="image-classification", val=digits[64:], minutes=5, out=tmp_path)
    assert result.of("vit").probe is not None and result.of("vit").probe > 0.75, "zeros and ones differ by their ink"
    assert [(t.rows, t.kept) for t in result.trials] == [(64, True)]


# the ranking


@pytest.fixture(scope="module")
def candidates(minilm: Path, small_gpt: Path) -> list[RankCandidate]:
    cut = {
        name: RankCandidate(name, minilm, msgspec.structs.replace(SHORT, keep_layers=layers), "minilm")
        for name, layers in {"six": None, "one": (0,), "two": (0, 5)}.items()
    }
    return [cut["one"], cut["six"], RankCandidate("random", small_gpt, SHORT), cut["two"]]


def test_a_pretrained_model_scores_above_a_random_one(candidates: list[RankCandidate], review_splits: Splits) -> None:
    rows = draw_sample(review_splits.train, review_splits.labels, 200, 0)
    six, random = (score_candidate(candidates[i], rows, review_splits.labels) for i in (1, 2))
    assert six.failed == random.failed == ""
    assert six.h_score is not None and random.h_score is not None and six.probe is not None and random.probe is not None
    assert six.h_score > random.h_score
    assert six.probe > random.probe
    assert random.perplexity is not None and 20_000 < random.perplexity < 60_000, "about the 30,522 of its vocabulary"


def test_rank_drops_what_fails_or_is_slow_and_trains_the_others(
    candidates: list[RankCandidate], review_splits: Splits, tmp_path: Path
) -> None:
    said: list[str] = []
    broken = RankCandidate("broken", tmp_path / "none", SHORT)
    slow = {"one": 0.001, "two": 0.002, "six": 0.004, "random": 0.5}

    def run() -> Any:
        return rank(
            [*candidates, broken], review_splits.train[:96], review_splits.labels, val=review_splits.val[:60],
            minutes=5, out=tmp_path / "out", sample=60, keep=2, say=said.append, latency=lambda c: slow[c.name],
            max_latency_s=0.1,
        )  # fmt: skip

    found = run()
    assert sorted(found.order) == ["broken", "one", "random", "six", "two"]
    assert set(found.order[-2:]) == {"random", "broken"}, "what failed or is too slow comes last"
    assert any("dropped random before training: 500 ms a call, over the limit of 100 ms" in s for s in said)
    assert any("dropped broken before training" in s for s in said)
    assert found.of("broken").failed and found.of("broken").probe is None
    assert [(t.round, t.rows) for t in found.trials] == [(1, 96), (1, 96)], "all rows fit into the time"
    trained = {t.name for t in found.trials}
    (left_out,) = {"one", "two", "six"} - trained
    assert found.of(left_out).logme == min(found.of(n).logme for n in ("one", "two", "six"))
    assert any(s.startswith(f"dropped {left_out} before training: its logme of ") for s in found.dropped)
    assert found.order[0] == max(found.trials, key=lambda t: t.accuracy).name and found.order[2] == left_out
    again = run()
    assert [(t.name, t.accuracy) for t in again.trials] == [(t.name, t.accuracy) for t in found.trials]
    assert sum(t.seconds for t in again.trials) == 0, "what was found is kept"
    json.dumps(msgspec.to_builtins(found))


@pytest.mark.slow
def test_the_better_half_trains_on_more_rows(
    candidates: list[RankCandidate], review_splits: Splits, tmp_path: Path
) -> None:
    runner = Runner(review_splits.train[:128], review_splits.val[:40], review_splits.labels, tmp_path, 0)
    top = RankCandidate("top", candidates[0].source, msgspec.structs.replace(SHORT, keep_layers=(5,)), "minilm")
    # what they are said to cost lets 64 rows into the first of two rounds; they cost less, so the next takes all
    entrants = [Entrant(c, 1.0, row_s=2.4, fixed_s=0.0) for c in (candidates[0], top, candidates[3])]
    said: list[str] = []
    trials, words = halve(entrants, runner, 1000, score="probe", keep=None, say=said.append)
    assert [(t.round, t.rows) for t in trials] == [(1, 64)] * 3 + [(2, 128)] * 2
    kept = [t.name for t in trials[:3] if t.kept]
    assert sorted(kept) == sorted(t.name for t in trials[3:])
    (loser,) = (t for t in trials[:3] if not t.kept)
    assert loser.accuracy <= min(t.accuracy for t in trials[:3] if t.kept)
    assert words[0].startswith(f"dropped {loser.name} after round 1, 64 rows") and "points below" in words[0]
    assert len(words) == 2 and "after round 2, 128 rows" in words[1]
    assert len(list(tmp_path.glob("*.json"))) == 5


def test_time_that_is_too_short(candidates: list[RankCandidate], review_splits: Splits, tmp_path: Path) -> None:
    said: list[str] = []
    runner = Runner(review_splits.train[:400], review_splits.val[:40], review_splits.labels, tmp_path, 0)
    entrants = [Entrant(c, 1.0 - i / 10, row_s=0.001, fixed_s=10.0) for i, c in enumerate(candidates)]
    trials, words = halve(entrants, runner, 0.001, score="probe", keep=None, say=said.append)
    assert [w.split(":")[0] for w in words[:3]] == [
        f"dropped {c.name} before training" for c in reversed(candidates[1:])
    ], "the lowest scores go first"
    assert "need" in words[0] and "0.7000 is lowest" in words[0]
    # the one that is left is stopped in its first steps
    assert [(t.name, t.accuracy, t.kept) for t in trials] == [("one", None, False)]
    assert "the time was over" in trials[0].note
    assert said == words
    assert list(tmp_path.iterdir()) == []


def test_the_better_half_goes_on_and_noise_is_said(candidates: list[RankCandidate]) -> None:
    entrants = [Entrant(c, 1.0, 0.001, 0.1) for c in candidates]
    accuracy = [0.70, None, 0.69, 0.40]
    found = [Trial(c.name, 1, 64, 1.0, a, 100, note="") for c, a in zip(candidates, accuracy, strict=True)]
    judged, left = _judge(found, entrants, 100)
    assert [t.kept for t in judged] == [True, False, True, False]
    assert [e.candidate.name for e in left] == ["one", "random"]
    assert judged[3].note == "29.0 points below the last one kept"
    near = [Trial(c.name, 1, 64, 1.0, a, 100) for c, a in zip(candidates[:2], (0.70, 0.69), strict=True)]
    judged, left = _judge(near, entrants[:2], 100)
    assert "1.0 points below the last one kept; 100 rows of val cannot tell them apart" in judged[1].note


def test_scores_alone(candidates: list[RankCandidate], review_splits: Splits) -> None:
    found = rank(candidates[:2], review_splits.train, review_splits.labels, minutes=None, sample=60, by="logme")
    assert found.trials == ()
    assert found.order == tuple(s.name for s in sorted(found.scores, key=lambda s: -(s.logme or 0)))


def test_options_that_cannot_be(candidates: list[RankCandidate], review_splits: Splits, tmp_path: Path) -> None:
    rows, labels = review_splits.train[:40], review_splits.labels
    options: dict[str, Any] = {"minutes": None}
    with pytest.raises(PlanError, match="different names"):
        rank([candidates[0], candidates[0]], rows, labels, **options)
    with pytest.raises(PlanError, match="expected one of logme"):
        rank(candidates, rows, labels, by="size", **options)
    with pytest.raises(PlanError, match="out folder"):
        rank(candidates, rows, labels, minutes=1)
    with pytest.raises(PlanError, match="more than 0"):
        rank(candidates, rows, labels, minutes=-1, val=rows, out=tmp_path)
    with pytest.raises(DataError, match=r"\['mixed'\] that are not among"):
        rank(candidates, [*rows, Row("x", label="mixed")], labels, **options)
    with pytest.raises(PlanError, match="task is 'token-classification'"):
        rank(candidates, rows, labels, task="token-classification", **options)
    with pytest.raises(DataError, match="1 labels; ranking needs"):
        rank(candidates, [r for r in rows if r.label == "positive"], labels, **options)


def test_a_sample_keeps_the_shares(review_splits: Splits) -> None:
    rows = [r for r in review_splits.train if r.label == "negative"][:30]
    rows += [r for r in review_splits.train if r.label == "positive"][:270]
    drawn = draw_sample(rows, review_splits.labels, 100, 1)
    assert [sum(r.label == label for r in drawn) for label in ("negative", "positive")] == [10, 90]
    assert drawn != draw_sample(rows, review_splits.labels, 100, 2)
    assert draw_sample(rows[:50], review_splits.labels, 100, 1) == tuple(rows[:50])


# the verb


@pytest.fixture(scope="module")
def csv(review_splits: Splits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import csv as writer

    file = tmp_path_factory.mktemp("rank-data") / "reviews.csv"
    with file.open("w", newline="", encoding="utf-8") as out:
        lines = writer.writer(out)
        lines.writerow(["text", "label"])
        lines.writerows([[r.text, r.label] for r in review_splits.train[:300]])
    return file


@pytest.mark.slow
def test_the_verb_with_a_budget(
    csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = ["l6=asset:all-minilm-l6-v2", "asset:all-minilm-l6-v2#0", "gone=./nowhere"]
    code = main(["rank", *names[:2], "--data", str(csv), "--scores-only", "--rows", "60", "--max-length", "24",
                 "--budget", "p50 <= 1 us", "--json"])  # fmt: skip
    printed = capsys.readouterr()
    assert code == 0, printed.err
    found = json.loads(printed.out)
    assert [s["name"] for s in found["scores"]] == ["l6", "all-minilm-l6-v2-0"]
    assert found["scores"][0]["latency_s"] > found["scores"][1]["latency_s"] > 1e-5
    assert len(found["dropped"]) == 2 and all("over the limit of 1.00 µs" in d for d in found["dropped"])
    assert main(["rank", *names, "--data", str(csv), "--scores-only"]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_the_verb_with_a_plan_and_trainings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("plan.yaml").write_text(
        "version: 1\ntask: text-classification\n"
        "data: {path: 'asset:movie-reviews', columns: [id, score, text], quoting: false,\n"
        "  label: {column: score, above: 0, drop: [0]}, rows: {train: 128, val: 60, confirm: 20}}\n"
        "candidates:\n"
        "  - {name: l1, from: 'asset:all-minilm-l6-v2', tune: {keep_layers: [0], max_length: 24}}\n"
        "  - {name: l2, from: 'asset:all-minilm-l6-v2', tune: {keep_layers: [0, 5], max_length: 24}}\n"
        "recipes: [fp32]\n"
    )
    assert main(["rank", "plan.yaml", "--minutes", "1", "--rows", "60"]) == 0
    out = capsys.readouterr().out
    assert "dropped l" in out and "after round 1, " in out and "rows" in out
    assert out.splitlines()[1].startswith("1  l")
    assert len(list(Path("runs/rank").glob("l*.json"))) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["x"], "--data is missing"),
        (["plan.yaml", "x"], "a plan brings its candidates"),
        (["a=b=c#x", "--data", "d.csv"], "expected [NAME=]SOURCE"),
        (["x", "--budget", "size <= 3 MB"], "the median time of a call alone"),
        (["x", "--rows", "3"], "at least 10"),
    ],
)
def test_the_verb_with_what_cannot_be(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rank", *arguments]) == 2
    assert words in capsys.readouterr().err
