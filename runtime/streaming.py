"""Tokens to text while they are written: no character is broken, and a stop string ends it."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer

from edgewise.errors import InputError

_UNFINISHED = "\ufffd"
"""What decoders put for bytes that are no character, or not yet one."""
_NEAR = 4
"""Tokens that the text of the next one can depend on: a character has four bytes, so three tokens may lack its last
one; and decoders treat the first token of a text in a way of their own."""
_HELD = 8
"""Tokens that are kept before they are cut to the last _NEAR."""


class TextStream:
    """Turns the tokens of one answer into pieces of text, one by one, at the same small cost for each.

    The pieces and the `end()`, joined, are what `tokenizer.decode` gives for all tokens together, or what stands
    before the first stop string in it. Text is held back while it may change (bytes of an unfinished character) or
    may be the start of a stop string. Not thread-safe: one stream an answer.

    `tokenizers.decoders.DecodeStream` does less: it refuses tokens after bytes that are no UTF-8, has no end (what it
    held back is lost), and decodes again all that it holds at every token.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool = True, stop: Sequence[str] = ()) -> None:
        """stop: strings that end the text, none of them empty, or InputError."""
        self.finished = False
        """A stop string was met: the text before it was given, and nothing comes after."""
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._skipped = (
            frozenset(i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special)
            if skip_special_tokens
            else frozenset[int]()
        )
        self._stop = (stop,) if isinstance(stop, str) else tuple(stop)
        for text in self._stop:
            if not isinstance(text, str) or not text:
                raise InputError(f"a stop string is {text!r}; expected a text of at least one character")
        self._ids: list[int] = []
        self._text = ""
        """What `_ids` decode to, without those at the end whose text may still change."""
        self._waiting = ""
        """Text that may be the start of a stop string."""

    def put(self, token_id: int) -> str:
        """The text that is now safe to show: it will not change, and is no part of a stop string. Possibly empty.

        token_id: an id that the tokenizer does not know has no text.
        """
        if self.finished or token_id in self._skipped:
            return ""
        token = self._tokenizer.id_to_token(token_id)
        if token is None:
            return ""
        self._ids.append(token_id)
        if _is_byte(token):
            return ""  # a later byte can spoil the text of the whole run: it is decoded when the run is over
        return self._before_stop(self._decode_new())

    def end(self) -> str:
        """The rest: what was held back."""
        if self.finished:
            return ""
        text = self._before_stop(self._decode_new(last=True))
        if self.finished:
            return text
        text, self._waiting, self._ids, self._text = text + self._waiting, "", [], ""
        return text

    def _decode_new(self, *, last: bool = False) -> str:
        """What the ids say beyond `_text`, but for the bytes of an unfinished character."""
        known = len(_finished(self._text))
        now: str = self._tokenizer.decode(self._ids, skip_special_tokens=self._skip)
        new = now[known:] if last else _finished(now)[known:]
        if len(self._ids) > _HELD:
            del self._ids[:-_NEAR]
            now = self._tokenizer.decode(self._ids, skip_special_tokens=self._skip)
        self._text = now
        return new

    def _before_stop(self, new: str) -> str:
        """What can be shown of the waiting and the new text."""
        if not self._stop:
            return new
        text = self._waiting + new
        # The stop string that is complete first, as if the text came character by character.
        met = [(at + len(stop), at) for stop in self._stop if (at := text.find(stop)) >= 0]
        if met:
            self.finished, self._waiting = True, ""
            return text[: min(met)[1]]
        hold = max(_overlap(text, stop) for stop in self._stop)
        cut = len(text) - hold
        self._waiting = text[cut:]
        return text[:cut]


def _is_byte(token: str) -> bool:
    """A byte that stands for itself in SentencePiece's way, like <0xE4>."""
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


def _finished(text: str) -> str:
    """Without the mark of an unfinished character; the text before it is final, whatever comes."""
    return text[:-1] if text.endswith(_UNFINISHED) else text


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of the text that begin the stop string."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
