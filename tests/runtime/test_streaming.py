"""Tokens to text, one by one: nothing is broken, nothing is lost, and a stop string ends it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from edgewise.assets import asset_path
from edgewise.errors import InputError
from edgewise.runtime.streaming import TextStream

WORLD = (
    "The quick brown fox doesn't jump over the lazy dog, does it? It isn't 3.5 metres!",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. – «Voilà l'été, ça va être brûlant»",
    "敏捷的棕色狐狸跳過懶狗。色は匂へど散りぬるを、我が世誰ぞ常ならむ。모든 인간은 태어날 때부터 자유로우며",
    "Съешь же ещё этих мягких французских булок. Ξεσκεπάζω την ψυχοφθόρα βδελυγμία.",
    "نص حكيم له سر قاطع وذو شأن عظيم. דג סקרן שט בים. ऋषियों को सताने वाले दुष्ट राक्षसों के राजा रावण। ሰላም ለዓለም",
    "👩🏽\u200d🚀 🇨🇭🇯🇵 🤦🏼\u200d♂️ family 👨\u200d👩\u200d👧\u200d👦 ok👌 e\u0301 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𓀀𓁐 \U0010ffff",
    "def f(x):\n    return {'a': x ** 2}  # \t tabs\r\n\n\n<0x41> \ufffd\ufffd a\ufffdb",
    "   leading, trailing   and      many spaces   ",
)


def verses() -> list[str]:
    """Bible verses in English and Spanish, one tab-separated row each."""
    lines = asset_path("verses").read_text(encoding="utf-8").splitlines()
    return [line.replace("\t", " ") for line in lines[1::300]]


def byte_fallback() -> Tokenizer:
    """As Llama's: what the vocabulary lacks is spelled in bytes, decoded by the sequence of steps that it carries."""
    vocab = {f"<0x{i:02X}>": i for i in range(256)} | {"<unk>": 256, "</s>": 257, "▁": 258}
    vocab |= {c: 259 + i for i, c in enumerate("abcdefghijklmnopqrstuvwxyz")}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens(["<unk>", "</s>"])
    return tokenizer


def unigram() -> Tokenizer:
    """As T5's: pieces of SentencePiece's kind, trained on real text."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    tokenizer.train_from_iterator(
        [*verses(), *WORLD],
        trainers.UnigramTrainer(vocab_size=1500, special_tokens=special, unk_token="<unk>", show_progress=False),
    )
    return tokenizer


def old_bpe() -> Tokenizer:
    """As the first GPT's: the end of a word is part of its last token, and the decoder drops it at the end."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Whitespace(), decoders.BPEDecoder()
    tokenizer.train_from_iterator(
        verses(),
        trainers.BpeTrainer(vocab_size=800, special_tokens=["<unk>"], end_of_word_suffix="</w>", show_progress=False),
    )
    return tokenizer


def read(name: str) -> Tokenizer:
    return Tokenizer.from_file(str(asset_path(name) / "tokenizer.json"))


MAKERS = {
    "byte-level (SmolLM2)": lambda: read("smollm2"),
    "WordPiece (MiniLM)": lambda: read("all-minilm-l6-v2"),
    "Fuse (ALBERT on chemistry)": lambda: read("rxn-albert"),
    "Metaspace (as T5)": unigram,
    "byte fallback (as Llama)": byte_fallback,
    "end of word (as GPT)": old_bpe,
    "no decoder": lambda: Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "b": 2, "\ufffd": 3}, unk_token="<unk>")),
}


@pytest.fixture(scope="module")
def tokenizers_() -> dict[str, Tokenizer]:
    return {name: make() for name, make in MAKERS.items()}


def pieces(
    tokenizer: Tokenizer, ids: Sequence[int], *, skip: bool = True, stop: Sequence[str] = ()
) -> tuple[list[str], TextStream]:
    """Every piece with the rest as the last one, and the stream."""
    stream = TextStream(tokenizer, skip, stop)
    return [*map(stream.put, ids), stream.end()], stream


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("skip", [True, False])
def test_real_text_in_many_languages_comes_whole(tokenizers_, name: str, skip: bool) -> None:
    tokenizer = tokenizers_[name]
    for text in [*WORLD, *verses()]:
        ids = tokenizer.encode(text).ids
        found, _ = pieces(tokenizer, ids, skip=skip)
        assert "".join(found) == tokenizer.decode(ids, skip_special_tokens=skip)


def test_no_character_is_broken_and_none_waits_longer_than_it_must() -> None:
    tokenizer = read("smollm2")
    for text in WORLD:
        if "\ufffd" in text:
            continue
        ids = tokenizer.encode(text).ids
        stream = TextStream(tokenizer)
        for i, token in enumerate(ids):
            assert "\ufffd" not in stream.put(token)
            assert text.startswith(tokenizer.decode(ids[: i + 1]).rstrip("\ufffd"))
        whole = pieces(tokenizer, ids)[0]
        assert whole[-1] == "", "a whole text leaves no rest"
        shown = ["".join(whole[: i + 1]) for i in range(len(ids))]
        assert shown == [tokenizer.decode(ids[: i + 1]).rstrip("\ufffd") for i in range(len(ids))]


