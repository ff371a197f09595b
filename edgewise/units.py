"""Metrics by name, their units, and the one grammar for limits: 'p95 <= 10 ms', 'accuracy_drop <= 0.5 points of fp32'.

MB = 10^6 bytes, MiB = 2^20. Standard library only.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from edgewise.errors import PlanError, nearest
from edgewise.showing import show
from edgewise.types import Budget, Op

Better = Literal["lower", "higher"]


@dataclass(frozen=True)
class MetricKind:
    """What a metric is."""

    unit: str
    """Canonical unit: s, B, J, 1 (a fraction), points, 1/s, number (a plain one)."""
    better: Better
    about: str
    """One sentence for reports and docs."""


PERCENTILES: dict[str, float] = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p99.9": 0.999}
SAMPLE_NEEDED: dict[str, int] = {"p50": 11, "p90": 64, "p95": 130, "p99": 662, "p99.9": 6636}
"""Calls that a percentile needs at 99% confidence, as MLPerf LoadGen's early stopping has it, over all processes.
Below it the percentile is not printed."""

_TIME = "time of one call, from input to answer, its tokenizing or decoding included, in a warmed-up process"

WORST = "worst_slice_"
"""Before a metric's name: its worst value among the slices of the rows."""


def _quality() -> dict[str, MetricKind]:
    """The quality metrics beside accuracy and f1; docs/metrics.md has their definitions."""
    of, found = "of the positive class with two labels, the mean over classes with more, of entities for tags", {}
    for name, about in (
        ("precision", "Share of answers of a class that are right"),
        ("recall", "Share of a class found"),
    ):
        found[name] = MetricKind("1", "higher", f"{about}: {of}.")
    for name, word in (("f1", "F1"), ("precision", "Precision"), ("recall", "Recall")):
        found[f"{name}_macro"] = MetricKind("1", "higher", f"{word}, the unweighted mean over classes.")
        found[f"{name}_micro"] = MetricKind("1", "higher", f"{word} over the answers of all classes together.")
        found[f"{name}_binary"] = MetricKind("1", "higher", f"{word} of the second of two labels.")
    return found | {
        "mcc": MetricKind("number", "higher", "Matthews' correlation of answers and labels, -1 to 1."),
        "exact_match": MetricKind("1", "higher", "Share of rows whose whole answer equals the reference."),
        "bleu": MetricKind("number", "higher", "Corpus BLEU by sacreBLEU, 0 to 100, tokenizer 13a."),
        "bleu_zh": MetricKind("number", "higher", "Corpus BLEU by sacreBLEU, 0 to 100, tokenizer zh."),
        "word_error": MetricKind("1", "lower", "Words to insert, delete or replace, a word of the references."),
        "char_error": MetricKind(
            "1", "lower", "Characters to insert, delete or replace, a character of the references."
        ),
        "perplexity": MetricKind("number", "lower", "exp of minus the mean log-probability of a token of the set."),
        "pearson": MetricKind("number", "higher", "Pearson's correlation of predictions and references, -1 to 1."),
        "spearman": MetricKind(
            "number", "higher", "Spearman's rank correlation of predictions and references, -1 to 1."
        ),
        "mse": MetricKind("number", "lower", "Mean squared difference, in the square of the reference's unit."),
        "mae": MetricKind("number", "lower", "Mean absolute difference, in the reference's unit."),
    }


def _scenarios() -> dict[str, MetricKind]:
    """What the scenarios beside single-stream measure, each under names of its own."""
    queries = {
        "multistream": "time of a query of several inputs, the next one asked when all are answered",
        "server": "time of a query that comes at random (Poisson), from when it was due, waiting included",
        "paced": "time of a call that comes at fixed intervals, the device idle between them",
        "ttft": "time to the first token: from the input to the first token written, tokenizing included",
        "tpot": "time per output token after the first, the mean of a query",
    }
    found = {
        "offline_throughput": MetricKind("1/s", "higher", "Inputs answered a second, all of them asked at once."),
        "multistream_throughput": MetricKind("1/s", "higher", "Inputs answered a second, several asked at a time."),
        "sustained_throughput": MetricKind("1/s", "higher", "Inputs answered a second over all the minutes asked for."),
        "sustained_first": MetricKind("1/s", "higher", "Inputs answered a second in the first tenth of the minutes."),
        "sustained_last": MetricKind("1/s", "higher", "Inputs answered a second in the last tenth of the minutes."),
        "sustained_ratio": MetricKind("number", "higher", "Throughput in the last tenth over that in the first."),
    }
    found["token_throughput"] = MetricKind("1/s", "higher", "Tokens written a second, one input after the other.")
    for name, about in queries.items():
        for percentile, q in PERCENTILES.items():
            found[f"{name}_{percentile}"] = MetricKind("s", "lower", f"{100 * q:g}th percentile of the {about}.")
        found[f"{name}_mean"] = MetricKind("s", "lower", f"Mean {about}.")
    return found


