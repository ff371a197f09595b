"""Pixel values are those of transformers' slow processors; what is no image is one clear error."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import transformers as hf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers.image_utils import load_image

from edgewise.assets import asset_path
from edgewise.errors import BundleError, InputError
from edgewise.runtime.image_config import read_steps
from edgewise.runtime.image_input import ImageEncoder

MODES = ("RGB", "L", "RGBA", "LA", "P", "CMYK", "1", "RGB", "YCbCr")
KINDS = {"LA": "png", "RGBA": "png", "P": "gif", "1": "png", "CMYK": "tiff", "YCbCr": "jpeg"}


def encode(image: PIL.Image.Image, kind: str = "png", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def clothes(count: int) -> list[bytes]:
    """Fashion-MNIST, made larger to many sizes and shapes; every tenth as it is."""
    import pyarrow.parquet as pq

    rng = np.random.default_rng(0)
    found = pq.read_table(asset_path("fashion-mnist"), columns=["image"])["image"][:count]
    images = []
    for i, data in enumerate(found.to_pylist()):
        image = PIL.Image.open(io.BytesIO(data))
        if i % 10:
            image = image.resize(tuple(rng.integers(20, 330, 2).tolist()))
        images.append(encode(image, ("png", "jpeg", "webp")[i % 3]))
    return images


def photos(count: int) -> list[bytes]:
    """Parts of two photographs in all modes, shapes and EXIF orientations."""
    rng = np.random.default_rng(1)
    whole = [PIL.Image.open(str(files("sklearn.datasets.images") / f"{n}.jpg")) for n in ("china", "flower")]
    images = []
    for i in range(count):
        image, mode = whole[i % 2], MODES[i % len(MODES)]
        width, height = rng.integers(3, 400, 2).tolist()
        left, top = (int(rng.integers(0, max(1, a - b))) for a, b in zip(image.size, (width, height), strict=True))
        part = image.crop((left, top, min(image.width, left + width), min(image.height, top + height)))
        exif = PIL.Image.Exif()
        exif[0x0112] = i % 8 + 1
        part, kind = part.convert(mode), KINDS.get(mode, "jpeg")
        images.append(encode(part, kind, **({} if kind in ("gif", "tiff") else {"exif": exif})))
    return images


@pytest.fixture(scope="module")
def images() -> list[bytes]:
    """220 real images: both kinds in turn."""
    return [image for pair in zip(clothes(110), photos(110), strict=True) for image in pair]


def encoder(processor: Any, folder: Path, channels: int = 3, family: str = "") -> ImageEncoder:
    processor.save_pretrained(folder)
    return ImageEncoder(read_steps(folder / "preprocessor_config.json", family, channels), "float32")


def wanted(processor: Any, data: bytes) -> np.ndarray:
    found: np.ndarray = processor(load_image(PIL.Image.open(io.BytesIO(data))), return_tensors="np")["pixel_values"]
    return found.astype(np.float32)


def close(found: np.ndarray, told: np.ndarray) -> None:
    """Float32's rounding apart: one pixel that is another by 1 of 255 would be 1,000 times as much."""
    np.testing.assert_allclose(found, told, atol=2e-6, rtol=5e-7, strict=True)


def check(processor: Any, folder: Path, images: list[bytes]) -> None:
    ours = encoder(processor, folder)
    for data in images:
        close(ours.arrays([data])["pixel_values"], wanted(processor, data))


@pytest.mark.parametrize(
    "processor",
    [
        hf.ViTImageProcessor(),
        hf.DeiTImageProcessor(size={"height": 120, "width": 100}, crop_size={"height": 96, "width": 97}),
        hf.BeitImageProcessor(),
        hf.BitImageProcessor(),
        hf.CLIPImageProcessor(size={"shortest_edge": 65}, crop_size={"height": 64, "width": 64}),
        hf.ConvNextImageProcessor(size={"shortest_edge": 100}),
    ],
    ids=lambda p: type(p).__name__,
)
def test_220_real_images_are_as_transformers_makes_them(processor, images: list[bytes], tmp_path: Path) -> None:
    check(processor, tmp_path, images)


