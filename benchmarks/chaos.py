"""`make chaos`: the agent and its broker are killed 200 times and their link is cut 20 times; no alarm is lost or invented.

    sensors ─► mosquitto (persistent) ◄─ Link ─ edge-agent run ─► agent.db
                 └─► ear with a durable session                      └─ alarm engine over the stored rows
    a SIGKILL of agent or broker at random moments, and cuts of the link in between, refused or deaf

At the end the sensors fall silent, what waits is worked off, `cmd/resend` repeats everything once, and three counts must
agree, by identity: what the alarm engine gives over the stored rows, what stands in the database, what was heard. What
the agent tells beside the machine alarms (gaps, as data quality) must be in the database and heard, too.

MINUTES, KILLS, CUTS and SEED in the environment; the seed is drawn and printed.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
import sqlite3
import sys
import tempfile
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from benchmarks import _agent, _data
from benchmarks._faulty import Agent, Broker, Client, Ear, Link, Watch, mosquitto
from benchmarks._report import say, write_section
from benchmarks.bounds import CHAOS
from edge_agent import payloads
from edge_agent.config import load
from edge_agent.payloads import PayloadLayout
from edge_agent.signals import Chunk, parse_time, rfc3339

NAME = "chaos"
PAGE = _data.ROOT / "docs" / "reliability.md"
SENSORS = tuple(f"m{i}" for i in range(8))
FS_HZ, N = 1000.0, 256
HOP_S = N / FS_HZ
LAYOUT = PayloadLayout("f32le", 1, "ts_seq")
#: Windows in a row that are loud (the alarm votes 3 of 5) or calm, drawn anew each time.
LOUD, CALM = (6, 12), (7, 14)
#: How loud: 2 times the limit, and well below the level at which an alarm may end. Noise of level 1, as in the calibration, lies
#: within the deadband as often as its few waves happen to, and then alarms stand for minutes.
LOUD_LEVEL, CALM_LEVEL = 1.8, 0.8
#: A cut lasts so long, s; a killed process is away so long before it is started again.
CUT_S, AWAY_S = (2.0, 20.0), (0.0, 1.5)
#: Nothing is broken at the very beginning, nor after this share of the time.
QUIET_S = 10.0
SETTLE_S = 300.0


def bundle(folder: Path) -> Path:
    """An RMS indicator, calibrated on noise of level 1."""
    from trainer import recipe, run

    rng = np.random.default_rng(1)
    np.savez(folder / "noise.npz", x=rng.standard_normal(400 * N).astype(np.float32), fs=FS_HZ)
    run.run(
        recipe.parse(
            {
                "name": "rms", "model": "indicator", "data": {"path": str(folder / "noise.npz")}, "window": {"n_samples": N},
                "features": [{"kind": "time_domain", "names": ["rms"]}], "score": {"feature": "rms"},
            }
        ),
        folder / "rms",
    )  # fmt: skip
    return folder / "rms"


class Sensors:
    """Every sensor's next window when its time has come: event time is wall time."""

    def __init__(self, client: Client, rng: Random) -> None:
        self._client, self._rng = client, rng
        noise = np.random.default_rng(rng.getrandbits(32))
        self._waves = [noise.standard_normal((1, N)).astype(np.float32) for _ in range(16)]
        self._left = dict.fromkeys(SENSORS, 0)
        self._loud = dict.fromkeys(SENSORS, True)
        self.sent = 0
        self.began = time.time()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Fall silent."""
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        seq = 0
        while not self._end.wait(max(0.0, self.began + (seq + 1) * HOP_S - time.time())):
            for name in SENSORS:
                if not self._left[name]:
                    self._loud[name] = not self._loud[name]
                    self._left[name] = self._rng.randint(*(LOUD if self._loud[name] else CALM))
                self._left[name] -= 1
                wave = self._rng.choice(self._waves) * np.float32(LOUD_LEVEL if self._loud[name] else CALM_LEVEL)
                chunk = Chunk(wave, t=self.began + seq * HOP_S, fs_hz=FS_HZ, seq=seq)
                self._client.publish(f"plant/{name}", payloads.encode(chunk, LAYOUT))
                self.sent += 1
            seq += 1


def plan(rng: Random, seconds: float, kills: int, cuts: int) -> list[tuple[float, str]]:
    """(s from the start, "agent" | "broker" | "refused" | "deaf") in order of time."""
    span = (QUIET_S, seconds - QUIET_S)
    faults = [(rng.uniform(*span), rng.choice(("agent", "broker"))) for _ in range(kills)]
    faults += [(rng.uniform(*span), rng.choice(("refused", "deaf"))) for _ in range(cuts)]
    return sorted(faults)


def break_things(faults: Sequence[tuple[float, str]], agent: Agent, broker: Broker, link: Link, watch: Watch, rng: Random) -> None:
    """Carry the plan out; kills and cuts overlap as they fall, two kills never hit the same instant."""
    began = time.monotonic()
    lengths = [rng.uniform(*(AWAY_S if what in ("agent", "broker") else CUT_S)) for _, what in faults]
    failed: list[Exception] = []

    def of(kinds: tuple[str, ...], act: Callable[[str, float], None]) -> threading.Thread:
        def work() -> None:
            try:
                for (at, what), length in zip(faults, lengths, strict=True):
                    if what in kinds:
                        time.sleep(max(0.0, began + at - time.monotonic()))
                        act(what, length)
            except Exception as error:  # noqa: BLE001 - told by the main thread
                failed.append(error)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        return thread

    def kill(what: str, away_s: float) -> None:
        victim = agent if what == "agent" else broker
        victim.kill()
        watch.broke()
        time.sleep(away_s)
        victim.start()

    def cut(what: str, length_s: float) -> None:
        link.cut(silent=what == "deaf")
        watch.broke()
        time.sleep(length_s)
        link.mend()

    # Agent and broker each have their own hand, so that both may be dead at once.
    for thread in [of(("agent",), kill), of(("broker",), kill), of(("refused", "deaf"), cut)]:
        thread.join()
    if failed:
        raise failed[0]


def until(condition: Callable[[], Any], what: str, timeout_s: float = SETTLE_S) -> None:
    """Wait for it; a run that does not settle has failed."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"{what}: not within {timeout_s:g} s")
        time.sleep(0.2)


