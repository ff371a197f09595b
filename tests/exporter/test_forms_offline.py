"""Graphs optimized at export time, and weights beside the graph: same answers, and nothing of this CPU in them."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
import transformers as hf

from edgewise.errors import EdgewiseError, PlanError
from edgewise.exporter import external
from edgewise.exporter.external import externalize, needs_external, weight_bytes, weights
from edgewise.exporter.graphs import all_nodes
from edgewise.exporter.half import to_half
from edgewise.exporter.offline import check_portable, optimize_offline
from edgewise.exporter.tracing import ENCODER, MERGED, export_graphs

LEVELS = {
    "disabled": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
RECIPES = ("fp32", "int8-dynamic", "int8-static")


@pytest.fixture(scope="module")
def feeds(fp32_bundle: Path, review_rows: Any) -> list[dict[str, np.ndarray]]:
    tokenizer = hf.AutoTokenizer.from_pretrained(fp32_bundle)
    names = [i.name for i in onnx.load(fp32_bundle / "onnx" / "model.onnx").graph.input]
    rows = [tokenizer(r.text, return_tensors="np") for r in review_rows[:12]]
    return [{n: row[n].astype(np.int64) for n in names} for row in rows]


@pytest.fixture(scope="module")
def t5(tmp_path_factory: Any) -> Path:
    torch.manual_seed(2)
    sizes = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0}
    folder: Path = tmp_path_factory.mktemp("t5")
    export_graphs(hf.T5ForConditionalGeneration(hf.T5Config(60, **sizes)).eval(), "text2text-generation", folder, None)
    return folder


def open_graph(graph: Path, level: str) -> Any:
    options = ort.SessionOptions()
    options.graph_optimization_level = LEVELS[level]
    options.log_severity_level = 3
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def answers(graph: Path, feeds: list[dict[str, np.ndarray]], level: str) -> np.ndarray:
    session = open_graph(graph, level)
    return np.concatenate([session.run(["logits"], f)[0] for f in feeds])


def kinds(graph: Path) -> Counter[str]:
    return Counter(n.op_type for n in all_nodes(onnx.load(graph, load_external_data=False).graph))


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_optimized_graph_answers_the_same(
    bundles: dict[str, Path], feeds: list[dict[str, np.ndarray]], tmp_path: Path, recipe: str
) -> None:
    graph = bundles[recipe] / "onnx" / "model.onnx"
    made = optimize_offline(graph, tmp_path / "model.onnx")
    assert len(onnx.load(made).graph.node) < 0.7 * len(onnx.load(graph).graph.node)
    expected = answers(graph, feeds, "extended")
    # optimized once and run as it stands, it is what the device would have made of it, to the bit
    np.testing.assert_array_equal(answers(made, feeds, "disabled"), expected)
    for level in ("basic", "all"):
        np.testing.assert_allclose(answers(made, feeds, level), expected, atol=1e-5)
    plain = answers(graph, feeds, "all")
    np.testing.assert_allclose(answers(made, feeds, "disabled"), plain, atol=1e-5 if recipe == "fp32" else 5e-2)
    assert (answers(made, feeds, "disabled").argmax(-1) == plain.argmax(-1)).all()
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize("recipe", RECIPES)
def test_nothing_in_it_belongs_to_one_cpu(bundles: dict[str, Path], tmp_path: Path, recipe: str) -> None:
    made = optimize_offline(bundles[recipe] / "onnx" / "model.onnx", tmp_path / "model.onnx")
    domains = {n.domain for n in all_nodes(onnx.load(made).graph)}
    assert domains <= {"", "com.microsoft"}
    basic = optimize_offline(bundles[recipe] / "onnx" / "model.onnx", tmp_path / "basic.onnx", "basic")
    if recipe == "fp32":
        assert {n.domain for n in all_nodes(onnx.load(basic).graph)} == {""}
        assert kinds(made)["BiasGelu"] == 2


def test_layouts_of_this_cpu_are_found_and_refused(tmp_path: Path) -> None:
    session = ort.SessionOptions()
    session.optimized_model_filepath = str(tmp_path / "all.onnx")
    session.log_severity_level = 3
    graph = convolution(tmp_path / "conv.onnx")
    ort.InferenceSession(graph, session, providers=["CPUExecutionProvider"])
    if {n.domain for n in onnx.load(tmp_path / "all.onnx").graph.node} == {""}:
        pytest.skip("onnxruntime prefers no layout of its own on this CPU")
    with pytest.raises(EdgewiseError, match=r"all\.onnx is tied to the CPU it was made on by .*nchwc"):
        check_portable(tmp_path / "all.onnx")
    check_portable(optimize_offline(graph, tmp_path / "extended.onnx"))
    with pytest.raises(PlanError, match="level 'all': expected basic, extended; 'all' is tied to a CPU"):
        optimize_offline(graph, tmp_path / "no.onnx", "all")  # type: ignore[arg-type]


def convolution(path: Path) -> Path:
    weight = onnx.numpy_helper.from_array(np.ones((16, 16, 3, 3), np.float32), "w")
    x, y = (onnx.helper.make_tensor_value_info(n, 1, [1, 16, None, None]) for n in "xy")
    node = onnx.helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])
    model = onnx.helper.make_model(
        onnx.helper.make_graph([node], "g", [x], [y], [weight]), opset_imports=[onnx.helper.make_opsetid("", 17)]
    )
    model.ir_version = 8
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("signed", [True, False])
def test_signed_activations_stay_as_they_are(tmp_path: Path, signed: bool) -> None:
    """On x86-64 onnxruntime would turn them into unsigned ones, which is no gain on ARM."""
    kind = np.int8 if signed else np.uint8
    constants = {"s": np.array(0.1, np.float32), "z": np.array(0, kind), "w": np.full((4, 4), 3, np.int8)}
    constants["wz"] = np.array(0, np.int8)
    make = onnx.helper.make_node
    nodes = [
        make("QuantizeLinear", ["x", "s", "z"], ["q"]), make("DequantizeLinear", ["q", "s", "z"], ["d"]),
        make("DequantizeLinear", ["w", "s", "wz"], ["dw"]), make("MatMul", ["d", "dw"], ["m"]),
        make("QuantizeLinear", ["m", "s", "z"], ["mq"]), make("DequantizeLinear", ["mq", "s", "z"], ["y"]),
    ]  # fmt: skip
    x, y = (onnx.helper.make_tensor_value_info(n, 1, [2, 4]) for n in "xy")
    tensors = [onnx.numpy_helper.from_array(v, n) for n, v in constants.items()]
    model = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "g", [x], [y], tensors), opset_imports=[onnx.helper.make_opsetid("", 17)]
    )
    model.ir_version = 8
    onnx.save(model, tmp_path / "qdq.onnx")
    made = onnx.load(optimize_offline(tmp_path / "qdq.onnx", tmp_path / "model.onnx"))
    (zero,) = {n.input[2] for n in made.graph.node if n.op_type == "QuantizeLinear"}
    assert {t.name: t.data_type for t in made.graph.initializer}[zero] == (3 if signed else 2)


def test_a_merged_decoder_and_an_encoder_go_too(t5: Path, tmp_path: Path) -> None:
    ids, mask = np.array([[5, 7, 9]]), np.ones((1, 3), np.int64)
    states = open_graph(t5 / ENCODER, "all").run(None, {"input_ids": ids, "attention_mask": mask})[0]
    made = optimize_offline(t5 / ENCODER, tmp_path / ENCODER)
    found = open_graph(made, "disabled").run(None, {"input_ids": ids, "attention_mask": mask})[0]
    np.testing.assert_allclose(found, states, atol=1e-5 * np.abs(states).max())
    merged = optimize_offline(t5 / MERGED, tmp_path / MERGED)
    outside = externalize(merged, tmp_path / f"outside_{MERGED}")
    results = []
    for graph, level in ((t5 / MERGED, "all"), (merged, "disabled"), (outside, "disabled")):
        session = open_graph(graph, level)
        past = {i.name: np.ones((1, 2, 3, 16), np.float32) for i in session.get_inputs() if "past" in i.name}
        given = {"encoder_hidden_states": states, "encoder_attention_mask": mask, "input_ids": ids[:, :1]}
        results.append(
            [session.run(["logits"], {**given, **past, "use_cache_branch": np.array([b])})[0] for b in (False, True)]
        )
    for found in results[1:]:
        np.testing.assert_allclose(found, results[0], atol=1e-4 * np.abs(results[0]).max())


def test_fp16_is_refused(fp32_bundle: Path, feeds: list[dict[str, np.ndarray]], tmp_path: Path) -> None:
    to_half(fp32_bundle / "onnx" / "model.onnx", tmp_path / "half.onnx", feeds[:2])
    with pytest.raises(PlanError, match=r"half\.onnx is in fp16, which onnxruntime's CPU provider would turn"):
        optimize_offline(tmp_path / "half.onnx", tmp_path / "model.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["half.onnx"]


# ---- weights beside the graph


def places(graph: Path) -> dict[str, dict[str, str]]:
    """Where each weight that lies outside does."""
    found = {}
    for t in weights(onnx.load(graph, load_external_data=False).graph):
        if t.data_location == onnx.TensorProto.EXTERNAL:
            found[t.name] = {e.key: e.value for e in t.external_data}
    return found


@pytest.mark.parametrize("recipe", ["fp32", "int8-dynamic"])
def test_weights_move_beside_the_graph(
    bundles: dict[str, Path], feeds: list[dict[str, np.ndarray]], tmp_path: Path, recipe: str
) -> None:
    graph = bundles[recipe] / "onnx" / "model.onnx"
    made = externalize(graph, tmp_path / "model.onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx", "model.onnx_data"]
    onnx.checker.check_model(made, full_check=True)
    assert made.stat().st_size < 0.03 * graph.stat().st_size + 400_000
    total = made.stat().st_size + (tmp_path / "model.onnx_data").stat().st_size
    assert graph.stat().st_size <= total < 1.02 * graph.stat().st_size
    found = places(made)
    for tensor in weights(onnx.load(graph).graph):
        assert (tensor.name in found) == (weight_bytes(tensor) >= 1024), tensor.name
    for place in found.values():
        assert place["location"] == "model.onnx_data"
        assert int(place["offset"]) % (4096 if int(place["length"]) >= 65536 else 64) == 0
    np.testing.assert_array_equal(answers(made, feeds, "all"), answers(graph, feeds, "all"))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_onnxruntime_maps_the_file(fp32_bundle: Path, tmp_path: Path) -> None:
    made = externalize(fp32_bundle / "onnx" / "model.onnx", tmp_path / "model.onnx")
    session = open_graph(made, "disabled")
    assert str(tmp_path / "model.onnx_data") in Path("/proc/self/maps").read_text()
    del session


def test_in_place_again_and_back_inside(fp32_bundle: Path, feeds: list[dict[str, np.ndarray]], tmp_path: Path) -> None:
    graph = fp32_bundle / "onnx" / "model.onnx"
    expected = answers(graph, feeds, "all")
    made = externalize(optimize_offline(graph, tmp_path / "model.onnx"), tmp_path / "model.onnx")
    np.testing.assert_allclose(answers(made, feeds, "disabled"), expected, atol=1e-5)
    before = (tmp_path / "model.onnx_data").read_bytes()
    externalize(made, made)
    assert (tmp_path / "model.onnx_data").read_bytes() == before
    externalize(made, made, threshold=1 << 40)
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]
    np.testing.assert_allclose(answers(made, feeds, "disabled"), expected, atol=1e-5)


def test_graphs_over_the_limit_are_written_outside(
    fp32_bundle: Path, feeds: list[dict[str, np.ndarray]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not needs_external(2_000_000_000)
    assert needs_external(2**31)
    monkeypatch.setattr(external, "_LIMIT", 1 << 20)  # instead of a model of 2 GB
    graph = fp32_bundle / "onnx" / "model.onnx"
    for name, make in (
        ("off.onnx", lambda out: optimize_offline(graph, out)),
        ("half.onnx", lambda out: to_half(graph, out, feeds[:2])),
    ):
        make(tmp_path / name)
        assert (tmp_path / f"{name}_data").stat().st_size > 1 << 20
        assert {p["location"] for p in places(tmp_path / name).values()} == {f"{name}_data"}
        tolerance = 1e-5 if name == "off.onnx" else 2e-2
        np.testing.assert_allclose(
            answers(tmp_path / name, feeds, "basic"), answers(graph, feeds, "all"), atol=tolerance
        )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["half.onnx", "half.onnx_data", "off.onnx", "off.onnx_data"]
