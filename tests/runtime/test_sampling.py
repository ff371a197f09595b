"""The next token: which ones may come and how likely they are, as transformers' logits processors say it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GenerationConfig, GenerationMixin
from transformers.generation import LogitsProcessorList

from edgewise.errors import BundleError, EdgewiseError, InputError
from edgewise.runtime.decode import Row, check_score, decode, generator_of
from edgewise.runtime.generation_options import Options, read_options, with_given
from edgewise.runtime.sampling import draw, kept, rules_of

VOCABULARY = 300


class Peer(GenerationMixin):
    """What builds transformers' list of processors, without a model."""

    config = SimpleNamespace(is_encoder_decoder=False, get_text_config=lambda: SimpleNamespace(vocab_size=VOCABULARY))

    def __init__(self) -> None:
        pass

    def processors(self, given: int, **options: Any) -> LogitsProcessorList:
        config = GenerationConfig(**{"eos_token_id": [2], "max_length": 1000, **options})
        self._prepare_special_tokens(config, device="cpu")
        return self._get_logits_processor(config, input_ids_seq_length=given, device="cpu")


def scores_of(seed: int) -> np.ndarray:
    """As a model's: a few likely tokens and a long tail."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(VOCABULARY) * rng.choice([0.1, 1, 3, 8]) - 2).astype(np.float32)


def theirs(ids: list[int], given: int, scores: np.ndarray, **options: Any) -> np.ndarray:
    found: np.ndarray = Peer().processors(given, **options)(torch.tensor([ids]), torch.from_numpy(scores[None])).numpy()
    return found[0]


def ours(ids: list[int], given: int, scores: np.ndarray, options: Options) -> np.ndarray:
    changed = scores.copy()
    for rule in rules_of(options):
        rule(np.array(ids), given, 1000, changed)
    return changed


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1.3},
        {"repetition_penalty": 0.7},
        {"no_repeat_ngram_size": 1},
        {"no_repeat_ngram_size": 2},
        {"no_repeat_ngram_size": 4},
        {"min_length": 12},
        {"min_new_tokens": 5},
        {"suppress_tokens": [0, 5, 299]},
        {"begin_suppress_tokens": [7, 8]},
        {"bad_words_ids": [[3], [5, 6], [1, 2, 3], [2]]},
        {"forced_bos_token_id": 9, "begin_suppress_tokens": [7]},
        {"repetition_penalty": 1.2, "no_repeat_ngram_size": 3, "min_new_tokens": 4, "bad_words_ids": [[4]]},
    ],
)
def test_rules_change_the_scores_as_transformers_does(options: dict[str, Any]) -> None:
    told = {n: tuple(map(tuple, v)) if n == "bad_words_ids" else v for n, v in options.items()}
    chosen = Options(eos_token_id=(2,), **told)
    for seed in range(30):
        rng = np.random.default_rng(seed)
        length = int(rng.integers(1, 20))
        ids = rng.integers(0, 8, length).tolist()  # a few tokens, so that they come again
        given = int(rng.integers(1, length + 1))
        scores = scores_of(seed)
        np.testing.assert_array_equal(ours(ids, given, scores, chosen), theirs(ids, given, scores, **options))


def test_the_last_token_can_be_forced() -> None:
    scores = scores_of(0)
    for length in (1, 998, 999):
        ids = [5] * length
        found = ours(ids, 1, scores, Options(forced_eos_token_id=(2,)))
        np.testing.assert_array_equal(found, theirs(ids, 1, scores, forced_eos_token_id=2))


@pytest.mark.parametrize(
    "options",
    [
        {"top_k": 0},
        {"top_k": 1},
        {"top_k": 50},
        {"top_k": 1000},
        {"temperature": 0.3},
        {"temperature": 2.5, "top_k": 20},
        {"top_k": 0, "top_p": 0.9},
        {"top_k": 0, "top_p": 0.0},
        {"top_k": 40, "top_p": 0.5, "temperature": 1.7},
        {"top_k": 0, "min_p": 0.05},
        {"top_k": 30, "top_p": 0.95, "min_p": 0.2, "temperature": 0.8},
    ],
)
def test_the_same_tokens_are_kept_with_the_same_probabilities(options: dict[str, Any]) -> None:
    for seed in range(40):
        scores = scores_of(seed)
        wanted = torch.from_numpy(theirs([1], 1, scores, do_sample=True, **options)).softmax(-1).numpy()
        ids, probabilities = kept(scores, Options(do_sample=True, **options))
        found = np.zeros_like(wanted)
        found[ids] = probabilities
        np.testing.assert_array_equal(found > 0, wanted > 0)
        np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=1e-7)


def test_what_may_not_come_is_never_drawn() -> None:
    scores = np.full(VOCABULARY, -np.inf, np.float32)
    scores[[3, 70]] = [0.5, 0.4]
    generator = np.random.default_rng(0)
    assert {draw(scores, Options(top_k=0), generator) for _ in range(200)} == {3, 70}


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    scores, n = scores_of(3), 20_000
    options = Options(do_sample=True, temperature=1.5, top_k=12, top_p=0.95)
    generator = np.random.default_rng(5)
    drawn = np.bincount([draw(scores, options, generator) for _ in range(n)], minlength=VOCABULARY)
    ids, probabilities = kept(scores, options)
    assert set(np.flatnonzero(drawn)) <= set(ids.tolist())
    expected = n * probabilities
    # Pearson's statistic of 12 cells or fewer is above 35 in fewer than one of 3,000 samples; the seed is fixed.
    assert float(((drawn[ids] - expected) ** 2 / expected).sum()) < 35


@settings(max_examples=200, deadline=None)
@given(
    st.integers(0, 10_000),
    st.floats(0.05, 20),
    st.integers(0, 400),
    st.floats(0, 1),
    st.none() | st.floats(0, 1),
)
def test_whatever_is_asked_some_token_is_left(seed, temperature, top_k, top_p, min_p) -> None:
    options = Options(do_sample=True, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    scores = scores_of(seed)
    ids, probabilities = kept(scores, options)
    assert len(ids) == len(set(ids.tolist())) >= 1
    assert scores.argmax() in ids
    assert probabilities.sum() == pytest.approx(1, abs=1e-5)
    assert draw(scores, options, np.random.default_rng(seed)) in ids


# ---- the loop


class Fixed:
    """A cache whose scores are those it was given, step by step: each says one token for each row."""

    def __init__(self, steps: list[list[int]]) -> None:
        self.rows = np.arange(len(steps[0]))
        self.steps = steps
        self.n = 0

    def step(self, tokens: np.ndarray) -> np.ndarray:
        assert len(tokens) == len(self.rows)
        scores = np.zeros((len(self.rows), VOCABULARY), np.float32)
        scores[np.arange(len(self.rows)), np.array(self.steps[self.n])[self.rows]] = 1
        self.n += 1
        return scores

    def keep(self, rows: np.ndarray) -> None:
        self.rows = self.rows[rows]


def test_rows_end_at_an_end_or_at_their_length_and_the_others_go_on() -> None:
    cache = Fixed([[5, 6, 2], [2, 7, 8], [9, 9, 8], [9, 3, 9]])
    rows = [Row.of([1, 1], room, None, None) for room in (4, 4, 3)]
    scores = cache.step(np.zeros(3, np.int64))
    assert sum(1 for _ in decode(cache, scores, rows, Options(eos_token_id=(2, 3)))) == 4
    assert [row.written for row in rows] == [[5, 2], [6, 7, 9, 3], [2]]
    assert [row.finish for row in rows] == ["eos", "eos", "eos"]
    cache = Fixed([[5], [6]])
    (row,) = rows = [Row.of([1], 2, None, None)]
    list(decode(cache, cache.step(np.zeros(1, np.int64)), rows, Options()))
    assert (row.written, row.finish) == ([5, 6], "length")


def test_no_number_and_no_token_are_errors() -> None:
    check_score(0.0)
    with pytest.raises(EdgewiseError, match="answered NaN"):
        check_score(float("nan"))
    with pytest.raises(EdgewiseError, match="leave no token"):
        check_score(-np.inf)


def test_what_is_drawn_depends_on_seed_and_place_alone() -> None:
    def some(seed: int | None, index: int) -> list[float]:
        generator = generator_of(Options(do_sample=True, seed=seed), index)
        assert generator is not None
        return generator.random(4).tolist()

    assert some(1, 0) == some(1, 0)
    assert some(1, 0) != some(1, 1) != some(2, 1)
    assert some(None, 0) != some(None, 0)
    assert generator_of(Options(seed=1), 0) is None


# ---- options


def bundle_saying(folder: Path, said: dict[str, Any], config: dict[str, Any] | None = None) -> Any:
    folder.mkdir(exist_ok=True)
    (folder / "generation_config.json").write_text(json.dumps(said))
    (folder / "config.json").write_text(json.dumps(config or {}))
    manifest = SimpleNamespace(task="text2text-generation", preprocessing={"pad_id": 4})
    return SimpleNamespace(path=folder, manifest=manifest)


def test_options_come_from_the_bundle_and_from_the_call(tmp_path: Path) -> None:
    said = {
        "eos_token_id": [2, 3],
        "num_beams": 4,
        "max_length": 512,
        "bad_words_ids": [[9]],
        "_from_model_config": True,
    }
    options = read_options(bundle_saying(tmp_path, said, {"decoder_start_token_id": 1, "pad_token_id": 0}))
    assert options == Options(
        eos_token_id=(2, 3),
        num_beams=4,
        max_length=512,
        bad_words_ids=((9,),),
        decoder_start_token_id=1,
        pad_token_id=0,
    )
    assert options.new_tokens(12) == 500
    called = with_given(options, {"num_beams": 1, "max_new_tokens": 7, "temperature": None, "stop": "x"})
    assert (called.num_beams, called.temperature, called.stop, called.new_tokens(12)) == (1, 1.0, ("x",), 7)
    assert with_given(called, {"max_length": 20}).new_tokens(12) == 8
    assert Options().new_tokens(12) == 256


def test_older_models_say_it_in_config_json(tmp_path: Path) -> None:
    config = {
        "eos_token_id": 1,
        "prefix": "read: ",
        "task_specific_params": {"text2text-generation": {"prefix": "translate: ", "num_beams": 2}, "other": {"x": 1}},
    }
    options = read_options(bundle_saying(tmp_path, {"max_length": 20}, config))
    assert (options.prefix, options.num_beams, options.eos_token_id) == ("translate: ", 2, (1,))
    assert (options.max_length, options.pad_token_id) == (None, 4)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"encoder_no_repeat_ngram_size": 3}, "asks for encoder_no_repeat_ngram_size=3"),
        ({"eos_token_id": "end"}, "eos_token_id is 'end'"),
        ({"temperature": 0}, "temperature is 0"),
        ({"bad_words_ids": [3]}, "bad_words_ids is"),
    ],
)
def test_what_a_bundle_says_wrong_is_an_error_of_the_bundle(tmp_path: Path, said, message) -> None:
    with pytest.raises(BundleError, match=message):
        read_options(bundle_saying(tmp_path, said))


def test_neutral_values_of_what_is_not_known_say_nothing(tmp_path: Path) -> None:
    said = {"typical_p": 1.0, "num_return_sequences": 1, "encoder_no_repeat_ngram_size": 0, "sequence_bias": None}
    assert read_options(bundle_saying(tmp_path, said)) == Options(pad_token_id=4)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_broken_generation_config(tmp_path: Path, text: str) -> None:
    bundle = bundle_saying(tmp_path, {})
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(BundleError, match=r"generation_config\.json .*export the bundle again"):
        read_options(bundle)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0; expected a whole number of at least 1"),
        ({"max_new_tokens": True}, "max_new_tokens is True"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_p": 1.5}, "top_p is 1.5; expected a number of 0 to 1"),
        ({"min_p": float("nan")}, "min_p is nan; expected a number"),
        ({"temperature": 0}, "do_sample=False"),
        ({"temperature": "hot"}, "temperature is 'hot'"),
        ({"repetition_penalty": -1.0}, "repetition_penalty is -1"),
        ({"do_sample": 1}, "do_sample is 1; expected True or False"),
        ({"early_stopping": "always"}, "expected True, False or 'never'"),
        ({"stop": ""}, "stop is ''"),
        ({"stop": ["a", 3]}, "stop is"),
        ({"stop": 3}, "stop is 3"),
        ({"seed": -1}, "seed is -1"),
        ({"num_beams": 2, "do_sample": True}, "set num_beams=1 or do_sample=False"),
        ({"num_beams": 2, "stop": "x"}, "set num_beams=1"),
        ({"max_tokens": 3}, "unknown option 'max_tokens': did you mean 'max_new_tokens'"),
    ],
)
def test_an_option_that_cannot_be(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        with_given(Options(), given)
