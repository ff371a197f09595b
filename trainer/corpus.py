"""Raw text for pretraining: read, cleaned, and split into what is trained on and what is held out."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgewise.assets import asset_path
from edgewise.data import hold_out as by_hash
from edgewise.data import split_key
from edgewise.errors import DataError, nearest
from edgewise.files import digest_json
from edgewise.tables import read_table, read_utf8

Document = tuple[str, ...]
"""Lines, none of them empty."""

MAX_LINES = 64
MAX_CHARACTERS = 2000
"""A document is cut after so many lines, and a line after so many characters at the end of a sentence or word: a book
in one piece could be neither split into a train and a held-out part, nor give a second segment from elsewhere."""

HOLD_OUT = "held out of pretraining:"
"""The salt of the split: other words than labelled rows are split by, or the two would depend on one another."""

_CONTROLS = {c: None for c in [*range(32), *range(127, 160), 0x200B, 0x2060, 0xFEFF] if chr(c) not in "\t\n"}
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[.!?][\"')\]])\s+|(?<=[。！？])")


@dataclass(frozen=True)
class Corpus:
    """Cleaned text, and what the cleaning took away."""

    source: str
    documents: tuple[Document, ...]
    controls: int = 0
    """Control and zero-width characters removed."""
    empty: int = 0
    """Rows without text left out."""
    duplicates: int = 0
    """Documents left out because another is the same but for case and spacing."""

    @property
    def characters(self) -> int:
        return sum(len(line) for document in self.documents for line in document)

    @property
    def digest(self) -> str:
        return digest_json(self.documents)


def read_corpus(
    path: str | Path,
    *,
    text: str = "text",
    format: str | None = None,
    columns: Sequence[str] | None = None,
    quoting: bool = True,
) -> Corpus:
    """Read and clean a plain text file, a folder of them, or the column `text` of a table.

    path: a .txt file (documents are separated by blank lines), a folder of .txt files, a CSV, TSV, JSON Lines or
    Parquet file (a row is a document), or asset:NAME. format, columns, quoting: as `edgewise.tables.read_table` takes
    them; format 'text' reads any file as plain text.

    Raises DataError, with file and line, for what is not UTF-8, has no such column, or holds no text.
    """
    place = asset_path(str(path).removeprefix("asset:")) if str(path).startswith("asset:") else Path(path)
    if place.is_dir():
        files = sorted(place.rglob("*.txt"))
        if not files:
            raise DataError(f"{place}: no .txt file in this folder; expected plain text files, or give one file")
        texts: Iterable[str] = (block for file in files for block in _blocks(read_utf8(file)))
    elif format == "text" or (format is None and columns is None and place.suffix.lower() in (".txt", ".text", "")):
        if not place.is_file():
            raise DataError(f"{place}: no such file")
        texts = _blocks(read_utf8(place))
    else:
        texts = _cells(place, text, format, columns, quoting)
    return clean(texts, str(path))


def clean(texts: Iterable[str], source: str = "the given texts") -> Corpus:
    """Cleaned documents of raw texts, one document a text unless it is too long.

    NFC; control and zero-width characters and blank lines go, tabs become spaces, what stands twice stays once.

    Raises DataError where nothing is left.
    """
    documents: dict[str, Document] = {}
    controls = empty = duplicates = 0
    for raw in texts:
        kept = raw.replace("\r\n", "\n").replace("\r", "\n").translate(_CONTROLS)
        controls += len(raw.replace("\r\n", "\n")) - len(kept)
        normal = unicodedata.normalize("NFC", kept.replace("\t", " "))
        lines = [piece for line in normal.split("\n") if line.strip() for piece in _cut(line.rstrip())]
        if not lines:
            empty += 1
        for start in range(0, len(lines), MAX_LINES):
            document = tuple(lines[start : start + MAX_LINES])
            if documents.setdefault(split_key(" ".join(document)), document) is not document:
                duplicates += 1
    if not documents:
        raise DataError(f"{source}: no text is left after cleaning ({empty} empty rows); expected raw text in UTF-8")
    return Corpus(source, tuple(documents.values()), controls, empty, duplicates)


def hold_out(corpus: Corpus, share: float) -> tuple[tuple[Document, ...], tuple[Document, ...]]:
    """(train, val) documents, by a hash of each text: the same on every machine and in every order.

    Raises DataError where a part that should be there is empty.
    """
    train, val = by_hash(corpus.documents, share, HOLD_OUT, lambda document: split_key(" ".join(document)))
    if not train or (share and not val):
        raise DataError(
            f"{corpus.source}: {len(corpus.documents)} documents are too few to hold out {share:.0%} of them; "
            "give more text, separate the documents by blank lines, or set val_share to 0"
        )
    return tuple(train), tuple(val)


def sentences(document: Document) -> list[str]:
    """The segments for next-sentence prediction: lines, cut further where one holds several sentences."""
    return [s.strip() for line in document for s in _SENTENCE_END.split(line) if s and s.strip()]


def _blocks(text: str) -> Iterator[str]:
    """Documents of a plain text: what stands between blank lines."""
    for block in re.split(r"\n[^\S\n]*(?:\n[^\S\n]*)+", text.replace("\r\n", "\n")):
        if block.strip():
            yield block


def _cells(file: Path, column: str, format: str | None, columns: Sequence[str] | None, quoting: bool) -> Iterator[str]:
    table = read_table(file, format=format, columns=columns, quoting=quoting)
    if table.columns is not None and column not in table.columns:
        raise DataError(f"{table.source}: no column {column!r}: {nearest(column, table.columns)}")
    for record in table.records:
        if column not in record.values:
            raise DataError(f"{record.place}: no column {column!r}: {nearest(column, tuple(map(str, record.values)))}")
        value = record.values[column]
        if value is not None and not isinstance(value, str):
            raise DataError(f"{record.place}: column {column!r} is {value!r}; expected a text")
        yield value or ""


def _cut(line: str) -> list[str]:
    """The line, in pieces of at most MAX_CHARACTERS where it is longer: at ends of sentences, else between words."""
    pieces = []
    while len(line) > MAX_CHARACTERS:
        ends = [m.start() for m in _SENTENCE_END.finditer(line, 0, MAX_CHARACTERS) if m.start() > 0]
        space = line.rfind(" ", 1, MAX_CHARACTERS)
        at = ends[-1] if ends else space if space > 0 else MAX_CHARACTERS
        pieces.append(line[:at].rstrip())
        line = line[at:].lstrip()
    return [p for p in [*pieces, line] if p]