METRICS: dict[str, MetricKind] = {
    "p50": MetricKind("s", "lower", f"Median {_TIME}."),
    "p90": MetricKind("s", "lower", f"90th percentile of the {_TIME}."),
    "p95": MetricKind("s", "lower", f"95th percentile of the {_TIME}."),
    "p99": MetricKind("s", "lower", f"99th percentile of the {_TIME}."),
    "p99.9": MetricKind("s", "lower", f"99.9th percentile of the {_TIME}."),
    "latency_mean": MetricKind("s", "lower", f"Mean {_TIME}."),
    "throughput": MetricKind("1/s", "higher", "Inputs answered a second, one call after the other."),
    "startup": MetricKind("s", "lower", "From starting the process to its first answer, files in the page cache."),
    "startup_interpreter": MetricKind("s", "lower", "From starting the process to the first line of Python."),
    "startup_imports": MetricKind("s", "lower", "Importing edgewise, numpy and onnxruntime, for texts tokenizers too."),
    "startup_load": MetricKind(
        "s", "lower", "Reading the manifest, hashing the files, reading the tokenizer where there is one."
    ),
    "startup_session": MetricKind("s", "lower", "Creating the ONNX Runtime session."),
    "startup_first": MetricKind("s", "lower", "The first answer."),
    "peak_rss": MetricKind("B", "lower", "Largest resident memory of the fresh process (VmHWM), interpreter included."),
    "empty_rss": MetricKind("B", "lower", "Resident memory of the same process before it imported the runtime."),
    "pss": MetricKind("B", "lower", "Proportional memory after the last call: shared pages count in part."),
    "uss": MetricKind("B", "lower", "Memory after the last call that ending the process would free."),
    "gpu_memory": MetricKind("B", "lower", "Memory of the GPU that the process holds after the last call (NVML)."),
    "roofline": MetricKind("1", "higher", "Least time of a call by the machine's measured peaks, over its mean time."),
    "size": MetricKind("B", "lower", "Bytes on disk of the bundle: graph, weights, tokenizer, configs."),
    "energy": MetricKind("J", "lower", "Energy of an input, all that the device's sensor covers, idle power included."),
    "accuracy": MetricKind(
        "1",
        "higher",
        "Share of rows answered with their label; of tags, of words with their tag; of masked words, those "
        "that the model held likeliest.",
    ),
    "f1": MetricKind("1", "higher", "F1: of the positive class with two labels, the mean over classes with more."),
    **_quality(),
    **_scenarios(),
    "accuracy_drop": MetricKind(
        "points",
        "lower",
        "Percentage points of rows answered rightly that are lost against the reference recipe, fp32 "
        "unless a budget names another, on the same rows; of tags and texts a row is right when the whole of it is.",
    ),
    "changed_answers": MetricKind(
        "1",
        "lower",
        "Share of rows whose answer differs from that of the reference recipe, fp32 unless another is named.",
    ),
    "agreement": MetricKind(
        "1",
        "higher",
        "Share of rows answered as the reference recipe does; fp32, unless another is named, is proven "
        "equal to PyTorch.",
    ),
    "perplexity_ratio": MetricKind(
        "number", "lower", "Perplexity over that of the reference recipe, on the same tokens."
    ),
    "train_time": MetricKind("s", "lower", "Wall time of fine-tuning."),
}
"""Every metric that can be a budget or an objective."""


QUALITY: tuple[str, ...] = ("accuracy", "f1", *_quality())
"""Metrics of what answers are worth, on labelled rows."""

METRICS |= {
    f"{WORST}{name}": MetricKind(
        METRICS[name].unit, METRICS[name].better, f"{name} on the slice of rows where it is worst."
    )
    for name in QUALITY
}

