"""Vocabulary trimming: the same model with only those tokens that a task's texts need, and a way to say any other.

Embeddings are half of a small encoder, and most of their rows are never read by one task. What is kept: the tokens of
the given texts, so that these are read as before; special and added tokens; and the smallest pieces (characters,
bytes), from which every other text is still built. Abdaoui et al., 'Load what you need: smaller versions of
multilingual BERT', SustaiNLP 2020 (arXiv:2010.05609), cut WordPiece so; how each kind of tokenizer keeps its answers:

- WordPiece takes the longest piece that fits: where the pieces it took are still there, it takes them again. For a
  word that it gives up on, the pieces on the way to that place are kept too, so that it gives up again.
- BPE applies the merge of lowest rank: all merges that build a kept token are kept, in their order, so that at each
  step the merge of the full tokenizer is still the lowest.
- Unigram takes the path of the highest score: scores are kept, and so is the piece of the lowest score, which sets
  the price of an unknown character; the best path is still there, and no other got better.
- WordLevel has whole words only: one that the texts lack becomes unknown (`Trimmed.note`).

A model that writes (text generation, text to text) loses the same rows of its output: it can only write kept tokens,
at probabilities shared out among these. So the texts must include what it is to write: the targets.

The promise is for the given texts. Another one is read in smaller pieces where it has a word that they lack, and may
be answered otherwise, the more so the fewer texts were given: hold the trimmed model against rows that it was not
trimmed by, or trim before tuning, so that the model learns to read it so.

The work is done on tokenizer.json and on the tensors of the checkpoint; the model is built without weights only, to
learn which of its tensors have a row for each token.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from edgewise.errors import CheckpointError, DataError
from edgewise.exporter.originals import read_tokenizer
from edgewise.exporter.preprocessing import TOKENIZER_FILES
from edgewise.files import new_folder, no_space, write_json
from edgewise.prompts import PROMPT_FILE, prompt_tokens, read_prompt
from edgewise.sources import check_model_folder
from edgewise.types import EXPORT_CLASSES, IMAGE_TASKS, Task

Text = str | tuple[str, str]

_KINDS = ("WordPiece", "BPE", "Unigram", "WordLevel")
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_CARRIED = ("chat_template.*", "LICENSE*", "modules.json", "*sentence*.json", "[0-9]_*")
"""What else goes along: the chat template, the licence, and the pooling of sentence-transformers."""
_FORBIDDEN = ("suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "sequence_bias")
"""Of a generation config: what it names and is not kept cannot be written anyway, and is dropped."""
_BATCH = 1000
_SHOWN = 100
"""Characters of a text in an error."""


@dataclass(frozen=True)
class Trimmed:
    """A checkpoint with a smaller vocabulary."""

    path: Path
    kept: int
    """Tokens after trimming: rows of the embeddings, the new config.vocab_size."""
    of: int
    """Tokens before."""
    embedding_bytes: int
    """Of all tensors of the file with a row for each token (embeddings, output layer, its bias), after trimming."""
    bytes_saved: int
    """By which they became smaller."""
    texts: int
    """Different texts that both tokenizers read alike."""
    old_ids: tuple[int, ...]
    """New id -> old id."""
    note: str = ""
    """What the user must know of texts that were not given; '' where they are built from smaller pieces."""


def trim_checkpoint(source: Path, texts: Iterable[Text], out: Path, *, task: Task) -> Trimmed:
    """Write the checkpoint `source` to the folder `out` with a vocabulary cut down to what `texts` need.

    texts: all that the model shall read as before, pairs as tuples; for a model that writes, its targets too. Where
    rows are lists of words, give them as the tokenizer will meet them. Nothing is truncated here. What a chat template
    writes around a message is added to them.

    `out` holds config.json, model.safetensors, tokenizer.json with its two configs, generation_config.json and
    prompt.safetensors where `source` has them. It appears whole or not at all, and replaces what stood there. Every
    token id in the configs is mapped; an added token, or one that a config names, is always kept.

    Raises DataError without texts; CheckpointError for a model or tokenizer that it cannot trim, or, naming the text,
    where the new tokenizer does not read it as the old one did; NoSpaceError.
    """
    items = _read_texts(texts)
    given = len(items)
    check_model_folder(source)
    if out.resolve() == source.resolve():
        raise CheckpointError(f"{out} is the checkpoint itself: write the trimmed one to another folder")
    model = _examine(source, task)
    config = {**model.defaults, **_read_json(source / "config.json")}
    generation = _read_json(source / "generation_config.json") if _has(source, "generation_config.json") else {}
    full = read_tokenizer(source)
    frame, note = _chat_frame(full)
    items += frame
    with new_folder(out) as work:
        full.save_pretrained(work)
        document = _read_json(work / "tokenizer.json")
        pieces = _Pieces.of(document, source)
        encoded = _encode(full.backend_tokenizer, items)
        required = {*model.required, *full.all_special_ids, *_named_ids(config), *_named_ids(generation)}
        used = _used(full.backend_tokenizer, pieces, items, encoded)
        old_ids = _choose(document, pieces, used | {i for i in required if 0 <= i < model.rows})
        _check_rows(source, model, pieces, old_ids)
        new = {old: i for i, old in enumerate(old_ids)}

        _write_tokenizer(work, document, pieces, new)
        _check_equal(source, work, full.backend_tokenizer, items, encoded, old_ids)
        write_json(work / "config.json", _new_config(config, new, model))
        if generation:
            write_json(work / "generation_config.json", _map_named(generation, new))
        before, after = _cut_weights(source, work, model, old_ids)
        _carry(source, work)
    return Trimmed(
        path=out,
        kept=len(old_ids),
        of=model.rows,
        embedding_bytes=after,
        bytes_saved=before - after,
        texts=given,
        old_ids=tuple(old_ids),
        note="; ".join(filter(None, (pieces.note, note))),
    )


def _read_texts(texts: Iterable[Text]) -> list[Text]:
    """Each text once. Raises DataError for none, or what is no text."""
    found: dict[Text, None] = {}
    for item in texts:
        parts = item if isinstance(item, tuple) else (item,)
        if len(parts) > 2 or not all(isinstance(part, str) for part in parts):
            raise DataError(f"{str(item)[:_SHOWN]!r} is no text to trim a vocabulary by: give a str or a pair of them")
        try:
            "".join(parts).encode()
        except UnicodeEncodeError as error:
            raise DataError(f"{str(item)[:_SHOWN]!r} has half a surrogate pair, which no tokenizer reads") from error
        found[item] = None
    if not found:
        raise DataError(
            "no texts to trim the vocabulary by: give those that the model is to read, as of the train rows"
        )
    return list(found)


def _chat_frame(tokenizer: Any) -> tuple[list[Text], str]:
    """What the chat template puts around every message, roles and system prompt, and a note where it does not render.

    With an empty message and with a short one, since the words beside a message depend on what it begins with.
    """
    if not tokenizer.chat_template:
        return [], ""
    try:
        return [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": message}, {"role": "assistant", "content": message}][:turns],
                tokenize=False,
                add_generation_prompt=turns == 1,
            )
            for message in ("", "a")
            for turns in (1, 2)
        ], ""
    except Exception as error:  # a template may raise what it likes
        why = " ".join(str(error).split())[:_SHOWN]
        return [], f"its chat template does not render ({why}): give texts as they stand in a chat"


def _has(folder: Path, name: str) -> bool:
    return (folder / name).is_file()


def _read_json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{file} is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{file} holds a {type(found).__name__}, not an object")
    return found


# ---- which tensors have a row for each token


@dataclass(frozen=True)
class _Model:
    rows: int
    """config.vocab_size."""
    key: str
    """Its name in config.json: n_words in XLM."""
    cuts: Mapping[str, tuple[int, ...]]
    """Tensor -> its dimensions that are as long as the vocabulary."""
    names: frozenset[str]
    """Of all tensors."""
    prefix: str
    """Of the base model's tensors in the whole: a file may hold them with or without it."""
    pad_fixed: int | None
    """The padding id, where positions count from it (RoBERTa), so that it must stay."""
    defaults: Mapping[str, int]
    """Token ids that the config leaves to the class's defaults."""

    @property
    def required(self) -> range:
        return range(0 if self.pad_fixed is None else self.pad_fixed + 1)

    def own_name(self, name: str) -> str | None:
        """The model's name of a tensor of the file; None where the model does not read it."""
        forms = (name, f"{self.prefix}.{name}", name.removeprefix(f"{self.prefix}."))
        return next((form for form in forms if form in self.names), None)

    def dims(self, name: str, shape: Sequence[int]) -> tuple[int, ...]:
        """The dimensions to cut of a tensor of the file."""
        own = self.own_name(name)
        if own is not None:
            return self.cuts.get(own, ())
        # A head that this task does not read (BERT's decoder under a classifier) is kept in step.
        return (0,) if shape and shape[0] == self.rows else ()


