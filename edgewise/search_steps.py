"""The steps of a search: looks, answers and full measurements, and what is known after them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgewise.arrival import arrivals_of
from edgewise.progress import Reporter
from edgewise.types import Entry, Measurement, Metric
from edgewise.units import RELATIVE

if TYPE_CHECKING:
    from edgewise.data import Splits
    from edgewise.plan import Plan, ProfileSpec
    from edgewise.profiler import Store, Subject
    from edgewise.profiler.lengths import Lengths
    from edgewise.profiler.rounds import Interim
    from edgewise.selector.known import Known, Rules
    from edgewise.selector.look import Floats
    from edgewise.selector.race import Step

_MOST_SECONDS = 0.5
"""Timed calls of a look, at most."""


def look_seconds(profile: ProfileSpec) -> float:
    """Timed calls of a look: half of a full process's. Starting it costs as much again, and the bound of a percentile
    is the closer the more calls lie beyond it."""
    return min(_MOST_SECONDS, profile.seconds / 2)


@dataclass
class Steps:
    """Measures single steps of one plan's search, into its store."""

    plan: Plan
    store: Store
    subjects: Sequence[Subject]
    splits: Splits
    work: Path
    say: Reporter
    rules: Rules
    prints: Mapping[str, dict[str, Any] | str] | None = None
    ended: set[str] = field(default_factory=set)
    """Keys of points whose full measurement was ended early; asked for once more, it is made to its end."""

    def start(self, device: str) -> dict[str, Known]:
        from edgewise.profiler.joining import answer_settings
        from edgewise.selector.known import Known

        plan = self.plan
        targets = [t for t in plan.targets if t.device == device]
        trained = {m.candidate: m.metrics for m in self.store.measurements() if m.stage == "train" and m.status == "ok"}
        found = {}
        for subject in self.subjects:
            size = Metric("size", "B", float(subject.size), method="sum of its files", n=1)
            metrics = {m.name: m for m in (size, *trained.get(subject.candidate, ()))}
            named = (subject.candidate, subject.recipe, subject.bundle.digest)
            keys = {t: Entry(*named, t).key for t in targets}
            alike = {t: keys[other] for t, other in self._lengths.alike(subject, targets).items()}
            for target, key in keys.items():
                entry = Entry(*named, target, metrics, reference=plan.reference)
                answers = f"{subject.bundle.digest} {answer_settings(target)}"
                found[key] = Known(entry, answers, same_as=alike.get(target))
        return found

    @cached_property
    def _lengths(self) -> Lengths:
        from edgewise.profiler.lengths import Lengths

        return Lengths((*self.splits.val, *self.splits.confirm))

    def _subject(self, known: Known) -> Subject:
        named = (known.entry.candidate, known.entry.recipe)
        return next(s for s in self.subjects if (s.candidate, s.recipe) == named)

    # ---- measuring

    def _prints(self) -> Mapping[str, dict[str, Any] | str]:
        """The fingerprints of the devices, asked once: each worker says its own, and one that changed is found."""
        from edgewise.profiler.plumbing import fingerprints, pick_devices
        from edgewise.profiler.transport import Children

        if self.prints is None:
            self.prints = fingerprints(pick_devices(self.plan.devices, self.plan.targets), Children(), self.say.log)
        return self.prints

    def look(self, points: Mapping[str, Known], step: Step) -> dict[str, Known]:
        from edgewise.profiler.rounds import Rounds

        news: dict[str, Known] = {}
        groups: dict[tuple[int, int], list[str]] = {}  # (processes so far, processes now) -> keys
        for key in step.keys:
            so_far = len(points[key].times)
            groups.setdefault((so_far, step.processes(key, so_far)), []).append(key)
        for (so_far, rounds), keys in groups.items():
            spec = Rounds("p50", min_rounds=rounds, max_rounds=rounds, seconds=look_seconds(self.plan.profile))
            # Another seed: other rows, and another measurement than the look before.
            more = {"spec": spec, "level": self.rules.level, "seed": so_far}
            news |= self._timed(points, keys, stage="look", **more)
        return news

    def measure(self, points: Mapping[str, Known], step: Step) -> dict[str, Known]:
        more = {"spec": self.plan.profile, "level": self.plan.confidence, "arrivals": arrivals_of(self.plan.profile)}
        if step.ends is not None and self.ended.isdisjoint(step.keys):
            more["ends"] = partial(self._ends, points, step)
        news = self._timed(points, step.keys, stage="profile", **more)
        self.ended |= {key for key, k in news.items() if k.entry.status == "ok" and k.timed == "part"}
        return news

    def _ends(self, points: Mapping[str, Known], step: Step, so_far: Sequence[Interim]) -> set[int]:
        """Places of those whose rounds so far say enough: the race drops them."""
        from edgewise.selector.known import with_bounds

        assert step.ends is not None
        wanted = self._named(points, step.keys)
        keys = [wanted[x.subject.name, x.target.text()] for x in so_far]
        news = {
            key: self._looked(points[key], x.seconds, {m.name: m for m in x.metrics})
            for key, x in zip(keys, so_far, strict=True)
        }
        out = step.ends(with_bounds({**points, **news}, self.rules.level))
        return {i for i, key in enumerate(keys) if key in out}

    def _named(self, points: Mapping[str, Known], keys: Sequence[str]) -> dict[tuple[str, str], str]:
        """(subject, target) as the profiler names them -> key."""
        return {(self._subject(points[k]).name, target_text(points[k].entry)): k for k in keys}

    def _timed(self, points: Mapping[str, Known], keys: Sequence[str], *, stage: Any, **more: Any) -> dict[str, Known]:
        from edgewise.profiler import measure_latency

        wanted = self._named(points, keys)
        found = measure_latency(
            self._subjects_of(points, keys), self.plan.targets, self.splits.val, store=self.store,
            devices=self.plan.devices, stage=stage, work=self.work,
            wanted=lambda s, t: (s.name, t.text()) in wanted, prints=self._prints(), progress=self.say.update, **more,
        )  # fmt: skip
        by_key: dict[str, list[Measurement]] = {}
        for m in found:
            assert m.target is not None
            by_key.setdefault(wanted[f"{m.candidate}/{m.recipe}", m.target.text()], []).append(m)
        return {key: self._with_times(points[key], ms) for key, ms in by_key.items()}

    def _with_times(self, known: Known, measured: Sequence[Measurement]) -> Known:
        import numpy as np

        if failed := [m.reason for m in measured if m.status == "failed"]:
            return replace(known, entry=replace(known.entry, status="failed", reason="; ".join(failed)))
        metrics = {x.name: x for m in measured for x in m.metrics}
        single = next((m for m in measured if m.scenario == "single-stream"), measured[0])
        times = tuple(np.array(s.ns, dtype=np.float64) / 1e9 for s in self.store.samples(single.id or 0))
        if single.stage == "look":
            return self._looked(known, times, metrics)
        entry = replace(known.entry, metrics={**known.entry.metrics, **metrics})
        return replace(known, entry=entry, timed="full", times=times)

    def _looked(self, known: Known, times: Sequence[Floats], metrics: Mapping[str, Metric]) -> Known:
        """With the processes of a look beside those of the looks before."""
        from edgewise.selector.look import MEMORY, STARTUP, both_means

        had, level = known.numbers, self.rules.level
        numbers = {n: both_means(had.get(n), metrics[n], level) for n in (*STARTUP, *MEMORY) if n in metrics}
        return replace(known, timed="part", times=(*known.times, *times), numbers=numbers)

    def answer(self, points: Mapping[str, Known], step: Step) -> dict[str, Known]:
        from edgewise.profiler import measure_accuracy
        from edgewise.profiler.joining import answer_settings

        plan, rules, val = self.plan, self.rules, self.splits.val
        wanted = {points[k].answers for k in step.keys} | self._references(points, step.keys)
        subjects = [s for s in self.subjects if any(a.startswith(f"{s.bundle.digest} ") for a in wanted)]
        found = measure_accuracy(
            subjects, plan.targets, [val[i] for i in rules.part] if step.part else val, store=self.store,
            devices=plan.devices, level=rules.level if step.part else plan.confidence,
            stage="look" if step.part else "profile", reference=plan.reference, slices=plan.data.slices,
            wanted=lambda s, t: f"{s.bundle.digest} {answer_settings(t)}" in wanted, prints=self._prints(),
            progress=self.say.update,
        )  # fmt: skip
        by_answers: dict[str, list[Measurement]] = {}
        for m in found:
            assert m.target is not None
            by_answers.setdefault(f"{m.content_digest} {answer_settings(m.target)}", []).append(m)
        return {
            key: self._with_answers(known, by_answers[known.answers], step.part)
            for key, known in points.items()
            if known.answers in by_answers and not (step.part and known.answered == "full")
        }

    def _references(self, points: Mapping[str, Known], keys: Sequence[str]) -> set[str]:
        """What must be answered beside, where a budget or an objective compares with the reference recipe."""
        if not {*self.plan.objective, *(b.metric for b in self.plan.budgets)} & set(RELATIVE):
            return set()
        wanted = {(points[k].entry.candidate, points[k].answers.partition(" ")[2]) for k in keys}
        return {
            k.answers
            for k in points.values()
            if k.entry.recipe == self.plan.reference and (k.entry.candidate, k.answers.partition(" ")[2]) in wanted
        }

    def _with_answers(self, known: Known, measured: Sequence[Measurement], part: bool) -> Known:
        import numpy as np

        if failed := [m.reason for m in measured if m.status == "failed"]:
            return replace(known, entry=replace(known.entry, status="failed", reason="; ".join(failed)))
        metrics = {x.name: x for m in measured for x in m.metrics}
        outcomes = next((self.store.outcomes(m.id or 0) for m in measured if m.scenario == "accuracy"), [])
        judged = "accuracy" in metrics and "perplexity" not in metrics and all(o.label is not None for o in outcomes)
        right = np.array([o.answer == o.label for o in outcomes], dtype=np.bool_) if judged else None
        entry = replace(known.entry, metrics={**known.entry.metrics, **metrics})
        return replace(known, entry=entry, answered="part" if part else "full", right=right)

    def _subjects_of(self, points: Mapping[str, Known], keys: Sequence[str]) -> list[Subject]:
        named = {(points[k].entry.candidate, points[k].entry.recipe) for k in keys}
        return [s for s in self.subjects if (s.candidate, s.recipe) in named]


def target_text(entry: Entry) -> str:
    """'here: cpu, 1 thread'."""
    assert entry.target is not None
    return entry.target.text()
