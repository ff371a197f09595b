"""The nouns that cross between rooms. Standard library only: a device reads these too."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, get_args

from edgewise.errors import PlanError, nearest
from edgewise.recipe import RECIPES as RECIPES
from edgewise.recipe import Calibration as Calibration
from edgewise.recipe import Precision as Precision
from edgewise.recipe import Recipe as Recipe
from edgewise.recipe import recipe_from_dict as recipe_from_dict

Task = Literal[
    "text-classification",
    "token-classification",
    "feature-extraction",
    "fill-mask",
    "text-generation",
    "text2text-generation",
    "image-classification",
    "image-feature-extraction",
]
ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]
Provider = Literal["cpu", "cuda", "tensorrt", "openvino", "coreml", "dml", "qnn", "webgpu", "xnnpack"]
GraphLevel = Literal["disabled", "basic", "extended", "all"]
Kind = Literal["measured", "estimated", "unavailable"]
Status = Literal["ok", "failed"]
Stage = Literal["train", "export", "profile", "confirm", "look"]
TimedScenario = Literal["single-stream", "multi-stream", "offline", "server", "paced", "sustained", "generation"]
Scenario = Literal[
    "none", "single-stream", "multi-stream", "offline", "server", "paced", "sustained", "generation", "accuracy",
    "comparison",
]  # fmt: skip
Op = Literal["<=", ">="]

PROVIDERS: tuple[Provider, ...] = get_args(Provider)
TASKS: tuple[Task, ...] = get_args(Task)
SCENARIOS: tuple[TimedScenario, ...] = get_args(TimedScenario)

AUTO_CLASSES: dict[Task, str] = {
    "text-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "text-generation": "AutoModelForCausalLM",
    "text2text-generation": "AutoModelForSeq2SeqLM",
    "image-classification": "AutoModelForImageClassification",
}
"""Transformers' class for each task that can be trained."""
TRAINED_TASKS: tuple[Task, ...] = tuple(AUTO_CLASSES)
"""The tasks whose rows can be read, and whose models can be trained."""
EXPORT_CLASSES: dict[Task, str] = {
    **AUTO_CLASSES,
    "feature-extraction": "AutoModel",
    "fill-mask": "AutoModelForMaskedLM",
    "image-feature-extraction": "AutoModel",
}
"""Transformers' class for each task that can be exported."""
WRITING_TASKS: tuple[Task, ...] = ("text-generation", "text2text-generation")
IMAGE_TASKS: tuple[Task, ...] = ("image-classification", "image-feature-extraction")


MOST_THREADS = 1024
"""Of one session: no device has so many cores, and more take minutes to start."""


@dataclass(frozen=True)
class RunSettings:
    """What is free to choose when a bundle runs; part of what is measured, and written into the bundle."""

    provider: Provider = "cpu"
    provider_options: Mapping[str, str] = field(default_factory=dict, hash=False)
    threads: int = 1
    """Threads inside one operator (intra-op)."""
    max_length: int | None = None
    """Tokens a text is cut to, special tokens included; None: what the model allows."""
    batch_size: int = 1
    """Inputs that go through the graph together. The batch changes the answers of dynamic int8: 1 unless measured."""
    graph_optimization: GraphLevel = "all"
    """What ONNX Runtime does to the graph when the session is created."""
    threshold: float | None = None
    """Classification: the score from which a label is said. Of two labels that of the second, of several labels an
    input each one's own; None: the larger of two, 0.5 for each of several."""

    def __post_init__(self) -> None:
        if self.provider not in PROVIDERS:
            raise PlanError(f"unknown provider {self.provider!r}: {nearest(str(self.provider), PROVIDERS)}")
        if self.graph_optimization not in get_args(GraphLevel):
            raise PlanError(
                f"graph_optimization is {self.graph_optimization!r}; expected {', '.join(get_args(GraphLevel))}"
            )
        if isinstance(self.threads, int) and self.threads > MOST_THREADS:
            raise PlanError(f"threads is {self.threads}; expected at most {MOST_THREADS:,}")
        for name, low in (("threads", 1), ("batch_size", 1), ("max_length", 3)):
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            if (value is None and name != "max_length") or (value is not None and not (whole and value >= low)):
                raise PlanError(f"{name} is {value!r}; expected a whole number of at least {low}")
        limit = self.threshold
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int | float) or not 0 <= limit <= 1):
            raise PlanError(f"threshold is {limit!r}; expected a score of 0 to 1")

    def text(self) -> str:
        """For people: 'cpu, 2 threads, length 64'."""
        parts = [self.provider, f"{self.threads} thread{'s' * (self.threads != 1)}"]
        if self.max_length is not None:
            parts.append(f"length {self.max_length}")
        if self.batch_size != 1:
            parts.append(f"batch {self.batch_size}")
        if self.provider_options:
            parts.append(json.dumps(dict(self.provider_options), sort_keys=True))
        if self.graph_optimization != "all":
            parts.append(f"graph optimization {self.graph_optimization}")
        if self.threshold is not None:
            parts.append(f"threshold {self.threshold:g}")
        return ", ".join(parts)


