"""Bad messages, a bad broker, a bad database: named, counted by reason, and no other sensor suffers."""

from __future__ import annotations

import base64
import json
import sqlite3
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from agents import Agent, Process, message, rows, write_plant
from bundles import healthy
from conftest import Broker, Listener, free_port, until

from edge_agent.assemble import check
from edge_agent.errors import DROP_REASONS, StoreError

Listen = Callable[..., Listener]


@dataclass(frozen=True)
class Bad:
    """One kind of bad message: what is sent, how it is counted, a word of the line in the log."""

    name: str
    reason: str
    payloads: tuple[bytes, ...]
    says: str
    payload: Any = field(default_factory=lambda: {"format": "f32le", "header": "ts_seq"})
    keys: dict[str, Any] = field(default_factory=dict)
    first: tuple[bytes, ...] = ()  # good ones before


def _json(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


def _packed(samples: Any, ns: int = 0, seq: int = 0) -> bytes:
    return struct.pack("<qI", ns, seq) + np.asarray(samples, "<f4").tobytes()


_GOOD = healthy(256)[0].tolist()
_YEAR_NS = 366 * 86400 * 10**9
BAD = (
    Bad("truncated", "undecodable", (message(0)[:-3],), "not a multiple of 4"),
    Bad("header only half", "undecodable", (message(0)[:7],), "shorter than its header"),
    Bad("empty", "undecodable", (b"",), "0 bytes"),
    Bad("oversized", "too_large", (bytes(5000),), "max_payload_bytes is 4000", keys={"max_payload_bytes": 4000}),
    Bad("not UTF-8", "undecodable", (b'{"v": "\xff\xfe"}',), "", "json"),
    Bad("not JSON", "undecodable", (b"hello",), "", "json"),
    Bad("deeply nested", "undecodable", (b"[" * 100_000,), "", "json"),
    Bad("deeply nested values", "undecodable", (b'{"v": ' + b"[" * 5000 + b"]" * 5000 + b"}",), "", "json"),
    Bad("wrong schema", "undecodable", (b'{"values": [1, 2]}',), "", "json"),
    Bad("list for an object", "undecodable", (b"[1, 2, 3]",), "", "record_json"),
    Bad("text among numbers", "undecodable", (_json(signal_value="1,two,3"),), "", "record_json"),
    Bad("bad base64", "undecodable", (_json(enc="f4", v="!!!"),), "", "json"),
    Bad("not a WAV file", "undecodable", (b"RIFF" + bytes(60),), "", "wav"),
    Bad("NaN", "not_finite", (_packed([1.0, np.nan, 2.0]),), "1 of 3 samples"),
    Bad("infinite", "not_finite", (_packed([np.inf] * 4),), "4 of 4 samples"),
    Bad("too large for float32", "not_finite", (_json(v=[1e300, 1.0]),), "", "json"),
    Bad("wrong channels", "wrong_channels", (_json(v=[_GOOD, _GOOD]),), "2 channels", "json"),
    Bad("wrong rate", "wrong_rate", (_json(v=_GOOD, fs=500),), "500 Hz", "json"),
    Bad("wrong sensor", "wrong_sensor", (_json(signal_value=_GOOD, sensor_id="other"),), "'other'", "record_json"),
    Bad("duplicate", "duplicate", (message(2),), "came before", first=(message(1), message(2))),
    Bad("backwards", "late", (_json(ts=1.7e9 - 50, v=_GOOD),), "before", "json", first=(_json(ts=1.7e9, v=_GOOD),)),
    Bad("number backwards", "late", (message(4),), "expected 7", first=(message(5), message(6))),
    Bad(
        "far future",
        "undecodable",
        (_packed(_GOOD, time.time_ns() + 2 * _YEAR_NS),),
        "ahead of the receipt clock",
    ),
    Bad("time of no calendar", "undecodable", (_json(ts=1e300, v=_GOOD),), "", "json"),
)  # fmt: skip


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.name)
def test_a_bad_message_costs_the_message_only(
    tmp_path: Path, broker: Broker, listen: Listen, caplog: pytest.LogCaptureFixture, bad: Bad
) -> None:
    """The bad sensor counts the reason in health and logs it once; after it, good messages score again;
    the other sensor scores all the while."""
    path = write_plant(
        tmp_path, broker.port, {"bad": {"payload": bad.payload, **bad.keys}, "good": {}}
    )
    ear = listen("edge/#")
    with Agent(path):
        ear.wait("edge/t/status")
        for payload in bad.first:
            ear.publish("plant/bad", payload)
        for seq in range(3):
            for payload in bad.payloads:
                ear.publish("plant/bad", payload)
            ear.publish("plant/good", message(seq))
        ear.wait("edge/t/s/good/score", 3)
        drops = until(
            lambda: next(
                (h["drops"] for h in ear.json("edge/t/health") if sum(h["drops"].get("bad", {}).values()) >= 3),
                None,
            ),
            what="three drops in health",
        )
        assert drops == {"bad": {bad.reason: 3}}
        assert ear.on("edge/t/s/bad/status")[-1:] == [b"bad_data"]
        assert set(ear.on("edge/t/s/good/status")) == {b"online"}
        before = len(ear.on("edge/t/s/bad/score"))
        for seq in range(40, 42):
            ear.publish("plant/bad", _good(bad, seq))
        ear.wait("edge/t/s/bad/score", before + 1)
        until(lambda: ear.on("edge/t/s/bad/status")[-1] == b"online")
    lines = [r.getMessage() for r in caplog.records if "message dropped" in r.getMessage()]
    assert len(lines) == 1
    assert lines[0].startswith(f"bad: message dropped ({bad.reason};")
    assert bad.says in lines[0]


