"""Which lengths come to the same on the rows at hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgewise.bundle import read_bundle
from edgewise.data import Row, Splits
from edgewise.profiler import Subject
from edgewise.profiler.lengths import Lengths
from edgewise.runtime import load
from edgewise.types import RunSettings, Target


def at(*lengths: int | None, threads: int = 1, batch_size: int = 1, device: str = "here") -> list[Target]:
    return [Target(device, RunSettings(threads=threads, max_length=n, batch_size=batch_size)) for n in lengths]


@pytest.fixture(scope="module")
def subject(int8_bundle: Path) -> Subject:
    return Subject("tiny", "int8-dynamic", read_bundle(int8_bundle))


def rows_of(tokens: int) -> list[Row]:
    """The longest of them has so many tokens, two of them special."""
    return [Row("a good film"), Row(" ".join(["good"] * (tokens - 2))), Row("bad")]


@pytest.mark.parametrize(
    ("tokens", "alike"),
    [
        (20, {64: 32, 128: 32, None: 32}),
        (32, {64: 32, 128: 32, None: 32}),
        (33, {128: 64, None: 64}),
        (64, {128: 64, None: 64}),
        (65, {None: 128}),
        (129, {}),
        (5000, {}),
    ],
)
def test_what_cuts_nothing_is_as_the_shortest_that_cuts_nothing(subject: Subject, tokens: int, alike: dict) -> None:
    targets = dict(zip((128, 32, None, 64), at(128, 32, None, 64), strict=True))
    found = Lengths(rows_of(tokens)).alike(subject, targets.values())
    assert found == {targets[n]: targets[other] for n, other in alike.items()}


def test_only_the_length_may_differ(subject: Subject) -> None:
    mixed = [*at(64, 128), *at(128, threads=2), *at(64, batch_size=2), *at(128, device="pi")]
    assert Lengths(rows_of(20)).alike(subject, mixed) == {mixed[1]: mixed[0]}
    batches = at(64, 128, batch_size=4)
    assert Lengths(rows_of(20)).alike(subject, batches) == {batches[1]: batches[0]}


def test_what_the_model_allows_is_a_length_like_others(subject: Subject) -> None:
    allowed = subject.manifest.preprocessing["max_length"]
    whole, said = at(None, allowed)
    assert Lengths(rows_of(5000)).alike(subject, [whole, said]) == {said: whole}


def test_pairs_count_both_texts(subject: Subject) -> None:
    targets = at(32, 64)
    half = " ".join(["good"] * 20)
    assert Lengths([Row(half)]).alike(subject, targets) == {targets[1]: targets[0]}
    assert Lengths([Row(half, half)]).alike(subject, targets) == {}


@pytest.mark.parametrize("task", ["text-generation", "fill-mask", "image-classification"])
def test_what_reads_its_rows_otherwise_has_none_alike(subject: Subject, task: str) -> None:
    manifest = replace(subject.manifest, task=task)
    other = replace(subject, bundle=replace(subject.bundle, manifest=manifest))
    assert Lengths(rows_of(20)).alike(other, at(64, 128)) == {}


def test_a_row_that_cannot_be_read_is_left_to_measuring(subject: Subject) -> None:
    assert Lengths([Row("good"), Row("\ud800")]).alike(subject, at(64, 128)) == {}


@pytest.mark.filterwarnings("ignore::edgewise.runtime.TruncationWarning")
def test_alike_means_the_same_answers(subject: Subject, int8_bundle: Path, review_splits: Splits) -> None:
    """By the runtime itself: to the last bit where they are alike, and others where they are not."""
    rows, targets = review_splits.val[:60], at(16, 64, 128)
    assert Lengths(rows).alike(subject, targets) == {targets[2]: targets[1]}
    texts = [r.text for r in rows]
    logits = {}
    for target in targets:
        with load(int8_bundle, max_length=target.run.max_length) as model:
            logits[target.run.max_length] = np.array([model.predict([t])[0].logits for t in texts])
    assert np.array_equal(logits[64], logits[128])
    assert not np.array_equal(logits[16], logits[64])
