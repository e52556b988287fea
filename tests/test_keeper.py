"""The store thread by itself, with a broker that is told what to do and a disk that fails where it is told to."""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from agents import rows, write_plant
from conftest import until
from test_store import T0, transition, window

from edge_agent import keeper as keeping
from edge_agent import pipeline, salvage
from edge_agent.assemble import assemble
from edge_agent.config import StorageConfig, load
from edge_agent.errors import FullStoreError, StoreError
from edge_agent.keeper import Keeper
from edge_agent.pipeline import PipelineState
from edge_agent.store import EventRow, Store


class Wire:
    """In place of the transport: keeps what is published, and acknowledges it at once."""

    def __init__(self) -> None:
        self.connected = True
        self.acknowledge: Callable[[Any, bool], None]
        self.said: list[tuple[str, dict[str, Any]]] = []

    def publish(self, topic: str, payload: bytes, qos: int = 0, retain: bool = False) -> int | None:
        """Taken whenever there is a link."""
        if not self.connected:
            return None
        self.said.append((topic, json.loads(payload)))
        # As a broker does, after the publish has returned.
        threading.Timer(0.01, self.acknowledge, (len(self.said), True)).start()
        return len(self.said)

    def on(self, topic: str) -> list[dict[str, Any]]:
        """What was published there."""
        return [payload for name, payload in list(self.said) if name == topic]


class Clock:
    """A clock that goes, and can be set."""

    def __init__(self, t: float) -> None:
        self.ahead = t - time.monotonic()

    def __call__(self) -> float:
        """In s."""
        return self.ahead + time.monotonic()


class Plant:
    """A keeper of one sensor `a`."""

    def __init__(self, folder: Path) -> None:
        (found,) = assemble(load(write_plant(folder, 1))).values()
        self.state: PipelineState = pipeline.initial(found)
        self.path, self.wire, self.clock, self.monotonic = folder / "agent.db", Wire(), Clock(T0), Clock(1000.0)
        self.keeper = Keeper(
            salvage.begin(self.path, "edge/t", T0), self.path, "edge/t", self.wire, {"a": self.state},  # type: ignore[arg-type]
            self.clock, self.monotonic, StorageConfig(),
        )  # fmt: skip
        self.wire.acknowledge = self.keeper.acknowledged

    def put(self, n: int, *, event: bool = False) -> None:
        """Window number n, and an event of it."""
        text = json.dumps({"event_id": f"E{n}", "late": False}, separators=(",", ":"))
        events = (EventRow(transition(n), "event", text),) if event else ()
        self.keeper.put("a", self.state, self.clock(), measured=(window(n),), events=events)

    def ask(self, which: dict[str, Any], answer: str) -> None:
        """A request whose answer goes to this topic."""
        self.keeper.resend(which, lambda ok, text: (answer, json.dumps({"ok": ok, "text": text}).encode()))


@pytest.fixture
def plant(tmp_path: Path) -> Iterator[Plant]:
    """A keeper that is stopped at the end."""
    made = Plant(tmp_path)
    yield made
    if made.keeper.alive():
        made.keeper.stop({})


def failing(times: int, error: StoreError, real: Callable[..., Any]) -> Callable[..., Any]:
    """`real`, but for so many times, when it raises."""
    left = [error] * times

    def call(*args: Any, **keys: Any) -> Any:
        if left:
            raise left.pop()
        return real(*args, **keys)

    return call


@pytest.mark.parametrize("trimmed", [0, 500])
def test_the_last_commit_is_tried_again_once_there_is_room(
    plant: Plant, monkeypatch: pytest.MonkeyPatch, trimmed: int
) -> None:
    """A disk that turns out full at the stop costs nothing where giving up the reserve or old scores makes room."""
    full = FullStoreError("agent.db: cannot be written (database or disk is full)")
    plant.keeper.start()
    monkeypatch.setattr(Store, "make_room", lambda _self: trimmed)
    monkeypatch.setattr(Store, "write", failing(1, full, Store.write))
    plant.put(0)
    plant.keeper.stop({"a": plant.state})
    assert not plant.keeper.alive()
    assert rows(plant.path, "SELECT seq FROM scores") == [(0,)]