SQUARE = {"height": 40, "width": 40}


@pytest.mark.parametrize(
    "processor",
    [
        hf.ViTImageProcessor(size=SQUARE, resample=0, image_mean=0.3, image_std=0.1),
        hf.ViTImageProcessor(size=SQUARE, do_rescale=False, do_normalize=False),
        hf.ViTImageProcessor(do_resize=False, rescale_factor=1 / 127.5),
        hf.DeiTImageProcessor(do_resize=False, crop_size={"height": 301, "width": 250}),
        hf.BeitImageProcessor(size=SQUARE, do_center_crop=False, do_rescale=False),
        hf.BitImageProcessor(size={"shortest_edge": 31}, crop_size={"height": 45, "width": 20}),
        hf.BitImageProcessor(size={"shortest_edge": 31, "longest_edge": 35}, do_center_crop=False, resample=1),
        hf.CLIPImageProcessor(size=SQUARE, crop_size=33, do_normalize=False, resample=4),
        hf.CLIPImageProcessor(size={"shortest_edge": 40}, use_square_size=True),
        hf.ConvNextImageProcessor(),
        hf.ConvNextImageProcessor(size={"shortest_edge": 50}, crop_pct=0.7, do_resize=True),
        hf.SiglipImageProcessor(size=SQUARE),
        hf.PvtImageProcessor(size=SQUARE),
        hf.SegformerImageProcessor(size=SQUARE, do_reduce_labels=True),
        hf.EfficientNetImageProcessor(size=SQUARE, rescale_factor=1 / 127.5, rescale_offset=True),
        hf.EfficientNetImageProcessor(do_center_crop=True, include_top=False, do_normalize=False),
        hf.MobileNetV1ImageProcessor(),
        hf.MobileNetV2ImageProcessor(size={"shortest_edge": 40}, crop_size=SQUARE),
        hf.MobileViTImageProcessor(),
        hf.MobileViTImageProcessor(size={"shortest_edge": 40}, do_flip_channel_order=False),
        hf.LevitImageProcessor(size={"shortest_edge": 41}, crop_size={"height": 41, "width": 41}),
        hf.PoolFormerImageProcessor(size={"shortest_edge": 41}, crop_size=SQUARE, crop_pct=0.95),
        hf.PoolFormerImageProcessor(size={"height": 41, "width": 50}, crop_pct=0.8, do_center_crop=False),
        hf.PoolFormerImageProcessor(size=SQUARE, crop_pct=None),
    ],
    ids=lambda p: type(p).__name__,
)
def test_every_kind_and_form_of_processor(processor, images: list[bytes], tmp_path: Path) -> None:
    check(processor, tmp_path, images[:24])


