"""Images to pixel values beside transformers' slow processors, and file to answer beside Optimum's pipeline.

Preprocessing: an image that Pillow has decoded, to the array that the graph takes; ViT's processor (bilinear) and that
of DINOv2 (bicubic, with a crop), on real images of four sizes. Ours turns the image as its EXIF says and makes it RGB;
transformers' does so in its pipeline before the slow processor, which is timed with that and alone. 'Resize alone' is
the call of Pillow that all of them make: no way can be faster. Equal within 1e-5, which is checked first.
File to answer: a path to a label (a small ViT on clothes), and to hidden states (ViT-S/14), beside a pipeline of
transformers on the same graph through Optimum. One thread everywhere. The ways take turns on the same image, in an
order drawn anew each time; medians of wall time and of the processor's time, in fresh processes.

    python benchmarks/forms.py --family ViT --make        (the ViT on clothes)
    python benchmarks/images.py
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import statistics
import subprocess
import sys
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter_ns, thread_time_ns
from typing import Any

from conditions import conditions, save, spread

WORK = Path("runs/images")
PHOTOS = {"photo, 640 x 427": None, "photo, 2560 x 1708": (2560, 1708), "photo, 4032 x 3024": (4032, 3024)}
CLOTHES = "clothes, 28 x 28"
SECONDS = 3.0
OURS, ALONE, SLOW, OPTIMUM = "edgewise", "slow processor alone", "load_image and slow processor", "Optimum's pipeline"
RESIZE = "resize alone"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=Path, default=Path("runs/forms/ViT/bundles/fp32"), help="bundle of a ViT")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    features = _features()
    if args.child is not None:
        print(json.dumps(measure(args.classes, features, args.child)))
        return
    load, rounds = os.getloadavg()[0], []
    for seed in range(args.rounds):
        command = [sys.executable, __file__, "--classes", str(args.classes), "--child", str(seed)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(done.stderr)
        rounds.append(json.loads(done.stdout.splitlines()[-1]))
        print(f"round {seed + 1} of {args.rounds}", file=sys.stderr, flush=True)
    rows = {name: _sum_up([r[name] for r in rounds]) for name in rounds[0]}
    told = {"threads": 1, "rounds": args.rounds, "load_before": load, "load_after": os.getloadavg()[0]}
    shown = {"classes": conditions(args.classes)["bundle"], "features": conditions(features)["bundle"]}
    save("images", {"what": __doc__, "conditions": {**conditions(args.classes), **told, "bundle": shown}, "rows": rows})
    for name, row in rows.items():
        for peer, ratio in row["ratio"].items():
            cpu = row["processor_ratio"][peer]["median"]
            print(f"{name:48} {peer:30} {ratio['median']:5.2f} x  (processor's time {cpu:.2f} x)")


def measure(classes: Path, features: Path, seed: int) -> dict[str, Any]:
    """What is timed -> way -> median milliseconds of wall and processor time, in this process."""
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    random.seed(seed)
    return {**_preprocessing(), **_answers(classes, features)}


def _preprocessing() -> dict[str, Any]:
    import numpy as np
    import transformers as hf
    from transformers.image_utils import load_image

    from edgewise.assets import asset_path
    from edgewise.runtime.image_config import read_steps
    from edgewise.runtime.image_input import ImageEncoder

    found = {}
    dino = hf.AutoImageProcessor.from_pretrained(asset_path("vit-small"), use_fast=False)
    for kind, processor in (("ViT", hf.ViTImageProcessor()), ("DINOv2", dino)):
        with TemporaryDirectory() as folder:
            processor.save_pretrained(folder)
            encoder = ImageEncoder(read_steps(Path(folder) / "preprocessor_config.json", kind, 3), "float32")
        ways = {
            OURS: lambda image, e=encoder: e.arrays([image])["pixel_values"],
            SLOW: lambda image, p=processor: p(load_image(image), return_tensors="np")["pixel_values"],
            ALONE: lambda image, p=processor: p(image, return_tensors="np")["pixel_values"],
        }
        for name, images in _images().items():
            for image in images:
                np.testing.assert_allclose(ways[OURS](image), ways[SLOW](image), rtol=0, atol=1e-5)
            side = 224 / min(images[0].size)  # DINOv2's keeps the shape; all images of a set have the same
            size = (224, 224) if kind == "ViT" else tuple(int(side * n) for n in images[0].size)
            ways[RESIZE] = lambda image, s=size, r=processor.resample: image.resize(s, r)
            found[f"preprocessing, {kind}, {name}"] = _time(ways, images)
    return found


def _answers(classes: Path, features: Path) -> dict[str, Any]:
    import transformers as hf
    from onnxruntime import SessionOptions
    from optimum.onnxruntime import ORTModelForFeatureExtraction, ORTModelForImageClassification

    import edgewise

    found: dict[str, Any] = {}
    tasks: list[tuple[str, Path, Any, str]] = [
        ("image-classification", classes, ORTModelForImageClassification, "file to label, ViT on clothes"),
        ("image-feature-extraction", features, ORTModelForFeatureExtraction, "file to hidden states, ViT-S/14"),
    ]
    with TemporaryDirectory() as folder:
        for task, bundle, peer, what in tasks:
            options = SessionOptions()
            options.intra_op_num_threads = 1
            processor = hf.AutoImageProcessor.from_pretrained(bundle, use_fast=False)
            theirs = hf.pipeline(
                task, model=peer.from_pretrained(bundle, session_options=options), image_processor=processor
            )
            with edgewise.load(bundle, threads=1) as model:
                for name, paths in _files(Path(folder)).items():
                    found[f"{what}, {name}"] = _time({OURS: model, OPTIMUM: theirs}, paths)
    return found


def _time(ways: dict[str, Callable[[Any], Any]], items: list[Any]) -> dict[str, dict[str, float]]:
    """In turn on the same item, until the time is over: median milliseconds."""
    wall: dict[str, list[int]] = {name: [] for name in ways}
    spent: dict[str, list[int]] = {name: [] for name in ways}
    for way in ways.values():
        way(items[0])
    order, end, count = list(ways), perf_counter_ns() + int(SECONDS * 1e9), 0
    while perf_counter_ns() < end or count < 5:
        item = items[count % len(items)]
        count += 1
        random.shuffle(order)
        for name in order:
            start, cpu = perf_counter_ns(), thread_time_ns()
            ways[name](item)
            spent[name].append(thread_time_ns() - cpu)
            wall[name].append(perf_counter_ns() - start)
    return {
        name: {"wall": statistics.median(wall[name]) / 1e6, "processor": statistics.median(spent[name]) / 1e6}
        for name in ways
    }


def _sum_up(rounds: list[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Over processes: milliseconds of each way, and how many times as long as ours the others take."""

    def ratio(kind: str) -> dict[str, Any]:
        peers = [name for name in rounds[0] if name != OURS]
        return {peer: spread([r[peer][kind] / r[OURS][kind] for r in rounds]) for peer in peers}

    return {
        "ms": {name: spread([r[name]["wall"] for r in rounds]) for name in rounds[0]},
        "processor_ms": {name: spread([r[name]["processor"] for r in rounds]) for name in rounds[0]},
        "ratio": ratio("wall"),
        "processor_ratio": ratio("processor"),
    }


