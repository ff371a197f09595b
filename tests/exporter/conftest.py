"""Rows of every task, small tokenizers trained on real text, and what the tests on real models share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers as hf
from filelock import FileLock

from edgewise.assets import cache_folder
from edgewise.bundle import Bundle, read_bundle
from edgewise.data import Row
from edgewise.files import digest_json, sha256_file
from edgewise.plan import TuneSpec

ROUNDING = 1e-3
"""Largest difference of a logit of an fp32 graph; O3 computes GELU by its tanh form."""
TANH_GELU = 5e-2
AGREEMENT = {
    "fp32": 1.0, "fp16": 0.98, "int8-weights": 0.95, "int8-dynamic": 0.85, "int8-static": 0.85, "int4-weights": 0.7,
}  # fmt: skip
"""Share of decisions that are PyTorch's on a real model, or mean cosine of features: above what the exporter asks."""


@pytest.fixture(scope="session")
def rows(review_rows: tuple[Row, ...]) -> dict[str, tuple[Row, ...]]:
    rng = np.random.default_rng(0)
    reviews = review_rows[:40]
    return {
        "text-classification": reviews,
        "pair": tuple(Row(a.text, b.text) for a, b in zip(reviews[:20], reviews[20:], strict=True)),
        "token-classification": tuple(Row(r.text, tokens=tuple(r.text.split(" "))) for r in reviews),
        "text-generation": reviews,
        "text2text-generation": tuple(Row(r.text, target=r.text[::-1][:30]) for r in reviews),
        "image-classification": tuple(Row(image=png(rng.integers(0, 256, (20, 30, 3), np.uint8))) for _ in range(12)),
    }


def png(pixels: np.ndarray) -> bytes:
    from io import BytesIO

    from PIL import Image

    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="session")
def preprocessors(minilm: Path, review_rows: tuple[Row, ...], tmp_path_factory: Any) -> dict[str, Any]:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    texts = [r.text for r in review_rows]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=400, special_tokens=["<pad>", "</s>"], initial_alphabet=alphabet)
    )
    unigram = Tokenizer(models.Unigram())
    unigram.pre_tokenizer, unigram.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    unigram.train_from_iterator(
        texts, trainers.UnigramTrainer(vocab_size=400, special_tokens=special, unk_token="<unk>")
    )
    unigram.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    names = {"pad_token": "<pad>", "eos_token": "</s>"}
    return {
        "minilm": hf.AutoTokenizer.from_pretrained(minilm),
        "bpe": hf.GPT2TokenizerFast(tokenizer_object=bpe, **names, bos_token="</s>", unk_token="</s>"),
        "unigram": hf.PreTrainedTokenizerFast(tokenizer_object=unigram, **names, unk_token="<unk>"),
        "image": hf.ViTImageProcessor(size={"height": 16, "width": 16}),
    }


@pytest.fixture(scope="session")
def train_once() -> Callable[..., Path]:
    """`tune` into the cache folder under a name: what is finished there, made from the same files, rows and options, is
    used again."""
    from edgewise.trainer import tune

    def train(name: str, source: Path, rows: Sequence[Row], labels: Sequence[str], spec: TuneSpec, **more: Any) -> Path:
        out = cache_folder() / "tests" / "real" / name
        out.parent.mkdir(parents=True, exist_ok=True)
        files = {p.name: sha256_file(p) for p in sorted(source.iterdir()) if p.is_file()}
        with FileLock(f"{out}.lock"):
            return tune(source, rows, labels, spec, out=out, source_digest=digest_json(files), **more).path

    return train


@pytest.fixture(scope="session")
def kept_words() -> Callable[[Bundle, Path], list[int]]:
    """(bundle, its checkpoint) -> for each token of the bundle its id in the checkpoint's vocabulary.

    So numbers of a smaller vocabulary can be held against the same words of the whole one.
    """

    def read(bundle: Bundle, checkpoint: Path) -> list[int]:
        small, full = (hf.AutoTokenizer.from_pretrained(f).get_vocab() for f in (bundle.path, checkpoint))
        return [full[token] for token in sorted(small, key=small.__getitem__)]

    return read


@pytest.fixture(scope="session")
def hold() -> Callable[..., None]:
    """(bundle, answers, PyTorch's) -> nothing, or an assertion that fails.

    The manifest tells of a parity within its tolerance, of what is lost against fp32, and of tools that load it. What
    another tool than the exporter answers through the bundle, float32 [decisions, labels] or [texts, features], is as
    near to PyTorch.
    """

    def check(bundle: Bundle, found: np.ndarray, wanted: np.ndarray) -> None:
        manifest = read_bundle(bundle.path).manifest
        recipe, parity, allowed = manifest.recipe, manifest.parity, manifest.parity["tolerance"]
        assert parity["against"] == "pytorch"
        assert parity["agreement"] >= allowed["agreement"]
        exact = recipe.precision == "fp32"
        assert (allowed["largest_absolute_difference"] is not None) == exact
        if exact and "largest_scaled_difference" not in parity:
            assert parity["largest_absolute_difference"] <= allowed["largest_absolute_difference"]
        if not exact and recipe.cache == "portable":
            lost = parity["against_fp32"]
            assert 0 <= lost["share_changed"] <= 1
            assert lost["rows"] >= 4
            assert lost["batch"]["batch_size"] == 8
            assert lost["drop"] <= lost["drop_at_most"]
        if recipe.cache == "portable" and not recipe.offline:
            for tool in ("optimum", "optimum_batched"):
                assert manifest.loads_in[tool]["ok"], (recipe, manifest.loads_in)
        assert found.shape == wanted.shape
        assert np.isfinite(found).all()
        features = manifest.task.endswith("feature-extraction")
        limit = TANH_GELU if recipe.optimize == "O3" else ROUNDING
        if exact:
            assert np.abs(found - wanted).max() <= limit * (max(1.0, np.abs(wanted).max()) if features else 1.0)
        assert agreement(found, wanted, manifest, limit if exact else 0.0) >= AGREEMENT[recipe.precision] - 1e-5

    return check


def agreement(found: np.ndarray, wanted: np.ndarray, manifest: Any, limit: float) -> float:
    """Mean cosine, or the share of decisions that are PyTorch's, without those that PyTorch ties within `limit`."""
    if manifest.task.endswith("feature-extraction"):
        lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(wanted, axis=1)
        return float(((found * wanted).sum(1) / lengths).mean())
    if manifest.problem_type == "regression":
        return float((np.abs(found - wanted) <= 0.1 * np.ptp(wanted)).mean())
    if manifest.problem_type == "multi_label_classification":
        clear = np.abs(wanted) > limit
        return float(((found > 0) == (wanted > 0))[clear].mean())
    best = np.sort(wanted, axis=-1)
    clear = best[:, -1] - best[:, -2] > 2 * limit
    return float((found.argmax(-1) == wanted.argmax(-1))[clear].mean())
