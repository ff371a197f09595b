"""Transformers.js in Node: where it is on this machine, and what the script beside this file answers when asked."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

_WORDS = 300
"""Characters of a reason."""
_SCRIPT = Path(__file__).with_name("transformersjs.mjs")
_PACKAGE = Path("node_modules", "@huggingface", "transformers", "package.json")


class Tensor(TypedDict):
    """A float array as the script writes it; NaN and infinity come as null."""

    shape: list[int]
    values: list[float | None]


class GroupAnswer(TypedDict, total=False):
    """What Transformers.js says of texts that went through it together, padded to the longest."""

    input_ids: list[list[int]]
    output: Tensor
    """Logits or hidden states; of generation [batch, vocabulary], for the first token written."""
    tokens: list[list[int]]
    pooled: Tensor
    """Of feature-extraction."""


def find_transformersjs() -> Path | None:
    """The folder whose node_modules holds Transformers.js: $EDGEWISE_TRANSFORMERSJS, else where
    tools/transformersjs.sh puts it, $EDGEWISE_CACHE/transformersjs or ~/.cache/edgewise/transformersjs.

    None where the package is not there.
    """
    given = os.environ.get("EDGEWISE_TRANSFORMERSJS")
    cache = Path(os.environ.get("EDGEWISE_CACHE") or Path.home() / ".cache" / "edgewise")
    home = (Path(given) if given else cache / "transformersjs").expanduser().resolve()
    return home if (home / _PACKAGE).is_file() else None


def run_node(request: Mapping[str, Any], time_limit_s: float) -> dict[str, Any] | str:
    """The script's answer, with 'error' where the bundle does not load or run; in words why there is none."""
    with tempfile.TemporaryDirectory(prefix="edgewise-transformersjs-") as work:
        asked, answered = Path(work, "request.json"), Path(work, "answer.json")
        asked.write_text(json.dumps(request), encoding="utf-8")
        command = ["node", str(_SCRIPT), str(asked), str(answered)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=time_limit_s, check=False)
        except subprocess.TimeoutExpired:
            return f"Transformers.js gave no answer in {time_limit_s:g} s"
        if not answered.is_file():
            return {"error": f"Node ended with {done.returncode}: {_in_one_line(done.stderr)[-_WORDS:]}"}
        answer: dict[str, Any] = json.loads(answered.read_text(encoding="utf-8"))
    if "broken" in answer:
        return f"@huggingface/transformers does not start: {_in_one_line(answer['broken'])[:_WORDS]}"
    if "error" in answer:
        said, more = _in_one_line(answer["error"]), _in_one_line(done.stderr)
        answer["error"] = said[:_WORDS] if said in more else f"{said} {more}".strip()[:_WORDS]
    return answer


def _in_one_line(text: str) -> str:
    return " ".join(text.split())
