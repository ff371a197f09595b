"""A smaller vocabulary gives the same answers on the given texts, and every other text is still read."""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from edgewise.assets import asset_path
from edgewise.data import Row, Splits
from edgewise.errors import CheckpointError, DataError
from edgewise.exporter.pieces import Pieces
from edgewise.exporter.preprocessing import TOKENIZER_FILES
from edgewise.exporter.vocabulary import Trimmed, trim_checkpoint
from edgewise.prompts import install_prompt, load_prompted, make_prompt, save_prompt
from edgewise.types import EXPORT_CLASSES, Task

BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 256}
LLAMA = {**BERT, "num_key_value_heads": 1}
T5 = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0}
DISTIL = {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64}
BART_SIDE = {"layers": 1, "attention_heads": 2, "ffn_dim": 64}
BART_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1, "forced_eos_token_id": 1}
BART = {
    "d_model": 32,
    "decoder_start_token_id": 1,
    **BART_IDS,
    **{f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in BART_SIDE.items()},
}
UNTIED = {"tie_word_embeddings": False}
SPECIAL = ["<pad>", "</s>", "<unk>"]
UNSEEN = [
    "👩‍🚀 loved it 🎬🍿",
    "这部电影很好看",
    "floccinaucinihilipilification, antidisestablishmentarianism",
    "Ünïcödé naïveté; Ελληνικά; 한국어; العربية",
    "x" * 130,
    "",
]
BYTES = pre_tokenizers.ByteLevel.alphabet()
WORDS = settings(max_examples=200, deadline=None)


@pytest.fixture(scope="module")
def texts(review_rows: tuple[Row, ...]) -> list[str]:
    return [r.text for r in review_rows]


def bytelevel(texts: Sequence[str]) -> Any:
    """GPT-2's kind."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=900, special_tokens=SPECIAL[:2], initial_alphabet=BYTES, show_progress=False),
    )
    names = {"pad_token": "<pad>", "eos_token": "</s>", "bos_token": "</s>", "unk_token": "</s>"}
    return hf.GPT2TokenizerFast(tokenizer_object=bpe, **names)


def bytefallback(texts: Sequence[str]) -> Any:
    """Llama's kind: whole texts as one word, and bytes for characters that are no piece."""
    special = [*SPECIAL, *(f"<0x{i:02X}>" for i in range(256))]
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trained.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trained.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=900, special_tokens=special, show_progress=False))
    document = json.loads(trained.to_str())
    document["added_tokens"] = [t for t in document["added_tokens"] if t["content"] in SPECIAL]
    document["model"] |= {"byte_fallback": True, "fuse_unk": True}
    bpe = Tokenizer.from_str(json.dumps({**document, "pre_tokenizer": None}))
    spaces = decoders.Replace("▁", " ")
    bpe.decoder = decoders.Sequence([spaces, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return wrapped(bpe)


def word_ends(texts: Sequence[str]) -> Any:
    """CLIP's kind: '</w>' at the end of each word."""
    bpe = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    bpe.decoder = decoders.BPEDecoder("</w>")
    kinds = {"special_tokens": SPECIAL, "end_of_word_suffix": "</w>", "show_progress": False}
    bpe.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=900, **kinds))
    return wrapped(bpe)


def word_starts(texts: Sequence[str]) -> Any:
    """BPE with '##' before what goes on inside a word."""
    bpe = Tokenizer(models.BPE(unk_token="<unk>", continuing_subword_prefix="##"))
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    bpe.decoder = decoders.WordPiece("##")
    kinds = {"special_tokens": SPECIAL, "continuing_subword_prefix": "##", "show_progress": False}
    bpe.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=900, **kinds))
    return wrapped(bpe)


def unigram(texts: Sequence[str]) -> Any:
    """T5's kind."""
    found = Tokenizer(models.Unigram())
    found.pre_tokenizer, found.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    found.train_from_iterator(
        texts,
        trainers.UnigramTrainer(vocab_size=900, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False),
    )
    found.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return wrapped(found)


