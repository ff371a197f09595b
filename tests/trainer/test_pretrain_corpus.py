"""Raw text and images: read, cleaned, held out; and the tokenizers trained on them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from edgewise.errors import DataError
from edgewise.trainer.corpus import MAX_CHARACTERS, MAX_LINES, Corpus, clean, hold_out, read_corpus, sentences
from edgewise.trainer.fresh_tokenizer import train_tokenizer
from edgewise.trainer.pretrain_images import hold_out_images, normalized, pixels, read_images

REVIEWS = {"columns": ["id", "score", "text"], "quoting": False}


@pytest.fixture(scope="module")
def reviews() -> Corpus:
    return read_corpus("asset:movie-reviews", **REVIEWS)


def test_plain_text_is_cut_at_blank_lines(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffOne line.\r\nAnother.\r\n \t\r\n\r\nA second document.\n".encode())
    corpus = read_corpus(tmp_path / "a.txt")
    assert corpus.documents == (("One line.", "Another."), ("A second document.",))


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("second")
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "c.md").write_text("no text file")
    assert read_corpus(tmp_path).documents == (("first",), ("second",))


def test_cleaning_says_what_it_took_away() -> None:
    corpus = clean(
        ["tab\there\x00 and\u200b there\x1b", "  ", "Twice  Same", "twice same\n\n", "cafe\u0301\n\nsecond line"]
    )
    assert corpus.documents == (("tab here and there",), ("Twice  Same",), ("café", "second line"))
    assert (corpus.controls, corpus.empty, corpus.duplicates) == (3, 1, 1)
    assert corpus.characters == sum(len(x) for d in corpus.documents for x in d)


def test_a_book_without_blank_lines_is_cut_and_loses_nothing() -> None:
    lines = [f"Line number {i}." for i in range(3 * MAX_LINES)]
    corpus = clean(["\n".join(lines)])
    assert len(corpus.documents) == 3
    assert [line for d in corpus.documents for line in d] == lines
    long = clean([" ".join(lines * 20)])
    assert max(len(line) for d in long.documents for line in d) <= MAX_CHARACTERS
    assert " ".join(line for d in long.documents for line in d) == " ".join(lines * 20)
    assert all(line.endswith(".") for d in long.documents for line in d)
    assert clean(["x" * 100_000]).characters == 100_000


def test_sentences() -> None:
    document = ('He said "No." Then he left! Why? 3.5 percent.', "我们来了。他走了！")
    assert sentences(document) == ['He said "No."', "Then he left!", "Why?", "3.5 percent.", "我们来了。", "他走了！"]


def test_holding_out_depends_on_the_text_alone(reviews: Corpus) -> None:
    train, val = hold_out(reviews, 0.1)
    assert not set(train) & set(val)
    assert len(train) + len(val) == len(reviews.documents)
    assert 0.085 < len(val) / len(reviews.documents) < 0.115
    turned = hold_out(Corpus("turned", reviews.documents[::-1]), 0.1)
    assert set(turned[1]) == set(val)
    assert hold_out(reviews, 0.0)[1] == ()


def test_columns_of_tables(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"body": "one"}\n{"body": null}\n{"body": "two"}\n')
    corpus = read_corpus(tmp_path / "a.jsonl", text="body")
    assert corpus.documents == (("one",), ("two",))
    assert corpus.empty == 1


@pytest.mark.parametrize(
    ("name", "content", "options", "match"),
    [
        ("a.txt", b"", {}, "no text is left"),
        ("a.txt", b" \n\x00\n\t\n", {}, "no text is left"),
        ("a.txt", b"fine\ncaf\xe9\n", {}, r"a\.txt:2: byte 0xe9 at offset 8 is not UTF-8"),
        ("a.csv", b"txet,label\na,b\n", {}, "did you mean 'txet'"),
        ("a.jsonl", b'{"text": 3}\n', {}, r"a\.jsonl:1: column 'text' is 3; expected a text"),
        ("a.jsonl", b'{"body": "x"}\n', {}, r"a\.jsonl:1: no column 'text'"),
        ("a.bin", b"abc", {}, "tells no format"),
        (None, b"", {}, "no such file"),
    ],
)
def test_text_that_cannot_be_read(tmp_path: Path, name, content, options, match) -> None:
    if name:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=match):
        read_corpus(tmp_path / (name or "missing.txt"), **options)


def test_too_few_documents_to_hold_out_some() -> None:
    with pytest.raises(DataError, match="1 documents are too few to hold out 5%"):
        hold_out(clean(["only one"]), 0.05)


@pytest.mark.parametrize(
    ("objective", "kind"), [("mlm", "BertTokenizerFast"), ("clm", "GPT2TokenizerFast"), ("span", "T5TokenizerFast")]
)
def test_trained_tokenizers_load_again_and_are_the_same_each_time(reviews, tmp_path, objective, kind) -> None:
    from transformers import AutoTokenizer

    documents = reviews.documents[:800]
    made = train_tokenizer(objective, documents, 900, 256)
    made.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert type(loaded).__name__ == kind
    assert len(loaded) == 900
    assert loaded.model_max_length == 256
    assert loaded.pad_token_id is not None
    text = "A fine film, with a warm heart."
    assert loaded(text)["input_ids"] == made(text)["input_ids"]
    found = loaded.decode(loaded(text)["input_ids"], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert found.replace(" ", "").lower() == text.replace(" ", "").lower()
    again = train_tokenizer(objective, documents, 900, 256)
    assert again.backend_tokenizer.to_str() == made.backend_tokenizer.to_str()


def test_the_unigram_tokenizer_has_t5_s_sentinels(reviews) -> None:
    tokenizer = train_tokenizer("span", reviews.documents[:500], 600, 256)
    ids = tokenizer.convert_tokens_to_ids([f"<extra_id_{i}>" for i in range(100)])
    assert len(set(ids)) == 100
    assert tokenizer.unk_token_id not in ids
    assert tokenizer("a <extra_id_0> b")["input_ids"].count(ids[0]) == 1
    assert tokenizer("a")["input_ids"][-1] == tokenizer.eos_token_id


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Pillow.fromarray(image).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def processor():
    from transformers import ViTImageProcessor

    return ViTImageProcessor(size={"height": 8, "width": 8}, image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.3, 0.4])


def test_images_of_every_mode_become_rgb_as_the_processor_would(tmp_path: Path, processor) -> None:
    rng = np.random.default_rng(0)
    shapes = {"grey": (9, 9), "rgb": (12, 10, 3), "rgba": (7, 7, 4), "tiny": (1, 1)}
    for name, shape in shapes.items():
        (tmp_path / f"{name}.png").write_bytes(png(rng.integers(0, 255, shape, dtype=np.uint8)))
    images = read_images(tmp_path)
    found = pixels(images.items, processor)
    assert found.shape == (4, 8, 8, 3)
    for i, image in enumerate(images.items):
        opened = Pillow.open(image.place).convert("RGB")
        expected = processor(opened, return_tensors="np", input_data_format="channels_last")["pixel_values"][0]
        np.testing.assert_allclose(normalized(found[i], processor), expected, atol=1e-5)


def test_images_twice_are_kept_once_and_parquet_is_read(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    one, two = png(np.zeros((4, 4), np.uint8)), png(np.ones((4, 4), np.uint8))
    pq.write_table(
        pa.table({"image": [{"bytes": one, "path": "a"}, {"bytes": two, "path": "b"}, {"bytes": one, "path": "c"}]}),
        tmp_path / "a.parquet",
    )
    images = read_images(tmp_path / "a.parquet")
    assert [i.content for i in images.items] == [one, two]
    assert images.duplicates == 1


def test_broken_images_are_named(tmp_path: Path, processor) -> None:
    whole = png(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"cut\.png: the image cannot be decoded"):
        pixels(read_images(tmp_path).items, processor)
    with pytest.raises(DataError, match="no images"):
        read_images(_empty(tmp_path))


def _empty(folder: Path) -> Path:
    (folder / "none").mkdir()
    return folder / "none"


def test_images_are_held_out_by_their_bytes(tmp_path: Path) -> None:
    for i in range(200):
        (tmp_path / f"{i}.png").write_bytes(png(np.full((2, 2), i, np.uint8)))
    images = read_images(tmp_path)
    train, val = hold_out_images(images, 0.2)
    assert len(train) + len(val) == 200
    assert 20 < len(val) < 60
