"""What is rolled up or deleted when, and what never is."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import numpy as np
import pytest

from edge_agent import store as storage
from edge_agent.alarms import Alarm, Transition
from edge_agent.pipeline import Measured
from edge_agent.signals import rfc3339
from edge_agent.store import EventRow, Record, ShadowRow, Store

DAY = 86400.0
NOW = 1_700_000_040.0  # on the minute
OLD = NOW - 40 * DAY


def rows(path: Path, sql: str) -> list[tuple[object, ...]]:
    with sqlite3.connect(path) as db:
        return db.execute(sql).fetchall()


def window(seq: int, end: float, score: float | None = 0.5, quality: str = "good") -> Measured:
    return Measured(seq, end - 1.0, end, score, None if score is None else 0.4, None if score is None else score / 0.4, quality)


def event(n: int, t: float) -> EventRow:
    return EventRow(Transition("new", f"E{n}", "A", t, "UNACK", "warning", t), "edge/t/s/a/event", f'{{"event_id":"E{n}"}}')


def put(store: Store, *measured: Measured, sensor: str = "a", events: tuple[EventRow, ...] = (), t: float = NOW) -> None:
    store.write([Record(sensor, measured, events, Alarm(), b"state", t)])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "agent.db"


@pytest.mark.parametrize("per_slice", [1, 7, 500])
def test_a_minute_says_the_same_however_it_was_sliced(path: Path, monkeypatch: pytest.MonkeyPatch, per_slice: int) -> None:
    """Count, least, mean and greatest of each minute are those of its rows, without the windows that have no score."""
    monkeypatch.setattr(storage, "PRUNE_SLICE", per_slice)
    rng = np.random.default_rng(3)
    scores = [None if rng.random() < 0.2 else float(s) for s in rng.gamma(2.0, 1.0, 60)]
    kinds = [str(k) for k in rng.choice(["good", "suspect", "bad"], 60)]
    ends = OLD + 3.0 * np.arange(60)
    store = Store.open(path)
    put(store, *(window(i, float(ends[i]), scores[i], kinds[i]) for i in range(60)))
    put(store, window(60, NOW))
    assert store.prune(NOW) == 60
    store.close()
    found = rows(path, "SELECT minute, n, scored, score_min, score_mean, score_max, ratio_max, good, suspect, bad FROM scores_minute")
    for k, (minute, n, scored, least, mean, greatest, ratio, *of_kind) in enumerate(found):
        mine = [i for i in range(60) if OLD + 60 * k <= ends[i] < OLD + 60 * (k + 1)]
        values = [scores[i] for i in mine if scores[i] is not None]
        assert (minute, n, scored) == (rfc3339(OLD + 60 * k), len(mine), len(values))
        assert (least, greatest, ratio) == (min(values), max(values), max(values) / 0.4)
        assert mean == pytest.approx(np.mean(values), rel=1e-12)
        assert of_kind == [sum(kinds[i] == kind for i in mine) for kind in ("good", "suspect", "bad")]
    assert sum(row[1] for row in found) == 60
    assert rows(path, "SELECT seq FROM scores") == [(60,)]


def test_a_slice_is_at_most_so_many_rows(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No transaction of retention touches more rows than a slice holds, so an event never waits for more."""
    monkeypatch.setattr(storage, "PRUNE_SLICE", 10)
    store = Store.open(path)
    put(store, *(window(i, OLD + i) for i in range(25)), window(25, NOW))
    assert [store.prune_slice(NOW) for _ in range(4)] == [10, 10, 5, 0]
    store.close()


