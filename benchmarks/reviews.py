"""The movie reviews as every benchmark reads them."""

from __future__ import annotations

from typing import Any

from edgewise.data_spec import DataSpec, LabelRule


def movie_reviews(**options: Any) -> DataSpec:
    """Label: mean score above 0; sentences of the mean score 0 are left out. options: split and rows of a DataSpec."""
    return DataSpec(
        path="asset:movie-reviews",
        columns=("id", "score", "text"),
        quoting=False,
        label=LabelRule(column="score", above=0, drop=(0,)),
        **options,
    )
