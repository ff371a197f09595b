"""A kit: one file with a chosen bundle and all that answers with it on a device, which installs with no network.

It is a zip file that the device's Python starts: `python3.11 kit.zip --prefix DIR`. In it: kit.json (what the kit is
for, and size and sha256 of every other file), bundle/, wheels/, install.py and a page for people. The same inputs give
the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from edgewise import kit_install
from edgewise.bundle import CARD, MANIFEST, Bundle, read_bundle
from edgewise.errors import BundleNotFoundError, NoSpaceError, PlanError
from edgewise.files import check_writable, disk_full_is_clear, sha256_file
from edgewise.pack_wheels import KitTarget, find_wheels, needed_packages, read_machine, read_target
from edgewise.progress import Say, no_words
from edgewise.rundir import RunFolder
from edgewise.types import IMAGE_TASKS

FORMAT = "1.0"
"""Of kit.json: major.minor; an installer reads every minor of its major."""
_STAMP = (1980, 1, 1, 0, 0, 0)
_START = "import sys\n\nfrom install import main\n\nsys.exit(main())\n"
_PAGE = """\
A kit of edgewise for {platform}, Python {python}, glibc {glibc} or newer.
It answers {task} with the bundle {digest}.

Install it, with no network, beside the kits that are there:

    python{python} kit.zip --prefix DIR

It becomes DIR/current when it has answered its golden inputs there as it should. Then:

    DIR/current/run {INPUT}  answers; DIR/current/run --help tells more
    DIR/current/run --check           the golden answers again

Back to the kit before:

    python{python} DIR/current/install.py --prefix DIR --rollback
