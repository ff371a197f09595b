"""`import_onnx`: an ONNX file that someone else exported becomes a bundle, without parity, and says so."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgewise.bundle import Bundle, Golden, Manifest, digest_content, list_files, read_bundle, write_manifest
from edgewise.data import Row
from edgewise.errors import BundleError, CheckpointError
from edgewise.exporter import checkpoint as checkpoints
from edgewise.exporter.build import tool_versions
from edgewise.exporter.graphs import read_graph
from edgewise.exporter.parity import FALLBACK_TEXTS, GOLDEN_ROWS
from edgewise.exporter.preprocessing import read_preprocessing, write_tokenizer
from edgewise.files import digest_json, new_folder, sha256_file
from edgewise.sources import check_model_folder
from edgewise.types import Precision, Recipe, Task

NO_PARITY = "the graph was exported elsewhere: there is no PyTorch model to compare with"


def import_onnx(
    source: str | Path,
    *,
    out: str | Path,
    task: Task = "text-classification",
    labels: Sequence[str] | None = None,
    candidate: str | None = None,
    rows: Sequence[Row] = (),
) -> Bundle:
    """Make a bundle, in the folder `out`, of a folder with an ONNX graph, its config.json and its tokenizer.

    labels: in the order of the outputs; config.json's id2label unless given.
    rows: texts for the golden answers.

    Raises CheckpointError for what is missing or more than one, BundleError for a graph that does not run.
    """
    folder, target = Path(source), Path(out)
    if task != "text-classification":
        raise CheckpointError(f"{folder}: this version of edgewise takes text-classification, not {task}")
    graph = find_graph(folder)
    config = _config(folder, labels)
    key = digest_json({"graph": sha256_file(graph), "config": config, "tools": tool_versions()})
    if (found := _finished(target, key)) is not None:
        return found
    with new_folder(target) as work:
        (work / "onnx").mkdir()
        shutil.copyfile(graph, work / "onnx" / "model.onnx")
        for data in graph.parent.glob(graph.name + "_data"):
            if graph.name != "model.onnx":
                raise CheckpointError(f"{graph} has external data: rename both to model.onnx and model.onnx_data first")
            shutil.copyfile(data, work / "onnx" / data.name)
        (work / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        write_tokenizer(folder, work)
        name = candidate or folder.name
        write_manifest(work, _manifest(work, config, key=key, graph=graph, candidate=name, golden=()))
        golden = _golden(work, rows)
        write_manifest(work, _manifest(work, config, key=key, graph=graph, candidate=name, golden=golden))
    return read_bundle(target)


def find_graph(folder: Path) -> Path:
    """The one ONNX file of a folder: model.onnx, onnx/model.onnx, or the only one there is."""
    for name in ("model.onnx", "onnx/model.onnx"):
        if (folder / name).is_file():
            return folder / name
    found = sorted(folder.rglob("*.onnx"))
    if len(found) == 1:
        return found[0]
    what = f"{len(found)} ONNX files, none named model.onnx" if found else "no ONNX file"
    raise CheckpointError(f"{folder} has {what}; expected model.onnx, onnx/model.onnx, or one file")


def precision_of(node_types: dict[str, int] | Any) -> Precision:
    """What a graph's node types tell of its precision."""
    if any("Integer" in kind or kind == "DynamicQuantizeLinear" for kind in node_types):
        return "int8-dynamic"
    return "int8-static" if "QuantizeLinear" in node_types or "QLinearMatMul" in node_types else "fp32"


def _finished(folder: Path, key: str) -> Bundle | None:
    try:
        bundle = read_bundle(folder, verify="size")
    except BundleError:
        return None
    return bundle if bundle.manifest.bundle_key == key else None


def _config(folder: Path, labels: Sequence[str] | None) -> dict[str, Any]:
    file = folder / "config.json"
    if not file.is_file():
        raise CheckpointError(
            f"{folder} has no config.json: copy the one that stood beside the model when it was trained"
        )
    try:
        config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{file} is no JSON: {error}") from error
    check_model_folder(folder)
    if labels is not None:
        config["id2label"] = {str(i): label for i, label in enumerate(labels)}
        config["label2id"] = {label: i for i, label in enumerate(labels)}
    if not config.get("id2label"):
        raise CheckpointError(f"{file} names no labels (id2label): give them with --labels")
    return config


def _manifest(
    folder: Path, config: dict[str, Any], *, key: str, graph: Path, candidate: str, golden: Sequence[Golden]
) -> Manifest:
    info = read_graph(folder, "onnx/model.onnx", "unknown")
    source = checkpoints.Checkpoint(folder, config, key)
    outputs = info.outputs[0].shape[-1] if info.outputs[0].shape else None
    if isinstance(outputs, int) and outputs != len(source.labels):
        raise CheckpointError(f"{graph} gives {outputs} numbers a text, but there are {len(source.labels)} labels")
    files = list_files(folder)
    values: dict[str, Any] = {
        "task": "text-classification",
        "problem_type": source.problem_type,
        "labels": source.labels,
        "pooling": None,
        "preprocessing": read_preprocessing(folder, config, [i.name for i in info.inputs]),
    }
    recipe = Recipe(precision=precision_of(info.node_types))
    return Manifest(
        **values,
        family=source.family,
        recipe=recipe,
        source={"recipe": recipe.name, "candidate": candidate, "onnx": graph.name},
        bundle_key=key,
        content_digest=digest_content(values, files),
        graphs=(info,),
        parity={"against": None, "why": NO_PARITY},
        golden=tuple(golden),
        loads_in={},
        files=files,
        versions=tool_versions(),
    )


def _golden(folder: Path, rows: Sequence[Row]) -> tuple[Golden, ...]:
    """Answers of the graph itself; a graph that does not run shows here, before anything is written."""
    from edgewise.runtime import load

    texts = [r.text for r in rows[:GOLDEN_ROWS]] or list(FALLBACK_TEXTS)
    with load(folder, verify="none") as model:
        return tuple(
            Golden(t, None, tuple(model.token_ids(t)), tuple(float(x) for x in model.logits([t])[0])) for t in texts
        )
