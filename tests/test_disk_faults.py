"""Faults of the disk, really made, under a running agent: scoring and MQTT go on, no accepted event is lost, recovery by itself."""

from __future__ import annotations

import errno
import os
import random
import shutil
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from agents import T0, Agent, message, rows, write_plant
from conftest import Broker, Listener, until
from test_store import record, transition, window

from benchmarks._agent import engine
from edge_agent import keeper as keeping
from edge_agent import packing, queries, salvage
from edge_agent import store as storage
from edge_agent.alarms import Alarm, Transition
from edge_agent.errors import DamagedStoreError, StoreError
from edge_agent.signals import rfc3339
from edge_agent.store import Store

Listen = Callable[..., Listener]
#: Windows of one alarm and its end.
LOUD, CALM = 4, 6


class Stream:
    """Windows of sensor `a` in turn loud and calm, so that each `alarm` gives one `new` and one `end`."""

    def __init__(self, ear: Listener) -> None:
        self._ear, self.seq = ear, 0

    def alarm(self) -> None:
        """One alarm, from its beginning to its end, scored."""
        for level in [1.6] * LOUD + [1.0] * CALM:
            self._ear.publish("plant/a", message(self.seq, level))
            self.seq += 1
        self._ear.wait("edge/t/s/a/score", self.seq)

    def calm(self, n: int) -> None:
        """Windows without an event."""
        for _ in range(n):
            self._ear.publish("plant/a", message(self.seq))
            self.seq += 1
        self._ear.wait("edge/t/s/a/score", self.seq)


def heard(ear: Listener) -> set[str]:
    """Different events on the topic so far."""
    return {event["event_id"] for event in ear.json("edge/t/s/a/event")}


def stored(path: Path) -> list[str]:
    """Events on record, in order."""
    return [e for (e,) in rows(path, "SELECT event_id FROM events ORDER BY rowid")]


