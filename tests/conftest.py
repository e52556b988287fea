"""Fixtures that several test files share: a real broker on a free port of the loopback, a listener."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from edge_agent.config import MqttConfig
from edge_agent.transport import MqttTransport, tool

settings.register_profile("untimed", deadline=None)  # a busy machine is no failed claim
settings.load_profile("untimed")

#: TEST_BROKER=amqtt runs the tests as they run where mosquitto is absent.
MOSQUITTO = (
    None
    if os.environ.get("TEST_BROKER") == "amqtt"
    else shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
)
needs_mosquitto = pytest.mark.skipif(MOSQUITTO is None, reason="mosquitto is not installed: apt install mosquitto")
OPEN = "allow_anonymous true\n"


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def until(condition: Callable[[], Any], timeout_s: float = 60.0, what: str = "the condition") -> Any:
    """Wait for something to become true and return it; the time limit only ends a hang."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if result := condition():
            return result
        time.sleep(0.01)
    raise AssertionError(f"{what} did not come true within {timeout_s:g} s")


def mqtt_config(port: int, **changes: Any) -> MqttConfig:
    """A configuration of the broker on this port."""
    fields: dict[str, Any] = {
        "host": "127.0.0.1",
        "port": port,
        "username": None,
        "password": None,
        "client_id": None,
        "protocol": "5",
        "tls": None,
        "base": "edge/t",
    }
    return MqttConfig(**{**fields, **changes})


class Broker:
    """A broker that can be stopped and started again on the same port; mosquitto, or amqtt without it."""

    def __init__(self, folder: Path, *, extra: str = OPEN, persistent: bool = False) -> None:
        self.port = free_port()
        self._folder, self._extra, self._persistent = folder, extra, persistent
        self._process: subprocess.Popen[bytes] | None = None
        self._embedded: Any = None

    def start(self) -> None:
        """Returns once the port answers."""
        if MOSQUITTO is None:
            if self._extra != OPEN or self._persistent:
                pytest.skip("needs mosquitto: the embedded broker has no logins and keeps nothing")
            from edge_agent.broker import EmbeddedBroker

            self._embedded = EmbeddedBroker(self.port)
            self._embedded.start()
            return
        conf = self._folder / "mosquitto.conf"
        keep = f"persistence true\npersistence_location {self._folder}/\nautosave_interval 1\nautosave_on_changes true\n"
        user = "user root\n" if os.getuid() == 0 else ""
        conf.write_text(
            f"listener {self.port} 127.0.0.1\n{user}max_queued_messages 100000\nset_tcp_nodelay true\n"
            f"{keep if self._persistent else ''}{self._extra}"
        )
        self._process = subprocess.Popen(
            [MOSQUITTO, "-c", str(conf)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        until(self._answers, what="mosquitto's port")

    def _answers(self) -> bool:
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self) -> None:
        """Ends it; nothing but what mosquitto has saved is kept."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)
            self._process = None
        if self._embedded is not None:
            self._embedded.stop()
            self._embedded = None


class Listener:
    """Everything published on some topics, in order, as (topic, payload, retained)."""

    def __init__(self, port: int, *topics: str, **changes: Any) -> None:
        self.messages: list[tuple[str, bytes, bool]] = []
        self._lock = threading.Lock()
        self.transport: MqttTransport = tool(mqtt_config(port, **changes), "listen", self._take, old=True)
        # The subscriptions hold once the broker has delivered something through one of them.
        probe = f"probe/{id(self)}"
        self.transport.subscribe([*topics, probe])
        self.transport.start()
        self.transport.wait_connected(60)
        until(self._heard(probe), what="the listener's subscription")

    def _heard(self, probe: str) -> Callable[[], bool]:
        def heard() -> bool:
            self.transport.publish(probe, b"x", qos=1)
            return any(topic == probe for topic, _, _ in self.all())

        return heard

    def _take(self, topic: str, payload: bytes, retained: bool) -> None:
        with self._lock:
            self.messages.append((topic, payload, retained))

    def all(self) -> list[tuple[str, bytes, bool]]:
        """A copy."""
        with self._lock:
            return list(self.messages)

    def on(self, topic: str) -> list[bytes]:
        """Payloads on this topic so far."""
        return [payload for name, payload, _ in self.all() if name == topic]

    def json(self, topic: str) -> list[Any]:
        """The same, parsed."""
        return [json.loads(payload) for payload in self.on(topic)]

    def wait(self, topic: str, n: int = 1, timeout_s: float = 60.0) -> list[bytes]:
        """Payloads on this topic once there are n."""
        return until(
            lambda: len(found := self.on(topic)) >= n and found, timeout_s, f"{n} messages on {topic}"
        )

    def publish(self, topic: str, payload: bytes | str | dict[str, Any], *, retain: bool = False) -> None:
        """Publish at QoS 1."""
        if isinstance(payload, dict):
            payload = json.dumps(payload)
        data = payload.encode() if isinstance(payload, str) else payload
        assert self.transport.publish(topic, data, qos=1, retain=retain) is not None

    def close(self) -> None:
        """Disconnect."""
        self.transport.stop()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    """A running broker on a free port."""
    (folder := tmp_path / "broker").mkdir()
    running = Broker(folder)
    running.start()
    yield running
    running.stop()


@pytest.fixture
def listen(broker: Broker) -> Iterator[Callable[..., Listener]]:
    """Makes listeners on the broker, which are closed at the end."""
    made: list[Listener] = []

    def make(*topics: str, **changes: Any) -> Listener:
        made.append(Listener(broker.port, *topics, **changes))
        return made[-1]

    yield make
    for listener in made:
        listener.close()
