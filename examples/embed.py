"""A small application around a bundle: lines in, answers out, a JSON object for each, in the same order.

    python examples/embed.py BUNDLE < reviews.txt
    ls photos/*.jpg | python examples/embed.py BUNDLE

A line is a text, or for a model of images the path of one. A line that cannot be answered is said on standard error,
and the others go on. `pip install edgewise` is all it needs, and for images `pip install 'edgewise[image]'`.
"""

import json
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import edgewise
from edgewise.errors import EdgewiseError, InputError

AT_ONCE = 64
"""Lines that are held at a time, however long the input is."""


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        model = edgewise.load(arguments[0])  # hashed the first time; later starts see that no file changed
    except EdgewiseError as error:  # no bundle, a changed file, a provider that does not run: in one line
        print(error, file=sys.stderr)
        return error.exit_code
    with model:  # closed at the end, whatever happens
        print(f"{model.bundle.manifest.task}, {model.run.text()}", file=sys.stderr)
        # A byte that is no UTF-8 spoils its own line alone.
        lines = (line.decode("utf-8", "surrogateescape").rstrip("\r\n") for line in sys.stdin.buffer)
        failed = 0
        for line, answer in answers(model, lines):
            if isinstance(answer, InputError):
                failed += 1
                print(f"not answered: {answer}", file=sys.stderr)
            else:
                print(json.dumps({"input": line, "answer": answer}, default=lambda array: array.tolist()), flush=True)
    return 1 if failed else 0


def answers(model: Any, lines: Iterable[str]) -> Iterator[tuple[str, Any]]:
    """Each line with its answer, or with the error that says what is wrong with it.

    One model serves all threads: as many calls at once as the bundle's settings leave cores for.
    """

    def answer(line: str) -> Any:
        try:
            return model(line)
        except InputError as error:  # the model can be called again
            return error

    source = iter(lines)
    with ThreadPoolExecutor(model.parallel) as pool:
        while some := list(islice(source, AT_ONCE)):
            yield from zip(some, pool.map(answer, some), strict=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
