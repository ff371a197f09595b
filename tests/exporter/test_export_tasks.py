"""Every task and strategy exports to graphs that answer as PyTorch does: alone, in padded batches, and step by step."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf

import edgewise
from edgewise.bundle import Bundle, read_bundle
from edgewise.data import Row
from edgewise.errors import BundleError, CheckpointError, InputError
from edgewise.exporter import export
from edgewise.exporter.probes import STEPS
from edgewise.exporter.sessions import greedy, open_graphs
from edgewise.prompts import install_prompt, load_prompted, make_prompt, save_prompt
from edgewise.types import AUTO_CLASSES, Task

BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
LONG = {"max_position_embeddings": 48}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 48}
LLAMA = {**BERT, **LONG, "num_key_value_heads": 1}
T5 = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0}
IMAGE = {**BERT, "image_size": 16, "patch_size": 4, "num_labels": 3}
MULTI = {"num_labels": 4, "problem_type": "multi_label_classification"}

CLASSES: Task = "text-classification"
CELLS: dict[str, tuple[Task, str, Callable[[int], Any]]] = {
    "bert single": (CLASSES, "minilm", lambda v: hf.BertConfig(v, **BERT, **LONG, num_labels=3)),
    "bert pair": (CLASSES, "minilm", lambda v: hf.BertConfig(v, **BERT, **LONG)),
    "bert several": (CLASSES, "minilm", lambda v: hf.BertConfig(v, **BERT, **LONG, **MULTI)),
    "bert number": (CLASSES, "minilm", lambda v: hf.BertConfig(v, **BERT, **LONG, num_labels=1)),
    "bert tokens": ("token-classification", "minilm", lambda v: hf.BertConfig(v, **BERT, **LONG, num_labels=5)),
    "gpt2 single": (CLASSES, "bpe", lambda v: hf.GPT2Config(vocab_size=v, **GPT2, pad_token_id=0)),
    "llama single": (CLASSES, "bpe", lambda v: hf.LlamaConfig(vocab_size=v, **LLAMA, pad_token_id=0)),
    "gpt2 text": ("text-generation", "bpe", lambda v: hf.GPT2Config(vocab_size=v, **GPT2)),
    "llama text": ("text-generation", "bpe", lambda v: hf.LlamaConfig(vocab_size=v, **LLAMA)),
    "t5 text": ("text2text-generation", "unigram", lambda v: hf.T5Config(vocab_size=v, **T5)),
    "vit image": ("image-classification", "image", lambda v: hf.ViTConfig(**IMAGE)),
    "dinov2 image": ("image-classification", "image", lambda v: hf.Dinov2Config(**IMAGE)),
}  # fmt: skip
WITH_LORA = ("bert single", "bert tokens", "gpt2 text", "gpt2 single", "t5 text", "vit image")
SLOW = (
    ("t5 text", "prompt"),
    ("t5 text", "lora"),
    ("llama text", "prompt"),
    ("gpt2 text", "prompt"),
    ("bert tokens", "lora"),
)
STRATEGIES = [(cell, s) for cell in CELLS for s in ("plain", "prompt", *(["lora"] if cell in WITH_LORA else []))]


# ---- tiny checkpoints with real tokenizers


def fresh(cell: str, vocabulary: int) -> Any:
    """A model with weights large enough that its answers differ."""
    task, _, config = CELLS[cell]
    torch.manual_seed(4)
    given = config(vocabulary)
    model = getattr(hf, AUTO_CLASSES[task]).from_config(given).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() > 1 and "t5" not in cell:
                p.mul_(4)
            elif name.endswith("bias"):
                p.normal_(std=0.1)
    return model


def with_lora(model: Any, cell: str) -> Any:
    """Wrapped by PEFT, with adapters that say something, and merged."""
    from peft import LoraConfig, get_peft_model

    targets = {"bert": ["query", "value"], "gpt2": ["c_attn"], "t5": ["q", "v"], "vit": ["query", "value"]}
    wrapped = get_peft_model(
        model, LoraConfig(r=4, target_modules=targets[cell.partition(" ")[0]], fan_in_fan_out="gpt2" in cell)
    )
    with torch.no_grad():
        for name, p in wrapped.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.2)
    return wrapped.merge_and_unload()


def write_checkpoint(cell: str, strategy: str, preprocessor: Any, folder: Path) -> Path:
    model = fresh(cell, len(preprocessor) if CELLS[cell][1] != "image" else 0)
    if strategy == "lora":
        model = with_lora(model, cell)
    if strategy == "prompt":
        install_prompt(model, 4 * make_prompt(model, 5, preprocessor if CELLS[cell][1] != "image" else None))
        save_prompt(model, folder)
    else:
        model.save_pretrained(folder)
    preprocessor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def exported(
    rows: dict[str, tuple[Row, ...]], preprocessors: dict[str, Any], tmp_path_factory: Any
) -> Iterator[Callable[..., tuple[Path, dict[str, Bundle]]]]:
    """(cell, strategy) -> its checkpoint and its bundles by recipe, made once."""
    made: dict[tuple[str, str], tuple[Path, dict[str, Bundle]]] = {}

    def make(cell: str, strategy: str = "plain") -> tuple[Path, dict[str, Bundle]]:
        if (cell, strategy) not in made:
            task, preprocessor, _ = CELLS[cell]
            place = tmp_path_factory.mktemp(f"{cell}-{strategy}".replace(" ", "-"))
            folder = write_checkpoint(cell, strategy, preprocessors[preprocessor], place / "checkpoint")
            calibration = rows["pair" if "pair" in cell else task]
            results = export(folder, ["fp32", "int8-dynamic"], out=place / "out", calibration=calibration)
            assert [r.reason for r in results] == ["", ""], (cell, strategy)
            made[cell, strategy] = folder, {r.recipe.name: r.bundle for r in results if r.bundle}
        return made[cell, strategy]

    yield make


# ---- every cell


@pytest.mark.parametrize(
    ("cell", "strategy"), [pytest.param(*x, marks=pytest.mark.slow) if x in SLOW else x for x in STRATEGIES]
)
def test_the_graphs_answer_as_pytorch_does(exported, cell: str, strategy: str) -> None:
    _, bundles = exported(cell, strategy)
    task = CELLS[cell][0]
    for recipe, bundle in bundles.items():
        manifest = bundle.manifest
        parity = manifest.parity
        print(cell, strategy, recipe, parity, manifest.loads_in)
        assert manifest.task == task
        assert parity["against"] == "pytorch"
        if recipe == "fp32":
            assert parity["largest_absolute_difference"] < 1e-3
            assert parity["batch_dependence"] < 1e-3
            assert parity["agreement"] == 1
        if "generation" in task and recipe == "fp32":
            assert parity["greedy"]["equal"] == parity["greedy"]["sequences"] == 5
        for name, found in manifest.loads_in.items():
            assert found.get("ok", True), (cell, strategy, recipe, name, found)
        assert manifest.golden
        with edgewise.load(bundle.path, task=task) as model:
            assert model.check(1e-4).passed, (cell, strategy, recipe, model.check(1e-4))


def test_bundles_hold_what_their_task_needs(exported) -> None:
    def names(cell: str) -> set[str]:
        return set(exported(cell)[1]["int8-dynamic"].manifest.files)

    text = {"config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}
    assert names("bert tokens") == text | {"onnx/model.onnx"}
    assert names("gpt2 text") == text | {"onnx/model.onnx", "generation_config.json"}
    both = {"onnx/encoder_model.onnx", "onnx/decoder_model_merged.onnx"}
    assert names("t5 text") == text | both | {"generation_config.json"}
    assert names("vit image") == {"config.json", "preprocessor_config.json", "onnx/model.onnx"}
    t5 = exported("t5 text")[1]["int8-dynamic"].manifest
    assert [g.file.rpartition("/")[2] for g in t5.graphs] == ["encoder_model.onnx", "decoder_model_merged.onnx"]
    assert t5.labels == ()
    assert exported("vit image")[1]["fp32"].manifest.labels == ("LABEL_0", "LABEL_1", "LABEL_2")


def test_every_product_with_weights_is_in_int8(exported) -> None:
    # 2 layers: self-attention, cross-attention (keys and values in the first call only), feed-forward; output layer
    fp32, int8 = (exported("t5 text")[1][r].manifest.graphs[1] for r in ("fp32", "int8-dynamic"))
    assert int8.node_types["MatMulInteger"] == (2 * (4 + 4 + 2) + 1) + (2 * (4 + 2 + 2) + 1)
    # embeddings too, and what both branches read is there once
    assert int8.bytes_by_part["embeddings"] < 0.3 * fp32.bytes_by_part["embeddings"]
    weights = 400 * 32 + 2 * (8 * 32 * 32 + 2 * 32 * 64)
    assert weights <= int8.bytes_by_part["weights int8"] + int8.bytes_by_part.get("weights uint8", 0) < 2.2 * weights
    gpt2 = exported("gpt2 text")[1]["int8-dynamic"].manifest.graphs[0]
    assert gpt2.node_types["MatMulInteger"] == 2 * 4 + 1
    vit = exported("vit image")[1]["int8-dynamic"].manifest.graphs[0]
    assert vit.node_types["MatMulInteger"] == 2 * 6 + 1


@pytest.mark.parametrize("cell", ["gpt2 text", "llama text"])
@pytest.mark.parametrize("strategy", ["plain", "prompt"])
def test_one_graph_serves_the_first_call_and_chunks_after_it(exported, cell: str, strategy: str) -> None:
    folder, bundles = exported(cell, strategy)
    model = load_prompted(folder, hf.AutoModelForCausalLM).eval()
    session = open_graphs(bundles["fp32"].path, "text-generation").sessions["model.onnx"]
    tokens = 5 if strategy == "prompt" else 0
    torch.manual_seed(0)
    ids = torch.randint(2, 300, (2, 9))
    mask = torch.ones_like(ids)
    mask[1, :3] = 0  # padded on the left
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        whole = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits.numpy()
    past = {i.name: np.zeros((2, i.shape[1], 0, 16), np.float32) for i in session.get_inputs() if "past" in i.name}
    start, found = 0, []
    for end in (4, 5, 8, 9):
        given = {
            "input_ids": ids[:, start:end],
            "attention_mask": mask[:, :end],
            "position_ids": positions[:, start:end],
        }
        out = session.run(None, {**{n: v.numpy() for n, v in given.items()}, **past})
        names = [o.name.replace("present", "past_key_values") for o in session.get_outputs()]
        past = dict(zip(names[1:], out[1:], strict=True))
        assert {p.shape[2] for p in past.values()} == {tokens + end}
        found.append(out[0])
        start = end
    real = mask.bool().numpy()
    np.testing.assert_allclose(np.concatenate(found, 1)[real], whole[real], atol=1e-4)


@pytest.mark.parametrize("strategy", ["plain", "prompt"])
def test_a_padded_batch_writes_what_single_texts_write(exported, strategy: str) -> None:
    _, bundles = exported("t5 text", strategy)
    tokenizer = hf.AutoTokenizer.from_pretrained(bundles["fp32"].path)
    texts = ["A fine film.", "Dull, and far too long for what it has to say.", "Good"]
    graphs = open_graphs(bundles["fp32"].path, "text2text-generation")

    def write(some: list[str]) -> list[list[int]]:
        given = dict(tokenizer(some, padding=True, return_tensors="np"))
        feeds = {n: v.astype(np.int64) for n, v in given.items() if n != "token_type_ids"}
        return greedy(graphs, {**feeds, "decoder_input_ids": np.zeros((len(some), 1), np.int64)}, STEPS).tolist()

    assert write(texts) == [write([t])[0] for t in texts]


# ---- text classification through the runtime


@pytest.mark.parametrize("strategy", ["plain", "prompt"])
@pytest.mark.parametrize("cell", [c for c, (task, _, _) in CELLS.items() if task == "text-classification"])
def test_the_runtime_answers_as_transformers_does(exported, rows, cell: str, strategy: str) -> None:
    folder, bundles = exported(cell, strategy)
    model = load_prompted(folder, hf.AutoModelForSequenceClassification).eval()
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    items = [
        (r.text, r.text_pair) if r.text_pair else r.text for r in rows["pair" if "pair" in cell else CELLS[cell][0]]
    ]
    with edgewise.load(bundles["fp32"].path, batch_size=5) as runtime:
        found = runtime.predict(items)
        longest = runtime.bundle.manifest.preprocessing["max_length"]
    assert longest == 48 - (5 if strategy == "prompt" else 0)
    for prediction, item in zip(found, items, strict=True):
        a, b = item if isinstance(item, tuple) else (item, None)
        encoded = tokenizer(a, b, truncation=True, max_length=longest, return_tensors="pt")
        with torch.no_grad():
            row = model(input_ids=encoded["input_ids"]).logits[0] if b is None else model(**encoded).logits[0]
        np.testing.assert_allclose(prediction.logits, row.numpy(), atol=1e-3)
        wanted = row.softmax(-1)
        if "several" in cell:
            wanted = row.sigmoid()
        elif "number" in cell:
            wanted = row
        np.testing.assert_allclose(prediction.scores, wanted.numpy(), atol=1e-3)
    assert len({p.n_tokens for p in found}) > 1  # so batches were padded


def test_an_empty_text_has_no_token_for_gpt(exported) -> None:
    with edgewise.load(exported("gpt2 single")[1]["fp32"].path) as model:
        with pytest.raises(InputError, match="'' has no token"):
            model([""])
        with pytest.raises(InputError, match="'' has no token"):
            model.predict(["good", ""])


def test_the_runtime_feeds_positions_to_a_graph_that_wants_them(exported, tmp_path: Path) -> None:
    """As exporters of others write them for GPT's kind."""
    from edgewise.runtime.text import TextEncoder
    from edgewise.types import RunSettings

    bundle = exported("gpt2 single")[1]["fp32"]
    encoder = TextEncoder.read(bundle, RunSettings())
    encoder = TextEncoder(encoder.tokenizer, ("input_ids", "attention_mask", "position_ids"), encoder.pad_id)
    found = encoder.arrays(encoder.encode(["a fine film", "good"]))
    assert found["position_ids"][0].tolist() == list(range(found["input_ids"].shape[1]))
    real = found["attention_mask"].astype(bool)
    np.testing.assert_array_equal(found["position_ids"][real], (found["attention_mask"].cumsum(1) - 1)[real])


