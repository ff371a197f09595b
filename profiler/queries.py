"""The timed queries of the worker, one scenario each: see `edgewise.arrival`. Part of the worker."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from edgewise.errors import UserError
from edgewise.showing import show

_WAITING = 1000
"""Queries that may wait in the server scenario: with more, it is asked for more than it can answer."""
_WINDOW_S = 10.0
"""Of the sustained scenario; a tenth of it all where that is shorter."""
_SPIN_S = 0.0005
"""The rest of a wait that is spun: a sleep comes back so much too late, and a query must start in time."""

Predict = Callable[[Sequence[Any]], Sequence[Any]]
"""A batch of inputs to typed answers, which have `n_tokens` and `truncated`."""
Write = Callable[[Any], Any]
"""An input to its `edgewise.runtime.decode.TokenStream`."""


def inputs_a_query(arrival: Mapping[str, Any], batch_size: int, inputs: int) -> int:
    """Inputs that one query has. arrival: as of a job."""
    if arrival["name"] == "multi-stream":
        return int(arrival["streams"])
    if arrival["name"] == "generation":
        return 1
    return inputs if arrival["name"] == "offline" else batch_size


class Log:
    """What was found of each query, in the order in which they were asked."""

    def __init__(self) -> None:
        self.ns: list[int] = []
        self.inputs: list[int] = []
        self.tokens: list[int] = []
        self.truncated: list[int] = []
        self.lengths: dict[int, list[int]] = {}
        """Of a batch of several inputs: tokens of each."""
        self.late: int | None = None
        """Of the paced scenario: queries that were due before the one before them was answered."""
        self.took: list[int] | None = None
        """Of the server scenario: nanoseconds of each answer, without its wait."""

    def add(self, ns: int, number: int, answers: Sequence[Any]) -> None:
        self.ns.append(ns)
        self.inputs.append(number)
        self.tokens.append(sum(a.n_tokens for a in answers))
        if len(answers) > 1 and number not in self.lengths:
            self.lengths[number] = [a.n_tokens for a in answers]
        self.truncated.append(sum(a.truncated for a in answers))

    def as_dict(self, span_ns: int) -> dict[str, Any]:
        """span_ns: from the first query to the last answer."""
        late = {} if self.late is None else {"late": self.late}
        took = {} if self.took is None else {"took_ns": self.took}
        lengths = {} if not self.lengths else {"lengths": [n for one in self.lengths.values() for n in one]}
        return {
            "ns": self.ns,
            "inputs": self.inputs,
            "tokens": self.tokens,
            "truncated": self.truncated,
            "span_ns": span_ns,
            **late,
            **took,
            **lengths,
        }


def ask(
    predict: Predict,
    batches: Sequence[Sequence[Any]],
    arrival: Mapping[str, Any],
    seconds: float,
    min_calls: int,
    parallel: int,
    heat: Callable[[], Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Ask for `seconds`, and at least `min_calls` queries: nanoseconds of each, its batch, and the tokens in it.

    arrival: of the job. parallel: queries that are answered at once in the server scenario. heat: reads clock and
    temperature, between the calls of the sustained scenario.
    """
    if arrival["name"] == "sustained":
        return _sustained(predict, batches, 60 * float(arrival["minutes"]), heat)
    if arrival["name"] == "server":
        return _server(predict, batches, arrival, seconds, min_calls, parallel)
    every = round(1e9 * arrival["every_s"]) if arrival["name"] == "paced" else 0
    log = Log()
    log.late = 0 if every else None
    return log.as_dict(_in_turn(predict, batches, log, every, seconds, min_calls))


def ask_tokens(
    write: Write, batches: Sequence[Sequence[Any]], seconds: float, min_calls: int, tokens: int
) -> dict[str, Any]:
    """One input after the other, for `seconds` and at least `min_calls` of them: as `ask`, and for each the nanoseconds
    to its first token ('first_ns') and how many tokens were written ('written').

    Raises UserError when fewer than `tokens` are written.
    """
    clock, log = time.perf_counter_ns, Log()
    first: list[int] = []
    written: list[int] = []
    begin = clock()
    end = begin + int(seconds * 1e9)
    while len(log.ns) < min_calls or clock() < end:
        number = len(log.ns) % len(batches)
        start = clock()
        stream = write(batches[number][0])
        stamps = [clock() for _ in stream]
        if len(stamps) < tokens:
            raise UserError(
                f"{len(stamps)} tokens were written where {tokens} were asked for: the model's context is full; ask "
                "for fewer (--new-tokens)"
            )
        log.add(stamps[-1] - start, number, [stream])
        first.append(stamps[0] - start)
        written.append(len(stamps))
    return {**log.as_dict(clock() - begin), "first_ns": first, "written": written}


