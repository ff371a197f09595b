"""What every loaded model shares: its sessions, many inputs at once, the golden answers, closing."""

from __future__ import annotations

import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from threading import Lock
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar

import numpy as np
import onnxruntime as ort

from edgewise.bundle import Bundle, Golden
from edgewise.errors import BundleError, InputError
from edgewise.runtime.many import CLOSED, in_order
from edgewise.runtime.session import placement
from edgewise.types import RunSettings

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

Item = TypeVar("Item")
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Opened:
    """What `load` hands to the class of a task."""

    bundle: Bundle
    run: RunSettings
    opening: Callable[[], tuple[ort.InferenceSession, ...]]
    """Gives the sessions, in the order of the manifest's graphs, and waits until they are there: onnxruntime makes
    them while the class reads its tokenizer."""
    parallel: int
    """Calls at once for many inputs."""


@dataclass(frozen=True)
class GoldenCheck:
    """How far today's answers are from those in the manifest."""

    passed: bool
    """Every input has the token ids and the decision it had, and no number moved further than `tolerance`."""
    largest_difference: float
    changed_labels: int
    """Inputs whose token ids or decision (label, or tokens that were written) are others."""
    n: int
    """Inputs that were compared."""
    tolerance: float


class TruncationWarning(UserWarning):
    """The end of a text was not read. The typed answer says `truncated`, too."""


