"""A tokenizer trained on the corpus: the kind that belongs to the objective, as a fast Transformers tokenizer."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertTokenizerFast, GPT2TokenizerFast, T5TokenizerFast

from edgewise.errors import DataError
from edgewise.trainer.corpus import Document
from edgewise.trainer.pretrain_spec import Objective

SENTINELS = 100
"""<extra_id_0> to <extra_id_99>, as T5 has them."""
END = "<|endoftext|>"


def train_tokenizer(
    objective: Objective, documents: Iterable[Document], vocab_size: int, max_length: int, lowercase: bool = True
) -> Any:
    """WordPiece for mlm and nsp, byte-level BPE for clm, Unigram with sentinels for span.

    vocab_size: at most so many entries, all special tokens counted. max_length: tokens that the model takes.

    Raises DataError where the text is too little to train on.
    """
    lines = (line for document in documents for line in document)
    if objective in ("mlm", "nsp"):
        return _wordpiece(lines, vocab_size, max_length, lowercase)
    return _byte_bpe(lines, vocab_size, max_length) if objective == "clm" else _unigram(lines, vocab_size, max_length)


def _wordpiece(lines: Iterator[str], vocab_size: int, max_length: int, lowercase: bool) -> Any:
    text = list(lines)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    learner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    learner.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    learner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    # The trainer numbers the pieces '##x' in the order of a randomly seeded hash map, and breaks ties by number: named
    # first, they get the same numbers in every run. They are ordinary entries of the tokenizer made below.
    inner = sorted({f"##{c}" for line in text for c in learner.normalizer.normalize_str(line) if not c.isspace()})
    trainer = trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=special + inner, show_progress=False)
    learner.train_from_iterator(text, trainer)
    tokenizer = Tokenizer(models.WordPiece(vocab=learner.get_vocab(), unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = learner.normalizer, learner.pre_tokenizer
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(special)
    cls, sep = (tokenizer.token_to_id(token) for token in ("[CLS]", "[SEP]"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", cls), ("[SEP]", sep)]
    )
    return BertTokenizerFast(tokenizer_object=tokenizer, do_lower_case=lowercase, model_max_length=max_length)


def _byte_bpe(lines: Iterator[str], vocab_size: int, max_length: int) -> Any:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END, "<pad>"],
        # All 256 bytes, so that no text is ever unknown.
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    # A pad token of its own, unlike GPT-2: `tune` pads batches, and the end of a text must stay a token to learn.
    return GPT2TokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        unk_token=END,
        pad_token="<pad>",
        model_max_length=max_length,
    )


def _unigram(lines: Iterator[str], vocab_size: int, max_length: int) -> Any:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " ")])
    # As t5_tokenizer_model.py beside run_t5_mlm_flax.py.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(), pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.Punctuation()]
    )
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size - SENTINELS,
        special_tokens=["<pad>", "</s>", "<unk>"],
        unk_token="<unk>",
        show_progress=False,
    )
    try:
        tokenizer.train_from_iterator(lines, trainer)
    except Exception as error:  # tokenizers raises plain Exception
        raise DataError(f"no Unigram tokenizer can be trained on this text: {error}; give more text") from error
    tokenizer.model = models.Unigram(_settled(json.loads(tokenizer.to_str())["model"]["vocab"]), unk_id=2)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", tokenizer.token_to_id("</s>"))]
    )
    return T5TokenizerFast(tokenizer_object=tokenizer, extra_ids=SENTINELS, model_max_length=max_length)


def _settled(vocab: list[tuple[str, float]]) -> list[tuple[str, float]]:
    """Pieces and scores that are the same in every run; the first three are special.

    The trainer of `tokenizers` goes through randomly seeded hash maps: sums differ in their last digits, and characters
    that it must keep get the least score plus 0.0001 for each one before. So scores are rounded, these characters
    share one score, and the order is made anew.
    """
    special, pieces = vocab[:3], vocab[3:]
    least = min(score for _, score in pieces) + 0.0001 * sum(len(piece) == 1 for piece, _ in pieces)
    settled = [(piece, max(round(score, 3), round(least, 3))) for piece, score in pieces]
    return [(p, s) for p, s in special] + sorted(settled, key=lambda p: (-p[1], p[0]))
