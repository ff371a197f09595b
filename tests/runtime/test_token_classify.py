"""Token classification as transformers does it: every aggregation strategy, characters, and long texts in windows."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from filelock import FileLock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import edgewise
from edgewise.assets import asset_path, cache_folder
from edgewise.bundle import MANIFEST
from edgewise.data import Row, load_rows
from edgewise.errors import BundleError, InputError
from edgewise.exporter import export
from edgewise.plan import TuneSpec
from edgewise.runtime.aggregate import STRATEGIES
from edgewise.runtime.base import TruncationWarning
from edgewise.runtime.token_classify import TokenClassifier

SPEC = TuneSpec(epochs=1, batch_size=16, learning_rate=3e-4, max_length=48, keep_layers=(0, 5))
AGGREGATED = [s for s in STRATEGIES if s != "none"]
PLACES = [
    "Zürich, 8001; Bahnhofstraße 12",
    "PO BOX 12 Saint-Étienne\u00a0FR",
    "12/3   Main\tSt.\nApt #4",
    "東京都 1-2-3",
]


@pytest.fixture(scope="module")
def addresses() -> list[Row]:
    return list(load_rows("asset:addresses", task="token-classification", tags="tags"))


@pytest.fixture(scope="module")
def texts(addresses: list[Row], review_rows: tuple[Row, ...]) -> list[str]:
    """What the model never saw: 150 addresses, 50 reviews, and characters of other alphabets."""
    return [r.text for r in addresses[-150:]] + [r.text for r in review_rows[:50]] + PLACES


@pytest.fixture(scope="module")
def checkpoint(minilm: Path, addresses: list[Row]) -> Path:
    """MiniLM cut to two layers, trained shortly to name the parts of addresses; kept beside the assets."""
    from edgewise.trainer import tune

    rows, out = addresses[:500], cache_folder() / "tests" / "addresses"
    labels = tuple(sorted({tag for r in addresses for tag in r.tags or ()}))
    with FileLock(f"{out}.lock"):
        return tune(
            minilm, rows, labels, SPEC, out=out / "checkpoint", task="token-classification", source_digest="minilm"
        ).path


@pytest.fixture(scope="module")
def bundle(checkpoint: Path) -> Path:
    with FileLock(f"{checkpoint.parent}.lock"):
        (made,) = export(checkpoint, ["fp32"], out=checkpoint.parent / "bundles")
    assert made.bundle is not None, made.reason
    return made.bundle.path


@pytest.fixture(scope="module")
def model(bundle: Path) -> TokenClassifier:
    return edgewise.load(bundle)


@pytest.fixture(scope="module")
def peer(checkpoint: Path) -> Any:
    return hf.pipeline("token-classification", model=str(checkpoint), device="cpu")


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: Any) -> tuple[Path, Path]:
    """(checkpoint, bundle) of fresh weights with SmolLM2's tokenizer, which does not mark what is inside a word."""
    folder = tmp_path_factory.mktemp("byte-level")
    tokenizer = hf.AutoTokenizer.from_pretrained(asset_path("smollm2"))
    tokenizer.model_max_length, tokenizer.pad_token = 64, tokenizer.convert_ids_to_tokens(0)
    labels = ["O", "B-X", "I-X", "B-Y", "I-Y"]
    config = hf.DistilBertConfig(
        len(tokenizer), dim=32, n_layers=1, n_heads=2, hidden_dim=64, max_position_embeddings=64,
        id2label=dict(enumerate(labels)), label2id={n: i for i, n in enumerate(labels)},
    )  # fmt: skip
    torch.manual_seed(1)
    fresh = hf.DistilBertForTokenClassification(config)
    with torch.no_grad():
        fresh.classifier.weight.mul_(40)
    fresh.save_pretrained(folder / "checkpoint")
    tokenizer.save_pretrained(folder / "checkpoint")
    (made,) = export(folder / "checkpoint", ["fp32"], out=folder / "bundles")
    assert made.bundle is not None, made.reason
    return folder / "checkpoint", made.bundle.path


