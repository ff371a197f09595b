"""Choosing for one device, and holding the winner against rows and processes that had no part in the choice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgewise.arrival import arrivals_of
from edgewise.pairing import Pairing
from edgewise.progress import Reporter
from edgewise.showing import show
from edgewise.types import Budget, BudgetCheck, ConfirmTry, Entry, Metric, Selection, Verdict
from edgewise.units import OF_ANSWERS, RELATIVE

if TYPE_CHECKING:
    from edgewise.data import Splits
    from edgewise.plan import Plan
    from edgewise.profiler import Store, Subject
    from edgewise.search import Search


class Confirmer:
    """Select, confirm the winner once, and go on to the next one if it does not pass."""

    def __init__(
        self,
        plan: Plan,
        store: Store,
        subjects: Sequence[Subject],
        splits: Splits,
        work: Path,
        say: Reporter,
        search: Search | None = None,
    ) -> None:
        """search: what measures as much as the choice needs; None: everything was measured."""
        self.search = search
        self.plan, self.store, self.splits, self.work, self.say = plan, store, splits, work, say
        self.subjects = {(s.candidate, s.recipe): s for s in subjects}

    def choose(self, device: str) -> Selection:
        """The confirmed choice for one device, or none; every try is kept in `confirmed`."""
        from edgewise.selector import select

        tries: list[ConfirmTry] = []
        excluded: set[str] = set()
        while True:
            if self.search is not None:
                self.search.run(device, excluded)
            pairing = Pairing(self.store, self.plan.targets)
            selection = select(
                self._entries(device),
                self.plan.budgets,
                self.plan.objective,
                confidence=self.plan.confidence,
                paired=pairing,
                exclude=excluded,
                device=device,
                weights=self.plan.weights,
            )
            if selection.chosen is None:
                return self._whole(selection, tries)
            tried = self._confirm(selection.chosen)
            tries.append(tried)
            self.say.say(f"  confirm {tried.key}: {tried.reason}")
            if tried.passed:
                return self._whole(selection, tries)
            excluded |= self._same_failure(tried, selection)

    def _whole(self, selection: Selection, tries: Sequence[ConfirmTry]) -> Selection:
        """With its confirmation, and with what the search did not measure in full."""
        from edgewise.selector import with_confirmed

        done = with_confirmed(selection, tuple(tries))
        return done if self.search is None else self.search.finish(done)

    def _entries(self, device: str) -> list[Entry]:
        from edgewise.data import digest_rows
        from edgewise.profiler import entries

        digests = {s.bundle.digest for s in self.subjects.values()}
        found = entries(self.store, digests=digests, inputs_digest=digest_rows(self.splits.val))
        targets = {t.text() for t in self.plan.targets if t.device == device}
        names = {c.name for c in self.plan.candidates}
        known = {(s.candidate, s.recipe) for s in self.subjects.values()}
        there = {e.key for e in found}
        early = self.search.failed_entries(device) if self.search is not None else []
        return [
            e
            for e in (*found, *(e for e in early if e.key not in there))
            if e.candidate in names
            and (e.target is None or e.target.text() in targets)
            # A candidate that failed in an earlier run and has its bundle now is no failure any more.
            and not (e.status == "failed" and e.target is None and self._mended(e, known))
        ]

    @staticmethod
    def _mended(entry: Entry, known: set[tuple[str, str]]) -> bool:
        if entry.recipe:
            return (entry.candidate, entry.recipe) in known
        return any(candidate == entry.candidate for candidate, _ in known)

    def _confirm(self, winner: Verdict) -> ConfirmTry:
        """Measure the winner on confirm rows and in fresh processes, and check its budgets again."""
        entry = winner.entry
        with self.say.step(f"confirm {entry.candidate}/{entry.recipe} on {len(self.splits.confirm)} fresh rows"):
            metrics = self._measure(entry)
        # What training cost is no matter of fresh rows: it is taken over for its budget.
        trained = {name: m for name, m in entry.metrics.items() if name == "train_time"}
        fresh = replace(entry, metrics={**metrics, **trained})
        checks = tuple(self._check(fresh, b) for b in self.plan.budgets)
        broken = [c.words for c in checks if not c.met]
        reason = "passed" if not broken else "did not pass: " + "; ".join(broken)
        return ConfirmTry(entry.key, not broken, checks, reason, metrics)

    def _measure(self, entry: Entry) -> Mapping[str, Metric]:
        from edgewise.data import digest_rows
        from edgewise.profiler import entries, measure_accuracy, measure_latency

        assert entry.target is not None
        plan, rows = self.plan, self.splits.confirm
        subject = self.subjects[entry.candidate, entry.recipe]
        compared = [s for (c, r), s in self.subjects.items() if c == entry.candidate and r == plan.reference]
        measure_accuracy(
            list(dict.fromkeys([*compared, subject])), [entry.target], rows, store=self.store, devices=plan.devices,
            level=plan.confidence, stage="confirm", reference=plan.reference, slices=plan.data.slices,
            progress=self.say.update,
        )  # fmt: skip
        measure_latency(
            [subject], [entry.target], rows, store=self.store, devices=plan.devices, spec=plan.profile,
            level=plan.confidence, stage="confirm", work=self.work, arrivals=arrivals_of(plan.profile),
            progress=self.say.update,
        )  # fmt: skip
        found = entries(self.store, stage="confirm", digests={subject.bundle.digest}, inputs_digest=digest_rows(rows))
        metrics = next((e.metrics for e in found if e.key == entry.key and e.status == "ok"), {})
        return {name: m for name, m in metrics.items() if name != "train_time"}

    def _check(self, entry: Entry, budget: Budget) -> BudgetCheck:
        """A budget on fresh data. A drop against fp32 was shown by its bound on val; here its value must stay within.

        The confirm rows are too few to show the bound a second time with good odds, and a true 'within' that fails by
        chance would send a worse bundle to the device. What their bound says is in the report, in its own words.
        """
        from edgewise.selector import check_budgets

        (check,) = check_budgets(entry, [budget], self.plan.confidence)
        metric = entry.metrics.get(budget.metric)
        if budget.metric not in RELATIVE or metric is None or metric.value is None or check.met:
            return check
        most = budget.op == "<="
        margin = budget.limit - metric.value if most else metric.value - budget.limit
        end, side = (metric.high, "at most") if most else (metric.low, "at least")
        bound = f", {side} {show(end, metric.unit)} at {self.plan.confidence:.0%}" if end else ""
        state = f"{'within' if margin >= 0 else 'over' if most else 'under'} {show(budget.limit, budget.unit)}"
        words = f"{budget.metric} is {show(metric.value, metric.unit)}{bound}: its value is {state}"
        return replace(check, met=margin >= 0, bound=metric.value, margin=margin, words=words)

    def _same_failure(self, tried: ConfirmTry, selection: Selection) -> set[str]:
        """Keys that fail for the same reason: other threads do not mend an accuracy."""
        assert selection.chosen is not None
        entry = selection.chosen.entry
        if not any(not c.met and c.budget.metric in OF_ANSWERS for c in tried.checks) or entry.target is None:
            return {tried.key}
        length = entry.target.run.max_length
        return {
            v.entry.key
            for v in selection.verdicts
            if v.entry.content_digest == entry.content_digest
            and v.entry.target is not None
            and v.entry.target.run.max_length == length
        }
