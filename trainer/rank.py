"""Which pretrained model to start from: scores from one forward pass each, then successive halving on trainings."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from edgewise.data import Row
from edgewise.errors import DataError, EdgewiseError, PlanError
from edgewise.files import check_writable
from edgewise.plan import TuneSpec
from edgewise.progress import Progress
from edgewise.showing import show
from edgewise.trainer.features import Features, pooled_features
from edgewise.trainer.halving import Entrant, Runner, Trial, halve
from edgewise.trainer.scores import FOLDS, h_score, linear_probe, logme
from edgewise.types import Task

SCORES = ("logme", "h_score", "probe")
RANKED_TASKS: tuple[Task, ...] = ("text-classification", "image-classification")
SAMPLE = 500
"""Rows that the scores are computed on, unless said otherwise."""


@dataclass(frozen=True)
class RankCandidate:
    """A pretrained model, and how it would be trained."""

    name: str
    source: str | Path
    """A folder or a hub id."""
    spec: TuneSpec = field(default_factory=TuneSpec)
    source_digest: str = ""


@dataclass(frozen=True)
class CandidateScores:
    """What is known of a candidate before any training."""

    name: str
    parameters: int | None = None
    logme: float | None = None
    """Log evidence a row; higher is better, as the two below."""
    h_score: float | None = None
    probe: float | None = None
    """Accuracy of a linear probe, cross-validated."""
    perplexity: float | None = None
    """Of the task's texts, for causal language models; between two tokenizers compare bits_per_character."""
    bits_per_character: float | None = None
    latency_s: float | None = None
    """Expected time of one call on the target."""
    seconds: float = 0.0
    """Loading, the pass and the scores; without the latency."""
    load_s: float = 0.0
    """Loading alone."""
    forward_s: float = 0.0
    """The pass alone."""
    rows: int = 0
    failed: str = ""
    """Why there are no scores."""


@dataclass(frozen=True)
class RankResult:
    """The candidates from best to worst, and how that came about."""

    order: tuple[str, ...]
    """Best first: trained further is better, then by the last round's accuracy, then by the score."""
    scores: tuple[CandidateScores, ...]
    """In the order given."""
    trials: tuple[Trial, ...]
    """Short trainings, in the order made."""
    dropped: tuple[str, ...]
    """What was dropped when, and why, in words."""
    by: str
    """The score that chose who was trained."""
    seconds: float
    minutes: float | None

    def of(self, name: str) -> CandidateScores:
        return next(s for s in self.scores if s.name == name)


def rank(
    candidates: Sequence[RankCandidate],
    rows: Sequence[Row],
    labels: Sequence[str],
    *,
    task: Task = "text-classification",
    val: Sequence[Row] = (),
    minutes: float | None = 10.0,
    out: str | Path | None = None,
    by: str = "logme",
    sample: int = SAMPLE,
    keep: int | None = None,
    latency: Callable[[RankCandidate], float] | None = None,
    max_latency_s: float | None = None,
    seed: int = 0,
    say: Callable[[str], None] | None = None,
    progress: Progress | None = None,
) -> RankResult:
    """Rank pretrained candidates for text classification with one label a text, or image classification.

    rows: to train on; val: to judge the short trainings by. minutes: for everything, the scores included; None: scores
    alone, no training. out: folder for the short trainings (needed with minutes); finished ones are found again.
    by: the score that orders the candidates, 'probe', 'logme' or 'h_score'. keep: at most so many go into the
    trainings (by default as many as the time allows). latency: seconds of one call of a candidate on the target;
    max_latency_s: slower ones are dropped at once. A candidate that fails is dropped with its reason.

    Raises DataError or PlanError for rows or options that cannot be.
    """
    start = perf_counter()
    _check(candidates, rows, labels, val, minutes, out, by, task, keep)
    tell = say or (lambda _: None)
    drawn = draw_sample(rows, labels, sample, seed)
    found: list[CandidateScores] = []
    for candidate in candidates:
        scored = score_candidate(candidate, drawn, labels, task=task, seed=seed, progress=progress)
        if latency is not None and not scored.failed:
            scored = _with_latency(scored, candidate, latency)
        found.append(scored)
        tell(scored_words(scored))
    dropped, able = _drop_early(found, max_latency_s)
    order = sorted(able, key=lambda s: -_value(s, by))
    trials: tuple[Trial, ...] = ()
    for words in dropped:
        tell(words)
    if minutes is not None and order:
        by_name = {c.name: c for c in candidates}
        left = minutes * 60 - (perf_counter() - start)
        mixed = [rows[int(i)] for i in np.random.default_rng(seed).permutation(len(rows))]
        runner = Runner(mixed, val, labels, Path(str(out)), seed, task, progress)
        entrants = [_entrant(by_name[s.name], s, by, len(val)) for s in order]
        trials, more = halve(entrants, runner, left, score=by, keep=keep, say=tell)
        dropped += more
    names = _final_order([s.name for s in order], trials)
    names += tuple(s.name for s in found if s.name not in names)
    return RankResult(names, tuple(found), trials, tuple(dropped), by, perf_counter() - start, minutes)


