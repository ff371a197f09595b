"""The model card: front matter that parses, code that runs, numbers that are those of the selection."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgewise.bundle import Manifest, read_bundle
from edgewise.selector import ReportData, model_card, select
from edgewise.types import Entry, RunSettings
from edgewise.units import parse_budget


@pytest.fixture(scope="module")
def manifest(int8_bundle: Path) -> Manifest:
    """Of a real bundle."""
    return read_bundle(int8_bundle, verify="stamp").manifest


def front_matter(card: str) -> dict[str, Any]:
    from ruamel.yaml import YAML

    _, block, _ = card.split("---\n", 2)
    found: dict[str, Any] = YAML(typ="safe").load(block)
    return found


def test_the_front_matter_is_what_the_hub_reads(manifest: Manifest, report_data: ReportData) -> None:
    card = model_card(manifest, report_data.selections[0])
    found = front_matter(card)
    assert found["library_name"] == "onnx"
    assert found["pipeline_tag"] == "text-classification"
    assert {"edgewise", "onnx", "int8-dynamic"} <= set(found["tags"])
    assert "license" not in found, "left out unless known"
    known = front_matter(model_card(manifest, report_data.selections[0], license="apache-2.0", language="en"))
    assert (known["license"], known["language"]) == ("apache-2.0", "en")


def test_the_hubs_own_reader_takes_it(manifest: Manifest, report_data: ReportData) -> None:
    hub = pytest.importorskip("huggingface_hub", reason="comes with the build extra")
    card = hub.ModelCard(model_card(manifest, report_data.selections[0], license="apache-2.0"))
    assert card.data.pipeline_tag == "text-classification"
    assert card.data.library_name == "onnx"


def test_its_python_runs_in_the_bundle(
    int8_bundle: Path, manifest: Manifest, report_data: ReportData, capsys: pytest.CaptureFixture[str]
) -> None:
    card = model_card(manifest, report_data.selections[0])
    blocks = re.findall(r"```python\n(.*?)```", card, re.S)
    assert any("edgewise.load" in b for b in blocks)
    here = Path.cwd()
    os.chdir(int8_bundle)
    try:
        for block in blocks:
            if "edgewise.load" in block:
                exec(compile(block, "card", "exec"), {})
    finally:
        os.chdir(here)
    assert "label" in capsys.readouterr().out


def test_it_says_what_was_confirmed_and_where(manifest: Manifest, report_data: ReportData) -> None:
    card = model_card(
        manifest, report_data.selections[0], machine=report_data.machines["here"], data="Made-up reviews, 3,000 rows."
    )
    assert "Confirmed at try 2, after 1 did not pass" in card
    assert "| Accuracy | 83.12% | 81.58–84.66% (each end at 95%) | 1,400 | confirmed |" in card
    assert "| p50 | 610 µs" in card
    assert re.search(r"\| p50 \|.*\| at choice \|", card)
    assert "Budgets, on fresh rows and in fresh processes" in card
    assert "| cpu · model | Made-up 9000 |" in card
    assert "Made-up reviews, 3,000 rows." in card
    assert manifest.content_digest in card
    assert "2 candidates were confirmed in turn" in card
    assert "the numbers hold for batches of 1." in card
    assert "Of its slices it is worst with 79.15% (76.15–82.15%) on 500 rows: Wilson, 2 slices together." in card


def test_what_was_not_confirmed_says_so(manifest: Manifest, make: Callable[..., Entry]) -> None:
    selection = select([make("a", p95=(0.001, 0.0001))], [parse_budget("p95 <= 2 ms")], ["p95"])
    card = model_card(manifest, selection)
    assert "Not confirmed yet" in card
    assert "Budgets, on the rows that served the choice" in card
    assert "or of groups within the data" in card, "no slices were measured"


def test_peers_are_named_as_tested(manifest: Manifest, report_data: ReportData) -> None:
    good = {"optimum": {"tested": True, "ok": True}, "transformersjs": {"tested": False, "why": "needs Node"}}
    card = model_card(replace(manifest, loads_in=good), report_data.selections[0])
    assert "ORTModelForSequenceClassification.from_pretrained" in card
    assert "optimum: yes; transformersjs: not tested (needs Node)" in card
    bad = {"optimum": {"tested": True, "ok": False, "why": "ValueError: <no>"}}
    card = model_card(replace(manifest, loads_in=bad), report_data.selections[0])
    assert "ORTModelForSequenceClassification" not in card
    assert "optimum: no (ValueError: \\<no\\>)" in card


def test_names_cannot_break_the_front_matter_or_the_text(manifest: Manifest, report_data: ReportData) -> None:
    evil = 'x\n---\nlicense: mit\n"<script>|'
    changed = replace(
        manifest,
        family=evil,
        labels=(evil, "ok"),
        source={"candidate": evil, "checkpoint": evil},
        run=RunSettings(max_length=8),
    )
    card = model_card(changed, report_data.selections[0])
    assert "license" not in front_matter(card)
    assert evil in front_matter(card)["tags"]
    body = card.split("---\n", 2)[2]
    assert not re.search(r"(?<!\\)<script>", body)
