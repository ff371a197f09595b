"""The report in a real browser: no error, no request, and every control does what it says."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from edgewise.selector import ReportData, write_report

CHROMIUM, DRIVER = "/usr/bin/chromium", "/usr/bin/chromedriver"
pytestmark = pytest.mark.skipif(
    not (shutil.which(CHROMIUM) and shutil.which(DRIVER)), reason=f"no {CHROMIUM} with {DRIVER}"
)
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1280,1000",
    "--force-prefers-reduced-motion",  # a page that still scrolls cannot be clicked
)  # fmt: skip
MARKUP = "<img src=x onerror=window.hacked=1><script>window.hacked=2</script>"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def report_file(report_data: ReportData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(path, report_data)
    return path


def visit(browser: Any, path: Path) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    browser.get_log("browser")
    browser.get_log("performance")
    browser.get(f"{path.as_uri()}")
    WebDriverWait(browser, 60).until(lambda b: b.execute_script("return document.documentElement.dataset.ready"))


@pytest.fixture
def page(browser: Any, report_file: Path) -> Any:
    visit(browser, report_file)
    return browser


def requests(browser: Any) -> list[str]:
    """Addresses that the page asked for; not those of the browser's own first page, which may still be loading."""
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    return [url for url in asked if not url.startswith("chrome://")]


def come_near(browser: Any, plot: str) -> None:
    """Scroll to a plot: one that is more than a screen away is not drawn yet."""
    from selenium.webdriver.support.ui import WebDriverWait

    browser.execute_script("document.getElementById(arguments[0]).scrollIntoView()", plot)
    WebDriverWait(browser, 20).until(
        lambda b: b.execute_script("return document.getElementById(arguments[0]).data", plot)
    )


def column(browser: Any, table: str, index: int) -> list[str]:
    """Sort values of the rows that are shown."""
    found: list[str] = browser.execute_script(
        "return [...document.getElementById(arguments[0]).tBodies[0].rows].filter((r) => !r.hidden)"
        ".map((r) => r.cells[arguments[1]].dataset.sort ?? r.cells[arguments[1]].textContent.trim())",
        table,
        index,
    )
    return found


def heads(browser: Any, table: str) -> list[str]:
    found: list[str] = browser.execute_script(
        "return [...document.getElementById(arguments[0]).tHead.rows[0].cells].map((c) => c.textContent.trim())", table
    )
    return found


def press(browser: Any, table: str, head: str, key: str) -> str:
    """Sort by keyboard; what aria-sort says then."""
    from selenium.webdriver.common.by import By

    th = browser.find_elements(By.CSS_SELECTOR, f"#{table} thead th")[heads(browser, table).index(head)]
    th.find_element(By.TAG_NAME, "button").send_keys(key)
    said: str = th.get_attribute("aria-sort")
    return said


def choose(browser: Any, element: str, value: str) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import Select

    Select(browser.find_element(By.ID, element)).select_by_value(value)


def test_it_opens_without_an_error_and_asks_nothing_of_the_network(page: Any, report_file: Path) -> None:
    from selenium.webdriver.common.by import By

    # Touch every part that could load something later.
    choose(page, "x", "size")
    for select in ("latency-rows", "roofline-rows", "startup-rows"):
        choose(page, select, "all")
    page.execute_script("for (const d of document.querySelectorAll('details')) d.open = true; scrollTo(0, 1e6)")
    page.execute_script("dispatchEvent(new Event('beforeprint')); dispatchEvent(new Event('afterprint'))")
    asked = [url for url in requests(page) if not url.startswith(("data:", "blob:"))]
    assert asked == [report_file.as_uri()]
    assert page.get_log("browser") == []
    for plot in ("plot-tradeoff", "plot-latency", "plot-roofline", "plot-startup"):
        drawn = page.find_elements(By.CSS_SELECTOR, f"#{plot} svg.main-svg")
        assert drawn, plot
        assert drawn[0].size["height"] > 100