def assert_same(ours: Any, theirs: Any) -> None:
    """Equal but for scores, which are equal within 1e-4."""

    def split(answers: Any) -> tuple[Any, list[float]]:
        rest = [[{k: v for k, v in e.items() if k != "score"} for e in text] for text in answers]
        return rest, [float(e["score"]) for text in answers for e in text]

    (rest, scores), (their_rest, their_scores) = split(ours), split(theirs)
    assert rest == their_rest
    np.testing.assert_allclose(scores, their_scores, atol=1e-4)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_answers_equal_transformers_on_200_texts(model, peer, texts: list[str], strategy: Any) -> None:
    ours = model(texts, aggregation_strategy=strategy)
    assert len(texts) > 200
    assert sum(map(len, ours)) > 400
    assert_same(ours, peer(texts, aggregation_strategy=strategy))


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.filterwarnings("ignore:Tokenizer does not support real words")
def test_a_tokenizer_that_does_not_mark_words(byte_level, texts: list[str], strategy: Any) -> None:
    checkpoint, bundle = byte_level
    theirs = hf.pipeline("token-classification", model=str(checkpoint), device="cpu")
    with edgewise.load(bundle) as model:
        ours = model(texts, aggregation_strategy=strategy)
    assert sum(map(len, ours)) > 400
    assert_same(ours, theirs(texts, aggregation_strategy=strategy))


@pytest.mark.parametrize("strategy", AGGREGATED)
@pytest.mark.parametrize(("length", "stride"), [(24, 8), (24, 0), (16, 12), (512, 20)])
def test_windows_equal_transformers(bundle, checkpoint, texts, strategy: Any, length: int, stride: int) -> None:
    tokenizer = hf.AutoTokenizer.from_pretrained(checkpoint, model_max_length=length)
    theirs = hf.pipeline("token-classification", model=str(checkpoint), tokenizer=tokenizer, device="cpu")
    long = [" ".join(texts[i : i + 5]) for i in (0, 5, 10)] + texts[150:152] + [PLACES[0], "", "Main St"]
    with edgewise.load(bundle, max_length=length) as model:
        ours = model(long, aggregation_strategy=strategy, stride=stride)
    assert_same(ours, theirs(long, aggregation_strategy=strategy, stride=stride))


def test_labels_that_are_left_out(model, peer, texts: list[str]) -> None:
    some = texts[:20]
    for options in ({"ignore_labels": []}, {"ignore_labels": ["I-StreetName", "B-AddressNumber"]}):
        assert_same(model(some, **options), peer(some, **options))
    grouped = {"aggregation_strategy": "simple", "ignore_labels": ["StreetName"]}
    assert_same(model(some, **grouped), peer(some, **grouped))


def test_a_text_a_list_a_tuple_and_an_iterator(model, peer, texts: list[str]) -> None:
    assert_same([model(texts[0])], [peer(texts[0])])
    assert_same(model(tuple(texts[:2])), peer(texts[:2]))
    assert list(model(iter(texts[:30]))) == model(texts[:30])
    assert model([]) == []
    assert model("") == []


def test_typed_answers_say_where_and_how_much(bundle: Path, texts: list[str]) -> None:
    long = " ".join(texts[:8])
    with edgewise.load(bundle, max_length=24) as model:
        with pytest.warns(TruncationWarning, match="longer than 24 tokens"):
            cut, short = model.predict([long, "12 Main St"])
        (whole,) = model.predict([long], aggregation_strategy="first", stride=4)
    assert (cut.truncated, cut.n_tokens, cut.windows) == (True, 24, 1)
    assert (short.truncated, short.n_tokens) == (False, 5)
    assert short.entities[0].index == 1
    assert "12 Main St"[short.entities[0].start : short.entities[0].end] == "12"
    assert (whole.truncated, whole.windows > 3, whole.entities[0].index) == (False, True, None)
    assert whole.entities[-1].end > 0.9 * len(long)
    assert cut.entities[-1].end < 0.5 * len(long)


def test_batches_change_nothing_in_fp32(bundle: Path, model, texts: list[str]) -> None:
    with edgewise.load(bundle, batch_size=7) as batched:
        assert_same(batched(texts[:40]), model(texts[:40]))
        options: dict[str, Any] = {"aggregation_strategy": "max", "stride": 3}
        with edgewise.load(bundle, batch_size=4, max_length=16) as a, edgewise.load(bundle, max_length=16) as b:
            assert_same(a(texts[:40], **options), b(texts[:40], **options))


