"""What a bundle's preprocessor_config.json does to an image, read once: sizes, and what each pixel becomes.

The keys and what each means are those of transformers' slow processors (4.57); a bundle keeps their file as it is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgewise.errors import BundleError

_HALF = ((0.5,) * 3, (0.5,) * 3)
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_NEAREST, _BILINEAR, _BICUBIC, _FILTERS = 0, 2, 3, 6
_WARPED = 384
"""From this size on, ConvNext's processor does not crop."""

Size = int | tuple[int, int]
"""Length of the shorter side (the other follows), or (height, width)."""


@dataclass(frozen=True)
class ImageSteps:
    """From an image to what the graph takes of it, in this order."""

    size: Size | None
    """Resized to; None: the image stays as large as it is."""
    resample: int
    """Pillow's number of the filter."""
    crop: tuple[int, int] | None
    """(height, width) cut out of the middle, black where the image is smaller."""
    scale: np.ndarray
    """float32 [channels, 1, 1]."""
    shift: np.ndarray
    """float32 [channels, 1, 1]: a pixel becomes itself times `scale` plus `shift`, rescaled and normalised."""
    flip: bool
    """Channels in the order blue, green, red."""

    @property
    def fixed(self) -> tuple[int, int] | None:
        """(height, width) of every image, where it does not depend on the image."""
        return self.crop or (self.size if isinstance(self.size, tuple) else None)


@dataclass(frozen=True)
class _Kind:
    """What a processor of transformers does where its file says nothing."""

    size: Size
    resample: int
    crop: int | None
    """None: it knows no crop, whatever the file says."""
    normal: tuple[tuple[float, ...], tuple[float, ...]] | None
    """Mean and deviation; None: it does not normalise, whatever the file says."""
    crops: bool = True

    @property
    def exact(self) -> bool:
        """It takes a height and a width alone."""
        return isinstance(self.size, tuple)


_KINDS = {
    "ViT": _Kind((224, 224), _BILINEAR, None, _HALF),
    "DeiT": _Kind((256, 256), _BICUBIC, 224, _HALF),
    "Beit": _Kind((256, 256), _BICUBIC, 224, _HALF),
    "Siglip": _Kind((224, 224), _BICUBIC, None, _HALF),
    "Pvt": _Kind((224, 224), _BILINEAR, None, _IMAGENET),
    "Segformer": _Kind((512, 512), _BILINEAR, None, _IMAGENET),
    "EfficientNet": _Kind((346, 346), _NEAREST, 289, _HALF, crops=False),
    "Bit": _Kind(224, _BICUBIC, 224, _CLIP),
    "CLIP": _Kind(224, _BICUBIC, 224, _CLIP),
    "MobileNetV1": _Kind(256, _BILINEAR, 224, _HALF),
    "MobileNetV2": _Kind(256, _BILINEAR, 224, _HALF),
    "MobileViT": _Kind(224, _BILINEAR, 256, None),
    "Levit": _Kind(224, _BICUBIC, 224, _IMAGENET),
    "PoolFormer": _Kind(224, _BICUBIC, 224, _IMAGENET),
    "ConvNext": _Kind(384, _BILINEAR, None, _HALF),
}
"""By the name of transformers' class, without 'ImageProcessor'."""

_FAMILIES = {
    "vit": "ViT", "vit_mae": "ViT", "vit_msn": "ViT", "swin": "ViT", "swinv2": "ViT", "deit": "DeiT", "beit": "Beit",
    "data2vec-vision": "Beit", "clip": "CLIP", "dinov2": "Bit", "convnext": "ConvNext", "convnextv2": "ConvNext",
    "cvt": "ConvNext", "resnet": "ConvNext", "regnet": "ConvNext", "segformer": "Segformer", "levit": "Levit",
    "poolformer": "PoolFormer", "mobilevit": "MobileViT",
}  # fmt: skip
"""model_type -> kind, for files so old that they do not name theirs."""


def read_steps(file: Path, family: str, channels: int) -> ImageSteps:
    """Read a preprocessor_config.json. family: config.json's model_type. channels: that the graph takes, 1 or 3.

    Raises BundleError for a file that is broken, or asks for what the runtime cannot do.
    """
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BundleError(f"{file} cannot be read as JSON: {error}; export the bundle again") from error
    if not isinstance(config, dict):
        raise BundleError(f"{file} is no JSON object: export the bundle again")
    config = config.get("image_processor", config)
    try:
        return _steps(config, family, channels)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BundleError(
            f"{file}: {error}; save the processor again with transformers (processor.save_pretrained), and export"
        ) from error


def _steps(config: Mapping[str, Any], family: str, channels: int) -> ImageSteps:
    name = _kind_name(config, family)
    kind = _KINDS[name]
    size, crop = _resizing(name, kind, config)
    resample = config.get("resample", kind.resample)
    if size is not None and resample not in range(_FILTERS):
        raise ValueError(f"resample is {resample!r}; expected one of Pillow's filters, 0 to {_FILTERS - 1}")
    flip = name == "MobileViT" and bool(config.get("do_flip_channel_order", True))
    scale, shift = (n.astype(np.float32)[:, None, None] for n in _pixels(name, kind, config, channels))
    return ImageSteps(size, int(resample or 0), crop, scale, shift, flip)


