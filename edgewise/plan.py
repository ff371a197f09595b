"""The plan: one YAML file, validated before anything runs.

Every error names the file, the line, the key, the value, and what was expected.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_args

from edgewise.errors import PlanError, nearest, need_extra
from edgewise.types import Budget, Device, Provider, Recipe, RunSettings, Target, Task
from edgewise.units import METRICS, parse_limit

try:
    import msgspec
    from msgspec import Meta, Struct, field
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError
except ImportError as error:
    raise need_extra("profile", error) from error

Whole = Annotated[int, Meta(ge=1)]
Share = Annotated[float, Meta(gt=0, lt=1)]
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
Strategy = Literal["full", "lora", "none"]
PART_NAMES = ("train", "val", "confirm")


class LabelRule(Struct, frozen=True, forbid_unknown_fields=True):
    """A two-class label made from a number: is it above a threshold?"""

    column: str
    above: float
    drop: tuple[float, ...] = ()
    """Rows with these numbers are left out."""
    names: tuple[str, str] = ("negative", "positive")


class DataSpec(Struct, frozen=True, forbid_unknown_fields=True):
    """Where the rows come from, which columns hold what, and how they are split."""

    path: str | None = None
    """A CSV, TSV, JSON Lines or Parquet file, or asset:NAME."""
    dataset: str | None = None
    """A dataset id as `datasets.load_dataset` takes it."""
    config: str | None = None
    """The dataset's configuration."""
    text: str = "text"
    text_pair: str | None = None
    label: str | LabelRule = "label"
    format: Literal["csv", "tsv", "jsonl", "parquet"] | None = None
    """By the file's ending, unless given."""
    columns: tuple[str, ...] | None = None
    """Names of the columns of a CSV or TSV file that has no header."""
    quoting: bool = True
    """False: a quotation mark is a character like any other."""
    split: dict[str, float | str] = field(default_factory=lambda: {"train": 0.7, "val": 0.15, "confirm": 0.15})
    """Shares by a hash of the text, or names of the dataset's own splits."""
    rows: dict[str, Whole] = field(default_factory=dict)
    """At most so many rows of a part."""


class TuneSpec(Struct, frozen=True, forbid_unknown_fields=True):
    """How a candidate is fine-tuned."""

    strategy: Strategy = "full"
    epochs: Annotated[float, Meta(gt=0)] = 2
    learning_rate: Annotated[float, Meta(gt=0)] | None = None
    """By strategy unless given: 5e-5 full, 5e-4 LoRA."""
    batch_size: Whole = 32
    max_length: Annotated[int, Meta(ge=3)] = 64
    warmup: Annotated[float, Meta(ge=0, lt=1)] = 0.1
    """Share of the steps in which the learning rate rises."""
    weight_decay: Annotated[float, Meta(ge=0)] = 0.01
    keep_layers: tuple[int, ...] | None = None
    """Depth cut before training: the encoder layers that stay."""
    lora_rank: Whole = 8
    seed: int = 0
    seeds: tuple[int, ...] | None = None
    """One candidate a seed, named NAME-sN."""


class CandidateSpec(Struct, frozen=True, forbid_unknown_fields=True):
    """A model to consider: a checkpoint to tune, one that is tuned, or an ONNX folder that someone else exported."""

    name: Name
    from_: str | None = field(name="from", default=None)
    """A folder, a hub id, or asset:NAME."""
    onnx: str | None = None
    """A folder with an ONNX file, a config and a tokenizer."""
    tune: TuneSpec | Literal["none"] = "none"


class RunGrid(Struct, frozen=True, forbid_unknown_fields=True):
    """Run settings to try: every combination."""

    provider: tuple[str, ...] = ("cpu",)
    threads: tuple[Whole, ...] = (1,)
    max_length: tuple[Annotated[int, Meta(ge=3)], ...] | None = None
    batch_size: tuple[Whole, ...] = (1,)
    provider_options: dict[str, str] = field(default_factory=dict)
    graph_optimization: Literal["disabled", "basic", "extended", "all"] = "all"


class DeviceSpec(Struct, frozen=True, forbid_unknown_fields=True):
    """A device and what to try on it."""

    name: Name = "here"
    python: str | None = None
    run: RunGrid = RunGrid()


