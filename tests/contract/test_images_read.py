"""Images: every mode becomes RGB in one way, what is broken is refused with its place, ids are those of the bytes."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray

from edgewise.data import PARTS, Row, Splits, load_rows, load_splits, part_of
from edgewise.errors import DataError
from edgewise.images import MAX_PIXELS, check_image, open_rgb
from edgewise.plan import DataSpec
from edgewise.types import Task

TASK: Task = "image-classification"
SHARES: dict[str, float | str] = {"train": 0.5, "val": 0.3, "confirm": 0.2}


def encode(image: PIL.Image.Image, kind: str = "png", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def picture(seed: int, shape: tuple[int, ...] = (9, 7, 3)) -> PIL.Image.Image:
    return PIL.Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def pixels(data: bytes | Path) -> NDArray[np.uint8]:
    image = open_rgb(data)
    assert image.mode == "RGB"
    return np.asarray(image)


COLOUR = picture(0)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "1", "P", "CMYK"])
def test_every_mode_becomes_rgb_as_transformers_makes_it(mode: str) -> None:
    from transformers.image_utils import load_image

    image = COLOUR.convert(mode)
    data = encode(image, "tiff" if mode == "CMYK" else "png")
    wanted = np.asarray(load_image(PIL.Image.open(io.BytesIO(data))))
    assert pixels(data).shape == (9, 7, 3)
    assert np.array_equal(pixels(data), wanted)


def test_transparent_palette_and_one_pixel() -> None:
    data = encode(COLOUR.convert("P"), transparency=b"\x00" * 128 + b"\xff" * 128)
    assert np.array_equal(pixels(data), np.asarray(COLOUR.convert("P").convert("RGB")))
    assert pixels(encode(PIL.Image.new("L", (1, 1), 77))).tolist() == [[[77, 77, 77]]]


def test_16_bits_are_scaled_and_not_clipped() -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    for kind in ("png", "tiff"):
        found = pixels(encode(PIL.Image.fromarray(values), kind))
        assert np.abs(found[:, :, 0] - values / 257).max() <= 0.51
        assert np.array_equal(found[:, :, 0], found[:, :, 2])
    with pytest.raises(DataError, match=r"x\.tif: pixels are floating-point numbers"):
        open_rgb(encode(PIL.Image.fromarray(np.zeros((2, 2), np.float32)), "tiff"), "x.tif")


def test_orientation_of_the_camera_is_followed() -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    assert open_rgb(encode(COLOUR, exif=exif)).size == (9, 7)


def bomb(width: int, height: int) -> bytes:
    """A PNG of some bytes that claims to be that large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0" * 99)) + chunk(b"IEND", b"")
    )