def _good(bad: Bad, seq: int) -> bytes:
    from edge_agent import payloads
    from edge_agent.payloads import PayloadLayout
    from edge_agent.signals import Chunk

    named = {"format": bad.payload} if isinstance(bad.payload, str) else bad.payload
    n = 256
    chunk = Chunk(0.2 * healthy(n, seed=seq), t=1.79e9 + seq * n / 1000.0, fs_hz=1000.0, seq=seq)
    return payloads.encode(chunk, PayloadLayout(n_channels=1, **named))


def test_every_drop_reason_is_tried() -> None:
    """The list above, with `retained` and `overflow` below and `rate_limited` in test_security, covers every reason there is."""
    assert {bad.reason for bad in BAD} | {"retained", "overflow", "rate_limited"} == set(DROP_REASONS)


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_retained_sensor_messages_are_ignored(
    tmp_path: Path, broker: Broker, listen: Listen, protocol: str
) -> None:
    """A retained message on a sensor's topic is never scored: MQTT 5 does not fetch it, 3.1.1 counts it."""
    path = write_plant(tmp_path, broker.port, mqtt={"protocol": protocol})
    ear = listen("edge/#", "plant/#")
    ear.publish("plant/a", message(0), retain=True)
    ear.wait("plant/a")  # the broker has it
    with Agent(path):
        health = json.loads(ear.wait("edge/t/health", 2)[1])
        ear.publish("plant/a", message(1))
        (score,) = (json.loads(p) for p in ear.wait("edge/t/s/a/score"))
    assert score["seq"] == 0
    assert health["drops"] == ({} if protocol == "5" else {"a": {"retained": 1}})


