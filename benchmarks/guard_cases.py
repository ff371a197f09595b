"""The models and rows of benchmarks/guard_vs_nncf.py, as both tools read them.

At the top it needs numpy and onnxruntime alone: NNCF's environment reads it too.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

CALIBRATION, SAMPLES, VAL, CONFIRM = 100, 100, 1000, 2000
_SPLIT: dict[str, float | str] = {"train": 0.4, "val": 0.3, "confirm": 0.3}
_IMAGE = 56
"""Pixels a side that images of clothes are drawn at: 16 patches of DINOv2."""

Feeds = dict[str, np.ndarray]
Example = tuple[Feeds, Any]
"""Inputs with a batch of 1, and what is right: a label's number, or one a token with -100 where nothing is asked."""


@dataclass(frozen=True)
class Case:
    """One fine-tuned model and the drops that are allowed, in the order of trying."""

    about: str
    task: str
    model: str
    """Name of the asset that is tuned."""
    limits: tuple[float, ...]
    """Of the mean score: 0.005 is half a point."""
    spec: dict[str, Any] = field(default_factory=dict)
    """Of a TuneSpec."""


_FILM = {"epochs": 2, "batch_size": 16, "max_length": 48}
_TIGHT = (0.005, 0.002, 0.0)
CASES = {
    **{
        f"reviews-{seed}": Case(
            f"MiniLM (6 layers), movie reviews, seed {seed}", "text-classification", "all-minilm-l6-v2", _TIGHT,
            {**_FILM, "seed": seed},
        )
        for seed in range(2)
    },
    "addresses": Case(
        "MiniLM (6 layers), words of US addresses (share of words right)", "token-classification", "all-minilm-l6-v2",
        _TIGHT, {"epochs": 6, "batch_size": 16, "learning_rate": 1e-4, "max_length": 48},
    ),
    "clothes": Case(
        "DINOv2 (ViT-S/14, 12 layers), Fashion-MNIST", "image-classification", "vit-small", _TIGHT,
        {"epochs": 1, "batch_size": 32, "learning_rate": 5e-5},
    ),
}  # fmt: skip


def load_rows_of(name: str) -> Any:
    """Train, val and confirm rows of a case."""
    from reviews import movie_reviews

    from edgewise.data import load_splits
    from edgewise.data_spec import DataSpec

    rows = {"train": 2000, "val": VAL, "confirm": CONFIRM}
    task = CASES[name].task
    if task == "token-classification":
        few: dict[str, float | str] = {"train": 0.4, "val": 0.3, "confirm": 0.3}
        spec = DataSpec(path="asset:addresses", tokens="tokens", tags="tags", unseen="leave_out", split=few)
    elif task == "image-classification":
        spec = DataSpec(path="asset:fashion-mnist", split=_SPLIT, rows=rows)
    else:
        spec = movie_reviews(split=_SPLIT, rows=rows)
    return load_splits(spec, task, Path)  # type: ignore[arg-type]  # a Case names its task in a str


def prepare(name: str, work: Path) -> tuple[Any, Any]:
    """Tune and export a case, and write its rows; what is there stays. Returns (splits, tokenizer or processor)."""
    import transformers

    from edgewise.exporter.outcomes import examples
    from edgewise.exporter.tracing import export_graphs
    from edgewise.plan import TuneSpec
    from edgewise.trainer import tune
    from edgewise.types import EXPORT_CLASSES

    case, splits = CASES[name], load_rows_of(name)
    source = _source(case, work)
    spec = TuneSpec(**case.spec)
    tuned = tune(source, splits.train, splits.labels, spec, out=work / "tuned", task=case.task).path  # type: ignore[arg-type]
    images = case.task == "image-classification"
    auto = transformers.AutoImageProcessor if images else transformers.AutoTokenizer
    reader = auto.from_pretrained(tuned)
    if not (work / "fp32" / "model.onnx").exists():
        model = getattr(transformers, EXPORT_CLASSES[case.task]).from_pretrained(tuned).eval()  # type: ignore[index]
        export_graphs(model, case.task, work / "fp32", None)  # type: ignore[arg-type]
        reader.save_pretrained(work / "fp32")
    base = _Read(case.task, reader, splits.labels, tuple(i.name for i in _session(work / "fp32").get_inputs()))
    parts = {
        "calibration": splits.train[:CALIBRATION],
        "samples": splits.train[CALIBRATION : CALIBRATION + SAMPLES],  # on which nothing was calibrated
        "val": splits.val,
        "confirm": splits.confirm,
    }
    for part, rows in parts.items():
        if not (work / f"{part}.npz").exists():
            write_rows(work / f"{part}.npz", [(dict(e.feeds), e.target) for e in examples(base, base, rows)])  # type: ignore[arg-type]
    return splits, reader


@dataclass(frozen=True)
class _Read:
    """What `edgewise.exporter.outcomes.examples` asks of a checkpoint and of its graphs."""

    task: str
    preprocessor: Any
    labels: Sequence[str]
    inputs: tuple[str, ...]
    problem_type: str = "single_label_classification"
    max_length: int = 48


def _source(case: Case, work: Path) -> Path:
    """The asset; of images a copy that draws them small."""
    import shutil

    from edgewise.assets import asset_path

    asset = asset_path(case.model)
    if case.task != "image-classification":
        return asset
    copy = work / "source"
    if not copy.exists():
        shutil.copytree(asset, copy)
        config = json.loads((copy / "preprocessor_config.json").read_text(encoding="utf-8"))
        config.update(size={"shortest_edge": _IMAGE}, crop_size={"height": _IMAGE, "width": _IMAGE})
        (copy / "preprocessor_config.json").write_text(json.dumps(config), encoding="utf-8")
    return copy


def write_rows(path: Path, rows: Sequence[Example]) -> None:
    """Rows as one .npz of plain arrays."""
    arrays = {f"{i}/{name}": array for i, (feeds, _) in enumerate(rows) for name, array in feeds.items()}
    np.savez(path, **arrays, **{f"{i}/": np.asarray(target) for i, (_, target) in enumerate(rows)})  # type: ignore[arg-type]


@cache
def read_rows(work: Path, part: str) -> list[Example]:
    """Rows of calibration, val or confirm."""
    found: dict[int, tuple[Feeds, list[Any]]] = {}
    with np.load(work / f"{part}.npz") as file:
        for key in file.files:
            number, _, name = key.partition("/")
            feeds, target = found.setdefault(int(number), ({}, []))
            if name:
                feeds[name] = file[key]
            else:
                target.append(file[key])
    return [(feeds, target[0]) for _, (feeds, target) in sorted(found.items())]


def run(graph: Path | bytes, rows: Iterable[Example]) -> Iterator[tuple[float, np.ndarray]]:
    """(score, by how much each answer is right) of each row, one row at a time on one thread: 1 or 0 for a label, the
    share of words with the right tag for tags."""
    session = _session(graph)
    for feeds, target in rows:
        logits = session.run(None, feeds)[0][0]
        asked = logits[target != -100] if logits.ndim == 2 else logits[None]
        wanted = target[target != -100] if logits.ndim == 2 else target[None]
        places, others = np.arange(len(wanted)), asked.astype(np.float64)
        others[places, wanted] = -np.inf
        yield float((asked.argmax(-1) == wanted).mean()), asked[places, wanted] - others.max(-1)


def _session(graph: Path | bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if isinstance(graph, Path) and graph.is_dir():
        graph = graph / "model.onnx"
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
