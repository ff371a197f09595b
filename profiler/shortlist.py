"""The points of a large store that may keep every limit, found in SQL on its summary rows and read with the bounds of
the metrics asked for alone.

A bound is never better than its value: what breaks a limit by its value breaks it by its bound, so that one pass over
the summary leaves out most of the store.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from edgewise.arrival import measured_by
from edgewise.errors import StoreError
from edgewise.profiler.joining import ANSWERED, joined
from edgewise.profiler.store import Store
from edgewise.types import SCENARIOS, Budget, Entry, Measurement
from edgewise.units import METRICS, OF_ANSWERS, OF_THE_REFERENCE, RELATIVE

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LARGE = 20_000
"""Measurements from which a store is not read whole."""
MOST = 25_000
"""Points that are read with their bounds, the best by the first objective."""
_OF_TRAINING = ("train_time",)
"""Metrics of a candidate, which none of its bundles' measurements has."""
_FEW = 3000
"""Bundles up to which each is looked up by itself."""
_PLACE, _POINT, _SCENARIO, _VALUES = slice(1, 8), slice(1, 9), 9, 10
"""In a row of `_Asking`: what an answer belongs to, what a time belongs to, the scenario, the values."""
_NOTHING = (None, None, None, None)
_NEAREST = 100
"""Points that are looked at where nothing keeps the limits."""
_SCENARIOS = ", ".join(f"'{name}'" for name in SCENARIOS)
_ANSWERED = ", ".join(f"'{name}'" for name in ANSWERED)


@dataclass(frozen=True)
class Points:
    """Bundles on run settings, as numbers."""

    ids: tuple[tuple[int, ...], ...]
    """Of each point the row numbers of its measurements."""
    keys: tuple[tuple[Any, ...], ...]
    """Of each point its fingerprint, candidate, recipe, content digest, provider, length, batch and threads."""
    columns: dict[str, NDArray[np.float64]]
    """Metric -> (n, 4): value, low, high, level; NaN where there is none, the level of an estimate without bounds 0."""
    cut: float | None = None
    """The value of the first objective beyond which nothing was read; None where all was."""

    def without(self, places: Collection[int]) -> Points:
        """All but these."""
        left = [i for i in range(len(self.ids)) if i not in set(places)]
        columns = {name: column[left] for name, column in self.columns.items()}
        return replace(
            self, ids=tuple(self.ids[i] for i in left), keys=tuple(self.keys[i] for i in left), columns=columns
        )


def devices_of(store: Store) -> list[str]:
    """Names of the devices that something was measured on, in the order of the alphabet."""
    return [d for (d,) in store.query("SELECT DISTINCT device FROM summary WHERE device IS NOT NULL ORDER BY device")]


def points(
    store: Store,
    device: str,
    budgets: Sequence[Budget],
    names: Sequence[str],
    first: str | None = None,
    machines: Sequence[str] = (),
) -> Points:
    """Points of `device` whose values may keep every limit, with the metrics `names`.

    An accuracy belongs to every number of threads, and is joined as `entries` joins it; the time of training belongs to
    the candidate. first: the objective that decides first: of more than `MOST` points the best by its value are read;
    None reads all. machines: fingerprints, where only what was measured on these counts. Raises StoreError for a metric
    that nothing in the store has.
    """
    known = {name for (name,) in store.query("SELECT name FROM pragma_table_info('summary')")}
    names = list(dict.fromkeys([*names, *(b.metric for b in budgets)]))
    if missing := [name for name in names if name not in known]:
        raise StoreError(f"{store.path} has no {missing[0]}: nothing in it was measured by it")
    ask = _Asking(store, device, tuple(b for b in budgets if b.metric not in _OF_TRAINING), tuple(machines))
    trained = _trained(store) if any(name in _OF_TRAINING for name in names) else {}
    # What compares with a reference is not measured of the reference, which may be the best.
    first = None if first in (*_OF_TRAINING, *RELATIVE) else first
    timed, cut = ask.rows(_SCENARIOS, "" if first is None else f" LIMIT {MOST + 1}"), None
    if first is not None and len(timed) > MOST:
        timed, cut = _best(ask, first, several=any(by and "single-stream" not in by for by in map(measured_by, names)))
        if not timed:
            timed, cut = ask.rows(_SCENARIOS), None
    answered: dict[tuple[Any, ...], dict[str, tuple[Any, ...]]] = {}
    for row in ask.of_bundles(_ANSWERED, {row[2:4] for row in timed}):
        answered.setdefault(row[_PLACE], {})[row[_SCENARIO]] = row
    found: dict[tuple[Any, ...], dict[str, tuple[Any, ...]]] = {}
    for row in timed:
        found.setdefault(row[_POINT], {})[row[_SCENARIO]] = row
    kept = []
    for key, ours in found.items():
        rows = (*ours.values(), *answered.get(key[:-1], {}).values())
        if ask.may_keep(key[2], rows):
            kept.append((key, (*(row[0] for row in rows), *trained.get(key[1], ()))))
    keys, ids = tuple(key for key, _ in kept), tuple(numbers for _, numbers in kept)
    return Points(ids, keys, _columns(store, ids, [key[2] for key in keys], names, budgets), cut)


