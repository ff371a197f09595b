"""What a machine can run: its fingerprint, and the providers that really take work here, for `edgewise devices`."""

from __future__ import annotations

from dataclasses import dataclass

from edgewise.profiler.fingerprint import Fingerprint, read_fingerprint

TINY_MODEL = (
    b'\x08\x08\x12\x00:5\n\x0e\n\x01x\n\x01x\x12\x01y"\x03Add\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02'
    b"\x08\x04b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x04B\x04\n\x00\x10\r"
)
"""An ONNX graph, y = x + x on float32 [4], IR version 8, opset 13: written once with onnx.helper, since the onnx
package is not on a device (make_graph([make_node('Add', ['x', 'x'], ['y'])], 'g', ...).SerializeToString())."""


@dataclass(frozen=True)
class ProviderTrial:
    """What came of running a tiny graph on one provider."""

    provider: str
    """Short name, or onnxruntime's where we have none."""
    runs: bool
    """The session started on it, it took the graph's node, and the answer was right."""
    why: str = ""
    """Why it does not run, or what could not be checked."""


@dataclass(frozen=True)
class Description:
    """A machine and what it runs."""

    fingerprint: Fingerprint
    providers: tuple[ProviderTrial, ...]


def describe_here() -> Description:
    """This machine and this interpreter. Imports onnxruntime."""
    providers = tuple(try_providers())
    return Description(read_fingerprint(), providers)


def try_providers() -> list[ProviderTrial]:
    """Run the tiny graph on every provider that this onnxruntime was built with."""
    import onnxruntime as ort

    from edgewise.runtime.session import PROVIDER_NAMES

    short = {full: name for name, full in PROVIDER_NAMES.items()}
    return [_try_one(full, short.get(full, full)) for full in ort.get_available_providers()]


def _try_one(full: str, name: str) -> ProviderTrial:
    import numpy as np
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4  # a provider that is not there is news for us, not for standard error
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    behind = [] if full == "CPUExecutionProvider" else ["CPUExecutionProvider"]
    try:
        session = ort.InferenceSession(TINY_MODEL, options, providers=[full, *behind], enable_fallback=0)
        (answer,) = session.run(None, {"x": np.arange(4, dtype=np.float32)})
    except Exception as error:  # each status of onnxruntime is a class of its own; they share only this base
        return ProviderTrial(name, False, " ".join(str(error).split())[:300])
    if session.get_providers()[0] != full:
        return ProviderTrial(name, False, f"the session runs on {session.get_providers()[0]} instead")
    if answer.tolist() != [0, 2, 4, 6]:
        return ProviderTrial(name, False, f"it answers {answer.tolist()} where [0, 2, 4, 6] is right")
    # Older onnxruntimes do not have it, and WebGPU of 1.27 leaves it empty though it runs the node.
    info = getattr(session, "get_provider_graph_assignment_info", list)
    taken = {part.ep_name for part in info()}
    if not taken:
        return ProviderTrial(name, True, f"onnxruntime {ort.__version__} does not tell which nodes run where")
    if full not in taken:
        return ProviderTrial(name, False, f"it takes no node: {', '.join(sorted(taken))} does")
    return ProviderTrial(name, True)