@pytest.mark.parametrize(
    ("config", "family"),
    [
        ({"do_normalize": True, "do_resize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": 40}, "vit"),
        ({"feature_extractor_type": "CLIPFeatureExtractor", "crop_size": 40, "size": 50}, "clip"),
        ({"image_processor_type": "ViTFeatureExtractor", "size": [40, 50]}, "vit"),
        ({"feature_extractor_type": "ConvNextFeatureExtractor", "size": 50, "crop_pct": None}, "resnet"),
        ({"image_processor": {"image_processor_type": "ViTImageProcessor", "size": SQUARE, "do_center_crop": True,
                              "crop_size": 20}}, "vit"),
        ({"image_processor_type": "BitImageProcessorFast", "size": {"shortest_edge": 50}, "crop_size": None,
          "do_center_crop": None, "device": None, "input_data_format": None}, "dinov2"),
    ],
)  # fmt: skip
def test_old_and_fast_files_mean_what_they_mean_to_transformers(config, family, images, tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
    processor = hf.AutoImageProcessor.from_pretrained(tmp_path, use_fast=False)
    ours = ImageEncoder(read_steps(tmp_path / "preprocessor_config.json", family, 3), "float32")
    for data in images[:24]:
        close(ours.arrays([data])["pixel_values"], wanted(processor, data))


def test_one_channel_is_grey(images: list[bytes], tmp_path: Path) -> None:
    processor = hf.ViTImageProcessor(size=SQUARE, image_mean=[0.3], image_std=[0.2])
    ours = encoder(processor, tmp_path, channels=1)
    for data in images[:40]:
        grey = np.asarray(load_image(PIL.Image.open(io.BytesIO(data))).convert("L"))[..., None]
        theirs = processor([grey], return_tensors="np", input_data_format="channels_last")["pixel_values"]
        close(ours.arrays([data])["pixel_values"], theirs)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("[", "cannot be read as JSON"),
        ("[]", "no JSON object"),
        ({}, "image_processor_type is missing, and cannot be told from the family 'fox'"),
        ({"image_processor_type": "DetrImageProcessor"}, "'DetrImageProcessor'; the runtime knows those of ViT, "),
        ({"image_processor_type": 3}, "image_processor_type is missing"),
        ({"size": {"shortest_edge": 3}}, r"size is {'shortest_edge': 3}, which its processor cannot take"),
        ({"size": {"longest_edge": 3}, "image_processor_type": "BitImageProcessor"}, "cannot take"),
        ({"size": {"height": 0, "width": 3}}, "size has 0; expected a whole number of at least 1"),
        ({"size": "large"}, "size is 'large'"),
        ({"size": True}, "size has True"),
        ({"crop_size": {"height": 2.5, "width": 2}, "image_processor_type": "DeiTImageProcessor"}, "crop_size has 2.5"),
        ({"resample": None}, "resample is None; expected one of Pillow's filters"),
        ({"resample": 9}, "resample is 9"),
        ({"rescale_factor": None}, "rescale_factor has None"),
        ({"image_mean": [0.5]}, "image_mean has 1 numbers, and the graph takes 3 channels"),
        ({"image_std": [0.5, 0, 0.5]}, "expected no 0"),
        ({"image_std": ["a", "b", "c"]}, "image_std has 'a'"),
        ({"image_processor_type": "ConvNextImageProcessor", "size": SQUARE}, "expected a shortest_edge"),
        ({"image_processor_type": "ConvNextImageProcessor", "size": 9, "crop_pct": 0}, "crop_pct is 0"),
        ({"image_processor": None}, "export"),
    ],
)
def test_a_processor_that_the_runtime_cannot_follow_is_refused(config, message: str, tmp_path: Path) -> None:
    file = tmp_path / "preprocessor_config.json"
    known = {"image_processor_type": "ViTImageProcessor"} if config else {}
    file.write_text(config if isinstance(config, str) else json.dumps({**known, **config}))
    with pytest.raises(BundleError, match=message) as caught:
        read_steps(file, "fox", 3)
    assert str(file) in str(caught.value)


# ---- inputs


@pytest.fixture(scope="module")
def vit(tmp_path_factory: Any) -> ImageEncoder:
    return encoder(hf.ViTImageProcessor(size=SQUARE), tmp_path_factory.mktemp("vit"))


def pixels(ours: ImageEncoder, item: Any) -> np.ndarray:
    return ours.arrays([item])["pixel_values"][0]


