"""Graphs in plain onnxruntime sessions, for the tasks that the runtime does not answer yet: inputs by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime as ort

from edgewise.errors import ParityError
from edgewise.exporter.lean_trace import LARGE
from edgewise.exporter.tracing import ENCODER, graph_files
from edgewise.types import Task

Feeds = Mapping[str, np.ndarray]
"""Inputs by the names that PyTorch's forward gives them."""

_BRANCH = "use_cache_branch"


@dataclass(frozen=True)
class Graphs:
    """The graphs of one bundle, opened on the CPU."""

    task: Task
    sessions: Mapping[str, ort.InferenceSession]
    """By file name."""

    @property
    def decoder(self) -> ort.InferenceSession:
        """The graph that gives logits."""
        return next(session for name, session in self.sessions.items() if name != ENCODER)


def open_graphs(folder: Path, task: Task, *, threads: int | None = None, saved: bool = False) -> Graphs:
    """Open the graphs in `folder/onnx` of a bundle, or in `folder` itself.

    threads: inside one operator; as many as there are cores unless given.
    saved: the graphs were saved as ONNX Runtime optimizes them, and are not optimized again.

    Raises ParityError where onnxruntime refuses one.
    """
    place = folder / "onnx" if (folder / "onnx").is_dir() else folder
    options = session_options(large=is_large(place))
    options.intra_op_num_threads = threads or 0
    if saved:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    sessions = {}
    for name in graph_files(task):
        try:
            sessions[name] = ort.InferenceSession(place / name, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's classes share no base but Exception
            raise ParityError(f"{name} does not load in onnxruntime {ort.__version__}: {error}") from error
    return Graphs(task, sessions)


def is_large(folder: Path) -> bool:
    """True where the files of a folder hold weights that should not stand in memory twice."""
    return sum(p.stat().st_size for p in folder.rglob("*.onnx*")) >= LARGE


def session_options(*, large: bool) -> ort.SessionOptions:
    """Quiet; for large graphs without a second, prepacked copy of every matrix, and without a hoard of freed memory."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if large:
        options.add_session_config_entry("session.disable_prepacking", "1")
        options.enable_cpu_mem_arena = False
    return options


def output_name(task: Task) -> Literal["logits", "last_hidden_state"]:
    """The output that is compared and used: that of the head, or of the body where there is none."""
    return "last_hidden_state" if task.endswith("feature-extraction") else "logits"


def answers(graphs: Graphs, feeds: Feeds) -> np.ndarray:
    """What the graphs answer in one call, with an empty past: float32, shaped as PyTorch's logits or hidden states.

    A graph of a fixed length is given the inputs padded to it, and its answer cut to theirs.
    """
    given, length = _padded(graphs, feeds)
    found: np.ndarray = _first_call(graphs, given)[0][output_name(graphs.task)]
    return found[:, :length] if length is not None and found.ndim == 3 else found


def _padded(graphs: Graphs, feeds: Feeds) -> tuple[Feeds, int | None]:
    """(feeds, their length where they were padded, on the right, to the fixed length of the graph)."""
    shapes = {i.name: i.shape for i in graphs.decoder.get_inputs()}
    fixed = shapes["input_ids"][1] if len(shapes.get("input_ids") or ()) == 2 else None
    if not isinstance(fixed, int):
        return feeds, None
    length = feeds["input_ids"].shape[1]
    return {name: np.pad(ids, ((0, 0), (0, fixed - length))) for name, ids in feeds.items()}, length


def greedy(graphs: Graphs, feeds: Feeds, steps: int) -> np.ndarray:
    """The `steps` most likely tokens, one by one through the cache: int64 [batch, steps].

    Texts are padded on the left for text-generation; for text2text-generation the first decoder token is the start.
    """
    if graphs.task == "text2text-generation":
        feeds = {**feeds, "decoder_input_ids": feeds["decoder_input_ids"][:, :1]}
    outputs, given = _first_call(graphs, feeds)
    tokens = [outputs["logits"][:, -1].argmax(-1)]
    mask = np.asarray(feeds["attention_mask"])
    kept: dict[str, np.ndarray] = {}
    for _ in range(steps - 1):
        presents = {
            n.replace("present", "past_key_values", 1): v for n, v in outputs.items() if n.startswith("present")
        }
        # The branch with a past hands on the encoder's keys as dummies: those of the first call stay good.
        kept = kept or {n: v for n, v in presents.items() if ".encoder." in n}
        ids = tokens[-1][:, None].astype(np.int64)
        if graphs.task == "text-generation":
            mask = np.concatenate([mask, np.ones((len(mask), 1), mask.dtype)], axis=1)
            step = {"input_ids": ids, "attention_mask": mask, "position_ids": positions(mask)[:, -1:]}
        else:
            step = {**given, "input_ids": ids, _BRANCH: np.array([True])}
        outputs = _run(graphs.decoder, {**step, **presents, **kept})
        tokens.append(outputs["logits"][:, -1].argmax(-1))
    return np.stack(tokens, axis=1).astype(np.int64)


def positions(mask: np.ndarray) -> np.ndarray:
    """Position of each token in its text, as transformers' generate counts them: int64, 1 for padding."""
    counted = np.where(mask == 0, 1, mask.cumsum(-1) - 1)
    return counted.astype(np.int64)


def first_feeds(graphs: Graphs, feeds: Feeds) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """(all that each graph takes in a first call, by file name; inputs that every step of a decoder repeats).

    The encoder is run on the way, since the decoder reads what it gives.
    """
    found: dict[str, dict[str, np.ndarray]] = {}
    given: dict[str, np.ndarray] = {}
    if graphs.task == "text2text-generation":
        encoder = graphs.sessions[ENCODER]
        found[ENCODER] = {i.name: feeds[i.name] for i in encoder.get_inputs() if i.name in feeds}
        states = _run(encoder, feeds)["last_hidden_state"]
        given = {"encoder_hidden_states": states, "encoder_attention_mask": feeds["attention_mask"]}
        feeds = {**given, "input_ids": feeds["decoder_input_ids"], _BRANCH: np.array([False])}
    elif "attention_mask" in feeds:  # for a graph that counts positions itself they are left out below
        feeds = {"position_ids": positions(feeds["attention_mask"]), **feeds}
    past = _empty_past(graphs.decoder, len(next(iter(feeds.values()))))
    wanted = [i.name for i in graphs.decoder.get_inputs()]
    found[graph_files(graphs.task)[-1]] = {n: v for n, v in {**feeds, **past}.items() if n in wanted}
    return found, given


def _first_call(graphs: Graphs, feeds: Feeds) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(outputs by name, inputs that every step of a decoder repeats)."""
    found, given = first_feeds(graphs, feeds)
    return _run(graphs.decoder, found[graph_files(graphs.task)[-1]]), given


def _empty_past(session: ort.InferenceSession, batch: int) -> dict[str, np.ndarray]:
    """Zeros of length 0 for every input of the cache, [batch, heads, 0, width]."""
    return {
        i.name: np.zeros((batch, i.shape[1], 0, i.shape[3]), dtype=np.float32)
        for i in session.get_inputs()
        if i.name.startswith("past_key_values")
    }


def _run(session: ort.InferenceSession, feeds: Mapping[str, Any]) -> dict[str, np.ndarray]:
    wanted = [i.name for i in session.get_inputs()]
    missing = [name for name in wanted if name not in feeds]
    if missing:
        raise ParityError(f"the graph takes {', '.join(missing)}, which PyTorch's model was not given")
    names = [o.name for o in session.get_outputs()]
    try:
        return dict(zip(names, session.run(names, {name: feeds[name] for name in wanted}), strict=True))
    except Exception as error:  # onnxruntime's classes share no base but Exception
        raise ParityError(f"the graph does not run: {' '.join(str(error).split())[:400]}") from error