UNITS: dict[str, dict[str, float]] = {
    "s": {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "min": 60.0},
    "B": {
        "B": 1.0,
        "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9,
        "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30,
    },
    "1": {"": 1.0, "%": 0.01},
    "points": {"points": 1.0, "point": 1.0, "pp": 1.0},
    "1/s": {"/s": 1.0, "1/s": 1.0, "/min": 1 / 60},
    "J": {"J": 1.0, "mJ": 1e-3, "uJ": 1e-6, "µJ": 1e-6, "Wh": 3600.0, "mWh": 3.6},
    "number": {"": 1.0},
}  # fmt: skip
"""Canonical unit -> accepted unit -> factor."""

SIGNED = ("accuracy_drop", "mcc", "pearson", "spearman")
"""Metrics that may be below 0."""

OF_THE_REFERENCE = {"accuracy_drop": 0.0, "changed_answers": 0.0, "agreement": 1.0, "perplexity_ratio": 1.0}
"""Metrics that compare with a reference recipe, and what each is for the reference itself, by definition."""

RELATIVE = tuple(OF_THE_REFERENCE)
"""Their names."""

OF_ANSWERS: tuple[str, ...] = (*QUALITY, *(f"{WORST}{name}" for name in QUALITY), *RELATIVE)
"""Metrics of the answers: who fails in one of them fails with any number of threads."""

_LIMIT = re.compile(
    r"^\s*(?P<op><=|>=|<|>|==|=)?\s*(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|nan|inf)"
    r"\s*(?P<unit>(?:1/)?[^\s\d]\S*)?(?:\s+of\s+(?P<of>\S+))?\s*$"
)
_QUANTITY = re.compile(r"^\s*(?P<number>\d+\.?\d*|\.\d+)\s*(?P<unit>\S+)\s*$")
_SUCH = {"s": "50 ms", "1/s": "20 /s", "B": "512 MB"}
_BUDGET = re.compile(r"^\s*(?P<metric>[A-Za-z_][\w.]*)\s*(?P<limit>(?:<=|>=|<|>|=).*)$")


def parse_limit(metric: str, text: str) -> Budget:
    """The limit of one metric, for example ('p95', '<= 10 ms').

    Raises PlanError for an unknown metric, a missing or wrong unit, or a limit that points the wrong way.
    """
    kind = METRICS.get(metric)
    if kind is None:
        raise PlanError(f"unknown metric {metric!r}: {nearest(metric, tuple(METRICS), 3)}")
    match = _LIMIT.match(str(text))
    if not match:
        raise PlanError(f"{metric}: {text!r} is no limit; expected one like {_example(metric)!r}")
    wanted: Op = "<=" if kind.better == "lower" else ">="
    if match["op"] != wanted:
        raise PlanError(
            f"{metric}: {text!r} must start with {wanted}, as {kind.better} is better; for example {_example(metric)!r}"
        )
    number = float(match["number"])
    if not math.isfinite(number):
        raise PlanError(f"{metric}: {text!r} is not a finite number")
    if number < 0 and metric.removeprefix(WORST) not in SIGNED:
        raise PlanError(f"{metric}: {text!r}: no {metric} is below 0; expected one like {_example(metric)!r}")
    unit = match["unit"] or ""
    if unit not in UNITS[kind.unit]:
        known = ", ".join(u for u in UNITS[kind.unit] if u) or "no unit"
        given = f"unit {unit!r} does not fit" if unit else "the unit is missing"
        raise PlanError(f"{metric}: {text!r}: {given}; expected {known}, for example {_example(metric)!r}")
    if kind.unit == "1" and number * UNITS["1"][unit] > 1:
        raise PlanError(f"{metric}: {text!r}: a share is at most 1, or 100 %; for example {_example(metric)!r}")
    if match["of"] and metric not in RELATIVE:
        raise PlanError(f"{metric}: 'of {match['of']}' only fits {', '.join(RELATIVE)}")
    return Budget(
        metric=metric,
        op=wanted,
        limit=_in_unit(match["number"], UNITS[kind.unit][unit]),
        unit=kind.unit,
        relative_to=match["of"] or ("fp32" if metric in RELATIVE else None),
        text=f"{metric} {' '.join(str(text).split())}",
    )


