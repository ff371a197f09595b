"""The plan: one YAML file, validated before anything runs.

Every error names the file, the line, the key, the value, and what was expected.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, cast, get_args

from edgewise.arrival import NUMBERS, arrivals_of, measured_by
from edgewise.errors import PlanError, nearest, need_extra
from edgewise.types import (
    MOST_THREADS,
    TRAINED_TASKS,
    WRITING_TASKS,
    Budget,
    Device,
    Provider,
    Recipe,
    RunSettings,
    Target,
    Task,
    TimedScenario,
)
from edgewise.units import METRICS, QUALITY, RELATIVE, WORST, check_metric, check_weights, parse_limit

try:
    import msgspec
    from msgspec import Meta, Struct, field

    from edgewise.data_spec import DataSpec, LabelRule, Whole, asset_known, check_data
    from edgewise.inventory import HERE, INVENTORY, MachineSpec, Name, device_of, inventory_at
    from edgewise.places import Key, Places, read_yaml
except ImportError as error:
    raise need_extra("profile", error) from error

__all__ = [
    "CandidateSpec", "DataSpec", "DeviceSpec", "LabelRule", "Plan", "ProfileSpec", "RunGrid", "Strategy", "TuneSpec",
    "Whole", "check_metrics", "looks_like_path", "read_plan",
]  # fmt: skip

Seed = Annotated[int, Meta(ge=0, lt=2**32)]
Share = Annotated[float, Meta(gt=0, lt=1)]
Strategy = Literal["full", "ffn", "prompt", "lora", "none"]
SearchMode = Literal["all", "race", "optuna"]
"""all: measure every bundle on every target. race: as much as the choice needs. optuna: a race among the points that
Optuna proposes."""
RACE_FROM = 48
"""Points (bundle and target) up to which everything is measured, unless the plan says otherwise."""


class TuneSpec(Struct, frozen=True, forbid_unknown_fields=True):
    """How a candidate is fine-tuned."""

    strategy: Strategy = "full"
    epochs: Annotated[float, Meta(gt=0)] = 2
    learning_rate: Annotated[float, Meta(gt=0)] | None = None
    """By strategy unless given: 5e-5 full, 1e-4 feed-forward only, 5e-4 LoRA, 1e-2 prompt."""
    batch_size: Whole = 32
    max_length: Annotated[int, Meta(ge=3)] = 64
    warmup: Annotated[float, Meta(ge=0, lt=1)] = 0.1
    """Share of the steps in which the learning rate rises."""
    weight_decay: Annotated[float, Meta(ge=0)] = 0.01
    keep_layers: Annotated[tuple[Annotated[int, Meta(ge=0)], ...], Meta(min_length=1)] | None = None
    """Depth cut before training: the layers that stay, of the encoder and, where there is one, of the decoder."""
    lora_rank: Whole = 8
    prompt_tokens: Whole = 16
    """Virtual tokens of prompt tuning."""
    teacher: str | None = None
    """A larger candidate of the plan (or a tuned folder) whose answers are learned beside the labels."""
    temperature: Annotated[float, Meta(gt=0)] = 2.0
    """Of distillation."""
    teacher_weight: Annotated[float, Meta(ge=0, le=1)] = 0.5
    """Share of the teacher's answers in the loss; the labels have the rest."""
    class_weights: Literal["balanced"] | dict[str, Annotated[float, Meta(gt=0)]] | None = None
    """Weights of the classes in the loss; balanced: rows / (classes x rows of the class)."""
    early_stopping: Whole | None = None
    """Stop when the val metric has not improved for so many epochs, and keep the best epoch."""
    metric: str | None = None
    """The val metric, the task's own unless given: a name of edgewise.metrics, 'hub:NAME' or 'file.py:function'."""
    seed: Seed = 0
    seeds: tuple[Seed, ...] | None = None
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
    threads: tuple[Annotated[int, Meta(ge=1, le=MOST_THREADS)], ...] = (1,)
    max_length: tuple[Annotated[int, Meta(ge=3)], ...] | None = None
    batch_size: tuple[Whole, ...] = (1,)
    provider_options: dict[str, str] = field(default_factory=dict)
    graph_optimization: Literal["disabled", "basic", "extended", "all"] = "all"


