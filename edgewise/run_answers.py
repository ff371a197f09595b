"""The answers of `edgewise run`: which options a task has, how it is asked, and how its answer is shown."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from edgewise.errors import InputError
from edgewise.run_inputs import PAIR_TASKS, Item
from edgewise.types import IMAGE_TASKS, TASKS, Task

CLASSIFICATION: tuple[Task, ...] = ("text-classification", "image-classification")
GENERATION: tuple[Task, ...] = ("text-generation", "text2text-generation")
FEATURES: tuple[Task, ...] = ("feature-extraction", "image-feature-extraction")
WRITING = ("top_k", "max_new_tokens", "temperature", "top_p", "seed", "num_beams", "stop")
"""Options of a model that writes."""
DRAWING = {"top_k", "temperature", "top_p", "seed"}
"""Those that ask for tokens to be drawn."""
OPTIONS: dict[str, tuple[Task, ...]] = {
    "top_k": (*CLASSIFICATION, "fill-mask", *GENERATION),
    "threshold": CLASSIFICATION,
    "aggregation": ("token-classification",),
    "windows": ("text-classification",),
    "stride": ("text-classification", "token-classification"),
    "pair": PAIR_TASKS,
    "max_length": tuple(task for task in TASKS if task not in IMAGE_TASKS),
    **dict.fromkeys(WRITING[1:], GENERATION),
    "stream": GENERATION,
    "chat": ("text-generation",),
    "system": ("text-generation",),
}
"""Option -> the tasks that have it; the others are for every task."""


def check_options(args: argparse.Namespace, task: Task) -> None:
    """Raise InputError for an option that this task has not."""
    for name, tasks in OPTIONS.items():
        if task not in tasks and getattr(args, name) not in (None, False):
            option = "--" + name.replace("_", "-")
            raise InputError(f"{option} is for {_listed(tasks)}; {args.bundle} is for {task}: leave it out")


def call_options(args: argparse.Namespace, task: Task) -> dict[str, Any]:
    """What a call of the model is given beside its input."""
    names = {
        "text-classification": ("top_k", "windows", "stride"),
        "image-classification": ("top_k",),
        "fill-mask": ("top_k",),
        "token-classification": ("stride",),
        "text-generation": WRITING,
        "text2text-generation": WRITING,
    }.get(task, ())
    options = {name: value for name in names if (value := getattr(args, name)) is not None}
    if task == "token-classification":
        options["aggregation_strategy"] = args.aggregation or "simple"
    if task in GENERATION and options.keys() & DRAWING:
        options["do_sample"] = options.get("temperature") != 0
        if not options["do_sample"]:
            del options["temperature"]
    if task == "text-generation":
        options["return_full_text"] = False
    return options


def answers(model: Any, values: Iterator[Any], task: Task, options: dict[str, Any]) -> Iterator[Any]:
    """In order, with no more than a few inputs held at a time."""
    if task == "image-feature-extraction":  # one vector an image; a call would give those of every patch
        return (answer.vector.tolist() for answer in model.many(values, model.predict))
    found: Iterator[Any] = model(values, **options)
    return (vector.tolist() for vector in found) if task == "feature-extraction" else found


def as_json(task: Task, item: Item, answer: Any) -> dict[str, Any]:
    """One answer as an object that can be written as JSON, with what it answers."""
    if task in CLASSIFICATION:
        found = answer if isinstance(answer, list) else [answer]
        return item.told | (found[0] if len(found) == 1 else {"labels": found})
    if task in GENERATION:
        return item.told | {"generated_text": _written(answer)}
    key = {"token-classification": "entities", "fill-mask": "fills"}.get(task, "vector")
    return item.told | {key: answer}


def as_words(task: Task, item: Item, answer: Any, *, alone: bool) -> Iterator[str]:
    """One answer in lines for people. alone: it is the only one, so that it need not say what it answers."""
    if task in CLASSIFICATION:
        for one in answer if isinstance(answer, list) else [answer]:
            yield f"{one['label']}\t{one['score']:.4f}\t{item.words}"
    elif task in FEATURES:
        length = sum(x * x for x in answer) ** 0.5
        first = ", ".join(f"{x:.4f}" for x in islice(answer, 4))
        yield f"{len(answer)} numbers, length {length:.4g}\t{first}, …\t{item.words}"
    elif task in GENERATION:
        if not alone:
            yield f"> {item.words}"
        yield _written(answer)
    else:
        if not alone:
            yield f"> {item.words}"
        yield from _entities(answer) if task == "token-classification" else _fills(answer)


def _entities(answer: Iterable[Any]) -> Iterator[str]:
    rows = [
        (
            str(one.get("entity_group", one.get("entity"))),
            f"{one['score']:.4f}",
            f"{one['start']}-{one['end']}",
            str(one["word"]),
        )
        for one in answer
    ]
    if not rows:
        yield "(none)"
    for row in rows:
        yield "\t".join(row)


def _fills(answer: list[Any]) -> Iterator[str]:
    several = bool(answer) and isinstance(answer[0], list)  # one list a mask
    for group in answer if several else [answer]:
        for one in group:
            yield f"{one['token_str']}\t{one['score']:.4f}\t{one['sequence']}"


def _written(answer: Any) -> str:
    """The text of what `transformers.pipeline` gives: [{'generated_text': …}]."""
    found = answer[0] if isinstance(answer, list) else answer
    return str(found["generated_text"])


def _listed(tasks: tuple[Task, ...]) -> str:
    if not set(IMAGE_TASKS) & set(tasks) and len(tasks) == len(TASKS) - len(IMAGE_TASKS):
        return "models of text"
    return tasks[0] if len(tasks) == 1 else f"{', '.join(tasks[:-1])} and {tasks[-1]}"
