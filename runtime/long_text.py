"""The first tokens of a text that is far longer than they are, without reading all of it.

tokenizers reads a text to its end before it cuts it: 0.8 s and 150 MB for 1 MB of English, and 2.2 s and 2.7 GB for
a pair of 100 kB each. Where it is certain that the tokens that are kept do not depend on what stands far behind them,
only the beginning is read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tokenizers import Encoding, Tokenizer

from edgewise.runtime.text import is_far_longer

_FIRST = 8
"""Characters a token that are read first; English has 4 to 5."""
_MORE = 4
"""How many times more is read where that was not enough."""
_MARGIN = 3
"""Words at the end of a beginning that may be others in the whole text; these tokenizers look at the next one."""
_LOCAL = {
    "BertNormalizer", "ByteLevel", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Nmt", "Precompiled", "Prepend", "Strip",
    "StripAccents", "BertPreTokenizer", "CharDelimiterSplit", "Digits", "Punctuation", "UnicodeScripts", "Whitespace",
    "WhitespaceSplit",
}  # fmt: skip
"""Steps of tokenizers that look at no more than a character's neighbours."""


def encode_start(tokenizer: Tokenizer, item: str | tuple[str, str], limit: int) -> Encoding:
    """What `tokenizer`, which cuts at `limit` tokens, makes of a text or a pair; `overflowing` may be shorter.

    Raises UnicodeEncodeError for a lone surrogate anywhere.
    """
    for text in (item,) if isinstance(item, str) else item:
        text.encode("utf-8")
    if isinstance(item, str):
        return tokenizer.encode(_start(tokenizer, item, limit, limit) if _is_local(tokenizer) else item)
    # Of a pair the longer text gives way first, so what stays of it must be the longer one still; and tokenizers holds
    # each part that it cuts off of the one together with each of the other, which is too much for two long texts.
    first, second = item
    if _is_second_longer(tokenizer, first, second, limit):
        first = _start(tokenizer, first, limit, limit)
        second = _start(tokenizer, second, limit, max(limit, len(_ids(tokenizer, first))))
    else:
        second = _start(tokenizer, second, limit, limit)
        first = _start(tokenizer, first, limit, max(limit, len(_ids(tokenizer, second))))
    return tokenizer.encode(first, second)


def _is_second_longer(tokenizer: Tokenizer, first: str, second: str, limit: int) -> bool:
    """As tokenizers sees it, for which it must know both."""
    short, long = sorted((first, second), key=len)
    if not is_far_longer(short, limit) and _is_local(tokenizer):
        least = len(_ids(tokenizer, short))
        if _start(tokenizer, long, limit, max(limit, least)) is not long:
            return long is second
    return len(_ids(tokenizer, first)) <= len(_ids(tokenizer, second))


def _start(tokenizer: Tokenizer, text: str, limit: int, tokens: int) -> str:
    """A beginning of the text that has more than `tokens` tokens in common with it; the text itself where none has."""
    if not is_far_longer(text, limit):
        return text
    whole = None if _is_local(tokenizer) else _ids(tokenizer, text)[: tokens + 1]
    size = _FIRST * limit
    while size < len(text):
        start = text[:size]
        if whole is None and _certain(tokenizer, start) > tokens:
            return start
        if whole is not None and len(whole) > tokens and _ids(tokenizer, start)[: tokens + 1] == whole:
            return start
        size *= _MORE
    return text


def _certain(tokenizer: Tokenizer, start: str) -> int:
    """How many tokens of a beginning are those of any text that begins so."""
    parts = _parts(tokenizer, start)
    last = next((word for word in reversed(parts[-1].word_ids) if word is not None), 0) - _MARGIN
    # A token that was added may be longer than a word, and reach over the end.
    added = tokenizer.get_added_tokens_decoder().values()
    end = len(start) - max((len(token.content) for token in added), default=0)
    count = 0
    for part in parts:
        for word, offsets in zip(part.word_ids, part.offsets, strict=True):
            if word is None or word > last or offsets[1] >= end:
                return count
            count += 1
    return count


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return [i for part in _parts(tokenizer, text) for i in part.ids]


def _parts(tokenizer: Tokenizer, text: str) -> list[Encoding]:
    """All tokens of a text, without special ones, in parts of the limit."""
    first = tokenizer.encode(text, add_special_tokens=False)
    return [first, *first.overflowing]


def _is_local(tokenizer: Tokenizer) -> bool:
    """True where a word's tokens are known not to depend on text that stands further behind it."""
    if tokenizer.pre_tokenizer is None:  # the text is one word
        return False
    steps = (tokenizer.normalizer, tokenizer.pre_tokenizer)
    return all(_is_local_step(json.loads(step.__getstate__())) for step in steps if step is not None)


def _is_local_step(step: Mapping[str, Any]) -> bool:
    kind = step["type"]
    if kind == "Sequence":
        return all(map(_is_local_step, step.get("normalizers") or step.get("pretokenizers") or ()))
    if kind == "Metaspace":
        return bool(step.get("split", True))
    if kind == "Replace":  # T5's and ALBERT's regular expression; others may look anywhere
        return "String" in step["pattern"] or step["pattern"].get("Regex") == " {2,}"
    return kind in _LOCAL