def test_beyond_its_size_the_oldest_scores_go_but_not_those_of_the_last_day(path: Path) -> None:
    """A database that may hold less than it does rolls up what is older than a day, then drops minutes; events stay."""
    store = Store.open(path)
    old = [window(i, NOW - 3 * DAY + i) for i in range(3000)]
    new = [window(3000 + i, NOW - 3000 + i) for i in range(3000)]
    put(store, *old, events=tuple(event(n, NOW - 3 * DAY) for n in range(50)))
    put(store, *new)
    assert store.prune(NOW) == 0
    used = store._used_bytes()
    assert store.prune(NOW, max_bytes=0.7 * used) in range(1500, 3000)
    assert store._used_bytes() <= 0.7 * used
    assert rows(path, "SELECT count(*) FROM scores WHERE seq >= 3000") == [(3000,)]
    assert rows(path, "SELECT sum(n) FROM scores_minute")[0][0] == 3000 - rows(path, "SELECT count(*) FROM scores WHERE seq < 3000")[0][0]
    store.prune(NOW, max_bytes=1.0)
    store.close()
    assert rows(path, "SELECT count(*) FROM scores") == [(3000,)]
    assert rows(path, "SELECT count(*) FROM scores_minute") == [(0,)]
    assert rows(path, "SELECT (SELECT count(*) FROM events), (SELECT count(*) FROM outbox)") == [(50, 50)]


def test_a_clock_stepped_ahead_by_decades_makes_nothing_old(path: Path) -> None:
    """With the device's clock in 2099 no score, minute or acknowledged event goes; neither with one in 1970."""
    store = Store.open(path)
    put(store, window(0, NOW - 30 * DAY), window(1, NOW), events=(event(0, NOW),))
    store.mark_sent([row.id for row in store.unsent()], NOW)
    assert store.prune(4.07e9) == 0
    assert store.prune(60.0) == 0
    store.close()


def streamed(store: Store, sensor: str, first: int, n: int, start: float, step: float = 1.0) -> None:
    """n windows of a sensor that end `step` s apart from `start` on, numbered from `first`."""
    put(store, *(window(first + i, start + step * i) for i in range(n)), sensor=sensor)


def kept(path: Path, sensor: str) -> list[int]:
    """Numbers of the sensor's raw rows, in the order they were written."""
    return [seq for (seq,) in rows(path, f"SELECT seq FROM scores WHERE sensor = '{sensor}' ORDER BY id")]  # type: ignore[misc]


@pytest.mark.parametrize("start", [1000.0, 1.1e9, NOW - 100 * DAY])
def test_what_a_clock_set_back_writes_now_is_not_old(path: Path, start: float) -> None:
    """Rows of the last hour stay, whatever year the sensor's clock stands in (a reboot, a recording of 2004), while it stands
    there and when it is right again; with the rows about them they go when those are old."""
    store = Store.open(path)
    streamed(store, "a", 0, 100, NOW - 100)
    streamed(store, "a", 100, 3600, start)
    assert store.prune(NOW + 3600) == 0
    streamed(store, "a", 3700, 10, NOW + 3600)
    assert store.prune(NOW + 3610) == 0
    assert kept(path, "a") == list(range(3710))
    streamed(store, "a", 3710, 1, NOW + 36 * DAY)
    assert store.prune(NOW + 36 * DAY) == 3710
    store.close()
    assert kept(path, "a") == [3710]


def test_a_recording_whose_time_passes_the_limit_is_not_old(path: Path) -> None:
    """A recording of 36 to 34 days ago, replayed to a live sensor, loses nothing of itself and keeps nothing else."""
    store = Store.open(path)
    streamed(store, "a", 0, 4000, NOW - 40 * DAY, DAY / 100)
    streamed(store, "a", 4000, 200, NOW - 36 * DAY, DAY / 100)
    streamed(store, "a", 4200, 1, NOW)
    assert store.prune(NOW) in (500, 501)
    store.close()
    assert kept(path, "a")[-3701:] == list(range(500, 4201))


def test_one_row_ahead_makes_nothing_old(path: Path) -> None:
    """A sensor that says it is 300 days later, last or before that, ages neither its own rows nor those of another."""
    store = Store.open(path)
    streamed(store, "a", 0, 100, NOW - 100)
    streamed(store, "b", 0, 100, NOW - 100)
    put(store, window(100, NOW + 300 * DAY))
    assert store.prune(NOW) == 0
    put(store, window(101, NOW + 1))
    assert store.prune(NOW + 1) == 0
    assert store.prune(NOW + 1, max_bytes=1.0) == 0
    assert len(kept(path, "a") + kept(path, "b")) == 202
    store.close()


