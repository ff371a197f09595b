"""`load`: from a bundle folder to an object that answers."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack, overload

from edgewise.errors import BundleError, PlanError, ProviderError, UserError, nearest
from edgewise.runtime.early import Early, begin_early

if TYPE_CHECKING:  # what reads the bundle is imported while its session is made: see early.py
    from edgewise.bundle import Bundle, Verify
    from edgewise.runtime.base import Model
    from edgewise.runtime.classify import TextClassifier
    from edgewise.runtime.features import FeatureExtractor
    from edgewise.runtime.fill_mask import MaskFiller
    from edgewise.runtime.generation import TextGenerator
    from edgewise.runtime.image_models import ImageClassifier, ImageFeatureExtractor
    from edgewise.runtime.session import SessionOptions
    from edgewise.runtime.text2text import TextToText
    from edgewise.runtime.token_classify import TokenClassifier
    from edgewise.types import GraphLevel, Provider, RunSettings, Task

CLASSES: dict[Task, tuple[str, str]] = {
    "text-classification": ("classify", "TextClassifier"),
    "token-classification": ("token_classify", "TokenClassifier"),
    "feature-extraction": ("features", "FeatureExtractor"),
    "fill-mask": ("fill_mask", "MaskFiller"),
    "text-generation": ("generation", "TextGenerator"),
    "text2text-generation": ("text2text", "TextToText"),
    "image-classification": ("image_models", "ImageClassifier"),
    "image-feature-extraction": ("image_models", "ImageFeatureExtractor"),
}
"""Task -> (module of the runtime, its class), imported when a bundle of the task is loaded."""


class LoadOptions(TypedDict, total=False):
    """What `load` takes beside the path and the task."""

    provider: Provider | Sequence[Provider] | None
    provider_options: Mapping[str, str] | None
    fallback: bool
    threads: int | None
    max_length: int | None
    batch_size: int | None
    parallel: int | None
    threshold: float | None
    graph_optimization: GraphLevel | None
    allow_spinning: bool
    verify: Verify
    expect: str | None
    record_placement: bool
    profile_to: str | None


@contextmanager
def _no_collection() -> Iterator[None]:
    """Imports and manifests are new objects that stay: looking for garbage among them costs a start 4%."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


# With the task named, a type checker knows the class that comes back.
@overload
def load(
    path: str | os.PathLike[str], *, task: Literal["text-classification"], **options: Unpack[LoadOptions]
) -> TextClassifier: ...
@overload
def load(
    path: str | os.PathLike[str], *, task: Literal["token-classification"], **options: Unpack[LoadOptions]
) -> TokenClassifier: ...
@overload
def load(
    path: str | os.PathLike[str], *, task: Literal["feature-extraction"], **options: Unpack[LoadOptions]
) -> FeatureExtractor: ...
@overload
def load(path: str | os.PathLike[str], *, task: Literal["fill-mask"], **options: Unpack[LoadOptions]) -> MaskFiller: ...
@overload
def load(
    path: str | os.PathLike[str], *, task: Literal["text-generation"], **options: Unpack[LoadOptions]
) -> TextGenerator: ...
@overload
def load(
    path: str | os.PathLike[str], *, task: Literal["text2text-generation"], **options: Unpack[LoadOptions]
) -> TextToText: ...
@overload
def load(
    path: str | os.PathLike[str], *, task: Literal["image-classification"], **options: Unpack[LoadOptions]
) -> ImageClassifier: ...
@overload
def load(
    path: str | os.PathLike[str], *, task: Literal["image-feature-extraction"], **options: Unpack[LoadOptions]
) -> ImageFeatureExtractor: ...
@overload
def load(path: str | os.PathLike[str], *, task: Task | None = None, **options: Unpack[LoadOptions]) -> Any: ...
@_no_collection()
def load(
    path: str | os.PathLike[str],
    *,
    task: Task | None = None,
    provider: Provider | Sequence[Provider] | None = None,
    provider_options: Mapping[str, str] | None = None,
    fallback: bool = False,
    threads: int | None = None,
    max_length: int | None = None,
    batch_size: int | None = None,
    parallel: int | None = None,
    threshold: float | None = None,
    graph_optimization: GraphLevel | None = None,
    allow_spinning: bool = True,
    verify: Verify = "stamp",
    expect: str | None = None,
    record_placement: bool = False,
    profile_to: str | None = None,
) -> Any:
    """Load a bundle, with the run settings that it carries unless they are overridden here.

    task: what the bundle must be for; the object that comes back is of the task's class either way.
    provider: the execution provider by its short name, or several, of which the first that runs is taken; one that
    does not run here is an error.
    provider_options: of the provider; of the first where several are named.
    fallback: take the CPU where none of them runs.
    threads: threads inside one operator.
    max_length: tokens a text is cut to, special tokens included.
    batch_size: inputs that go through the graph together; it changes the answers of dynamic int8.
    parallel: calls at once for many inputs; as many as keep the cores busy unless given.
    threshold: the score from which a label is said (see `RunSettings`).
    allow_spinning: False where the board has other work for the cores that wait.
    verify: 'stamp' hashes every file once, and later sees that size, time and inode are what they were; 'full' hashes
    at every load; 'none' only sees that the files are there.
    expect: the content digest that the bundle must have, 'sha256:...'.
    record_placement: keep which nodes run on which provider, for `model.placement()`.
    profile_to: let onnxruntime time its nodes, into JSON files whose names begin so; `model.end_profiling()` ends it.

    Raises BundleError and its leaves, ProviderError, or UserError for a length that the model does not allow.
    """
    start = perf_counter_ns()
    early = None
    if (
        verify == "stamp"
        and expect is None
        and provider in (None, "cpu")
        and not provider_options
        and not record_placement
        and not profile_to
    ):
        early = begin_early(path, threads=threads, level=graph_optimization, allow_spinning=allow_spinning)
    from edgewise.bundle import read_bundle

    bundle = read_bundle(path, verify=verify, expect=expect)
    _check_task(bundle, task)
    run = _run_settings(
        bundle,
        threads=threads,
        max_length=max_length,
        batch_size=batch_size,
        threshold=threshold,
        graph_optimization=graph_optimization,
    )
    runs = _provider_runs(run, provider, provider_options, fallback=fallback)
    if parallel is not None and (isinstance(parallel, bool) or not isinstance(parallel, int) or parallel < 1):
        raise PlanError(f"parallel is {parallel!r}; expected a whole number of at least 1")
    read = perf_counter_ns()

    # Imported here, and timed, because they are most of a cold start.
    from edgewise.runtime import many, session

    imported = perf_counter_ns()
    asked = session.SessionOptions(allow_spinning, record_placement, profile_to or "")
    opening, run = _open(bundle, runs, asked, early)
    module, name = CLASSES[bundle.manifest.task]
    kind = getattr(import_module(f"edgewise.runtime.{module}"), name)
    from edgewise.runtime.base import Opened

    model: Model = kind(Opened(bundle, run, lambda: opening()[0], parallel or many.calls_at_once(run)))
    model.session()
    opened = opening()[1]
    if early is not None:
        read, imported = early.read_ns, early.imported_ns
    model.phases |= {
        "imports": imported - read,
        "load": (read - start) + (perf_counter_ns() - opened),
        "session": opened - imported,
    }
    return model


