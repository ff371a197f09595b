"""What a measurement store holds, in formats of others: JSON whole, CSV and Parquet with one line for each metric."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edgewise.errors import need_extra
from edgewise.files import write_bytes
from edgewise.profiler.store import Store
from edgewise.types import Measurement, Metric, to_dict

COLUMNS: dict[str, type] = {
    "measurement": int, "created": str, "candidate": str, "recipe": str, "content_digest": str, "device": str,
    "provider": str, "threads": int, "max_length": int, "batch_size": int, "scenario": str, "stage": str,
    "status": str, "reason": str, "inputs_digest": str, "fingerprint_digest": str, "cpu": str, "kernel": str,
    "onnxruntime": str, "metric": str, "unit": str, "value": float, "low": float, "high": float, "level": float,
    "method": str, "n": int, "kind": str, "why": str,
}  # fmt: skip
"""Of the tables. 'created' is UTC, ISO 8601; units are canonical (s, B, J, 1, points, 1/s, number)."""


def as_json(store: Store, *, samples: bool = False) -> str:
    """Every measurement with its conditions and metrics; with `samples` the nanoseconds of each call, by process."""
    created = store.created()
    found = []
    for m in store.measurements():
        assert m.id is not None
        item = {"id": m.id, "created": created[m.id], **to_dict(m)}
        if samples:
            item["samples"] = [asdict(s) for s in store.samples(m.id)]
        found.append(item)
    return json.dumps(_finite(found), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    """With None for what JSON has no number for: a bound may be infinite. The tables say it alike."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {k: _finite(v) for k, v in value.items()}
    return [_finite(v) for v in value] if isinstance(value, list | tuple) else value


def as_csv(store: Store) -> str:
    """RFC 4180, with a line of names; what is not known is empty."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(COLUMNS))
    writer.writeheader()
    writer.writerows(lines(store))
    return out.getvalue()


def write_parquet(store: Store, path: Path) -> None:
    """The table of `COLUMNS` as a Parquet file, whole or not at all. Raises MissingExtraError without pyarrow."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise need_extra("profile", error) from error
    kinds = {int: pa.int64(), float: pa.float64(), str: pa.string()}
    schema = pa.schema([(name, kinds[kind]) for name, kind in COLUMNS.items()])
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(lines(store), schema=schema), out)
    write_bytes(path, out.getvalue())


def lines(store: Store) -> list[dict[str, Any]]:
    """One for each metric of each measurement; one without a metric for a measurement that has none."""
    created = store.created()
    return [_line(m, x, created[m.id or 0]) for m in store.measurements() for x in (m.metrics or (None,))]


def _line(m: Measurement, metric: Metric | None, created: str) -> dict[str, Any]:
    fingerprint = m.conditions.get("fingerprint") or {}
    run = m.target.run if m.target else None
    own = ("candidate", "recipe", "content_digest", "scenario", "stage", "status", "reason", "inputs_digest")
    line: dict[str, Any] = {
        "measurement": m.id,
        "created": created,
        **{name: getattr(m, name) for name in own},
        "device": m.target.device if m.target else None,
        **{name: getattr(run, name, None) for name in ("provider", "threads", "max_length", "batch_size")},
        "fingerprint_digest": m.conditions.get("fingerprint_digest"),
        "cpu": fingerprint.get("cpu"),
        "kernel": fingerprint.get("kernel"),
        "onnxruntime": (fingerprint.get("versions") or {}).get("onnxruntime"),
    }
    if metric is not None:
        line |= {("metric" if k == "name" else k): v for k, v in asdict(metric).items()}
    return {name: _finite(line.get(name)) for name in COLUMNS}
