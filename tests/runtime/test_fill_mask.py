"""Fill-mask as transformers does it: the best tokens for each mask, or the best of some."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import edgewise
from edgewise.assets import asset_path
from edgewise.bundle import MANIFEST
from edgewise.data import Row
from edgewise.errors import BundleError, InputError
from edgewise.exporter import export
from edgewise.runtime.base import TruncationWarning
from edgewise.runtime.fill_mask import MaskFiller

REACTIONS = (
    "CC(C)S.CN(C)C=O.Fc1cccnc1F.O=C([O-])[O-].[K+].[K+]>>CC(C)Sc1ncccc1F",
    "CC(=O)O.CCO>>CC(=O)OCC",  # esterification
    "O=C(Cl)c1ccccc1.NCc1ccccc1>>O=C(NCc1ccccc1)c1ccccc1",  # an amide
    "Brc1ccccc1.OB(O)c1ccccc1>>c1ccc(-c2ccccc2)cc1",  # Suzuki coupling
    "CC(=O)OC(C)=O.O=C(O)c1ccccc1O>>CC(=O)Oc1ccccc1C(=O)O",  # aspirin
    "CC(=O)OC(C)=O.Nc1ccc(O)cc1>>CC(=O)Nc1ccc(O)cc1",  # paracetamol
)


@pytest.fixture(scope="module")
def chemistry() -> Path:
    """A trained model of reactions, whose tokens are atoms and bonds."""
    return asset_path("rxn-albert")


@pytest.fixture(scope="module")
def masked(chemistry: Path) -> list[str]:
    """Each token of each reaction masked in its turn: more than 200 texts."""
    tokenizer = hf.AutoTokenizer.from_pretrained(chemistry)
    found = []
    for reaction in REACTIONS:
        tokens = tokenizer.tokenize(reaction)
        found += ["".join([*tokens[:i], "[MASK]", *tokens[i + 1 :]]) for i in range(len(tokens))]
    return found


@pytest.fixture(scope="module")
def bundle(chemistry: Path, tmp_path_factory: Any) -> Path:
    (made,) = export(chemistry, ["fp32"], out=tmp_path_factory.mktemp("rxn"), task="fill-mask")
    assert made.bundle is not None, made.reason
    return made.bundle.path


@pytest.fixture(scope="module")
def model(bundle: Path) -> MaskFiller:
    return edgewise.load(bundle)


@pytest.fixture(scope="module")
def peer(chemistry: Path) -> Any:
    return hf.pipeline("fill-mask", model=str(chemistry), device="cpu")


@pytest.fixture(scope="module")
def words(minilm: Path, tmp_path_factory: Any) -> tuple[Path, Path]:
    """(checkpoint, bundle) of fresh weights that read English, in pieces of words."""
    folder = tmp_path_factory.mktemp("words")
    tokenizer = hf.AutoTokenizer.from_pretrained(minilm, clean_up_tokenization_spaces=True)
    torch.manual_seed(3)
    config = hf.BertConfig(
        len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    hf.BertForMaskedLM(config).save_pretrained(folder / "checkpoint")
    tokenizer.save_pretrained(folder / "checkpoint")
    (made,) = export(folder / "checkpoint", ["fp32"], out=folder / "out")
    assert made.bundle is not None, made.reason
    return folder / "checkpoint", made.bundle.path


def assert_same(ours: Any, theirs: Any) -> None:
    """Equal in form and words; scores within 1e-5, and words of scores that are nearly equal in any order."""
    if isinstance(theirs, list) and theirs and isinstance(theirs[0], dict):
        assert [list(f) for f in ours] == [["score", "token", "token_str", "sequence"]] * len(theirs)
        np.testing.assert_allclose([f["score"] for f in ours], [f["score"] for f in theirs], atol=1e-5)
        by_token = {f["token"]: f for f in theirs}
        for fill in ours:
            if fill["token"] in by_token:
                other = by_token[fill["token"]]
                assert (fill["token_str"], fill["sequence"]) == (other["token_str"], other["sequence"])
            else:
                assert fill["score"] == pytest.approx(theirs[-1]["score"], abs=1e-5)
        return
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert_same(a, b)


def test_answers_equal_transformers_on_every_token_of_reactions(model, peer, masked: list[str]) -> None:
    ours = model(masked)
    assert len(masked) > 200
    assert_same(ours, peer(masked))
    # and they are right: the model knows chemistry
    best = [a[0]["sequence"].replace(" ", "") for a in ours]
    assert sum(b in REACTIONS for b in best) > 0.7 * len(best)


def test_answers_equal_transformers_on_200_reviews(words, review_rows: tuple[Row, ...]) -> None:
    checkpoint, folder = words
    theirs = hf.pipeline("fill-mask", model=str(checkpoint), device="cpu")
    texts = []
    for row in review_rows[:200]:
        parts = row.text.split()
        parts[len(parts) // 2] = "[MASK]"
        texts.append(" ".join(parts))
    with edgewise.load(folder) as model:
        assert_same(model(texts, top_k=3), theirs(texts, top_k=3))


@pytest.mark.parametrize("targets", ["c", ["c", "O", "N"], ["C", "C"]])
@pytest.mark.parametrize("top_k", [1, 2, 5, 20])
def test_some_words_to_choose_from(model, peer, masked: list[str], targets: Any, top_k: int) -> None:
    some = masked[::20]
    ours, theirs = model(some, targets=targets, top_k=top_k), peer(some, targets=targets, top_k=top_k)
    assert_same(ours, theirs)
    assert len(ours[0]) == min(top_k, len({targets} if isinstance(targets, str) else set(targets)))


def test_targets_that_are_no_tokens(words, review_rows: tuple[Row, ...]) -> None:
    checkpoint, folder = words
    theirs = hf.pipeline("fill-mask", model=str(checkpoint), device="cpu")
    with edgewise.load(folder) as model:
        with pytest.warns(UserWarning, match="'unwatchable' is no token of the vocabulary: 'un' is taken instead"):
            ours = model("a [MASK] film", targets=["fine", "unwatchable"])
        assert_same(ours, theirs("a [MASK] film", targets=["fine", "unwatchable"]))
        with pytest.warns(UserWarning, match="' ' is no token of the vocabulary: it is left out"):
            assert len(model("a [MASK] film", targets=["fine", " "])) == 1
        with pytest.warns(UserWarning), pytest.raises(InputError, match="none of the targets"):
            model("a [MASK] film", targets=[" "])
        with pytest.raises(InputError, match=r"none of the targets \[\]"):
            model("a [MASK] film", targets=[])


def test_several_masks_are_filled_each_by_itself(model, peer, words, masked: list[str]) -> None:
    some = ["CC(=O)[MASK].CC[MASK]>>CC(=O)OCC", masked[3], "[MASK][MASK][MASK]"]
    for text in some:
        assert_same(model(text), peer(text))
    assert_same(model(some), peer(some))
    checkpoint, folder = words
    theirs = hf.pipeline("fill-mask", model=str(checkpoint), device="cpu")
    with edgewise.load(folder) as other:
        for text in ("It's [MASK], isn't it? [MASK] !", "[MASK].", "[PAD] a [MASK] [SEP] fine , film ."):
            assert_same(other(text), theirs(text))


def test_a_text_a_list_of_one_and_an_iterator(model, peer, masked: list[str]) -> None:
    for some in (masked[0], masked[:1], masked[:2]):
        assert_same(model(some), peer(some))
    assert list(model(iter(masked[:12]), top_k=2)) == model(masked[:12], top_k=2)
    assert model([]) == []


def test_typed_answers(bundle: Path, model, masked: list[str]) -> None:
    (found,) = model.predict([masked[0]], top_k=2)
    assert (len(found.masks), len(found.masks[0]), found.truncated) == (1, 2, False)
    assert found.n_tokens == len(model.token_ids(masked[0]))
    with edgewise.load(bundle, batch_size=5) as batched:
        assert_same(batched(masked[:23]), model(masked[:23]))
    with edgewise.load(bundle, max_length=12) as short:
        with pytest.warns(TruncationWarning, match="longer than 12 tokens"):
            (cut,) = short.predict(["C[MASK]" + "C" * 50])
        assert (cut.truncated, cut.n_tokens) == (True, 12)
        with pytest.raises(InputError, match="the mask of a text stands behind its first 12 tokens"):
            short("C" * 50 + "[MASK]")


def test_golden_answers(bundle: Path, masked: list[str], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    told = json.loads((copy / MANIFEST).read_text())
    with edgewise.load(copy) as model:
        golden = [model.golden(text) for text in (masked[0], "C[MASK]O[MASK]")]
    assert [len(g.tokens) for g in golden] == [1, 2]
    assert golden[1].shape == (1, 2) == (1, len(golden[1].output))
    rows: list[dict[str, Any]] = [
        {"text": g.text, "input_ids": g.input_ids, "output": g.output, "tokens": g.tokens} for g in golden
    ]
    (copy / MANIFEST).write_text(json.dumps({**told, "golden": rows}))
    with edgewise.load(copy) as model:
        assert model.check().passed
    rows[1]["tokens"] = (1, 2)
    (copy / MANIFEST).write_text(json.dumps({**told, "golden": rows}))
    with edgewise.load(copy) as model:
        assert (model.check().passed, model.check().changed_labels) == (False, 1)


# ---- what is refused


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m("CCO"), r"the text 'CCO' has no [MASK]: put [MASK] where a word is wanted"),
        (lambda m: m(["C[MASK]", "C" * 100]), "has no [MASK]"),
        (lambda m: m(""), "the text '' has no [MASK]"),
        (lambda m: m("[MASK]", top_k=0), "top_k is 0; expected a whole number of at least 1"),
        (lambda m: m("[MASK]", top_k=True), "top_k is True"),
        (lambda m: m("[MASK]", targets=[3]), "got 3 of type int"),
        (lambda m: m(None), "expected a text, got None"),
        (lambda m: m([("a", "b")]), "expected a text"),
        (lambda m: m("[MASK]\ud800"), "lone surrogate"),
        (lambda m: m.predict("[MASK]"), "predict takes a list of texts, got str"),
        (lambda m: list(m(iter(["[MASK]", "C"]))), "the text 'C' has no [MASK]"),
    ],
)
def test_a_mistake_is_one_clear_error_and_the_model_lives_on(model, call: Callable[[Any], Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        call(model)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert model("CC[MASK]")


def test_a_tokenizer_without_a_mask(bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        told = json.loads((copy / name).read_text())
        told.pop("mask_token")
        (copy / name).write_text(json.dumps(told))
    with pytest.raises(BundleError, match=r"has no mask token \(mask_token is None in its tokenizer_config\.json"):
        edgewise.load(copy, verify="none")
    (copy / "tokenizer_config.json").write_text(json.dumps({"mask_token": {"content": "<nowhere>"}}))
    with pytest.raises(BundleError, match="mask_token is '<nowhere>'"):
        edgewise.load(copy, verify="none")
    (copy / "tokenizer_config.json").write_text(json.dumps({"mask_token": {"content": "[MASK]", "lstrip": True}}))
    with edgewise.load(copy, verify="none") as model:
        assert model.mask_token == "[MASK]"


@given(before=st.text(max_size=60), after=st.text("CNO[]MASK=()#1 c.>", max_size=60), top_k=st.integers(1, 700))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_with_a_mask_is_filled_or_refused(model, before: str, after: str, top_k: int) -> None:
    text = f"{before}[MASK]{after}"
    try:
        (found,) = model.predict([text], top_k=top_k)
    except InputError:
        assert any(0xD800 <= ord(c) <= 0xDFFF for c in text)
    else:
        assert len(found.masks) == text.count("[MASK]")
        for fills in found.masks:
            scores = [f.score for f in fills]
            assert len(scores) == min(top_k, 591)
            assert scores == sorted(scores, reverse=True)
            assert 0 <= sum(scores) <= 1.0001
