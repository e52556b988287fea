"""The database: all or nothing, exactly once, readable after a kill, and plain about what is wrong with it."""

from __future__ import annotations

import errno
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edge_agent import queries
from edge_agent import store as storage
from edge_agent.alarms import Alarm, Transition, beside
from edge_agent.errors import StoreError
from edge_agent.pipeline import Measured
from edge_agent.signals import rfc3339
from edge_agent.store import EventRow, Record, Store

T0 = 1_700_000_000.0
DAY = 86400.0


def window(i: int, score: float | None = 0.5, t: float = T0) -> Measured:
    ratio = None if score is None else score / 0.4
    return Measured(i, t + i, t + i + 1, score, None if score is None else 0.4, ratio)


def transition(n: int, kind: str = "new", state: str = "UNACK", severity: str = "warning") -> Transition:
    return Transition(kind, f"E{n}", "A1", T0 + n, state, severity, T0)


def record(
    *measured: Measured,
    sensor: str = "s1",
    events: tuple[Transition, ...] = (),
    alarm: Alarm = Alarm(),
    state: bytes | None = None,
    t: float = T0,
) -> Record:
    rows = tuple(EventRow(e, f"edge/a/s/{sensor}/event", f'{{"event_id":"{e.event_id}"}}') for e in events)
    return Record(sensor, measured, rows, alarm, state, t)


def rows(path: Path, query: str) -> list[tuple[object, ...]]:
    with sqlite3.connect(path) as db:
        return db.execute(query).fetchall()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "er" / "edge.db"


def test_the_commit_of_an_event_waits_for_the_disk(path: Path) -> None:
    """An event and a verdict are committed with synchronous=FULL; scores alone, which a card should not be worn out for, are not."""
    store = Store.open(path)
    seen: list[str] = []

    def trace(statement: str) -> None:
        if statement == "COMMIT":
            store._db.set_trace_callback(None)
            (level,) = store._db.execute("PRAGMA synchronous").fetchone()
            seen.append({1: "NORMAL", 2: "FULL"}[level])
            store._db.set_trace_callback(trace)

    store._db.set_trace_callback(trace)
    store.write([record(window(0))])
    store.write([record(window(1)), record(window(2), events=(transition(1),), sensor="s2")])
    store.write([record(window(3))])
    assert store.judge("A1", True, None, None, T0) == "s2"
    store.write([record(window(4))])
    assert seen == ["NORMAL", "FULL", "NORMAL", "FULL", "NORMAL"]
    store.close()


def test_schema_is_that_of_the_contract(path: Path) -> None:
    """Tables, columns, their order and types are what dashboards may rely on."""
    Store.open(path).close()
    contract = {
        "scores": "id INTEGER PRIMARY KEY, sensor TEXT, ts TEXT, start TEXT, seq INTEGER, score REAL, "
        "threshold REAL, ratio REAL, quality TEXT, reasons TEXT, regime TEXT",
        "events": "event_id TEXT PRIMARY KEY, alarm_id TEXT, sensor TEXT, type TEXT, state TEXT, severity TEXT, "
        "ts TEXT, payload TEXT",
        "alarm_state": "sensor TEXT PRIMARY KEY, alarm_id TEXT, state TEXT, severity TEXT, since TEXT, "
        "shelved_until TEXT, acked_by TEXT, ack_why TEXT",
        "pipeline_state": "sensor TEXT PRIMARY KEY, ts TEXT, state BLOB",
        "outbox": "id INTEGER PRIMARY KEY, event_id TEXT, topic TEXT, payload TEXT, qos INTEGER, retain INTEGER, "
        "created TEXT, sent TEXT",
        "schema_version": "version INTEGER",
    }
    for table, wanted in contract.items():
        columns = rows(path, f"PRAGMA table_info({table})")
        found = ", ".join(
            f"{name} {kind}{' PRIMARY KEY' if pk else ''}" for _, name, kind, _, _, pk in columns
        )
        assert found == wanted, table
    assert rows(path, "SELECT version FROM schema_version") == [(storage.SCHEMA_VERSION,)]
    assert rows(path, "PRAGMA journal_mode") == [("wal",)]
    assert rows(path, "SELECT name FROM pragma_index_info('scores_ts_sensor')") == [("ts",), ("sensor",)]


