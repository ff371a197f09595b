"""One test of MLPerf LoadGen. It runs where LoadGen is, and imports no edgewise."""

from __future__ import annotations

import json
from array import array
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any


def run(settings: Any, texts: Sequence[str], answer: Any) -> dict[str, Any]:
    """What LoadGen's log tells of a test, by its keys. answer: takes the samples of a query, whose `index` is that of
    their text."""
    import mlperf_loadgen as lg

    def issue(samples: Any) -> None:
        answer(samples)
        done = array("B", [0])
        at, size = done.buffer_info()
        lg.QuerySamplesComplete([lg.QuerySampleResponse(s.id, at, size) for s in samples])

    sut = lg.ConstructSUT(issue, lambda: None)
    qsl = lg.ConstructQSL(len(texts), len(texts), lambda _: None, lambda _: None)
    with TemporaryDirectory() as folder:
        output = lg.LogOutputSettings()
        output.outdir, output.copy_summary_to_stdout = folder, False
        logging = lg.LogSettings()
        logging.log_output, logging.enable_trace = output, False
        lg.StartTestWithLogSettings(sut, qsl, settings, logging)
        lines = (Path(folder) / "mlperf_log_detail.txt").read_text(encoding="utf-8").splitlines()
    lg.DestroyQSL(qsl)
    lg.DestroySUT(sut)
    told = [json.loads(line.partition(":::MLLOG ")[2]) for line in lines if ":::MLLOG " in line]
    return {t["key"]: t["value"] for t in told}
