"""Accuracy-guarded quantization on a real fine-tuned MiniLM, two weights of which int8 cannot hold."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from edgewise.data import Splits
from edgewise.errors import DataError, PlanError
from edgewise.exporter.guard import Guarded, confirm, guard, share_of_int8
from edgewise.exporter.quantize import quantize_graph, resolve_recipe
from edgewise.exporter.sensitivity import Part, simulate
from edgewise.exporter.stopping import Reference
from edgewise.types import Recipe

DYNAMIC = resolve_recipe(Recipe(precision="int8-dynamic"))
STATIC = resolve_recipe(Recipe(precision="int8-static", per_channel=False, calibration_rows=16))
LENGTH = 48
LOUD = 3e4


Made = dict[tuple[Path, Recipe, tuple[str, ...]], Path]
"""Quantized graphs by fp32 graph, recipe and kept nodes: each is made once for all tests."""


class Bench:
    """One fp32 graph with its rows: what `guard` asks for, and a count of what it asked."""

    known: ClassVar[dict[tuple[Path, int], tuple[float, float]]] = {}
    """(score, margin) by graph and row, for all tests."""

    def __init__(self, folder: Path, made: Made, splits: Splits, tokenizer: Any, rows: int = 200) -> None:
        self.graph, self.made, self.splits, self.tokenizer = folder / "model.onnx", made, splits, tokenizer
        self.feeds = [self.encode(r.text) for r in splits.train[:6]]
        self.val = [(self.encode(r.text), splits.labels.index(str(r.label))) for r in splits.val[:rows]]
        self.asked: list[tuple[Path, int]] = []
        self.kept: list[tuple[str, ...]] = []

    def encode(self, text: str) -> dict[str, np.ndarray]:
        return dict(self.tokenizer([text], truncation=True, max_length=LENGTH, return_tensors="np"))

    def quantizer(self, recipe: Recipe) -> Callable[[tuple[str, ...]], Path]:
        def make(keep: tuple[str, ...]) -> Path:
            self.kept.append(keep)
            key = (self.graph, recipe, keep)
            if key not in self.made:
                out = self.graph.parent / f"made-{len(self.made)}"
                out.mkdir()
                wanted = replace(recipe, keep=keep)
                rows, tokenizer = self.splits.train, self.tokenizer
                self.made[key] = quantize_graph(self.graph.parent, out / "q", wanted, rows, tokenizer, LENGTH)
            return self.made[key]

        return make

    @property
    def scored(self) -> list[Path]:
        """Graphs that rows were run on, in their order."""
        return list(dict.fromkeys(graph for graph, _ in self.asked))

    def one(self, graph: Path, number: int) -> tuple[float, float]:
        self.asked.append((graph, number))
        if (graph, number) not in self.known:
            self.known[graph, number] = self.measure(graph, [number])[0]
        return self.known[graph, number]

    def reference(self) -> Reference:
        seen = [self.one(self.graph, number) for number in range(len(self.val))]
        return Reference(np.array([s for s, _ in seen]), np.array([m for _, m in seen]))

    def score(self, graph: Path, numbers: Sequence[int]) -> Iterator[float]:
        return (self.one(graph, number)[0] for number in numbers)

    def measure(self, graph: Path, numbers: Sequence[int] | None = None) -> list[tuple[float, float]]:
        session = _session(graph)
        found = []
        for feeds, label in self.val if numbers is None else [self.val[i] for i in numbers]:
            logits = session.run(None, feeds)[0][0]
            found.append((float(logits.argmax() == label), float(np.ptp(logits))))
        return found

    def guard(self, recipe: Recipe = DYNAMIC, max_drop: float = 0.01, **options: Any) -> Guarded:
        return guard(
            self.graph, recipe, self.quantizer(recipe), self.reference(), self.score, self.feeds, max_drop=max_drop,
            **options,
        )  # fmt: skip


@cache
def _session(graph: Path) -> Any:
    return _open(graph)


def _open(graph: Path) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def tokenizer(tuned: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tuned)


@pytest.fixture(scope="module")
def models(tuned: Path, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """fp32 graphs: as tuned, and 'loud', which answers the same but has a channel that drowns the others in 8 bits."""
    import torch
    from transformers import AutoModelForSequenceClassification

    from edgewise.exporter.tracing import export_graphs

    found = {}
    model = AutoModelForSequenceClassification.from_pretrained(tuned).eval()
    for name in ("plain", "loud"):
        if name == "loud":
            with torch.no_grad():
                for layer in model.bert.encoder.layer:
                    # One channel of the attention's context is made large, and the next product makes it small again.
                    layer.attention.self.value.weight[7] *= LOUD
                    layer.attention.self.value.bias[7] *= LOUD
                    layer.attention.output.dense.weight[:, 7] /= LOUD
        found[name] = tmp_path_factory.mktemp(name)
        export_graphs(model, "text-classification", found[name], None)
        tokenizer.save_pretrained(found[name])
    return found


@pytest.fixture(scope="module")
def made() -> Made:
    return {}


@pytest.fixture
def loud(models: dict[str, Path], tokenizer: Any, review_splits: Splits, made: Made) -> Bench:
    return Bench(models["loud"], made, review_splits, tokenizer)


@pytest.fixture
def plain(models: dict[str, Path], tokenizer: Any, review_splits: Splits, made: Made) -> Bench:
    return Bench(models["plain"], made, review_splits, tokenizer)


def _check(found: Guarded, bench: Bench, max_drop: float) -> None:
    """What holds of every result: measured again, it is what it says."""
    ran = list(bench.asked)
    right, again = (np.array([s for s, _ in bench.measure(graph)]) for graph in (bench.graph, found.graph))
    assert found.drop == pytest.approx((right - again).mean(), abs=1e-9)
    assert found.fp32 == pytest.approx(right.mean())
    assert found.drop_relative == pytest.approx(found.drop / found.fp32)
    assert found.bound > found.drop
    assert found.met == (found.drop <= max_drop + 1e-9)
    assert found.evaluations == len(found.tried) + 1
    assert found.rows == len(bench.val)
    assert found.rows_run == len(bench.val) + sum(t.rows for t in found.tried)
    assert all(t.given >= found.given for t in found.tried if t.within)
    assert all(t.rows == len(bench.val) for t in found.tried if not t.stopped)
    assert len(set(ran)) == len(ran), "no row runs twice through one graph"
    assert len(ran) == found.rows_run


@pytest.mark.parametrize("recipe", [DYNAMIC, STATIC], ids=["dynamic", "static"])
def test_simulation_answers_as_the_quantized_graph(plain: Bench, recipe: Recipe) -> None:
    int8 = plain.quantizer(recipe)(())
    simulation = simulate(plain.graph, int8, plain.feeds)
    everything = range(len(simulation.parts))
    real = [_open(int8).run(None, feeds)[0] for feeds in plain.feeds]
    wrong = sum(np.square(a - b).sum() for a, b in zip(real, simulation.reference, strict=True))
    missed = sum(np.square(a - b).sum() for a, b in zip(real, simulation.answers(everything), strict=True))
    assert missed < 0.25 * wrong  # far nearer to int8 than int8 is to fp32
    fp32 = [_open(plain.graph).run(None, feeds)[0] for feeds in plain.feeds]
    assert all(np.allclose(a, b, atol=1e-4) for a, b in zip(fp32, simulation.reference, strict=True))
    assert simulation.error(()) == 0 < simulation.error(everything)


def test_kept_node_is_simulated_in_fp32(plain: Bench) -> None:
    whole = plain.quantizer(STATIC)(())
    simulation = simulate(plain.graph, whole, plain.feeds)
    kept = next(i for i, p in enumerate(simulation.parts) if p.nodes[0].endswith("layer.0/output/dense/MatMul"))
    mixed = plain.quantizer(STATIC)(simulation.parts[kept].nodes)
    others = set(range(len(simulation.parts))) - {kept}
    real = [_open(mixed).run(None, feeds)[0] for feeds in plain.feeds]
    near = sum(np.square(a - b).sum() for a, b in zip(real, simulation.answers(others), strict=True))
    far = sum(np.square(a - b).sum() for a, b in zip(real, simulation.reference, strict=True))
    assert near < 0.25 * far


@pytest.mark.parametrize("recipe", [DYNAMIC, STATIC], ids=["dynamic", "static"])
def test_every_node_that_is_kept_stays_in_fp32(plain: Bench, recipe: Recipe) -> None:
    """The head is a Gemm, which the dynamic quantizer turns into a MatMul and an Add under other names."""
    parts = simulate(plain.graph, plain.quantizer(recipe)(()), plain.feeds[:1]).parts
    head = next(p.nodes for p in parts if p.nodes[0].endswith("classifier/Gemm"))
    mixed = simulate(plain.graph, plain.quantizer(recipe)(head), plain.feeds[:1])
    assert {p.nodes for p in mixed.parts} == {p.nodes for p in parts} - {head}
    assert share_of_int8(plain.graph, plain.quantizer(recipe)(()), head) < share_of_int8(
        plain.graph, plain.quantizer(recipe)(()), ()
    )


def test_finds_the_weights_that_int8_cannot_hold(loud: Bench) -> None:
    found = loud.guard(max_drop=0.01)
    assert not found.tried[0].within, "int8 alone must fail, or there is nothing to find"
    _check(found, loud, 0.01)
    assert found.met
    assert all("attention/output/dense" in name for name in found.keep)
    assert found.evaluations <= 5
    assert found.share_int8 > 0.9
    assert found.share_int8 == pytest.approx(_stored_share(loud.graph, found.graph), abs=1e-6)
    assert "in int8" in found.words


def _stored_share(fp32: Path, int8: Path) -> float:
    """Read from the graph itself: numbers in int8 weights over numbers in fp32's."""
    import onnx

    def numbers(path: Path, kinds: tuple[int, ...]) -> int:
        return sum(int(np.prod(w.dims)) for w in onnx.load(path).graph.initializer if w.data_type in kinds and w.dims)

    small = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
    zeros = sum(
        int(np.prod(w.dims)) for w in onnx.load(int8).graph.initializer
        if w.name.endswith("_zero_point") and w.dims
    )  # fmt: skip
    return (numbers(int8, small) - zeros) / numbers(fp32, (onnx.TensorProto.FLOAT,))


