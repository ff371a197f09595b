"""Data assets made from the files of a package: the same bytes in, the same bytes out.

Each function reads the checked files in `source` and writes to `out`. Standard library only, but for images.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import struct
import zlib
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path

from edgewise.errors import DataError, need_extra

FASHION = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


def addresses(source: Path, out: Path) -> None:
    """addresses.jsonl: {"tokens": [...], "tags": [...]} of each address, in the order of labeled.xml.

    The XML gives each word a label. Neighbouring words of one label are one entity, written as IOB2: its first word
    B-LABEL, the others I-LABEL. No word is outside an entity: there is no 'O'.
    """
    from xml.etree import ElementTree

    rows = []
    for address in ElementTree.parse(source / "labeled.xml").getroot():
        words = [(word.tag, (word.text or "").strip()) for word in address]
        tags = [
            f"{'I' if i else 'B'}-{tag}" for tag, run in groupby(tag for tag, _ in words) for i, _ in enumerate(run)
        ]
        rows.append({"tokens": [word for _, word in words], "tags": tags})
    _write_json_lines(out / "addresses.jsonl", rows)


def phonemes(source: Path, out: Path) -> None:
    """words.tsv with a header: word, phonemes (ARPAbet, separated by spaces, stress digits removed).

    Words of the letters a-z alone, in their order in cmudict.dict; of several pronunciations the first.
    """
    lines = ["word\tphonemes"]
    seen = set()
    for line in (source / "cmudict.dict").read_text(encoding="utf-8").splitlines():
        word, _, spoken = line.partition(" #")[0].partition(" ")
        if re.fullmatch("[a-z]+", word) and word not in seen:
            seen.add(word)
            lines.append(f"{word}\t{re.sub('[0-9]', '', spoken).strip()}")
    _write_lines(out / "words.tsv", lines)


def brown(source: Path, out: Path) -> None:
    """brown.txt, a sentence a line, and brown-pos.jsonl with the same sentences as {"tokens": [...], "tags": [...]}.

    Words are joined by single spaces, as they are tokenized. The corpus's 472 tags are reduced to their first word
    class: 'at' of 'at-tl' (in a title), 'nn' of 'fw-nn' (foreign), 'ppss' of 'ppss+md' (we'll), 'md' of 'md*' (can't).
    """
    sentences = list(_brown_sentences(source))
    _write_lines(out / "brown.txt", (" ".join(word for word, _ in sentence) for sentence in sentences))
    rows = ({"tokens": [w for w, _ in s], "tags": [t for _, t in s]} for s in sentences)
    _write_json_lines(out / "brown-pos.jsonl", rows)


def _brown_sentences(source: Path) -> Iterator[list[tuple[str, str]]]:
    for file in sorted(source.glob("c[a-r][0-9][0-9]")):
        for line in file.read_text(encoding="utf-8").splitlines():
            pairs = [item.rpartition("/") for item in line.split()]
            if pairs:
                yield [(word, _plain_tag(tag)) for word, _, tag in pairs]


def _plain_tag(tag: str) -> str:
    first = tag.lower().removeprefix("fw-").partition("+")[0]
    base = re.sub(r"(?<=.)(-(tl|hl|nc|t|n))+$", "", first)
    return base.removesuffix("*") or base


def kjv(source: Path, out: Path) -> None:
    """kjv.txt: a verse of the King James Bible a line. kjv.tsv: the same with columns verse ('Ge1:1') and text."""
    data = (source / "bible.data").read_bytes()
    text = unix_decompress(data[data.index(b"\x1f\x9d") :]).decode("ascii")
    lines = (re.match(r"([0-9A-Z][A-Za-z0-9]*\d+:\d+) (.*)", line) for line in text.split("\n"))
    verses = [(line[1], line[2].strip()) for line in lines if line]
    _write_lines(out / "kjv.txt", (text for _, text in verses))
    _write_lines(out / "kjv.tsv", ("verse\ttext", *(f"{verse}\t{text}" for verse, text in verses)))


def verses(source: Path, out: Path) -> None:
    """verses.tsv: columns english (King James, 1611) and spanish (Reina-Valera, 1909), a verse a line, in order.

    Verses that the Spanish text leaves empty are left out. Reads kjv.tsv of asset:kjv, and a SWORD module in zText
    format with the King James order of verses: blocks of zlib data (.bzz), where each begins (.bzs: offset, size, size
    unpacked), and for each entry its block, offset and size (.bzv). Each testament begins with two entries of its own,
    each book and each chapter with one.
    """
    english = [line.split("\t") for line in (source / "kjv.tsv").read_text(encoding="utf-8").splitlines()[1:]]
    spanish = {testament: _sword_entries(source, testament) for testament in ("ot", "nt")}
    lines = ["english\tspanish"]
    testament, at, book, chapter = "ot", 2, "", ""
    for verse, text in english:
        this_chapter = verse.partition(":")[0]
        this_book = re.sub(r"\d+$", "", this_chapter)
        if this_book == "Mat" != book:
            testament, at = "nt", 2
        at += (this_book != book) + (this_chapter != chapter)
        book, chapter = this_book, this_chapter
        other = " ".join(re.sub("<[^>]*>", "", spanish[testament][at]).split())
        at += 1
        if other:
            lines.append(f"{text}\t{other}")
    _write_lines(out / "verses.tsv", lines)


def _sword_entries(source: Path, testament: str) -> list[str]:
    """All entries of one testament of a SWORD zText module, with their OSIS markup."""
    index, entries, packed = ((source / f"{testament}.bz{kind}").read_bytes() for kind in "svz")
    blocks = [zlib.decompress(packed[at : at + size]) for at, size, _ in struct.iter_unpack("<III", index)]
    found = struct.iter_unpack("<IIH", entries)
    return [blocks[block][at : at + size].decode("utf-8") if size else "" for block, at, size in found]


def unix_decompress(data: bytes) -> bytes:
    """What `compress` (a .Z file: LZW with codes of 9 to 16 bits) packed. Raises DataError for anything else.

    Source: T. A. Welch, A Technique for High-Performance Data Compression, 1984; code widths and resets as in
    compress 4.0.
    """
    if data[:2] != b"\x1f\x9d" or not data[2] & 0x80:
        raise DataError("no .Z data in block mode")
    widest, out = data[2] & 0x1F, bytearray()
    table: list[bytes] = []
    previous = b""
    codes = _codes(data, widest, table)
    for code in codes:
        if code == 256:
            table[:] = [bytes([i]) for i in range(256)] + [b""]
            previous = b""
            continue
        if code > len(table) or (code == len(table) and not previous):
            raise DataError(".Z data is broken")
        entry = table[code] if code < len(table) else previous + previous[:1]
        if previous and len(table) < 1 << widest:
            table.append(previous + entry[:1])
        out += entry
        previous = entry
    return bytes(out)


def _codes(data: bytes, widest: int, table: list[bytes]) -> Iterator[int]:
    """The codes of a .Z file. Codes are written in groups of eight; what is left of a group is skipped when the width
    changes. The width follows the table, which the caller fills between two codes."""
    table[:] = [bytes([i]) for i in range(256)] + [b""]
    at, group, width = 24, 24, 9  # in bits
    while at + width <= len(data) * 8:
        byte, shift = divmod(at, 8)
        code = int.from_bytes(data[byte : byte + 4], "little") >> shift & ((1 << width) - 1)
        at += width
        yield code
        wanted = 9 if code == 256 else width
        # the reader is one entry behind the writer
        if code != 256 and len(table) + 1 > 1 << width and width < widest:
            wanted = width + 1
        if wanted != width or code == 256:
            at += -(at - group) % (8 * width)
            group, width = at, wanted


def fashion_mnist(source: Path, out: Path) -> None:
    """train.parquet (60,000 rows) and test.parquet (10,000): image (PNG, 28 x 28, greyscale), label (its name).

    Raises MissingExtraError without Pillow or pyarrow.
    """
    try:
        import PIL  # noqa: F401
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise need_extra("build", error) from error
    for name, prefix in (("train", "train"), ("test", "t10k")):
        images = gzip.decompress((source / f"{prefix}-images-idx3-ubyte.gz").read_bytes())[16:]
        labels = gzip.decompress((source / f"{prefix}-labels-idx1-ubyte.gz").read_bytes())[8:]
        columns = {
            "image": [_png(images[i * 784 : i * 784 + 784]) for i in range(len(labels))],
            "label": [FASHION[label] for label in labels],
        }
        pq.write_table(pa.table(columns), out / f"{name}.parquet")


def _png(pixels: bytes) -> bytes:
    import PIL.Image

    buffer = io.BytesIO()
    PIL.Image.frombytes("L", (28, 28), pixels).save(buffer, "png")
    return buffer.getvalue()


def _write_lines(file: Path, lines: Iterable[str]) -> None:
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")


def _write_json_lines(file: Path, rows: Iterable[dict[str, list[str]]]) -> None:
    _write_lines(file, (json.dumps(row, ensure_ascii=False) for row in rows))