def score_candidate(
    candidate: RankCandidate,
    rows: Sequence[Row],
    labels: Sequence[str],
    *,
    task: Task = "text-classification",
    seed: int = 0,
    progress: Progress | None = None,
) -> CandidateScores:
    """All scores of one candidate; where it fails, with the reason and without scores."""
    start = perf_counter()
    try:
        found = pooled_features(
            candidate.source,
            rows,
            task=task,
            max_length=candidate.spec.max_length,
            keep_layers=candidate.spec.keep_layers,
            progress=progress,
        )
        by_logme, by_h_score, by_probe = _scores(found, rows, labels, seed)
    except EdgewiseError as error:
        return CandidateScores(candidate.name, seconds=perf_counter() - start, rows=len(rows), failed=str(error))
    return CandidateScores(
        candidate.name,
        parameters=found.parameters,
        perplexity=found.perplexity,
        bits_per_character=found.bits_per_character,
        seconds=perf_counter() - start,
        forward_s=found.forward_s,
        load_s=found.load_s,
        rows=len(rows),
        logme=by_logme,
        h_score=by_h_score,
        probe=by_probe,
    )


def _scores(found: Features, rows: Sequence[Row], labels: Sequence[str], seed: int) -> tuple[float, float, float]:
    """LogME, H-score and probe."""
    index = {label: i for i, label in enumerate(labels)}
    targets = np.array([index[str(r.label)] for r in rows])
    classes = len(labels)
    return (
        logme(found.values, targets, classes=classes),
        h_score(found.values[:, -found.width :], targets, classes=classes),
        linear_probe(found.values, targets, classes=classes, seed=seed),
    )


def draw_sample(rows: Sequence[Row], labels: Sequence[str], size: int, seed: int) -> tuple[Row, ...]:
    """`size` rows with each label's share kept, and two of each where there are two; all rows where there are fewer."""
    if len(rows) <= size:
        return tuple(rows)
    order = np.random.default_rng(seed).permutation(len(rows))
    chosen: list[int] = []
    for label in labels:
        mine = [int(i) for i in order if rows[i].label == label]
        chosen += mine[: max(2, round(size * len(mine) / len(rows)))]
    return tuple(rows[i] for i in sorted(chosen))


def _with_latency(
    scored: CandidateScores, candidate: RankCandidate, latency: Callable[[RankCandidate], float]
) -> CandidateScores:
    try:
        return replace(scored, latency_s=latency(candidate))
    except EdgewiseError as error:
        return replace(scored, failed=f"its latency cannot be told: {error}")


