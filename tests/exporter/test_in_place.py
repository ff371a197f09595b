"""The generation graph with its key-value cache updated in place: equal to PyTorch, and honest about what it is not."""

from __future__ import annotations

import json
import logging
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import transformers as hf

from edgewise.assets import asset_path
from edgewise.errors import CheckpointError, MissingExtraError, ParityError, PlanError
from edgewise.exporter.checkpoint import read_checkpoint
from edgewise.exporter.in_place import (
    IN_PLACE_FAMILIES,
    build_in_place,
    greedy_in_place,
    make_cache,
    open_in_place,
    step_in_place,
)
from edgewise.exporter.in_place_proof import in_place_loads_in, in_place_parity, pad_right
from edgewise.exporter.probes import STEPS, Probe, Written, build_probes
from edgewise.types import Recipe

TINY = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 128, "max_position_embeddings": 96, "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0,
}  # fmt: skip
WINDOW = 8
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
CONFIGS: dict[str, Callable[..., Any]] = {
    "llama": lambda **kw: hf.LlamaConfig(**kw, tie_word_embeddings=True),
    "llama apart": lambda **kw: hf.LlamaConfig(**kw, attention_bias=True, mlp_bias=True, rope_scaling=LLAMA3),
    "mistral": lambda **kw: hf.MistralConfig(**kw, sliding_window=WINDOW),
    "qwen2": lambda **kw: hf.Qwen2Config(**kw, tie_word_embeddings=True),
    "qwen3": lambda **kw: hf.Qwen3Config(**kw, head_dim=16),
    "gemma": lambda **kw: hf.GemmaConfig(**kw, head_dim=16),
    "granite": lambda **kw: hf.GraniteConfig(**kw, attention_multiplier=0.3, residual_multiplier=0.5, logits_scaling=2),
}
FP32 = Recipe(cache="in-place")
INT4 = Recipe(precision="int4-weights", cache="in-place")
TEXTS = (
    "A fine film.",
    "Dull, and far too long for what it has to say.",
    "Good",
    "It works, and nothing else is asked.",
)


@pytest.fixture(scope="module")
def tokenizer(review_rows: Any) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<pad>", "</s>"], initial_alphabet=alphabet)
    bpe.train_from_iterator([r.text for r in review_rows], trainer)
    names = {"pad_token": "<pad>", "eos_token": "</s>", "bos_token": "</s>", "unk_token": "</s>"}
    return hf.GPT2TokenizerFast(tokenizer_object=bpe, **names)


