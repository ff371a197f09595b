"""What is packaged: every room, nothing else; and the wheel alone runs a bundle in a clean environment."""

from __future__ import annotations

import ast
import io
import json
import os
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("exporter", "profiler", "runtime", "selector", "trainer")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETUPTOOLS = PROJECT["tool"]["setuptools"]


def packages_on_disk() -> dict[str, str]:
    """Dotted name -> folder, for every folder that holds an __init__.py."""
    found = {"edgewise": "edgewise"}
    for room in ROOMS:
        for file in sorted((ROOT / room).rglob("__init__.py")):
            folder = file.parent.relative_to(ROOT).as_posix()
            found["edgewise." + folder.replace("/", ".")] = folder
    return found


def test_packages_are_those_on_disk() -> None:
    on_disk = packages_on_disk()
    assert {f"edgewise.{room}" for room in ROOMS} <= set(on_disk), "every room has an __init__.py"
    assert sorted(SETUPTOOLS["packages"]) == sorted(on_disk)
    assert SETUPTOOLS["package-dir"] == on_disk
    assert PROJECT["tool"]["coverage"]["run"]["source"] == ["edgewise", *ROOMS]


def test_no_package_beside_the_rooms() -> None:
    """A new top-level folder with an __init__.py would be missed by the list above."""
    known = {"edgewise", *ROOMS}
    beside = {
        file.parent.name
        for file in ROOT.glob("*/__init__.py")
        if not file.parent.name.startswith(".") and file.parent.name not in ("build", "dist")
    }
    assert beside == known


def test_symlinks_lead_to_the_rooms() -> None:
    for room in ROOMS:
        link = ROOT / "edgewise" / room
        assert link.is_symlink()
        assert link.readlink() == Path("..") / room


