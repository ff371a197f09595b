"""Who may import whom: the arrows of the architecture, read from the source of every file."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("exporter", "profiler", "runtime", "selector", "trainer")
RUNTIME = {"numpy", "onnxruntime", "tokenizers"}
"""What the base install brings, beside the standard library."""
ALLOWED = {
    "runtime": RUNTIME | {"PIL", "jinja2"},
    "profiler": RUNTIME | {"psutil", "pyarrow", "asyncssh"},
    "selector": {"numpy", "jinja2", "markupsafe", "plotly", "optuna"},
    # msgspec: the plan's structs are handed in
    "exporter": RUNTIME
    | {"PIL", "datasets", "huggingface_hub", "onnx", "onnx_ir", "onnxruntime_genai", "optimum", "safetensors"}
    | {"torch", "transformers"},
    "trainer": {
        "numpy",
        "sklearn",
        "torch",
        "transformers",
        "tokenizers",
        "peft",
        "datasets",
        "evaluate",
        "safetensors",
        "msgspec",
        "PIL",
    },
}
ROOMS_SEEN = {"runtime": set(), "profiler": {"runtime"}, "selector": set(), "exporter": {"runtime"}, "trainer": set()}
"""The other rooms that a room may import."""
DEVICE_CONTRACT = {
    "", "bundle", "errors", "files", "images", "recipe", "showing", "stamp", "types", "units", "windows",
}  # fmt: skip
"""The modules of edgewise that a device needs: the standard library alone, and Pillow inside functions of images."""
METRICS = {"metrics", "metric_evaluate", "metric_inputs", "metric_scores", "metric_tables", "metric_user"}
PROMPTS = {"prompting", "prompts"}
CONTRACT = DEVICE_CONTRACT | METRICS | PROMPTS
CONTRACT |= {
    "address",
    "arrival",
    "asset_list",
    "assets",
    "columns",
    "data",
    "data_spec",
    "downloads",
    "images",
    "inventory",
    "paired",
    "places",
    "plan",
    "plain_tables",
    "prepare",
    "prepare_models",
    "progress",
    "reading",
    "records",
    "rows",
    "slices",
    "sources",
    "student",
    "tables",
    "windows",
}
"""The modules of edgewise that any room may import."""
SHARED = {"msgspec", "ruamel"}
"""What plan.py, data_spec.py, inventory.py and places.py import at the top; nothing else heavy stands there."""


@dataclass(frozen=True)
class Import:
    file: Path
    line: int
    module: str
    """Dotted, without the name that is imported, unless that is a module of ours."""
    top: bool
    """Runs when the file is imported."""

    @property
    def package(self) -> str:
        return self.module.partition(".")[0]

    @property
    def room(self) -> str | None:
        parts = self.module.split(".")
        return parts[1] if parts[0] == "edgewise" and len(parts) > 1 and parts[1] in ROOMS else None

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line} imports {self.module}"


def imports(file: Path) -> Iterator[Import]:
    """Every import of a file, but those that only a type checker sees."""
    yield from _imports(file, ast.parse(file.read_text(encoding="utf-8")).body, top=True)


def _imports(file: Path, nodes: list[ast.stmt], top: bool) -> Iterator[Import]:
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(file, node.lineno, alias.name, top)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            for alias in node.names:
                # `from edgewise import runtime` names a module too
                yield Import(file, node.lineno, f"{base}.{alias.name}" if base == "edgewise" else base, top)
        elif not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)):
            inside = top and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            for child in ast.iter_child_nodes(node):
                if isinstance(child, ast.stmt):
                    yield from _imports(file, [child], inside)
                elif isinstance(child, ast.ExceptHandler | ast.match_case):
                    yield from _imports(file, child.body, inside)


def files(folder: str) -> list[Path]:
    found = sorted((ROOT / folder).glob("*.py")) if folder == "edgewise" else sorted((ROOT / folder).rglob("*.py"))
    assert found, f"no files in {folder}"
    return found


def shared_module(item: Import) -> str:
    """'types' for edgewise.types; '' for edgewise itself (its version)."""
    return item.module.split(".")[1] if "." in item.module and not item.module.endswith("__version__") else ""


def third_party(item: Import) -> bool:
    return item.package not in sys.stdlib_module_names and item.package != "edgewise"


def test_the_reader_of_imports_sees_them_all(tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    file.write_text(
        "import a1.b\nfrom a2 import x\nfrom edgewise import runtime\nif TYPE_CHECKING:\n    import never\n"
        "try:\n    import a3\nexcept ImportError:\n    import a4\nclass C:\n    import a5\n"
        "def f():\n    if 1:\n        import b1\n    else:\n        with x:\n            import b2\n"
        "    match 1:\n        case 1:\n            import b3\n"
    )
    found = list(imports(file))
    assert [i.module for i in found if i.top] == ["a1.b", "a2", "edgewise.runtime", "a3", "a4", "a5"]
    assert [i.module for i in found if not i.top] == ["b1", "b2", "b3"]


@pytest.mark.parametrize("folder", ["edgewise", *ROOMS, "tests", "benchmarks", "tools"])
def test_no_bare_room_and_no_relative_import(folder: str) -> None:
    found = sorted((ROOT / folder).glob("*.py") if folder == "edgewise" else (ROOT / folder).rglob("*.py"))
    wrong = [str(i) for file in found for i in imports(file) if i.package in ROOMS or i.module.startswith(".")]
    assert wrong == [], "import edgewise.x instead"


@pytest.mark.parametrize("room", ROOMS)
def test_room_keeps_its_arrows(room: str) -> None:
    wrong = []
    for file in files(room):
        for item in imports(file):
            if item.room and item.room != room and item.room not in ROOMS_SEEN[room]:
                wrong.append(f"{item}, another room")
            if third_party(item) and item.package not in ALLOWED[room]:
                wrong.append(f"{item}, which is none of {sorted(ALLOWED[room])}")
            if item.package == "edgewise" and not item.room and shared_module(item) not in CONTRACT:
                wrong.append(f"{item}, which is no part of the contract")
    assert wrong == []


def test_runtime_needs_the_device_contract_only() -> None:
    wrong = [
        str(item)
        for file in files("runtime")
        for item in imports(file)
        if item.package == "edgewise" and not item.room and shared_module(item) not in DEVICE_CONTRACT
    ]
    assert wrong == []
    for name in DEVICE_CONTRACT - {""}:
        allowed = {"PIL"} if name == "images" else set()
        found = imports(ROOT / "edgewise" / f"{name}.py")
        outside = [str(i) for i in found if third_party(i) and (i.top or i.package not in allowed)]
        assert outside == [], "a device reads these with the standard library alone"


def test_worker_and_what_it_imports_keep_to_runtime_and_psutil() -> None:
    queue, seen, wrong = [ROOT / "profiler" / "worker.py", ROOT / "profiler" / "__init__.py"], set(), []
    while queue:
        file = queue.pop()
        seen.add(file)
        for item in imports(file):
            # `python -m edgewise.profiler.worker` runs the package's __init__, but calls no function of it
            if file.name == "__init__.py" and not item.top:
                continue
            if item.room == "profiler":
                parts = item.module.split(".")
                near = ROOT / "profiler" / (f"{parts[2]}.py" if len(parts) > 2 else "__init__.py")
                queue += [near] if near not in seen else []
            elif (
                item.room not in (None, "runtime")
                or (third_party(item) and item.package not in RUNTIME | {"psutil"})
                or (item.package == "edgewise" and not item.room and shared_module(item) not in DEVICE_CONTRACT)
            ):
                wrong.append(str(item))
    assert wrong == []


def test_shared_files_import_nothing_heavy_at_the_top() -> None:
    wrong = []
    for file in files("edgewise"):
        allowed = SHARED if file.stem in ("plan", "places", "data_spec", "inventory") else set()
        # sources.py and others may import plan.py, whose two imports are agreed on
        wrong += [str(i) for i in imports(file) if i.top and third_party(i) and i.package not in allowed]
        wrong += [str(i) for i in imports(file) if i.top and i.room]
    assert wrong == [], "import inside the function that needs it"


def test_contract_knows_neither_rooms_nor_fit() -> None:
    """Only fit and the command line see the rooms; no room and no contract module reaches them through these."""
    wrong = [
        str(item)
        for name in sorted(CONTRACT - {""})
        for item in imports(ROOT / "edgewise" / f"{name}.py")
        if item.room or (item.package == "edgewise" and shared_module(item) not in CONTRACT)
    ]
    assert wrong == []


HEAVY = (
    "numpy", "onnxruntime", "tokenizers", "torch", "transformers", "optimum", "datasets", "pandas", "pyarrow",
    "evaluate", "sklearn", "scipy", "msgspec", "ruamel", "rich", "plotly", "jinja2", "psutil", "peft", "onnx",
)  # fmt: skip


@pytest.mark.parametrize(
    ("module", "light"),
    [
        ("edgewise", ()),
        ("edgewise.cli", ()),
        ("edgewise.bundle, edgewise.units, edgewise.types", ()),
        ("edgewise.data, edgewise.metrics, edgewise.assets, edgewise.tables", ()),
        ("edgewise.plan", ("msgspec", "ruamel")),
        ("edgewise.runtime", ("numpy", "onnxruntime", "tokenizers")),
        ("edgewise.profiler.worker", ("numpy", "onnxruntime", "tokenizers", "psutil")),
        ("edgewise.selector", ("numpy", "jinja2", "plotly")),
    ],
)
def test_light_imports_stay_light(module: str, light: tuple[str, ...]) -> None:
    code = f"import sys; before = set(sys.modules); import {module}\n"
    code += f"print(*sorted(m for m in {HEAVY!r} if m in sys.modules and m not in before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) - set(light) == set()
