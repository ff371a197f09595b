"""The wheels of a kit: which packages a bundle needs on a device, and where each one's wheel for it comes from.

The versions are those that are installed here, since it is with them that the bundle was made and measured.
"""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from edgewise.assets import cache_folder
from edgewise.bundle import Bundle
from edgewise.errors import MissingExtraError, PlanError, UserError
from edgewise.files import disk_full_is_clear, sha256_file
from edgewise.kit_install import wheel_glibc
from edgewise.progress import Say
from edgewise.types import IMAGE_TASKS

PLATFORMS = ("linux-x86_64", "linux-aarch64")
"""What a kit can be for."""
GLIBC = (2, 28)
"""The newest C library that a kit may ask for: Debian 10, Ubuntu 20.04, RHEL 8, and what came later."""
BASE = ("numpy", "onnxruntime", "protobuf", "flatbuffers", "packaging", "tokenizers")
"""What the runtime imports, and what onnxruntime declares; tokenizers imports nothing of what it declares."""
IMAGE = ("pillow",)
CHAT = ("Jinja2", "MarkupSafe")
_LEGACY = {(2, 17): "manylinux2014", (2, 12): "manylinux2010", (2, 5): "manylinux1"}
_OLDEST = {"x86_64": 5, "aarch64": 17}
"""Minor version of the first glibc that platform tags of this machine name."""


@dataclass(frozen=True)
class KitTarget:
    """What a kit is for."""

    platform: str
    """'linux-aarch64'."""
    python: str
    """'3.11'."""

    @property
    def machine(self) -> str:
        return self.platform.partition("-")[2]


def read_machine(name: str) -> str:
    """A machine by the name that a kit has for it: 'aarch64' for macOS's 'arm64'."""
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(name.lower(), name)


def read_target(for_platform: str | None, python: str | None) -> KitTarget:
    """The target of --for and --python; this machine and this Python where they are not given. Raises PlanError."""
    if for_platform in (None, "here"):
        name, given = f"{platform.system().lower()}-{read_machine(platform.machine())}", "this machine is"
    else:
        name, given = str(for_platform), "--for"
    if name not in PLATFORMS:
        raise PlanError(f"{given} {name!r}: expected {' or '.join(PLATFORMS)}, or 'here' on one of them")
    python = python or "{}.{}".format(*sys.version_info)
    found = re.fullmatch(r"3\.(\d{1,2})", python)
    if found is None or int(found[1]) < 11:
        raise PlanError(f"--python {python!r}: expected the device's version in two numbers, 3.11 or newer")
    return KitTarget(name, python)


def needed_packages(bundle: Bundle) -> dict[str, str]:
    """Package -> version, of what a device needs to answer with this bundle. Raises MissingExtraError."""
    names = [*BASE]
    if bundle.manifest.task in IMAGE_TASKS:
        names += IMAGE
    if _has_chat_template(bundle):
        names += CHAT
    found = {}
    for name in names:
        try:
            found[name] = version(name).partition("+")[0]
        except PackageNotFoundError as error:
            raise MissingExtraError(
                f"this bundle needs {name}, which is not installed here, so no version of it was tried: "
                f"run `pip install {name}`, and see that `edgewise run BUNDLE --check` passes"
            ) from error
    return found


