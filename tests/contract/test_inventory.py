"""devices.yaml, and the same keys in a plan: what they mean, and where a mistake is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from edgewise.address import Address, parse_ssh
from edgewise.errors import PlanError
from edgewise.inventory import inventory_at, named, read_inventory
from edgewise.plan import read_plan
from edgewise.types import Device

GOOD = """version: 1
devices:
  - {name: pi, ssh: pi@192.168.1.7}
  - name: jetson
    ssh: dev@jetson:2222
    identity: keys/jetson
    known_hosts: /etc/boards
    folder: /data/edgewise
    wheelhouse: wheels/aarch64
    python: ~/venv/bin/python
    memory: 512 MB
    cores: [2, 3]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "devices.yaml"
    path.write_text(GOOD)
    return path


def test_devices_are_read_with_files_beside_the_inventory(file: Path) -> None:
    pi, jetson = read_inventory(file)
    assert pi == Device("pi", ssh="pi@192.168.1.7")
    assert jetson == Device(
        "jetson",
        "~/venv/bin/python",
        memory=512_000_000,
        cores=(2, 3),
        ssh="dev@jetson:2222",
        identity=str(file.parent / "keys/jetson"),
        known_hosts="/etc/boards",
        folder="/data/edgewise",
        wheelhouse=str(file.parent / "wheels/aarch64"),
    )
    assert inventory_at(None, file.parent) == (pi, jetson)
    assert inventory_at(None, file.parent / "elsewhere") == ()
    assert named([pi, jetson], ["jetson", "here"]) == (jetson, Device())
    with pytest.raises(PlanError, match=r"unknown device 'jetsn': did you mean 'jetson'\?"):
        named([pi, jetson], ["jetsn"])


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("ssh: pi@192.168.1.7", "shh: pi@192.168.1.7", 3, "devices[0].shh: unknown key 'shh': did you mean 'ssh'?"),
        ("pi@192.168.1.7", "pi@a b", 3, "devices[0].ssh: ssh is 'pi@a b'; expected user@host or user@host:port"),
        ("jetson:2222", "jetson:99999", 5, "expected user@host or user@host:port"),
        ("name: pi", "name: jetson", 4, "devices[1]: device 'jetson' stands here twice"),
        ("name: pi", "name: here", 3, "devices[0].name: name is 'here', which is this machine"),
        ("    ssh: dev@jetson:2222\n", "", 5, "devices[1].identity: identity is for a device that SSH reaches"),
        ("512 MB", "512", 11, "devices[1].memory: "),
        ("version: 1", "version: 2", 1, "version: "),
        (GOOD, "- pi\n", 1, "an inventory is a mapping that starts with 'version: 1'; found a list"),
        (GOOD, "version: 1\n", 1, "inventory: Object missing required field `devices`"),
    ],
)
def test_a_mistake_names_its_place(file: Path, old: str, new: str, line: int, words: str) -> None:
    file.write_text(GOOD.replace(old, new))
    with pytest.raises(PlanError) as caught:
        read_inventory(file)
    assert str(caught.value).startswith(f"{file}:{line}: ")
    assert words in str(caught.value)


def test_no_inventory_where_one_is_named(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"none\.yaml: no such inventory file"):
        inventory_at(str(tmp_path / "none.yaml"))


def test_a_plan_has_the_same_keys_and_finds_a_name_in_the_inventory(file: Path) -> None:
    (file.parent / "rows.csv").write_text("text,label\n")
    plan = file.parent / "plan.yaml"
    plan.write_text(
        "version: 1\ntask: text-classification\ndata: {path: rows.csv, text: text, label: label}\n"
        "candidates: [{name: a, from: some/model}]\nrecipes: [fp32]\ndevices:\n"
        "  - {name: here}\n  - {name: jetson, run: {threads: [1, 4]}}\n"
        "  - {name: pi, ssh: me@other, identity: keys/pi}\n"
    )
    here, jetson, pi = read_plan(plan).devices
    assert here == Device()
    assert jetson == read_inventory(file)[1]
    assert pi == Device("pi", ssh="me@other", identity=str(file.parent / "keys/pi"))
    plan.write_text(plan.read_text().replace("run: {threads: [1, 4]}", "memory: 1 GB, cores: [0]"))
    assert read_plan(plan).devices[1] == replace(jetson, memory=1_000_000_000, cores=(0,))
    plan.write_text(plan.read_text().replace("name: jetson, memory: 1 GB, cores: [0]", "name: jetsn"))
    with pytest.raises(PlanError, match=r"plan\.yaml:8: devices\[1\]: unknown device 'jetsn': did you mean 'jetson'\?"):
        read_plan(plan)
    plan.write_text(plan.read_text().replace("jetsn", "here-small, memory: 1 GB").replace("ssh: me@other, ", ""))
    with pytest.raises(PlanError, match=r"plan\.yaml:9: devices\[2\]\.identity: .*add ssh: user@host"):
        read_plan(plan)


@pytest.mark.parametrize(
    ("text", "address", "command", "known_as"),
    [
        ("pi@host", Address("host", "pi"), "pi@host", "host"),
        ("host:22", Address("host", None, 22), "-p 22 host", "host"),
        ("a.b@10.0.0.1:2222", Address("10.0.0.1", "a.b", 2222), "-p 2222 a.b@10.0.0.1", "[10.0.0.1]:2222"),
        ("pi@[fe80::1%eth0]:23", Address("fe80::1%eth0", "pi", 23), "-p 23 pi@fe80::1%eth0", "[fe80::1%eth0]:23"),
    ],
)
def test_addresses(text: str, address: Address, command: str, known_as: str) -> None:
    assert parse_ssh(text) == address
    assert (address.command, address.known_as) == (command, known_as)


@pytest.mark.parametrize("text", ["", "@host", "pi@", "host:", "host:x", "host:0", "-oProxyCommand=x", "pi@-x", "a/b"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(PlanError, match="expected user@host or user@host:port"):
        parse_ssh(text)