def test_a_disk_that_stays_full_does_not_hold_up_the_stop(
    plant: Plant, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """However much is deleted to no avail, the stop ends and says what is lost."""
    full = FullStoreError("agent.db: cannot be written (database or disk is full)")
    plant.keeper.start()
    monkeypatch.setattr(Store, "make_room", lambda _self: 500)
    monkeypatch.setattr(Store, "write", failing(10**4, full, Store.write))
    plant.put(0)
    plant.keeper.stop({"a": plant.state})
    assert not plant.keeper.alive()
    assert "1 scores and 0 events could not be put on record" in caplog.text


@pytest.mark.parametrize("code", [errno.EROFS, errno.EPERM])
def test_a_reserve_that_cannot_be_given_up_is_trouble_like_any_other(
    plant: Plant, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """On a full disk whose reserve cannot be deleted the store thread goes on trying, and writes once there is room."""
    monkeypatch.setattr(keeping, "RETRY_S", 0.05)
    real, unlink, tried = Store.write, Path.unlink, []

    def refuse(self: Path, missing_ok: bool = False) -> None:
        if self.name.endswith(".reserve"):
            tried.append(self)
            raise OSError(code, os.strerror(code))
        unlink(self, missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    full = FullStoreError("agent.db: cannot be written (database or disk is full)")
    monkeypatch.setattr(Store, "write", failing(10**4, full, real))
    plant.keeper.start()
    plant.put(0, event=True)
    until(lambda: len(tried) > 2, what="another attempt")
    assert plant.keeper.stats.trouble is not None
    monkeypatch.setattr(Store, "write", real)
    until(lambda: rows(plant.path, "SELECT seq FROM scores") == [(0,)], what="the row")
    assert plant.keeper.alive()


def test_a_folder_that_is_gone_is_told_and_the_store_thread_lives(
    plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the disk of the database is taken away, looking for its free room is a trouble, not an end."""
    monkeypatch.setattr(keeping, "RETRY_S", 0.05)
    monkeypatch.setattr(keeping, "ROOM_EVERY_S", 0.0)
    real = os.statvfs

    def gone(_path: object) -> os.statvfs_result:
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))

    plant.keeper.start()
    plant.put(0, event=True)
    until(lambda: plant.wire.on("event"), what="the event")
    monkeypatch.setattr(os, "statvfs", gone)
    plant.put(1, event=True)
    until(lambda: "its folder cannot be looked at" in (plant.keeper.stats.trouble or ""), what="the trouble")
    monkeypatch.setattr(os, "statvfs", real)
    plant.put(2, event=True)
    until(lambda: rows(plant.path, "SELECT count(*) FROM events") == [(3,)], what="the record")
    assert plant.keeper.alive()


def test_every_request_is_answered_though_one_fails(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three that came together the one on which the disk fails is told so, and those behind it are carried out thereafter."""
    monkeypatch.setattr(keeping, "RETRY_S", 0.05)
    monkeypatch.setattr(Store, "requeue", failing(1, StoreError("agent.db: cannot be written (disk I/O error)"), Store.requeue))
    for n in range(3):
        plant.ask({"event_id": "E0"}, f"answer/{n}")
    plant.keeper.start()
    until(lambda: plant.wire.on("answer/2"), 10.0, "the last answer")
    assert [plant.wire.on(f"answer/{n}") for n in range(3)] == [
        [{"ok": False, "text": "agent.db: cannot be written (disk I/O error)"}],
        [{"ok": True, "text": "0 events to be sent again"}],
        [{"ok": True, "text": "0 events to be sent again"}],
    ]


@pytest.mark.parametrize("by_s", [-3600.0, 0.0, 3600.0])
@pytest.mark.parametrize("outage_s", [1.0, 60.0])
def test_an_event_is_late_by_how_long_it_waited(plant: Plant, by_s: float, outage_s: float) -> None:
    """What waited a minute for the broker says so, what went out at once does not, however the clock was set meanwhile; sent again
    it says so always."""
    plant.wire.connected = False
    plant.keeper.start()
    plant.put(0, event=True)
    until(lambda: plant.path.exists() and rows(plant.path, "SELECT count(*) FROM events") == [(1,)], what="the record")
    plant.monotonic.ahead += outage_s
    plant.clock.ahead += outage_s + by_s
    plant.wire.connected = True
    plant.keeper.connected()
    until(lambda: plant.wire.on("event"), what="the event")
    assert plant.wire.on("event") == [{"event_id": "E0", "late": outage_s > keeping.LATE_S}]
    until(lambda: rows(plant.path, "SELECT count(*) FROM outbox WHERE sent IS NULL") == [(0,)], what="its acknowledgement")
    plant.ask({"event_id": "E0"}, "answer")
    until(lambda: len(plant.wire.on("event")) == 2, what="the repeat")
    assert plant.wire.on("event")[1]["late"] is True