@pytest.mark.parametrize("name", MAKERS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_tokens_give_what_decode_gives(tokenizers_, name: str, data: st.DataObject) -> None:
    tokenizer = tokenizers_[name]
    size = tokenizer.get_vocab_size()
    # The first tokens are where bytes and special tokens stand; some ids are none.
    number = st.one_of(st.integers(0, min(size, 300) - 1), st.integers(0, size + 2))
    ids = data.draw(st.lists(number, max_size=60))
    skip = data.draw(st.booleans())
    found, _ = pieces(tokenizer, ids, skip=skip)
    assert "".join(found) == tokenizer.decode(ids, skip_special_tokens=skip)


def test_bytes_that_are_no_text_are_shown_as_decode_shows_them() -> None:
    tokenizer = read("smollm2")
    alone = [i for i in range(300) if tokenizer.decode([i]) == "\ufffd"]
    found, _ = pieces(tokenizer, alone * 20)
    assert "".join(found) == tokenizer.decode(alone * 20)
    assert found.count("") < len(found) / 2, "they are not kept until the end"


def test_bytes_that_spoil_the_bytes_before_them_do_not_change_what_was_shown(tokenizers_) -> None:
    # After a good character, one byte too many makes every byte of the run unreadable in SentencePiece's way.
    tokenizer = tokenizers_["byte fallback (as Llama)"]
    ids = [*"叫".encode(), 0xE5, tokenizer.token_to_id("b")]
    assert tokenizer.decode(ids) == "\ufffd\ufffd\ufffd\ufffdb"
    found, _ = pieces(tokenizer, ids)
    assert found == ["", "", "", "", "\ufffd\ufffd\ufffd\ufffdb", ""]


def test_special_tokens_between_the_bytes_of_a_character() -> None:
    tokenizer = read("smollm2")
    special = tokenizer.token_to_id("<|im_end|>")
    ids = [i for token in tokenizer.encode("𓀀 😀").ids for i in (token, special, special, special)]
    assert "".join(pieces(tokenizer, ids)[0]) == "𓀀 😀"
    assert "".join(pieces(tokenizer, ids, skip=False)[0]) == tokenizer.decode(ids, skip_special_tokens=False)


def test_only_a_few_tokens_are_kept() -> None:
    """So that the thousandth token costs what the tenth did."""
    tokenizer = read("smollm2")
    alone = next(i for i in range(300) if tokenizer.decode([i]) == "\ufffd")
    for ids in (tokenizer.encode(" ".join(verses())).ids, [alone] * 2000):
        stream = TextStream(tokenizer)
        longest = 0
        for token in ids:
            stream.put(token)
            longest = max(longest, len(stream._ids))
        assert longest <= 8


# ---- stop strings


def cut(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """What stands before the stop string that is complete first, character by character."""
    for end in range(len(text) + 1):
        starts = [end - len(s) for s in stop if text[:end].endswith(s)]
        if starts:
            return text[: min(starts)], True
    return text, False


def test_a_stop_string_over_several_tokens() -> None:
    tokenizer = read("smollm2")
    ids = tokenizer.encode("Question: one?\nAnswer: two.\n\nQuestion: three?").ids
    stream = TextStream(tokenizer, stop=["\n\nQuestion:"])
    shown, read_ids = "", iter(ids)
    while not stream.finished:
        shown += stream.put(next(read_ids))
    assert shown == "Question: one?\nAnswer: two."
    assert tokenizer.decode(list(read_ids)) == " three?"
    assert (stream.put(ids[0]), stream.end()) == ("", "")


def test_what_only_began_like_a_stop_string_comes_at_the_end() -> None:
    tokenizer = read("smollm2")
    found, stream = pieces(tokenizer, tokenizer.encode("one\n\nQuest").ids, stop=["\n\nQuestion:"])
    assert "".join(found[:-1]) == "one"
    assert found[-1] == "\n\nQuest"
    assert not stream.finished
    assert stream.end() == "", "the rest is given once"


def test_the_stop_string_that_is_complete_first_counts() -> None:
    tokenizer = read("smollm2")
    for stop in (["bcde", "c"], ["c", "bc"], ["cd", "abcdef"], ["abcd", "d"]):
        ids = tokenizer.encode("xx abcdef abcdef").ids
        found, stream = pieces(tokenizer, ids, stop=stop)
        assert ("".join(found), stream.finished) == cut("xx abcdef abcdef", stop)


@settings(max_examples=200, deadline=None)
@given(
    text=st.text(alphabet="ab 😀é\n", max_size=40),
    stop=st.lists(st.text(alphabet="ab 😀é\n", min_size=1, max_size=5), max_size=3),
)
def test_any_stop_strings_in_any_text(tokenizers_, text: str, stop: list[str]) -> None:
    for name in ("byte-level (SmolLM2)", "byte fallback (as Llama)"):
        tokenizer = tokenizers_[name]
        ids = tokenizer.encode(text).ids
        found, stream = pieces(tokenizer, ids, stop=stop)
        assert ("".join(found), stream.finished) == cut(tokenizer.decode(ids), stop)


def test_one_string_is_one_stop_string_and_an_empty_one_is_refused() -> None:
    tokenizer = read("smollm2")
    found, stream = pieces(tokenizer, tokenizer.encode("so it ends here").ids, stop=" ends")
    assert ("".join(found), stream.finished) == ("so it", True)
    for bad in ([""], ["a", ""], [3]):
        with pytest.raises(InputError, match="a stop string is"):
            TextStream(tokenizer, stop=bad)  # type: ignore[list-item]
