"""What the sections of the report say: slices, roofline, conditions, words, the report as JSON."""

from __future__ import annotations

import base64
import gzip
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgewise.selector import ReportData, select, write_markdown
from edgewise.selector.answers import accuracy_sheet, slice_sheet, slice_words
from edgewise.selector.conditions import condition_lines, machine_facts
from edgewise.selector.glossary import glossary, recipe_words, scope
from edgewise.selector.report import render_report
from edgewise.selector.report_json import report_json, write_report_json
from edgewise.selector.sheets import Sheet
from edgewise.selector.speed import latency_sheet, not_measured, roofline_sheet, roofline_words, startup_sheet
from edgewise.selector.views import answer
from edgewise.types import Entry, Metric, WhatIf
from edgewise.units import parse_budget

MARKUP = "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=2>"


def texts(sheet: Sheet, row: int) -> dict[str, str]:
    """Heading -> text of one row."""
    return {c.title: cell.text for c, cell in zip(sheet.columns, sheet.rows[row], strict=True)}


def rows_of(sheet: Sheet, **wanted: str) -> list[dict[str, str]]:
    found = [texts(sheet, i) for i in range(len(sheet.rows))]
    return [row for row in found if all(row[name] == text for name, text in wanted.items())]


def test_accuracy_stands_once_for_what_answers_alike(report_data: ReportData) -> None:
    sheet = accuracy_sheet(report_data)
    # 3 candidates x 4 recipes x 2 lengths x 2 devices: threads change no answer.
    assert len(sheet.rows) == 48
    found = rows_of(sheet, Bundle="l3/int8-static", Settings="here: cpu, length 64, batch 1")
    assert [r["What can be said"] for r in found] == [
        "Not shown to be within 0.5 points of fp32: about 900 more rows would."
    ]
    assert (found[0]["Rows"], found[0]["Accuracy"], found[0]["Drop"]) == ("2,000", "80.80%", "2.10 points")
    assert {r["What can be said"] for r in rows_of(sheet, Bundle="l6/fp32")} == {"the reference itself"}


def test_each_slice_has_its_accuracy_and_its_drop(report_data: ReportData) -> None:
    sheet = slice_sheet(report_data)
    found = rows_of(sheet, Bundle="l6/int8-dynamic", Settings="here: cpu, length 64, batch 1", Slice="genre = horror")
    assert len(found) == 1
    assert (found[0]["Rows"], found[0]["Accuracy"], found[0]["Drop"]) == ("500", "80.65%", "0.20 points")
    assert found[0]["Changed answers"] == "4"
    assert {r["Drop"] for r in rows_of(sheet, Bundle="l6/fp32")} == {"reference"}
    assert slice_words(report_data) == [
        "The chosen l3/int8-dynamic is worst on genre = horror: 79.15% (76.15–82.15%) of 500 rows, where it has 82.15% "
        "on all. Slices of fewer than 20 rows do not count as the worst."
    ]
    assert not slice_sheet(replace(report_data, measurements=()))


def test_slices_of_a_language_model_have_perplexities(report_data: ReportData) -> None:
    def spoken(m: Any) -> Any:
        if m.scenario not in ("accuracy", "comparison"):
            return m
        part = {"slice": "class = a", "rows": [0, 1], "n": 2, "low": 1.0, "high": 30.0}
        part |= {"perplexity": 21.5} if m.scenario == "accuracy" else {"ratio": 1.25}
        return replace(m, conditions={**m.conditions, "slices": [part]})

    sheet = slice_sheet(replace(report_data, measurements=tuple(map(spoken, report_data.measurements))))
    titles = [c.title for c in sheet.columns]
    assert titles[4:6] == ["perplexity", "perplexity ratio"]
    found = rows_of(sheet, Bundle="l6/int8-dynamic")[0]
    assert (found["perplexity"], found["perplexity ratio"], found["Rows"]) == ("21.5", "1.25", "2")


def test_the_roofline_tells_the_least_time_and_what_bounds_it(report_data: ReportData) -> None:
    found = rows_of(roofline_sheet(report_data), **{"Bundle": "l6/int8-dynamic", "Run settings": RUN})[0]
    # 5 M operations at 40 G a second and 90 M at 300 G a second.
    assert found["Operations a call"] == "95 M"
    assert found["Least time"] == "425 µs"
    assert (found["Bound by"], found["Weights read"]) == ("products", "0")
    kinds = {c.title: cell.kind for c, cell in zip(SHEET(report_data).columns, SHEET(report_data).rows[0], strict=True)}
    assert kinds["Least time"] == kinds["Of the peak"] == "estimated"
    assert kinds["Mean time"] == "measured"
    assert any(re.match(r"here: the chosen l3/int8-dynamic comes to \d", line) for line in roofline_words(report_data))
    assert "entries took less than their least time" in " ".join(roofline_words(_too_fast(report_data)))


