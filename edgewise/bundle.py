"""The bundle: a Hugging Face model folder with its graphs under onnx/ and one file of ours, edgewise.json.

It is the only thing that crosses from the build side to a device, so reading one needs the standard library alone.
Hashes show corruption, not an attacker: to be sure of what is loaded, pin the content digest (`expect=`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args

from edgewise.errors import BundleChangedError, BundleError, BundleNotFoundError, BundleVersionError
from edgewise.files import digest_json, sha256_file, write_json
from edgewise.stamp import Stamp, is_stamped, read_stamp, write_stamp
from edgewise.types import Recipe, RunSettings, Task, recipe_from_dict, run_from_dict

FORMAT = "1.1"
MANIFEST = "edgewise.json"
CARD = "README.md"
"""The model card; outside the content digest, since the selector writes it last."""

Verify = Literal["full", "stamp", "none"]


@dataclass(frozen=True)
class TensorInfo:
    """One input or output of a graph."""

    name: str
    dtype: str
    """As ONNX names it: int64, float32."""
    shape: tuple[int | str, ...]
    """Symbolic dimensions by name."""


@dataclass(frozen=True)
class GraphInfo:
    """What `inspect` tells of a graph without the onnx package."""

    file: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    opset: int
    optimization_level: str
    """'none' as exported, or Optimum's level."""
    min_onnxruntime: str
    """The smallest onnxruntime that runs it, from the graph's IR version and opset."""
    node_types: Mapping[str, int]
    bytes_by_part: Mapping[str, int]
    """File size split into 'embeddings', 'other weights' and 'structure', and 'weights <dtype>' by precision."""


@dataclass(frozen=True)
class Golden:
    """One input with what the bundle answered when it was made: a smoke test anywhere."""

    text: str
    """Empty for an image."""
    text_pair: str | None
    input_ids: tuple[int, ...]
    output: tuple[float, ...]
    """float32: logits (classification, a row a token for tokens), or the vector of features; empty for generation."""
    shape: tuple[int, ...] = ()
    """Of the output; [1, n] where it is empty."""
    tokens: tuple[int, ...] = ()
    """Token ids that were written greedily, or the best one for each mask."""
    image: str | None = None
    """A small PNG in base64."""


@dataclass(frozen=True)
class FileInfo:
    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """edgewise.json, format 1.1."""

    task: Task
    family: str
    """config.model_type, for example bert."""
    labels: tuple[str, ...]
    problem_type: str | None
    preprocessing: Mapping[str, Any]
    """tokenizer file, max_length (what the model allows), pad_id, inputs (names the graph takes)."""
    recipe: Recipe
    source: Mapping[str, Any]
    """candidate, checkpoint, digest of its weights."""
    bundle_key: str
    """Hash of what it was made from: weights, recipe, calibration rows, tool versions."""
    content_digest: str
    """Hash of what it is: graphs, tokenizer, configs, labels and preprocessing. Measurements refer to it."""
    graphs: tuple[GraphInfo, ...]
    parity: Mapping[str, Any]
    """Against PyTorch: largest absolute and relative difference, agreement, tolerance, rows; or why there is none."""
    golden: tuple[Golden, ...]
    loads_in: Mapping[str, Any]
    files: Mapping[str, FileInfo]
    pooling: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    """Of the tools that made it."""
    run: RunSettings = field(default_factory=RunSettings)
    """Outside the digest; written by the selector, used by `edgewise.load` unless overridden."""
    chosen: Mapping[str, Any] | None = None
    """Why the selector chose it, outside the digest."""
    format: str = FORMAT

    @property
    def size(self) -> int:
        """Bytes of every file of the bundle but its card and manifest."""
        return sum(info.size for info in self.files.values())


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk: its folder and its manifest."""

    path: Path
    manifest: Manifest

    @property
    def digest(self) -> str:
        return self.manifest.content_digest


def digest_content(manifest_fields: Mapping[str, Any], files: Mapping[str, FileInfo]) -> str:
    """The content digest: over every file's hash and the manifest's fields that change an answer."""
    return digest_json(
        {
            "files": {name: info.sha256 for name, info in files.items()},
            **{k: manifest_fields[k] for k in ("task", "problem_type", "labels", "pooling", "preprocessing")},
        }
    )


def list_files(folder: Path) -> dict[str, FileInfo]:
    """Size and sha256 of every file in a bundle folder but its manifest and card, by POSIX path."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        if name not in (MANIFEST, CARD):
            found[name] = FileInfo(path.stat().st_size, sha256_file(path))
    return found


def write_manifest(folder: Path, manifest: Manifest) -> Bundle:
    """Write edgewise.json into `folder`, whole or not at all."""
    write_json(folder / MANIFEST, asdict(manifest))
    return Bundle(folder, manifest)


def with_run(bundle: Bundle, run: RunSettings, chosen: Mapping[str, Any] | None = None) -> Bundle:
    """The same bundle with other run settings, written to its manifest; the content digest does not change."""
    return write_manifest(bundle.path, replace(bundle.manifest, run=run, chosen=chosen))