def _examine(source: Path, task: Task) -> _Model:
    """Build the model twice without weights, with one token more the second time: what grows has a row for each token.

    So that no family's names need be known: tied and untied output layers and separate biases are found alike.
    """
    import copy

    import torch
    import transformers

    if task in IMAGE_TASKS or task not in EXPORT_CLASSES:
        raise CheckpointError(f"{source} is for {task}, which has no vocabulary to trim")
    auto = getattr(transformers, EXPORT_CLASSES[task])
    try:
        config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
        rows = int(config.vocab_size)
        larger = copy.deepcopy(config)
        larger.vocab_size = rows + 1
        if getattr(config, "decoder_vocab_size", None) == rows:
            larger.decoder_vocab_size = rows + 1
        with torch.device("meta"):
            model, grown = auto.from_config(config), auto.from_config(larger)
    except Exception as error:  # transformers raises many kinds
        first = " ".join(str(error).split())[:300] or type(error).__name__
        raise CheckpointError(f"{source} has no vocabulary that edgewise can trim for {task}: {first}") from error
    shapes = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    cuts = {
        name: dims
        for name, t in grown.state_dict().items()
        if (dims := tuple(d for d, (a, b) in enumerate(zip(shapes[name], t.shape, strict=True)) if a != b))
    }
    if not cuts or any(shapes[name][d] != rows for name, dims in cuts.items() for d in dims):
        raise CheckpointError(f"{source}: no tensor of this {config.model_type} model has one row a token to cut")
    return _Model(
        rows=rows,
        key=config.attribute_map.get("vocab_size", "vocab_size"),
        cuts=cuts,
        names=frozenset(shapes),
        prefix=model.base_model_prefix,
        pad_fixed=config.pad_token_id if _positions_from_padding(model, cuts) else None,
        defaults={k: v for k, v in config.to_dict().items() if k.endswith("_token_id") and isinstance(v, int)},
    )


