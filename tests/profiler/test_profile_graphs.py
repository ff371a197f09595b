"""Any ONNX file can be timed: its inputs are made up from what the graph says, and that is said."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgewise.arrival import Arrival
from edgewise.cli import main
from edgewise.data import Row
from edgewise.errors import BundleError, PlanError
from edgewise.profiler import Store, Subject, measure_latency
from edgewise.profiler.external_data import external_files
from edgewise.profiler.graphs import parse_shapes, read_graph
from edgewise.profiler.nodes import time_by_node
from edgewise.profiler.rounds import MODES
from edgewise.types import RunSettings, Target


def _product(path: Path, rows: int | str = "batch_size", *, external: bool = False) -> Path:
    """x [rows, 64] times a matrix, of 64 x 64."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, 64])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [rows, 64])
    weights = numpy_helper.from_array(np.ones((64, 64), np.float32), "w")
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path, save_as_external_data=external, location=f"{path.name}_data", size_threshold=0)
    return path


def test_the_inputs_are_those_of_the_graph(fp32_bundle: Path) -> None:
    file = fp32_bundle / "onnx" / "model.onnx"
    graph = read_graph(file, {})
    assert {i.name: i.shape for i in graph.inputs} == dict.fromkeys(
        ("input_ids", "attention_mask", "token_type_ids"), (1, 128)
    )
    assert all(i.dtype == "int64" for i in graph.inputs)
    assert graph.inputs[0].assumed == ("batch_size = 1", "sequence_length = 128")
    assert graph.size == file.stat().st_size
    said = read_graph(file, {"input_ids": (2, 64)})
    assert {i.shape for i in said.inputs} == {(2, 64)}  # the same dimension is the same in every input
    assert not any(i.assumed for i in said.inputs)
    assert said.form == "2x64"
    with pytest.raises(PlanError, match="sequence_length is 32 here and 64 before"):
        read_graph(file, {"input_ids": (1, 64), "attention_mask": (1, 32)})


