"""Text to text: an encoder reads a text, a decoder writes another, greedily, by drawing, or by beam search."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Unpack

import numpy as np
from tokenizers import Encoding

from edgewise.bundle import Golden
from edgewise.errors import BundleError, InputError
from edgewise.runtime.base import Model, Opened, is_iterator
from edgewise.runtime.cache import BRANCH, CrossCache, Decoder
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
from edgewise.runtime.generation import GOLDEN_TOKENS
from edgewise.runtime.generation_options import GenerateOptions, Options, read_options, with_given
from edgewise.runtime.text import TextEncoder, text_of


class TextToText(Model):
    """A loaded bundle for text to text. Calls are thread-safe; use as a context manager or `close()` it.

    What a call does not ask for is as the bundle's generation_config.json says, and else greedy, with at most 256 new
    tokens. (The pipelines of transformers 4.57 search with four beams unless they are told otherwise.)
    """

    decides = False

    def __init__(self, opened: Opened) -> None:
        super().__init__(opened)
        bundle = opened.bundle
        options = read_options(bundle)
        self._options = options
        self._encoder = TextEncoder.read(bundle, opened.run)
        graphs = bundle.manifest.graphs
        if len(graphs) != 2 or BRANCH not in {i.name for i in graphs[1].inputs}:
            raise BundleError(
                f"{bundle.path} holds {', '.join(g.file for g in graphs)}; expected an encoder and a merged decoder, "
                f"which takes {BRANCH}: export it again"
            )
        self._decoder = Decoder.of(bundle, graphs[1])
        first = options.decoder_start_token_id
        first = options.bos_token_id if first is None else first
        if first is None:
            raise BundleError(f"{bundle.path} says no decoder_start_token_id, with which an answer begins")
        self._first = first

    def __call__(self, inputs: Any, **options: Unpack[GenerateOptions]) -> Any:
        """Write texts as `transformers.pipeline('text2text-generation')` does.

        inputs: a text, a list of texts, or an iterator of them.
        options: max_new_tokens, max_length (with the decoder's start), min_new_tokens, min_length, repetition_penalty,
        no_repeat_ngram_size; num_beams, and with it length_penalty and early_stopping; do_sample, and with it
        temperature, top_k, top_p, min_p and seed; stop: strings that end the text, which stands before them.

        Returns for a text [{'generated_text': text}]; for a list one such dict an input; for an iterator an iterator
        of lists of one dict. Raises InputError for an input or an option that cannot be.
        """
        chosen = with_given(self._options, options)
        if is_iterator(inputs):
            self.session()  # what is wrong already is said now, not at the first answer
            return self._many(inputs, chosen)
        if isinstance(inputs, list | tuple):
            return [{"generated_text": g.text} for g in self.predict(inputs, **options)]
        (answer,) = self.predict([text_of(inputs)], **options)
        return [{"generated_text": answer.text}]

    def _many(self, inputs: Iterator[Any], options: Options) -> Iterator[list[dict[str, str]]]:
        for generation in self.many(enumerate(inputs), partial(self._write, options=options)):
            yield [{"generated_text": generation.text}]

    def predict(self, items: Sequence[str], **options: Unpack[GenerateOptions]) -> list[Generation]:
        """Typed answers, in order; `run.batch_size` texts go through the graphs together. options: as of a call."""
        if isinstance(items, str) or not isinstance(items, Sequence):
            raise InputError(f"predict takes a list of texts, got {type(items).__name__}: put a single text in a list")
        write = partial(self._write, options=with_given(self._options, options))
        return self.all_of(list(enumerate(items)), write)

    def stream(self, text: str, **options: Unpack[GenerateOptions]) -> Iterator[str]:
        """The text that is written, piece by piece as it comes; joined, it is the `text` of `predict`.

        No piece is empty or breaks a character, and what may be the start of a stop string is held back. Stop reading,
        and nothing more is written. options: as of a call, but one beam alone, as the best of several is known at the
        end.
        """
        chosen = with_given(self._options, options)
        if chosen.num_beams > 1:
            raise InputError(f"num_beams is {chosen.num_beams}, and a stream shows one text: set num_beams=1")
        self.session()
        return self._pieces(self._encode([text], chosen), chosen)

    def token_stream(self, text: str, *, ignore_eos: bool = False, **options: Unpack[GenerateOptions]) -> TokenStream:
        """The ids of the tokens that are written, each as it comes: for who shows or times them.

        ignore_eos: write as many tokens as the options allow, whatever the model would end with. options: as of a call,
        but one beam alone, and `stop` says nothing here.
        """
        chosen = with_given(self._options, options)
        if chosen.num_beams > 1:
            raise InputError(f"num_beams is {chosen.num_beams}, and a stream is of one text: set num_beams=1")
        self.session()
        (encoding,) = encodings = self._encode([text], chosen)
        tokens = self._tokens(encodings, without_end(chosen, ignore_eos))
        return TokenStream(len(encoding), bool(encoding.overflowing), tokens)

    def token_ids(self, item: str) -> list[int]:
        """Token ids of one text, special tokens included, cut to the length of the run settings."""
        ids: list[int] = self._encode([item], self._options)[0].ids
        return ids

    def golden(self, item: str) -> Golden:
        """One text with its token ids and the first ones that are written greedily."""
        options = with_given(self._options, {"do_sample": False, "num_beams": 1, "max_new_tokens": GOLDEN_TOKENS})
        (generation,) = self._write([(0, item)], options)
        return Golden(item, None, tuple(self.token_ids(item)), (), (), generation.token_ids)

    # ---- one batch

    def _encode(self, items: Sequence[Any], options: Options) -> list[Encoding]:
        return self._encoder.encode([options.prefix + text_of(item) for item in items])

    def _start(self, encodings: Sequence[Encoding]) -> tuple[CrossCache, np.ndarray]:
        cache = CrossCache(self.session(0), self.session(1), self._decoder)
        return cache, cache.start(self._encoder.arrays(encodings), self._first)

    def _room(self, options: Options) -> int:
        room = options.new_tokens(1)
        if room < 1:
            raise InputError(f"max_length is {options.max_length}, and the decoder's start is one token: raise it")
        return room

    def _row(self, options: Options, index: int, *, stream: bool = False) -> Row:
        from edgewise.runtime.streaming import TextStream

        text = TextStream(self._encoder.tokenizer, stop=options.stop) if stream or options.stop else None
        return Row.of([self._first], self._room(options), generator_of(options, index), text)

    def _pieces(self, encodings: Sequence[Encoding], options: Options) -> Iterator[str]:
        row = self._row(options, 0, stream=True)
        cache, scores = self._start(encodings)
        yield from shown(cache, scores, row, options)

    def _tokens(self, encodings: Sequence[Encoding], options: Options) -> Iterator[int]:
        row = Row.of([self._first], self._room(options), generator_of(options, 0), None)
        cache, scores = self._start(encodings)
        return written_one_by_one(cache, scores, row, options)

    def _write(self, batch: Sequence[tuple[int, Any]], options: Options) -> list[Generation]:
        encodings = self._encode([item for _, item in batch], options)
        cache, scores = self._start(encodings)
        if options.num_beams > 1:
            from edgewise.runtime.beam import beam_search

            room = self._room(options)
            found = beam_search(cache, scores, self._first, [room] * len(batch), options)
            return [self._generation(e, ids, options) for e, ids in zip(encodings, found, strict=True)]
        rows = [self._row(options, index) for index, _ in batch]
        for _ in decode(cache, scores, rows, options):
            pass
        return [self._generation(e, row.written, options, row) for e, row in zip(encodings, rows, strict=True)]

    def _generation(self, encoding: Encoding, ids: list[int], options: Options, row: Row | None = None) -> Generation:
        cut = bool(encoding.overflowing)
        if cut:
            self.warn_truncated(len(encoding))
        if row is not None and row.stream is not None:
            text = "".join([*row.pieces, row.rest()])
        else:
            text = self._encoder.tokenizer.decode([self._first, *ids], skip_special_tokens=True)
        finish = row.finish if row is not None else None
        finish = finish or ("eos" if ids[-1] in options.eos_token_id else "length")
        return Generation(text, tuple(ids), finish, len(encoding), cut)