def _in_turn(
    predict: Predict, batches: Sequence[Sequence[Any]], log: Log, every: int, seconds: float, min_calls: int
) -> int:
    """One query after the other, until the log holds `min_calls`; with `every` above 0 nanoseconds apart, unless an
    answer takes longer. Goes on where the log ends; nanoseconds from its first query to its last answer."""
    clock = time.perf_counter_ns
    begin = due = clock()
    end = begin + int(seconds * 1e9)
    while len(log.ns) < min_calls or clock() < end:
        number = len(log.ns) % len(batches)
        batch = batches[number]
        if every:
            due, now = due + every, clock()
            if due < now:
                log.late = (log.late or 0) + 1
                due = now
            _wait_until(due)
        start = clock()
        answers = predict(batch)
        log.add(clock() - start, number, answers)
    return clock() - begin


def _sustained(
    predict: Predict, batches: Sequence[Sequence[Any]], seconds: float, heat: Callable[[], Mapping[str, Any]] | None
) -> dict[str, Any]:
    """One query after the other for so long, in windows, with clock and temperature between them."""
    clock, log = time.perf_counter_ns, Log()
    size, begin = min(_WINDOW_S, seconds / 10), clock()
    windows: list[dict[str, Any]] = []
    while clock() < begin + seconds * 1e9:
        start, before = clock(), len(log.ns)
        span = _in_turn(predict, batches, log, 0, size, before + 1)
        window = {"start_s": (start - begin) / 1e9, "calls": len(log.ns) - before, "span_ns": span}
        windows.append({**window, **(heat() if heat else {})})
    return {**log.as_dict(sum(w["span_ns"] for w in windows)), "windows": windows}


def _server(
    predict: Predict,
    batches: Sequence[Sequence[Any]],
    arrival: Mapping[str, Any],
    seconds: float,
    min_calls: int,
    parallel: int,
) -> dict[str, Any]:
    """Queries come at random times, the same for the same seed. The time of each counts from when it was due, so that
    one that had to wait is seen to have waited. Raises UserError when far too many wait; whether they come faster than
    they can be answered is judged over all rounds, by how long each answer took."""
    import random
    from concurrent.futures import Future, ThreadPoolExecutor

    clock, rate = time.perf_counter_ns, float(arrival["rate"])
    draw, at = random.Random(arrival["seed"]), 0.0

    took: list[int] = []  # nanoseconds of each answer, without its wait

    def answer(number: int, when: int) -> tuple[int, int, Sequence[Any]]:
        start = clock()
        answers = predict(batches[number])
        end = clock()
        took.append(end - start)
        return end - when, number, answers

    asked: list[Future[tuple[int, int, Sequence[Any]]]] = []
    done = 0
    with ThreadPoolExecutor(parallel) as pool:
        begin = clock()
        while at < seconds or len(asked) < min_calls:
            at += draw.expovariate(rate)
            when = begin + round(1e9 * at)
            # Asleep: who spins takes the interpreter from those who answer, and times count from when they were due.
            _wait_until(when, spin=False)
            asked.append(pool.submit(answer, len(asked) % len(batches), when))
            while done < len(asked) and asked[done].done():
                done += 1
            if len(asked) - done > _WAITING:
                pool.shutdown(cancel_futures=True)  # and those in hand are answered, so that their time is known
                able = show(1e9 * parallel * len(took) / max(1, sum(took)), "1/s")
                raise UserError(
                    f"server at {rate:g} queries /s: it answers about {able}, and more than {_WAITING:,} wait: "
                    "ask for a lower rate"
                )
    log = Log()
    log.took = took
    for future in asked:
        log.add(*future.result())
    return {**log.as_dict(clock() - begin), "parallel": parallel}


def _wait_until(when: int, *, spin: bool = True) -> None:
    """Until `time.perf_counter_ns()` is `when`; asleep alone it comes back a little later."""
    clock = time.perf_counter_ns
    left = (when - clock()) / 1e9 - (_SPIN_S if spin else 0)
    if left > 0:
        time.sleep(left)
    while spin and clock() < when:
        pass
