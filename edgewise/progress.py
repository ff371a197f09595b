"""How far long work is: a live bar on a terminal where Rich is installed, plain lines otherwise, and a log file."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

Progress = Callable[[int, int, str], None]
"""progress(done, total, what): how long work tells how far it is; total may grow."""
Say = Callable[[str], None]
"""say(what): what is waited for, in words."""
_EVERY_SECONDS = 15.0
"""Between two plain lines of one step."""


def no_words(text: str) -> None:
    """Where nobody wants to know what is waited for."""


class Reporter:
    """Tells what is being done on standard error, and keeps a log. `update` fits every step's progress callback."""

    def __init__(self, log: Path | None = None, stream: TextIO | None = None, quiet: bool = False) -> None:
        self._stream = stream or sys.stderr
        self._quiet = quiet
        self._log = log
        self._started = time.monotonic()
        self._step_started = self._started
        self._last_line = 0.0
        self._bar: Any = None
        self._task: Any = None

    def say(self, text: str) -> None:
        """One line for people, and for the log."""
        self.log(text)
        if self._quiet:
            return
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False)
        else:
            print(text, file=self._stream, flush=True)

    def log(self, text: str) -> None:
        """One line for the log alone."""
        if self._log is not None:
            stamp = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S")
            with self._log.open("a", encoding="utf-8") as file:
                file.write(f"{stamp}  {text}\n")

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """A step of the work, with its time when it ends."""
        self.log(f"start: {title}")
        start = self._step_started = self._last_line = time.monotonic()
        with self._live(title):
            yield
        self.say(f"  {title:<58} {_duration(time.monotonic() - start):>8}")

    def update(self, done: int, total: int, what: str) -> None:
        """`done` of `total` in the step at hand."""
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total, what=what)
        elif not self._quiet and now - self._last_line > _EVERY_SECONDS:
            self._last_line = now
            left = (now - self._step_started) / done * (total - done) if done else None
            eta = f", about {_duration(left)} left" if left is not None else ""
            print(f"    {done}/{total}  {what}{eta}", file=self._stream, flush=True)

    @contextmanager
    def _live(self, title: str) -> Iterator[None]:
        columns = None if self._quiet or not self._stream.isatty() else _rich_columns()
        if columns is None:
            yield
            return
        from rich.console import Console
        from rich.progress import Progress

        with Progress(*columns, console=Console(file=self._stream), transient=True) as bar:
            self._bar, self._task = bar, bar.add_task(title, total=None, what="")
            try:
                yield
            finally:
                self._bar = self._task = None


def _rich_columns() -> Any:
    try:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    except ImportError:
        return None
    return (
        TextColumn("  {task.description}", markup=False),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[what]}", markup=False),
    )


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{int(seconds // 60)} min {int(seconds % 60)} s"