def query(database: Path, sql: str) -> list[tuple[Any, ...]]:
    """Rows of a database that the agent may be writing."""
    with closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True, timeout=30.0)) as db:
        return db.execute(sql).fetchall()


def within(t: float, spans: Sequence[tuple[float, float]]) -> bool:
    """Whether t lies in one of the spans, which are in order and apart."""
    i = bisect_right(spans, (t, float("inf"))) - 1
    return i >= 0 and t <= spans[i][1]


def live(folder: Path, seed: int, seconds: float, kills: int, cuts: int) -> dict[str, Any]:
    """One run; its figures."""
    rng = Random(seed)
    faults = plan(rng, seconds, kills, cuts)
    broker = Broker(folder)
    broker.start()
    link = Link(broker.port)
    sensor = {
        "payload": {"format": "f32le", "header": "ts_seq"}, "fs_hz": FS_HZ, "model": str(bundle(folder)),
        "alarm": {"vote": [3, 5], "latching": False},
    }  # fmt: skip
    config = _agent.configuration(folder, link.port, {name: {"topic": f"plant/{name}", **sensor} for name in SENSORS})
    agent, ear = Agent(config), Ear()
    watch = Watch(agent.log)
    listener = Client(broker.port, "ear", ("edge/bench/s/+/event", "edge/bench/cmd/resend/result"), ear)
    listener.connected.wait(30)
    source = Client(broker.port, "sensors")
    agent.start()
    until(lambda: watch.up, "the agent's first connection")
    time.sleep(2.0)  # its subscriptions
    sensors = Sensors(source, rng)
    try:
        break_things(faults, agent, broker, link, watch, Random(rng.random()))
        time.sleep(max(0.0, sensors.began + seconds - time.time()))
        sensors.stop()
        took = time.time() - sensors.began
        say(f"{sensors.sent} windows sent in {took:.0f} s; working off what waits")
        figures = settle(config, agent, source, ear, watch)
    finally:
        sensors.stop()
        watch.stop()
        for client in (listener, source):
            client.close()
        link.close()
        broker.kill()
    return {"seconds": round(took, 1), **judged(config, sensors.sent, took, ear, watch, faults), **figures}


def settle(config: Path, agent: Agent, source: Client, ear: Ear, watch: Watch) -> dict[str, Any]:
    """Let everything arrive, have everything sent again, stop the agent; what was heard without the repetition."""
    database = config.parent / "agent.db"

    def counts() -> tuple[int, int]:
        return query(database, "SELECT (SELECT count(*) FROM scores), (SELECT count(*) FROM outbox WHERE sent IS NULL)")[0]

    until(lambda: source.waiting() == 0, "the sensors' messages at the broker")
    until(lambda: watch.up, "the agent's last connection")
    before = (-1, -1)
    while before != (now := counts()) or now[1]:
        before = now
        time.sleep(8.0)  # longer than between two commits
    stored = {event_id for (event_id,) in query(database, "SELECT event_id FROM events")}
    first, late = len(stored & set(ear.times)), len(ear.late)
    deliveries = sum(ear.times.values())
    source.publish("edge/bench/cmd/resend", json.dumps({"request_id": "all", "since": rfc3339(0.0)}).encode())
    until(lambda: ear.answers, "the answer to cmd/resend")
    until(lambda: counts()[1] == 0, "the repetition")
    until(lambda: sum(ear.times.values()) >= deliveries + len(stored), "the repetition at the ear", 60.0)
    code = agent.stop()
    if code:
        raise RuntimeError(f"the agent ended with {code}: {agent.log.read_text()[-2000:]}")
    return {"heard_before_resend": first, "heard_late": late, "resend": ear.answers[-1]["message"]}