def wrapped(tokenizer: Tokenizer) -> Any:
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def write(folder: Path, task: Task, config: Any, tokenizer: Any, strategy: str = "plain") -> Path:
    """A checkpoint with random weights that are large enough for its answers to differ."""
    torch.manual_seed(4)
    model = getattr(hf, EXPORT_CLASSES[task]).from_config(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(3).add_(0.05 * torch.randn_like(p))
    if strategy == "prompt":
        install_prompt(model, make_prompt(model, 5, tokenizer))
        save_prompt(model, folder)
    else:
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def answers(folder: Path, task: Task, texts: Sequence[Any]) -> list[np.ndarray]:
    """Of each text alone: logits, or states, and for text to text those of three forced tokens."""
    model = load_prompted(folder, getattr(hf, EXPORT_CLASSES[task])).eval()
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    found = []
    for text in texts:
        pair = text if isinstance(text, tuple) else (text,)
        ids = dict(tokenizer(*pair, truncation=True, max_length=200, return_tensors="pt", padding=False))
        if "token_type_ids" not in inspect.signature(model.forward).parameters:
            ids.pop("token_type_ids", None)
        if task == "text2text-generation":
            ids["decoder_input_ids"] = torch.tensor([[model.config.decoder_start_token_id, *ids["input_ids"][0, :3]]])
        with torch.no_grad():
            found.append(model(**ids)[0].numpy())
    return found


def assert_same_answers(source: Path, trimmed: Trimmed, task: Task, texts: Sequence[Any]) -> None:
    old = np.array(trimmed.old_ids)
    full, small = answers(source, task, texts), answers(trimmed.path, task, texts)
    spread = 0.0
    for a, b in zip(full, small, strict=True):
        wanted = a[..., old] if a.shape[-1] == trimmed.of else a
        spread = max(spread, float(np.ptp(wanted)))
        np.testing.assert_allclose(b, wanted, atol=1e-5 * max(1.0, float(np.abs(wanted).max())))
    assert spread > 0.1  # so that equal answers are no accident


def tensors(folder: Path) -> dict[str, tuple[int, ...]]:
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def config_of(folder: Path, name: str = "config.json") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / name).read_text())
    return found


# ---- the tuned MiniLM


@pytest.fixture(scope="module")
def small(tuned: Path, review_splits: Splits, tmp_path_factory: Any) -> Trimmed:
    rows = [r.text for r in (*review_splits.train, *review_splits.val)]
    return trim_checkpoint(tuned, rows, tmp_path_factory.mktemp("minilm") / "small", task="text-classification")


def test_minilm_answers_alike_with_a_smaller_vocabulary(
    tuned: Path, small: Trimmed, texts: list[str], review_splits: Splits
) -> None:
    print(small.kept, small.of, small.bytes_saved, small.embedding_bytes)
    assert small.of == 30522
    assert small.texts == len({r.text for r in (*review_splits.train, *review_splits.val)}) > 1500
    assert small.note == ""
    assert 3000 < small.kept < 15000
    assert small.kept == len(small.old_ids) == config_of(small.path)["vocab_size"]
    assert small.embedding_bytes == small.kept * 384 * 4
    assert small.bytes_saved == (small.of - small.kept) * 384 * 4
    saved = (tuned / "model.safetensors").stat().st_size - (small.path / "model.safetensors").stat().st_size
    assert abs(saved - small.bytes_saved) < 1000
    assert_same_answers(tuned, small, "text-classification", texts[:40])


def test_the_folder_holds_one_vocabulary(tuned: Path, small: Trimmed) -> None:
    names = {p.name for p in small.path.iterdir()}
    # MiniLM has no chat template.
    assert names == {"config.json", "model.safetensors", *TOKENIZER_FILES} - {"chat_template.jinja"}
    before, after = config_of(tuned), config_of(small.path)
    assert {k for k in before if before[k] != after[k]} == {"vocab_size"}
    tokenizer = hf.AutoTokenizer.from_pretrained(small.path)
    full = hf.AutoTokenizer.from_pretrained(tuned)
    assert tokenizer.all_special_tokens == full.all_special_tokens
    assert tokenizer.model_max_length == full.model_max_length
    assert sorted(tokenizer.get_vocab().values()) == list(range(small.kept))
    decoder = config_of(small.path, "tokenizer_config.json")["added_tokens_decoder"]
    assert {int(i): t["content"] for i, t in decoder.items()} == {
        tokenizer.convert_tokens_to_ids(t): t for t in full.all_special_tokens
    }


def test_texts_never_seen_are_read_piece_by_piece(tuned: Path, small: Trimmed) -> None:
    full, less = (hf.AutoTokenizer.from_pretrained(p) for p in (tuned, small.path))
    for text in UNSEEN:
        assert less.tokenize(text).count("[UNK]") <= full.tokenize(text).count("[UNK]"), text
    assert "[UNK]" in full.tokenize(UNSEEN[0])
    assert less.tokenize(UNSEEN[2]) != full.tokenize(UNSEEN[2])
    assert "".join(t.removeprefix("##") for t in less.tokenize(UNSEEN[2])) == UNSEEN[2].replace(" ", "")
    assert all(np.isfinite(a).all() for a in answers(small.path, "text-classification", UNSEEN))


