"""From measurements to what the selector reads: one entry for each bundle on each target.

Latency belongs to a full target; accuracy is measured once for a bundle, provider and length, since threads do not
change an answer; size and training time belong to the bundle. An entry joins them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from edgewise.files import digest_json
from edgewise.profiler.machines import one_machine
from edgewise.types import SCENARIOS, Entry, Measurement, Metric, Stage, Target, to_dict

if TYPE_CHECKING:
    from edgewise.profiler.store import Store

ANSWERED = ("accuracy", "comparison")


def answer_settings(target: Target) -> str:
    """Digest of what of a target may change an answer: all but the threads."""
    data = to_dict(target)
    del data["run"]["threads"]
    return digest_json(data)


def entries(
    store: Store,
    *,
    stage: Stage = "profile",
    digests: Collection[str] | None = None,
    inputs_digest: str | None = None,
    machine: str | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> list[Entry]:
    """Every bundle on every target, and every candidate that failed before it was one, in the order first measured.

    stage: 'profile' (val rows) or 'confirm'. digests: only bundles with these content digests, and failures.
    inputs_digest: only measurements on these rows. Of the same thing measured twice the later one counts, and of a
    bundle that was built anew under the same names, on each device, the one that was measured last; accuracy joins only
    what was measured on a machine with the same fingerprint. A device's name may stand for several machines: the last
    one counts, or the last whose name holds `machine`, and `say` is told of the others.
    """
    measured, others = one_machine(store.measurements(), machine)
    for words in (*others, *_several_rows(measured, stage, inputs_digest)):
        say(words)
    return joined(measured, stage=stage, digests=digests, inputs_digest=inputs_digest)


def _several_rows(measured: Sequence[Measurement], stage: Stage, inputs_digest: str | None) -> Iterable[str]:
    """What must be known of bundles that were answered on different rows: their answers do not compare."""
    if inputs_digest is not None:
        return
    ours = [m for m in measured if m.stage == stage]
    built = {_bundle_key(m): m.content_digest for m in ours if m.scenario in SCENARIOS or m.scenario == "accuracy"}
    answered = latest((m for m in ours if m.scenario == "accuracy"), _answer_key)
    by_rows: dict[str, dict[str, None]] = {}
    for m in answered.values():
        if m.status == "ok" and m.content_digest == built[_bundle_key(m)]:
            by_rows.setdefault(str(m.conditions.get("rows_digest") or m.inputs_digest), {})[m.candidate] = None
    if len(by_rows) > 1:
        groups = "; ".join(", ".join(sorted(names)) for names in by_rows.values())
        yield (
            f"the answers are to {len(by_rows)} different sets of rows ({groups}): an accuracy on one does not compare "
            "with one on another; measure all on the same rows, or keep them in stores of their own"
        )


def joined(
    measured: Iterable[Measurement],
    *,
    stage: Stage = "profile",
    digests: Collection[str] | None = None,
    inputs_digest: str | None = None,
) -> list[Entry]:
    """`entries` of measurements at hand, in the order in which they were added."""
    wanted = [
        m
        for m in measured
        if (digests is None or m.content_digest is None or m.content_digest in digests)
        and (m.stage != stage or inputs_digest is None or m.inputs_digest == inputs_digest)
    ]
    early = latest((m for m in wanted if m.stage in ("train", "export")), _early_key)
    ours = [m for m in wanted if m.stage == stage and m.scenario in SCENARIOS]
    built = {_bundle_key(m): m.content_digest for m in ours}
    timed = latest((m for m in ours if m.content_digest == built[_bundle_key(m)]), _timed_key)
    answered = latest((m for m in wanted if m.stage == stage and m.scenario in ANSWERED), _answer_key)
    found = [_join(m, early.values(), answered) for m in _by_place(timed.values())]
    last: dict[tuple[str, str], int] = {}
    for m in (m for m in wanted if m.stage == stage and m.content_digest is not None):
        last |= {(m.candidate, m.recipe): m.id or 0, (m.candidate, ""): m.id or 0}
    return found + [
        Entry(m.candidate, m.recipe, m.content_digest, m.target, {x.name: x for x in m.metrics}, "failed", m.reason)
        for m in early.values()
        # What failed before its bundle was there is no failure any more.
        if m.status == "failed" and last.get((m.candidate, m.recipe), -1) < (m.id or 0)
    ]


def left_by_a_search(measured: Iterable[Measurement], found: Iterable[Entry]) -> dict[str, int]:
    """Device -> points that a search looked at, and bundles that it answered with there, which are not among these
    entries: it did not measure them in full."""
    there = {e.key for e in found}
    bundles = {(e.candidate, e.recipe, e.target.device) for e in found if e.target is not None}
    points: dict[str, dict[str, None]] = {}
    measured = list(measured)
    searched = {m.target.device for m in measured if m.target is not None and m.stage == "look"}
    for m in measured:
        if (
            m.target is None
            or m.target.device not in searched
            or m.status != "ok"
            or not (m.stage == "look" or m.scenario == "accuracy")
        ):
            continue
        # Answers are of no number of threads: they count where no look at the bundle does.
        key = Entry(m.candidate, m.recipe, m.content_digest, m.target).key
        known = key in there or (m.scenario == "accuracy" and (m.candidate, m.recipe, m.target.device) in bundles)
        if not known:
            points.setdefault(m.target.device, {})[key] = None
    return {device: len(keys) for device, keys in points.items()}


def latest(measurements: Iterable[Measurement], key: Callable[[Measurement], Any]) -> dict[Any, Measurement]:
    """Of those with the same key the last one, in the order of the first."""
    found: dict[Any, Measurement] = {}
    for m in measurements:
        found[key(m)] = m  # a dict keeps the place of the first and the value of the last
    return found


def _bundle_key(m: Measurement) -> tuple[Any, ...]:
    return (m.candidate, m.recipe, m.target.device if m.target else None)


def _early_key(m: Measurement) -> tuple[Any, ...]:
    return (m.stage, m.candidate, m.recipe)


def _timed_key(m: Measurement) -> tuple[Any, ...]:
    return (m.candidate, m.recipe, m.content_digest, m.scenario, digest_json(to_dict(m.target)) if m.target else None)


def _answer_key(m: Measurement) -> tuple[Any, ...]:
    settings = answer_settings(m.target) if m.target else None
    return (m.scenario, m.candidate, m.recipe, m.content_digest, settings, m.conditions.get("fingerprint_digest"))


def _by_place(timed: Iterable[Measurement]) -> list[list[Measurement]]:
    """One bundle on one target each: its scenarios, in the order of SCENARIOS.

    Only those of the machine that was measured last: one that got a memory limit meanwhile is another machine.
    """
    found: dict[Any, list[Measurement]] = {}
    for m in timed:
        place = digest_json(to_dict(m.target)) if m.target else None
        found.setdefault((m.candidate, m.recipe, m.content_digest, place), []).append(m)
    return [sorted(_last_machine(same), key=lambda m: SCENARIOS.index(m.scenario)) for same in found.values()]


def _last_machine(same: Sequence[Measurement]) -> list[Measurement]:
    last = max(same, key=lambda m: m.id or 0)
    return [m for m in same if m.conditions.get("fingerprint_digest") == last.conditions.get("fingerprint_digest")]


def _join(same: Sequence[Measurement], early: Iterable[Measurement], answered: dict[Any, Measurement]) -> Entry:
    timed = same[0]
    metrics: dict[str, Metric] = {}
    reasons = [
        m.reason if m.scenario == "single-stream" else f"{m.scenario}: {m.reason}" for m in same if m.status == "failed"
    ]
    for m in early:
        if m.status == "ok" and m.candidate == timed.candidate and m.recipe in ("", timed.recipe):
            metrics |= {x.name: x for x in m.metrics}
    settings = answer_settings(timed.target) if timed.target else None
    reference = "fp32"
    for scenario in ANSWERED:
        machine = timed.conditions.get("fingerprint_digest")
        key = (scenario, timed.candidate, timed.recipe, timed.content_digest, settings, machine)
        if (found := answered.get(key)) is not None:
            metrics |= {x.name: x for x in found.metrics}
            if found.status == "failed":
                reasons.append(f"{scenario}: {found.reason}")
            if scenario == "comparison":
                reference = str(found.conditions.get("settings", {}).get("reference") or reference)
    metrics |= {x.name: x for m in same for x in m.metrics}
    return Entry(
        timed.candidate,
        timed.recipe,
        timed.content_digest,
        timed.target,
        metrics,
        "failed" if reasons else "ok",
        "; ".join(reasons),
        reference=reference,
    )
