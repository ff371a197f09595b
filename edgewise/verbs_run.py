"""`edgewise run`: answers with a bundle of any task, with the base install alone."""

from __future__ import annotations

import argparse
import sys
from time import perf_counter
from typing import TYPE_CHECKING, Any

from edgewise.errors import EdgewiseError, InputError

# What reads inputs and shows answers is imported after the load, which begins with what takes longest.
if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterator

    from edgewise.run_inputs import Item
    from edgewise.runtime import Model
    from edgewise.types import Task

AGGREGATIONS = ("none", "simple", "first", "average", "max")
FOR_SOME_TASKS = (
    "top_k", "threshold", "aggregation", "windows", "stride", "pair", "max_length", "max_new_tokens", "temperature",
    "top_p", "seed", "num_beams", "stop", "stream", "chat", "system",
)  # fmt: skip
"""The keys of `run_answers.OPTIONS`, without its imports."""


def add_run(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "examples:\n"
        '  edgewise run runs/movie-reviews/chosen "a fine film"\n'
        "  edgewise run chosen --file reviews.txt > answers.jsonl      one text a line\n"
        "  edgewise run clothes shirt.png shoe.jpg --top-k 3           images by path\n"
        '  edgewise run smollm2 --chat --stream "Why is the sky blue?"\n'
        "  edgewise run chosen --check                                 the golden answers"
    )
    parser.add_argument("bundle", help="bundle folder")
    parser.add_argument("text", nargs="*", help="texts, or paths of images; without any, lines of standard input")
    inputs = parser.add_argument_group("inputs")
    inputs.add_argument("--file", help="read one text, or path, a line from this file; '-' is standard input")
    inputs.add_argument(
        "--input-format", choices=("text", "json"), default="text",
        help='json: each input is a JSON object, {"text"}, {"text", "text_pair"}, {"image"} or {"messages"}',
    )  # fmt: skip
    inputs.add_argument("--pair", action="store_true", help="two TEXTs an answer; in lines, with a tab between")
    answer = parser.add_argument_group("answers")
    answer.add_argument("--json", action="store_true", help="one JSON object a line; always so for --file and pipes")
    answer.add_argument("--top-k", type=int, metavar="K", help="labels or words to show, or to draw from, best first")
    answer.add_argument("--threshold", type=float, metavar="SCORE", help="the score from which a label is said")
    answer.add_argument("--aggregation", choices=AGGREGATIONS, help="how tokens become entities (default simple)")
    answer.add_argument("--windows", choices=("mean", "max"), help="read long texts to the end, and join the scores so")
    answer.add_argument("--stride", type=int, metavar="N", help="read them in windows that share N tokens")
    writing = parser.add_argument_group("generation")
    writing.add_argument("--stream", action="store_true", help="show the text while it is written")
    writing.add_argument("--chat", action="store_true", help="a text is a user's message, for the chat template")
    writing.add_argument("--system", metavar="TEXT", help="with --chat: what the model is told before")
    writing.add_argument("--max-new-tokens", type=int, metavar="N", help="tokens to write at most")
    writing.add_argument("--temperature", type=float, metavar="T", help="draw the tokens; 0 takes the likeliest")
    writing.add_argument("--top-p", type=float, metavar="P", help="draw among the likeliest that have P together")
    writing.add_argument("--seed", type=int, help="draw the tokens, the same for the same number")
    writing.add_argument("--num-beams", type=int, metavar="N", help="search with so many beams")
    writing.add_argument("--stop", action="append", metavar="TEXT", help="end before this text; may be given again")
    running = parser.add_argument_group("running")
    running.add_argument(
        "--provider", type=_providers, metavar="P[,P]", help="execution providers, the first that runs"
    )
    running.add_argument("--fallback", action="store_true", help="take the CPU where no provider runs")
    running.add_argument("--threads", type=int, metavar="N", help="threads of one call (default: the bundle's)")
    running.add_argument("--parallel", type=int, metavar="N", help="calls at once; 1 answers each line as it comes")
    running.add_argument("--batch-size", type=int, metavar="N", help="inputs that go through the graph together")
    running.add_argument("--max-length", type=int, metavar="N", help="tokens a text is cut to")
    telling = parser.add_argument_group("the bundle")
    telling.add_argument("--verify", choices=("full", "stamp", "none"), default="stamp", help="hash the files (stamp)")
    telling.add_argument("--expect", metavar="DIGEST", help="refuse a bundle with another content digest")
    telling.add_argument("--check", action="store_true", help="answer the bundle's golden inputs and compare")
    telling.add_argument("--placement", action="store_true", help="which nodes of the graph run on which provider")
    telling.add_argument("--time", action="store_true", help="say on standard error how long it took")


