"""The report as a file: what stands in it, that it is one file, that nothing in it can break out."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from edgewise.selector import ChangedAnswer, ReportData, write_markdown, write_report
from edgewise.selector.markdown import escape, fence
from edgewise.selector.report import embed, packed, render_report
from edgewise.types import Entry, Measurement, Metric, Target

MARKUP = "<script>window.hacked=1</script><img src=x onerror=window.hacked=2>\"'&</title></style>-->]]>"
MEGABYTE = 1_000_000


class Page(HTMLParser):
    """Visible text and the tags that matter."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._hidden = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._hidden = tag

    def handle_endtag(self, tag: str) -> None:
        if tag == self._hidden:
            self._hidden = ""

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def page(report_data: ReportData) -> str:
    return render_report(report_data)


def data_of(page: str) -> Any:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert found
    return json.loads(found[1])


def test_it_reads_from_the_top(page: str, report_data: ReportData) -> None:
    text = Page(page).text
    text = text[text.find("Reproduce ") :]  # what comes after the navigation
    places = [
        "Chosen",
        "Here, l3/int8-dynamic with cpu, 2 threads, length 32: accuracy 83.12%",
        "Confirmed at try 2, after 1 did not pass",
        "Budgets, here",
        "What would change the choice",
        "Why this one",
        "Why not a faster, smaller or more accurate one",
        "Log of the confirmation",
        "One bundle for all devices",
        "Trade-off Device",
        "Latency distributions",
        "All entries",
        "Accuracy against the reference",
        "By slice",
        "Answers that changed",
        "Roofline: how near",
        "Start-up Show",
        "Training Metrics",
        "Measurements and their conditions",
        "Machines and conditions",
        "What the words mean",
        "How to reproduce this",
        "edgewise fit examples/movie-reviews.yaml",
        "The plan version: 1",
    ]
    found = [text.find(p) for p in places]
    assert -1 not in found, places[found.index(-1)]
    assert found == sorted(found)
    # Its accuracy is that of the confirmation for the winner, and so labelled.
    assert re.search(r"Accuracy 83\.12% 81\.58–84\.66% · n 1,400 confirmed", text)
    assert "Not confirmed yet" in text, "the second device was not confirmed"
    assert "needs 662 calls, 600 were made" in text
    assert "⊘ unavailable" in text
    assert "training broke: the loss is not a number at step 41" in text
    assert len(report_data.entries) == 98
    assert len(re.findall(r"<tr class=\"(?:chosen|met|broken|failed)\" data-status", page)) == 98


def test_it_is_one_small_file_without_any_address(page: str, tmp_path: Path, report_data: ReportData) -> None:
    write_report(tmp_path / "report.html", report_data)
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == page
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    assert len(page.encode()) < 6 * MEGABYTE
    for tag, attributes in Page(page).tags:
        for name in ("src", "href", "srcset", "data", "action"):
            value = attributes.get(name)
            assert value is None or value.startswith("#") or (tag, value) == ("link", "data:,"), (tag, attributes)
    assert "default-src 'none'" in page


def test_tables_say_their_heads_and_captions(page: str) -> None:
    tags = Page(page).tags
    assert all(a.get("scope") in ("col", "row") for t, a in tags if t == "th")
    tables = [a for t, a in tags if t == "table"]
    assert len(tables) == len([1 for t, _ in tags if t == "caption"]) >= 6
    plots = [a for t, a in tags if t == "div" and a.get("role") == "img"]
    assert len(plots) == 4
    ids = {a.get("id") for _, a in tags}
    assert all(p.get("aria-label") and p.get("aria-describedby") in ids for p in plots)
    regions = [a for t, a in tags if a.get("role") == "region"]
    assert regions
    assert all(r.get("tabindex") == "0" and r.get("aria-label") for r in regions)
    linked = [a["href"] for t, a in tags if t == "a" and (a.get("href") or "").startswith("#")]
    assert {link.removeprefix("#") for link in linked if link} <= ids
    named = [a.get("id") for _, a in tags if a.get("id")]
    assert len(named) == len(set(named))