def _positions_from_padding(model: Any, cuts: Mapping[str, Any]) -> bool:
    """True where something beside the word embeddings knows the padding id: RoBERTa's position embeddings."""
    from transformers import PreTrainedModel

    return any(
        getattr(module, "padding_idx", None) is not None
        and not isinstance(module, PreTrainedModel)  # Llama notes it and does not use it
        and f"{name}.weight" not in cuts
        for name, module in model.named_modules()
    )


def _check_rows(source: Path, model: _Model, pieces: _Pieces, old_ids: Sequence[int]) -> None:
    beyond = [i for i in old_ids if i >= model.rows]
    if beyond:
        raise CheckpointError(
            f"{source}: its tokenizer has tokens beyond the model's {model.rows} rows (ids {beyond[0]} to "
            f"{beyond[-1]}): give the model rows for them with model.resize_token_embeddings(len(tokenizer))"
        )
    if model.pad_fixed is not None and old_ids[model.pad_fixed] != model.pad_fixed:
        raise CheckpointError(
            f"{source}: this model counts positions from its padding id {model.pad_fixed}, which cannot stay where it "
            "is in a smaller vocabulary: save the tokenizer with a padding token among its first ids"
        )


# ---- which tokens are kept


@dataclass(frozen=True)
class _Pieces:
    """The vocabulary of tokenizer.json's model, without the tokens that were added to it."""

    kind: str
    ids: Mapping[str, int]
    scores: Sequence[float]
    """Of Unigram, by id."""
    merges: Sequence[tuple[str, str]]
    """Of BPE, by rank."""
    unknown: int | None
    prefix: str
    """Of a piece that goes on inside a word: '##'."""
    suffix: str
    """Of one that ends a word (BPE): '</w>'."""
    longest: int
    """Characters of a word that WordPiece reads; a longer one is unknown."""

    @classmethod
    def of(cls, document: Mapping[str, Any], source: Path) -> _Pieces:
        """Raises CheckpointError for a kind of tokenizer that it does not know."""
        model = document["model"]
        kind = model.get("type")
        if kind not in _KINDS:
            raise CheckpointError(f"{source}: cannot trim a tokenizer of kind {kind!r}; known: {', '.join(_KINDS)}")
        if model.get("dropout"):
            raise CheckpointError(
                f"{source}: its BPE leaves out merges at random (dropout={model['dropout']}), so no text has one "
                "reading to keep: set model.dropout to null in tokenizer.json"
            )
        vocabulary = model["vocab"]
        listed = isinstance(vocabulary, list)
        ids = {token: i for i, (token, _) in enumerate(vocabulary)} if listed else vocabulary
        return cls(
            kind=kind,
            ids=ids,
            scores=[score for _, score in vocabulary] if listed else (),
            merges=[_pair(m) for m in model.get("merges") or ()],
            unknown=model.get("unk_id") if listed else ids.get(model.get("unk_token")),
            prefix=model.get("continuing_subword_prefix") or "",
            suffix=model.get("end_of_word_suffix") or "",
            longest=model.get("max_input_chars_per_word", 0),
        )

    @property
    def note(self) -> str:
        if self.kind != "WordLevel":
            return ""
        unknown = next((token for token, i in self.ids.items() if i == self.unknown), "unknown")
        return f"this tokenizer knows whole words only: one that is in none of the given texts now becomes {unknown}"

    def symbols(self, token: str) -> list[str]:
        """The single characters of a token, in the form in which each would stand alone: ab##, ##b."""
        inner = bool(self.prefix) and token.startswith(self.prefix) and len(token) > len(self.prefix)
        final = bool(self.suffix) and token.endswith(self.suffix) and len(token) > len(self.suffix)
        body = token[len(self.prefix) if inner else 0 : len(token) - len(self.suffix) if final else None]
        found = [(self.prefix if i or inner else "") + c for i, c in enumerate(body)]
        return [*found[:-1], found[-1] + self.suffix] if final else found

    def smallest(self) -> set[int]:
        """Ids of what any text is built from: characters, bytes, and tokens with a character that is no piece."""
        return {
            i
            for token, i in self.ids.items()
            if len(symbols := self.symbols(token)) == 1
            or _BYTE.fullmatch(token)
            or (self.kind != "WordLevel" and any(s not in self.ids for s in symbols))
        }

    def built_from(self, tokens: Iterable[str]) -> set[str]:
        """All that BPE's merges make on the way to each token.

        A merge never crosses the ends of a token that comes out of a word, so that the token alone is built as within
        the word.
        """
        ranks = {pair: rank for rank, pair in enumerate(self.merges)}
        found: set[str] = set()
        for token in tokens:
            parts = self.symbols(token)
            while len(parts) > 1:
                found.update(parts)
                pairs = list(pairwise(parts))
                at = min(range(len(pairs)), key=lambda i: ranks.get(pairs[i], len(ranks)))
                if pairs[at] not in ranks:
                    break  # a token that stands for a whole word (ignore_merges), or cannot come out
                parts[at : at + 2] = [self.merged(pairs[at])]
            found.update(parts)
        return found & self.ids.keys()

    def merged(self, pair: tuple[str, str]) -> str:
        return pair[0] + pair[1][len(self.prefix) :]

    def before_failure(self, words: Iterable[str]) -> set[int]:
        """What WordPiece takes of each word before it finds no piece and makes the whole word unknown."""
        found: set[int] = set()
        for word in set(words):
            start, taken = 0, set[int]()
            while start < len(word) <= self.longest:
                forms = ((self.prefix if start else "") + word[start:end] for end in range(len(word), start, -1))
                token = next((form for form in forms if form in self.ids), None)
                if token is None:
                    found |= taken
                    break
                taken.add(self.ids[token])
                start += len(token) - (len(self.prefix) if start else 0)
        return found


