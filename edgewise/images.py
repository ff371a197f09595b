"""Image files and bytes, checked and opened as RGB: one way for training, calibration, measuring and answering.

Needs Pillow (`pip install 'edgewise[image]'`), imported on first use.
"""

from __future__ import annotations

import io
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from edgewise.errors import DataError, need_extra

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
MAX_PIXELS = 89_478_485
"""Width x height; more is taken for a decompression bomb (Pillow's own limit: 256 MiB of RGB)."""
_ORIENTATION = 0x0112
_LONGEST_NAME = 200
_DECODING = Lock()
"""Held while an image is decoded that Pillow opened for somebody else, who may have given it to two threads."""


def open_rgb(source: Path | bytes | Image, place: str = "") -> Image:
    """Decode an image file, its encoded bytes, or what Pillow opened, to 8-bit RGB; of several frames the first.

    Turned as its EXIF orientation says. Greyscale, palette, CMYK and 1-bit images are converted, 16-bit ones scaled to
    8 bits, an alpha channel is dropped: as `transformers.image_utils.load_image` does, but for 16 bits, which it clips.

    An image of Pillow's that is RGB and upright already comes back itself, not a copy: do not write into it.

    `place` stands in errors before the message: 'images.csv:12'.

    Raises DataError for what is missing, no image, truncated, empty or larger than MAX_PIXELS; MissingExtraError
    without Pillow.
    """
    image = _open(source, place)
    try:
        if image is source:
            with _DECODING:
                image.load()
        else:
            image.load()
        return _to_rgb(_upright(image), source, place)
    except DataError:
        raise
    except Exception as error:  # a broken file makes Pillow's decoders raise whatever they stumble over
        raise DataError(
            f"{_name(source, place)}: the image cannot be decoded: {error}; replace or remove it"
        ) from error


def check_image(source: Path | bytes, place: str = "", *, decode: bool = True) -> int:
    """Width x height of an image that is sound; `decode` False reads its header only.

    Raises as `open_rgb`.
    """
    image = open_rgb(source, place) if decode else _open(source, place)
    return image.width * image.height


def _open(source: Path | bytes | Image, place: str) -> Image:
    """The image with its header read, its pixels not."""
    try:
        import PIL.Image
    except ImportError as error:
        raise need_extra("image", error) from error
    image = source if isinstance(source, PIL.Image.Image) else _decoder(source, place)
    if image.width * image.height > MAX_PIXELS:
        raise DataError(
            f"{_name(source, place)}: {image.width} x {image.height} pixels; expected at most {MAX_PIXELS}: scale it "
            "down"
        )
    if not image.width * image.height:
        raise DataError(f"{_name(source, place)}: {image.width} x {image.height} pixels: it is empty; leave it out")
    return image


def _decoder(source: Path | bytes, place: str) -> Image:
    import PIL.Image

    name = _name(source, place)
    try:
        data = source.read_bytes() if isinstance(source, Path) else source
    except OSError as error:
        raise DataError(f"{name}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # a null byte, or a lone surrogate, in the path
        raise DataError(f"{name}: no path to a file: {error}") from error
    bombs = (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning)
    try:
        # Pillow's warnings of a large image are let through: to silence them would change the filters of all threads.
        return PIL.Image.open(io.BytesIO(data))
    except bombs as error:
        raise DataError(f"{name}: {error}; expected at most {MAX_PIXELS} pixels: scale it down") from error
    except PIL.UnidentifiedImageError as error:
        raise DataError(
            f"{name}: {len(data)} bytes that are no image of a known format (it may be truncated); replace or remove it"
        ) from error
    except Exception as error:  # as in open_rgb
        raise DataError(f"{name}: the image cannot be read: {error}; replace or remove it") from error


def _upright(image: Image) -> Image:
    """Turned as the camera was; itself where it stands upright, since Pillow would copy it."""
    if image.getexif().get(_ORIENTATION, 1) == 1:
        return image
    from PIL import ImageOps

    return ImageOps.exif_transpose(image)


def _to_rgb(image: Image, source: Path | bytes | Image, place: str) -> Image:
    if image.mode == "RGB":
        return image
    if image.mode == "I" or image.mode.startswith("I;16"):
        # convert('RGB') would clip every value above 255; 65,535 / 257 is 255
        return image.convert("I").point(lambda value: value * (1 / 257) + 0.5).convert("L").convert("RGB")
    if image.mode == "F":
        raise DataError(f"{_name(source, place)}: pixels are floating-point numbers; save it with 8 or 16 bits")
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")  # the palette may carry transparency, which RGB cannot take directly
    return image.convert("RGB")


def _name(source: Path | bytes | Image, place: str) -> str:
    file = str(source) if isinstance(source, Path) else ""
    if len(file) > _LONGEST_NAME:
        file = file[: _LONGEST_NAME - 3] + "..."
    if not file.isprintable():  # a newline, or a lone surrogate, which cannot be printed
        file = ascii(file)
    return f"{place}: {file}" if place and file and file != place else place or file or "image"