def evil(report: ReportData) -> ReportData:
    """The report with markup in every text that comes from elsewhere."""
    first = report.selections[0]
    entry = replace(first.verdicts[0].entry, candidate=MARKUP, recipe=MARKUP, target=Target(MARKUP))
    entry = replace(entry, metrics={**entry.metrics, "p99": Metric("p99", "s", None, kind="unavailable", why=MARKUP)})
    verdict = replace(first.verdicts[0], entry=entry, reason=MARKUP, dominated_by=MARKUP)
    failed = replace(first.verdicts[-1], reason=MARKUP, entry=replace(first.verdicts[-1].entry, candidate=MARKUP))
    budgets = tuple(replace(b, text=f"{b.metric} {b.op} {MARKUP}", relative_to=MARKUP) for b in first.budgets)
    selection = replace(
        first, device=MARKUP, sentence=MARKUP, chosen=verdict, budgets=budgets,
        verdicts=(verdict, *first.verdicts[1:-1], failed),
        confirmed=tuple(replace(t, key=MARKUP, reason=MARKUP) for t in first.confirmed),
    )  # fmt: skip
    measurement = Measurement(
        MARKUP, MARKUP, MARKUP, Target(MARKUP), "accuracy", "profile", "failed", MARKUP, MARKUP,
        {MARKUP: MARKUP, "nested": {MARKUP: [MARKUP]}}, (Metric("p95", "s", 1.0, method=MARKUP, why=MARKUP),),
    )  # fmt: skip
    return replace(
        report, title=MARKUP, plan=MARKUP, command=MARKUP, versions={MARKUP: MARKUP}, selections=(selection,),
        measurements=(measurement,), machines={MARKUP: {MARKUP: {MARKUP: MARKUP}}}, samples={entry.key: [0.001, 0.002]},
        training=tuple(replace(t, candidate=MARKUP, strategy=MARKUP, note=MARKUP) for t in report.training),
        changed=(ChangedAnswer(MARKUP, MARKUP, MARKUP, MARKUP, MARKUP),),
    )  # fmt: skip


def test_markup_in_any_text_stays_text(report_data: ReportData) -> None:
    page = render_report(evil(report_data))
    tags = Page(page).tags
    assert [t for t, _ in tags if t == "img"] == []
    assert [t for t, _ in tags].count("script") == 3
    assert not any(name.startswith("on") for _, attributes in tags for name in attributes)
    assert Page(page).text.count("<script>window.hacked=1</script>") > 30
    data = data_of(page)
    assert data["points"][0]["candidate"] == MARKUP


def test_embedded_json_cannot_close_its_element() -> None:
    value = {"</script><!--": ["<script>", "a&b", "\u2028", "日本"], "n": 1.5}
    text = embed(value)
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == value
    with pytest.raises(ValueError, match="not JSON compliant"):
        embed(float("nan"))


def test_nan_and_infinity_in_metrics_do_not_break_it(make: Callable[..., Entry], report_data: ReportData) -> None:
    from edgewise.selector import select

    nan, inf = float("nan"), float("inf")
    odd = make("odd", accuracy=Metric("accuracy", "1", nan, nan, inf, 0.95), p95=Metric("p95", "s", inf), size=-0.0)
    half = make("half", accuracy=Metric("accuracy", "1", 0.5, nan, inf, 0.95), p95=Metric("p95", "s", 0.1, 0.05))
    selection = select([odd, half], [], ["accuracy", "p95"])
    page = render_report(
        replace(report_data, selections=(selection,), samples={odd.key: [nan, inf, 0.1]}, measurements=())
    )
    points = {p["candidate"]: p["m"] for p in data_of(page)["points"]}
    assert "accuracy" not in points["odd"]
    assert points["half"]["accuracy"] == [0.5]
    assert "invalid (nan)" in Page(page).text


def test_texts_of_the_data_can_be_left_out(report_data: ReportData, page: str) -> None:
    text = report_data.changed[0].text
    assert text in page
    without = render_report(report_data, examples=False)
    assert text not in without
    assert "3 changed answers are not shown, as asked" in without


