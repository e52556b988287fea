"""The MQTT adapter against real brokers: mosquitto, amqtt, one that hangs up, one that keeps silent."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import Broker, Listener, free_port, mqtt_config, needs_mosquitto, until

from benchmarks._faulty import Link
from edge_agent.broker import EmbeddedBroker
from edge_agent.config import TlsConfig
from edge_agent.errors import TransportError
from edge_agent.transport import MqttTransport, Token, probe

Listen = Callable[..., Listener]


def test_messages_go_both_ways_and_are_acknowledged(broker: Broker, listen: Listen) -> None:
    """A QoS 1 publish is acknowledged under the token that publish returned; a subscription delivers."""
    heard: list[tuple[str, bytes, bool]] = []
    acknowledged: list[tuple[Token, bool]] = []
    transport = MqttTransport(
        mqtt_config(broker.port),
        "t-1",
        on_message=lambda *m: heard.append(m),
        on_acknowledged=lambda token, ok: acknowledged.append((token, ok)),
        status_topic="edge/t/status",
    )
    assert transport.publish("x", b"early") is None  # refused, not queued
    ear = listen("x")
    transport.subscribe(["y"])
    transport.start()
    transport.wait_connected(10)
    token = transport.publish("x", b"hello", qos=1)
    until(lambda: (token, True) in acknowledged)
    assert ear.wait("x") == [b"hello"]
    ear.publish("y", b"back")
    until(lambda: heard == [("y", b"back", False)])
    transport.subscribe(["z"])
    until(lambda: transport.publish("z", b"now this", qos=1) and heard[-1][0] == "z")
    ear.publish("y", b"no longer")
    ear.publish("z", b"end")
    until(lambda: ("z", b"end", False) in heard)
    assert [payload for topic, payload, _ in heard if topic == "y"] == [b"back"]
    transport.stop()
    assert not transport.connected


@pytest.mark.parametrize("raising", ["on_message", "on_connected", "on_acknowledged"])
def test_a_hook_that_raises_does_not_end_the_connection(
    broker: Broker, listen: Listen, caplog: pytest.LogCaptureFixture, raising: str
) -> None:
    """paho's thread would end in silence at an exception; it is logged and the messages go on."""
    heard: list[bytes] = []

    def bad(*_: object) -> None:
        raise RuntimeError("a bug in a hook")

    def on_message(_topic: str, payload: bytes, _retained: bool) -> None:
        heard.append(payload)
        if raising == "on_message":
            bad()

    hooks = {} if raising == "on_message" else {raising: bad}
    transport = MqttTransport(mqtt_config(broker.port), "t-1", on_message=on_message, **hooks)
    transport.subscribe(["y"])
    transport.start()
    transport.wait_connected(10)
    ear = listen("x")
    for n in range(3):
        transport.publish("x", b"out", qos=1)
        ear.publish("y", b"%d" % n)
    until(lambda: heard == [b"0", b"1", b"2"])
    ear.wait("x", 3)
    transport.stop()
    assert "a bug in a hook" in caplog.text


@needs_mosquitto
def test_a_broker_that_was_silent_once_is_asked_for_mqtt_5_again(broker: Broker, caplog: pytest.LogCaptureFixture) -> None:
    """Killed in the middle of a CONNECT, a broker looks like one of 3.1.1: the next connection speaks MQTT 5 again."""
    caplog.set_level("INFO")
    link = Link(broker.port)
    transport = MqttTransport(mqtt_config(link.port), "t-1", on_message=lambda *_: None)
    transport._v5, transport._guessed = False, True  # what one CONNECT without an answer leaves
    transport.start()
    until(lambda: "(MQTT 3.1.1)" in caplog.text)
    link.cut(silent=False)
    link.mend()
    until(lambda: "(MQTT 5)" in caplog.text)
    transport.stop()
    link.close()