def test_every_form_of_an_image_gives_the_same(vit: ImageEncoder, images: list[bytes], tmp_path: Path) -> None:
    file = tmp_path / "a photo.png"
    image = PIL.Image.open(io.BytesIO(images[1])).convert("RGB")
    data = encode(image)
    file.write_bytes(data)
    array = np.array(image)
    forms = [data, bytearray(data), memoryview(data), str(file), file, PIL.Image.open(file), image, array]
    forms += [array[..., [0, 1, 2, 0]], np.asfortranarray(array)]
    found = [pixels(vit, form) for form in forms]
    assert all(np.array_equal(found[0], other) for other in found)
    grey = array[..., 0]
    assert np.array_equal(pixels(vit, grey), pixels(vit, grey[..., None]))
    assert np.array_equal(pixels(vit, grey), pixels(vit, np.stack([grey] * 3, -1)))
    together = vit.arrays([images[0], images[1]])["pixel_values"]
    assert together.shape == (2, 3, 40, 40)
    assert np.array_equal(together[1], pixels(vit, images[1]))


def test_an_image_that_is_given_stays_as_it_was(vit: ImageEncoder, images: list[bytes]) -> None:
    turned = next(i for d in images if (i := PIL.Image.open(io.BytesIO(d))).getexif().get(0x0112) == 6)
    before, size = np.asarray(turned).copy(), turned.size
    pixels(vit, turned)
    assert (turned.size, turned.getexif()[0x0112]) == (size, 6)
    assert np.array_equal(np.asarray(turned), before)


def test_one_lazily_opened_image_in_many_threads(vit: ImageEncoder, images: list[bytes]) -> None:
    data = encode(PIL.Image.open(io.BytesIO(images[2])).resize((900, 900)).convert("RGB"), "jpeg")
    expected = pixels(vit, data)
    for _ in range(3):
        image = PIL.Image.open(io.BytesIO(data))
        with ThreadPoolExecutor(8) as pool:
            assert all(np.array_equal(expected, f) for f in pool.map(lambda i: pixels(vit, i), [image] * 8))


def test_sizes_that_differ_go_alone(tmp_path: Path, images: list[bytes]) -> None:
    ours = encoder(hf.BitImageProcessor(size={"shortest_edge": 20}, do_center_crop=False), tmp_path)
    wide, high = encode(PIL.Image.new("RGB", (40, 20))), encode(PIL.Image.new("RGB", (20, 40)))
    assert pixels(ours, wide).shape == (3, 20, 40)
    with pytest.raises(InputError, match=r"20 x 40 and 40 x 20 pixels.*batch_size=1"):
        ours.arrays([wide, high])
    with pytest.raises(InputError, match=r"1 x 60000 pixels would be resized to 2000 x 120000000"):
        encoder(hf.BitImageProcessor(size={"shortest_edge": 2000}), tmp_path).arrays([PIL.Image.new("L", (1, 60000))])


