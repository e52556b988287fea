"""The running agent against a real broker: statuses, states, events, commands, reload, restart."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from agents import LAYOUT, Agent, N, Process, message, rows, write_plant
from bundles import healthy
from conftest import Broker, Listener, free_port, mqtt_config, needs_mosquitto, until

from edge_agent import host, queries, worker
from edge_agent.errors import DROP_REASONS
from edge_agent.signals import rfc3339
from edge_agent.transport import MqttTransport

Listen = Callable[..., Listener]
TABLE_KEYS = {
    "schema", "type", "event_id", "alarm_id", "agent", "sensor", "machine", "ts", "state", "severity", "since",
    "score", "threshold", "ratio", "quality", "limit", "window", "why", "model", "late", "clock_synced",
}  # fmt: skip


def test_windows_events_and_states_as_the_contract_says(tmp_path: Path, broker: Broker, listen: Listen) -> None:
    """Six loud windows give scores, one `new` event, a retained state and rows that say the same."""
    path = write_plant(tmp_path, broker.port)
    ear = listen("edge/#")
    with Agent(path) as agent:
        ear.wait("edge/t/status")
        for seq in range(12):
            ear.publish("plant/a", message(seq, 1.0 if seq < 6 else 1.5))
        scores = [json.loads(p) for p in ear.wait("edge/t/s/a/score", 12)]
        event = json.loads(ear.wait("edge/t/s/a/event")[0])
        state = until(lambda: [s for s in ear.json("edge/t/s/a/state") if s["state"] == "UNACK"])[0]
        until(lambda: agent.rows("SELECT sent FROM outbox")[0][0] is not None, what="the outbox mark")
    assert [s["seq"] for s in scores] == list(range(12))
    assert set(event) == TABLE_KEYS
    assert next(iter(event)) == "schema"
    assert (event["type"], event["state"], event["severity"], event["late"]) == ("new", "UNACK", "warning", False)
    assert event["window"]["seq"] == 8  # the third loud window of five
    assert event["ts"] == scores[8]["ts"]
    assert {k: state[k] for k in ("event_id", "alarm_id", "since")} == {
        k: event[k] for k in ("event_id", "alarm_id", "since")
    }
    assert "type" not in state
    assert agent.rows("SELECT seq, score FROM scores ORDER BY id") == [(s["seq"], s["score"]) for s in scores]
    (stored,) = agent.rows("SELECT payload FROM events")
    assert json.loads(stored[0]) == event
    assert ear.on("edge/t/s/a/status") == [b"online"]
    assert ear.wait("edge/t/status", 2) == [b"online", b"stopped"]
    info = ear.json("edge/t/info")[0]
    assert info["sensors"]["a"]["bundle"] == "rms"
    assert len(info["config_sha256"]) == 64


def test_health_names_what_the_contract_lists(tmp_path: Path, broker: Broker, listen: Listen) -> None:
    """Health holds memory, queues, drops, outbox and clock, and no number that JSON does not know."""
    path = write_plant(tmp_path, broker.port)
    ear = listen("edge/t/health")
    with Agent(path):
        health = json.loads(ear.wait("edge/t/health", 2)[1], parse_constant=lambda name: pytest.fail(name))
    assert health["queues"] == {"a": 0}
    assert health["drops"] == {}
    assert health["outbox_rows"] == 0
    assert health["outbox_oldest_s"] is None
    assert health["rss_bytes"] > 10e6
    assert health["clock_synced"] in (True, False, None)
    assert health["uptime_s"] >= 0
    assert "real_time_factor" in health


def test_restart_goes_on_where_it_was(tmp_path: Path, broker: Broker, listen: Listen) -> None:
    """A clean stop in the middle of a window and of a vote loses neither: same windows, same event."""
    path = write_plant(tmp_path, broker.port)
    ear = listen("edge/#")
    stream = np.concatenate([healthy(N, 1, seed=i, level=1.0 if i < 4 else 1.5) for i in range(10)], axis=1)
    pieces = [stream[:, i : i + 100] for i in range(0, stream.shape[1], 100)]
    from edge_agent import payloads
    from edge_agent.signals import Chunk

    sent = [
        payloads.encode(Chunk(x, t=1.79e9 + i * 0.1, seq=i), LAYOUT) for i, x in enumerate(pieces)
    ]
    cut = 15  # in the middle of window 5, two loud windows into the vote
    with Agent(path):
        ear.wait("edge/t/status")
        for payload in sent[:cut]:
            ear.publish("plant/a", payload)
        ear.wait("edge/t/s/a/score", 5)
    assert not ear.on("edge/t/s/a/event")
    with Agent(path) as agent:
        until(lambda: ear.on("edge/t/status")[-1] == b"online")
        for payload in sent[cut:]:
            ear.publish("plant/a", payload)
        event = json.loads(ear.wait("edge/t/s/a/event")[0])
        ear.wait("edge/t/s/a/score", 10)
    assert [r[0] for r in agent.rows("SELECT seq FROM scores ORDER BY id")] == list(range(10))
    assert event["window"]["seq"] == 6


def test_ack_reset_and_shelve_over_mqtt(tmp_path: Path, broker: Broker, listen: Listen) -> None:
    """A person acknowledges, shelves, unshelves and resets; what is not possible is refused with a reason."""
    path = write_plant(tmp_path, broker.port, defaults={"alarm": {"latching": True}})
    ear = listen("edge/#")
    asked = 0

    def ask(name: str, **fields: Any) -> dict[str, Any]:
        nonlocal asked
        asked += 1
        ear.publish(f"edge/t/cmd/{name}", {"request_id": f"r{asked}", **fields})
        topic = f"edge/t/cmd/{name}/result"
        return until(lambda: [r for r in ear.json(topic) if r["request_id"] == f"r{asked}"])[0]

    with Agent(path) as agent:
        ear.wait("edge/t/status")
        assert not ask("ack", sensor="a")["ok"]
        for seq in range(5):
            ear.publish("plant/a", message(seq, 1.5))
        ear.wait("edge/t/s/a/event")
        answer = ask("ack", sensor="a", by="anna", why="seen")
        assert (answer["ok"], answer["message"]) == (True, "a: ACKED")
        refused = ask("reset", sensor="a")
        assert not refused["ok"]
        assert "ACKED" in refused["message"]
        assert ask("shelve", sensor="a", for_s=1000, by="bob")["ok"]
        assert ask("unshelve", sensor="a")["ok"]
        for seq in range(5, 12):
            ear.publish("plant/a", message(seq, 1.0))
        until(lambda: [e for e in ear.json("edge/t/s/a/event") if e["state"] == "LATCHED"])
        assert ask("reset", sensor="a", by="anna")["ok"]
        until(lambda: [e for e in ear.json("edge/t/s/a/event") if e["type"] == "end"])
        unknown = ask("ack", sensor="b")
        assert "unknown sensor 'b'; known: a" in unknown["message"]
        assert "known: ack, reset" in ask("explode")["message"]
    events = [json.loads(p) for (p,) in agent.rows("SELECT payload FROM events ORDER BY rowid")]
    assert [e["state"] for e in events] == ["UNACK", "ACKED", "SHLVD", "UNACK", "LATCHED", "NORM"]
    assert events[1]["by"] == "anna"
    assert len({e["event_id"] for e in events}) == len(events)


def test_a_shelving_ends_by_the_receipt_clock(tmp_path: Path, broker: Broker, listen: Listen) -> None:
    """Shelved for 0.5 s while loud, the alarm comes back by itself as `new`."""
    path = write_plant(tmp_path, broker.port)
    ear = listen("edge/#")
    with Agent(path):
        ear.wait("edge/t/status")
        for seq in range(5):
            ear.publish("plant/a", message(seq, 1.5))
        ear.wait("edge/t/s/a/event")
        ear.publish("edge/t/cmd/shelve", {"request_id": 1, "sensor": "a", "for_s": 0.5})
        ear.wait("edge/t/s/a/event", 3)
    assert [(e["type"], e["state"]) for e in ear.json("edge/t/s/a/event")] == [
        ("new", "UNACK"), ("update", "SHLVD"), ("new", "UNACK"),
    ]  # fmt: skip


@needs_mosquitto
@pytest.mark.parametrize("stays", [False, True])
def test_a_shelving_that_runs_out_while_the_agent_is_off_covers_its_own_time(
    tmp_path: Path, broker: Broker, listen: Listen, stays: bool
) -> None:
    """What the broker kept from within the shelving is not told; what is still abnormal after it is, under the alarm's own id."""
    path = write_plant(tmp_path, broker.port)
    ear = listen("edge/#")
    with Agent(path):
        ear.wait("edge/t/status")
        ear.publish("edge/t/cmd/shelve", {"request_id": 1, "sensor": "a", "for_s": 4})
        (shelved,) = (json.loads(p) for p in ear.wait("edge/t/s/a/event"))
    until_t, t0 = time.time() + 4.0, time.time()
    loud_ones = 11 if stays else 5
    for seq in range(11):  # 2.8 s of them, all within the shelving
        ear.publish("plant/a", message(seq, 1.5 if seq < loud_ones else 0.5, t0=t0))
    time.sleep(max(0.0, until_t - time.time()))
    with Agent(path) as agent:
        until(lambda: agent.rows("SELECT count(*) FROM scores") == [(11,)])
        told = [json.loads(p) for p in ear.wait("edge/t/s/a/event", 2)]
        time.sleep(0.6)  # two more looks
    kinds = [(e["type"], e["state"], e["alarm_id"]) for e in told]
    end = ("new", "UNACK") if stays else ("end", "NORM")
    assert kinds == [("update", "SHLVD", shelved["alarm_id"]), (*end, shelved["alarm_id"])]
    assert len(ear.on("edge/t/s/a/event")) == 2
    assert told[1]["ts"] >= rfc3339(until_t - 1.0)
    assert [a["alarm_id"] for a in queries.alarms(tmp_path / "agent.db")] == ([shelved["alarm_id"]] if stays else [])