def test_classifiers_pad_on_the_right_and_writers_on_the_left(exported, preprocessors, rows, tmp_path: Path) -> None:
    def side(path: Path) -> str:
        return str(hf.AutoTokenizer.from_pretrained(path).padding_side)

    folder = write_checkpoint("gpt2 single", "plain", preprocessors["bpe"], tmp_path / "left")
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    tokenizer.padding_side = "left"
    tokenizer.init_kwargs["padding_side"] = "left"
    tokenizer.save_pretrained(folder)
    assert side(folder) == "left"
    (result,) = export(folder, ["fp32"], out=tmp_path / "out", calibration=rows["text-classification"])
    assert result.bundle is not None, result.reason
    assert side(result.bundle.path) == "right"
    assert side(exported("gpt2 text")[1]["fp32"].path) == "left"


def test_the_command_reads_rows_of_the_checkpoints_task(exported, tmp_path: Path, capsys) -> None:
    from edgewise.cli import main

    folder, _ = exported("bert tokens")
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"tokens": [f"word{i}", "fine", "film"]}) + "\n" for i in range(8)))
    out = tmp_path / "out"
    assert main(["export", str(folder), "--out", str(out), "--recipe", "int8-static", "--data", str(data)]) == 0
    assert "% of 11 answers as PyTorch" in capsys.readouterr().out
    assert main(["inspect", str(out / "int8-static")]) == 0
    assert "token-classification, bert" in capsys.readouterr().out


