"""The runtime answers as transformers does, and refuses what it cannot answer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import edgewise
from edgewise.bundle import MANIFEST, Verify
from edgewise.data import Row
from edgewise.errors import (
    BundleChangedError,
    BundleError,
    BundleNotFoundError,
    BundleVersionError,
    EdgewiseError,
    InputError,
    PlanError,
    ProviderError,
    UserError,
)
from edgewise.runtime import TextClassifier


@pytest.fixture(scope="module")
def model(fp32_bundle: Path) -> TextClassifier:
    return edgewise.load(fp32_bundle)


@pytest.fixture(scope="module")
def peer(tuned: Path) -> object:
    from transformers import pipeline

    return pipeline("text-classification", model=str(tuned), device="cpu")


def edit_manifest(folder: Path, **changes: object) -> None:
    file = folder / MANIFEST
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_answers_equal_transformers_on_300_reviews(model, peer, review_rows: tuple[Row, ...]) -> None:
    texts = [r.text for r in review_rows[:300]]
    ours, theirs = model(texts), peer(texts)
    assert [a["label"] for a in ours] == [b["label"] for b in theirs]
    np.testing.assert_allclose([a["score"] for a in ours], [b["score"] for b in theirs], atol=1e-5)


@pytest.mark.parametrize(
    ("inputs", "options"),
    [
        ("a fine film", {}),
        (["a fine film", "dull"], {}),
        ("a fine film", {"top_k": None}),
        (["a fine film", "dull"], {"top_k": None}),
        (["a fine film"], {"top_k": 2}),
        ({"text": "a fine film", "text_pair": "is it good?"}, {}),
        ([{"text": "a fine film", "text_pair": "is it good?"}], {}),
    ],
)
def test_answers_have_the_shape_that_pipeline_users_expect(model, peer, inputs, options) -> None:
    ours, theirs = model(inputs, **options), peer(inputs, **options)

    def labels(found):
        return [labels(f) for f in found] if isinstance(found, list) else found["label"]

    assert labels(ours) == labels(theirs)


def test_batches_are_padded_right_and_change_nothing_in_fp32(fp32_bundle: Path, review_rows) -> None:
    texts = [r.text for r in review_rows[:33]]
    with edgewise.load(fp32_bundle, batch_size=8) as batched, edgewise.load(fp32_bundle) as single:
        together, alone = batched.predict(texts), single.predict(texts)
    np.testing.assert_allclose([p.logits for p in together], [p.logits for p in alone], atol=1e-4)


def test_truncation_is_said(fp32_bundle: Path) -> None:
    with edgewise.load(fp32_bundle, max_length=16) as model:
        short, long = model.predict(["fine", "word " * 100])
    assert (short.truncated, long.truncated, long.n_tokens) == (False, True, 16)


def test_calls_from_many_threads_answer_as_one(model, review_rows) -> None:
    texts = [r.text for r in review_rows[:64]]
    expected = [p.logits for p in model.predict(texts)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda t: model.predict([t])[0].logits, texts))
    assert found == expected


def test_golden_answers_pass_and_a_wrong_one_fails(bundle_copy: Path) -> None:
    with edgewise.load(bundle_copy) as model:
        result = model.check()
    assert result.passed
    assert result.n == 8
    manifest = json.loads((bundle_copy / MANIFEST).read_text())
    manifest["golden"][3]["output"] = [9.0, -9.0]
    edit_manifest(bundle_copy, golden=manifest["golden"])
    with edgewise.load(bundle_copy) as model:
        assert not model.check().passed


def test_golden_answers_are_compared_or_not_counted(fp32_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with edgewise.load(fp32_bundle) as model:
        golden = model.golden
        nan = float("nan")
        monkeypatch.setattr(model, "golden", lambda item: replace(golden(item), output=(nan, nan)))
        assert not model.check().passed
    with edgewise.load(fp32_bundle, max_length=3) as model:  # all are longer: the shortest is answered whole
        result = model.check()
        assert (result.passed, result.n, result.changed_labels) == (True, 1, 0)
        assert len(model.golden(model.bundle.manifest.golden[0].text).input_ids) == 3  # its own length stays


def test_a_batch_of_none_is_one_clear_error(model: TextClassifier) -> None:
    assert model([]) == model.predict([]) == []
    with pytest.raises(InputError, match="a batch of no texts"):
        model.logits([])


@given(text=st.text(max_size=300))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_is_answered_or_refused(model, text: str) -> None:
    try:
        (found,) = model(text)
    except InputError:
        assert any(0xD800 <= ord(c) <= 0xDFFF for c in text)
    else:
        assert 0 <= found["score"] <= 1


@pytest.mark.parametrize("bad", [None, 3, b"bytes", ["a", None], {"txt": "a"}, ("a", 2), [[]], "\ud800 alone"])
def test_what_is_no_text_is_one_clear_error_and_the_model_lives_on(model, bad) -> None:
    with pytest.raises(InputError) as caught:
        model(bad)
    assert "\n" not in str(caught.value)
    assert model("a fine film")


def test_empty_inputs(model) -> None:
    assert model([]) == []
    assert model("")[0]["label"] in model.labels
    with pytest.raises(InputError, match="top_k is 0"):
        model("x", top_k=0)
    with pytest.raises(InputError, match="list of texts"):
        model.predict("one text")


def test_one_megabyte_of_text_is_cut(model) -> None:
    (found,) = model.predict(["film " * 200_000])
    assert found.truncated


def test_closed_model_says_so(fp32_bundle: Path) -> None:
    model = edgewise.load(fp32_bundle)
    model.close()
    with pytest.raises(InputError, match="closed"):
        model("x")


def test_run_settings_are_checked(fp32_bundle: Path) -> None:
    with pytest.raises(PlanError, match="threads is 0"):
        edgewise.load(fp32_bundle, threads=0)
    with pytest.raises(UserError, match="max_length is 100000"):
        edgewise.load(fp32_bundle, max_length=100_000)
    with pytest.raises(PlanError, match="did you mean 'cuda'"):
        edgewise.load(fp32_bundle, provider="cuta")


def test_a_provider_that_is_not_there_is_an_error(fp32_bundle: Path) -> None:
    with pytest.raises(ProviderError, match="'cuda' is not in this onnxruntime"):
        edgewise.load(fp32_bundle, provider="cuda")


def test_placement_names_the_provider_of_every_node(fp32_bundle: Path) -> None:
    with edgewise.load(fp32_bundle, record_placement=True) as model:
        placed = model.placement()
    assert list(placed) == ["CPUExecutionProvider"]
    assert placed["CPUExecutionProvider"] > 20


# ---- bundles that cannot be trusted


def test_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleNotFoundError, match="no such folder"):
        edgewise.load(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match=r"no edgewise\.json"):
        edgewise.load(tmp_path)


def test_changed_file(bundle_copy: Path) -> None:
    config = bundle_copy / "config.json"
    config.write_text(config.read_text().replace("bert", "tree"))
    with pytest.raises(BundleChangedError, match=r"config\.json has sha256"):
        edgewise.load(bundle_copy)
    edgewise.load(bundle_copy, verify="none").close()


def test_cut_file(bundle_copy: Path) -> None:
    graph = bundle_copy / "onnx" / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:-10])
    with pytest.raises(BundleChangedError, match="bytes, the manifest says"):
        edgewise.load(bundle_copy)


def test_missing_file(bundle_copy: Path) -> None:
    (bundle_copy / "tokenizer.json").unlink()
    with pytest.raises(BundleChangedError, match=r"tokenizer\.json is missing"):
        edgewise.load(bundle_copy)


def test_corrupt_graph_is_an_error_not_a_crash(bundle_copy: Path) -> None:
    graph = bundle_copy / "onnx" / "model.onnx"
    graph.write_bytes(b"\x08" * graph.stat().st_size)
    with pytest.raises(BundleError, match="does not load in onnxruntime"):
        edgewise.load(bundle_copy, verify="none")


def test_newer_major_format(bundle_copy: Path) -> None:
    edit_manifest(bundle_copy, format="2.0")
    with pytest.raises(BundleVersionError, match=r"format 2\.0"):
        edgewise.load(bundle_copy)


def test_newer_minor_format_with_unknown_keys_is_read(bundle_copy: Path) -> None:
    edit_manifest(bundle_copy, format="1.7", something_new={"a": 1})
    edgewise.load(bundle_copy).close()


@pytest.mark.parametrize("name", ["../evil", "/etc/passwd", "a/../../b", "C:\\x", ""])
def test_a_path_that_leaves_the_folder(bundle_copy: Path, name: str) -> None:
    files = json.loads((bundle_copy / MANIFEST).read_text())["files"]
    edit_manifest(bundle_copy, files={**files, name: {"size": 1, "sha256": "0"}})
    with pytest.raises(BundleError, match="leaves the bundle"):
        edgewise.load(bundle_copy)


def test_a_link_that_leads_out_of_the_folder(bundle_copy: Path, tmp_path: Path) -> None:
    config = bundle_copy / "config.json"
    config.rename(tmp_path / "outside.json")
    config.symlink_to(tmp_path / "outside.json")
    with pytest.raises(BundleError, match="leads out of the bundle"):
        edgewise.load(bundle_copy)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"format": "1.0"}', '{"format": "x"}', '{"format": "1.0", "files": 3}']
)
def test_broken_manifest(bundle_copy: Path, text: str) -> None:
    (bundle_copy / MANIFEST).write_text(text)
    with pytest.raises(BundleError):
        edgewise.load(bundle_copy)


def test_changed_labels_break_the_digest(bundle_copy: Path) -> None:
    edit_manifest(bundle_copy, labels=["positive", "negative"])
    with pytest.raises(BundleChangedError, match="content digest"):
        edgewise.load(bundle_copy)


@pytest.mark.parametrize("verify", ["full", "stamp", "none"])
def test_expect_pins_the_content(bundle_copy: Path, verify: Verify) -> None:
    digest = json.loads((bundle_copy / MANIFEST).read_text())["content_digest"]
    edgewise.load(bundle_copy, expect=digest, verify=verify).close()
    with pytest.raises(BundleChangedError, match="expected sha256:0"):
        edgewise.load(bundle_copy, expect="sha256:0", verify=verify)


def test_every_error_is_ours(bundle_copy: Path) -> None:
    edit_manifest(bundle_copy, run={"threads": "two"})
    with pytest.raises(EdgewiseError):
        edgewise.load(bundle_copy)


# ---- the command line


def edgewise_cli(*args: str, stdin: str | bytes = "") -> subprocess.CompletedProcess[str]:
    data = stdin.encode() if isinstance(stdin, str) else stdin
    done = subprocess.run(
        [sys.executable, "-m", "edgewise", *args], input=data, capture_output=True, env={**os.environ}, check=False
    )
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def test_run_prints_label_score_text(int8_bundle: Path) -> None:
    done = edgewise_cli("run", str(int8_bundle), "a wonderful film", "a dull mess", "--time")
    labels = [line.split("\t")[0] for line in done.stdout.splitlines()]
    assert (done.returncode, labels) == (0, ["positive", "negative"])
    assert "2 answers" in done.stderr


def test_run_reads_lines_and_writes_json_lines(int8_bundle: Path) -> None:
    done = edgewise_cli("run", str(int8_bundle), stdin="a wonderful film\r\nschöner Film\n")
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [f["text"] for f in found] == ["a wonderful film", "schöner Film"]
    assert set(found[0]) == {"text", "label", "score"}


def test_run_check(int8_bundle: Path) -> None:
    done = edgewise_cli("run", str(int8_bundle), "--check")
    assert done.returncode == 0
    assert "passed: 8 inputs" in done.stdout


@pytest.mark.parametrize(
    ("args", "stdin", "message"),
    [
        (["run", "/nowhere", "x"], "", "/nowhere is no bundle"),
        (["run", "BUNDLE", "--provider", "cuda", "x"], "", "not in this onnxruntime"),
        (["run", "BUNDLE"], b"ok\n\xff\xfe\n", "standard input, line 2: not UTF-8"),
        (["run", "BUNDLE", "--file", "/nowhere.txt"], "", "/nowhere.txt: no such file"),
        (["run", "BUNDLE", "--threads", "x"], "", "invalid int value"),
        (["ruN"], "", "did you mean 'run'"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(int8_bundle: Path, args, stdin, message) -> None:
    done = edgewise_cli(*[str(int8_bundle) if a == "BUNDLE" else a for a in args], stdin=stdin)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_inspect_reads_the_manifest_alone(int8_bundle: Path) -> None:
    done = edgewise_cli("inspect", str(int8_bundle))
    assert done.returncode == 0
    for word in ("text-classification", "MatMulInteger", "hashes checked", "optimum: yes", "agreement"):
        assert word in done.stdout


def test_run_imports_nothing_heavy(int8_bundle: Path) -> None:
    code = (
        "import sys; from edgewise.cli import main; main(['run', sys.argv[1], 'a fine film'])\n"
        "heavy = {'torch', 'transformers', 'optimum', 'datasets', 'pandas', 'rich', 'psutil', 'msgspec'}\n"
        "print('heavy:', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(int8_bundle)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "heavy: []"
