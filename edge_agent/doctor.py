"""`edge-agent doctor`: what is wrong around the agent, and what to do about it.

    configuration ─► bundles ─► disk ─► database ─► agent ─► clock ─► broker ─┬─► certificate
                                                                              └─► each sensor, by listening for a while

Each check says how it came out (`well`, `note`, `wrong`, `skipped`), what was seen, and, where something is amiss, what to do.
It changes nothing: it reads files, opens the database to read, and logs in at the broker under a name of its own.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import ssl
import stat
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import msgspec

from edge_agent import assemble, host, installed, payloads, store, transport
from edge_agent import config as configuration
from edge_agent.config import Config, SensorConfig
from edge_agent.errors import ConfigError, EdgeAgentError, PayloadError, TransportError
from edge_agent.signals import parse_time, rfc3339

WELL, NOTE, WRONG, SKIPPED = "well", "note", "wrong", "skipped"
LISTEN_S = 10.0
#: Free bytes below which a disk is nearly, and as good as, full.
LOW_BYTES, FULL_BYTES = 200 << 20, 32 << 20
#: Seconds that `PRAGMA quick_check` may take.
CHECK_S = 5.0
#: A rate this far from the configured one is another rate: by the times in the messages, and by the times they came at.
BY_TIMES, BY_RECEIPT = 0.01, 0.2
#: Seconds that a sensor's clock may differ from this one's.
SKEW_S = 60.0
#: Days before its end at which a certificate is told of.
EXPIRES_D = 30.0
#: A clock before this is that of a board without a battery: 2025-01-01.
NOT_BEFORE = 1_735_689_600.0
#: Messages of one topic that are kept.
MAX_MESSAGES = 2000
#: Seconds for which an agent may store nothing new.
STALE_S = 300.0


@dataclass(frozen=True)
class Check:
    """One look. do: what to do about it, empty where nothing is to be done."""

    name: str
    verdict: str
    found: str
    do: str = ""


@dataclass
class Heard:
    """What came on one topic. messages: (receipt in s, monotonic; payload)"""

    messages: list[tuple[float, bytes]] = field(default_factory=list)
    retained: int = 0


def examine(path: Path, listen_s: float = LISTEN_S, clock: Callable[[], float] = time.time) -> Iterator[Check]:
    """The checks in their order, each as soon as it is known."""
    try:
        config = configuration.load(path)
    except ConfigError as error:
        for problem in error.problems:
            yield Check("configuration", WRONG, f"{problem.where}: {problem.value}", f"write {problem.expected}")
        try:
            # A credential that only the service has is missing in a shell: all but the broker can be looked at.
            config = configuration.load(path, secrets=False)
        except ConfigError:
            return
        yield from _around(config, clock)
        yield Check("broker", SKIPPED, "a secret that the configuration refers to cannot be read here", "run doctor as the service does")
        return
    yield _configuration(config)
    yield from _around(config, clock)
    yield from _broker(config, listen_s, clock)


def _around(config: Config, clock: Callable[[], float]) -> Iterator[Check]:
    yield from _bundles(config)
    yield _disk(config.database)
    yield from _database(config, clock())
    yield _clock(clock())


def _configuration(config: Config) -> Check:
    n = len(config.sensors)
    found = f"{config.path}: {n} sensor{'' if n == 1 else 's'}"
    try:
        readable = config.path.stat().st_mode & stat.S_IROTH
        literal = config.mqtt.password is not None and config.mqtt.password in config.path.read_text("utf-8")
    except OSError as error:
        return Check("configuration", NOTE, f"{found}; cannot be looked at again ({error.strerror})", "check its rights")
    if readable and literal:
        return Check(
            "configuration", NOTE, f"{found}; a password stands in it, and everybody on this machine may read it",
            "put it into a file of its own and write ${file:PATH}, or chmod 640",
        )  # fmt: skip
    return Check("configuration", WELL, found)


def _bundles(config: Config) -> Iterator[Check]:
    pipelines, problems = assemble.usable(config)
    for name in config.sensors:
        what = f"bundle of {name}"
        if name in problems:
            for problem in problems[name]:
                yield Check(what, WRONG, f"{problem.where}: {problem.value}", f"needs {problem.expected}")
            continue
        identity, threshold = pipelines[name].identity, pipelines[name].threshold
        signed = "signature good" if config.sensors[name].public_key is not None else "signature not asked for"
        found = f"{identity.bundle} {identity.version} in {installed.model_of(config.sensors[name])}: {signed}, golden windows as they should"
        warning, caution = threshold.warning, pipelines[name].caution
        if caution:
            said, _, mend = caution.rpartition("; ")
            yield Check(f"alarm of {name}", NOTE, said, mend)
        yield Check(what, WELL, found) if not warning else Check(what, NOTE, f"{found}; {warning}", "train on more healthy data, or commission")


def _disk(database: Path) -> Check:
    folder = database.parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    found = f"{folder}: {free / 2**20:.0f} MiB free"
    if not os.access(folder, os.W_OK):
        return Check("disk", WRONG, f"{folder}: cannot be written by this user", "run doctor as the agent's user; else mount it writable, or give the folder to that user")
    if free < FULL_BYTES:
        return Check("disk", WRONG, found, "make room: scores are being given up or soon will be")
    if free < LOW_BYTES:
        return Check("disk", NOTE, found, "make room, or lower storage.max_mb")
    return Check("disk", WELL, found)


def _database(config: Config, now: float) -> Iterator[Check]:
    path = config.database
    running = store.in_use(path)
    if not path.is_file():
        yield Check("database", NOTE, f"{path}: there is none yet", "start the agent: it makes it" if not running else "the file was deleted under the agent: restart it")
        yield _agent(running, None, now)
        return
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=10.0)) as db:
            (version,) = db.execute("SELECT version FROM schema_version").fetchone() or (None,)
            if version != store.SCHEMA_VERSION:
                yield Check(
                    "database", WRONG, f"{path}: schema version {version}, this version reads {store.SCHEMA_VERSION}",
                    "start this version's agent once to bring it up to date, or use the version that wrote it",
                )  # fmt: skip
                return
            verdict = _quick_check(db)
            unsent, oldest = db.execute("SELECT count(*), min(created) FROM outbox WHERE sent IS NULL").fetchone()
            (last,) = db.execute("SELECT max(ts) FROM pipeline_state").fetchone()
    except sqlite3.Error as error:
        yield Check("database", WRONG, f"{path}: {error}", "stop the agent and start it again: it sets a damaged database aside and begins a new one")
        return
    size = f"{path}: {path.stat().st_size / 2**20:.1f} MiB, schema {version}"
    if verdict not in ("ok", "not finished"):
        yield Check("database", WRONG, f"{size}; quick_check: {verdict}", "stop the agent and start it again: it sets a damaged database aside and begins a new one")
    else:
        done = "quick_check ok" if verdict == "ok" else f"quick_check found nothing in {CHECK_S:g} s and was ended"
        yield Check("database", WELL, f"{size}, {done}")
    if unsent and now - parse_time(oldest) > SKEW_S:
        yield Check("outbox", NOTE, f"{unsent} events wait for the broker, the oldest since {oldest}", "see the check of the broker; they go out by themselves once it takes them")
    else:
        yield Check("outbox", WELL, f"{unsent} events wait for the broker")
    yield _agent(running, last, now)


def _quick_check(db: sqlite3.Connection) -> str:
    end = time.monotonic() + CHECK_S
    db.set_progress_handler(lambda: time.monotonic() > end, 10_000)
    try:
        return str(db.execute("PRAGMA quick_check(1)").fetchone()[0])
    except sqlite3.OperationalError as error:
        if "interrupt" in str(error):
            return "not finished"
        raise
    finally:
        db.set_progress_handler(None, 0)


def _agent(running: bool, last: str | None, now: float) -> Check:
    if not running:
        return Check("agent", WRONG, "no agent is running with this database", "systemctl start edge-agent, or edge-agent run; its log says why it ended")
    if last is None:
        return Check("agent", NOTE, "running, and has stored nothing yet", "see the checks of the sensors")
    age = now - parse_time(last)
    if age > STALE_S:
        return Check("agent", NOTE, f"running; the last window was stored {age:.0f} s ago", "see the checks of the sensors")
    return Check("agent", WELL, f"running; the last window was stored {max(0.0, age):.0f} s ago")


def _clock(now: float) -> Check:
    synced = host.clock_synced()
    if now < NOT_BEFORE:
        return Check("clock", WRONG, f"it is {rfc3339(now)} here", "set the clock, and have systemd-timesyncd or chrony keep it")
    if synced is False:
        return Check("clock", NOTE, f"{rfc3339(now)}, not synchronised", "start systemd-timesyncd or chrony; events are marked with clock_synced false meanwhile")
    if synced is None:
        return Check("clock", NOTE, f"{rfc3339(now)}; nobody on this machine says whether it is synchronised", "in a container: look at the host's clock")
    return Check("clock", WELL, f"{rfc3339(now)}, synchronised")


# ---------------------------------------------------------------- broker and sensors


def _broker(config: Config, listen_s: float, clock: Callable[[], float]) -> Iterator[Check]:
    heard = {topic: Heard() for sensor in config.sensors.values() for topic in (sensor.topic,)}
    own = {name: Heard() for name in ("status", "health", "info")}
    base = config.mqtt.base

    def on_message(topic: str, payload: bytes, retained: bool) -> None:
        found = own.get(topic.removeprefix(base + "/")) if topic.startswith(base + "/") else heard.get(topic)
        if found is None:
            return
        if retained and topic in heard:
            found.retained += 1
        elif len(found.messages) < MAX_MESSAGES:
            found.messages.append((time.monotonic(), payload))

    where = f"{config.mqtt.host}:{config.mqtt.port}"
    link = transport.tool(config.mqtt, "doctor", on_message, old=True)
    link.subscribe([*heard, *(f"{base}/{name}" for name in own)])
    began = time.monotonic()
    link.start()
    try:
        link.wait_connected(15.0)
        took = time.monotonic() - began
        login = f"as {config.mqtt.username}" if config.mqtt.username else "without a login"
        yield Check("broker", WELL, f"{where} takes us {login}, in {1e3 * took:.0f} ms")
        yield from _certificate(config, clock())
        threading.Event().wait(listen_s)
    except TransportError as error:
        yield Check("broker", WRONG, str(error), "as said there")
        for name in config.sensors:
            yield Check(f"sensor {name}", SKIPPED, "nothing can be heard without the broker")
        return
    finally:
        link.stop()
    yield _published(config, own)
    for name, sensor in config.sensors.items():
        yield _sensor(name, sensor, heard[sensor.topic], listen_s, clock())


def _published(config: Config, own: Mapping[str, Heard]) -> Check:
    """What the agent itself says at the broker."""
    said = own["status"].messages[-1][1].decode("utf-8", "replace") if own["status"].messages else None
    topic = f"{config.mqtt.base}/status"
    if said is None:
        return Check(
            "agent at the broker", NOTE, f"{topic} says nothing to this login",
            "the shipped access rules let operators and readers read it, not the agent's own login; else the agent never came to this broker",
        )  # fmt: skip
    if said != transport.ONLINE:
        return Check("agent at the broker", WRONG, f"{topic} says {said}", "start the agent; where it runs, its log says what keeps it from this broker")
    try:
        health = msgspec.json.decode(own["health"].messages[-1][1]) if own["health"].messages else {}
    except msgspec.DecodeError:
        health = {}
    drops = {s: n for s, n in health.get("drops", {}).items() if n}
    trouble = health.get("store_trouble")
    if trouble:
        return Check("agent at the broker", WRONG, f"online; {trouble}", "mend the disk: scoring goes on meanwhile")
    if drops:
        text = "; ".join(f"{s}: {', '.join(f'{n} {why}' for why, n in reasons.items())}" for s, reasons in drops.items())
        return Check("agent at the broker", NOTE, f"online; messages dropped since its start: {text}", "the agent's log has the first of each kind with its reason")
    return Check("agent at the broker", WELL, f"{topic} says {said}; no message was dropped")


def _sensor(name: str, sensor: SensorConfig, heard: Heard, listen_s: float, now: float) -> Check:
    """Whether the messages of a sensor are what the configuration says of them."""
    what = f"sensor {name}"
    if not heard.messages:
        if heard.retained:
            return Check(what, WRONG, f"only a retained message on {sensor.topic}", "publish without retain: a retained message is old by an unknown time")
        return Check(
            what, WRONG, f"nothing came on {sensor.topic} in {listen_s:g} s",
            "is the sensor on, is this its topic, may this login read it? A sensor that speaks more rarely: --for 5m",
        )  # fmt: skip
    chunks, wrong = [], {}
    for received, payload in heard.messages:
        if len(payload) > sensor.max_payload_bytes:
            wrong["too_large"] = f"{len(payload)} bytes, max_payload_bytes is {sensor.max_payload_bytes}"
            continue
        try:
            chunks.append((received, payloads.decode(payload, sensor.layout)))
        except PayloadError as error:
            wrong[error.reason] = str(error)
    n = len(heard.messages)
    if wrong:
        text = "; ".join(f"{reason}: {why}" for reason, why in wrong.items())
        return Check(what, WRONG, f"{n - len(chunks)} of {n} messages cannot be used: {text}", "correct `payload` of the sensor, or what it sends")
    stated = {c.fs_hz for _, c in chunks if c.fs_hz is not None}
    if any(abs(fs / sensor.fs_hz - 1.0) > 1e-3 for fs in stated):
        return Check(what, WRONG, f"its messages say {', '.join(f'{fs:g}' for fs in sorted(stated))} Hz", f"fs_hz is {sensor.fs_hz:g}: correct the one that is wrong")
    times = [c.t for _, c in chunks]
    skew = None if times[-1] is None else abs(now - times[-1])
    rate, tolerance, by = _rate([(r, c.t, c.samples.shape[1]) for r, c in chunks])
    found = f"{n} message{'' if n == 1 else 's'} in {listen_s:g} s"
    if rate is not None:
        found += f", {rate:.6g} samples/s by {by}"
        if abs(rate / sensor.fs_hz - 1.0) > tolerance:
            return Check(
                what, WRONG if by == "their times" else NOTE, f"{found}; fs_hz is {sensor.fs_hz:g}",
                "correct fs_hz, or the sensor's rate; messages that get lost on the way look the same. A sensor that sends snapshots "
                "with pauses is well",
            )  # fmt: skip
    else:
        found += ", too few to tell a rate"
    if skew is not None and skew > SKEW_S:
        return Check(what, NOTE, f"{found}; its clock is {skew:.0f} s from this one", "set the sensor's clock: windows, delays and events count in its time")
    return Check(what, WELL, found)


def _rate(chunks: Sequence[tuple[float, float | None, int]]) -> tuple[float | None, float, str]:
    """(receipt, time, samples) of messages -> samples a second, how far it may be off, and by which clock.

    The samples of the last message lie behind its time (of the first one before its receipt), so they do not count.
    """
    if len(chunks) < 2:
        return None, 0.0, ""
    first, last = chunks[0], chunks[-1]
    if first[1] is not None and last[1] is not None and last[1] > first[1]:
        return sum(n for *_, n in chunks[:-1]) / (last[1] - first[1]), BY_TIMES, "their times"
    if len(chunks) < 5 or last[0] <= first[0]:
        return None, 0.0, ""
    return sum(n for *_, n in chunks[1:]) / (last[0] - first[0]), BY_RECEIPT, "their arrival"


def _certificate(config: Config, now: float) -> Iterator[Check]:
    """How long the broker's certificate holds."""
    if config.mqtt.tls is None:
        return
    try:
        ends = _not_after(config)
    except (OSError, ssl.SSLError, ValueError) as error:
        yield Check("certificate", NOTE, f"cannot be looked at: {error}", "the broker takes us all the same")
        return
    days = (ends - now) / 86400.0
    found = f"the broker's ends {datetime.fromtimestamp(ends, timezone.utc):%Y-%m-%d}, in {days:.0f} days"
    yield Check("certificate", WELL, found) if days > EXPIRES_D else Check("certificate", NOTE, found, "renew it: afterwards no agent gets in")


def _not_after(config: Config) -> float:
    import socket

    tls = config.mqtt.tls
    assert tls is not None
    context = ssl.create_default_context(cafile=None if tls.ca is None else str(tls.ca))
    if tls.cert is not None:
        context.load_cert_chain(str(tls.cert), None if tls.key is None else str(tls.key))
    with (
        socket.create_connection((config.mqtt.host, config.mqtt.port), 10.0) as plain,
        context.wrap_socket(plain, server_hostname=config.mqtt.host) as secure,
    ):
        certificate = secure.getpeercert()
    return float(ssl.cert_time_to_seconds(str((certificate or {})["notAfter"])))


def report(path: Path, listen_s: float = LISTEN_S) -> list[dict[str, Any]]:
    """All checks as plain values; an unforeseen failure of the doctor is one of them."""
    found = []
    try:
        for check in examine(path, listen_s):
            found.append(as_dict(check))
    except (EdgeAgentError, OSError) as error:
        found.append(as_dict(Check("doctor", WRONG, str(error), "as said there")))
    return found


def as_dict(check: Check) -> dict[str, Any]:
    """For JSON."""
    return {"check": check.name, "verdict": check.verdict, "found": check.found, "do": check.do}
