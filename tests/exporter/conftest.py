"""Rows of every task, and small tokenizers trained on real text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers as hf

from edgewise.data import Row


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