def test_without_an_answer_the_misses_stand_at_the_top(make_report: Callable[..., ReportData]) -> None:
    report = make_report(("board",), ("p95 <= 1 ms", "accuracy >= 82 %"))
    text = Page(render_report(report)).text
    text = text[text.find("Reproduce ") :]
    assert "Nothing chosen" in text
    assert "On board nothing keeps both budgets at 95% confidence" in text
    assert text.find("The nearest misses") < text.find("Trade-off")
    assert "Chosen Confirmed" not in text


def test_it_is_made_of_the_least_there_is(report_data: ReportData) -> None:
    from edgewise.selector import select

    bare = ReportData("bare", report_data.generated, "", "edgewise select", {}, (select([], [], ["p95"]),))
    text = Page(render_report(bare)).text
    assert "there is nothing to choose from" in text
    assert "Start-up" not in text
    assert "No fingerprint" in text


def test_a_thousand_measurements_still_fit(report_data: ReportData) -> None:
    first = report_data.selections[0]
    long = tuple(replace(v, rank=None) for v in first.verdicts[1:-1]) * 8
    verdicts = tuple(replace(v, entry=replace(v.entry, candidate=f"c{i}")) for i, v in enumerate(long))
    many = replace(
        report_data,
        selections=(replace(first, verdicts=(first.verdicts[0], *verdicts)),),
        measurements=(report_data.measurements * 6)[:1000],
        samples={v.entry.key: [i / 1e5 for i in range(400)] for v in verdicts},
    )
    page = render_report(many)
    assert len(many.measurements) == 1000
    assert len(page.encode()) < 6 * MEGABYTE


def test_thinned_samples_keep_both_ends_and_the_median() -> None:
    from edgewise.selector.report import _quantiles

    kept = _quantiles([float(i) for i in range(1000, -1, -1)], 101)
    assert (kept[0], kept[50], kept[-1], len(kept)) == (0.0, 500.0, 1000.0, 101)


def test_the_packed_script_is_plotlys_own_file() -> None:
    import base64
    import gzip

    from plotly.offline import get_plotlyjs

    text = packed(get_plotlyjs())
    assert re.fullmatch(r"[A-Za-z0-9+/=]+", text)
    assert gzip.decompress(base64.b64decode(text)).decode() == get_plotlyjs()


def test_the_markdown_says_the_same(report_data: ReportData, tmp_path: Path) -> None:
    write_markdown(tmp_path / "report.md", report_data)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "**Here, l3/int8-dynamic with cpu, 2 threads, length 32: accuracy 83.12%, p95 745 µs" in text
    assert "| Accuracy | ≥ 0.80 | 83.12% | 81.58% | 1.58 points | met |" in text
    assert "Confirmed at try 2" in text
    assert "l6-lora" in text
    tables = [t.splitlines() for t in re.findall(r"(?:^\|.*\n)+", text, re.M)]
    assert len(tables) > 10
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in table}) == 1, "a table keeps its number of columns"
    assert report_data.changed[0].text not in text


def test_markup_in_markdown_stays_text(report_data: ReportData, tmp_path: Path) -> None:
    write_markdown(tmp_path / "evil.md", evil(report_data))
    text = (tmp_path / "evil.md").read_text(encoding="utf-8")
    outside = re.sub(r"^```.*?^```$", "", text, flags=re.S | re.M)
    assert not re.search(r"(?<!\\)<", outside)
    assert escape("a|b\n*c* [d](e)") == r"a\|b \*c\* \[d\](e)"
    assert fence("a\n```\nb")[0] == "````"


def test_choosing_imports_neither_jinja_nor_plotly_nor_numpy() -> None:
    code = (
        "import sys; import edgewise.selector as s; s.select; s.to_json; s.near_misses; s.check_budgets\n"
        "print([m for m in ('numpy', 'jinja2', 'plotly', 'torch', 'msgspec') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_package_gives_functions_not_modules() -> None:
    code = (
        "import edgewise.selector.select, edgewise.selector as s\n"
        "print(callable(s.select), all(getattr(s, n) is not None for n in s.__all__))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True True"


def test_a_missing_extra_names_the_pip_command(report_data: ReportData, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgewise.errors import MissingExtraError

    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'edgewise\[profile\]'"):
        render_report(report_data)
