"""The life of an alarm over people, kills and settings that cannot work."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from agents import FS_HZ, N, Process, message, rows, write_plant
from bundles import make_indicator_bundle
from conftest import Broker, Listener, needs_mosquitto, until

from edge_agent import assemble, remote
from edge_agent.alarms import STATES, AlarmPolicy
from edge_agent.config import load
from edge_agent.features import Context

Listen = Callable[..., Listener]


class Person:
    """Somebody who sends commands and waits for the answers."""

    def __init__(self, ear: Listener) -> None:
        self.ear, self.asked = ear, 0

    def ask(self, name: str, **fields: Any) -> dict[str, Any]:
        """The agent's answer to one command."""
        self.asked += 1
        self.ear.publish(f"edge/t/cmd/{name}", {"request_id": self.asked, **fields})
        topic = f"edge/t/cmd/{name}/result"
        answer = until(lambda: [r for r in self.ear.json(topic) if r["request_id"] == self.asked])[0]
        assert isinstance(answer, dict)
        return answer


def started(path: Path, ear: Listener) -> Process:
    """An agent in a process of its own, online."""
    before = ear.on("edge/t/status").count(b"online")
    agent = Process(path)
    until(lambda: ear.on("edge/t/status").count(b"online") > before, what="the agent's start")
    return agent


@needs_mosquitto
def test_what_people_did_survives_a_kill(tmp_path: Path, broker: Broker, listen: Listen) -> None:
    """Acknowledged, killed with SIGKILL and restarted: still acknowledged, by whom and why; shelved, killed and restarted
    after its time: told as `new` again; and every transition is one row, told under one event_id."""
    path = write_plant(tmp_path, broker.port)
    ear = listen("edge/#")
    person = Person(ear)
    agent = started(path, ear)
    for seq in range(5):
        ear.publish("plant/a", message(seq, 1.5))
    ear.wait("edge/t/s/a/event")
    assert person.ask("ack", sensor="a", by="anna", why="bearing ordered") == {
        "schema": 1, "request_id": 1, "ok": True, "message": "a: ACKED",
    }  # fmt: skip
    agent.end(signal.SIGKILL)

    database = tmp_path / "agent.db"
    stored = "SELECT state, acked_by, ack_why FROM alarm_state"
    agent = started(path, ear)
    assert rows(database, stored) == [("ACKED", "anna", "bearing ordered")]
    retained = ear.json("edge/t/s/a/state")[-1]
    assert (retained["state"], retained["acked_by"], retained["ack_why"]) == ("ACKED", "anna", "bearing ordered")
    ear.publish("plant/a", message(5, 1.5))
    until(lambda: len(ear.on("edge/t/s/a/score")) >= 6)
    assert not person.ask("ack", sensor="a", by="bob")["ok"], "nobody can acknowledge twice"
    assert person.ask("shelve", sensor="a", for_s=0.3, by="bob", why="repair")["ok"]
    agent.end(signal.SIGKILL)

    agent = started(path, ear)
    until(lambda: len(rows(database, "SELECT 1 FROM events")) == 4, what="the end of the shelving")
    assert agent.end() == 0
    told = [json.loads(p) for (p,) in rows(database, "SELECT payload FROM events ORDER BY rowid")]
    assert [(e["type"], e["state"], e.get("by"), e.get("comment")) for e in told] == [
        ("new", "UNACK", None, None),
        ("update", "ACKED", "anna", "bearing ordered"),
        ("update", "SHLVD", "bob", "repair"),
        ("new", "UNACK", None, None),
    ]
    assert len({e["alarm_id"] for e in told}) == 1
    assert {e["event_id"] for e in ear.json("edge/t/s/a/event")} == {e["event_id"] for e in told}