@pytest.fixture(scope="module")
def both(tuned: Path, small: Trimmed) -> tuple[Tokenizer, Tokenizer]:
    full, less = (Tokenizer.from_file(str(p / "tokenizer.json")) for p in (tuned, small.path))
    return full, less


@WORDS
@given(st.text(max_size=60))
def test_no_unknown_token_is_new(both: tuple[Tokenizer, Tokenizer], text: str) -> None:
    full, less = both
    counts = [tokenizer.encode(text).tokens.count("[UNK]") for tokenizer in (less, full)]
    assert counts[0] <= counts[1]


def test_a_word_that_is_unknown_stays_unknown(tmp_path: Path) -> None:
    # The full vocabulary takes 'abc', finds no '##d', and gives up; from 'ab' it would have gone on to '##cd'.
    names = ["[PAD]", "[UNK]", "a", "ab", "abc", "abcx", "##b", "##c", "##cd", "##x", "d", "x"]
    piece = Tokenizer(models.WordPiece({t: i for i, t in enumerate(names)}, unk_token="[UNK]"))
    piece.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = hf.PreTrainedTokenizerFast(tokenizer_object=piece, pad_token="[PAD]", unk_token="[UNK]")
    config = hf.BertConfig(len(names), **BERT)
    source = write(tmp_path / "full", "text-classification", config, tokenizer)
    assert tokenizer.tokenize("abcd ab a") == ["[UNK]", "ab", "a"]
    trimmed = trim_checkpoint(source, ["abcd ab a"], tmp_path / "small", task="text-classification")
    less = hf.AutoTokenizer.from_pretrained(trimmed.path)
    assert less.tokenize("abcd ab a") == ["[UNK]", "ab", "a"]
    assert "abc" in less.get_vocab()
    assert "abcx" not in less.get_vocab()
    # '##cd' is the only way to write a 'd' inside a word
    assert less.tokenize("abxcd abcx") == [*tokenizer.tokenize("abxcd"), "abc", "##x"]


# ---- every kind of tokenizer and family

CELLS: dict[str, tuple[Task, Callable[[Sequence[str]], Any], Callable[[int], Any]]] = {
    "gpt2": ("text-generation", bytelevel, lambda v: hf.GPT2Config(vocab_size=v, **GPT2)),
    "gpt2 untied": ("text-generation", bytelevel, lambda v: hf.GPT2Config(vocab_size=v, **UNTIED, **GPT2)),
    "gpt2 classes": ("text-classification", bytelevel, lambda v: hf.GPT2Config(vocab_size=v, pad_token_id=0, **GPT2)),
    "llama": ("text-generation", bytefallback, lambda v: hf.LlamaConfig(vocab_size=v, **LLAMA)),
    "word ends": ("feature-extraction", word_ends, lambda v: hf.BertConfig(v, **BERT)),
    "word starts": ("token-classification", word_starts, lambda v: hf.DistilBertConfig(v, **DISTIL)),
    "t5": ("text2text-generation", unigram, lambda v: hf.T5Config(vocab_size=v, **T5)),
    "t5 untied": ("text2text-generation", unigram, lambda v: hf.T5Config(vocab_size=v, **UNTIED, **T5)),
    "bart": ("text2text-generation", bytelevel, lambda v: hf.BartConfig(v, **BART)),
    "distilbert mask": ("fill-mask", unigram, lambda v: hf.DistilBertConfig(v, **DISTIL)),
    "bert mask": ("fill-mask", unigram, lambda v: hf.BertConfig(v, **BERT)),
    "bert mask untied": ("fill-mask", unigram, lambda v: hf.BertConfig(v, **UNTIED, **BERT)),
    "electra": ("feature-extraction", unigram, lambda v: hf.ElectraConfig(v, embedding_size=16, **BERT)),
}  # fmt: skip
PROMPTED = ("gpt2", "gpt2 classes", "word ends", "t5")


