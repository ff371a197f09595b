"""Text classification: thresholds, several labels a text, long texts in windows or cut, many inputs at once."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers as hf
from filelock import FileLock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

import edgewise
from edgewise.assets import asset_path, cache_folder
from edgewise.data import Row
from edgewise.errors import EdgewiseError, InputError, PlanError, UserError
from edgewise.exporter import export
from edgewise.plan import TuneSpec
from edgewise.runtime import TextClassifier, TruncationWarning
from edgewise.runtime.long_text import encode_start
from edgewise.runtime.text import is_far_longer
from edgewise.runtime.windows import windows_of

SPEC = TuneSpec(epochs=1, batch_size=16, learning_rate=5e-4, max_length=48, keep_layers=(0, 5))


@pytest.fixture(scope="module")
def model(fp32_bundle: Path) -> TextClassifier:
    return edgewise.load(fp32_bundle, parallel=1)


@pytest.fixture(scope="module")
def texts(review_rows: tuple[Row, ...]) -> list[str]:
    return [r.text for r in review_rows[:300]]


@pytest.fixture(scope="module")
def long_texts(texts: list[str]) -> list[str]:
    """Each of several windows of 24 tokens."""
    return [" ".join(texts[i : i + 4]) for i in range(0, 40, 4)]


@pytest.fixture(scope="module")
def several(minilm: Path, review_splits: Any) -> tuple[Path, Path]:
    """(checkpoint, bundle) of a model that says whether a review is positive, and whether it is long."""
    from edgewise.trainer import tune

    middle = float(np.median([len(r.text) for r in review_splits.train]))
    rows = [
        replace(r, label=None, labels=(*(["positive"] if r.label == "positive" else []),
                                       *(["long"] if len(r.text) > middle else [])))
        for r in review_splits.train
    ]  # fmt: skip
    out = cache_folder() / "tests" / "several"
    with FileLock(f"{out}.lock"):
        folder = tune(
            minilm, rows, ("long", "positive"), SPEC, out=out / "checkpoint", source_digest="minilm",
            problem_type="multi_label_classification",
        ).path  # fmt: skip
        (made,) = export(folder, ["fp32"], out=out / "bundles")
    assert made.bundle is not None, made.reason
    return folder, made.bundle.path


# ---- thresholds


def test_of_two_labels_the_second_is_said_from_the_threshold_up(fp32_bundle: Path, texts: list[str], model) -> None:
    plain = model.predict(texts)
    scores = [p.scores[1] for p in plain]
    limit = float(np.quantile(scores, 0.8))
    with edgewise.load(fp32_bundle, threshold=limit) as strict:
        found = strict.predict(texts)
        dicts = strict(texts)
    assert [p.scores for p in found] == [p.scores for p in plain]
    assert [p.index for p in found] == [int(s >= limit) for s in scores]
    assert 0 < sum(p.index for p in found) < 0.25 * len(texts)
    assert all(p.labels == (p.label,) == (strict.labels[p.index],) for p in found)
    assert [d["label"] for d in dicts] == [p.label for p in found]
    assert [d["score"] for d in dicts] == [p.scores[p.index] for p in found]  # of the label that is said


@pytest.mark.parametrize(("limit", "index"), [(0, 1), (1.0, 0)])
def test_thresholds_at_the_ends(fp32_bundle: Path, texts: list[str], limit: float, index: int) -> None:
    with edgewise.load(fp32_bundle, threshold=limit) as model:
        assert {p.index for p in model.predict(texts[:20])} == {index}


def test_several_labels_equal_transformers_on_300_reviews(several, texts: list[str]) -> None:
    checkpoint, bundle = several
    theirs = hf.pipeline("text-classification", model=str(checkpoint), device="cpu")(texts, top_k=None)
    with edgewise.load(bundle) as model:
        ours = model(texts, top_k=None)
        found = model.predict(texts)
    assert [[d["label"] for d in a] for a in ours] == [[d["label"] for d in b] for b in theirs]
    np.testing.assert_allclose(
        [[d["score"] for d in a] for a in ours], [[d["score"] for d in b] for b in theirs], atol=1e-5
    )
    assert [p.labels for p in found] == [
        tuple(n for n, s in zip(model.labels, p.scores, strict=True) if s >= 0.5) for p in found
    ]
    assert {p.labels for p in found} >= {("long",), ("positive",), ("long", "positive")}


@pytest.mark.parametrize(("limit", "count"), [(0.0, 2), (1.0, 0)])
def test_each_of_several_labels_has_the_threshold(several, texts: list[str], limit: float, count: int) -> None:
    with edgewise.load(several[1], threshold=limit) as model:
        for prediction in model.predict(texts[:20]):
            assert len(prediction.labels) == count
            assert prediction.score == max(prediction.scores)


@pytest.mark.parametrize("limit", [-0.1, 1.5, "high", True])
def test_a_threshold_that_is_no_score(fp32_bundle: Path, limit: Any) -> None:
    with pytest.raises(PlanError, match="expected a score of 0 to 1"):
        edgewise.load(fp32_bundle, threshold=limit)


def test_a_threshold_for_a_number_is_refused(tmp_path: Path, minilm: Path) -> None:
    tokenizer = hf.AutoTokenizer.from_pretrained(minilm)
    config = hf.BertConfig(
        len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_labels=1
    )
    hf.BertForSequenceClassification(config).save_pretrained(tmp_path / "number")
    tokenizer.save_pretrained(tmp_path / "number")
    (made,) = export(tmp_path / "number", ["fp32"], out=tmp_path / "out")
    assert made.bundle is not None, made.reason
    with pytest.raises(UserError, match="tells 1 labels apart: it is for two labels, or several a text"):
        edgewise.load(made.bundle.path, threshold=0.5)
    with edgewise.load(made.bundle.path, max_length=16) as model:
        (cut,) = model.predict(["word " * 50], windows="mean")
        assert cut.score == pytest.approx(np.mean([p.score for p in model.predict(["word " * 14] * 3)]), abs=0.1)


# ---- long texts


@pytest.mark.parametrize("stride", [None, 0, 7])
@pytest.mark.parametrize("windows", ["mean", "max"])
def test_windows_join_the_scores_of_what_transformers_cuts(fp32_bundle, tuned, long_texts, windows, stride) -> None:
    tokenizer = hf.AutoTokenizer.from_pretrained(tuned)
    with edgewise.load(fp32_bundle, max_length=24) as model:
        found = model.predict(long_texts, windows=windows, stride=stride)
        for text, prediction in zip(long_texts, found, strict=True):
            cut = tokenizer(
                text, truncation=True, max_length=24, stride=5 if stride is None else stride,
                return_overflowing_tokens=True,
            )  # fmt: skip
            assert (prediction.windows, prediction.truncated) == (len(cut["input_ids"]), False)
            assert prediction.windows > 1
            assert prediction.n_tokens == sum(map(len, cut["input_ids"]))
            parts = windows_of(model._encoder, text, stride)
            assert [p.ids for p in parts] == cut["input_ids"]
            scores = np.array([model._score(model._run([p])[0].tolist()) for p in parts])
            wanted = scores.mean(0) if windows == "mean" else scores.max(0)
            np.testing.assert_allclose(prediction.scores, wanted, atol=1e-6)
            assert prediction.label == model.labels[int(wanted.argmax())]


def test_windows_of_a_text_that_fits_change_nothing(model, texts: list[str]) -> None:
    plain, found = model.predict(texts[:50]), model.predict(texts[:50], windows="mean")
    assert [(p.scores, p.logits, p.labels, p.windows) for p in found] == [
        (p.scores, p.logits, p.labels, 1) for p in plain
    ]


def test_windows_in_every_form_of_call(fp32_bundle: Path, long_texts: list[str]) -> None:
    with (
        edgewise.load(fp32_bundle, max_length=24) as model,
        edgewise.load(fp32_bundle, max_length=24, batch_size=3, threshold=0.9) as other,
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("error", TruncationWarning)
            listed = model(long_texts, windows="max", stride=4)
        assert [model(t, windows="max", stride=4)[0] for t in long_texts] == listed
        assert list(model(iter(long_texts), windows="max", stride=4)) == listed
        assert [model({"text": t}, windows="max", stride=4) for t in long_texts] == listed
        batched = other.predict(long_texts, windows="max", stride=4)
    assert [p.index for p in batched] == [int(p.scores[1] >= 0.9) for p in batched]


@pytest.mark.parametrize(
    ("options", "inputs", "message"),
    [
        ({"windows": "sum"}, "x", "windows is 'sum'; expected 'mean' or 'max'"),
        ({"stride": 3}, "x", "stride is 3, but there are no windows"),
        ({"windows": "mean", "stride": 22}, "x", "stride is 22; expected 0 to 21 tokens"),
        ({"windows": "mean", "stride": -1}, "x", "stride is -1"),
        ({"windows": "mean", "stride": 1.5}, "x", "stride is 1.5"),
        ({"windows": "mean"}, {"text": "x", "text_pair": "y"}, "a pair of texts cannot be read in windows"),
        ({"windows": "max"}, "\udfff", "lone surrogate"),
    ],
)
def test_windows_that_cannot_be(fp32_bundle: Path, options: Any, inputs: Any, message: str) -> None:
    with edgewise.load(fp32_bundle, max_length=24) as model:
        for given in (inputs, [inputs]):
            with pytest.raises(InputError) as caught:
                model(given, **options)
            assert message in str(caught.value)
            assert "\n" not in str(caught.value)
        assert model("a fine film")


def test_truncation_is_warned_of_once_a_model(fp32_bundle: Path, long_texts: list[str]) -> None:
    with edgewise.load(fp32_bundle, max_length=24) as model:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model("short")
        with pytest.warns(TruncationWarning, match="longer than 24 tokens, and its end was not read"):
            model(long_texts)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert model.predict(long_texts)[0].truncated
    with edgewise.load(fp32_bundle, max_length=24) as model, pytest.warns(TruncationWarning):
        list(model(iter(long_texts)))


def tokenizers_of_every_kind(minilm: Path, texts: list[str]) -> Iterator[Tokenizer]:
    yield Tokenizer.from_file(str(minilm / "tokenizer.json"))  # words, and their parts
    yield Tokenizer.from_file(str(asset_path("smollm2") / "tokenizer.json"))  # bytes
    yield Tokenizer.from_file(str(asset_path("rxn-albert") / "tokenizer.json"))  # a regular expression of its own
    unigram = Tokenizer(models.Unigram())
    unigram.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    unigram.train_from_iterator(
        texts,
        trainers.UnigramTrainer(vocab_size=500, special_tokens=["<unk>", "</s>", "<extra id>"], unk_token="<unk>"),
    )
    unigram.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    yield unigram


ATOMS = (
    "a", "b ", " ", "  ", "\n", ".", "'s", "é", "e\u0301", "字", "🇩🇪", "👩‍👧", "[MASK]", "[SEP] ", "<extra id>", "1",
    "\u00a0", "\t", "ﬁ", "\u200b", "word ", "<|endoftext|>", "xxxxxxxx", "......",
)  # fmt: skip


def test_the_start_of_a_long_text_has_the_tokens_of_the_whole(minilm: Path, texts: list[str]) -> None:
    rng = np.random.default_rng(5)
    limit, words = 12, " ".join(texts)

    def some(length: int) -> str:
        kind = rng.integers(0, 5)
        if kind == 0:
            start = int(rng.integers(0, len(words) - length))
            return words[start : start + length]
        atoms = ATOMS if kind < 3 else (str(rng.choice(ATOMS)),)
        return "".join(rng.choice(atoms) for _ in range(length))[:length]

    for tokenizer in tokenizers_of_every_kind(minilm, texts):
        tokenizer.no_padding()
        tokenizer.enable_truncation(limit)
        for _ in range(60):
            long, other = some(int(rng.integers(17, 40)) * limit), some(int(rng.integers(1, 18)) * limit)
            for item in (long, (long, other), (other, long)):
                assert is_far_longer(item, limit)
                whole = tokenizer.encode(item) if isinstance(item, str) else tokenizer.encode(*item)
                start = encode_start(tokenizer, item, limit)
                for name in ("ids", "type_ids", "offsets", "special_tokens_mask"):
                    assert getattr(start, name) == getattr(whole, name), (name, item)
                assert bool(start.overflowing) == bool(whole.overflowing)


@pytest.mark.filterwarnings("ignore::edgewise.runtime.TruncationWarning")
@pytest.mark.parametrize("unit", ["film ", ".", "字", "x"])
def test_one_megabyte_in_every_form(model, unit: str) -> None:
    text = unit * (1_000_000 // len(unit.encode()))
    cut = unit != "x"  # which is one word, and unknown
    alone, first, second = model.predict([text, (text, "short"), ("short", text)])
    assert (alone.truncated, alone.n_tokens) == ((True, 512) if cut else (False, 3))
    assert first.truncated == second.truncated == cut


@pytest.mark.filterwarnings("ignore::edgewise.runtime.TruncationWarning")
def test_two_megabytes_in_a_pair(model, texts: list[str]) -> None:
    """Which tokenizers alone would hold in parts, each of the one with each of the other."""
    words = " ".join(texts)
    long = words * (1_000_000 // len(words))
    (found,) = model.predict([(long, long[::-1])])
    assert (found.truncated, found.n_tokens) == (True, 512)


def test_a_lone_surrogate_far_behind_is_seen(model) -> None:
    for item in ("word " * 100_000 + "\ud800", ("x", "word " * 100_000 + "\ud800")):
        with pytest.raises(InputError, match="lone surrogate"):
            model.predict([item])


# ---- many inputs


@pytest.mark.parametrize("parallel", [1, 2])
def test_a_generator_is_read_no_further_than_needed(fp32_bundle: Path, parallel: int) -> None:
    read: list[int] = []

    def endless() -> Iterator[str]:
        for i in range(10**9):
            read.append(i)
            yield f"film number {i}"

    with edgewise.load(fp32_bundle, parallel=parallel) as model:
        answers = model(endless())
        assert read == []  # nothing before the first answer is wanted
        first = [next(answers) for _ in range(20)]
        assert len(read) <= 20 + 4 * parallel + 1  # as many batches a thread are held
        assert first == model([f"film number {i}" for i in range(20)])
        answers.close()


@pytest.mark.parametrize("parallel", [1, 3])
def test_an_error_of_the_generator_comes_after_what_it_gave(fp32_bundle: Path, texts: list[str], parallel: int) -> None:
    def broken() -> Iterator[str]:
        yield from texts[:7]
        raise OSError("the file went away")

    with edgewise.load(fp32_bundle, parallel=parallel) as model:
        answers = model(broken())
        assert [next(answers) for _ in range(7)] == model(texts[:7])
        with pytest.raises(OSError, match="the file went away"):
            next(answers)


@pytest.mark.parametrize("parallel", [1, 3])
@pytest.mark.parametrize("bad", [None, "\ud800", {"txt": "a"}])
def test_an_error_stands_where_its_answer_would(fp32_bundle: Path, texts: list[str], parallel: int, bad: Any) -> None:
    with edgewise.load(fp32_bundle, parallel=parallel) as model:
        answers = model(iter([*texts[:9], bad, *texts[9:12]]))
        assert [next(answers) for _ in range(9)] == model(texts[:9])
        with pytest.raises(InputError):
            next(answers)
        with pytest.raises(StopIteration):
            next(answers)
        assert model(texts[:2])


@pytest.mark.filterwarnings("ignore::edgewise.runtime.TruncationWarning")
def test_calls_at_once_equal_calls_one_by_one(fp32_bundle: Path, texts: list[str], model) -> None:
    items: list[Any] = [*texts[:60], *zip(texts[:20], texts[20:40], strict=True), "word " * 600]
    expected = model.predict(items)
    with edgewise.load(fp32_bundle, parallel=4) as busy:
        assert busy.predict(items) == expected
        assert list(busy.many(iter(items), busy._predict_batch)) == expected
        with ThreadPoolExecutor(4) as pool:  # and calls of the caller's own threads
            assert list(pool.map(lambda item: busy.predict([item])[0], items)) == expected
            found = list(pool.map(lambda i: busy.predict(items[i : i + 9]), range(0, len(items), 9)))
    assert [p for some in found for p in some] == expected


def test_parallel_must_be_a_number(fp32_bundle: Path) -> None:
    for wrong in (0, -1, True, "two"):
        with pytest.raises(PlanError, match="parallel is"):
            edgewise.load(fp32_bundle, parallel=wrong)  # type: ignore[arg-type]


# ---- numbers that are none


def test_nan_is_one_clear_error_and_the_model_lives_on(fp32_bundle: Path, tmp_path: Path) -> None:
    """A graph that takes the logarithm of its answer, which is below 0 for one of the labels."""
    import onnx
    from onnx import helper

    folder = Path(shutil.copytree(fp32_bundle, tmp_path / "nan"))
    graph = onnx.load(folder / "onnx" / "model.onnx")
    for node in graph.graph.node:
        node.output[:] = ["before" if name == "logits" else name for name in node.output]
    graph.graph.node.append(helper.make_node("Log", ["before"], ["logits"]))
    onnx.save(graph, folder / "onnx" / "model.onnx")
    with edgewise.load(folder, verify="none") as model:
        for options in ({}, {"windows": "mean"}, {"top_k": None}):
            with pytest.raises(EdgewiseError, match="answered NaN on cpu, 1 thread"):
                model("a dull mess", **options)
        assert model.labels


@given(text=st.text(max_size=400), windows=st.sampled_from(["mean", "max"]), stride=st.sampled_from([None, 0, 5]))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_goes_in_windows_or_is_refused(short_model, text: str, windows: Any, stride: int | None) -> None:
    try:
        (found,) = short_model.predict([text], windows=windows, stride=stride)
    except InputError:
        assert any(0xD800 <= ord(c) <= 0xDFFF for c in text)
    else:
        assert not found.truncated
        assert all(0 <= s <= 1 for s in found.scores)


@pytest.fixture(scope="module")
def short_model(fp32_bundle: Path) -> TextClassifier:
    return edgewise.load(fp32_bundle, max_length=16)


@pytest.mark.slow
def test_a_profile_measures_several_labels(several, review_rows, tmp_path: Path) -> None:
    from edgewise.bundle import read_bundle
    from edgewise.profiler import Store, Subject, measure_accuracy
    from edgewise.trainer.evaluation import evaluate_checkpoint
    from edgewise.types import RunSettings, Target

    checkpoint, bundle = several
    rows = [
        replace(
            r,
            label=None,
            labels=tuple(n for n, has in (("long", len(r.text) > 110), ("positive", r.label == "positive")) if has),
        )
        for r in review_rows[:60]
    ]
    theirs = evaluate_checkpoint(
        checkpoint, rows, ("long", "positive"), problem_type="multi_label_classification", max_length=48
    )
    subject = Subject("several", "fp32", read_bundle(bundle))
    with Store(tmp_path / "m.sqlite") as store:
        target = Target("here", RunSettings(max_length=48))
        found, _ = measure_accuracy([subject], [target], rows, store=store, slices=["class"])
    assert found.reason == ""
    ours = {m.name: m for m in found.metrics}
    assert {n: s.value for n, s in theirs.items()} == pytest.approx({n: ours[n].value for n in theirs})
    assert ours["worst_slice_accuracy"].value == min(p["accuracy"] for p in found.conditions["slices"])