def _pair(merge: Any) -> tuple[str, str]:
    """Of 'a b', as older files write a merge, or of ['a', 'b']."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _words(backend: Any, texts: Iterable[Text]) -> Iterator[str]:
    """The words of some texts, as they reach the tokenizer's model."""
    for text in texts:
        for part in text if isinstance(text, tuple) else (text,):
            plain = backend.normalizer.normalize_str(part) if backend.normalizer else part
            if backend.pre_tokenizer:
                yield from (word for word, _ in backend.pre_tokenizer.pre_tokenize_str(plain))
            else:
                yield plain


def _used(backend: Any, pieces: _Pieces, items: Sequence[Text], encoded: Sequence[Any]) -> set[int]:
    """Ids of all tokens of the texts, and those that a word needs to become unknown as before."""
    import numpy as np

    used = set(np.unique(np.concatenate(encoded)).tolist())
    if pieces.kind == "WordPiece" and pieces.unknown in used:
        failed = [text for text, ids in zip(items, encoded, strict=True) if pieces.unknown in ids]
        used |= pieces.before_failure(_words(backend, failed))
    return used


def _choose(document: Mapping[str, Any], pieces: _Pieces, used: set[int]) -> list[int]:
    """The old id of each new one. The old order is kept, the model's pieces before what was added to them."""
    added = {t["id"] for t in document["added_tokens"]}
    kept = used | added | pieces.smallest() | set(_processor_ids(document.get("post_processor")))
    kept |= {pieces.unknown} - {None}
    if pieces.kind == "BPE":
        kept |= {pieces.ids[t] for t in pieces.built_from(t for t, i in pieces.ids.items() if i in kept)}
    if pieces.kind == "Unigram" and pieces.scores:
        kept.add(min(range(len(pieces.scores)), key=pieces.scores.__getitem__))
    own = set(pieces.ids.values())
    return sorted(kept, key=lambda i: (0 if i in own else 1 if i in added else 2, i))


