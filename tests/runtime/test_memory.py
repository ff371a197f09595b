"""Memory stays flat over many calls, and two processes share what is in a file of weights."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from edgewise.assets import cache_folder
from edgewise.data import Row, Splits

linux = pytest.mark.skipif(sys.platform != "linux", reason="/proc tells what is resident")

FLAT = """
import json, os, random, sys
import edgewise
page = os.sysconf("SC_PAGE_SIZE")
rss = lambda: int(open("/proc/self/statm").read().split()[1]) * page
words = json.loads(sys.stdin.read())
drawn = random.Random(0)
found = []
with edgewise.load(sys.argv[1], task="text-classification") as model:
    texts = (" ".join(drawn.choices(words, k=int(120 ** drawn.random()))) for _ in range(2000))
    answers = model(texts) if sys.argv[2] == "stream" else map(model, texts)
    for number, answer in enumerate(answers, 1):
        if number % 100 == 0:
            found.append(rss())
print(json.dumps(found))
"""
LOADED = """
import sys
import edgewise
model = edgewise.load(sys.argv[1])
model("a fine film with a warm heart")
print("ready", flush=True)
sys.stdin.readline()
"""


@linux
@pytest.mark.parametrize("way", ["calls", "stream"])
def test_2000_calls_of_random_lengths_leave_memory_flat(
    int8_bundle: Path, review_rows: tuple[Row, ...], way: str
) -> None:
    words = " ".join(r.text for r in review_rows).split()
    done = subprocess.run(
        [sys.executable, "-c", FLAT, str(int8_bundle), way],
        input=json.dumps(words),
        stdout=subprocess.PIPE,
        text=True,
        timeout=300,
        check=True,
    )
    found = json.loads(done.stdout)
    assert len(found) == 20
    # A leak of one text's activations a call would be 100 times as much.
    assert found[-1] - found[4] < 8e6, f"MB every 100 calls: {[round(b / 1e6, 1) for b in found]}"


@pytest.fixture(scope="module")
def mapped(tuned: Path, review_splits: Splits) -> Path:
    """A bundle with its weights in a file of their own."""
    from filelock import FileLock

    from edgewise.exporter import export

    folder = cache_folder() / "tests" / "mapped"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        (result,) = export(
            tuned, ["fp32+external=true"], out=folder, candidate="tiny", calibration=review_splits.train[:64]
        )
    assert result.bundle is not None, result.reason
    return result.bundle.path


@linux
def test_two_processes_share_the_pages_of_the_weights_file(mapped: Path) -> None:
    started = [
        subprocess.Popen(
            [sys.executable, "-c", LOADED, str(mapped)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    try:
        for process in started:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in started:
            shared, copied = _weights_pages(process.pid)
            assert shared > 2e5  # rows of the embeddings that one text reads, and what stands near them
            assert copied == 0  # what is packed anew is no page of the file
    finally:
        for process in started:
            process.communicate("\n", timeout=60)


def _weights_pages(pid: int) -> tuple[int, int]:
    """Bytes of model.onnx_data that are shared with another process, and of pages that became this process's own.

    Private and clean is a page of the file that this process alone has mapped so far: which neighbours of a page the
    kernel maps with it depends on what was in its cache.
    """
    shared = copied = 0
    inside = False
    for line in Path(f"/proc/{pid}/smaps").read_text(encoding="utf-8").splitlines():
        name, *rest = line.split()
        if not name.endswith(":"):
            inside = bool(rest) and rest[-1].endswith("model.onnx_data")
        elif inside and name.startswith("Shared_"):
            shared += int(rest[0]) * 1024
        elif inside and name == "Private_Dirty:":
            copied += int(rest[0]) * 1024
    return shared, copied