@pytest.mark.slow
def test_same_result_twice(loud: Bench) -> None:
    first, second = loud.guard(max_drop=0.01), loud.guard(max_drop=0.01)
    assert [(t.keep, t.drop) for t in first.tried] == [(t.keep, t.drop) for t in second.tried]
    assert (first.keep, first.drop, first.bound) == (second.keep, second.drop, second.bound)


def test_nothing_kept_where_int8_is_good_enough(plain: Bench) -> None:
    found = plain.guard(max_drop=0.5)
    assert (found.met, found.keep, found.evaluations, found.given) == (True, (), 2, 0)
    assert len(plain.scored) == 2
    _check(found, plain, 0.5)


@pytest.mark.parametrize("cap", [2, 4])
def test_evaluations_are_capped(loud: Bench, cap: int) -> None:
    found = loud.guard(max_drop=0.0, max_evaluations=cap)
    assert found.evaluations == len(loud.scored) <= cap
    _check(found, loud, 0.0)


@pytest.mark.slow
def test_unmet_says_so(loud: Bench) -> None:
    """A score that only fp32 keeps: every int8 graph, however little of it is int8, loses a row."""

    def strict(graph: Path, number: int) -> tuple[float, float]:
        loud.asked.append((graph, number))
        return float(graph == loud.graph or number != 0), 1.0

    loud.one = strict  # type: ignore[method-assign]
    found = loud.guard(max_drop=0.0, max_evaluations=6)
    assert not found.met
    assert found.evaluations <= 6
    assert found.drop == pytest.approx(1 / 200)
    assert max(len(t.keep) for t in found.tried) == max(len(p) for p in loud.kept) == len(found.keep)
    assert "all but one weight" in found.words
    assert "Take fp32" in found.words