def test_a_record_is_written_whole_and_read_back(path: Path) -> None:
    """Scores, event, alarm, state and outbox of one record are all there after reopening."""
    store = Store.open(path)
    alarm = Alarm("ACKED", "alarm", "A1", T0, condition=True, acked_by="kim", ack_why="seen", shelved_until=T0 + 5)
    store.write([record(window(0, None), window(1), events=(transition(1),), alarm=alarm, state=b"\x00\xff")])
    store.close()
    store = Store.open(path)
    assert store.load_state("s1") == b"\x00\xff"
    assert store.load_state("other") is None
    assert store.alarm_of("s1") == alarm
    assert store.alarm_of("other") is None
    (row,) = store.unsent(10)
    assert (row.event_id, row.topic, row.qos, row.retain, row.created) == (
        "E1",
        "edge/a/s/s1/event",
        1,
        False,
        T0,
    )
    assert store.outbox_stats() == (1, T0)
    store.close()
    assert rows(path, "SELECT sensor, ts, start, seq, score, threshold, ratio, quality FROM scores") == [
        ("s1", rfc3339(T0 + 1), rfc3339(T0), 0, None, None, None, "good"),
        ("s1", rfc3339(T0 + 2), rfc3339(T0 + 1), 1, 0.5, 0.4, 1.25, "good"),
    ]


def test_scores_keep_every_bit(path: Path) -> None:
    """A score read back equals the one written, so that live and offline results can be compared exactly."""
    store = Store.open(path)
    values = [0.1 + 0.2, 1e-300, 1 / 3]
    store.write([record(*(window(i, v) for i, v in enumerate(values)))])
    store.close()
    assert [v for (v,) in rows(path, "SELECT score FROM scores ORDER BY id")] == values


def test_a_write_is_all_or_nothing(path: Path) -> None:
    """When one record of a batch cannot be written, nothing of the batch is."""
    store = Store.open(path)
    store.write([record(window(0), state=b"old")])
    broken = record(window(2), events=(transition(2),), state=b"new")
    broken = Record("s2", broken.measured, broken.events, Alarm(acked_by=object()), b"new", T0)  # type: ignore[arg-type]
    with pytest.raises(StoreError, match=re.escape(str(path))):
        store.write([record(window(1), events=(transition(1),), state=b"new"), broken])
    assert store.load_state("s1") == b"old"
    assert store.unsent(10) == ()
    store.write([record(window(3))])  # and the store goes on
    store.close()
    assert [n for (n,) in rows(path, "SELECT seq FROM scores ORDER BY id")] == [0, 3]


def test_an_event_computed_twice_is_written_and_sent_once(path: Path) -> None:
    """The same event_id again, as after a crash, adds neither an event nor an outbox row."""
    store = Store.open(path)
    for _ in range(2):
        store.write([record(window(0), events=(transition(1),))])
    assert [r.event_id for r in store.unsent(10)] == ["E1"]
    store.mark_sent([store.unsent(1)[0].id], T0 + 1)
    store.write([record(window(0), events=(transition(1),))])
    assert store.unsent(10) == ()
    assert store.outbox_stats() == (0, None)
    store.close()
    assert rows(path, "SELECT count(*) FROM events") == [(1,)]


def test_a_state_of_none_leaves_the_stored_one(path: Path) -> None:
    """A record without a state writes its scores and keeps the last state."""
    store = Store.open(path)
    store.write([record(window(0), state=b"kept")])
    store.write([record(window(1))])
    assert store.load_state("s1") == b"kept"
    store.close()


