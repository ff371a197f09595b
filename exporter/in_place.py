"""Generation with the key-value cache updated in place: one buffer a layer, that each step writes its token into.

The graph is onnxruntime-genai's: GroupQueryAttention takes past and present as the same memory, where a portable graph
copies the whole cache at each step. Its attention mask is read as a number of tokens a row (the mask's sum), so that
padding must stand on the right, and rotary positions are counted from there: the graph takes no position_ids. What is
padded on the left, as transformers and Optimum pad a batch for generation, is answered wrongly, and no error says so.
Source: onnxruntime's ContribOperators.md (GroupQueryAttention), and builder.py of onnxruntime-genai 0.14.
"""

from __future__ import annotations

import contextlib
import gc
import io
import logging
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnxruntime as ort

from edgewise.errors import CheckpointError, EdgewiseError, ParityError, PlanError, need_extra
from edgewise.exporter.checkpoint import Checkpoint, read_checkpoint
from edgewise.exporter.probes import Probe, Written
from edgewise.exporter.tolerance import largest_difference
from edgewise.types import Recipe

if TYPE_CHECKING:
    from edgewise.bundle import Bundle
    from edgewise.exporter.base import Base

InPlacePrecision = Literal["fp32", "int4"]
BLOCK_SIZES = (16, 32, 64, 128, 256)
"""Weights that may share a scale in MatMulNBits."""

IN_PLACE_FAMILIES: Mapping[str, str] = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma": "GemmaForCausalLM",
    "granite": "GraniteForCausalLM",
}
"""model_type -> class of the families whose graph was found equal to PyTorch. The builder takes more of them: its
gemma2, gemma3 and olmo answered otherwise than PyTorch, and its phi, phi3, nemotron and smollm3 did not build or run
(0.14.1, tiny random models)."""
_ROTARY = ("default", "linear", "llama3")
"""rope_type of config.rope_scaling that was found equal; yarn was not."""


# ---- the graph


def build_in_place(checkpoint: Path, out: Path, *, precision: InPlacePrecision, block_size: int = 32) -> Path:
    """Write `out/model.onnx` and its weights, `out/model.onnx_data`, for a Llama-like checkpoint; returns the graph.

    fp32: as onnxruntime-genai's builder makes it for the CPU, embeddings that are the output layer too stored once.
    int4: its matrices in blocks of 4 bits with a zero point each, embeddings and output layer in 8 bits, activations
    rounded to int8 by row. (The builder's own int4 is worse or broken where embeddings are tied, and takes more memory:
    SmolLM2-135M, perplexity of 1,530 tokens of reviews, fp32 96.6: ours 119.9, its rtn_last 129.6, rtn 155,
    k_quant_last 419, while k_quant gives a graph that does not load.)
    block_size: weights of one column that share a scale (int4 only).

    Nothing is downloaded, no code of the checkpoint's is run, nothing is written outside `out`.
    Raises CheckpointError for a checkpoint or a family that cannot be built, PlanError for another precision or block
    size, MissingExtraError without onnxruntime-genai.
    """
    if precision not in ("fp32", "int4") or block_size not in BLOCK_SIZES:
        raise PlanError(
            f"the in-place graph is made with precision fp32 or int4 and a block size of "
            f"{', '.join(map(str, BLOCK_SIZES))}, not with {precision!r} and {block_size!r}"
        )
    source = read_checkpoint(checkpoint)
    _check_family(source)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".in-place.", suffix=".partial") as place:
        try:
            return _finish(_run_builder(source, Path(place)), out / "model.onnx", precision, block_size)
        except (EdgewiseError, OSError):
            raise
        except Exception as error:  # the builder raises whatever it meets: KeyError, AttributeError ...
            why = " ".join(str(error).split())[:300]
            raise CheckpointError(
                f"{source.path} does not build as an in-place graph ({type(error).__name__}: {why}): use the portable "
                "recipes, fp32 or int4-weights"
            ) from error