class DeviceSpec(MachineSpec, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A device and what to try on it."""

    name: Name = "here"
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
    scenarios: tuple[TimedScenario, ...] = ()
    """How queries come: MLPerf's single-stream, multi-stream, offline and server; paced, sustained or generation. In a
    plan that was read never empty: unless named, generation for models that write, single-stream for the others."""
    streams: Whole | None = None
    """Inputs of a multi-stream query; None: 8."""
    rate: Annotated[float, Meta(gt=0)] | None = None
    """Queries a second of server."""
    every_ms: Annotated[float, Meta(gt=0)] | None = None
    """Milliseconds between the queries of paced."""
    minutes: Annotated[float, Meta(gt=0)] | None = None
    """Of sustained."""
    new_tokens: Annotated[int, Meta(ge=2)] | None = None
    """Tokens to write in a query of generation; None: 32."""


class _PlanFile(Struct, frozen=True, forbid_unknown_fields=True):
    """The file as written; `Plan` is what it means."""

    version: Literal[1]
    task: Task
    data: DataSpec
    candidates: Annotated[tuple[CandidateSpec, ...], Meta(min_length=1)]
    recipes: Annotated[tuple[str, ...], Meta(min_length=1)]
    devices: Annotated[tuple[DeviceSpec, ...], Meta(min_length=1)] = (DeviceSpec(),)
    budgets: dict[str, str] = field(default_factory=dict)
    objective: (
        Annotated[tuple[str, ...], Meta(min_length=1)] | Annotated[dict[str, float], Meta(min_length=1)] | None
    ) = None
    confidence: Annotated[float, Meta(ge=0.5, lt=1)] = 0.95
    profile: ProfileSpec = ProfileSpec()
    search: SearchMode | None = None


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
    """In order; with `weights` all at once."""
    confidence: float
    profile: ProfileSpec
    weights: tuple[float, ...] = ()
    """Of the objectives; empty: they hold in order."""
    search: SearchMode | None = None
    """As the plan has it."""

    @property
    def points(self) -> int:
        """Bundles times targets."""
        return sum(1 if c.onnx else len(self.recipes) for c in self.candidates) * len(self.targets)

    @property
    def races(self) -> bool:
        """Whether as much is measured as the choice needs, not everything."""
        return self.points > RACE_FROM if self.search is None else self.search != "all"

    @property
    def reference(self) -> str:
        """The recipe that drops are measured against."""
        return next((b.relative_to for b in self.budgets if b.relative_to), "fp32")

    def resolve(self, path: str) -> Path:
        """A path of the plan: relative to the plan's folder, else to the working directory."""
        given = Path(path).expanduser()
        beside = self.path.parent / given
        return beside if not given.is_absolute() and beside.exists() else given


def read_plan(path: str | Path) -> Plan:
    """Read and validate a plan file. Raises PlanError."""
    file = Path(path)
    parsed, at = read_yaml(file, _PlanFile, "plan")
    return _checked(file, parsed, at)


def _checked(file: Path, parsed: _PlanFile, at: Places) -> Plan:
    """What types cannot say: names that must differ, paths that must exist, limits that must parse."""
    recipes = tuple(at.guard(Recipe.parse, recipe, "recipes", i) for i, recipe in enumerate(parsed.recipes))
    budgets = tuple(
        at.guard(lambda text, metric=metric: parse_limit(metric, text), text, "budgets", metric)
        for metric, text in parsed.budgets.items()
    )
    weights = _weights(parsed, at)
    at.unique([r.name for r in recipes], "recipe", "recipes")
    at.unique([d.name for d in parsed.devices], "device", "devices")
    at.unique([c.name for c in parsed.candidates], "candidate", "candidates")
    at.unique(tuple(parsed.objective or ()), "metric", "objective")
    plan = Plan(
        path=file,
        task=parsed.task,
        data=parsed.data,
        candidates=_expand_seeds(parsed.candidates, at),
        recipes=recipes,
        devices=_devices(file, parsed.devices, at),
        targets=_targets(parsed.devices, at),
        budgets=budgets,
        objective=_objective(parsed),
        weights=weights,
        confidence=parsed.confidence,
        profile=_profile(parsed),
        search=parsed.search,
    )
    _check_task(plan, at)
    _check_scenarios(plan, at)
    for budget in plan.budgets:
        at.guard(partial(check_measured, plan), budget.metric, "budgets", budget.metric)
    for i, name in enumerate(plan.objective):
        at.guard(partial(check_measured, plan), name, "objective", name if plan.weights else i)
    _check_teachers(parsed, plan, at)
    check_data(plan, at)
    _check_sources(parsed, plan, at)
    _check_reference(plan, at)
    return plan


_QUICK: Mapping[TimedScenario, str] = {
    "generation": "token_throughput", "single-stream": "p95", "server": "server_p95", "paced": "paced_p95",
    "multi-stream": "multistream_p95", "offline": "offline_throughput", "sustained": "sustained_throughput",
}  # fmt: skip
"""Scenario -> how fast it is, the first that a plan has."""


def _objective(parsed: _PlanFile) -> tuple[str, ...]:
    """As given; else the first metric of the task, then how fast it is."""
    if parsed.objective is not None:
        return tuple(parsed.objective)
    quick = next(_QUICK[s] for s in _QUICK if s in _profile(parsed).scenarios)
    if parsed.task not in TRAINED_TASKS:
        return (quick,)  # the task itself is what is wrong
    from edgewise.metrics import default_metrics

    return default_metrics(parsed.task, parsed.data.problem_type)[0], quick


def _profile(parsed: _PlanFile) -> ProfileSpec:
    """With the scenario of the task where none is named."""
    if parsed.profile.scenarios:
        return parsed.profile
    usual: TimedScenario = "generation" if parsed.task in WRITING_TASKS else "single-stream"
    return msgspec.structs.replace(parsed.profile, scenarios=(usual,))


def _weights(parsed: _PlanFile, at: Places) -> tuple[float, ...]:
    """Of objectives that are given with them; every objective is checked."""
    if not isinstance(parsed.objective, dict):
        for i, metric in enumerate(parsed.objective or ()):
            at.guard(check_metric, metric, "objective", i)
        return ()
    for metric, weight in parsed.objective.items():
        at.guard(check_metric, metric, "objective", metric)
        at.guard(lambda w, metric=metric: check_weights([metric], [w]), weight, "objective", metric)
    return tuple(parsed.objective.values())


def _check_task(plan: Plan, at: Places) -> None:
    if plan.task not in TRAINED_TASKS:
        raise at.error(f"task is {plan.task!r}; expected {', '.join(TRAINED_TASKS)}", "task")
    if plan.profile.max_rounds < plan.profile.min_rounds:
        raise at.error(
            f"max_rounds is {plan.profile.max_rounds}; expected at least min_rounds, {plan.profile.min_rounds}",
            "profile",
            "max_rounds",
        )


def _check_scenarios(plan: Plan, at: Places) -> None:
    at.unique(plan.profile.scenarios, "scenario", "profile", "scenarios")
    if "generation" in plan.profile.scenarios and plan.task not in WRITING_TASKS:
        raise at.error(
            f"scenario generation is for models that write ({', '.join(WRITING_TASKS)}), not for {plan.task}",
            "profile",
            "scenarios",
        )
    at.guard(arrivals_of, plan.profile, "profile", "scenarios")
    for name, scenario in NUMBERS.items():
        key = "every_ms" if name == "every" else name
        value = getattr(plan.profile, key)
        if value is not None and scenario not in plan.profile.scenarios:
            raise at.error(
                f"{key} is {value:g}; it is for the scenario {scenario}, which is not among the scenarios: "
                f"{', '.join(plan.profile.scenarios)}",
                "profile",
                key,
            )


def check_metrics(plan: Plan) -> None:
    """Raise PlanError for an objective or a budget that a plan which no file had does not measure."""
    for name in (*plan.objective, *(b.metric for b in plan.budgets)):
        check_measured(plan, name)


def check_measured(plan: Plan, name: str) -> None:
    """Raise PlanError for a metric that is not measured of the plan's task, or not by its scenarios and slices."""
    from edgewise.metric_inputs import kind_of
    from edgewise.metrics import default_metrics

    kind = kind_of(plan.task, plan.data.problem_type)
    what = plan.task if plan.task != "text-classification" else plan.data.problem_type
    known = default_metrics(plan.task, plan.data.problem_type)
    if kind == "logprob":
        known = (*known, "perplexity_ratio")
    elif kind != "number":  # no two numbers are the same
        known = (*known, *(n for n in RELATIVE if n != "perplexity_ratio"))
    base = name.removeprefix(WORST)
    if base not in known and (base in QUALITY or base in RELATIVE):
        raise PlanError(
            f"{name} is not measured of {what}, so nothing could meet it; expected one of {', '.join(known)}, or "
            f"{'ttft_p95' if kind in ('text', 'logprob') else 'p95'}, peak_rss, size and their kin ({len(METRICS)} in "
            "docs/plan.md)"
        )
    if name != base and not plan.data.slices:
        raise PlanError(f"{name} is not measured without slices: name columns of the data by data: slices")
    by = [s for s in measured_by(name) if s != "generation" or plan.task in WRITING_TASKS]
    if measured_by(name) and not set(by) & set(plan.profile.scenarios):
        named = " or ".join(by or measured_by(name))
        there = ", ".join(plan.profile.scenarios)
        raise PlanError(
            f"{name} is measured by the scenario {named}, which is not among those of the plan ({there}): add it to "
            "profile: scenarios"
        )


def _check_sources(parsed: _PlanFile, plan: Plan, at: Places) -> None:
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
            and not asset_known(candidate.from_, at, *here, "from")
            and looks_like_path(candidate.from_)
            and not plan.resolve(candidate.from_).is_dir()
        ):
            raise at.error(f"from is {candidate.from_!r}; no such folder", *here, "from")


