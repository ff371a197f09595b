"""devices.yaml: the machines that can be measured on, and how SSH reaches them.

    version: 1
    devices:
      - {name: pi, ssh: pi@192.168.1.7}
      - {name: jetson, ssh: dev@jetson:2222, identity: ~/.ssh/id_boards, wheelhouse: wheels/aarch64}

A plan's devices take the same keys. Every error names the file, the line, the key, the value, and what was expected.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from edgewise.address import parse_ssh
from edgewise.errors import PlanError, nearest, need_extra
from edgewise.types import Device
from edgewise.units import check_cores, parse_memory

try:
    from msgspec import Meta, Struct

    from edgewise.places import Key, Places, read_yaml
except ImportError as error:
    raise need_extra("profile", error) from error

INVENTORY = "devices.yaml"
"""Looked for in the working directory, and beside a plan."""
HERE = "here"
"""The name of this machine."""
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
_SSH_ONLY = ("identity", "known_hosts", "folder", "wheelhouse")


class MachineSpec(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A machine; see `edgewise.types.Device`."""

    name: Name
    python: str | None = None
    memory: str | int | float | None = None
    """A limit for the worker, with its unit: '512 MB'."""
    cores: tuple[int, ...] | None = None
    """Those that the worker may run on."""
    ssh: str | None = None
    """user@host, or user@host:port."""
    identity: str | None = None
    known_hosts: str | None = None
    folder: str | None = None
    wheelhouse: str | None = None


class _InventoryFile(Struct, frozen=True, forbid_unknown_fields=True):
    version: Literal[1]
    devices: Annotated[tuple[MachineSpec, ...], Meta(min_length=1)]


def read_inventory(path: str | Path) -> tuple[Device, ...]:
    """Read and validate an inventory. Raises PlanError."""
    parsed, at = read_yaml(Path(path), _InventoryFile, "inventory")
    at.unique([d.name for d in parsed.devices], "device", "devices")
    return tuple(device_of(spec, at, "devices", i) for i, spec in enumerate(parsed.devices))


def inventory_at(given: str | None, folder: Path = Path()) -> tuple[Device, ...]:
    """The devices of a file, or of devices.yaml in `folder` where none is given; none where there is none."""
    if given is not None:
        return read_inventory(given)
    beside = folder / INVENTORY
    return read_inventory(beside) if beside.is_file() else ()


def named(devices: Sequence[Device], names: Iterable[str], file: str | None = None) -> tuple[Device, ...]:
    """The devices with these names; 'here' is this machine. Raises PlanError for a name that is not among them, which
    says which file has them."""
    known = {HERE: Device()} | {d.name: d for d in devices}
    for name in names:
        if name not in known:
            raise PlanError(
                f"unknown device {name!r}: {nearest(name, tuple(known))}; {file or INVENTORY} says which there are"
            )
    return tuple(known[name] for name in names)


def device_of(spec: MachineSpec, at: Places, *keys: Key) -> Device:
    """The device of one entry; files are relative to the file that names them. Raises PlanError with the place."""
    memory, cores = spec.memory, spec.cores
    for name in _SSH_ONLY:
        if spec.ssh is None and getattr(spec, name) is not None:
            raise at.error(f"{name} is for a device that SSH reaches: add ssh: user@host", *keys, name)
    if spec.ssh is not None:
        at.guard(parse_ssh, spec.ssh, *keys, "ssh")
        if spec.name == HERE:
            raise at.error(f"name is {HERE!r}, which is this machine: give {spec.ssh} another one", *keys, "name")
    return Device(
        spec.name,
        spec.python,
        memory=None if memory is None else at.guard(partial(parse_memory, "memory"), memory, *keys, "memory"),
        cores=None if cores is None else at.guard(partial(check_cores, "cores"), cores, *keys, "cores"),
        ssh=spec.ssh,
        identity=_near(at.file, spec.identity),
        known_hosts=_near(at.file, spec.known_hosts),
        folder=spec.folder,
        wheelhouse=_near(at.file, spec.wheelhouse),
    )


def _near(file: Path, name: str | None) -> str | None:
    return None if name is None else str(file.parent / Path(name).expanduser())