"""

Source = Path | bytes


@dataclass(frozen=True)
class Kit:
    """A kit that was written."""

    path: Path
    size: int
    """Bytes."""
    sha256: str
    bundle: Path
    """What went into it."""
    told: Mapping[str, Any]
    """kit.json."""
    warnings: tuple[str, ...] = ()
    """Why what was measured may not hold where the kit goes."""


def pack(
    run: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    platform: str | None = None,
    python: str | None = None,
    device: str | None = None,
    wheelhouse: str | os.PathLike[str] | None = None,
    say: Say = no_words,
) -> Kit:
    """Write the kit of a run's chosen bundle, or of a bundle, to the file `out`, whole or not at all.

    platform: 'linux-aarch64', ...; python: '3.11'; this machine's unless given. device: whose choice, where a run has
    several. wheelhouse: a folder to take the wheels from, in the place of the package index.

    Raises PlanError, BundleError, UserError where a wheel cannot be had, NoSpaceError.
    """
    target = read_target(platform, python)
    name, bundle = _chosen(Path(run), device)
    place = Path(out)
    _check_place(place, bundle)
    if bundle.manifest.run.provider != "cpu":
        raise PlanError(
            f"{bundle.path} is to run with the provider {bundle.manifest.run.provider!r}, and the onnxruntime of a kit "
            "has 'cpu' alone: choose for a device that runs on the CPU"
        )
    doubts = tuple(_doubts(bundle, target, _measured_on(RunFolder(Path(run)).store, name) if name else set()))
    wheels = find_wheels(needed_packages(bundle), target, Path(wheelhouse) if wheelhouse else None, say)
    sources = _sources(bundle, wheels)
    told = _tell(bundle, target, wheels, sources)
    say(f"writing {place}")
    _write_zip(place, {**sources, kit_install.MANIFEST: _json(told)})
    return Kit(place, place.stat().st_size, sha256_file(place), bundle.path, told, doubts)


# ---- which bundle


def chosen_bundle(run: Path, device: str | None = None) -> Bundle:
    """The bundle that a run has chosen (for that device, where there are several), or the bundle at that path.

    Raises PlanError where nothing was chosen, or more than one and no device is named; BundleError.
    """
    return _chosen(run, device)[1]


def _chosen(run: Path, device: str | None) -> tuple[str, Bundle]:
    """The device that the bundle was chosen for, '' for a bundle by its path, and the bundle."""
    if (run / MANIFEST).is_file():
        if device is not None:
            raise PlanError(f"{run} is a bundle, and has no choice for a device {device!r}: leave --device out")
        return "", read_bundle(run)
    if not run.is_dir():
        raise BundleNotFoundError(f"{run}: no such run folder or bundle; `edgewise fit` or `edgewise export` makes one")
    chosen = _choices(run)
    if device is not None and device not in chosen:
        raise PlanError(f"{run} has chosen nothing for a device {device!r}; it has for {', '.join(sorted(chosen))}")
    if device is None and len(chosen) > 1:
        raise PlanError(f"{run} has a choice for each of {', '.join(sorted(chosen))}: name one by --device")
    name = device if device is not None else next(iter(chosen))
    told = chosen[name]
    # A bundle by another digest would be one that the numbers of this run are not about.
    return name, read_bundle(run / Path(told["path"]).name, expect=told["content_digest"])


def _choices(run: Path) -> dict[str, dict[str, str]]:
    """Device -> {'path', 'content_digest'}, of a run folder; at least one."""
    file = RunFolder(run).selection
    try:
        chosen: dict[str, dict[str, str]] = json.loads(file.read_text(encoding="utf-8"))["chosen"]
        whole = all(isinstance(one["path"], str) and isinstance(one["content_digest"], str) for one in chosen.values())
    except FileNotFoundError as error:
        if RunFolder(run).store.is_file():
            raise PlanError(f"{run} has no {file.name}: `edgewise fit` has not ended there; start it again") from error
        raise BundleNotFoundError(
            f"{run} is neither a run folder (it has no {file.name}) nor a bundle (it has no {MANIFEST}); "
            "`edgewise fit` or `edgewise export` makes one"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise PlanError(f"{file} cannot be read ({error!r}): run `edgewise fit` again") from error
    if not whole or not chosen:
        raise PlanError(
            f"nothing was chosen in {run}: no bundle meets the plan's budgets; {run}/report.html says what is nearest, "
            "and a bundle that you choose yourself can be packed by its path"
        )
    return chosen


def _check_place(place: Path, bundle: Bundle) -> None:
    if place.exists() and not place.is_file():
        raise PlanError(f"--out {place} is {'a folder' if place.is_dir() else 'no regular file'}: name a file to write")
    if place.resolve().is_relative_to(bundle.path.resolve()):
        raise PlanError(f"--out {place} is inside the bundle {bundle.path}: name a file outside of it")
    check_writable(place.parent)


# ---- whether what was measured holds there


def _measured_on(path: Path, device: str) -> set[str]:
    """Machines ('x86_64') that a run's store has the device as; empty where there is no store."""
    from edgewise.profiler import Store

    if not path.is_file():
        return set()
    with Store(path, reading=True) as store:
        timed = [m for m in store.measurements() if m.target and m.target.device == device]
    found = (m.conditions.get("fingerprint") for m in timed)
    return {read_machine(f["machine"]) for f in found if isinstance(f, Mapping) and isinstance(f.get("machine"), str)}


def _doubts(bundle: Bundle, target: KitTarget, measured_on: set[str]) -> Iterator[str]:
    """What the person who packs must know, a sentence each."""
    if measured_on and target.machine not in measured_on:
        yield (
            f"it was chosen by what was measured on {' and '.join(sorted(measured_on))}, and the kit is for "
            f"{target.machine}: times differ there, and so may answers in int8; measure on the device (`devices:` with "
            "`ssh:` in the plan) before you rely on the choice"
        )
    preset = bundle.manifest.recipe.preset
    if bundle.manifest.recipe.quantized and preset != "auto" and (preset == "arm64") != (target.machine == "aarch64"):
        fitting = "arm64" if target.machine == "aarch64" else "avx2"
        yield (
            f"its weights are quantized as {preset} wants them, and the kit is for {target.machine}: "
            f"a recipe with preset={fitting} may be faster or closer there"
        )


# ---- what is in it