def judged(
    config: Path, sent: int, seconds: float, ear: Ear, watch: Watch, faults: Sequence[tuple[float, str]]
) -> dict[str, Any]:
    """What the database, the engine and the ear say of each other."""
    database = config.parent / "agent.db"
    policies = {name: sensor.policy for name, sensor in load(config).sensors.items()}
    engine = {event_id for name in SENSORS for event_id in _agent.engine(database, name, policies[name])[0]}
    events = query(database, "SELECT event_id, type, ts FROM events")
    machine = {event_id for event_id, kind, _ in events if kind not in ("quality", "notice")}
    stored, heard = {event_id for event_id, *_ in events}, set(ear.times)
    rows, distinct = query(database, "SELECT count(*), count(DISTINCT sensor || ' ' || seq) FROM scores")[0]
    kills = sum(what in ("agent", "broker") for _, what in faults)
    rate = sent / seconds
    return {
        "engine": len(engine), "machine_events": len(machine), "beside": len(stored) - len(machine), "database": len(stored),
        "heard": len(heard), "lost": len(engine - machine) + len(stored - heard),
        "invented": len(machine - engine) + len(heard - stored) + sum(len(texts) - 1 for texts in ear.texts.values()),
        "events_while_down": sum(within(parse_time(ts), watch.down) for event_id, _, ts in events if event_id in engine),
        "down_s": round(sum(b - a for a, b in watch.down), 1), "outages": len(watch.down) - 1,
        "deliveries": sum(ear.times.values()),
        "windows_sent": sent, "rows": rows, "doubled_rows": rows - distinct, "missing": sent - distinct,
        "missing_at_most": int(kills * CHAOS["s_per_kill"] * rate),
        "killed_agent": sum(what == "agent" for _, what in faults), "killed_broker": sum(what == "broker" for _, what in faults),
        "cuts": len(faults) - kills,
    }  # fmt: skip


def missed(figures: dict[str, Any], minutes: float) -> list[str]:
    """Every bound that the figures miss, in words. A run of less than the full time is held to all but the number of events."""
    found = [f"{key} is {figures[key]}, must be 0" for key in ("lost", "invented", "doubled_rows") if figures[key]]
    if figures["missing"] > figures["missing_at_most"]:
        found.append(f"{figures['missing']} windows are missing, at most {figures['missing_at_most']}")
    if minutes >= CHAOS["minutes"] and figures["events_while_down"] < CHAOS["events_while_down"]:
        found.append(f"{figures['events_while_down']} events fell while something was down, at least {CHAOS['events_while_down']}")
    if not figures["engine"]:
        found.append("the engine gave no event: nothing was tried")
    return found


def told(figures: dict[str, Any]) -> str:
    """The figures as a table of the page."""
    return "\n".join(["| figure | value |", "|---|---|", *(f"| `{key}` | {value} |" for key, value in figures.items())])


def main(argv: Sequence[str] | None = None) -> int:
    """Draw, break, count."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos", description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"put the figures of a full run into {PAGE.name}")
    args = parser.parse_args(argv)
    minutes = float(os.environ.get("MINUTES") or CHAOS["minutes"])
    kills = int(os.environ.get("KILLS") or CHAOS["kills"])
    cuts = int(os.environ.get("CUTS") or max(1, round(kills * CHAOS["cuts"] / CHAOS["kills"])))
    seed = int(os.environ.get("SEED") or secrets.randbits(32))
    say(f"seed {seed} (SEED={seed} draws the same faults): {kills} kills and {cuts} cuts in {minutes:g} minutes")
    if mosquitto() is None:
        return _data.skip(NAME, "mosquitto is not installed: apt install mosquitto")
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    try:
        figures = {"seed": seed, **live(folder, seed, minutes * 60.0, kills, cuts)}
    except RuntimeError as error:
        say(f"{error}\neverything is left in {folder}")
        return _data.finish(NAME, False, seed=seed, reason=str(error)[:500])
    found = missed(figures, minutes)
    if found:
        say(f"everything is left in {folder}")
    else:
        shutil.rmtree(folder)
    for line in found:
        say(f"missed: {line}")
    if args.write and not found and minutes >= CHAOS["minutes"] and kills >= CHAOS["kills"] and cuts >= CHAOS["cuts"]:
        write_section(NAME, told(figures), PAGE)
    return _data.finish(NAME, not found, **figures)


if __name__ == "__main__":
    sys.exit(main())
