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
from functools import partial  # noqa: E402
from itertools import islice  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any, TextIO  # noqa: E402

from edgewise.errors import EdgewiseError, UserError  # noqa: E402
from edgewise.profiler.energy import energy_since, mark_energy  # noqa: E402
from edgewise.profiler.queries import Predict, Write, ask, ask_tokens, inputs_a_query  # noqa: E402
from edgewise.profiler.vitals import load_since, mark_load, read_memory  # noqa: E402
from edgewise.profiler.yardstick import read_yardstick  # noqa: E402

PROTOCOL = 1
SPAWNED = "EDGEWISE_SPAWNED_NS"
"""Environment variable: time.monotonic_ns() of the transport just before it started this process."""
_CHUNK = 64
_PROFILED, _PROFILED_S = 16, 2.0
"""Calls whose nodes onnxruntime times, and for how long at most."""
_MAX_FIRST_LINE_S = 600
_GPU_PROVIDERS = ("cuda", "tensorrt", "webgpu")
"""Those that may run on a GPU of NVIDIA."""

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
            if not isinstance(error, EdgewiseError):
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
    results.write("end", wall_s=(time.monotonic_ns() - (_spawned_ns() or _FIRST_LINE_NS)) / 1e9)


def _spawned_ns() -> int | None:
    """The transport's stamp, if it can be one: the same clock, and not long ago."""
    text = os.environ.get(SPAWNED, "")
    if not text.isdigit():
        return None
    age_s = (_FIRST_LINE_NS - int(text)) / 1e9
    return int(text) if 0 <= age_s <= _MAX_FIRST_LINE_S else None


def _latency(folder: Path, job: Mapping[str, Any], results: _Results) -> None:
    ready_ns = time.monotonic_ns()
    before_s = mark_load()
    items = [_item(line, folder) for line in _lines(folder)]
    arrival = job.get("scenario") or {"name": "single-stream"}
    batches = _batches(items, inputs_a_query(arrival, job["run"]["batch_size"], len(items)))
    empty = read_memory(shares=False)
    gpu = _GpuWatch(job["run"]["provider"])
    aside = gpu.began_ns

    before = time.monotonic_ns()
    load = _loader(job)
    imported = time.monotonic_ns()
    model = load(verify=job["verify"])
    loaded = time.monotonic_ns()
    write = _writer(model, arrival)
    if write is None:
        model.predict(batches[-1])
    else:
        next(iter(write(batches[-1][0])))
    answered = time.monotonic_ns()

    first = read_memory(shares=True)
    phases = {
        "imports": imported - before + model.phases["imports"],
        "load": model.phases["load"],
        "session": model.phases["session"],
        "first": answered - loaded,
    }
    results.write("startup", ns=_startup(phases, ready_ns, answered, aside))
    results.write("memory", phase="empty", **asdict(empty))
    results.write("memory", phase="first", **asdict(first))
    results.write("warmup", **_warm_up(_answering(model, write), batches, job["warmup"]))
    results.write("load_before", **asdict(load_since(before_s)), average=_load_average())
    gc.collect()
    gc.freeze()
    start, energy = mark_load(), mark_energy(gpus=gpu.mine())
    if write is None:
        calls = ask(model.predict, batches, arrival, job["seconds"], job["min_calls"], model.parallel, _heat(arrival))
    else:
        calls = ask_tokens(write, batches, job["seconds"], job["min_calls"], arrival["new_tokens"])
    used, load_now = energy_since(energy, gpus=gpu.mine()), load_since(start)
    gpu.tell(results)
    results.write("memory", phase="end", **asdict(read_memory(shares=True)))
    results.write("load", **asdict(load_now), average=_load_average())
    results.write("energy", **asdict(used))
    results.write("calls", **calls)
    _measured(model, results)
    results.write("yardstick", ns=read_yardstick())  # after the last reading of memory, which it is no part of
    if job.get("placement"):
        model.close()
        _place(folder, job, results, lambda again: _some(_answering(again, _writer(again, arrival)), batches))


class _GpuWatch:
    """What NVIDIA's library says of the GPU that the provider may run on; of none, and not loaded, for other ones."""

    def __init__(self, provider: str) -> None:
        start = time.monotonic_ns()
        self._nvml: Any = None
        if provider in _GPU_PROVIDERS:
            from edgewise.profiler.nvml import Nvml

            self._nvml = Nvml()
            self._before = self._nvml.read()
        self.began_ns = time.monotonic_ns() - start
        """Nanoseconds that it took, which are no part of the bundle's start-up."""

    def mine(self) -> Sequence[Any]:
        """The GPUs in use, as they are now."""
        if self._nvml is None:
            return ()
        from edgewise.profiler.nvml import mine

        return mine(self._nvml.read())

    def tell(self, results: _Results) -> None:
        """Its memory after the last call."""
        if self._nvml is None:
            return
        from edgewise.profiler.nvml import held

        results.write("gpu_memory", **asdict(held(self._before, self._nvml.read(), self._nvml.why)))


def _some(predict: Predict, batches: list[list[Item]]) -> int:
    """A few calls for onnxruntime's profile, how many: fewer where each takes long, and two at least."""
    start, calls = time.monotonic(), 0
    while calls < 2 or (calls < _PROFILED and time.monotonic() - start < _PROFILED_S):
        predict(batches[-1 - calls % len(batches)])
        calls += 1
    return calls


