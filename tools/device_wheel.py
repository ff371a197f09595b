"""Make the wheel for devices out of the whole wheel: what answers and what measures, without the rooms that build.

    python tools/device_wheel.py dist/edgewise-0.1.0-py3-none-any.whl --out dist/device

It keeps edgewise.runtime, the measuring worker, `edgewise run` and `inspect`, and every module of edgewise
that these import, wherever the import stands; it leaves the exporter, the trainer, the selector and the pipeline.
Name and version are those of the whole wheel, with the build tag '1device'.
"""

from __future__ import annotations

import argparse
import ast
import base64
import hashlib
import re
import sys
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

ROOTS = (
    "edgewise.cli",
    "edgewise.__main__",
    "edgewise.verbs_run",
    "edgewise.verbs_inspect",
    "edgewise.profiler.worker",
    "edgewise.profiler.describe",
)
"""What a device starts; all of edgewise.runtime is kept beside them."""
EXTRAS = ("image", "chat", "worker")
"""What a device may need; the others belong to the rooms that are left out."""
_STAMP = (1980, 1, 1, 0, 0, 0)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path, help="the whole wheel")
    parser.add_argument("--out", type=Path, default=Path("dist/device"), help="folder (default dist/device)")
    args = parser.parse_args(argv)
    made = device_wheel(args.wheel, args.out)
    print(f"{made}  {made.stat().st_size / 1e3:.0f} kB, the whole wheel {args.wheel.stat().st_size / 1e3:.0f} kB")
    return 0


def device_wheel(wheel: Path, out: Path) -> Path:
    """Write the device's wheel into the folder `out`; returns its path."""
    with zipfile.ZipFile(wheel) as whole:
        files = {name: whole.read(name) for name in whole.namelist()}
    code = needed(files)
    kept = {name: data for name, data in files.items() if name in code or ".dist-info/" in name}
    (record,) = (name for name in kept if name.endswith(".dist-info/RECORD"))
    (metadata,) = (name for name in kept if name.endswith(".dist-info/METADATA"))
    (tags,) = (name for name in kept if name.endswith(".dist-info/WHEEL"))
    kept[metadata] = _without_extras(kept[metadata].decode()).encode()
    kept[tags] = kept[tags].decode().replace("Root-Is-Purelib", "Build: 1device\nRoot-Is-Purelib").encode()
    kept[record] = _record(kept, record).encode()
    name, version, *rest = wheel.name.split("-")
    out.mkdir(parents=True, exist_ok=True)
    path = out / "-".join([name, version, "1device", *rest[-3:]])
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as made:
        for inside in sorted(kept):  # one date, one order: the same wheel from the same source
            info = zipfile.ZipInfo(inside, _STAMP)
            info.external_attr = 0o644 << 16
            made.writestr(info, kept[inside], zipfile.ZIP_DEFLATED, compresslevel=9)
    return path


def needed(files: Mapping[str, bytes]) -> set[str]:
    """The files that the roots reach by imports, with the __init__.py of their packages."""
    modules = {_module(name): name for name in files if name.endswith(".py")}
    queue = [m for m in modules if m in ROOTS or m.startswith("edgewise.runtime")]
    seen: set[str] = set()
    while queue:
        module = queue.pop()
        if module in seen or module not in modules:
            continue
        seen.add(module)
        queue += _imports(files[modules[module]], modules)
        queue += [module.rsplit(".", n)[0] for n in range(1, module.count(".") + 1)]
    return {modules[module] for module in seen} | {"edgewise/py.typed"}


def _module(name: str) -> str:
    return name.removesuffix(".py").replace("/", ".").removesuffix(".__init__")


def _imports(source: bytes, modules: Iterable[str]) -> list[str]:
    """Modules of edgewise that a file imports anywhere, but for what only a type checker sees or is named in text.

    What a package's __init__ imports on demand (inside __getattr__) belongs to who asks for it by name.
    """
    found: list[str] = []
    tree = ast.parse(source)
    hidden = {
        id(child)
        for node in ast.walk(tree)
        if (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
        or (isinstance(node, ast.FunctionDef) and node.name == "__getattr__")
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return [module for module in found if module in modules]


def _without_extras(metadata: str) -> str:
    """METADATA without the extras of the rooms that are left out, and without the long description."""
    head = metadata.partition("\n\n")[0].splitlines()
    kept = []
    for line in head:
        extra = re.search(r"extra == ['\"]([^'\"]+)", line) or re.match(r"Provides-Extra: (.+)", line)
        if (extra is None or extra[1] in EXTRAS) and not line.startswith("Description-Content-Type"):
            kept.append(line)
    return "\n".join(kept) + "\n"


def _record(files: Mapping[str, bytes], record: str) -> str:
    lines = []
    for name in sorted(files):
        if name == record:
            continue
        digest = base64.urlsafe_b64encode(hashlib.sha256(files[name]).digest()).rstrip(b"=").decode()
        lines.append(f"{name},sha256={digest},{len(files[name])}")
    return "\n".join([*lines, f"{record},,", ""])


if __name__ == "__main__":
    sys.exit(main())
