"""The measurement store: SQLite, append-only, raw samples kept. Two processes may write at once."""

from __future__ import annotations

import json
import math
import os
import sqlite3
import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from edgewise.errors import StoreError
from edgewise.files import digest_json, no_space
from edgewise.profiler import schema
from edgewise.profiler.joining import entries
from edgewise.types import Measurement, Metric, RunSettings, Scenario, Stage, Target, run_from_dict, to_dict

_BUSY_S = 60.0
_PAGE = 16384
"""Bytes of a page of a new store: a pass over a large one takes a third less time than with SQLite's 4096."""

__all__ = ["MeasurementKey", "Outcome", "Sample", "Store", "entries", "key_of"]


@dataclass(frozen=True)
class Sample:
    """The raw times of one process."""

    round: int
    process: int
    """Its pid."""
    ns: tuple[int, ...]


@dataclass(frozen=True)
class Outcome:
    """What came of one row."""

    row_id: str
    """Hash of the text."""
    answer: int
    """Index of the label that was given; of a language model the tokens that it held for the likeliest."""
    label: int | None
    """Index of the label that is right, where it is known; of a language model the tokens that were scored."""
    score: float
    """Of the label; of a language model the sum of the tokens' natural log-probabilities."""
    logits: tuple[float, ...] | None = None
    """Kept as float32."""


@dataclass(frozen=True)
class MeasurementKey:
    """What makes two measurements the same one: what was measured, on what, and how."""

    candidate: str
    recipe: str
    content_digest: str | None
    target: Target | None
    scenario: Scenario
    stage: Stage
    inputs_digest: str = ""
    fingerprint_digest: str = ""
    settings_digest: str = ""

    @property
    def digest(self) -> str:
        return digest_json(asdict(self))


def key_of(measurement: Measurement) -> MeasurementKey:
    """The key of a measurement; fingerprint and settings are those that its conditions name."""
    return MeasurementKey(
        measurement.candidate,
        measurement.recipe,
        measurement.content_digest,
        measurement.target,
        measurement.scenario,
        measurement.stage,
        measurement.inputs_digest,
        str(measurement.conditions.get("fingerprint_digest", "")),
        str(measurement.conditions.get("settings_digest", "")),
    )


