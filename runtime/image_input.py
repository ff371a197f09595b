"""Images to pixel values, with Pillow and numpy: what transformers' slow processors give, in less work."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from edgewise.bundle import Bundle, Golden
from edgewise.errors import BundleError, DataError, InputError, need_extra
from edgewise.images import MAX_PIXELS, open_rgb
from edgewise.runtime.image_config import ImageSteps, read_steps

if TYPE_CHECKING:
    from PIL.Image import Image

ImageInput: TypeAlias = "str | Path | bytes | Image | np.ndarray"
"""A path, the bytes of an encoded image, an image of Pillow's, or pixels: uint8 [height, width, 3] (also 1 or 4)."""

INPUT = "pixel_values"
_GOLDEN_SIDE = 64
_LONGEST_PATH = 4096


@dataclass(frozen=True)
class ImageEncoder:
    """Turns images into the array that a graph takes."""

    steps: ImageSteps
    dtype: str
    """Of the graph's input: float32 or float16."""

    @classmethod
    def read(cls, bundle: Bundle) -> ImageEncoder:
        """Read the bundle's preprocessor_config.json.

        Raises BundleError for one that is broken or unknown, or a graph that takes what it does not give;
        MissingExtraError without Pillow.
        """
        try:
            import PIL.Image  # noqa: F401  # said when a model is loaded, not at its first image
        except ImportError as error:
            raise need_extra("image", error) from error
        manifest = bundle.manifest
        taken = {i.name: i for i in manifest.graphs[0].inputs}
        if set(taken) != {INPUT}:
            raise BundleError(f"{bundle.path}: its graph takes {', '.join(taken)}; of an image there is {INPUT} alone")
        shape = taken[INPUT].shape
        if len(shape) != 4:
            raise BundleError(f"{bundle.path}: its graph takes {INPUT} of shape {list(shape)}; expected 4 dimensions")
        channels = shape[1] if isinstance(shape[1], int) else _channels(bundle.path / "config.json")
        if channels not in (1, 3):
            raise BundleError(f"{bundle.path}: its graph takes {channels} channels; images have 3, or 1 where grey")
        file = bundle.path / str(manifest.preprocessing.get("processor", "preprocessor_config.json"))
        steps = read_steps(file, manifest.family, channels)
        for made, wanted in zip(steps.fixed or (), shape[2:], strict=False):
            if isinstance(wanted, int) and made != wanted:
                raise BundleError(
                    f"{file} makes images of {steps.fixed} (height, width), and the graph takes {list(shape)}: export "
                    "the model with the processor that it was trained with"
                )
        return cls(steps, taken[INPUT].dtype)

    def arrays(self, items: Sequence[Any]) -> dict[str, np.ndarray]:
        """[len(items), channels, height, width] by the name that the graph takes; items: `ImageInput`s.

        Raises InputError for what is no image, or cannot be decoded; and for images of different sizes where the
        processor leaves them so.
        """
        images = [self._sized(_rgb(item)) for item in items]
        if not images:
            raise InputError("a batch of no images: give at least one")
        if len({image.size for image in images}) > 1:
            sizes = " and ".join(sorted({f"{i.width} x {i.height}" for i in images})[:3])
            raise InputError(
                f"images of {sizes} pixels, as this model's processor leaves them, do not go through the graph "
                "together: load it with batch_size=1"
            )
        values = np.empty((len(images), len(self.steps.scale), images[0].height, images[0].width), np.float32)
        for image, out in zip(images, values, strict=True):
            np.multiply(self._planes(image), self.steps.scale, out=out)
            np.add(out, self.steps.shift, out=out)
        return {INPUT: values if self.dtype == "float32" else values.astype(self.dtype)}

    def small_png(self, item: Any) -> bytes:
        """An image as a PNG of at most 64 pixels a side, for the golden answers; one that is small stays as it is.

        So does one whose size the processor leaves alone, since the graph may take no other.
        """
        image = _rgb(item)
        longest = max(image.size)
        if longest > _GOLDEN_SIDE and (self.steps.size or self.steps.crop):
            width, height = (max(1, side * _GOLDEN_SIDE // longest) for side in image.size)
            image = image.resize((width, height))
        file = io.BytesIO()
        image.save(file, "PNG", optimize=True)
        return file.getvalue()

    def _sized(self, image: Image) -> Image:
        """Resized and cropped, in the mode that the graph's channels need."""
        steps = self.steps
        if len(steps.scale) == 1:
            image = image.convert("L")
        if steps.size is not None:
            height, width = _target(steps.size, image.height, image.width)
            if height * width > MAX_PIXELS:
                raise InputError(
                    f"an image of {image.width} x {image.height} pixels would be resized to {width} x {height}: cut it "
                    "to a shape that is less long"
                )
            # All of it, although a crop may follow: with Pillow's `box` some pixels would be others by 1 of 255.
            image = image.resize((width, height), steps.resample)
        return image if steps.crop is None else image.crop(_middle(image.size, steps.crop))

    def _planes(self, image: Image) -> np.ndarray:
        """uint8 [channels, height, width], red first unless the model wants blue first."""
        # Pillow's 'RGB;L' is each row in red, then in green, then in blue.
        rows = image.tobytes() if image.mode == "L" else image.tobytes("raw", "RGB;L")
        planes = np.frombuffer(rows, np.uint8).reshape(image.height, -1, image.width).transpose(1, 0, 2)
        return planes[::-1] if self.steps.flip else planes


def _middle(size: tuple[int, int], crop: tuple[int, int]) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of (height, width) in the middle of an image of (width, height)."""
    height, width = crop
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return left, top, left + width, top + height


def _target(size: int | tuple[int, int], height: int, width: int) -> tuple[int, int]:
    """(height, width) that an image is resized to, rounded as transformers does."""
    if isinstance(size, tuple):
        return size
    return (int(size * height / width), size) if width <= height else (size, int(size * width / height))


def _rgb(item: Any) -> Image:
    """An image of any form that the runtime takes, as RGB. Raises InputError."""
    try:
        if isinstance(item, np.ndarray):
            return open_rgb(_from_pixels(item))
        if isinstance(item, bytearray | memoryview):
            item = bytes(item)
        if isinstance(item, str):
            item = _path(item)
        if isinstance(item, bytes | Path) or _is_pillow(item):
            return open_rgb(item)
    except DataError as error:
        raise InputError(" ".join(str(error).split())) from error
    raise InputError(
        f"expected an image, got {_short(item)} of type {type(item).__name__}: give a path, the bytes of a file, an "
        "image of Pillow's, or pixels as a uint8 array [height, width, 3]"
    )


def _is_pillow(item: object) -> bool:
    import PIL.Image

    return isinstance(item, PIL.Image.Image)


def _path(text: str) -> Path:
    if text.startswith(("http://", "https://", "data:")) or len(text) > _LONGEST_PATH or not text:
        raise InputError(
            f"{_short(text)} is no path to an image: nothing is fetched or decoded from text; give the path of a file, "
            "or its bytes"
        )
    return Path(text)


def _from_pixels(pixels: np.ndarray) -> Image:
    import PIL.Image

    shape = pixels.shape
    if pixels.dtype != np.uint8 or not (len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3, 4))):
        raise InputError(
            f"an array of {pixels.dtype} {list(shape)} is no image: expected uint8 [height, width, 3], from 0 to 255"
        )
    if 0 in shape:
        raise InputError(f"an array of shape {list(shape)} has no pixels: leave it out")
    return PIL.Image.fromarray(pixels[..., 0] if len(shape) == 3 and shape[2] == 1 else pixels)


def _channels(config: Path) -> int:
    """Of the images that a model takes, as its config.json says; 3 where it does not."""
    try:
        found = json.loads(config.read_text(encoding="utf-8")).get("num_channels", 3)
    except (OSError, ValueError, AttributeError) as error:
        raise BundleError(f"{config} cannot be read: {error}; export the bundle again") from error
    return found if isinstance(found, int) else 3


def golden_bytes(golden: Golden) -> bytes:
    """The PNG of a golden answer. Raises BundleError for one that has none."""
    if golden.image is None:
        raise BundleError("a golden answer has no image: export the bundle again")
    try:
        return base64.b64decode(golden.image, validate=True)
    except ValueError as error:
        raise BundleError(f"a golden answer's image is no base64: {error}; export the bundle again") from error


def _short(value: object) -> str:
    shown = ascii(value[:60] if isinstance(value, str) else value)
    return shown if len(shown) <= 60 else shown[:57] + "..."


__all__ = ["ImageEncoder", "ImageInput", "golden_bytes"]