@pytest.mark.parametrize("odd", [1000.0, 1.1e9, NOW + 300 * DAY])
@pytest.mark.parametrize("sensor", ["live", "other"])
def test_size_is_kept_by_each_sensors_own_day(path: Path, odd: float, sensor: str) -> None:
    """With one row of any year written last, by the sensor itself or by another, a database beyond its size gives up what is
    older than a day, keeps the last day of each sensor, and deletes no minute that need not go."""
    store = Store.open(path)
    streamed(store, "live", 0, 2000, NOW - 50 * DAY, 60.0)
    streamed(store, "live", 2000, 3000, NOW - 10 * DAY)
    streamed(store, "slow", 0, 300, NOW - 3 * DAY, 600.0)
    streamed(store, "live", 5000, 3000, NOW - 3000)
    assert store.prune(NOW) == 2000
    put(store, window(8000, odd), sensor=sensor)
    limit = store._used_bytes() - 150_000
    assert store.prune(NOW, max_bytes=limit) < 3300
    assert store._used_bytes() <= limit
    assert rows(path, "SELECT count(*) FROM scores_minute WHERE sensor = 'live' AND minute < '2023-10'") == [(2000,)]
    assert len(kept(path, "slow")) == 300, "what is oldest goes first"
    assert kept(path, "live")[-3000 - (sensor == "live") :][:3000] == list(range(5000, 8000))
    store.prune(NOW, max_bytes=1.0)
    assert [seq for seq in kept(path, "live") if seq < 8000] == list(range(5000, 8000))
    assert kept(path, "slow") == list(range(155, 300))
    assert rows(path, "SELECT count(*) FROM scores_minute") == [(0,)]
    store.close()


def test_size_is_kept_while_the_agents_clock_stands_in_1970(path: Path) -> None:
    """An agent whose clock is not set yet rolls up raw scores of before the last day and does not go for the minutes first."""
    store = Store.open(path)
    streamed(store, "a", 0, 1000, NOW - 50 * DAY, 60.0)
    streamed(store, "a", 1000, 3000, NOW - 3 * DAY)
    streamed(store, "a", 4000, 100, NOW - 100)
    assert store.prune(NOW) == 1000
    assert store.prune(60.0, max_bytes=store._used_bytes() - 100_000) in range(500, 3000)
    assert rows(path, "SELECT count(*) FROM scores_minute WHERE minute < '2023-10'") == [(1000,)]
    store.close()


def test_a_bundle_beside_ages_like_the_live_one(path: Path) -> None:
    """Its rows of a clock that stood in 1970 stay while those about them do; what is old goes."""
    store = Store.open(path)
    put(store, window(0, NOW))
    ends = (NOW - 40 * DAY, NOW - 36 * DAY, NOW - 10.0, 1000.0, NOW)
    store.write_shadow([ShadowRow("a", end, "b/1", 0.1, 0.4, 0.25, None) for end in ends])
    assert store.prune(NOW) == 2
    store.close()
    assert rows(path, "SELECT ts FROM shadow_scores ORDER BY id") == [(rfc3339(end),) for end in ends[2:]]


def test_an_event_sent_before_the_clock_was_set_can_be_sent_again(path: Path) -> None:
    """Acknowledged while the agent's clock stood in 1970, an event is kept like those about it, and goes when they go."""
    store = Store.open(path)
    put(store, window(0, NOW), events=(event(1, NOW),), t=60.0)
    store.mark_sent([row.id for row in store.unsent()], 61.0)
    assert store.prune(NOW) == 0
    assert store.requeue(event_id="E1") == 1
    store.mark_sent([row.id for row in store.unsent()], 62.0)
    put(store, window(1, NOW + 1), events=(event(2, NOW + 1),), t=NOW + 1)
    store.mark_sent([row.id for row in store.unsent()], NOW + 1)
    put(store, window(2, NOW + 20 * DAY), events=(event(3, NOW + 20 * DAY),), t=NOW + 20 * DAY)
    store.mark_sent([row.id for row in store.unsent()], NOW - 40 * DAY)  # a clock set back on a board that lay about
    assert store.prune(NOW + 20 * DAY) == 0
    put(store, window(3, NOW + 36 * DAY), t=NOW + 36 * DAY)
    put(store, window(4, NOW + 36 * DAY), events=(event(4, NOW + 36 * DAY),), t=NOW + 36 * DAY)
    store.mark_sent([row.id for row in store.unsent()], NOW + 36 * DAY)
    store._delete("scores", "id", "seq < 4", ())
    assert store.prune(NOW + 36 * DAY) == 3
    store.close()
    assert rows(path, "SELECT event_id FROM outbox") == [("E4",)]


