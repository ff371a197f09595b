"""Many inputs: batches in order, several at once, and bounded memory whatever the length of the input."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from threading import Thread
from typing import TYPE_CHECKING, Any, TypeVar

from edgewise.errors import InputError

if TYPE_CHECKING:
    from concurrent.futures import Executor, Future

    from edgewise.types import RunSettings

Item = TypeVar("Item")
Answer = TypeVar("Answer")

CLOSED = "this model was closed: load the bundle again"

_AHEAD = 4
"""Batches a thread that are read, at most, before an answer is waited for: one runs, the others wait."""


def in_order(
    items: Iterable[Item],
    answer: Callable[[Sequence[Item]], Sequence[Answer]],
    size: int,
    pool: Executor | None,
    parallel: int,
) -> Iterator[Answer]:
    """The answers to `items` in their order, batch by batch; without a pool one batch after the other.

    An error of a batch is raised where its answers would stand; what was begun behind it is given up.
    """
    batches = _batches(items, size)
    if pool is None:
        for batch in batches:
            yield from answer(batch)
        return
    running: deque[Future[Sequence[Answer]]] = deque()
    unread: Exception | None = None
    try:
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                break
            except Exception as error:  # of what gives the items: the answers to those before it come first
                unread = error
                break
            running.append(_begin(pool, answer, batch))
            if len(running) >= _AHEAD * parallel:
                # Not for the first alone: woken for each answer, this thread would take the others' time.
                # Nor for one behind it alone: the first may take longest, and what stands behind it would pile up.
                _wait(list(islice(running, len(running) // 2 + 1)))
            while running and running[0].done():
                yield from _result(running.popleft())
        while running:
            yield from _result(running.popleft())
        if unread is not None:
            raise unread
    finally:
        for future in running:
            future.cancel()


def _wait(futures: list[Future[Any]]) -> None:
    from concurrent.futures import wait

    wait(futures)


def _begin(
    pool: Executor, answer: Callable[[Sequence[Item]], Sequence[Answer]], batch: list[Item]
) -> Future[Sequence[Answer]]:
    try:
        return pool.submit(answer, batch)
    except RuntimeError as error:  # the pool was shut down
        raise InputError(CLOSED) from error


def _result(future: Future[Sequence[Answer]]) -> Sequence[Answer]:
    from concurrent.futures import CancelledError

    try:
        return future.result()
    except CancelledError as error:
        raise InputError(CLOSED) from error


def _batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def calls_at_once(run: RunSettings) -> int:
    """How many calls keep the cores busy: those of one thread each scale better than threads inside a call.

    Other providers than the CPU queue their calls anyway.
    """
    return max(1, usable_cores() // run.threads) if run.provider == "cpu" else 1


def begin(function: Callable[[], Answer]) -> Callable[[], Answer]:
    """Start `function` in a thread of its own. What comes back waits for its end, and returns or raises as it did."""
    found: list[Answer] = []
    raised: list[BaseException] = []

    def work() -> None:
        try:
            found.append(function())
        except BaseException as error:
            raised.append(error)

    thread = Thread(target=work, name="edgewise-load")
    thread.start()

    def wait() -> Answer:
        thread.join()
        if raised:
            raise raised[0]
        return found[0]

    return wait
