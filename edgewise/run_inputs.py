"""What `edgewise run` answers: texts, pairs, chats or images, from the command line, a file or standard input."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edgewise.errors import InputError
from edgewise.types import IMAGE_TASKS, Task

Form = Literal["text", "json"]

PAIR_TASKS: tuple[Task, ...] = ("text-classification", "feature-extraction")
"""The tasks that take two texts for one answer."""
STANDARD_INPUT = "standard input"


@dataclass(frozen=True)
class Item:
    """One input."""

    value: Any
    """As the model takes it."""
    told: dict[str, Any]
    """What an answer says it answers: {'text': …}, {'text': …, 'text_pair': …}, {'image': …} or {'messages': …}."""
    place: str
    """'reviews.txt, line 3', for errors; empty for the only text of a command line."""

    @property
    def words(self) -> str:
        """In one line, for people."""
        parts = (v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for v in self.told.values())
        return " | ".join(" ".join(part.splitlines()) for part in parts)


@dataclass(frozen=True)
class Reading:
    """How inputs are written."""

    task: Task
    form: Form = "text"
    pair: bool = False
    """Two texts each: two arguments, or two columns of a line with a tab between."""
    chat: bool = False
    """A text is what a user says, and the first message of a chat."""
    system: str | None = None
    """What is said to the model before."""


def from_arguments(texts: list[str], how: Reading) -> Iterator[Item]:
    """Inputs out of the command line."""
    if how.pair and how.form == "text":
        if len(texts) % 2:
            raise InputError(f"--pair takes two TEXTs for each answer, got {len(texts)}: put each in quotes")
        texts = [f"{a}\t{b}" for a, b in zip(texts[::2], texts[1::2], strict=True)]
    alone = len(texts) == 1 or how.task in IMAGE_TASKS  # an image is named by its path
    for number, text in enumerate(texts, 1):
        yield _item(text, "" if alone else f"text {number}", how)


def from_lines(name: str, how: Reading) -> Iterator[Item]:
    """Inputs out of a file, or for '-' of standard input, one a line.

    Raises InputError for a file that cannot be read, and for a line that is no UTF-8 or no input, by its number.
    """
    if name == "-":
        if sys.stdin is None:
            raise InputError(f"{STANDARD_INPUT} is closed: give texts, or --file")
        yield from _items(sys.stdin.buffer, STANDARD_INPUT, how)
        return
    try:
        with Path(name).open("rb") as file:
            yield from _items(file, name, how)
    except FileNotFoundError as error:
        raise InputError(f"{name}: no such file") from error
    except OSError as error:
        raise InputError(f"{name} cannot be read: {error.strerror or error}") from error


def _items(lines: Iterable[bytes], name: str, how: Reading) -> Iterator[Item]:
    for number, line in enumerate(lines, 1):
        place = f"{name}, line {number}"
        try:
            text = line.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise InputError(f"{place}: not UTF-8: {error}") from error
        yield _item(text, place, how)


def _item(text: str, place: str, how: Reading) -> Item:
    where = f"{place}: " if place else ""
    told = _from_json(text, where, how) if how.form == "json" else _from_text(text, where, how)
    if "messages" in told:
        return Item(told["messages"], told, place)
    if "image" in told:
        return Item(told["image"], told, place)
    if how.chat:
        said = [{"role": "user", "content": told["text"]}]
        return Item([{"role": "system", "content": how.system}, *said] if how.system else said, told, place)
    return Item(told if "text_pair" in told else told["text"], told, place)


def _from_text(text: str, where: str, how: Reading) -> dict[str, Any]:
    if how.task in IMAGE_TASKS:
        return {"image": text}
    if not how.pair:
        return {"text": text}
    first, *more = text.split("\t")
    if len(more) != 1:
        raise InputError(f"{where}expected two texts with a tab between, got {len(more)} tabs: see --pair")
    return {"text": first, "text_pair": more[0]}


def _from_json(text: str, where: str, how: Reading) -> dict[str, Any]:
    expected = _expected(how)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}no JSON: {error}; expected {expected}") from error
    known = _known(how)
    told = {next(iter(known)): found} if isinstance(found, str) else found
    first = isinstance(told, dict) and next((key for key in known if key in told), None)
    if not first or not set(told) <= known[first].keys():
        keys = ", ".join(map(str, found)) or "nothing" if isinstance(found, dict) else type(found).__name__
        raise InputError(f"{where}a JSON object of {keys}; expected {expected}")
    for key, value in told.items():
        if not isinstance(value, known[first][key]):
            raise InputError(f"{where}{key} is {json.dumps(value)[:60]}; expected {expected}")
    return told


def _known(how: Reading) -> dict[str, dict[str, type]]:
    """By the key that must be there: the keys that may be, and of what type."""
    if how.task in IMAGE_TASKS:
        return {"image": {"image": str}}
    if how.task == "text-generation":
        return {"text": {"text": str}, "messages": {"messages": list}}
    return {"text": {"text": str, "text_pair": str} if how.task in PAIR_TASKS else {"text": str}}


def _expected(how: Reading) -> str:
    if how.task in IMAGE_TASKS:
        return '{"image": "path"}'
    if how.task == "text-generation":
        return '{"text": "..."}, or {"messages": [{"role": "user", "content": "..."}]}'
    return '{"text": "..."}' + (', with "text_pair" for a pair' if how.task in PAIR_TASKS else "")