class Model(ABC):
    """A loaded bundle. Calls are thread-safe; use as a context manager or `close()` it.

    A process that was forked after loading must load again: onnxruntime's threads do not cross a fork.
    """

    decides: ClassVar[bool] = True
    """The largest of the last dimension of the graph's output is the answer."""

    def __init__(self, opened: Opened) -> None:
        self.bundle = opened.bundle
        self.run = opened.run
        self.labels = opened.bundle.manifest.labels
        self.parallel = opened.parallel
        self.phases: dict[str, int] = {}
        """Nanoseconds that loading spent on 'imports', 'load' (manifest, hashes, tokenizer) and 'session'; what was
        read while the sessions were made counts as 'session'."""
        self.providers: tuple[str, ...] = ()
        """Of onnxruntime, by its names, in the order in which it asks them for each node."""
        self._opening: Callable[[], tuple[ort.InferenceSession, ...]] | None = opened.opening
        self._sessions: tuple[ort.InferenceSession, ...] | None = None
        self._lock = Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._pid = os.getpid()
        self._warned = False

    @abstractmethod
    def __call__(self, inputs: Any) -> Any:
        """Answer as `transformers.pipeline` does for the task: one input, a list, or an iterator of them."""

    @abstractmethod
    def golden(self, item: Any) -> Golden:
        """One input with its answer, in the form that the manifest keeps."""

    def golden_input(self, golden: Golden) -> Any:
        """The input of a golden answer, as `golden` takes it."""
        return golden.text if golden.text_pair is None else (golden.text, golden.text_pair)

    def session(self, index: int = 0) -> ort.InferenceSession:
        """The session of the bundle's graph number `index`.

        Raises InputError after `close()`, and in a process that was forked after loading.
        """
        sessions = self._sessions or self._wait()
        if os.getpid() != self._pid:
            raise InputError(
                f"{self.bundle.path} was loaded in process {self._pid}, and this is its fork {os.getpid()}, where "
                "onnxruntime's threads are not: load the bundle in each process (start it with 'spawn', or load after "
                "the fork)"
            )
        return sessions[index]

    def _wait(self) -> tuple[ort.InferenceSession, ...]:
        """The sessions, as soon as they are made. `load` calls this last, so that a call finds them there."""
        opening = self._opening
        if opening is None:
            raise InputError(CLOSED)
        self._sessions = opening()
        self.providers = tuple(self._sessions[0].get_providers())
        return self._sessions

    def many(
        self, items: Iterable[Item], answer: Callable[[Sequence[Item]], Sequence[Answer]], *, size: int | None = None
    ) -> Iterator[Answer]:
        """Answers in the order of `items`, which may be endless: no more than a few batches are held at a time.

        answer: takes a batch. size: of a batch; `run.batch_size` unless given.

        With `parallel` above 1, as many batches go through the session at once.
        """
        self.session()
        size = size or self.run.batch_size
        few = isinstance(items, Sequence) and len(items) <= size
        pool = None if self.parallel == 1 or few else self._threads()
        return in_order(items, answer, size, pool, self.parallel)

    def all_of(
        self, items: Sequence[Item], answer: Callable[[Sequence[Item]], Sequence[Answer]], *, size: int | None = None
    ) -> list[Answer]:
        """The answers to a list, as `many` gives them; one batch goes straight through."""
        if 0 < len(items) <= (size or self.run.batch_size):
            return list(answer(items))
        return list(self.many(items, answer, size=size))

    def _threads(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._pool is None:
                # It brings logging: 5 ms of processor time that the answer to one text need not wait for.
                from concurrent.futures import ThreadPoolExecutor

                self._pool = ThreadPoolExecutor(self.parallel, thread_name_prefix="edgewise")
            return self._pool

    def warn_truncated(self, length: int) -> None:
        """Say that the end of a text was not read: a TruncationWarning, once for this model."""
        if self._warned:
            return
        self._warned = True
        warnings.warn(
            f"a text is longer than {length} tokens, and its end was not read by {self.bundle.path}: raise max_length "
            "where the model allows it, or cut the text yourself",
            TruncationWarning,
            stacklevel=2,
        )

    def check(self, tolerance: float = 0.05) -> GoldenCheck:
        """Answer the manifest's golden inputs again and compare.

        tolerance: largest absolute difference of a number (a logit, or one of a vector); int8 kernels differ between
        CPUs, labels should not.

        Those that the run settings' max_length cuts have no answer to compare with. Where it cuts all of them, the
        shortest is answered at the length that it was made with.

        Raises BundleError for a bundle that has no golden answers.
        """
        told = self.bundle.manifest.golden
        if not told:
            raise BundleError(f"{self.bundle.path} has no golden answers to check: export it again")
        differences, changed = [0.0], 0
        pairs = [(golden, self.golden(self.golden_input(golden))) for golden in told]
        pairs = [(g, found) for g, found in pairs if len(found.input_ids) >= len(g.input_ids)]
        if not pairs:
            shortest, model = min(told, key=lambda g: len(g.input_ids)), self._uncut()
            pairs = [(shortest, model.golden(model.golden_input(shortest)))]
        for golden, found in pairs:
            if found.input_ids != golden.input_ids or len(found.output) != len(golden.output):
                changed += 1
                continue
            if golden.output:
                differences.append(float(np.abs(np.subtract(found.output, golden.output, dtype=np.float32)).max()))
            changed += self._decision(found) != self._decision(golden)
        worst = float(np.max(differences))  # NaN where any is: it is within no tolerance
        return GoldenCheck(changed == 0 and worst <= tolerance, worst, changed, len(pairs), tolerance)

    def _uncut(self) -> Self:
        """The same sessions behind a tokenizer that cuts a text where the model itself ends alone."""
        self.session()
        sessions = self._sessions or ()
        whole = replace(self.run, max_length=None)
        return type(self)(Opened(self.bundle, whole, lambda: sessions, self.parallel))

    def _decision(self, golden: Golden) -> list[int]:
        if golden.tokens or not self.decides or len(golden.output) < 2:
            return list(golden.tokens)
        shape = golden.shape or (1, len(golden.output))
        found: list[int] = np.reshape(golden.output, shape).argmax(-1).ravel().tolist()
        return found

    def placement(self) -> dict[str, int]:
        """Provider -> number of graph nodes that run on it. Needs `load(..., record_placement=True)`."""
        self.session()
        total: dict[str, int] = {}
        for session in self._sessions or ():
            for provider, nodes in placement(session).items():
                total[provider] = total.get(provider, 0) + nodes
        return total

    def end_profiling(self) -> list[str]:
        """The files with onnxruntime's profile, one a graph, now whole. Needs `load(..., profile_to=...)`."""
        self.session()
        return [session.end_profiling() for session in self._sessions or ()]

    def close(self) -> None:
        """Free the sessions; calls after this raise InputError. Calls that are under way finish."""
        with self._lock:
            self._sessions = self._opening = None
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def is_iterator(inputs: object) -> bool:
    """True for what is read once, one by one: a generator in gives a generator out."""
    return isinstance(inputs, Iterator)
