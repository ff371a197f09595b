"""Measurements x budgets -> a choice and its reasons, and the reports that say so.

    select(entries, budgets, objective)      the choice for one device
    select_by_device(...)                    the same for entries of several devices
    check_budgets(entry, budgets)            one entry held against the budgets, for confirmation
    with_confirmed(selection, tries)         the choice with what its confirmation found
    to_json, from_json, joint_json           selection.json
    one_for_all(selections)                  the one bundle for several devices
    ranking_table, near_misses, joint_table  for the terminal, 80 columns
    write_report, write_markdown             for people
    model_card                               README.md of the chosen bundle

Importing this package imports nothing heavy; numpy comes with the first choice, Jinja2 and plotly with the first
report (`pip install 'edgewise[profile]'`).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from edgewise.selector.budgets import binding, check_budgets
from edgewise.selector.contest import PairedComparison
from edgewise.selector.record import from_json, joint_json, to_json

# Not lazily: the module has the name of its function, and its late import would put the module in the function's place.
from edgewise.selector.select import select, select_by_device, with_confirmed
from edgewise.selector.several import Joint, one_for_all
from edgewise.selector.table import joint_table, near_misses, ranking_table

if TYPE_CHECKING:
    from edgewise.selector.card import model_card
    from edgewise.selector.markdown import write_markdown
    from edgewise.selector.report import write_report
    from edgewise.selector.report_data import ChangedAnswer, ReportData, TrainingRow

__all__ = [
    "ChangedAnswer",
    "Joint",
    "PairedComparison",
    "ReportData",
    "TrainingRow",
    "binding",
    "check_budgets",
    "from_json",
    "joint_json",
    "joint_table",
    "model_card",
    "near_misses",
    "one_for_all",
    "ranking_table",
    "select",
    "select_by_device",
    "to_json",
    "with_confirmed",
    "write_markdown",
    "write_report",
]

_LAZY = {
    "ChangedAnswer": "report_data",
    "ReportData": "report_data",
    "TrainingRow": "report_data",
    "model_card": "card",
    "write_markdown": "markdown",
    "write_report": "report",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"edgewise.selector.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'edgewise.selector' has no attribute {name!r}")
