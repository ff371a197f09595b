"""Rows: every format, the split, and every kind of bad input with the place that its error must name."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise.data import PARTS, Row, Splits, digest_rows, hash_share, load_rows, load_splits, part_of, split_key
from edgewise.errors import DataError
from edgewise.plan import DataSpec, LabelRule

SHARES = {"train": 0.5, "val": 0.3, "confirm": 0.2}
THREE = [(f"sentence number {i} of the file", ("good", "bad", "odd")[i % 3]) for i in range(90)]


def write_csv(file: Path, rows: list[tuple[str, ...]], header: str | None = "text,label") -> Path:
    lines = ([header] if header else []) + [",".join(row) for row in rows]
    file.write_bytes(("\r\n".join(lines) + "\r\n").encode())
    return file


def load(file: Path, **options: Any) -> Splits:
    options.setdefault("split", SHARES)
    return load_splits(DataSpec(path=str(file), **options), "text-classification", Path)


def everything(splits: Splits) -> list[Row]:
    return [row for part in PARTS for row in splits.part(part)]


def test_formats_give_the_same_rows(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [(f'"quoted" comma, tab\tand é {i}', label) for i, (_, label) in enumerate(THREE)]
    (tmp_path / "a.csv").write_text(
        "text,label\n" + "".join(f'"{t.replace(chr(34), chr(34) * 2)}",{n}\n' for t, n in rows)
    )
    (tmp_path / "a.tsv").write_text(
        "label\ttext\n" + "".join(f'{n}\t"{t.replace(chr(34), chr(34) * 2)}"\n' for t, n in rows)
    )
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": t, "label": n}) for t, n in rows) + "\n\n")
    pq.write_table(pa.table({"text": [t for t, _ in rows], "label": [n for _, n in rows]}), tmp_path / "a.parquet")
    (tmp_path / "bom.csv").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "a.csv").read_bytes())
    found = {file.name: load(file) for file in sorted(tmp_path.iterdir())}
    assert set(everything(found["a.csv"])) == {Row(t, None, n) for t, n in rows}
    assert len(everything(found["a.csv"])) == 90
    assert {digest_rows(everything(splits)) for splits in found.values()} == {digest_rows(everything(found["a.csv"]))}
    assert found["a.csv"].labels == ("bad", "good", "odd")


def test_split_does_not_depend_on_the_order_of_the_file(tmp_path: Path) -> None:
    shuffled = THREE.copy()
    random.Random(1).shuffle(shuffled)
    one = load(write_csv(tmp_path / "one.csv", THREE))
    assert one == load(write_csv(tmp_path / "two.csv", shuffled))
    assert one == load(write_csv(tmp_path / "three.csv", sorted(THREE, key=lambda row: row[1])))


def test_parts_are_disjoint_and_near_their_shares(tmp_path: Path) -> None:
    rows = [(f"a text {i % 1500}", "ab"[i % 2]) for i in range(3000)]
    splits = load(write_csv(tmp_path / "a.csv", rows))
    texts = {part: {split_key(row.text) for row in splits.part(part)} for part in PARTS}
    assert not texts["train"] & texts["val"] | texts["train"] & texts["confirm"] | texts["val"] & texts["confirm"]
    assert len(everything(splits)) == 3000
    for part in PARTS:
        # 1,500 independent draws: four standard deviations around the share
        share = SHARES[part]
        assert abs(len(texts[part]) / 1500 - share) < 4 * (share * (1 - share) / 1500) ** 0.5
        assert all(part_of(row.text, SHARES) == part for row in splits.part(part))


@given(st.text(), st.sampled_from(["", " ", "\n", "\t "]))
def test_case_and_spacing_do_not_move_a_text(text: str, space: str) -> None:
    assert 0 <= hash_share(text) < 1
    assert part_of(space + text + space, SHARES) == part_of(text, SHARES)
    assert part_of(text.casefold(), SHARES) == part_of(text, SHARES)


def test_growing_the_file_moves_no_row(tmp_path: Path) -> None:
    small, large = load(write_csv(tmp_path / "s.csv", THREE[:45])), load(write_csv(tmp_path / "l.csv", THREE))
    assert all(set(small.part(part)) <= set(large.part(part)) for part in PARTS)


def test_rows_takes_a_mixed_and_fixed_sample_of_a_sorted_file(tmp_path: Path) -> None:
    rows = [(f"text {i}", "first" if i < 1000 else "last") for i in range(2000)]
    file = write_csv(tmp_path / "sorted.csv", rows)
    whole, part = load(file), load(file, rows={"train": 200, "val": 50})
    assert (part.train, part.val) == (whole.train[:200], whole.val[:50])
    assert part.confirm == whole.confirm
    assert 60 < Counter(row.label for row in part.train)["first"] < 140


def test_rule_makes_labels_from_numbers(tmp_path: Path) -> None:
    rows = [(f"{score:.2f}", f"a film of {score:.2f}") for score in [x / 20 for x in range(-80, 81)]]
    file = write_csv(tmp_path / "scores.csv", rows, header=None)
    rule = LabelRule("score", 0.5, drop=(0.0, 1.0), names=("bad", "good"))
    splits = load(file, columns=("score", "text"), label=rule)
    assert splits.labels == ("bad", "good")
    assert splits.dropped == 2
    for row in everything(splits):
        assert row.label == ("good" if float(row.text.split()[-1]) > 0.5 else "bad")
    assert {row.text for row in everything(splits)} == {text for _, text in rows} - {"a film of 0.00", "a film of 1.00"}


def test_quotation_marks_as_characters(tmp_path: Path) -> None:
    file = tmp_path / "a.tsv"
    file.write_text("".join(f'"{i} an unclosed quotation\t{i % 2}\n' for i in range(60)))
    splits = load(file, columns=("text", "label"), quoting=False)
    assert len(everything(splits)) == 60
    assert all(row.text.startswith('"') for row in everything(splits))
    assert splits.labels == ("0", "1")
    with pytest.raises(DataError, match=r"a\.tsv:1: .*quoting: false"):
        load(file, columns=("text", "label"))


def test_whole_numbers_stay_labels_and_sort_as_numbers(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    labels = [i % 12 for i in range(600)]
    texts = [f"text {i}" for i in range(600)]
    pq.write_table(pa.table({"text": texts, "label": labels}), tmp_path / "int.parquet")
    pq.write_table(pa.table({"text": texts, "label": [float(n) for n in labels]}), tmp_path / "float.parquet")
    expected = tuple(str(i) for i in range(12))
    assert load(tmp_path / "int.parquet").labels == load(tmp_path / "float.parquet").labels == expected


def test_pairs_and_long_fields(tmp_path: Path) -> None:
    long = "word " * 60_000  # longer than the csv module's own limit of 131,072 characters
    rows = [(f"premise {i // 3} {long if i == 0 else ''}", f"hypothesis {i}", "xy"[i % 2]) for i in range(120)]
    splits = load(write_csv(tmp_path / "a.csv", rows, "text,other,label"), text_pair="other")
    assert len(everything(splits)) == 120
    assert {row.text_pair for row in everything(splits)} == {pair for _, pair, _ in rows}
    premises = {part: {row.text for row in splits.part(part)} for part in PARTS}
    assert not premises["train"] & premises["val"], "a text with several second texts stays in one part"


def test_load_rows_keeps_the_order_of_the_file(tmp_path: Path) -> None:
    file = write_csv(tmp_path / "a.csv", THREE)
    assert load_rows(file) == tuple(Row(text) for text, _ in THREE)
    assert load_rows(str(file), label="label") == tuple(Row(text, None, label) for text, label in THREE)
    with pytest.raises(DataError, match=r"no column 'labl': did you mean 'label'"):
        load_rows(file, label="labl")


SCORE = {"label": LabelRule("score", 0)}
BAD = {
    # what is wrong: (file name, its bytes, options, what the message must match)
    "no column": ("a.csv", b"txt,label\na,b\n", {}, r"a\.csv: no column 'text': did you mean 'txt'"),
    "no label column": ("a.csv", b"text,lable\na,b\n", {}, r"a\.csv: no column 'label': did you mean 'lable'"),
    "no column in a line": ("a.jsonl", b'{"text": "a", "label": "b"}\n{"a": "b"}\n', {}, r"a\.jsonl:2: no column"),
    "empty text": ("a.csv", b"text,label\na,b\n  ,b\n", {}, r"a\.csv:3: column 'text' is empty"),
    "line of the record": ("a.csv", b'text,label\n"a\nb",c\n\n,c\n', {}, r"a\.csv:5: column 'text' is empty"),
    "empty label": ("a.csv", b"text,label\na,b\nc,\n", {}, r"a\.csv:3: column 'label' is empty; expected a label"),
    "null label": ("a.jsonl", b'{"text": "a", "label": null}\n', {}, r"a\.jsonl:1: column 'label' is empty"),
    "label that is a list": ("a.jsonl", b'{"text": "a", "label": ["b"]}\n', {}, r":1: column 'label' is \['b'\]"),
    "label that is a score": ("a.jsonl", b'{"text": "a", "label": 0.5}\n', {}, r":1: column 'label' is 0\.5; .*above"),
    "text that is a number": ("a.jsonl", b'{"text": 5, "label": "b"}\n', {}, r"a\.jsonl:1: column 'text' is 5"),
    "word for a score": ("a.csv", b"text,score\na,1\nb,good\n", SCORE, r":3: column 'score' is 'good'"),
    "score NaN": ("a.csv", b"text,score\na,nan\n", SCORE, r":2: column 'score' is 'nan'"),
    "empty score": ("a.csv", b"text,score\na,\n", SCORE, r":2: column 'score' is ''"),
    "not UTF-8": ("a.csv", b"text,label\na,b\ncaf\xe9,b\n", {}, r"a\.csv:3: byte 0xe9 at offset 18 is not UTF-8"),
    "not UTF-8 after a mark": ("a.csv", b"\xef\xbb\xbftext,label\n\xff", {}, r"a\.csv:2: byte 0xff at offset 14"),
    "UTF-16": ("a.csv", "text,label\na,b\n".encode("utf-16"), {}, r"a\.csv:1: byte 0xff at offset 0 is not UTF-8"),
    "broken JSON": ("a.jsonl", b'{"text": "a", "label": "b"}\n{"text": \n', {}, r"a\.jsonl:2: no valid JSON"),
    "JSON list": ("a.jsonl", b"[1, 2]\n", {}, r"a\.jsonl:1: expected a JSON object, found '\[1, 2\]'"),
    "endless JSON": ("a.jsonl", b"[" * 100_000, {}, r"a\.jsonl:1: no valid JSON"),
    "no Parquet": ("a.parquet", b"text,label\n", {}, r"a\.parquet: no readable Parquet file"),
    "too few fields": ("a.csv", b"text,label\na,b\nc\n", {}, r"a\.csv:3: 1 fields; expected 2 \(text, label\)"),
    "too many fields": ("a.csv", b"text,label\na,b,c\n", {}, r"a\.csv:2: 3 fields; expected 2"),
    "unclosed quotation": ("a.csv", b'text,label\na,b\n"c,d\n', {}, r"a\.csv:3: .*quoting: false"),
    "column twice": ("a.csv", b"text,text\na,b\n", {}, r"a\.csv:1: column 'text' stands twice"),
    "empty file": ("a.csv", b"", {}, r"a\.csv: the file is empty"),
    "header alone": ("a.csv", b"text,label\n", {}, r"a\.csv: it has no rows"),
    "empty JSON Lines": ("a.jsonl", b"\n", {}, r"a\.jsonl: it has no rows"),
    "all dropped": ("a.csv", b"text,score\na,0\n", {"label": LabelRule("score", 0, drop=(0,))}, r"drops all 1 rows"),
    "unknown ending": ("a.xlsx", b"", {}, r"a\.xlsx: the ending '\.xlsx' tells no format; expected \.csv"),
    "columns of JSON Lines": ("a.jsonl", b"", {"columns": ("text", "label")}, r"a\.jsonl: columns names those of"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_bad_input_names_place_and_value(tmp_path: Path, what: str) -> None:
    name, data, options, message = BAD[what]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=message) as caught:
        load(tmp_path / name, **options)
    assert str(tmp_path / name) in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nope\.csv: no such file"):
        load(tmp_path / "nope.csv")


def test_one_class_and_empty_parts(tmp_path: Path) -> None:
    one = write_csv(tmp_path / "one.csv", [(text, "good") for text, _ in THREE])
    with pytest.raises(DataError, match=r"column 'label': all \d+ rows of train have label 'good'; expected two"):
        load(one)
    with pytest.raises(DataError, match=r"no row falls into (val|confirm) \(train"):
        load(
            write_csv(tmp_path / "tiny.csv", THREE[:1] + THREE[:1]), split={"train": 0.98, "val": 0.01, "confirm": 0.01}
        )


@pytest.mark.parametrize("part", ["val", "confirm"])
def test_label_that_train_never_sees(tmp_path: Path, part: str) -> None:
    rare = next(f"rare {i}" for i in range(1000) if part_of(f"rare {i}", SHARES) == part)
    with pytest.raises(DataError, match=rf"label 'rare' stands 1 times in {part} and never in train"):
        load(write_csv(tmp_path / "a.csv", [*THREE, (rare, "rare")]))


def test_asset_is_read_like_a_file() -> None:
    options = {"columns": ("id", "score", "text"), "quoting": False, "label": LabelRule("score", 0, drop=(0,))}
    splits = load(Path("asset:movie-reviews"), **options)
    assert len(everything(splits)) + splits.dropped == 10_605
    assert splits.labels == ("negative", "positive")
    shares = Counter(row.label for row in splits.train)
    assert 0.4 < shares["positive"] / len(splits.train) < 0.6, "the file is sorted by class, a part must not be"
