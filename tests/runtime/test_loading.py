"""Loading: what is hashed when, which provider runs, which bundles are refused, forks and closing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import edgewise
from edgewise import bundle as bundle_module
from edgewise.bundle import MANIFEST, read_bundle
from edgewise.errors import BundleChangedError, BundleError, InputError, PlanError, ProviderError

TEXTS = ["a fine film", "a dull mess", "neither good nor bad"]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of its own, where no bundle is known to be right."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were hashed, as it happens."""
    found: list[str] = []
    real = bundle_module.sha256_file

    def spy(path: Path) -> str:
        found.append(path.name)
        return real(path)

    monkeypatch.setattr(bundle_module, "sha256_file", spy)
    return found


def answers(path: Path, **options: Any) -> list[Any]:
    with edgewise.load(path, **options) as model:
        return [p.logits for p in model.predict(TEXTS)]


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    told = json.loads((folder / MANIFEST).read_text())
    change(told)
    (folder / MANIFEST).write_text(json.dumps(told))


# ---- what is hashed when


def test_files_are_hashed_once(bundle_copy: Path, cache: Path, hashed: list[str]) -> None:
    files = {Path(name).name for name in read_bundle(bundle_copy, verify="none").manifest.files}
    first = answers(bundle_copy)
    assert set(hashed) == files
    hashed.clear()
    assert answers(bundle_copy) == first
    assert answers(bundle_copy, expect=read_bundle(bundle_copy, verify="none").digest) == first
    assert hashed == []
    assert len(list((cache / "edgewise" / "stamps").iterdir())) == 1
    assert answers(bundle_copy, verify="full") == first
    assert set(hashed) == files
    hashed.clear()
    assert answers(bundle_copy, verify="none") == first
    assert hashed == []


