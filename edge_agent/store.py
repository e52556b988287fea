"""The database: scores, events, alarm states, pipeline states and the outbox, written together.

    Record ─┬─► scores            every window
            ├─► events            every transition and what is told beside it, once (event_id is the key)
            ├─► alarm_state       the alarm as it stands
            ├─► pipeline_state    what a restart goes on with
            └─► outbox ──unsent()──► broker ──PUBACK──► mark_sent()
    one transaction

A `Store` belongs to one thread at a time: it may be opened by one and handed to another, never shared.
Times in text are RFC 3339 UTC with milliseconds, so that text order is time order.
"""

from __future__ import annotations

import fcntl
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from edge_agent.alarms import Alarm, Transition
from edge_agent.errors import StoreError
from edge_agent.pipeline import Measured
from edge_agent.signals import parse_time, rfc3339

#: Rows deleted in one transaction by `prune`: a few milliseconds, so that an event never waits long.
PRUNE_SLICE = 2000

#: Migration n brings the database from schema version n to n + 1; append, never change one.
MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE scores(id INTEGER PRIMARY KEY, sensor TEXT, ts TEXT, start TEXT, seq INTEGER,
                        score REAL, threshold REAL, ratio REAL, quality TEXT);
    CREATE INDEX scores_sensor_ts ON scores(sensor, ts);
    CREATE TABLE events(event_id TEXT PRIMARY KEY, alarm_id TEXT, sensor TEXT, type TEXT, state TEXT,
                        severity TEXT, ts TEXT, payload TEXT);
    CREATE INDEX events_alarm_id ON events(alarm_id);
    CREATE TABLE alarm_state(sensor TEXT PRIMARY KEY, alarm_id TEXT, state TEXT, severity TEXT, since TEXT,
                             shelved_until TEXT, acked_by TEXT, ack_why TEXT);
    CREATE TABLE pipeline_state(sensor TEXT PRIMARY KEY, ts TEXT, state BLOB);
    CREATE TABLE outbox(id INTEGER PRIMARY KEY, event_id TEXT, topic TEXT, payload TEXT, qos INTEGER,
                        retain INTEGER, created TEXT, sent TEXT);
    CREATE INDEX outbox_unsent ON outbox(id) WHERE sent IS NULL;
    """,
    """
    ALTER TABLE scores ADD COLUMN reasons TEXT;
    ALTER TABLE scores ADD COLUMN regime TEXT;
    CREATE TABLE shadow_scores(id INTEGER PRIMARY KEY, sensor TEXT, ts TEXT, bundle TEXT, score REAL, threshold REAL,
                               ratio REAL, event TEXT);
    CREATE INDEX shadow_scores_bundle ON shadow_scores(bundle, sensor, ts);
    """,
)
SCHEMA_VERSION = len(MIGRATIONS)

# Every page that changes is written to the card twice: an alarm that stands as it stood changes none.
_ALARM_COLUMNS = "alarm_id, state, severity, since, shelved_until, acked_by, ack_why"
_UPSERT_ALARM = (
    f"INSERT INTO alarm_state(sensor, {_ALARM_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
    f" ON CONFLICT(sensor) DO UPDATE SET ({_ALARM_COLUMNS}) ="
    f" ({', '.join('excluded.' + name for name in _ALARM_COLUMNS.split(', '))})"
    f" WHERE ({_ALARM_COLUMNS}) IS NOT ({', '.join('excluded.' + name for name in _ALARM_COLUMNS.split(', '))})"
)


@dataclass(frozen=True)
class EventRow:
    """One event: the transition, where it is published and the exact text (JSON)."""

    transition: Transition
    topic: str
    payload: str


@dataclass(frozen=True)
class Record:
    """What one sensor has to put on record, true together.

    t     : receipt clock in s; `created` of the outbox rows and `ts` of the pipeline state
    state : `pipeline.dump` of the sensor's state; None leaves the stored one as it is
    """

    sensor: str
    measured: tuple[Measured, ...]
    events: tuple[EventRow, ...]
    alarm: Alarm
    state: bytes | None
    t: float


@dataclass(frozen=True)
class ShadowRow:
    """One window as a bundle scored it that runs beside. event: the type of what it would have told; None for nothing."""

    sensor: str
    end: float
    bundle: str
    score: float | None
    threshold: float | None
    ratio: float | None
    event: str | None


@dataclass(frozen=True)
class OutboxRow:
    """An event not yet acknowledged by the broker. `created` is the receipt clock in s."""

    id: int
    event_id: str
    topic: str
    payload: str
    qos: int
    retain: bool
    created: float


def lock(path: Path) -> IO[bytes]:
    """Claim the database for one agent until the returned file is closed; a killed agent's claim ends with it.

    The claim is an flock on `<database>.lock` beside it, not on the database: SQLite has locks of its own
    there, and whoever only reads needs none. Raises StoreError where another agent holds it.
    """
    beside = path.with_name(path.name + ".lock")
    _make_folder(path)
    try:
        file = beside.open("ab")
    except OSError as error:
        raise StoreError(
            f"{beside}: cannot be opened ({error.strerror}): the agent's user must be able to write beside the database"
        ) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        if isinstance(error, BlockingIOError):
            raise StoreError(
                f"another agent is running with this database ({path}): stop it, or give this one its own "
                "`database` and `agent.id`"
            ) from None
        raise StoreError(
            f"{beside}: cannot be locked ({error.strerror}): put the database on a local disk"
        ) from error
    return file


def in_use(path: Path) -> bool:
    """Whether an agent holds the database; True also where that cannot be found out."""
    try:
        with path.with_name(path.name + ".lock").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


class Store:
    """The write path; `Store.open` makes one."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        """Takes over an open connection in autocommit mode whose schema is the present one."""
        self.path = path
        self._db = connection

    @classmethod
    def open(cls, path: Path) -> Store:
        """Open or create the database, with its folder, and bring its schema up to date.

        Raises StoreError with the path and the mend where it cannot be opened or written, is not a
        database, is damaged, or was written by a newer version.
        """
        _make_folder(path)
        with _errors(path, "opened"):
            # One thread at a time is the caller's promise, so sqlite3 need not insist on the opening one.
            db = sqlite3.connect(path, timeout=10.0, isolation_level=None, check_same_thread=False)
        try:
            with _errors(path, "opened"):
                db.execute("PRAGMA busy_timeout = 10000")
                # Small pages and rare checkpoints: a commit of 100 windows touches about ten pages, and each
                # is written whole, to the journal and later to the file. Holds for a new database only.
                db.execute("PRAGMA page_size = 2048")
                db.execute("PRAGMA journal_mode = WAL")
                db.execute("PRAGMA wal_autocheckpoint = 4000")
                db.execute("PRAGMA synchronous = NORMAL")
                _migrate(db, path)
        except StoreError:
            db.close()
            raise
        return cls(db, path)

    def write(self, records: Sequence[Record]) -> None:
        """Put all records down in one transaction, or nothing.

        An event whose event_id is there already is the same event computed again: neither its row nor
        its outbox row is written twice.
        """
        with _errors(self.path, "written"), self._transaction() as db:
            for record in records:
                self._write_one(db, record)

    def write_shadow(self, rows: Sequence[ShadowRow]) -> None:
        """Put down what bundles beside have scored; apart from all that is live."""
        with _errors(self.path, "written"), self._transaction() as db:
            db.executemany(
                "INSERT INTO shadow_scores(sensor, ts, bundle, score, threshold, ratio, event) VALUES (?, ?, ?, ?, ?, ?, ?)",
                [(r.sensor, rfc3339(r.end), r.bundle, r.score, r.threshold, r.ratio, r.event) for r in rows],
            )

    def load_state(self, sensor: str) -> bytes | None:
        """The sensor's last stored pipeline state."""
        with _errors(self.path, "read"):
            row = self._db.execute("SELECT state FROM pipeline_state WHERE sensor = ?", (sensor,)).fetchone()
        return None if row is None else bytes(row[0])

    def alarm_of(self, sensor: str) -> Alarm | None:
        """What the table alarm_state knows of the sensor's alarm (no votes: those are in the state)."""
        with _errors(self.path, "read"):
            row = self._db.execute(
                f"SELECT {_ALARM_COLUMNS} FROM alarm_state WHERE sensor = ?",
                (sensor,),
            ).fetchone()
        if row is None:
            return None
        alarm_id, state, severity, since, shelved_until, acked_by, ack_why = row
        return Alarm(
            state=state,
            severity=severity,
            alarm_id=alarm_id,
            since=None if since is None else parse_time(since),
            shelved_until=None if shelved_until is None else parse_time(shelved_until),
            acked_by=acked_by,
            ack_why=ack_why,
        )

    def unsent(self, limit: int = 100) -> tuple[OutboxRow, ...]:
        """The oldest events that the broker has not acknowledged, in the order they were made."""
        with _errors(self.path, "read"):
            rows = self._db.execute(
                "SELECT id, event_id, topic, payload, qos, retain, created FROM outbox"
                " WHERE sent IS NULL ORDER BY id LIMIT ?",
                (limit,),
            ).fetchall()
        return tuple(
            OutboxRow(row_id, event_id, topic, payload, qos, bool(retain), parse_time(created))
            for row_id, event_id, topic, payload, qos, retain, created in rows
        )

    def mark_sent(self, ids: Sequence[int], t: float) -> None:
        """Note that the broker has acknowledged these rows at t."""
        sent = rfc3339(t)
        with _errors(self.path, "written"), self._transaction() as db:
            db.executemany("UPDATE outbox SET sent = ? WHERE id = ?", [(sent, i) for i in ids])

    def requeue(
        self, since_t: float | None = None, event_id: str | None = None, alarm_id: str | None = None
    ) -> int:
        """Have acknowledged events sent again: those at or after `since_t` (event time, s), of one alarm,
        or one event; with no argument none, since what is unsent waits already. Returns how many wait now.
        """
        where, value = (
            ("ts >= ?", rfc3339(since_t))
            if since_t is not None
            else ("event_id = ?", event_id)
            if event_id is not None
            else ("alarm_id = ?", alarm_id)
        )
        with _errors(self.path, "written"), self._transaction() as db:
            db.execute(
                f"UPDATE outbox SET sent = NULL WHERE event_id IN (SELECT event_id FROM events WHERE {where})",
                (value,),
            )
        return self.outbox_stats()[0]

    def last_event_id(self, sensor: str) -> str | None:
        """The event that told the sensor's present state; None before the first."""
        with _errors(self.path, "read"):
            row = self._db.execute(
                "SELECT event_id FROM events WHERE sensor = ? AND type IN ('new', 'update', 'end')"
                " ORDER BY rowid DESC LIMIT 1",
                (sensor,),
            ).fetchone()
        return None if row is None else str(row[0])

    def outbox_stats(self) -> tuple[int, float | None]:
        """How many events wait for the broker, and the receipt time in s of the oldest."""
        with _errors(self.path, "read"):
            n, oldest = self._db.execute(
                "SELECT count(*), min(created) FROM outbox WHERE sent IS NULL"
            ).fetchone()
        return int(n), None if oldest is None else parse_time(oldest)

    def prune(self, now_t: float, days: float = 35.0) -> int:
        """Delete raw scores older than `days` and acknowledged outbox rows as old; events stay.

        A sensor's age counts from its own newest row, at most from now: replayed recordings of twenty
        years ago stay as long as live ones. Returns the number of rows deleted, `PRUNE_SLICE` a transaction.
        """
        deleted = 0
        with _errors(self.path, "written"):
            for (sensor,) in self._db.execute("SELECT sensor FROM alarm_state").fetchall():
                newest = self._db.execute(
                    "SELECT max(ts) FROM scores WHERE sensor = ?", (sensor,)
                ).fetchone()[0]
                if newest is not None:
                    cutoff = rfc3339(min(now_t, parse_time(newest)) - days * 86400.0)
                    deleted += self._delete("scores", "sensor = ? AND ts < ?", (sensor, cutoff))
                    deleted += self._delete("shadow_scores", "sensor = ? AND ts < ?", (sensor, cutoff))
            cutoff = rfc3339(now_t - days * 86400.0)
            deleted += self._delete("outbox", "sent IS NOT NULL AND sent < ?", (cutoff,))
        return deleted

    def close(self) -> None:
        """Close; what was written is on disk."""
        with _errors(self.path, "closed"):
            self._db.close()

    def _delete(self, table: str, where: str, values: tuple[str, ...]) -> int:
        deleted = 0
        while True:
            n = self._db.execute(
                f"DELETE FROM {table} WHERE id IN (SELECT id FROM {table} WHERE {where} LIMIT {PRUNE_SLICE})",
                values,
            ).rowcount
            deleted += n
            if n < PRUNE_SLICE:
                return deleted

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield self._db
            self._db.execute("COMMIT")
        except BaseException:
            # After some failures (a full disk) sqlite has rolled back by itself.
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def _write_one(self, db: sqlite3.Connection, record: Record) -> None:
        sensor = record.sensor
        if record.measured:
            db.executemany(
                "INSERT INTO scores(sensor, ts, start, seq, score, threshold, ratio, quality, reasons, regime)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (
                        sensor,
                        rfc3339(m.end),
                        rfc3339(m.start),
                        m.seq,
                        m.score,
                        m.threshold,
                        m.ratio,
                        m.quality,
                        ",".join(m.reasons) or None,
                        m.regime,
                    )
                    for m in record.measured
                ],
            )
        for event in record.events:
            tr = event.transition
            new = db.execute(
                "INSERT OR IGNORE INTO events(event_id, alarm_id, sensor, type, state, severity, ts, payload)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    tr.event_id,
                    tr.alarm_id,
                    sensor,
                    tr.type,
                    tr.state,
                    tr.severity,
                    rfc3339(tr.t),
                    event.payload,
                ),
            ).rowcount
            if new:
                db.execute(
                    "INSERT INTO outbox(event_id, topic, payload, qos, retain, created, sent)"
                    " VALUES (?, ?, ?, 1, 0, ?, NULL)",
                    (tr.event_id, event.topic, event.payload, rfc3339(record.t)),
                )
        alarm = record.alarm
        db.execute(
            _UPSERT_ALARM,
            (
                sensor,
                alarm.alarm_id,
                alarm.state,
                alarm.severity,
                None if alarm.since is None else rfc3339(alarm.since),
                None if alarm.shelved_until is None else rfc3339(alarm.shelved_until),
                alarm.acked_by,
                alarm.ack_why,
            ),
        )
        if record.state is not None:
            db.execute(
                "INSERT INTO pipeline_state(sensor, ts, state) VALUES (?, ?, ?)"
                " ON CONFLICT(sensor) DO UPDATE SET ts = excluded.ts, state = excluded.state",
                (sensor, rfc3339(record.t), record.state),
            )