def all_sent(path: Path) -> bool:
    """Whether nothing waits for the broker."""
    return rows(path, "SELECT count(*) FROM outbox WHERE sent IS NULL") == [(0,)]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)], capture_output=True).returncode:
        pytest.skip("no right to mount a file system here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commits and retries without the waiting."""
    for name, value in (("COMMIT_S", 0.2), ("RETRY_S", 0.2), ("TOLD_S", 1.5), ("UNSTORED_S", 1.0)):
        monkeypatch.setattr(keeping, name, value)


@pytest.mark.usefixtures("quick")
def test_a_deleted_database_is_begun_anew_with_everything_in_it(
    tmp_path: Path, broker: Broker, listen: Listen, caplog: pytest.LogCaptureFixture
) -> None:
    """Deleted with its journal under a running agent, the database is back whole: rows, events, and the next alarm."""
    path = write_plant(tmp_path, broker.port)
    database = tmp_path / "agent.db"
    ear = listen("edge/#")
    with Agent(path) as agent:
        ear.wait("edge/t/status")
        stream = Stream(ear)
        stream.alarm()
        until(lambda: len(stored(database)) == 2)
        before = stored(database)
        for end in ("", "-wal", "-shm"):
            (tmp_path / f"agent.db{end}").unlink()
        stream.alarm()
        until(lambda: database.exists() and len(stored(database)) == 4, what="the new database")
        until(lambda: len(heard(ear)) == 4 and all_sent(database), what="all events at the broker")
        until(lambda: agent.rows("SELECT count(*) FROM scores") == [(stream.seq,)], what="every row")
        until(lambda: "was deleted" in (ear.json("edge/t/health")[-1]["store_trouble"] or ""), what="health's word")
        time.sleep(1.0)
        stream.calm(1)
        until(lambda: ear.json("edge/t/health")[-1]["store_trouble"] is None, what="health's all-clear")
    assert stored(database)[:2] == before
    assert heard(ear) == set(stored(database))
    assert "was deleted or replaced while the agent was running" in caplog.text


@pytest.mark.usefixtures("quick")
def test_a_replaced_database_is_set_aside_not_written_into(tmp_path: Path, broker: Broker, listen: Listen) -> None:
    """A file put in the database's place while the agent runs is kept under a new name; the agent's own goes on."""
    path = write_plant(tmp_path, broker.port)
    database = tmp_path / "agent.db"
    ear = listen("edge/#")
    with Agent(path):
        ear.wait("edge/t/status")
        stream = Stream(ear)
        stream.alarm()
        until(lambda: len(stored(database)) == 2)
        (tmp_path / "other").write_bytes(b"somebody's backup")
        (tmp_path / "other").rename(database)
        stream.alarm()
        until(lambda: list(tmp_path.glob("agent.db.damaged-*")), what="the file set aside")
        until(lambda: len(stored(database)) == 4, what="the events")
        name = until(lambda: ear.json("edge/t/health")[-1]["store_set_aside"], what="its name in health")
    assert (tmp_path / name).read_bytes() == b"somebody's backup"
    assert heard(ear) == set(stored(database))


def overwrite(path: Path, seed: int, share: float = 1.0) -> None:
    """Random bytes over this share of the pages, never the first one where it is less than all."""
    rng = random.Random(seed)
    size, page = path.stat().st_size, 2048
    with path.open("r+b") as file:
        for at in range(page if share < 1.0 else 0, size, page):
            if rng.random() < share:
                file.seek(at)
                file.write(rng.randbytes(page))


@pytest.mark.usefixtures("quick")
def test_a_database_damaged_while_running_costs_no_event(
    tmp_path: Path, broker: Broker, listen: Listen, caplog: pytest.LogCaptureFixture
) -> None:
    """All bytes of file and journal overwritten under the agent: it is set aside, unsent events reach the broker."""
    path = write_plant(tmp_path, broker.port)
    database = tmp_path / "agent.db"
    ear = listen("edge/#")
    with Agent(path) as agent:
        ear.wait("edge/t/status")
        stream = Stream(ear)
        stream.calm(3)
        until(lambda: agent.rows("SELECT count(*) FROM scores") == [(3,)])
        # Events that are on record and cannot leave; nothing of them will be readable in the file.
        transport = agent.daemon._transport
        link, transport._live = transport._live, None
        for level in [1.6] * LOUD + [1.0] * CALM:
            agent.daemon.inbox.put("a", message(stream.seq, level), time.time())
            stream.seq += 1
        until(lambda: len(stored(database)) == 2)
        # From here on nothing is read from the page cache of the connection.
        agent.daemon._keeper._store._db.execute("PRAGMA shrink_memory")
        overwrite(database, 1)
        overwrite(tmp_path / "agent.db-wal", 2)
        transport._live = link
        agent.daemon._keeper.connected()
        until(lambda: list(tmp_path.glob("agent.db.damaged-*")), what="the damaged file set aside")
        until(lambda: len(heard(ear)) == 2, what="the events of before")
        ear.publish("plant/a", message(stream.seq))
        for level in [1.0, *[1.6] * LOUD, *[1.0] * CALM]:
            ear.publish("plant/a", message(stream.seq, level))
            stream.seq += 1
        until(lambda: len(heard(ear)) == 4 and all_sent(database), what="all events at the broker")
        state = agent.daemon.worker.sensors["a"].state
    assert rows(database, "PRAGMA integrity_check") == [("ok",)]
    assert set(stored(database)) == heard(ear)
    assert rows(database, "SELECT state FROM alarm_state") == [(state.alarm.state,)] == [("NORM",)]
    assert "a new database was begun with the states of memory" in caplog.text


@pytest.mark.parametrize("seed", range(12))
def test_what_can_be_read_of_a_damaged_file_is_kept(tmp_path: Path, seed: int) -> None:
    """A tenth of the pages overwritten while the agent is stopped: each event that either table still holds lives on,
    the unsent ones wait, the states are there, and the damaged file is kept as it was."""
    path = tmp_path / "agent.db"
    store = Store.open(path)
    n, texts = 60, {}
    for i in range(n):
        fields = {"schema": 1, "type": "new", "event_id": f"E{i}", "sensor": "s1", "ts": rfc3339(T0 + i), "why": "x" * 700}
        texts[i] = msgspec.json.encode(fields)
        row = storage.EventRow(transition(i), "edge/t/s/s1/event", texts[i].decode())
        store.write([storage.Record("s1", tuple(window(10 * i + j) for j in range(10)), (row,), Alarm(), b"state %d" % i, T0)])
    store.mark_sent([row.id for row in store.unsent(n)][: n // 2], T0)
    store.close()
    overwrite(path, seed, 0.1)
    damaged = path.read_bytes()
    survivors = {i for i, text in texts.items() if text in damaged}
    begun = salvage.begin(path, "edge/t", T0)
    assert begun.store is not None
    if begun.set_aside is None:  # only pages without rows were hit
        assert begun.store.checked == "ok"
    else:
        assert begun.set_aside.read_bytes() == damaged
        assert begun.set_aside.name == "agent.db.damaged-20260921T141320Z"
    begun.store.close()
    kept = {int(e[1:]) for e in stored(path)}
    waiting = {int(e[1:]) for (e,) in rows(path, "SELECT event_id FROM outbox WHERE sent IS NULL")}
    assert kept == survivors
    assert len(kept) > n / 2
    assert waiting >= {i for i in kept if i >= n // 2}
    if rows(path, "SELECT count(*) FROM pipeline_state") == [(1,)]:
        assert rows(path, "SELECT state FROM pipeline_state") == [(b"state %d" % (n - 1),)]
    assert rows(path, "PRAGMA integrity_check") == [("ok",)]


#: (alarm, type, state, seconds) as they were told: of a sensor whose clock is an hour ahead, reset by people at the agent's clock.
TOLD = [
    ("A", "new", "UNACK", 3600), ("A", "update", "ACKED", 5), ("A", "update", "LATCHED", 3610), ("A", "end", "NORM", 20),
    ("B", "new", "UNACK", 3630), ("B", "update", "LATCHED", 3640), ("B", "end", "NORM", 3700),
    ("C", "new", "UNACK", 3720), ("C", "update", "LATCHED", 3730), ("C", "end", "NORM", 140),
]  # fmt: skip


def told(n: int) -> storage.EventRow:
    """Number n of `TOLD`."""
    alarm, kind, state, after = TOLD[n]
    fields = {
        "schema": 1, "type": kind, "event_id": f"E{n}", "alarm_id": alarm, "sensor": "s1", "ts": rfc3339(T0 + after),
        "state": state, "severity": "warning",
    }  # fmt: skip
    text = msgspec.json.encode(fields).decode()
    return storage.EventRow(Transition(kind, f"E{n}", alarm, T0 + after, state, "warning", T0), "edge/t/s/s1/event", text)


@pytest.mark.parametrize("lost", ["index", "events", "both", "half", "halves", "outbox"])
def test_events_of_a_damaged_file_stay_in_their_order(tmp_path: Path, lost: str) -> None:
    """Whichever table is lost, wholly or by half, the events of an alarm come out as they were told, though a command has another
    clock's time than the windows; of both tables lost at least its beginning and its end. So does the last event of the sensor."""
    path = tmp_path / "agent.db"
    store = Store.open(path)
    store.write([storage.Record("s1", (window(0),), tuple(told(n) for n in range(len(TOLD))), Alarm(), None, T0)])
    store.mark_sent([row.id for row in store.unsent()], T0)
    store.requeue(event_id="E2")
    store.close()
    before = queries.alarms(path)
    assert [(a["alarm_id"], a["state"]) for a in before] == [("C", "NORM"), ("B", "NORM"), ("A", "NORM")]
    with sqlite3.connect(path) as db:
        if lost in ("half", "halves"):
            db.execute("DELETE FROM events WHERE rowid % 2")
        if lost == "halves":
            db.execute("DELETE FROM outbox WHERE id % 2 = 0")
        roots = dict(db.execute("SELECT name, rootpage FROM sqlite_master"))
    db.close()
    hit = {"index": ["scores_ts_sensor"], "both": ["events", "outbox"], "half": ["scores"], "halves": ["scores"]}.get(lost, [lost])
    with path.open("r+b") as file:
        for name in hit:
            file.seek((roots[name] - 1) * 1024)
            # The header of the page: its cells are there, but no table leads to them.
            file.write(b"\xff" * 8)
    begun = salvage.begin(path, "edge/t", T0)
    assert begun.store is not None
    assert begun.set_aside is not None
    assert begun.store.last_event_id("s1") == "E9"
    begun.store.close()
    by_alarm = {a: [e for (e,) in rows(path, "SELECT event_id FROM events WHERE alarm_id = ? ORDER BY rowid", a)] for a in "ABC"}
    assert by_alarm == {"A": ["E0", "E1", "E2", "E3"], "B": ["E4", "E5", "E6"], "C": ["E7", "E8", "E9"]} or lost == "both"
    if lost == "both":  # within an alarm only times are left
        assert {a: (e[0], e[-1], len(e)) for a, e in by_alarm.items()} == {"A": ("E0", "E3", 4), "B": ("E4", "E6", 3), "C": ("E7", "E9", 3)}
    after = queries.alarms(path)
    assert after == before


def test_a_state_that_cannot_be_read_is_not_taken_over(tmp_path: Path) -> None:
    """Of a damaged file a state goes into the fresh one as it was or not at all, whichever of its bits is wrong; `status` of a
    database that has one shows the sensor all the same."""
    path = tmp_path / "agent.db"
    store = Store.open(path)
    raised = Alarm("LATCHED", "alarm", "A1", T0)
    raw = msgspec.msgpack.encode({"version": 1, "state": {"trouble": {"counts": {"stuck": 3}}}})
    blob = packing.pack(raw)
    store.write([record(window(0), alarm=raised, state=blob)])
    store.close()
    (good,) = queries.status(path, ["s1"])
    assert good["quality_counts"] == {"stuck": 3}
    for bit in range(8, 8 * len(blob)):
        wrong = bytearray(blob)
        wrong[bit // 8] ^= 1 << bit % 8
        assert not salvage._sound("pipeline_state", ("s1", rfc3339(T0), bytes(wrong))) or packing.unpack(bytes(wrong)) == raw
    for wrong in (bytearray([blob[0] ^ 1]) + blob[1:], bytearray(blob[:3]) + bytes(9), bytearray(blob[:-9]), bytearray(b"\xc1")):
        with sqlite3.connect(path) as db:
            db.execute("UPDATE pipeline_state SET state = ?", (bytes(wrong),))
        db.close()
        (shown,) = queries.status(path, ["s1"])
        assert (shown["state"], shown["active"], shown["alarm_id"]) == ("LATCHED", True, "A1")
        assert (shown["quality_alarm"], shown["quality_counts"]) == (None, {})
    for sound in (("s1", rfc3339(T0), blob), ("s1", rfc3339(T0), raw)):
        assert salvage._sound("pipeline_state", sound)
    for unsound in (("s1", rfc3339(T0), "text"), ("s1", rfc3339(T0), None), ("s1", rfc3339(T0), blob[:-1])):
        assert not salvage._sound("pipeline_state", unsound)


def test_the_check_at_start_finds_damage_and_keeps_its_time(tmp_path: Path) -> None:
    """`quick_check` names a damaged page before anything is written; without time it says that it did not finish."""
    path = tmp_path / "agent.db"
    store = Store.open(path)
    store.write([record(*(window(i) for i in range(3000)))])
    assert store.checked == "ok"
    store.close()
    ticks = iter(range(10**9))
    store = Store.open(path, check_s=0.5, monotonic=lambda: float(next(ticks)))
    assert "0.5 s allowed" in store.checked
    store.close()
    with sqlite3.connect(path) as db:
        (root,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'scores'").fetchone()
    with path.open("r+b") as file:
        file.seek((root - 1) * 2048)
        file.write(os.urandom(2048))
    with pytest.raises(DamagedStoreError, match="is damaged"):
        Store.open(path)


def test_a_kill_between_the_renames_leaves_the_fresh_database(tmp_path: Path) -> None:
    """Where the old file is moved and the fresh one not yet named, the next start takes the fresh one."""
    path = tmp_path / "agent.db"
    store = Store.open(tmp_path / "agent.db.fresh")
    store.write([record(window(0), events=(transition(1),), state=b"s")])
    store.close()
    begun = salvage.begin(path, "edge/t", T0)
    assert begun.store is not None
    assert begun.store.load_state("s1") == b"s"
    assert [row.event_id for row in begun.store.unsent()] == ["E1"]
    begun.store.close()


def test_another_programs_file_is_never_set_aside(tmp_path: Path) -> None:
    """A database of another program, and a newer agent's, are refused and stay where they are."""
    path = tmp_path / "agent.db"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE users(name)")
    with pytest.raises(StoreError, match="another program"):
        salvage.begin(path, "edge/t", T0)
    assert [p.name for p in tmp_path.iterdir()] == ["agent.db"]


def fill(path: Path, n_blocks: int = 10**6) -> None:
    """Append up to so many blocks of 64 KiB, as long as there is room."""
    with path.open("ab", buffering=0) as file:
        try:
            while n_blocks and file.write(bytes(65536)):
                n_blocks -= 1
        except OSError as error:
            assert error.errno == errno.ENOSPC


@pytest.mark.usefixtures("quick")
def test_a_full_disk_costs_the_oldest_scores_and_no_event(
    tmp_path: Path, broker: Broker, listen: Listen, small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """On a full disk the oldest scores go in slices, events are put on record and sent, health says so, and it
    recovers by itself when there is room."""
    database = small_disk / "agent.db"
    store = Store.open(database)
    for i in range(5):
        store.write([record(*(window(j, t=T0 - 1e6) for j in range(1000 * i, 1000 * i + 1000)), sensor="old")])
    store.close()
    path = write_plant(tmp_path, broker.port, database=str(database))
    ear = listen("edge/#")
    with Agent(path) as agent:
        ear.wait("edge/t/status")
        until(lambda: (small_disk / "agent.db.reserve").exists(), what="the reserve")
        ballast = small_disk / "ballast"
        fill(ballast)
        stream = Stream(ear)
        trouble: Callable[[], Any] = lambda: ear.json("edge/t/health")[-1]["store_trouble"]
        for _ in range(30):
            stream.alarm()
            # Whoever fills the disk takes what is freed as well.
            fill(ballast, 16)
        until(lambda: "disk is full" in (trouble() or ""), what="the trouble in health")
        until(
            lambda: agent.rows("SELECT count(*) FROM scores WHERE sensor = 'a'") == [(stream.seq,)], what="every row on record"
        )
        expected, _ = engine(database, "a", agent.config.sensors["a"].policy, "t")
        assert len(expected) >= 20
        assert stored(database) == expected
        until(lambda: len(heard(ear)) == len(expected) and all_sent(database), what="the events at the broker")
        ballast.unlink()
        stream.calm(3)
        until(lambda: trouble() is None, what="the all-clear")
        assert (small_disk / "agent.db.reserve").exists()
        stream.calm(1)
        until(lambda: agent.rows("SELECT count(*) FROM scores WHERE sensor = 'a'") == [(stream.seq,)], what="every row")
        until(lambda: ear.json("edge/t/health")[-1]["trimmed_scores"] == agent.daemon._keeper.stats.trimmed_scores > 0)
        trimmed = agent.daemon._keeper.stats.trimmed_scores
    assert heard(ear) == set(stored(database))
    old = rows(database, "SELECT seq FROM scores WHERE sensor = 'old' ORDER BY id")
    assert len(old) == 5000 - trimmed
    assert [seq for (seq,) in old] == list(range(trimmed, 5000))  # the oldest went, in order
    assert sum("works again" in r.getMessage() for r in caplog.records) >= 1


@pytest.mark.usefixtures("quick")
def test_a_disk_that_may_only_be_read_stops_neither_scoring_nor_alarms(
    tmp_path: Path, broker: Broker, listen: Listen, small_disk: Path
) -> None:
    """Started on a read-only disk the agent has its states, scores, sends its alarms after a while, and puts all of it
    on record once the disk can be written."""
    database = small_disk / "agent.db"
    path = write_plant(tmp_path, broker.port, database=str(database))
    ear = listen("edge/#")
    stream = Stream(ear)
    with Agent(path):
        ear.wait("edge/t/status")
        for level in [1.6] * LOUD:
            ear.publish("plant/a", message(stream.seq, level))
            stream.seq += 1
        ear.wait("edge/t/s/a/event")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with Agent(path) as agent:
        assert agent.daemon.worker.sensors["a"].state.alarm.state == "UNACK"
        until(lambda: "may only be read" in (ear.json("edge/t/health")[-1]["store_trouble"] or ""), what="health's word")
        stream.calm(CALM)
        until(lambda: len(heard(ear)) == 2, what="the end of the alarm, unrecorded")
        subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
        until(lambda: len(stored(database)) == 2 and all_sent(database), what="the record")
        until(lambda: ear.json("edge/t/health")[-1]["store_trouble"] is None, what="the all-clear")
        stream.alarm()
        until(lambda: len(heard(ear)) == 4)
    assert heard(ear) == set(stored(database))
    assert rows(database, "SELECT count(*) FROM scores") == [(stream.seq,)]


@pytest.fixture
def frozen(tmp_path: Path) -> Iterator[Callable[[bool], None]]:
    """A function that freezes and thaws an ext4 of its own in tmp_path/disk: writes to it do not return meanwhile."""
    image, folder = tmp_path / "image", tmp_path / "disk"
    folder.mkdir()
    with image.open("wb") as file:
        file.truncate(32 << 20)
    steps = (["mkfs.ext4", "-q", str(image)], ["mount", "-o", "loop", str(image), str(folder)], ["fsfreeze", "-f", str(folder)])
    for step in steps:
        if shutil.which(step[0]) is None or subprocess.run(step, capture_output=True).returncode:
            subprocess.run(["umount", "-l", str(folder)], capture_output=True)
            pytest.skip(f"{step[0]} does not work here")
    subprocess.run(["fsfreeze", "-u", str(folder)], check=True)

    def freeze(on: bool) -> None:
        subprocess.run(["fsfreeze", "-f" if on else "-u", str(folder)], check=on, capture_output=True)

    # Nobody could end a process that waits for a frozen disk.
    last = threading.Timer(60.0, freeze, (False,))
    last.start()
    yield freeze
    last.cancel()
    freeze(False)
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.usefixtures("quick")
def test_a_disk_that_does_not_answer_silences_no_alarm(
    tmp_path: Path, broker: Broker, listen: Listen, frozen: Callable[[bool], None]
) -> None:
    """While writes never return the alarm goes out all the same and health says why; then it is on record, once."""
    database = tmp_path / "disk" / "agent.db"
    path = write_plant(tmp_path, broker.port, database=str(database))
    ear = listen("edge/#")
    stream = Stream(ear)
    with Agent(path) as agent:
        ear.wait("edge/t/status")
        stream.calm(8)
        until(lambda: agent.rows("SELECT count(*) FROM scores") == [(8,)])
        frozen(True)
        stream.alarm()
        until(lambda: len(heard(ear)) == 2, what="the alarm, unrecorded")
        until(lambda: "has not answered for" in (ear.json("edge/t/health")[-1]["store_trouble"] or ""), what="health's word")
        frozen(False)
        until(lambda: len(stored(database)) == 2 and all_sent(database), what="the record")
        until(lambda: agent.rows("SELECT count(*) FROM scores") == [(stream.seq,)], what="every row")
        time.sleep(1.5)
        stream.calm(1)
        until(lambda: ear.json("edge/t/health")[-1]["store_trouble"] is None, what="the all-clear")
    assert heard(ear) == set(stored(database))
