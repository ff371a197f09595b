"""The pretraining objectives: what one example is, how it is hidden, and what its loss is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from edgewise.errors import DataError
from edgewise.trainer import noise
from edgewise.trainer.corpus import Document, sentences
from edgewise.trainer.draws import Inputs, Parts, Prepared, token_loss
from edgewise.trainer.pretrain_images import normalized
from edgewise.trainer.pretrain_spec import NOISE, PretrainSpec


def prepare_text(
    spec: PretrainSpec, model: Any, tokenizer: Any, train: Sequence[Document], val: Sequence[Document]
) -> Prepared:
    """Examples out of documents. Raises DataError where the text is too short for one block."""
    make = {"mlm": _masked, "nsp": _pairs, "clm": _next, "span": _spans}[spec.objective]
    return make(spec, model, tokenizer, _encode(spec, tokenizer, train), _encode(spec, tokenizer, val))


def prepare_images(spec: PretrainSpec, config: Any, processor: Any, train: np.ndarray, val: np.ndarray) -> Prepared:
    """Examples out of uint8 images [images, height, width, 3] at the model's size: SimMIM, Xie et al. 2022."""
    side, group = config.image_size // config.patch_size, (spec.mask_patch or config.patch_size) // config.patch_size
    share = spec.noise or NOISE["mim"]

    def draw(image: np.ndarray, rng: np.random.Generator) -> Inputs:
        hidden = noise.mask_patches(side, group, share, rng)
        return {"pixel_values": normalized(image, processor), "bool_masked_pos": hidden}

    def parts(outputs: Any, batch: Mapping[str, torch.Tensor]) -> Parts:
        """Mean absolute error over the hidden pixels, all channels alike."""
        hidden = batch["bool_masked_pos"].reshape(-1, 1, side, side)
        hidden = hidden.repeat_interleave(config.patch_size, 2).repeat_interleave(config.patch_size, 3)
        error = (outputs.reconstruction - batch["pixel_values"]).abs() * hidden
        return {"patches": (float(error.sum()), int(hidden.sum()) * error.shape[1])}

    return Prepared(train, val, draw, {}, parts)


@dataclass(frozen=True)
class _Encoded:
    """Documents as token ids, one after the other, without special tokens."""

    ids: np.ndarray
    words: np.ndarray
    """The number of the word that each token belongs to; rises through the whole text."""
    documents: list[list[range]]
    """The segments of each document, as places in `ids`."""
    unknown: int


def _encode(spec: PretrainSpec, tokenizer: Any, documents: Sequence[Document]) -> _Encoded:
    # GPT learns line breaks; for the others all white space is one. Only pairs need the sentences apart.
    between = "\n" if spec.objective == "clm" else " "
    texts = [sentences(d) if spec.objective == "nsp" else [between.join(d)] for d in documents]
    ids: list[int] = []
    words: list[int] = []
    parts: list[list[range]] = []
    for text in texts:
        found = tokenizer(text, add_special_tokens=False, truncation=False, padding=False, verbose=False)
        segments = []
        for i, segment in enumerate(found["input_ids"]):
            if segment:
                first = words[-1] + 1 if words else 0
                words += [first + (n or 0) for n in found.word_ids(i)]
                segments.append(range(len(ids), len(ids) + len(segment)))
                ids += segment
        if segments:
            parts.append(segments)
    unk = tokenizer.unk_token_id
    # A byte-level tokenizer knows every text; GPT-2 names its end token as the unknown one.
    unknown = 0 if unk in (None, tokenizer.eos_token_id) else ids.count(unk)
    return _Encoded(np.array(ids, dtype=np.int64), np.array(words, dtype=np.int64), parts, unknown)


def _blocks(encoded: _Encoded, size: int, after: int, pack: bool) -> list[tuple[np.ndarray, np.ndarray]]:
    """(token ids, word numbers) of at most `size` tokens: one document after the other, or each alone.

    after: the token put behind each document that is packed. A rest of one token is left out.
    """
    pieces = [np.arange(document[0].start, document[-1].stop) for document in encoded.documents]
    if not pack:
        return [b for p in pieces for b in _cut(encoded.ids[p], encoded.words[p], size)]
    if not pieces:
        return []
    ids = np.concatenate([part for p in pieces for part in (encoded.ids[p], [after])])
    words = np.concatenate([part for p in pieces for part in (encoded.words[p], [-1])])
    return _cut(ids, words, size)


def _cut(ids: np.ndarray, words: np.ndarray, size: int) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(ids[i : i + size], words[i : i + size]) for i in range(0, len(ids), size) if len(ids) - i > 1]