def _providers(text: str) -> str | list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise argparse.ArgumentTypeError(f"{text!r}; expected names with a comma between, such as cuda,cpu")
    return names[0] if len(names) == 1 else names


class _Clock:
    """When what was done."""

    def __init__(self) -> None:
        self.start, self.loaded, self.first, self.count = perf_counter(), 0.0, 0.0, 0

    def answered(self) -> None:
        self.count += 1
        self.first = self.first or perf_counter()

    def words(self, phases: dict[str, int]) -> str:
        parts = ", ".join(f"{name} {ns / 1e6:.0f}" for name, ns in phases.items())
        text = f"load {1000 * (self.loaded - self.start):.0f} ms ({parts})"
        if not self.count:
            return f"{text}; no answers"
        spent = perf_counter() - self.loaded
        text += f"; first answer after {1000 * (self.first - self.loaded):.1f} ms"
        return f"{text}; {self.count} answers in {1000 * spent:.1f} ms, {1000 * spent / self.count:.2f} ms each"


def run_run(args: argparse.Namespace) -> int:
    _check_together(args)
    if any(getattr(args, name) not in (None, False) for name in FOR_SOME_TASKS):
        from edgewise.bundle import read_bundle
        from edgewise.run_answers import check_options

        # Before the model is loaded, which can take a while.
        check_options(args, read_bundle(args.bundle, verify="none").manifest.task)
    _print_anything()
    args.typed = not args.text and args.file in (None, "-") and sys.stdin is not None and sys.stdin.isatty()
    clock = _Clock()
    with _load(args) as model:
        clock.loaded = perf_counter()
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("always", UserWarning)
            warnings.showwarning = _say_warning
            told = 0
            if args.check or args.placement:
                told = _tell(model, args)
            else:
                if args.typed:
                    print("one input a line; end with Ctrl-D", file=sys.stderr)
                _answer_all(model, args, clock)
        if args.time:
            print(clock.words(model.phases), file=sys.stderr)
    return told


def _answer_all(model: Model, args: argparse.Namespace, clock: _Clock) -> None:
    from edgewise.run_inputs import Reading, from_arguments, from_lines

    task = model.bundle.manifest.task
    how = Reading(task, args.input_format, args.pair, args.chat, args.system)
    items = from_arguments(args.text, how) if args.text else from_lines(args.file or "-", how)
    if args.stream or (args.typed and args.chat and not args.json):
        _stream(model, items, task, args, clock)
    else:
        _answer(model, items, task, args, clock)


def _check_together(args: argparse.Namespace) -> None:
    """Raise InputError for options that exclude each other."""
    if args.file and args.text:
        raise InputError("give texts or --file, not both")
    if (args.check or args.placement) and (args.file or args.text):
        raise InputError("--check and --placement answer no texts: leave the texts out")
    if args.stream and args.json:
        raise InputError("--stream shows plain text as it is written: leave --json out")
    if args.system and not args.chat:
        raise InputError("--system is what a chat begins with: give --chat, too")


