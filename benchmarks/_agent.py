"""A real broker and the real agent around a benchmark, and what the agent's database says afterwards."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import yaml

from edge_agent import alarms, quality
from edge_agent.alarms import Alarm, AlarmPolicy
from edge_agent.signals import parse_time

#: How long an agent may take from its start until it is connected: limits are fitted then.
START_S = 300.0


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextmanager
def broker(folder: Path) -> Iterator[int]:
    """mosquitto on a free loopback port (the embedded broker where it is absent); yields the port."""
    port = free_port()
    mosquitto = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
    if mosquitto is None:
        from edge_agent.broker import EmbeddedBroker

        embedded = EmbeddedBroker(port)
        embedded.start()
        try:
            yield port
        finally:
            embedded.stop()
        return
    conf = folder / "mosquitto.conf"
    user = "user root\n" if os.getuid() == 0 else ""
    conf.write_text(f"listener {port} 127.0.0.1\n{user}allow_anonymous true\nmax_queued_messages 100000\n")
    process = subprocess.Popen([mosquitto, "-c", str(conf)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 10
        while True:
            with socket.socket() as sock:
                if sock.connect_ex(("127.0.0.1", port)) == 0:
                    break
            if time.monotonic() > deadline:
                raise RuntimeError("mosquitto did not open its port within 10 s")
            time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.wait(10)


def configuration(folder: Path, port: int, sensors: Mapping[str, Any]) -> Path:
    """Write config.yaml for an agent `bench` at this broker."""
    path = folder / "config.yaml"
    config = {
        "agent": {"id": "bench"},
        "mqtt": {"host": "127.0.0.1", "port": port},
        "database": str(folder / "agent.db"),
        "sensors": dict(sensors),
    }
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


@contextmanager
def agent(config: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`edge-agent run` as a process of its own, connected; ended by SIGTERM, which lets it finish what is queued."""
    log = config.with_suffix(".log").open("wb")
    process = subprocess.Popen(
        [sys.executable, "-m", "edge_agent", "run", "-c", str(config)], stdout=log, stderr=subprocess.STDOUT
    )
    try:
        until = time.monotonic() + START_S
        while b"connected to broker" not in config.with_suffix(".log").read_bytes():
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"the agent has not begun: {config.with_suffix('.log').read_text()[-2000:]}")
            time.sleep(0.01)
        yield process
    except BaseException:
        process.kill()
        process.wait(10)
        log.close()
        raise
    process.send_signal(signal.SIGTERM)
    code = process.wait(120)
    log.close()
    if code != 0:
        raise RuntimeError(f"the agent ended with {code}: {config.with_suffix('.log').read_text()[-2000:]}")


def rows(config: Path) -> dict[str, int]:
    """Scored and unscored windows of each sensor in the agent's database."""
    with sqlite3.connect(config.parent / "agent.db") as db:
        return dict(db.execute("SELECT sensor, count(*) FROM scores GROUP BY sensor"))


def new_events(config: Path) -> dict[str, list[dict[str, Any]]]:
    """Events of type `new` of each sensor in order of time, as they were published."""
    found: dict[str, list[dict[str, Any]]] = {}
    with sqlite3.connect(config.parent / "agent.db") as db:
        query = "SELECT sensor, payload FROM events WHERE type = 'new' ORDER BY ts"
        for sensor, payload in db.execute(query):
            found.setdefault(sensor, []).append(json.loads(payload))
    return found


def engine(database: Path, sensor: str, policy: AlarmPolicy, agent_id: str = "bench") -> tuple[list[str], Alarm]:
    """event_ids that the alarm engine gives over the stored rows of a sensor that vote, in order, and the alarm after them."""
    query = (
        "SELECT ts, ratio, quality, reasons FROM scores"
        " WHERE sensor = ? AND ratio IS NOT NULL AND regime IS NOT 'unknown' ORDER BY id"
    )
    alarm, found = Alarm(), []
    with closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True, timeout=10.0)) as db:
        for ts, ratio, kind, reasons in db.execute(query, (sensor,)):
            if not quality.votes(kind, tuple(reasons.split(",")) if reasons else ()):
                continue
            alarm, transition = alarms.step(alarm, policy, ratio, parse_time(ts), f"{agent_id}/{sensor}")
            if transition is not None:
                found.append(transition.event_id)
    return found, alarm