def _check_family(source: Checkpoint) -> None:
    """Refuse what the builder does not know, and what it would build otherwise than PyTorch computes it."""
    config, known = source.config, ", ".join(IN_PLACE_FAMILIES)
    heads = list(config.get("architectures") or ())
    rotary = config.get("rope_scaling") or {}
    kind = rotary.get("rope_type", rotary.get("type", "default"))
    windows = set(config.get("layer_types") or ())
    reasons = {
        f"a graph with an in-place cache is made for {known} with a head for text generation, "
        f"not for {source.family} ({', '.join(heads) or 'no architectures'})": (
            heads != [IN_PLACE_FAMILIES.get(source.family)]
        ),
        "it is prompt-tuned, and the in-place graph has no place for the prompt": "edgewise_prompt" in config,
        f"its weights are quantized already ({config.get('quantization_config')})": (
            config.get("quantization_config") is not None
        ),
        f"its rotary positions are of type {kind}; the in-place graph is made for {', '.join(_ROTARY)}": (
            kind not in _ROTARY
        ),
        f"its layers differ in their window ({', '.join(sorted(windows))}), and the in-place graph has one": (
            len(windows) > 1
        ),
    }
    for reason, holds in reasons.items():
        if holds:
            raise CheckpointError(f"{source.path}: {reason}: use the portable recipes, fp32 or int4-weights")


def _run_builder(source: Checkpoint, place: Path) -> Path:
    """The fp32 graph as onnxruntime-genai's builder writes it, with its weights in model.onnx.data beside it."""
    folder = place / "built"
    with _held_still():
        try:
            from onnxruntime_genai.models.builder import create_model
        except ImportError as error:
            raise need_extra("build", error) from error
        create_model(
            None, str(source.path.resolve()), str(folder), "fp32", "cpu", str(place / "cache"),
            hf_token="false", hf_remote=False,
        )  # fmt: skip
    gc.collect()  # the builder's model and PyTorch's refer to each other, and would stay in memory
    return folder / "model.onnx"


@contextlib.contextmanager
def _held_still() -> Iterator[None]:
    """Keep what the builder does to the process within: it prints, shows progress bars, sets up the root logger, and
    puts folders with modules of general names (builders, fusion_utils) on the import path.
    """
    root, path = logging.getLogger(), list(sys.path)
    handlers, level = list(root.handlers), root.level
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        sys.path[:] = path
        root.handlers[:] = handlers
        root.setLevel(level)


def _finish(built: Path, out: Path, precision: InPlacePrecision, block_size: int) -> Path:
    """From the builder's graph to that of the bundle: tied embeddings by row, int4, weights on pages of one file."""
    import onnx

    from edgewise.exporter.external import externalize, save_external

    model = onnx.load(built, load_external_data=False)
    _store_by_rows(model.graph, built.parent)
    if precision == "fp32":
        return save_external(model, built.parent, out)
    rows = save_external(model, built.parent, built.with_name("rows.onnx"))
    del model
    with _held_still():  # onnxruntime's quantizer sets up the root logger too
        return externalize(_to_int4(rows, block_size), out)


def _to_int4(graph: Path, block_size: int) -> Path:
    from edgewise.exporter.weights import quantize_weights

    head = "/lm_head/MatMul"
    body = quantize_weights(
        graph, graph.with_name("body.onnx"), bits=4, block_size=block_size, symmetric=False, accuracy_level=4,
        embeddings=False, keep=(head,),
    )  # fmt: skip
    # What is read in every step and decides the word costs little in 8 bits.
    return quantize_weights(
        body, graph.with_name("whole.onnx"), bits=8, block_size=block_size, symmetric=True,
        accuracy_level=4, embeddings=True,
    )  # fmt: skip


