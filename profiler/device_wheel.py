"""The small wheel for devices: what answers and what measures, without the rooms that build.

It keeps edgewise.runtime, the measuring worker, `edgewise run` and `inspect`, and every module of edgewise that these
import, wherever the import stands; without docstrings, which nobody reads there. Name and version are those of the
whole edgewise, with the build tag '1device'.
"""

from __future__ import annotations

import ast
import base64
import hashlib
import importlib.metadata
import io
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from edgewise.errors import UserError

ROOTS = (
    "edgewise.cli",
    "edgewise.__main__",
    "edgewise.verbs_run",
    "edgewise.verbs_inspect",
    "edgewise.profiler.worker",
    "edgewise.profiler.describe",
)
"""What a device starts; all of edgewise.runtime is kept beside them."""
MEASURED = (*ROOTS, "edgewise.profiler.confine")
"""What a device starts that is measured over SSH: its launcher may hold the worker to a limit."""
EXTRAS = ("image", "chat", "worker")
"""What a device may need; the others belong to the rooms that are left out."""
_ROOMS = ("edgewise", "edgewise.profiler", "edgewise.runtime")
_INSTALLED = ("INSTALLER", "RECORD", "REQUESTED", "direct_url.json")
"""What pip adds to a .dist-info folder."""
_STAMP = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class DeviceWheel:
    """The wheel of the edgewise that runs here, for a device."""

    data: bytes
    requires: tuple[str, ...]
    """What it needs from a package index: 'numpy>=1.26', ..."""

    @property
    def digest(self) -> str:
        """Of its bytes, which are the same for the same source: short, for a folder's name."""
        return hashlib.sha256(self.data).hexdigest()[:16]


@lru_cache(maxsize=1)
def installed_wheel() -> DeviceWheel:
    """The device's wheel, made of the edgewise that runs here: a source tree or an installed wheel.

    Raises UserError where edgewise can be imported but is not installed.
    """
    files: dict[str, bytes] = {}
    for package in _ROOMS:
        spec = find_spec(package)
        assert spec is not None
        for folder in spec.submodule_search_locations or ():
            inside = package.replace(".", "/")
            files |= {f"{inside}/{file.name}": file.read_bytes() for file in sorted(Path(folder).glob("*.py"))}
    files["edgewise/py.typed"] = b""
    try:
        found = importlib.metadata.distribution("edgewise")
    except importlib.metadata.PackageNotFoundError as error:
        raise UserError(
            "edgewise is imported from a path here: install it with pip, so that a device can get it"
        ) from error
    head = f"edgewise-{found.version}.dist-info"
    for name in ("METADATA", "WHEEL", "entry_points.txt"):
        files[f"{head}/{name}"] = (found.read_text(name) or "").encode()
    files[f"{head}/RECORD"] = b""
    requires = tuple(line.partition(";")[0].strip() for line in found.requires or () if "extra ==" not in line)
    return DeviceWheel(_pack(files, MEASURED), requires)


def device_wheel(wheel: Path, out: Path) -> Path:
    """Write the device's wheel, made of the whole one, into the folder `out`; returns its path."""
    with zipfile.ZipFile(wheel) as whole:
        files = {name: whole.read(name) for name in whole.namelist()}
    name, version, *rest = wheel.name.split("-")
    out.mkdir(parents=True, exist_ok=True)
    path = out / "-".join([name, version, "1device", *rest[-3:]])
    path.write_bytes(_pack(files, ROOTS))
    return path


def _pack(files: Mapping[str, bytes], roots: Sequence[str]) -> bytes:
    """The wheel's bytes: what a device needs of these files to start the roots."""
    code = needed(files, roots)
    kept = {n: _without_docs(d) if n.endswith(".py") else d for n, d in files.items() if n in code or _described(n)}
    (record,) = (name for name in kept if name.endswith(".dist-info/RECORD"))
    (metadata,) = (name for name in kept if name.endswith(".dist-info/METADATA"))
    (tags,) = (name for name in kept if name.endswith(".dist-info/WHEEL"))
    kept[metadata] = _without_extras(kept[metadata].decode()).encode()
    kept[tags] = kept[tags].decode().replace("Root-Is-Purelib", "Build: 1device\nRoot-Is-Purelib").encode()
    kept[record] = _record(kept, record).encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as made:
        for inside in sorted(kept):  # one date, one order: the same wheel from the same source
            info = zipfile.ZipInfo(inside, _STAMP)
            info.external_attr = 0o644 << 16
            made.writestr(info, kept[inside], zipfile.ZIP_DEFLATED, compresslevel=9)
    return buffer.getvalue()


def _without_docs(source: bytes) -> bytes:
    """Python without docstrings; each line keeps its number, so that a traceback points to where the source is."""
    lines = source.split(b"\n")
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        docs = [s for s in node.body if isinstance(s, ast.Expr) and _is_text(s.value)]
        for doc in docs:
            first, end = doc.lineno - 1, doc.end_lineno or doc.lineno
            needed = doc is docs[0] and len(docs) == len(node.body)  # a body is at least one statement
            kept = lines[first][: doc.col_offset] + b"..." if needed else b""
            lines[first:end] = [kept, *[b""] * (end - first - 1)]
    return b"\n".join(lines)


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _described(name: str) -> bool:
    folder, _, file = name.rpartition("/")
    return ".dist-info" in folder and (file == "RECORD" or file not in _INSTALLED)


def needed(files: Mapping[str, bytes], roots: Sequence[str]) -> set[str]:
    """The files that the roots reach by imports, with the __init__.py of their packages."""
    modules = {_module(name): name for name in files if name.endswith(".py")}
    queue = [m for m in modules if m in roots or m.startswith("edgewise.runtime")]
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
