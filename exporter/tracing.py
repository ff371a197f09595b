"""PyTorch to ONNX through Optimum: which graphs a task has, and the one thing that a prompt changes in them."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

from edgewise.exporter.lean_trace import LARGE, weights_apart
from edgewise.prompts import prompt_of
from edgewise.types import Task

ENCODER, DECODER, DECODER_WITH_PAST = "encoder_model.onnx", "decoder_model.onnx", "decoder_with_past_model.onnx"
MERGED = "decoder_model_merged.onnx"
TEXT_LENGTH = "text_length"
"""Name of the mask's dimension in a prompted graph: what is read is longer than that, by the prompt."""


def graph_files(task: Task) -> tuple[str, ...]:
    """The graphs that a bundle of this task holds under onnx/."""
    return (ENCODER, MERGED) if task == "text2text-generation" else ("model.onnx",)


def export_graphs(model: Any, task: Task, out: Path, opset: int | None) -> None:
    """Write the model's graphs, with its prompt inside where it has one, and its configs into the folder `out`.

    Generation gets a key-value cache: one graph that serves the first call (a past of length 0) and the steps, for
    text to text an encoder and a decoder with both branches (and the two decoders alone, to quantize).
    """
    from optimum.exporters.onnx import onnx_export_from_model

    if task == "image-feature-extraction":
        task = "feature-extraction"  # Optimum's one name for both
    cached = task in ("text-generation", "text2text-generation")
    configs = [m.config for m in model.modules() if hasattr(getattr(m, "config", None), "use_cache")]
    before = [config.use_cache for config in configs]
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    lean = size >= LARGE and len(graph_files(task)) == 1
    with weights_apart() if lean else nullcontext():
        onnx_export_from_model(
            model,
            out,
            task=f"{task}-with-past" if cached else task,
            opset=opset,
            do_validation=False,  # ours is the parity proof, on real inputs
            no_post_process=lean,  # it ties what was written twice, which lean does itself
            device="cpu",
        )
    for config, use_cache in zip(configs, before, strict=True):
        config.use_cache = use_cache  # Optimum sets it, on the encoder too, which then refuses to run
    if cached and prompt_of(model) is not None:
        for file in out.glob("*.onnx"):
            _name_text_length(file)


def _name_text_length(file: Path) -> None:
    """Give the mask's length a name of its own in a prompted graph.

    Optimum names it as the length of the states or of the cache. With a prompt these are longer, and onnxruntime may
    reuse the memory of one tensor for another whose dimensions have the same names.
    """
    import onnx

    model = onnx.load(file)
    inputs = {i.name: i.type.tensor_type.shape.dim for i in model.graph.input}
    names = ("input_ids", "attention_mask") if file.name == ENCODER else ("attention_mask", "encoder_attention_mask")
    for name in names:
        if name in inputs:
            inputs[name][1].dim_param = TEXT_LENGTH
    onnx.save(model, file, save_as_external_data=file.with_name(file.name + "_data").exists(),
              location=file.name + "_data")  # fmt: skip