def _store_by_rows(graph: Any, folder: Path) -> None:
    """Store embeddings that are the output layer too as a table [vocabulary, width], not turned as the builder does.

    So a step reads its rows from the file as mapped, and tools see a table where one is. onnxruntime turns the output
    layer's side when it loads (constant folding). Changes `graph`; the file in `folder` stays.
    """
    import onnx

    weights = {t.name: t for t in graph.initializer}
    tables = {n.input[0] for n in graph.node if n.op_type == "Gather"}
    turn = next((n for n in graph.node if n.op_type == "Transpose" and n.output[0] in tables), None)
    if turn is None or turn.input[0] not in weights:
        return
    weight, turned = weights[turn.input[0]], turn.output[0]
    table = np.ascontiguousarray(onnx.numpy_helper.to_array(weight, str(folder)).T)
    weight.CopyFrom(onnx.numpy_helper.from_array(table, weight.name))
    shapes = {weight.name: table.shape, turned: table.T.shape}
    for value in graph.value_info:
        dims = value.type.tensor_type.shape.dim
        for d, size in zip(dims, shapes.get(value.name, ()), strict=False):
            d.dim_value = size
    for node in graph.node:
        if node.name != turn.name:
            swapped = {weight.name: turned, turned: weight.name}
            node.input[:] = [swapped.get(name, name) for name in node.input]


# ---- running it


def open_in_place(graph: Path, threads: int = 1) -> ort.InferenceSession:
    """The graph on the CPU. Raises ParityError where onnxruntime refuses it."""
    options = ort.SessionOptions()
    options.log_severity_level = 4  # a refused input is an error of ours, with its reason
    options.intra_op_num_threads = threads
    try:
        return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's classes share no base but Exception
        raise ParityError(f"{graph.name} does not load in onnxruntime {ort.__version__}: {error}") from error


def make_cache(session: ort.InferenceSession, batch: int, length: int) -> dict[str, ort.OrtValue]:
    """One buffer float32 [batch, heads, length, width] an input of the cache, by its name; for `length` tokens."""
    return {
        i.name: ort.OrtValue.ortvalue_from_numpy(np.zeros((batch, i.shape[1], length, i.shape[3]), np.float32))
        for i in session.get_inputs()
        if i.name.startswith("past_key_values")
    }


def step_in_place(
    session: ort.InferenceSession, cache: Mapping[str, ort.OrtValue], input_ids: np.ndarray, lengths: np.ndarray
) -> np.ndarray:
    """Logits float32 [batch, n, vocabulary] of `input_ids`, int64 [batch, n], which are written into `cache`.

    lengths: int64 [batch], tokens of each row with these. A first call may hold rows of several lengths, padded on the
    right, and what is answered to padding means nothing; a later one takes one token a row, or more with one row alone.
    Raises ParityError for more tokens than the cache or the model's positions have.
    """
    mask = (np.arange(int(lengths.max())) < lengths[:, None]).astype(np.int64)
    binding = session.io_binding()
    binding.bind_cpu_input("input_ids", np.ascontiguousarray(input_ids, np.int64))
    binding.bind_cpu_input("attention_mask", mask)
    binding.bind_output("logits", "cpu")
    for name, buffer in cache.items():
        if mask.shape[1] > buffer.shape()[2]:
            raise ParityError(f"the cache has room for {buffer.shape()[2]} tokens, not for {mask.shape[1]}")
        binding.bind_ortvalue_input(name, buffer)
        binding.bind_ortvalue_output(name.replace("past_key_values", "present", 1), buffer)
    try:
        session.run_with_iobinding(binding)
    except Exception as error:  # onnxruntime's classes share no base but Exception
        raise ParityError(f"the in-place graph does not run: {' '.join(str(error).split())[:400]}") from error
    return np.asarray(binding.get_outputs()[0].numpy())