def _sources(bundle: Bundle, wheels: list[Path]) -> dict[str, Source]:
    """Name in the kit -> where it comes from, all but kit.json."""
    from edgewise.profiler.device_wheel import installed_wheel

    names = [*bundle.manifest.files, MANIFEST, *([CARD] if (bundle.path / CARD).is_file() else [])]
    sources: dict[str, Source] = {f"bundle/{name}": bundle.path / name for name in names}
    sources |= {f"wheels/{wheel.name}": wheel for wheel in wheels}
    sources[f"wheels/edgewise-{version('edgewise')}-1device-py3-none-any.whl"] = installed_wheel().data
    sources["install.py"] = Path(kit_install.__file__).read_bytes()
    sources["__main__.py"] = _START.encode()
    return sources


def _tell(bundle: Bundle, target: KitTarget, wheels: list[Path], sources: dict[str, Source]) -> dict[str, Any]:
    """kit.json; adds the page for people to the sources, which needs what it tells."""
    needs = [kit_install.wheel_glibc(wheel.name, target.python, target.machine) or (0, 0) for wheel in wheels]
    told: dict[str, Any] = {
        "format": FORMAT,
        "platform": target.platform,
        "python": target.python,
        "glibc": ".".join(map(str, max(needs))),
        "content_digest": bundle.digest,
        "task": bundle.manifest.task,
        "candidate": bundle.manifest.source.get("candidate"),
        "recipe": bundle.manifest.recipe.name,
        "run": bundle.manifest.run.text(),
        "edgewise": version("edgewise"),
    }
    asked = "IMAGE..." if bundle.manifest.task in IMAGE_TASKS else "TEXT..."
    page = _PAGE.format(digest=bundle.digest, INPUT=f"{asked:<16}", **told)
    sources["README.txt"] = page.encode()
    told["unpacked"] = sum(_unpacked(name, source) for name, source in sources.items())
    told["files"] = {name: _info(sources[name]) for name in sorted(sources)}
    return told


def _unpacked(name: str, source: Source) -> int:
    """Bytes on the device, in blocks of 4 KiB; a Python file counts twice, since it is compiled there."""

    def blocks(size: int) -> int:
        return (size + 4095) // 4096 * 4096

    if not name.startswith("wheels/"):
        return blocks(_size(source))
    with zipfile.ZipFile(source if isinstance(source, Path) else io.BytesIO(source)) as wheel:
        return sum(blocks(i.file_size) * (2 if i.filename.endswith(".py") else 1) for i in wheel.infolist())


def _info(source: Source) -> dict[str, Any]:
    digest = sha256_file(source) if isinstance(source, Path) else hashlib.sha256(source).hexdigest()
    return {"size": _size(source), "sha256": digest}


def _size(source: Source) -> int:
    return source.stat().st_size if isinstance(source, Path) else len(source)


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()


def _write_zip(place: Path, sources: Mapping[str, Source]) -> None:
    """One date, one order: the same zip file of the same sources. Under a temporary name, then renamed."""
    try:
        with disk_full_is_clear(place):
            place.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=place.parent, prefix=f".{place.name}.") as folder:
                new = Path(folder) / place.name
                with new.open("wb") as file:
                    with zipfile.ZipFile(file, "w") as archive:
                        for inside in sorted(sources):
                            _add(archive, inside, sources[inside])
                    file.flush()
                    os.fsync(file.fileno())
                new.replace(place)
    except NoSpaceError:
        raise
    except OSError as error:
        raise PlanError(f"{place} cannot be written: {error.strerror or error}; name another place") from error


def _add(archive: zipfile.ZipFile, inside: str, source: Source) -> None:
    info = zipfile.ZipInfo(inside, _STAMP)
    info.create_system = 3  # Unix, whatever this machine is
    info.external_attr = 0o644 << 16
    # A wheel is a zip file already.
    info.compress_type = zipfile.ZIP_STORED if inside.endswith(".whl") else zipfile.ZIP_DEFLATED
    info.file_size = _size(source)
    with (
        source.open("rb") if isinstance(source, Path) else io.BytesIO(source) as file,
        archive.open(info, "w", force_zip64=info.file_size >= 1 << 31) as target,
    ):
        shutil.copyfileobj(file, target, 1 << 20)
