"""How likely a text is: the numbers of transformers' own loss, and of the trainer, on the same weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf

import edgewise
from edgewise.data import Row, load_rows
from edgewise.errors import EdgewiseError, InputError
from edgewise.exporter import export
from edgewise.runtime import cache
from edgewise.runtime.base import TruncationWarning
from edgewise.runtime.fill_mask import MaskFiller
from edgewise.runtime.generation import TextGenerator
from edgewise.runtime.likelihood import Likelihood, hidden, likelihood
from edgewise.trainer.evaluation import evaluate_checkpoint

TOKENIZER = Path(__file__).parents[2] / "examples" / "models" / "bible-gpt"
CONTEXT = 64


def spread_out(model: Any) -> Any:
    """Weights so large that some tokens are far likelier than others."""
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.mul_(5)
    return model.eval()


@pytest.fixture(scope="module")
def gpt(tmp_path_factory: Any) -> Path:
    """A checkpoint of GPT-2's kind with a real tokenizer."""
    folder = tmp_path_factory.mktemp("gpt")
    tokenizer = hf.AutoTokenizer.from_pretrained(TOKENIZER)
    torch.manual_seed(5)
    config = hf.GPT2Config(len(tokenizer), n_positions=CONTEXT, n_embd=48, n_layer=2, n_head=3, bos_token_id=0)
    config.eos_token_id = config.bos_token_id = tokenizer.eos_token_id
    spread_out(hf.GPT2LMHeadModel(config)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bundle(gpt: Path, tmp_path_factory: Any) -> Path:
    return made(gpt, "fp32", tmp_path_factory.mktemp("bundles"))


def made(checkpoint: Path, recipe: str, out: Path, task: Any = "text-generation") -> Path:
    (found,) = export(checkpoint, [recipe], out=out, task=task)
    assert found.bundle is not None, found.reason
    return found.bundle.path


@pytest.fixture(scope="module")
def model(bundle: Path) -> TextGenerator:
    return edgewise.load(bundle, task="text-generation")


@pytest.fixture(scope="module")
def peer(gpt: Path) -> Callable[[str], tuple[float, int, int]]:
    return by_transformers(gpt)


def by_transformers(folder: Path) -> Callable[[str], tuple[float, int, int]]:
    """(sum of log-probabilities, tokens scored, likeliest ones) of a text of one window."""
    network = hf.AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)

    def score(text: str) -> tuple[float, int, int]:
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
        with torch.inference_mode():
            out = network(ids, labels=ids)
        n = ids.shape[1] - 1
        if n == 0:  # transformers says NaN
            return 0.0, 0, 0
        return -float(out.loss) * n, n, int((out.logits[0, :-1].argmax(-1) == ids[0, 1:]).sum())

    return score


@pytest.fixture(scope="module")
def sentences() -> list[str]:
    rows = load_rows("asset:brown", task="text-generation")
    return [row.text for row in rows[3000:9000:30]]


def perplexity(found: list[Likelihood]) -> float:
    return math.exp(-math.fsum(f.log_probability for f in found) / sum(f.scored for f in found))


# ---- text generation


def check_texts(model: TextGenerator, peer: Any, texts: list[str]) -> None:
    found = list(model.log_likelihood(texts))
    assert len(found) == len(texts)
    for text, one in zip(texts, found, strict=True):
        total, scored, right = peer(text)
        assert one.log_probability == pytest.approx(total, rel=1e-4)
        assert (one.scored, one.right, one.n_tokens, one.truncated) == (scored, right, scored + 1, False)


def short(sentences: list[str]) -> list[str]:
    return [" ".join(s.split()[:12]) for s in sentences]


def test_texts_alone_have_the_loss_of_transformers(model, peer, sentences) -> None:
    check_texts(model, peer, short(sentences)[:25])


@pytest.mark.slow
def test_200_texts_alone_have_the_loss_of_transformers(model, peer, sentences) -> None:
    assert len(sentences) == 200
    check_texts(model, peer, short(sentences))


@pytest.mark.parametrize("length", [CONTEXT, 17, 3])
def test_running_text_has_the_perplexity_of_the_trainer(gpt, bundle, sentences, length: int) -> None:
    texts = sentences[:30]
    rows = [Row(t) for t in texts]
    theirs = evaluate_checkpoint(gpt, rows, task="text-generation", max_length=length)["perplexity"].value
    with edgewise.load(bundle, task="text-generation", max_length=length) as model:
        found = list(model.log_likelihood(texts, joined=True))
    assert perplexity(found) == pytest.approx(theirs, rel=1e-5)
    # of each text all tokens and its end are scored, but for the very first token of all
    tokens = [len(model.token_ids(t)) + 1 for t in texts]
    assert [f.n_tokens for f in found] == tokens
    assert [f.scored for f in found] == [tokens[0] - 1, *tokens[1:]]
    assert theirs > 10, "or all tokens are alike"


