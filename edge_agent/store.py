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

import errno
import fcntl
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from edge_agent.alarms import ACKED, UNACK, Alarm, Transition
from edge_agent.errors import DamagedStoreError, FullStoreError, StoreError, UnwritableStoreError
from edge_agent.pipeline import Measured
from edge_agent.signals import parse_time, rfc3339

#: Rows rolled up or deleted in one transaction: a few milliseconds, so that an event never waits long.
PRUNE_SLICE = 500
#: Raw scores that stay even where the database grows beyond its size, by their own time.
KEPT_S = DAY_S = 86400.0
#: A file of this size beside the database is given up when the disk is full, so that the oldest scores can be
#: deleted at all: a deletion is written to the journal first, which holds at most as much.
RESERVE_BYTES = 8 << 20
#: The newest row of a sensor that has not spoken since the start is looked for among so many, and so are its first ones after
#: a time.
LOOK_BACK_ROWS = 100_000
#: Rows of a sensor from a time on, of which the first to be written tells where that time lies among the ids.
WITNESSES = 20
#: One pass over what is old goes on as long as its limits are at most so old: finding them takes some ms a sensor.
PASS_S = 60.0
#: 2020-01-01, before the first version: a clock of the agent that stands before it has not been set yet.
CLOCK_SET_S = 1_577_836_800.0
#: The earliest time there is in text.
_YEAR_1 = -62_135_596_800.0
#: Seconds that the check at start may take.
CHECK_S = 2.0

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
    CREATE TABLE scores_minute(sensor TEXT, minute TEXT, n INTEGER, scored INTEGER, score_min REAL, score_mean REAL,
                               score_max REAL, ratio_max REAL, good INTEGER, suspect INTEGER, bad INTEGER,
                               PRIMARY KEY (sensor, minute)) WITHOUT ROWID;
    DROP INDEX scores_sensor_ts;
    CREATE INDEX scores_ts_sensor ON scores(ts, sensor);
    CREATE TABLE verdicts(id INTEGER PRIMARY KEY, alarm_id TEXT, sensor TEXT, verdict TEXT, "by" TEXT, why TEXT, ts TEXT);
    CREATE INDEX verdicts_alarm_id ON verdicts(alarm_id);
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

# A minute that is cut by a slice is completed by the next one.
_ROLL_UP = """
    INSERT INTO scores_minute(sensor, minute, n, scored, score_min, score_mean, score_max, ratio_max, good, suspect, bad)
    SELECT sensor, substr(ts, 1, 17) || '00.000Z', count(*), count(score), min(score), avg(score), max(score), max(ratio),
           sum(quality = 'good'), sum(quality = 'suspect'), sum(quality = 'bad')
    FROM scores WHERE id IN (SELECT id FROM old) GROUP BY 1, 2
    ON CONFLICT(sensor, minute) DO UPDATE SET
        n = n + excluded.n,
        score_mean = CASE WHEN scored + excluded.scored > 0 THEN
            (coalesce(score_mean, 0) * scored + coalesce(excluded.score_mean, 0) * excluded.scored)
            / (scored + excluded.scored) END,
        scored = scored + excluded.scored,
        score_min = min(coalesce(score_min, excluded.score_min), coalesce(excluded.score_min, score_min)),
        score_max = max(coalesce(score_max, excluded.score_max), coalesce(excluded.score_max, score_max)),
        ratio_max = max(coalesce(ratio_max, excluded.ratio_max), coalesce(excluded.ratio_max, ratio_max)),
        good = good + excluded.good, suspect = suspect + excluded.suspect, bad = bad + excluded.bad
"""


