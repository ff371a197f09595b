"""The tables of the measurement store, format version 1. Nothing is ever updated or deleted."""

from __future__ import annotations

import sqlite3

from edgewise.errors import StoreError
from edgewise.units import METRICS

FORMAT = 1
APPLICATION_ID = 0x45444757
"""'EDGW' in SQLite's header: a database without it is not ours."""

TABLES = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE measurements (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    key TEXT NOT NULL,              -- digest of what it measured, on what, and how
    candidate TEXT NOT NULL,
    recipe TEXT NOT NULL,
    content_digest TEXT,
    target TEXT,                    -- JSON
    scenario TEXT NOT NULL,
    stage TEXT NOT NULL,
    status TEXT NOT NULL,
    reason TEXT NOT NULL,
    inputs_digest TEXT NOT NULL,
    conditions TEXT NOT NULL,       -- JSON
    created TEXT NOT NULL           -- UTC, ISO 8601
);
CREATE INDEX measurements_key ON measurements (key);
CREATE TABLE metrics (
    measurement_id INTEGER NOT NULL REFERENCES measurements (id),
    name TEXT NOT NULL, unit TEXT NOT NULL, value REAL, low REAL, high REAL, level REAL,
    method TEXT NOT NULL, n INTEGER NOT NULL, kind TEXT NOT NULL, why TEXT NOT NULL,
    PRIMARY KEY (measurement_id, name)
) WITHOUT ROWID;
CREATE TABLE samples (
    measurement_id INTEGER NOT NULL REFERENCES measurements (id),
    round INTEGER NOT NULL,
    process INTEGER NOT NULL,       -- its pid
    ns BLOB NOT NULL,               -- int64, little-endian: nanoseconds of each call, in order
    PRIMARY KEY (measurement_id, round)
);
CREATE TABLE outcomes (
    measurement_id INTEGER NOT NULL REFERENCES measurements (id),
    position INTEGER NOT NULL,
    row_id TEXT NOT NULL,           -- hash of the text
    answer INTEGER NOT NULL,
    label INTEGER,
    score REAL NOT NULL,
    logits BLOB,                    -- float32, little-endian
    PRIMARY KEY (measurement_id, position)
) WITHOUT ROWID;
CREATE TABLE texts (row_id TEXT PRIMARY KEY, text TEXT NOT NULL, text_pair TEXT) WITHOUT ROWID;
"""

_SUMMARY_HEAD = (
    ("measurement_id", "INTEGER PRIMARY KEY REFERENCES measurements (id)"),
    ("candidate", "TEXT"),
    ("recipe", "TEXT"),
    ("content_digest", "TEXT"),
    ("device", "TEXT"),
    ("provider", "TEXT"),
    ("threads", "INTEGER"),
    ("max_length", "INTEGER"),
    ("batch_size", "INTEGER"),
    ("scenario", "TEXT"),
    ("stage", "TEXT"),
    ("status", "TEXT"),
    ("reason", "TEXT"),
    ("fingerprint_digest", "TEXT"),
)
BUNDLE_INDEX = "CREATE INDEX IF NOT EXISTS summary_bundle ON summary (candidate, recipe, device)"
"""All measurements of one bundle: what a large store is asked for."""
MACHINE_INDEX = "CREATE INDEX IF NOT EXISTS summary_machine ON summary (device, fingerprint_digest)"
"""The machines that a device stood for."""
SUMMARY_COLUMNS: tuple[str, ...] = tuple(name for name, _ in _SUMMARY_HEAD)


def create(db: sqlite3.Connection) -> None:
    """Make the tables in an empty database, all or none."""
    columns = [*(f'"{n}" {t}' for n, t in _SUMMARY_HEAD), *(f'"{m}" REAL' for m in METRICS)]
    statements = [s for s in TABLES.split(";") if s.strip()]
    for statement in [*statements, f"CREATE TABLE summary ({', '.join(columns)})"]:
        db.execute(statement)
    db.execute(BUNDLE_INDEX)
    db.execute(MACHINE_INDEX)
    db.execute("INSERT INTO meta VALUES ('format', ?)", (str(FORMAT),))
    db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    db.execute(f"PRAGMA user_version = {FORMAT}")


def check(db: sqlite3.Connection, place: str) -> bool:
    """True when the database has our tables, False when it is empty. Raises StoreError when it is neither."""
    version = db.execute("PRAGMA user_version").fetchone()[0]
    ours = db.execute("PRAGMA application_id").fetchone()[0] == APPLICATION_ID
    empty = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
    if empty and version == 0:
        return False
    if not ours:
        raise StoreError(f"{place} is a database of another program, not a measurement store; name another file")
    if version > FORMAT:
        raise StoreError(
            f"{place} has store format {version}, this edgewise reads up to {FORMAT}: update edgewise, "
            "or name another file"
        )
    return True


def add_missing_columns(db: sqlite3.Connection) -> None:
    """A store of an older minor version gets the index and the columns of the metrics that came since."""
    db.execute(BUNDLE_INDEX)
    db.execute(MACHINE_INDEX)
    there = {row[1] for row in db.execute("PRAGMA table_info(summary)")}
    for metric in METRICS:
        if metric not in there:
            db.execute(f'ALTER TABLE summary ADD COLUMN "{metric}" REAL')