def test_sorting_by_keyboard_goes_both_ways_and_keeps_unknowns_last(page: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    index = heads(page, "t-all").index("p95")
    assert press(page, "t-all", "p95", Keys.ENTER) == "ascending"
    shown = column(page, "t-all", index)
    assert shown[-2:] == ["", ""], "the two that failed"
    numbers = [float(x) for x in shown[:-2]]
    assert numbers == sorted(numbers)
    assert len(numbers) == 96
    assert press(page, "t-all", "p95", Keys.SPACE) == "descending"
    back = column(page, "t-all", index)
    assert [float(x) for x in back[:-2]] == sorted(numbers, reverse=True)
    assert back[-2:] == ["", ""]
    assert press(page, "t-all", "Candidate", Keys.ENTER) == "ascending"
    words = column(page, "t-all", heads(page, "t-all").index("Candidate"))
    assert words == sorted(words)
    sorts = page.execute_script(
        "return [...document.querySelectorAll('#t-all thead th')].map((t) => t.getAttribute('aria-sort'))"
    )
    assert sorts.count("ascending") == 1
    assert sorts.count("none") == len(sorts) - 1


def test_filters_narrow_the_table_and_say_how_many_are_left(page: Any, report_data: ReportData) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import Select

    count = page.find_element(By.CSS_SELECTOR, "[data-count='t-all']")
    assert count.text == "98 of 98 entries"
    box = page.find_element(By.CSS_SELECTOR, "[data-filter='t-all']")
    box.send_keys("l6-lora STATIC")
    assert count.text == "8 of 98 entries"
    assert set(column(page, "t-all", heads(page, "t-all").index("Recipe"))) == {"int8-static"}
    box.clear()
    box.send_keys("x", Keys.BACKSPACE)
    assert count.text == "98 of 98 entries"
    status = Select(page.find_element(By.CSS_SELECTOR, "select[data-status='t-all']"))
    wanted = {
        "feasible": sum(v.feasible for s in report_data.selections for v in s.verdicts),
        "pareto": sum(v.pareto for s in report_data.selections for v in s.verdicts),
        "failed": 2,
    }
    for value, number in wanted.items():
        status.select_by_value(value)
        assert count.text == f"{number} of 98 entries"
        assert len(column(page, "t-all", 0)) == number


def test_the_axes_and_the_device_switch(page: Any) -> None:
    from selenium.webdriver.common.by import By

    def drawn() -> tuple[str, str, str, list[float]]:
        found: tuple[str, str, str, list[float]] = page.execute_script(
            "const p = document.getElementById('plot-tradeoff');"
            "const said = document.getElementById('sum-tradeoff').textContent;"
            "return [p.layout.xaxis.title.text, p.layout.yaxis.title.text, said,"
            " p.data.flatMap((t) => t.marker && t.text ? t.x : [])]"
        )
        return found

    x, y, said, first = drawn()
    assert (x, y) == ("p95 (ms, lower is better)", "Accuracy (%, higher is better)")
    assert said.startswith("Accuracy against p95 of 48 entries")
    assert "Chosen: l3/int8-dynamic with Accuracy 82.15% and p95 0.730 ms" in said
    choose(page, "x", "peak_rss")
    x, _, said, moved = drawn()
    assert x == "Peak memory (MB, lower is better)"
    assert said.startswith("Accuracy against Peak memory of 48 entries")
    assert moved != first
    choose(page, "x", "p95")
    choose(page, "device", "board")
    _, _, said, board = drawn()
    assert len(board) == 48
    assert board != first
    assert "p95 3.07 ms" in said
    # The other plots follow, and say so, those too that were not drawn before.
    for plot in ("plot-latency", "plot-roofline", "plot-startup"):
        come_near(page, plot)
    page.execute_script("scrollTo(0, 0)")
    keys = page.execute_script(
        "return ['latency', 'roofline', 'startup'].map((n) => document.getElementById(`plot-${n}`).data[0].y[0])"
    )
    assert all(" on board: " in key for key in keys), keys
    named = page.execute_script("return [...document.querySelectorAll('[data-device]')].map((d) => d.textContent)")
    assert named == ["board"] * 3
    lines = page.execute_script("return document.getElementById('plot-tradeoff').layout.shapes.length")
    assert lines == 2, "one line a budget on these axes"
    page.find_element(By.ID, "bars").click()
    assert page.execute_script("return document.getElementById('plot-tradeoff').data.some((t) => t.error_x)")


def test_a_plot_is_drawn_when_it_comes_near(page: Any) -> None:
    data = "return [...document.querySelectorAll('.plot')].map((d) => [d.id, Boolean(d.data), d.clientHeight > 100])"
    found = page.execute_script(data)
    assert found[0][:2] == ["plot-tradeoff", True]
    assert found[-1][:2] == ["plot-startup", False]
    assert all(has_room for _, _, has_room in found), "nothing moves when a plot is drawn"
    page.execute_script(
        "const rows = document.getElementById('startup-rows');"
        "rows.value = 'all'; rows.dispatchEvent(new Event('change'))"
    )
    assert page.execute_script(data)[-1][1] is False
    come_near(page, "plot-startup")
    rows = page.execute_script("return document.getElementById('plot-startup').data[0].y.length")
    assert rows == 48, "drawn as it was asked for last"


def test_a_link_leads_to_its_section_at_once(page: Any) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    page.refresh()  # nothing below was laid out yet
    WebDriverWait(page, 60).until(lambda b: b.execute_script("return document.documentElement.dataset.ready"))
    page.execute_script("arguments[0].click()", page.find_element(By.CSS_SELECTOR, "nav a[href='#startup']"))
    drawn = "return document.getElementById('plot-startup').data"
    WebDriverWait(page, 20).until(lambda b: b.execute_script(drawn))
    top = page.execute_script("return document.getElementById('startup').getBoundingClientRect().top")
    assert 0 <= top < 200


def test_on_paper_every_plot_is_drawn(page: Any) -> None:
    page.execute_script("dispatchEvent(new Event('beforeprint'))")
    drawn = page.execute_script("return [...document.querySelectorAll('.plot')].map((d) => Boolean(d.data))")
    page.execute_script("dispatchEvent(new Event('afterprint'))")
    assert len(drawn) == 4
    assert all(drawn)


def test_a_verdict_opens_and_a_method_link_leads_into_the_closed_block(page: Any) -> None:
    from selenium.webdriver.common.by import By

    summary = page.find_element(By.CSS_SELECTOR, "#t-all tbody tr summary")
    reason = page.find_element(By.CSS_SELECTOR, "#t-all tbody tr details p")
    assert not reason.is_displayed()
    summary.send_keys("\n")
    assert reason.is_displayed()
    assert "Chosen: tied with" in reason.text
    page.execute_script("location.hash = '#M1'")
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(page, 20).until(lambda b: b.find_element(By.ID, "M1").is_displayed())


@pytest.mark.parametrize("width", [360, 1280])
def test_no_part_is_wider_than_the_screen(page: Any, width: int) -> None:
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 700},
    )
    try:
        page.refresh()
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(page, 60).until(lambda b: b.execute_script("return document.documentElement.dataset.ready"))
        page.execute_script("for (const d of document.querySelectorAll('details')) d.open = true")
        assert page.execute_script("return document.documentElement.scrollWidth") <= width
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_long_table_shows_all_of_it_when_asked(page: Any, report_data: ReportData) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    assert len(column(page, "t-slices", 0)) == 24
    count = page.find_element(By.CSS_SELECTOR, "[data-count='t-slices']")
    assert count.text == "96 of 96 rows"
    page.find_element(By.CSS_SELECTOR, "[data-filter='t-slices']").send_keys("l6-lora horror")
    assert count.text == "16 of 96 rows"
    more = page.find_element(By.ID, "t-slices-more")
    assert not more.is_displayed(), "what is left fits"
    page.find_element(By.CSS_SELECTOR, "[data-filter='t-slices']").send_keys(Keys.CONTROL, "a", Keys.DELETE)
    assert more.text == "Show all 96"
    # Sorted first, then cut: the worst of all slices stands on top.
    assert press(page, "t-slices", "Accuracy", Keys.ENTER) == "ascending"
    shown = [float(x) for x in column(page, "t-slices", heads(page, "t-slices").index("Accuracy"))]
    assert shown == sorted(shown)
    more.send_keys(Keys.ENTER)
    whole = [float(x) for x in column(page, "t-slices", heads(page, "t-slices").index("Accuracy"))]
    assert len(whole) == 96
    assert min(whole) == shown[0]
    page.refresh()