@needs_mosquitto
def test_over_mqtt_3_1_1_a_command_does_not_wait_for_the_agent(tmp_path: Path, broker: Broker, listen: Listen) -> None:
    """That protocol knows no expiry, so the broker keeps none; a sensor's messages it keeps all the same."""
    path = write_plant(tmp_path, broker.port)
    config = yaml.safe_load(path.read_text())
    config["mqtt"]["protocol"] = "3.1.1"
    path.write_text(yaml.safe_dump(config))
    ear = listen("edge/#")
    with Agent(path) as agent:
        until(lambda: agent.daemon._transport.listening)
    ear.publish("edge/t/cmd/shelve", {"request_id": 1, "sensor": "a", "for_s": 1000})
    ear.publish("plant/a", message(0))
    with Agent(path) as agent:
        ear.wait("edge/t/s/a/score")
        ear.publish("edge/t/cmd/ack", {"request_id": 2, "sensor": "a"})
        ear.wait("edge/t/cmd/ack/result")
        assert ear.on("edge/t/cmd/shelve/result") == []
        assert agent.daemon.worker.sensors["a"].state.alarm.state == "NORM"


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (b'{"request_id": "q", "sensor": 5}', "sensor is 5; expected text"),
        (b'{"request_id": "q"}', "ack needs a sensor"),
        (b'{"request_id": "q", "sensor": "a", "for_s": "long"}', "for_s is 'long'; expected seconds"),
        (b'{"request_id": "q", "sensor": "a", "since": "never"}', "since: time is 'never'"),
    ],
)
def test_bad_commands_are_answered(
    tmp_path: Path, broker: Broker, listen: Listen, payload: bytes, expected: str
) -> None:
    """A command that cannot be read is answered with ok false where it has a request_id."""
    path = write_plant(tmp_path, broker.port)
    ear = listen("edge/#")
    with Agent(path):
        ear.wait("edge/t/status")
        ear.publish("edge/t/cmd/ack", b"\xff not json")
        ear.publish("edge/t/cmd/ack", b"[1, 2]")
        ear.publish("edge/t/cmd/ack", payload)
        (answer,) = (json.loads(p) for p in ear.wait("edge/t/cmd/ack/result"))
    assert answer["ok"] is False
    assert answer["request_id"] == "q"
    assert expected in answer["message"]


