"""GPU memory and energy from a library with NVML's own signatures, whose answers the tests write; GPUs by /proc, /sys.

No GPU is needed, and none is measured: that the driver's numbers are right is NVIDIA's word.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgewise.profiler import nvml
from edgewise.profiler.energy import energy_since, mark_energy
from edgewise.profiler.fingerprint import read_fingerprint
from edgewise.profiler.nvml import Gpu, Nvml, held, mine
from edgewise.profiler.results import WorkerResult, read_result
from edgewise.profiler.rounds import _gpu_memory
from edgewise.profiler.worker import _GpuWatch, _Results
from edgewise.units import parse_budget

Answers = Callable[..., None]


@pytest.fixture
def answers(fake_nvml: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Answers:
    """Write what the library answers from now on."""
    file = tmp_path / "answers"
    monkeypatch.setenv("FAKE_NVML", str(file))
    monkeypatch.setattr(nvml, "LIBRARY", str(fake_nvml))

    def write(**values: Any) -> None:
        file.write_text("".join(f"{k.replace('_', '.').replace('gpu', '')} {v}\n" for k, v in values.items()))

    return write


def test_what_the_library_tells_of_each_gpu(answers: Answers) -> None:
    answers(
        count=2, gpu0_energy=123_456, gpu0_power=70_000, gpu0_used=5_000_000_000, gpu0_compute=2,
        gpu0_compute_1_pid=os.getpid(), gpu0_compute_1_memory=700, gpu1_power=9_000, gpu1_graphics=1,
        gpu1_graphics_0_pid=os.getpid(),
    )  # fmt: skip
    library = Nvml()
    assert library.why == ""
    assert library.read() == (Gpu(0, 123.456, 70.0, 5_000_000_000, 700), Gpu(1, None, 9.0, None, None))
    assert library.read(pid=1000)[0].own is None  # it holds what the driver does not tell


def test_a_process_is_found_among_many_and_counted_once(answers: Answers) -> None:
    answers(
        count=1, gpu0_compute=300, gpu0_compute_299_pid=os.getpid(), gpu0_compute_299_memory=500, gpu0_graphics=1,
        gpu0_graphics_0_pid=os.getpid(), gpu0_graphics_0_memory=800,
    )  # fmt: skip
    assert Nvml().read()[0].own == 800


@pytest.mark.parametrize(
    ("told", "why"),
    [({"init": 9}, "cannot be used: Driver Not Loaded"), ({"count": 0}, "libnvidia-ml.so.1 shows no GPU")],
)
def test_a_library_without_a_gpu_says_why(answers: Answers, told: dict[str, int], why: str) -> None:
    answers(**told)
    assert why in Nvml().why
    assert Nvml().read() == ()


def test_no_library_is_no_error(tmp_path: Path) -> None:
    absent = Nvml(str(tmp_path / "libnvidia-ml.so.1"))
    assert absent.why == f"there is no {tmp_path / 'libnvidia-ml.so.1'}, which NVIDIA's driver brings"
    assert absent.read() == ()


def test_memory_is_that_of_the_process_or_an_estimate() -> None:
    before = (Gpu(0, 1.0, None, 100, None), Gpu(1, 1.0, None, 50, None))
    now = (Gpu(0, 1.0, None, 400, None), Gpu(1, 1.0, None, 60, 7))
    assert (held(before, now, "").bytes, held(before, now, "").kind) == (7, "measured")
    assert mine(now) == [now[1]]
    hidden = (now[0], Gpu(1, 1.0, None, 60, None))
    assert (held(before, hidden, "").bytes, held(before, hidden, "").kind) == (310, "estimated")
    assert mine(hidden) == hidden
    assert held(before, before, "").why == "this process took none of its memory"
    shared = (Gpu(0, None, 5.0, None, None),)  # a Jetson
    assert held(shared, shared, "").why == "the GPU has no memory of its own: see peak_rss"
    assert held((), (), "no GPU at all").why == "no GPU at all"


def _rapl(root: Path, microjoules: int) -> None:
    folder = root / "sys/class/powercap/intel-rapl:0"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "name").write_text("package-0\n")
    (folder / "energy_uj").write_text(f"{microjoules}\n")


def test_energy_of_the_gpu_is_added_to_that_of_the_cpu(tmp_path: Path) -> None:
    first, last = Gpu(0, 10.0, 70.0, None, None), Gpu(0, 12.5, 90.0, None, None)
    alone = energy_since(mark_energy(tmp_path, [first]), tmp_path, [last])
    assert (alone.joules, alone.kind, alone.source) == (2.5, "measured", "NVML, of the GPU alone")
    _rapl(tmp_path, 1_000_000)
    start = mark_energy(tmp_path, [first])
    _rapl(tmp_path, 1_750_000)
    both = energy_since(start, tmp_path, [last])
    assert (both.joules, both.kind, both.source) == (3.25, "measured", "RAPL package and NVML")


def test_power_alone_is_an_estimate_and_a_changed_gpu_nothing(tmp_path: Path) -> None:
    start = mark_energy(tmp_path, [Gpu(0, None, 70.0, None, None)])
    found = energy_since(start, tmp_path, [Gpu(0, None, 90.0, None, None)])
    assert found.kind == "estimated"
    assert found.joules is not None
    assert 0 < found.joules < 90
    assert energy_since(start, tmp_path, [Gpu(1, None, 90.0, None, None)]).kind == "unavailable"


def test_a_battery_has_the_gpu_within(tmp_path: Path) -> None:
    folder = tmp_path / "sys/class/power_supply/BAT0"
    folder.mkdir(parents=True)
    for name, text in (("type", "Battery"), ("status", "Discharging"), ("energy_now", "40000000")):
        (folder / name).write_text(text)
    assert mark_energy(tmp_path, [Gpu(0, 10.0, None, None, None)]).source == "battery"


def test_a_worker_watches_the_gpu_of_its_provider(answers: Answers, tmp_path: Path) -> None:
    answers(count=1, gpu0_energy=1_000, gpu0_used=100)
    watch = _GpuWatch("cuda")
    assert watch.began_ns > 0
    answers(
        count=1, gpu0_energy=3_500, gpu0_used=900, gpu0_compute=1, gpu0_compute_0_pid="self", gpu0_compute_0_memory=600
    )
    assert [g.joules for g in watch.mine()] == [3.5]
    with (tmp_path / "results.jsonl").open("w") as file:
        watch.tell(_Results(file))
        _GpuWatch("cpu").tell(_Results(file))
    assert json.loads((tmp_path / "results.jsonl").read_text()) == {
        "event": "gpu_memory", "bytes": 600, "kind": "measured", "why": "",
    }  # fmt: skip
    assert _GpuWatch("cpu").mine() == ()


def _result(tmp_path: Path, *lines: dict[str, Any]) -> WorkerResult:
    file = tmp_path / "results.jsonl"
    start = {"event": "start", "protocol": 1, "pid": 7, "spawned_ns": None, "first_line_ns": 1}
    events = [start, {"event": "fingerprint", "cpu": "x"}, *lines, {"event": "end", "wall_s": 1.0}]
    file.write_text("".join(json.dumps(e) + "\n" for e in events))
    return read_result(file)


def test_gpu_memory_is_a_metric_of_gpu_targets_alone(tmp_path: Path) -> None:
    def of(held: int | None, kind: str = "measured", why: str = "") -> WorkerResult:
        return _result(tmp_path, {"event": "gpu_memory", "bytes": held, "kind": kind, "why": why})

    assert _gpu_memory([_result(tmp_path)] * 5, 0.95) == ()
    (metric,) = _gpu_memory([of(400_000_000), of(410_000_000), of(420_000_000)], 0.95)
    assert (metric.name, metric.unit, metric.value, metric.kind) == ("gpu_memory", "B", 410_000_000, "measured")
    assert metric.high is not None
    assert metric.high > 420_000_000  # three processes bound it loosely
    (metric,) = _gpu_memory([of(5, "estimated", "a container"), of(6, "measured")], 0.95)
    assert (metric.kind, metric.why) == ("estimated", "a container")
    (metric,) = _gpu_memory([of(5), of(None, "unavailable", "no driver")], 0.95)
    assert (metric.value, metric.kind, metric.why) == (None, "unavailable", "no driver")
    assert parse_budget("gpu_memory <= 2 GB").limit == 2e9


def test_gpus_are_part_of_the_machine(tmp_path: Path) -> None:
    bare = read_fingerprint(tmp_path)
    assert bare.gpus == ()
    nvidia = tmp_path / "proc/driver/nvidia"
    (nvidia / "gpus/0000:01:00.0").mkdir(parents=True)
    (nvidia / "gpus/0000:01:00.0/information").write_text("Model: \t\t NVIDIA RTX A2000\nIRQ:   \t\t 142\n")
    version = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.129.03  Thu Oct 19 2023\nGCC version:  gcc 12\n"
    (nvidia / "version").write_text(version)
    for card, text in (("card0", "DRIVER=nvidia\nPCI_ID=10DE:2531\n"), ("card1", "DRIVER=i915\nPCI_ID=8086:9A49\n"),
                       ("card1-HDMI-A-1", "DRIVER=i915\n"), ("card2", "DRIVER=v3d\n")):  # fmt: skip
        (tmp_path / "sys/class/drm" / card / "device").mkdir(parents=True)
        (tmp_path / "sys/class/drm" / card / "device/uevent").write_text(text)
    found = read_fingerprint(tmp_path)
    assert found.gpus == ("NVIDIA RTX A2000, driver 535.129.03", "i915 8086:9A49", "v3d")
    assert found.digest != bare.digest