def parse_quantity(name: str, text: str, unit: str) -> float:
    """A number with its unit, in the canonical `unit`, for example ('--every', '50 ms', 's'). Raises PlanError."""
    match = _QUANTITY.match(text)
    if match is None or match["unit"] not in UNITS[unit]:
        known = ", ".join(u for u in UNITS[unit] if u)
        raise PlanError(f"{name} is {text!r}; expected a number and one of {known}, such as {_SUCH[unit]!r}")
    return _in_unit(match["number"], UNITS[unit][match["unit"]])


def _in_unit(number: str, factor: float) -> float:
    """The float nearest to the product of two decimals: '16.28927' and 1e6 are 16289270, which floats miss by 2e-9, so
    that a limit that is typed as it was printed would leave the value out."""
    from decimal import Decimal  # few commands read a limit

    return float(Decimal(number) * Decimal(repr(factor)))


LEAST_MEMORY = 10**6
"""Bytes: no interpreter starts with less."""


def parse_memory(name: str, given: object) -> int:
    """A memory limit in bytes, for example ('--memory', '512MB'). Raises PlanError."""
    found = parse_quantity(name, str(given), "B")
    if found < LEAST_MEMORY:
        raise PlanError(f"{name} is {given!r}; expected at least {show(LEAST_MEMORY, 'B')}")
    return int(found)


def check_cores(name: str, given: Sequence[int]) -> tuple[int, ...]:
    """Numbers of cores, ascending. Raises PlanError for one that stands twice or is below 0, and for none."""
    if not given or len(set(given)) < len(given) or min(given) < 0:
        raise PlanError(f"{name} is {list(given)}; expected numbers of cores from 0 on, each once, such as 0,1")
    return tuple(sorted(given))


def parse_budget(text: str) -> Budget:
    """A whole budget as typed after --budget, for example 'p95 <= 10 ms'."""
    match = _BUDGET.match(text)
    if not match:
        raise PlanError(f"{text!r} is no budget; expected one like 'p95 <= 10 ms' or 'accuracy >= 0.8'")
    return parse_limit(match["metric"], match["limit"])


def parse_objective(text: str) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Metrics in order, 'accuracy,p95', or all at once with weights, 'accuracy=2,p95=1': names and weights, which are
    empty where an order is given. Raises PlanError."""
    parts = [part.strip().partition("=") for part in text.split(",")]
    if not all(name.strip() for name, _, _ in parts):
        raise PlanError(f"objective {text!r}: a name is missing; expected metrics, as in 'accuracy,p95'")
    if not any(equals for _, equals, _ in parts):
        return tuple(check_metric(name) for name, _, _ in parts), ()
    weights = []
    for name, _, weight in parts:
        try:
            weights.append(float(weight))
        except ValueError as error:
            raise PlanError(
                f"{text!r}: {name} has the weight {weight!r}; expected all as in 'accuracy=2,p95=1'"
            ) from error
    names = tuple(check_metric(name.strip()) for name, _, _ in parts)
    check_weights(names, weights)
    return names, tuple(weights)


def check_weights(names: Sequence[str], weights: Sequence[float]) -> None:
    """Raise PlanError for a weight that is no finite number above 0."""
    for name, weight in zip(names, weights, strict=True):
        if not 0 < weight < math.inf:
            raise PlanError(f"{name} has the weight {weight:g}; expected a number above 0, such as 2")


def check_metric(name: str) -> str:
    """`name`, if it is a metric; else PlanError with the nearest name."""
    if name not in METRICS:
        raise PlanError(f"unknown metric {name!r}: {nearest(name, tuple(METRICS), 3)}")
    return name


def _example(metric: str) -> str:
    kind = METRICS[metric]
    if metric in RELATIVE and kind.unit == "1":
        return "<= 1 % of fp32" if kind.better == "lower" else ">= 99 % of fp32"
    if metric == "perplexity_ratio":
        return "<= 1.02 of fp32"
    numbers = {"s": "10 ms", "B": "30 MB", "1": "80 %", "points": "0.5 points of fp32", "1/s": "100 /s", "J": "5 mJ"}
    number = numbers.get(kind.unit) or (
        "20" if metric.removeprefix(WORST) in ("perplexity", "bleu", "bleu_zh") else "0.5"
    )
    return f"{'<=' if kind.better == 'lower' else '>='} {number}"
