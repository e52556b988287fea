"""The whole system in one process, for a first look: broker, machine, agent, alarm.

    simulated machine ─► embedded broker ─► the real agent ─► event ─► stdout
         fault begins after ONSET_S, grows over GROWTH_S; with `stay` it is mended once somebody has acknowledged the alarm

Nothing is faked but the machine and, with it, the sensor: the samples travel over MQTT to the agent's
daemon, which scores them with the committed bundle and keeps its database in a temporary folder.
"""

from __future__ import annotations

import logging
import math
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from edge_agent import alarms, payloads, simulate
from edge_agent.assemble import assemble
from edge_agent.broker import EmbeddedBroker
from edge_agent.config import load
from edge_agent.daemon import Daemon
from edge_agent.errors import EdgeAgentError
from edge_agent.payloads import PayloadLayout
from edge_agent.transport import MqttTransport, tool

SENSOR, TOPIC, BASE = "pump-1-de", "plant/pump-1/de/waveform", "edge/demo"
#: Seconds from the first sample until the fault begins, and until it is full-grown.
ONSET_S, GROWTH_S = 15.0, 10.0
#: The demo goes on this long after the onset at least.
AFTER_ONSET_S = 10.0
SECONDS = 55.0
#: With `stay` the bearing is changed this long after somebody acknowledged the alarm.
REPAIR_S = 15.0
CHUNK_SAMPLES = 4096
SEED = 20

_CONFIG = """\
agent: {{id: demo}}
mqtt: {{host: 127.0.0.1, port: {port}, protocol: "3.1.1", base: {base}}}  # the embedded broker speaks 3.1.1
database: demo.db
health_every_s: 5
sensors:
  {sensor}:
    topic: {topic}
    payload: {{format: f32le, header: ts_seq}}
    fs_hz: {fs_hz:g}
    machine: pump-1
    unit: g
    model: {model}
"""


def bundle_path() -> Path:
    """The committed bundle, beside the package in a clone, else under the working directory."""
    beside = Path(__file__).resolve().parent.parent / "models" / "demo-lstm-ae"
    return beside if beside.exists() else Path("models/demo-lstm-ae").resolve()


def main(
    port: int | None = None,
    no_fault: bool = False,
    seconds: float | None = None,
    json: bool = False,
    bundle: Path | None = None,
    stay: bool = False,
    ended: threading.Event | None = None,
) -> int:
    """Run the demo; the last line of stdout is one JSON object.

    port     : where the broker listens, for a look with mosquitto_sub; None takes a free one
    no_fault : the machine stays healthy, and all is well if no event comes
    seconds  : time limit, from the agent's start
    json     : only that last line
    stay     : go on after the alarm until `seconds`, Ctrl-C or SIGTERM, so that the alarm can be acknowledged and so on from
               another terminal; the fault stays until `REPAIR_S` after an acknowledgement
    ended    : set it to end the demo early
    Returns 0 where the fault raised an alarm (or the healthy machine none), else 1.
    """
    limit = (math.inf if stay else SECONDS) if seconds is None else seconds
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="agent: %(message)s")
    with tempfile.TemporaryDirectory(prefix="edge-agent-demo-") as folder:
        try:
            demo = _Demo(Path(folder), port or _free_port(), not no_fault, limit, bundle or bundle_path(), stay)
            result = demo.run(ended or threading.Event())
        except EdgeAgentError as error:
            result = {"name": "demo", "ok": False, "error": str(error)}
            _say(str(error))
    if not json and result.get("event"):
        print(msgspec.json.format(msgspec.json.encode(result["event"]), indent=2).decode())
    print(msgspec.json.encode(result).decode(), flush=True)
    return 0 if result["ok"] else 1