def test_a_row_of_the_year_1_does_not_stop_retention(path: Path) -> None:
    """A sensor whose time lies at the very beginning of the calendar is told apart from trouble with the disk."""
    store = Store.open(path)
    put(store, window(0, -62_135_500_000.0))
    assert store.prune(NOW, max_bytes=1.0) == 0
    store.close()


def test_a_silent_sensors_rows_wait_for_its_next_word(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sensor that has not spoken since the start and lies far back is left alone; when it speaks its old rows go."""
    monkeypatch.setattr(storage, "LOOK_BACK_ROWS", 10)
    store = Store.open(path)
    put(store, *(window(i, OLD + i) for i in range(20)), window(20, OLD + 20 * DAY), sensor="quiet")
    put(store, *(window(i, NOW + i) for i in range(20)), sensor="loud")
    store.close()
    store = Store.open(path)
    assert store.prune(NOW + 20) == 0
    put(store, window(21, NOW), sensor="quiet")
    assert store.prune(NOW + 20) == 20
    store.close()


def test_every_earlier_version_becomes_the_present_one(path: Path, tmp_path: Path) -> None:
    """From each schema version there was, rows stay, and tables, columns and indexes are those of a new database."""
    Store.open(path).close()
    shape = "SELECT type, name, tbl_name FROM sqlite_master ORDER BY name"
    columns = {name: rows(path, f"PRAGMA table_info({name})") for kind, name, _ in rows(path, shape) if kind == "table"}
    for version in range(1, storage.SCHEMA_VERSION):
        old = tmp_path / f"{version}.db"
        with sqlite3.connect(old) as db:
            for step in storage.MIGRATIONS[:version]:
                db.executescript(step)
            db.executescript(f"CREATE TABLE schema_version(version INTEGER); INSERT INTO schema_version VALUES ({version});")
            db.execute("INSERT INTO scores(sensor, ts, seq, ratio) VALUES ('a', ?, 7, 0.5)", (rfc3339(NOW),))
            db.execute("INSERT INTO outbox(event_id, topic, payload, qos, retain, created) VALUES ('E', 't', '{}', 1, 0, ?)", (rfc3339(NOW),))
            db.execute("INSERT INTO pipeline_state VALUES ('a', ?, x'80')", (rfc3339(NOW),))
        store = Store.open(old)
        assert [row.event_id for row in store.unsent()] == ["E"]
        assert store.load_state("a") == b"\x80"
        put(store, window(8, NOW + 1.0))
        store.close()
        assert rows(old, shape) == rows(path, shape)
        assert {name: rows(old, f"PRAGMA table_info({name})") for name in columns} == columns
        assert rows(old, "SELECT seq FROM scores ORDER BY id") == [(7,), (8,)]


def test_size_is_kept_though_times_come_again_and_again(tmp_path: Path) -> None:
    """A recording of 40 days replayed four times to one sensor: the database stays within its size."""
    store = Store.open(tmp_path / "agent.db")
    begun, now, n = 1.07e9, 1.795e9, 20_000
    step = 40 * 86400.0 / n
    for run in range(4):
        for first in range(0, n, 2000):
            rows = tuple(Measured(i, begun + i * step, begun + (i + 1) * step, 1.0, 2.0, 0.5) for i in range(first, first + 2000))
            store.write([Record("a", rows, (), Alarm(), b"x", now)])
        while store.prune_slice(now + run * 3600.0, 35.0, 2_000_000):
            pass
        assert store._used_bytes() <= 2_000_000
    store.close()