# ---- the tokenizer with new ids


def _write_tokenizer(folder: Path, document: dict[str, Any], pieces: _Pieces, new: Mapping[int, int]) -> None:
    model = document["model"]
    kept = {t: new[i] for t, i in sorted(pieces.ids.items(), key=lambda item: item[1]) if i in new}
    if pieces.kind == "Unigram":
        model["vocab"] = [[token, pieces.scores[pieces.ids[token]]] for token in kept]
        model["unk_id"] = None if pieces.unknown is None else new[pieces.unknown]
    else:
        model["vocab"] = kept
    if pieces.kind == "BPE":
        model["merges"] = [list(m) for m in pieces.merges if {*m, pieces.merged(m)} <= kept.keys()]
    for token in document["added_tokens"]:
        token["id"] = new[token["id"]]
    if document.get("padding"):
        pad = document["padding"]
        pad["pad_id"] = new.get(pad["pad_id"], 0)
    _map_processor(document.get("post_processor"), new)
    (folder / "tokenizer.json").write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")

    config = _read_json(folder / "tokenizer_config.json")
    if named := config.get("added_tokens_decoder"):
        config["added_tokens_decoder"] = {str(new[int(i)]): token for i, token in named.items() if int(i) in new}
    write_json(folder / "tokenizer_config.json", config)
    for file in folder.iterdir():  # vocab.txt and the like: the old vocabulary again
        if file.is_file() and file.name not in TOKENIZER_FILES and not file.name.startswith("chat_template"):
            file.unlink()


