"""Killed at any moment, the agent goes on: state, history and votes, and every transition keeps its one id."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from pathlib import Path

from agents import FS_HZ, Agent, N, Process, message, rows, write_plant
from bundles import make_indicator_bundle
from conftest import Broker, Listener, needs_mosquitto, until

from benchmarks._agent import engine
from edge_agent.config import load
from edge_agent.features import Context

KILLS = 50
#: Windows a second of wall time, and how many are loud, then calm, in turn.
RATE, LOUD, CALM = 40.0, 9, 11


@needs_mosquitto
def test_fifty_kills_lose_no_state_and_double_no_event(tmp_path: Path, broker: Broker) -> None:
    """After 50 SIGKILLs at random points the alarm engine over the stored rows gives exactly the stored
    events, each seen by a subscriber under its one event_id, and the history never had to fill again."""
    seed = int(os.environ.get("SEED", random.SystemRandom().randrange(10**6)))
    print(f"seed {seed}")
    rng = random.Random(seed)
    make_indicator_bundle(tmp_path / "rms", fs_hz=FS_HZ, n_samples=N, context=Context("windows", 4))
    path = write_plant(tmp_path, broker.port)
    ear = Listener(broker.port, "edge/#")
    stop, sent = threading.Event(), 0

    def publish() -> None:
        nonlocal sent
        while not stop.wait(1.0 / RATE):
            loud = sent % (LOUD + CALM) >= CALM
            ear.publish("plant/a", message(sent, 1.6 if loud else 1.0))
            sent += 1

    def online() -> int:
        return ear.on("edge/t/status").count(b"online")

    publisher = threading.Thread(target=publish, daemon=True)
    began = time.monotonic()
    for kill in range(KILLS):
        before = online()
        agent = Process(path)
        until(lambda: online() > before, what="the agent's start")  # noqa: B023 - called in this round
        if kill == 0:
            publisher.start()
        time.sleep(rng.uniform(0.0, 0.6))
        agent.end(signal.SIGKILL)
    stop.set()
    publisher.join()
    with Agent(path) as last:
        until(lambda: last.daemon._transport.listening)
        until(lambda: not last.rows("SELECT 1 FROM outbox WHERE sent IS NULL"), what="an empty outbox")
    ear_events = [json.loads(payload) for payload in ear.on("edge/t/s/a/event")]
    ear.close()

    database = tmp_path / "agent.db"
    scored = rows(database, "SELECT seq, ratio FROM scores ORDER BY id")
    stored = [event_id for (event_id,) in rows(database, "SELECT event_id FROM events ORDER BY rowid")]
    expected, alarm = engine(database, "a", load(path).sensors["a"].policy, "t")
    seconds = time.monotonic() - began
    print(f"{KILLS} kills in {seconds:.0f} s: {sent} windows sent, {len(scored)} rows, {len(stored)} events")
    # Messages that a kill cost are a gap; their quality alarm stands beside the machine's and is of no concern to it.
    told = rows(database, "SELECT event_id FROM events WHERE type NOT IN ('quality', 'notice') ORDER BY rowid")
    assert [event_id for (event_id,) in told] == expected
    assert len(stored) == len(set(stored))
    assert len(stored) >= 10
    assert {e["event_id"] for e in ear_events} == set(stored)
    assert [ratio is None for _, ratio in scored].count(True) == 3  # the first history, and no other
    assert [seq for seq, _ in scored] == list(range(len(scored)))
    # Whatever was sent twice said the same but for `late`.
    by_id: dict[str, set[str]] = {}
    for event in ear_events:
        by_id.setdefault(event["event_id"], set()).add(json.dumps({**event, "late": None}))
    assert all(len(texts) == 1 for texts in by_id.values())
    # Closed cleanly, what is on record is what a restart would begin with.
    state = rows(database, "SELECT state, alarm_id FROM alarm_state")
    assert state == [(alarm.state, alarm.alarm_id)]
