"""ONNX Runtime sessions: the provider that was asked for, or an error; never a quiet fallback to the CPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from edgewise.runtime import numpy_first  # noqa: F401  # before onnxruntime, whose own import of numpy it replaces

# isort: split
import onnxruntime as ort

from edgewise.errors import BundleChangedError, BundleError, ProviderError

if TYPE_CHECKING:  # a session is begun before these are imported: see early.py
    from pathlib import Path

    from edgewise.bundle import Bundle, GraphInfo
    from edgewise.types import GraphLevel, Provider, RunSettings

PROVIDER_NAMES: dict[Provider, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "dml": "DmlExecutionProvider",
    "qnn": "QNNExecutionProvider",
    "webgpu": "WebGpuExecutionProvider",
    "xnnpack": "XnnpackExecutionProvider",
}
"""Our short names for ONNX Runtime's."""

_LEVELS: dict[GraphLevel, ort.GraphOptimizationLevel] = {
    "disabled": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(bool)": "bool",
}
"""ONNX Runtime's names of types -> the manifest's."""
# onnxruntime warns on standard error about what it does to a graph; errors reach us as exceptions.
_QUIET = 3


class SessionOptions(NamedTuple):
    """What is asked of a session beside the run settings."""

    allow_spinning: bool = True
    """Threads wait for the next operator by spinning: faster, at the cost of the cores' other work."""
    record_placement: bool = False
    """Keep which nodes run on which provider."""
    profile_to: str = ""
    """onnxruntime's profile is written to files whose names begin so; '' for none."""


class Settings(NamedTuple):
    """All that a session is told beside its graph."""

    provider: str
    """onnxruntime's name."""
    provider_options: Mapping[str, str]
    threads: int
    level: GraphLevel
    options: SessionOptions


class Made(NamedTuple):
    """A session that was made before it was asked for."""

    file: str
    """In the bundle, as the manifest names it."""
    settings: Settings
    session: ort.InferenceSession


def open_sessions(
    bundle: Bundle, run: RunSettings, options: SessionOptions, made: Sequence[Made] = ()
) -> tuple[ort.InferenceSession, ...]:
    """A session on each of the bundle's graphs, in the manifest's order, with these run settings.

    made: sessions to take where they are of the same file and settings.

    Raises ProviderError when the provider is not there, does not start, or takes no node of any graph;
    BundleError when a graph cannot be read or differs from the manifest.
    """
    name = _name_of(run.provider)
    # On another provider than the CPU, nodes that it cannot take fall to the CPU; only the placement tells.
    check_placement = run.provider != "cpu"
    settings = Settings(
        name,
        dict(run.provider_options),
        run.threads,
        level_told(run.graph_optimization, offline=bundle.manifest.recipe.offline),
        options._replace(record_placement=options.record_placement or check_placement),
    )
    opened = []
    for graph in bundle.manifest.graphs:
        file = str(bundle.path / graph.file)
        ready = [m.session for m in made if (m.file, m.settings) == (graph.file, settings)]
        session = ready[0] if ready else _create(file, settings, run.provider)
        _check_started(session, name, run.provider, bundle.path)
        _check_form(bundle, graph, session)
        opened.append(session)
    if check_placement:
        _check_taken(opened, name, run.provider, bundle.path)
    return tuple(opened)


def open_graph(file: Path, run: RunSettings, options: SessionOptions) -> ort.InferenceSession:
    """A session on any ONNX file, with the provider, threads and level of these run settings.

    Raises ProviderError as `open_sessions`, BundleError for a file that cannot be read.
    """
    name, elsewhere = _name_of(run.provider), run.provider != "cpu"
    asked = options._replace(record_placement=options.record_placement or elsewhere)
    settings = Settings(name, dict(run.provider_options), run.threads, run.graph_optimization, asked)
    session = _create(str(file), settings, run.provider)
    _check_started(session, name, run.provider, file)
    if elsewhere:
        _check_taken([session], name, run.provider, file)
    return session