def looks_like_path(source: str) -> bool:
    """True for what can only be a local path, not a hub id (name or owner/name) nor an asset."""
    return not source.startswith("asset:") and (
        source.startswith((".", "/", "~")) or source.count("/") > 1 or Path(source).exists() or "\\" in source
    )


def _check_teachers(parsed: _PlanFile, plan: Plan, at: Places) -> None:
    """A teacher is trained before its student: a candidate that stands above it, or a folder."""
    above: set[str] = set()
    names = {c.name for c in plan.candidates}
    for i, candidate in enumerate(parsed.candidates):
        tune = candidate.tune if isinstance(candidate.tune, TuneSpec) else None
        teacher = tune.teacher if tune else None
        if teacher is not None and teacher not in above:
            here = ("candidates", i, "tune", "teacher")
            if teacher in names:
                raise at.error(
                    f"teacher is {teacher!r}, which does not stand above {candidate.name!r}: move it up", *here
                )
            if not plan.resolve(teacher).is_dir():
                known = nearest(teacher, sorted(above)) if above else "no candidate stands above it"
                raise at.error(f"teacher is {teacher!r}; no such candidate or folder: {known}", *here)
        above |= {candidate.name} if not (tune and tune.seeds) else {f"{candidate.name}-s{s}" for s in tune.seeds}


