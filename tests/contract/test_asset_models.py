"""Prepared models: they answer as the files that they were made from."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from edgewise import assets, prepare_models
from edgewise.asset_list import ASSETS
from edgewise.assets import asset_path
from edgewise.downloads import download, unpack

REACTION = "CC(C)S.CN(C)C=O.Fc1cccnc1F.O=C([O-])[O-].[K+].[K+]>>CC(C)Sc1ncccc1F"


def sources_of(name: str, temporary: Path) -> Path:
    """The package's own files, downloaded again."""
    asset = ASSETS[name]
    unpack(download(asset, temporary, assets.cache_folder()), asset.sources, temporary / "source")
    return temporary / "source"


def test_rxn_albert_reads_smiles_and_predicts_masked_tokens() -> None:
    import torch
    from transformers import AlbertForMaskedLM, AutoTokenizer

    folder = asset_path("rxn-albert")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    # rxnmapper's own tokenizer is this findall
    assert tokenizer.tokenize(REACTION) == re.findall(prepare_models._SMILES, REACTION)
    assert tokenizer("C", "O")["token_type_ids"] == [0, 0, 0, 1, 1]
    assert tokenizer.tokenize("a film") == ["[UNK]", "[UNK]"]
    assert tokenizer.model_max_length == 512
    model = AlbertForMaskedLM.from_pretrained(folder).eval()
    ids = tokenizer(REACTION, return_tensors="pt").input_ids
    inner = torch.arange(1, ids.shape[1] - 1)
    masked = ids.repeat(len(inner), 1)
    masked[torch.arange(len(inner)), inner] = tokenizer.mask_token_id
    with torch.no_grad():
        best = model(masked).logits[torch.arange(len(inner)), inner].argmax(-1)
    assert (best == ids[0, 1:-1]).float().mean() > 0.9, "an untrained one is right about 1 in 591 times"


@pytest.mark.slow
def test_smollm2_is_the_gguf_without_a_second_start(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, source = asset_path("smollm2"), sources_of("smollm2", tmp_path)
    file = next(source.glob("*.gguf")).name
    ours, theirs = AutoTokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(source, gguf_file=file)
    text = "It's 12,345 cafés — 漢字;\n\n  def f(x):\n\treturn x\n" + asset_path("kjv").read_text()[:5000]
    assert theirs(text).input_ids == [ours.bos_token_id, *ours(text).input_ids]
    assert ours.decode(ours(text).input_ids) == text
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    weights = AutoModelForCausalLM.from_pretrained(source, gguf_file=file).state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    question = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]
    chat = ours.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    assert (chat["input_ids"][0] == ours.bos_token_id).sum() == 3, "system, user, assistant: one start each"
    with torch.no_grad():
        answer = model.generate(**chat, max_new_tokens=12, do_sample=False)[0, chat["input_ids"].shape[1] :]
        loss = model(**(ids := ours(text[-2000:], return_tensors="pt")), labels=ids["input_ids"]).loss
    assert "Paris" in ours.decode(answer)
    assert ours.eos_token_id in answer
    assert float(loss.exp()) < 25, "49,152 is chance"


@pytest.mark.slow
def test_vit_small_is_the_graph_it_was_taken_from(tmp_path: Path) -> None:
    import onnx
    import onnxruntime
    import torch
    from transformers import AutoImageProcessor, Dinov2Model

    folder, source = asset_path("vit-small"), sources_of("vit-small", tmp_path)
    graph = onnx.load(str(next(source.glob("*.onnx"))))
    last = "/backbone/layernorm/Add_1_output_0"
    graph.graph.output.append(onnx.helper.make_tensor_value_info(last, onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    images = np.random.default_rng(0).standard_normal((2, 3, 224, 224)).astype(np.float32)
    wanted = session.run([last], {"input_image": images})[0]
    with torch.no_grad():
        found = Dinov2Model.from_pretrained(folder).eval()(torch.tensor(images)).last_hidden_state.numpy()
    assert np.abs(wanted).max() > 1
    assert np.abs(found - wanted).max() < 1e-3
    assert AutoImageProcessor.from_pretrained(folder).image_mean == [0.485, 0.456, 0.406]