class ProfileSpec(Struct, frozen=True, forbid_unknown_fields=True):
    """How long latency is measured: it stops when the interval of `percentile` is narrower than `width`."""

    percentile: Literal["p50", "p90", "p95", "p99", "p99.9"] = "p95"
    width: Share = 0.05
    """Half width of the interval, relative to the value."""
    min_rounds: Annotated[int, Meta(ge=5)] = 5
    """Fresh processes, at least."""
    max_rounds: Annotated[int, Meta(ge=5)] = 10
    seconds: Annotated[float, Meta(gt=0)] = 1.0
    """Timed calls in one round, in seconds."""


class _PlanFile(Struct, frozen=True, forbid_unknown_fields=True):
    """The file as written; `Plan` is what it means."""

    version: Literal[1]
    task: Task
    data: DataSpec
    candidates: Annotated[tuple[CandidateSpec, ...], Meta(min_length=1)]
    recipes: Annotated[tuple[str, ...], Meta(min_length=1)]
    devices: Annotated[tuple[DeviceSpec, ...], Meta(min_length=1)] = (DeviceSpec(),)
    budgets: dict[str, str] = field(default_factory=dict)
    objective: Annotated[tuple[str, ...], Meta(min_length=1)] = ("accuracy", "p95")
    confidence: Annotated[float, Meta(ge=0.5, lt=1)] = 0.95
    profile: ProfileSpec = ProfileSpec()


@dataclass(frozen=True)
class Plan:
    """A validated plan."""

    path: Path
    task: Task
    data: DataSpec
    candidates: tuple[CandidateSpec, ...]
    """Seeds expanded: one candidate a training."""
    recipes: tuple[Recipe, ...]
    devices: tuple[Device, ...]
    targets: tuple[Target, ...]
    budgets: tuple[Budget, ...]
    objective: tuple[str, ...]
    confidence: float
    profile: ProfileSpec

    def resolve(self, path: str) -> Path:
        """A path of the plan: relative to the plan's folder, else to the working directory."""
        given = Path(path).expanduser()
        beside = self.path.parent / given
        return beside if not given.is_absolute() and beside.exists() else given


