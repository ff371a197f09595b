"""Bundles load unchanged in Transformers.js and answer there as onnxruntime does; without Node it is said why not."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from edgewise.assets import asset_path
from edgewise.bundle import Bundle
from edgewise.data import Row
from edgewise.exporter import export
from edgewise.exporter.sessions import open_graphs
from edgewise.exporter.transformersjs import loads_in_transformersjs
from edgewise.exporter.transformersjs_node import find_transformersjs
from edgewise.types import Task

INSTALL = Path(__file__).parents[2] / "tools" / "transformersjs.sh"
TEXTS = (
    "A fine film with a warm heart.",
    "Dull, and far too long: nobody who values two hours of a life should see it.",
    "Good.",
    "It's naïve (don't ask), 日本 😀 U.S.A.",
)
BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


# ---- with Transformers.js itself


@pytest.fixture(scope="session")
def transformersjs() -> Iterator[Path]:
    """The folder of the installed package."""
    if shutil.which("node") is None:
        pytest.skip("needs Node")
    done = subprocess.run([str(INSTALL)], capture_output=True, text=True, timeout=570, check=False)
    assert done.returncode == 0, done.stderr
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEWISE_TRANSFORMERSJS", done.stdout.strip())
        yield Path(done.stdout.strip())


@pytest.fixture(scope="module")
def tokenizers(minilm: Path, review_rows: tuple[Row, ...]) -> dict[str, Any]:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    texts, special = [r.text for r in review_rows], ["<pad>", "</s>", "<unk>"]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=400, special_tokens=special[:2], initial_alphabet=alphabet)
    )
    unigram = Tokenizer(models.Unigram())
    unigram.pre_tokenizer, unigram.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    unigram.train_from_iterator(
        texts, trainers.UnigramTrainer(vocab_size=400, special_tokens=special, unk_token="<unk>")
    )
    unigram.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    names = {"pad_token": "<pad>", "eos_token": "</s>"}
    return {
        "bert": hf.AutoTokenizer.from_pretrained(minilm),
        "gpt": hf.GPT2TokenizerFast(tokenizer_object=bpe, **names, bos_token="</s>", unk_token="</s>"),
        "t5": hf.PreTrainedTokenizerFast(tokenizer_object=unigram, **names, unk_token="<unk>"),
    }


def small(name: str, vocabulary: int) -> Any:
    """A model with weights large enough that its answers differ."""
    torch.manual_seed(4)
    long, gpt2 = {"max_position_embeddings": 64}, {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}
    t5 = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0}
    ends = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1}
    makers = {
        "bert tokens": lambda: hf.BertForTokenClassification(hf.BertConfig(vocabulary, **BERT, num_labels=5)),
        "bert words": lambda: hf.BertForMaskedLM(hf.BertConfig(vocabulary, **BERT)),
        "bert pair": lambda: hf.BertForSequenceClassification(hf.BertConfig(vocabulary, **BERT, num_labels=3)),
        "gpt classes": lambda: hf.GPT2ForSequenceClassification(hf.GPT2Config(vocabulary, **gpt2, **ends)),
        "gpt text": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(vocabulary, **gpt2, **ends)),
        "gpt llama": lambda: hf.LlamaForCausalLM(
            hf.LlamaConfig(vocabulary, **BERT, **long, **ends, num_key_value_heads=1)
        ),
        "t5 text": lambda: hf.T5ForConditionalGeneration(hf.T5Config(vocabulary, **t5)),
    }
    model = makers[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1 and name != "t5 text":
                parameter.mul_(4)
    return model


@pytest.fixture
def made(tokenizers: dict[str, Any], review_rows: tuple[Row, ...], tmp_path: Path) -> Any:
    """Name of a small model -> its bundles, fp32 and int8-dynamic."""

    def make(name: str) -> dict[str, Bundle]:
        tokenizer = tokenizers[name.partition(" ")[0]]
        folder = tmp_path / "checkpoint"
        small(name, len(tokenizer)).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        rows = [
            Row(r.text, tokens=tuple(r.text.split())) if "tokens" in name
            else Row(r.text, r.text[:30]) if "pair" in name
            else Row(r.text, target=r.text[::-1][:30]) if "t5" in name
            else r
            for r in review_rows[:20]
        ]  # fmt: skip
        results = export(folder, ["fp32", "int8-dynamic"], out=tmp_path / "out", calibration=rows)
        assert [r.reason for r in results] == ["", ""]
        return {r.recipe.name: r.bundle for r in results if r.bundle}

    return make


def check(found: dict[str, Any], most: float = 1e-5) -> None:
    print(found)
    assert found["tested"] is True
    assert found["ok"] is True, found
    assert found["largest_absolute_difference"] <= most
    assert found.get("largest_absolute_difference_batched", 0.0) <= most
    assert found["versions"]["transformersjs"] == "4.3.1"


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["fp32", "int8-dynamic"])
def test_text_classification(transformersjs, bundles, recipe: str) -> None:
    found = loads_in_transformersjs(bundles[recipe], "text-classification", TEXTS)
    check(found)
    assert (found["batch_dependence"] > 1e-3) is (recipe == "int8-dynamic")  # one scale for a whole batch
    check(alone := loads_in_transformersjs(bundles[recipe], "text-classification", TEXTS[:1]))
    assert "batch_dependence" not in alone


@pytest.mark.slow
def test_answers_of_other_graphs_are_seen(transformersjs, bundles) -> None:
    others = open_graphs(bundles["int8-dynamic"], "text-classification")
    found = loads_in_transformersjs(bundles["fp32"], "text-classification", TEXTS, graphs=others)
    assert (found["tested"], found["ok"]) == (True, False)
    assert found["largest_absolute_difference"] > 1e-3
    assert found["why"] == "its answers are not onnxruntime's"


@pytest.mark.slow
def test_pairs_labels_of_tokens_and_masked_words(transformersjs, made, tmp_path: Path) -> None:
    pairs = [(text, "Another one, as its pair.") for text in TEXTS]
    for bundle in made("bert pair").values():
        check(loads_in_transformersjs(bundle.path, "text-classification", pairs))
    shutil.rmtree(tmp_path / "out")
    for bundle in made("bert tokens").values():
        check(loads_in_transformersjs(bundle.path, "token-classification", TEXTS))
    shutil.rmtree(tmp_path / "out")
    masked = [f"{text} [MASK]" for text in TEXTS[:2]]
    for bundle in made("bert words").values():
        check(loads_in_transformersjs(bundle.path, "fill-mask", masked))


@pytest.mark.slow
@pytest.mark.parametrize(("pooling", "normalize"), [("mean", True), ("cls", False), ("last", False)])
def test_features_and_their_pooling(transformersjs, features: Path, pooling: Any, normalize: bool) -> None:
    texts = [*TEXTS, "much too long " * 400]
    found = loads_in_transformersjs(features, "feature-extraction", texts, pooling=pooling, normalize=normalize)
    check(found)


@pytest.fixture(scope="module")
def features(minilm: Path, tmp_path_factory: Any) -> Path:
    """The pretrained MiniLM as a bundle that gives hidden states."""
    out = tmp_path_factory.mktemp("features")
    (result,) = export(minilm, ["fp32"], out=out, task="feature-extraction")
    assert result.bundle is not None, result.reason
    return result.bundle.path


@pytest.mark.slow
def test_a_folder_of_any_name_and_weights_in_their_own_file(transformersjs, features: Path, tmp_path: Path) -> None:
    """Names that the Hub would not allow, such as recipes with options, and model.onnx_data."""
    import onnx

    folder = Path(shutil.copytree(features, tmp_path / "fp32+length=64 (a)--b..c.partial"))
    graph = folder / "onnx" / "model.onnx"
    model = onnx.load(graph)
    graph.unlink()
    onnx.save(model, graph, save_as_external_data=True, location="model.onnx_data")
    assert graph.stat().st_size < 2e6 < graph.with_name("model.onnx_data").stat().st_size
    check(loads_in_transformersjs(folder, "feature-extraction", TEXTS))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "task"),
    [("gpt text", "text-generation"), ("gpt llama", "text-generation"), ("t5 text", "text2text-generation")],
)
def test_greedy_generation(transformersjs, made, name: str, task: Task) -> None:
    for bundle in made(name).values():
        found = loads_in_transformersjs(bundle.path, task, TEXTS)
        check(found)
        assert found["equal"] == found["sequences"] == 2 * len(TEXTS)  # alone and in the batch


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_smollm2_writes_the_same_words(transformersjs, tmp_path: Path) -> None:
    (result,) = export(asset_path("smollm2"), ["fp32"], out=tmp_path)
    assert result.bundle is not None, result.reason
    texts = ["The capital of France is", "Once upon a time there was a small boy who", "In the beginning"]
    found = loads_in_transformersjs(result.bundle.path, "text-generation", texts, time_limit_s=500)
    check(found, 1e-3)
    assert found["equal"] == found["sequences"] == 6


@pytest.mark.slow
def test_padding_that_a_graph_reads_wrongly_is_seen(transformersjs, tokenizers: dict[str, Any], tmp_path: Path) -> None:
    """GroupQueryAttention is wrong in a batch padded on the left, in Transformers.js as in onnxruntime here."""
    folder = tmp_path / "checkpoint"
    small("gpt llama", len(tokenizers["gpt"])).save_pretrained(folder)
    tokenizers["gpt"].save_pretrained(folder)
    (result,) = export(folder, ["fp32-in-place"], out=tmp_path / "out")
    assert result.bundle is not None, result.reason
    found = loads_in_transformersjs(result.bundle.path, "text-generation", TEXTS)
    assert (found["tested"], found["ok"]) == (True, False)
    assert "moves by" in found["why"]
    assert found["batch_dependence"] > 0.1
    check(loads_in_transformersjs(result.bundle.path, "text-generation", TEXTS[:1]))


@pytest.mark.slow
def test_what_it_does_not_load_is_the_finding(transformersjs, made, bundle_copy: Path) -> None:
    """It has no classifiers of GPT's kind; and a broken graph is a reason, not a crash of ours."""
    found = loads_in_transformersjs(made("gpt classes")["fp32"].path, "text-classification", TEXTS)
    assert (found["ok"], found["why"]) == (False, "Unsupported model type: gpt2")
    assert found["versions"]["transformersjs"] == "4.3.1"
    graphs = open_graphs(bundle_copy, "text-classification")
    graph = bundle_copy / "onnx" / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:1000])
    found = loads_in_transformersjs(bundle_copy, "text-classification", TEXTS, graphs=graphs)
    assert (found["tested"], found["ok"]) == (True, False)
    assert "model.onnx" in found["why"]
    graph.unlink()
    found = loads_in_transformersjs(bundle_copy, "text-classification", TEXTS, graphs=graphs)
    assert "model.onnx" in found["why"]
    assert found["ok"] is False


