"""Cold start to the first answer, and the memory it takes: `edgewise run` beside Optimum's pipeline on one bundle.

A fresh process each, interleaved, files in the page cache; time is from starting the process to the answer's line on
its standard output, memory is VmHWM of the process just after that. A bare onnxruntime + tokenizers script, written by
hand for this one model, shows what the floor is.

    python benchmarks/startup.py runs/movie-reviews/chosen
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from conditions import conditions, save, spread

TEXT = "a gorgeous, witty and deeply felt film"

_MEMORY = """
import sys
sys.stdout.flush()
print(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1], file=sys.stderr)
"""

PEERS: dict[str, str] = {
    "edgewise run": """
import sys
from edgewise.cli import main
main(["run", sys.argv[1], sys.argv[2]])
""",
    "Optimum pipeline": """
import sys
from optimum.onnxruntime import ORTModelForSequenceClassification
from transformers import AutoTokenizer, pipeline
model = ORTModelForSequenceClassification.from_pretrained(sys.argv[1])
answer = pipeline("text-classification", model=model, tokenizer=AutoTokenizer.from_pretrained(sys.argv[1]))
print(answer(sys.argv[2]))
""",
    "onnxruntime + tokenizers by hand": """
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
}


def one(code: str, bundle: Path) -> tuple[float, float]:
    """(seconds to the answer, peak RSS in MB) of one fresh process."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-c", code + _MEMORY, str(bundle), TEXT],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    answer = process.stdout.readline()
    seconds = time.perf_counter() - start
    errors = process.stderr.read()
    if process.wait() != 0 or not answer:
        raise SystemExit(f"a peer failed:\n{errors}")
    return seconds, int(errors.split()[-1]) * 1024 / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in PEERS}
    for code in PEERS.values():
        one(code, args.bundle)  # fills the page cache and the .pyc files
    for round_number in range(args.rounds):
        for name, code in PEERS.items():
            found[name].append(one(code, args.bundle))
        print(f"round {round_number + 1} of {args.rounds}", file=sys.stderr)
    result: dict[str, Any] = {
        "what": __doc__,
        "conditions": conditions(args.bundle),
        "rounds": args.rounds,
        "peers": {
            name: {"seconds": spread([t for t, _ in runs]), "peak_rss_mb": spread([m for _, m in runs])}
            for name, runs in found.items()
        },
        "ratios": {
            f"edgewise run / {peer}": {
                "seconds": spread([a / b for (a, _), (b, _) in zip(found["edgewise run"], found[peer], strict=True)]),
                "peak_rss": spread([a / b for (_, a), (_, b) in zip(found["edgewise run"], found[peer], strict=True)]),
            }
            for peer in list(PEERS)[1:]
        },
    }
    for name, numbers in result["peers"].items():
        s, m = numbers["seconds"], numbers["peak_rss_mb"]
        print(f"{name:<34} {s['median']:.3f} s ({s['min']:.3f}-{s['max']:.3f})   {m['median']:.0f} MB")
    for name, ratio in result["ratios"].items():
        print(f"{name:<50} time {ratio['seconds']['median']:.3f}   memory {ratio['peak_rss']['median']:.3f}")
    print(save("startup", result))


if __name__ == "__main__":
    main()