def test_a_command_delivered_twice_is_carried_out_once(tmp_path: Path, broker: Broker, listen: Listen) -> None:
    """QoS 1 may deliver a command again: the same answer comes, and no second event."""
    path = write_plant(tmp_path, broker.port)
    ear = listen("edge/#")
    with Agent(path) as agent:
        ear.wait("edge/t/status")
        for _ in range(2):
            ear.publish("edge/t/cmd/shelve", {"request_id": "same", "sensor": "a", "for_s": 100})
        first, second = ear.wait("edge/t/cmd/shelve/result", 2)
    assert first == second
    assert agent.rows("SELECT count(*) FROM events") == [(1,)]


def test_a_quiet_sensors_shelving_has_no_severity_anywhere(
    tmp_path: Path, broker: Broker, listen: Listen, caplog: pytest.LogCaptureFixture
) -> None:
    """Event, retained state, row and log line of a healthy sensor's shelving know no warning."""
    caplog.set_level("INFO")
    path = write_plant(tmp_path, broker.port)
    ear = listen("edge/#")
    with Agent(path) as agent:
        ear.wait("edge/t/status")
        for name in ("shelve", "unshelve"):
            ear.publish(f"edge/t/cmd/{name}", {"request_id": name, "sensor": "a", "for_s": 100})
            ear.wait(f"edge/t/cmd/{name}/result")
        ear.wait("edge/t/s/a/event", 2)
    assert [(e["type"], e["severity"]) for e in ear.json("edge/t/s/a/event")] == [("update", None), ("end", None)]
    assert {s["severity"] for s in ear.json("edge/t/s/a/state")} == {None}
    assert agent.rows("SELECT severity FROM events") == [(None,), (None,)]
    told = [(r.levelname, r.getMessage()) for r in caplog.records if r.getMessage().startswith("a: ")]
    assert [t for t in told if "SHLVD" in t[1] or "NORM" in t[1]] == [("INFO", "a: SHLVD, update"), ("INFO", "a: NORM, end")]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is Linux's")