def _migrate(db: sqlite3.Connection, path: Path) -> None:
    version = _version(db, path)
    if version > SCHEMA_VERSION:
        raise StoreError(
            f"{path}: schema version {version} was written by a newer agent, this one knows {SCHEMA_VERSION}: "
            "update the agent or name another file in `database`"
        )
    for n in range(version, SCHEMA_VERSION):
        # executescript commits by itself, so the whole step is one script.
        db.executescript(
            f"BEGIN IMMEDIATE; {MIGRATIONS[n]}"
            "CREATE TABLE IF NOT EXISTS schema_version(version INTEGER); DELETE FROM schema_version;"
            f"INSERT INTO schema_version VALUES ({n + 1}); COMMIT;"
        )


def _version(db: sqlite3.Connection, path: Path) -> int:
    tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if "schema_version" in tables:
        row = db.execute("SELECT version FROM schema_version").fetchone()
        return int(row[0]) if row else 0
    if tables:
        raise StoreError(
            f"{path}: a database of another program (tables {', '.join(sorted(tables)[:5])}): "
            "name another file in `database`"
        )
    return 0


#: What sqlite says, what to do about it.
_HINTS: tuple[tuple[str, str], ...] = (
    ("not a database", "it is not a SQLite database: move it away, or name another file in `database`"),
    (
        "malformed",
        "it is damaged: stop the agent, save what `sqlite3 FILE .recover` yields, and start with a new file",
    ),
    (
        "unable to open",
        "check that the path is a file, and that the agent's user may write it and its folder",
    ),
    ("readonly", "give the agent's user write permission on the file and its folder"),
    ("full", "the disk is full: free some space"),
    ("locked", "another program holds it: is a second agent running on this database?"),
    ("disk I/O error", "the disk or card fails: check it, and the system's log"),
)


def _hint(message: str) -> str:
    return next((hint for key, hint in _HINTS if key in message), "check the file and the disk")


def _make_folder(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"{path}: its folder cannot be made ({error.strerror}): correct `database` in the configuration"
        ) from error


@contextmanager
def _errors(path: Path, action: str) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise StoreError(f"{path}: cannot be {action} ({error}): {_hint(str(error))}") from error
