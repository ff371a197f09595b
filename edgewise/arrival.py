"""How queries come, by MLPerf Inference's names, and three that it has not: paced, as a sensor asks, sustained, and
generation, which times each token that is written.

| scenario | a query | the next one |
|---|---|---|
| single-stream | `batch_size` inputs | as soon as the last is answered |
| multi-stream | `streams` inputs | as soon as the last is answered |
| offline | all inputs at once | again, until the time is up |
| server | `batch_size` inputs | at random, `rate` a second on average (Poisson), whatever is still being answered |
| paced | `batch_size` inputs | every `every_s` seconds |
| sustained | `batch_size` inputs | as soon as the last is answered, for `minutes`: what heat does to the clock |
| generation | 1 input, for which `new_tokens` tokens are written | as soon as the last one is written |

Source: MLPerf Inference Benchmark (Reddi et al., 2020), table II.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from edgewise.errors import PlanError, nearest
from edgewise.showing import show
from edgewise.types import SCENARIOS, TimedScenario
from edgewise.units import OF_ANSWERS, PERCENTILES

NUMBERS: Mapping[str, TimedScenario] = {
    "streams": "multi-stream", "rate": "server", "every": "paced", "minutes": "sustained", "new_tokens": "generation",
}  # fmt: skip
"""The numbers that a scenario takes, and which one it is."""
_LEAST_EVERY_S = 1e-6
"""Clocks tell no less apart."""


@dataclass(frozen=True)
class Arrival:
    """A scenario with its numbers."""

    name: TimedScenario = "single-stream"
    streams: int = 8
    """Inputs of a multi-stream query; 8 as MLPerf has it."""
    rate: float | None = None
    """Queries a second, of server."""
    every_s: float | None = None
    """Seconds from one query's start to the next one's, of paced."""
    minutes: float | None = None
    """Of sustained."""
    new_tokens: int = 32
    """Tokens to write in a query of generation, whatever the model would end with."""

    def __post_init__(self) -> None:
        if self.name not in SCENARIOS:
            raise PlanError(f"unknown scenario {self.name!r}: {nearest(str(self.name), SCENARIOS)}")
        if isinstance(self.streams, bool) or not isinstance(self.streams, int) or self.streams < 1:
            raise PlanError(f"streams is {self.streams!r}; expected a whole number of at least 1")
        if isinstance(self.new_tokens, bool) or not isinstance(self.new_tokens, int) or self.new_tokens < 2:
            raise PlanError(f"new_tokens is {self.new_tokens!r}; expected a whole number of at least 2")
        for scenario, name, value, example in (
            ("server", "rate", self.rate, "--rate '20 /s'"),
            ("paced", "every", self.every_s, "--every '50 ms'"),
            ("sustained", "minutes", self.minutes, "--minutes 30"),
        ):
            if self.name == scenario and value is None:
                raise PlanError(f"scenario {scenario} needs {name}, for example {example}")
            if value is not None and not 0 < value < float("inf"):
                raise PlanError(f"{name} is {value!r}; expected a number above 0, for example {example}")
        if self.every_s is not None and self.every_s < _LEAST_EVERY_S:
            raise PlanError(f"every is {show(self.every_s, 's')}; expected at least 1 µs, for example --every '50 ms'")

    @property
    def prefix(self) -> str:
        """Before the names of its metrics; '' for single-stream, and for generation, whose metrics are its own."""
        return prefix_of(self.name)

    def job(self, seed: int) -> dict[str, Any]:
        """As the worker's job says it: the numbers that it needs, and of server the seed of the arrivals."""
        numbers: dict[str, dict[str, Any]] = {
            "multi-stream": {"streams": self.streams},
            "server": {"rate": self.rate, "seed": seed},
            "paced": {"every_s": self.every_s},
            "sustained": {"minutes": self.minutes},
            "generation": {"new_tokens": self.new_tokens},
        }
        return {"name": self.name, **numbers.get(self.name, {})}

    def settings(self) -> dict[str, Any]:
        """What of it makes two measurements different ones; nothing for single-stream, whose stores are older."""
        told = self.job(0)
        told.pop("seed", None)
        return {} if self.name == "single-stream" else {"scenario": told}

    def seconds(self, queries: int) -> float:
        """That so many queries take at least."""
        if self.name == "paced":
            return queries * (self.every_s or 0)
        if self.name == "sustained":
            return 60 * (self.minutes or 0)
        return queries / self.rate if self.name == "server" and self.rate else 0.0

    @property
    def order(self) -> str:
        """How the queries follow each other, for the conditions."""
        return {
            "offline": "all at once",
            "server": "at random times, Poisson",
            "paced": f"every {1000 * (self.every_s or 0):g} ms",
        }.get(self.name, "one call after the other")

    def text(self) -> str:
        """For people: 'server at 20 /s'."""
        more = {
            "multi-stream": f", {self.streams} inputs a query",
            "server": f" at {self.rate or 0:g} queries /s",
            "paced": f", every {1000 * (self.every_s or 0):g} ms",
            "sustained": f" for {self.minutes or 0:g} minutes",
            "generation": f", {self.new_tokens} tokens a query",
        }
        return self.name + more.get(self.name, "")


def prefix_of(scenario: str) -> str:
    """'server_', before the names of a scenario's metrics; '' for single-stream and generation."""
    return "" if scenario in ("single-stream", "generation") else f"{scenario.replace('-', '')}_"


_FIRST_WORDS: Mapping[str, TimedScenario] = {
    **{prefix_of(name)[:-1]: name for name in SCENARIOS if prefix_of(name)},
    "ttft": "generation", "tpot": "generation", "token": "generation",
}  # fmt: skip
"""Of a metric's name, up to its first underscore -> the scenario."""
_OF_CALLS = (*PERCENTILES, "latency_mean", "throughput")


def measured_by(metric: str) -> tuple[TimedScenario, ...]:
    """The scenarios that say a metric, one of which is enough; () for what none says, such as accuracy."""
    if metric in OF_ANSWERS or metric == "train_time":
        return ()
    if (scenario := _FIRST_WORDS.get(metric.partition("_")[0])) is not None:
        return (scenario,)
    return ("single-stream",) if metric in _OF_CALLS else ("single-stream", "generation")


class ScenarioSpec(Protocol):
    """What a plan's ProfileSpec says of scenarios."""

    @property
    def scenarios(self) -> Sequence[TimedScenario]: ...
    @property
    def streams(self) -> int | None: ...
    @property
    def rate(self) -> float | None: ...
    @property
    def every_ms(self) -> float | None: ...
    @property
    def minutes(self) -> float | None: ...
    @property
    def new_tokens(self) -> int | None: ...


def arrivals_of(spec: ScenarioSpec) -> tuple[Arrival, ...]:
    """The scenarios of a plan. Raises PlanError for one whose number is missing."""
    every_s = None if spec.every_ms is None else spec.every_ms / 1000
    counts = {"streams": spec.streams, "new_tokens": spec.new_tokens}
    given = {name: count for name, count in counts.items() if count is not None}
    return tuple(
        Arrival(name, rate=spec.rate, every_s=every_s, minutes=spec.minutes, **given) for name in spec.scenarios
    )