def write_checkpoint(config: Any, tokenizer: Any, folder: Path) -> Path:
    """A random model with weights so large that its answers differ from text to text."""
    torch.manual_seed(4)
    model = hf.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() > 1:
                p.mul_(4)
            elif name.endswith("bias"):
                p.normal_(std=0.1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def llama(tokenizer: Any, tmp_path_factory: Any) -> Path:
    return write_checkpoint(CONFIGS["llama"](vocab_size=400, **TINY), tokenizer, tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def model(llama: Path) -> Any:
    return hf.AutoModelForCausalLM.from_pretrained(llama).eval()


@pytest.fixture(scope="module")
def asked(llama: Path, model: Any, review_rows: Any) -> tuple[tuple[Probe, ...], tuple[Written, ...]]:
    return ask(llama, model, review_rows[:6])


def ask(folder: Path, model: Any, rows: Any) -> tuple[tuple[Probe, ...], tuple[Written, ...]]:
    """As an export asks PyTorch: single rows, one token, the longest text, a batch padded on the left."""
    inputs = ("input_ids", "attention_mask", "position_ids")
    limit = model.config.max_position_embeddings
    return build_probes(read_checkpoint(folder), "text-generation", model, inputs, rows, limit)


@pytest.fixture(scope="module")
def graph(llama: Path, tmp_path_factory: Any) -> Path:
    return build_in_place(llama, tmp_path_factory.mktemp("fp32"), precision="fp32")


@pytest.fixture(scope="module")
def int4(llama: Path, tmp_path_factory: Any) -> Path:
    return build_in_place(llama, tmp_path_factory.mktemp("int4"), precision="int4")


def bundle_of(checkpoint: Path, graph: Path, folder: Path) -> Path:
    """A folder as Optimum reads it."""
    (folder / "onnx").mkdir(parents=True)
    for file in graph.parent.glob("model.onnx*"):
        shutil.copyfile(file, folder / "onnx" / file.name)
    for file in checkpoint.glob("*.json"):
        shutil.copyfile(file, folder / file.name)
    return folder


def logits_of(model: Any, ids: list[int]) -> np.ndarray:
    with torch.no_grad():
        found: np.ndarray = model(torch.tensor([ids])).logits[0].numpy()
    return found


def written_by(model: Any, ids: list[int], steps: int) -> list[int]:
    """Greedy tokens without any cache."""
    text = list(ids)
    for _ in range(steps):
        text.append(int(logits_of(model, text)[-1].argmax()))
    return text[len(ids) :]


def nodes(graph: Path) -> list[str]:
    return [n.op_type for n in onnx.load(graph, load_external_data=False).graph.node]


# ---- the graph


def test_the_graph_and_what_it_takes(graph: Path, int4: Path) -> None:
    for file in (graph, int4):
        assert sorted(p.name for p in file.parent.iterdir()) == ["model.onnx", "model.onnx_data"]
        names = [i.name for i in open_in_place(file).get_inputs()]
        assert names[:2] == ["input_ids", "attention_mask"]
        assert "position_ids" not in names  # counted from the mask
        assert nodes(file).count("GroupQueryAttention") == 2
    assert nodes(int4).count("MatMulNBits") == 2 * 5 + 1  # queries, keys and values are one product
    assert "MatMul" not in nodes(int4)
    assert "GatherBlockQuantized" in nodes(int4)
    sizes = {file: sum(p.stat().st_size for p in file.parent.iterdir()) for file in (graph, int4)}
    assert sizes[int4] < 0.4 * sizes[graph]


def test_tied_embeddings_are_one_table_in_both_precisions(graph: Path, int4: Path) -> None:
    def weights(file: Path) -> dict[str, list[int]]:
        return {t.name: list(t.dims) for t in onnx.load(file, load_external_data=False).graph.initializer}

    assert [d for d in weights(graph).values() if 400 in d] == [[400, 64]]
    onnx.shape_inference.infer_shapes(onnx.load(graph))  # raises where a stored shape is not that of the table
    # values and scales of blocks of 32 in 8 bits, read by the output layer and by the embeddings
    assert sorted(d for d in weights(int4).values() if 400 in d) == [[400, 2], [400, 2, 32]]


@pytest.mark.parametrize("name", CONFIGS)
def test_families_answer_as_pytorch_does(name: str, tokenizer: Any, review_rows: Any, tmp_path: Path) -> None:
    folder = write_checkpoint(CONFIGS[name](vocab_size=400, **TINY), tokenizer, tmp_path / "checkpoint")
    model = hf.AutoModelForCausalLM.from_pretrained(folder).eval()
    probes, written = ask(folder, model, review_rows[:4])
    assert max(p.counts.shape[1] for p in probes) > 4 * WINDOW
    parity = in_place_parity(build_in_place(folder, tmp_path / "out", precision="fp32"), probes, written, FP32)
    print(name, parity)
    assert parity["largest_absolute_difference"] < 1e-4
    assert parity["batch_dependence"] < 1e-4
    assert parity["agreement"] == 1
    assert parity["greedy"]["equal"] == parity["greedy"]["sequences"] == 5


def test_every_family_has_a_test() -> None:
    assert {name.split()[0] for name in CONFIGS} == set(IN_PLACE_FAMILIES)


def test_int4_reports_its_agreement(int4: Path, asked: Any) -> None:
    parity = in_place_parity(int4, *asked, INT4)
    print(parity)
    assert parity["tolerance"] == {"largest_absolute_difference": None, "agreement": 0.4}
    assert 0.5 <= parity["agreement"] <= 1
    assert parity["largest_absolute_difference"] > 1e-3  # it is quantized
    # Activations are rounded by row and block: unlike dynamic int8, no answer depends on the batch.
    assert parity["batch_dependence"] < 1e-3
    assert parity["greedy"]["sequences"] == 5


@pytest.mark.parametrize("block_size", [16, 128])
def test_int4_in_other_blocks(llama: Path, asked: Any, tmp_path: Path, block_size: int) -> None:
    """A row of 64 numbers is the largest block that the embeddings hold."""
    made = build_in_place(llama, tmp_path, precision="int4", block_size=block_size)
    nodes = {n.name: n for n in onnx.load(made, load_external_data=False).graph.node}
    blocks = {name: a.i for name, n in nodes.items() for a in n.attribute if a.name == "block_size"}
    assert blocks["/model/layers.1/mlp/down_proj/MatMul"] == block_size  # 128 numbers a column
    assert blocks["/model/embed_tokens/Gather"] == blocks["/lm_head/MatMul"] == min(64, block_size)
    assert in_place_parity(made, *asked, INT4)["agreement"] >= 0.5


# ---- the cache


def test_the_cache_is_updated_in_place(graph: Path, model: Any) -> None:
    session = open_in_place(graph)
    cache = make_cache(session, 1, 20)
    places = {name: buffer.data_ptr() for name, buffer in cache.items()}
    ids = [5, 9, 300, 41, 7, 7, 123]
    whole = logits_of(model, ids)
    found = [step_in_place(session, cache, np.array([ids[:3]]), np.array([3]))[0]]
    kept = {name: buffer.numpy().copy() for name, buffer in cache.items()}
    for n in (4, 5):
        found.append(step_in_place(session, cache, np.array([ids[n - 1 : n]]), np.array([n]))[0])
    found.append(step_in_place(session, cache, np.array([ids[5:]]), np.array([7]))[0])  # two at once
    np.testing.assert_allclose(np.concatenate(found), whole, atol=1e-4)
    for name, buffer in cache.items():
        values = buffer.numpy()
        assert buffer.data_ptr() == places[name]
        np.testing.assert_array_equal(values[:, :, :3], kept[name][:, :, :3])
        assert (np.abs(values[:, :, :7]).max(axis=(0, 1, 3)) > 0).all()
        assert not values[:, :, 7:].any()


def test_greedy_tokens_of_one_text_and_of_rows_padded_on_the_right(graph: Path, model: Any, tokenizer: Any) -> None:
    rows = [tokenizer(t)["input_ids"] for t in TEXTS]
    wanted = [written_by(model, ids, STEPS) for ids in rows]
    assert len({tuple(w) for w in wanted}) == len(rows)
    for ids, tokens in zip(rows, wanted, strict=True):
        found = greedy_in_place(graph, np.array([ids]), STEPS)
        assert found.dtype == np.int64
        assert found.tolist() == [tokens]
    lengths = np.array([len(ids) for ids in rows])
    table = np.array([ids + [0] * (lengths.max() - len(ids)) for ids in rows])
    assert greedy_in_place(graph, table, STEPS, lengths).tolist() == wanted


def test_more_tokens_than_there_is_room_for_is_an_error(graph: Path) -> None:
    session = open_in_place(graph)
    with pytest.raises(ParityError, match="room for 4 tokens, not for 5"):
        step_in_place(session, make_cache(session, 1, 4), np.ones((1, 5), np.int64), np.array([5]))
    with pytest.raises(ParityError, match="does not run"):
        greedy_in_place(graph, np.full((1, TINY["max_position_embeddings"]), 7), 3)


# ---- the batch padded on the left


def test_a_batch_padded_on_the_left_is_silently_wrong(graph: Path, asked: Any) -> None:
    """Through a plain session as any tool would feed it: no error, and only the row without padding is right."""
    batch = next(p for p in asked[0] if p.name == "padded batch")
    session = open_in_place(graph)
    padding = (~batch.counts).sum(1)
    assert 0 in padding
    assert (padding > 0).any()
    past = {
        i.name: np.zeros((len(padding), i.shape[1], 0, i.shape[3]), np.float32)
        for i in session.get_inputs()
        if i.name.startswith("past")
    }

    def differences(probe: Probe) -> list[float]:
        feeds = {name: probe.feeds[name] for name in ("input_ids", "attention_mask")}
        found = session.run(["logits"], {**feeds, **past})[0]
        assert np.isfinite(found).all()
        pairs = zip(found, probe.answer, probe.counts, strict=True)
        return [float(np.abs(a - b)[counts].max()) for a, b, counts in pairs]

    for worst, padded in zip(differences(batch), padding, strict=True):
        assert worst < 1e-4 if padded == 0 else worst > 0.1
    assert max(differences(pad_right(batch))) < 1e-4


def test_optimum_takes_single_texts_and_silently_fails_a_padded_batch(
    llama: Path, graph: Path, asked: Any, tmp_path: Path
) -> None:
    folder = bundle_of(llama, graph, tmp_path / "bundle")
    found = in_place_loads_in(folder, folder / "onnx" / "model.onnx", *asked)
    print(json.dumps(found, indent=1))
    assert found["optimum"]["ok"]
    assert found["optimum_generate"]["ok"]
    for key in ("optimum_batched", "optimum_generate_batched"):
        assert found[key]["tested"]
        assert not found[key]["ok"]
        assert found[key]["why"].startswith("Optimum pads on the left")  # no error told of it
    assert found["optimum_batched"]["largest_absolute_difference"] > 0.1
    assert found["optimum_generate_batched"]["equal"] < found["optimum_generate_batched"]["sequences"]


def test_a_graph_that_differs_is_refused(graph: Path, asked: Any, tmp_path: Path) -> None:
    probes, written = asked
    off = [Probe(p.name, p.feeds, p.answer + 0.01, p.counts) for p in probes]
    with pytest.raises(ParityError, match=r"differs from PyTorch by 0\.01"):
        in_place_parity(graph, off, written, FP32)
    other = [Written(w.name, w.feeds, (w.tokens + 1) % 400, np.ones_like(w.margins)) for w in written]
    with pytest.raises(ParityError, match="fp32-in-place graph writes"):
        in_place_parity(graph, probes, other, FP32)


# ---- manners


def test_a_build_is_quiet_offline_and_leaves_nothing(
    llama: Path, tmp_path: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a build opened a connection")

    before = list(sys.path), list(logging.getLogger().handlers), logging.getLogger().level
    files = {p: p.stat().st_mtime_ns for p in llama.iterdir()}
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(socket.socket, "connect", refuse)
    build_in_place(llama, tmp_path / "out", precision="int4")
    assert capfd.readouterr() == ("", "")
    assert (list(sys.path), list(logging.getLogger().handlers), logging.getLogger().level) == before
    assert {p: p.stat().st_mtime_ns for p in llama.iterdir()} == files
    assert list((tmp_path / "here").iterdir()) == []
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["model.onnx", "model.onnx_data"]


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (hf.GPT2Config(vocab_size=400, n_embd=32, n_layer=1, n_head=2), r"not for gpt2 \(GPT2LMHeadModel\)"),
        (hf.Gemma2Config(vocab_size=400, **TINY, head_dim=16), r"not for gemma2 \(Gemma2ForCausalLM\)"),
        (hf.LlamaConfig(vocab_size=400, **TINY, rope_scaling={"rope_type": "yarn", "factor": 2.0}), "of type yarn"),
        (
            hf.Qwen2Config(vocab_size=400, **TINY, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1),
            "differ in their window",
        ),
    ],
)
def test_what_cannot_be_built_is_one_clear_error(config: Any, why: str, tokenizer: Any, tmp_path: Path) -> None:
    folder = write_checkpoint(config, tokenizer, tmp_path / "checkpoint")
    with pytest.raises(CheckpointError, match=f"{why}.*use the portable recipes"):
        build_in_place(folder, tmp_path / "out", precision="fp32")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["t5", "bert", "classifier", "prompt"])