def test_it_can_be_used_with_the_keyboard_and_read_aloud(page: Any) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    # From the top: the first stop is the link that skips the rest, and it shows when it has the focus.
    page.execute_script("document.activeElement.blur(); scrollTo(0, 0)")
    page.find_element(By.TAG_NAME, "body").send_keys(Keys.TAB)
    skip = page.switch_to.active_element
    assert skip.text == "Skip to the answer"
    assert skip.location["x"] >= 0
    outline = page.execute_script("return getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none"
    skip.send_keys(Keys.ENTER)
    assert page.execute_script("return document.activeElement.id") == "answer"
    levels = page.execute_script("return [...document.querySelectorAll('h1, h2, h3, h4')].map((h) => +h.tagName[1])")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels)), "no level is skipped"
    for landmark in ("header", "main", "nav[aria-label]", "footer"):
        assert len(page.find_elements(By.CSS_SELECTOR, landmark)) == 1, landmark
    unnamed = page.execute_script(
        "return [...document.querySelectorAll('input, select, button')].filter((e) => !e.textContent.trim() &&"
        " !(e.labels && e.labels.length) && !e.closest('.modebar') && !e.hidden).map((e) => e.outerHTML)"
    )
    assert unnamed == []
    # What a plot shows stands beside it in a table or in words.
    for plot in page.find_elements(By.CSS_SELECTOR, "[role=img]"):
        said = page.find_element(By.ID, plot.get_attribute("aria-describedby"))
        assert len(said.text) > 60
    assert page.find_element(By.ID, "sum-tradeoff").get_attribute("aria-live") == "polite"
    assert len(page.find_elements(By.CSS_SELECTOR, "details.as-table table")) == 3