RUN = "here: cpu, 1 thread, length 64"
SHEET = roofline_sheet


def _too_fast(report: ReportData) -> ReportData:
    first = report.selections[0]
    assert first.chosen is not None
    entry = first.chosen.entry
    metrics = {**entry.metrics, "roofline": Metric("roofline", "1", 1.2, kind="estimated")}
    verdict = replace(first.chosen, entry=replace(entry, metrics=metrics))
    return replace(report, selections=(replace(first, chosen=verdict, verdicts=(verdict, *first.verdicts[1:])),))


def test_latency_and_startup_stand_in_tables_too(report_data: ReportData) -> None:
    latency = rows_of(latency_sheet(report_data), Bundle="l6/fp32")
    assert {"p50", "p95", "p99", "Mean latency", "Throughput"} <= set(latency[0])
    assert {r["p99"] for r in latency if r["Run settings"].startswith("board")} == {"unavailable"}
    startup = startup_sheet(report_data)
    assert [c.title for c in startup.columns][2:] == ["Start-up", "interpreter", "imports", "load", "session", "first"]
    assert len(startup.rows) == 96


def test_percentiles_that_nothing_has_are_named_once(make: Callable[..., Entry], report_data: ReportData) -> None:
    lacking = Metric("p99", "s", None, kind="unavailable", why="needs 600 more calls")
    report = replace(report_data, selections=(select([make("a", p95=0.001, p99=lacking)], [], ["p95"]),))
    assert [c.title for c in latency_sheet(report).columns] == ["Bundle", "Run settings", "p95"]
    assert not_measured(report) == "p99: no entry has it; the table of all measurements says why."


def test_conditions_are_said_in_sentences(report_data: ReportData) -> None:
    lines = condition_lines(report_data)
    assert lines[0] == (
        "Each bundle on each of its settings ran in 5 fresh processes, all of them in turn, with 2,400 timed calls in "
        "all."
    )
    assert "At length 32: inputs of 5 to 32 tokens, half of them up to 27, up to 21% of them cut." in lines
    assert (
        "Disturbed: 48 of 480 rounds, in 48 of 96 measurements (other processes took more than a tenth of the machine)."
    ) in lines
    assert condition_lines(replace(report_data, measurements=())) == []


def test_a_round_that_was_repeated_is_said_although_its_repeat_was_calm(report_data: ReportData) -> None:
    calm = [
        replace(
            m,
            conditions={
                **m.conditions,
                "rounds": {**m.conditions["rounds"], "disturbed": [], "repeated": {"2": "15%, then 1%"}},
            },
        )
        for m in report_data.measurements
        if isinstance(m.conditions.get("rounds"), dict)
    ]
    lines = condition_lines(replace(report_data, measurements=calm))
    assert f"Repeated: {len(calm)} rounds that other processes disturbed; of each the calmer time counts." in lines
    assert not any("No round was disturbed" in line for line in lines)


def test_an_unknown_fact_of_a_machine_says_why() -> None:
    why = {"governor": "the system shows no cpufreq"}
    facts = dict(machine_facts({"cpu": "x", "memory": 25_000_000_000, "governor": None, "why": why, "v": {"a": 1}}))
    assert facts == {
        "cpu": "x",
        "memory": "25.0 GB",
        "governor": "unknown (the system shows no cpufreq)",
        "v · a": "1",
    }


def test_the_words_of_the_report_are_explained(report_data: ReportData) -> None:
    words = dict(glossary(report_data))
    assert {"Candidate", "Budget", "Bound", "Pareto front", "int8-dynamic", "p95", "Peak memory", "Drop"} <= set(words)
    assert "bleu" not in words, "only what this report uses"
    assert recipe_words("int8-dynamic+reduce_range=true") == recipe_words("int8-dynamic")
    assert recipe_words("somebody's own") == ""
    assert scope(report_data).startswith("4 candidate models in 4 forms (recipes) were measured on 2 devices (here, bo")


def test_the_faster_one_is_named_even_where_nobody_asked_for_speed(make: Callable[..., Entry]) -> None:
    slow = make("slow", accuracy=(0.9, 0.001), p95=(0.020, 0.001), size=30e6)
    fast = make("fast", accuracy=(0.8, 0.001), p95=(0.005, 0.001), size=40e6)
    selection = select([slow, fast], [parse_budget("size <= 50 MB")], ["accuracy"])
    told = answer(selection)
    assert [r["name"] for r in told["rivals"]] == ["fast/fp32 (cpu, 1 thread)"]
    assert told["rivals"][0]["best"] == "p95 5.00 ms instead of 20.0 ms"
    assert told["unbeaten"] == "Nothing that was measured is better in Accuracy and Size."
    # The percentile that was asked for lacks its calls: the one that has them stands in.
    lacking = Metric("p95", "s", None, kind="unavailable", why="needs 84 more calls")
    slow = make("slow", accuracy=(0.9, 0.001), p95=lacking, p50=(0.020, 0.001), size=30_000_001)
    fast = make("fast", accuracy=(0.8, 0.001), p95=lacking, p50=(0.005, 0.001), size=30_000_000)
    told = answer(select([slow, fast], [parse_budget("size <= 50 MB")], ["accuracy", "p95"]))
    # 30.0 MB instead of 30.0 MB says nothing.
    assert [r["best"] for r in told["rivals"]] == ["p50 5.00 ms instead of 20.0 ms"]


