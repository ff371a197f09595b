"""Records out of files and dataset ids, each with the place that it stands at, so that an error can point there."""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal, get_args

from edgewise.errors import DataError, nearest, need_extra
from edgewise.plain_tables import conll_records, read_folder, text_records
from edgewise.records import Record, Table, short

Format = Literal["csv", "tsv", "jsonl", "parquet", "conll", "text", "folder"]

_FORMAT_BY_ENDING: dict[str, Format] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".txt": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".conll": "conll",
    ".bio": "conll",
    ".iob": "conll",
    ".iob2": "conll",
}
_FIELD_LIMIT = 1 << 30
"""Bytes of one CSV field; the csv module's own 131,072 is too few for a document."""


def read_table(
    file: Path,
    *,
    format: str | None = None,
    columns: Sequence[str] | None = None,
    quoting: bool = True,
    txt: Format = "tsv",
) -> Table:
    """Records of a file, or of a folder of images; `format` None goes by the file's ending.

    csv, tsv, jsonl, parquet: columns as the file names them. conll: a word and its tag a line, an empty line between
    sentences; columns 'tokens' and 'tags'. text: one row a line, empty lines skipped; column 'text'. folder: one
    folder a label with image files in it; columns 'image' and 'label'.

    columns: names for a CSV or TSV file without a header. quoting: False takes quotation marks as they are.
    txt: what the ending .txt means.

    Raises DataError with file and line for what cannot be read, some of it only when the records are consumed.
    """
    kind = "folder" if format is None and file.is_dir() else txt if _plain(file, format) else _format(file, format)
    if columns is not None and kind not in ("csv", "tsv"):
        raise DataError(f"{file}: columns names those of a CSV or TSV file without a header; this is {kind}")
    if kind == "folder":
        return read_folder(file)
    if not file.is_file():
        raise DataError(f"{file}: {'a folder; expected a file' if file.is_dir() else 'no such file'}")
    if kind == "parquet":
        return _read_parquet(file)
    text = read_utf8(file)
    if kind == "jsonl":
        return Table(str(file), None, _json_records(file, text), base=file.parent)
    if kind == "text":
        return Table(str(file), ("text",), text_records(file, text))
    if kind == "conll":
        return Table(str(file), ("tokens", "tags"), conll_records(file, text))
    return _read_csv(file, text, "," if kind == "csv" else "\t", columns, quoting)


def _plain(file: Path, format: str | None) -> bool:
    return format is None and file.suffix.lower() == ".txt"


def _format(file: Path, given: str | None) -> Format:
    kind = given or _FORMAT_BY_ENDING.get(file.suffix.lower())
    for known in get_args(Format):
        if kind == known:
            result: Format = known
            return result
    if given:
        raise DataError(f"{file}: unknown format {given!r}: {nearest(given, get_args(Format))}")
    raise DataError(
        f"{file}: the ending {file.suffix!r} tells no format; expected {', '.join(_FORMAT_BY_ENDING)}, "
        f"or say format: {', '.join(get_args(Format))}"
    )