def test_outbox_keeps_the_order_and_marks_what_was_acknowledged(path: Path) -> None:
    """Unsent events come oldest first, up to the limit, until each is acknowledged."""
    store = Store.open(path)
    store.write([record(events=tuple(transition(n) for n in range(5)), t=T0 + 1)])
    first = store.unsent(2)
    assert [r.event_id for r in first] == ["E0", "E1"]
    store.mark_sent([first[1].id], T0 + 2)
    assert [r.event_id for r in store.unsent(10)] == ["E0", "E2", "E3", "E4"]
    assert store.outbox_stats() == (4, T0 + 1)
    store.close()


def test_prune_deletes_old_scores_in_slices_and_keeps_the_rest(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores older than the limit go, newer ones, events and unsent outbox rows stay."""
    monkeypatch.setattr(storage, "PRUNE_SLICE", 7)
    store = Store.open(path)
    old = tuple(window(i, t=T0 - 40 * DAY) for i in range(20))
    store.write([record(*old, events=(transition(1), transition(2)), t=T0 - 40 * DAY)])
    store.write([record(window(0), window(1))])
    store.mark_sent([store.unsent(1)[0].id], T0 - 40 * DAY)
    assert store.prune(T0, days=35) == 20 + 1
    assert store.prune(T0, days=35) == 0
    assert [r.event_id for r in store.unsent(10)] == ["E2"]
    store.close()
    assert rows(path, "SELECT count(*) FROM scores") == [(2,)]
    assert rows(path, "SELECT count(*) FROM events") == [(2,)]


def test_prune_counts_a_replays_age_in_its_own_time(path: Path) -> None:
    """Rows of a recording twenty years old stay, but for what is old against its own newest row."""
    store = Store.open(path)
    past = T0 - 7000 * DAY
    store.write([record(window(0, t=past - 36 * DAY), window(1, t=past - 34 * DAY), window(2, t=past))])
    assert store.prune(T0, days=35) == 1
    store.close()
    assert [n for (n,) in rows(path, "SELECT seq FROM scores ORDER BY id")] == [1, 2]


# -- a database that cannot be used --------------------------------------------------------------------


def test_what_is_no_database_is_refused_with_path_and_mend(tmp_path: Path) -> None:
    """A folder, random bytes, a folder that cannot be made and a foreign database each say what to do."""
    noise = tmp_path / "noise.db"
    noise.write_bytes(os.urandom(8192))
    a_file = tmp_path / "file"
    a_file.write_text("x")
    foreign = tmp_path / "foreign.db"
    with sqlite3.connect(foreign) as db:
        db.execute("CREATE TABLE users(name)")
    for bad, hint in (
        (tmp_path, "is a file"),
        (noise, "not a SQLite database"),
        (a_file / "sub" / "edge.db", "correct `database`"),
        (Path("/proc/edge.db"), "may write"),
        (foreign, "another program"),
    ):
        with pytest.raises(StoreError, match=re.escape(hint)) as caught:
            Store.open(bad)
        assert str(bad) in str(caught.value)
    assert len(noise.read_bytes()) == 8192, "a file that is not ours was touched"


def test_a_newer_schema_is_refused(path: Path) -> None:
    """A database of a later version is left alone, with the advice to update."""
    Store.open(path).close()
    with sqlite3.connect(path) as db:
        db.execute("UPDATE schema_version SET version = 99")
    with pytest.raises(StoreError, match=r"99.*update the agent"):
        Store.open(path)


def test_a_damaged_database_is_told_as_such(path: Path) -> None:
    """Pages overwritten in the middle of the file give a StoreError at open or at the first write."""
    store = Store.open(path)
    store.write([record(*(window(i) for i in range(3000)))])
    store.close()
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(size - 4096))
    with pytest.raises(StoreError, match=r"damaged|not a SQLite database") as caught:
        Store.open(path).write([record(window(i)) for i in range(100)])
    assert str(path) in str(caught.value)


def test_a_read_only_file_is_told_as_such(path: Path) -> None:
    """Where the file may only be read, the error names the missing permission."""
    Store.open(path).close()
    connection = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, isolation_level=None)
    with pytest.raises(StoreError, match="write permission"):
        Store(connection, path).write([record(window(0))])
    connection.close()


def test_a_full_disk_is_told_and_survived(path: Path) -> None:
    """When no page is left the write fails whole with a hint, and works again once there is room."""
    store = Store.open(path)
    store.write([record(window(0))])
    pages = store._db.execute("PRAGMA page_count").fetchone()[0]
    store._db.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StoreError, match="disk is full"):
        store.write([record(*(window(i) for i in range(5000)))])
    store._db.execute("PRAGMA max_page_count = 1000000")
    store.write([record(window(1))])
    store.close()
    assert rows(path, "SELECT count(*) FROM scores") == [(2,)]


def test_a_reserve_that_cannot_be_deleted_is_told_where_nothing_else_makes_room(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores are deleted all the same; where there are none left the error names the reserve and what the system said."""
    store = Store.open(path)
    store.write([record(window(0))])
    unlink = Path.unlink

    def refuse(self: Path, missing_ok: bool = False) -> None:
        if self == store.reserve_path:
            raise OSError(errno.EPERM, "Operation not permitted")
        unlink(self, missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    assert store.make_room() == 1
    with pytest.raises(StoreError, match=r"edge\.db\.reserve: cannot be deleted to make room \(Operation not permitted\)"):
        store.make_room()
    store.close()


def test_migrations_run_in_order_and_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database of an older version gets the missing steps and keeps its rows; a failing step changes nothing."""
    store = Store.open(path)
    store.write([record(window(0))])
    store.close()
    steps = (*storage.MIGRATIONS, "ALTER TABLE scores ADD COLUMN note TEXT;", "CREATE TABLE extra(x);")
    monkeypatch.setattr(storage, "MIGRATIONS", (*steps[:-1], "CREATE TABLE half(x); SELECT * FROM absent;"))
    monkeypatch.setattr(storage, "SCHEMA_VERSION", len(steps))
    with pytest.raises(StoreError, match="absent"):
        Store.open(path)
    assert rows(path, "SELECT name FROM sqlite_master WHERE name = 'half'") == []
    assert rows(path, "SELECT version FROM schema_version") == [(len(steps) - 1,)]
    monkeypatch.setattr(storage, "MIGRATIONS", steps)
    Store.open(path).close()
    Store.open(path).close()
    assert rows(path, "SELECT seq, note FROM scores") == [(0, None)]
    assert rows(path, "SELECT version FROM schema_version") == [(len(steps),)]


def test_a_database_of_version_1_keeps_its_rows_and_takes_reasons(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opened by this agent, a database of schema version 1 keeps its scores, and new rows have reasons and regime."""
    path.parent.mkdir(parents=True)
    with sqlite3.connect(path) as db:
        db.executescript(
            storage.MIGRATIONS[0] + "CREATE TABLE schema_version(version INTEGER);"
            "INSERT INTO schema_version VALUES (1);"
            "INSERT INTO scores(sensor, ts, start, seq, score, threshold, ratio, quality)"
            " VALUES ('s1', '2023-11-14T22:13:21.000Z', '2023-11-14T22:13:20.000Z', 7, 0.5, 0.4, 1.25, 'good');"
        )
    db.close()
    store = Store.open(path)
    marked = Measured(8, T0 + 8, T0 + 9, None, None, None, "bad", (), ("stuck", "dc_step"), "1400 rpm")
    store.write([record(marked)])
    store.close()
    assert [(r["seq"], r["quality"], r["reasons"], r["regime"]) for r in queries.history(path)] == [
        (7, "good", None, None),
        (8, "bad", "stuck,dc_step", "1400 rpm"),
    ]
    assert queries.status(path, ["s1"])[0]["reasons"] == "stuck,dc_step"


def test_what_is_told_beside_the_machine_alarm_is_no_alarm(path: Path) -> None:
    """A quality event has its row and its place in the outbox, and is neither listed nor taken for the state."""
    extra = {"quality_alarm": {"reasons": ["stuck"], "active": True}}
    told = beside("quality", Alarm(), "a/s1", 1, T0, extra)
    again = beside("quality", Alarm(), "a/s1", 2, T0 + 9, extra, episode=told.alarm_id, since=T0)
    assert (again.alarm_id, again.since) == (told.alarm_id, T0)
    assert again.event_id != told.event_id
    store = Store.open(path)
    store.write([record(window(0), events=(transition(1), told, again))])
    assert store.last_event_id("s1") == "E1"
    assert [row.event_id for row in store.unsent()] == ["E1", told.event_id, again.event_id]
    store.close()
    assert [alarm["alarm_id"] for alarm in queries.alarms(path)] == ["A1"]
    assert len(queries.alarm(path, told.alarm_id)["events"]) == 2
    with pytest.raises(ValueError, match="'new'"):
        beside("new", Alarm(), "a/s1", 1, T0, extra)


WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_store import record, transition, window
from edge_agent.store import Store
store = Store.open(Path(sys.argv[1]))
n = 0
while True:
    store.write([record(*(window(10 * n + i) for i in range(10)), events=(transition(n),), state=b"%d" % n)])
    n += 1
    if n == 20:
        print("going", flush=True)
"""


def test_a_kill_in_the_middle_of_writes_leaves_whole_records(path: Path) -> None:
    """After SIGKILL the database opens, is sound, and holds each record wholly or not at all."""
    for _ in range(3):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), str(Path(__file__).parent)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert writer.stdout is not None
        assert writer.stdout.readline() == "going\n"
        time.sleep(0.05)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        store = Store.open(path)
        last = int(store.load_state("s1") or b"-1")
        events = len({r.event_id for r in store.unsent(1_000_000)})
        store.close()
        assert rows(path, "PRAGMA integrity_check") == [("ok",)]
        # Each writer counts from 0: the state, the events and the newest row speak of the same record.
        assert rows(path, "SELECT seq FROM scores ORDER BY id DESC LIMIT 1") == [(10 * last + 9,)]
        assert events > last
        assert rows(path, "SELECT count(*) % 10 FROM scores") == [(0,)]


# -- the reading side ----------------------------------------------------------------------------------


def filled(path: Path) -> None:
    store = Store.open(path)
    raised = Alarm("UNACK", "alarm", "A1", T0)
    events = (transition(1), transition(2, "update", severity="alarm"))
    store.write([record(window(0, None), window(1), window(2), events=events, alarm=raised)])
    store.write([record(window(7), sensor="s2")])
    store.close()


def test_status_tells_each_sensors_alarm_and_last_window(path: Path) -> None:
    """Sensors with an alarm, without one and never heard each have their line."""
    filled(path)
    s1, s2, s3 = queries.status(path, ["s1", "s2", "s3"])
    assert (s1["state"], s1["active"], s1["severity"], s1["ts"]) == ("UNACK", True, "alarm", rfc3339(T0 + 3))
    assert (s2["state"], s2["active"], s2["ratio"]) == ("NORM", False, 1.25)
    assert (s3["state"], s3["active"], s3["ts"]) == ("NORM", False, None)


def test_status_shows_the_last_window_also_after_the_clock_was_set_back(path: Path) -> None:
    """A board without a clock of its own starts years back: what was judged last is shown, not what has the latest time."""
    store = Store.open(path)
    store.write([record(window(0))])
    store.write([record(window(3), sensor="quiet")])
    store.write([record(window(1, 0.3, t=T0 - 5000 * DAY))])
    store.close()
    s1, quiet = queries.status(path, ["s1", "quiet"])
    assert (s1["ts"], quiet["ts"]) == (rfc3339(T0 - 5000 * DAY + 2), rfc3339(T0 + 4))


def test_alarms_gather_their_events(path: Path) -> None:
    """One line an alarm: beginning, end, present state, gravest severity."""
    filled(path)
    (a,) = queries.alarms(path)
    assert (a["alarm_id"], a["since"], a["ended"], a["severity"], a["state"], a["events"]) == (
        "A1",
        rfc3339(T0 + 1),
        None,
        "alarm",
        "UNACK",
        2,
    )
    assert queries.alarms(path, "s2") == []
    acked = Transition("update", "E2b", "A1", T0 - 60, "ACKED", "alarm", T0)
    store = Store.open(path)
    store.write([record(events=(acked,))])
    store.close()
    (a,) = queries.alarms(path)
    # A person's command has the receipt clock's time; the alarm began when it was raised all the same.
    assert (a["since"], a["state"]) == (rfc3339(T0 + 1), "ACKED")
    store = Store.open(path)
    store.write([record(events=(transition(3, "end", "NORM"),))])
    store.close()
    (a,) = queries.alarms(path)
    assert (a["ended"], a["state"]) == (rfc3339(T0 + 3), "NORM")


def test_history_filters_and_limits(path: Path) -> None:
    """Rows come oldest first; the limit keeps the newest; sensor and times narrow."""
    filled(path)
    assert [r["seq"] for r in queries.history(path)] == [0, 1, 2, 7]
    assert [r["seq"] for r in queries.history(path, limit=2)] == [2, 7]
    assert [r["seq"] for r in queries.history(path, "s1", since=rfc3339(T0 + 2))] == [1, 2]
    assert [r["seq"] for r in queries.history(path, until=rfc3339(T0 + 1))] == [0]


def test_one_alarm_is_exported_with_its_events_and_scores(path: Path) -> None:
    """The export of an alarm holds its events as sent; an unknown id is refused."""
    filled(path)
    whole = queries.alarm(path, "A1")
    assert [e["event_id"] for e in whole["events"]] == ["E1", "E2"]
    assert [s["seq"] for s in whole["scores"]] == [0, 1, 2]
    with pytest.raises(StoreError, match="no alarm 'A9'"):
        queries.alarm(path, "A9")


def test_the_scores_of_an_alarm_are_its_sensors_though_a_person_ended_it(path: Path) -> None:
    """Of a sensor whose clock is an hour ahead, reset by the agent's clock, the export has the windows from the first to the last
    event that its sensor's time tells."""
    store = Store.open(path)
    store.write([record(*(window(i) for i in range(6)), events=(transition(1), transition(4, "update", "LATCHED")))])
    store.write([record(events=(Transition("end", "E9", "A1", T0 - 3600, "NORM", "warning", T0),))])
    store.close()
    whole = queries.alarm(path, "A1")
    assert whole["state"] == "NORM"
    assert [s["seq"] for s in whole["scores"]] == [0, 1, 2, 3]


def test_reading_what_is_no_database_says_so(tmp_path: Path) -> None:
    """A missing file, random bytes and a foreign database give a StoreError with the path."""
    noise = tmp_path / "noise.db"
    noise.write_bytes(os.urandom(8192))
    foreign = tmp_path / "foreign.db"
    with sqlite3.connect(foreign) as db:
        db.execute("CREATE TABLE users(name)")
    for bad in (tmp_path / "gone.db", noise, foreign):
        with pytest.raises(StoreError, match=re.escape(str(bad))):
            queries.status(bad, ["s1"])


def test_reading_does_not_wait_for_the_writer(path: Path) -> None:
    """The command line reads beside an agent that has the database open and a transaction begun."""
    filled(path)
    writer = Store.open(path)
    with writer._transaction() as db:
        db.execute("DELETE FROM scores")
        assert len(list(queries.history(path))) == 4
    writer.close()
