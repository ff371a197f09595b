"""Tables in the terminal: what they say, and that they fit."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgewise.selector import ReportData, near_misses, ranking_table, select
from edgewise.selector.table import render
from edgewise.types import Entry, RunSettings, Selection
from edgewise.units import METRICS, parse_budget

LONG = "a-candidate-whose-name-goes-on-and-on-and-on-to-the-very-end-of-it"


def cells(line: str) -> int:
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else not unicodedata.combining(c) for c in line)


def fits(text: str, width: int = 80) -> bool:
    return all(cells(line) <= width for line in text.splitlines())


def test_the_ranking_fits_and_shows_the_order(report_data: ReportData) -> None:
    for selection in report_data.selections:
        text = ranking_table(selection)
        assert fits(text)
        rows = [line.split() for line in text.splitlines() if line[:2].strip().isdigit()]
        assert [r[0] for r in rows] == [str(v.rank) for v in selection.verdicts if v.rank]
        assert rows[0][1] == "l3/int8-dynamic"
        assert "chosen" in rows[0]
        assert "tiny failed: training broke" in text
        assert "... and 33 more" in text


def test_near_misses_name_the_budget_and_by_how_much(make_report: Callable[..., ReportData]) -> None:
    (selection,) = make_report(("board",), ("p95 <= 1 ms", "accuracy >= 82 %", "size <= 90 MB")).selections
    assert selection.chosen is None
    text = near_misses(selection)
    assert fits(text)
    assert "Nothing" in text or "nothing" in text
    nearest = selection.verdicts[0]
    broken = [c for c in nearest.checks if not c.met]
    assert broken
    assert "model" in text
    assert text.count("p95 <= 1 ms") >= len([c for c in broken if c.budget.metric == "p95"])
    assert "accuracy >= 82 %" in text


@pytest.mark.parametrize("candidate", [LONG, "影评" * 20, "e\u0301" * 50])
def test_long_names_are_cut_in_the_middle(make: Callable[..., Entry], candidate: str) -> None:
    every = dict.fromkeys(METRICS, 0.5)
    run = RunSettings(threads=64, max_length=512, batch_size=1024, provider="tensorrt")
    entries = [make(candidate + str(i), "int8-dynamic+per_channel=false", run=run, **every) for i in range(3)]
    budgets = [parse_budget(b) for b in ("accuracy >= 10 %", "p95 <= 10 s", "startup <= 1 s", "uss <= 10 GB")]
    assert fits(ranking_table(select(entries, budgets, ["accuracy", "p95", "f1"])))
    strict = [parse_budget("accuracy >= 99.9 %"), parse_budget("changed_answers <= 0.001 % of int8-dynamic-o2")]
    text = near_misses(select(entries, strict, ["accuracy"]))
    assert fits(text)
    assert "…" in text


def test_control_characters_do_not_reach_the_terminal(make: Callable[..., Entry]) -> None:
    evil = "\x1b[2J\x1b]0;title\x07name"
    entries = [replace(make(evil, p95=0.5)), Entry("x\x1b[31m", "", None, None, status="failed", reason="\x1b[1mboo")]
    for budgets in ([], [parse_budget("p95 <= 1 ms")]):
        selection: Selection = select(entries, budgets, ["p95"])
        for text in (ranking_table(selection), near_misses(selection)):
            assert not {c for c in text if not c.isprintable()} - {"\n"}


def test_an_empty_selection_has_a_table_too() -> None:
    assert "nothing to choose from" in ranking_table(select([], [], ["p95"]))
    assert "nothing to choose from" in near_misses(select([], [], ["p95"]))


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 7).flatmap(
        lambda n: st.lists(st.lists(st.text("ab 影é-", max_size=60), min_size=n, max_size=n), min_size=2, max_size=4)
    ),
    st.integers(30, 100),
)
def test_no_table_is_wider_than_asked(rows: list[list[str]], width: int) -> None:
    lines = render(rows[0], rows[1:], width, right={1}, shrink=(0,), drop=tuple(range(len(rows[0]) - 1, 1, -1)))
    assert all(cells(line) <= width for line in lines)