def _shared_and_tied(folder: Path) -> Path:
    """Two products that share a weight, as ALBERT's layers do, and embeddings that are the output layer too."""
    import onnx
    from onnx import TensorProto, helper
    from onnx.numpy_helper import from_array

    random = np.random.default_rng(0)
    weights = {"table": random.normal(size=(50, 16)), "inner": random.normal(size=(16, 16))}
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["read"], "embed/Gather"),
        helper.make_node("Tanh", ["read"], ["small"], "shrink"),
        helper.make_node("MatMul", ["small", "inner"], ["one"], "first/MatMul"),
        helper.make_node("Tanh", ["one"], ["bent"], "bend"),
        helper.make_node("MatMul", ["bent", "inner"], ["two"], "second/MatMul"),
        helper.make_node("Transpose", ["table"], ["turned"], "turn", perm=[1, 0]),
        helper.make_node("MatMul", ["two", "turned"], ["logits"], "head/MatMul"),
    ]
    graph = helper.make_graph(
        nodes, "tied",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "length"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "length", 50])],
        [from_array(w.astype(np.float32), name) for name, w in weights.items()],
    )  # fmt: skip
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "model.onnx"
    )
    return folder / "model.onnx"


def test_shared_weights_go_together_and_tied_ones_apart(tuned: Path, tmp_path: Path) -> None:
    shutil.copyfile(tuned / "config.json", tmp_path / "config.json")
    (tmp_path / "work").mkdir()
    graph = _shared_and_tied(tmp_path)
    int8 = quantize_graph(tmp_path, tmp_path / "work" / "q", DYNAMIC, (), None)
    feeds = [{"ids": np.array([[3, 14, 15, 9, 26]])}]
    simulation = simulate(graph, int8, feeds)
    assert {(p.nodes, p.numbers) for p in simulation.parts} == {
        (("embed/Gather",), 800), (("first/MatMul", "second/MatMul"), 256), (("head/MatMul",), 800),
    }  # fmt: skip
    real = _open(int8).run(None, feeds[0])[0]
    missed = np.square(real - simulation.answers(range(3))[0]).sum()
    assert missed < 0.01 * np.square(real - simulation.reference[0]).sum()
    assert share_of_int8(graph, int8, ()) == 1
    assert share_of_int8(graph, int8, ("head/MatMul",)) == pytest.approx(1056 / 1856)


