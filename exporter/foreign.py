"""`import_onnx`: an ONNX file that someone else exported becomes a bundle, without parity, and says so."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgewise.bundle import MANIFEST, Bundle, Golden, Manifest, digest_content, list_files, read_bundle, write_manifest
from edgewise.data import Row
from edgewise.errors import CheckpointError
from edgewise.exporter.build import finished, tool_versions
from edgewise.exporter.checkpoint import Checkpoint
from edgewise.exporter.golden import golden_answers, golden_inputs, mask_token
from edgewise.exporter.graphs import read_graph
from edgewise.exporter.originals import read_tokenizer
from edgewise.exporter.pooling import read_pooling
from edgewise.exporter.preprocessing import read_preprocessing, write_preprocessor
from edgewise.exporter.tracing import graph_files
from edgewise.files import check_out, digest_json, new_folder, sha256_file
from edgewise.sources import PROCESSOR, TOKENIZER_SOURCES
from edgewise.types import IMAGE_TASKS, Precision, Recipe, Task

NO_PARITY = "the graph was exported elsewhere: there is no PyTorch model to compare with"


@dataclass(frozen=True)
class _Source:
    """What was given, and what was found beside it."""

    folder: Path
    graphs: tuple[Path, ...]
    """In the order of `graph_files`."""
    preprocessor: Path
    """Folder of the tokenizer or the image processor."""
    task: Task
    config: dict[str, Any]
    candidate: str

    @property
    def key(self) -> str:
        names = sorted(p for p in self.preprocessor.iterdir() if p.name in (*TOKENIZER_SOURCES, PROCESSOR))
        files = [*self.graphs, *(data for g in self.graphs for data in _external(g)), *names]
        return digest_json(
            {"files": [sha256_file(f) for f in files], "config": self.config, "task": self.task,
             "tools": tool_versions()}
        )  # fmt: skip


def import_onnx(
    source: str | Path,
    *,
    out: str | Path,
    task: Task = "text-classification",
    labels: Sequence[str] | None = None,
    tokenizer: str | Path | None = None,
    candidate: str | None = None,
    rows: Sequence[Row] = (),
) -> Bundle:
    """Make a bundle, in the folder `out`, of an ONNX file; for text to text of a folder with both graphs.

    source: the file, or a folder with it; config.json and the tokenizer stand beside it, or in the folder above.
    labels: in the order of the outputs; config.json's id2label unless given.
    tokenizer: folder of the tokenizer, or of the image processor.
    rows: texts for the golden answers.

    Raises CheckpointError for what is missing or more than one, BundleError for a graph that does not run.
    """
    found = _locate(Path(source), task, labels, tokenizer, candidate)
    target, key = Path(out), found.key
    if (done := finished(target, key)) is not None:
        return done
    check_out(target, MANIFEST, [found.folder])
    with new_folder(target) as work:
        (work / "onnx").mkdir()
        for graph, name in zip(found.graphs, graph_files(task), strict=True):
            _copy_graph(graph, work / "onnx" / name)
        (work / "config.json").write_text(json.dumps(found.config, indent=2) + "\n", encoding="utf-8")
        write_preprocessor(found.preprocessor, work, task)
        generation = found.folder / "generation_config.json"
        if "generation" in task and generation.is_file():
            shutil.copyfile(generation, work / generation.name)
        manifest = _manifest(work, found, key)
        write_manifest(work, manifest)
        write_manifest(work, replace(manifest, golden=_golden(work, found, task, rows)))
    return read_bundle(target)


def find_graph(folder: Path) -> Path:
    """The one ONNX file of a folder: model.onnx, onnx/model.onnx, or the only one there is; or the file itself."""
    if folder.is_file():
        return folder
    for name in ("model.onnx", "onnx/model.onnx"):
        if (folder / name).is_file():
            return folder / name
    found = sorted(folder.rglob("*.onnx"))
    if len(found) == 1:
        return found[0]
    if not folder.exists():
        raise CheckpointError(f"{folder}: no such file or folder; expected an ONNX file, or a folder with one")
    what = f"{len(found)} ONNX files, none named model.onnx" if found else "no ONNX file"
    raise CheckpointError(f"{folder} has {what}; expected model.onnx, onnx/model.onnx, or one file")


def precision_of(node_types: dict[str, int] | Any, weights: dict[str, int] | Any = ()) -> Precision:
    """What a graph's node types, and its bytes of weights by dtype, tell of its precision."""
    if any("Integer" in kind or kind == "DynamicQuantizeLinear" for kind in node_types):
        return "int8-dynamic"
    if "MatMulNBits" in node_types:
        return "int4-weights"
    if "QuantizeLinear" in node_types or "QLinearMatMul" in node_types:
        return "int8-static"
    half = "weights float16" in weights and weights["weights float16"] > weights.get("weights float", 0)
    return "fp16" if half else "fp32"


