"""Every prepared asset: opened, counted, and read into parts as its task takes it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from edgewise.assets import ASSETS, asset_path
from edgewise.data import PARTS, Row, Splits, load_rows, load_splits
from edgewise.errors import DataError
from edgewise.images import open_rgb
from edgewise.plan import DataSpec


def everything(splits: Splits) -> list[Row]:
    return [row for part in PARTS for row in splits.part(part)]


def test_addresses() -> None:
    splits = load_splits(DataSpec(path="asset:addresses", unseen="leave_out"), "token-classification", Path)
    rows = everything(splits)
    assert len(rows) + splits.dropped == 1513
    assert splits.dropped < 10
    with pytest.raises(DataError, match=r"never in train; .* unseen: leave_out"):
        load_splits(DataSpec(path="asset:addresses"), "token-classification", Path)
    whole = load_rows("asset:addresses", task="token-classification", tags="tags")
    tags = Counter(tag for row in whole for tag in row.tags or ())
    assert sum(tags.values()) == 10_722
    assert len(tags) == 51
    assert len({tag[2:] for tag in tags}) == 29
    assert tags["B-StreetName"] + tags["I-StreetName"] == 1860
    first = whole[0]
    assert first.tokens == ("8128", "S.", "DR", "MARTIN", "LUTHER", "KING", "JR", "Drive")
    assert first.tags == (
        "B-AddressNumber", "B-StreetNamePreDirectional", "B-StreetName", *("I-StreetName",) * 4, "B-StreetNamePostType",
    )  # fmt: skip
    for row in whole:  # IOB2: an entity starts with B-
        for before, tag in zip(("O", *(row.tags or ())), row.tags or (), strict=False):
            assert tag[0] == "B" or before[2:] == tag[2:]


def test_phonemes() -> None:
    spec = DataSpec(path="asset:phonemes", text="word", target="phonemes", rows=dict.fromkeys(PARTS, 3000))
    splits = load_splits(spec, "text2text-generation", Path)
    assert [len(splits.part(part)) for part in PARTS] == [3000] * 3
    lines = asset_path("phonemes").read_text(encoding="utf-8").splitlines()
    words = dict(line.split("\t") for line in lines[1:])
    assert len(words) == len(lines) - 1 == 117_493
    assert words["appellate"] == "AH P EH L IH T"  # the first of two pronunciations
    assert words["aalborg"] == "AO L B AO R G"  # its comment is no phoneme
    assert all(word.isascii() and word.isalpha() and word.islower() for word in words)
    assert len({sound for spoken in words.values() for sound in spoken.split(" ")}) == 39


def test_running_text() -> None:
    verses = load_rows("asset:kjv", task="text-generation")
    assert len(verses) == 31_102
    assert verses[0].text == "In the beginning God created the heaven and the earth."
    assert verses[-1].text == "The grace of our Lord Jesus Christ be with you all. Amen."
    assert 780_000 < sum(len(verse.text.split()) for verse in verses) < 830_000
    sentences = load_rows("asset:brown", task="text-generation")
    assert len(sentences) == 57_340
    assert sum(len(row.text.split(" ")) for row in sentences) == 1_161_192
    assert sentences[0].text.startswith("The Fulton County Grand Jury said Friday an investigation of Atlanta's")


def test_english_and_spanish_verses_are_the_same_verses() -> None:
    rows = load_rows("asset:verses", task="text2text-generation", text="english", target="spanish")
    assert len(rows) == 31_084
    pairs = {row.text: row.target or "" for row in rows}
    assert (
        pairs["In the beginning God created the heaven and the earth."]
        == "EN el principio crió Dios los cielos y la tierra."
    )
    assert pairs["Jesus wept."] == "Y lloró Jesús."
    assert rows[-1].target == "La gracia de nuestro Señor Jesucristo sea con todos vosotros. Amén."
    assert not [row for row in rows if "<" in (row.target or "") or ">" in (row.target or "")]
    # a shift by one verse would give names that differ
    for english, spanish in (
        ("Abraham", "Abraham"),
        ("Pharaoh", "Faraón"),
        ("Jerusalem", "Jerusalem"),
        ("Peter", "Pedro"),
    ):
        said = [spanish in (row.target or "") for row in rows if english in row.text]
        assert len(said) > 100
        assert sum(said) / len(said) > 0.9, english


def test_brown_tags() -> None:
    rows = load_rows("asset:brown/brown-pos.jsonl", task="token-classification", tags="tags")
    plain = asset_path("brown").read_text(encoding="utf-8").splitlines()
    assert [row.text for row in rows] == plain
    tags = Counter(tag for row in rows for tag in row.tags or ())
    assert len(tags) < 100
    assert not [tag for tag in tags if tag.endswith(("-tl", "-hl", "-nc")) or "+" in tag]
    assert list(zip(rows[0].tokens or (), rows[0].tags or (), strict=True))[:4] == [
        ("The", "at"), ("Fulton", "np"), ("County", "nn"), ("Grand", "jj"),
    ]  # fmt: skip


def test_fashion_mnist() -> None:
    spec = DataSpec(path="asset:fashion-mnist/test.parquet", rows={"train": 500, "val": 200, "confirm": 200})
    splits = load_splits(spec, "image-classification", Path)
    assert len(splits.labels) == 10
    counts = Counter(row.label for row in splits.train)
    assert min(counts.values()) > 20, "the parts are mixed"
    image = open_rgb(splits.train[0].image or b"")
    assert (image.mode, image.size) == ("RGB", (28, 28))


@pytest.mark.slow
def test_fashion_mnist_whole() -> None:
    import io

    import numpy as np
    import PIL.Image
    import pyarrow.parquet as pq

    for name, count, mean in (("train", 60_000, 0.2860), ("test", 10_000, 0.2868)):
        table = pq.read_table(asset_path(f"fashion-mnist/{name}.parquet"))
        assert set(Counter(table["label"].to_pylist()).values()) == {count // 10}
        images = [np.asarray(PIL.Image.open(io.BytesIO(data))) for data in table["image"].to_pylist()]
        assert abs(np.stack(images).mean() / 255 - mean) < 0.0001, "the mean that is published for this set"


@pytest.mark.parametrize("name", [name for name, asset in ASSETS.items() if asset.prepare and asset.default])
def test_prepared_files_are_recorded(name: str) -> None:
    path = asset_path(name)
    folder = path.parent if ASSETS[name].result else path
    record = json.loads((folder / "prepared.json").read_text(encoding="utf-8"))
    assert set(record["files"]) == set(ASSETS[name].makes)
    assert (record["from"], record["edition"]) == (ASSETS[name].sha256, ASSETS[name].edition)