# ---- what does not go


@pytest.mark.parametrize("cell", ["bert tokens", "gpt2 text", "t5 text", "vit image"])
def test_the_runtime_says_which_task_a_bundle_is_for(exported, cell: str) -> None:
    bundle = exported(cell)[1]["fp32"]
    read_bundle(bundle.path)
    with pytest.raises(BundleError, match=f"is for {CELLS[cell][0]}, not for text-classification"):
        edgewise.load(bundle.path, task="text-classification")


@pytest.mark.parametrize(
    ("cell", "recipe", "why"),
    [
        ("gpt2 text", "fp32-o2", "fp32-o2 is not made for text-generation"),
        ("t5 text", "fp32-o1", "fp32-o1 is not made for text2text-generation"),
        ("t5 text", "int8-static", "int8-static is not made for text2text-generation"),
        ("vit image", "int8-dynamic+vocabulary=task", "vocabulary=task is for texts"),
        ("gpt2 text", "fp32-in-place", "not for text-generation with gpt2"),
        ("bert single", "fp32-in-place", "not for text-classification with bert"),
        ("gpt2 text", "fp32+length=16", "length=16 is for texts that are read whole"),
        ("bert single", "fp16+max_drop=1", "max_drop is for int8-dynamic and int8-static"),
    ],
)
def test_a_recipe_that_a_task_has_not_is_a_reason(
    exported, rows, tmp_path: Path, cell: str, recipe: str, why: str
) -> None:
    folder, _ = exported(cell)
    (result,) = export(folder, [recipe], out=tmp_path, calibration=rows[CELLS[cell][0]])
    assert result.bundle is None
    assert why in result.reason
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("cell", "recipes"), [("bert tokens", ["fp32-o2", "int8-static"]), ("vit image", ["fp32-o1", "int8-static"])]
)
def test_other_recipes_that_go(exported, rows, tmp_path: Path, cell: str, recipes: list[str]) -> None:
    folder, _ = exported(cell, "prompt")
    results = export(folder, recipes, out=tmp_path, calibration=rows[CELLS[cell][0]])
    assert [r.reason for r in results] == [""] * len(recipes)


