"""What runs on the device: `python -m edgewise.profiler.worker JOBDIR`, worker protocol version 1.

Reads job.json and inputs.jsonl, appends results.jsonl line by line. JSON alone. Imports the standard library,
edgewise's contract and runtime, and psutil where there is no /proc; nothing else.

Jobs: 'latency' times calls in this fresh process, as the scenario has them; 'accuracy' answers each input once, and is
not timed; 'describe' tells of the machine. An error is one line {"event": "error"} and exit code 1.
"""

from __future__ import annotations

import time

_FIRST_LINE_NS = time.monotonic_ns()  # before every other import: what came until here is the interpreter's start

import gc  # noqa: E402  # the stamp above must come first
import json  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
from collections.abc import Callable, Mapping, Sequence  # noqa: E402
from dataclasses import asdict  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import TYPE_CHECKING, Any, TextIO  # noqa: E402

from edgewise.errors import EdgewiseError  # noqa: E402
from edgewise.profiler.energy import energy_since, mark_energy  # noqa: E402
from edgewise.profiler.queries import ask, inputs_a_query  # noqa: E402
from edgewise.profiler.vitals import load_since, mark_load, read_memory  # noqa: E402

if TYPE_CHECKING:
    from edgewise.runtime import TextClassifier

PROTOCOL = 1
SPAWNED = "EDGEWISE_SPAWNED_NS"
"""Environment variable: time.monotonic_ns() of the transport just before it started this process."""
_CHUNK = 64
_MAX_FIRST_LINE_S = 600

Item = str | tuple[str, str]


def main(argv: Sequence[str]) -> int:
    """Do one job; 0 when it ended well, 1 after an error line, 130 when interrupted."""
    if len(argv) != 1:
        print("usage: python -m edgewise.profiler.worker JOBDIR", file=sys.stderr)
        return 2
    folder = Path(argv[0])
    with (folder / "results.jsonl").open("a", encoding="utf-8") as file:
        try:
            _work(folder, _Results(file))
        except KeyboardInterrupt:
            return 130
        except Exception as error:  # whatever it is, the host must hear of it
            import traceback

            traceback.print_exc()
            _Results(file).write(
                "error",
                kind=type(error).__name__,
                message=str(error) or repr(error),
                expected=isinstance(error, EdgewiseError),
                missing=error.name if isinstance(error, ImportError) else None,
            )
            return 1
    return 0


class _Results:
    """Appends events, each flushed, so that a killed worker leaves what it had."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, event: str, **values: Any) -> None:
        self._file.write(json.dumps({"event": event, **values}) + "\n")
        self._file.flush()


def _work(folder: Path, results: _Results) -> None:
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    if job.get("protocol") != PROTOCOL:
        raise EdgewiseError(f"the job has protocol {job.get('protocol')!r}, this edgewise speaks {PROTOCOL}: update it")
    jobs = {"latency": _latency, "accuracy": _accuracy, "describe": _describe}
    if job.get("job") not in jobs:
        raise EdgewiseError(f"unknown job {job.get('job')!r}: known: {', '.join(jobs)}")
    results.write("start", protocol=PROTOCOL, pid=os.getpid(), spawned_ns=_spawned_ns(), first_line_ns=_FIRST_LINE_NS)
    jobs[job["job"]](folder, job, results)
    results.write("end")


def _spawned_ns() -> int | None:
    """The transport's stamp, if it can be one: the same clock, and not long ago."""
    text = os.environ.get(SPAWNED, "")
    if not text.isdigit():
        return None
    age_s = (_FIRST_LINE_NS - int(text)) / 1e9
    return int(text) if 0 <= age_s <= _MAX_FIRST_LINE_S else None


def _latency(folder: Path, job: Mapping[str, Any], results: _Results) -> None:
    ready_ns = time.monotonic_ns()
    items = [_item(line) for line in _lines(folder)]
    arrival = job.get("scenario") or {"name": "single-stream"}
    batches = _batches(items, inputs_a_query(arrival, job["run"]["batch_size"], len(items)))
    empty = read_memory(shares=False)

    before = time.monotonic_ns()
    from edgewise.runtime import load

    imported = time.monotonic_ns()
    model = load(job["bundle"], task="text-classification", **_load_options(job))
    loaded = time.monotonic_ns()
    model.predict(batches[-1])
    answered = time.monotonic_ns()

    first = read_memory(shares=True)
    phases = {
        "imports": imported - before + model.phases["imports"],
        "load": model.phases["load"],
        "session": model.phases["session"],
        "first": answered - loaded,
    }
    results.write("startup", ns=_startup(phases, ready_ns, answered))
    results.write("memory", phase="empty", **asdict(empty))
    results.write("memory", phase="first", **asdict(first))
    results.write("warmup", **_warm_up(model, batches, job["warmup"]))
    gc.collect()
    gc.freeze()
    start, energy = mark_load(), mark_energy()
    calls = ask(model.predict, batches, arrival, job["seconds"], job["min_calls"], model.parallel, _heat(arrival))
    used, load_now = energy_since(energy), load_since(start)
    results.write("memory", phase="end", **asdict(read_memory(shares=True)))
    results.write("load", **asdict(load_now), average=_load_average())
    results.write("energy", **asdict(used))
    results.write("calls", **calls)
    results.write("providers", names=list(model.providers))
    if job.get("placement"):
        model.close()
        _place(job, results)
    _fingerprint(results)