def check_reference(store: Store, device: str, budgets: Sequence[Budget]) -> None:
    """Raise StoreError for a budget against another recipe than the answers on this device were compared with."""
    asked = [b for b in budgets if b.relative_to is not None]
    ((number,),) = store.query(
        "SELECT max(measurement_id) FROM summary WHERE scenario = 'comparison' AND device = ?", (device,)
    )
    if not asked or number is None:
        return
    found = str(store.one(number).conditions.get("settings", {}).get("reference") or "fp32")
    if other := [b for b in asked if b.relative_to != found]:
        raise StoreError(
            f"{other[0].text}: the answers in {store.path} were compared with {found}, not with {other[0].relative_to}"
        )


def _best(ask: _Asking, first: str, *, several: bool) -> tuple[list[tuple[Any, ...]], float | None]:
    """The rows that were timed of the best points by the values of one metric, and the value of the last of them.
    several: metrics of other scenarios than single-stream are asked for, whose rows are others."""
    order = f' AND "{first}" IS NOT NULL ORDER BY "{first}" {"DESC" if METRICS[first].better == "higher" else ""}'
    asked, most = (_ANSWERED, MOST // 10) if first in OF_ANSWERS else (_SCENARIOS, MOST)
    best = ask.rows(asked, f"{order} LIMIT {most}")
    cut = (
        ask.store.query(f'SELECT "{first}" FROM summary WHERE measurement_id = ?', (best[-1][0],))[0][0]
        if best
        else None
    )
    others = first in OF_ANSWERS or several
    return (ask.of_bundles(_SCENARIOS, {row[2:4] for row in best}) if others else best), cut


def _trained(store: Store) -> dict[str, tuple[int, ...]]:
    """Candidate -> the row number of its last training."""
    rows = store.query(
        "SELECT candidate, measurement_id FROM summary WHERE stage = 'train' AND status = 'ok' ORDER BY measurement_id"
    )
    return {candidate: (number,) for candidate, number in rows}


def failed(store: Store, device: str, found: Points, places: Iterable[int]) -> set[int]:
    """Which of these points have a measurement that failed, and was not made again since: `entries` has them as failed.
    Of a point that its summary shows as good, a scenario or its answers may have failed."""
    by_bundle: dict[tuple[Any, ...], list[int]] = {}
    for i in places:
        by_bundle.setdefault(found.keys[i][1:3], []).append(i)
    hit: set[int] = set()
    for bundle, ours in by_bundle.items():
        rows = store.query(
            "SELECT measurement_id, status, scenario, fingerprint_digest, candidate, recipe, content_digest, provider, "
            "max_length, batch_size, threads FROM summary WHERE candidate = ? AND recipe = ? AND device = ? "
            "AND stage = 'profile' ORDER BY measurement_id",
            (*bundle, device),
        )
        last = {(row[2], row[3:] if row[2] in SCENARIOS else row[3:-1]): row[1] for row in rows}
        bad = {key for key, status in last.items() if status == "failed"}
        hit |= {i for i in ours if any(place in (found.keys[i], found.keys[i][:-1]) for _, place in bad)}
    return hit


def machines_of(store: Store, device: str) -> tuple[tuple[str, ...], str]:
    """(fingerprints of the machine that was measured last on a device, what is left out in words), where it stood for
    several machines; ((), '') where it was one all the time. What does not say where it was measured is of none."""
    from edgewise.profiler.machines import machine_of, machine_words

    found: dict[str, Measurement] = {}  # fingerprint -> the last measurement
    last = ""
    while True:
        ((last, number),) = store.query(
            "SELECT min(f), max(id) FROM (SELECT fingerprint_digest AS f, measurement_id AS id FROM summary "
            "WHERE device = ? AND fingerprint_digest = (SELECT min(fingerprint_digest) FROM summary WHERE device = ? "
            "AND fingerprint_digest > ?))",
            (device, device, last),
        )
        if last is None:
            break
        found[last] = store.one(number)
    known = [m for m in found.values() if machine_of(m)]
    if len({machine_of(m) for m in known}) < 2:
        return (), ""
    newest = max(known, key=lambda m: m.id or 0)
    ours = tuple(f for f, m in found.items() if machine_of(m) in ("", machine_of(newest)))
    names = sorted({machine_words(m) for m in known if machine_of(m) != machine_of(newest)})
    return ours, (
        f"device {device!r} stands for several machines: what was measured on {'; '.join(names)} is left out, the "
        f"choice is for {machine_words(newest)}; --all --machine NAME chooses another"
    )


@dataclass(frozen=True)
class _Asking:
    """Summary rows of a device whose values keep every limit."""

    store: Store
    device: str
    budgets: Sequence[Budget]
    machines: tuple[str, ...] = ()

    def rows(
        self, scenarios: str, tail: str = "", also: str = "", values: tuple[Any, ...] = ()
    ) -> list[tuple[Any, ...]]:
        """(id, fingerprint, candidate, recipe, digest, provider, length, batch, threads, scenario, and the values that
        have a budget) each."""
        # Columns that are NULL are of another row of the same point.
        limits = "".join(f' AND ("{b.metric}" IS NULL OR "{b.metric}" {b.op} ?)' for b in self.budgets)
        columns = "".join(f', "{b.metric}"' for b in self.budgets)
        only = _only(self.machines)
        return self.store.query(
            "SELECT measurement_id, fingerprint_digest, candidate, recipe, content_digest, provider, max_length, "
            f"batch_size, threads, scenario{columns} FROM summary WHERE device = ?{also} AND stage = 'profile' "
            f"AND status = 'ok' AND scenario IN ({scenarios}){only}{limits}{tail}",
            (self.device, *values, *self.machines, *(b.limit for b in self.budgets)),
        )

    def may_keep(self, recipe: str, rows: Sequence[tuple[Any, ...]]) -> bool:
        """Whether the rows of a point have a value for every budget: a row that breaks one is not among them."""
        return all(
            recipe == budget.relative_to or any(row[_VALUES + i] is not None for row in rows)
            for i, budget in enumerate(self.budgets)
        )

    def of_bundles(self, scenarios: str, bundles: Collection[tuple[str, str]]) -> list[tuple[Any, ...]]:
        """The same of these bundles: by the index, where they are few."""
        if len(bundles) > _FEW:
            return [row for row in self.rows(scenarios) if row[2:4] in bundles]
        found: list[tuple[Any, ...]] = []
        for bundle in bundles:
            found += self.rows(scenarios, also=" AND candidate = ? AND recipe = ?", values=bundle)
        return found


def _columns(
    store: Store,
    ids: Sequence[tuple[int, ...]],
    recipes: Sequence[str],
    names: Sequence[str],
    budgets: Sequence[Budget],
) -> dict[str, NDArray[np.float64]]:
    import numpy as np

    every = sorted({number for point in ids for number in point})
    marks = ", ".join("?" * len(names))
    rows = store.query(
        "SELECT measurement_id, name, value, low, high, CASE WHEN kind = 'estimated' AND low IS NULL AND high IS NULL "
        "THEN 0.0 ELSE level END FROM metrics WHERE measurement_id IN "
        f"(SELECT value FROM json_each(?)) AND name IN ({marks}) AND kind <> 'unavailable'",
        (json.dumps(every), *names),
    )
    by: dict[str, dict[int, tuple[Any, ...]]] = {name: {} for name in names}
    for number, name, *numbers in rows:
        by[name][number] = tuple(numbers)
    reference = {b.metric: b.relative_to for b in budgets}
    found = {}
    for name, has in by.items():
        # What compares with a reference is not measured of the reference itself.
        own = (OF_THE_REFERENCE.get(name), None, None, None)
        itself = (reference.get(name) or "fp32") if name in RELATIVE else None
        found[name] = np.array(
            [
                next((has[i] for i in point if i in has), own if recipe == itself else _NOTHING)
                for point, recipe in zip(ids, recipes, strict=True)
            ],
            np.float64,
        ).reshape(len(ids), 4)
    return found


def read_points(store: Store, ids: Iterable[tuple[int, ...]], machines: Sequence[str] = ()) -> list[Entry]:
    """These points as `entries` makes them, with all their metrics; what was measured anew since is left out.
    machines: as of `points`."""
    wanted = {number for point in ids for number in point}
    late: set[int] = set()
    measurements = store.light(wanted)
    for key in {(m.candidate, m.recipe) for m in measurements}:
        late |= _superseded(store, key, machines)
    trained = store.light(_trainings(store, {m.candidate for m in measurements}) - wanted)
    return joined([*trained, *(m for m in measurements if m.id not in late)])


def _trainings(store: Store, candidates: Collection[str]) -> set[int]:
    """The row numbers of the last trainings of these candidates."""
    found: set[int] = set()
    for candidate in candidates:
        rows = store.query(
            "SELECT max(measurement_id) FROM summary WHERE candidate = ? AND recipe = '' AND stage = 'train' "
            "AND status = 'ok'",
            (candidate,),
        )
        found |= {number for (number,) in rows if number is not None}
    return found


def _superseded(store: Store, bundle: tuple[str, str], machines: Sequence[str]) -> set[int]:
    """Row numbers of a bundle's measurements that a later one of the same thing, on one of these machines, took the
    place of."""
    rows = store.query(
        "SELECT measurement_id, device, content_digest, scenario, provider, threads, max_length, batch_size "
        f"FROM summary WHERE candidate = ? AND recipe = ? AND stage = 'profile'{_only(machines)} "
        "ORDER BY measurement_id",
        (*bundle, *machines),
    )
    newest: dict[Any, str] = {}
    for row in rows:
        if row[3] in SCENARIOS:
            newest[row[1]] = row[2]
    last = {row[3:] + row[1:2]: row[0] for row in rows}
    return {r[0] for r in rows if last[r[3:] + r[1:2]] != r[0] or newest.get(r[1], r[2]) != r[2]}


def _only(machines: Sequence[str]) -> str:
    return f" AND fingerprint_digest IN ({', '.join('?' * len(machines))})" if machines else ""


def nearest(
    store: Store, device: str, budgets: Sequence[Budget], machines: Sequence[str] = ()
) -> tuple[tuple[int, ...], ...]:
    """Row numbers of the points that come nearest to the limits by what was timed: the sum of what each is over its
    own, relative to it. machines: as of `points`."""
    over = " + ".join(
        f'max(0, coalesce({"" if b.op == "<=" else "-"}1.0 * ("{b.metric}" - ?) / ?, 0))' for b in budgets
    )
    rows = store.query(
        f"SELECT measurement_id, candidate, recipe FROM summary WHERE stage = 'profile' AND status = 'ok' "
        f"AND device = ? AND scenario IN ({_SCENARIOS}){_only(machines)} ORDER BY {over or '0'} LIMIT {_NEAREST}",
        (device, *machines, *(x for b in budgets for x in (b.limit, abs(b.limit) or 1.0))),
    )
    answers: list[int] = []
    for candidate, recipe in {row[1:] for row in rows}:
        answers += [
            number
            for (number,) in store.query(
                f"SELECT measurement_id FROM summary WHERE candidate = ? AND recipe = ? AND device = ? "
                f"AND stage = 'profile' AND scenario IN ({_ANSWERED}){_only(machines)}",
                (candidate, recipe, device, *machines),
            )
        ]
    return (*((row[0],) for row in rows), tuple(answers))