def test_networks_that_will_be_slow_are_warned_of(
    tmp_path: Path, broker: Broker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where /proc/cpuinfo is hidden, as by ProcSubset=pid, XNNPACK does not start: said once at the start, with the mend."""
    path = write_plant(tmp_path, broker.port)
    for cpuinfo, warned in ((host.CPUINFO, 0), (tmp_path / "hidden", 1)):
        monkeypatch.setattr(host, "CPUINFO", cpuinfo)
        caplog.clear()
        with Agent(path):
            pass
        assert caplog.text.count("goes without XNNPACK") == warned


def test_retained_commands_are_ignored(tmp_path: Path, broker: Broker, listen: Listen) -> None:
    """A command left retained on the broker is not carried out at every start."""
    path = write_plant(tmp_path, broker.port, mqtt={"protocol": "3.1.1"})
    ear = listen("edge/#")
    ear.publish("edge/t/cmd/shelve", {"request_id": "old", "sensor": "a", "for_s": 100}, retain=True)
    ear.wait("edge/t/cmd/shelve")  # the broker has it
    with Agent(path) as agent:
        ear.wait("edge/t/health", 2)
    assert agent.rows("SELECT count(*) FROM events") == [(0,)]
    assert not ear.on("edge/t/cmd/shelve/result")


def test_silent_and_back(tmp_path: Path, broker: Broker, listen: Listen) -> None:
    """A sensor that stops sending is `silent` after its time by the receipt clock, `online` on return."""
    path = write_plant(tmp_path, broker.port, {"a": {"silent_after_s": 1}})
    ear = listen("edge/#")
    with Agent(path):
        ear.wait("edge/t/status")
        for seq in range(2):
            ear.publish("plant/a", message(seq))
            until(lambda: ear.on("edge/t/s/a/status")[-1:] == [b"online"])
            if seq == 0:
                until(lambda: ear.on("edge/t/s/a/status")[-1:] == [b"silent"])
    assert ear.on("edge/t/s/a/status")[-3:] == [b"online", b"silent", b"online"]


def test_a_bug_in_one_pipeline_stops_that_sensor_only(
    tmp_path: Path, broker: Broker, listen: Listen, caplog: pytest.LogCaptureFixture
) -> None:
    """A model that raises quarantines its sensor, says `fault`, and a reload lifts it; the other scores on."""

    def broken(_x: Any) -> Any:
        raise RuntimeError("a bug")

    def change(pipelines: dict[str, Any]) -> dict[str, Any]:
        bad = pipelines["a"]
        return {**pipelines, "a": replace(bad, judge=replace(bad.judge, model=broken))}

    path = write_plant(tmp_path, broker.port, {"a": {}, "b": {}})
    ear = listen("edge/#")
    with Agent(path, change=change):
        ear.wait("edge/t/status")
        for seq in range(3):
            ear.publish("plant/a", message(seq))
            ear.publish("plant/b", message(seq))
        ear.wait("edge/t/s/b/score", 3)
        assert ear.wait("edge/t/s/a/status")[-1] == b"fault"
        assert not ear.on("edge/t/s/a/score")
        ear.publish("edge/t/cmd/reload", {"request_id": 1})
        answer = json.loads(ear.wait("edge/t/cmd/reload/result")[0])
        assert answer["ok"]
        ear.publish("plant/a", message(3))
        ear.wait("edge/t/s/a/score")
        assert ear.on("edge/t/s/a/status")[-1] == b"online"
    assert "a: its pipeline failed (RuntimeError: a bug)" in caplog.text


def test_a_quarantine_ends_by_itself_and_lasts_longer_each_time(
    tmp_path: Path, broker: Broker, listen: Listen, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A sensor whose model fails twice is tried again after 0.4 and 0.8 s, keeps its alarm, and is `online` once it works."""
    monkeypatch.setattr(worker, "QUARANTINE_S", 0.4)

    def change(pipelines: dict[str, Any]) -> dict[str, Any]:
        built = pipelines["a"]
        model, calls = built.judge.model, iter(range(10**6))

        def broken(x: Any) -> Any:
            if next(calls) in (6, 7):
                raise RuntimeError("a bug")
            return model(x)

        return {"a": replace(built, judge=replace(built.judge, model=broken))}

    path = write_plant(tmp_path, broker.port)
    ear = listen("edge/#")
    with Agent(path, change=change) as agent:
        until(lambda: agent.daemon._transport.listening)
        sensor = agent.daemon.worker.sensors["a"]
        for seq in range(6):
            ear.publish("plant/a", message(seq, 1.5))
        ear.wait("edge/t/s/a/score", 6)
        alarm = sensor.state.alarm
        for n in (1, 2):
            ear.publish("plant/a", message(10 * n, 1.5))
            until(lambda n=n: sensor.fault and sensor.faults == n)
            assert ear.wait("edge/t/s/a/status", 2)[-1] == b"fault"
            until(lambda: not sensor.fault)
        ear.publish("plant/a", message(30, 1.5))
        ear.wait("edge/t/s/a/score", 7)
        until(lambda: ear.on("edge/t/s/a/status")[-1] == b"online")
        assert (sensor.state.alarm.alarm_id, sensor.state.alarm.state) == (alarm.alarm_id, "UNACK")
    assert [text in caplog.text for text in ("again in 0.4 s", "again in 0.8 s", "again in 1.6 s")] == [True, True, False]


def test_two_sensors_share_a_topic(tmp_path: Path, broker: Broker, listen: Listen) -> None:
    """Two sensors on one topic with different channels each score every message, from their own channel."""
    shared = {"topic": "plant/both", "payload": {"format": "f32le", "n_channels": 2, "header": "ts_seq"}}
    path = write_plant(
        tmp_path, broker.port, {"x": {**shared, "channels": [0]}, "y": {**shared, "channels": [1]}}
    )
    from edge_agent import payloads
    from edge_agent.payloads import PayloadLayout
    from edge_agent.signals import Chunk

    ear = listen("edge/#")
    with Agent(path):
        ear.wait("edge/t/status")
        for seq in range(3):
            samples = np.vstack([healthy(N, seed=seq), 2.0 * healthy(N, seed=seq)])
            chunk = Chunk(samples, t=1.79e9 + seq * 0.256, seq=seq)
            ear.publish("plant/both", payloads.encode(chunk, PayloadLayout("f32le", 2, "ts_seq")))
        ear.wait("edge/t/s/x/score", 3)
        ear.wait("edge/t/s/y/score", 3)
    x, y = (np.array([s["score"] for s in ear.json(f"edge/t/s/{name}/score")]) for name in "xy")
    np.testing.assert_allclose(y, 2.0 * x, rtol=1e-5)


def test_overflow_drops_the_oldest_of_the_flooding_sensor_only(tmp_path: Path, broker: Broker) -> None:
    """A flood evicts its own oldest messages, counts them, and leaves the other sensor's queue alone."""
    from edge_agent.inbox import Inbox

    inbox = Inbox(["a", "b"], max_messages=4, max_bytes=100)
    assert inbox.put("b", b"calm", 0.0) == 0
    assert sum(inbox.put("a", bytes([i]), 0.0) for i in range(10)) == 6
    order = [inbox.take(0) for _ in range(5)]
    assert [(i[0], i[1]) for i in order if isinstance(i, tuple)] == [
        ("b", b"calm"), ("a", b"\x06"), ("a", b"\x07"), ("a", b"\x08"), ("a", b"\x09"),
    ]  # fmt: skip
    assert inbox.take(0) is None
    assert [inbox.put("a", bytes(60), 0.0) for _ in range(3)] == [0, 1, 1]
    assert inbox.depths() == {"a": 1, "b": 0}


def test_sighup_reloads_and_keeps_the_old_one_when_the_new_is_bad(
    tmp_path: Path, broker: Broker, listen: Listen
) -> None:
    """SIGHUP adds a sensor, keeps the votes of the unchanged one, and a misspelt file changes nothing."""
    path = write_plant(tmp_path, broker.port)
    good = yaml.safe_load(path.read_text())
    ear = listen("edge/#")
    agent = Process(path)
    try:
        ear.wait("edge/t/status")
        for seq in range(2):
            ear.publish("plant/a", message(seq, 1.5))
        ear.wait("edge/t/s/a/score", 2)
        path.write_text(yaml.safe_dump({**good, "sensorz": 1}))
        agent.send(signal.SIGHUP)
        until(lambda: "reload refused" in agent.said(), what="the refusal in the log")
        assert "sensorz" in agent.said()
        two = {**good["sensors"], "b": {**good["sensors"]["a"], "topic": "plant/b"}}
        path.write_text(yaml.safe_dump({**good, "sensors": two}))
        agent.send(signal.SIGHUP)
        until(lambda: "reloaded: 2 sensors; changed: b" in agent.said(), what="the reload in the log")
        ear.publish("plant/a", message(2, 1.5))
        event = json.loads(ear.wait("edge/t/s/a/event")[0])
        assert event["window"]["seq"] == 2  # the vote began before the reload
        until(lambda: ear.publish("plant/b", message(0)) or ear.on("edge/t/s/b/score"))
        path.write_text(yaml.safe_dump(good))
        agent.send(signal.SIGHUP)
        until(lambda: b"disabled" in ear.on("edge/t/s/b/status"))
    finally:
        code = agent.end()
    assert code == 0
    assert "Traceback" not in agent.said()
    assert ear.wait("edge/t/status", 2)[-1] == b"stopped"


def test_last_will_on_kill(tmp_path: Path, broker: Broker, listen: Listen) -> None:
    """SIGKILL leaves the retained status `offline`, by the broker's hand."""
    path = write_plant(tmp_path, broker.port)
    ear = listen("edge/#")
    agent = Process(path)
    ear.wait("edge/t/status")
    agent.end(signal.SIGKILL)
    ear.wait("edge/t/status", 2)
    late = listen("edge/t/status")
    assert set(late.wait("edge/t/status")) == {b"offline"}


def test_systemd_hears_ready_watchdog_and_stopping(tmp_path: Path, broker: Broker) -> None:
    """Under a notify socket the agent says READY, WATCHDOG while it makes progress, RELOADING, STOPPING."""
    address = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(address))
        sock.settimeout(20)
        path = write_plant(tmp_path, broker.port)
        agent = Process(path, env={"NOTIFY_SOCKET": str(address), "WATCHDOG_USEC": "800000"})
        assert sock.recv(100) == b"READY=1"
        assert sock.recv(100) == b"WATCHDOG=1"
        agent.send(signal.SIGHUP)
        heard = [sock.recv(100) for _ in range(6)]
        assert any(text.startswith(b"RELOADING=1\nMONOTONIC_USEC=") for text in heard)
        assert b"READY=1" in heard
        assert agent.end() == 0
        sock.settimeout(1)
        last = b""
        while last != b"STOPPING=1":
            last = sock.recv(100)