def _writer(model: Any, arrival: Mapping[str, Any]) -> Write | None:
    """Of the generation scenario: what writes as many tokens for every input, the best one each time."""
    if arrival["name"] != "generation":
        return None
    if not hasattr(model, "token_stream"):
        raise UserError("scenario generation is for bundles that write, which this is not")
    options = {"max_new_tokens": arrival["new_tokens"], "do_sample": False, "num_beams": 1}
    return partial(model.token_stream, ignore_eos=True, **options)


def _answering(model: Any, write: Write | None) -> Predict:
    """What answers a query of the scenario; with a writer a batch of one input, to its end."""
    if write is None:
        predict: Predict = model.predict
        return predict

    def answer(batch: Sequence[Any]) -> Sequence[Any]:
        stream = write(batch[0])
        for _ in stream:
            pass
        return [stream]

    return answer


def _heat(arrival: Mapping[str, Any]) -> Callable[[], Mapping[str, Any]] | None:
    """What reads clock and temperature, where the scenario wants it: imported before the calls are timed."""
    if arrival["name"] != "sustained":
        return None
    from edgewise.profiler.fingerprint import read_heat

    return read_heat


def _startup(phases: dict[str, int], ready_ns: int, answered: int, aside: int) -> dict[str, int | None]:
    """Nanoseconds by phase; 'other' is what lies between them: reading the job and its inputs, but for `aside`."""
    spawned = _spawned_ns()
    if spawned is None:
        return {"interpreter": None, "total": None, "other": None, **phases}
    interpreter = _FIRST_LINE_NS - spawned
    # Importing edgewise's contract, between the first line and the job, belongs to the imports.
    phases = {**phases, "imports": phases["imports"] + ready_ns - _FIRST_LINE_NS}
    total = answered - spawned - aside
    return {"interpreter": interpreter, "total": total, "other": total - interpreter - sum(phases.values()), **phases}


def _warm_up(predict: Predict, batches: list[list[Item]], rule: Mapping[str, Any]) -> dict[str, Any]:
    """Untimed calls until both the time and the number of the rule are reached; from the end of the inputs."""
    start, calls = time.monotonic(), 0
    while calls < rule["calls"] or time.monotonic() - start < rule["seconds"]:
        predict(batches[-1 - calls % len(batches)])
        calls += 1
    return {"calls": calls, "seconds": time.monotonic() - start}


def _accuracy(folder: Path, job: Mapping[str, Any], results: _Results) -> None:
    from edgewise.profiler.given import answer_rows

    model = _loader(job)(verify=job["verify"])
    lines = _lines(folder)
    answers = zip(lines, answer_rows(model, [_item(line, folder) for line in lines]), strict=True)
    parent = os.getppid()
    while some := list(islice(answers, _CHUNK)):
        results.write("answers", items=[[line["id"], *a] for line, a in some])
        if os.getppid() != parent:
            raise EdgewiseError("the process that asked for this job is gone")
    _measured(model, results)
    model.close()
    if job.get("placement"):
        few = [[_item(line, folder)] for line in lines[:_PROFILED]]
        _place(folder, job, results, lambda again: _some(lambda batch: list(answer_rows(again, batch)), few))


def _measured(model: Any, results: _Results) -> None:
    """What belongs to the numbers. What comes after it takes memory that is not the bundle's: a worker that is killed
    there, at the memory limit of a small device, has measured all the same."""
    results.write("providers", names=list(model.providers))
    if hasattr(model, "ids"):
        results.write("fed", ids=model.ids)
    _fingerprint(results)
    results.write("measured")


def _place(folder: Path, job: Mapping[str, Any], results: _Results, answer: Callable[[Any], int]) -> None:
    """Which nodes run where, and how long by type, from a second session: to record it is not among the settings that
    ship. answer: takes the model, and answers with it so many times."""
    from edgewise.profiler.nodes import time_by_node

    load = _loader(job)
    try:
        with load(verify="full", record_placement=True, profile_to=str(folder / "profile")) as model:
            told = model.placement()
            calls = answer(model)
            nodes = time_by_node(model.end_profiling())
            # What ran is the truth: what was assigned is told in part by some providers (WebGPU, onnxruntime 1.27).
            results.write("placement", nodes=nodes.pop("placed") or told, why="")
            results.write("nodes", calls=calls, **nodes)
        if job.get("peaks"):
            from edgewise.profiler.peaks import read_peaks

            results.write("peaks", **read_peaks(job["run"]["threads"]))
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


def _loader(job: Mapping[str, Any]) -> Callable[..., Any]:
    """What loads the job's bundle, or its ONNX file, with its run settings; takes verify and what to record."""
    run = job["run"]
    if "graph" in job:
        from edgewise.profiler.graph_model import GraphModel
        from edgewise.types import run_from_dict

        return partial(GraphModel, job["bundle"], job["graph"], run_from_dict(run))
    from edgewise.runtime import load

    names = ("provider", "provider_options", "threads", "max_length", "batch_size", "graph_optimization")
    return partial(load, job["bundle"], expect=job["content_digest"], **{n: run[n] for n in names})


def _lines(folder: Path) -> list[dict[str, Any]]:
    with (folder / "inputs.jsonl").open(encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    if not lines:
        raise EdgewiseError(f"{folder / 'inputs.jsonl'} has no line: expected at least one input")
    return lines


def _item(line: Mapping[str, Any], folder: Path) -> Item:
    """A text, a pair of texts, or the path of an image, which stands in the job's folder."""
    if "image" in line:
        return str(folder / line["image"])
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