def test_it_falls_back_to_3_1_1_with_one_line(caplog: pytest.LogCaptureFixture) -> None:
    """amqtt speaks 3.1.1 only: the transport finds out by itself, says so once, and works."""
    caplog.set_level("INFO")
    broker = EmbeddedBroker(free_port())
    broker.start()
    heard: list[bytes] = []
    transport = MqttTransport(mqtt_config(broker.port), "t-1", on_message=lambda _t, p, _r: heard.append(p))
    transport.subscribe(["x"])
    transport.start()
    transport.wait_connected(15)
    until(lambda: transport.publish("x", b"1", qos=1) and heard)
    transport.stop()
    broker.stop()
    assert [r.getMessage() for r in caplog.records if "does not speak MQTT 5" in r.getMessage()] == [
        f"broker 127.0.0.1:{broker.port} does not speak MQTT 5: using 3.1.1"
    ]
    assert "refuses" not in caplog.text


def test_the_embedded_broker_names_a_taken_port() -> None:
    """A port in use is an error that names it, not a broker that nobody reaches."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        port = sock.getsockname()[1]
        with pytest.raises(TransportError, match=f"127.0.0.1:{port}.*choose another --port"):
            EmbeddedBroker(port).start()


@contextmanager
def _impostor(answer: bytes | None) -> Iterator[int]:
    """A TCP server that answers any first packet with these bytes, or hangs up at once."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                link, _ = server.accept()
            except OSError:
                return
            with link:
                if answer is not None and link.recv(1000):
                    link.sendall(answer)

    threading.Thread(target=serve, daemon=True).start()
    yield server.getsockname()[1]
    server.shutdown(socket.SHUT_RDWR)
    server.close()


@pytest.mark.parametrize("answer", [None, b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x20\x00", b"\xff" * 50])
def test_what_is_no_broker_is_named(answer: bytes | None) -> None:
    """A server that hangs up or speaks another language gives an error with the mend, no dead thread."""
    with _impostor(answer) as port, pytest.raises(TransportError, match=f"127.0.0.1:{port}: .*MQTT broker"):
        probe(mqtt_config(port), timeout_s=7.0)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "nothing listens there: start the broker"),
        ({"host": "no-such-host.invalid"}, "the host name is unknown"),
    ],
)
def test_an_unreachable_broker_is_named(changes: dict[str, str], expected: str) -> None:
    """Each way of not being there has its own sentence."""
    with pytest.raises(TransportError, match=expected):
        probe(mqtt_config(free_port(), **changes), timeout_s=2.0)


def test_tls_mistakes_are_named(broker: Broker, tmp_path: Path) -> None:
    """A missing CA file and a plain port are told apart."""
    with pytest.raises(TransportError, match=r"a file of mqtt\.tls is missing"):
        probe(mqtt_config(broker.port, tls=TlsConfig(ca=tmp_path / "none.pem")), timeout_s=2.0)
    with pytest.raises(TransportError, match=r"TLS"):
        probe(mqtt_config(broker.port, tls=TlsConfig()), timeout_s=3.0)


def test_a_refused_login_is_named(tmp_path: Path) -> None:
    """A refusal (reason code other than 0) is no connection, under both protocols."""
    (folder := tmp_path / "broker").mkdir()
    (folder / "passwords").write_text("")
    broker = Broker(folder, extra=f"allow_anonymous false\npassword_file {folder}/passwords\n")
    broker.start()
    for protocol in ("5", "3.1.1"):
        config = mqtt_config(broker.port, protocol=protocol, username="u", password="secret-word")
        with pytest.raises(TransportError, match=r"refuses us.*correct mqtt\.username") as caught:
            probe(config, timeout_s=10.0)
        assert "secret-word" not in str(caught.value)
    broker.stop()


def test_a_probe_of_a_good_broker_is_silent(broker: Broker, caplog: pytest.LogCaptureFixture) -> None:
    """`check --connect` on a working broker raises nothing and logs no error."""
    probe(mqtt_config(broker.port))
    assert not [r for r in caplog.records if r.levelname in ("ERROR", "CRITICAL")]


def test_a_stopped_transport_leaves_no_thread(broker: Broker) -> None:
    """Ten connections opened and closed leave as many threads as before."""
    before = threading.active_count()
    for _ in range(10):
        probe(mqtt_config(broker.port))
    until(lambda: threading.active_count() <= before, what="the end of the threads")
