"""How the choice moves with a budget, weights, and one bundle for several devices."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import numpy as np
import pytest

from edgewise.errors import PlanError
from edgewise.selector import from_json, joint_table, one_for_all, ranking_table, select, select_by_device, to_json
from edgewise.selector.weighted import difference
from edgewise.types import Entry, Metric, RunSettings, Selection, Target
from edgewise.units import METRICS, parse_budget, parse_objective

Make = Callable[..., Entry]
P95 = parse_budget("p95 <= 10 ms")


def test_what_a_little_more_would_buy_is_said_in_words(make: Make) -> None:
    small, large = make("small", p95=0.008, accuracy=0.81), make("large", p95=0.012, accuracy=0.823)
    found = select([small, large], [P95], ["accuracy", "p95"])
    words = [w.words for w in found.what_if]
    assert words[0] == (
        "with p95 <= 12.0 ms: large/fp32 (cpu, 1 thread), accuracy 82.30% (1.30 points more), "
        "p95 12.0 ms (4.00 ms more)"
    )
    assert words[1] == "p95 below 8.00 ms: nothing keeps all budgets"
    shown = ranking_table(found)
    assert "what would change it:" in shown
    assert all(len(line) <= 80 for line in shown.splitlines())
    none = select([large], [P95], ["accuracy", "p95"])
    assert none.chosen is None
    assert none.what_if[0].chosen == large.key


@pytest.mark.parametrize("seed", range(20))
def test_a_limit_that_is_printed_does_what_is_said_of_it(make: Make, seed: int) -> None:
    """As it is typed, rounded: with bounds that differ in their fourth digit alone."""
    random = np.random.default_rng(seed)
    found = [
        make(f"c{i}", p95=0.010 * (1 + 0.002 * random.standard_normal()),
             accuracy=0.8 + 0.01 * random.standard_normal(), size=2e7 * (1 + 0.001 * random.standard_normal()))
        for i in range(12)
    ]  # fmt: skip
    budgets = [parse_budget("p95 <= 10 ms"), parse_budget("size <= 20 MB")]
    selection = select(found, budgets, ["accuracy", "p95"])
    assert selection.what_if
    for step in selection.what_if:
        others = [b for b in budgets if b.metric != step.budget.metric]
        if step.chosen is None:
            limit = step.words.partition(" below ")[2].partition(":")[0]
            stricter = parse_budget(f"{step.budget.metric} <= {limit}")
            held = [e for e in found if (v := e.metrics[step.budget.metric].value) is not None and v < stricter.limit]
            assert select(held, others, ["accuracy", "p95"]).chosen is None if held else True
            continue
        typed = parse_budget(step.words.removeprefix("with ").partition(":")[0])
        again = select(found, [*others, typed], ["accuracy", "p95"]).chosen
        assert again is not None
        assert again.entry.key == step.chosen, step.words


def test_an_entry_that_was_set_aside_is_not_what_a_budget_would_buy(make: Make) -> None:
    small, large = make("small", p95=0.008, accuracy=0.81), make("large", p95=0.012, accuracy=0.823)
    found = select([small, large], [P95], ["accuracy"], exclude={large.key})
    assert [w.chosen for w in found.what_if] == [None]


def test_weights_are_of_points_and_of_per_cents_and_no_third_entry_turns_two_round(make: Make) -> None:
    better, faster = make("better", accuracy=0.82, p95=0.0100), make("faster", accuracy=0.81, p95=0.0097)
    # One point is 0.01, 3% are 0.03.
    assert select([better, faster], [], ["accuracy", "p95"], weights=(4, 1)).verdicts[0].entry is better
    assert select([better, faster], [], ["accuracy", "p95"], weights=(2, 1)).verdicts[0].entry is faster
    far = make("far", accuracy=0.01, p95=99.0)
    assert select([better, faster, far], [], ["accuracy", "p95"], weights=(4, 1)).verdicts[0].entry is better
    assert select([better, faster, far], [], ["accuracy", "p95"], weights=(2, 1)).verdicts[0].entry is faster
    shown = ranking_table(select([better, faster], [], ["accuracy", "p95"], weights=(4, 1)))
    assert "weights: accuracy 0.80, p95 0.20" in shown
    assert difference("p95", 0.010, 0.0101) == pytest.approx(math.log(1.01))
    assert difference("accuracy", 0.82, 0.81) == pytest.approx(0.01)
    assert difference("accuracy_drop", 0.5, 1.5) == pytest.approx(0.01)
    assert difference("size", 0.0, 1.0) is None


@pytest.mark.parametrize("name", ["accuracy", "p95", "accuracy_drop", "throughput", "mcc", "bleu", "perplexity"])
def test_a_worse_value_is_a_loss_whatever_its_scale(name: str) -> None:
    lower = METRICS[name].better == "lower"
    worse = difference(name, 0.5, 0.6) if lower else difference(name, 0.6, 0.5)
    assert worse is not None
    assert worse > 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("accuracy=2,p95", "p95 has the weight ''"),
        ("accuracy=0,p95=1", "accuracy has the weight 0"),
        ("accuracy=nan", "accuracy has the weight nan"),
        ("acuracy=1", "unknown metric 'acuracy': did you mean"),
    ],
)
def test_objectives_that_cannot_be_read(text: str, message: str) -> None:
    with pytest.raises(PlanError, match=message.replace("?", r"\?")):
        parse_objective(text)


def test_budgets_and_objectives_that_stand_twice_are_refused(make: Make) -> None:
    with pytest.raises(PlanError, match="two budgets of p95, 'p95 <= 10 ms' and 'p95 <= 5 ms': keep one"):
        select([make("a", p95=0.01)], [P95, parse_budget("p95 <= 5 ms")], ["p95"])
    with pytest.raises(PlanError, match="names one metric twice"):
        select([make("a", p95=0.01)], [], ["p95", "p95"])
    with pytest.raises(PlanError, match="expected a number above 0 for each of p95"):
        select([make("a", p95=0.01)], [], ["p95"], weights=(1, 2))


def on(device: str, name: str, threads: int = 1, **values: float | tuple[float, float]) -> Entry:
    metrics = {}
    for metric, given_value in values.items():
        value, half = given_value if isinstance(given_value, tuple) else (given_value, None)
        ends = {} if half is None else {"low": value - half, "high": value + half, "level": 0.95}
        metrics[metric] = Metric(metric, METRICS[metric].unit, value, **ends)
    return Entry(name, "fp32", f"sha256:{name}", Target(device, RunSettings(threads=threads)), metrics)


def two_devices() -> tuple[Selection, ...]:
    entries = [
        on("pi", "a", accuracy=0.80, p95=0.009), on("pi", "b", accuracy=0.79, p95=0.004),
        on("pi", "b", 2, accuracy=0.79, p95=0.003), on("pi", "c", accuracy=0.85, p95=0.020),
        on("pc", "a", accuracy=0.80, p95=0.002), on("pc", "b", accuracy=0.79, p95=0.001),
        on("pc", "c", accuracy=0.85, p95=0.005),
    ]  # fmt: skip
    return select_by_device(entries, [P95], ["accuracy", "p95"])


def test_one_bundle_for_all_devices_is_feasible_on_each_with_the_smallest_loss() -> None:
    selections = two_devices()
    assert [s.chosen.entry.candidate for s in selections if s.chosen] == ["a", "c"]
    joint = one_for_all(selections)
    assert joint is not None
    assert [b.name for b in joint.bundles] == ["a/fp32", "b/fp32", "c/fp32"]
    assert joint.chosen is joint.bundles[0]
    assert joint.bundles[0].loss == pytest.approx((0.05, 0.0))
    assert joint.bundles[1].places[0].entry is not None
    assert joint.bundles[1].places[0].entry.target == Target("pi", RunSettings(threads=2))  # its best run settings
    assert not joint.bundles[2].feasible
    assert "10.0 ms over the budget of 10 ms" in joint.bundles[2].places[0].words
    assert joint.sentence == "One for all: a/fp32 keeps every budget on pi and pc."
    shown = joint_table(joint)
    assert "pc: cpu 1t: accuracy 80.00% (5.00 points worse), p95 2.00 ms (3.00 ms better)" in " ".join(shown.split())
    assert all(len(line) <= 80 for line in shown.splitlines())


def test_what_cannot_be_told_from_the_choice_is_no_loss() -> None:
    entries = [
        on("pi", "a", accuracy=(0.80, 0.02), p95=0.009), on("pi", "b", accuracy=(0.79, 0.02), p95=0.008),
        on("pc", "a", accuracy=(0.80, 0.02), p95=0.002), on("pc", "b", accuracy=(0.79, 0.02), p95=0.0015),
    ]  # fmt: skip
    joint = one_for_all(select_by_device(entries, [], ["accuracy", "p95"]))
    assert joint is not None
    assert joint.chosen is not None
    assert joint.chosen.name == "b/fp32"
    assert joint.chosen.loss == (0.0, 0.0)


def test_no_bundle_for_all_and_a_single_device() -> None:
    pi, pc = on("pi", "a", accuracy=0.8, p95=0.009), on("pc", "b", accuracy=0.8, p95=0.009)
    joint = one_for_all(select_by_device([pi, pc], [P95], ["accuracy"]))
    assert joint is not None
    assert joint.chosen is None
    assert joint.sentence.startswith("No bundle keeps every budget on all of pi and pc; ")
    assert joint.bundles[0].places[1].words == "not measured there"
    assert one_for_all(select_by_device([pi], [P95], ["accuracy"])) is None


def test_json_keeps_weights_and_what_if(make: Make) -> None:
    entries = [make("a", p95=0.008, accuracy=0.81), make("b", p95=0.012, accuracy=0.82)]
    found = select(entries, [P95], ["accuracy", "p95"], weights=(2, 1))
    assert found.what_if
    assert from_json(json.loads(json.dumps(to_json(found)))) == found
    old = {k: v for k, v in to_json(found).items() if k not in ("weights", "what_if")}
    assert from_json(old).what_if == ()


def test_many_entries_with_a_budget_each_side_are_worked_out_fast_enough(make: Make) -> None:
    random = np.random.default_rng(0)
    entries = [
        make(f"c{i}", p95=(float(p), 0.0002), accuracy=(float(a), 0.01), size=float(s))
        for i, (p, a, s) in enumerate(
            zip(random.gamma(4, 0.003, 2000), random.beta(40, 10, 2000), random.uniform(1e7, 1e8, 2000), strict=True)
        )
    ]
    found = select(entries, [P95, parse_budget("size <= 50 MB")], ["accuracy", "p95"])
    assert {w.budget.metric for w in found.what_if} == {"p95", "size"}


def test_what_is_chosen_on_every_device_is_the_one_for_all() -> None:
    """Though one that ties with it there is better in the next objective: the choice has no loss, and nothing less."""
    tied = [
        on(device, name, accuracy=(accuracy, 0.012), p95=(p95, 0.0002))
        for device in ("pi", "pc")
        for name, accuracy, p95 in (("a", 0.85, 0.0100), ("b", 0.845, 0.0099))
    ]
    weighed = [
        on(device, name, accuracy=(accuracy, 0.001), p95=(p95, 0.0001))
        for device in ("pi", "pc")
        for name, accuracy, p95 in (("a", 0.85, 0.0100), ("b", 0.83, 0.0098))
    ]
    for entries, weights in ((tied, ()), (weighed, (2.0, 1.0))):
        selections = select_by_device(entries, [], ["accuracy", "p95"], weights=weights)
        assert [s.chosen.entry.candidate for s in selections if s.chosen] == ["a", "a"]
        joint = one_for_all(selections)
        assert joint is not None
        assert joint.chosen is not None
        assert joint.chosen.name == "a/fp32"
        assert joint.chosen.loss in ((0.0, 0.0), (0.0,))
        if weights:
            assert "tied" not in joint.bundles[1].places[0].words
            assert joint.bundles[1].loss[0] > 0


@pytest.mark.parametrize("seed", range(10))
def test_a_limit_of_bytes_that_differ_by_a_few_is_typed_as_it_is_printed(make: Make, seed: int) -> None:
    random = np.random.default_rng(seed)
    sizes = 16289270 + random.integers(0, 40, 8).cumsum()
    found = [make(f"c{i}", size=float(s), p95=0.01 - 0.001 * i) for i, s in enumerate(sizes)]
    budget = parse_budget(f"size <= {(sizes[3] + 1) / 1e6} MB")
    for step in select(found, [budget], ["p95"]).what_if:
        if step.chosen is not None:
            typed = parse_budget(step.words.removeprefix("with ").partition(":")[0])
            chosen = select(found, [typed], ["p95"]).chosen
            assert chosen is not None
            assert chosen.entry.key == step.chosen
