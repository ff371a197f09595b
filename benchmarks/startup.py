"""Cold start to the first answer, and the memory it takes: edgewise beside the pipelines, and beside a script by hand.

A fresh process each, interleaved, files in the page cache; time is from starting the process to the answer's line on
its standard output, memory is VmHWM of the process just after that. edgewise and the script, which is written for this
one model with onnxruntime and tokenizers alone, run in an environment with the base install, as on a device; the
pipelines of Transformers (fp32, PyTorch) and Optimum (the same bundle) in that of the build side.

The bars are for int8-dynamic. The same is measured for that form with its graph optimized at export time and its
weights in a file that is mapped into memory. `import edgewise` is timed inside of fresh processes.

    python benchmarks/startup.py             (about 4 minutes on an idle machine; it says the load that it found)
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from conditions import conditions, save, spread
from minilm import MAIN, bundles, checkpoint, device_python, environment

TEXT = "a gorgeous, witty and deeply felt film"
MAPPED = "int8-dynamic+offline=true+external=true"
OURS, PROGRAM, HAND = "edgewise run", "edgewise.load", "onnxruntime + tokenizers by hand"
OPTIMUM, TRANSFORMERS = "Optimum pipeline", "transformers pipeline"
BARS = {OPTIMUM: (1 / 15, 1 / 4), TRANSFORMERS: (1 / 15, None), HAND: (1.15, None)}
"""Peer -> (largest ratio of times, of memory) that is asked for."""

_MEMORY = """
import sys
sys.stdout.flush()
print(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1], file=sys.stderr)
"""
PEERS: dict[str, str] = {
    OURS: """
import sys
from edgewise.cli import main
main(["run", sys.argv[1], sys.argv[2]])
""",
    PROGRAM: """
import sys
import edgewise
print(edgewise.load(sys.argv[1])(sys.argv[2]))
""",
    HAND: """
import sys
import numpy as np
import onnxruntime as ort
from tokenizers import Tokenizer
tokenizer = Tokenizer.from_file(sys.argv[1] + "/tokenizer.json")
tokenizer.no_padding()
options = ort.SessionOptions()
options.intra_op_num_threads = 1
session = ort.InferenceSession(sys.argv[1] + "/onnx/model.onnx", options, providers=["CPUExecutionProvider"])
e = tokenizer.encode(sys.argv[2])
feed = {"input_ids": e.ids, "attention_mask": e.attention_mask, "token_type_ids": e.type_ids}
feed = {i.name: np.array([feed[i.name]], dtype=np.int64) for i in session.get_inputs()}
print(session.run(None, feed)[0])
""",
    OPTIMUM: """
import sys
from optimum.onnxruntime import ORTModelForSequenceClassification
from transformers import AutoTokenizer, pipeline
model = ORTModelForSequenceClassification.from_pretrained(sys.argv[1])
answer = pipeline("text-classification", model=model, tokenizer=AutoTokenizer.from_pretrained(sys.argv[1]))
print(answer(sys.argv[2]))
""",
    TRANSFORMERS: """
import sys
from transformers import pipeline
print(pipeline("text-classification", model=sys.argv[1], device="cpu")(sys.argv[2]))
""",
}
_IMPORT = "from time import perf_counter_ns as t; a = t(); import edgewise; print((t() - a) / 1e6)"


def one(python: Path, code: str, folder: Path) -> tuple[float, float]:
    """(seconds to the answer, peak RSS in MB) of one fresh process."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [str(python), "-c", code + _MEMORY, str(folder), TEXT],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd="/",
        env=environment(),
    )
    assert process.stdout is not None
    assert process.stderr is not None
    answer = process.stdout.readline()
    seconds = time.perf_counter() - start
    errors = process.stderr.read()
    if process.wait() != 0 or not answer:
        raise SystemExit(f"a peer failed:\n{errors}")
    return seconds, int(errors.split()[-1]) * 1024 / 1e6


def import_ms(python: Path) -> float:
    """Milliseconds of `import edgewise` in a fresh process."""
    done = subprocess.run(
        [str(python), "-c", _IMPORT], stdout=subprocess.PIPE, text=True, check=True, cwd="/", env=environment()
    )
    return float(done.stdout)


def measure(device: Path, places: dict[str, Path], rounds: int) -> dict[str, Any]:
    """Every peer on one form, in turn. places: peer -> the folder that it loads."""
    here = {peer: Path(sys.executable) if peer in (OPTIMUM, TRANSFORMERS) else device for peer in places}
    for peer, folder in places.items():
        one(here[peer], PEERS[peer], folder)  # fills the page cache, the .pyc files and the stamp of the hashes
    found: dict[str, list[tuple[float, float]]] = {peer: [] for peer in places}
    loads = []
    for number in range(rounds):
        for peer, folder in places.items():
            found[peer].append(one(here[peer], PEERS[peer], folder))
        loads.append(os.getloadavg()[0])
        print(f"round {number + 1} of {rounds}, load {loads[-1]:.1f}", file=sys.stderr)
    return {
        "load": spread(loads),
        "peers": {
            peer: {"seconds": spread([t for t, _ in runs]), "peak_rss_mb": spread([m for _, m in runs])}
            for peer, runs in found.items()
        },
        "ratios": {
            f"{ours} / {peer}": {
                "seconds": spread([a / b for (a, _), (b, _) in zip(found[ours], found[peer], strict=True)]),
                "peak_rss": spread([a / b for (_, a), (_, b) in zip(found[ours], found[peer], strict=True)]),
            }
            for ours in (OURS, PROGRAM)
            for peer in places
            if peer in BARS
        },
    }


def show(name: str, found: dict[str, Any]) -> None:
    """Print one form's numbers, each ratio with its bar."""
    print(f"{name}, load {found['load']['median']:.1f}")
    for peer, numbers in found["peers"].items():
        s, m = numbers["seconds"], numbers["peak_rss_mb"]
        print(f"  {peer:<34} {s['median']:.3f} s ({s['min']:.3f}-{s['max']:.3f})   {m['median']:.0f} MB")
    for pair, ratio in found["ratios"].items():
        time_bar, memory_bar = BARS[pair.partition(" / ")[2]]
        memory = f" (bar {memory_bar:.2f})" if memory_bar else ""
        print(
            f"  {pair:<50} time {ratio['seconds']['median']:.4f} (bar {time_bar:.4f})   "
            f"memory {ratio['peak_rss']['median']:.3f}{memory}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, nargs="?", help="another bundle, of a text classifier, for the first part")
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    forms = bundles([MAIN, MAPPED])
    first = args.bundle.resolve() if args.bundle else forms[MAIN]
    device = device_python()
    result: dict[str, Any] = {
        "what": __doc__,
        "conditions": conditions(first),
        "rounds": args.rounds,
        "bars": {peer: {"seconds": bars[0], "peak_rss": bars[1]} for peer, bars in BARS.items()},
        **measure(device, {peer: checkpoint() if peer == TRANSFORMERS else first for peer in PEERS}, args.rounds),
        "import_edgewise_ms": spread([import_ms(device) for _ in range(args.rounds + 1)][1:]),
    }
    show(MAIN, result)
    result["mapped"] = {
        **{key: value for key, value in conditions(forms[MAPPED]).items() if key == "bundle"},
        **measure(device, {peer: forms[MAPPED] for peer in PEERS if peer != TRANSFORMERS}, args.rounds),
    }
    show(MAPPED, result["mapped"])
    print(f"import edgewise: {result['import_edgewise_ms']['median']:.1f} ms (bar 20)")
    print(save("startup", result))


if __name__ == "__main__":
    main()