def _encoded() -> dict[str, list[bytes]]:
    """Real images as files have them: Fashion-MNIST as PNG, two photographs as JPEG."""
    import PIL.Image
    import pyarrow.parquet as pq

    from edgewise.assets import asset_path

    found = {CLOTHES: pq.read_table(asset_path("fashion-mnist"), columns=["image"])["image"][:50].to_pylist()}
    photos = [(files("sklearn.datasets.images") / f"{name}.jpg").read_bytes() for name in ("china", "flower")]
    for name, size in PHOTOS.items():
        found[name] = []
        for photo in photos:
            file = io.BytesIO(photo)
            if size is not None:
                larger = PIL.Image.open(file).resize(size, PIL.Image.Resampling.BICUBIC)
                larger.save(file := io.BytesIO(), "jpeg", quality=90)
            found[name].append(file.getvalue())
    return found


def _images() -> dict[str, list[Any]]:
    import PIL.Image

    return {
        name: [PIL.Image.open(io.BytesIO(data)).convert("RGB") for data in images]
        for name, images in _encoded().items()
    }


def _files(folder: Path) -> dict[str, list[str]]:
    """Paths of the images, by what they are."""
    found: dict[str, list[str]] = {}
    for number, (name, images) in enumerate(_encoded().items()):
        paths = [folder / f"{number}-{i}.{'png' if name == CLOTHES else 'jpg'}" for i in range(len(images))]
        for path, data in zip(paths, images, strict=True):
            path.write_bytes(data)
        found[name] = [str(path) for path in paths]
    return found


def _features() -> Path:
    """A bundle of ViT-S/14; made once."""
    from edgewise.assets import asset_path
    from edgewise.exporter import export

    task: Any = "image-feature-extraction"
    (done,) = export(asset_path("vit-small"), ["fp32"], out=WORK, task=task)
    if done.bundle is None:
        sys.exit(done.reason)
    return done.bundle.path


if __name__ == "__main__":
    main()