@pytest.mark.parametrize(("cell", "strategy"), [*((c, "plain") for c in CELLS), *((c, "prompt") for c in PROMPTED)])
def test_every_family_answers_alike(texts: list[str], tmp_path: Path, cell: str, strategy: str) -> None:
    task, make, config = CELLS[cell]
    tokenizer = make(texts)
    source = write(tmp_path / "full", task, config(len(tokenizer)), tokenizer, strategy)
    some = texts[:12]
    trimmed = trim_checkpoint(source, some, tmp_path / "small", task=task)
    print(cell, trimmed.kept, trimmed.of, trimmed.bytes_saved)
    assert trimmed.kept < 0.9 * trimmed.of
    assert (trimmed.path / "prompt.safetensors").is_file() == (strategy == "prompt")
    assert (trimmed.path / "generation_config.json").is_file() == (source / "generation_config.json").is_file()
    assert_same_answers(source, trimmed, task, some)
    model, report = getattr(hf, EXPORT_CLASSES[task]).from_pretrained(trimmed.path, output_loading_info=True)
    assert not any(report.values())  # no key missing, unexpected or of another shape
    rows = [n for n, p in model.named_parameters() if trimmed.of in p.shape]
    assert rows == []


@pytest.mark.parametrize("make", [bytelevel, bytefallback, word_ends, word_starts, unigram])
def test_an_unseen_text_keeps_its_words(texts: list[str], tmp_path: Path, make: Any) -> None:
    tokenizer = make(texts)
    source = write(tmp_path / "full", "feature-extraction", hf.BertConfig(len(tokenizer), **BERT), tokenizer)
    trimmed = trim_checkpoint(source, texts[:12], tmp_path / "small", task="feature-extraction")
    less = hf.AutoTokenizer.from_pretrained(trimmed.path)
    shorter = 0
    for text in [*texts[12:100], *UNSEEN]:
        full, found = tokenizer.encode(text), less.encode(text)
        shorter += len(found) > len(full)
        assert less.decode(found) == tokenizer.decode(full)
        assert found.count(less.unk_token_id) == full.count(tokenizer.unk_token_id)
    assert shorter > 10


@pytest.fixture(scope="module")
def gpt2(texts: list[str], tmp_path_factory: Any) -> tuple[Any, Trimmed, Tokenizer]:
    tokenizer, place = bytelevel(texts), tmp_path_factory.mktemp("gpt2")
    config = hf.GPT2Config(vocab_size=len(tokenizer), **GPT2)
    source = write(place / "full", "text-generation", config, tokenizer)
    trimmed = trim_checkpoint(source, texts[:12], place / "small", task="text-generation")
    return tokenizer, trimmed, Tokenizer.from_file(str(trimmed.path / "tokenizer.json"))


@WORDS
@given(st.text(max_size=60).filter(lambda text: not any(token in text for token in SPECIAL)))
def test_bytes_write_every_text(gpt2: tuple[Any, Trimmed, Tokenizer], text: str) -> None:
    """But for the special tokens, which are no text: a decoder leaves them out."""
    full, trimmed, less = gpt2
    ids = less.encode(text).ids
    assert less.decode(ids) == text
    back = [trimmed.old_ids[i] for i in ids]
    assert full.backend_tokenizer.decode(back) == text
    assert len(ids) >= len(full.backend_tokenizer.encode(text).ids)


def test_merges_are_those_that_build_what_is_kept(gpt2: tuple[Any, Trimmed, Tokenizer]) -> None:
    full = json.loads(gpt2[0].backend_tokenizer.to_str())["model"]["merges"]
    model = config_of(gpt2[1].path, "tokenizer.json")["model"]
    assert [m for m in full if m in model["merges"]] == model["merges"]  # in the order of their ranks
    assert 0 < len(model["merges"]) < 0.8 * len(full)
    assert {a + b for a, b in model["merges"]} == {t for t in model["vocab"] if len(t) > 1 and t not in SPECIAL}


def test_scores_stay(texts: list[str], tmp_path: Path) -> None:
    tokenizer = unigram(texts)
    source = write(tmp_path / "full", "feature-extraction", hf.BertConfig(len(tokenizer), **BERT), tokenizer)
    trimmed = trim_checkpoint(source, texts[:12], tmp_path / "small", task="feature-extraction")
    full, less = (config_of(p, "tokenizer.json")["model"] for p in (source, trimmed.path))
    assert less["vocab"] == [full["vocab"][i] for i in trimmed.old_ids]
    assert less["unk_id"] == 2