def test_a_changed_file_is_noticed_though_it_was_hashed(bundle_copy: Path, cache: Path, hashed: list[str]) -> None:
    edgewise.load(bundle_copy).close()
    graph = bundle_copy / "onnx" / "model.onnx"
    told = graph.stat()
    content = bytearray(graph.read_bytes())
    content[len(content) // 2] ^= 1
    graph.write_bytes(content)
    os.utime(graph, ns=(told.st_atime_ns, told.st_mtime_ns))  # its size and time are what they were
    with pytest.raises(BundleChangedError, match=r"model\.onnx has sha256"):
        edgewise.load(bundle_copy)
    graph.unlink()
    with pytest.raises(BundleChangedError, match=r"model\.onnx is missing"):
        edgewise.load(bundle_copy)


def test_what_was_touched_or_copied_is_hashed_again(bundle_copy: Path, tmp_path: Path, cache, hashed) -> None:
    first = answers(bundle_copy)
    hashed.clear()
    (bundle_copy / "config.json").touch()
    assert answers(bundle_copy) == first
    assert "config.json" in hashed
    hashed.clear()
    assert answers(bundle_copy) == first
    assert hashed == []
    assert answers(Path(shutil.copytree(bundle_copy, tmp_path / "twin"))) == first
    assert "model.onnx" in hashed
    hashed.clear()
    edit(bundle_copy, lambda told: told.update(run={"threads": 2}))
    with edgewise.load(bundle_copy) as model:
        assert model.run.threads == 2
    assert "model.onnx" in hashed


@pytest.mark.parametrize("content", ["", "[]", "{", '{"manifest": 3}'])
def test_a_broken_stamp_is_none(bundle_copy: Path, cache: Path, hashed: list[str], content: str) -> None:
    edgewise.load(bundle_copy).close()
    (stamp,) = (cache / "edgewise" / "stamps").iterdir()
    stamp.write_text(content)
    hashed.clear()
    edgewise.load(bundle_copy).close()
    assert "model.onnx" in hashed


def test_a_cache_that_cannot_be_written(bundle_copy: Path, tmp_path: Path, hashed, monkeypatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    first = answers(bundle_copy)
    hashed.clear()
    assert answers(bundle_copy) == first
    assert "model.onnx" in hashed


def test_a_word_that_is_no_way_to_verify(bundle_copy: Path) -> None:
    with pytest.raises(BundleError, match="verify='fully'; expected 'full', 'stamp', 'none'"):
        edgewise.load(bundle_copy, verify="fully")  # type: ignore[arg-type]


# ---- providers


def test_the_first_provider_that_runs_is_taken(int8_bundle: Path) -> None:
    expected = answers(int8_bundle)
    for options in (
        {"provider": ["cuda", "cpu"]},
        {"provider": ("tensorrt", "coreml", "cpu", "cuda")},
        {"provider": "cuda", "fallback": True},
        {"provider": ["cuda", "qnn"], "fallback": True},
        {"provider": ["cuda", "cpu"], "provider_options": {"device_id": "0"}},
        {"fallback": True},
    ):
        assert answers(int8_bundle, **options) == expected
    with edgewise.load(int8_bundle, provider="cuda", fallback=True) as model:
        assert model.run.provider == "cpu"
        assert model.providers == ("CPUExecutionProvider",)


@pytest.mark.parametrize(
    ("provider", "error", "message"),
    [
        ("cuda", ProviderError, "'cuda' is not in this onnxruntime"),
        (["cuda"], ProviderError, "'cuda' is not in this onnxruntime"),
        (["cuda", "qnn"], ProviderError, r"none of the providers runs: provider 'cuda'.*; provider 'qnn'"),
        ([], PlanError, "provider is an empty list"),
        (["cpu", "cuta"], PlanError, "did you mean 'cuda'"),
    ],
)
def test_providers_that_do_not_run(int8_bundle: Path, provider: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        edgewise.load(int8_bundle, provider=provider)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("verify", ["full", "stamp"])
def test_spinning_changes_no_answer(int8_bundle: Path, verify: Any) -> None:
    expected = answers(int8_bundle, threads=2)
    assert answers(int8_bundle, threads=2, allow_spinning=False, verify=verify) == expected


def test_settings_reach_a_bundle_that_was_hashed_before(bundle_copy: Path, cache: Path) -> None:
    """Its session is begun before its manifest is read in full."""
    edgewise.load(bundle_copy).close()
    plain = answers(bundle_copy)
    for options in (
        {"threads": 2},
        {"graph_optimization": "disabled"},
        {"graph_optimization": "basic", "threads": 1},
        {"batch_size": 3},
        {"record_placement": True},
    ):
        with edgewise.load(bundle_copy, **options) as model:
            assert {getattr(model.run, name, value) for name, value in options.items()} == set(options.values())
            found = [p.logits for p in model.predict(TEXTS)]
            if "record_placement" in options:
                assert model.placement()["CPUExecutionProvider"] > 10
        if set(options) <= {"threads", "record_placement"}:
            assert found == plain
    edit(bundle_copy, lambda told: told.update(run={"max_length": 4}))
    edgewise.load(bundle_copy).close()
    with edgewise.load(bundle_copy) as model:  # of the second load, which finds the hashes known
        assert model.predict(["one two three four five"])[0].n_tokens == 4


# ---- bundles that are refused


def test_a_bundle_of_another_task(bundle_copy: Path) -> None:
    edgewise.load(bundle_copy, task="text-classification").close()
    with pytest.raises(BundleError, match="is for text-classification, not for fill-mask"):
        edgewise.load(bundle_copy, task="fill-mask")
    with pytest.raises(PlanError, match="did you mean 'text-classification'"):
        edgewise.load(bundle_copy, task="text-clasification")  # type: ignore[call-overload]
    edit(bundle_copy, lambda told: told.update(task="audio-classification"))
    with pytest.raises(BundleError, match="'audio-classification', which this edgewise does not know: update it"):
        edgewise.load(bundle_copy, verify="none")


@pytest.mark.parametrize("verify", ["stamp", "none"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda g: g["inputs"][0].update(name="position_ids"), "takes inputs"),
        (lambda g: g["inputs"][0].update(dtype="int32"), "takes inputs"),
        (lambda g: g["inputs"].pop(), "takes inputs"),
        (lambda g: g["outputs"][0].update(name="scores"), "gives outputs"),
    ],
)
def test_a_graph_that_is_not_the_manifests(bundle_copy: Path, cache, verify: Any, change: Any, message: str) -> None:
    edit(bundle_copy, lambda told: change(told["graphs"][0]))
    for _ in range(2):  # the second load finds the hashes known
        with pytest.raises(BundleChangedError, match=message) as caught:
            edgewise.load(bundle_copy, verify=verify)
        assert "export the bundle again" in str(caught.value)


def test_a_graph_that_takes_what_is_no_text(bundle_copy: Path) -> None:
    import onnx

    file = bundle_copy / "onnx" / "model.onnx"
    graph = onnx.load(file)
    graph.graph.input.append(onnx.helper.make_tensor_value_info("pixels", onnx.TensorProto.INT64, [1]))
    graph.graph.node.append(onnx.helper.make_node("Identity", ["pixels"], ["unused"]))
    onnx.save(graph, file)
    edit(
        bundle_copy, lambda told: told["graphs"][0]["inputs"].append({"name": "pixels", "dtype": "int64", "shape": [1]})
    )
    with pytest.raises(BundleError, match="its graph takes pixels, which no text can be turned into"):
        edgewise.load(bundle_copy, verify="none")


def test_a_broken_tokenizer(bundle_copy: Path) -> None:
    for content in ("{", "", '{"model": 3}'):
        (bundle_copy / "tokenizer.json").write_text(content)
        with pytest.raises(BundleError, match=r"tokenizer\.json is no tokenizer that tokenizers can read"):
            edgewise.load(bundle_copy, verify="none")


# ---- closed, and forked


def test_every_call_of_a_closed_model_says_so(int8_bundle: Path) -> None:
    with edgewise.load(int8_bundle, parallel=2) as model:
        under_way = model(iter(TEXTS * 10))
        next(under_way)
    model.close()  # a second time
    calls: list[Callable[[], Any]] = [
        lambda: model("x"), lambda: model(["x", "y"]), lambda: model({"text": "x"}), lambda: model(iter(["x"])),
        lambda: model("x", windows="mean"), lambda: model.predict(["x"] * 5), lambda: model.logits(["x"]),
        lambda: model.golden("x"), model.placement, model.check, lambda: list(under_way),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(InputError, match="this model was closed: load the bundle again"):
            call()


def test_a_model_that_is_closed_while_it_answers(int8_bundle: Path) -> None:
    """Calls finish or say that it was closed; nothing crashes."""
    model = edgewise.load(int8_bundle, parallel=2)

    def call(_: int) -> bool:
        try:
            return len(model.predict(TEXTS)) == len(TEXTS)
        except InputError as error:
            assert "closed" in str(error)
            return False

    with ThreadPoolExecutor(4) as pool:
        found = [pool.submit(call, i) for i in range(40)]
        assert found[0].result()
        model.close()
        assert not [f.exception() for f in found if f.exception()]
    assert not call(0)


FORK = """
import os, sys
import edgewise
from edgewise.errors import InputError

model = edgewise.load(sys.argv[1], parallel=2)
before = model("a fine film")
child = os.fork()
if not child:
    for call in (lambda: model("a fine film"), lambda: model(["a"] * 9), lambda: model(iter(["a"])), model.placement):
        try:
            call()
            os._exit(3)
        except InputError as error:
            said = str(error)
    with edgewise.load(sys.argv[1]) as again:  # as it says
        fine = again("a fine film") == before
    print(said, fine, flush=True)
    os._exit(0)
_, status = os.waitpid(child, 0)
print(os.waitstatus_to_exitcode(status), model("a fine film") == before)
"""
SPAWN = """
import multiprocessing, sys
import edgewise

def answer(path):
    with edgewise.load(path) as model:
        return model("a fine film")

if __name__ == "__main__":
    with edgewise.load(sys.argv[1]) as model:
        here = model("a fine film")
        with multiprocessing.get_context("spawn").Pool(2) as pool:
            print(pool.map(answer, [sys.argv[1]] * 2) == [here, here])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_fork_is_told_to_load_again(int8_bundle: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORK, str(int8_bundle)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    said, parent = done.stdout.splitlines()
    assert "was loaded in process" in said
    assert said.endswith("(start it with 'spawn', or load after the fork) True")
    assert parent == "0 True"


def test_spawned_processes_answer_alike(int8_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "spawn.py").write_text(SPAWN)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "spawn.py"), str(int8_bundle)],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.stdout == "True\n", done.stderr
