"""Perplexity of language models and masked words, measured by the verb, on the numbers of the runtime itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf

import edgewise
from edgewise.bundle import read_bundle
from edgewise.cli import main
from edgewise.data import Row, load_rows
from edgewise.errors import WorkerError
from edgewise.exporter import export
from edgewise.pairing import Pairing
from edgewise.profiler import Store, Subject, entries, measure_accuracy
from edgewise.profiler.compare import compare_stores
from edgewise.profiler.hardware_report import hardware_report
from edgewise.profiler.likelihood import likelihood_metrics, outcome_of, paired_likelihood
from edgewise.profiler.masking import with_masks
from edgewise.profiler.store import Outcome
from edgewise.runtime.likelihood import Likelihood
from edgewise.types import Measurement, RunSettings, Target
from edgewise.units import parse_budget, parse_limit

TOKENIZER = Path(__file__).parents[2] / "examples" / "models" / "bible-gpt"
AT_32 = Target("here", RunSettings(max_length=32))
QUICK = ("--mode", "quick", "--seconds", "0.02", "--max-length", "32")


def exported(model: Any, tokenizer: Any, out: Path, task: Any) -> dict[str, Path]:
    """Recipe -> bundle of a model of random weights, so large that int8 answers differ."""
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.mul_(6)
    model.save_pretrained(out / "tiny")
    tokenizer.save_pretrained(out / "tiny")
    made = export(out / "tiny", ["fp32", "int8-dynamic"], out=out / "bundles", task=task)
    assert [m.reason for m in made] == ["", ""]
    return {m.recipe.name: m.bundle.path for m in made if m.bundle}


@pytest.fixture(scope="module")
def gpts(tmp_path_factory: Any) -> dict[str, Path]:
    tokenizer = hf.AutoTokenizer.from_pretrained(TOKENIZER)
    torch.manual_seed(1)
    config = hf.GPT2Config(len(tokenizer), n_positions=48, n_embd=48, n_layer=1, n_head=3)
    config.eos_token_id = config.bos_token_id = tokenizer.eos_token_id
    return exported(hf.GPT2LMHeadModel(config), tokenizer, tmp_path_factory.mktemp("gpts"), "text-generation")


@pytest.fixture(scope="module")
def berts(minilm: Path, tmp_path_factory: Any) -> dict[str, Path]:
    tokenizer = hf.AutoTokenizer.from_pretrained(minilm)
    torch.manual_seed(2)
    config = hf.BertConfig(
        len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    return exported(hf.BertForMaskedLM(config), tokenizer, tmp_path_factory.mktemp("berts"), "fill-mask")


@pytest.fixture(scope="module")
def text(tmp_path_factory: Any) -> Path:
    """A file of running text, a sentence a line."""
    file = tmp_path_factory.mktemp("text") / "running.txt"
    rows = load_rows("asset:brown", task="text-generation")[2000:2080]
    file.write_text("".join(f"{row.text}\n\n" for row in rows), encoding="utf-8")
    return file


def profiled(bundles: dict[str, Path], data: Path, place: Path, *more: str) -> Path:
    command = ["profile", *map(str, bundles.values()), "--data", str(data), "--store", str(place), *QUICK]
    assert main([*command, *more]) == 0
    return place


@pytest.fixture(scope="module")
def written(gpts: dict[str, Path], text: Path, tmp_path_factory: Any) -> Path:
    """A store of both bundles, measured by the verb."""
    place = tmp_path_factory.mktemp("written") / "m.sqlite"
    return profiled(gpts, text, place, "--new-tokens", "3", "--slice", "length")


@pytest.fixture(scope="module")
def filled(berts: dict[str, Path], text: Path, tmp_path_factory: Any) -> Path:
    """A store of both bundles of masked words, without times."""
    place = tmp_path_factory.mktemp("filled") / "m.sqlite"
    with Store(place) as store:
        subjects = [Subject("tiny", recipe, read_bundle(path)) for recipe, path in berts.items()]
        measure_accuracy(subjects, [AT_32], load_rows(text, task="text-generation"), store=store)
    return place


def by_recipe(store: Store, scenario: str) -> dict[str, Measurement]:
    return {m.recipe: m for m in store.measurements() if m.scenario == scenario}


def check_against_runtime(place: Path, bundles: dict[str, Path], text: Path, **options: Any) -> None:
    """The store's metrics and outcomes are those of the runtime here."""
    texts = [row.text for row in load_rows(text, task="text-generation")]
    with Store(place) as store:
        for recipe, m in by_recipe(store, "accuracy").items():
            assert m.status == "ok", m.reason
            with edgewise.load(bundles[recipe], max_length=32) as model:
                own = list(model.log_likelihood(texts, **options))
            kept = store.outcomes(m.id or 0)
            assert [(o.answer, o.label) for o in kept] == [(f.right, f.scored) for f in own]
            np.testing.assert_allclose([o.score for o in kept], [f.log_probability for f in own], rtol=1e-9)
            found = m.metric("perplexity")
            assert found is not None
            assert found.value == pytest.approx(perplexity(own))
            assert found.n == sum(f.scored for f in own)
            assert found.low is not None and found.high is not None
            assert found.low < found.value < found.high


