"""The ways beside edgewise in benchmarks/generation.py: loops by hand on onnxruntime, Optimum, onnxruntime-genai.

Each makes a function of a text and a number of tokens that tokenizes, writes greedily up to the model's end, decodes,
and returns the ids that it wrote, the end included.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from tokenizers import Tokenizer

Way = Callable[[str, int], list[int]]


def open_graph(graph: Path, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    return ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])


def tokenizer_and_end(bundle: Path) -> tuple[Tokenizer, int]:
    tokenizer = Tokenizer.from_file(str(bundle / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    told = json.loads((bundle / "generation_config.json").read_text(encoding="utf-8"))
    return tokenizer, told["eos_token_id"]


def portable_loop(bundle: Path, threads: int) -> Way:
    """`session.run` on numpy arrays, the whole cache in and out."""
    session = open_graph(bundle / "onnx" / "model.onnx", threads)
    tokenizer, end = tokenizer_and_end(bundle)
    past = [i for i in session.get_inputs() if i.name.startswith("past")]
    inputs = [i.name for i in past]
    outputs = ["logits", *(name.replace("past_key_values", "present") for name in inputs)]

    def write(text: str, steps: int) -> list[int]:
        ids = tokenizer.encode(text).ids
        n, written = len(ids), []
        feeds = {
            "input_ids": np.array([ids]), "attention_mask": np.ones((1, n), np.int64),
            "position_ids": np.arange(n)[None],
            **{i.name: np.zeros((1, i.shape[1], 0, i.shape[3]), np.float32) for i in past},
        }  # fmt: skip
        while True:
            logits, *present = session.run(outputs, feeds)
            token = int(logits[0, -1].argmax())
            written.append(token)
            if token == end or len(written) == steps:
                break
            feeds = dict(zip(inputs, present, strict=True))
            feeds["input_ids"] = np.array([[token]])
            feeds["attention_mask"] = np.ones((1, n + len(written)), np.int64)
            feeds["position_ids"] = np.array([[n + len(written) - 1]])
        tokenizer.decode(written)
        return written

    return write


def in_place_loop(bundle: Path, threads: int) -> Way:
    """One binding, buffers of the final length, the token and the logits in memory that stays."""
    session = open_graph(bundle / "onnx" / "model.onnx", threads)
    tokenizer, end = tokenizer_and_end(bundle)
    past = [i for i in session.get_inputs() if i.name.startswith("past")]
    vocabulary = next(o.shape[-1] for o in session.get_outputs() if o.name == "logits")
    value = ort.OrtValue.ortvalue_from_numpy

    def write(text: str, steps: int) -> list[int]:
        ids = tokenizer.encode(text).ids
        n, size = len(ids), len(ids) + steps
        binding = session.io_binding()
        ones = np.ones((1, size), np.int64)
        binding.bind_ortvalue_input("input_ids", value(np.array([ids])))
        binding.bind_ortvalue_input("attention_mask", value(ones[:, :n]))
        binding.bind_output("logits", "cpu")
        for i in past:
            buffer = value(np.zeros((1, i.shape[1], size, i.shape[3]), np.float32))
            binding.bind_ortvalue_input(i.name, buffer)
            binding.bind_ortvalue_output(i.name.replace("past_key_values", "present"), buffer)
        session.run_with_iobinding(binding)
        token = int(binding.get_outputs()[0].numpy()[0, -1].argmax())
        written = [token]
        given, logits = np.zeros((1, 1), np.int64), np.zeros((1, 1, vocabulary), np.float32)
        binding.bind_ortvalue_input("input_ids", value(given))
        binding.bind_ortvalue_output("logits", value(logits))
        while token != end and len(written) < steps:
            given[0, 0] = token
            binding.bind_ortvalue_input("attention_mask", value(ones[:, : n + len(written)]))
            session.run_with_iobinding(binding)
            token = int(logits[0, 0].argmax())
            written.append(token)
        tokenizer.decode(written)
        return written

    return write


def text_to_text_loop(bundle: Path, threads: int) -> Way:
    """An encoder and a merged decoder, by `session.run` on numpy arrays."""
    encoder = open_graph(bundle / "onnx" / "encoder_model.onnx", threads)
    decoder = open_graph(bundle / "onnx" / "decoder_model_merged.onnx", threads)
    tokenizer, end = tokenizer_and_end(bundle)
    start = json.loads((bundle / "generation_config.json").read_text(encoding="utf-8"))["decoder_start_token_id"]
    past = [i for i in decoder.get_inputs() if i.name.startswith("past")]
    inputs = [i.name for i in past]
    outputs = [name.replace("past_key_values", "present") for name in inputs]
    own = [name for name in inputs if ".decoder." in name]
    own_outputs = ["logits", *(name.replace("past_key_values", "present") for name in own)]

    def write(text: str, steps: int) -> list[int]:
        ids = np.array([tokenizer.encode(text).ids])
        mask = np.ones_like(ids)
        (states,) = encoder.run(["last_hidden_state"], {"input_ids": ids, "attention_mask": mask})
        feeds = {
            "input_ids": np.array([[start]]), "encoder_hidden_states": states, "encoder_attention_mask": mask,
            "use_cache_branch": np.array([False]),
            **{i.name: np.zeros((1, i.shape[1], 0, i.shape[3]), np.float32) for i in past},
        }  # fmt: skip
        logits, *present = decoder.run(["logits", *outputs], feeds)
        feeds |= dict(zip(inputs, present, strict=True))
        feeds["use_cache_branch"] = np.array([True])
        token = int(logits[0, -1].argmax())
        written = [token]
        while token != end and len(written) < steps:
            feeds["input_ids"] = np.array([[token]])
            logits, *present = decoder.run(own_outputs, feeds)
            feeds.update(zip(own, present, strict=True))
            token = int(logits[0, -1].argmax())
            written.append(token)
        tokenizer.decode(written)
        return written

    return write


def optimum(bundle: Path, threads: int, task: str) -> Way:
    """Optimum's model of the same bundle, and `generate`."""
    import torch
    import transformers as hf
    from optimum.onnxruntime import ORTModelForCausalLM, ORTModelForSeq2SeqLM

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    kind: Any = ORTModelForCausalLM if task == "text-generation" else ORTModelForSeq2SeqLM
    model = kind.from_pretrained(bundle, session_options=options)
    tokenizer = hf.AutoTokenizer.from_pretrained(bundle)

    def write(text: str, steps: int) -> list[int]:
        given = tokenizer(text, return_tensors="pt")
        given.pop("token_type_ids", None)
        with torch.inference_mode():
            ids = model.generate(**given, max_new_tokens=steps, do_sample=False, num_beams=1)
        start = given["input_ids"].shape[1] if task == "text-generation" else 1
        written: list[int] = ids[0, start:].tolist()
        tokenizer.decode(written)
        return written

    return write


def genai(folder: Path, bundle: Path, threads: int) -> Way:
    """onnxruntime-genai on a folder of its own form, with the bundle's tokenizer."""
    import onnxruntime_genai as og

    config = folder / "genai_config.json"
    told = json.loads(config.read_text(encoding="utf-8"))
    told["model"]["decoder"]["session_options"] |= {"intra_op_num_threads": threads, "inter_op_num_threads": 1}
    config.write_text(json.dumps(told, indent=2), encoding="utf-8")
    model = og.Model(str(folder))
    tokenizer, end = tokenizer_and_end(bundle)

    def write(text: str, steps: int) -> list[int]:
        ids = tokenizer.encode(text).ids
        params = og.GeneratorParams(model)
        params.set_search_options(max_length=len(ids) + steps, do_sample=False)
        generator = og.Generator(model, params)
        generator.append_tokens(np.array(ids, np.int32))
        written: list[int] = []
        while len(written) < steps and not (written and written[-1] == end):
            generator.generate_next_token()
            written.append(int(generator.get_next_tokens()[0]))
        tokenizer.decode(written)
        return written

    return write
