"""Text to text: the tokens of transformers' `generate`, greedily and by beam search, and what its pipeline returns.

A small T5, trained shortly to spell out sounds and kept in the cache folder; and a BART of random weights, whose
generation_config.json asks for most of what one can ask for.
"""

from __future__ import annotations

import json
import shutil
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
from edgewise.assets import cache_folder
from edgewise.data import load_splits
from edgewise.errors import BundleError, EdgewiseError, InputError
from edgewise.exporter import export
from edgewise.plan import DataSpec, TuneSpec
from edgewise.runtime.base import TruncationWarning
from edgewise.runtime.text2text import TextToText

CONFIG = Path(__file__).parents[2] / "examples" / "models" / "phoneme-t5"
SMALLER = {
    "d_model": 128, "d_kv": 32, "d_ff": 256, "num_heads": 4, "num_layers": 2, "num_decoder_layers": 2,
    "dropout_rate": 0.0, "initializer_factor": 0.3,
}  # fmt: skip
LETTERS = 5
TUNE = TuneSpec(epochs=3, batch_size=32, learning_rate=2e-3, max_length=LETTERS + 2)
BART = {
    "d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 2,
    "eos_token_id": 1, "decoder_start_token_id": 1, "forced_eos_token_id": 1, "init_std": 0.4,
}  # fmt: skip
SAID = {
    "num_beams": 4, "early_stopping": True, "no_repeat_ngram_size": 3, "min_length": 4, "max_length": 14,
    "length_penalty": 2.0, "forced_bos_token_id": 2, "bad_words_ids": [[5], [6, 7]], "suppress_tokens": [9],
    "renormalize_logits": True,
}  # fmt: skip
N = 208


@pytest.fixture(scope="session")
def words() -> tuple[list[Any], list[str]]:
    """(rows to train on, other words), all of them short."""
    share: dict[str, float | str] = {"train": 0.8, "val": 0.1, "confirm": 0.1}
    spec = DataSpec(path="asset:phonemes", text="word", target="phonemes", split=share)
    splits = load_splits(spec, "text2text-generation", Path)
    train, val = ([r for r in part if len(r.text) <= LETTERS] for part in (splits.train, splits.val))
    return train[:6000], [r.text for r in val[:N]]


@pytest.fixture(scope="session")
def t5(words: tuple[list[Any], list[str]]) -> Path:
    """The trained checkpoint."""
    from edgewise.trainer import tune

    place = cache_folder() / "tests" / "writing"
    place.mkdir(parents=True, exist_ok=True)
    with FileLock(place / "t5.lock"):
        source = place / "t5-config"
        shutil.copytree(CONFIG, source, dirs_exist_ok=True)
        config = json.loads((CONFIG / "config.json").read_text(encoding="utf-8"))
        (source / "config.json").write_text(json.dumps({**config, **SMALLER}), encoding="utf-8")
        return tune(source, words[0], (), TUNE, out=place / "t5", task="text2text-generation").path


@pytest.fixture(scope="session")
def bundle(t5: Path) -> Path:
    out = cache_folder() / "tests" / "writing" / "t5-bundles"
    (made,) = export(t5, ["fp32"], out=out, task="text2text-generation")
    assert made.bundle is not None, made.reason
    return made.bundle.path


@pytest.fixture(scope="session")
def model(bundle: Path) -> TextToText:
    return edgewise.load(bundle, task="text2text-generation")


@pytest.fixture(scope="session")
def peer(t5: Path) -> Any:
    return hf.pipeline("text2text-generation", model=str(t5), device="cpu")


def written(peer: Any, texts: list[str], **options: Any) -> list[list[int]]:
    """What `generate` writes in batches, without the start and the padding behind an end."""
    found = []
    end = peer.model.config.eos_token_id
    for start in range(0, len(texts), 52):
        batch = peer.tokenizer(texts[start : start + 52], return_tensors="pt", padding=True)
        with torch.inference_mode():
            ids = peer.model.generate(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], **options)
        for row in ids[:, 1:].tolist():
            stop = row.index(end) + 1 if end in row else len(row)
            found.append(row[:stop])
    return found


# ---- the same tokens


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"repetition_penalty": 1.4, "no_repeat_ngram_size": 2},
        {"num_beams": 4},
        {"num_beams": 3, "length_penalty": 2.0, "early_stopping": True},
        {"num_beams": 3, "length_penalty": -1.0, "early_stopping": "never", "max_new_tokens": 9},
        {"num_beams": 2, "no_repeat_ngram_size": 2, "min_length": 6, "repetition_penalty": 1.2},
    ],
)
def test_the_tokens_are_those_of_transformers(model, peer, bundle, words, options: dict[str, Any]) -> None:
    texts = words[1]
    assert len(texts) >= 200
    options = {"max_new_tokens": 16, **options}
    wanted = written(peer, texts, **options)
    alone = model.predict(texts, **options)
    assert [list(g.token_ids) for g in alone] == wanted
    with edgewise.load(bundle, batch_size=8) as batched:
        assert batched.predict(texts, **options) == alone
    assert {g.finish for g in alone} >= {"eos"}
    assert [g.finish for g in alone] == ["eos" if w[-1] == 1 else "length" for w in wanted]
    assert len({g.text for g in alone}) > 150


