"""Rows of every task beyond one label a text: what is read, what is refused, and that digests cover all of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgewise.data import PARTS, Row, Splits, digest_rows, load_rows, load_splits, part_of
from edgewise.errors import DataError
from edgewise.plan import DataSpec
from edgewise.types import Task

SHARES: dict[str, float | str] = {"train": 0.5, "val": 0.3, "confirm": 0.2}
TEXTS = [f"text number {i}" for i in range(60)]
TOKENS: Task = "token-classification"
WRITE: Task = "text2text-generation"


def jsonl(file: Path, rows: Sequence[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return file


def load(file: Path, task: Task = "text-classification", **options: Any) -> Splits:
    options.setdefault("split", SHARES)
    return load_splits(DataSpec(path=str(file), **options), task, Path)


def everything(splits: Splits) -> list[Row]:
    return [row for part in PARTS for row in splits.part(part)]


# ---- several labels


KINDS = [("b", "a"), (), ("a",), ("c", "a", "b"), ("10",), ("2", "10")]


def test_several_labels_from_lists_and_from_texts(tmp_path: Path) -> None:
    rows = [(text, KINDS[i % 6]) for i, text in enumerate(TEXTS)]
    lists = load(
        jsonl(tmp_path / "a.jsonl", [{"text": t, "label": list(k)} for t, k in rows]),
        problem_type="multi_label_classification",
    )
    (tmp_path / "a.csv").write_text("text,label\n" + "".join(f"{t},{' | '.join(k)}\n" for t, k in rows))
    texts = load(tmp_path / "a.csv", problem_type="multi_label_classification")
    assert lists == texts
    assert lists.labels == ("10", "2", "a", "b", "c")
    expected = {text: tuple(sorted(kinds)) for text, kinds in rows}
    assert {row.text: row.labels for row in everything(lists)} == expected
    assert all(row.label is None and row.number is None for row in everything(lists))


def test_several_labels_from_columns_of_0_and_1(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(
        "text,rude,kind\n" + "".join(f"{t},{i % 2},{(0, 'true', 'False')[i % 3]}\n" for i, t in enumerate(TEXTS))
    )
    splits = load(tmp_path / "a.csv", label=("rude", "kind"), problem_type="multi_label_classification")
    assert splits.labels == ("kind", "rude")
    wanted = {t: ("kind",) * (i % 3 == 1) + ("rude",) * (i % 2) for i, t in enumerate(TEXTS)}
    assert {row.text: row.labels for row in everything(splits)} == wanted
    assert load_rows(
        tmp_path / "a.csv", label=("rude", "kind"), problem_type="multi_label_classification"
    )[1].labels == ("kind", "rude")  # fmt: skip


def test_regression(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,score\n" + "".join(f"{t},{i / 4}\n" for i, t in enumerate(TEXTS)))
    splits = load(tmp_path / "a.csv", label="score", problem_type="regression")
    assert splits.labels == ()
    assert {row.text: row.number for row in everything(splits)} == {t: i / 4 for i, t in enumerate(TEXTS)}
    (tmp_path / "b.csv").write_text("text,score\n" + "".join(f"{t},1.5\n" for t in TEXTS))
    with pytest.raises(DataError, match=r"column 'score': all \d+ rows of train have 1\.5; expected two numbers"):
        load(tmp_path / "b.csv", label="score", problem_type="regression")


# ---- tags


SENTENCES = [
    (["Anna", "lives", "in", "New", "York"], ["B-PER", "O", "O", "B-LOC", "I-LOC"]),
    (["漢字", "by", "Émile"], ["O", "O", "B-PER"]),
] * 30


def sentences() -> list[tuple[list[str], list[str]]]:
    return [([*tokens, str(i)], [*tags, "O"]) for i, (tokens, tags) in enumerate(SENTENCES)]


def test_tags_are_the_same_from_every_format(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = sentences()
    jsonl(tmp_path / "a.jsonl", [{"tokens": w, "tags": t} for w, t in rows])
    pq.write_table(pa.table({"tokens": [w for w, _ in rows], "tags": [t for _, t in rows]}), tmp_path / "a.parquet")
    blocks = ["\n".join(f"{w}\t{t}" for w, t in zip(*row, strict=True)) for row in rows]
    (tmp_path / "a.bio").write_text("\r\n\r\n".join(blocks).replace("\n", "\r\n").replace("\r\r", "\r"))
    wide = "\n\n\n".join(block.replace("\t", " NN x ") for block in blocks)
    (tmp_path / "a.conll").write_text(f"-DOCSTART- -X- O O\n\n{wide}\n")
    found = {file.suffix: load(file, TOKENS) for file in tmp_path.iterdir()}
    assert set(found) == {".jsonl", ".parquet", ".bio", ".conll"}
    assert all(splits == found[".jsonl"] for splits in found.values())
    splits = found[".jsonl"]
    assert splits.labels == ("O", "B-LOC", "B-PER", "I-LOC")
    assert {(row.tokens, row.tags) for row in everything(splits)} == {(tuple(w), tuple(t)) for w, t in rows}
    for row in everything(splits):
        assert tuple(row.text.split(" ")) == row.tokens
        assert part_of(row.text, {"train": 0.5, "val": 0.3, "confirm": 0.2}) in PARTS


def test_tags_as_numbers_of_a_dataset(tmp_path: Path) -> None:
    import datasets

    names = ["O", "B-LOC", "B-PER", "I-LOC", "unused"]
    features = datasets.Features(
        {
            "words": datasets.Sequence(datasets.Value("string")),
            "ner": datasets.Sequence(datasets.ClassLabel(names=names)),
        }
    )
    rows = sentences()
    data = {"words": [w for w, _ in rows], "ner": [[names.index(t) for t in tags] for _, tags in rows]}
    parts = datasets.DatasetDict({"train": datasets.Dataset.from_dict(data, features=features)})
    parts["train"].to_parquet(tmp_path / "id" / "train.parquet")
    spec = DataSpec(dataset=str(tmp_path / "id"), tokens="words", tags="ner", split=SHARES)
    splits = load_splits(spec, TOKENS, Path)
    assert splits.labels == tuple(names)
    assert {(row.tokens, row.tags) for row in everything(splits)} == {(tuple(w), tuple(t)) for w, t in rows}


def test_tags_that_train_never_shows(tmp_path: Path) -> None:
    at = {part: next(str(i) for i in range(500) if part_of(f"odd {i}", SHARES) == part) for part in PARTS}  # type: ignore[arg-type]
    rows = [{"tokens": w, "tags": t} for w, t in sentences()]
    rare = [{"tokens": ["odd", at[part]], "tags": ["B-ODD", "O"]} for part in ("val", "confirm")]
    file = jsonl(tmp_path / "a.jsonl", rows + rare)
    with pytest.raises(DataError, match=r"tag 'B-ODD' stands 1 times in val and never in train.*unseen: leave_out"):
        load(file, TOKENS)
    splits = load(file, TOKENS, unseen="leave_out")
    assert splits.dropped == 2
    assert "B-ODD" not in splits.labels
    assert splits.train == load(jsonl(tmp_path / "b.jsonl", rows), TOKENS).train


# ---- text


def test_plain_text_a_row_a_line(tmp_path: Path) -> None:
    lines = ["first line", "", "   ", "tab\tand, comma", "\ufeffno mark", "x" * 100_000]
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    rows = load_rows(tmp_path / "a.txt", task="text-generation")
    assert [row.text for row in rows] == ["first line", "tab\tand, comma", "\ufeffno mark", "x" * 100_000]
    (tmp_path / "b.log").write_text("\n".join(TEXTS))
    splits = load(tmp_path / "b.log", "text-generation", format="text")
    assert splits.labels == ()
    assert {row.text for row in everything(splits)} == set(TEXTS)
    (tmp_path / "c.csv").write_text("id,body\n" + "".join(f"{i},{t}\n" for i, t in enumerate(TEXTS)))
    assert load(tmp_path / "c.csv", "text-generation", text="body") == splits


def test_text_to_text(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("word\tsaid\n" + "".join(f"{t}\t{t.upper()}\n" for t in TEXTS))
    splits = load(tmp_path / "a.tsv", WRITE, text="word", target="said")
    assert splits.labels == ()
    assert {row.text: row.target for row in everything(splits)} == {t: t.upper() for t in TEXTS}


# ---- slices, digests, ids


def test_slices_are_kept_as_texts(tmp_path: Path) -> None:
    rows = [{"text": t, "label": "ab"[i % 2], "year": float(i % 3), "ok": i % 2 == 0} for i, t in enumerate(TEXTS)]
    found = everything(load(jsonl(tmp_path / "a.jsonl", rows), slices=("year", "ok")))
    wanted = {t: (("year", str(i % 3)), ("ok", str(i % 2 == 0).lower())) for i, t in enumerate(TEXTS)}
    assert {row.text: row.slices for row in found} == wanted
    with pytest.raises(DataError, match=r"no column 'yaer': did you mean 'year'"):
        load(tmp_path / "a.jsonl", slices=("yaer",))


def test_digest_covers_every_field_and_plain_rows_keep_theirs() -> None:
    # computed by the first release: stores on disk refer to it
    assert digest_rows([Row("a", None, "x"), Row("b", "c", None)]) == (
        "sha256:7a7837e8bf1de9c692794c1c431d2c308ab18be6e76be7c1da7f9cd889df869e"
    )
    assert Row("a fine film").id == "047b3b645bd2e68b"
    row = Row("a b")
    changed = [
        replace(row, text="a c"), replace(row, text_pair="p"), replace(row, label="l"), replace(row, labels=()),
        replace(row, labels=("l",)), replace(row, number=0.0), replace(row, tokens=("a", "b")),
        replace(row, tags=("O",)),
        replace(row, target="t"), replace(row, image=b"i"), replace(row, slices=(("c", "v"),)), row,
    ]  # fmt: skip
    assert len({digest_rows([r]) for r in changed}) == len(changed)
    # the answer is not part of what a row is known by
    assert {r.id for r in changed[2:9]} == {row.id}


# ---- bad input


MULTI = {"problem_type": "multi_label_classification"}
NUMBER = {"problem_type": "regression"}
BAD: dict[str, tuple[str, str | list[dict[str, Any]], Task, dict[str, Any], str]] = {
    # what is wrong: (file name, content, task, options, what the message must match)
    "columns of another task": ("a.csv", "text,label\na,b\n", TOKENS, {},
        r"a\.csv: no column 'tokens': .*\(token-classification needs tokens, tags; there are text, label\)"),
    "no target": ("a.csv", "text,label\na,b\n", WRITE, {},
        r"no column 'target'.*text2text-generation needs text, target"),
    "no image": ("a.csv", "text,label\na,b\n", "image-classification", {}, r"no column 'image'"),
    "fewer tags": ("a.jsonl", [{"tokens": ["a", "b"], "tags": ["O"]}], TOKENS, {},
        r"a\.jsonl:1: 2 words in column 'tokens' and 1 tags in column 'tags'"),
    "no words": ("a.jsonl", [{"tokens": [], "tags": []}], TOKENS, {}, r":1: column 'tokens' is an empty list"),
    "a text for words": ("a.jsonl", [{"tokens": "a b", "tags": ["O"]}], TOKENS, {},
        r"'tokens' is 'a b'; expected a list"),
    "an empty word": ("a.jsonl", [{"tokens": ["a", " "], "tags": ["O", "O"]}], TOKENS, {}, r"'tokens'\[1\] is empty"),
    "two words in one": ("a.jsonl", [{"tokens": ["a b"], "tags": ["O"]}], TOKENS, {},
        r"'tokens'\[0\] is 'a b'; .*no space"),
    "a number for a tag": ("a.jsonl", [{"tokens": ["a"], "tags": [3]}], TOKENS, {},
        r"'tags'\[0\] is 3; expected a text"),
    "no tag in a line": ("a.bio", "a O\nb\n", TOKENS, {},
        r"a\.bio:2: 1 fields; expected 2: a word, a tab or space, its tag"),
    "fields differ": ("a.conll", "a x O\nb O\n", TOKENS, {}, r"a\.conll:2: 2 fields; expected 3"),
    "labels no list": ("a.jsonl", [{"text": "a", "label": 3}], "text-classification", MULTI,
        r":1: column 'label' is 3; expected a list of labels, or labels separated by '\|'"),
    "labels with commas": ("a.csv", "text,label\n" + "".join(f'{t},"a, b"\n' for t in TEXTS),
        "text-classification", MULTI, r"no row has two labels, and one is 'a, b'; separate labels by '\|'"),
    "neither 0 nor 1": ("a.csv", "text,a,b\nx,1,2\n", "text-classification", {**MULTI, "label": ("a", "b")},
        r":2: column 'b' is '2'; expected 0 or 1"),
    "a label that never holds": ("a.csv", "text,a,b\n" + "".join(f"{t},1,0\n" for t in TEXTS), "text-classification",
        {**MULTI, "label": ("a", "b")}, r"column 'b' is 0 in all rows of train; leave it out of label"),
    "no label holds": ("a.csv", "text,label\n" + "".join(f"{t},\n" for t in TEXTS), "text-classification", MULTI,
        r"none of the \d+ rows of train has a label"),
    "number NaN": ("a.csv", "text,label\na,nan\n", "text-classification", NUMBER,
        r":2: column 'label' is 'nan'; expected a finite"),
    "number infinite": ("a.jsonl", '{"text": "a", "label": 1e999}', "text-classification", NUMBER, r"'label' is inf"),
    "a word for a number": ("a.csv", "text,label\na,b\n", "text-classification", NUMBER,
        r"'label' is 'b'; expected a finite"),
    "empty target": ("a.csv", "text,target\na, \n", WRITE, {}, r":2: column 'target' is empty"),
    "half a character": ("a.jsonl", '{"text": "a\\ud800b"}', "text-generation", {},
        r"':? ?.*'\\ud800' at character 1.*UTF-8"),
    "key twice": ("a.jsonl", '{"text": "a", "text": "b"}', "text-generation", {},
        r"a\.jsonl:1: .*key 'text' stands twice"),
    "not UTF-8": ("a.txt", "", "text-generation", {}, r"a\.txt:2: byte 0xe9 at offset 8 is not UTF-8"),
    "no lines": ("a.txt", "\n \n", "text-generation", {}, r"a\.txt: it has no rows; expected rows with text"),
    "columns of plain text": ("a.txt", "a", "text-generation", {"text": "body"}, r"no column 'body': known: text"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_bad_rows_name_place_and_value(tmp_path: Path, what: str) -> None:
    name, content, task, options, message = BAD[what]
    if isinstance(content, list):
        jsonl(tmp_path / name, content)
    else:
        (tmp_path / name).write_bytes(b"fine\ncaf\xe9" if what == "not UTF-8" else content.encode())
    with pytest.raises(DataError, match=message) as caught:
        load(tmp_path / name, task, **options)
    assert str(tmp_path / name) in str(caught.value)


def test_parquet_columns_that_stand_twice(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(
        pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"]), tmp_path / "a.parquet"
    )
    with pytest.raises(DataError, match=r"a\.parquet: column 'text' stands twice"):
        load(tmp_path / "a.parquet", "text-generation")


def test_a_task_without_rows(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(DataError, match=r"task 'feature-extraction': rows can be read for text-classification, "):
        load(tmp_path / "a.txt", "feature-extraction")