PNG, JPEG = encode(picture(1, (64, 64, 3))), encode(picture(1, (64, 64, 3)), "jpeg")
BROKEN = {
    "truncated PNG": (PNG[: len(PNG) // 2], r"the image cannot be (decoded|read)"),
    "truncated JPEG": (JPEG[: len(JPEG) // 2], r"the image cannot be decoded: .*truncated"),
    "header alone": (PNG[:20], r"no image|cannot be read: Truncated"),
    "a text": (b"hello", r"5 bytes that are no image of a known format"),
    "one byte changed": (PNG[:100] + bytes([PNG[100] ^ 255]) + PNG[101:], r"cannot be (decoded|read)"),
    "a bomb": (bomb(20_000, 20_000), rf"expected at most {MAX_PIXELS} pixels|exceeds limit"),
    "a smaller bomb": (bomb(10_000, 10_000), rf"10000 x 10000 pixels; expected at most {MAX_PIXELS}"),
    "no size": (bomb(0, 5), r"cannot be|no image"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_broken_is_refused_with_its_place(tmp_path: Path, what: str) -> None:
    data, message = BROKEN[what]
    with pytest.raises(DataError, match=message) as caught:
        check_image(data, "here.parquet, row 5")
    assert str(caught.value).startswith("here.parquet, row 5: ")
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(DataError, match=r"a\.png: "):
        open_rgb(tmp_path / "a.png")


def test_header_alone_is_read_where_decoding_would_be_too_much() -> None:
    assert check_image(PNG[: len(PNG) // 2], decode=False) == 64 * 64
    assert check_image(PNG) == 64 * 64


# ---- rows


def write_folder(folder: Path, count: int = 24) -> dict[str, bytes]:
    """Images of two labels; by their sha256."""
    found = {}
    for i in range(count):
        data = encode(picture(100 + i), "png" if i % 2 else "jpeg")
        file = folder / ("cat", "dog with hat")[i % 2] / f"{i}.{'PNG' if i % 2 else 'jpg'}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        found[hashlib.sha256(data).hexdigest()] = data
    (folder / "README.txt").write_text("not an image")
    (folder / "cat" / ".hidden.png").write_bytes(b"not an image")
    (folder / "cat" / "Thumbs.db").write_bytes(b"not an image")
    return found


def load(path: Path | str, **options: Any) -> Splits:
    return load_splits(DataSpec(path=str(path), split=options.pop("split", SHARES), **options), TASK, Path)


def identity(splits: Splits) -> dict[str, list[tuple[str, str | None]]]:
    return {part: [(row.image_sha256, row.label) for row in splits.part(part)] for part in PARTS}


def test_folder_tables_and_datasets_give_the_same_rows(tmp_path: Path) -> None:
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    bytes_of = write_folder(tmp_path / "set")
    folder = load(tmp_path / "set")
    rows = [row for part in PARTS for row in folder.part(part)]
    assert {row.image_sha256 for row in rows} == set(bytes_of)
    assert folder.labels == ("cat", "dog with hat")
    for part in PARTS:
        for row in folder.part(part):
            assert row.id == row.image_sha256[:16]
            assert part_of(row.image_sha256, {"train": 0.5, "val": 0.3, "confirm": 0.2}) == part
    listed = [(row.image, row.label) for row in load_rows(tmp_path / "set", task=TASK, label="label")]
    assert len(listed) == 24
    files = [Path(str(image)) for image, _ in listed]
    (tmp_path / "set.csv").write_text(
        "kind,file\n"
        + "".join(f"{label},{file.relative_to(tmp_path)}\n" for file, (_, label) in zip(files, listed, strict=True))
    )
    lines = [json.dumps({"image": str(file), "label": label}) for file, (_, label) in zip(files, listed, strict=True)]
    (tmp_path / "set.jsonl").write_text("\n".join(lines))
    labels = [label for _, label in listed]
    data = [file.read_bytes() for file in files]
    pq.write_table(pa.table({"image": data, "label": labels}), tmp_path / "bytes.parquet")
    structs = [
        {"bytes": None if i % 2 else d, "path": str(f)} for i, (f, d) in enumerate(zip(files, data, strict=True))
    ]
    pq.write_table(pa.table({"image": structs, "label": labels}), tmp_path / "struct.parquet")
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog with hat"])}
    )
    datasets.Dataset.from_dict({"image": structs, "label": labels}, features=features).to_parquet(
        tmp_path / "id" / "train.parquet"
    )
    spec = DataSpec(dataset=str(tmp_path / "id"), split=SHARES)
    for found in (
        load(tmp_path / "set.csv", image="file", label="kind"), load(tmp_path / "set.jsonl"),
        load(tmp_path / "bytes.parquet"), load(tmp_path / "struct.parquet"), load_splits(spec, TASK, Path),
    ):  # fmt: skip
        assert identity(found) == identity(folder)
        assert found.labels == folder.labels


def test_the_same_image_under_two_names_stands_in_one_part(tmp_path: Path) -> None:
    write_folder(tmp_path / "set")
    for file in list((tmp_path / "set" / "cat").glob("*.jpg")):
        file.with_name(f"copy of {file.name}").write_bytes(file.read_bytes())
    splits = load(tmp_path / "set")
    seen = {part: {row.image_sha256 for row in splits.part(part)} for part in PARTS}
    assert sum(map(len, seen.values())) == len(set().union(*seen.values())) == 24
    assert sum(len(splits.part(part)) for part in PARTS) == 36


def break_image(folder: Path, part: str) -> Path:
    """Truncate images until one stands in that part."""
    for file in sorted(folder.glob("*/[0-9]*")):
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) - 60])
        if part_of(Row(image=file).image_sha256, {"train": 0.5, "val": 0.3, "confirm": 0.2}) == part:
            return file
        file.write_bytes(whole)
    raise AssertionError(part)


@pytest.mark.parametrize("part", PARTS)
def test_truncated_images_are_found_before_training(tmp_path: Path, part: str) -> None:
    write_folder(tmp_path / "set")
    file = break_image(tmp_path / "set", part)
    with pytest.raises(DataError, match=r"the image cannot be") as caught:
        load(tmp_path / "set")
    assert str(caught.value).startswith(str(file))


def test_bad_folders_and_paths(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: no folder; expected a folder of images"):
        load(tmp_path / "nowhere", format="folder")
    (tmp_path / "set").mkdir()
    with pytest.raises(DataError, match=r"set: no folder in it; expected one folder a label"):
        load(tmp_path / "set")
    (tmp_path / "set" / "cat").mkdir()
    with pytest.raises(DataError, match=r"cat: no image in it; expected files with \.png"):
        load(tmp_path / "set")
    (tmp_path / "a.csv").write_text("image,label\ncat/1.png,cat\n")
    with pytest.raises(DataError, match=r"a\.csv:2: column 'image' is 'cat/1\.png'; no such file: .*cat/1\.png"):
        load(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_text("image,label\n,cat\n")
    with pytest.raises(DataError, match=r"b\.csv:2: column 'image' is empty; expected the path or the bytes"):
        load(tmp_path / "b.csv")
    (tmp_path / "c.jsonl").write_text('{"image": [1, 2], "label": "cat"}')
    with pytest.raises(DataError, match=r"c\.jsonl:1: column 'image' is \[1, 2\]; expected the path or the bytes"):
        load(tmp_path / "c.jsonl")
    (tmp_path / "d.txt").write_text("a text")
    with pytest.raises(DataError, match=r"set: a folder; expected a file"):
        load(tmp_path / "set", format="csv")