def _locate(
    source: Path, task: Task, labels: Sequence[str] | None, tokenizer: str | Path | None, candidate: str | None
) -> _Source:
    if task == "text2text-generation":
        names = graph_files(task)
        place = next((p for p in (source, source / "onnx") if all((p / n).is_file() for n in names)), None)
        if place is None:
            raise CheckpointError(f"{source} has not both of {' and '.join(names)}, as Optimum writes them")
        graphs = tuple(place / name for name in names)
    else:
        graphs = (find_graph(source),)
    folder = source if source.is_dir() else source.parent
    beside = [folder, folder.parent] if source.is_file() else [folder]
    config = _config(beside, labels, task)
    return _Source(folder, graphs, _preprocessor(beside, tokenizer, task), task, config, candidate or folder.name)


def _preprocessor(beside: Sequence[Path], given: str | Path | None, task: Task) -> Path:
    names = (PROCESSOR,) if task in IMAGE_TASKS else TOKENIZER_SOURCES
    what = "image processor" if task in IMAGE_TASKS else "tokenizer"
    for place in [Path(given)] if given is not None else beside:
        if any((place / name).is_file() for name in names):
            return place
    where = given if given is not None else beside[0]
    raise CheckpointError(f"{where} has no {what} (none of {', '.join(names)}): name its folder with --tokenizer")


def _config(beside: Sequence[Path], labels: Sequence[str] | None, task: Task) -> dict[str, Any]:
    file = next((place / "config.json" for place in beside if (place / "config.json").is_file()), None)
    if file is None:
        raise CheckpointError(
            f"{beside[0]} has no config.json: copy the one that stood beside the model when it was trained"
        )
    try:
        config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{file} is no JSON: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{file} is no JSON object: expected what save_pretrained wrote")
    if labels is not None:
        config["id2label"] = {str(i): label for i, label in enumerate(labels)}
        config["label2id"] = {label: i for i, label in enumerate(labels)}
    if task.endswith("classification") and not config.get("id2label"):
        raise CheckpointError(f"{file} names no labels (id2label): give them with --labels")
    return config


def _external(graph: Path) -> list[Path]:
    """The files of a graph's external data, all beside it."""
    import onnx

    try:
        model = onnx.load(graph, load_external_data=False)
    except Exception as error:  # protobuf's own kind
        raise CheckpointError(f"{graph} is no ONNX graph: {error}") from error
    names = {e.value for t in model.graph.initializer for e in t.external_data if e.key == "location"}
    for name in names:
        if Path(name).name != name or not (graph.parent / name).is_file():
            raise CheckpointError(f"{graph} keeps weights in {name!r}, which is not a file beside it")
    return [graph.parent / name for name in sorted(names)]


def _copy_graph(graph: Path, to: Path) -> None:
    """The graph under its name in a bundle, its external data, if any, in one file beside it."""
    if not _external(graph):
        shutil.copyfile(graph, to)
        return
    import onnx

    model = onnx.load(graph)
    onnx.save(model, to, save_as_external_data=True, location=f"{to.name}_data")


def _manifest(folder: Path, found: _Source, key: str) -> Manifest:
    graphs = tuple(read_graph(folder, f"onnx/{name}", "unknown") for name in graph_files(found.task))
    source = Checkpoint(folder, found.config, key)
    classes = found.task.endswith("classification")
    outputs = graphs[-1].outputs[0].shape[-1] if graphs[-1].outputs[0].shape else None
    if classes and isinstance(outputs, int) and outputs != len(source.labels):
        raise CheckpointError(
            f"{found.graphs[0]} gives {outputs} numbers, but there are {len(source.labels)} labels: name as many with "
            "--labels"
        )
    pooling = read_pooling(found.folder, found.config, found.task, None)
    preprocessing = read_preprocessing(folder, found.config, [i.name for i in graphs[0].inputs], found.task)
    values: dict[str, Any] = {
        "task": found.task,
        "problem_type": source.problem_type if found.task == "text-classification" else None,
        "labels": source.labels if classes else (),
        "pooling": pooling[0] if pooling else None,
        "preprocessing": {**preprocessing, "normalize": pooling[1]} if pooling else preprocessing,
    }
    files = list_files(folder)
    recipe = Recipe(precision=precision_of(graphs[-1].node_types, graphs[-1].bytes_by_part))
    return Manifest(
        **values,
        family=source.family,
        recipe=recipe,
        source={"recipe": recipe.name, "candidate": found.candidate, "onnx": found.graphs[0].name},
        bundle_key=key,
        content_digest=digest_content(values, files),
        graphs=graphs,
        parity={"against": None, "why": NO_PARITY},
        golden=(),
        loads_in={},
        files=files,
        versions=tool_versions(),
    )


def _golden(folder: Path, found: _Source, task: Task, rows: Sequence[Row]) -> tuple[Golden, ...]:
    """Answers of the graph itself; a graph that does not load or run shows here, before anything is written."""
    mask = None
    if task == "fill-mask":
        mask = mask_token(read_tokenizer(found.preprocessor))
    return golden_answers(folder, golden_inputs(task, rows, mask))
