"""Real models for every test: MiniLM cut to two layers, fine-tuned on movie reviews, exported in several forms.

Made once and kept in the cache folder beside the assets; tune and export find what is finished by its key.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Where Transformers.js is installed, each export would be tried in it too; the tests that mean it set the folder.
os.environ["EDGEWISE_TRANSFORMERSJS"] = os.devnull

from edgewise.assets import asset_path, cache_folder
from edgewise.data import Row, Splits, load_splits
from edgewise.plan import DataSpec, LabelRule, TuneSpec

RECIPES = ("fp32", "fp32-o2", "int8-dynamic", "int8-static")
TINY_TUNE = TuneSpec(epochs=1, batch_size=16, learning_rate=2e-4, max_length=48, keep_layers=(0, 5))


def pytest_configure() -> None:
    """Started in the background, a shell's children ignore SIGINT, and so would what the tests start; a user at a
    terminal has it. What a parent handles in Python is the default again in its children."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def one_at_a_time(name: str) -> FileLock:
    """Held while something in the cache folder is made, which the test workers share."""
    folder = cache_folder() / "tests"
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / f"{name}.lock")


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The pretrained MiniLM checkpoint."""
    return asset_path("all-minilm-l6-v2")


@pytest.fixture(scope="session")
def review_splits() -> Splits:
    """Movie reviews: 1,200 rows to train on, 400 val, 300 confirm."""
    spec = DataSpec(
        path="asset:movie-reviews",
        columns=("id", "score", "text"),
        quoting=False,
        label=LabelRule(column="score", above=0, drop=(0,)),
        split={"train": 0.5, "val": 0.3, "confirm": 0.2},
        rows={"train": 1200, "val": 400, "confirm": 300},
    )
    return load_splits(spec, "text-classification", Path)


@pytest.fixture(scope="session")
def review_rows(review_splits: Splits) -> tuple[Row, ...]:
    """Rows of val, labelled."""
    return review_splits.val


@pytest.fixture(scope="session")
def tuned(minilm: Path, review_splits: Splits) -> Path:
    """A fine-tuned two-layer checkpoint."""
    from edgewise.trainer import tune

    out = cache_folder() / "tests" / "tuned"
    with one_at_a_time("tuned"):
        return tune(minilm, review_splits.train, review_splits.labels, TINY_TUNE, out=out, source_digest="minilm").path


@pytest.fixture(scope="session")
def bundles(tuned: Path, review_splits: Splits) -> dict[str, Path]:
    """Recipe -> bundle folder of that checkpoint. Read only: copy one to change it (`bundle_copy`)."""
    from edgewise.exporter import export

    out = cache_folder() / "tests" / "bundles"
    with one_at_a_time("bundles"):
        results = export(tuned, RECIPES, out=out, candidate="tiny", calibration=review_splits.train)
    assert [r.reason for r in results] == [""] * len(RECIPES)
    return {r.recipe.name: r.bundle.path for r in results if r.bundle}


@pytest.fixture(scope="session")
def fp32_bundle(bundles: dict[str, Path]) -> Path:
    return bundles["fp32"]


@pytest.fixture(scope="session")
def int8_bundle(bundles: dict[str, Path]) -> Path:
    return bundles["int8-dynamic"]


@pytest.fixture
def bundle_copy(int8_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the int8 bundle that a test may break."""
    return Path(shutil.copytree(int8_bundle, tmp_path / "bundle"))


@pytest.fixture
def check_token_times(tmp_path: Path) -> Callable[[Path, list[str]], None]:
    """Profiles a bundle that writes, on texts, and holds its numbers against each other and against the raw times."""

    def check(bundle: Path, texts: list[str]) -> None:
        from edgewise.cli import main
        from edgewise.profiler import Store, entries

        rows, store = tmp_path / "rows.jsonl", tmp_path / "m.sqlite"
        rows.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts), encoding="utf-8")
        command = ["profile", str(bundle), "--data", str(rows), "--store", str(store), "--mode", "quick"]
        assert main([*command, "--seconds", "0.05", "--new-tokens", "6"]) == 0
        with Store(store) as opened:
            (found,) = [m for m in opened.measurements() if m.scenario == "generation"]
            (entry,) = entries(opened)
            samples = opened.samples(found.id or 0)
        assert found.scenario == "generation"
        assert all(set(r["written"]) == {6} for r in found.conditions["generation"])
        values = {n: m.value for n, m in entry.metrics.items() if m.value is not None}
        assert min(values[n] for n in ("ttft_p50", "tpot_p50", "token_throughput", "startup", "peak_rss", "size")) > 0
        means = [sum(s.ns) / len(s.ns) / 1e9 for s in samples]
        assert values["ttft_mean"] + 5 * values["tpot_mean"] == pytest.approx(sum(means) / len(means), rel=1e-6)
        assert values["token_throughput"] <= 6 / min(means)

    return check