def _train_blocks(encoded: _Encoded, size: int, after: int, pack: bool) -> list[tuple[np.ndarray, np.ndarray]]:
    """Blocks of the train part. Raises DataError unless one can be filled."""
    blocks = _blocks(encoded, size, after, pack)
    if not blocks or (pack and len(encoded.ids) < size):
        raise DataError(
            f"the text to train on has {len(encoded.ids)} tokens, less than one block of {size}: give more text, "
            "or a smaller block_length"
        )
    return blocks


def _frame(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The special tokens that the tokenizer puts before and after a text."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    at = next((i for i in range(len(full)) if full[i : i + len(bare)] == bare), 0)
    return full[:at], full[at + len(bare) :]


def _masking(spec: PretrainSpec, tokenizer: Any) -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """(ids, words, generator) -> (input ids, labels); special tokens stay as they are."""
    special = np.array(sorted(set(tokenizer.all_special_ids)), dtype=np.int64)
    ordinary = np.setdiff1d(np.arange(len(tokenizer)), special)
    share = spec.noise or NOISE["mlm"]

    def mask(ids: np.ndarray, words: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        open_to = ~np.isin(ids, special)
        if not open_to.any():  # nothing but unknown tokens
            return ids, np.full_like(ids, noise.IGNORED)
        chosen = noise.choose_tokens(open_to, share, rng, words if spec.whole_word else None)
        return noise.mask_tokens(ids, chosen, tokenizer.mask_token_id, ordinary, rng)

    return mask


def _masked(spec: PretrainSpec, model: Any, tokenizer: Any, train: _Encoded, val: _Encoded) -> Prepared:
    """Masked language modelling: Devlin et al. 2019, arXiv:1810.04805; masks drawn anew each epoch, Liu et al. 2019."""
    before, after = _frame(tokenizer)
    size = spec.block_length - len(before) - len(after)
    between = tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.pad_token_id
    mask = _masking(spec, tokenizer)

    def draw(block: tuple[np.ndarray, np.ndarray], rng: np.random.Generator) -> Inputs:
        ids = np.array([*before, *block[0], *after])
        words = np.concatenate([np.full(len(before), -1), block[1], np.full(len(after), -1)])
        masked, labels = mask(ids, words, rng)
        return {"input_ids": masked, "attention_mask": np.ones_like(ids), "labels": labels}

    blocks = _train_blocks(train, size, between, spec.pack)
    val_blocks = _blocks(val, size, between, spec.pack)
    return Prepared(
        blocks, val_blocks, draw, _pads(tokenizer), _masked_parts, _bert_loss(model), len(train.ids), train.unknown
    )


def _next(spec: PretrainSpec, model: Any, tokenizer: Any, train: _Encoded, val: _Encoded) -> Prepared:
    """Causal language modelling, minus the mean log-probability of each next token: Radford et al. 2018, 2019."""
    size, end = spec.block_length, tokenizer.eos_token_id

    def draw(block: tuple[np.ndarray, np.ndarray], rng: np.random.Generator) -> Inputs:
        labels = block[0].copy()
        # Nothing predicts the first token: models leave its label out, yet the Trainer counts it as one to predict.
        labels[0] = noise.IGNORED
        return {"input_ids": block[0], "attention_mask": np.ones_like(labels), "labels": labels}

    def parts(outputs: Any, batch: Mapping[str, torch.Tensor]) -> Parts:
        return {"next token": token_loss(outputs.logits[:, :-1], batch["labels"][:, 1:])}

    blocks = _train_blocks(train, size, end, spec.pack)
    val_blocks = _blocks(val, size, end, spec.pack)
    return Prepared(blocks, val_blocks, draw, _pads(tokenizer), parts, None, len(train.ids), train.unknown)


def _spans(spec: PretrainSpec, model: Any, tokenizer: Any, train: _Encoded, val: _Encoded) -> Prepared:
    """Span corruption: Raffel et al. 2020, arXiv:1910.10683, section 3.1.4, as in run_t5_mlm_flax.py."""
    share, end = spec.noise or NOISE["span"], tokenizer.eos_token_id
    size, _ = noise.span_lengths(spec.block_length, share, spec.mean_span)
    sentinels = _sentinels(tokenizer)
    if noise.span_counts(size, share, spec.mean_span)[1] > len(sentinels):
        raise DataError(
            f"blocks of {spec.block_length} tokens have more hidden spans than the tokenizer has sentinels "
            f"({len(sentinels)}): lower block_length, or raise mean_span"
        )

    def draw(block: tuple[np.ndarray, np.ndarray], rng: np.random.Generator) -> Inputs:
        hidden = noise.noise_spans(len(block[0]), share, spec.mean_span, rng)
        source, labels = noise.corrupt_spans(block[0], hidden, sentinels, end)
        return {"input_ids": source, "attention_mask": np.ones_like(source), "labels": labels}

    def parts(outputs: Any, batch: Mapping[str, torch.Tensor]) -> Parts:
        return {"spans": token_loss(outputs.logits, batch["labels"])}

    blocks = _train_blocks(train, size, end, spec.pack)
    val_blocks = _blocks(val, size, end, spec.pack)
    return Prepared(blocks, val_blocks, draw, _pads(tokenizer), parts, None, len(train.ids), train.unknown)


def _pairs(spec: PretrainSpec, model: Any, tokenizer: Any, train: _Encoded, val: _Encoded) -> Prepared:
    """Masked tokens with next-sentence prediction: Devlin et al. 2019. Label 0: the second segment follows."""
    cls, sep, limit = tokenizer.cls_token_id, tokenizer.sep_token_id, spec.block_length - 3
    mask = _masking(spec, tokenizer)

    def draw(example: tuple[_Encoded, tuple[int, int, int]], rng: np.random.Generator) -> Inputs:
        encoded, place = example
        pair = noise.draw_pair(encoded.documents, place, limit, rng)
        places = np.array([-1, *pair.first, -1, *pair.second, -1])  # -1: a special token
        ids = np.where(places < 0, sep, encoded.ids[places])
        ids[0] = cls
        masked, labels = mask(ids, np.where(places < 0, -1, encoded.words[places]), rng)
        return {
            "input_ids": masked,
            "token_type_ids": np.repeat([0, 1], [len(pair.first) + 2, len(pair.second) + 1]),
            "attention_mask": np.ones_like(ids),
            "labels": labels,
            "next_sentence_label": np.array(int(not pair.follows)),
        }

    def parts(outputs: Any, batch: Mapping[str, torch.Tensor]) -> Parts:
        right = batch["next_sentence_label"].reshape(-1)
        pair_loss = cross_entropy(outputs.seq_relationship_logits.float(), right, reduction="sum")
        return {
            "masked tokens": token_loss(outputs.prediction_logits, batch["labels"]),
            "pairs": (float(pair_loss), len(right)),
        }

    places = _pair_places(train, limit)
    if not places or len(train.documents) < 2:
        two = sum(len(d) > 1 for d in train.documents)
        raise DataError(
            f"next-sentence prediction needs documents of two sentences or more, and a second document to draw from: "
            f"{two} of {len(train.documents)} documents have two; give running text with a blank line between "
            "documents, or use mlm"
        )
    # A random segment of the held-out part needs another document there too.
    val_places = _pair_places(val, limit) if len(val.documents) > 1 else []
    return Prepared(
        [(train, p) for p in places],
        [(val, p) for p in val_places],
        draw,
        _pads(tokenizer),
        parts,
        _bert_loss(model),
        len(train.ids),
        train.unknown,
    )


def _pair_places(encoded: _Encoded, limit: int) -> list[tuple[int, int, int]]:
    """Runs of at least two segments that together reach `limit` tokens, or the end of their document."""
    places = []
    for number, document in enumerate(encoded.documents):
        start = total = 0
        for i, segment in enumerate(document):
            total += len(segment)
            if (total >= limit and i > start) or i == len(document) - 1:
                if i > start:
                    places.append((number, start, i + 1))
                start, total = i + 1, 0
    return places


def _sentinels(tokenizer: Any) -> np.ndarray:
    found: list[int] = []
    while (i := tokenizer.convert_tokens_to_ids(f"<extra_id_{len(found)}>")) not in (None, tokenizer.unk_token_id):
        found.append(i)
    return np.array(found, dtype=np.int64)


def _pads(tokenizer: Any) -> dict[str, int]:
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return {"input_ids": pad, "attention_mask": 0, "token_type_ids": 0, "labels": noise.IGNORED}


def _bert_loss(model: Any) -> Callable[[Any, Mapping[str, torch.Tensor]], torch.Tensor] | None:
    """The loss of BertForMaskedLM and BertForPreTraining, with the vocabulary computed at the masked positions alone.

    The same number; but a small model spends most of its time, and its memory, on the logits of the other 85%.
    """
    if model.config.model_type != "bert":
        return None

    def loss(model: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        seen = {k: v for k, v in batch.items() if k in ("input_ids", "attention_mask", "token_type_ids")}
        body = model.bert(**seen)
        hidden = batch["labels"] != noise.IGNORED
        total = cross_entropy(model.cls.predictions(body.last_hidden_state[hidden]).float(), batch["labels"][hidden])
        if "next_sentence_label" in batch:
            pairs = model.cls.seq_relationship(body.pooler_output).float()
            total = total + cross_entropy(pairs, batch["next_sentence_label"])
        return total

    return loss


def _masked_parts(outputs: Any, batch: Mapping[str, torch.Tensor]) -> Parts:
    return {"masked tokens": token_loss(outputs.logits, batch["labels"])}