def test_overflow_is_counted_and_the_other_sensor_keeps_scoring(
    tmp_path: Path, broker: Broker, listen: Listen
) -> None:
    """While the worker is held up, a flood of one sensor overflows its own queue; the other's waits intact."""
    path = write_plant(tmp_path, broker.port, {"flood": {}, "calm": {}})
    ear = listen("edge/#")
    gate = threading.Event()
    with Agent(path) as agent:
        ear.wait("edge/t/status")
        until(lambda: not agent.daemon._catching_up(), what="the end of the time in which the broker is asked to wait")
        agent.daemon.inbox.call(gate.wait)
        for seq in range(3):
            ear.publish("plant/calm", message(seq))
        for seq in range(300):
            ear.publish("plant/flood", message(seq))
        until(lambda: agent.daemon._tally.counts() == {"flood": {"overflow": 44}}, what="a full queue")
        assert agent.daemon.inbox.depths() == {"flood": 256, "calm": 3}
        gate.set()
        ear.wait("edge/t/s/calm/score", 3)
        until(lambda: [h for h in ear.json("edge/t/health") if h["drops"] == {"flood": {"overflow": 44}}])
        ear.wait("edge/t/s/flood/score", 256)
    assert agent.rows("SELECT count(*) FROM scores WHERE sensor = 'flood'") == [(256,)]


def test_overlapping_topics_are_a_mistake_that_names_both(tmp_path: Path) -> None:
    """Two sensors on one topic with the same channel are refused before anything connects."""
    path = write_plant(tmp_path, 1, {"x": {"topic": "plant/one"}, "y": {"topic": "plant/one"}})
    problems = check(path)
    assert problems
    assert "x" in " ".join(map(str, problems))
    assert "y" in " ".join(map(str, problems))


def test_a_refused_login_is_said_once_with_the_mend(tmp_path: Path) -> None:
    """The agent runs on while the broker refuses it, says so once, and connects once it is let in."""
    (folder := tmp_path / "broker").mkdir()
    (folder / "passwords").write_text("")
    broker = Broker(folder, extra=f"allow_anonymous false\npassword_file {folder}/passwords\n")
    broker.start()
    path = write_plant(tmp_path, broker.port, mqtt={"username": "agent", "password": "wrong-secret"})
    agent = Process(path)
    try:
        until(lambda: "refuses us" in agent.said(), what="the refusal in the log")
        time.sleep(2.5)  # at least one more attempt
        assert agent.process.poll() is None
        assert agent.said().count("refuses us") == 1
        assert "correct mqtt.username and mqtt.password" in agent.said()
        assert "wrong-secret" not in agent.said()
    finally:
        assert agent.end() == 0
        broker.stop()


def test_an_absent_broker_does_not_stop_the_agent(tmp_path: Path) -> None:
    """With nobody on the port the agent runs, says so once with the mend, and stops cleanly."""
    path = write_plant(tmp_path, free_port())
    agent = Process(path)
    try:
        until(lambda: "nothing listens there: start the broker" in agent.said(), what="the line in the log")
        time.sleep(1.5)
        assert agent.process.poll() is None
    finally:
        assert agent.end() == 0
    assert agent.said().count("nothing listens") == 1
    assert "Traceback" not in agent.said()


@pytest.mark.parametrize("content", [b"this is no database, but text" * 100, b"SQLite format 3\0" + b"\xa5" * 9000])
def test_an_unreadable_database_is_set_aside_and_named(tmp_path: Path, content: bytes) -> None:
    """A file without a readable header does not keep the agent from starting: it is kept under a new name, and told."""
    path = write_plant(tmp_path, free_port())
    (tmp_path / "agent.db").write_bytes(content)
    agent = Process(path)
    try:
        until(lambda: "the old one is kept as" in agent.said(), what="the line in the log")
        until(lambda: "nothing listens there" in agent.said(), what="the agent's start")
    finally:
        assert agent.end() == 0
    assert [aside.read_bytes() for aside in tmp_path.glob("agent.db.damaged-*Z")] == [content]
    assert rows(tmp_path / "agent.db", "PRAGMA quick_check") == [("ok",)]
    assert "Traceback" not in agent.said()