class _Demo:
    def __init__(self, folder: Path, port: int, fault: bool, limit_s: float, bundle: Path, stay: bool) -> None:
        self._port, self._fault, self._limit_s, self._stay = port, fault, limit_s, stay
        self._path = folder / "config.yaml"
        self._repaired_at = math.inf
        self._machine = simulate.demo_machine()
        self._path.write_text(
            _CONFIG.format(
                port=port, base=BASE, sensor=SENSOR, topic=TOPIC, fs_hz=self._machine.fs_hz, model=bundle
            )
        )
        self._config = load(self._path)
        self._pipelines = assemble(self._config)
        self._event: dict[str, Any] | None = None
        self._event_at = 0.0
        self._ratio: float | None = None
        self._windows = 0

    def run(self, ended: threading.Event) -> dict[str, Any]:
        broker = EmbeddedBroker(self._port)
        broker.start()
        try:
            watch = f"; watch with: mosquitto_sub -p {self._port} -t '{BASE}/#' -v" if shutil.which("mosquitto_sub") else ""
            _say(f"broker on 127.0.0.1:{self._port}{watch}")
            daemon = Daemon(self._config, self._pipelines)
            began = time.monotonic()
            daemon.start()
            try:
                with _ticking(daemon), self._connected() as link, _told_to_end(ended):
                    onset = self._publish(link, began, ended)
            finally:
                daemon.stop()
        finally:
            broker.stop()
        return self._result(began, onset)

    @contextmanager
    def _connected(self) -> Iterator[MqttTransport]:
        link = tool(self._config.mqtt, "machine", self._on_message)
        link.subscribe([f"{BASE}/s/{SENSOR}/score", f"{BASE}/s/{SENSOR}/event"])
        link.start()
        try:
            link.wait_connected(10.0)
            yield link
        finally:
            link.stop()

    def _publish(self, link: MqttTransport, began: float, ended: threading.Event) -> float:
        """The machine, in real time, until the story is told; the monotonic time of the fault's onset."""
        fault = simulate.growing(ONSET_S, GROWTH_S) if self._fault else simulate.never
        layout = PayloadLayout("f32le", 1, "ts_seq")
        chunk_s = CHUNK_SAMPLES / self._machine.fs_hz
        start, epoch = time.monotonic(), time.time()
        onset = start + ONSET_S
        _say("healthy machine" + (f"; its bearing will fail in {ONSET_S:.0f} s" if self._fault else ""))
        told = start
        failing = repaired = False

        def severity(t: float) -> float:
            return 0.0 if start + t >= self._repaired_at else fault(t)

        for n, chunk in enumerate(simulate.stream(self._machine, CHUNK_SAMPLES, severity, SEED, epoch), 1):
            # A sensor sends a chunk once its last sample is taken.
            if ended.wait(max(0.0, start + n * chunk_s - time.monotonic())):
                break
            now = time.monotonic()
            if not self._stay and self._event is not None and (now >= onset + AFTER_ONSET_S or not self._fault):
                break
            if now - began >= self._limit_s:
                break
            link.publish(TOPIC, payloads.encode(chunk, layout), qos=1)
            if self._fault and not failing and now >= onset:
                failing = True
                _say(f"{now - start:5.1f} s  the fault begins")
            if not repaired and now >= self._repaired_at:
                repaired = True
                _say(f"{now - start:5.1f} s  the bearing is changed")
            if now - told >= 2.0:
                told = now
                ratio = "waiting for a full history" if self._ratio is None else _bar(self._ratio)
                _say(f"{now - start:5.1f} s  score / threshold {ratio}")
        return onset

    def _on_message(self, topic: str, payload: bytes, _retained: bool) -> None:
        fields = msgspec.json.decode(payload)
        if topic.endswith("/score"):
            self._windows += 1
            self._ratio = fields["ratio"]
        elif self._event is None:
            self._event, self._event_at = fields, time.monotonic()
            _say(f"ALARM: {fields['sensor']} {fields['severity']}, score / threshold {fields['ratio']:.2f}")
            if self._stay:
                own = Path(sys.argv[0]).absolute()
                program = own if own.name == "edge-agent" and shutil.which("edge-agent") is None else "edge-agent"
                _say(f"from another terminal: {program} ack {SENSOR} --by NAME -c {self._path}   (Ctrl-C ends the demo)")
        else:
            _say(f"{fields['type']}: {fields['sensor']} is {fields['state']}")
            if fields["state"] == alarms.ACKED and self._repaired_at == math.inf:
                self._repaired_at = time.monotonic() + REPAIR_S

    def _result(self, began: float, onset: float) -> dict[str, Any]:
        raised = self._event is not None and self._event["type"] == "new"
        result: dict[str, Any] = {
            "name": "demo",
            "ok": (raised and self._event_at >= onset) if self._fault else (not raised and self._windows > 0),
            "fault": self._fault,
            "seconds": round(time.monotonic() - began, 1),
            "seconds_to_alarm": round(self._event_at - onset, 1) if raised else None,
            "windows": self._windows,
            "event": self._event,
        }
        if self._fault and not raised:
            result["error"] = f"no alarm within {self._limit_s:g} s"
        elif self._fault and self._event_at < onset:
            result["error"] = "the alarm came before the fault"
        elif not self._fault and raised:
            result["error"] = "an alarm on a healthy machine"
        return result


@contextmanager
def _ticking(daemon: Daemon) -> Iterator[None]:
    """The agent's main loop, in a thread here."""
    end = threading.Event()

    def loop() -> None:
        while not end.wait(0.5) and daemon.tick():
            continue

    thread = threading.Thread(target=loop, name="agent", daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join(10.0)


@contextmanager
def _told_to_end(ended: threading.Event) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the demo as its time would; where signals cannot be had (another thread) they are left alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {s: signal.signal(s, lambda *_: ended.set()) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _bar(ratio: float) -> str:
    return f"{ratio:6.2f} {'#' * min(40, round(10 * ratio))}"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