class Store:
    """A store in one file, made when it is not there. A context manager; not to be shared between threads.

    reading: nothing will be added, so that one that cannot be written, as in an archive, is read as it stands.

    Raises StoreError for a file that is no store, of a newer format, or that cannot be written.
    """

    def __init__(self, path: str | Path, *, reading: bool = False) -> None:
        self.path = Path(path)
        fixed = reading and self.path.is_file() and not _writable(self.path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # isolation_level None: transactions are begun by hand, IMMEDIATE, so that two writers wait in line.
            place = _as_it_stands(self.path) if fixed else str(self.path)
            self._db = sqlite3.connect(place, timeout=_BUSY_S, isolation_level=None, uri=fixed)
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"{self.path} cannot be opened: {error}; name another file") from error
        try:
            with self._clear_errors():
                self._db.execute(f"PRAGMA page_size = {_PAGE}")  # of a store that is there it changes nothing
                # Read as one: another process may be making the tables between two of its questions.
                self._db.execute("BEGIN")
                try:
                    there = schema.check(self._db, str(self.path))
                finally:
                    if self._db.in_transaction:
                        self._db.execute("ROLLBACK")
                if not there:
                    self._create()
                if not fixed:
                    self._db.execute("PRAGMA journal_mode = WAL")
                    self._db.execute("PRAGMA synchronous = NORMAL")
        except BaseException:
            self._db.close()
            raise

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def add(
        self,
        measurement: Measurement,
        samples: Sequence[Sample] = (),
        outcomes: Sequence[Outcome] = (),
        texts: Iterable[tuple[str, str, str | None]] = (),
    ) -> int:
        """Append one measurement with all that belongs to it, whole or not at all; its row number.

        texts: (row id, text, text pair) of rows that a report may show; nothing else holds text.
        """
        if measurement.metrics and not measurement.conditions:
            name = f"{measurement.candidate}/{measurement.recipe}"
            raise StoreError(f"{name}: a number without its conditions is not stored; give it some")
        with self._transaction():
            schema.add_missing_columns(self._db)
            number = self._add_measurement(measurement)
            self._db.executemany(
                "INSERT INTO metrics VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (number, m.name, m.unit, m.value, m.low, m.high, m.level, m.method, m.n, m.kind, m.why)
                    for m in map(_told, measurement.metrics)
                ],
            )
            self._db.executemany(
                "INSERT INTO samples VALUES (?, ?, ?, ?)",
                [(number, s.round, s.process, _to_blob("q", s.ns)) for s in samples],
            )
            self._db.executemany(
                "INSERT INTO outcomes VALUES (?, ?, ?, ?, ?, ?, ?)",
                [
                    (number, i, o.row_id, o.answer, o.label, o.score, o.logits and _to_blob("f", o.logits))
                    for i, o in enumerate(outcomes)
                ],
            )
            self._db.executemany("INSERT OR IGNORE INTO texts VALUES (?, ?, ?)", list(texts))
            self._add_summary(number, measurement)
        return number

    def find(self, key: MeasurementKey) -> Measurement | None:
        """The last measurement with this key that ended well; a failed one is tried again, so it is not found."""
        found = self._read("WHERE key = ? AND status = 'ok' ORDER BY id DESC LIMIT 1", (key.digest,))
        return found[0] if found else None

    def measurements(self) -> list[Measurement]:
        """All of them, in the order in which they were added."""
        return self._read("ORDER BY id", ())

    def one(self, number: int) -> Measurement:
        """That with this row number. Raises IndexError where there is none."""
        return self._read("WHERE id = ?", (number,))[0]

    def light(self, ids: Iterable[int]) -> list[Measurement]:
        """Those with these row numbers, of their conditions the fingerprint's digest and the reference of a comparison
        alone: a hundredth of the time."""
        chosen = (json.dumps(sorted(ids)),)
        metrics: dict[int, list[Metric]] = {}
        for number, *values in self._all(
            "SELECT measurement_id, name, unit, value, low, high, level, method, n, kind, why FROM metrics "
            "WHERE measurement_id IN (SELECT value FROM json_each(?))",
            chosen,
        ):
            metrics.setdefault(number, []).append(Metric(*values))
        rows = self._all(
            "SELECT m.id, m.candidate, m.recipe, m.content_digest, m.target, m.scenario, m.stage, m.status, m.reason, "
            "m.inputs_digest, s.fingerprint_digest, CASE WHEN m.scenario = 'comparison' THEN m.conditions END "
            "FROM measurements m JOIN summary s ON s.measurement_id = m.id "
            "WHERE m.id IN (SELECT value FROM json_each(?)) ORDER BY m.id",
            chosen,
        )
        with self._clear_errors():
            return [
                Measurement(
                    candidate,
                    recipe,
                    digest,
                    _target(target),
                    scenario,
                    stage,
                    status,
                    why,
                    inputs,
                    {"fingerprint_digest": fingerprint} | _reference_of(compared),
                    tuple(metrics.get(number, ())),
                    number,
                )
                for number, *own, inputs, fingerprint, compared in rows
                for candidate, recipe, digest, target, scenario, stage, status, why in (own,)
            ]

    def last(self) -> int:
        """Row number of the last measurement; 0 when there is none."""
        return int(self._all("SELECT coalesce(max(id), 0) FROM measurements", ())[0][0])

    def query(self, sql: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """Rows of a SELECT on the tables of `edgewise.profiler.schema`; other statements are refused."""
        if not sql.lstrip().upper().startswith("SELECT"):
            raise ValueError("only a SELECT reads")
        return self._all(sql, values)

    def created(self) -> dict[int, str]:
        """When each was added, by its row number: UTC, ISO 8601."""
        return dict(self._all("SELECT id, created FROM measurements", ()))

    def outcomes(self, measurement_id: int) -> list[Outcome]:
        """Of one measurement, in the order of its rows."""
        rows = self._all(
            "SELECT row_id, answer, label, score, logits FROM outcomes WHERE measurement_id = ? ORDER BY position",
            (measurement_id,),
        )
        with self._clear_errors():
            return [
                Outcome(row_id, answer, label, score, None if logits is None else _from_blob("f", logits))
                for row_id, answer, label, score, logits in rows
            ]

    def samples(self, measurement_id: int) -> list[Sample]:
        """Of one measurement, by round."""
        rows = self._all(
            "SELECT round, process, ns FROM samples WHERE measurement_id = ? ORDER BY round", (measurement_id,)
        )
        with self._clear_errors():
            return [Sample(number, process, _from_blob("q", ns)) for number, process, ns in rows]

    def text(self, row_id: str) -> tuple[str, str | None] | None:
        """The text of a row, where it was kept."""
        found = self._all("SELECT text, text_pair FROM texts WHERE row_id = ?", (row_id,))
        return (found[0][0], found[0][1]) if found else None

    def _create(self) -> None:
        with self._transaction():
            # Another process may have made the tables since we looked.
            if not schema.check(self._db, str(self.path)):
                schema.create(self._db)

    def _add_measurement(self, m: Measurement) -> int:
        cursor = self._db.execute(
            "INSERT INTO measurements (key, candidate, recipe, content_digest, target, scenario, stage, status, "
            "reason, inputs_digest, conditions, created) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                key_of(m).digest,
                m.candidate,
                m.recipe,
                m.content_digest,
                None if m.target is None else json.dumps(to_dict(m.target)),
                m.scenario,
                m.stage,
                m.status,
                m.reason,
                m.inputs_digest,
                json.dumps(dict(m.conditions)),
                datetime.now(UTC).isoformat(timespec="seconds"),
            ),
        )
        return int(cursor.lastrowid or 0)

    def _add_summary(self, number: int, m: Measurement) -> None:
        run = m.target.run if m.target else None
        own = ("candidate", "recipe", "content_digest", "scenario", "stage", "status", "reason")
        values: dict[str, Any] = {
            **{n: getattr(m, n) for n in own},
            "measurement_id": number,
            "device": m.target.device if m.target else None,
            **({n: getattr(run, n) for n in ("provider", "threads", "max_length", "batch_size")} if run else {}),
            "fingerprint_digest": m.conditions.get("fingerprint_digest"),
        }
        there = {row[1] for row in self._db.execute("PRAGMA table_info(summary)")}
        values |= {x.name: x.value for x in m.metrics if x.name in there}
        columns = ", ".join(f'"{name}"' for name in values)
        marks = ", ".join("?" * len(values))
        self._db.execute(f"INSERT INTO summary ({columns}) VALUES ({marks})", tuple(values.values()))

    def _read(self, where: str, values: tuple[Any, ...]) -> list[Measurement]:
        rows = self._all(
            "SELECT id, candidate, recipe, content_digest, target, scenario, stage, status, reason, inputs_digest, "
            f"conditions FROM measurements {where}",
            values,
        )
        with self._clear_errors():
            return [self._measurement(row) for row in rows]

    def _measurement(self, row: tuple[Any, ...]) -> Measurement:
        conditions = json.loads(row[10])
        if not isinstance(conditions, dict):
            raise ValueError(f"the conditions of measurement {row[0]} are no object")
        return Measurement(
            candidate=row[1],
            recipe=row[2],
            content_digest=row[3],
            target=_target(row[4]),
            scenario=row[5],
            stage=row[6],
            status=row[7],
            reason=row[8],
            inputs_digest=row[9],
            conditions=conditions,
            metrics=self._metrics(row[0]),
            id=row[0],
        )

    def _metrics(self, number: int) -> tuple[Metric, ...]:
        names = "name, unit, value, low, high, level, method, n, kind, why"
        rows = self._all(f"SELECT {names} FROM metrics WHERE measurement_id = ?", (number,))
        return tuple(Metric(*row) for row in rows)

    def _all(self, query: str, values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        with self._clear_errors():
            return self._db.execute(query, values).fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._clear_errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _clear_errors(self) -> Iterator[None]:
        """SQLite's errors as ours, with the file and the remedy."""
        try:
            yield
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
                raise no_space(self.path) from error
            remedy = _REMEDIES.get(getattr(error, "sqlite_errorcode", 0) & 0xFF, "name another file")
            raise StoreError(f"{self.path} is no usable measurement store: {error}; {remedy}") from error
        except StoreError:  # says what it is, and what to do
            raise
        except (ValueError, TypeError, KeyError) as error:  # what stands in it is not what was written
            remedy = _REMEDIES[sqlite3.SQLITE_CORRUPT]
            raise StoreError(f"{self.path} is no usable measurement store: {error}; {remedy}") from error


_REMEDIES = {
    sqlite3.SQLITE_BUSY: "another process holds it: wait for it to end",
    sqlite3.SQLITE_READONLY: "make it and its folder writable, or name another file",
    sqlite3.SQLITE_CORRUPT: "it is damaged: restore a copy, or move it away and measure again",
}


def _reference_of(conditions: str | None) -> dict[str, Any]:
    """Of a comparison's conditions the recipe that it is with, where they have it."""
    settings = {} if conditions is None else json.loads(conditions).get("settings") or {}
    return {"settings": {"reference": settings["reference"]}} if "reference" in settings else {}


def _writable(path: Path) -> bool:
    """Whether SQLite could write there: it needs the folder too, for its log."""
    own = os.access in os.supports_effective_ids
    return all(os.access(p, os.W_OK, effective_ids=own) for p in (path, path.parent))


def _as_it_stands(path: Path) -> str:
    """The address of a file that nobody writes. What still stands in its log counts, where SQLite can read that."""
    log = path.with_name(f"{path.name}-wal")
    logged = log.is_file() and log.stat().st_size > 0
    return f"{path.resolve().as_uri()}?mode=ro{'' if logged else '&immutable=1'}"


def _told(metric: Metric) -> Metric:
    """SQLite has no NaN: it would come back as a value that is not there, for no reason."""
    if metric.value is None or not math.isnan(metric.value):
        return metric
    return replace(
        metric, value=None, kind="unavailable", why="; ".join(filter(None, ["it is not a number", metric.why]))
    )


def _target(text: str | None) -> Target | None:
    if text is None:
        return None
    data = json.loads(text)
    run: RunSettings = run_from_dict(data["run"])
    return Target(data["device"], run)


def _to_blob(code: str, values: Sequence[float]) -> bytes:
    return _little_endian(array(code, values)).tobytes()


def _from_blob(code: str, blob: bytes) -> tuple[Any, ...]:
    values = array(code)
    values.frombytes(blob)
    return tuple(_little_endian(values))


def _little_endian(values: array[Any]) -> array[Any]:
    if sys.byteorder == "big":
        values.byteswap()
    return values