def test_the_price_of_an_unknown_character_stays(tmp_path: Path) -> None:
    # It is the lowest score - 10: -60, so 'qab' is read as qa+b (-35). Without 'zzzz' it were -30: ?+ab (-31).
    pieces = {"a": -3.0, "b": -15.0, "ab": -1.0, "qa": -20.0, "z": -9.0, "zz": -10.0, "zzzz": -50.0}
    scores = {"<unk>": 0.0, "<pad>": 0.0, "</s>": 0.0, **pieces}
    tokenizer = wrapped(Tokenizer(models.Unigram(list(scores.items()), unk_id=0)))
    source = write(tmp_path / "full", "feature-extraction", hf.BertConfig(len(tokenizer), **BERT), tokenizer)
    assert tokenizer.tokenize("qab") == ["qa", "b"]
    trimmed = trim_checkpoint(source, ["qab", "ab"], tmp_path / "small", task="feature-extraction")
    less = hf.AutoTokenizer.from_pretrained(trimmed.path)
    assert less.tokenize("qab") == ["qa", "b"]
    assert set(scores) - set(less.get_vocab()) == {"zz"}


def test_what_a_generator_writes_stays(texts: list[str], tmp_path: Path) -> None:
    """Where all that it writes is kept, greedy decoding goes the same way."""
    tokenizer = unigram(texts)
    source = write(tmp_path / "full", "text2text-generation", hf.T5Config(vocab_size=len(tokenizer), **T5), tokenizer)
    model = hf.T5ForConditionalGeneration.from_pretrained(source)

    def generate(model: Any, tokenizer: Any) -> list[list[int]]:
        how = {"max_new_tokens": 12, "do_sample": False}
        return [model.generate(**tokens(tokenizer, t), **how)[0].tolist() for t in texts[:6]]

    def tokens(tokenizer: Any, text: str) -> Any:
        return tokenizer(text, return_tensors="pt", return_token_type_ids=False)

    wanted = generate(model, tokenizer)
    targets = [" ".join(tokenizer.convert_ids_to_tokens(ids, skip_special_tokens=True)) for ids in wanted]
    plain = tokenizer.batch_decode(wanted, skip_special_tokens=True)
    trimmed = trim_checkpoint(source, [*texts[:6], *plain, *targets], tmp_path / "small", task="text2text-generation")
    written = {i for ids in wanted for i in ids}
    found = generate(
        hf.T5ForConditionalGeneration.from_pretrained(trimmed.path), hf.AutoTokenizer.from_pretrained(trimmed.path)
    )
    assert written <= set(trimmed.old_ids)
    assert [[trimmed.old_ids[i] for i in ids] for ids in found] == wanted


def test_positions_that_count_from_padding_stay(texts: list[str], tmp_path: Path) -> None:
    """RoBERTa's first position is that of its padding id + 1, so a padding id that moved would move every position."""
    document = json.loads(bytelevel(texts).backend_tokenizer.to_str())
    rare = list(document["model"]["vocab"])[-3:]  # the last merges: they go first, so that padding is 3
    order = [*rare, "<pad>", "</s>", *(t for t in document["model"]["vocab"] if t not in (*rare, "<pad>", "</s>"))]
    document["model"]["vocab"] = {t: i for i, t in enumerate(order)}
    for token in document["added_tokens"]:
        token["id"] = order.index(token["content"])
    bpe = Tokenizer.from_str(json.dumps(document))
    bpe.post_processor = processors.RobertaProcessing(sep=("</s>", 4), cls=("</s>", 4))
    names = {"pad_token": "<pad>", "eos_token": "</s>", "bos_token": "</s>", "unk_token": "</s>"}
    tokenizer = hf.PreTrainedTokenizerFast(tokenizer_object=bpe, **names)
    config = hf.RobertaConfig(len(order), pad_token_id=3, bos_token_id=4, eos_token_id=4, **BERT)
    source = write(tmp_path / "full", "fill-mask", config, tokenizer)
    some = [t for t in texts if not any(r.strip("Ġ") in t for r in rare)][:12]
    trimmed = trim_checkpoint(source, some, tmp_path / "small", task="fill-mask")
    assert trimmed.old_ids[:5] == (0, 1, 2, 3, 4)
    assert trimmed.kept < trimmed.of
    assert_same_answers(source, trimmed, "fill-mask", some)
    # a model that does not count so lets them go
    plain = write(tmp_path / "bert", "fill-mask", hf.BertConfig(len(order), pad_token_id=3, **BERT), tokenizer)
    trimmed = trim_checkpoint(plain, some, tmp_path / "small bert", task="fill-mask")
    assert trimmed.old_ids[0] == 3
    assert config_of(trimmed.path)["pad_token_id"] == 0
    assert hf.AutoTokenizer.from_pretrained(trimmed.path).pad_token_id == 0
    assert_same_answers(plain, trimmed, "fill-mask", some)


