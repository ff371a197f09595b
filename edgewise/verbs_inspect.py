"""`edgewise inspect`: what a bundle is, with the standard library alone."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgewise.bundle import Manifest


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
    from edgewise.showing import show

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
        yield "kept in fp32", f"{len(kept)} nodes that half precision cannot hold, {kept[0]} first"
    if (found := parity.get("saturation")) is not None:
        yield "other CPUs", found["advice"] if found["applies"] else found["why"]
    if (greedy := parity.get("greedy")) is not None:
        yield "greedy", f"{greedy['equal']} of {greedy['sequences']} sequences of {greedy['steps']} tokens as PyTorch's"


def _peer_words(found: Any) -> str:
    if not found.get("tested"):
        return "not tested"
    return "yes" if found["ok"] else f"no ({found.get('why', found.get('largest_absolute_difference'))})"