def _drop_early(
    found: Sequence[CandidateScores], max_latency_s: float | None
) -> tuple[list[str], list[CandidateScores]]:
    """What goes before any training: what failed, and what is too slow."""
    dropped, able = [], []
    for scored in found:
        if scored.failed:
            dropped.append(f"dropped {scored.name} before training: {scored.failed}")
        elif max_latency_s is not None and scored.latency_s is not None and scored.latency_s > max_latency_s:
            dropped.append(
                f"dropped {scored.name} before training: {show(scored.latency_s, 's')} a call, "
                f"over the limit of {show(max_latency_s, 's')}"
            )
        else:
            able.append(scored)
    return dropped, able


def _entrant(candidate: RankCandidate, scored: CandidateScores, by: str, val_rows: int) -> Entrant:
    """With the times to expect: the pass over the sample tells what training and judging will take."""
    row_s = scored.forward_s / max(1, scored.rows)
    return Entrant(candidate, _value(scored, by), 3 * row_s, 2 * scored.load_s + val_rows * row_s)


def _value(scored: CandidateScores, by: str) -> float:
    value: float | None = getattr(scored, by)
    return float("-inf") if value is None else value


def _final_order(by_score: Sequence[str], trials: Sequence[Trial]) -> tuple[str, ...]:
    """Who came further is better; in one round the more accurate; untrained ones by their score, after all trained."""
    last = {t.name: t for t in trials if t.accuracy is not None}

    def place(name: str) -> tuple[float, float, int]:
        trial = last.get(name)
        done = (0.0, 0.0) if trial is None else (-float(trial.round), -float(trial.accuracy or 0.0))
        return (*done, by_score.index(name))

    return tuple(sorted(by_score, key=place))


def scored_words(scored: CandidateScores) -> str:
    """One line for people."""
    if scored.failed:
        return f"{scored.name}: {scored.failed}"
    parts = [f"probe {scored.probe:.1%}", f"LogME {scored.logme:.4f}", f"H-score {scored.h_score:.4f}"]
    if scored.perplexity is not None:
        parts.append(f"perplexity {scored.perplexity:.1f}")
    if scored.latency_s is not None:
        parts.append(f"{show(scored.latency_s, 's')} a call")
    return (
        f"{scored.name}: {', '.join(parts)}; {(scored.parameters or 0) / 1e6:.1f}M parameters, {scored.seconds:.1f} s"
    )


def _check(
    candidates: Sequence[RankCandidate],
    rows: Sequence[Row],
    labels: Sequence[str],
    val: Sequence[Row],
    minutes: float | None,
    out: Any,
    by: str,
    task: Task,
    keep: int | None = None,
) -> None:
    if keep is not None and keep < 1:
        raise PlanError(f"keep is {keep}; expected 1 or more candidates to train, or none for what the time allows")
    if task not in RANKED_TASKS:
        raise PlanError(f"task is {task!r}; candidates are ranked for {' and '.join(RANKED_TASKS)}")
    names = [c.name for c in candidates]
    if not names or len(set(names)) < len(names):
        raise PlanError(f"candidates {names}; expected at least one, with different names")
    if by not in SCORES:
        raise PlanError(f"by is {by!r}; expected one of {', '.join(SCORES)}")
    for what, given in (("rows", rows), ("val", val)):
        unknown = {str(r.label) for r in given} - set(labels)
        if unknown:
            raise DataError(f"{what} have labels {sorted(unknown)} that are not among {list(labels)}")
    if len({r.label for r in rows}) < 2 or len(rows) < 2 * FOLDS:
        raise DataError(
            f"{len(rows)} rows with {len({r.label for r in rows})} labels; ranking needs {2 * FOLDS} and two"
        )
    if minutes is not None:
        if not 0 < minutes < math.inf:
            raise PlanError(f"minutes is {minutes}; expected more than 0, or none for the scores alone")
        if out is None or not val:
            raise PlanError("short trainings need an out folder and rows of val to judge them by")
        check_writable(Path(str(out)))