@dataclass(frozen=True)
class Device:
    """A machine, given: its inventory entry."""

    name: str = "here"
    python: str | None = None
    """Interpreter that runs the worker, for a device with an onnxruntime build of its own; None: this one."""
    memory: int | None = None
    """Bytes that the worker may use, page cache included; None: no limit beside the machine's."""
    cores: tuple[int, ...] | None = None
    """Numbers of the cores that the worker may run on, ascending; None: those of this process."""
    ssh: str | None = None
    """'user@host' or 'user@host:port' of another machine; `python` is then an interpreter there, which has onnxruntime
    and tokenizers, and None an environment that is made for it. None: this machine."""
    identity: str | None = None
    """File of the private key; None: those of the SSH agent and of ~/.ssh."""
    known_hosts: str | None = None
    """File with the host's key; None: ~/.ssh/known_hosts."""
    folder: str | None = None
    """Ours on the device; None: ~/.cache/edgewise-device."""
    wheelhouse: str | None = None
    """Folder of wheels on this machine that the device's environment is made of; None: what pip finds there."""


@dataclass(frozen=True)
class Target:
    """Where and how a bundle is measured: a device and run settings."""

    device: str = "here"
    run: RunSettings = field(default_factory=RunSettings)

    def text(self) -> str:
        return f"{self.device}: {self.run.text()}"

    def at_any_length(self) -> Target:
        """What targets share that differ in their length alone."""
        return replace(self, run=replace(self.run, max_length=None))


@dataclass(frozen=True)
class Metric:
    """One number with its unit, its bounds and its conditions."""

    name: str
    unit: str
    """Canonical: s, B, J, 1, points, 1/s."""
    value: float | None
    """None when kind is unavailable."""
    low: float | None = None
    """One-sided lower bound at `level`; low and high together hold at 2 * level - 1."""
    high: float | None = None
    level: float | None = None
    method: str = ""
    n: int = 0
    """Size of the sample behind the value."""
    kind: Kind = "measured"
    why: str = ""
    """Why it is unavailable, estimated, or has no bounds."""


@dataclass(frozen=True)
class Measurement:
    """What was found for one bundle on one target in one scenario, or why nothing was."""

    candidate: str
    recipe: str
    """Short name of the recipe; '' for a stage before export."""
    content_digest: str | None
    target: Target | None
    scenario: Scenario
    stage: Stage
    status: Status = "ok"
    reason: str = ""
    """In words, when status is failed."""
    inputs_digest: str = ""
    """sha256 of the rows that were used."""
    conditions: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """JSON-able: the machine's fingerprint, length distribution, stopping rule, placement, versions."""
    metrics: tuple[Metric, ...] = ()
    id: int | None = None
    """Row number in the store, once it stands there."""

    def metric(self, name: str) -> Metric | None:
        return next((m for m in self.metrics if m.name == name), None)


@dataclass(frozen=True)
class Budget:
    """A limit that a metric must keep, in canonical units."""

    metric: str
    op: Op
    limit: float
    unit: str
    relative_to: str | None = None
    """The recipe that a drop is measured against, for example 'fp32'."""
    text: str = ""
    """As the user wrote it."""