def test_a_sum_of_dimensions_is_that_of_its_parts(tmp_path: Path) -> None:
    names = {"ids": ["batch_size", "sequence_length"], "past": ["batch_size", "past_sequence_length"]}
    names["mask"] = ["batch_size", "past_sequence_length + sequence_length"]
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in names.items()]
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
    graph = helper.make_graph(
        [helper.make_node("Concat", ["ids", "past", "mask"], ["out"], axis=1)], "g", inputs, [out]
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    found = read_graph(tmp_path / "m.onnx", {"ids": (1, 5), "past": (1, 7)})
    assert [i.shape for i in found.inputs] == [(1, 5), (1, 7), (1, 12)]
    assert read_graph(tmp_path / "m.onnx", {}).form == "1x128,1x0"


def test_external_data_is_part_of_it(tmp_path: Path) -> None:
    graph = read_graph(_product(tmp_path / "m.onnx", external=True), {})
    assert graph.size > 64 * 64 * 4
    data = tmp_path / "m.onnx_data"
    data.write_bytes(data.read_bytes()[:-4] + b"abcd")
    assert read_graph(tmp_path / "m.onnx", {}).digest != graph.digest
    # Under any name, and as a graph in a node names it.
    other = onnx.load(_product(tmp_path / "n.onnx"))
    for name in ("some weights", "more"):
        tensor = other.graph.initializer.add()
        tensor.CopyFrom(numpy_helper.from_array(np.ones((8, 8), np.float32), name))
        onnx.external_data_helper.set_external_data(tensor, name)
    inner = helper.make_graph([], "inner", [], [], [other.graph.initializer.pop()])
    other.graph.node.append(helper.make_node("If", ["x"], [], then_branch=inner))
    onnx.save(other, tmp_path / "n.onnx")
    assert external_files(tmp_path / "n.onnx") == [tmp_path / "more", tmp_path / "some weights"]
    assert external_files(_product(tmp_path / "plain.onnx")) == []
    with pytest.raises(ValueError, match="longer than"):
        (tmp_path / "cut.onnx").write_bytes((tmp_path / "plain.onnx").read_bytes()[:-50])
        external_files(tmp_path / "cut.onnx")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["x"], "expected an input and its dimensions"),
        (["x=1xa"], "expected an input and its dimensions"),
        (["x=1x2", "x=1x3"], "twice"),
        (["x=99999999x99999999"], "fit into no device's memory"),
    ],
)
def test_a_shape_that_is_none_is_named(given: list[str], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        parse_shapes(given)


def test_a_shape_that_does_not_fit_is_named(tmp_path: Path) -> None:
    path = _product(tmp_path / "m.onnx")
    with pytest.raises(PlanError, match="no such input"):
        read_graph(path, {"y": (1, 64)})
    for shape in ((1, 32), (1, 64, 1), (64,)):
        with pytest.raises(PlanError, match="<batch_size>x64"):
            read_graph(path, {"x": shape})
    assert read_graph(path, {"x": (7, 64)}).inputs[0].shape == (7, 64)
    (tmp_path / "none.onnx").write_bytes(b"no graph")
    with pytest.raises(BundleError, match="does not load"):
        read_graph(tmp_path / "none.onnx", {})


def test_an_onnx_file_is_measured(fp32_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = Path(shutil.copy(fp32_bundle / "onnx" / "model.onnx", tmp_path / "anyones.onnx"))
    store = tmp_path / "m.sqlite"
    command = ["profile", str(file), "--mode", "quick", "--seconds", "0.05", "--store", str(store)]
    assert main([*command, "--shape", "input_ids=1x16", "--threads", "1,2"]) == 0
    out = capsys.readouterr().out
    assert "anyones/1x16 on here: cpu, 2 threads" in out
    assert "MatMul" in out
    assert "assumed" not in out
    with Store(store) as opened:
        found = [m for m in opened.measurements() if m.recipe == "1x16"]
    assert [m.status for m in found] == ["ok", "ok"]
    assert found[0].conditions["fed"][0]["shape"] == [1, 16]
    assert set(found[0].conditions["placement"]) == {"CPUExecutionProvider"}
    values = {x.name: x.value for x in found[0].metrics}
    assert values["p50"]
    assert values["size"] == file.stat().st_size


def test_what_does_not_run_is_a_measurement_with_a_reason(tmp_path: Path) -> None:
    """A table of one row: no made-up ids but 0 fit in it."""
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", 64])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, ["batch", 64, 4])
    table = numpy_helper.from_array(np.ones((1, 4), np.float32), "table")
    graph = helper.make_graph([helper.make_node("Gather", ["table", "ids"], ["out"])], "g", [ids], [out], [table])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    from edgewise.profile_inputs import _MADE_UP

    good, bad = (read_graph(p, {}) for p in (_product(tmp_path / "good.onnx"), tmp_path / "m.onnx"))
    with Store(tmp_path / "m.sqlite") as store:
        found = measure_latency(
            [Subject("bad", bad.form, bad), Subject("good", good.form, good)],
            [Target("here", RunSettings())],
            [_MADE_UP],
            store=store,
            spec=MODES["quick"],
        )
    assert [m.status for m in found] == ["failed", "ok"]
    assert "does not run on the numbers made up for it (ids are 0 to 99), nor with ids of 0 to 1: " in found[0].reason
    assert "Traceback" not in found[0].reason


def test_a_file_that_changed_meanwhile_is_no_measurement(tmp_path: Path) -> None:
    from edgewise.profile_inputs import _MADE_UP

    graph = read_graph(_product(tmp_path / "m.onnx"), {})
    _product(tmp_path / "m.onnx", rows=1)
    with Store(tmp_path / "m.sqlite") as store:
        (found,) = measure_latency([Subject("m", graph.form, graph)], [Target()], [_MADE_UP], store=store)
        assert found.status == "failed"
        assert "changed while it was measured" in found.reason
        (tmp_path / "m.onnx").unlink()
        (found,) = measure_latency([Subject("m", graph.form, graph)], [Target()], [_MADE_UP], store=store)
    assert "is gone" in found.reason
    assert "Traceback" not in found.reason


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--data", "rows.csv"], "--data is for bundles"),
        (["--max-length", "32"], "--max-length is for bundles"),
        (["--scenario", "generation"], "bundles that write"),
    ],
)
def test_options_of_bundles_do_not_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    path = _product(tmp_path / "m.onnx")
    assert main(["profile", str(path), "--store", str(tmp_path / "s.sqlite"), *options]) == 2
    assert words in capsys.readouterr().err