def perplexity(found: Sequence[Likelihood]) -> float:
    return math.exp(-math.fsum(f.log_probability for f in found) / sum(f.scored for f in found))


# ---- text generation


def test_perplexity_of_running_text(written: Path, gpts: dict[str, Path], text: Path) -> None:
    check_against_runtime(written, gpts, text, joined=True)
    with Store(written) as store:
        first = by_recipe(store, "accuracy")["fp32"].metric("perplexity")
        report = hardware_report(store, "here")
    assert first is not None
    assert "windows of 32 tokens" in first.method
    assert "delta method" in first.method
    assert "| perplexity |" in report and "perplexity ratio" in report


def test_int8_is_compared_token_by_token(written: Path) -> None:
    with Store(written) as store:
        answered, compared = by_recipe(store, "accuracy"), by_recipe(store, "comparison")
        pairs = zip(*(store.outcomes(answered[r].id or 0) for r in ("fp32", "int8-dynamic")), strict=True)
        rows = list(pairs)
    own = compared["fp32"].metric("perplexity_ratio")
    ratio = compared["int8-dynamic"].metric("perplexity_ratio")
    assert own is not None and ratio is not None
    assert own.value == 1
    values = [answered[r].metric("perplexity") for r in ("int8-dynamic", "fp32")]
    assert ratio.value == pytest.approx(values[0].value / values[1].value)  # type: ignore[union-attr, operator]
    assert ratio.value != 1, "or int8 changes nothing"
    assert ratio.low < ratio.value < ratio.high  # type: ignore[operator]
    # paired: far narrower than the two apart
    assert ratio.high / ratio.low < values[1].high / values[1].low  # type: ignore[union-attr, operator]
    # by hand: exp of the mean difference a token
    tokens = sum(a.label or 0 for a, _ in rows)
    assert ratio.value == pytest.approx(math.exp(sum(a.score - b.score for a, b in rows) / tokens))
    assert compared["int8-dynamic"].metric("accuracy_drop") is None
    assert "times that of fp32" in compared["int8-dynamic"].conditions["words"]


def test_perplexity_by_slice(written: Path) -> None:
    with Store(written) as store:
        m = by_recipe(store, "accuracy")["fp32"]
        compared = by_recipe(store, "comparison")["int8-dynamic"]
        outcomes = store.outcomes(m.id or 0)
    parts = m.conditions["slices"]
    assert len(parts) > 2
    for part in parts:
        rows = [outcomes[i] for i in part["rows"]]
        hand = math.exp(-sum(o.score for o in rows) / sum(o.label or 0 for o in rows))
        assert part["perplexity"] == pytest.approx(hand)
        assert part["low"] < hand < part["high"]
    worst = m.metric("worst_slice_perplexity")
    assert worst is not None
    assert worst.value == max(p["perplexity"] for p in parts if len(p["rows"]) >= 20)
    assert [p["slice"] for p in compared.conditions["slices"]] == [p["slice"] for p in parts]
    assert all(p["low"] < p["ratio"] < p["high"] for p in compared.conditions["slices"])