def test_notify_reaches_an_abstract_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    """A NOTIFY_SOCKET that begins with '@' is an abstract name; without the variable nothing is sent."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        name = f"edge-agent-test-{os.getpid()}"
        sock.bind("\0" + name)
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + name)
        assert host.notify("READY=1")
        assert sock.recv(100) == b"READY=1"
    monkeypatch.delenv("NOTIFY_SOCKET")
    assert not host.notify("READY=1")


def test_the_watchdog_is_not_fed_while_the_worker_hangs(tmp_path: Path, broker: Broker) -> None:
    """A worker stuck in one call makes no progress; an idle one does."""
    import threading

    gate = threading.Event()
    with Agent(write_plant(tmp_path, broker.port)) as agent:
        time.sleep(0.6)
        assert agent.daemon.progressing(0.5)
        agent.daemon.inbox.call(gate.wait)
        until(lambda: not agent.daemon.progressing(0.5), what="the hang")
        gate.set()
        until(lambda: agent.daemon.progressing(0.5), what="the worker's return")


def test_starts_without_a_broker_and_delivers_late(tmp_path: Path) -> None:
    """With the broker away the agent starts, raises an alarm, and sends it once the broker comes, late."""
    (folder := tmp_path / "broker").mkdir()
    broker = Broker(folder, persistent=True)
    broker.start()
    path = write_plant(tmp_path, broker.port)
    with Agent(path) as agent:
        first = Listener(broker.port, "edge/#")
        first.wait("edge/t/status")
        for seq in range(3):
            first.publish("plant/a", message(seq, 1.0))
        first.wait("edge/t/s/a/score", 3)
        first.close()
        broker.stop()
        until(lambda: not agent.daemon._transport.connected)
        for seq in range(3, 7):
            agent.daemon.inbox.put("a", message(seq, 1.5), time.time())
        until(lambda: agent.rows("SELECT sent FROM outbox"), what="an event in the outbox")
    assert agent.rows("SELECT sent FROM outbox") == [(None,)]
    with Agent(path) as agent:
        until(lambda: agent.daemon.worker.sensors["a"].state.alarm.state == "UNACK")
        broker.start()
        ear = Listener(broker.port, "edge/#")
        sent = ear.wait("edge/t/s/a/event")[0]
        until(lambda: agent.rows("SELECT sent FROM outbox")[0][0] is not None)
        state = until(lambda: [s for s in ear.json("edge/t/s/a/state") if s["state"] == "UNACK"])[0]
        ear.publish("edge/t/cmd/resend", {"request_id": 1, "since": "2026-01-01T00:00:00Z"})
        again = ear.wait("edge/t/s/a/event", 2)[1]
        ear.close()
    broker.stop()
    (stored,) = (row[0].encode() for row in agent.rows("SELECT payload FROM events"))
    assert sent != stored
    assert sent == stored.replace(b'"late":false', b'"late":true') == again
    assert (state["state"], state["event_id"]) == ("UNACK", json.loads(sent)["event_id"])


def test_the_agent_comes_back_after_a_broker_restart_with_nothing_kept(
    tmp_path: Path, broker: Broker, listen: Listen
) -> None:
    """A broker that forgot everything gets subscriptions, status, info and state again."""
    path = write_plant(tmp_path, broker.port)
    with Agent(path):
        ear = listen("edge/#")
        until(lambda: ear.json("edge/t/info"))
        broker.stop()
        broker.start()
        until(lambda: ear.transport.connected)
        again = Listener(broker.port, "edge/#")
        for topic in ("status", "info", "s/a/state"):
            again.wait(f"edge/t/{topic}")
        again.publish("plant/a", message(0))
        again.wait("edge/t/s/a/score")
        again.close()


@needs_mosquitto
def test_qos1_messages_survive_a_short_absence(tmp_path: Path, broker: Broker, listen: Listen) -> None:
    """What a sensor publishes at QoS 1 while the agent restarts is scored after the restart."""
    path = write_plant(tmp_path, broker.port)
    ear = listen("edge/#")
    with Agent(path):
        ear.wait("edge/t/status")
        ear.publish("plant/a", message(0))
        ear.wait("edge/t/s/a/score")
    for seq in range(1, 5):
        ear.publish("plant/a", message(seq))
    with Agent(path) as agent:
        ear.wait("edge/t/s/a/score", 5)
    assert agent.rows("SELECT seq FROM scores ORDER BY id") == [(i,) for i in range(5)]


def test_exit_codes_of_run(tmp_path: Path) -> None:
    """78 with every mistake for a bad configuration, 1 for a database that cannot be opened."""
    path = write_plant(tmp_path, free_port())
    good = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**good, "mqqt": {}, "health_every_s": 0}))
    agent = Process(path)
    assert agent.process.wait(30) == 78
    assert "mqqt" in agent.said()
    assert "health_every_s" in agent.said()
    (tmp_path / "agent.db").mkdir()
    path.write_text(yaml.safe_dump(good))
    agent = Process(path)
    assert agent.process.wait(30) == 1
    assert "agent.db: cannot be opened" in agent.said()


def test_resend_of_one_alarm_and_of_one_event(tmp_path: Path, broker: Broker, listen: Listen) -> None:
    """resend takes an alarm_id or an event_id and repeats just those events, byte-equal but for `late`."""
    path = write_plant(tmp_path, broker.port)
    ear = listen("edge/#")
    with Agent(path):
        ear.wait("edge/t/status")
        for seq in range(4):
            ear.publish("plant/a", message(seq, 1.5))
        first = ear.wait("edge/t/s/a/event")[0]
        ear.publish("edge/t/cmd/ack", {"request_id": 1, "sensor": "a"})
        second = ear.wait("edge/t/s/a/event", 2)[1]
        ear.publish("edge/t/cmd/resend", {"request_id": 2, "event_id": json.loads(second)["event_id"]})
        assert ear.wait("edge/t/s/a/event", 3)[2] == second.replace(b'"late":false', b'"late":true')
        ear.publish("edge/t/cmd/resend", {"request_id": 3, "alarm_id": json.loads(first)["alarm_id"]})
        again = ear.wait("edge/t/s/a/event", 5)[3:]
    assert again == [p.replace(b'"late":false', b'"late":true') for p in (first, second)]


def test_the_client_id_is_kept(tmp_path: Path, broker: Broker) -> None:
    """The client id is the agent's id with six characters and the same after a restart."""
    path = write_plant(tmp_path, broker.port)
    for _ in range(2):
        with Agent(path):
            kept = (tmp_path / "agent.db.client-id").read_text().strip()
            assert kept.startswith("t-")
            assert len(kept) == 8
    assert rows(tmp_path / "agent.db", "SELECT count(*) FROM pipeline_state") == [(1,)]