def _name_of(provider: Provider) -> str:
    """onnxruntime's name of a provider that this build has, or ProviderError."""
    name, available = PROVIDER_NAMES[provider], ort.get_available_providers()
    if name not in available:
        here = [short for short, full in PROVIDER_NAMES.items() if full in available]
        raise ProviderError(
            f"provider {provider!r} is not in this onnxruntime {ort.__version__}, which has {', '.join(here)}: "
            f"take one of these, or an interpreter with a build of onnxruntime that has it"
        )
    return name


def _check_started(session: ort.InferenceSession, name: str, provider: Provider, what: Path) -> None:
    if session.get_providers()[0] != name:
        raise ProviderError(
            f"provider {provider!r} did not start; onnxruntime would run {what} on "
            f"{session.get_providers()[0]}: check the driver, or take another provider"
        )


def _check_taken(sessions: Sequence[ort.InferenceSession], name: str, provider: Provider, what: Path) -> None:
    placed = [placement(session) for session in sessions]
    if any(placed) and not any(p.get(name) for p in placed):  # WebGPU of onnxruntime 1.27 tells of no node at times
        raise ProviderError(f"provider {provider!r} takes no node of {what}: take another provider or recipe")


def level_told(asked: GraphLevel, *, offline: bool) -> GraphLevel:
    """The level that a session is told. A graph that was saved as ONNX Runtime optimizes it would only be searched
    again for what is no longer there."""
    return "disabled" if offline and asked == "all" else asked


def create(file: str, settings: Settings) -> ort.InferenceSession:
    """A session on one graph; raises what onnxruntime raises."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = settings.threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = _LEVELS[settings.level]
    options.log_severity_level = _QUIET
    if not settings.options.allow_spinning:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if settings.options.record_placement:
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if settings.options.profile_to:
        options.enable_profiling = True
        options.profile_file_prefix = settings.options.profile_to
    # Named alone it would run what it can and leave the rest nowhere: every provider needs the CPU behind it.
    wanted: list[Any] = [(settings.provider, dict(settings.provider_options))]
    if settings.provider != PROVIDER_NAMES["cpu"]:
        wanted.append(PROVIDER_NAMES["cpu"])
    return ort.InferenceSession(file, options, providers=wanted, enable_fallback=0)


def _create(file: str, settings: Settings, provider: Provider) -> ort.InferenceSession:
    try:
        return create(file, settings)
    except Exception as error:
        # onnxruntime raises a class of its own for each status; they share no base but Exception.
        message = " ".join(str(error).split())
        if provider != "cpu" and settings.provider.removesuffix("ExecutionProvider").lower() in message.lower():
            raise ProviderError(f"provider {provider!r} does not start on this machine: {message}") from error
        raise BundleError(
            f"{file} does not load in onnxruntime {ort.__version__} on {provider!r}: {message}"
        ) from error


def _check_form(bundle: Bundle, info: GraphInfo, session: ort.InferenceSession) -> None:
    """The graph's inputs and outputs are those of the manifest, or BundleChangedError."""
    for kind, found, told in (
        ("takes inputs", session.get_inputs(), info.inputs),
        ("gives outputs", session.get_outputs(), info.outputs),
    ):
        real = [(t.name, _DTYPES.get(t.type, t.type)) for t in found]
        if real != [(t.name, t.dtype) for t in told]:
            raise BundleChangedError(
                f"{bundle.path / info.file} {kind} {real}, the manifest says {[(t.name, t.dtype) for t in told]}; "
                "export the bundle again"
            )


def placement(session: ort.InferenceSession) -> dict[str, int]:
    """Provider -> number of nodes that it runs; needs a session that recorded it."""
    count: Counter[str] = Counter()
    for part in session.get_provider_graph_assignment_info():
        count[part.ep_name] += len(part.get_nodes())
    return dict(count)