# ---- without it: Node played by a script


def program(folder: Path, name: str, code: str) -> Path:
    """An executable Python script on its own in `folder`."""
    folder.mkdir(exist_ok=True)
    file = folder / name
    file.write_text(f"#!{sys.executable}\nimport json, os, sys, time\n{code}")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    return file


@pytest.fixture
def played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Code for Node to run, with `request` and `answer(...)`; the package looks installed."""
    home = tmp_path / "home"
    package = home / "node_modules" / "@huggingface" / "transformers" / "package.json"
    package.parent.mkdir(parents=True)
    package.write_text("{}")
    monkeypatch.setenv("EDGEWISE_TRANSFORMERSJS", str(home))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")

    def play(code: str) -> None:
        start = "request = json.load(open(sys.argv[2]))\ndef answer(**a): json.dump(a, open(sys.argv[3], 'w'))\n"
        program(tmp_path / "bin", "node", start + code)

    return play


def ask(bundle: Path, texts: tuple[str, ...] = TEXTS[:2], **options: Any) -> dict[str, Any]:
    return loads_in_transformersjs(bundle, "text-classification", texts, **options)


def test_without_node_or_the_package_it_is_not_tested(
    fp32_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert ask(fp32_bundle) == {"tested": False, "why": "needs Node"}
    program(tmp_path, "node", "")
    monkeypatch.setenv("EDGEWISE_TRANSFORMERSJS", str(tmp_path / "nowhere"))
    found = ask(fp32_bundle)
    assert found["tested"] is False
    assert "run tools/transformersjs.sh" in found["why"]
    found = loads_in_transformersjs(fp32_bundle, "image-classification", TEXTS)
    assert found == {"tested": False, "why": "not tried for image-classification"}


def test_the_package_is_looked_for_where_the_script_puts_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGEWISE_TRANSFORMERSJS", raising=False)
    monkeypatch.setenv("EDGEWISE_CACHE", str(tmp_path))
    assert find_transformersjs() is None
    package = tmp_path / "transformersjs" / "node_modules" / "@huggingface" / "transformers" / "package.json"
    package.parent.mkdir(parents=True)
    package.write_text("{}")
    assert find_transformersjs() == tmp_path / "transformersjs"


def test_what_node_says_becomes_the_reason(fp32_bundle: Path, played) -> None:
    played("print('first', file=sys.stderr)\nsys.exit('out of\\n memory')")
    found = ask(fp32_bundle)
    assert (found["tested"], found["ok"]) == (True, False)
    assert found["why"] == "Node ended with 1: first out of memory"
    played("answer(error='no such operator', transformersjs='9')\nprint('in node 3', file=sys.stderr)")
    found = ask(fp32_bundle)
    assert (found["ok"], found["why"]) == (False, "no such operator in node 3")
    assert found["versions"]["transformersjs"] == "9"
    played("answer(broken='no binding for this platform')")
    assert ask(fp32_bundle) == {
        "tested": False,
        "why": "@huggingface/transformers does not start: no binding for this platform",
    }


def test_an_answer_that_does_not_come_is_not_waited_for(fp32_bundle: Path, played) -> None:
    played("time.sleep(60)")
    assert ask(fp32_bundle, time_limit_s=0.5) == {
        "tested": False,
        "why": "Transformers.js gave no answer in 0.5 s",
    }


def test_other_tokens_shapes_and_numbers_are_no_equal_answer(fp32_bundle: Path, played) -> None:
    tokenizer = hf.AutoTokenizer.from_pretrained(fp32_bundle)
    together = tokenizer(list(TEXTS[:2]), padding=True)["input_ids"]
    ids = json.dumps([*([tokenizer(t)["input_ids"]] for t in TEXTS[:2]), together])
    start = f"ids = {ids}\ndef out(*shape, v=0.0): return {{'shape': shape, 'values': [v] * (shape[0] * shape[1])}}\n"
    groups = "answer(groups=[{'input_ids': i, 'output': %s} for i in ids])"
    played(start + groups % "out(len(i), 2)")
    found = ask(fp32_bundle)
    assert (found["ok"], found["why"]) == (False, "its answers are not onnxruntime's")
    assert found["largest_absolute_difference"] > 0.1
    played(start + groups % "out(len(i), 3)")
    assert "where onnxruntime answers [1, 2]" in ask(fp32_bundle)["why"]
    played(start + groups % "out(len(i), 2, v=None)")
    assert "NaN or infinity" in ask(fp32_bundle)["why"]
    played(start + "answer(groups=[{'input_ids': [[9]], 'output': out(1, 2)} for i in ids])")
    assert ask(fp32_bundle)["why"] == f"it tokenizes {TEXTS[0]!r} differently"


def test_texts_are_made_to_fit_and_asked_alone_and_together(fp32_bundle: Path, played, tmp_path: Path) -> None:
    played(f"json.dump(request, open({str(tmp_path / 'asked')!r}, 'w'))\nanswer(broken='')")
    ask(fp32_bundle, ("good", "too long " * 600))
    asked = json.loads((tmp_path / "asked").read_text())
    assert [len(g["texts"]) for g in asked["groups"]] == [1, 1, 2]
    # 1,200 tokens and the two at the ends; 600 and two; 300 and two
    assert asked["groups"][2]["texts"] == ["good", ("too long " * 600)[: 9 * 600 // 4]]
    assert asked["steps"] == 0
    assert asked["bundle"] == str(fp32_bundle.resolve())


# ---- the installing script, with npm played too


def install(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    given = {"PATH": os.environ["PATH"], "EDGEWISE_CACHE": str(folder / "cache"), **environment}
    command = [shutil.which("bash") or "bash", str(INSTALL)]
    return subprocess.run(command, env=given, capture_output=True, text=True, timeout=60, check=False)


NPM = """
place = sys.argv[sys.argv.index("--prefix") + 1]
assert os.environ["ONNXRUNTIME_NODE_INSTALL_CUDA"] == "skip"
name, version = sys.argv[-1].rsplit("@", 1)
folder = os.path.join(place, "node_modules", name)
os.makedirs(folder)
json.dump({"name": name, "version": version}, open(os.path.join(folder, "package.json"), "w"), indent=2)
"""
NODE = "os.rename(sys.argv[-2], sys.argv[-1])"


def test_the_script_installs_once_and_leaves_nothing_half(tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    program(tools, "node", NODE)
    program(tools, "npm", NPM)
    path = f"{tools}{os.pathsep}{os.environ['PATH']}"
    cache = tmp_path / "cache"
    done = install(tmp_path, PATH=path)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{cache / 'transformersjs'}\n", "")
    assert [p.name for p in cache.iterdir()] == ["transformersjs"]
    program(tools, "npm", "sys.exit('npm is asked again')")
    again = install(tmp_path, PATH=path)
    assert (again.returncode, again.stdout) == (0, done.stdout)
    package = cache / "transformersjs" / "node_modules" / "@huggingface" / "transformers" / "package.json"
    package.write_text(package.read_text().replace("4.", "3."))
    old = install(tmp_path, PATH=path)
    assert (old.returncode, old.stdout) == (1, "")
    assert [p.name for p in cache.iterdir()] == ["transformersjs"]  # the old one, whole
    program(tools, "npm", NPM)
    new = install(tmp_path, PATH=path)
    assert (new.returncode, new.stdout) == (0, done.stdout)
    assert '"version": "4.' in package.read_text()


def test_the_script_says_in_one_line_what_is_missing(tmp_path: Path) -> None:
    done = install(tmp_path, PATH=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr == ("error: no node on PATH: install Node.js 20 or newer to load bundles in Transformers.js\n")
    tools = tmp_path / "bin"
    program(tools, "node", NODE)
    assert "no npm on PATH" in install(tmp_path, PATH=str(tools)).stderr
    program(tools, "npm", "sys.exit('npm error code E404\\nnpm error 404 Not Found\\nA complete log of this run ...')")
    done = install(tmp_path, PATH=f"{tools}{os.pathsep}{os.environ['PATH']}")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.strip().endswith("@huggingface/transformers@4.3.1: code E404 404 Not Found")
    assert list((tmp_path / "cache").iterdir()) == []