def _has_chat_template(bundle: Bundle) -> bool:
    """As edgewise.runtime.chat looks for one."""
    if any(name.endswith(".jinja") for name in bundle.manifest.files):
        return True
    try:
        told = json.loads((bundle.path / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(told, dict) and bool(told.get("chat_template"))


def find_wheels(packages: dict[str, str], target: KitTarget, wheelhouse: Path | None, say: Say) -> list[Path]:
    """A wheel for each package, in their order: out of the wheelhouse, or the cache, or the package index.

    Raises PlanError for a wheelhouse that lacks one or has a broken one, UserError for one that the index has not.
    """
    if wheelhouse is None:
        return [_cached(name, number, target, say) for name, number in packages.items()]
    if not wheelhouse.is_dir():
        raise PlanError(f"--wheelhouse {wheelhouse}: no such folder")
    found = {name: best_wheel(wheelhouse, name, number, target) for name, number in packages.items()}
    if missing := [f"{name} {packages[name]}" for name, wheel in found.items() if wheel is None]:
        raise PlanError(
            f"--wheelhouse {wheelhouse} has no wheel for {_words(target)} of {', '.join(missing)}: add it "
            f"(`pip download --no-deps --only-binary=:all: --platform ...`), or leave --wheelhouse out"
        )
    wheels = [wheel for wheel in found.values() if wheel is not None]
    for wheel in wheels:
        try:
            with zipfile.ZipFile(wheel) as archive:
                broken = archive.testzip()
        except (zipfile.BadZipFile, OSError) as error:
            broken = str(error)
        if broken:
            raise PlanError(f"{wheel} is no whole wheel ({broken}): download it again")
    return wheels


def best_wheel(folder: Path, name: str, number: str, target: KitTarget) -> Path | None:
    """The wheel of a package that fits: one made for the machine before one for any, the newest C library first."""
    fitting = []
    for wheel in folder.glob("*.whl"):
        made, _, rest = wheel.name.partition("-")
        if (_plain(made), rest.partition("-")[0]) == (_plain(name), number):
            glibc = wheel_glibc(wheel.name, target.python, target.machine)
            if glibc is not None and glibc <= GLIBC:
                fitting.append((glibc, wheel.name, wheel))
    return max(fitting)[2] if fitting else None


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _cached(name: str, number: str, target: KitTarget, say: Say) -> Path:
    """From $EDGEWISE_CACHE/wheels, where each wheel has its sha256 beside it; else from the index, and kept there."""
    cache = cache_folder() / "wheels"
    wheel = best_wheel(cache, name, number, target)
    if wheel is not None:
        record = wheel.with_name(wheel.name + ".sha256")
        if record.is_file() and record.read_text().strip() == sha256_file(wheel):
            return wheel
    say(f"downloading {name} {number} for {_words(target)}")
    with disk_full_is_clear(cache):
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".partial-") as temporary:
            made = _download(name, number, target, Path(temporary))
            # The hash first: a wheel that is without one, since this was killed, is downloaded again.
            record = made.with_name(made.name + ".sha256")
            record.write_text(f"{sha256_file(made)}\n")
            record.replace(cache / record.name)
            return made.replace(cache / made.name)


def _download(name: str, number: str, target: KitTarget, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-input"]
    command += ["--no-deps", "--only-binary=:all:", "--implementation", "cp", "--python-version", target.python]
    command += [word for tag in platform_tags(target.machine) for word in ("--platform", tag)]
    command += ["--dest", str(folder), f"{name}=={number}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheel = best_wheel(folder, name, number, target) if done.returncode == 0 else None
    if wheel is None:
        told = " | ".join((done.stderr or done.stdout).strip().splitlines()[-3:])
        raise UserError(
            f"pip found no wheel of {name} {number} for {_words(target)}, glibc {'.'.join(map(str, GLIBC))}: {told}; "
            "see that pip reaches a package index and that it has one, or name a --wheelhouse"
        )
    return wheel


def platform_tags(machine: str) -> list[str]:
    """Platform tags that pip may take, of a C library up to GLIBC, newest first (PEP 600)."""
    tags = []
    for minor in range(GLIBC[1], _OLDEST[machine] - 1, -1):
        tags.append(f"manylinux_2_{minor}_{machine}")
        if legacy := _LEGACY.get((2, minor)):
            tags.append(f"{legacy}_{machine}")
    return [*tags, f"linux_{machine}"]


def _words(target: KitTarget) -> str:
    return f"{target.platform}, Python {target.python}"
