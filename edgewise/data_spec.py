"""The `data` part of a plan: where the rows come from, which columns hold what, and how they are split."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from edgewise.assets import find_asset
from edgewise.columns import Columns
from edgewise.errors import DataError, nearest, need_extra
from edgewise.types import ProblemType, Task

try:
    from msgspec import Meta, Struct, field
except ImportError as error:
    raise need_extra("profile", error) from error

if TYPE_CHECKING:
    from edgewise.places import Places
    from edgewise.plan import Plan

Whole = Annotated[int, Meta(ge=1)]
PART_NAMES = ("train", "val", "confirm")


class LabelRule(Struct, frozen=True, forbid_unknown_fields=True):
    """A two-class label made from a number: is it above a threshold?"""

    column: str
    above: float
    drop: tuple[float, ...] = ()
    """Rows with these numbers are left out."""
    names: tuple[str, str] = ("negative", "positive")


class DataSpec(Struct, frozen=True, forbid_unknown_fields=True):
    """Where the rows come from, which columns hold what, and how they are split."""

    path: str | None = None
    """A CSV, TSV, JSON Lines, Parquet, CoNLL or plain text file, a folder of images (one folder a label), asset:NAME or
    asset:NAME/FILE."""
    dataset: str | None = None
    """A dataset id as `datasets.load_dataset` takes it."""
    config: str | None = None
    """The dataset's configuration."""
    text: str = "text"
    text_pair: str | None = None
    label: str | LabelRule | tuple[str, ...] = "label"
    """A column; for multi-label also several columns of 0 and 1."""
    problem_type: ProblemType = "single_label_classification"
    """Of text classification: one label a text, several, or a number."""
    tokens: str = "tokens"
    """Token classification: column with the list of words."""
    tags: str = "tags"
    """Token classification: column with one tag a word."""
    target: str = "target"
    """Text to text: column with the text to write."""
    image: str = "image"
    """Image classification: column with a path (relative to the file) or with the encoded bytes."""
    slices: tuple[str, ...] = ()
    """Columns by whose values metrics are also given."""
    format: Literal["csv", "tsv", "jsonl", "parquet", "conll", "text", "folder"] | None = None
    """By the file's ending, unless given."""
    columns: tuple[str, ...] | None = None
    """Names of the columns of a CSV or TSV file that has no header."""
    quoting: bool = True
    """False: a quotation mark is a character like any other."""
    split: dict[str, float | str] = field(default_factory=lambda: {"train": 0.7, "val": 0.15, "confirm": 0.15})
    """Shares by a hash of the text, or names of the dataset's own splits."""
    rows: dict[str, Whole] = field(default_factory=dict)
    """At most so many rows of a part."""
    unseen: Literal["error", "leave_out"] = "error"
    """Rows of val and confirm with a label or tag that train never shows: refused, or left out and counted."""


def check_data(plan: Plan, at: Places) -> None:
    """Raise PlanError, with the line, for a source that is not there or keys that do not fit each other or the task."""
    data = plan.data
    _check_source(plan, at)
    _check_kind(data, plan.task, at)
    rule = data.label if isinstance(data.label, LabelRule) else None
    if rule and rule.names[0] == rule.names[1]:
        raise at.error(f"names are {list(rule.names)}; the two must differ", "data", "label", "names")
    at.unique(data.slices, "column", "data", "slices")
    if data.columns is not None:
        at.unique(data.columns, "column", "data", "columns")
        for keys, column in Columns.of(data, plan.task).named().items():
            if column not in data.columns:
                raise at.error(f"column {column!r} is not in columns: {nearest(column, data.columns)}", "data", *keys)
    _check_split(data, at)


def _check_source(plan: Plan, at: Places) -> None:
    data = plan.data
    if (data.path is None) == (data.dataset is None):
        raise at.error("expected either path (a file) or dataset (a dataset id)", "data")
    if data.dataset is not None and data.format is not None:
        raise at.error("format is that of a file; a dataset id needs none", "data", "format")
    if data.format == "folder" and plan.task != "image-classification":
        raise at.error(f"a folder of images is for task image-classification, not {plan.task}", "data", "format")
    if data.path is None or asset_known(data.path, at, "data", "path"):
        return
    found = plan.resolve(data.path)
    if found.is_dir() and plan.task != "image-classification":
        raise at.error(f"path is {data.path!r}, a folder; {plan.task} takes a file", "data", "path")
    if not found.exists():
        raise at.error(f"path is {data.path!r}; no such file (looked in {file_folder(plan)} too)", "data", "path")


def _check_kind(data: DataSpec, task: Task, at: Places) -> None:
    """Keys that the task would pass over in silence, and labels that do not fit the problem type."""
    if task != "text-classification":
        if data.problem_type != "single_label_classification":
            raise at.error(f"{data.problem_type} is for task text-classification, not {task}", "data", "problem_type")
        if data.text_pair is not None:
            raise at.error(f"text_pair is for task text-classification, not {task}", "data", "text_pair")
    several = isinstance(data.label, tuple)
    if several and data.problem_type != "multi_label_classification":
        raise at.error(
            "several columns are the labels of problem_type: multi_label_classification; expected one column",
            "data",
            "label",
        )
    if isinstance(data.label, tuple):
        if len(data.label) < 2:
            raise at.error(
                f"label is {list(data.label)}; expected two columns or more, or one by its name", "data", "label"
            )
        at.unique(data.label, "column", "data", "label")
    if isinstance(data.label, LabelRule) and data.problem_type != "single_label_classification":
        raise at.error(f"a rule makes one label of two; {data.problem_type} takes a column as it is", "data", "label")
    if isinstance(data.label, LabelRule) and task == "image-classification":
        raise at.error("a rule makes labels of text-classification; expected a column", "data", "label")


def _check_split(data: DataSpec, at: Places) -> None:
    if set(data.split) != set(PART_NAMES):
        raise at.error(f"split has {sorted(data.split)}; expected train, val and confirm", "data", "split")
    shares = [s for s in data.split.values() if not isinstance(s, str)]
    if len(shares) not in (0, 3) or (shares and (abs(sum(shares) - 1) > 1e-6 or min(shares) <= 0)):
        raise at.error(
            f"split is {dict(data.split)}; expected three shares above 0 that add up to 1, or three split names",
            "data",
            "split",
        )
    if not shares and data.dataset is None:
        raise at.error("split names the splits of a dataset id; a file is split by shares", "data", "split")
    if len(set(data.split.values())) < 3 and not shares:
        raise at.error(
            f"split is {dict(data.split)}; the three must differ, for example train[:80%] and train[80%:]",
            "data",
            "split",
        )
    for part in data.rows:
        if part not in PART_NAMES:
            raise at.error(f"unknown part {part!r}: {nearest(part, PART_NAMES)}", "data", "rows", part)


def asset_known(source: str, at: Places, *keys: str | int) -> bool:
    """False for what is no asset:NAME; raises where the name is unknown."""
    if not source.startswith("asset:"):
        return False
    try:
        find_asset(source.removeprefix("asset:"))
    except DataError as error:
        raise at.error(str(error), *keys) from error
    return True


def file_folder(plan: Plan) -> Path:
    """The folder that the plan's relative paths start from."""
    return plan.path.parent
