"""The command line: parse, run, print. Each verb is a thin layer over a public function.

Exit codes: 0 done; 1 our fault; 2 the user's; 3 nothing meets the budgets; 4 done, but some candidates failed;
130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType
from typing import NoReturn

from edgewise import __version__
from edgewise.errors import EdgewiseError, MissingExtraError, PlanError, nearest

VERBS: dict[str, tuple[str, str]] = {
    "fit": ("edgewise.verbs_fit", "the whole pipeline: tune, export, measure, choose, report"),
    "rank": ("edgewise.verbs_rank", "which pretrained model to start from: scores, then short trainings"),
    "tune": ("edgewise.verbs_tune", "fine-tune a pretrained model, or the candidates of a plan"),
    "pretrain": ("edgewise.verbs_pretrain", "pretrain a model on raw text or images"),
    "export": ("edgewise.verbs_export", "turn a fine-tuned model into bundles"),
    "profile": ("edgewise.verbs_measure", "measure bundles on this machine, or on others over SSH"),
    "select": ("edgewise.verbs_select", "choose from a measurement store under budgets"),
    "report": ("edgewise.verbs_report", "write the report of a run"),
    "compare": ("edgewise.verbs_compare", "two runs side by side: what became slower, larger or less accurate"),
    "measurements": ("edgewise.verbs_compare", "a measurement store as JSON, CSV, Parquet, or as a hardware report"),
    "pack": ("edgewise.verbs_pack", "one file that installs the chosen bundle on a device, with no network"),
    "devices": ("edgewise.verbs_devices", "what this machine is and which providers it really runs; other machines"),
    "run": ("edgewise.verbs_run", "answer with a bundle"),
    "inspect": ("edgewise.verbs_inspect", "what a bundle is, from its manifest"),
}
"""Verb -> (module that has add_VERB and run_VERB, one line of help). A verb imports its own module alone."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\nTry '{self.prog} --help'.\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(args)
    except EdgewiseError as error:
        print(f"edgewise: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("edgewise: interrupted; finished steps are kept, start the same command again to go on", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output is gone (as in `edgewise ... | head`); say nothing, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        from edgewise.files import NO_SPACE, no_space_error

        if error.errno in NO_SPACE:
            print(f"edgewise: error: {no_space_error(error)}", file=sys.stderr)
            return 2
        raise


def _dispatch(args: list[str]) -> int:
    if args and args[0] in VERBS:
        verb = args[0]
        module = _module(verb)
        parser = _Parser(
            prog=f"edgewise {verb}",
            description=VERBS[verb][1][0].upper() + VERBS[verb][1][1:] + ".",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        getattr(module, f"add_{verb}")(parser)
        code: int = getattr(module, f"run_{verb}")(parser.parse_intermixed_args(args[1:]))
        return code
    return _top(args)


def _module(verb: str) -> ModuleType:
    try:
        return import_module(VERBS[verb][0])
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("edgewise"):
            raise
        raise MissingExtraError(
            f"{verb!r} is not in this wheel, which is the small one for devices: install the whole edgewise, "
            f"`pip install 'edgewise[build]'`, on the machine that builds"
        ) from error


def _top(args: list[str]) -> int:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {name:<{width}}  {about}" for name, (_, about) in VERBS.items())
    parser = _Parser(
        prog="edgewise",
        description="Which model, in which form, should run on this device?",
        epilog=f"verbs:\n{verbs}\n\n'edgewise VERB --help' shows its options and an example.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="edgewise VERB [OPTIONS]",
    )
    parser.add_argument("--version", action="version", version=f"edgewise {__version__}")
    parser.add_argument("verb", nargs="?", help=argparse.SUPPRESS)
    given = parser.parse_args(args[:1])
    if given.verb is None:
        parser.print_help()
        return 0
    raise PlanError(f"unknown verb {given.verb!r}: {nearest(given.verb, tuple(VERBS))}")
