"""A sensor comes back as it stood: after a start in the past, a reload that takes it in again, a damaged state, another bundle."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from agents import FS_HZ, Agent, N, message, rows, write_plant
from bundles import make_indicator_bundle
from conftest import Broker, Listener, until
from test_clock import Clock

from edge_agent.assemble import assemble, load, usable
from edge_agent.cli import main
from edge_agent.daemon import Daemon
from edge_agent.errors import StoreError

Listen = Callable[..., Listener]
NOW = 1.8e9
LATCHING = {"alarm": {"latching": True}}


def latch(ear: Listener, agent: Agent, sensor: str) -> tuple[str, str]:
    """Raise an alarm and let it return: (state, alarm_id) on record."""
    until(lambda: agent.daemon._transport.listening)
    for seq in range(14):
        ear.publish(f"plant/{sensor}", message(seq, 5.0 if seq < 7 else 0.7))
    found = until(
        lambda: agent.rows("SELECT state, alarm_id FROM alarm_state WHERE sensor = ? AND state = 'LATCHED'", sensor), what="LATCHED"
    )
    return found[0]


def reload(agent: Agent) -> str:
    """Have the configuration read again; what was answered."""
    said: list[tuple[bool, str]] = []
    agent.daemon.request_reload(lambda ok, text: said.append((ok, text)))
    ok, text = until(lambda: said, what="the answer")[0]
    assert ok, text
    return text


@pytest.mark.parametrize("boot", [60.0, NOW + 600 - 3 * 86400.0])
def test_a_shelving_ends_in_time_though_the_board_boots_in_the_past(
    tmp_path: Path, broker: Broker, listen: Listen, boot: float
) -> None:
    """Shelved for an hour, off for ten minutes, up in 1970 (or days behind) and then set right: it ends when it was to end."""
    path, ear, clock = write_plant(tmp_path, broker.port), listen("edge/#"), Clock(NOW)
    with Agent(path, clock=clock) as agent:
        until(lambda: agent.daemon._transport.listening)
        ear.publish("plant/a", message(0, t0=NOW))
        ear.wait("edge/t/s/a/score")
        ear.publish("edge/t/cmd/shelve", {"request_id": 1, "sensor": "a", "for_s": 3600})
        ear.wait("edge/t/cmd/shelve/result")
    clock = Clock(boot)
    with Agent(path, clock=clock) as agent:
        until(lambda: agent.daemon._transport.listening)
        sensor = agent.daemon.worker.sensors["a"]
        assert sensor.state.alarm.shelved_until == pytest.approx(boot + 3600, abs=60)
        clock.ahead += NOW + 600 - boot
        until(lambda: sensor.state.alarm.shelved_until == pytest.approx(NOW + 3600, abs=60), what="the end on record")
        for seq in range(1, 9):
            ear.publish("plant/a", message(seq, 5.0, t0=NOW))
        ear.wait("edge/t/s/a/score", 9)
        assert sensor.state.alarm.state == "SHLVD"
        clock.ahead += 3100.0
        until(lambda: sensor.state.alarm.state == "UNACK", what="the alarm")


def test_a_shelving_ends_though_the_clock_is_never_set(tmp_path: Path, broker: Broker, listen: Listen) -> None:
    """Up in 1970 without a time server: it lasts no longer than what was left of it."""
    path, ear, clock = write_plant(tmp_path, broker.port), listen("edge/#"), Clock(NOW)
    with Agent(path, clock=clock) as agent:
        until(lambda: agent.daemon._transport.listening)
        ear.publish("edge/t/cmd/shelve", {"request_id": 1, "sensor": "a", "for_s": 4})
        ear.wait("edge/t/cmd/shelve/result")
    with Agent(path, clock=Clock(60.0)) as agent:
        until(lambda: agent.daemon.worker.sensors["a"].state.alarm.state == "NORM", what="the end of the shelving")


def test_a_sensor_taken_out_and_in_again_keeps_its_alarm(tmp_path: Path, broker: Broker, listen: Listen) -> None:
    """By two reloads, and by a restart and a reload: the latched alarm stands under its id; meanwhile the sensor is `disabled`."""
    both = {"a": {}, "b": LATCHING}
    path, ear = write_plant(tmp_path, broker.port, both), listen("edge/#")
    with Agent(path) as agent:
        before = latch(ear, agent, "b")
        write_plant(tmp_path, broker.port, {"a": {}})
        assert "removed: b" in reload(agent)
        write_plant(tmp_path, broker.port, both)
        assert "changed: b" in reload(agent)
        alarm = agent.daemon.worker.sensors["b"].state.alarm
        assert (alarm.state, alarm.alarm_id) == before
    write_plant(tmp_path, broker.port, {"a": {}})
    ear.messages.clear()
    with Agent(path) as agent:
        ear.wait("edge/t/s/b/status")
        assert ear.on("edge/t/s/b/status")[-1] == b"disabled"
        write_plant(tmp_path, broker.port, both)
        reload(agent)
        alarm = agent.daemon.worker.sensors["b"].state.alarm
        assert (alarm.state, alarm.alarm_id) == before
    assert rows(tmp_path / "agent.db", "SELECT state, alarm_id FROM alarm_state WHERE sensor = 'b'") == [before]
    assert [e["type"] for e in ear.json("edge/t/s/b/event")] == []


def test_a_sensor_whose_bundle_is_mended_keeps_its_alarm(tmp_path: Path, broker: Broker, listen: Listen) -> None:
    """Refused at the start because of a damaged bundle, taken in by the reload after it was mended: as it stood."""
    make_indicator_bundle(tmp_path / "rms2", fs_hz=FS_HZ, n_samples=N)
    path, ear = write_plant(tmp_path, broker.port, {"a": {}, "b": {"model": "rms2", **LATCHING}}), listen("edge/#")
    with Agent(path) as agent:
        before = latch(ear, agent, "b")
    manifest = tmp_path / "rms2" / "bundle.json"
    good = manifest.read_text()
    manifest.write_text("{")
    config = load(path)
    pipelines, problems = usable(config)
    assert problems
    daemon = Daemon(config, pipelines, reloader=lambda: (load(path), assemble(load(path))))
    ear.messages.clear()
    daemon.start()
    until(lambda: daemon._transport.listening)
    until(lambda: ear.on("edge/t/s/a/state"), what="what is told on a connect")
    time.sleep(0.5)
    assert ear.on("edge/t/s/b/status") == [b"fault"]
    manifest.write_text(good)
    said: list[tuple[bool, str]] = []
    daemon.request_reload(lambda ok, text: said.append((ok, text)))
    daemon.tick()
    assert said[0][0], said
    alarm = daemon.worker.sensors["b"].state.alarm
    daemon.stop()
    assert (alarm.state, alarm.alarm_id) == before
    assert rows(config.database, "SELECT state, alarm_id FROM alarm_state WHERE sensor = 'b'") == [before]


def test_a_damaged_state_costs_the_votes_and_not_the_alarm(tmp_path: Path, broker: Broker, listen: Listen) -> None:
    """One bit of the stored state turned: the alarm is taken from its table."""
    path, ear = write_plant(tmp_path, broker.port, {"a": LATCHING}), listen("edge/#")
    with Agent(path) as agent:
        before = latch(ear, agent, "a")
    with sqlite3.connect(tmp_path / "agent.db") as db:
        (blob,) = db.execute("SELECT state FROM pipeline_state").fetchone()
        turned = bytearray(blob)
        turned[len(turned) // 2] ^= 1
        db.execute("UPDATE pipeline_state SET state = ?", (bytes(turned),))
    db.close()
    with Agent(path) as agent:
        alarm = agent.daemon.worker.sensors["a"].state.alarm
        assert (alarm.state, alarm.alarm_id) == before
    assert rows(tmp_path / "agent.db", "SELECT state, alarm_id FROM alarm_state") == [before]


def test_a_damaged_time_keeps_no_agent_from_starting(tmp_path: Path, broker: Broker, listen: Listen) -> None:
    """Turned characters in the times of two tables: the alarm stands, as far as it is known."""
    path, ear = write_plant(tmp_path, broker.port, {"a": LATCHING}), listen("edge/#")
    with Agent(path) as agent:
        before = latch(ear, agent, "a")
    with sqlite3.connect(tmp_path / "agent.db") as db:
        db.execute("UPDATE pipeline_state SET ts = '2026-11-27T\x03garbage'")
        db.execute("UPDATE alarm_state SET since = 'x'")
    db.close()
    with Agent(path) as agent:
        alarm = agent.daemon.worker.sensors["a"].state.alarm
        assert (alarm.state, alarm.alarm_id) == before


def test_another_bundle_ends_a_commissioning_on_its_way(tmp_path: Path, broker: Broker, listen: Listen) -> None:
    """Learning of 20 windows, then a bundle of other features by reload: the sensor runs on, and the notice says that nothing is learnt."""
    make_indicator_bundle(tmp_path / "two", fs_hz=FS_HZ, n_samples=N, feature="peak", seed=2)
    path, ear = write_plant(tmp_path, broker.port), listen("edge/#")
    with Agent(path) as agent:
        until(lambda: agent.daemon._transport.listening)
        ear.publish("edge/t/cmd/commission", {"request_id": 1, "sensor": "a"})
        for seq in range(20):
            ear.publish("plant/a", message(seq))
        ear.wait("edge/t/s/a/score", 20)
        write_plant(tmp_path, broker.port, {"a": {"model": "two"}})
        reload(agent)
        for seq in range(20, 26):
            ear.publish("plant/a", message(seq))
        ear.wait("edge/t/s/a/score", 26)
        assert agent.daemon.worker.sensors["a"].state.commissioning.phase == "refused"
        assert not agent.daemon.worker.sensors["a"].fault
        notices = [e["notice"]["text"] for e in ear.json("edge/t/s/a/event") if e["type"] == "notice"]
    assert "commission again" in notices[-1]


def test_another_bundle_is_told_and_an_alarm_stays(tmp_path: Path, broker: Broker, listen: Listen) -> None:
    """After an exchange by reload: a notice with the last window of the former bundle; the standing alarm does not end with one low window."""
    make_indicator_bundle(tmp_path / "peak", fs_hz=FS_HZ, n_samples=N, feature="peak")
    path, ear = write_plant(tmp_path, broker.port), listen("edge/#")
    with Agent(path) as agent:
        until(lambda: agent.daemon._transport.listening)
        for seq in range(6):
            ear.publish("plant/a", message(seq, 5.0))
        ear.wait("edge/t/s/a/event")
        write_plant(tmp_path, broker.port, {"a": {"model": "peak"}})
        reload(agent)
        notice = until(lambda: [e for e in ear.json("edge/t/s/a/event") if e["type"] == "notice"], what="the notice")[0]
        assert notice["notice"]["kind"] == "bundle"
        assert notice["window"]["seq"] == 5
        states = []
        for seq in range(6, 12):
            ear.publish("plant/a", message(seq, 0.3))
            ear.wait("edge/t/s/a/score", seq + 1)
            until(lambda: agent.daemon.worker.sensors["a"].windows > seq)  # noqa: B023 - called in this round
            states.append(agent.daemon.worker.sensors["a"].state.alarm.state)
    assert states == ["UNACK"] * 4 + ["NORM"] * 2


def test_commands_of_two_panels_that_count_alike_are_both_carried_out(tmp_path: Path, broker: Broker, listen: Listen) -> None:
    """The same request_id in another command or for another sensor is another request; byte for byte the same one is not."""
    path, ear = write_plant(tmp_path, broker.port, {"a": {}, "b": {}}), listen("edge/#")
    with Agent(path) as agent:
        until(lambda: agent.daemon._transport.listening)
        for sensor in "ab":
            for _ in range(2):
                ear.publish("edge/t/cmd/shelve", {"request_id": 1, "sensor": sensor, "for_s": 3600})
        ear.publish("edge/t/cmd/unshelve", {"request_id": 1, "sensor": "a"})
        ear.wait("edge/t/cmd/shelve/result", 4)
        ear.wait("edge/t/cmd/unshelve/result")
        time.sleep(0.2)
        told = [(json.loads(p)["sensor"], json.loads(p)["type"]) for t, p, _ in ear.all() if t.endswith("/event")]
    assert sorted(told) == [("a", "end"), ("a", "update"), ("b", "update")]


def test_status_says_why_a_quiet_row_is_not_well(
    tmp_path: Path, broker: Broker, listen: Listen, capsys: pytest.CaptureFixture[str]
) -> None:
    """A silent sensor, one whose regime is unknown, one that learns, and an agent that has ended, each in words on the spot."""
    regime = {"regime": {"topic": "plant/rpm", "edges": [1000]}}
    path = write_plant(tmp_path, broker.port, {"a": {"silent_after_s": 1}, "b": regime, "c": {}})
    ear = listen("edge/#")

    def shown() -> tuple[dict[str, str | None], str]:
        main(["status", "-c", str(path), "--json"])
        out, err = capsys.readouterr()
        return {row["sensor"]: row["note"] for row in map(json.loads, out.splitlines())}, err

    with Agent(path) as agent:
        until(lambda: agent.daemon._transport.listening)
        ear.publish("edge/t/cmd/commission", {"request_id": 1, "sensor": "c", "windows": 100})
        for seq in range(20):
            for sensor in "abc":
                ear.publish(f"plant/{sensor}", message(seq))
        ear.wait("edge/t/s/c/score", 20)
        until(lambda: (shown()[0]["a"] or "").startswith("nothing usable for "), what="the silence")
        told, err = shown()
        assert told["b"] is None
        assert told["c"] == "learning 20 %"
        assert err == ""
        assert main(["status", "-c", str(path)]) == 0
        head, first, *_ = capsys.readouterr().out.splitlines()
        assert head.split()[-1] == "note"
        assert "nothing usable for" in first
        assert main(["reload", "-c", str(path)]) == 0
        assert "changed: none" in capsys.readouterr().out
        path.write_text(path.read_text().replace("silent_after_s", "silent_after"))
        assert main(["reload", "-c", str(path)]) == 78
        path.write_text(path.read_text().replace("silent_after", "silent_after_s"))
        capsys.readouterr()
    told, err = shown()
    assert told["a"] is None
    assert "no agent is running" in err


def test_a_new_threshold_beside_a_commissioned_limit_is_said_to_wait(
    tmp_path: Path, broker: Broker, listen: Listen, caplog: pytest.LogCaptureFixture
) -> None:
    """A reload that changes it warns that the commissioned limit acts on, and how to make the new one count."""
    path, ear = write_plant(tmp_path, broker.port), listen("edge/#")
    with Agent(path) as agent:
        until(lambda: agent.daemon._transport.listening)
        ear.publish("edge/t/cmd/commission", {"request_id": 1, "sensor": "a", "windows": 50})
        ear.wait("edge/t/cmd/commission/result")
        for seq in range(400):
            ear.publish("plant/a", message(seq, 0.5))
            if seq % 50 == 49:
                ear.wait("edge/t/s/a/score", seq + 1)
                if agent.daemon.worker.sensors["a"].state.commissioning.phase == "armed":
                    break
        limit = agent.daemon.worker.sensors["a"].state.commissioning.acting
        assert limit is not None
        write_plant(tmp_path, broker.port, {"a": {"threshold": {"value": 0.3}}})
        reload(agent)
        assert agent.daemon.worker.sensors["a"].state.commissioning.acting is not None
    assert caplog.text.count("its commissioned limit acts on") == 1


def test_a_record_that_cannot_be_read_refuses_the_reload(
    tmp_path: Path, broker: Broker, listen: Listen, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sensor is not begun anew over an alarm that may stand on record: the old configuration goes on, with the reason."""
    path, _ = write_plant(tmp_path, broker.port, {"a": {}}), listen("edge/#")

    def unreadable(*_: object) -> None:
        raise StoreError("agent.db: cannot be read (disk I/O error)")

    with Agent(path) as agent:
        monkeypatch.setattr("edge_agent.daemon.recall", unreadable)
        write_plant(tmp_path, broker.port, {"a": {}, "b": {}})
        said: list[tuple[bool, str]] = []
        agent.daemon.request_reload(lambda ok, text: said.append((ok, text)))
        ok, text = until(lambda: said, what="the answer")[0]
        assert not ok
        assert "the old configuration goes on: agent.db: cannot be read" in text
        assert list(agent.daemon.worker.sensors) == ["a"]
