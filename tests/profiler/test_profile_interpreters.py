"""Devices with an interpreter of their own: OpenVINO, and WebGPU on SwiftShader, each with its build of onnxruntime.

The environments are made once, in the cache folder: of the packages in constraints.txt and the wheel for devices.
"""

from __future__ import annotations

import subprocess
import venv
from dataclasses import replace
from pathlib import Path

import pytest
from filelock import FileLock

from edgewise.assets import cache_folder
from edgewise.bundle import read_bundle
from edgewise.data import Row
from edgewise.profiler import Store, Subject, measure_accuracy, measure_latency
from edgewise.profiler.device_wheel import installed_wheel
from edgewise.profiler.plumbing import describe_device
from edgewise.profiler.rounds import MODES
from edgewise.profiler.transport import Children
from edgewise.types import Device, RunSettings, Target

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
SHORT = replace(MODES["quick"], seconds=0.05, min_rounds=2, max_rounds=2)
ICD = Path("/usr/lib/chromium/vk_swiftshader_icd.json")
"""Of Debian's chromium: a Vulkan without a GPU."""


def _interpreter(build: str) -> str:
    """A Python with this build of onnxruntime and the edgewise of this tree."""
    folder = cache_folder() / "tests" / "interpreters" / build
    folder.parent.mkdir(parents=True, exist_ok=True)
    python = folder / "bin" / "python"
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
    with FileLock(folder.with_suffix(".lock")):
        if not (folder / "made").exists():
            venv.create(folder, with_pip=True, clear=True)
            limits = ["--constraint", str(ROOT / "constraints.txt")]
            subprocess.run([*pip, *limits, build, "numpy", "tokenizers"], check=True)
            (folder / "made").touch()
        wheel = folder / "edgewise-0.1.0-1device-py3-none-any.whl"
        wheel.write_bytes(installed_wheel().data)
        subprocess.run([*pip, "--no-deps", "--force-reinstall", str(wheel)], check=True)
    return str(python)


@pytest.fixture(scope="module")
def openvino() -> Device:
    return Device("openvino", _interpreter("onnxruntime-openvino"))


@pytest.fixture
def webgpu(monkeypatch: pytest.MonkeyPatch, fake_nvml: Path, tmp_path: Path) -> Device:
    """With NVIDIA's library beside it, whose answers stand in a file, since it is asked on GPU providers."""
    if not ICD.exists():
        pytest.skip(f"{ICD} is not there: Debian's chromium brings it")
    monkeypatch.setenv("VK_ICD_FILENAMES", str(ICD))
    told = "count 1\n0.energy 5000\n0.power 30000\n0.graphics 1\n0.graphics.0.pid self\n0.graphics.0.memory 7000000\n"
    (tmp_path / "told").write_text(told)
    monkeypatch.setenv("FAKE_NVML", str(tmp_path / "told"))
    monkeypatch.setenv("LD_LIBRARY_PATH", f"{fake_nvml.parent}:{ICD.parent}")
    return Device("webgpu", _interpreter("onnxruntime-webgpu"))


def _runs(device: Device) -> dict[str, bool]:
    return {t["provider"]: t["runs"] for t in describe_device(device, Children(), providers=True).trials}


def test_a_device_tells_what_its_own_build_runs(openvino: Device, webgpu: Device) -> None:
    assert _runs(openvino) == {"openvino": True, "cpu": True}
    assert _runs(webgpu) == {"webgpu": True, "cpu": True}
    assert _runs(Device()).keys() >= {"cpu"}
    assert "openvino" not in _runs(Device())


@pytest.mark.parametrize("name", ["openvino", "webgpu"])
def test_a_bundle_is_measured_on_the_provider_that_was_asked_for(
    name: str, request: pytest.FixtureRequest, bundles: dict[str, Path], review_rows: tuple[Row, ...], tmp_path: Path
) -> None:
    device: Device = request.getfixturevalue(name)
    subject = Subject("tiny", "fp32", read_bundle(bundles["fp32"]))
    target = Target(device.name, RunSettings(provider=name, max_length=32))  # type: ignore[arg-type]
    here = Target("here", RunSettings(max_length=32))
    rows = [row for row in review_rows[:6] if row.label is not None]
    with Store(tmp_path / "m.sqlite") as store:
        devices = (device, Device())
        (timed,) = measure_latency([subject], [target], rows, store=store, devices=devices, spec=SHORT)
        answered = measure_accuracy([subject], [target, here], rows, store=store, devices=devices)
        outcomes = [store.outcomes(m.id or 0) for m in answered if m.scenario == "accuracy"]
    assert timed.reason == ""
    provider = {"openvino": "OpenVINOExecutionProvider", "webgpu": "WebGpuExecutionProvider"}[name]
    assert timed.conditions["providers"][0] == provider
    assert timed.conditions["placement"][provider] > 0
    assert timed.conditions["fingerprint"]["versions"]["onnxruntime"] is not None
    p50 = timed.metric("p50")
    assert p50 is not None
    assert p50.value is not None
    memory, energy = timed.metric("gpu_memory"), timed.metric("energy")
    assert energy is not None
    if name == "webgpu":
        assert memory is not None
        assert (memory.value, memory.kind) == (7_000_000, "measured")
        assert "NVML, of the GPU alone did not move" in energy.why  # the counter stands still: no energy is made of it
    else:
        assert memory is None
    # Both machines answer the same rows, each with kernels of its own.
    assert [o.answer for o in outcomes[0]] == [o.answer for o in outcomes[1]]
    assert max(abs(a.score - b.score) for a, b in zip(*outcomes, strict=True)) < 0.01


def test_a_provider_that_a_build_has_not_is_a_failure_with_its_reason(
    openvino: Device, bundles: dict[str, Path], review_rows: tuple[Row, ...], tmp_path: Path
) -> None:
    subject = Subject("tiny", "fp32", read_bundle(bundles["fp32"]))
    targets = [Target("openvino", RunSettings(provider=p)) for p in ("cuda", "cpu")]  # type: ignore[arg-type]
    with Store(tmp_path / "m.sqlite") as store:
        found = measure_latency(
            [subject], targets, review_rows[:5], store=store, devices=(openvino,), spec=MODES["quick"]
        )
    assert [m.status for m in found] == ["failed", "ok"]
    assert "not in this onnxruntime" in found[0].reason