def _open(
    bundle: Bundle, runs: Sequence[RunSettings], asked: SessionOptions, early: Early | None
) -> tuple[Callable[[], tuple[tuple[Any, ...], int]], RunSettings]:
    """(what waits for the sessions and tells when they were there, their run settings).

    onnxruntime leaves the interpreter free while it makes a session, so one provider is opened in a thread while the
    tokenizer is read, if it was not begun before. Of several, it must be known first which one runs.
    """
    from edgewise.runtime.many import begin
    from edgewise.runtime.session import open_sessions

    if len(runs) > 1:
        sessions, run = _open_first(bundle, runs, asked)
        found = sessions, perf_counter_ns()
        return lambda: found, run
    run = runs[0]
    if early is None:
        return begin(lambda: (open_sessions(bundle, run, asked), perf_counter_ns())), run

    @cache
    def take() -> tuple[tuple[Any, ...], int]:
        made, at = early.wait()
        sessions = open_sessions(bundle, run, asked, made)
        return sessions, at if made else perf_counter_ns()

    return take, run


def _open_first(bundle: Bundle, runs: Sequence[RunSettings], asked: SessionOptions) -> tuple[Any, RunSettings]:
    from edgewise.runtime.session import open_sessions

    refused = []
    for run in runs:
        try:
            return open_sessions(bundle, run, asked), run
        except ProviderError as error:
            refused.append(str(error))
    raise ProviderError("none of the providers runs: " + "; ".join(refused))


def _run_settings(bundle: Bundle, **given: Any) -> RunSettings:
    """The bundle's run settings with what is given, where that is not None."""
    from dataclasses import replace

    run = replace(bundle.manifest.run, **{k: v for k, v in given.items() if v is not None})
    _check_run(bundle, run)
    return run


def _provider_runs(
    run: RunSettings,
    provider: Provider | Sequence[Provider] | None,
    options: Mapping[str, str] | None,
    *,
    fallback: bool,
) -> list[RunSettings]:
    """The run settings to try, in order, one a provider."""
    from dataclasses import replace

    names = [run.provider] if provider is None else [provider] if isinstance(provider, str) else list(provider)
    if not names:
        raise PlanError("provider is an empty list: name at least one, for example 'cpu'")
    if fallback and "cpu" not in names:
        names.append("cpu")
    runs = []
    for i, name in enumerate(names):
        # The bundle's options are for the provider it was chosen with.
        kept = run.provider_options if name == run.provider else {}
        runs.append(replace(run, provider=name, provider_options=options if options is not None and not i else kept))
    return runs


def _check_task(bundle: Bundle, task: Task | None) -> None:
    from edgewise.types import TASKS

    found = bundle.manifest.task
    if found not in CLASSES:
        raise BundleError(f"{bundle.path} is for {found!r}, which this edgewise does not know: update it")
    if task is not None and task not in TASKS:
        raise PlanError(f"unknown task {task!r}: {nearest(str(task), TASKS)}")
    if task is not None and task != found:
        raise BundleError(f"{bundle.path} is for {found}, not for {task}: load a bundle of that task")


def _check_run(bundle: Bundle, run: RunSettings) -> None:
    longest = bundle.manifest.preprocessing.get("max_length")
    if longest is not None and run.max_length is not None and run.max_length > longest:
        raise UserError(f"max_length is {run.max_length}, but {bundle.path} allows at most {longest} tokens")
    kind = bundle.manifest.problem_type
    two = len(bundle.manifest.labels) == 2 and kind != "regression"
    if run.threshold is not None and not (two or kind == "multi_label_classification"):
        raise UserError(
            f"threshold is {run.threshold:g}, but {bundle.path} tells {len(bundle.manifest.labels)} labels apart: it "
            "is for two labels, or several a text"
        )