def test_bad_checkpoints_are_one_clear_error(exported, preprocessors, tmp_path: Path) -> None:
    folder, _ = exported("bert tokens")
    with pytest.raises(CheckpointError, match=r"is for token-classification .*not for text-classification"):
        export(folder, ["fp32"], out=tmp_path / "out", task="text-classification")
    with pytest.raises(CheckpointError, match="takes no features of such a model"):
        export(exported("t5 text")[0], ["fp32"], out=tmp_path / "out", task="feature-extraction")
    prompted = write_checkpoint("bert single", "prompt", preprocessors["minilm"], tmp_path / "prompted")
    (prompted / "prompt.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"prompt-tuned \(5 virtual tokens.*has no prompt\.safetensors"):
        export(prompted, ["fp32"], out=tmp_path / "out")
    image = write_checkpoint("vit image", "plain", preprocessors["image"], tmp_path / "image")
    config = json.loads((image / "preprocessor_config.json").read_text())
    (image / "preprocessor_config.json").write_text(json.dumps({**config, "image_processor_type": "Nothing"}))
    with pytest.raises(CheckpointError, match="its image processor does not load"):
        export(image, ["fp32"], out=tmp_path / "out")
    nothing = write_checkpoint("gpt2 single", "plain", preprocessors["bpe"], tmp_path / "nothing")
    for name in ("config.json", "tokenizer_config.json", "special_tokens_map.json"):
        values = json.loads((nothing / name).read_text())
        values = {k: v for k, v in values.items() if k not in ("pad_token_id", "pad_token")}
        (nothing / name).write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="has no padding token"):
        export(nothing, ["fp32"], out=tmp_path / "out")
    assert not list((tmp_path / "out").glob("*"))