def test_more_beams_than_the_vocabulary_fills(model) -> None:
    with pytest.raises(InputError, match="num_beams is 40; expected at most 34"):
        model("word", num_beams=40)


@pytest.fixture(scope="session")
def bart(t5: Path, tmp_path_factory: Any) -> tuple[Path, Path]:
    """(checkpoint, bundle) of random weights and many wishes."""
    tokenizer = hf.AutoTokenizer.from_pretrained(t5)
    torch.manual_seed(2)
    model = hf.BartForConditionalGeneration(hf.BartConfig(vocab_size=len(tokenizer), **BART)).eval()
    model.generation_config.update(**SAID)
    place = tmp_path_factory.mktemp("bart")
    model.save_pretrained(place / "checkpoint")
    tokenizer.save_pretrained(place / "checkpoint")
    (made,) = export(place / "checkpoint", ["fp32"], out=place / "out", task="text2text-generation")
    assert made.bundle is not None, made.reason
    return place / "checkpoint", made.bundle.path


def test_what_the_model_asks_for_is_done_unless_a_call_asks_otherwise(bart: tuple[Path, Path], words) -> None:
    texts = words[1]
    peer = hf.pipeline("text2text-generation", model=str(bart[0]), device="cpu")
    model = edgewise.load(bart[1])
    for options in ({}, {"num_beams": 1}, {"num_beams": 2, "max_new_tokens": 5, "no_repeat_ngram_size": 2}):
        found = [list(g.token_ids) for g in model.predict(texts, **options)]
        assert found == written(peer, texts, **options), options
        assert len({tuple(f) for f in found}) > 50
    assert model(texts[:20]) == peer(texts[:20])
    assert model.predict(texts[:1])[0].token_ids[0] == SAID["forced_bos_token_id"]
    with pytest.raises(InputError, match="num_beams is 4, and a stream shows one text: set num_beams=1"):
        model.stream(texts[0])


# ---- what the pipeline returns


def test_a_call_returns_what_the_pipeline_does(model, peer, words) -> None:
    texts = [*words[1][:20], "", "two words", "Ünïcödé 你好"]
    options = {"max_new_tokens": 12, "num_beams": 1}
    assert model(texts, **options) == peer(texts, **options)
    assert model(texts[0], **options) == peer(texts[0], **options)
    assert list(model(iter(texts), **options)) == [peer(t, **options) for t in texts]
    assert model([], **options) == []


# ---- stops, streams, drawing, length


def test_a_stream_gives_the_text_in_pieces(model, words) -> None:
    for word in words[1][:30]:
        (whole,) = model.predict([word], max_new_tokens=16)
        pieces = list(model.stream(word, max_new_tokens=16))
        assert all(pieces)
        assert "".join(pieces) == whole.text
        stop = whole.text[2:5]
        (cut,) = model.predict([word], max_new_tokens=16, stop=stop)
        assert (
            cut.text == "".join(model.stream(word, max_new_tokens=16, stop=stop)) == whole.text[: whole.text.find(stop)]
        )
        assert cut.finish == "stop"


def test_a_stream_of_tokens_is_that_of_the_answer(model, words) -> None:
    for word in words[1][:20]:
        (whole,) = model.predict([word], num_beams=1, max_new_tokens=12)
        stream = model.token_stream(word, num_beams=1, max_new_tokens=12)
        assert tuple(stream) == whole.token_ids
        assert stream.n_tokens == whole.n_tokens
        more = tuple(model.token_stream(word, ignore_eos=True, num_beams=1, max_new_tokens=12))
        assert len(more) == 12
        assert more[: len(whole.token_ids)] == whole.token_ids
    with pytest.raises(InputError, match="num_beams"):
        model.token_stream("x", num_beams=2)


def test_drawing_depends_on_the_seed_alone(model, bundle, words) -> None:
    texts, options = words[1][:24], {"do_sample": True, "max_new_tokens": 8, "temperature": 2.0}
    found = model.predict(texts, seed=1, **options)
    with edgewise.load(bundle, batch_size=5, parallel=2) as other:
        assert other.predict(texts, seed=1, **options) == found
    assert model.predict(texts, seed=2, **options) != found
    assert len({g.text for g in model.predict([texts[0]] * 8, seed=1, **options)}) > 3