def test_whole_words_become_unknown_and_the_caller_is_told(tmp_path: Path) -> None:
    source = asset_path("rxn-albert")
    some = ["CC(=O)O", "c1ccccc1Cl"]
    trimmed = trim_checkpoint(source, some, tmp_path / "small", task="fill-mask")
    assert "now becomes [UNK]" in trimmed.note
    assert trimmed.kept < trimmed.of == 591
    full, less = (hf.AutoTokenizer.from_pretrained(p) for p in (source, trimmed.path))
    other = "[13CH3]"
    assert full.unk_token not in full.tokenize(other) or full.tokenize(other) == less.tokenize(other)
    old = [i for i in full.get_vocab().values() if i not in trimmed.old_ids]
    dropped = full.convert_ids_to_tokens(old[0])
    assert less.convert_tokens_to_ids(dropped) == less.unk_token_id
    assert_same_answers(source, trimmed, "fill-mask", some)


def test_pairs_are_read_as_pairs(minilm: Path, texts: list[str], tmp_path: Path) -> None:
    tokenizer = hf.AutoTokenizer.from_pretrained(minilm)
    source = write(tmp_path / "full", "text-classification", hf.BertConfig(len(tokenizer), **BERT), tokenizer)
    pairs = list(zip(texts[:6], texts[6:12], strict=True))
    trimmed = trim_checkpoint(source, pairs, tmp_path / "small", task="text-classification")
    assert trimmed.texts == 6
    assert_same_answers(source, trimmed, "text-classification", pairs)
    # the file's own padding names the new id of [PAD]
    assert config_of(trimmed.path, "tokenizer.json")["padding"]["pad_id"] == 0


@pytest.mark.slow
def test_smollm2_predicts_alike(texts: list[str], tmp_path: Path) -> None:
    source = asset_path("smollm2")
    trimmed = trim_checkpoint(source, texts, tmp_path / "small", task="text-generation")
    assert trimmed.of == 49152
    assert trimmed.kept < 10000
    assert trimmed.bytes_saved == (trimmed.of - trimmed.kept) * 576 * 4
    assert_same_answers(source, trimmed, "text-generation", texts[:3])
    full, less = (hf.AutoTokenizer.from_pretrained(p) for p in (source, trimmed.path))
    assert [less.decode(less.encode(t)) for t in UNSEEN] == [full.decode(full.encode(t)) for t in UNSEEN]
    chat = [{"role": "user", "content": texts[0]}]
    ids = less.apply_chat_template(chat)
    assert [trimmed.old_ids[i] for i in ids] == full.apply_chat_template(chat)


# ---- configs and files


def test_every_token_id_in_the_configs_is_mapped(texts: list[str], tmp_path: Path) -> None:
    tokenizer = bytelevel(texts)
    size = len(tokenizer)
    last, rare, gone = size - 1, size - 2, size - 3
    config = hf.GPT2Config(vocab_size=size, pad_token_id=last, bos_token_id=50256, eos_token_id=1, **GPT2)
    config.task_specific_params = {"writing": {"decoder_start_token_id": last, "max_length": 7}}
    config.id2label = {0: "pad_token_id", 1: "b"}
    source = write(tmp_path / "full", "text-generation", config, tokenizer)
    written = {
        "pad_token_id": last,
        "eos_token_id": [1, rare],
        "bos_token_id": -1,
        "forced_decoder_ids": [[1, rare], [2, None]],
        "suppress_tokens": [gone, 1, last],
        "begin_suppress_tokens": [gone],
        "bad_words_ids": [[gone, 1], [last], [1, rare]],
        "sequence_bias": [[[last, 1], -2.0], [[gone], 3.0]],
        "max_new_tokens": last,
    }
    (source / "generation_config.json").write_text(json.dumps(written))
    some = [t for t in texts if gone not in tokenizer.encode(t)][:12]
    trimmed = trim_checkpoint(source, some, tmp_path / "small", task="text-generation")
    new = {old: i for i, old in enumerate(trimmed.old_ids)}
    assert gone not in new
    assert new[last] != last
    found = config_of(trimmed.path)
    assert found["pad_token_id"] == found["task_specific_params"]["writing"]["decoder_start_token_id"] == new[last]
    assert (found["bos_token_id"], found["eos_token_id"]) == (50256, new[1])  # 50256 was no row, and is none now
    assert found["task_specific_params"]["writing"]["max_length"] == 7
    assert found["id2label"] == {"0": "pad_token_id", "1": "b"}
    assert config_of(trimmed.path, "generation_config.json") == {
        "pad_token_id": new[last],
        "eos_token_id": [new[1], new[rare]],
        "bos_token_id": -1,
        "forced_decoder_ids": [[1, new[rare]], [2, None]],
        "suppress_tokens": [new[1], new[last]],
        "bad_words_ids": [[new[last]], [new[1], new[rare]]],
        "sequence_bias": [[[new[last], new[1]], -2.0]],
        "max_new_tokens": last,
    }


