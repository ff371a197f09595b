"""Records out of sources without named columns: plain text, CoNLL files, folders of images."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from edgewise.errors import DataError
from edgewise.images import IMAGE_ENDINGS
from edgewise.records import Record, Table, short


def text_records(file: Path, text: str) -> Iterator[Record]:
    """One record a line that holds more than space, without the space around it."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield Record(f"{file}:{number}", {"text": line.strip()})


def conll_records(file: Path, text: str) -> Iterator[Record]:
    """One record a sentence, with the place of its first word. The first field of a line is the word, the last its tag,
    as in CoNLL-2003; its -DOCSTART- lines are skipped."""
    words: list[str] = []
    tags: list[str] = []
    start = fields = 0
    for number, line in enumerate(chain(text.replace("\r\n", "\n").split("\n"), [""]), 1):
        parts = line.split("\t") if "\t" in line else line.split()
        if not line.strip() or parts[0] == "-DOCSTART-":
            if words:
                yield Record(f"{file}:{start}", {"tokens": words, "tags": tags})
            words, tags = [], []
            continue
        fields = fields or len(parts)
        if len(parts) != fields or fields < 2:
            raise DataError(
                f"{file}:{number}: {len(parts)} fields; expected {max(fields, 2)}: a word, a tab or space, its tag; "
                f"found {short(line)}"
            )
        start = start if words else number
        words.append(parts[0].strip())
        tags.append(parts[-1].strip())


def read_folder(folder: Path) -> Table:
    """Image files under one folder a label, in the order of their names; other files are passed over."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no folder; expected a folder of images with one folder a label")
    labels = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not labels:
        raise DataError(f"{folder}: no folder in it; expected one folder a label, with images in each")

    def records() -> Iterator[Record]:
        for label in labels:
            files = [f for f in sorted(label.iterdir()) if f.suffix.lower() in IMAGE_ENDINGS and f.is_file()]
            if not files:
                raise DataError(f"{label}: no image in it; expected files with {', '.join(IMAGE_ENDINGS)}")
            for file in files:
                if not file.name.startswith("."):  # '._a.jpg' is macOS's note about a.jpg
                    yield Record(str(file), {"image": file, "label": label.name})

    return Table(str(folder), ("image", "label"), records())
