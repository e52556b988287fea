"""What the chaos run breaks: a link that can be cut, a broker and an agent that are killed, sensors that go on, an ear that forgets nothing.

    sensors ─QoS 1─► mosquitto ◄── ear (durable session)
                        ▲
                       Link (a TCP proxy that can be cut) ◄── edge-agent run
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from benchmarks._agent import free_port


class Link:
    """A TCP proxy from a port of its own to `target`. Cut, it takes no bytes (`silent`) or refuses (not `silent`)."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._cut = self._silent = False
        self._lock = threading.Lock()
        self._ends: set[socket.socket] = set()
        self._server = socket.create_server(("127.0.0.1", 0), backlog=16)
        self.port = int(self._server.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self, silent: bool) -> None:
        """From now on nothing passes: connections stay and are deaf, or end and are refused."""
        self._silent, self._cut = silent, True
        if not silent:
            self._drop()

    def mend(self) -> None:
        """New connections pass again; those of before end, as they do where a router restarts."""
        self._drop()
        self._cut = False

    def close(self) -> None:
        """End everything."""
        self._server.close()
        self._drop()

    def _drop(self) -> None:
        with self._lock:
            ends, self._ends = self._ends, set()
        for end in ends:
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError as error:
                assert error.errno is not None  # it has ended already

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._server.accept()
            except OSError:
                return
            if self._cut and not self._silent:
                near.close()
                continue
            try:
                far = socket.create_connection(("127.0.0.1", self._target), 2.0)
                far.settimeout(None)
            except OSError:
                near.close()
                continue
            with self._lock:
                self._ends |= {near, far}
            for a, b in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(a, b), daemon=True).start()

    def _pump(self, a: socket.socket, b: socket.socket) -> None:
        try:
            while data := a.recv(65536):
                while self._cut and a in self._ends:
                    time.sleep(0.02)
                if a not in self._ends:  # what came during the cut is lost with its connection
                    break
                b.sendall(data)
        except OSError as error:
            assert error.errno is not None  # a connection was reset: that is what this is for
        finally:
            with self._lock:
                self._ends -= {a, b}
            for end in (a, b):
                try:
                    end.shutdown(socket.SHUT_RDWR)
                except OSError as error:
                    assert error.errno is not None
            a.close()


def mosquitto() -> str | None:
    """Its program; None where it is not installed."""
    return shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")


class Broker:
    """mosquitto with persistence, saved every second; killed, it comes back on its port with what it had saved, older things again."""

    def __init__(self, folder: Path) -> None:
        found = mosquitto()
        assert found is not None  # the caller has looked
        self.port = free_port()
        self._conf = folder / "mosquitto.conf"
        user = "user root\n" if os.getuid() == 0 else ""
        self._conf.write_text(
            f"listener {self.port} 127.0.0.1\n{user}allow_anonymous true\nmax_queued_messages 100000\nset_tcp_nodelay true\n"
            f"persistence true\npersistence_location {folder}/\nautosave_interval 1\n"
        )
        self._program = found
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns once the port answers."""
        self._process = subprocess.Popen(
            [self._program, "-c", str(self._conf)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with socket.socket() as sock:
                if sock.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.02)
        raise RuntimeError("mosquitto did not open its port within 60 s")

    def kill(self) -> None:
        """SIGKILL."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()


class Agent:
    """`edge-agent run` on a configuration; all its lives log into one file."""

    def __init__(self, config: Path) -> None:
        self._config, self.log = config, config.with_suffix(".log")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Begin a life."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "edge_agent", "run", "-c", str(self._config)],
                stdout=log, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip

    def kill(self) -> None:
        """SIGKILL; an agent that has ended by itself is a failure."""
        assert self._process is not None
        if (code := self._process.poll()) is not None:
            raise RuntimeError(f"the agent ended with {code}: {self.log.read_text()[-2000:]}")
        self._process.kill()
        self._process.wait()

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(120)


class Watch:
    """The times at which the agent was not connected to the broker, by its log and by what was done to it."""

    def __init__(self, log: Path) -> None:
        self._log, self._at = log, 0
        self._lock = threading.Lock()
        self._up = False
        self._since = time.time()
        self.down: list[tuple[float, float]] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def broke(self) -> None:
        """A fault has just taken effect: whatever the log says until here was before it."""
        with self._lock:
            self._read()
            if self._up:
                self._up, self._since = False, time.time()

    @property
    def up(self) -> bool:
        """Whether it is connected."""
        with self._lock:
            return self._up

    def stop(self) -> None:
        """No more."""
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._end.wait(0.05):
            with self._lock:
                if self._read() and not self._up:
                    self._up = True
                    self.down.append((self._since, time.time()))

    def _read(self) -> bool:
        if not self._log.exists():
            return False
        with self._log.open("rb") as file:
            file.seek(self._at)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._at += len(whole)
        return b"connected to broker" in whole


class Client:
    """A connection that comes back by itself. ear: (topic, payload) of what it hears. durable: the broker keeps its session."""

    def __init__(self, port: int, name: str, topics: tuple[str, ...] = (), ear: Callable[[str, bytes], None] | None = None) -> None:
        self._client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=name, protocol=mqtt.MQTTv5)
        self._client.max_queued_messages_set(0)
        self._client.max_inflight_messages_set(20)
        self._client.reconnect_delay_set(1, 1)
        self._lock = threading.Lock()
        self._handed = self._acknowledged = 0
        self.connected = threading.Event()

        def on_connect(client: mqtt.Client, *_: Any) -> None:
            if topics:
                client.subscribe([(topic, 1) for topic in topics])
            self.connected.set()

        def on_publish(*_: Any) -> None:
            with self._lock:
                self._acknowledged += 1

        def on_message(_c: mqtt.Client, _u: Any, message: mqtt.MQTTMessage) -> None:
            assert ear is not None
            ear(message.topic, bytes(message.payload))

        self._client.on_connect, self._client.on_publish, self._client.on_message = on_connect, on_publish, on_message
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = 7 * 86400
        self._client.connect("127.0.0.1", port, clean_start=False, properties=properties)
        self._client.loop_start()

    def publish(self, topic: str, payload: bytes) -> None:
        """QoS 1; while the broker is away it waits here, in its order, as in a sensor that has memory."""
        with self._lock:
            self._handed += 1
        self._client.publish(topic, payload, qos=1)

    def waiting(self) -> int:
        """Messages that the broker has not acknowledged."""
        with self._lock:
            return self._handed - self._acknowledged

    def close(self) -> None:
        """Disconnect."""
        self._client.disconnect()
        self._client.loop_stop()


class Ear:
    """What the durable subscriber has heard of events: how often each, and in which order for the first time."""

    def __init__(self) -> None:
        self.times: dict[str, int] = {}
        self.texts: dict[str, set[str]] = {}
        self.late: set[str] = set()
        self.answers: list[Mapping[str, Any]] = []

    def __call__(self, topic: str, payload: bytes) -> None:
        said = json.loads(payload)
        if topic.endswith("/result"):
            self.answers.append(said)
            return
        event_id = said["event_id"]
        self.times[event_id] = self.times.get(event_id, 0) + 1
        if said["late"]:
            self.late.add(event_id)
        self.texts.setdefault(event_id, set()).add(json.dumps({**said, "late": None}))
