"""`edgewise run` and `edgewise inspect`: what a device needs, with the base install alone."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from edgewise.errors import InputError
from edgewise.types import PROVIDERS

if TYPE_CHECKING:
    from edgewise.bundle import Manifest
    from edgewise.runtime import TextClassifier


def add_run(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "examples:\n"
        '  edgewise run runs/movie-reviews/chosen "a fine film"\n'
        "  edgewise run chosen --file reviews.txt > answers.jsonl      one text a line\n"
        "  edgewise run chosen --check                                 the golden answers"
    )
    parser.add_argument("bundle", help="bundle folder")
    parser.add_argument("text", nargs="*", help="texts; without any, lines of standard input")
    parser.add_argument("--file", help="read one text a line from this file; '-' is standard input")
    parser.add_argument("--top-k", type=int, default=1, metavar="K", help="labels to show, best first (default 1)")
    parser.add_argument("--provider", choices=PROVIDERS, help="execution provider (default: the bundle's)")
    parser.add_argument("--threads", type=int, help="threads (default: the bundle's)")
    parser.add_argument("--max-length", type=int, help="tokens a text is cut to (default: the bundle's)")
    parser.add_argument("--expect", metavar="DIGEST", help="refuse a bundle with another content digest")
    parser.add_argument("--json", action="store_true", help="one JSON object a line; always so for --file and stdin")
    parser.add_argument("--time", action="store_true", help="say on standard error how long it took")
    parser.add_argument("--check", action="store_true", help="answer the bundle's golden inputs and compare")


def run_run(args: argparse.Namespace) -> int:
    from edgewise.runtime import load

    start = perf_counter()
    if args.file and args.text:
        raise InputError("give texts or --file, not both")
    with load(
        args.bundle, provider=args.provider, threads=args.threads, max_length=args.max_length, expect=args.expect
    ) as model:
        loaded = perf_counter()
        if args.check:
            return _check(model)
        lines = not args.text
        count = 0
        for text in _lines(args.file or "-") if lines else args.text:
            _answer(model, text, args.top_k, as_json=args.json or lines)
            count += 1
        if args.time:
            spent = perf_counter() - loaded
            each = f", {1000 * spent / count:.2f} ms each" if count else ""
            print(
                f"load {1000 * (loaded - start):.0f} ms; {count} answers in {1000 * spent:.1f} ms{each}",
                file=sys.stderr,
            )
    return 0


def _lines(name: str) -> Iterator[str]:
    """Texts, one a line, without the line's end. Bytes that are no UTF-8 are an error that names the line."""
    if name == "-":
        yield from _decoded(sys.stdin.buffer, "standard input")
        return
    try:
        with Path(name).open("rb") as file:
            yield from _decoded(file, name)
    except FileNotFoundError as error:
        raise InputError(f"{name}: no such file") from error


def _decoded(lines: Iterable[bytes], name: str) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        try:
            yield line.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise InputError(f"{name}, line {number}: not UTF-8: {error}") from error


def _answer(model: TextClassifier, text: str, top_k: int, *, as_json: bool) -> None:
    found: list[dict[str, Any]] = model(text, top_k=top_k)
    if as_json:
        line: dict[str, Any] = {"text": text, **found[0]} if top_k == 1 else {"text": text, "labels": found}
        print(json.dumps(line, ensure_ascii=False))
        return
    for answer in found:
        print(f"{answer['label']}\t{answer['score']:.4f}\t{text}")


def _check(model: TextClassifier) -> int:
    result = model.check()
    state = "passed" if result.passed else "FAILED"
    print(
        f"golden answers {state}: {result.n} inputs, {result.changed_labels} changed, largest difference of a logit "
        f"{result.largest_difference:.2g} (allowed {result.tolerance:g})"
    )
    return 0 if result.passed else 1