@dataclass(frozen=True)
class MadeUp:
    """Stands for a Simulation: each weight in int8 adds its own error."""

    parts: tuple[Part, ...]
    errors: tuple[float, ...]

    def error(self, int8: Collection[int]) -> float:
        return sum(self.errors[i] for i in sorted(int8))


@pytest.mark.parametrize("noise", [0, 3])
def test_search_holds_on_many_made_up_graphs(monkeypatch: pytest.MonkeyPatch, plain: Bench, noise: int) -> None:
    """Met means within the limit; the cap holds; nothing is tried twice; of what is within the cheapest is taken.

    Without noise, what can be met is met, and a few evaluations do.
    """
    random, rows, counts = np.random.default_rng(5), 1000, []
    monkeypatch.setattr("edgewise.exporter.guard.share_of_int8", lambda *_: 0.5)
    for _ in range(150):
        n = int(random.integers(1, 30))
        parts = tuple(Part((f"node{i}",), int(random.integers(1, 500))) for i in range(n))
        made_up = MadeUp(parts, tuple(float(x) for x in np.exp(random.normal(-7, 2, n))))
        harm = float(random.uniform(0.2, 2))

        def lose(keep: tuple[str, ...], made_up: MadeUp = made_up, harm: float = harm) -> Path:
            exact = harm * made_up.error([i for i, p in enumerate(made_up.parts) if p.nodes[0] not in keep])
            jitter = random.integers(-noise, noise + 1) if noise else 0
            return Path(str(int(np.clip(rows * exact + jitter, 0, rows))))

        def score(graph: Path, numbers: Sequence[int]) -> list[float]:
            return [float(number >= int(graph.name)) for number in numbers]

        monkeypatch.setattr("edgewise.exporter.guard.simulate", lambda *_, made_up=made_up: made_up)
        cap, limit = int(random.integers(2, 14)), float(random.choice([0.0, 0.002, 0.005, 0.02]))
        found = guard(
            plain.graph, DYNAMIC, lose, Reference(np.ones(rows), np.arange(rows) / rows), score, plain.feeds,
            max_drop=limit, max_evaluations=cap,
        )  # fmt: skip
        assert found.evaluations == len(found.tried) + 1 <= cap
        assert found.met == any(t.within for t in found.tried)
        assert found.drop <= limit + 1e-9 or not found.met
        assert all(t.given >= found.given for t in found.tried if t.within)
        assert len({t.keep for t in found.tried}) == len(found.tried)
        if not noise and cap >= 3:
            assert found.met or max(len(t.keep) for t in found.tried) == n - 1
        counts.append(found.evaluations)
    assert np.mean(counts) < 5