def test_only_an_accepted_connect_counts(tmp_path: Path) -> None:
    """A broker that refuses the login is reported once, with the mend, and is never `connected`."""
    (folder := tmp_path / "broker").mkdir()
    (folder / "passwords").write_text("")
    broker = Broker(folder, extra=f"allow_anonymous false\npassword_file {folder}/passwords\n")
    broker.start()
    transport = MqttTransport(mqtt_config(broker.port), "x", on_message=lambda *_: None)
    transport.start()
    with pytest.raises(Exception, match=r"refuses us.*mqtt\.username"):
        transport.wait_connected(3)
    assert not transport.connected
    assert transport.publish("x", b"") is None
    transport.stop()
    broker.stop()


def test_the_reference_shows_what_is_really_sent(tmp_path: Path, broker: Broker, listen: Listen) -> None:
    """Every JSON example of docs/mqtt.md has just the fields that a running agent publishes."""
    import re

    text = (Path(__file__).parent.parent / "docs" / "mqtt.md").read_text()
    examples = {name: json.loads(body) for name, body in re.findall(r"```json (\w+)\n(.*?)```", text, re.S)}
    path = write_plant(tmp_path, broker.port)
    ear = listen("edge/#")
    with Agent(path):
        ear.wait("edge/t/status")
        for seq in range(4):
            ear.publish("plant/a", message(seq, 1.5))
        real = {
            "event": json.loads(ear.wait("edge/t/s/a/event")[0]),
            "score": json.loads(ear.wait("edge/t/s/a/score")[0]),
            "health": json.loads(ear.wait("edge/t/health")[0]),
        }
        ear.publish("edge/t/cmd/ack", {**examples["command"], "sensor": "a"})
        real["result"] = json.loads(ear.wait("edge/t/cmd/ack/result")[0])
    for name, fields in real.items():
        assert list(examples[name]) == list(fields), name
    for reason in DROP_REASONS:
        assert f"`{reason}`" in text