def test_the_page_names_every_setting_and_state() -> None:
    """docs/alarms.md has a row for each key of `alarm` with its default, and one for each state."""
    page = (Path(__file__).parents[1] / "docs" / "alarms.md").read_text()
    settings = page.partition("## When an alarm comes and goes")[2].partition("## A morning")[0]
    for field in fields(AlarmPolicy):
        default = list(field.default) if isinstance(field.default, tuple) else field.default
        (row,) = (line for line in settings.splitlines() if line.startswith("|") and f"`{field.name}" in line)
        shown = f"{default:g}" if isinstance(default, float) else str(default)
        assert shown.lower() in row.lower(), field.name
    for state in STATES:
        assert f"\n| `{state}` |" in page


@pytest.mark.parametrize(
    ("alarm", "hop_s", "says"),
    [
        ({"vote": [6, 5]}, 1, "sensors.a.alarm.vote: got [6, 5]; expected [k, n] with 1 <= k <= n <= 100"),
        ({"deadband": 0.95}, 1, "sensors.a.alarm.deadband: got 0.95; expected"),
        ({"deadband": -0.1}, 1, "sensors.a.alarm.deadband: got -0.1; expected"),
        ({"on_delay_s": 2e6}, 1, "sensors.a.alarm.on_delay_s: got 2e+06; expected"),
        ({"warning_ratio": 2.0}, 1, "sensors.a.alarm.alarm_ratio: got 1.5; expected at least warning_ratio (2)"),
        ({"vote": [100, 100]}, 86400, "a window every 86400 s and on_delay_s 0: 99 days; expected at most 30 days"),
        ({"on_delay_s": 1e6}, 1e6, "on_delay_s 1e+06: 34.7 days; expected at most 30 days"),
        ({"vote": [3, 100]}, 30000, "off_delay_s 0: 34.4 days; expected at most 30 days from the last crossing to the return"),
        ({"off_delay_s": 1e6}, 1e6, "off_delay_s 1e+06: 57.9 days; expected"),
    ],
)
def test_settings_that_can_raise_no_alarm_are_refused(tmp_path: Path, alarm: Any, hop_s: float, says: str) -> None:
    """A vote, delay, deadband or severity that can never be met is a mistake in the configuration, named with its key."""
    problems = assemble.check(write_plant(tmp_path, 1, {"a": {"alarm": alarm, "window": {"hop_s": hop_s}}}))
    assert len(problems) == 1
    assert says in str(problems[0])


def test_a_hop_beyond_the_history_is_refused(tmp_path: Path) -> None:
    """A bundle that scores windows together at most 60 s apart never scores one where the hop is longer."""
    make_indicator_bundle(tmp_path / "rms", fs_hz=FS_HZ, n_samples=N, context=Context("windows", 4, max_gap_s=60.0))
    (problem,) = assemble.check(write_plant(tmp_path, 1, {"a": {"window": {"hop_s": 61}}}))
    assert "sensors.a.window.hop_s: got 61; expected at most 60.256" in str(problem)
    assert assemble.check(write_plant(tmp_path, 1, {"a": {"window": {"hop_s": 60}}})) == ()


@needs_mosquitto
def test_a_command_that_nobody_answered_is_not_carried_out_later(tmp_path: Path, broker: Broker, listen: Listen) -> None:
    """Sent while the agent is away and told to have failed, a shelving does nothing once the agent is back."""
    path = write_plant(tmp_path, broker.port)
    ear = listen("edge/#")
    agent = started(path, ear)
    agent.end()
    ok, said = remote.command(load(path), "shelve", "a", by="anna", why=None, for_s=3600.0, timeout_s=1.0)
    assert (ok, said[:12]) == (False, "no answer wi")
    time.sleep(1.5)
    agent = started(path, ear)
    for seq in range(5):
        ear.publish("plant/a", message(seq, 1.5))
    ear.wait("edge/t/s/a/event")
    assert ear.json("edge/t/s/a/event")[0]["state"] == "UNACK"
    assert ear.on("edge/t/cmd/shelve/result") == []
    agent.end()
