"""Text generation: a prompt or a chat in, what the model writes after it out."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
from tokenizers import Tokenizer

from edgewise.bundle import Bundle, Golden
from edgewise.errors import BundleError, InputError
from edgewise.runtime.base import Model, Opened, TruncationWarning, is_iterator
from edgewise.runtime.cache import Decoder, GrowingCache, InPlaceCache
from edgewise.runtime.decode import (
    Generation,
    Row,
    TokenStream,
    decode,
    generator_of,
    shown,
    without_end,
    written_one_by_one,
)
from edgewise.runtime.generation_options import GenerateOptions, Options, read_options, with_given
from edgewise.runtime.text import TextEncoder, text_of

if TYPE_CHECKING:  # few need it, and a start is short
    from edgewise.runtime.likelihood import Likelihood

GOLDEN_TOKENS = 8
"""Written greedily for a golden answer; few, since int8 and int4 kernels differ between CPUs."""
_TAIL = 4
"""Tokens before a text that its beginning can depend on."""

Chat = Sequence[Mapping[str, Any]]
"""Messages such as {'role': 'user', 'content': 'a question'}, in order."""
Prompt = str | Chat


@dataclass(frozen=True, slots=True)
class _Read:
    """A prompt as the graph reads it."""

    ids: list[int]
    room: int
    """Tokens to write at most."""
    truncated: bool


class TextGenerator(Model):
    """A loaded bundle for text generation. Calls are thread-safe; use as a context manager or `close()` it.

    What a call does not ask for is as the bundle's generation_config.json says, and else greedy, with at most 256 new
    tokens: the same prompt gets the same answer. (The pipelines of transformers 4.57 draw with a temperature of 0.7
    unless they are told otherwise.)
    """

    decides = False

    def __init__(self, opened: Opened) -> None:
        super().__init__(opened)
        manifest = opened.bundle.manifest
        self._options = read_options(opened.bundle)
        self._tokenizer = _read_tokenizer(opened.bundle)
        self._encoder = TextEncoder(self._tokenizer, ("input_ids",), self._options.pad_token_id)
        self._decoder = Decoder.of(opened.bundle, manifest.graphs[0])
        self._cache = InPlaceCache if manifest.recipe.cache == "in-place" else GrowingCache
        self._length: int | None = opened.run.max_length or manifest.preprocessing.get("max_length")

    def __call__(self, inputs: Any, *, return_full_text: bool = True, **options: Unpack[GenerateOptions]) -> Any:
        """Continue prompts as `transformers.pipeline('text-generation')` does.

        inputs: a text, or a chat as a list of messages {'role', 'content'}; a list of these; or an iterator of them. A
        chat whose last message is the assistant's is continued within that message.
        return_full_text: the prompt with what was written, or (False) what was written alone.
        options: max_new_tokens (of more than the context has room for, as many as fit), max_length (with the prompt),
        min_new_tokens, min_length, repetition_penalty, no_repeat_ngram_size; do_sample, and with it temperature, top_k,
        top_p, min_p and seed (the same seed, the same text, for each place in a list); stop: strings that end the text,
        which stands before them.

        A prompt that leaves no room in the model's context (or the run settings' max_length) for the tokens to write,
        or for a quarter of it, loses its beginning, with a TruncationWarning.

        Returns for a text [{'generated_text': text}], for a chat the same with the messages and the answer as one more;
        for a list one such list an input; for an iterator an iterator of them. As the pipeline, it takes out the space
        before punctuation. Raises InputError for an input or an option that cannot be.
        """
        chosen = _checked(self._options, options)
        if is_iterator(inputs):
            return self._many(inputs, chosen, return_full_text)
        if isinstance(inputs, str) or _is_chat(inputs):
            (answer,) = self._many([inputs], chosen, return_full_text)
            return answer
        if not isinstance(inputs, Sequence) or isinstance(inputs, bytes | bytearray):
            raise _refused(inputs)
        return list(self._many(inputs, chosen, return_full_text))

    def predict(self, items: Sequence[Prompt], **options: Unpack[GenerateOptions]) -> list[Generation]:
        """Typed answers, in order; `run.batch_size` prompts go through the graph together.

        items: texts or chats. options: as of a call. `text` is what was written, as it is.
        """
        if isinstance(items, str) or not isinstance(items, Sequence) or _is_chat(items):
            raise InputError(f"predict takes a list of prompts, got {type(items).__name__}: put a single one in a list")
        write = partial(self._write, options=_checked(self._options, options))
        return [generation for _, generation in self.all_of(list(enumerate(items)), write)]

    def stream(self, prompt: Prompt, **options: Unpack[GenerateOptions]) -> Iterator[str]:
        """The text that is written, piece by piece as it comes; joined, it is the `text` of `predict`.

        No piece is empty or breaks a character, and what may be the start of a stop string is held back. Stop reading,
        and nothing more is written. options: as of a call.
        """
        chosen = _checked(self._options, options)
        self.session()  # what is wrong already is said now, not at the first piece
        return self._pieces(self._read(prompt, chosen), chosen)

    def token_stream(
        self, prompt: Prompt, *, ignore_eos: bool = False, **options: Unpack[GenerateOptions]
    ) -> TokenStream:
        """The ids of the tokens that are written, each as it comes: for who shows or times them.

        ignore_eos: write as many tokens as the options allow, whatever the model would end with. options: as of a call,
        of which `stop` says nothing here.
        """
        chosen = _checked(self._options, options)
        self.session()
        read = self._read(prompt, chosen)
        return TokenStream(len(read.ids), read.truncated, self._tokens(read, without_end(chosen, ignore_eos)))

    def log_likelihood(self, texts: Sequence[str], *, joined: bool = False) -> Iterator[Likelihood]:
        """How likely the model finds each text, in order, as soon as it was read: what perplexity is made of.

        A text that is longer than the model's context (or the run settings' max_length) is read in windows of that many
        tokens, which move by half: every token but the first is scored, once. Windows go through the graph one by one.
        joined: the texts are one running text, with the end of text after each, as the trainer scores them; each is
        then scored after those before it, its first token and its end, too.

        Raises InputError for what is no list of texts.
        """
        from edgewise.runtime.likelihood import WINDOW, of_stream
        from edgewise.runtime.special_tokens import read_special_tokens

        if isinstance(texts, str) or not isinstance(texts, Sequence):
            raise InputError(f"expected a list of texts, got {type(texts).__name__}: put a single one in a list")
        self.session()
        special = read_special_tokens(self.bundle)
        end = special.id_of(self._tokenizer, special.end) if joined else None
        ids = [self._text_ids(text_of(text)) + ([] if end is None else [end]) for text in texts]
        size = self._length or WINDOW
        parts = [ids] if joined else [[one] for one in ids]
        return (found for part in parts for found in of_stream(part, size, self._logits))

    def token_ids(self, item: Prompt) -> list[int]:
        """Token ids of one prompt, uncut."""
        return self._token_ids(item, self._options)

    def golden(self, item: Prompt) -> Golden:
        """One prompt with its token ids and the first ones that are written greedily."""
        if not isinstance(item, str):
            raise InputError("a golden answer is made for a text, not for a chat")
        options = _checked(self._options, {"do_sample": False, "max_new_tokens": GOLDEN_TOKENS})
        ((read, generation),) = self._write([(0, item)], options)
        return Golden(item, None, tuple(read.ids), (), (), generation.token_ids)

    def _many(self, inputs: Any, options: Options, full: bool) -> Iterator[list[dict[str, Any]]]:
        def answer(batch: Sequence[tuple[int, Prompt]]) -> list[list[dict[str, Any]]]:
            written = self._write(batch, options)
            return [self._as_dicts(item, *one, full) for (_, item), one in zip(batch, written, strict=True)]

        items = enumerate(inputs) if is_iterator(inputs) else list(enumerate(inputs))
        return self.many(items, answer)

    # ---- one batch

    def _write(self, batch: Sequence[tuple[int, Prompt]], options: Options) -> list[tuple[_Read, Generation]]:
        read = [self._read(item, options) for _, item in batch]
        if len(read) > 1 and "attention_mask" not in self._decoder.inputs:  # nothing would say what is padding
            return [one for item in batch for one in self._write([item], options)]
        rows = [self._row(one, options, index) for one, (index, _) in zip(read, batch, strict=True)]
        cache = self._cache(self.session(), self._decoder)
        scores = cache.start([one.ids for one in read], options.pad_token_id, max(one.room for one in read))
        for _ in decode(cache, scores, rows, options):
            pass
        return [(one, self._generation(one, row)) for one, row in zip(read, rows, strict=True)]

    def _pieces(self, read: _Read, options: Options) -> Iterator[str]:
        cache = self._cache(self.session(), self._decoder)
        row = self._row(read, options, 0, stream=True)
        scores = cache.start([read.ids], options.pad_token_id, read.room)
        first = True
        for piece in shown(cache, scores, row, options):
            yield self._lead(read.ids, row.written) + piece if first else piece
            first = False

    def _tokens(self, read: _Read, options: Options) -> Iterator[int]:
        cache = self._cache(self.session(), self._decoder)
        row = Row.of(read.ids, read.room, generator_of(options, 0), None)
        scores = cache.start([read.ids], options.pad_token_id, read.room)
        return written_one_by_one(cache, scores, row, options)

    def _row(self, read: _Read, options: Options, index: int, *, stream: bool = False) -> Row:
        from edgewise.runtime.streaming import TextStream

        text = TextStream(self._tokenizer, stop=options.stop) if stream or options.stop else None
        return Row.of(read.ids, read.room, generator_of(options, index), text)

    def _generation(self, read: _Read, row: Row) -> Generation:
        written, finish = row.written, row.finish or "length"
        if row.stream is None:
            text = self._decode([*read.ids, *written])[len(self._decode(read.ids)) :]
        else:
            text = "".join([self._lead(read.ids, written), *row.pieces, row.rest()])
        return Generation(text, tuple(written), finish, len(read.ids), read.truncated)

    def _decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text

    def _lead(self, given: list[int], written: list[int]) -> str:
        """The space that decoders of SentencePiece's kind leave out before a text that they take for a beginning."""
        before = given[-_TAIL:]
        behind = self._decode([*before, *written])[len(self._decode(before)) :]
        return " " if behind.startswith(" ") and not self._decode(written).startswith(" ") else ""

    def _logits(self, ids: Sequence[int]) -> Iterator[np.ndarray]:
        """Of a text: [some tokens, vocabulary], piece by piece."""
        cache = self._cache(self.session(), self._decoder)
        return (logits[0] for logits in cache.read([ids], self._options.pad_token_id, 0))

    # ---- prompts

    def _read(self, item: Prompt, options: Options) -> _Read:
        """Raises InputError for what is no prompt, and for a max_length that it fills."""
        ids = self._token_ids(item, options)
        room = options.new_tokens(len(ids))
        if room < 1:
            raise InputError(
                f"max_length is {options.max_length}, and the prompt alone has {len(ids)} tokens: raise it, or say "
                "max_new_tokens"
            )
        if self._length is None:
            return _Read(ids, room, truncated=False)
        most = self._length - min(room, max(1, self._length // 4))
        cut = len(ids) > most
        if cut:
            self._warn_cut(len(ids), most)
            start = ids[:1] if ids[0] == options.bos_token_id else []
            ids = [*start, *ids[len(ids) - most + len(start) :]]
        return _Read(ids, min(room, self._length - len(ids)), cut)

    def _token_ids(self, item: Prompt, options: Options) -> list[int]:
        if _is_chat(item):
            return self._chat_ids(item)
        if not isinstance(item, str):
            raise _refused(item)
        text = options.prefix + item
        if not text:
            if options.bos_token_id is None:
                raise InputError("the prompt is empty, and this model has no token to begin with: say something")
            return [options.bos_token_id]
        ids: list[int] = self._encoder.encode([text])[0].ids
        return ids

    def _chat_ids(self, messages: Any) -> list[int]:
        from edgewise.runtime.chat import render

        going_on = messages[-1].get("role") == "assistant" if isinstance(messages[-1], Mapping) else False
        text = render(self.bundle.path, messages, not going_on, continue_final_message=going_on)
        ids = self._text_ids(text)
        if not ids:
            raise InputError("the chat template makes no text of these messages: say something")
        return ids

    def _text_ids(self, text: str) -> list[int]:
        """Without special tokens."""
        try:
            ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        except (UnicodeEncodeError, TypeError, ValueError):
            self._encoder.encode([text])  # says what is wrong
            raise
        return ids

    def _warn_cut(self, found: int, most: int) -> None:
        """Once for this model, as `warn_truncated` does for the end of a text."""
        if self._warned:
            return
        self._warned = True
        warnings.warn(
            f"a prompt has {found} tokens, and {self.bundle.path} has a context of {self._length}: its beginning was "
            f"not read, the last {most} tokens were. Shorten it, ask for fewer new tokens, or raise max_length where "
            "the model allows it",
            TruncationWarning,
            stacklevel=2,
        )

    def _as_dicts(self, item: Prompt, read: _Read, generation: Generation, full: bool) -> list[dict[str, Any]]:
        before = self._decode(read.ids)
        text = _cleaned(before + generation.text)[len(_cleaned(before)) :]
        if not full:
            return [{"generated_text": text}]
        if isinstance(item, str):
            return [{"generated_text": item + text}]
        last = item[-1]
        if last["role"] == "assistant":
            said = [*item[:-1], {"role": "assistant", "content": last["content"] + text}]
        else:
            said = [*item, {"role": "assistant", "content": text}]
        return [{"generated_text": said}]


def _is_chat(value: object) -> bool:
    return isinstance(value, Sequence) and bool(value) and isinstance(value[0], Mapping)


def _refused(value: object) -> InputError:
    return InputError(
        f"expected a text or a chat (a list of messages with 'role' and 'content'), got {ascii(value)[:60]} of type "
        f"{type(value).__name__}"
    )


def _checked(options: Options, given: Mapping[str, Any]) -> Options:
    chosen = with_given(options, given)
    if chosen.num_beams > 1:
        raise InputError(f"num_beams is {chosen.num_beams}: beam search is for text to text; set num_beams=1")
    return chosen


def _read_tokenizer(bundle: Bundle) -> Tokenizer:
    file = bundle.path / bundle.manifest.preprocessing["tokenizer"]
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises bare Exception
        raise BundleError(f"{file} is no tokenizer that tokenizers can read: {error}") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


_PAIRS = (
    (" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"), (" 'm", "'m"), (" 's", "'s"),
    (" 've", "'ve"), (" 're", "'re"),
)  # fmt: skip


def _cleaned(text: str) -> str:
    """Without the space before punctuation and short forms, as the pipeline of transformers has it."""
    for spaced, plain in _PAIRS:
        text = text.replace(spaced, plain)
    return text