def add_inspect(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "example:\n  edgewise inspect runs/movie-reviews/chosen"
    parser.add_argument("bundle", help="bundle folder")
    parser.add_argument("--no-verify", action="store_true", help="do not hash the files")
    parser.add_argument("--json", action="store_true", help="the manifest as JSON")


def run_inspect(args: argparse.Namespace) -> int:
    from dataclasses import asdict

    from edgewise.bundle import read_bundle

    bundle = read_bundle(args.bundle, verify="none" if args.no_verify else "full")
    if args.json:
        print(json.dumps(asdict(bundle.manifest), indent=2, ensure_ascii=False))
        return 0
    checked = "not checked" if args.no_verify else "checked, all as in the manifest"
    for key, value in [*_describe(bundle.manifest), ("files", f"{len(bundle.manifest.files)}, hashes {checked}")]:
        print(f"{key:<14} {value}")
    return 0


def _describe(m: Manifest) -> Iterator[tuple[str, str]]:
    from edgewise.units import show

    yield "task", f"{m.task}{f' ({m.problem_type})' if m.problem_type else ''}, {m.family}"
    if m.labels:
        yield "labels", ", ".join(m.labels)
    yield "candidate", str(m.source.get("candidate", "?"))
    yield "recipe", f"{m.source.get('recipe', m.recipe.name)} ({m.recipe.name})"
    yield "run settings", m.run.text()
    yield "content", m.content_digest
    yield "size", show(m.size, "B")
    for graph in m.graphs:
        yield "graph", f"{graph.file}: opset {graph.opset}, optimization {graph.optimization_level}"
        yield "  needs", f"onnxruntime >= {graph.min_onnxruntime}"
        yield "  bytes", ", ".join(f"{k} {show(v, 'B')}" for k, v in graph.bytes_by_part.items())
        most = sorted(graph.node_types.items(), key=lambda item: -item[1])[:8]
        yield "  nodes", f"{sum(graph.node_types.values())}: " + ", ".join(f"{n} {kind}" for kind, n in most) + ", …"
    yield "parity", _parity_words(m.parity)
    yield from _proof_words(m.parity)
    yield "loads in", ", ".join(f"{peer}: {_peer_words(found)}" for peer, found in m.loads_in.items()) or "not tested"
    yield "golden", f"{len(m.golden)} inputs"


def _parity_words(parity: Any) -> str:
    if not parity.get("against"):
        return f"none: {parity.get('why', 'not measured')}"
    return (
        f"against PyTorch on {parity['inputs']} inputs: agreement {parity['agreement']:.1%}, "
        f"largest difference {parity['largest_absolute_difference']:.2g}, in a batch {parity['batch_dependence']:.2g}"
    )


def _proof_words(parity: Any) -> Iterator[tuple[str, str]]:
    """What the manifest tells beside PyTorch, where it was measured."""
    if (lost := parity.get("against_fp32")) is not None:
        text = f"{lost['answers_changed']} of {lost['rows']} answers changed"
        if "drop" in lost:
            unit = " points" if lost["unit"] == "points" else ""
            relative = f" ({lost['drop_relative']:.2%} of it)" if lost.get("drop_relative") is not None else ""
            text += (
                f"; {lost['measure']} {lost['value']:.4g}, {lost['fp32']:.4g} in fp32: drop {lost['drop']:.3g}{unit}"
            )
            text += f"{relative}, at most {lost['drop_at_most']:.3g}{unit} at {lost['level']:.0%}"
        yield "against fp32", text
        if (batch := lost.get("batch")) and batch["rows"]:
            yield (
                "  in batches",
                (f"{batch['answers_changed']} of {batch['rows']} answers change in batches of {batch['batch_size']}"),
            )
    if (guard := parity.get("guard")) is not None:
        yield "guard", str(guard["words"])
        if guard.get("confirmed"):
            yield "  confirmed", str(guard["confirmed"])
    if (words := parity.get("vocabulary")) is not None:
        note = f"; {words['note']}" if words.get("note") else ""
        yield "vocabulary", f"{words['tokens']:,} of {words['tokens_before']:,} tokens{note}"
    if kept := parity.get("kept_in_fp32"):
        yield "kept in fp32", f"{len(kept)} nodes that overflow in half precision, {kept[0]} first"
    if (found := parity.get("saturation")) is not None:
        yield "other CPUs", found["advice"] if found["applies"] else found["why"]
    if (greedy := parity.get("greedy")) is not None:
        yield "greedy", f"{greedy['equal']} of {greedy['sequences']} sequences of {greedy['steps']} tokens as PyTorch's"


def _peer_words(found: Any) -> str:
    if not found.get("tested"):
        return "not tested"
    return "yes" if found["ok"] else f"no ({found.get('why', found.get('largest_absolute_difference'))})"
