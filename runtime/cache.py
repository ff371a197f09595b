"""The key-value cache: what a graph has read, so that each token is read once.

Three graphs, one way to drive them: `start` reads the prompts, `step` one more token a row, both give the scores of
the next one, and `keep` chooses among the rows (those that are not finished; those that a beam goes on from).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort

from edgewise.bundle import Bundle, GraphInfo
from edgewise.errors import BundleError, EdgewiseError

PAST, PRESENT = "past_key_values", "present"
BRANCH = "use_cache_branch"
_FIRST_CALL, _LATER_CALLS = np.array([False]), np.array([True])
_LARGEST_LOGITS = 1 << 24
"""Scores that one call may give, 64 MB: a graph gives those of each token it reads, and only the last are wanted."""


class Cache(Protocol):
    """The rows that are being written, as the graph holds them."""

    def step(self, tokens: np.ndarray) -> np.ndarray:
        """Read one token more a row, int64 [rows]; the scores of the next: float32 [rows, vocabulary]."""

    def keep(self, rows: np.ndarray) -> None:
        """Go on with these rows alone, int64 [any], in their order; one may be named several times."""


@dataclass(frozen=True)
class Decoder:
    """What a graph with a key-value cache takes and gives, by the bundle's manifest."""

    inputs: frozenset[str]
    past: tuple[str, ...]
    present: tuple[str, ...]
    """In the order of `past`."""
    empty: Mapping[str, tuple[int, int]]
    """Input of the cache -> its heads and their width."""
    dtype: np.dtype[Any]
    """Of the cache."""
    vocabulary: int
    scores: np.dtype[Any]
    """Of the logits."""
    _nothing: dict[int, dict[str, np.ndarray]] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(cls, bundle: Bundle, graph: GraphInfo) -> Decoder:
        """Raises BundleError for a graph without a cache."""
        past = [i for i in graph.inputs if i.name.startswith(PAST)]
        outputs = {o.name: o for o in graph.outputs}
        present = [i.name.replace(PAST, PRESENT, 1) for i in past]
        logits = outputs.get("logits")
        if not past or logits is None or any(name not in outputs for name in present):
            raise BundleError(
                f"{bundle.path / graph.file} has no key-value cache ({PAST}.* in, logits and {PRESENT}.* out), so that "
                "each token would read the whole text again: export it with one (Optimum's task 'text-generation-"
                "with-past')"
            )
        sizes = {i.name: (i.shape[1], i.shape[3]) for i in past}
        vocabulary = logits.shape[-1]
        if not isinstance(vocabulary, int) or not all(isinstance(n, int) for pair in sizes.values() for n in pair):
            raise BundleError(
                f"{bundle.path / graph.file} does not say the sizes of its cache: export the bundle again"
            )
        return cls(
            inputs=frozenset(i.name for i in graph.inputs),
            past=tuple(i.name for i in past),
            present=tuple(present),
            empty=sizes,  # type: ignore[arg-type]  # all were found to be numbers
            dtype=np.dtype(past[0].dtype),
            vocabulary=vocabulary,
            scores=np.dtype(logits.dtype),
        )

    def nothing(self, rows: int) -> dict[str, np.ndarray]:
        """The cache before the first token: [rows, heads, 0, width] an input."""
        if rows not in self._nothing:
            sizes = self.empty.items()
            self._nothing[rows] = {n: np.zeros((rows, heads, 0, width), self.dtype) for n, (heads, width) in sizes}
        return dict(self._nothing[rows])


def _run(session: ort.InferenceSession, names: Sequence[str], feeds: Mapping[str, Any]) -> list[np.ndarray]:
    try:
        outputs: list[np.ndarray] = session.run(names, feeds)
    except Exception as error:  # onnxruntime's classes share no base but Exception
        raise _broken(error) from error
    return outputs


def _broken(error: Exception) -> EdgewiseError:
    return EdgewiseError(f"the graph does not run: {' '.join(str(error).split())[:400]}")


def _last(logits: np.ndarray) -> np.ndarray:
    """[rows, vocabulary] of [rows, tokens, vocabulary], float32."""
    last: np.ndarray = logits[:, -1]
    return last if last.dtype == np.float32 else last.astype(np.float32)


