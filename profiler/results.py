"""What a worker wrote, as types. Nothing that comes from a worker is trusted to be whole."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgewise.errors import WorkerError
from edgewise.profiler.energy import Energy
from edgewise.profiler.nvml import Held
from edgewise.profiler.vitals import Load, Memory

PROTOCOL = 1
_MOST = 2**63
"""Of any number: beyond it is none that a machine could have measured, nor SQLite store."""


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
    lengths: tuple[int, ...] = ()
    """Tokens of each input alone, where a call has several; none from an older worker."""


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
    ids: int | None = None
    """Of an ONNX file: its made-up ids are below this."""
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
    average = one.get("load_before", {}).get("average")
    answers = tuple(_answer(*item) for e in events if e["event"] == "answers" for item in e["items"])
    return WorkerResult(
        pid=int(one["start"]["pid"]),
        fingerprint=_mapping("fingerprint", one["fingerprint"]),
        providers=_names(one["providers"]["names"]) if "providers" in one else (),
        startup_ns=_startup(one["startup"]["ns"]) if "startup" in one else None,
        memory=_memory(events),
        warmup=one.get("warmup"),
        calls=_calls(one["calls"]) if "calls" in one else None,
        load=_load(one.get("load")),
        load_before=_load(one.get("load_before")),
        load_average=tuple(_number("load average", x) or 0.0 for x in average) if average else None,
        energy=_energy(one["energy"]) if "energy" in one else None,
        gpu_memory=_held(one["gpu_memory"]) if "gpu_memory" in one else None,
        yardstick={k: _count(k, v, 1) for k, v in one["yardstick"]["ns"].items()} if "yardstick" in one else None,
        answers=answers,
        placement=_placement(one.get("placement", {}).get("nodes")),
        placement_why=one.get("placement", {}).get("why", "not asked for"),
        nodes=_nodes(one.get("nodes")),
        peaks=_peaks(one.get("peaks")),
        ids=_count("ids", one["fed"]["ids"], 1) if "fed" in one else None,
        trials=tuple(_mapping("trial", t) for t in one.get("trials", {}).get("trials", ())),
        wall_s=_number("wall_s", one["end"].get("wall_s")),
    )


def _number(name: str, value: Any, least: float = 0.0) -> Any:
    """A finite number of at least `least`, or None for one that the worker did not have."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < _MOST:
        raise ValueError(f"{name} is {value!r}")
    return value


def _count(name: str, value: Any, least: int = 0) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < _MOST:
        raise ValueError(f"{name} is {value!r}")
    return value


def _counts(name: str, values: Any, least: int = 0) -> tuple[int, ...]:
    return tuple(_count(name, value, least) for value in values)


def _mapping(name: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{name} is {value!r}")
    return value


def _names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(name, str) for name in value):
        raise ValueError(f"providers are {value!r}")
    return tuple(value)


def _answer(row: Any, index: Any, score: Any, logits: Any, tokens: Any, cut: Any, given: Any = None) -> Answer:
    numbers = tuple(map(float, logits))  # a head may rule a label out with minus infinity
    if not isinstance(row, str) or score is None or any(math.isnan(x) or x == math.inf for x in numbers):
        raise ValueError(f"the answer to {row!r} has the score {score!r} and the logits {logits!r}")
    _number("a score", score, -math.inf)
    return Answer(row, _count("an answer", index, -1), float(score), numbers,
                  _count("tokens", tokens), bool(cut), given)  # fmt: skip


def _startup(data: Any) -> dict[str, int | None]:
    """'other' is what lies between the phases, and may be nothing, or less by how clocks are read."""
    return {k: _number(k, v, -math.inf if k == "other" else 0) for k, v in _mapping("startup", data).items()}


def _placement(data: Any) -> dict[str, int] | None:
    return None if data is None else {k: _count(k, v) for k, v in _mapping("placement", data).items()}


def _nodes(data: Any) -> Mapping[str, Any] | None:
    if data is None:
        return None
    _count("profiled calls", data["calls"], 1)
    _number("runs", data["runs"])
    _number("graph_s", data["graph_s"])
    for name in ("by_type", "operations"):
        for key, value in _mapping(name, data[name]).items():
            _number(key, value)
    _counts("runs of a graph", data["runs_by_graph"])
    return _mapping("nodes", data)


def _peaks(data: Any) -> Mapping[str, Any] | None:
    if data is None:
        return None
    for name, value in _mapping("peaks", data).items():
        if _number(name, value) == 0 and name != "cache":
            raise ValueError(f"the peak {name} is 0")
    return _mapping("peaks", data)


def _load(data: Mapping[str, Any] | None) -> Load | None:
    if data is None:
        return None
    # Counters of a virtual machine may go back: that is no result.
    other, steal = (_number(k, data[k], -math.inf) for k in ("other_cpu", "steal"))
    other, steal = (None if x is None else max(0.0, x) for x in (other, steal))
    return Load(other, steal, float(_number("seconds", data["seconds"])), str(data["why"]))


def _energy(data: Mapping[str, Any]) -> Energy:
    _number("joules", data["joules"])
    return Energy(**{k: data[k] for k in ("joules", "kind", "source", "why")})


def _held(data: Mapping[str, Any]) -> Held:
    _number("bytes", data["bytes"])
    return Held(**{k: data[k] for k in ("bytes", "kind", "why")})


def _memory(events: list[dict[str, Any]]) -> dict[str, Memory] | None:
    names = ("rss", "peak_rss", "pss", "uss")
    found = (e for e in events if e["event"] == "memory")
    return {e["phase"]: Memory(**{n: _number(n, e[n]) for n in names}, why=str(e["why"])) for e in found} or None


def _calls(data: Mapping[str, Any]) -> Calls:
    ns, inputs, tokens, cut = (_counts(n, data[n]) for n in ("ns", "inputs", "tokens", "truncated"))
    if not ns or min(ns) <= 0 or not len(ns) == len(inputs) == len(tokens) == len(cut):
        raise ValueError(f"{len(ns)} times for {len(inputs)} inputs, the shortest {min(ns, default=None)} ns")
    first, written = (_counts(n, data.get(n, ()), least) for n, least in (("first_ns", 0), ("written", 1)))
    if len(first) not in (0, len(ns)) or len(written) != len(first):
        raise ValueError(f"{len(first)} first tokens and {len(written)} answers for {len(ns)} times")
    span, windows = _count("span_ns", data.get("span_ns", sum(ns)), 1), tuple(data.get("windows", ()))
    for window in windows:
        _count("calls of a window", window["calls"])
        _count("span_ns of a window", window["span_ns"], 1)
    late, parallel = _number("late", data.get("late")), _count("parallel", data.get("parallel", 1), 1)
    took, lengths = _counts("took_ns", data.get("took_ns", ())), _counts("lengths", data.get("lengths", ()))
    return Calls(ns, inputs, tokens, cut, span, windows, first, written, late, took, parallel, lengths)
