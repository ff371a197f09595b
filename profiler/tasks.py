"""Work of one event loop in the background, as the threads that wait for it see it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from functools import lru_cache
from typing import Any

from edgewise.errors import WorkerError

_PATIENCE_S = 20.0
"""How long a task that is killed may take to end what it started elsewhere."""
_ONE_LOOP = threading.Lock()


@lru_cache(maxsize=1)
def _loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="edgewise-ssh", daemon=True).start()
    return loop


class Task:
    """Work of the background loop, as a thread sees it: like a process that can be waited for and killed."""

    def __init__(self, work: Coroutine[Any, Any, Any]) -> None:
        self._ended = threading.Event()
        with _ONE_LOOP:
            self._loop = _loop()
        self._loop.call_soon_threadsafe(self._start, work)

    def _start(self, work: Coroutine[Any, Any, Any]) -> None:
        self._task = self._loop.create_task(work)
        self._task.add_done_callback(lambda _: self._ended.set())

    def result(self) -> Any:
        """What it found, once it has ended. Raises what it raised, and WorkerError when it was killed."""
        self._ended.wait()
        try:
            return self._task.result()
        except asyncio.CancelledError as error:
            raise WorkerError("the worker was killed: this run was interrupted") from error

    def poll(self) -> int | None:
        """None while it goes on, as `Popen.poll`."""
        return 0 if self._ended.is_set() else None

    def kill(self) -> None:
        """End it, and the worker that it waits for."""
        self._loop.call_soon_threadsafe(self._cancel)

    def _cancel(self) -> None:
        self._task.cancel()

    def wait(self) -> None:
        """Until it has ended and its worker is killed; only some seconds, since the link may be cut too."""
        self._ended.wait(_PATIENCE_S)


def wait_for(task: Task) -> Any:
    """What a task finds; it ends when the wait for it is interrupted."""
    try:
        return task.result()
    except BaseException:
        task.kill()
        task.wait()
        raise
