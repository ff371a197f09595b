"""How long a report takes to open in a browser.

Two reports: of the 72 points that `benchmarks/search.py --run first` measured, and of that store seven times over,
under other names: 1,008 measurements, 504 points. Each is opened in a fresh headless Chromium with an empty profile,
from the disk, in turn: in a browser that has been open for three seconds, and in one that is starting.
Timed by the page's own clock (Navigation Timing, W3C): from the start of the navigation until the text stands there and
tables can be used (load event), and until what is seen was painted, the first plot. Plots further down are drawn when
they come near: from a jump to the last plot until it was painted (without smooth scrolling, which takes a second).

    python benchmarks/report_opening.py

Needs Debian's packages chromium and chromium-driver, and an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from conditions import here, save, spread
from minilm import ROOT

from edgewise.profiler import Store

CHROMIUM, DRIVER = "/usr/bin/chromium", "/usr/bin/chromedriver"
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--window-size=1280,1000",
         "--force-prefers-reduced-motion")  # fmt: skip
TIMES, ROUNDS = 7, 9
OPEN_FOR = {"open": 3.0, "starting": 0.0}
"""Seconds that the browser has been open."""
PAINTED = """
const done = arguments[arguments.length - 1], last = [...document.querySelectorAll(".plot")].pop();
const until = (holds) => new Promise((then) => { const look = () => holds() ? then() : setTimeout(look, 1); look(); });
const painted = () => new Promise((then) => requestAnimationFrame(() => setTimeout(() => then(performance.now()))));
(async () => {
  await until(() => document.documentElement.dataset.ready);
  const opened = await painted();
  location.hash = last.closest("section").id; // as the link at the top does
  await until(() => last.data);
  done([performance.getEntriesByType("navigation")[0].loadEventEnd, opened, await painted() - opened]);
})();
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, default=ROOT / "runs" / "search" / "first.sqlite")
    args = parser.parse_args()
    if not args.store.is_file():
        raise SystemExit(f"{args.store} is not there: make it by `python benchmarks/search.py --run first`")
    with tempfile.TemporaryDirectory() as name:
        pages = dict([made(args.store, 1, Path(name)), made(args.store, TIMES, Path(name))])
        found: dict[tuple[int, str], list[tuple[float, ...]]] = {(c, b): [] for c in pages for b in OPEN_FOR}
        for _ in range(ROUNDS):
            for (count, browser), times in found.items():
                times.append(opened(pages[count], OPEN_FOR[browser]))
        sizes = {count: page.stat().st_size for count, page in pages.items()}
    rows = []
    for (count, browser), times in found.items():
        text, first, last = ([t[i] / 1e3 for t in times] for i in range(3))
        row = {"text_s": spread(text), "first_plot_s": spread(first), "jump_to_last_plot_s": spread(last)}
        rows.append({"measurements": count, "bytes": sizes[count], "browser": browser, **row})
        said = ", ".join(f"{name.removesuffix('_s')} {value['median']:.2f} s" for name, value in row.items())
        print(f"{count:>6,} measurements, {sizes[count] / 1e6:.1f} MB, browser {browser}: {said}")
    save("report_opening", {**here(), "what": __doc__, "rounds": ROUNDS, "rows": rows})


def made(source: Path, times: int, folder: Path) -> tuple[int, Path]:
    """(measurements, page) of the store so many times over, each time under other names."""
    store, page = folder / f"{times}.sqlite", folder / f"{times}.html"
    with Store(source) as old, Store(store) as new:
        for m in old.measurements():
            samples, outcomes = old.samples(m.id or 0), old.outcomes(m.id or 0)
            for k in range(times):
                digest = f"sha256:{hashlib.sha256(f'{m.content_digest} {k}'.encode()).hexdigest()}"
                name = f"{m.candidate}-{k}" if k else m.candidate
                new.add(replace(m, id=None, candidate=name, content_digest=digest), samples, outcomes)
        count = new.last()
    subprocess.run(
        [sys.executable, "-m", "edgewise", "report", str(store), "-o", str(page), "--budget", "accuracy >= 70 %",
         "--budget", "p95 <= 10 ms", "--objective", "p95,accuracy"],
        check=True,
    )  # fmt: skip
    return count, page


def opened(page: Path, open_for: float) -> Any:
    """Milliseconds until the text stands there, until what is seen was painted, and of a jump to the last plot."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    with tempfile.TemporaryDirectory() as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        driver = webdriver.Chrome(options=options, service=Service(DRIVER))
        try:
            driver.get("about:blank")
            time.sleep(open_for)
            driver.get(page.as_uri())
            return driver.execute_async_script(PAINTED)
        finally:
            driver.quit()


if __name__ == "__main__":
    main()