def _check_reference(plan: Plan, at: Places) -> None:
    for budget in plan.budgets:
        reference = budget.relative_to
        if reference is not None and reference != plan.reference:
            raise at.error(
                f"{budget.metric} is measured against {reference!r}, another budget against {plan.reference!r}: "
                f"a plan has one reference recipe",
                "budgets",
                budget.metric,
            )
        if reference is not None and reference not in [recipe.name for recipe in plan.recipes]:
            raise at.error(
                f"{budget.metric} is measured against recipe {reference!r}, which is not among the plan's recipes: "
                f"add it",
                "budgets",
                budget.metric,
            )


def _expand_seeds(candidates: tuple[CandidateSpec, ...], at: Places) -> tuple[CandidateSpec, ...]:
    expanded: dict[str, CandidateSpec] = {}
    for i, candidate in enumerate(candidates):
        here = ("candidates", i, "tune")
        tune = candidate.tune if isinstance(candidate.tune, TuneSpec) else None
        if tune and tune.keep_layers:
            at.unique(tune.keep_layers, "layer", *here, "keep_layers")
        runs = [candidate]
        if tune and tune.seeds:
            at.unique(tune.seeds, "seed", *here, "seeds")
            runs = [
                msgspec.structs.replace(
                    candidate,
                    name=f"{candidate.name}-s{seed}",
                    tune=msgspec.structs.replace(tune, seed=seed, seeds=None),
                )
                for seed in tune.seeds
            ]
        for run in runs:
            if run.name in expanded:
                raise at.error(
                    f"candidate (with its seed) {run.name!r} stands here twice; each must differ", "candidates", i
                )
            expanded[run.name] = run
    return tuple(expanded.values())


def _devices(file: Path, specs: tuple[DeviceSpec, ...], at: Places) -> tuple[Device, ...]:
    """As the plan has them, and as a devices.yaml beside the plan has those that it knows."""
    known = {d.name: d for d in inventory_at(None, file.parent)}
    return tuple(_device(spec, known, at, "devices", i) for i, spec in enumerate(specs))


def _device(spec: DeviceSpec, known: Mapping[str, Device], at: Places, *keys: Key) -> Device:
    """One that an inventory knows keeps what the plan does not say otherwise of it."""
    device = device_of(spec, at, *keys)
    if device == Device(device.name) and known and device.name not in (HERE, *known):
        names = nearest(device.name, (HERE, *known))
        raise at.error(
            f"unknown device {device.name!r}: {names}; {INVENTORY} beside the plan says which there are", *keys
        )
    if device.ssh is not None or device.name not in known:
        return device
    given = {n: v for n in ("python", "memory", "cores") if (v := getattr(device, n)) is not None}
    return replace(known[device.name], **given)


def _targets(devices: tuple[DeviceSpec, ...], at: Places) -> tuple[Target, ...]:
    targets = []
    for i, device in enumerate(devices):
        grid, level = device.run, device.run.graph_optimization
        for j, provider in enumerate(grid.provider):
            if provider not in get_args(Provider):
                known = nearest(provider, get_args(Provider))
                raise at.error(f"unknown provider {provider!r}: {known}", "devices", i, "run", "provider", j)
        for name in ("provider", "threads", "max_length", "batch_size"):
            at.unique(getattr(grid, name) or (), name, "devices", i, "run", name)
        targets += [
            Target(device.name, RunSettings(provider, grid.provider_options, threads, length, batch, level))
            for provider in cast("tuple[Provider, ...]", grid.provider)  # each was checked just above
            for threads in grid.threads
            for length in (grid.max_length or (None,))
            for batch in grid.batch_size
        ]
    return tuple(targets)
