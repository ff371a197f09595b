"""`load`: from a bundle folder to an object that answers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

from edgewise.bundle import Bundle, Verify, read_bundle
from edgewise.errors import BundleError, UserError
from edgewise.types import GraphLevel, Provider, RunSettings

if TYPE_CHECKING:
    from edgewise.runtime.classify import TextClassifier


def load(
    path: str | os.PathLike[str],
    *,
    provider: Provider | None = None,
    provider_options: Mapping[str, str] | None = None,
    threads: int | None = None,
    max_length: int | None = None,
    batch_size: int | None = None,
    graph_optimization: GraphLevel | None = None,
    verify: Verify = "full",
    expect: str | None = None,
    record_placement: bool = False,
) -> TextClassifier:
    """Load a bundle, with the run settings that it carries unless they are overridden here.

    provider: the execution provider by its short name; one that does not run here is an error, never a fallback.
    threads: threads inside one operator.
    max_length: tokens a text is cut to, special tokens included.
    verify: 'full' hashes every file, 'size' compares sizes, 'none' only sees that the files are there.
    expect: the content digest that the bundle must have, 'sha256:...'.
    record_placement: keep which nodes run on which provider, for `model.placement()`.

    Raises BundleError and its leaves, ProviderError, or UserError for a length that the model does not allow.
    """
    start = perf_counter_ns()
    bundle = read_bundle(path, verify=verify, expect=expect)
    given = {
        "provider": provider,
        "provider_options": provider_options,
        "threads": threads,
        "max_length": max_length,
        "batch_size": batch_size,
        "graph_optimization": graph_optimization,
    }
    changes: dict[str, Any] = {k: v for k, v in given.items() if v is not None}
    if provider is not None and provider_options is None and provider != bundle.manifest.run.provider:
        changes["provider_options"] = {}  # the bundle's options are for the provider it was chosen with
    run = replace(bundle.manifest.run, **changes)
    _check_run(bundle, run)
    read = perf_counter_ns()

    # Imported here, and timed, because they are most of a cold start.
    from edgewise.runtime import classify, session, text

    imported = perf_counter_ns()
    encoder = text.TextEncoder.read(bundle, run)
    tokenizer_read = perf_counter_ns()
    opened = session.open_session(bundle, run, record_placement=record_placement)
    phases = {
        "imports": imported - read,
        "load": (read - start) + (tokenizer_read - imported),
        "session": perf_counter_ns() - tokenizer_read,
    }
    return classify.TextClassifier(bundle, run, opened, encoder, phases)


def _check_run(bundle: Bundle, run: RunSettings) -> None:
    task = bundle.manifest.task
    if task != "text-classification":
        raise BundleError(f"{bundle.path} is for {task}; this version of edgewise runs text-classification")
    longest = bundle.manifest.preprocessing.get("max_length")
    if longest is not None and run.max_length is not None and run.max_length > longest:
        raise UserError(f"max_length is {run.max_length}, but {bundle.path} allows at most {longest} tokens")
