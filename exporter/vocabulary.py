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

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgewise.errors import CheckpointError, DataError
from edgewise.exporter.originals import read_tokenizer
from edgewise.exporter.pieces import Pieces, Text, choose_ids, used_ids
from edgewise.exporter.token_ids import has_file, map_named, named_ids, read_json
from edgewise.exporter.token_rows import TokenRows, cut_weights, find_token_rows, new_config
from edgewise.exporter.trimmed_tokenizer import SHOWN, check_equal, encode, write_tokenizer
from edgewise.files import new_folder, write_json
from edgewise.prompts import PROMPT_FILE, prompt_tokens, read_prompt
from edgewise.sources import check_model_folder
from edgewise.types import Task

_CARRIED = ("chat_template.*", "LICENSE*", "modules.json", "*sentence*.json", "[0-9]_*")
"""What else goes along: the chat template, the licence, and the pooling of sentence-transformers."""


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
    model = find_token_rows(source, task)
    config = {**model.defaults, **read_json(source / "config.json")}
    generation = read_json(source / "generation_config.json") if has_file(source, "generation_config.json") else {}
    full = read_tokenizer(source)
    frame, note = _chat_frame(full)
    items += frame
    with new_folder(out) as work:
        full.save_pretrained(work)
        document = read_json(work / "tokenizer.json")
        pieces = Pieces.of(document, source)
        encoded = encode(full.backend_tokenizer, items)
        required = {*model.required, *full.all_special_ids, *named_ids(config), *named_ids(generation)}
        used = used_ids(full.backend_tokenizer, pieces, items, encoded)
        old_ids = choose_ids(document, pieces, used | {i for i in required if 0 <= i < model.rows})
        _check_rows(source, model, old_ids)
        new = {old: i for i, old in enumerate(old_ids)}

        write_tokenizer(work, document, pieces, new)
        check_equal(source, work, full.backend_tokenizer, items, encoded, old_ids)
        write_json(work / "config.json", new_config(config, new, model))
        if generation:
            write_json(work / "generation_config.json", map_named(generation, new))
        before, after = cut_weights(source, work, model, old_ids)
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
            raise DataError(f"{str(item)[:SHOWN]!r} is no text to trim a vocabulary by: give a str or a pair of them")
        try:
            "".join(parts).encode()
        except UnicodeEncodeError as error:
            raise DataError(f"{str(item)[:SHOWN]!r} has half a surrogate pair, which no tokenizer reads") from error
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
        why = " ".join(str(error).split())[:SHOWN]
        return [], f"its chat template does not render ({why}): give texts as they stand in a chat"


def _check_rows(source: Path, model: TokenRows, old_ids: Sequence[int]) -> None:
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


def _carry(source: Path, folder: Path) -> None:
    """Copy what does not depend on the vocabulary."""
    if prompt_tokens(source):
        read_prompt(source)  # one that is missing or broken is said here
        shutil.copyfile(source / PROMPT_FILE, folder / PROMPT_FILE)
    for path in (p for pattern in _CARRIED for p in source.glob(pattern)):
        if path.is_dir():
            shutil.copytree(path, folder / path.name, dirs_exist_ok=True)
        elif not has_file(folder, path.name):
            shutil.copyfile(path, folder / path.name)