class GrowingCache:
    """A portable graph: each call gives the whole cache anew, longer by what was read.

    numpy arrays go in and out without a copy. Binding onnxruntime's values instead was no faster (a small GPT, 64
    steps: 0.75 ms a step of processor time against 0.74).
    """

    def __init__(self, session: ort.InferenceSession, decoder: Decoder) -> None:
        self._session = session
        self._decoder = decoder
        self._names = ["logits", *decoder.present]
        self._feeds: dict[str, np.ndarray] = {}
        self._mask = np.zeros((0, 0), np.int64)
        self._positions = np.zeros((0, 0, 1), np.int64)
        """Of each token to write: [tokens, rows, 1]. Made at once: a sum behind a call of the graph, which leaves none
        of numpy's code in the processor's cache, takes 18 us."""
        self._written = 0
        self._length = 0
        """Tokens that were read, padding included."""

    def start(self, rows: Sequence[Sequence[int]], pad: int, room: int) -> np.ndarray:
        """Read the prompts, the shorter ones padded on the left; the scores of the next: float32 [rows, vocabulary].

        rows: token ids, at least one each. pad: the id to pad with. room: tokens that will be written at most.
        """
        for logits in self.read(rows, pad, room):
            last = logits
        return _last(last)

    def read(self, rows: Sequence[Sequence[int]], pad: int, room: int) -> Iterator[np.ndarray]:
        """As `start`, with the scores of what follows each token: [rows, some tokens, vocabulary], piece by piece."""
        longest = max(map(len, rows))
        ids = np.full((len(rows), longest), pad, np.int64)
        self._mask = np.ones((len(rows), longest + room), np.int64)
        for row, given, mask in zip(ids, rows, self._mask, strict=True):
            row[longest - len(given) :] = given
            mask[: longest - len(given)] = 0
        self._feeds = self._decoder.nothing(len(rows))
        mask = self._mask[:, :longest]
        positions = np.where(mask == 0, 1, mask.cumsum(-1) - 1)  # as transformers counts them, 1 for padding
        chunk = max(1, _LARGEST_LOGITS // (len(rows) * self._decoder.vocabulary))
        for start in range(0, longest, chunk):
            end = min(start + chunk, longest)
            yield self._read(ids[:, start:end], positions[:, start:end])
        self._positions = positions[:, -1:] + np.arange(1, room + 1)[:, None, None]

    def step(self, tokens: np.ndarray) -> np.ndarray:
        """As Cache says."""
        positions = self._positions[self._written]
        self._written += 1
        return _last(self._read(tokens[:, None], positions))

    def _read(self, ids: np.ndarray, positions: np.ndarray) -> np.ndarray:
        feeds, inputs = self._feeds, self._decoder.inputs
        self._length += ids.shape[1]
        feeds["input_ids"] = ids
        if "attention_mask" in inputs:
            feeds["attention_mask"] = self._mask[:, : self._length]
        if "position_ids" in inputs:
            feeds["position_ids"] = positions
        logits, *present = _run(self._session, self._names, feeds)
        feeds.update(zip(self._decoder.past, present, strict=True))
        return logits

    def keep(self, rows: np.ndarray) -> None:
        """As Cache says."""
        for name in self._decoder.past:
            self._feeds[name] = self._feeds[name][rows]
        self._mask, self._positions = self._mask[rows], self._positions[:, rows]


class InPlaceCache:
    """A graph of GroupQueryAttention: one buffer a layer, that each step writes its token into.

    The graph reads its mask as a number of tokens a row, so that padding stands on the right, where the tokens that
    are written take its place. Inputs and outputs are bound once: a step changes the token in the buffer that is bound.
    """

    def __init__(self, session: ort.InferenceSession, decoder: Decoder) -> None:
        self._session = session
        self._decoder = decoder
        self._binding = session.io_binding()
        self._buffers: dict[str, np.ndarray] = {}
        self._lengths = self._tokens = self._logits = np.zeros(0, np.int64)
        self._ones = np.zeros((1, 0), np.int64)

    def start(self, rows: Sequence[Sequence[int]], pad: int, room: int) -> np.ndarray:
        """Read the prompts, the shorter ones padded on the right; arguments and result as of GrowingCache.start."""
        for logits in self.read(rows, pad, room):
            last = logits
        scores: np.ndarray = last[np.arange(len(rows)), (self._lengths if len(rows) > 1 else 0) - 1]
        self._bind_step()
        return scores if scores.dtype == np.float32 else scores.astype(np.float32)

    def read(self, rows: Sequence[Sequence[int]], pad: int, room: int) -> Iterator[np.ndarray]:
        """As of GrowingCache.read; of several rows in one piece."""
        self._lengths = np.array([len(row) for row in rows])
        longest = int(self._lengths.max())
        ids = np.full((len(rows), longest), pad, np.int64)
        for row, given in zip(ids, rows, strict=True):
            row[: len(given)] = given
        size = longest + room
        self._ones = np.ones((1, size), np.int64)
        sizes = self._decoder.empty.items()
        self._bind({n: np.zeros((len(rows), heads, size, width), self._decoder.dtype) for n, (heads, width) in sizes})
        # Of several rows the graph reads one token each behind the first call, of one row any number.
        chunk = max(1, _LARGEST_LOGITS // self._decoder.vocabulary) if len(rows) == 1 else longest
        for start in range(0, longest, chunk):
            end = min(start + chunk, longest)
            yield self._first(ids[:, start:end], self._lengths if len(rows) > 1 else np.array([end]))

    def _first(self, ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        binding = self._binding
        binding.bind_ortvalue_input("input_ids", _value(np.ascontiguousarray(ids)))
        self._bind_mask(lengths)
        binding.bind_output("logits", "cpu")
        self._call()
        *_, logits = binding.get_outputs()
        found: np.ndarray = logits.numpy()
        return found

    def step(self, tokens: np.ndarray) -> np.ndarray:
        """As Cache says; the scores are overwritten by the next step."""
        self._tokens[:, 0] = tokens
        self._lengths += 1
        self._bind_mask(self._lengths)
        self._call()
        return _last(self._logits)

    def keep(self, rows: np.ndarray) -> None:
        """As Cache says."""
        self._lengths = self._lengths[rows]
        self._bind({name: buffer[rows] for name, buffer in self._buffers.items()})
        self._bind_step()

    def _bind(self, buffers: dict[str, np.ndarray]) -> None:
        self._binding.clear_binding_inputs()
        self._binding.clear_binding_outputs()
        for name, output in zip(self._decoder.past, self._decoder.present, strict=True):
            value = _value(buffers[name])
            self._binding.bind_ortvalue_input(name, value)
            self._binding.bind_ortvalue_output(output, value)
        self._buffers = buffers

    def _bind_step(self) -> None:
        rows = len(self._lengths)
        self._tokens = np.zeros((rows, 1), np.int64)
        self._logits = np.zeros((rows, 1, self._decoder.vocabulary), self._decoder.scores)
        self._binding.bind_ortvalue_input("input_ids", _value(self._tokens))
        self._binding.bind_ortvalue_output("logits", _value(self._logits))

    def _bind_mask(self, lengths: np.ndarray) -> None:
        longest = int(lengths.max())
        mask = self._ones[:, :longest]
        if len(lengths) > 1:
            mask = (np.arange(longest) < lengths[:, None]).astype(np.int64)
        self._binding.bind_ortvalue_input("attention_mask", _value(mask))

    def _call(self) -> None:
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:  # onnxruntime's classes share no base but Exception
            raise _broken(error) from error


def _value(array: np.ndarray) -> ort.OrtValue:
    """The array's own memory, which the value keeps alive."""
    return ort.OrtValue.ortvalue_from_numpy(array)


class CrossCache:
    """An encoder's states read by a decoder in two branches: the first call makes the cache, the others use it.

    The encoder's keys and values are made in the first call and given to each step as they are.
    """

    def __init__(self, encoder: ort.InferenceSession, decoder: ort.InferenceSession, form: Decoder) -> None:
        self._encoder = encoder
        self._session = decoder
        self._form = form
        self._feeds: dict[str, np.ndarray] = {}
        self._texts: np.ndarray | None = None
        """Which text each row reads; None: each its own."""
        own = [(i, o) for i, o in zip(form.past, form.present, strict=True) if ".encoder." not in i]
        self._past = [i for i, _ in own]
        self._names = ["logits", *(o for _, o in own)]

    def start(self, arrays: Mapping[str, np.ndarray], first: int) -> np.ndarray:
        """Read the texts, and the decoder's first token; the scores of the next: float32 [rows, vocabulary].

        arrays: of the encoder, padded on the right. first: the id that every answer begins with.
        """
        states = _run(self._encoder, ["last_hidden_state"], arrays)[0]
        rows = len(states)
        feeds = {
            **self._form.nothing(rows),
            "encoder_hidden_states": states,
            "encoder_attention_mask": arrays["attention_mask"],
            "input_ids": np.full((rows, 1), first, np.int64),
            BRANCH: _FIRST_CALL,
        }
        feeds = {name: value for name, value in feeds.items() if name in self._form.inputs}
        logits, *present = _run(self._session, ["logits", *self._form.present], feeds)
        self._feeds = {**feeds, **dict(zip(self._form.past, present, strict=True)), BRANCH: _LATER_CALLS}
        return _last(logits)

    def step(self, tokens: np.ndarray) -> np.ndarray:
        """As Cache says."""
        feeds = self._feeds
        feeds["input_ids"] = tokens[:, None]
        logits, *present = _run(self._session, self._names, feeds)
        feeds.update(zip(self._past, present, strict=True))
        return _last(logits)

    def keep(self, rows: np.ndarray) -> None:
        """As Cache says."""
        known = np.arange(len(self._feeds[self._past[0]])) if self._texts is None else self._texts
        texts = known[rows]
        names: Sequence[str] = self._past
        if not np.array_equal(texts, known):  # the beams of one text share what was read of it
            names = [
                n for n in (*self._form.past, "encoder_hidden_states", "encoder_attention_mask") if n in self._feeds
            ]
        for name in names:
            self._feeds[name] = self._feeds[name][rows]
        self._texts = texts
