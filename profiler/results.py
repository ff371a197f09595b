"""What a worker wrote, as types. Nothing that comes from a worker is trusted to be whole."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgewise.errors import WorkerError
from edgewise.profiler.energy import Energy
from edgewise.profiler.nvml import Held
from edgewise.profiler.vitals import Load, Memory

PROTOCOL = 1


@dataclass(frozen=True)
class Answer:
    """One answer to one input."""

    row_id: str
    index: int
    score: float
    logits: tuple[float, ...]
    n_tokens: int
    truncated: bool
    given: Any = None
    """The answer itself, where it is not one label: see `edgewise.profiler.given`."""


@dataclass(frozen=True)
class Calls:
    """The timed calls of one process, in order."""

    ns: tuple[int, ...]
    inputs: tuple[int, ...]
    """Number of the batch in the job's inputs."""
    tokens: tuple[int, ...]
    """Tokens of all texts of the call."""
    truncated: tuple[int, ...]
    """Texts of the call that were cut."""
    span_ns: int = 0
    """From the first call to the last answer."""
    windows: tuple[Mapping[str, Any], ...] = ()
    """Of the sustained scenario: start_s, calls, span_ns, mhz and celsius of each."""
    first_ns: tuple[int, ...] = ()
    """Of the generation scenario: from the input to its first token."""
    written: tuple[int, ...] = ()
    """Of the generation scenario: tokens of each answer."""
    late: int | None = None
    """Of the paced scenario: queries that were due before the one before them was answered."""
    took_ns: tuple[int, ...] = ()
    """Of the server scenario: of each answer, without its wait."""
    parallel: int = 1
    """Of the server scenario: answers at once."""


@dataclass(frozen=True)
class WorkerResult:
    """All events of one worker that ended well."""

    pid: int
    fingerprint: Mapping[str, Any]
    providers: tuple[str, ...] = ()
    startup_ns: Mapping[str, int | None] | None = None
    memory: Mapping[str, Memory] | None = None
    warmup: Mapping[str, Any] | None = None
    calls: Calls | None = None
    load: Load | None = None
    load_before: Load | None = None
    """From the start of the process to the timed calls."""
    load_average: tuple[float, ...] | None = None
    """Of 1, 5 and 15 minutes, just before the timed calls."""
    energy: Energy | None = None
    gpu_memory: Held | None = None
    yardstick: Mapping[str, int] | None = None
    """Nanoseconds of fixed work after the calls; see `edgewise.profiler.yardstick`."""
    answers: tuple[Answer, ...] = ()
    placement: Mapping[str, int] | None = None
    placement_why: str = "not asked for"
    nodes: Mapping[str, Any] | None = None
    """Time by node type; see `edgewise.profiler.nodes`."""
    peaks: Mapping[str, Any] | None = None
    """Of the machine; see `edgewise.profiler.peaks`."""
    trials: tuple[Mapping[str, Any], ...] = ()
    wall_s: float | None = None
    """From starting the process to its last line: what it cost."""


@dataclass(frozen=True)
class WorkerFailure:
    """The error line of a worker."""

    kind: str
    message: str
    missing: str | None
    """The module that could not be imported."""


