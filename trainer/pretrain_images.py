"""Images for masked image modelling: read, checked, and brought to the model's size."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise.assets import asset_path
from edgewise.data import hold_out
from edgewise.errors import DataError, nearest
from edgewise.files import digest_json
from edgewise.images import IMAGE_ENDINGS, open_rgb
from edgewise.tables import read_table
from edgewise.trainer.corpus import HOLD_OUT


@dataclass(frozen=True)
class Image:
    """One image, still encoded."""

    place: str
    content: bytes

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.content).hexdigest()


@dataclass(frozen=True)
class Images:
    """Images without labels; what stood twice, byte by byte, stands once."""

    source: str
    items: tuple[Image, ...]
    duplicates: int = 0

    @property
    def digest(self) -> str:
        return digest_json([image.digest for image in self.items])


def read_images(path: str | Path, *, column: str = "image") -> Images:
    """Images of a folder (its folders too) or of a Parquet file's column of encoded images; or asset:NAME.

    column: holds bytes, or {"bytes": ...} as `datasets` writes images.

    Raises DataError where there is none; `pixels` reads them and says which one is broken.
    """
    place = asset_path(str(path).removeprefix("asset:")) if str(path).startswith("asset:") else Path(path)
    found = _folder(place) if place.is_dir() else _parquet(place, column)
    items: dict[str, Image] = {}
    count = 0
    for image in found:
        count += 1
        items.setdefault(image.digest, image)
    if not items:
        raise DataError(f"{path}: no images; expected a folder with {', '.join(IMAGE_ENDINGS)}, or a Parquet file")
    return Images(str(path), tuple(items.values()), count - len(items))


def hold_out_images(images: Images, share: float) -> tuple[tuple[Image, ...], tuple[Image, ...]]:
    """(train, val) images, by a hash of each image's bytes. Raises DataError where a part would be empty."""
    train, val = hold_out(images.items, share, HOLD_OUT, lambda image: image.digest)
    if not train or (share and not val):
        raise DataError(
            f"{images.source}: {len(images.items)} images are too few to hold out {share:.0%} of them; "
            "give more, or set val_share to 0"
        )
    return tuple(train), tuple(val)


def pixels(images: tuple[Image, ...], processor: Any) -> NDArray[np.uint8]:
    """uint8 [images, height, width, 3], resized as the processor resizes; grey and RGBA become RGB.

    Raises DataError for an image that cannot be read to its end, naming it.
    """
    if not images:
        return np.zeros((0, 0, 0, 3), dtype=np.uint8)
    made = [
        processor(
            open_rgb(image.content, image.place),
            do_rescale=False,
            do_normalize=False,
            return_tensors="np",
            input_data_format="channels_last",
        )
        for image in images
    ]
    stack = np.concatenate([m["pixel_values"] for m in made]).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(stack).astype(np.uint8)


def normalized(image: NDArray[np.uint8], processor: Any) -> NDArray[np.float32]:
    """float32 [3, height, width] of uint8 [height, width, 3]: scaled and normalized as the processor does it."""
    scaled = image.astype(np.float32) * np.float32(processor.rescale_factor if processor.do_rescale else 1)
    both = (processor.image_mean, processor.image_std) if processor.do_normalize else (0, 1)
    mean, std = (np.array(v, dtype=np.float32) for v in both)
    result: NDArray[np.float32] = np.ascontiguousarray(((scaled - mean) / std).transpose(2, 0, 1))
    return result


def _folder(folder: Path) -> Iterator[Image]:
    for file in sorted(folder.rglob("*")):
        if file.suffix.lower() in IMAGE_ENDINGS and file.is_file():
            yield Image(str(file), file.read_bytes())


def _parquet(file: Path, column: str) -> Iterator[Image]:
    table = read_table(file, format="parquet")
    if table.columns is not None and column not in table.columns:
        raise DataError(f"{file}: no column {column!r}: {nearest(column, table.columns)}")
    for record in table.records:
        value = record.values[column]
        content = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(content, bytes):
            raise DataError(f"{record.place}: column {column!r} holds no encoded image (PNG, JPEG, …)")
        yield Image(record.place, content)
