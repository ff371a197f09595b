"""`edgewise devices`: what this machine is, and the machines of devices.yaml."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgewise.errors import EdgewiseError, PlanError
from edgewise.progress import Say, no_words
from edgewise.showing import show_fact
from edgewise.types import PROVIDERS, Device

if TYPE_CHECKING:
    from edgewise.profiler.results import WorkerResult


def add_devices(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "examples:\n"
        "  edgewise devices                 # this machine, and whether those of devices.yaml answer\n"
        "  edgewise devices pi              # one of them, made ready to measure on\n"
        "  edgewise devices --clean pi      # remove what edgewise put there\n\n"
        "exit codes: 0 done; 2 the device that was asked for cannot be used; 4 one of several cannot"
    )
    parser.add_argument("name", nargs="?", help="a device of the inventory; 'here' is this machine")
    parser.add_argument("--inventory", metavar="FILE", help="devices (default: devices.yaml, where it is there)")
    parser.add_argument("--clean", metavar="NAME", help="remove edgewise's folder from a device that SSH reaches")
    parser.add_argument("--python", help="another interpreter of this machine, with its own onnxruntime")
    parser.add_argument("--json", action="store_true", help="as JSON on standard output")


def run_devices(args: argparse.Namespace) -> int:
    devices = _inventory(args)
    if args.clean is not None:
        return _clean(args, devices)
    if args.name is not None:
        return _one(args, devices)
    here = _described(Device("here", args.python))
    if not devices:
        _print_described(here, args.json)
        return 0
    checks = _checked(devices)
    if args.json:
        print(json.dumps({**_as_json(here), "devices": checks}, indent=2))
    else:
        _print_described(here, False)
        for check in checks:
            _print_check(check)
    return 4 if any(c["why"] for c in checks) else 0


def _inventory(args: argparse.Namespace) -> tuple[Device, ...]:
    # Reading YAML needs the profile extra: not asked for where there is no inventory.
    if args.inventory is None and not Path("devices.yaml").is_file():
        return ()
    from edgewise.inventory import inventory_at

    return inventory_at(args.inventory)


def _named(args: argparse.Namespace, devices: Sequence[Device], name: str) -> Device:
    from edgewise.inventory import named

    (device,) = named(devices, [name], args.inventory)
    return device


def _clean(args: argparse.Namespace, devices: Sequence[Device]) -> int:
    from edgewise.profiler.ssh import clean_there

    device = _named(args, devices, args.clean)
    if device.ssh is None:
        raise PlanError(f"--clean {args.clean}: nothing was put on it, since it is no device that SSH reaches")
    found = clean_there(device)
    if args.json:
        print(json.dumps(dict(found), indent=2))
    else:
        left = f"; not ours and left: {', '.join(found['left'])}" if found["left"] else ""
        print(f"{device.name}: removed {found['freed'] / 1e6:.1f} MB{left}")
    return 0


def _one(args: argparse.Namespace, devices: Sequence[Device]) -> int:
    from dataclasses import replace

    device = _named(args, devices, args.name)
    if args.python is not None:
        device = replace(device, python=args.python)
    _print_described(_described(device, lambda text: print(text, file=sys.stderr)), args.json)
    return 0


def _described(device: Device, say: Say = no_words) -> WorkerResult:
    from edgewise.profiler.plumbing import describe_device
    from edgewise.profiler.transport import Children

    return describe_device(device, Children(), providers=True, say=say)


def _checked(devices: Sequence[Device]) -> list[dict[str, Any]]:
    """What is to be said of each, asked at the same time."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(len(devices)) as pool:
        return list(pool.map(_check, devices))


def _check(device: Device) -> dict[str, Any]:
    """Whether it answers, and what it is; nothing is installed for that."""
    found: dict[str, Any] = {"name": device.name, "ssh": device.ssh, "why": "", "python": None, "edgewise": False}
    try:
        if device.ssh is not None:
            from edgewise.profiler.ssh import check_there

            facts = check_there(device, install=False)
            found["python"] = facts.version
            if facts.python is None:
                return found
        described = _described(device)
    except EdgewiseError as error:
        return {**found, "why": str(error)}
    return {**found, **_as_json(described), "python": described.fingerprint.get("python"), "edgewise": True}


def _print_check(check: Mapping[str, Any]) -> None:
    print(f"\n{check['name']:<16} {check['ssh'] or 'this machine'}")
    if check["why"]:
        print(f"{'':<16} {check['why']}")
        return
    print(f"{'python':<16} {check['python']}")
    if not check["edgewise"]:
        print(
            f"{'edgewise':<16} not there yet: `edgewise devices {check['name']}`, or the first measurement, installs it"
        )
        return
    print(f"{'edgewise':<16} ready")
    fingerprint = check["fingerprint"]
    for key in ("machine", "cpu", "usable_cores", "memory", "digest"):
        print(f"{key:<16} {show_fact(key, fingerprint)}")
    print(f"{'providers':<16} {', '.join(t['provider'] for t in check['providers'] if t['runs']) or 'none runs'}")


def _as_json(found: WorkerResult) -> dict[str, Any]:
    return {"fingerprint": dict(found.fingerprint), "providers": list(found.trials)}


def _print_described(found: WorkerResult, as_json: bool) -> None:
    if as_json:
        print(json.dumps(_as_json(found), indent=2))
        return
    for key in found.fingerprint:
        if key != "why":
            print(f"{key:<16} {show_fact(key, found.fingerprint)}")
    for trial in found.trials:
        state = "runs" if trial["runs"] else f"does not run: {trial['why']}"
        print(f"{'provider':<16} {trial['provider']}: {state}")
    missing = [p for p in PROVIDERS if p not in {t["provider"] for t in found.trials}]
    print(f"{'not built in':<16} {', '.join(missing)}")