def test_other_models_are_refused(kind: str, llama: Path, tokenizer: Any, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    if kind == "t5":
        config = hf.T5Config(vocab_size=400, d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2)
        hf.T5ForConditionalGeneration(config).save_pretrained(folder)
    elif kind == "bert":
        hf.BertForMaskedLM(hf.BertConfig(vocab_size=400, **small)).save_pretrained(folder)
    elif kind == "classifier":
        hf.LlamaForSequenceClassification(hf.LlamaConfig(vocab_size=400, **TINY)).save_pretrained(folder)
    else:
        from edgewise.prompts import install_prompt, make_prompt, save_prompt

        prompted = hf.AutoModelForCausalLM.from_pretrained(llama)
        install_prompt(prompted, make_prompt(prompted, 3))
        save_prompt(prompted, folder)
    tokenizer.save_pretrained(folder)
    why = "it is prompt-tuned" if kind == "prompt" else "made for llama, mistral, .* not for"
    with pytest.raises(CheckpointError, match=why):
        build_in_place(folder, tmp_path / "out", precision="fp32")


def test_bad_arguments_and_a_missing_builder(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PlanError, match="not with 'int8' and 32"):
        build_in_place(llama, tmp_path / "out", precision="int8")  # type: ignore[arg-type]
    with pytest.raises(PlanError, match="not with 'int4' and 48"):
        build_in_place(llama, tmp_path / "out", precision="int4", block_size=48)
    for name in [n for n in sys.modules if n.startswith("onnxruntime_genai")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "onnxruntime_genai", None)
    with pytest.raises(MissingExtraError, match=r"onnxruntime_genai.* is not installed: run .*edgewise\[build\]"):
        build_in_place(llama, tmp_path / "out", precision="fp32")
    assert list((tmp_path / "out").iterdir()) == []


def test_what_the_builder_trips_over_is_one_error(llama: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(llama, tmp_path / "checkpoint"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_act": "nothing"}))
    with pytest.raises(CheckpointError, match="does not build as an in-place graph"):
        build_in_place(folder, tmp_path / "out", precision="fp32")
    assert list((tmp_path / "out").iterdir()) == []


# ---- a real model


@pytest.mark.slow
def test_smollm2(review_rows: Any, tmp_path: Path) -> None:
    folder = asset_path("smollm2")
    model = hf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    probes, written = ask(folder, model, review_rows[:6])
    del model
    graph = build_in_place(folder, tmp_path / "fp32", precision="fp32")
    parity = in_place_parity(graph, probes, written, FP32)
    print(parity)
    assert parity["largest_absolute_difference"] < 1e-3
    assert parity["greedy"]["equal"] == parity["greedy"]["sequences"]
    bundle = bundle_of(folder, graph, tmp_path / "bundle")
    found = in_place_loads_in(bundle, bundle / "onnx" / "model.onnx", probes, written)
    print(found)
    assert found["optimum"]["ok"]
    assert found["optimum_generate"]["ok"]
    assert not found["optimum_batched"]["ok"]
    assert not found["optimum_generate_batched"]["ok"]
    int4 = build_in_place(folder, tmp_path / "int4", precision="int4")
    parity = in_place_parity(int4, probes, written, INT4)
    print(parity)
    assert parity["agreement"] > 0.5
    assert sum(p.stat().st_size for p in int4.parent.iterdir()) < 0.2 * (folder / "model.safetensors").stat().st_size