def test_test_files_have_distinct_names() -> None:
    names = [file.name for file in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    pairs = [line.split("==") for line in lines]
    return {name.lower().replace("_", "-").replace(".", "-"): version for name, version in pairs}


def test_constraints_are_what_is_installed() -> None:
    from importlib.metadata import distributions

    pinned = constraints()
    wrong = []
    for found in distributions():
        name = found.metadata["Name"].lower().replace("_", "-").replace(".", "-")
        # pip is the environment's own; a local version (2.13.0+cpu) is the same release
        if name not in ("edgewise", "pip") and pinned.get(name) != found.version.partition("+")[0]:
            wrong.append(f"{name} {found.version} is installed, constraints.txt says {pinned.get(name)}")
    assert wrong == []


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our wheel, built from a copy, since setuptools leaves a build folder beside what it builds."""
    copy = tmp_path_factory.mktemp("source")
    for name in ("edgewise", *ROOMS):
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    out = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet"]
    done = subprocess.run(
        [*pip, "--no-deps", "--no-build-isolation", "--wheel-dir", str(out), str(copy)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (built,) = out.glob("*.whl")
    return built


def test_wheel_holds_every_file(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {"edgewise/py.typed"}
    for package, folder in packages_on_disk().items():
        inside = package.replace(".", "/")
        expected |= {f"{inside}/{file.name}" for file in (ROOT / folder).glob("*.py")}
        data = [f for f in (ROOT / folder).iterdir() if f.is_file() and f.suffix not in (".py", ".pyc")]
        expected |= {f"{inside}/{file.name}" for file in data}
    code = {name for name in names if ".dist-info/" not in name}
    assert code == expected
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_wheel_is_small(wheel: Path) -> None:
    size = wheel.stat().st_size
    assert size <= 800_000, f"the whole wheel has {size} bytes"


@pytest.fixture(scope="session")
def device_wheel(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that goes to a device, made of the whole one."""
    out = tmp_path_factory.mktemp("device")
    tool = str(ROOT / "tools" / "device_wheel.py")
    done = subprocess.run(
        [sys.executable, tool, str(wheel), "--out", str(out)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    (built,) = out.glob("*.whl")
    return built


def test_device_wheel_is_small_and_holds_the_runtime(device_wheel: Path) -> None:
    size = device_wheel.stat().st_size
    assert size <= 150_000, f"the device's wheel has {size} bytes"
    names = set(zipfile.ZipFile(device_wheel).namelist())
    assert {f"edgewise/runtime/{file.name}" for file in (ROOT / "runtime").glob("*.py")} <= names
    assert "edgewise/profiler/worker.py" in names
    left_out = ("edgewise/exporter", "edgewise/trainer", "edgewise/selector", "edgewise/pipeline")
    assert not [name for name in names if name.startswith(left_out)]


def test_device_wheel_is_the_same_code_on_the_same_lines_without_docstrings() -> None:
    from edgewise.profiler.device_wheel import installed_wheel

    with zipfile.ZipFile(io.BytesIO(installed_wheel().data)) as archive:
        names = [name for name in archive.namelist() if name.endswith(".py")]
        lean = {name: archive.read(name).decode() for name in names}
    assert len(lean) > 40
    for name, text in lean.items():
        whole = (ROOT / name).read_text(encoding="utf-8")
        assert statements(text) == statements(whole), name
        assert not [node for node in ast.walk(ast.parse(text)) if is_docstring(node)], name


def is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def statements(source: str) -> list[str]:
    """What runs, with its places; a body of a docstring alone, or of '...', is left out."""
    found = []
    for node in ast.walk(ast.parse(source)):
        nothing = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and node.value.value is ...
        if isinstance(node, ast.stmt) and not is_docstring(node) and not nothing:
            for inner in ("body", "orelse", "finalbody", "handlers"):
                if hasattr(node, inner):
                    setattr(node, inner, [])  # each statement stands for itself
            found.append(f"{node.lineno}:{node.col_offset} {ast.dump(node)}")
    return sorted(found)


MISSING = ("torch", "transformers", "optimum", "datasets", "pandas", "psutil", "msgspec", "pyarrow", "evaluate")


def new_environment(folder: Path, what: str) -> Path:
    """A new environment with what pip is told to install; returns its Python."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    command = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet", what]
    done = subprocess.run(
        [*command, "--constraint", str(ROOT / "constraints.txt")],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return python


@pytest.fixture(scope="session")
def clean_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment with our wheel and what its base install declares, and no extra."""
    return new_environment(tmp_path_factory.mktemp("clean"), str(wheel))


@pytest.fixture(scope="session")
def device_python(clean_python: Path, device_wheel: Path) -> Path:
    """The clean environment's packages, with the device's wheel in the place of the whole one."""
    folder = clean_python.parents[1].with_name("device-only")
    shutil.copytree(clean_python.parents[1], folder, symlinks=True)
    site = next((folder / "lib").glob("python3*")) / "site-packages"
    for old in (site / "edgewise", *site.glob("edgewise-*.dist-info")):
        shutil.rmtree(old)
    with zipfile.ZipFile(device_wheel) as archive:
        archive.extractall(site)
    return folder / "bin" / "python"


def test_device_wheel_alone_runs_a_bundle_and_says_what_it_lacks(device_python: Path, int8_bundle: Path) -> None:
    done = run_clean(device_python, "-m", "edgewise", "run", str(int8_bundle), "a fine film", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["label"] in ("negative", "positive")
    done = run_clean(device_python, "-m", "edgewise", "inspect", str(int8_bundle))
    assert "text-classification" in done.stdout, done.stderr
    done = run_clean(device_python, "-m", "edgewise", "fit", "plan.yaml")
    assert done.returncode == 2, done.stderr
    assert "not in this wheel" in done.stderr
    assert "Traceback" not in done.stderr


EXTRAS = {
    "image": "from edgewise.images import open_rgb; import PIL",
    "chat": "import jinja2; from edgewise.runtime.chat import render",
    "worker": "import psutil; from edgewise.profiler.fingerprint import read_fingerprint; read_fingerprint()",
    "profile": "import datasets, evaluate, plotly, asyncssh; from edgewise.plan import read_plan",
}


@pytest.mark.slow
@pytest.mark.parametrize("extra", list(EXTRAS))
def test_each_extra_installs_alone_and_brings_no_torch(wheel: Path, tmp_path: Path, extra: str) -> None:
    python = new_environment(tmp_path / extra, f"{wheel}[{extra}]")
    done = run_clean(python, "-c", EXTRAS[extra])
    assert done.returncode == 0, done.stderr
    code = "import importlib.util as u; print([m for m in ('torch', 'transformers', 'optimum') if u.find_spec(m)])"
    assert run_clean(python, "-c", code).stdout.strip() == "[]"
    assert run_clean(python, "-m", "pip", "check").returncode == 0


def run_clean(python: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run outside of the repository, so that nothing is imported from it."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    return subprocess.run(
        [str(python), *arguments], capture_output=True, text=True, timeout=120, check=False, cwd="/", env=environment
    )


def test_clean_environment_has_nothing_heavy(clean_python: Path) -> None:
    code = f"import importlib.util as u; print([m for m in {MISSING!r} if u.find_spec(m)])"
    assert run_clean(clean_python, "-c", code).stdout.strip() == "[]"
    code = "import edgewise; print(edgewise.__file__)"
    assert str(clean_python.parents[1]) in run_clean(clean_python, "-c", code).stdout


def test_clean_environment_runs_a_bundle(clean_python: Path, int8_bundle: Path) -> None:
    edgewise = clean_python.parent / "edgewise"
    done = subprocess.run(
        [str(edgewise), "run", str(int8_bundle), "a fine film with a warm heart", "--json"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd="/",
    )
    assert done.returncode == 0, done.stderr
    assert "positive" in json.dumps(json.loads(done.stdout))
    code = "import json, sys, edgewise; m = edgewise.load(sys.argv[1]); print(json.dumps(m('a dull, lifeless mess')))"
    answer = json.loads(run_clean(clean_python, "-c", code, str(int8_bundle)).stdout)
    assert answer[0]["label"] in ("negative", "positive")
    assert 0.5 <= answer[0]["score"] <= 1


@pytest.mark.parametrize("verb", ["fit", "tune", "export"])
def test_verb_without_its_extra_names_the_pip_command(
    clean_python: Path, tuned: Path, tmp_path: Path, verb: str
) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("text,label\n" + "".join(f"text {i},{i % 2}\n" for i in range(60)))
    plan = ROOT / "examples" / "movie-reviews.yaml"
    arguments = {
        "fit": [str(plan)],
        "tune": [str(tuned), "--data", str(rows)],
        "export": [str(tuned)],
    }[verb]
    out = tmp_path / "out"
    command = [str(clean_python.parent / "edgewise"), verb, *arguments, "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd="/")
    assert done.returncode == 2, done.stderr
    assert "pip install 'edgewise[" in done.stderr
    assert "Traceback" not in done.stderr


def test_function_without_its_extra_names_the_pip_command(clean_python: Path) -> None:
    code = "from edgewise.metrics import compute; compute(['accuracy'], [0], [0], ['a', 'b'])"
    done = run_clean(clean_python, "-c", code)
    assert "MissingExtraError: datasets is not installed: run `pip install 'edgewise[profile]'`" in done.stderr
