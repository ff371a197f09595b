"""What latency and accuracy measurements share: the subject, the machine, the inputs."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

from edgewise.bundle import Bundle, Manifest, read_bundle
from edgewise.data import Row, digest_rows
from edgewise.errors import DataError, EdgewiseError, PlanError, UserError, WorkerError, nearest
from edgewise.profiler.graphs import GraphFile
from edgewise.profiler.results import WorkerResult
from edgewise.profiler.transport import Children, run_job, sweep_jobs
from edgewise.progress import Say, no_words
from edgewise.types import Device, RunSettings, Target, to_dict

T = TypeVar("T")


@dataclass(frozen=True)
class Subject:
    """A bundle to measure, with the names that it has in the plan."""

    candidate: str
    recipe: str
    bundle: Bundle | GraphFile = field(hash=False)

    @property
    def name(self) -> str:
        return f"{self.candidate}/{self.recipe}"

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return self.bundle.size if isinstance(self.bundle, GraphFile) else self.bundle.manifest.size

    def disk(self) -> dict[str, int]:
        """Bytes by part: of the graphs their 'embeddings', 'other weights' and 'structure', and of all other files, the
        tokenizer and the manifest's rows among them."""
        if isinstance(self.bundle, GraphFile):
            return {"graph": self.bundle.size}
        found: dict[str, int] = {}
        for graph in self.manifest.graphs:
            for part, size in graph.bytes_by_part.items():
                if not part.startswith("weights "):  # the same weights once more, by their precision
                    found[part] = found.get(part, 0) + size
        return {**found, "other files": max(0, self.size - sum(found.values()))}

    @property
    def manifest(self) -> Manifest:
        """Of a bundle. Raises EdgewiseError for an ONNX file, which has none."""
        if isinstance(self.bundle, GraphFile):
            raise EdgewiseError(f"{self.bundle.path} is an ONNX file: no text goes in, and no label comes out")
        return self.bundle.manifest


def length_of(subject: Subject, target: Target) -> float:
    """Tokens that a text is cut to; what the model allows, where nothing is said; infinity where it allows any."""
    return target.run.max_length or subject.manifest.preprocessing.get("max_length") or math.inf


def hashing_s(subject: Subject) -> float:
    """Seconds that a worker may take to read and hash the files twice, from a slow card: 10 MB/s."""
    return 2 * subject.size / 1e7


Wanted = Callable[[Subject, Target], bool]
"""Whether a subject is measured on a target."""


def all_of_them(subject: Subject, target: Target) -> bool:
    """Where everything is measured."""
    return True


def no_progress(done: int, total: int, what: str) -> None:
    """Where nobody looks on."""


def pick_devices(devices: Sequence[Device], targets: Sequence[Target]) -> dict[str, Device]:
    """The devices that the targets name, ready for jobs. Raises PlanError for a name that is not among them."""
    sweep_jobs()
    by_name = {d.name: d for d in devices}
    for target in targets:
        if target.device not in by_name:
            raise PlanError(f"target {target.text()!r}: unknown device: {nearest(target.device, tuple(by_name))}")
    return {name: d for name, d in by_name.items() if any(t.device == name for t in targets)}


def describe_device(
    device: Device, children: Children, *, providers: bool = False, say: Say = no_words
) -> WorkerResult:
    """Ask a device for its fingerprint, and with `providers` which of these really run there.

    say: is told what is waited for.

    Raises UserError when its interpreter cannot run the worker, WorkerError when the worker dies.
    """
    job = {"job": "describe", "providers": providers}
    return run_job(device, job, [], children=children, timeout_s=120, say=say)


def fingerprint_of(device: Device, children: Children, say: Say = no_words) -> dict[str, Any] | str:
    """The device's fingerprint, or why there is none. Raises UserError as `describe_device` does."""
    try:
        return dict(describe_device(device, children, say=say).fingerprint)
    except WorkerError as error:
        return f"device {device.name!r} does not answer: {error}"


Prints = Mapping[str, dict[str, Any] | str]
"""Device -> its fingerprint, or why there is none."""


def fingerprints(
    devices: Mapping[str, Device], children: Children, say: Say = no_words, known: Prints | None = None
) -> dict[str, dict[str, Any] | str]:
    """The fingerprint of each device, asked at the same time, or why there is none. known: asked a moment ago; a device
    that changed since is found by its first worker.

    Raises UserError as `describe_device` does; one SSH device among others that answer is a reason instead.
    """

    if known is not None:
        return {name: known[name] for name in devices}

    def ask(device: Device) -> dict[str, Any] | str | UserError:
        try:
            return fingerprint_of(device, children, say)
        except UserError as error:
            return error

    asked = side_by_side([partial(ask, d) for d in devices.values()], children)
    found = dict(zip(devices, asked, strict=True))
    failed = {name: f for name, f in found.items() if isinstance(f, UserError)}
    for name, error in failed.items():
        if devices[name].ssh is None or len(failed) == len(found):
            raise error
    return {name: str(f) if isinstance(f, UserError) else f for name, f in found.items()}