def read_utf8(file: Path) -> str:
    """The text of a file. Raises DataError with the line of the first byte that is not UTF-8."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror or error}") from error
    # By hand instead of utf-8-sig, whose offsets in an error do not count the mark.
    skip = len(codecs.BOM_UTF8) if data.startswith(codecs.BOM_UTF8) else 0
    try:
        return data[skip:].decode("utf-8")
    except UnicodeDecodeError as error:
        at = skip + error.start
        line = data.count(b"\n", 0, at) + 1
        raise DataError(
            f"{file}:{line}: byte 0x{data[at]:02x} at offset {at} is not UTF-8 ({error.reason}); "
            f"convert the file, for example with `iconv -f latin1 -t utf-8`"
        ) from error


def _read_csv(file: Path, text: str, delimiter: str, columns: Sequence[str] | None, quoting: bool) -> Table:
    csv.field_size_limit(_FIELD_LIMIT)
    # strict: an unclosed quotation mark would else swallow the rest of the file without a word.
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=delimiter,
        quoting=csv.QUOTE_MINIMAL if quoting else csv.QUOTE_NONE,
        strict=True,
    )
    lines = _csv_lines(file, reader)
    first = next(lines, None) if columns is None else None
    if columns is None and first is None:
        raise DataError(f"{file}: the file is empty; expected a first line with the names of the columns")
    names = tuple(columns) if columns is not None else tuple(first[1]) if first else ()
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{file}:1: column {twice[0]!r} stands twice; each name must differ")

    def records() -> Iterator[Record]:
        for line, values in lines:
            if len(values) != len(names):
                raise DataError(
                    f"{file}:{line}: {len(values)} fields; expected {len(names)} ({', '.join(names)})"
                    + ("" if columns is not None else "; a file without a header needs columns: [...]")
                )
            yield Record(f"{file}:{line}", dict(zip(names, values, strict=True)))

    return Table(str(file), names, records(), base=file.parent)


def _csv_lines(file: Path, reader: Any) -> Iterator[tuple[int, list[str]]]:
    """The line that each record starts at, and its fields; empty lines are skipped."""
    while True:
        start = reader.line_num + 1
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(
                f"{file}:{start}: {error}; where quotation marks are characters like any other, say quoting: false"
            ) from error
        if values:
            yield start, values


def _json_records(file: Path, text: str) -> Iterator[Record]:
    # split("\n"), not splitlines: a JSON string may hold U+2028 as it is.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line, object_pairs_hook=_no_key_twice)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{file}:{number}: no valid JSON: {error}; expected one object a line, found {short(line)}"
            ) from error
        if not isinstance(value, dict):
            raise DataError(f"{file}:{number}: expected a JSON object, found {short(line)}")
        yield Record(f"{file}:{number}", value)


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"key {twice!r} stands twice")
    return found


def _read_parquet(file: Path) -> Table:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise need_extra("profile", error) from error
    try:
        parquet = pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file}: no readable Parquet file: {error}") from error
    names = tuple(parquet.schema_arrow.names)
    if twice := [name for name in names if names.count(name) > 1]:
        raise DataError(f"{file}: column {twice[0]!r} stands twice; each name must differ")

    def records() -> Iterator[Record]:
        rows = chain.from_iterable(batch.to_pylist() for batch in parquet.iter_batches())
        try:
            for number, row in enumerate(rows, 1):
                yield Record(f"{file}, row {number}", row)
        except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
            raise DataError(f"{file}: broken Parquet file: {error}") from error

    return Table(str(file), names, records(), base=file.parent)


def read_dataset(name: str, config: str | None, split: str) -> Table:
    """Records of one split of a dataset id, as `datasets.load_dataset(name, config, split=split)` gives them.

    Raises DataError where the id, the configuration or the split does not exist, or the hub cannot be reached.
    """
    try:
        import datasets
    except ImportError as error:
        raise need_extra("profile", error) from error
    source = f"dataset {name!r} ({split})"
    try:
        rows = datasets.load_dataset(name, config, split=split)
    except Exception as error:  # its own kinds of error differ between releases and file formats
        raise DataError(f"{source} cannot be loaded: {type(error).__name__}: {error}") from error
    names = {}
    for column, feature in rows.features.items():
        if isinstance(feature, datasets.Image):
            rows = rows.cast_column(column, datasets.Image(decode=False))
        # a list of classes (tags, several labels) wraps its ClassLabel
        inner = getattr(feature, "feature", feature)
        if isinstance(inner, datasets.ClassLabel):
            names[column] = tuple(inner.names)
    records = (Record(f"{source}, row {number}", row) for number, row in enumerate(rows, 1))
    return Table(source, tuple(rows.column_names), records, names)