def greedy_in_place(
    graph: Path | ort.InferenceSession, input_ids: np.ndarray, steps: int, lengths: np.ndarray | None = None
) -> np.ndarray:
    """The `steps` most likely tokens after each row, one by one in one cache: int64 [batch, steps].

    input_ids: int64 [batch, n], rows padded on the right. lengths: int64 [batch], tokens of each row; None: n.
    Raises ParityError for a graph that does not load or run.
    """
    session = open_in_place(graph) if isinstance(graph, Path) else graph
    batch, n = input_ids.shape
    lengths = np.full(batch, n, np.int64) if lengths is None else lengths.astype(np.int64)
    cache = make_cache(session, batch, n + steps)
    logits = step_in_place(session, cache, input_ids, lengths)
    tokens = [logits[np.arange(batch), lengths - 1].argmax(-1)]
    for more in range(1, steps):
        logits = step_in_place(session, cache, tokens[-1][:, None], lengths + more)
        tokens.append(logits[:, -1].argmax(-1))
    return np.stack(tokens, axis=1).astype(np.int64)


# ---- proof


def prove_in_place(draft: Bundle, base: Base, recipe: Recipe) -> dict[str, Any]:
    """The manifest's parity and loads_in of a bundle whose manifest is a draft. Raises ParityError."""
    graph = draft.path / "onnx" / "model.onnx"
    return {
        "parity": in_place_parity(graph, base.probes, base.written, recipe),
        "loads_in": in_place_loads_in(draft.path, graph, base.probes, base.written),
    }


def in_place_parity(graph: Path, probes: Sequence[Probe], written: Sequence[Written], recipe: Recipe) -> dict[str, Any]:
    """Hold the graph against PyTorch's answers; what the manifest stores as parity, in the form of `compare_graphs`.

    probes, written: as `build_probes` makes them for text-generation, padded on the left; their rows are moved to where
    the graph wants them. Logits come from single calls, greedy tokens from the cache that is updated in place.
    Raises ParityError outside the tolerance of the recipe's precision.
    """
    from edgewise.exporter.sessions import Graphs
    from edgewise.exporter.task_parity import compare_graphs

    session = open_in_place(graph)
    graphs = Graphs("text-generation", {graph.name: session})
    parity = compare_graphs(graphs, [pad_right(p) for p in probes], (), recipe)
    if written:
        parity["greedy"] = _compare_greedy(session, written, recipe)
    return parity


def pad_right(probe: Probe) -> Probe:
    """The probe with the padding of its rows moved from the left to the right, in what is fed and what is answered."""
    mask = probe.feeds["attention_mask"]
    starts = mask.shape[1] - mask.sum(1)
    order = (np.arange(mask.shape[1]) + starts[:, None]) % mask.shape[1]
    feeds = {name: np.take_along_axis(values, order, 1) for name, values in probe.feeds.items()}
    answer = np.take_along_axis(probe.answer, order[..., None], 1)
    return replace(probe, feeds=feeds, answer=answer, counts=np.take_along_axis(probe.counts, order, 1))


def _compare_greedy(session: ort.InferenceSession, written: Sequence[Written], recipe: Recipe) -> dict[str, Any]:
    """Greedy tokens against PyTorch's without a cache; a token that PyTorch itself nearly tied may differ."""
    limit, steps = largest_difference(recipe), written[0].tokens.shape[1]
    equal = same = sequences = 0
    for case in written:
        for got, wanted, margins in zip(_write(session, case, steps), case.tokens, case.margins, strict=True):
            different = np.flatnonzero(got != wanted)
            first = int(different[0]) if len(different) else steps
            sequences, equal, same = sequences + 1, equal + (first == steps), same + first
            if limit is not None and first < steps and margins[first] > 2 * limit:
                raise ParityError(
                    f"the {recipe.name} graph writes {got.tolist()} for {case.name}, PyTorch {wanted.tolist()}: "
                    "it is not written"
                )
    return {"sequences": sequences, "steps": steps, "equal": equal, "tokens_until_the_first_difference": same}


def _write(session: ort.InferenceSession, case: Written, steps: int) -> np.ndarray:
    """What the graph writes after the rows of a case, which are padded on the left: int64 [batch, steps]."""
    ids, mask = case.feeds["input_ids"], case.feeds["attention_mask"]
    lengths = mask.sum(1)
    rows = np.zeros_like(ids)
    for row, given, length in zip(rows, ids, lengths, strict=True):
        row[:length] = given[len(given) - length :]
    return greedy_in_place(session, rows, steps, lengths)