@pytest.mark.slow
def test_running_text_of_200_texts_has_the_perplexity_of_the_trainer(gpt, model, sentences) -> None:
    rows = [Row(t) for t in sentences]
    theirs = evaluate_checkpoint(gpt, rows, task="text-generation", max_length=CONTEXT)["perplexity"].value
    assert perplexity(list(model.log_likelihood(sentences, joined=True))) == pytest.approx(theirs, rel=1e-5)


def test_a_text_longer_than_the_context_is_scored_once_a_token(model, gpt, sentences) -> None:
    text = " ".join(sentences[:12])
    (one,) = model.log_likelihood([text])
    ids = torch.tensor([model.token_ids(text)])
    assert one.n_tokens == ids.shape[1] > 3 * CONTEXT
    assert (one.scored, one.truncated) == (one.n_tokens - 1, False)
    # the strided loop of transformers' documentation
    network = hf.AutoModelForCausalLM.from_pretrained(gpt).eval()
    total, before = 0.0, 1
    for start in range(0, one.n_tokens, CONTEXT // 2):
        end = min(start + CONTEXT, one.n_tokens)
        window = ids[:, start:end]
        labels = window.clone()
        labels[:, : before - start] = -100
        with torch.inference_mode():
            total -= float(network(window, labels=labels).loss) * (end - before)
        before = end
        if end == one.n_tokens:
            break
    assert one.log_probability == pytest.approx(total, rel=1e-4)


def test_logits_come_in_pieces_and_change_nothing(model, sentences, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = list(model.log_likelihood(sentences[:6], joined=True))
    sizes = []
    last = cache._run

    def run(*args: Any) -> list[np.ndarray]:
        found = last(*args)
        sizes.append(found[0].size)
        return found

    vocabulary = model._decoder.vocabulary
    monkeypatch.setattr(cache, "_run", run)
    monkeypatch.setattr(cache, "_LARGEST_LOGITS", 5 * vocabulary)
    pieces = list(model.log_likelihood(sentences[:6], joined=True))
    assert max(sizes) == 5 * vocabulary
    for a, b in zip(whole, pieces, strict=True):
        assert a.log_probability == pytest.approx(b.log_probability, rel=1e-5)
        assert a.scored == b.scored


@pytest.mark.slow
def test_an_in_place_cache_scores_as_transformers(gpt: Path, sentences, tmp_path: Path, monkeypatch) -> None:
    tokenizer = hf.AutoTokenizer.from_pretrained(gpt)
    torch.manual_seed(6)
    config = hf.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=32, max_position_embeddings=CONTEXT, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    spread_out(hf.LlamaForCausalLM(config)).save_pretrained(tmp_path / "llama")
    tokenizer.save_pretrained(tmp_path / "llama")
    with edgewise.load(made(tmp_path / "llama", "fp32-in-place", tmp_path / "out"), task="text-generation") as model:
        check_texts(model, by_transformers(tmp_path / "llama"), short(sentences)[:8])
        monkeypatch.setattr(cache, "_LARGEST_LOGITS", 3 * len(tokenizer))
        check_texts(model, by_transformers(tmp_path / "llama"), short(sentences)[:4])


def test_texts_with_nothing_to_predict(model) -> None:
    (token,) = [t for t in ("the", "God", "and") if len(model.token_ids(t)) == 1][:1]
    empty, one = model.log_likelihood(["", token])
    assert empty == Likelihood(0.0, 0, 0, 0)
    assert one == Likelihood(0.0, 0, 0, 1)
    assert list(model.log_likelihood([])) == list(model.log_likelihood([], joined=True)) == []
    # in a running text their ends are there to predict, but for the very first token
    ends = list(model.log_likelihood(["", "", token], joined=True))
    assert [(f.scored, f.n_tokens) for f in ends] == [(0, 1), (1, 1), (2, 2)]


@pytest.mark.parametrize("joined", [False, True])
def test_what_cannot_be_scored_is_refused_at_once(model, bundle: Path, joined: bool) -> None:
    with pytest.raises(InputError, match=r"lone surrogate at character 2"):
        model.log_likelihood(["fine", "a \ud800"], joined=joined)
    with pytest.raises(InputError, match="expected a list of texts, got str"):
        model.log_likelihood("fine", joined=joined)
    with pytest.raises(InputError, match="expected a text, got 5 of type int"):
        model.log_likelihood([5], joined=joined)
    closed = edgewise.load(bundle, task="text-generation")
    closed.close()
    with pytest.raises(InputError, match="closed"):
        closed.log_likelihood(["fine"], joined=joined)


def test_numbers_that_are_none_are_an_error() -> None:
    with pytest.raises(EdgewiseError, match="answered NaN"):
        likelihood([np.array([0.0, np.nan], np.float32)], [0], 1)
    half = likelihood([np.array([0.0, -6e4], np.float16), np.array([9e4, 8e4], np.float32)], [1, 0], 2)
    assert half == Likelihood(pytest.approx(-6e4, rel=1e-3), 2, 1, 2)


# ---- masked words


@pytest.fixture(scope="module")
def masked(minilm: Path, tmp_path_factory: Any) -> tuple[Path, MaskFiller]:
    """(checkpoint, its bundle loaded)."""
    folder = tmp_path_factory.mktemp("masked")
    tokenizer = hf.AutoTokenizer.from_pretrained(minilm)
    torch.manual_seed(7)
    config = hf.BertConfig(
        len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=CONTEXT,
    )  # fmt: skip
    spread_out(hf.BertForMaskedLM(config)).save_pretrained(folder / "checkpoint")
    tokenizer.save_pretrained(folder / "checkpoint")
    model = edgewise.load(made(folder / "checkpoint", "fp32", folder / "out", "fill-mask"), task="fill-mask")
    return folder / "checkpoint", model


def check_masked(masked: tuple[Path, MaskFiller], texts: list[str]) -> None:
    checkpoint, model = masked
    network = hf.AutoModelForMaskedLM.from_pretrained(checkpoint).eval()
    tokenizer = hf.AutoTokenizer.from_pretrained(checkpoint)
    for text, one in zip(texts, model.log_likelihood(texts), strict=True):
        encoded = tokenizer(text, truncation=True, max_length=CONTEXT, return_tensors="pt")
        ids = encoded["input_ids"]
        places = hidden(text, list(range(1, ids.shape[1] - 1)))
        labels = torch.full_like(ids, -100)
        labels[0, places] = ids[0, places]
        encoded["input_ids"] = ids.clone()
        encoded["input_ids"][0, places] = tokenizer.mask_token_id
        with torch.inference_mode():
            out = network(**encoded, labels=labels)
        assert one.scored == len(places) == max(1, round(0.15 * (ids.shape[1] - 2)))
        assert -one.log_probability / one.scored == pytest.approx(float(out.loss), rel=1e-4)
        assert one.right == int((out.logits[0, places].argmax(-1) == ids[0, places]).sum())
        assert one.n_tokens == ids.shape[1]
        assert one.truncated == (len(tokenizer(text)["input_ids"]) > CONTEXT)


def test_masked_words_have_the_loss_of_transformers(masked, review_rows: tuple[Row, ...]) -> None:
    check_masked(masked, [row.text for row in review_rows[:25]])
    with pytest.warns(TruncationWarning, match="its end was not read"):
        check_masked(masked, ["a long tale " * 40])


@pytest.mark.slow
def test_masked_words_of_200_texts_have_the_loss_of_transformers(masked, review_rows: tuple[Row, ...]) -> None:
    check_masked(masked, [row.text for row in review_rows[:200]])


def test_the_same_words_are_masked_whatever_the_batch(masked, review_rows: tuple[Row, ...]) -> None:
    texts = [row.text for row in review_rows[:20]]
    found = list(masked[1].log_likelihood(texts))
    with edgewise.load(masked[1].bundle.path, task="fill-mask", batch_size=8) as other:
        again = list(other.log_likelihood(texts))
    for a, b in zip(found, again, strict=True):
        assert (a.scored, a.right, a.n_tokens) == (b.scored, b.right, b.n_tokens)
        assert a.log_probability == pytest.approx(b.log_probability, rel=1e-5)
    # drawn by the text alone: these are the places of every later version, too
    assert hidden("a fine film", range(1, 21)) == [1, 11, 20]
    assert hidden("a fine film!", range(1, 21)) != [1, 11, 20]


def test_masks_and_texts_without_words(masked) -> None:
    model = masked[1]
    alone, one, empty = model.log_likelihood(["a [MASK] film", "film", ""])
    assert (alone.scored, alone.n_tokens) == (1, 5)
    (fill,) = model.predict(["a [MASK] film"], top_k=1)[0].masks
    assert fill  # the text's own mask is for predict alone
    assert (one.scored, one.n_tokens) == (1, 3)
    assert empty == Likelihood(0.0, 0, 0, 2)
    with pytest.raises(InputError, match="lone surrogate"):
        list(model.log_likelihood(["a \ud800"]))
    with pytest.raises(InputError, match="expected a list of texts"):
        model.log_likelihood("a film")