def contrast(one: str, two: str) -> float:
    """WCAG contrast of two CSS colours rgb(...)."""

    def light(text: str) -> float:
        parts = [int(x) / 255 for x in re.findall(r"\d+", text)[:3]]
        r, g, b = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    high, low = sorted((light(one), light(two)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_in_light_and_in_dark(browser: Any, report_file: Path, scheme: str) -> None:
    features = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", features)
    try:
        visit(browser, report_file)
        colours = browser.execute_script(
            "const s = (q) => getComputedStyle(document.querySelector(q));"
            "const back = s('body').backgroundColor, panel = s('.answer').backgroundColor;"
            "const outside = ['h1', '.brand', 'nav a', 'caption', '.status.bad', 'td small', '.kind.unavailable'];"
            "const inside = ['.sentence', '.confirm', '.tiles dt', '.answer .status.ok'];"
            "return [...outside.map((q) => [q, s(q).color, back]), ...inside.map((q) => [q, s(q).color, panel]),"
            "...['.pill.ok', '.pill.wait'].map((q) => [q, s(q).color, s(q).backgroundColor])]"
        )
        plot = browser.execute_script("return document.getElementById('plot-tradeoff').layout.font.color")
        dark_back = sum(int(x) for x in re.findall(r"\d+", colours[0][2])[:3]) < 200
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert dark_back == (scheme == "dark")
    for place, ink, ground in colours:
        assert contrast(ink, ground) >= 4.5, (place, ink, ground)
    assert plot == {"light": "#1b1f24", "dark": "#e6e9ed"}[scheme]


def test_markup_in_names_and_texts_stays_text(
    browser: Any, report_data: ReportData, tmp_path: Path, make_report: Callable[..., ReportData]
) -> None:
    report = make_report(("here",))
    (selection,) = report.selections

    def spoil(verdict: Any) -> Any:
        return replace(verdict, reason=MARKUP, entry=replace(verdict.entry, candidate=MARKUP, recipe="<b>" + MARKUP))

    verdicts = tuple(spoil(v) for v in selection.verdicts)
    spoiled = replace(selection, sentence=MARKUP, device=MARKUP, chosen=verdicts[0], verdicts=verdicts)
    changed = tuple(replace(c, text=MARKUP, label=MARKUP, answer=MARKUP) for c in report.changed)
    samples = {v.entry.key: [0.001, 0.002, 0.003] for v in verdicts}
    slices = [{"slice": f"genre = {MARKUP}", "rows": [0], "accuracy": 0.5, "low": 0.1, "high": 0.9}]
    first = verdicts[0].entry
    measured = replace(report.measurements[1], content_digest=first.content_digest, target=first.target)
    measured = replace(measured, scenario="accuracy", conditions={"slices": slices, MARKUP: MARKUP})
    what_if = tuple(replace(w, words=MARKUP) for w in selection.what_if)
    assert what_if
    path = tmp_path / "evil.html"
    write_report(
        path,
        replace(
            report, title=MARKUP, selections=(replace(spoiled, what_if=what_if),), changed=changed, samples=samples,
            measurements=(measured,), plan=MARKUP, command=MARKUP, machines={MARKUP: {MARKUP: MARKUP}},
        ),
    )  # fmt: skip
    visit(browser, path)
    # The hover text is made by plotly, which reads a little HTML.
    browser.execute_script("Plotly.Fx.hover('plot-tradeoff', [{ curveNumber: 1, pointNumber: 0 }])")
    assert browser.execute_script("return window.hacked") is None
    assert browser.execute_script("return document.images.length") == 0
    assert browser.title.startswith(MARKUP)
    hover = browser.execute_script("return document.querySelector('#plot-tradeoff .hoverlayer').textContent")
    assert "onerror=window.hacked=1" in hover
    legend = browser.execute_script("return document.querySelector('#plot-tradeoff .legend').textContent")
    assert MARKUP in legend
    for table in ("t-changed", "t-slices", "t-all", "t-measurements"):
        assert "hacked=2" in browser.execute_script(f"return document.getElementById('{table}').textContent"), table
    assert browser.get_log("browser") == []
    assert [u for u in requests(browser) if not u.startswith(("data:", "blob:"))] == [path.as_uri()]


def test_it_prints_with_every_reason_open_and_closes_them_again(page: Any) -> None:
    closed = "return [...document.querySelectorAll('details:not([open])')].map((d) => d.id)"
    before = page.execute_script(closed)
    assert len(before) > 90
    page.execute_script("dispatchEvent(new Event('beforeprint'))")
    assert page.execute_script(closed) == ["all-measurements"], "most of the pages, printed when it is open"
    # A reason stands in a row of its own, below that of its entry, and no row is cut off.
    below = page.execute_script("return document.querySelector('#t-all tbody tr.spread').textContent")
    assert below.startswith("Chosen: tied with")
    assert page.execute_script("return document.querySelectorAll('#t-all tr.spread').length") == 98
    assert page.execute_script("return document.querySelectorAll('tbody tr[hidden]').length") == 0
    page.execute_script("dispatchEvent(new Event('afterprint'))")
    assert page.execute_script(closed) == before
    assert page.execute_script("return document.querySelectorAll('tr.spread').length") == 0


def test_a_thousand_measurements_open_and_sort(browser: Any, report_data: ReportData, tmp_path: Path) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    path = tmp_path / "many.html"
    measurements = tuple(replace(m, id=i) for i, m in enumerate((report_data.measurements * 6)[:1000]))
    write_report(path, replace(report_data, measurements=measurements))
    visit(browser, path)
    took = browser.execute_script("return performance.getEntriesByType('navigation')[0].loadEventEnd")
    print(f"opened in {took:.0f} ms")  # said, not asserted
    # So many are unpacked when they are asked for.
    assert browser.execute_script("return document.getElementById('t-measurements')") is None
    browser.execute_script("document.getElementById('all-measurements').open = true")
    WebDriverWait(browser, 60).until(
        lambda b: b.execute_script("return document.getElementById('t-measurements-more')")
    )
    assert browser.execute_script("return document.querySelectorAll('#t-measurements tbody tr').length") == 1000
    press(browser, "t-measurements", "No.", Keys.ENTER)
    assert press(browser, "t-measurements", "No.", Keys.ENTER) == "descending"
    assert column(browser, "t-measurements", 0)[:2] == ["999", "998"]
    browser.find_element(By.CSS_SELECTOR, "[data-filter='t-measurements']").send_keys("no such words")
    assert column(browser, "t-measurements", 0) == []
    # A link into them opens them, too.
    browser.get("about:blank")
    visit(browser, path)
    browser.execute_script("location.hash = '#M1'")
    WebDriverWait(browser, 60).until(
        lambda b: b.execute_script("return document.getElementById('all-measurements').open")
    )
    assert browser.execute_script("return document.getElementById('M1').getBoundingClientRect().top") < 1000
    assert browser.get_log("browser") == []
