"""One command on a device: what `remote.py` is sent, and what it answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from edgewise.errors import BundleChangedError
from edgewise.profiler import remote
from edgewise.profiler.link import Connection, LinkCutError, cut_is_clear
from edgewise.progress import Say

_CHUNK = 1 << 18
_NOISE = 1500
_THANKS_S = 5.0

Piece = tuple[str, bytes | Path]
"""A file's name there, and what is in it."""


class RefusedError(Exception):
    """remote.py met what it has a word for. told: what was said beside it, by shells and tools."""

    def __init__(self, kind: str, message: str, told: str = "") -> None:
        super().__init__(message)
        self.kind, self.message, self.told = kind, message, told


async def run_session(
    connection: Connection, command: str, sent: AsyncIterator[bytes], say: Say, into: Path | None
) -> dict[str, Any]:
    """Run a command there: send what is to be sent, take files into a folder, return its answer.

    Raises RefusedError and LinkCutError.
    """
    noise = b""
    async with cut_is_clear(connection), _process(connection, command) as process:
        with suppress(BrokenPipeError):  # it refused before it had all: its answer says why
            async for frame in sent:
                process.stdin.write(frame)
                await process.stdin.drain()
        while line := await process.stdout.readline():
            text = line.decode("utf-8", errors="replace")
            if not text.startswith(remote.MARK):
                noise = (noise + line)[-_NOISE:]
                continue
            message = json.loads(text.removeprefix(remote.MARK))
            if "say" in message:
                say(message["say"])
            elif message.get("file") in remote.RESULTS and into is not None:  # a device names no other file of ours
                (into / message["file"]).write_bytes(await process.stdout.readexactly(message["size"]))
            elif "error" in message:
                raise RefusedError(message["error"], message["message"], _told(noise))
            elif "answer" in message:
                if into is not None:
                    await _thank(process)
                answer: dict[str, Any] = message["answer"]
                return answer
        await process.wait_closed()
        if connection.is_closed():
            raise LinkCutError("no answer came")
        raise RefusedError("died", f"no answer, but exit code {process.returncode}", _told(noise))


async def _thank(process: Any) -> None:
    """All files are here: the job there may go, and is gone before the next one starts."""
    with suppress(Exception):  # what came is whole, whatever becomes of the link now
        process.stdin.write(b"got\n")
        async with asyncio.timeout(_THANKS_S):
            await process.wait_closed()


@asynccontextmanager
async def _process(connection: Connection, command: str) -> AsyncIterator[Any]:
    import asyncssh

    # One stream: what is said beside the answers is no error, but tells why there is none.
    try:
        process = await connection.create_process(command, encoding=None, stderr=asyncssh.STDOUT)
    except asyncssh.ChannelOpenError as error:
        if connection.is_closed():
            raise
        raise RefusedError("died", f"its SSH server opens no session: {error.reason}") from error
    try:
        yield process
    finally:
        process.close()


async def frames(pieces: Iterable[Piece]) -> AsyncIterator[bytes]:
    """Files as `remote.py` takes them in. Raises BundleChangedError for one that shrinks meanwhile."""
    for name, source in pieces:
        size = len(source) if isinstance(source, bytes) else source.stat().st_size
        yield json.dumps({"file": name, "size": size}).encode() + b"\n"
        if isinstance(source, bytes):
            yield source
            continue
        with source.open("rb") as file:
            while size:
                chunk = file.read(min(_CHUNK, size))
                if not chunk:
                    raise BundleChangedError(f"{source} became shorter while it was sent")
                size -= len(chunk)
                yield chunk
    yield b'{"end": true}\n'


def _told(noise: bytes) -> str:
    text = noise.decode("utf-8", errors="replace").strip()
    return f"; it said: {text}" if text else ""