def _load(args: argparse.Namespace) -> Model:
    from edgewise.runtime import load

    model: Model = load(
        args.bundle,
        provider=args.provider,
        fallback=args.fallback,
        threads=args.threads,
        # Who types waits for each answer before the next input.
        parallel=1 if args.typed and args.parallel is None else args.parallel,
        batch_size=1 if args.typed and args.batch_size is None else args.batch_size,
        max_length=args.max_length,
        threshold=args.threshold,
        verify=args.verify,
        expect=args.expect,
        record_placement=args.placement,
    )
    return model


def _answer(model: Any, items: Iterator[Item], task: Task, args: argparse.Namespace, clock: _Clock) -> None:
    """Show the answers in order, each as soon as it is there."""
    import json
    from collections import deque

    from edgewise.run_answers import answers, as_json, as_words, call_options

    waiting: deque[Item] = deque()
    wrong: list[EdgewiseError] = []

    def values() -> Iterator[Any]:
        # A line that is no input ends the reading; what was read before it is answered first.
        try:
            for item in items:
                waiting.append(item)
                yield item.value
        except EdgewiseError as error:
            wrong.append(error)

    found = answers(model, values(), task, call_options(args, task))
    as_lines = args.json or not (args.text or args.typed)
    while True:
        try:
            answer = next(found, None)
        except EdgewiseError as error:
            raise _at(error, waiting[0] if waiting and model.run.batch_size == 1 else None) from error
        if answer is None:
            break
        item = waiting.popleft()
        if as_lines:
            print(json.dumps(as_json(task, item, answer), ensure_ascii=False), flush=True)
        else:
            for line in as_words(task, item, answer, alone=args.typed or len(args.text) == 1):
                print(line, flush=True)
        clock.answered()
    if wrong:
        raise wrong[0]


def _stream(model: Any, items: Iterator[Item], task: Task, args: argparse.Namespace, clock: _Clock) -> None:
    """Show each answer while it is written. Who types a chat goes on with it, line by line."""
    from edgewise.run_answers import call_options

    options = call_options(args, task)
    options.pop("return_full_text", None)
    talk: list[Any] = []
    goes_on = args.typed and args.chat
    for item in items:
        value = item.value
        if goes_on:
            talk += value[-1:] if talk else value
            value = list(talk)
        written = ""
        try:
            for piece in model.stream(value, **options):
                clock.first = clock.first or perf_counter()
                print(piece, end="", flush=True)
                written += piece
        except EdgewiseError as error:
            raise _at(error, item) from error
        print(flush=True)
        if goes_on:
            talk.append({"role": "assistant", "content": written})
        clock.answered()


def _at(error: EdgewiseError, item: Item | None) -> EdgewiseError:
    """The error with the place of the input that it is about."""
    return type(error)(f"{item.place}: {error}") if item and item.place else error


def _tell(model: Model, args: argparse.Namespace) -> int:
    if args.placement:
        for line in _placement(model):
            print(line)
    return _check(model) if args.check else 0


def _placement(model: Model) -> Iterator[str]:
    """Which nodes run where, a line a graph and provider."""
    for number, graph in enumerate(model.bundle.manifest.graphs):
        for part, nodes in _nodes(model.session(number)).items():
            kinds = ", ".join(f"{count} {kind}" for kind, count in nodes.most_common())
            yield f"{graph.file}\t{part}\t{nodes.total()} nodes: {kinds}"


def _nodes(session: Any) -> dict[str, Counter[str]]:
    from collections import Counter

    found: dict[str, Counter[str]] = {}
    for part in session.get_provider_graph_assignment_info():
        found.setdefault(part.ep_name, Counter()).update(node.op_type for node in part.get_nodes())
    return found


def _check(model: Model) -> int:
    result = model.check()
    state = "passed" if result.passed else "FAILED"
    print(
        f"golden answers {state}: {result.n} inputs, {result.changed_labels} changed, largest difference "
        f"{result.largest_difference:.2g} (allowed {result.tolerance:g})"
    )
    return 0 if result.passed else 1


def _say_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: Any = None
) -> None:
    print(f"edgewise: warning: {message}", file=sys.stderr, flush=True)


def _print_anything() -> None:
    """A terminal that lacks a character shows its code; it does not end the run."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