def to_dict(value: Any) -> dict[str, Any]:
    """A dataclass of this module as JSON-able dict (mappings copied, tuples as lists)."""
    result: dict[str, Any] = asdict(value)
    return result


def run_from_dict(data: Mapping[str, Any]) -> RunSettings:
    """Run settings from JSON; keys of a newer minor format are ignored."""
    known = {f.name for f in fields(RunSettings)}
    return RunSettings(**{k: v for k, v in data.items() if k in known})


@dataclass(frozen=True)
class Entry:
    """One bundle on one target with all that is known of it: a wide summary row, and what the selector reads.

    A candidate that failed before there was a bundle is an entry too: status failed, with its reason.
    """

    candidate: str
    recipe: str
    content_digest: str | None
    target: Target | None
    metrics: Mapping[str, Metric] = field(default_factory=dict, hash=False)
    """By name; of val where a metric depends on rows."""
    status: Status = "ok"
    reason: str = ""
    partial: bool = False
    """Not measured in full: what looks and some of the rows say, each metric with the bound that these allow."""
    reference: str = "fp32"
    """The recipe that its answers were compared with."""

    @property
    def key(self) -> str:
        """For people and for lookups: 'l6/int8-dynamic on here: cpu, 1 thread, length 64'."""
        where = f" on {self.target.text()}" if self.target else ""
        return f"{self.candidate}{f'/{self.recipe}' if self.recipe else ''}{where}"


@dataclass(frozen=True)
class BudgetCheck:
    """One budget held against one entry."""

    budget: Budget
    value: float | None
    """Point estimate, canonical unit; None when it was not measured."""
    bound: float | None
    """The bound that must keep the limit: the upper one for <=, the lower one for >=."""
    margin: float | None
    """Room between bound and limit, canonical unit; negative when the budget is broken."""
    met: bool
    words: str
    """'p95 is 12.1 ms, at most 12.4 ms at 95%: 2.4 ms over the budget of 10 ms'."""


@dataclass(frozen=True)
class Verdict:
    """What the selector says of one entry, and why."""

    entry: Entry
    checks: tuple[BudgetCheck, ...]
    feasible: bool
    pareto: bool
    """Nothing measured on the same device is at least as good in every objective and better in one."""
    dominated_by: str | None
    """Key of an entry that dominates it."""
    rank: int | None
    """1 is the best of the feasible; None when not feasible."""
    tied_with: tuple[str, ...] = ()
    """Keys of entries that the first objective cannot tell from it."""
    reason: str = ""
    """In words and numbers: why it was chosen or not."""


@dataclass(frozen=True)
class ConfirmTry:
    """One candidate winner held against fresh rows and fresh processes."""

    key: str
    passed: bool
    checks: tuple[BudgetCheck, ...]
    reason: str
    metrics: Mapping[str, Metric] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class WhatIf:
    """How the choice changes when one budget moves and the others stay: one step of it."""

    budget: Budget
    limit: float
    """Where it changes, canonical unit: with this limit the choice is `chosen`."""
    chosen: str | None
    """Key of the entry that would be chosen; None: with any stricter limit nothing would."""
    words: str
    """'with p95 <= 12.1 ms instead of 10 ms: l6/int8-static, accuracy 83.10% instead of 81.80%'."""


@dataclass(frozen=True)
class Selection:
    """The choice for one device."""

    device: str
    budgets: tuple[Budget, ...]
    objective: tuple[str, ...]
    """In order; with `weights` all at once."""
    confidence: float
    chosen: Verdict | None
    verdicts: tuple[Verdict, ...]
    """All entries: the feasible by rank, then the others by how near they are."""
    sentence: str
    """The answer in one sentence."""
    confirmed: tuple[ConfirmTry, ...] = ()
    """In the order tried; empty when nothing was confirmed yet."""
    weights: tuple[float, ...] = ()
    """Of the objectives, their sum 1; empty: they hold in order."""
    what_if: tuple[WhatIf, ...] = ()
    """How the choice changes as a budget moves, the nearest changes of each."""
    left_out: str = ""
    """What was not measured in full, and why, in words; empty where everything was."""