def test_perplexity_is_a_budget_and_an_objective(written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Store(written) as store:
        found = {e.recipe: e for e in entries(store)}
    value = found["fp32"].metrics["perplexity"]
    assert {"perplexity", "perplexity_ratio", "ttft_p50", "size"} <= set(found["int8-dynamic"].metrics)
    wide, narrow = f"perplexity <= {value.high + 100:.1f}", f"perplexity <= {value.value:.4f}"  # type: ignore[operator]
    ask = ["select", str(written), "--objective", "perplexity,size", "--budget"]
    assert main([*ask, wide, "--budget", "perplexity_ratio <= 2 of fp32"]) == 0
    assert main([*ask, narrow]) == 3, "the bound must keep it, not the value"
    capsys.readouterr()
    assert main([*ask, "perplexity_ratio <= 1 of fp32"]) == 0
    assert "/fp32 with cpu, 1 thread" in " ".join(capsys.readouterr().out.split())


def test_two_entries_are_paired_row_by_row(written: Path) -> None:
    with Store(written) as store:
        found = {e.recipe: e for e in entries(store)}
        target = found["fp32"].target
        assert target is not None
        paired = Pairing(store, [target])
        difference = paired(found["int8-dynamic"], found["fp32"], "perplexity")
        assert paired(found["fp32"], found["fp32"], "perplexity") == (0, 0)
        assert paired(found["int8-dynamic"], found["fp32"], "f1") is None
    assert difference is not None
    values = {r: e.metrics["perplexity"] for r, e in found.items()}
    assert difference[0] == pytest.approx(values["int8-dynamic"].value - values["fp32"].value)  # type: ignore[operator]
    alone = (values["fp32"].high - values["fp32"].value) / 1.66  # type: ignore[operator]
    assert 0 < difference[1] < alone


@pytest.mark.slow
def test_two_runs_are_compared_token_by_token(written: Path, gpts: dict[str, Path], text: Path, tmp_path: Path) -> None:
    def measured(name: str, bundle: Path, rows: Sequence[Row]) -> Store:
        store = Store(tmp_path / name)
        subject = Subject("tiny", "fp32", read_bundle(bundle))
        measure_accuracy([subject], [AT_32], rows, store=store)
        return store

    rows = load_rows(text, task="text-generation")
    a, b = measured("a", gpts["fp32"], rows), measured("b", gpts["int8-dynamic"], rows)
    again, others = measured("c", gpts["fp32"], rows), measured("d", gpts["fp32"], rows[1:])
    (moved,) = compare_stores(a, b).differences
    assert (moved.metric, moved.verdict in ("worse", "better", "none shown")) == ("perplexity", True)
    assert moved.low is not None and moved.high is not None and moved.change is not None
    assert moved.low < moved.change < moved.high
    (back,) = compare_stores(b, a).differences
    assert back.change == pytest.approx(1 / moved.change)
    (same,) = compare_stores(a, again).differences
    assert (same.verdict, same.change) == ("equal", 1)
    (none,) = compare_stores(a, others).differences
    assert none.verdict == "not comparable"


# ---- masked words


def test_masked_words(filled: Path, berts: dict[str, Path], text: Path) -> None:
    check_against_runtime(filled, berts, text)
    with Store(filled) as store:
        answered, compared = by_recipe(store, "accuracy"), by_recipe(store, "comparison")["int8-dynamic"]
        outcomes = {r: store.outcomes(m.id or 0) for r, m in answered.items()}
    shares = {}
    for recipe, m in answered.items():
        rows, accuracy = outcomes[recipe], m.metric("accuracy")
        assert accuracy is not None and accuracy.low is not None and accuracy.high is not None
        shares[recipe] = sum(o.answer for o in rows) / sum(o.label or 0 for o in rows)
        assert accuracy.value == pytest.approx(shares[recipe])
        assert accuracy.n == sum(o.label or 0 for o in rows)
        assert accuracy.low <= shares[recipe] <= accuracy.high
        assert "masked, 15%" in accuracy.method
    drop, ratio = compared.metric("accuracy_drop"), compared.metric("perplexity_ratio")
    assert drop is not None and drop.low is not None and drop.high is not None and ratio is not None
    assert drop.value == pytest.approx(100 * (shares["fp32"] - shares["int8-dynamic"]))
    assert drop.low <= drop.value <= drop.high
    assert drop.low < drop.high
    assert ratio.value != 1, "or int8 changes nothing"


@pytest.mark.slow
def test_masked_words_by_the_verb(
    berts: dict[str, Path], text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = profiled(berts, text, tmp_path / "m.sqlite")
    check_against_runtime(place, berts, text)
    with Store(place) as store:
        found = {e.recipe: e.metrics for e in entries(store)}
        timed = by_recipe(store, "single-stream")["fp32"]
    assert {"p50", "accuracy", "perplexity", "accuracy_drop", "perplexity_ratio"} <= set(found["int8-dynamic"])
    assert any("masked" in note for note in timed.conditions["notes"]), "plain texts are timed with a mask"
    ask = ["select", str(place), "--objective", "accuracy,size", "--budget"]
    assert main([*ask, "accuracy >= 0 %", "--budget", "accuracy_drop <= 100 points of fp32"]) == 0
    assert main([*ask, "accuracy >= 99 %"]) == 3
    capsys.readouterr()


def test_masks_for_timing_stand_in_the_place_of_a_token(berts: dict[str, Path]) -> None:
    bundle = read_bundle(berts["fp32"])
    texts = ["a fine film", "one", "its [MASK] stays", "  Ünïcode, and a ç  ", "word " * 200]
    rows = with_masks([Row(t) for t in texts], bundle, RunSettings(max_length=16))
    assert rows[2].text == texts[2]
    assert rows[1].text == "[MASK]"
    for row, before in zip(rows, texts, strict=True):
        assert row.text.count("[MASK]") == 1
        left, right = row.text.split("[MASK]")
        if before != texts[2]:
            assert before.startswith(left) and before.endswith(right)
    with edgewise.load(bundle.path, max_length=16) as model:
        assert all(len(p.masks) == 1 for p in model.predict([row.text for row in rows]))


# ---- what cannot be


def test_texts_with_little_to_predict(gpts: dict[str, Path], berts: dict[str, Path], tmp_path: Path) -> None:
    for bundle, some in (
        (gpts["fp32"], [Row(""), Row("a"), Row("light " * 100)]),
        (berts["fp32"], [Row(""), Row("a")]),
    ):
        with Store(tmp_path / f"{len(some)}.sqlite") as store:
            found, _ = measure_accuracy([Subject("tiny", "fp32", read_bundle(bundle))], [AT_32], some, store=store)
            kept = store.outcomes(found.id or 0)
        assert found.status == "ok", found.reason
        metric = found.metric("perplexity")
        assert metric is not None and metric.value is not None
        assert kept[0].label == 0
        assert metric.n == sum(o.label or 0 for o in kept) > 0


def test_one_row_has_no_interval_and_nothing_scored_no_value(berts: dict[str, Path], tmp_path: Path) -> None:
    (one, *_) = likelihood_metrics([Outcome("a", 3, 10, -20.0)], 0.95)
    assert one.value == pytest.approx(math.exp(2))
    assert (one.low, one.kind, one.why) == (None, "estimated", "one row alone has no interval")
    none, accuracy = likelihood_metrics([Outcome("a", 0, 0, 0.0)], 0.95, accuracy=True)
    assert (none.value, none.kind, accuracy.value) == (None, "unavailable", None)
    (far,) = likelihood_metrics([Outcome("a", 0, 1, -math.inf), Outcome("b", 0, 1, -1.0)], 0.95)
    assert (far.value, far.why) == (None, "a token has a probability of 0")


@pytest.mark.parametrize("given", [None, [1.0], [-1.0, 2, 3], ["x", 1, 1], [math.nan, 1, 1], [-1.0, -1, -1]])
def test_a_worker_that_gives_no_likelihood_is_an_error(given: Any) -> None:
    with pytest.raises(WorkerError, match="for a likelihood"):
        outcome_of("a", given)


def test_a_lone_surrogate_is_a_reason(gpts: dict[str, Path], tmp_path: Path, capsys: Any) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "fine"}\n{"text": "a \\ud800"}\n', encoding="utf-8")
    command = ["profile", str(gpts["fp32"]), "--data", str(rows), "--store", str(tmp_path / "m.sqlite"), *QUICK]
    assert main(command) == 2
    assert "which UTF-8 cannot write" in capsys.readouterr().err
    with Store(tmp_path / "n.sqlite") as store:
        subject = Subject("tiny", "fp32", read_bundle(gpts["fp32"]))
        (found,) = measure_accuracy([subject], [Target()], [Row("fine"), Row("a \ud800")], store=store)
    assert found.status == "failed"
    assert "lone surrogate at character 2" in found.reason


def test_other_tokens_do_not_compare() -> None:
    rows = [Outcome(str(i), 1, 4, -8.0 - i) for i in range(5)]
    others = [Outcome(str(i), 1, 3, -8.0 - i) for i in range(5)]
    assert "another tokenizer" in str(paired_likelihood(list(zip(rows, others, strict=True)), 0.95))
    same = paired_likelihood(list(zip(rows, rows, strict=True)), 0.95)
    assert not isinstance(same, str)
    assert same.same
    assert (same.ratio.low, same.ratio.value, same.ratio.high) == (1, 1, 1)
    assert same.drop.high is not None and same.drop.high > 20, "five rows without a change prove little"


def test_limits_of_the_ratio_are_read() -> None:
    budget = parse_budget("perplexity_ratio <= 1.02 of int8-dynamic")
    assert (budget.relative_to, budget.limit, budget.unit) == ("int8-dynamic", 1.02, "number")
    assert parse_limit("perplexity_ratio", "<= 1.1").relative_to == "fp32"


# ---- the intervals hold


@pytest.mark.parametrize("what", ["perplexity", "ratio", "accuracy"])
def test_bounds_cover_the_truth_at_their_rate(what: str) -> None:
    """Rows of different lengths whose tokens hang together: one-sided bounds at 95% cover in 95% of 600 draws."""
    random = np.random.default_rng(3)
    covered = {"low": 0, "high": 0}
    truth = {"perplexity": math.exp(3.0), "ratio": math.exp(0.05), "accuracy": 0.3}[what]
    for _ in range(600):
        sizes = random.integers(2, 40, 80)
        mood = random.normal(0, 0.5, 80)
        nll = [random.gamma(4.0, 0.75, n).sum() + m * n for n, m in zip(sizes, mood, strict=True)]
        hits = random.binomial(sizes, random.beta(3, 7, 80))
        rows = [Outcome("", int(h), int(n), -float(t)) for h, n, t in zip(hits, sizes, nll, strict=True)]
        if what == "ratio":
            moved = [0.05 * n + random.normal(0, 0.1) * n for n in sizes]
            pairs = [(r, Outcome("", r.answer, r.label, r.score - m)) for r, m in zip(rows, moved, strict=True)]
            found = paired_likelihood(pairs, 0.95)
            assert not isinstance(found, str)
            low, high = found.ratio.low, found.ratio.high
        else:
            metric = next(m for m in likelihood_metrics(rows, 0.95, accuracy=True) if m.name == what)
            low, high = metric.low, metric.high
        assert low is not None and high is not None
        covered["low"] += low <= truth
        covered["high"] += high >= truth
    assert min(covered.values()) > 0.92 * 600
    assert max(covered.values()) < 0.98 * 600