def test_cost_decides_what_is_kept(loud: Bench) -> None:
    """A cost that makes the guilty weights dear is counted in its own unit."""
    seen: list[Part] = []

    def milliseconds(part: Part) -> float:
        seen.append(part)
        return 0.001 * part.numbers

    found = loud.guard(max_drop=0.01, cost=milliseconds)
    numbers = {p.nodes: p.numbers for p in seen}
    assert found.given == pytest.approx(sum(0.001 * n for nodes, n in numbers.items() if set(nodes) <= set(found.keep)))


def test_unknown_keep_and_wrong_recipes_are_errors(plain: Bench) -> None:
    with pytest.raises(PlanError, match="no/such/node"):
        plain.guard(replace(DYNAMIC, keep=("no/such/node",)))
    with pytest.raises(PlanError, match="fp32"):
        plain.guard(Recipe())
    with pytest.raises(PlanError, match="max_drop"):
        plain.guard(max_drop=-0.1)
    with pytest.raises(PlanError, match="max_evaluations"):
        plain.guard(max_evaluations=1)
    with pytest.raises(PlanError, match="sample inputs"):
        simulate(plain.graph, plain.graph, [])
    with pytest.raises(PlanError, match="no int8 weights"):
        simulate(plain.graph, plain.graph, plain.feeds)
    assert plain.scored == [plain.graph]


def test_share_counts_what_a_suffix_keeps(plain: Bench) -> None:
    int8 = plain.quantizer(DYNAMIC)(())
    whole = share_of_int8(plain.graph, int8, ())
    assert 0.99 < whole < 1
    assert share_of_int8(plain.graph, int8, ("word_embeddings/Gather",)) < whole - 0.3


def test_confirm_speaks_as_the_numbers_allow() -> None:
    right = [1.0] * 2000
    assert confirm(right, right, 0.005).startswith("Within 0.5 points")
    lost = [0.0] * 6 + [1.0] * 1994
    said = confirm(right, lost, 0.005)
    assert said.startswith("Not shown to be within 0.5 points")
    assert "0.30 points" in said
    assert "more rows would" in said
    assert "would not show it" in confirm(right, [0.0] * 20 + [1.0] * 1980, 0.005)


def test_confirm_of_scores_that_are_not_right_or_wrong() -> None:
    random = np.random.default_rng(3)
    fp32 = random.normal(-2, 1, 400)
    assert confirm(fp32, fp32 - 0.01, 0.05).startswith("Within 5 points of fp32: the score drops by 1.00 points")
    noisy = fp32 - random.normal(0.01, 0.8, 400)
    said = confirm(fp32, noisy, 0.05)
    assert said.startswith("Not shown")
    assert "more rows" in said
    with pytest.raises(DataError, match="same rows"):
        confirm(fp32, fp32[:3], 0.05)
    with pytest.raises(DataError, match="labelled"):
        confirm([np.nan], [np.nan], 0.05)
