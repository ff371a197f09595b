"""A start of a bundle that was hashed before begins with its session, and ends as any other start does."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import edgewise
from edgewise.bundle import MANIFEST
from edgewise.errors import BundleChangedError, BundleError, PlanError, UserError
from edgewise.runtime import session
from edgewise.runtime.early import begin_early
from edgewise.runtime.many import begin, in_order


@pytest.fixture
def stamped(bundle_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle whose hashes are known to be right, in a cache of this test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    edgewise.load(bundle_copy).close()
    return bundle_copy


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[session.Settings]:
    """The settings of every session that is made, in order."""
    found: list[session.Settings] = []
    real = session.create

    def create(file: str, settings: session.Settings) -> object:
        found.append(settings)
        return real(file, settings)

    monkeypatch.setattr(session, "create", create)
    return found


def test_first_load_hashes_and_later_ones_begin_early(
    bundle_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    options = {"threads": None, "level": None, "allow_spinning": True}
    assert begin_early(bundle_copy, **options) is None
    with edgewise.load(bundle_copy) as first:
        told = first.predict(["a fine film"])
    early = begin_early(bundle_copy, **options)
    assert early is not None
    assert [m.file for m in early.wait()[0]] == ["onnx/model.onnx"]
    with edgewise.load(bundle_copy) as later:
        assert later.predict(["a fine film"]) == told
        assert later.providers == ("CPUExecutionProvider",)
        assert all(ns >= 0 for ns in later.phases.values())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"threads": 2},
        {"graph_optimization": "basic"},
        {"allow_spinning": False},
        {"provider": "cpu", "max_length": 32, "parallel": 3},
        {"provider": ["cpu"]},
        {"record_placement": True},
    ],
)
def test_one_session_is_made_with_what_was_asked(stamped: Path, made: list[session.Settings], options: dict) -> None:
    with edgewise.load(stamped, **options) as model:
        assert model("a fine film")
    (settings,) = made
    assert settings.threads == options.get("threads", 1)
    assert settings.level == options.get("graph_optimization", "all")
    assert settings.options.allow_spinning is options.get("allow_spinning", True)
    assert settings.options.record_placement is options.get("record_placement", False)


def test_settings_of_the_bundle_are_those_of_the_early_session(stamped: Path, made: list[session.Settings]) -> None:
    manifest = json.loads((stamped / MANIFEST).read_text())
    manifest["run"] |= {"threads": 2, "graph_optimization": "extended"}
    (stamped / MANIFEST).write_text(json.dumps(manifest))
    edgewise.load(stamped).close()  # hashes again: the manifest is another
    edgewise.load(stamped).close()
    assert [(s.threads, s.level) for s in made] == [(2, "extended")] * 2


def test_changed_file_is_found_before_it_is_loaded(stamped: Path, made: list[session.Settings]) -> None:
    graph = stamped / "onnx" / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"\0")
    with pytest.raises(BundleChangedError):
        edgewise.load(stamped)
    assert made == []


def test_moved_bundle_is_hashed_again(stamped: Path, tmp_path: Path, made: list[session.Settings]) -> None:
    moved = Path(shutil.move(stamped, tmp_path / "moved"))
    assert begin_early(moved, threads=None, level=None, allow_spinning=True) is None
    edgewise.load(moved).close()
    assert len(made) == 1


def test_mistakes_are_said_as_ever(stamped: Path) -> None:
    with pytest.raises(PlanError, match="threads is 0"):
        edgewise.load(stamped, threads=0)
    with pytest.raises(UserError, match="max_length is 99999"):
        edgewise.load(stamped, max_length=99999)
    with pytest.raises(BundleError, match="is for text-classification, not for fill-mask"):
        edgewise.load(stamped, task="fill-mask")
    with pytest.raises(PlanError, match="parallel is 0"):
        edgewise.load(stamped, parallel=0)
    with edgewise.load(stamped) as model:
        assert model("a fine film")


def test_session_that_fails_early_is_said_by_the_load(stamped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(file: str, settings: session.Settings) -> object:
        raise RuntimeError("no memory")

    monkeypatch.setattr(session, "create", fail)
    with pytest.raises(BundleError, match=r"model\.onnx does not load .* no memory"):
        edgewise.load(stamped)


def test_broken_tokenizer_is_said_while_the_session_is_made(
    bundle_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (bundle_copy / "tokenizer.json").write_text("{}")
    with pytest.raises(BundleError, match="is no tokenizer"):
        edgewise.load(bundle_copy, verify="none")


def test_unreadable_stamp_is_no_stamp(stamped: Path, tmp_path: Path) -> None:
    (stamp,) = (tmp_path / "cache" / "edgewise" / "stamps").iterdir()
    for text in ("", "[]", "{", '{"folder": 3}', "\udcff"):
        stamp.write_text(text, encoding="utf-8", errors="surrogateescape")
        assert begin_early(stamped, threads=None, level=None, allow_spinning=True) is None
        edgewise.load(stamped).close()
        assert begin_early(stamped, threads=None, level=None, allow_spinning=True) is not None


def test_begin_gives_the_result_or_the_error() -> None:
    assert begin(lambda: 3)() == 3
    failing = begin(lambda: {}["key"])
    for _ in range(2):
        with pytest.raises(KeyError):
            failing()


def test_error_stands_where_its_answer_would() -> None:
    from concurrent.futures import ThreadPoolExecutor

    def answer(batch):
        if batch == [30]:
            raise ValueError("thirty")
        return batch

    with ThreadPoolExecutor(2) as pool:
        found = in_order(range(100), answer, 1, pool, 2)
        assert [next(found) for _ in range(30)] == list(range(30))
        with pytest.raises(ValueError, match="thirty"):
            next(found)
        assert list(in_order(range(99), lambda b: b, 4, pool, 2)) == list(range(99))


ORDER = """
import sys
import edgewise
edgewise.load(sys.argv[1])("a fine film")
print(*sys.modules)
"""


def test_start_imports_onnxruntime_first_and_little_else(int8_bundle: Path) -> None:
    edgewise.load(int8_bundle).close()  # stamps it
    done = subprocess.run(
        [sys.executable, "-c", ORDER, str(int8_bundle)], stdout=subprocess.PIPE, text=True, check=True, timeout=120
    )
    order = done.stdout.splitlines()[-1].split()
    assert order.index("onnxruntime") < order.index("edgewise.bundle") < order.index("tokenizers")
    unwanted = {"logging", "concurrent.futures", "asyncio", "PIL", "torch", "transformers", "huggingface_hub"}
    assert unwanted & set(order) == set()