def test_topics_of_an_earlier_configuration_are_given_up(
    tmp_path: Path, broker: Broker, listen: Listen
) -> None:
    """The broker's session remembers a topic that the configuration has dropped: one message, then none."""
    path = write_plant(tmp_path, broker.port, {"a": {"topic": "plant/old"}})
    ear = listen("edge/#")
    with Agent(path):
        ear.wait("edge/t/status")
    content = yaml.safe_load(path.read_text())
    content["sensors"]["a"]["topic"] = "plant/new"
    path.write_text(yaml.safe_dump(content))
    with Agent(path) as agent:
        heard: list[str] = []
        take = agent.daemon._on_message
        agent.daemon._transport._handler = lambda t, p, r: (heard.append(t), take(t, p, r))[1]
        ear.wait("edge/t/status", 3)
        for seq in range(3):
            ear.publish("plant/old", message(seq))
            ear.publish("plant/new", message(seq))
            ear.wait("edge/t/s/a/score", seq + 1)
    assert heard.count("plant/old") <= 2
    assert agent.rows("SELECT count(*) FROM scores") == [(3,)]
    assert agent.daemon._tally.counts() == {}


def test_a_second_agent_on_the_same_database_refuses(tmp_path: Path) -> None:
    """While one agent holds the database another exits 1 and says so; after its stop, or kill, one may start."""
    path = write_plant(tmp_path, free_port())
    with Agent(path):
        late = Process(path)
        assert late.process.wait(30) == 1
        assert "another agent is running with this database" in late.said()
        assert str(tmp_path / "agent.db") in late.said()
    again = Process(path)
    until(lambda: again.said().count("agent t, 1 sensor\n"), what="the start after a clean stop")
    again.end(signal.SIGKILL)
    with Agent(path):
        assert (tmp_path / "agent.db.lock").exists()