def test_a_database_that_stops_working_stops_no_scoring(
    tmp_path: Path, broker: Broker, listen: Listen, caplog: pytest.LogCaptureFixture
) -> None:
    """While another program locks the database, scores go out; once it is free every row and event is there."""
    path = write_plant(tmp_path, broker.port)
    ear = listen("edge/#")
    with Agent(path) as agent:
        ear.wait("edge/t/status")
        agent.daemon._keeper._store._db.execute("PRAGMA busy_timeout = 100")
        thief = sqlite3.connect(tmp_path / "agent.db", isolation_level=None)
        thief.execute("BEGIN IMMEDIATE")
        for seq in range(8):
            ear.publish("plant/a", message(seq, 1.5))
        ear.wait("edge/t/s/a/score", 8)
        until(lambda: "locked" in caplog.text, what="the complaint in the log")
        troubled = until(lambda: [h for h in ear.json("edge/t/health") if h["store_trouble"]])[-1]
        assert "another program holds it" in troubled["store_trouble"]
        assert not ear.on("edge/t/s/a/event")  # nothing leaves before it is on record
        thief.execute("ROLLBACK")
        thief.close()
        ear.wait("edge/t/s/a/event")
        until(lambda: "works again" in caplog.text, what="the recovery in the log")
    assert agent.rows("SELECT count(*) FROM scores") == [(8,)]
    assert agent.rows("SELECT count(*) FROM events") == [(1,)]
    assert sum("locked" in r.getMessage() for r in caplog.records) == 1


def test_an_unreadable_database_raises_store_error_in_process(tmp_path: Path) -> None:
    """`Daemon.start` raises StoreError and leaves no thread behind."""
    path = write_plant(tmp_path, free_port())
    (tmp_path / "agent.db").mkdir()
    before = threading.active_count()
    with pytest.raises(StoreError, match=r"agent\.db"), Agent(path):
        pytest.fail("it started")
    assert threading.active_count() == before


def test_a_state_of_another_model_keeps_the_alarm(tmp_path: Path, broker: Broker, listen: Listen) -> None:
    """After a change of window the stored state does not fit, yet the alarm stands and is published."""
    path = write_plant(tmp_path, broker.port)
    ear = listen("edge/#")
    with Agent(path):
        ear.wait("edge/t/status")
        for seq in range(4):
            ear.publish("plant/a", message(seq, 1.5))
        ear.wait("edge/t/s/a/event")
    from bundles import make_indicator_bundle

    make_indicator_bundle(tmp_path / "other", fs_hz=1000.0, n_samples=128)
    content = yaml.safe_load(path.read_text())
    content["sensors"]["a"]["model"] = "other"
    path.write_text(yaml.safe_dump(content))
    n = len(ear.on("edge/t/s/a/state"))
    with Agent(path):
        state = json.loads(ear.wait("edge/t/s/a/state", n + 1)[n])
        ear.publish("plant/a", message(4, 1.5))
        ear.wait("edge/t/s/a/score", 6)
    assert state["state"] == "UNACK"
    assert rows(tmp_path / "agent.db", "SELECT type FROM events ORDER BY rowid") == [("new",), ("notice",)]


def test_json_of_base64_and_lists_score_alike(tmp_path: Path, broker: Broker, listen: Listen) -> None:
    """A good message is scored the same whichever way its numbers are written."""
    path = write_plant(tmp_path, broker.port, {"a": {"payload": "json"}, "b": {"payload": "json"}})
    samples = healthy(256)[0]
    ear = listen("edge/#")
    with Agent(path):
        ear.wait("edge/t/status")
        ear.publish("plant/a", _json(v=samples.tolist()))
        ear.publish("plant/b", _json(enc="f4", v=base64.b64encode(samples.tobytes()).decode()))
        (a,), (b,) = (ear.wait(f"edge/t/s/{name}/score") for name in "ab")
    assert json.loads(a)["score"] == json.loads(b)["score"]
