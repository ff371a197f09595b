"""selection.json: what is written can be read back, and is JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest

from edgewise.errors import StoreError
from edgewise.selector import ReportData, from_json, select, to_json
from edgewise.types import Entry, Metric, RunSettings, Selection
from edgewise.units import parse_budget


def there_and_back(selection: Selection) -> Selection:
    text = json.dumps(to_json(selection), allow_nan=False)
    return from_json(json.loads(text))


def test_every_made_up_selection_comes_back_equal(report_data: ReportData) -> None:
    for selection in report_data.selections:
        assert there_and_back(selection) == selection
    assert report_data.selections[0].confirmed


def test_nan_and_infinity_survive_without_being_json_numbers(make: Callable[..., Entry]) -> None:
    metric = Metric("p95", "s", math.nan, -math.inf, math.inf, 0.95)
    run = RunSettings(provider_options={"value": "NaN"}, max_length=32)
    selection = select(
        [make("odd", run=run, p95=metric), make("good", p95=0.001)], [parse_budget("p95 <= 1 s")], ["p95"]
    )
    back = there_and_back(selection)
    found = back.verdicts[1].entry
    assert math.isnan(found.metrics["p95"].value or 0)
    assert (found.metrics["p95"].low, found.metrics["p95"].high) == (-math.inf, math.inf)
    assert found.target is not None
    assert dict(found.target.run.provider_options) == {"value": "NaN"}
    assert back.chosen == selection.chosen


def test_numbers_of_numpy_become_plain_ones(make: Callable[..., Entry]) -> None:
    import numpy as np

    selection = select([make(p95=Metric("p95", "s", np.float32(0.5), n=np.int64(3)))], [], ["p95"])  # type: ignore[arg-type]
    metric = to_json(selection)["verdicts"][0]["entry"]["metrics"]["p95"]
    assert type(metric["value"]) is float
    assert type(metric["n"]) is int


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": "2.0"}, "format '2.0'"),
        ({"format": None}, "format None"),
        ({"verdicts": [{}]}, "not a selection"),
        ({"chosen": "someone else"}, "not among the verdicts"),
    ],
)
def test_what_is_no_selection_is_refused(report_data: ReportData, change: dict[str, Any], said: str) -> None:
    with pytest.raises(StoreError, match=said):
        from_json({**to_json(report_data.selections[0]), **change})
    with pytest.raises(StoreError, match="found list"):
        from_json([])  # type: ignore[arg-type]


def test_keys_of_a_newer_minor_format_are_ignored(report_data: ReportData) -> None:
    data = to_json(report_data.selections[1])
    data["format"] = "1.7"
    data["new"] = 1
    data["verdicts"][0]["new"] = {"a": 1}
    data["verdicts"][0]["entry"]["target"]["run"]["new"] = 2
    assert from_json(data) == report_data.selections[1]
