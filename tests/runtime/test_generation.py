"""Text generation: the tokens of transformers' greedy `generate`, alone and in batches, and what its pipeline returns.

A small GPT-2, trained shortly on Brown and kept in the cache folder, and a Llama of random weights with an in-place
cache; SmolLM2 in the slow tests.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
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
from edgewise.data import load_splits
from edgewise.errors import BundleError, EdgewiseError, InputError
from edgewise.exporter import export
from edgewise.plan import DataSpec, TuneSpec
from edgewise.runtime.base import TruncationWarning
from edgewise.runtime.generation import TextGenerator

CONFIG = Path(__file__).parents[2] / "examples" / "models" / "bible-gpt"
SMALLER = {"n_embd": 96, "n_layer": 2, "n_head": 3, "n_positions": 128}
TUNE = TuneSpec(epochs=1, batch_size=16, learning_rate=2e-3, max_length=48)
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
N = 208


@pytest.fixture(scope="session")
def sentences() -> tuple[list[Any], list[str]]:
    """(rows to train on, prompts: the first words of other sentences)."""
    share: dict[str, float | str] = {"train": 0.8, "val": 0.1, "confirm": 0.1}
    spec = DataSpec(path="asset:brown", split=share, rows={"train": 3000, "val": N, "confirm": 1})
    splits = load_splits(spec, "text-generation", Path)
    return list(splits.train), [" ".join(r.text.split()[: 2 + i % 9]) for i, r in enumerate(splits.val)]


@pytest.fixture(scope="session")
def gpt(sentences: tuple[list[Any], list[str]]) -> Path:
    """The trained checkpoint."""
    from edgewise.trainer import tune

    place = cache_folder() / "tests" / "writing"
    place.mkdir(parents=True, exist_ok=True)
    with FileLock(place / "gpt.lock"):
        source = place / "gpt-config"
        shutil.copytree(CONFIG, source, dirs_exist_ok=True)
        config = json.loads((CONFIG / "config.json").read_text(encoding="utf-8"))
        (source / "config.json").write_text(json.dumps({**config, **SMALLER}), encoding="utf-8")
        return tune(source, sentences[0], (), TUNE, out=place / "gpt", task="text-generation").path


@pytest.fixture(scope="session")
def portable(gpt: Path) -> Path:
    (made,) = export(gpt, ["fp32"], out=cache_folder() / "tests" / "writing" / "gpt-bundles", task="text-generation")
    assert made.bundle is not None, made.reason
    return made.bundle.path


@pytest.fixture(scope="session")
def llama(gpt: Path, tmp_path_factory: Any) -> Path:
    """A checkpoint with weights so large that its answers differ from text to text, and two tokens that end them."""
    tokenizer = hf.AutoTokenizer.from_pretrained(gpt)
    torch.manual_seed(4)
    config = hf.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=128, max_position_embeddings=128, bos_token_id=0, eos_token_id=0, pad_token_id=0,
        tie_word_embeddings=True,
    )  # fmt: skip
    model = hf.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.mul_(4)
        some = model.generate(torch.arange(20, 420)[:, None], do_sample=False, max_new_tokens=12, min_new_tokens=12)
    often = np.bincount(some[:, 2:].ravel().numpy()).argsort()[-6::5].tolist()
    model.config.eos_token_id = model.generation_config.eos_token_id = often
    folder = tmp_path_factory.mktemp("llama")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def in_place(llama: Path, tmp_path_factory: Any) -> dict[str, Path]:
    """Recipe -> bundle."""
    recipes = ["fp32-in-place", "int4-in-place"]
    made = export(llama, recipes, out=tmp_path_factory.mktemp("in-place"), task="text-generation")
    assert [m.reason for m in made] == ["", ""]
    return {m.recipe.name: m.bundle.path for m in made if m.bundle}


@pytest.fixture(scope="session")
def model(portable: Path) -> TextGenerator:
    return edgewise.load(portable, task="text-generation")


@pytest.fixture(scope="session")
def peer(gpt: Path) -> Any:
    return pipeline(gpt)


def pipeline(folder: Path) -> Any:
    found = hf.pipeline("text-generation", model=str(folder), device="cpu")
    found.generation_config.do_sample, found.generation_config.temperature = False, None
    found.tokenizer.padding_side = "left"
    return found


def written(peer: Any, prompts: list[str], **options: Any) -> list[list[int]]:
    """What `generate` writes greedily, in batches as transformers pads them; each up to its own end."""
    found = []
    ends = np.atleast_1d(peer.model.generation_config.eos_token_id)
    for start in range(0, len(prompts), 16):
        batch = peer.tokenizer(prompts[start : start + 16], return_tensors="pt", padding=True)
        with torch.inference_mode():
            ids = peer.model.generate(**batch, do_sample=False, **options)
        for row in ids[:, batch["input_ids"].shape[1] :].tolist():
            end = next((i + 1 for i, t in enumerate(row) if t in ends), len(row))
            found.append(row[:end])
    return found


# ---- the same tokens


@pytest.mark.parametrize("options", [{}, {"repetition_penalty": 1.3, "no_repeat_ngram_size": 3}])
def test_greedy_tokens_are_those_of_transformers(model, peer, portable, sentences, options) -> None:
    prompts = sentences[1]
    assert len(prompts) >= 200
    # In a padded batch transformers' penalty counts the padding too, so there it is asked row by row.
    wanted = (
        [written(peer, [p], max_new_tokens=16, **options)[0] for p in prompts[:60]]
        if options
        else written(peer, prompts, max_new_tokens=16)
    )
    prompts = prompts[: len(wanted)]
    alone = model.predict(prompts, max_new_tokens=16, **options)
    assert [list(g.token_ids) for g in alone] == wanted
    with edgewise.load(portable, batch_size=8) as batched:
        together = batched.predict(prompts, max_new_tokens=16, **options)
    assert together == alone
    assert {g.finish for g in alone} == {"eos", "length"}
    assert [g.n_tokens for g in alone] == [len(peer.tokenizer(p)["input_ids"]) for p in prompts]
    assert not any(g.truncated for g in alone)


def test_the_in_place_cache_writes_the_same_tokens(llama: Path, in_place, sentences) -> None:
    """Alone and in batches, which are padded on the right; with two ends."""
    prompts, other = sentences[1], pipeline(llama)
    wanted = written(other, prompts, max_new_tokens=12)
    assert len({tuple(w) for w in wanted}) > 100
    assert {w[-1] for w in wanted if len(w) < 12} == set(other.model.generation_config.eos_token_id)
    for batch in (1, 8):
        with edgewise.load(in_place["fp32-in-place"], batch_size=batch) as model:
            found = model.predict(prompts, max_new_tokens=12)
        assert [list(g.token_ids) for g in found] == wanted
    with (
        edgewise.load(in_place["int4-in-place"]) as one,
        edgewise.load(in_place["int4-in-place"], batch_size=8) as more,
    ):
        assert one.predict(prompts[:24], max_new_tokens=12) == more.predict(prompts[:24], max_new_tokens=12)


def test_a_long_prompt_is_read_in_parts(model, in_place, monkeypatch, sentences) -> None:
    """The scores of a part, of which the last are wanted alone, are what takes memory."""
    prompts = [" ".join(sentences[1][i : i + 6]) for i in range(0, 12, 6)]
    other = edgewise.load(in_place["fp32-in-place"])
    whole = [m.predict(prompts, max_new_tokens=8) for m in (model, other)]
    monkeypatch.setattr("edgewise.runtime.cache._LARGEST_LOGITS", 7 * 2000)
    assert [m.predict(prompts, max_new_tokens=8) for m in (model, other)] == whole


# ---- what the pipeline returns


@pytest.mark.parametrize("options", [{}, {"return_full_text": False}, {"max_new_tokens": 3}])
def test_a_call_returns_what_the_pipeline_does(model, peer, sentences, options) -> None:
    prompts = [*sentences[1][:20], "It was n't there , he said", "Ünïcödé — 你好 🇨🇭"]
    options = {"max_new_tokens": 12, **options}
    assert model(prompts, **options) == peer(prompts, **options)
    assert model(prompts[0], **options) == peer(prompts[0], **options)
    assert list(model(iter(prompts), **options)) == peer(prompts, **options)
    assert model("", **options) == peer("", **options)
    assert model([], **options) == []


def test_chats(portable: Path, peer: Any, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(portable, tmp_path / "chat"))
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    peer.tokenizer.chat_template = TEMPLATE
    model = edgewise.load(folder, verify="none")
    asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who was there ?"}]
    begun = [*asked, {"role": "assistant", "content": "There was the"}]
    for options in ({}, {"return_full_text": False}):
        assert model(asked, max_new_tokens=10, **options) == peer(asked, max_new_tokens=10, **options)
        both = [asked, begun]
        assert model(both, max_new_tokens=10, **options) == peer(both, max_new_tokens=10, **options)
    (one,) = model.predict([asked], max_new_tokens=4)
    assert one.text == "".join(model.stream(asked, max_new_tokens=4))
    with pytest.raises(InputError, match="lone surrogate"):
        model([{"role": "user", "content": "a \ud800"}])
    with pytest.raises(InputError, match="predict takes a list"):
        model.predict(asked)
    with pytest.raises(InputError, match="not for a chat"):
        model.golden(asked)


def test_a_model_without_a_template_refuses_a_chat(model) -> None:
    with pytest.raises(InputError, match="no chat template"):
        model([{"role": "user", "content": "Hi"}])


# ---- stops, streams, drawing


def test_a_stream_gives_the_text_in_pieces(model, sentences) -> None:
    for prompt in sentences[1][:30]:
        (whole,) = model.predict([prompt], max_new_tokens=16)
        pieces = list(model.stream(prompt, max_new_tokens=16))
        assert all(pieces)
        assert "".join(pieces) == whole.text
    stream = model.stream(sentences[1][0], max_new_tokens=100)
    assert next(stream)  # the rest is never written
    with pytest.raises(InputError, match="top_p"):
        model.stream("x", top_p=2)  # said at once, not at the first piece


def test_a_stream_of_tokens_is_that_of_the_answer(model, sentences) -> None:
    ended = 0
    for prompt in sentences[1][:30]:
        (whole,) = model.predict([prompt], max_new_tokens=24)
        stream = model.token_stream(prompt, max_new_tokens=24)
        assert tuple(stream) == whole.token_ids
        assert (stream.n_tokens, stream.truncated) == (whole.n_tokens, False)
        more = tuple(model.token_stream(prompt, ignore_eos=True, max_new_tokens=24))
        assert len(more) == 24
        assert more[: len(whole.token_ids)] == whole.token_ids
        ended += whole.finish == "eos"
    assert ended  # or nothing was ignored
    long = model.token_stream("word " * 300, ignore_eos=True, max_new_tokens=4)
    assert long.truncated
    assert len(list(long)) == 4
    with pytest.raises(InputError, match="top_p"):
        model.token_stream("x", top_p=2)


def test_a_stop_string_ends_the_text_before_it(model, sentences) -> None:
    for prompt in sentences[1][:30]:
        (whole,) = model.predict([prompt], max_new_tokens=16)
        stop = whole.text[3:6] or "\x01"
        (cut,) = model.predict([prompt], max_new_tokens=16, stop=["\x00", stop])
        if stop not in whole.text:
            assert cut == whole
            continue
        assert cut.text == whole.text[: whole.text.find(stop)]
        assert cut.finish == "stop"
        assert cut.token_ids == whole.token_ids[: len(cut.token_ids)]
        assert "".join(model.stream(prompt, max_new_tokens=16, stop=stop)) == cut.text


def test_drawing_depends_on_the_seed_alone(model, portable, sentences) -> None:
    prompts = sentences[1][:24]
    options = {"do_sample": True, "max_new_tokens": 8, "temperature": 1.5, "top_k": 0, "top_p": 0.95}
    found = model.predict(prompts, seed=1, **options)
    assert found == model.predict(prompts, seed=1, **options)
    with edgewise.load(portable, batch_size=5, parallel=2) as other:
        assert other.predict(prompts, seed=1, **options) == found
    assert model.predict(prompts, seed=2, **options) != found
    same = model.predict([prompts[0]] * 8, seed=1, **options)
    assert len({g.text for g in same}) > 4
    assert "".join(model.stream(prompts[0], seed=1, **options)) == found[0].text
    assert len({g.text for g in model.predict([prompts[0]] * 8, **options)}) > 4


def test_top_k_of_one_is_greedy(model, sentences) -> None:
    prompts = sentences[1][:10]
    greedy = model.predict(prompts, max_new_tokens=10)
    assert model.predict(prompts, max_new_tokens=10, do_sample=True, top_k=1) == greedy
    assert model.predict(prompts, max_new_tokens=10, do_sample=True, temperature=1e-3) == greedy


# ---- length


def test_a_prompt_that_leaves_no_room_loses_its_beginning(portable: Path, peer: Any, sentences) -> None:
    long = " ".join(sentences[1])
    ids = peer.tokenizer(long)["input_ids"]
    with edgewise.load(portable) as model:
        with pytest.warns(TruncationWarning, match=r"context of 128.*beginning was not read"):
            (found,) = model.predict([long], max_new_tokens=10)
        assert (found.truncated, found.n_tokens, len(found.token_ids)) == (True, 118, 10)
        wanted = peer.model.generate(torch.tensor([ids[-118:]]), do_sample=False, max_new_tokens=10)
        assert list(found.token_ids) == wanted[0, 118:].tolist()
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # said once
            (more,) = model.predict([long])
        assert (more.n_tokens, len(more.token_ids) <= 32) == (96, True)
        short = peer.tokenizer.decode(ids[:90])
        (fits,) = model.predict([short], min_new_tokens=300)
        assert (fits.truncated, len(fits.token_ids), fits.finish) == (False, 128 - fits.n_tokens, "length")
        with pytest.raises(InputError, match="max_length is 50, and the prompt alone has"):
            model.predict([short], max_length=50)
        (found,) = model.predict([short], max_length=fits.n_tokens + 2, min_new_tokens=2)
        assert len(found.token_ids) == 2
    with edgewise.load(portable, max_length=40) as shorter, pytest.warns(TruncationWarning):
        assert shorter.predict([long], max_new_tokens=8)[0].n_tokens == 32


# ---- golden answers


def test_golden_answers(model, sentences) -> None:
    golden = model.golden(sentences[1][0])
    (found,) = model.predict([sentences[1][0]], max_new_tokens=8)
    assert golden.tokens == found.token_ids
    assert golden.input_ids == tuple(model.token_ids(sentences[1][0]))
    assert golden.output == ()
    assert model.golden(model.golden_input(golden)) == golden


# ---- what cannot be


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (3, "expected a text or a chat"),
        (None, "expected a text or a chat"),
        ([3], "expected a text or a chat"),
        (["fine", b"bytes"], "expected a text or a chat"),
        ([["a", "b"]], "expected a text or a chat"),
        ("a \ud800 b", "lone surrogate"),
    ],
)
def test_what_is_no_prompt(model, bad: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        model(bad)
    assert model("And", max_new_tokens=1)


def test_options_that_are_not_for_this_task(model) -> None:
    with pytest.raises(InputError, match="beam search is for text to text"):
        model("And", num_beams=2)
    with pytest.raises(InputError, match="unknown option 'max_tokens'"):
        model("And", max_tokens=2)
    with pytest.raises(InputError, match="predict takes a list"):
        model.predict("And")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=80) | st.binary(max_size=8) | st.none() | st.lists(st.text(max_size=8), max_size=3))
def test_any_input_is_answered_or_refused(model, text: Any) -> None:
    try:
        found = model(text, max_new_tokens=3)
    except InputError:
        return
    for one in [found] if isinstance(text, str) else found:
        assert isinstance(one[0]["generated_text"], str)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40),
    st.integers(0, 5),
    st.lists(st.text(min_size=1, max_size=3), max_size=2),
)
def test_a_stream_and_a_prediction_agree(model, text: str, seed: int, stop: list[str]) -> None:
    options = {"max_new_tokens": 12, "do_sample": True, "seed": seed, "stop": stop}
    (found,) = model.predict([text], **options)
    assert "".join(model.stream(text, **options)) == found.text
    assert not any(s in found.text for s in stop)


def broken(bundle: Path, folder: Path, change: Callable[[Any], None]) -> Path:
    """A copy with another graph, whose manifest is not asked."""
    import onnx

    copy = Path(shutil.copytree(bundle, folder))
    graph = onnx.load(copy / "onnx" / "model.onnx")
    change(graph.graph)
    onnx.save(graph, copy / "onnx" / "model.onnx")
    return copy


def test_nan_is_an_error(portable: Path, tmp_path: Path) -> None:
    import onnx

    def spoil(graph: Any) -> None:
        for weight in graph.initializer:
            if weight.name.endswith("ln_f.weight"):
                values = np.full_like(onnx.numpy_helper.to_array(weight), np.nan)
                weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))

    model = edgewise.load(broken(portable, tmp_path / "nan", spoil), verify="none")
    for options in ({}, {"do_sample": True}):
        with pytest.raises(EdgewiseError, match="answered NaN"):
            model("And it", **options)


def test_a_graph_without_a_cache_is_refused(portable: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(portable, tmp_path / "cacheless"))
    manifest = json.loads((copy / "edgewise.json").read_text(encoding="utf-8"))
    for graph in manifest["graphs"]:
        graph["inputs"] = [i for i in graph["inputs"] if not i["name"].startswith("past")]
    (copy / "edgewise.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(BundleError, match="has no key-value cache"):
        edgewise.load(copy, verify="none")


def test_calls_from_many_threads(model, sentences) -> None:
    prompts = sentences[1][:40]
    wanted = model.predict(prompts, max_new_tokens=8)
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(lambda p: model.predict([p], max_new_tokens=8)[0], prompts)) == wanted


def test_an_iterator_is_read_as_answers_are_taken(model) -> None:
    read = []

    def endless() -> Iterator[str]:
        while True:
            read.append(0)
            yield "And the"

    answers = model(endless(), max_new_tokens=2)
    assert [len(next(answers)) for _ in range(3)] == [1, 1, 1]
    assert len(read) < 20


# ---- a real model


@pytest.mark.slow
def test_smollm2_writes_what_pytorch_writes(tmp_path: Path, sentences) -> None:
    """The in-place graph, through its own chat template too."""
    folder = asset_path("smollm2")
    (made,) = export(folder, ["fp32-in-place"], out=tmp_path, task="text-generation")
    assert made.bundle is not None, made.reason
    prompts, other = sentences[1][:24], pipeline(folder)
    wanted = written(other, prompts, max_new_tokens=8)
    chat = [{"role": "user", "content": "Name a fruit."}]
    with edgewise.load(made.bundle.path, threads=2) as model:
        assert [list(g.token_ids) for g in model.predict(prompts, max_new_tokens=8)] == wanted
        assert model(chat, max_new_tokens=8) == other(chat, max_new_tokens=8)


@pytest.mark.slow
def test_a_profile_times_its_tokens(portable: Path, sentences, check_token_times) -> None:
    check_token_times(portable, sentences[1][:20])