def test_added_tokens_and_spare_rows(texts: list[str], tmp_path: Path) -> None:
    """Tokens added behind the vocabulary keep their rows; rows without a token, as T5's last ones, go."""
    tokenizer = bytelevel(texts)
    tokenizer.add_tokens(["<user>", "grandiloquent"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<turn>"]})
    config = hf.GPT2Config(vocab_size=len(tokenizer) + 29, pad_token_id=len(tokenizer) + 7, **GPT2)
    source = write(tmp_path / "full", "text-generation", config, tokenizer)
    some = [*texts[:8], "<user> a <turn> of phrase"]
    trimmed = trim_checkpoint(source, some, tmp_path / "small", task="text-generation")
    less = hf.AutoTokenizer.from_pretrained(trimmed.path)
    assert less.tokenize("grandiloquent<turn>") == ["grandiloquent", "<turn>"]
    # the one spare row that the config names stays, behind all tokens
    assert trimmed.kept == len(less) + 1
    assert trimmed.old_ids[-1] == len(tokenizer) + 7
    assert config_of(trimmed.path)["pad_token_id"] == trimmed.kept - 1
    assert_same_answers(source, trimmed, "text-generation", some)


def test_the_words_of_a_chat_template_are_kept(texts: list[str], tmp_path: Path) -> None:
    tokenizer = bytelevel([*texts, *["<|start|>assistant\n", "<|start|>user\n", "You are a helpful reviewer."] * 50])
    tokenizer.chat_template = (
        "You are a helpful reviewer.\n{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}</s>\n"
        "{% endfor %}{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
    )
    source = write(tmp_path / "full", "text-generation", hf.GPT2Config(vocab_size=len(tokenizer), **GPT2), tokenizer)
    some = texts[:8]
    trimmed = trim_checkpoint(source, some, tmp_path / "small", task="text-generation")
    less = hf.AutoTokenizer.from_pretrained(trimmed.path)
    assert trimmed.texts == 8
    for text in some:
        chat = [{"role": "user", "content": text}]
        ids = less.apply_chat_template(chat, add_generation_prompt=True)
        assert [trimmed.old_ids[i] for i in ids] == tokenizer.apply_chat_template(chat, add_generation_prompt=True)
    tokenizer.chat_template = "{{ raise_exception('system first') }}"
    tokenizer.save_pretrained(source)
    trimmed = trim_checkpoint(source, some, tmp_path / "small", task="text-generation")
    assert trimmed.note == "its chat template does not render (system first): give texts as they stand in a chat"


def test_files_in_shards_half_precision_and_names_without_prefix(texts: list[str], tmp_path: Path) -> None:
    tokenizer = unigram(texts)
    config = hf.BertConfig(len(tokenizer), num_labels=3, **BERT)
    source = tmp_path / "full"
    torch.manual_seed(0)
    hf.BertModel(config).half().save_pretrained(
        source, max_shard_size="40KB"
    )  # 'embeddings...', not 'bert.embeddings...'
    tokenizer.save_pretrained(source)
    assert len(list(source.glob("*.safetensors"))) > 1
    trimmed = trim_checkpoint(source, texts[:12], tmp_path / "small", task="text-classification")
    assert trimmed.bytes_saved == (trimmed.of - trimmed.kept) * 32 * 2
    assert not (trimmed.path / "model.safetensors.index.json").exists()
    assert tensors(trimmed.path)["embeddings.word_embeddings.weight"] == (trimmed.kept, 32)
    model = hf.BertModel.from_pretrained(trimmed.path, dtype=torch.float32)
    whole = hf.BertModel.from_pretrained(source, dtype=torch.float32)
    old = torch.tensor(trimmed.old_ids)
    torch.testing.assert_close(model.get_input_embeddings().weight, whole.get_input_embeddings().weight[old])


def test_a_head_that_the_task_does_not_read_is_cut_too(texts: list[str], tmp_path: Path) -> None:
    tokenizer = unigram(texts)
    source = write(tmp_path / "full", "fill-mask", hf.BertConfig(len(tokenizer), **BERT), tokenizer)
    trimmed = trim_checkpoint(source, texts[:12], tmp_path / "small", task="feature-extraction")
    assert tensors(trimmed.path)["cls.predictions.bias"] == (trimmed.kept,)
    assert_same_answers(source, trimmed, "fill-mask", texts[:12])


def test_what_sentence_transformers_reads_goes_along(minilm: Path, tmp_path: Path) -> None:
    trimmed = trim_checkpoint(minilm, ["a fine film"], tmp_path / "small", task="feature-extraction")
    for name in ("modules.json", "1_Pooling/config.json", "sentence_bert_config.json"):
        assert (trimmed.path / name).read_bytes() == (minilm / name).read_bytes()
    assert trimmed.kept < 2100  # characters and special tokens, almost
    assert_same_answers(minilm, trimmed, "feature-extraction", ["a fine film"])


# ---- what does not go


def test_texts_that_are_none(tuned: Path, tmp_path: Path) -> None:
    for some, why in (
        ([], "no texts to trim"),
        (["good", 3], "'3' is no text"),
        ([("a", "b", "c")], "is no text"),
        (["\ud800"], "half a surrogate pair"),
    ):
        with pytest.raises(DataError, match=why):
            trim_checkpoint(tuned, some, tmp_path / "out", task="text-classification")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_trimmed_is_one_clear_error(texts: list[str], tuned: Path, tmp_path: Path) -> None:
    def refuse(source: Path, why: str, task: Task = "text-generation", out: Path = tmp_path / "out") -> None:
        with pytest.raises(CheckpointError, match=why):
            trim_checkpoint(source, texts[:3], out, task=task)
        assert not list(tmp_path.glob("*out*"))

    tokenizer = bytelevel(texts)
    config = hf.GPT2Config(vocab_size=len(tokenizer), **GPT2)
    source = write(tmp_path / "full", "text-generation", config, tokenizer)
    refuse(source, "is the checkpoint itself", out=source)
    refuse(tuned, "which has no vocabulary", "image-classification")
    refuse(tmp_path / "nowhere", "no such folder")

    dropping = Path(shutil.copytree(source, tmp_path / "dropping"))
    document = config_of(dropping, "tokenizer.json")
    document["model"]["dropout"] = 0.1
    (dropping / "tokenizer.json").write_text(json.dumps(document))
    refuse(dropping, r"leaves out merges at random \(dropout=0.1\)")

    slow = tmp_path / "slow"
    hf.T5ForConditionalGeneration(hf.T5Config(vocab_size=384, **T5)).save_pretrained(slow)
    hf.ByT5Tokenizer().save_pretrained(slow)
    (slow / "spiece.model").write_bytes(b"")  # the folder has something of a tokenizer
    refuse(slow, "its tokenizer", "text2text-generation")

    tokenizer.add_special_tokens({"additional_special_tokens": ["<turn>"]})
    more = Path(shutil.copytree(source, tmp_path / "more"))
    tokenizer.save_pretrained(more)
    refuse(more, r"tokens beyond the model's 900 rows \(ids 900 to 900\): .*resize_token_embeddings")

    other = Path(shutil.copytree(source, tmp_path / "other"))
    (other / "config.json").write_text(json.dumps({**config_of(source), "vocab_size": 901}))
    refuse(other, "transformer.wte.weight has 900 rows, but config.json has vocab_size=901")

    empty = Path(shutil.copytree(source, tmp_path / "empty"))
    (empty / "model.safetensors").unlink()
    refuse(empty, "no weights to trim: model.safetensors is missing")

    canine = Path(shutil.copytree(source, tmp_path / "canine"))
    hf.CanineConfig(**BERT).save_pretrained(canine)
    refuse(canine, "has no vocabulary that edgewise can trim", "text-classification")


def test_an_unknown_kind_of_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot trim a tokenizer of kind 'Magic'; known: WordPiece, BPE"):
        Pieces.of({"model": {"type": "Magic", "vocab": {}}}, tmp_path)


def test_a_text_that_would_be_read_otherwise_is_named(
    texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the tokens on the way, merges are missing; the check at the end sees it, and nothing is written."""
    tokenizer = bytelevel(texts)
    source = write(tmp_path / "full", "text-generation", hf.GPT2Config(vocab_size=len(tokenizer), **GPT2), tokenizer)
    monkeypatch.setattr(Pieces, "built_from", lambda self, tokens: set())
    with pytest.raises(CheckpointError, match=r"with a smaller vocabulary 'a fine film' is no longer read"):
        trim_checkpoint(source, ["a fine film"], tmp_path / "out", task="text-generation")
    assert not (tmp_path / "out").exists()
