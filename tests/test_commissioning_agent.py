"""Commissioning, regimes and notices of a running agent, through a real broker, over kills."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
from agents import Agent, Process, message, rows, write_plant
from conftest import Broker, Listener, needs_mosquitto, until

from edge_agent import packing

Listen = Callable[..., Listener]


def command(ear: Listener, **fields: object) -> dict:
    """Send `commission` and give its answer."""
    n = len(ear.on("edge/t/cmd/commission/result"))
    ear.publish("edge/t/cmd/commission", {"request_id": str(n), **fields})
    return json.loads(ear.wait("edge/t/cmd/commission/result", n + 1)[n])


def phase_of(database: Path) -> tuple[str, int]:
    """Phase and windows learnt and verified, as they are on record."""
    stored = rows(database, "SELECT state FROM pipeline_state")
    if not stored:
        return "", 0
    found = msgspec.msgpack.decode(packing.unpack(stored[0][0]))["state"]["commissioning"]
    going = found["going"] or {}
    return found["phase"], going.get("n_learnt", 0) + going.get("n_verified", 0)


@needs_mosquitto
def test_commissioning_goes_on_after_a_kill_and_arms(tmp_path: Path, broker: Broker, listen: Listen) -> None:
    """Killed by SIGKILL while verifying, the agent goes on at the window on record, arms, and has told every phase once."""
    path = write_plant(tmp_path, broker.port)
    ear = listen("edge/#")
    agent = Process(path)
    ear.wait("edge/t/status")
    done = subprocess.run(
        [sys.executable, "-m", "edge_agent", "commission", "a", "-c", str(path), "--windows", "60", "--by", "anna"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "a: learning: learning the normals\n"), done.stderr
    for seq in range(40):
        ear.publish("plant/a", message(seq, 0.5))
    until(lambda: phase_of(tmp_path / "agent.db") == ("verifying", 40), what="40 windows on record")
    agent.end(signal.SIGKILL)
    assert ear.on("edge/t/s/a/status")[-1] == b"learning"
    with Agent(path) as again:
        until(lambda: ear.on("edge/t/status").count(b"online") == 2)
        for seq in range(40, 120):
            ear.publish("plant/a", message(seq, 0.5 if seq < 110 else 0.8))
        until(lambda: len(again.rows("SELECT 1 FROM scores")) >= 120, what="all windows")
        events = [json.loads(p) for p in ear.wait("edge/t/s/a/event", 3)]
        state = until(lambda: [s for s in ear.json("edge/t/s/a/state") if s["commissioning"]["phase"] == "armed"])[-1]
        until(lambda: ear.on("edge/t/s/a/status")[-1] == b"online")
    assert [(e["type"], e.get("notice", {}).get("phase")) for e in events] == [
        ("notice", "learning"), ("notice", "armed"), ("new", None),
    ]  # fmt: skip
    assert events[0]["by"] == "anna"
    assert len({e["event_id"] for e in events}) == 3
    assert events[1]["window"]["seq"] < 100
    assert events[2]["limit"]["source"] == "commissioned"
    assert events[2]["window"]["seq"] == 112  # 0.8 is far below the bundle's limit
    assert state["commissioning"]["percent"] == 100
    stored = rows(tmp_path / "agent.db", "SELECT type, alarm_id FROM events ORDER BY rowid")
    assert [kind for kind, _ in stored] == ["notice", "notice", "new"]
    listed = subprocess.run(
        [sys.executable, "-m", "edge_agent", "alarms", "-c", str(path), "--json"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert [json.loads(line)["alarm_id"] for line in listed] == [stored[2][1]]


def test_cancel_rollback_and_mistakes_are_answered(tmp_path: Path, broker: Broker, listen: Listen) -> None:
    """Each command is answered with what it did or why not, and only what was done is an event."""
    path = write_plant(tmp_path, broker.port)
    ear = listen("edge/#")
    with Agent(path):
        ear.wait("edge/t/status")
        ear.publish("plant/a", message(0))
        ear.wait("edge/t/s/a/score")
        answers = [
            command(ear, sensor="a", action=action, **more)
            for action, more in (
                ("cancel", {}), ("start", {"windows": 10}), ("start", {"windows": "many"}), ("start", {}),
                ("start", {}), ("cancel", {}), ("rollback", {}), ("begin", {}),
            )
        ]  # fmt: skip
        answers.append(command(ear, sensor="b"))
        until(lambda: b"learning" in ear.on("edge/t/s/a/status") and ear.on("edge/t/s/a/status")[-1] == b"online")
    assert [a["ok"] for a in answers] == [False, False, False, True, False, True, False, False, False]
    for answer, text in zip(
        answers,
        ("nothing to cancel", "at least 50", "whole number", "learning", "cancel it first", "cancelled",
         "nothing to roll back", "start, cancel, rollback", "unknown sensor"),
        strict=True,
    ):  # fmt: skip
        assert text in answer["message"]
    assert [e["notice"]["phase"] for e in ear.json("edge/t/s/a/event")] == ["learning", "cancelled"]