def test_what_was_asked_for_is_said(make: Callable[..., Entry], report_data: ReportData) -> None:
    assert answer(report_data.selections[0])["asked"] == (
        "Asked for: the highest Accuracy, then the lowest p95, within p95 ≤ 10 ms, Peak memory ≤ 150 MB, Size ≤ 30 MB, "
        "Accuracy ≥ 0.80 and Drop ≤ 0.8 points of fp32."
    )
    entries = [make("a", accuracy=0.9, p95=0.02), make("b", accuracy=0.8, p95=0.01)]
    weighed = select(entries, [], ["accuracy", "p95"], weights=(0.75, 0.25))
    assert answer(weighed)["asked"] == (
        "Asked for: the highest Accuracy (weight 75%) and the lowest p95 (weight 25%) together; no budgets were given."
    )


def with_what_if(report: ReportData, words: str) -> ReportData:
    first = report.selections[0]
    step = WhatIf(first.budgets[0], 0.012, "x", words)
    return replace(report, selections=(replace(first, what_if=(step,)),))


def test_what_would_change_the_choice_stands_after_the_budgets(report_data: ReportData, tmp_path: Path) -> None:
    report = with_what_if(report_data, "with p95 <= 12 ms: l6/fp32 & <b>more</b>")
    page = render_report(report)
    assert "<li>With p95 &lt;= 12 ms: l6/fp32 &amp; &lt;b&gt;more&lt;/b&gt;</li>" in page
    places = [page.find(f"<h3>{t}") for t in ("Budgets", "What would change the choice", "Why this one")]
    assert -1 < places[0] < places[1] < places[2]
    write_markdown(tmp_path / "r.md", report)
    assert r"- With p95 \<= 12 ms: l6/fp32 &amp; \<b\>more\</b\>" in (tmp_path / "r.md").read_text()
    assert report_json(report)["devices"][0]["what_if"][0]["words"] == "with p95 <= 12 ms: l6/fp32 & <b>more</b>"


def test_markup_in_a_slice_stays_text(report_data: ReportData, tmp_path: Path) -> None:
    def spoil(m: Any) -> Any:
        parts = m.conditions.get("slices")
        return m if parts is None else replace(m, conditions={"slices": [{**p, "slice": MARKUP} for p in parts]})

    report = replace(report_data, measurements=tuple(map(spoil, report_data.measurements)))
    page = render_report(report)
    assert page.count("<script") == 4
    found = re.search(r'id="packed-measurements">(.*?)</script>', page)
    assert found
    packed = gzip.decompress(base64.b64decode(found[1])).decode()
    assert packed.count("<tr") == len(report.measurements) + 1
    assert "<script" not in packed
    assert "window.hacked=1" in page
    write_markdown(tmp_path / "evil.md", report)
    assert not re.search(r"(?<!\\)<(script|img)", (tmp_path / "evil.md").read_text())


def test_the_json_has_all_of_it_and_no_text_when_asked(report_data: ReportData, tmp_path: Path) -> None:
    write_report_json(tmp_path / "r.json", report_data)
    told = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert told["devices"][0]["sentence"].startswith(
        "Here, l3/int8-dynamic with cpu, 2 threads, length 32: accuracy 83"
    )
    assert told["changed_answers"]["examples"][0]["text"] == report_data.changed[0].text
    assert len(told["measurements"]) == len(report_data.measurements)
    assert told["one_for_all"]["bundles"][0]["name"] == "l3/int8-dynamic"
    bare = report_json(report_data, examples=False)
    assert bare["changed_answers"] == {"count": 3}
    assert not any(c.text in json.dumps(bare) for c in report_data.changed)


def test_json_writes_numbers_that_it_has_no_word_for(make: Callable[..., Entry], report_data: ReportData) -> None:
    first = report_data.measurements[0]
    odd = replace(first, metrics=(Metric("p95", "s", float("nan"), float("-inf")),))
    told = report_json(replace(report_data, measurements=(odd,)))
    assert told["measurements"][0]["metrics"][0]["value"] == "NaN"
    assert told["measurements"][0]["metrics"][0]["low"] == "-Infinity"
    json.dumps(told, allow_nan=False)
