"""Two processes on one bundle: which of their pages are the same, and what the second one costs.

Each loads the bundle with edgewise.load and answers 20 reviews; then /proc/PID/smaps of both is read. A page is shared
where it is in the resident set of more than one process and stands in memory once: pages of the libraries' and the
weights' files. What onnxruntime packs anew for its kernels, and all it reads from a graph file that holds the weights
itself, is private. Linux only; both run in an environment of their own, whose files nobody else has mapped.

    python benchmarks/shared_pages.py        (about half a minute)
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from conditions import conditions, save
from minilm import bundles, device_python, environment, reviews

FORMS = (
    "fp32", "fp32+external=true", "fp32-o2+offline=true+external=true",
    "int8-dynamic", "int8-dynamic+external=true", "int8-dynamic+offline=true+external=true",
)  # fmt: skip
KINDS = ("weights file", "libraries and other files", "anonymous")
_CODE = """
import json, sys
import edgewise
model = edgewise.load(sys.argv[1])
for text in json.loads(sys.stdin.readline()):
    model(text)
print("ready", flush=True)
sys.stdin.readline()
"""


def two(python: Path, bundle: Path, texts: Sequence[str]) -> dict[str, Any]:
    """What the smaps of two processes on one bundle tell, each kind of mapping apart; the mean of the two, in MB."""
    started = [_start(python, bundle, texts) for _ in range(2)]
    try:
        found = [_smaps(process.pid) for process in started]
    finally:
        for process in started:
            process.communicate("\n")
    return {
        kind: {what: round(sum(f[kind][what] for f in found) / 2, 1) for what in ("rss", "shared", "private")}
        for kind in (*KINDS, "all")
    }


def _start(python: Path, bundle: Path, texts: Sequence[str]) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [str(python), "-c", _CODE, str(bundle)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/",
        env=environment(),
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(texts) + "\n")
    process.stdin.flush()
    if process.stdout.readline() != "ready\n":
        raise SystemExit(f"{bundle} did not load")
    return process


def _smaps(pid: int) -> dict[str, dict[str, float]]:
    """MB by kind of mapping."""
    found = {kind: dict.fromkeys(("rss", "shared", "private"), 0.0) for kind in (*KINDS, "all")}
    kind = KINDS[-1]
    for line in Path(f"/proc/{pid}/smaps").read_text(encoding="utf-8").splitlines():
        name, *rest = line.split()
        if not name.endswith(":"):  # a new mapping: addresses, rights, offset, device, inode, path
            path = rest[-1] if len(rest) > 4 else ""
            weights = path.endswith(".onnx_data")
            kind = KINDS[0] if weights else KINDS[1] if path.startswith("/") else KINDS[2]
            continue
        what = {"Rss": "rss", "Shared_Clean": "shared", "Shared_Dirty": "shared"}.get(name[:-1])
        what = "private" if name.startswith("Private_") and name != "Private_Hugetlb:" else what
        if what is not None:
            for place in (kind, "all"):
                found[place][what] += int(rest[0]) * 1024 / 1e6
    return found


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    places = bundles(FORMS)
    python, texts = device_python(), reviews(20)
    forms: dict[str, Any] = {}
    for name, bundle in places.items():
        manifest = json.loads((bundle / "edgewise.json").read_text(encoding="utf-8"))
        two(python, bundle, texts)  # hashes, and fills the page cache
        parts = manifest["graphs"][0]["bytes_by_part"]
        forms[name] = {
            "embeddings_mb": round(parts["embeddings"] / 1e6, 1),
            "other_weights_mb": round(parts["other weights"] / 1e6, 1),
            **two(python, bundle, texts),
        }
        whole, weights = forms[name]["all"], forms[name]["weights file"]
        print(
            f"{name:<42} RSS {whole['rss']:.0f} MB: {whole['private']:.0f} its own, {whole['shared']:.0f} shared "
            f"({weights['shared']:.0f} of the weights file); embeddings are {forms[name]['embeddings_mb']} MB"
        )
    print(save("shared_pages", {"what": __doc__, "conditions": conditions(places["int8-dynamic"]), "forms": forms}))


if __name__ == "__main__":
    sys.exit(main())