PHOTO = encode(PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)), "jpeg")
BAD = {
    "nothing": (None, "got None of type NoneType"),
    "a number": (3, "got 3 of type int"),
    "a tuple": ((PHOTO, PHOTO), "of type tuple"),
    "no bytes": (b"", "0 bytes that are no image"),
    "a text": (b"hello", "5 bytes that are no image"),
    "truncated": (PHOTO[: len(PHOTO) // 2], "cannot be decoded: .*truncated"),
    "a path to nothing": ("/nowhere/a.png", "/nowhere/a.png: cannot be read: No such file"),
    "a folder": (Path("/tmp"), "/tmp: cannot be read: Is a directory"),
    "a null byte": ("a\0b", "null"),
    "a surrogate": ("\ud800.png", "ud800.png"),
    "a newline": ("a\nb.png", r"a\\nb.png"),
    "an address": ("https://example.com/a.png", "nothing is fetched"),
    "base64": ("data:image/png;base64,AAAA", "give the path of a file, or its bytes"),
    "a long text": ("x" * 100_000, "is no path to an image"),
    "no text": ("", "is no path to an image"),
    "floats": (np.zeros((4, 4, 3), np.float32), r"an array of float32 \[4, 4, 3\]"),
    "channels first": (np.zeros((3, 8, 8), np.uint8), r"expected uint8 \[height, width, 3\]"),
    "a batch": (np.zeros((2, 8, 8, 3), np.uint8), r"\[2, 8, 8, 3\]"),
    "an empty array": (np.zeros((0, 8, 3), np.uint8), "has no pixels"),
    "NaN": (PIL.Image.fromarray(np.full((4, 4), np.nan, np.float32)), "floating-point numbers"),
    "an empty image": (PIL.Image.new("RGB", (0, 4)), "0 x 4 pixels: it is empty"),
    "too large": (PIL.Image.new("1", (10_000, 9_000)), "10000 x 9000 pixels; expected at most"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_is_no_image_is_one_clear_error(vit: ImageEncoder, what: str) -> None:
    item, message = BAD[what]
    with pytest.raises(InputError, match=message) as caught:
        vit.arrays([item])
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    str(caught.value).encode()  # no lone surrogate
    assert pixels(vit, PHOTO).shape == (3, 40, 40)


def test_closed_image_of_pillow(vit: ImageEncoder, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(PHOTO)
    image = PIL.Image.open(tmp_path / "a.jpg")
    image.close()
    with pytest.raises(InputError, match="cannot be decoded"):
        vit.arrays([image])


@given(
    shape=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    mode=st.sampled_from(["RGB", "RGBA", "RGBX", "L", "LA", "P", "1", "CMYK", "YCbCr", "HSV"]),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_pixels_in_any_mode_are_as_transformers_makes_them(vit: ImageEncoder, shape, mode: str, seed: int) -> None:
    array = np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)
    image = PIL.Image.fromarray(array).convert(mode)
    theirs = hf.ViTImageProcessor(size=SQUARE)(
        load_image(image), return_tensors="np", input_data_format="channels_last"
    )
    close(pixels(vit, image), theirs["pixel_values"][0])
    if mode == "RGB":
        close(pixels(vit, array), theirs["pixel_values"][0])


@given(data=st.one_of(st.binary(max_size=200), st.tuples(st.integers(0, len(PHOTO) - 1), st.integers(1, 255))))
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_an_image_or_refused(vit: ImageEncoder, data) -> None:
    if isinstance(data, tuple):  # one byte of a photo changed
        place, change = data
        data = PHOTO[:place] + bytes([PHOTO[place] ^ change]) + PHOTO[place + 1 :]
    try:
        found = pixels(vit, data)
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert found.shape == (3, 40, 40)
        assert np.isfinite(found).all()


@given(text=st.text(max_size=40))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_is_a_path_or_refused(vit: ImageEncoder, text: str) -> None:
    with pytest.raises(InputError) as caught:
        vit.arrays([f"/nowhere/{text}"])
    assert "\n" not in str(caught.value)


def test_small_png_is_small_and_stays_what_it_is(vit: ImageEncoder, images: list[bytes], tmp_path: Path) -> None:
    def opened(png: bytes) -> PIL.Image.Image:
        return PIL.Image.open(io.BytesIO(png))

    for data in images[:40]:
        png = vit.small_png(data)
        assert max(opened(png).size) <= 64
        assert np.array_equal(np.asarray(opened(png)), np.asarray(opened(vit.small_png(png))))
    assert opened(vit.small_png(PIL.Image.new("RGB", (1, 5000)))).size == (1, 64)
    as_it_comes = encoder(hf.ViTImageProcessor(do_resize=False), tmp_path)
    assert opened(as_it_comes.small_png(PIL.Image.new("RGB", (224, 200)))).size == (224, 200)


def test_without_pillow_the_extra_is_named() -> None:
    code = (
        "import sys; sys.modules['PIL'] = None\n"
        "from edgewise.errors import MissingExtraError\n"
        "from edgewise.runtime.image_input import ImageEncoder\n"
        "try: ImageEncoder.read(None)\n"
        "except MissingExtraError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'edgewise[image]'" in done.stdout
