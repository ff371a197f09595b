"""Many inputs, whatever the time that one of them takes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from edgewise.runtime.many import in_order


def test_no_more_is_read_while_the_first_takes_long() -> None:
    read: list[int] = []

    def numbers() -> Iterator[int]:
        for i in range(100_000):
            read.append(i)
            yield i

    def answer(batch: Sequence[int]) -> Sequence[int]:
        if batch[0] == 0:
            time.sleep(0.3)  # long enough for the other thread to answer thousands
        return batch

    with ThreadPoolExecutor(2) as pool:
        answers = in_order(numbers(), answer, 1, pool, 2)
        first = [next(answers) for _ in range(20)]
        assert first == list(range(20))
        assert len(read) <= 20 + 4 * 2 + 1
        answers.close()  # type: ignore[attr-defined]