def test_bundles_and_files_are_not_mixed(int8_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = _product(tmp_path / "m.onnx")
    assert main(["profile", str(path), str(int8_bundle), "--store", str(tmp_path / "s.sqlite")]) == 2
    assert "one kind at a time" in capsys.readouterr().err
    assert main(["profile", str(int8_bundle), "--shape", "x=1", "--store", str(tmp_path / "s.sqlite")]) == 2
    assert "shapes are for ONNX files" in capsys.readouterr().err
    assert main(["profile", str(int8_bundle), "--store", str(tmp_path / "s.sqlite")]) == 2
    assert "--data is missing" in capsys.readouterr().err


def test_files_of_one_name_are_told_apart_and_the_json_is_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = []
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        files.append(str(_product(tmp_path / folder / "model.onnx")))
    command = ["profile", "--mode", "quick", "--seconds", "0.02", "--store", str(tmp_path / "s.sqlite"), "--json"]
    assert main([*command, *files]) == 0
    out = capsys.readouterr()
    assert [m["candidate"] for m in json.loads(out.out)] == ["one/model", "two/model"]
    assert "made-up numbers" in out.err
    assert main([*command, files[0], files[0]]) == 2
    assert "given twice" in capsys.readouterr().err
    assert main([*command, *files, "--shape", "z=1"]) == 2
    assert "no graph has such an input" in capsys.readouterr().err
    assert main([*command, *files, "--rows", "3"]) == 2
    assert "--rows is for bundles" in capsys.readouterr().err


def test_time_by_node_type_is_that_of_the_kernels(tmp_path: Path) -> None:
    def node(name: str, op: str, ts: int, dur: int) -> dict[str, object]:
        return {"cat": "Node", "name": name, "ts": ts, "dur": dur, "args": {"op_name": op}}

    events = [
        {"cat": "Session", "name": "model_run", "ts": 0, "dur": 90, "args": {}},
        node("a_kernel_time", "MatMul", 1, 80),  # of the first run, which allocates
        {"cat": "Session", "name": "model_run", "ts": 100, "dur": 30, "args": {}},
        node("a_kernel_time", "MatMul", 101, 20),
        node("a_fence_before", "MatMul", 101, 5),
        node("b_kernel_time", "Add", 122, 4),
        node("c_kernel_time", "If", 127, 3),  # its nodes are events of their own
    ]
    (tmp_path / "p.json").write_text(json.dumps(events), encoding="utf-8")
    found = time_by_node([tmp_path / "p.json"])
    assert found["runs"] == 1
    assert found["graph_s"] == pytest.approx(30e-6)
    assert found["by_type"] == {"MatMul": pytest.approx(20e-6), "Add": pytest.approx(4e-6)}


def test_a_query_of_several_inputs_runs_the_graph_for_each(tmp_path: Path) -> None:
    """Its shapes are fixed: eight inputs are no batch of eight, and take about eight times as long as one."""
    graph = read_graph(_product(tmp_path / "m.onnx"), {"x": (256, 64)})
    rule = replace(MODES["quick"], seconds=0.05)
    arrivals = (Arrival(), Arrival("multi-stream", streams=8))
    with Store(tmp_path / "m.sqlite") as store:
        one, eight = measure_latency(
            [Subject("product", "256x64", graph)], [Target("here", RunSettings())], [Row("made up")], store=store,
            spec=rule, arrivals=arrivals,
        )  # fmt: skip
    rates = [one.metric("throughput"), eight.metric("multistream_throughput")]
    assert all(x is not None and x.value for x in rates)
    assert rates[1].value < 3 * rates[0].value  # type: ignore[union-attr, operator]


def test_a_small_vocabulary_gets_small_ids_and_it_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A table of 12 rows, as of a model of single letters, and numbers of a type that few graphs take."""
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", 64])
    odd = helper.make_tensor_value_info("odd", TensorProto.UINT16, ["batch"])
    outs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("out", "same")]
    table = numpy_helper.from_array(np.ones((12, 4), np.float32), "table")
    nodes = [helper.make_node("Gather", ["table", "ids"], ["out"]), helper.make_node("Cast", ["odd"], ["same"], to=1)]
    graph = helper.make_graph(nodes, "g", [ids, odd], outs, [table])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    quick = ["--mode", "quick", "--seconds", "0.02", "--store", str(tmp_path / "m.sqlite")]
    assert main(["profile", str(tmp_path / "m.onnx"), *quick]) == 0
    assert "0 to 9, since the graph refuses larger ones" in capsys.readouterr().out
