"""A device that SSH reaches, during this process: its connection, opened anew when it is cut, and what stands there."""

from __future__ import annotations

import asyncio
import itertools
import json
import shlex
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from edgewise.errors import WorkerError
from edgewise.files import sha256_file
from edgewise.profiler import remote
from edgewise.profiler.link import Connection, LinkCutError, open_link
from edgewise.profiler.session import Piece, frames, run_session
from edgewise.progress import Say
from edgewise.types import Device

FOLDER = "~/.cache/edgewise-device"
"""Ours on a device, unless its inventory entry names another."""
PATIENCE_S = 600.0
"""How long a link that was cut may take to come back."""
_SESSIONS = 8
"""At the same time over one connection; sshd allows 10 unless told otherwise."""
_LOSSES = 30
"""Times that the link may be cut in one step."""

T = TypeVar("T")


@dataclass(frozen=True)
class Facts:
    """What stands on a device."""

    root: str
    base: str
    """The Python that was found there."""
    version: str
    """Of that Python."""
    python: str | None = None
    """Interpreter of the worker; None: its environment was not made yet."""
    edgewise: str = ""
    """Folder with our wheel, unpacked."""


class There:
    """One device during this process. Used in the background loop alone."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.root = device.folder or FOLDER
        self.facts: Facts | None = None
        self.bundles: dict[str, str] = {}
        """Content digest -> sha256 of the manifest that stands there."""
        self.opening, self.preparing, self.pushing = asyncio.Lock(), asyncio.Lock(), asyncio.Lock()
        self._sessions = asyncio.Semaphore(_SESSIONS)
        self._connection: Connection | None = None
        self._met = False

    async def steady(self, step: Callable[[Connection], Awaitable[T]], say: Say) -> T:
        """Do a step that may be done again; a link that is cut is opened anew."""
        for loss in itertools.count(1):
            connection = await self._open()
            try:
                async with self._sessions:
                    return await step(connection)
            except LinkCutError as cut:
                connection.close()
                if loss == _LOSSES:
                    raise WorkerError(f"device {self.device.name!r}: the link was cut {loss} times: {cut}") from cut
                say(f"the link to {self.device.name} was cut: connecting again")
                await asyncio.sleep(min(0.1 * loss, 5))
        raise AssertionError("unreachable")

    async def _open(self) -> Connection:
        async with self.opening:
            if self._connection is None or self._connection.is_closed():
                self._connection = await (self._reopen() if self._met else open_link(self.device))
                self._met = True
            return self._connection

    async def _reopen(self) -> Connection:
        """Patient: a device that was there will mostly be there again."""
        end = time.monotonic() + PATIENCE_S
        for delay in itertools.chain((0.5, 1, 2, 4, 8, 15), itertools.repeat(30)):
            try:
                return await open_link(self.device)
            except LinkCutError as cut:
                if time.monotonic() + delay > end:
                    raise WorkerError(
                        f"device {self.device.name!r}: the link was cut and did not come back in {PATIENCE_S:g} s: "
                        f"{cut}; a worker there ends by itself"
                    ) from cut
            await asyncio.sleep(delay)
        raise AssertionError("unreachable")

    async def ask(
        self,
        connection: Connection,
        verb: str,
        parameters: Mapping[str, Any],
        pieces: Iterable[Piece] = (),
        *,
        say: Say,
        into: Path | None = None,
    ) -> dict[str, Any]:
        """One verb of remote.py, once `hello` has found a Python; see `run_session`."""
        assert self.facts is not None
        script = f"{self.facts.root}/{script_name()}"
        command = shlex.join([self.facts.base, script, verb, self.facts.root, json.dumps(parameters)])
        return await run_session(connection, command, frames(pieces), say, into)


THERE: dict[Device, There] = {}
"""Those that were met. Of the background loop alone."""


def there_of(device: Device) -> There:
    """The one of a device."""
    return THERE.setdefault(device, There(device))


@lru_cache(maxsize=1)
def script_name() -> str:
    """Of remote.py on a device: another version of it has another name."""
    return f"remote-{sha256_file(Path(remote.__file__))[:16]}.py"
