"""`edgewise pretrain`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgewise.options import checked, layers, need_build
from edgewise.progress import Reporter

if TYPE_CHECKING:
    from edgewise.trainer.corpus import Corpus
    from edgewise.trainer.pretrain_images import Images
    from edgewise.trainer.pretrain_spec import PretrainResult, PretrainSpec

_OBJECTIVES = ("mlm", "nsp", "clm", "span", "mim")


def add_pretrain(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "objectives: mlm masked tokens (BERT); nsp masked tokens and next-sentence prediction (BERT);\n"
        "            clm the next token (GPT); span corrupted spans (T5); mim masked patches of images (SimMIM)\n\n"
        "examples:\n"
        "  edgewise pretrain mlm --data reviews.txt --from asset:all-minilm-l6-v2 --out adapted\n"
        "  edgewise pretrain clm --data kjv.txt --layers 4 --hidden 256 --vocab-size 4000 --out small-gpt\n"
        "  edgewise pretrain mim --data photos/ --config vit/config.json --out small-vit\n"
        "  edgewise tune adapted --data labelled.csv --out tuned"
    )
    parser.add_argument("objective", choices=_OBJECTIVES)
    parser.add_argument(
        "--data", required=True, help="a .txt file or a folder of them, a table (see --text), images, or asset:NAME"
    )
    parser.add_argument("--out", required=True, help="folder for the pretrained model")
    parser.add_argument("--json", action="store_true", help="the result as JSON on standard output")
    begin = parser.add_argument_group("what to start from (sizes, unless given)")
    begin.add_argument("--from", dest="source", metavar="SOURCE", help="a folder, a hub id, or asset:NAME")
    begin.add_argument("--config", metavar="FILE", help="a config.json: weights are drawn anew")
    begin.add_argument("--tokenizer", metavar="SOURCE", help="take this one; without it, one is trained on the text")
    begin.add_argument("--keep-layers", metavar="I,J,...", help="depth cut: the layers of the checkpoint that stay")
    for name, help_ in (
        ("layers", "layers (4)"),
        ("hidden", "width (256)"),
        ("heads", "attention heads (4)"),
        ("image-size", "pixels a side (224)"),
        ("patch-size", "pixels a side (16)"),
        ("vocab-size", "entries of the tokenizer that is trained (8000)"),
    ):
        begin.add_argument(f"--{name}", type=int, metavar="N", help=help_)
    begin.add_argument("--cased", dest="lowercase", action="store_false", default=None, help="WordPiece keeps case")
    _add_reading(parser)
    _add_training(parser)


def _add_reading(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how the data is read")
    group.add_argument("--text", default="text", help="column with the text of a table (text)")
    group.add_argument("--image", default="image", help="column with the images of a Parquet file (image)")
    group.add_argument(
        "--format", choices=["text", "csv", "tsv", "jsonl", "parquet"], help="by the ending, if not given"
    )
    group.add_argument("--columns", metavar="A,B,...", help="names of the columns of a table without a header")
    group.add_argument("--no-quoting", dest="quoting", action="store_false", help="quotation marks are characters")
    group.add_argument("--val-share", type=float, metavar="X", help="share that is held out (0.05)")


def _add_training(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("training")
    group.add_argument("--epochs", type=float, metavar="X", help="passes over the data (1)")
    group.add_argument("--steps", type=int, metavar="N", help="instead of epochs")
    group.add_argument("--batch-size", type=int, metavar="N", help="examples a step (32)")
    group.add_argument("--learning-rate", type=float, metavar="X", help="5e-4 for new weights, 5e-5 for a checkpoint")
    group.add_argument("--warmup", type=float, metavar="X", help="share of the steps (0.1)")
    group.add_argument("--weight-decay", type=float, metavar="X", help="(0.01)")
    group.add_argument("--block-length", type=int, metavar="N", help="tokens of one example (128)")
    group.add_argument("--no-pack", dest="pack", action="store_false", default=None, help="each document stands alone")
    group.add_argument("--noise", type=float, metavar="X", help="share that is hidden (0.15; images 0.6)")
    group.add_argument("--whole-word", action="store_true", default=None, help="mask words whole (mlm, nsp)")
    group.add_argument("--mean-span", type=float, metavar="X", help="mean length of a hidden span (3)")
    group.add_argument("--mask-patch", type=int, metavar="N", help="side of a hidden square in pixels (the patch)")
    group.add_argument("--seed", type=int, metavar="N", help="(0)")


def run_pretrain(args: argparse.Namespace) -> int:
    from dataclasses import asdict

    from edgewise.sources import local_folder
    from edgewise.trainer import pretrain

    spec = _spec(args)
    data = _read(args)
    source, tokenizer = (local_folder(s, Path) if s else None for s in (args.source, args.tokenizer))
    say = Reporter()
    with say.step(f"pretrain {args.objective}, {args.data}"):
        done = pretrain(
            data,
            spec,
            out=args.out,
            source=source,
            config=args.config,
            tokenizer=tokenizer,
            progress=say.update,
        )
    for text in done.warnings:
        say.say(f"warning: {text}")
    if args.json:
        print(json.dumps({**asdict(done), "path": str(done.path)}, indent=2))
    else:
        _print(done)
    return 0


def _spec(args: argparse.Namespace) -> PretrainSpec:
    need_build()
    from edgewise.trainer.pretrain_spec import ModelSize, PretrainSpec

    options = {k: v for k, v in vars(args).items() if v is not None}
    size = {k: options[k] for k in ModelSize.__dataclass_fields__ if k in options}
    chosen: dict[str, Any] = {k: options[k] for k in PretrainSpec.__dataclass_fields__ if k in options}
    return checked({**chosen, "keep_layers": layers(args.keep_layers), "size": size}, PretrainSpec, "pretrain")


def _read(args: argparse.Namespace) -> Corpus | Images:
    from edgewise.trainer.corpus import read_corpus
    from edgewise.trainer.pretrain_images import read_images

    if args.objective == "mim":
        return read_images(args.data, column=args.image)
    columns = args.columns.split(",") if args.columns else None
    return read_corpus(args.data, text=args.text, format=args.format, columns=columns, quoting=args.quoting)


def _print(done: PretrainResult) -> None:
    state = "found finished" if done.reused else f"trained in {done.seconds:.0f} s"
    print(f"{done.path}: {state}, {done.steps} steps on {done.device}, {done.parameters:,} parameters")
    if done.fresh and done.fresh != ("all",):
        print(f"not in the checkpoint, drawn anew: {', '.join(done.fresh)}")
    unit = f"{done.tokens:,} tokens in " if done.tokens else ""
    print(f"{unit}{done.documents:,} {'documents' if done.tokens else 'images'}; training loss {done.train_loss:.3f}")
    if done.val_loss is not None and done.val_loss_before is not None:
        parts = ", ".join(f"{name} {loss:.3f}" for name, loss in done.val_parts.items()) if done.val_parts else ""
        print(f"held out: loss {done.val_loss_before:.3f} before, {done.val_loss:.3f} after ({parts})")
    if done.val_perplexity is not None:
        print(f"held out: perplexity {done.val_perplexity:.1f}")
    sys.stdout.flush()
