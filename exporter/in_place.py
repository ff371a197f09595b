"""Generation with the key-value cache updated in place: one buffer a layer, that each step writes its token into.

The graph is onnxruntime-genai's: GroupQueryAttention takes past and present as the same memory, where a portable graph
copies the whole cache at each step. Its attention mask is read as a number of tokens a row (the mask's sum), so that
padding must stand on the right, and rotary positions are counted from there: the graph takes no position_ids. What is
padded on the left, as transformers and Optimum pad a batch for generation, is answered wrongly, and no error says so.
Source: onnxruntime's ContribOperators.md (GroupQueryAttention), and builder.py of onnxruntime-genai 0.14.
"""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime as ort

from edgewise.errors import CheckpointError, EdgewiseError, ParityError, PlanError, need_extra
from edgewise.exporter.checkpoint import Checkpoint, read_checkpoint
from edgewise.exporter.lean_trace import free_memory
from edgewise.exporter.sessions import session_options

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
    free_memory()  # the builder's model and PyTorch's refer to each other, and would stay in memory
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


def open_in_place(graph: Path, threads: int = 1, *, lean: bool = False) -> ort.InferenceSession:
    """The graph on the CPU; `lean` in less memory, and slower. Raises ParityError where onnxruntime refuses it."""
    options = session_options(large=lean)
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
