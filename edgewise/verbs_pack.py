"""`edgewise pack`: a kit for a device, which installs there with no network."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

from edgewise.showing import show

if TYPE_CHECKING:
    from edgewise.pack import Kit


def add_pack(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "examples:\n"
        "  edgewise pack runs/movie-reviews --for linux-aarch64 --python 3.11 -o kit.zip\n"
        "  edgewise pack runs/movie-reviews --device pi --for linux-aarch64 -o kit.zip\n"
        "  edgewise pack bundles/int8-dynamic -o kit.zip               a bundle, for this machine\n\n"
        "on the device, with no network:\n"
        "  python3.11 kit.zip --prefix /opt/answers                    installs, tests, and then switches to it\n"
        '  /opt/answers/current/run "a fine film"\n'
        "  python3.11 kit.zip --prefix /opt/answers --rollback         back to the kit before"
    )
    parser.add_argument("run", metavar="RUN", help="the run folder of `edgewise fit`, or a bundle folder")
    parser.add_argument("-o", "--out", required=True, metavar="FILE", help="the kit to write, a zip file")
    parser.add_argument(
        "--for", dest="platform", metavar="PLATFORM", help="linux-x86_64, linux-aarch64 or here (default here)"
    )
    parser.add_argument("--python", metavar="X.Y", help="the device's Python (default: the version of this one)")
    parser.add_argument("--device", metavar="NAME", help="whose choice, where the run has one for several devices")
    parser.add_argument("--wheelhouse", metavar="DIR", help="take the wheels from here, not from the package index")
    parser.add_argument("--json", action="store_true", help="as JSON on standard output")


def run_pack(args: argparse.Namespace) -> int:
    from edgewise.pack import pack
    from edgewise.progress import Reporter

    say = Reporter().say
    kit = pack(
        args.run,
        args.out,
        platform=args.platform,
        python=args.python,
        device=args.device,
        wheelhouse=args.wheelhouse,
        say=say,
    )
    if args.json:
        made = {"path": str(kit.path), "size": kit.size, "sha256": kit.sha256, "bundle": str(kit.bundle), **kit.told}
        made["warnings"] = list(kit.warnings)
        print(json.dumps(made, indent=2, ensure_ascii=False))
        return 0
    for key, value in _describe(kit):
        print(f"{key:<10} {value}")
    for warning in kit.warnings:
        say(f"warning: {warning}")
    return 0


def _describe(kit: Kit) -> Iterator[tuple[str, str]]:
    told = kit.told
    parts = [name.rpartition("/")[2].split("-") for name in told["files"] if name.startswith("wheels/")]
    yield "kit", f"{kit.path}, {show(kit.size, 'B')}, {show(told['unpacked'], 'B')} on the device"
    yield "sha256", kit.sha256
    yield "for", f"{told['platform']}, Python {told['python']}, glibc {told['glibc']} or newer"
    yield "bundle", f"{kit.bundle}: {told['task']}, {told['recipe']}, {told['run']}"
    yield "content", told["content_digest"]
    yield "wheels", ", ".join(f"{name} {number}" for name, number, *_ in parts)
    yield "install", f"python{told['python']} {kit.path.name} --prefix DIR"
