"""`edgewise report` on a store of real outcomes, and on a run folder: examples, and the report without any."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgewise.cli import main
from edgewise.data import Row
from edgewise.profiler import Store
from edgewise.profiler.comparison import compare_with_reference
from edgewise.profiler.store import Outcome, Sample
from edgewise.results import read_examples, report_data, write_report_files
from edgewise.rundir import RunFolder
from edgewise.selector import select
from edgewise.types import Measurement, Metric, Target

EVIL = "<script>window.hacked=1</script> a fine | film `of` ours"
ROWS = [Row(text=EVIL, label="good")] + [
    Row(text=f"Film {i} of this year", label=["bad", "good"][i % 2]) for i in range(39)
]
LABELS = ("bad", "good")
CONDITIONS = {"fingerprint": {"cpu": "made up", "memory": 8_000_000_000}, "fingerprint_digest": "sha256:m"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """fp32 is always right; int8 loses the first row and two more."""
    path = tmp_path_factory.mktemp("run") / "measurements.sqlite"
    with Store(path) as store:
        answered = []
        for recipe, wrong, p95 in (("fp32", (), 0.004), ("int8-dynamic", (0, 7, 8), 0.002)):
            found = _answers(recipe, wrong)
            answered.append(_added(store, found[0], outcomes=found[1]))
            timed = Metric("p95", "s", p95, p95 * 0.9, p95 * 1.1, 0.95, n=200)
            m = Measurement("mine", recipe, f"sha256:{recipe}", Target(), "single-stream", "profile", metrics=(timed,))
            samples = [Sample(0, 0, [int(1e9 * p95 * (1 + i / 300)) for i in range(100)])]
            _added(store, _with(m, metrics=(timed, Metric("size", "B", 1e6 * len(recipe)))), samples=samples)
        compare_with_reference(store, answered)
    return path


def _with(m: Measurement, **changes: Any) -> Measurement:
    from dataclasses import replace

    return replace(m, conditions=CONDITIONS, **changes)


def _answers(recipe: str, wrong: tuple[int, ...]) -> tuple[Measurement, list[Outcome]]:
    labels = [LABELS.index(row.label or "") for row in ROWS]
    outcomes = [
        Outcome(r.id, 1 - y if i in wrong else y, y, 0.9) for i, (r, y) in enumerate(zip(ROWS, labels, strict=True))
    ]
    right = 1 - len(wrong) / len(ROWS)
    accuracy = Metric("accuracy", "1", right, right - 0.1, min(1.0, right + 0.1), 0.95, n=len(ROWS))
    m = Measurement("mine", recipe, f"sha256:{recipe}", Target(), "accuracy", "profile", metrics=(accuracy,))
    return _with(m, inputs_digest="sha256:rows"), outcomes


def _added(store: Store, m: Measurement, **more: Any) -> Measurement:
    from dataclasses import replace

    return replace(m, id=store.add(m, **more))


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": r.text, "label": r.label}) + "\n" for r in ROWS), encoding="utf-8")
    return path


def test_a_store_with_its_rows_shows_the_answers_that_changed(store: Path, rows: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.json"
    given = ["report", str(store), "--budget", "size <= 20 MB", "--data", str(rows), "-o", str(out)]
    assert main(given) == 0
    told = json.loads(out.read_text(encoding="utf-8"))
    found = told["changed_answers"]["examples"]
    assert [(e["text"], e["label"], e["reference"], e["answer"]) for e in found] == [
        (EVIL, "good", "good", "bad"),
        (ROWS[7].text, "bad", "bad", "good"),
        (ROWS[8].text, "good", "good", "bad"),
    ]
    assert found[0]["bundle"] == "mine/int8-dynamic"
    assert told["command"] == " ".join(
        f"edgewise report {store} --budget 'size <= 20 MB' --data {rows} -o {out}".split()
    )


@pytest.mark.parametrize("form", ["html", "md", "json"])
def test_no_examples_leaves_out_every_text(store: Path, rows: Path, tmp_path: Path, form: str) -> None:
    out = tmp_path / f"r.{form}"
    assert main(["report", str(store), "--data", str(rows), "--no-examples", "-o", str(out)]) == 0
    text = out.read_text(encoding="utf-8")
    assert "mine" in text
    assert not any(r.text in text for r in ROWS)
    assert "a fine" not in text
    if form == "html":
        assert "3 changed answers are not shown, as asked" in text


def test_rows_that_were_not_measured_are_an_error(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.csv"
    other.write_text("text,label\nsomething else,good\n", encoding="utf-8")
    out = tmp_path / "r.html"
    assert main(["report", str(store), "--data", str(other), "-o", str(out)]) == 2
    assert f"--data {other}: none of its rows was measured in {store}" in capsys.readouterr().err
    assert not out.exists()


def test_a_run_folder_keeps_its_examples(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from edgewise.profiler import entries
    from edgewise.results import write_selection

    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    folder.store.write_bytes(store.read_bytes())
    with Store(folder.store) as made:
        selection = select(entries(made), [], ["p95"])
        texts = {r.id: r.text for r in ROWS}
        data = report_data(made, [selection], title="t", command="c", texts=texts, labels=LABELS)
    write_selection(folder, [selection], {})
    write_report_files(folder, data)
    assert read_examples(folder) == data.changed
    assert len(data.changed) == 3
    out = tmp_path / "again.html"
    assert main(["report", str(folder.path), "-o", str(out)]) == 0
    assert ROWS[7].text in out.read_text(encoding="utf-8")
    assert main(["report", str(folder.path), "--no-examples", "-o", str(out)]) == 0
    assert ROWS[7].text not in out.read_text(encoding="utf-8")

    examples = folder.path / "examples.json"
    examples.write_text("[{}]", encoding="utf-8")
    assert main(["report", str(folder.path), "-o", str(out)]) == 2
    assert "is no file of examples" in capsys.readouterr().err
    examples.unlink()
    assert main(["report", str(folder.path), "-o", str(out)]) == 0
    assert ROWS[7].text not in out.read_text(encoding="utf-8")


def test_the_latency_plot_is_of_the_raw_samples(store: Path) -> None:
    from edgewise.profiler import entries

    with Store(store) as made:
        selection = select(entries(made), [], ["p95"])
        data = report_data(made, [selection], title="t", command="c")
    assert {k: (min(v), max(v)) for k, v in data.samples.items()} == {
        "mine/fp32 on here: cpu, 1 thread": (pytest.approx(0.004), pytest.approx(0.004 * (1 + 99 / 300), rel=1e-6)),
        "mine/int8-dynamic on here: cpu, 1 thread": (pytest.approx(0.002), pytest.approx(0.002 * 1.33, rel=1e-6)),
    }
    assert data.changed == ()


@pytest.mark.parametrize("option", [("--objective", "size"), ("--confidence", "0.8"), ("--machine", "EPYC")])
def test_an_option_that_would_change_nothing_of_a_run_is_refused(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: tuple[str, str]
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "measurements.sqlite").write_bytes(store.read_bytes())
    (run / "selection.json").write_text("{}")
    assert main(["report", str(run), "-o", str(tmp_path / "r.md"), *option]) == 2
    assert (
        f"{option[0]} {option[1]}: the plan of {run} chose; to choose anew give --budget too" in capsys.readouterr().err
    )
    assert not (tmp_path / "r.md").exists()


def test_a_column_without_rows_is_refused(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "r.md"
    assert main(["report", str(store), "-o", str(out), "--label", "stars"]) == 2
    assert "--label stars: names a column of --data, which is not given" in capsys.readouterr().err
    assert not out.exists()


def test_a_store_is_chosen_from_by_what_it_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And an objective that nothing was measured by is an error, not a tie of all."""
    path = tmp_path / "m.sqlite"
    with Store(path) as new:
        for name, f1, rate in (("a", 0.8, 100.0), ("b", 0.7, 900.0)):
            rates = Metric("token_throughput", "1/s", rate, rate * 0.99, rate * 1.01, 0.95, n=5)
            timed = Measurement(name, "fp32", f"sha256:{name}", Target(), "generation", "profile", metrics=(rates,))
            new.add(_with(timed))
            score = Metric("f1", "1", f1, f1 - 0.01, f1 + 0.01, 0.95, n=5000)
            new.add(
                _with(Measurement(name, "fp32", f"sha256:{name}", Target(), "accuracy", "profile", metrics=(score,)))
            )
    assert main(["select", str(path)]) == 0
    assert "f1 80.00%, token_throughput 100 /s" in " ".join(capsys.readouterr().out.split())
    assert main(["select", str(path), "--objective", "accuracy"]) == 2
    assert "nothing in " in (told := capsys.readouterr().err)
    assert "was measured by it; it has f1, token_throughput" in told