def test_a_long_text_is_cut_and_said(model, bundle) -> None:
    long = "supercalifragilistic" * 20
    with edgewise.load(bundle, max_length=10) as short:
        with pytest.warns(TruncationWarning, match="longer than 10 tokens"):
            (found,) = short.predict([long], max_new_tokens=4)
        assert (found.truncated, found.n_tokens) == (True, 10)
        assert found.token_ids == model.predict([long[:9]], max_new_tokens=4)[0].token_ids
    with pytest.raises(InputError, match="max_length is 1, and the decoder's start is one token"):
        model("word", max_length=1)
    assert len(model.predict(["word"], max_length=3)[0].token_ids) == 2


def test_golden_answers(model, words) -> None:
    golden = model.golden(words[1][0])
    assert golden.tokens == model.predict([words[1][0]], max_new_tokens=8)[0].token_ids
    assert golden.input_ids == tuple(model.token_ids(words[1][0]))
    assert model.golden(model.golden_input(golden)) == golden


# ---- what cannot be


@pytest.mark.parametrize("bad", [3, None, b"bytes", ["fine", 3], [("a", "b")], {"text": "a"}, "a \ud800 b"])
def test_what_is_no_text(model, bad: Any) -> None:
    with pytest.raises(InputError):
        model(bad)
    assert model("word", max_new_tokens=1)
    with pytest.raises(InputError, match="predict takes a list"):
        model.predict("word")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.text(max_size=80) | st.binary(max_size=8) | st.none() | st.lists(st.text(max_size=8), max_size=3),
    st.sampled_from([{}, {"num_beams": 3}, {"do_sample": True, "seed": 4}]),
)
def test_any_input_is_answered_or_refused(model, text: Any, options: dict[str, Any]) -> None:
    try:
        found = model(text, max_new_tokens=4, **options)
    except InputError:
        return
    assert len(found) == (len(text) if isinstance(text, list) else 1)
    assert all(isinstance(one["generated_text"], str) for one in found)


def test_nan_is_an_error(bundle: Path, tmp_path: Path) -> None:
    import onnx

    copy = Path(shutil.copytree(bundle, tmp_path / "nan"))
    graph = onnx.load(copy / "onnx" / "encoder_model.onnx")
    for weight in graph.graph.initializer:
        values = onnx.numpy_helper.to_array(weight)
        if values.dtype == np.float32 and values.ndim == 2:
            weight.CopyFrom(onnx.numpy_helper.from_array(np.full_like(values, np.nan), weight.name))
    onnx.save(graph, copy / "onnx" / "encoder_model.onnx")
    model = edgewise.load(copy, verify="none")
    for options in ({}, {"num_beams": 2}, {"do_sample": True}):
        with pytest.raises(EdgewiseError, match="answered NaN"):
            model("word", **options)


def test_a_bundle_without_a_start_or_a_cache_is_refused(bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    for name in ("config.json", "generation_config.json"):
        said = json.loads((copy / name).read_text(encoding="utf-8"))
        said.pop("decoder_start_token_id", None)
        (copy / name).write_text(json.dumps(said), encoding="utf-8")
    with pytest.raises(BundleError, match="no decoder_start_token_id"):
        edgewise.load(copy, verify="none")
    manifest = json.loads((copy / "edgewise.json").read_text(encoding="utf-8"))
    manifest["graphs"][1]["inputs"] = [i for i in manifest["graphs"][1]["inputs"] if i["name"] != "use_cache_branch"]
    (copy / "edgewise.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(BundleError, match="expected an encoder and a merged decoder"):
        edgewise.load(copy, verify="none")


def test_a_profile_times_its_tokens(bundle: Path, words, check_token_times) -> None:
    check_token_times(bundle, words[1][:20])


@pytest.mark.slow
def test_a_profile_measures_the_trainers_metrics(t5: Path, bundle: Path, words, tmp_path: Path) -> None:
    from edgewise.bundle import read_bundle
    from edgewise.profiler import Store, Subject, measure_accuracy
    from edgewise.trainer.evaluation import evaluate_checkpoint
    from edgewise.types import RunSettings, Target

    spec = DataSpec(
        path="asset:phonemes", text="word", target="phonemes", split={"train": 0.8, "val": 0.1, "confirm": 0.1}
    )
    wanted = set(words[1][:60])
    rows = [r for r in load_splits(spec, "text2text-generation", Path).val if r.text in wanted]
    theirs = evaluate_checkpoint(t5, rows, task="text2text-generation", max_length=LETTERS + 2)
    subject = Subject("t5", "fp32", read_bundle(bundle))
    with Store(tmp_path / "m.sqlite") as store:
        found, _ = measure_accuracy([subject], [Target("here", RunSettings())], rows, store=store)
        outcomes = store.outcomes(found.id or 0)
    assert found.reason == ""
    ours = {m.name: m for m in found.metrics}
    assert {n: m.value for n, m in ours.items()} == pytest.approx({n: s.value for n, s in theirs.items()})
    assert ours["char_error"].high is not None
    right = sum(o.answer == o.label for o in outcomes)
    assert ours["exact_match"].value == pytest.approx(right / len(rows))
