"""What latency and accuracy measurements share: the subject, the machine, the inputs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgewise.bundle import Bundle, read_bundle
from edgewise.data import Row, digest_rows
from edgewise.errors import DataError, EdgewiseError, PlanError, WorkerError, nearest
from edgewise.profiler.results import WorkerResult
from edgewise.profiler.transport import Children, run_job, sweep_jobs
from edgewise.types import Device, RunSettings, Target, to_dict


@dataclass(frozen=True)
class Subject:
    """A bundle to measure, with the names that it has in the plan."""

    candidate: str
    recipe: str
    bundle: Bundle = field(hash=False)

    @property
    def name(self) -> str:
        return f"{self.candidate}/{self.recipe}"


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


def describe_device(device: Device, children: Children, *, providers: bool = False) -> WorkerResult:
    """Ask a device for its fingerprint, and with `providers` which of these really run there.

    Raises UserError when its interpreter cannot run the worker, WorkerError when the worker dies.
    """
    job = {"job": "describe", "providers": providers}
    return run_job(device, job, [], children=children, timeout_s=120)


def fingerprint_of(device: Device, children: Children) -> dict[str, Any] | str:
    """The device's fingerprint, or why there is none. Raises UserError as `describe_device` does."""
    try:
        return dict(describe_device(device, children).fingerprint)
    except WorkerError as error:
        return f"device {device.name!r} does not answer: {error}"


def check_subject(subject: Subject) -> str:
    """Why a bundle cannot be measured, or ''. Hashes every file, which also brings it into the page cache."""
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


def job_run(run: RunSettings, bundle: Bundle) -> dict[str, Any]:
    """Run settings as the job says them: 'what the model allows' must hold where the bundle carries a length too."""
    data = to_dict(run)
    if run.max_length is None and bundle.manifest.run.max_length is not None:
        data["max_length"] = bundle.manifest.preprocessing.get("max_length")
    return data


def job_inputs(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Lines of inputs.jsonl."""
    return [{"id": row.id, "text": row.text, "text_pair": row.text_pair} for row in rows]


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
