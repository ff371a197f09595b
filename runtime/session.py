"""ONNX Runtime sessions: the provider that was asked for, or an error; never a quiet fallback to the CPU."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy  # noqa: F401  # onnxruntime's own import of numpy, made ours so that its absence is said by name
import onnxruntime as ort

from edgewise.bundle import Bundle
from edgewise.errors import BundleChangedError, BundleError, ProviderError
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
# onnxruntime warns on standard error about what it does to a graph; errors reach us as exceptions.
_QUIET = 3


def open_session(bundle: Bundle, run: RunSettings, *, record_placement: bool = False) -> ort.InferenceSession:
    """A session on the bundle's graph with these run settings.

    Raises ProviderError when the provider is not there, does not start, or takes no node of the graph;
    BundleError when the graph cannot be read or differs from the manifest.
    """
    name = PROVIDER_NAMES[run.provider]
    available = ort.get_available_providers()
    if name not in available:
        here = [short for short, full in PROVIDER_NAMES.items() if full in available]
        raise ProviderError(
            f"provider {run.provider!r} is not in this onnxruntime {ort.__version__}, which has {', '.join(here)}: "
            f"take one of these, or an interpreter with a build of onnxruntime that has it"
        )
    # On another provider than the CPU, nodes that it cannot take fall to the CPU; only the placement tells.
    check_placement = run.provider != "cpu"
    session = _create(bundle, run, name, record_placement or check_placement)
    if session.get_providers()[0] != name:
        raise ProviderError(
            f"provider {run.provider!r} did not start; onnxruntime would run {bundle.path} on "
            f"{session.get_providers()[0]}: check the driver, or take another provider"
        )
    if check_placement and not placement(session).get(name):
        raise ProviderError(
            f"provider {run.provider!r} takes no node of {bundle.path}: take another provider or recipe"
        )
    _check_inputs(bundle, session)
    return session


def _create(bundle: Bundle, run: RunSettings, name: str, record: bool) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = run.threads
    options.inter_op_num_threads = 1
    # A graph that was saved as ONNX Runtime optimizes it would only be searched again for what is no longer there.
    saved = bundle.manifest.recipe.offline and run.graph_optimization == "all"
    options.graph_optimization_level = _LEVELS["disabled" if saved else run.graph_optimization]
    options.log_severity_level = _QUIET
    if record:
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    graph = bundle.graph_path()
    # Named alone it would run what it can and leave the rest nowhere: every provider needs the CPU behind it.
    wanted: list[Any] = [(name, dict(run.provider_options))]
    if run.provider != "cpu":
        wanted.append("CPUExecutionProvider")
    try:
        return ort.InferenceSession(str(graph), options, providers=wanted, enable_fallback=0)
    except Exception as error:
        # onnxruntime raises a class of its own for each status; they share no base but Exception.
        message = " ".join(str(error).split())
        if run.provider != "cpu" and name.removesuffix("ExecutionProvider").lower() in message.lower():
            raise ProviderError(f"provider {run.provider!r} does not start on this machine: {message}") from error
        raise BundleError(
            f"{graph} does not load in onnxruntime {ort.__version__} on {run.provider!r}: {message}"
        ) from error


def _check_inputs(bundle: Bundle, session: ort.InferenceSession) -> None:
    found = [(i.name, i.type.removeprefix("tensor(").removesuffix(")")) for i in session.get_inputs()]
    told = [(i.name, i.dtype) for i in bundle.manifest.graphs[0].inputs]
    named = {"float": "float32", "double": "float64"}
    if [(n, named.get(t, t)) for n, t in found] != told:
        raise BundleChangedError(
            f"{bundle.graph_path()} takes inputs {found}, the manifest says {told}; export the bundle again"
        )


def placement(session: ort.InferenceSession) -> dict[str, int]:
    """Provider -> number of nodes that it runs; needs a session that recorded it."""
    count: Counter[str] = Counter()
    for part in session.get_provider_graph_assignment_info():
        count[part.ep_name] += len(part.get_nodes())
    return dict(count)