def _heat(arrival: Mapping[str, Any]) -> Callable[[], Mapping[str, Any]] | None:
    """What reads clock and temperature, where the scenario wants it: imported before the calls are timed."""
    if arrival["name"] != "sustained":
        return None
    from edgewise.profiler.fingerprint import read_heat

    return read_heat


def _startup(phases: dict[str, int], ready_ns: int, answered: int) -> dict[str, int | None]:
    """Nanoseconds by phase; 'other' is what lies between them: reading the job and its inputs."""
    spawned = _spawned_ns()
    if spawned is None:
        return {"interpreter": None, "total": None, "other": None, **phases}
    interpreter = _FIRST_LINE_NS - spawned
    # Importing edgewise's contract, between the first line and the job, belongs to the imports.
    phases = {**phases, "imports": phases["imports"] + ready_ns - _FIRST_LINE_NS}
    total = answered - spawned
    return {"interpreter": interpreter, "total": total, "other": total - interpreter - sum(phases.values()), **phases}


def _warm_up(model: TextClassifier, batches: list[list[Item]], rule: Mapping[str, Any]) -> dict[str, Any]:
    """Untimed calls until both the time and the number of the rule are reached; from the end of the inputs."""
    start, calls = time.monotonic(), 0
    while calls < rule["calls"] or time.monotonic() - start < rule["seconds"]:
        model.predict(batches[-1 - calls % len(batches)])
        calls += 1
    return {"calls": calls, "seconds": time.monotonic() - start}


def _accuracy(folder: Path, job: Mapping[str, Any], results: _Results) -> None:
    from edgewise.runtime import load

    model = load(job["bundle"], task="text-classification", **_load_options(job))
    lines = _lines(folder)
    # Whole batches, in order: the batch changes the answers of dynamic int8.
    step = max(1, _CHUNK // model.run.batch_size) * model.run.batch_size
    parent = os.getppid()
    for start in range(0, len(lines), step):
        chunk = lines[start : start + step]
        answers = model.predict([_item(line) for line in chunk])
        results.write(
            "answers",
            items=[
                [line["id"], a.index, a.score, list(a.logits), a.n_tokens, a.truncated]
                for line, a in zip(chunk, answers, strict=True)
            ],
        )
        if os.getppid() != parent:
            raise EdgewiseError("the process that asked for this job is gone")
    results.write("providers", names=list(model.providers))
    model.close()
    if job.get("placement"):
        _place(job, results)
    _fingerprint(results)


def _place(job: Mapping[str, Any], results: _Results) -> None:
    """Which nodes run where, from a second session: recording it is not among the settings that ship."""
    from edgewise.runtime import load

    try:
        with load(job["bundle"], **{**_load_options(job), "verify": "none", "record_placement": True}) as model:
            results.write("placement", nodes=model.placement(), why="")
    except AttributeError as error:
        results.write("placement", nodes=None, why=f"this onnxruntime does not tell which nodes run where: {error}")


def _describe(folder: Path, job: Mapping[str, Any], results: _Results) -> None:
    import edgewise.runtime.classify  # noqa: F401  # so that the fingerprint has the versions of what will run

    if job.get("providers"):
        from edgewise.profiler.describe import try_providers

        results.write("trials", trials=[asdict(t) for t in try_providers()])
    _fingerprint(results)


def _fingerprint(results: _Results) -> None:
    from edgewise.profiler.fingerprint import read_fingerprint

    results.write("fingerprint", **read_fingerprint().as_dict())


def _load_options(job: Mapping[str, Any]) -> dict[str, Any]:
    """The job's run settings as arguments of `load`, with the digest that the bundle must have."""
    run = job["run"]
    names = ("provider", "provider_options", "threads", "max_length", "batch_size", "graph_optimization")
    return {**{n: run[n] for n in names}, "verify": job["verify"], "expect": job["content_digest"]}


def _lines(folder: Path) -> list[dict[str, Any]]:
    with (folder / "inputs.jsonl").open(encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    if not lines:
        raise EdgewiseError(f"{folder / 'inputs.jsonl'} has no line: expected at least one input")
    return lines


def _item(line: Mapping[str, Any]) -> Item:
    pair = line.get("text_pair")
    return line["text"] if pair is None else (line["text"], pair)


def _batches(items: list[Item], size: int) -> list[list[Item]]:
    """Full batches; the inputs start again at the end, so that each call has as many as the others."""
    count = -(-len(items) // size)
    return [[items[(b * size + i) % len(items)] for i in range(size)] for b in range(count)]


def _load_average() -> list[float] | None:
    return list(os.getloadavg()) if hasattr(os, "getloadavg") else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