def _processors(processor: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """A post-processor, or those that it is a sequence of."""
    if processor and processor["type"] == "Sequence":
        for inner in processor["processors"]:
            yield from _processors(inner)
    elif processor:
        yield processor


def _processor_ids(processor: dict[str, Any] | None) -> Iterator[int]:
    for found in _processors(processor):
        if found["type"] == "TemplateProcessing":
            yield from (i for special in found["special_tokens"].values() for i in special["ids"])
        elif found["type"] in ("BertProcessing", "RobertaProcessing"):
            yield from (found["sep"][1], found["cls"][1])


def _map_processor(processor: dict[str, Any] | None, new: Mapping[int, int]) -> None:
    for found in _processors(processor):
        if found["type"] == "TemplateProcessing":
            for special in found["special_tokens"].values():
                special["ids"] = [new[i] for i in special["ids"]]
        elif found["type"] in ("BertProcessing", "RobertaProcessing"):
            for name in ("sep", "cls"):
                found[name] = [found[name][0], new[found[name][1]]]


def _encode(backend: Any, items: Sequence[Text]) -> list[Any]:
    """The token ids of each text, int32 [tokens], whole and unpadded."""
    import numpy as np

    backend.no_truncation()
    backend.no_padding()
    found = []
    for start in range(0, len(items), _BATCH):
        batch = backend.encode_batch(list(items[start : start + _BATCH]))
        found += [np.array(encoding.ids, np.int32) for encoding in batch]
    return found


def _check_equal(
    source: Path, folder: Path, full: Any, items: Sequence[Text], encoded: Sequence[Any], old_ids: Sequence[int]
) -> None:
    """Read every text with the tokenizer just written, as transformers loads it. Raises CheckpointError."""
    import numpy as np

    try:
        backend = read_tokenizer(folder).backend_tokenizer
    except CheckpointError as error:
        raise CheckpointError(f"{source}: its tokenizer cannot be made smaller: {error}") from error
    theirs = full.get_vocab()
    moved = [t for t, i in backend.get_vocab().items() if i >= len(old_ids) or theirs.get(t) != old_ids[i]]
    if moved:
        raise CheckpointError(f"{source}: its tokenizer cannot be made smaller: token {moved[0]!r} gets a wrong id")
    old = np.array(old_ids, np.int32)
    for text, before, after in zip(items, encoded, _encode(backend, items), strict=True):
        if not np.array_equal(old[after], before):
            shown = str(text)
            raise CheckpointError(
                f"{source}: with a smaller vocabulary {shown[:_SHOWN]!r}"
                f"{'...' if len(shown) > _SHOWN else ''} is no longer read as the same tokens "
                f"({len(before)} before, {len(after)} after): leave its vocabulary as it is"
            )


# ---- token ids in configs


def _named_ids(config: Mapping[str, Any]) -> set[int]:
    """Every token id that a config names and that the model may read or write."""
    found: set[int] = set()
    for key, value in config.items():
        if isinstance(value, dict) and key not in ("id2label", "label2id"):
            found |= _named_ids(value)
        elif key == "forced_decoder_ids" and value:
            found |= {i for _, i in value if i is not None}
        elif _names_ids(key):
            found |= set(_flat(value))
    return found


def _names_ids(key: str) -> bool:
    return key.endswith(("_token_id", "_token_ids")) or key == "force_words_ids"


def _flat(value: Any) -> Iterator[int]:
    if isinstance(value, list):
        for item in value:
            yield from _flat(item)
    elif isinstance(value, int) and not isinstance(value, bool):
        yield value


def _map_named(config: Mapping[str, Any], new: Mapping[int, int]) -> dict[str, Any]:
    """The config with new ids. One that is no row of the model (-1; GPT-2's 50256 in a small model) stays."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict) and key not in ("id2label", "label2id"):
            found[key] = _map_named(value, new)
        elif key == "forced_decoder_ids" and value:
            found[key] = [[at, new.get(i, i)] for at, i in value]
        elif _names_ids(key):
            found[key] = _map_ids(value, new)
        elif key in _FORBIDDEN and isinstance(value, list):
            possible = [v for v in value if all(i in new for i in _flat(v[0] if key == "sequence_bias" else v))]
            if possible:  # transformers takes no empty list of forbidden words
                biases = [[_map_ids(ids, new), bias] for ids, bias in possible] if key == "sequence_bias" else None
                found[key] = biases or _map_ids(possible, new)
        else:
            found[key] = value
    return found


def _map_ids(value: Any, new: Mapping[int, int]) -> Any:
    if isinstance(value, list):
        return [_map_ids(item, new) for item in value]
    return new.get(value, value) if isinstance(value, int) and not isinstance(value, bool) else value


def _new_config(config: Mapping[str, Any], new: Mapping[int, int], model: _Model) -> dict[str, Any]:
    found = _map_named(config, new)
    found[model.key] = len(new)
    if found.get("decoder_vocab_size") == model.rows:
        found["decoder_vocab_size"] = len(new)
    return found


# ---- the weights


def _cut_weights(source: Path, folder: Path, model: _Model, old_ids: Sequence[int]) -> tuple[int, int]:
    """Write model.safetensors; returns the bytes of what has a row for each token, before and after."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    index = torch.tensor(old_ids)
    tensors: dict[str, Any] = {}
    before = after = 0
    seen: set[str | None] = set()
    for file in _weight_files(source):
        with safe_open(file, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118 - safe_open is no mapping
                tensor = weights.get_tensor(name)
                dims = model.dims(name, tensor.shape)
                for dim in dims:
                    if tensor.shape[dim] != model.rows:
                        raise CheckpointError(
                            f"{file}: {name} has {tensor.shape[dim]} rows, but config.json has {model.key}={model.rows}"
                        )
                before += tensor.nbytes if dims else 0
                for dim in dims:
                    tensor = tensor.index_select(dim, index)
                after += tensor.nbytes if dims else 0
                tensors[name] = tensor.contiguous()
                seen.add(model.own_name(name) if dims else None)
    if not seen & model.cuts.keys():
        raise CheckpointError(f"{source}: none of its weights has a row for each token (expected {min(model.cuts)})")
    needed = sum(t.nbytes for t in tensors.values())
    if shutil.disk_usage(folder).free < needed:
        raise no_space(folder, needed)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)  # safetensors makes its files private to this user
    return before, after


def _weight_files(source: Path) -> list[Path]:
    index = source / "model.safetensors.index.json"
    if index.is_file() and not _has(source, "model.safetensors"):
        names = sorted(set(_read_json(index).get("weight_map", {}).values()))
        files = [source / Path(name).name for name in names]
    else:
        files = [source / "model.safetensors"]
    for file in files:
        if not file.is_file():
            raise CheckpointError(
                f"{source} has no weights to trim: {file.name} is missing; save the model there with "
                "model.save_pretrained(folder, safe_serialization=True)"
            )
    return files


def _carry(source: Path, folder: Path) -> None:
    """Copy what does not depend on the vocabulary."""
    if prompt_tokens(source):
        read_prompt(source)  # one that is missing or broken is said here
        shutil.copyfile(source / PROMPT_FILE, folder / PROMPT_FILE)
    for path in (p for pattern in _CARRIED for p in source.glob(pattern)):
        if path.is_dir():
            shutil.copytree(path, folder / path.name, dirs_exist_ok=True)
        elif not _has(folder, path.name):
            shutil.copyfile(path, folder / path.name)