def read_events(path: Path) -> list[dict[str, Any]]:
    """The lines of results.jsonl; a last line that was cut is left out. Raises WorkerError for garbage."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:  # the worker made something else of it
        raise WorkerError(f"{path}: the worker's results cannot be read: {error.strerror or error}") from error
    lines = raw.split(b"\n")
    events = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            event = json.loads(line)
        except (ValueError, RecursionError) as error:
            if number == len(lines):  # no newline behind it: the worker died while writing it
                break
            raise WorkerError(f"{path}:{number}: the worker wrote garbage: {line[:80]!r}") from error
        if not isinstance(event, dict) or not isinstance(event.get("event"), str):
            raise WorkerError(f"{path}:{number}: the worker wrote no event: {line[:80]!r}")
        events.append(event)
    return events


def finish_measured(path: Path, why: str) -> bool:
    """End the results of a worker that was killed when all was measured, and only what stands beside the numbers was
    missing; False, and nothing is written, where it had not come so far. why: it was killed, in words."""
    events = read_events(path)
    names = {e["event"] for e in events}
    if "measured" not in names or "error" in names:
        return False
    if "placement" not in names:
        events.append({"event": "placement", "nodes": None, "why": f"not recorded, after all was measured: {why}"})
    lines = (json.dumps(e) + "\n" for e in [*events, {"event": "end"}])
    path.write_text("".join(lines), encoding="utf-8")  # anew: the last line may have been cut
    return True


def find_failure(events: list[dict[str, Any]]) -> WorkerFailure | None:
    """The error that the worker told of, if it did."""
    for event in events:
        if event["event"] == "error":
            return WorkerFailure(str(event.get("kind")), str(event.get("message")), event.get("missing"))
    return None


def read_result(path: Path) -> WorkerResult:
    """The typed result of a worker that ended well. Raises WorkerError when something is missing or of wrong form."""
    events = read_events(path)
    if not events or events[-1]["event"] != "end":
        last = events[-1]["event"] if events else "nothing"
        raise WorkerError(f"{path}: the worker ended early: the last it wrote is {last!r}")
    try:
        return _typed(events)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise WorkerError(f"{path}: the worker's results are not of protocol {PROTOCOL}: {error!r}") from error


def _typed(events: list[dict[str, Any]]) -> WorkerResult:
    one = {e["event"]: {k: v for k, v in e.items() if k != "event"} for e in events}
    if one["start"]["protocol"] != PROTOCOL:
        raise ValueError(f"protocol {one['start']['protocol']}")
    answers = tuple(
        Answer(str(i), int(index), float(score), tuple(map(float, logits)), int(tokens), bool(cut), *given)
        for e in events
        if e["event"] == "answers"
        for i, index, score, logits, tokens, cut, *given in e["items"]
    )
    return WorkerResult(
        pid=int(one["start"]["pid"]),
        fingerprint=one["fingerprint"],
        providers=tuple(one.get("providers", {}).get("names", ())),
        startup_ns=one["startup"]["ns"] if "startup" in one else None,
        memory=_memory(events),
        warmup=one.get("warmup"),
        calls=_calls(one["calls"]) if "calls" in one else None,
        load=_load(one.get("load")),
        load_before=_load(one.get("load_before")),
        load_average=tuple(map(float, average)) if (average := one.get("load_before", {}).get("average")) else None,
        energy=_energy(one["energy"]) if "energy" in one else None,
        gpu_memory=_held(one["gpu_memory"]) if "gpu_memory" in one else None,
        yardstick={k: int(v) for k, v in one["yardstick"]["ns"].items()} if "yardstick" in one else None,
        answers=answers,
        placement=one.get("placement", {}).get("nodes"),
        placement_why=one.get("placement", {}).get("why", "not asked for"),
        nodes=one.get("nodes"),
        peaks=one.get("peaks"),
        trials=tuple(one.get("trials", {}).get("trials", ())),
        wall_s=one["end"].get("wall_s"),
    )


def _load(data: Mapping[str, Any] | None) -> Load | None:
    return None if data is None else Load(**{k: data[k] for k in ("other_cpu", "steal", "seconds", "why")})


def _energy(data: Mapping[str, Any]) -> Energy:
    return Energy(**{k: data[k] for k in ("joules", "kind", "source", "why")})


def _held(data: Mapping[str, Any]) -> Held:
    return Held(**{k: data[k] for k in ("bytes", "kind", "why")})


def _memory(events: list[dict[str, Any]]) -> dict[str, Memory] | None:
    names = ("rss", "peak_rss", "pss", "uss", "why")
    return {e["phase"]: Memory(**{n: e[n] for n in names}) for e in events if e["event"] == "memory"} or None


def _calls(data: Mapping[str, Any]) -> Calls:
    ns, inputs, tokens, cut = (tuple(map(int, data[n])) for n in ("ns", "inputs", "tokens", "truncated"))
    if not ns or min(ns) <= 0 or not len(ns) == len(inputs) == len(tokens) == len(cut):
        raise ValueError(f"{len(ns)} times for {len(inputs)} inputs, the shortest {min(ns, default=None)} ns")
    first, written = (tuple(map(int, data.get(n, ()))) for n in ("first_ns", "written"))
    if len(first) not in (0, len(ns)) or len(written) != len(first):
        raise ValueError(f"{len(first)} first tokens and {len(written)} answers for {len(ns)} times")
    span = int(data.get("span_ns", sum(ns)))
    return Calls(ns, inputs, tokens, cut, span, tuple(data.get("windows", ())), first, written, data.get("late"),
                 tuple(map(int, data.get("took_ns", ()))), int(data.get("parallel", 1)))  # fmt: skip