def read_bundle(path: str | os.PathLike[str], *, verify: Verify = "full", expect: str | None = None) -> Bundle:
    """Read and check a bundle.

    verify: 'full' hashes every file; 'stamp' hashes once, and later only sees that size, time and inode of each file
    are what they were then; 'none' only sees that the files are there.
    expect: the content digest that the bundle must have, 'sha256:...'.

    Raises BundleNotFoundError, BundleVersionError, BundleChangedError, or BundleError for a manifest that is not one.
    """
    folder = Path(path)
    file = folder / MANIFEST
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        what = "no such folder" if not folder.exists() else f"it has no {MANIFEST}"
        raise BundleNotFoundError(f"{folder} is no bundle: {what}; make one with `edgewise export`") from error
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"{file} cannot be read: {error}") from error
    manifest = _parse_manifest(file, text)
    if verify not in get_args(Verify):
        raise BundleError(f"verify={verify!r}; expected {', '.join(map(repr, get_args(Verify)))}")
    stamp = _stamp(folder, manifest) if verify == "stamp" else None
    if stamp is None or not is_stamped(folder, text, stamp):
        _check_files(folder, manifest.files, hashes=verify != "none")
        _check_digest(folder, manifest, expect, computed=verify != "none")
        if stamp is not None:  # as the files were before they were hashed: a change since then shows
            write_stamp(folder, text, stamp)
    elif expect is not None:
        _check_digest(folder, manifest, expect, computed=False)
    return Bundle(folder, manifest)


def _stamp(folder: Path, manifest: Manifest) -> Stamp | None:
    try:
        return read_stamp(folder, manifest.files)
    except OSError:
        return None  # a file is missing: the check of the files says which


def _parse_manifest(file: Path, text: str) -> Manifest:
    try:
        data = json.loads(text)
    except ValueError as error:
        raise BundleError(f"{file} is no JSON: {error}; export the bundle again") from error
    if not isinstance(data, dict) or "format" not in data:
        raise BundleError(f"{file} has no 'format': it is no bundle manifest; export the bundle again")
    major = str(data["format"]).partition(".")[0]
    if not major.isdigit():
        raise BundleVersionError(f"{file}: format {data['format']!r} is no version; expected one like {FORMAT!r}")
    if int(major) > int(FORMAT.partition(".")[0]):
        raise BundleVersionError(
            f"{file} has format {data['format']}, this edgewise reads up to {FORMAT}: update edgewise on this machine"
        )
    try:
        return _manifest_from_dict(data)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise BundleError(f"{file} is not a manifest of format {FORMAT}: {error!r}; export the bundle again") from error


def _manifest_from_dict(data: Mapping[str, Any]) -> Manifest:
    # By hand, since msgspec is not on the device; unknown keys belong to a newer minor format and are left alone.
    values = {f.name: data[f.name] for f in fields(Manifest) if f.name in data}
    values["labels"] = tuple(data["labels"])
    values["recipe"] = recipe_from_dict(data["recipe"])
    values["run"] = run_from_dict(data.get("run", {}))
    values["graphs"] = tuple(_graph_from_dict(g) for g in data["graphs"])
    values["golden"] = tuple(_golden_from_dict(g) for g in data["golden"])
    values["files"] = {
        _inside(name): FileInfo(int(info["size"]), str(info["sha256"])) for name, info in data["files"].items()
    }
    return Manifest(**values)


def _golden_from_dict(data: Mapping[str, Any]) -> Golden:
    lists = {name: tuple(data.get(name, ())) for name in ("input_ids", "output", "shape", "tokens")}
    return Golden(text=data["text"], text_pair=data.get("text_pair"), image=data.get("image"), **lists)


def _graph_from_dict(data: Mapping[str, Any]) -> GraphInfo:
    def tensors(items: Iterable[Mapping[str, Any]]) -> tuple[TensorInfo, ...]:
        return tuple(TensorInfo(t["name"], t["dtype"], tuple(t["shape"])) for t in items)

    values = {f.name: data[f.name] for f in fields(GraphInfo) if f.name in data}
    values |= {
        "file": _inside(data["file"]),
        "inputs": tensors(data["inputs"]),
        "outputs": tensors(data["outputs"]),
    }
    return GraphInfo(**values)


def _inside(name: str) -> str:
    """Refuse a path that leaves the bundle folder."""
    parts = PurePosixPath(name)
    if not name or parts.is_absolute() or ".." in parts.parts or "\\" in name or ":" in name or "\0" in name:
        raise BundleError(f"the manifest names {name!r}, a path that leaves the bundle: do not use this bundle")
    return name


def _check_files(folder: Path, files: Mapping[str, FileInfo], *, hashes: bool) -> None:
    root = folder.resolve()
    for name, info in files.items():
        path = folder / name
        # A link could lead out of the folder although its name does not.
        if not path.resolve().is_relative_to(root):
            raise BundleError(f"{path} leads out of the bundle: do not use this bundle")
        if not path.is_file():
            raise BundleChangedError(f"{path} is missing; export or copy the bundle again")
        if not hashes:
            continue
        size = path.stat().st_size
        if size != info.size:
            raise BundleChangedError(
                f"{path} has {size} bytes, the manifest says {info.size}; export or copy the bundle again"
            )
        if (found := sha256_file(path)) != info.sha256:
            told = f"{found[:12]}…, the manifest says {info.sha256[:12]}…"
            raise BundleChangedError(f"{path} has sha256 {told}; export or copy the bundle again")


def _check_digest(folder: Path, manifest: Manifest, expect: str | None, *, computed: bool) -> None:
    if computed or expect is not None:
        data = asdict(manifest)
        found = digest_content(data, manifest.files)
        if found != manifest.content_digest:
            raise BundleChangedError(
                f"{folder / MANIFEST}: its content digest is {manifest.content_digest[:19]}…, but its files and labels "
                f"give {found[:19]}…; export or copy the bundle again"
            )
    if expect is not None and expect != manifest.content_digest:
        raise BundleChangedError(f"{folder} has content digest {manifest.content_digest}, expected {expect}")