# Rows of a bundle beside are few, and have no index by time alone.
_AGED_SHADOW = (
    "sensor = ? AND ts < ? AND id < ifnull((SELECT id FROM shadow_scores WHERE sensor = ? AND ts BETWEEN ? AND ?"
    " ORDER BY id LIMIT 1), 1 << 62)"
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
class _Spoken:
    """Times of a sensor's rows, RFC 3339. last: of the row that was written last; greatest: of all that were looked at."""

    last: str
    greatest: str


@dataclass(frozen=True)
class _Pass:
    """One pass over the rows that are old by these limits, in order of their time.

    limits : (sensor, the time before which its rows are old, s), one or more a sensor
    at     : the time of the next row to look at; None: all are done
    """

    limits: tuple[tuple[str, float], ...]
    at: str | None = ""


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
        try:
            file: IO[bytes] = beside.open("ab")
        except OSError as error:
            if error.errno not in (errno.EROFS, errno.ENOSPC) or not path.is_file():
                raise
            # A disk that may only be read now: nobody else can make the lock file either.
            file = (beside if beside.is_file() else path).open("rb")
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

    def __init__(self, connection: sqlite3.Connection, path: Path, checked: str = "not checked") -> None:
        """Takes over an open connection in autocommit mode whose schema is the present one."""
        self.path = path
        self.checked = checked
        self._db = connection
        self._files = _identities(path)
        self._spoken: dict[str, _Spoken | None] = {}
        self._passes: dict[str, _Pass] = {}

    @classmethod
    def open(
        cls, path: Path, check_s: float = CHECK_S, monotonic: Callable[[], float] = time.monotonic
    ) -> Store:
        """Open or create the database, with its folder, check it and bring its schema up to date.

        check_s : seconds that `PRAGMA quick_check` may take; `checked` tells how it came out
        Raises StoreError with the path and the mend where it cannot be opened, belongs to another program or
        was written by a newer version; DamagedStoreError and UnwritableStoreError where that is what is wrong.
        """
        _make_folder(path)
        with _errors(path, "opened"):
            # One thread at a time is the caller's promise, so sqlite3 need not insist on the opening one.
            db = sqlite3.connect(path, timeout=10.0, isolation_level=None, check_same_thread=False)
        try:
            with _errors(path, "opened"):
                db.execute("PRAGMA busy_timeout = 10000")
                # Small pages and rare checkpoints: a commit of 100 windows touches a few pages of every sensor, and each
                # is written whole, to the journal and later to the file. Holds for a new database only.
                db.execute("PRAGMA page_size = 1024")
                db.execute("PRAGMA journal_mode = WAL")
                db.execute("PRAGMA wal_autocheckpoint = 8000")
                db.execute("PRAGMA synchronous = NORMAL")
                db.execute("PRAGMA temp_store = MEMORY")
                version = _version(db, path)
                checked = _quick_check(db, path, check_s, monotonic)
                _migrate(db, path, version)
        except StoreError:
            with suppress(sqlite3.Error):  # what is wrong has been told
                db.close()
            raise
        return cls(db, path, checked)

    def write(self, records: Sequence[Record]) -> None:
        """Put all records down in one transaction, or nothing.

        An event whose event_id is there already is the same event computed again: neither its row nor
        its outbox row is written twice. Where there are events, the transaction and all before it outlast a loss of power;
        scores alone are left to the kernel, which writes them within some 30 s.
        """
        lasting = any(record.events for record in records)
        with _errors(self.path, "written"), self._transaction(lasting) as db:
            for record in records:
                self._write_one(db, record)
        for record in records:
            if record.measured:
                greatest = rfc3339(max(m.end for m in record.measured))
                before = self._spoken.get(record.sensor)
                self._spoken[record.sensor] = _Spoken(
                    rfc3339(record.measured[-1].end), greatest if before is None else max(greatest, before.greatest)
                )

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

    def saved_at(self, sensor: str) -> float | None:
        """Receipt time in s at which that state was stored."""
        with _errors(self.path, "read"):
            row = self._db.execute("SELECT ts FROM pipeline_state WHERE sensor = ?", (sensor,)).fetchone()
        return None if row is None else _time(row[0])

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
            condition=state in (UNACK, ACKED),
            alarm_id=alarm_id,
            since=_time(since),
            shelved_until=_time(shelved_until),
            acked_by=acked_by,
            ack_why=ack_why,
        )

    def unsent(self, limit: int = 100, without: Sequence[str] = ()) -> tuple[OutboxRow, ...]:
        """The oldest events that the broker has not acknowledged, in the order they were made, but for some topics."""
        with _errors(self.path, "read"):
            rows = self._db.execute(
                "SELECT id, event_id, topic, payload, qos, retain, created FROM outbox"
                f" WHERE sent IS NULL AND topic NOT IN ({', '.join('?' * len(without))}) ORDER BY id LIMIT ?",
                (*without, limit),
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

    def judge(self, alarm_id: str, true: bool, by: str | None, why: str | None, t: float) -> str | None:
        """Note a person's verdict on an alarm at t (receipt clock, s); returns its sensor, None where there is no such alarm.

        The last verdict on an alarm is the one that counts; those before it stay on record.
        """
        with _errors(self.path, "written"), self._transaction(lasting=True) as db:
            found = db.execute(
                "SELECT sensor FROM events WHERE alarm_id = ? AND type = 'new' LIMIT 1", (alarm_id,)
            ).fetchone()
            if found is None:
                return None
            db.execute(
                'INSERT INTO verdicts(alarm_id, sensor, verdict, "by", why, ts) VALUES (?, ?, ?, ?, ?, ?)',
                (alarm_id, found[0], "true" if true else "false", by, why, rfc3339(t)),
            )
        return str(found[0])

    def last_event_id(self, sensor: str) -> str | None:
        """The event that told the sensor's present state; None before the first."""
        with _errors(self.path, "read"):
            row = self._db.execute(
                "SELECT event_id FROM events WHERE sensor = ? AND type IN ('new', 'update', 'end')"
                " ORDER BY rowid DESC LIMIT 1",
                (sensor,),
            ).fetchone()
        return None if row is None else str(row[0])

    def sensors(self) -> tuple[str, ...]:
        """Every sensor that has an alarm's state on record, also those that the configuration no longer has."""
        with _errors(self.path, "read"):
            return tuple(name for (name,) in self._db.execute("SELECT sensor FROM alarm_state ORDER BY sensor"))

    def outbox_stats(self) -> tuple[int, float | None]:
        """How many events wait for the broker, and the receipt time in s of the oldest."""
        with _errors(self.path, "read"):
            n, oldest = self._db.execute(
                "SELECT count(*), min(created) FROM outbox WHERE sent IS NULL"
            ).fetchone()
        return int(n), None if oldest is None else parse_time(oldest)

    def prune(self, now_t: float, days: float = 35.0, max_bytes: float | None = None) -> int:
        """`prune_slice` until nothing is left to do; returns the number of rows that went."""
        gone = 0
        while n := self.prune_slice(now_t, days, max_bytes):
            gone += n
        return gone

    def prune_slice(self, now_t: float, days: float = 35.0, max_bytes: float | None = None) -> int:
        """One transaction of retention, at most `PRUNE_SLICE` rows; 0 where nothing is left to do. Events stay.

        Raw scores older than `days` become one row a minute in `scores_minute`, and acknowledged outbox rows
        as old are deleted. A sensor's age counts from the row of it that was written last, at most from now: replayed
        recordings of twenty years ago stay as long as live ones. A row goes only where it is old by its time and by its id:
        what was written a moment ago by a clock that stood in 1970 stays. Where the database holds more than
        `max_bytes`, the oldest raw scores but those of each sensor's last day are rolled up early, then the oldest minutes go.
        """
        with _errors(self.path, "written"):
            sensors = [sensor for (sensor,) in self._db.execute("SELECT sensor FROM alarm_state").fetchall()]
            spoken = {sensor: said for sensor in sensors if (said := self._spoken_of(sensor)) is not None}
            newest = {sensor: min(now_t, parse_time(said.last)) for sensor, said in spoken.items()}
            if n := self._roll_up("age", tuple((sensor, t - days * DAY_S) for sensor, t in newest.items())):
                return n
            for sensor, t in newest.items():
                cutoff = _text(t - days * DAY_S)
                if n := self._delete("shadow_scores", "id", _AGED_SHADOW, (sensor, cutoff, sensor, cutoff, _text(t))):
                    return n
            if n := self._forget_sent(now_t, days * DAY_S):
                return n
            if max_bytes is None or self._used_bytes() <= max_bytes:
                return 0
            # No sensor's day ends after now, where that is known. By its last row alone a clock that was set back makes nothing
            # old, by its greatest time alone nothing that was written since: it is old by either.
            now = now_t if now_t >= CLOCK_SET_S else float("inf")
            limits = tuple(
                (sensor, min(now, parse_time(ts)) - KEPT_S)
                for sensor, said in spoken.items()
                for ts in sorted({said.last, said.greatest})
            )
            return (
                self._roll_up("size", limits)
                or self._roll_up_again({sensor: min(now, parse_time(said.last)) - KEPT_S for sensor, said in spoken.items()})
                or self._delete("scores_minute", "(sensor, minute)", "1 ORDER BY minute", ())
            )

    def trim(self) -> int:
        """Delete the oldest scores, a slice of them, minutes before single rows; returns how many."""
        with _errors(self.path, "written"):
            return (
                self._delete("shadow_scores", "id", "1 ORDER BY id", ())
                or self._delete("scores_minute", "(sensor, minute)", "1 ORDER BY minute", ())
                or self._delete("scores", "id", "1 ORDER BY id", ())
            )

    def make_room(self) -> int:
        """On a full disk: give up the reserve, fold the journal back into the file, `trim`. Rows deleted.

        Raises StoreError where the reserve cannot be given up and nothing else was found.
        """
        kept: OSError | None = None
        try:
            self.reserve_path.unlink(missing_ok=True)
        except OSError as error:
            kept = error
        with suppress(sqlite3.Error):  # where even that finds no room, the deletion tells
            self._db.execute("PRAGMA wal_checkpoint(RESTART)").fetchall()
        n = self.trim()
        if kept is not None and not n:
            raise UnwritableStoreError(
                f"{self.reserve_path}: cannot be deleted to make room ({kept.strerror}): free some space, and check the disk"
            ) from kept
        return n

    @property
    def reserve_path(self) -> Path:
        """The file whose room is given up when the disk is full."""
        return self.path.with_name(self.path.name + ".reserve")

    def reserve(self) -> bool:
        """Hold room back for `make_room`; False where twice as much is not free (or held already)."""
        path = self.reserve_path
        try:
            if path.exists() and path.stat().st_size >= RESERVE_BYTES:
                return True
            free = os.statvfs(path.parent)
            if free.f_bavail * free.f_frsize < 2 * RESERVE_BYTES:
                return False
            with path.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, RESERVE_BYTES)
        except OSError:
            return False
        return True

    def room_bytes(self, max_bytes: float) -> float:
        """Bytes that the database may still grow by: on the disk, and up to `max_bytes`."""
        with _errors(self.path, "read"):
            used = self._used_bytes()
        try:
            free = os.statvfs(self.path.parent)
        except OSError as error:
            raise UnwritableStoreError(
                f"{self.path}: its folder cannot be looked at ({error.strerror}): check the disk and what is mounted there"
            ) from error
        return max(0.0, min(float(free.f_bavail * free.f_frsize), max_bytes - used))

    def gone(self) -> bool:
        """Whether the file, or its journal, is no longer the one that was opened."""
        return any(was not in (None, now) for was, now in zip(self._files, _identities(self.path), strict=True))

    def copy_to(self, path: Path) -> None:
        """Write all of it to a new file; an open database can be read after its file was deleted."""
        with _errors(self.path, "read"), closing(sqlite3.connect(path)) as other:
            self._db.backup(other)

    def adopt(self, table: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Take over rows of another database, but for those that are here already."""
        marks = ", ".join("?" * len(columns))
        with _errors(self.path, "written"), self._transaction() as db:
            db.executemany(f"INSERT OR IGNORE INTO {table}({', '.join(columns)}) VALUES ({marks})", rows)

    def queue_again(self, rows: Sequence[OutboxRow]) -> None:
        """Have these events wait for the broker, where they do not wait already; `id` is not looked at."""
        with _errors(self.path, "written"), self._transaction() as db:
            db.executemany(
                "INSERT INTO outbox(event_id, topic, payload, qos, retain, created, sent)"
                " SELECT ?1, ?2, ?3, ?4, ?5, ?6, NULL"
                " WHERE NOT EXISTS (SELECT 1 FROM outbox WHERE event_id = ?1 AND sent IS NULL)",
                [(r.event_id, r.topic, r.payload, r.qos, int(r.retain), rfc3339(r.created)) for r in rows],
            )

    def close(self) -> None:
        """Close; what was written is on disk."""
        with _errors(self.path, "closed"):
            self._db.close()

    def _spoken_of(self, sensor: str) -> _Spoken | None:
        # The index is in order of time over all sensors: a silent one is not searched through all of it. It has had its
        # rows rolled up while it spoke, and none have grown older since by its own time.
        if sensor not in self._spoken:
            recent = f"FROM scores WHERE id > (SELECT max(id) FROM scores) - {LOOK_BACK_ROWS} AND sensor = ?"
            last = self._db.execute(f"SELECT ts {recent} ORDER BY id DESC LIMIT 1", (sensor,)).fetchone()
            greatest = self._db.execute(f"SELECT max(ts) {recent}", (sensor,)).fetchone()
            self._spoken[sensor] = None if last is None else _Spoken(last[0], greatest[0])
        return self._spoken[sensor]

    def _bound(self, sensor: str, cutoff: str) -> int | None:
        """The id below which the sensor's rows were written before its clock came to `cutoff`; None where that is not known.

        Ids tell the order in which rows were written, times do not: a clock is set back, a recording replayed. So the first to
        be written of those from `cutoff` on bounds what is old, and odd times behind it wait until ids have grown old as well.
        """
        (bound,) = self._db.execute(
            f"SELECT min(id) FROM (SELECT id FROM (SELECT id, sensor FROM scores WHERE ts >= ? ORDER BY ts LIMIT {LOOK_BACK_ROWS})"
            f" WHERE sensor = ? LIMIT {WITNESSES})",
            (cutoff, sensor),
        ).fetchone()
        if bound is None:  # it was silent for long after that time; where it still is, it waits for its next word
            (bound,) = self._db.execute(
                f"SELECT min(id) FROM scores WHERE id > (SELECT max(id) FROM scores) - {LOOK_BACK_ROWS}"
                " AND sensor = ? AND ts >= ?",
                (sensor, cutoff),
            ).fetchone()
        return None if bound is None else int(bound)

    def _pass(self, name: str, limits: tuple[tuple[str, float], ...]) -> _Pass:
        """The pass of this name that goes on, or a new one where its limits are not about these."""
        going = self._passes.get(name)
        if (
            going is not None
            and [sensor for sensor, _ in going.limits] == [sensor for sensor, _ in limits]
            and all(0.0 <= t - before <= PASS_S for (_, t), (_, before) in zip(limits, going.limits, strict=True))
        ):
            return going
        self._db.execute("CREATE TEMP TABLE IF NOT EXISTS aged(pass TEXT, sensor TEXT, cutoff TEXT, bound INTEGER)")
        self._db.execute("CREATE INDEX IF NOT EXISTS temp.aged_sensor ON aged(pass, sensor)")
        self._db.execute("DELETE FROM aged WHERE pass = ?", (name,))
        for sensor, t in limits:
            cutoff = _text(t)
            self._db.execute("INSERT INTO aged VALUES (?, ?, ?, ?)", (name, sensor, cutoff, self._bound(sensor, cutoff)))
        self._passes[name] = _Pass(limits)
        return self._passes[name]

    def _forget_sent(self, now_t: float, kept_s: float) -> int:
        """Delete a slice of the outbox rows that were acknowledged longer ago than `kept_s`.

        By the times of the sensors and of the newest event, too: a clock that is stepped years ahead makes nothing old. What was
        sent while the clock stood in 1970 goes with the first row behind it that is old, and no row before one that is young.
        """
        known = self._db.execute(
            "SELECT max(ts) FROM scores UNION ALL SELECT * FROM (SELECT created FROM outbox ORDER BY id DESC LIMIT 1)"
        ).fetchall()
        newest = max((parse_time(t) for (t,) in known if t is not None), default=now_t)
        cutoff, clock_set = _text(min(now_t, newest) - kept_s), rfc3339(CLOCK_SET_S)
        (young,) = self._db.execute("SELECT ifnull(min(id), 1 << 62) FROM outbox WHERE sent >= ?", (cutoff,)).fetchone()
        (old,) = self._db.execute(
            "SELECT max(id) FROM outbox WHERE sent >= ? AND sent < ? AND id < ?", (clock_set, cutoff, young)
        ).fetchone()
        return self._delete("outbox", "id", "sent IS NOT NULL AND sent < ? AND id <= ?", (cutoff, old or 0))

    def _roll_up(self, name: str, limits: tuple[tuple[str, float], ...]) -> int:
        """Roll up a slice of the rows that are old by these limits (see `_Pass`); 0 where none is left."""
        going = self._pass(name, limits)
        if going.at is None:
            return 0
        old = self._db.execute(
            "SELECT id, ts FROM scores AS s INDEXED BY scores_ts_sensor"
            " WHERE ts >= ?2 AND ts < (SELECT max(cutoff) FROM aged WHERE pass = ?1) AND EXISTS"
            " (SELECT 1 FROM aged WHERE pass = ?1 AND sensor = s.sensor AND s.ts < cutoff AND s.id < bound)"
            f" ORDER BY ts LIMIT {PRUNE_SLICE}",
            (name, going.at),
        ).fetchall()
        self._fold([row_id for row_id, _ in old])
        self._passes[name] = replace(going, at=old[-1][1] if len(old) == PRUNE_SLICE else None)
        return len(old)

    def _roll_up_again(self, limits: dict[str, float]) -> int:
        """Roll up a slice of the rows that are old by their time alone, the first written first: where a sensor's times come again and
        again (a recording replayed, a plant whose clock begins anew), ids never tell, and the size must be kept all the same."""
        for sensor, t in limits.items():
            old = self._db.execute(
                f"SELECT id FROM scores WHERE sensor = ? AND ts < ? ORDER BY id LIMIT {PRUNE_SLICE}", (sensor, _text(t))
            ).fetchall()
            if old:
                self._fold([row_id for (row_id,) in old])
                return len(old)
        return 0

    def _fold(self, ids: Sequence[int]) -> None:
        """These rows into their minutes, in one transaction."""
        if not ids:
            return
        with self._transaction() as db:
            db.execute("CREATE TEMP TABLE IF NOT EXISTS old(id INTEGER PRIMARY KEY)")
            db.execute("DELETE FROM old")
            db.executemany("INSERT INTO old VALUES (?)", [(row_id,) for row_id in ids])
            db.execute(_ROLL_UP)
            db.execute("DELETE FROM scores WHERE id IN (SELECT id FROM old)")

    def _delete(self, table: str, key: str, where: str, values: tuple[str | int, ...]) -> int:
        columns = key.strip("()")
        return self._db.execute(
            f"DELETE FROM {table} WHERE {key} IN (SELECT {columns} FROM {table} WHERE {where} LIMIT {PRUNE_SLICE})",
            values,
        ).rowcount

    def _used_bytes(self) -> int:
        pages, free, size = (
            self._db.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_count", "freelist_count", "page_size")
        )
        return int((pages - free) * size)

    @contextmanager
    def _transaction(self, lasting: bool = False) -> Iterator[sqlite3.Connection]:
        """lasting: its commit returns once the disk has it."""
        if self.gone():
            # SQLite would go on writing into a file without a name.
            raise DamagedStoreError(f"{self.path}: was deleted or replaced while the agent was running")
        self._db.execute(f"PRAGMA synchronous = {'FULL' if lasting else 'NORMAL'}")
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


def _time(text: str | None) -> float | None:
    """The time (s) in a column that the file may have damaged; None where there is none."""
    try:
        return None if text is None else parse_time(text)
    except ValueError:
        return None


def _text(t: float) -> str:
    """RFC 3339 of t (s); of the year 1 where t lies before it."""
    return rfc3339(max(t, _YEAR_1))


def _quick_check(db: sqlite3.Connection, path: Path, limit_s: float, monotonic: Callable[[], float]) -> str:
    """"ok", or that there was not time enough; raises DamagedStoreError with the first finding."""
    deadline = monotonic() + limit_s
    db.set_progress_handler(lambda: monotonic() > deadline, 2000)
    try:
        found = str(db.execute("PRAGMA quick_check(1)").fetchone()[0])
    except sqlite3.OperationalError as error:
        if "interrupted" not in str(error):
            raise
        return f"sound as far as {limit_s:g} s allowed to look"
    finally:
        db.set_progress_handler(None, 0)
    if found != "ok":
        raise DamagedStoreError(f"{path}: is damaged ({' '.join(found.split())[:200]}): {_hint('malformed')}")
    return found


def _migrate(db: sqlite3.Connection, path: Path, version: int) -> None:
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
        "it is damaged: the agent sets it aside and begins a new one; `sqlite3 FILE .recover` yields what is left",
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


def _identities(path: Path) -> tuple[tuple[int, int] | None, ...]:
    """Device and inode of the file and of its journal; None where there is none."""
    found: list[tuple[int, int] | None] = []
    for name in (path, path.with_name(path.name + "-wal")):
        try:
            stat = name.stat()
        except OSError:
            found.append(None)
        else:
            found.append((stat.st_dev, stat.st_ino))
    return tuple(found)


def _read_only_disk(path: Path) -> bool:
    try:
        return bool(os.statvfs(path.parent).f_flag & os.ST_RDONLY)
    except OSError:
        return False


def _kind(path: Path, message: str) -> type[StoreError]:
    if "malformed" in message or "not a database" in message:
        return DamagedStoreError
    if "full" in message:
        return FullStoreError
    if "readonly" in message or "disk I/O error" in message or _read_only_disk(path):
        return UnwritableStoreError
    return StoreError


@contextmanager
def _errors(path: Path, action: str) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        text = str(error)
        hint = "the disk may only be read now: see the system's log" if _read_only_disk(path) else _hint(text)
        raise _kind(path, text)(f"{path}: cannot be {action} ({text}): {hint}") from error