def test_golden_answers(bundle: Path, texts: list[str], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    told = json.loads((copy / MANIFEST).read_text())
    with edgewise.load(copy) as model:
        golden = [model.golden(text) for text in texts[:4]]
        assert golden[0].shape == (1, len(golden[0].input_ids), len(model.labels))
        rows = [{"text": g.text, "input_ids": g.input_ids, "output": g.output, "shape": g.shape} for g in golden]
    (copy / MANIFEST).write_text(json.dumps({**told, "golden": rows}))
    with edgewise.load(copy) as model:
        assert model.check().passed
        assert model.check().largest_difference < 1e-5
    rows[1]["output"] = tuple(-x for x in rows[1]["output"])
    (copy / MANIFEST).write_text(json.dumps({**told, "golden": rows}))
    with edgewise.load(copy) as model:
        assert not model.check().passed


# ---- what is refused


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m("x", aggregation_strategy="maximum"), "aggregation_strategy is 'maximum'"),
        (lambda m: m("x", stride=4), "stride is 4 with aggregation_strategy 'none'"),
        (lambda m: m("x", stride=510, aggregation_strategy="max"), "stride is 510; expected 0 to 509"),
        (lambda m: m("x", stride=-1, aggregation_strategy="max"), "stride is -1"),
        (lambda m: m("x", stride=True, aggregation_strategy="max"), "stride is True"),
        (lambda m: m("x", ignore_labels="O"), "ignore_labels is 'O'; expected a list"),
        (lambda m: m.predict("x"), "predict takes a list of texts, got str"),
        (lambda m: m(None), "expected a text, got None of type NoneType"),
        (lambda m: m(["fine", 3]), "got 3 of type int"),
        (lambda m: m([("a", "b")]), "expected a text"),
        (lambda m: m({"text": "x"}), "expected a text"),
        (lambda m: m("\ud800"), "lone surrogate"),
        (lambda m: m("\ud800 b", stride=4, aggregation_strategy="max"), "lone surrogate"),
        (lambda m: list(m(iter(["fine", b"x"]))), "got b'x' of type bytes"),
    ],
)
def test_a_mistake_is_one_clear_error_and_the_model_lives_on(model, call: Callable[[Any], Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        call(model)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert model("12 Main St")


def test_a_tokenizer_config_that_is_none(bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    (copy / "tokenizer_config.json").write_text("[")
    with pytest.raises(BundleError, match=r"tokenizer_config\.json is no JSON"):
        edgewise.load(copy, verify="none")


@given(text=st.text(max_size=200), strategy=st.sampled_from(STRATEGIES), stride=st.sampled_from([None, 0, 3]))
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_is_answered_or_refused(model, text: str, strategy: Any, stride: int | None) -> None:
    try:
        found = model(text, aggregation_strategy=strategy, stride=None if strategy == "none" else stride)
    except InputError:
        assert any(0xD800 <= ord(c) <= 0xDFFF for c in text)
    else:
        assert all(0 <= e["start"] <= e["end"] <= len(text) and 0 <= e["score"] <= 1 for e in found)
        assert [e["start"] for e in found] == sorted(e["start"] for e in found)


@pytest.mark.slow
def test_a_profile_measures_the_trainers_metrics(checkpoint: Path, bundle: Path, addresses, tmp_path: Path) -> None:
    from edgewise.bundle import read_bundle
    from edgewise.profiler import Store, Subject, measure_accuracy
    from edgewise.trainer.evaluation import evaluate_checkpoint
    from edgewise.types import RunSettings, Target

    rows = addresses[-80:]
    subject = Subject("addresses", "fp32", read_bundle(bundle))
    labels = subject.manifest.labels
    theirs = evaluate_checkpoint(checkpoint, rows, labels, task="token-classification", max_length=16)
    with Store(tmp_path / "m.sqlite") as store:
        target = Target("here", RunSettings(max_length=16))  # so short that some words are not read
        found, compared = measure_accuracy([subject], [target], rows, store=store)
        outcomes = store.outcomes(found.id or 0)
    assert found.reason == ""
    assert found.conditions["inputs"]["truncated"] > 0
    assert {m.name: m.value for m in found.metrics} == pytest.approx({n: s.value for n, s in theirs.items()})
    for metric in found.metrics:
        assert metric.low is not None
        assert metric.high is not None
        assert metric.value is not None
        assert metric.low <= metric.value <= metric.high
    assert len(outcomes) == 80
    agreement = compared.metric("agreement")
    assert agreement is not None
    assert agreement.value == 1.0