def in_place_loads_in(folder: Path, graph: Path, probes: Sequence[Probe], written: Sequence[Written]) -> dict[str, Any]:
    """Load the bundle as it stands in Optimum; what the manifest stores as loads_in.

    Its answers are compared with those of the graph when it is fed as it wants: for texts alone, and for the padded
    batch as users of Optimum make it, on the left.

    folder: of the bundle. graph: its onnx/model.onnx. probes, written: as for `in_place_parity`.
    """
    from optimum.onnxruntime import ORTModelForCausalLM

    found: dict[str, Any] = {}
    try:
        peer = ORTModelForCausalLM.from_pretrained(folder)
    except Exception as error:  # whatever Optimum raises is the finding
        return {key: _failed(error) for key in ("optimum", "optimum_batched", "optimum_generate")}
    session = open_in_place(graph)
    for end, batched in (("", False), ("_batched", True)):
        some = [p for p in probes if (p.name == "padded batch") == batched]
        cases = [w for w in written if (w.name == "padded batch") == batched]
        checks: dict[str, Callable[[], dict[str, Any]]] = {
            f"optimum{end}": partial(_calls, peer, session, some),
            f"optimum_generate{end}": partial(_generates, peer, session, cases),
        }
        for key, check in checks.items():
            try:
                found[key] = check()
            except Exception as error:
                found[key] = _failed(error)
            if batched and not found[key]["ok"]:
                found[key].setdefault("why", _WHY_NOT_BATCHED)
    return found


_WHY_NOT_BATCHED = (
    "Optimum pads on the left, and the graph takes the first tokens of each row, as many as its mask has ones: shorter "
    "rows are answered wrongly, without an error"
)


def _failed(error: Exception) -> dict[str, Any]:
    return {"tested": True, "ok": False, "why": f"{type(error).__name__}: {error}"[:300]}


def _calls(peer: Any, session: ort.InferenceSession, probes: Sequence[Probe]) -> dict[str, Any]:
    """Logits of Optimum's call against ours."""
    import torch

    worst = 0.0
    for probe in probes:
        names = ("input_ids", "attention_mask", "position_ids")
        theirs = np.asarray(peer(**{n: torch.from_numpy(probe.feeds[n]) for n in names if n in probe.feeds}).logits)
        fed = pad_right(replace(probe, answer=theirs))
        cache = make_cache(session, *fed.counts.shape)
        ours = step_in_place(session, cache, fed.feeds["input_ids"], fed.counts.sum(1))
        worst = max(worst, float(np.abs(ours - fed.answer)[fed.counts].max()))
    return {"tested": True, "ok": worst <= 1e-4, "largest_absolute_difference": worst}


def _generates(peer: Any, session: ort.InferenceSession, written: Sequence[Written]) -> dict[str, Any]:
    """Greedy tokens of Optimum's generate against ours, up to a row's end token, where generate stops."""
    import torch

    ends = peer.generation_config.eos_token_id
    stop = set(ends if isinstance(ends, list) else [ends])
    equal = sequences = 0
    for case in written:
        steps = case.tokens.shape[1]
        feeds = {n: torch.from_numpy(case.feeds[n]) for n in ("input_ids", "attention_mask")}
        theirs = np.asarray(peer.generate(**feeds, max_new_tokens=steps, do_sample=False, num_beams=1))
        start = case.feeds["input_ids"].shape[1]
        for got, wanted in zip(theirs[:, start:], _write(session, case, steps), strict=True):
            until = next((i + 1 for i, token in enumerate(wanted.tolist()) if token in stop), steps)
            sequences, equal = sequences + 1, equal + (got[:until].tolist() == wanted[:until].tolist())
    return {"tested": True, "ok": equal == sequences, "sequences": sequences, "equal": equal}
