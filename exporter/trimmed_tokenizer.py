"""A tokenizer with some of its tokens under new ids, and the check that it reads texts as before."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgewise.errors import CheckpointError
from edgewise.exporter.originals import read_tokenizer
from edgewise.exporter.pieces import Pieces, Text
from edgewise.exporter.preprocessing import TOKENIZER_FILES
from edgewise.exporter.token_ids import map_processor, read_json
from edgewise.files import write_json

_BATCH = 1000
SHOWN = 100
"""Characters of a text in an error."""


def write_tokenizer(folder: Path, document: dict[str, Any], pieces: Pieces, new: Mapping[int, int]) -> None:
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
    map_processor(document.get("post_processor"), new)
    (folder / "tokenizer.json").write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")

    config = read_json(folder / "tokenizer_config.json")
    if named := config.get("added_tokens_decoder"):
        config["added_tokens_decoder"] = {str(new[int(i)]): token for i, token in named.items() if int(i) in new}
    write_json(folder / "tokenizer_config.json", config)
    for file in folder.iterdir():  # vocab.txt and the like: the old vocabulary again
        if file.is_file() and file.name not in TOKENIZER_FILES:
            file.unlink()


def encode(backend: Any, items: Sequence[Text]) -> list[Any]:
    """The token ids of each text, int32 [tokens], whole and unpadded."""
    import numpy as np

    backend.no_truncation()
    backend.no_padding()
    found = []
    for start in range(0, len(items), _BATCH):
        batch = backend.encode_batch(list(items[start : start + _BATCH]))
        found += [np.array(encoding.ids, np.int32) for encoding in batch]
    return found


def check_equal(
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
    for text, before, after in zip(items, encoded, encode(backend, items), strict=True):
        if not np.array_equal(old[after], before):
            shown = str(text)
            raise CheckpointError(
                f"{source}: with a smaller vocabulary {shown[:SHOWN]!r}"
                f"{'...' if len(shown) > SHOWN else ''} is no longer read as the same tokens "
                f"({len(before)} before, {len(after)} after): leave its vocabulary as it is"
            )