def read_plan(path: str | Path) -> Plan:
    """Read and validate a plan file. Raises PlanError."""
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise PlanError(f"{file}: no such plan file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(f"{file}: cannot be read as UTF-8 text: {error}") from error
    try:
        tree = YAML(typ="rt").load(text)
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise PlanError(f"{file}:{line}: no valid YAML: {error.problem or error.context}") from error
    except YAMLError as error:
        raise PlanError(f"{file}: no valid YAML: {error}") from error
    if not isinstance(tree, dict):
        raise PlanError(f"{file}: a plan is a mapping that starts with 'version: 1'; found {type(tree).__name__}")
    at = _Places(file, tree)
    try:
        parsed = msgspec.convert(_plain(tree), _PlanFile)
    except msgspec.ValidationError as error:
        raise at.explain(str(error)) from error
    return _checked(file, parsed, at)


def _checked(file: Path, parsed: _PlanFile, at: _Places) -> Plan:
    """What types cannot say: names that must differ, paths that must exist, limits that must parse."""
    for i, recipe in enumerate(parsed.recipes):
        at.guard(Recipe.parse, recipe, "recipes", i)
    at.unique(parsed.recipes, "recipes", "recipe")
    at.unique([d.name for d in parsed.devices], "devices", "device")
    candidates = _expand_seeds(parsed.candidates)
    at.unique([c.name for c in parsed.candidates], "candidates", "candidate")
    at.unique([c.name for c in candidates], "candidates", "candidate (with its seeds)")
    for metric in parsed.budgets:
        at.guard(lambda metric=metric: parse_limit(metric, parsed.budgets[metric]), None, "budgets", metric)
    for i, metric in enumerate(parsed.objective):
        if metric not in METRICS:
            raise at.error(f"unknown metric {metric!r}: {nearest(metric, tuple(METRICS))}", "objective", i)
    plan = Plan(
        path=file,
        task=parsed.task,
        data=parsed.data,
        candidates=candidates,
        recipes=tuple(Recipe.parse(r) for r in parsed.recipes),
        devices=tuple(Device(d.name, d.python) for d in parsed.devices),
        targets=_targets(parsed.devices, at),
        budgets=tuple(parse_limit(metric, limit) for metric, limit in parsed.budgets.items()),
        objective=parsed.objective,
        confidence=parsed.confidence,
        profile=parsed.profile,
    )
    _check_task(plan, at)
    _check_data(plan, at)
    _check_sources(parsed, plan, at)
    _check_reference(parsed, at)
    return plan


def _check_task(plan: Plan, at: _Places) -> None:
    if plan.task != "text-classification":
        raise at.error(f"task is {plan.task!r}; `fit` knows text-classification", "task")
    if plan.profile.max_rounds < plan.profile.min_rounds:
        raise at.error(
            f"max_rounds is {plan.profile.max_rounds}; expected at least min_rounds, {plan.profile.min_rounds}",
            "profile",
            "max_rounds",
        )


def _check_data(plan: Plan, at: _Places) -> None:
    data = plan.data
    if (data.path is None) == (data.dataset is None):
        raise at.error("expected either path (a file) or dataset (a dataset id)", "data")
    if data.path and not data.path.startswith("asset:") and not plan.resolve(data.path).is_file():
        raise at.error(f"path is {data.path!r}; no such file (looked in {file_folder(plan)} too)", "data", "path")
    if set(data.split) != set(PART_NAMES):
        raise at.error(f"split has {sorted(data.split)}; expected train, val and confirm", "data", "split")
    shares = [s for s in data.split.values() if not isinstance(s, str)]
    if len(shares) not in (0, 3) or (shares and (abs(sum(shares) - 1) > 1e-6 or min(shares) <= 0)):
        raise at.error(
            f"split is {dict(data.split)}; expected three shares above 0 that add up to 1, or three split names",
            "data",
            "split",
        )
    if not shares and data.dataset is None:
        raise at.error("split names the splits of a dataset id; a file is split by shares", "data", "split")
    for part in data.rows:
        if part not in PART_NAMES:
            raise at.error(f"unknown part {part!r}: {nearest(part, PART_NAMES)}", "data", "rows", part)


def file_folder(plan: Plan) -> Path:
    """The folder that the plan's relative paths start from."""
    return plan.path.parent


def _check_sources(parsed: _PlanFile, plan: Plan, at: _Places) -> None:
    for i, candidate in enumerate(parsed.candidates):
        here = ("candidates", i)
        if (candidate.from_ is None) == (candidate.onnx is None):
            raise at.error(
                f"candidate {candidate.name!r}: expected either from (a checkpoint) or onnx (a folder)", *here
            )
        if candidate.onnx is not None:
            if not plan.resolve(candidate.onnx).is_dir():
                raise at.error(f"onnx is {candidate.onnx!r}; no such folder", *here, "onnx")
            if candidate.tune != "none":
                raise at.error(
                    f"candidate {candidate.name!r}: an ONNX folder cannot be tuned; remove tune", *here, "tune"
                )
        elif (
            candidate.from_ is not None
            and looks_like_path(candidate.from_)
            and not plan.resolve(candidate.from_).is_dir()
        ):
            raise at.error(f"from is {candidate.from_!r}; no such folder", *here, "from")


def looks_like_path(source: str) -> bool:
    """True for what can only be a local path, not a hub id (name or owner/name) nor an asset."""
    return not source.startswith("asset:") and (
        source.startswith((".", "/", "~")) or source.count("/") > 1 or Path(source).exists() or "\\" in source
    )


def _check_reference(parsed: _PlanFile, at: _Places) -> None:
    for metric, limit in parsed.budgets.items():
        reference = parse_limit(metric, limit).relative_to
        if reference is not None and reference not in parsed.recipes:
            raise at.error(
                f"{metric} is measured against recipe {reference!r}, which is not among the plan's recipes: add it",
                "budgets",
                metric,
            )


def _expand_seeds(candidates: tuple[CandidateSpec, ...]) -> tuple[CandidateSpec, ...]:
    expanded: list[CandidateSpec] = []
    for candidate in candidates:
        if isinstance(candidate.tune, TuneSpec) and candidate.tune.seeds:
            for seed in candidate.tune.seeds:
                tune = msgspec.structs.replace(candidate.tune, seed=seed, seeds=None)
                expanded.append(msgspec.structs.replace(candidate, name=f"{candidate.name}-s{seed}", tune=tune))
        else:
            expanded.append(candidate)
    return tuple(expanded)


def _targets(devices: tuple[DeviceSpec, ...], at: _Places) -> tuple[Target, ...]:
    targets = []
    for i, device in enumerate(devices):
        grid, level = device.run, device.run.graph_optimization
        for j, provider in enumerate(grid.provider):
            if provider not in get_args(Provider):
                known = nearest(provider, get_args(Provider))
                raise at.error(f"unknown provider {provider!r}: {known}", "devices", i, "run", "provider", j)
        targets += [
            Target(device.name, RunSettings(provider, grid.provider_options, threads, length, batch, level))
            for provider in cast("tuple[Provider, ...]", grid.provider)  # each was checked just above
            for threads in grid.threads
            for length in (grid.max_length or (None,))
            for batch in grid.batch_size
        ]
    return tuple(targets)


def _plain(node: Any) -> Any:
    """ruamel's round-trip containers and scalars as plain ones, which msgspec takes."""
    if isinstance(node, dict):
        return {str(k): _plain(v) for k, v in node.items()}
    if isinstance(node, list):
        return [_plain(v) for v in node]
    for kind in (bool, int, float, str):
        if isinstance(node, kind):
            return kind(node)
    return node


class _Places:
    """Knows at which line of the file a key stands."""

    _AT = re.compile(r" - at `(?P<path>[^`]*)`$")
    _STEP = re.compile(r"\.(?P<key>[^.\[]+)|\[(?P<index>\d+|\.\.\.)\]")
    _UNKNOWN = re.compile(r"^Object contains unknown field `(?P<key>.*)`$")

    def __init__(self, file: Path, tree: Any) -> None:
        self.file, self.tree = file, tree

    def error(self, message: str, *keys: str | int) -> PlanError:
        return PlanError(f"{self.file}:{self.line(keys)}: {self.path(keys)}: {message}")

    def guard(self, check: Any, value: Any, *keys: str | int) -> None:
        """Run a check, and give its PlanError the place."""
        try:
            check() if value is None else check(value)
        except PlanError as error:
            raise self.error(str(error), *keys) from error

    def unique(self, names: Any, where: str, what: str) -> None:
        seen: set[str] = set()
        for i, name in enumerate(names):
            if name in seen:
                raise self.error(f"{what} {name!r} stands here twice; each name must differ", where, i)
            seen.add(name)

    def explain(self, message: str) -> PlanError:
        """msgspec's message, with the line, the value, and the nearest key where one is unknown."""
        found = self._AT.search(message)
        keys: list[str | int] = []
        for step in self._STEP.finditer(found["path"][1:] if found else ""):
            # [...] is msgspec's word for 'some value of this mapping'
            if step["index"] != "...":
                keys.append(int(step["index"]) if step["index"] else step["key"])
        text = message[: found.start()] if found else message
        if unknown := self._UNKNOWN.match(text):
            known = self._known_keys(keys)
            return self.error(
                f"unknown key {unknown['key']!r}: {nearest(unknown['key'], known)}", *keys, unknown["key"]
            )
        if (value := self._value(keys)) is not None and not isinstance(value, dict | list):
            text += f"; the value is {value!r}"
        return self.error(text, *keys)

    def _known_keys(self, keys: list[str | int]) -> tuple[str, ...]:
        kind: Any = _PlanFile
        for key in keys:
            kind = _inner(kind) if isinstance(key, int) else _inner(msgspec.structs.fields(kind)[0].type, kind, key)
        return tuple(f.encode_name for f in msgspec.structs.fields(kind))

    def _value(self, keys: list[str | int]) -> Any:
        node = self.tree
        for key in keys:
            try:
                node = node[key]
            except (KeyError, IndexError, TypeError):
                return None
        return node

    def line(self, keys: tuple[str | int, ...] | list[str | int]) -> int:
        """1-based line of the deepest key that the file has."""
        node: Any = self.tree
        line = 0
        for key in keys:
            try:
                if isinstance(node, dict):
                    line = node.lc.key(key)[0]
                else:
                    line = node.lc.item(key)[0]
                node = node[key]
            except (KeyError, IndexError, TypeError, AttributeError):
                break
        return int(line) + 1

    @staticmethod
    def path(keys: tuple[str | int, ...] | list[str | int]) -> str:
        text = ""
        for key in keys:
            text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else key
        return text or "plan"


def _inner(kind: Any, parent: Any = None, key: str = "") -> Any:
    """The Struct inside a field's type: through tuples, unions and annotations."""
    if parent is not None:
        kind = next((f.type for f in msgspec.structs.fields(parent) if f.encode_name == key), _PlanFile)
    if isinstance(kind, type) and issubclass(kind, Struct):
        return kind
    for arg in get_args(kind):
        if (found := _inner(arg)) is not None:
            return found
    return None
