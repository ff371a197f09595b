"""Prompts of every family: padded batches answer as single inputs do, PEFT agrees where it can, save and load."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch.testing import assert_close

from edgewise.errors import CheckpointError, PlanError
from edgewise.prompts import PROMPT_FILE, install_prompt, load_prompted, make_prompt, prompt_of, save_prompt

N = 4
TEXT = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
T5 = {"vocab_size": 60, "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2}
IMAGE = {**TEXT, "image_size": 16, "patch_size": 4, "num_labels": 3}
LONG = {"max_position_embeddings": 40}

MODELS: dict[str, tuple[Any, Callable[[], Any]]] = {
    "bert": (hf.AutoModelForSequenceClassification, lambda: hf.BertConfig(**TEXT, **LONG, num_labels=3)),
    "albert": (
        hf.AutoModelForSequenceClassification,
        lambda: hf.AlbertConfig(**TEXT, **LONG, embedding_size=16, num_labels=3),
    ),
    "distilbert": (
        hf.AutoModelForSequenceClassification,
        lambda: hf.DistilBertConfig(vocab_size=60, dim=32, n_layers=2, n_heads=2, hidden_dim=64, num_labels=3, **LONG),
    ),
    "roberta": (
        hf.AutoModelForSequenceClassification,
        lambda: hf.RobertaConfig(**TEXT, **LONG, num_labels=3, pad_token_id=0),
    ),
    "bert tokens": (hf.AutoModelForTokenClassification, lambda: hf.BertConfig(**TEXT, **LONG, num_labels=5)),
    "gpt2 classes": (
        hf.AutoModelForSequenceClassification,
        lambda: hf.GPT2Config(vocab_size=60, n_embd=32, n_layer=2, n_head=2, n_positions=40, pad_token_id=0),
    ),
    "llama classes": (
        hf.AutoModelForSequenceClassification,
        lambda: hf.LlamaConfig(**TEXT, **LONG, num_key_value_heads=1, pad_token_id=0, num_labels=3),
    ),
    "gpt2": (
        hf.AutoModelForCausalLM,
        lambda: hf.GPT2Config(vocab_size=60, n_embd=32, n_layer=2, n_head=2, n_positions=40, pad_token_id=0),
    ),
    "llama": (
        hf.AutoModelForCausalLM,
        lambda: hf.LlamaConfig(**TEXT, **LONG, num_key_value_heads=1, pad_token_id=0),
    ),
    "t5": (hf.AutoModelForSeq2SeqLM, lambda: hf.T5Config(**T5, pad_token_id=0, decoder_start_token_id=0)),
    "vit": (hf.AutoModelForImageClassification, lambda: hf.ViTConfig(**IMAGE)),
    "deit": (
        hf.AutoModelForImageClassification,
        lambda: hf.DeiTConfig(**IMAGE, architectures=["DeiTForImageClassification"]),
    ),
    "dinov2": (hf.AutoModelForImageClassification, lambda: hf.Dinov2Config(**IMAGE)),
}
IMAGES = ("vit", "deit", "dinov2")
GENERATES = ("gpt2", "llama")


def plain(name: str) -> Any:
    torch.manual_seed(1)
    auto, config = MODELS[name]
    model = auto.from_config(config()).eval()
    with torch.no_grad():  # fresh weights are small, and so would be every difference
        for p in model.parameters():
            if p.dim() > 1:
                p.mul_(4)
    return model


def prompted(name: str) -> Any:
    model = plain(name)
    install_prompt(model, 3 * make_prompt(model, N, seed=2))
    return model


def batch(lengths: tuple[int, ...] = (9, 4, 6), side: str = "right") -> dict[str, torch.Tensor]:
    """Random ids without the padding token 0, padded to the longest."""
    torch.manual_seed(3)
    ids = torch.zeros(len(lengths), max(lengths), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, n in enumerate(lengths):
        place = slice(0, n) if side == "right" else slice(max(lengths) - n, None)
        ids[row, place] = torch.randint(1, 60, (n,))
        mask[row, place] = 1
    return {"input_ids": ids, "attention_mask": mask}


def inputs(name: str) -> dict[str, torch.Tensor]:
    if name in IMAGES:
        torch.manual_seed(3)
        return {"pixel_values": torch.randn(3, 3, 16, 16)}
    return {**batch(), **({"decoder_input_ids": batch((5, 5, 5))["input_ids"]} if name == "t5" else {})}


def logits(model: Any, given: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(**given).logits
    return found


@pytest.mark.parametrize("name", MODELS)
def test_a_padded_batch_answers_as_single_inputs_do(name: str) -> None:
    model, given = prompted(name), inputs(name)
    together = logits(model, given)
    for row in range(3):
        n = int(given["attention_mask"][row].sum()) if "attention_mask" in given else None
        single = {k: v[row : row + 1] if v.dim() == 4 or k == "decoder_input_ids" else v[row : row + 1, :n]
                  for k, v in given.items()}  # fmt: skip
        alone = logits(model, single)
        aligned = together[row : row + 1, :n] if alone.dim() == 3 and name != "t5" else together[row : row + 1]
        assert_close(aligned, alone, atol=1e-4, rtol=1e-4)
        # without a mask the model reads all of it, prompt included
        if "attention_mask" in single:
            del single["attention_mask"]
            assert_close(logits(model, single), alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_the_prompt_is_read_and_the_shape_stays(name: str) -> None:
    bare, with_prompt = logits(plain(name), inputs(name)), logits(prompted(name), inputs(name))
    assert with_prompt.shape == bare.shape
    assert (with_prompt - bare).abs().max() > 1e-3


@pytest.mark.parametrize("name", MODELS)
def test_the_gradient_reaches_the_prompt_alone_when_the_rest_is_frozen(name: str) -> None:
    model, given = prompted(name).train(), inputs(name)
    model.requires_grad_(False)
    prompt = prompt_of(model)
    prompt.requires_grad_(True)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    model(**given).logits.square().mean().backward()
    optimizer.step()
    changed = [k for k, v in model.state_dict().items() if not torch.equal(v, before[k])]
    assert len(changed) == 1
    assert changed[0].endswith("edgewise_prompt")
    assert all(prompt.grad[i].abs().sum() > 0 for i in range(N))


@pytest.mark.parametrize("name", MODELS)
def test_saved_and_loaded_it_answers_the_same(name: str, tmp_path: Path) -> None:
    model = prompted(name)
    save_prompt(model, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["edgewise_prompt"] == {"tokens": N}
    loaded = load_prompted(tmp_path, MODELS[name][0]).eval()
    assert torch.equal(logits(loaded, inputs(name)), logits(model, inputs(name)))
    bare, report = MODELS[name][0].from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert torch.equal(logits(bare.eval(), inputs(name)), logits(plain(name), inputs(name)))


def test_a_folder_without_a_prompt_loads_as_ever(tmp_path: Path) -> None:
    plain("bert").save_pretrained(tmp_path)
    assert prompt_of(load_prompted(tmp_path, MODELS["bert"][0])) is None


@pytest.mark.parametrize("name", ["bert", "gpt2", "t5", "vit"])
def test_a_copy_has_a_prompt_of_its_own(name: str) -> None:
    model = prompted(name)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        prompt_of(twin).mul_(-2)
    assert not torch.equal(logits(model, inputs(name)), logits(twin, inputs(name)))
    assert torch.equal(logits(model, inputs(name)), logits(prompted(name), inputs(name)))


# ---- heads and hidden states


def test_bert_pools_cls_and_not_a_virtual_token() -> None:
    model, given = prompted("bert"), inputs("bert")
    with torch.no_grad():
        found = model.bert(**given, output_hidden_states=True)
        assert_close(found.pooler_output, model.bert.pooler(found.last_hidden_state))
        assert found.last_hidden_state.shape[1] == given["input_ids"].shape[1]
        assert {h.shape[1] for h in found.hidden_states} == {given["input_ids"].shape[1]}
        as_tuple = model.bert(**given, return_dict=False)
        assert_close(as_tuple[0], found.last_hidden_state)


def test_token_types_stand_with_their_tokens() -> None:
    model, given = prompted("bert"), inputs("bert")
    types = torch.zeros_like(given["input_ids"])
    same = logits(model, {**given, "token_type_ids": types})
    assert_close(same, logits(model, given))
    types[:, 2:4] = 1
    assert (logits(model, {**given, "token_type_ids": types}) - same).abs().max() > 1e-3


# ---- PEFT's wrapper, where it means the same


def with_peft(name: str, task: str, prompt: torch.Tensor) -> Any:
    from peft import PromptTuningConfig, get_peft_model

    wrapped = get_peft_model(
        plain(name), PromptTuningConfig(task_type=task, num_virtual_tokens=N, num_transformer_submodules=1)
    ).eval()
    with torch.no_grad():
        wrapped.prompt_encoder["default"].embedding.weight.copy_(prompt)
    return wrapped


@pytest.mark.parametrize("name", GENERATES)
def test_language_models_agree_with_peft(name: str) -> None:
    model, given = prompted(name), inputs(name)
    theirs = logits(with_peft(name, "CAUSAL_LM", prompt_of(model)), given)[:, N:]
    real = given["attention_mask"].bool()
    assert_close(logits(model, given)[real], theirs[real], atol=1e-4, rtol=1e-4)


def test_t5_agrees_with_peft() -> None:
    model, given = prompted("t5"), inputs("t5")
    theirs = with_peft("t5", "SEQ_2_SEQ_LM", prompt_of(model))
    assert_close(logits(model, given), logits(theirs, given), atol=1e-4, rtol=1e-4)


def test_peft_pools_a_virtual_token_of_bert() -> None:
    """Why its wrapper is not used for classification: the docstring of edgewise.prompts says so."""
    model, given = prompted("bert"), inputs("bert")
    theirs = with_peft("bert", "SEQ_CLS", prompt_of(model))
    assert (logits(theirs, given) - logits(model, given)).abs().max() > 1e-3


# ---- generation


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", GENERATES)
def test_step_by_step_with_a_cache_is_as_all_at_once(name: str, side: str) -> None:
    model, given = prompted(name), batch(side=side)
    mask = given["attention_mask"]
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    whole = logits(model, {**given, "position_ids": positions})
    past, start, parts = None, 0, []
    for end in (3, 4, 7, 9):
        with torch.no_grad():
            out = model(
                given["input_ids"][:, start:end],
                attention_mask=mask[:, :end],
                position_ids=positions[:, start:end],
                past_key_values=past,
                use_cache=True,
            )
        past, start = out.past_key_values, end
        parts.append(out.logits)
        assert past.get_seq_length() == N + end
    assert_close(torch.cat(parts, 1)[mask.bool()], whole[mask.bool()], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", [*GENERATES, "t5"])
def test_generate_gives_the_tokens_of_full_forwards(name: str) -> None:
    model, given = prompted(name), batch(side="right" if name == "t5" else "left")
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    found = model.generate(**given, **options)
    assert torch.equal(found, model.generate(**given, **options, use_cache=False))
    for row in range(3):
        n = int(given["attention_mask"][row].sum())
        ids = given["input_ids"][row][given["attention_mask"][row].bool()][None]
        alone = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)
        assert torch.equal(alone[0, -8:], found[row, -8:]), (row, n)


# ---- what is wrong


def test_what_does_not_fit_is_said(tmp_path: Path) -> None:
    model = prompted("bert")
    with pytest.raises(PlanError, match="has a prompt already"):
        install_prompt(model, torch.zeros(2, 32))
    with pytest.raises(PlanError, match=r"shape \[2, 16\]; this model needs \[tokens, 32\]"):
        install_prompt(plain("bert"), torch.zeros(2, 16))
    with pytest.raises(PlanError, match="no prompt to save"):
        save_prompt(plain("bert"), tmp_path)
    swin = hf.SwinForImageClassification(hf.SwinConfig(image_size=16, embed_dim=8, depths=[1], num_heads=[1]))
    with pytest.raises(PlanError, match="swin model: take full, ffn or lora"):
        make_prompt(swin, 2)


def test_a_prompt_file_that_is_missing_or_of_another_training(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_prompt(prompted("bert"), tmp_path)
    auto = MODELS["bert"][0]
    save_file({"edgewise_prompt": torch.zeros(N + 1, 32)}, tmp_path / PROMPT_FILE)
    with pytest.raises(CheckpointError, match=r"shape \[5, 32\], config.json marks 4 tokens"):
        load_prompted(tmp_path, auto)
    save_file({"edgewise_prompt": torch.zeros(N, 31)}, tmp_path / PROMPT_FILE)
    with pytest.raises(CheckpointError, match="does not fit the model"):
        load_prompted(tmp_path, auto)
    (tmp_path / PROMPT_FILE).write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_prompted(tmp_path, auto)
    (tmp_path / PROMPT_FILE).unlink()
    with pytest.raises(CheckpointError, match=r"4 virtual tokens in config.json.*no prompt\.safetensors"):
        load_prompted(tmp_path, auto)


# ---- values to start from


def test_text_prompts_are_word_vectors_of_ordinary_tokens(minilm: Path) -> None:
    tokenizer = hf.AutoTokenizer.from_pretrained(minilm)
    torch.manual_seed(0)
    model = hf.BertModel(hf.BertConfig(vocab_size=len(tokenizer), hidden_size=8, num_hidden_layers=1,
                                       num_attention_heads=2, intermediate_size=8))  # fmt: skip
    prompt = make_prompt(model, 500, tokenizer, seed=5)
    assert prompt.shape == (500, 8)
    assert torch.equal(prompt, make_prompt(model, 500, tokenizer, seed=5))
    assert not torch.equal(prompt, make_prompt(model, 500, tokenizer, seed=6))
    words = model.get_input_embeddings().weight
    ids = [int((words == row).all(1).nonzero()[0]) for row in prompt]
    tokens = tokenizer.convert_ids_to_tokens(ids)
    assert len(set(ids)) > 450
    assert not [t for t in tokens if t.startswith("[")]


def test_image_prompts_are_small_and_random() -> None:
    prompt = make_prompt(plain("vit"), 50, seed=1)
    limit = (6 / (3 * 4 * 4 + 32)) ** 0.5
    assert prompt.shape == (50, 32)
    assert 0.9 * limit < prompt.abs().max() <= limit
    assert prompt.mean().abs() < 0.05