def _kind_name(config: Mapping[str, Any], family: str) -> str:
    told = config.get("image_processor_type") or config.get("feature_extractor_type") or _FAMILIES.get(family)
    if not isinstance(told, str):
        raise ValueError(f"image_processor_type is missing, and cannot be told from the family {family!r}")
    name = told.removesuffix("Fast").removesuffix("ImageProcessor").removesuffix("FeatureExtractor")
    if name not in _KINDS:
        raise ValueError(f"image_processor_type is {told!r}; the runtime knows those of {', '.join(_KINDS)}")
    return name


def _resizing(name: str, kind: _Kind, config: Mapping[str, Any]) -> tuple[Size | None, tuple[int, int] | None]:
    """(what images are resized to, what is cut out of them)."""
    size = _size(kind, config)
    crop = _pair(config, "crop_size", kind.crop) if kind.crop and config.get("do_center_crop", kind.crops) else None
    if not config.get("do_resize", True):
        return None, crop
    if name == "ConvNext":
        if not isinstance(size, int):
            raise ValueError(f"size is {config.get('size')!r}; expected a shortest_edge")
        return ((size, size), None) if size >= _WARPED else (_enlarged(size, config, 224 / 256), (size, size))
    if name == "Levit" and isinstance(size, int):
        return int((256 / 224) * size), crop
    if name == "PoolFormer" and config.get("crop_pct", 0.9) is not None:
        if isinstance(size, tuple) and size[0] != size[1]:
            return (_enlarged(size[0], config, 0.9), _enlarged(size[1], config, 0.9)), crop
        return _enlarged(size[0] if isinstance(size, tuple) else size, config, 0.9), crop
    return size, crop


def _enlarged(size: int, config: Mapping[str, Any], usual: float) -> int:
    """So that `size` is the share crop_pct of it."""
    share = _number("crop_pct", usual if config.get("crop_pct") is None else config["crop_pct"])
    if not 0 < share <= 1:
        raise ValueError(f"crop_pct is {share:g}; expected a share above 0, up to 1")
    return int(size / share)


def _size(kind: _Kind, config: Mapping[str, Any]) -> Size:
    told = config.get("size")
    if told is None:
        return kind.size
    if isinstance(told, Mapping) and "shortest_edge" in told and not kind.exact:
        # A longest_edge beside it is left alone, as those processors do.
        shortest = _whole("size", told["shortest_edge"])
        return (shortest, shortest) if config.get("use_square_size") else shortest
    if not kind.exact and isinstance(told, int):
        return _whole("size", told)
    return _pair(config, "size", None)


def _pair(config: Mapping[str, Any], key: str, usual: int | None) -> tuple[int, int]:
    """(height, width) of an entry: a dict with both, a list of both, or one number for both."""
    told = config.get(key)
    told = usual if told is None else told
    if isinstance(told, Mapping) and {"height", "width"} <= set(told):
        return _whole(key, told["height"]), _whole(key, told["width"])
    if isinstance(told, list) and len(told) == 2:
        return _whole(key, told[0]), _whole(key, told[1])
    if isinstance(told, int):
        return _whole(key, told), _whole(key, told)
    raise ValueError(f"{key} is {told!r}, which its processor cannot take; expected a height and a width")


def _pixels(name: str, kind: _Kind, config: Mapping[str, Any], channels: int) -> tuple[np.ndarray, np.ndarray]:
    """(scale, shift) of pixel values, float64 [channels]: all that is done to them, in one."""
    scale, shift = np.ones(channels), np.zeros(channels)
    efficient = name == "EfficientNet"
    if config.get("do_rescale", True):
        scale = scale * _number("rescale_factor", config.get("rescale_factor", 1 / 255))
        if efficient and config.get("rescale_offset", False):
            shift = shift - 1
    if kind.normal is not None and config.get("do_normalize", True):
        std = _channels("image_std", config, kind.normal[1], channels)
        shift = (shift - _channels("image_mean", config, kind.normal[0], channels)) / std
        scale = scale / std
    if kind.normal is not None and efficient and config.get("include_top", True):
        std = _channels("image_std", config, kind.normal[1], channels)
        scale, shift = scale / std, shift / std
    return scale, shift


def _channels(key: str, config: Mapping[str, Any], usual: tuple[float, ...], channels: int) -> np.ndarray:
    """float64 [channels]."""
    told = config.get(key)
    told = list(usual) if told is None else told
    numbers = [_number(key, n) for n in told] if isinstance(told, list) else [_number(key, told)] * channels
    if len(numbers) != channels:
        raise ValueError(f"{key} has {len(numbers)} numbers, and the graph takes {channels} channels")
    if key == "image_std" and 0 in numbers:
        raise ValueError(f"{key} is {told!r}; expected no 0 in it")
    return np.array(numbers)


def _whole(key: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{key} has {value!r}; expected a whole number of at least 1")
    return value


def _number(key: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{key} has {value!r}; expected a number")
    return float(value)