def side_by_side(calls: Sequence[Callable[[], T]], children: Children) -> list[T]:
    """What the calls return, each run in a thread of its own; an error of one ends the others."""
    if len(calls) < 2:
        return [call() for call in calls]
    pool = ThreadPoolExecutor(len(calls))
    try:
        futures = [pool.submit(call) for call in calls]
        done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        for future in [*done, *futures]:
            future.result()
        return [future.result() for future in futures]
    except BaseException:
        children.kill_all()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def device_conditions(device: Device) -> dict[str, Any]:
    """Of a measurement: which device, and what its worker was held to (bytes, cores)."""
    cores = None if device.cores is None else list(device.cores)
    there = {} if device.ssh is None else {"ssh": device.ssh}
    return {"name": device.name, "python": device.python, "memory": device.memory, "cores": cores, **there}


def held_to(device: Device) -> dict[str, Any]:
    """For the settings that make two measurements the same one; nothing where nothing is limited.

    The fingerprint shows how many cores, and a limit rounded to pages; which cores, only this: they may differ.
    """
    named = device_conditions(device)
    return {n: named[n] for n in ("memory", "cores") if named[n] is not None}


def check_subject(subject: Subject) -> str:
    """Why a bundle cannot be measured, or ''. Hashes every file, which also brings it into the page cache."""
    if isinstance(subject.bundle, GraphFile):
        return ""  # hashed a moment ago, and by each worker again
    try:
        read_bundle(subject.bundle.path, verify="full", expect=subject.bundle.digest)
    except EdgewiseError as error:
        return str(error)
    return ""


def check_rows(rows: Sequence[Row]) -> str:
    """The digest of the rows. Raises DataError when there are none."""
    if not rows:
        raise DataError("no rows to measure with: expected at least one")
    return digest_rows(rows)


def rows_apart_from_slices(rows: Sequence[Row]) -> dict[str, str]:
    """For the conditions, where rows have slices: the digest of the rows without them, by which `compare` sees that two
    runs had the same rows. Empty for other rows, whose digest it is already."""
    if not any(row.slices for row in rows):
        return {}
    return {"rows_digest": digest_rows(replace(row, slices=()) for row in rows)}


def job_subject(subject: Subject) -> dict[str, Any]:
    """What a job says of what it measures: where it is, and what it must be."""
    place = {"bundle": str(subject.bundle.path.absolute()), "content_digest": subject.bundle.digest}
    return {**place, "graph": subject.bundle.job()} if isinstance(subject.bundle, GraphFile) else place


def job_run(run: RunSettings, bundle: Bundle | GraphFile) -> dict[str, Any]:
    """Run settings as the job says them: 'what the model allows' must hold where the bundle carries a length too."""
    data = to_dict(run)
    if isinstance(bundle, GraphFile):
        return data
    if run.max_length is None and bundle.manifest.run.max_length is not None:
        data["max_length"] = bundle.manifest.preprocessing.get("max_length")
    return data


def job_inputs(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Lines of inputs.jsonl; of an image its file or bytes, which the transport puts beside it."""
    return [
        {"id": row.id, "text": row.text, "text_pair": row.text_pair}
        if row.image is None
        else {"id": row.id, "image": row.image}
        for row in rows
    ]


def cores(fingerprint: Mapping[str, Any]) -> int:
    """Cores that a worker may use."""
    found = fingerprint.get("usable_cores") or os.cpu_count() or 1
    limit = fingerprint.get("cpu_limit")
    return max(1, min(int(found), int(limit) if limit and limit >= 1 else int(found)))


def token_distribution(tokens: Sequence[int], truncated: int, texts: int) -> dict[str, Any]:
    """For the conditions: how long the inputs were, tokens with special tokens, after cutting."""
    ordered = sorted(tokens)
    at = {"min": 0.0, "p10": 0.1, "p50": 0.5, "p90": 0.9, "max": 1.0}
    last = len(ordered) - 1
    return {
        "tokens": {name: ordered[round(q * last)] for name, q in at.items()} | {"mean": sum(ordered) / len(ordered)},
        "truncated": truncated / texts,
    }
