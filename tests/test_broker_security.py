"""The shipped broker configuration on a real mosquitto over TLS: who may say and hear what, and whose word is refused.

The table of docs/security.md is what this file finds. WRITE_DOCS=1 in the environment writes it anew.
"""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import certificates
import pytest
from agents import Process, message, write_plant
from certificates import Issued
from conftest import MOSQUITTO, Listener, free_port, mqtt_config, needs_mosquitto, until

from edge_agent import cli
from edge_agent.config import TlsConfig
from edge_agent.errors import TransportError
from edge_agent.transport import probe

ROOT = Path(__file__).parents[1]
pytestmark = needs_mosquitto

#: Logins, as the table shows them. `witness` is none of the shipped file: it sees and may say everything.
ROLES = {
    "edge-01": "agent `edge-01`",
    "agent": "`agent`, the only one",
    "pump-1": "sensor `pump-1`",
    "sensor": "`sensor`, for all",
    "operator": "`operator`",
    "reader": "`reader`",
}
#: What each topic carries, for the table.
TOPICS = {
    "plant/pump-1/waveform": "waveform of `pump-1`",
    "plant/fan-2/waveform": "waveform of `fan-2`",
    "edge/edge-01/status": "status",
    "edge/edge-01/info": "info",
    "edge/edge-01/health": "health",
    "edge/edge-01/s/pump-1/state": "alarm state",
    "edge/edge-01/s/pump-1/event": "alarm event",
    "edge/edge-01/s/pump-1/score": "score",
    "edge/edge-01/cmd/ack": "command",
    "edge/edge-01/cmd/ack/result": "its answer",
    "edge/edge-02/s/fan-2/event": "another agent's event",
    "edge/edge-02/cmd/ack": "another agent's command",
    "elsewhere/pump-1": "anything else",
}
W, R, RW, NO = "write", "read", "both", "–"
#: What is meant: topic -> one entry a role, in the order of ROLES.
MEANT = {
    "plant/pump-1/waveform": (R, R, W, W, NO, NO),
    "plant/fan-2/waveform": (R, R, NO, W, NO, NO),
    "edge/edge-01/status": (W, W, NO, NO, R, R),
    "edge/edge-01/info": (W, W, NO, NO, R, R),
    "edge/edge-01/health": (W, W, NO, NO, R, R),
    "edge/edge-01/s/pump-1/state": (W, W, NO, NO, R, R),
    "edge/edge-01/s/pump-1/event": (W, W, NO, NO, R, R),
    "edge/edge-01/s/pump-1/score": (W, W, NO, NO, R, R),
    "edge/edge-01/cmd/ack": (RW, RW, NO, NO, RW, R),
    "edge/edge-01/cmd/ack/result": (RW, RW, NO, NO, R, R),
    "edge/edge-02/s/fan-2/event": (NO, W, NO, NO, R, R),
    "edge/edge-02/cmd/ack": (NO, RW, NO, NO, RW, R),
    "elsewhere/pump-1": (NO, NO, NO, NO, NO, NO),
}


@dataclass(frozen=True)
class Plant:
    """A running mosquitto with the shipped files; ports by what listens there."""

    folder: Path
    authority: Issued
    ports: dict[str, int]

    def login(self, user: str | None, **changes: Any) -> dict[str, Any]:
        """What a client of this name needs over TLS."""
        tls = TlsConfig(ca=self.authority.pem)
        return {"username": user, "password": user and f"{user}-password", "tls": tls, **changes}

    def listener(self, user: str, *topics: str) -> Listener:
        """Connected over TLS under this login."""
        return Listener(self.ports["tls"], *topics, **self.login(user))


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plant]:
    """The shipped files, with their paths and ports put here, and listeners with certificates that must be refused."""
    folder = tmp_path_factory.mktemp("broker")
    (keys := folder / "edge").mkdir()
    authority = certificates.issue(keys, "ca")
    here = ("127.0.0.1", "localhost")
    server = certificates.issue(keys, "server", authority, hosts=here)
    bad = {
        "expired": certificates.issue(keys, "expired", authority, hosts=here, days=(-30, -1)),
        "early": certificates.issue(keys, "early", authority, hosts=here, days=(1, 30)),
        "elsewhere": certificates.issue(keys, "elsewhere", authority, hosts=("broker.example",)),
        "self-signed": certificates.issue(keys, "self-signed", hosts=here),
        "foreign": certificates.issue(keys, "foreign", certificates.issue(keys, "stranger"), hosts=here),
    }
    acl = (ROOT / "deploy" / "mosquitto.acl").read_text()
    (folder / "edge.acl").write_text(f"{acl}\nuser witness\ntopic readwrite #\ntopic read $SYS/#\n")
    passwords = folder / "edge.passwd"
    passwords.touch(mode=0o600)
    for user in (*ROLES, "witness"):
        subprocess.run(
            ["mosquitto_passwd", "-b", str(passwords), user, f"{user}-password"], check=True, capture_output=True
        )
    ports = {name: free_port() for name in ("plain", "tls", "certificate", *bad)}
    text = (ROOT / "deploy" / "mosquitto.conf").read_text()
    text += (ROOT / "deploy" / "mosquitto-certificates.conf").read_text()
    for name, shipped in (("plain", "listener 1883 127.0.0.1"), ("tls", "listener 8883"), ("certificate", "listener 8884")):
        assert text.count(f"\n{shipped}\n") == 1
        text = text.replace(f"\n{shipped}\n", f"\nlistener {ports[name]} 127.0.0.1\n")
    for name, issued in bad.items():
        text += f"\nlistener {ports[name]} 127.0.0.1\nallow_anonymous true\ncertfile {issued.pem}\nkeyfile {issued.key_file}\n"
    # Started as root, mosquitto becomes a user who may not look into this folder.
    conf = folder / "mosquitto.conf"
    # All that is on its way goes out before the next answer, so that an answer says that it has.
    conf.write_text(f"user {getpass.getuser()}\nmax_inflight_messages 0\n" + text.replace("/etc/mosquitto", str(folder)))
    assert server.pem == folder / "edge" / "server.pem"
    log = (folder / "log").open("wb")
    assert MOSQUITTO is not None
    process = subprocess.Popen([MOSQUITTO, "-c", str(conf)], stdout=log, stderr=log)

    def listens(port: int) -> bool:
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", port)) == 0

    try:
        for port in ports.values():
            until(lambda port=port: listens(port), 10.0, "mosquitto's port: " + (folder / "log").read_text())
        yield Plant(folder, authority, ports)
    finally:
        process.terminate()
        process.wait(10)
        log.close()


@pytest.fixture(scope="module")
def found(plant: Plant) -> dict[str, tuple[str, ...]]:
    """Topic -> what each role can really do, by who hears what: a broker says little about what it drops."""
    witness = plant.listener("witness", *TOPICS)
    clients: dict[str, _Client] = {}
    may_write: set[tuple[str, str]] = set()
    may_read: set[tuple[str, str]] = set()
    try:
        for role in ROLES:
            clients[role] = _Client(plant, role)
        for role, client in clients.items():
            for topic in TOPICS:
                client.publish(topic, f"{role} on {topic}")
        for topic in TOPICS:
            witness.publish(topic, f"witness on {topic}")
        for topic in TOPICS:
            until(lambda topic=topic: f"witness on {topic}".encode() in witness.on(topic), what=topic)
        for client in clients.values():
            client.settle()
        for role, client in clients.items():
            for topic in TOPICS:
                if f"{role} on {topic}".encode() in witness.on(topic):
                    may_write.add((role, topic))
                if f"witness on {topic}" in client.heard:
                    may_read.add((role, topic))
    finally:
        witness.close()
        for client in clients.values():
            client.close()
    words = {(True, True): RW, (True, False): W, (False, True): R, (False, False): NO}
    return {
        topic: tuple(words[(role, topic) in may_write, (role, topic) in may_read] for role in ROLES) for topic in TOPICS
    }


class _Client:
    """A client of one role over TLS and MQTT 5, subscribed to every topic by name and to `#`: neither may give more
    than the rules."""

    def __init__(self, plant: Plant, role: str) -> None:
        import paho.mqtt.client as paho
        from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

        self.heard: list[str] = []
        self._granted: list[Any] = []
        self._client = paho.Client(CallbackAPIVersion.VERSION2, f"role-{role}", protocol=MQTTProtocolVersion.MQTTv5)
        self._client.on_message = lambda _c, _u, m: self.heard.append(m.payload.decode(errors="replace"))
        self._client.on_subscribe = lambda _c, _u, _m, codes, _p: self._granted.append(codes)
        self._client.username_pw_set(role, f"{role}-password")
        self._client.tls_set(ca_certs=str(plant.authority.pem))
        self._client.connect("127.0.0.1", plant.ports["tls"])
        self._client.loop_start()
        self._client.subscribe([(topic, 1) for topic in ("#", "$SYS/#", *TOPICS)])
        until(lambda: self._granted, what=f"{role}'s subscription")

    def publish(self, topic: str, payload: str) -> None:
        """At QoS 1, and wait for the broker's answer, whatever it is."""
        self._client.publish(topic, payload, qos=1).wait_for_publish(10)

    def settle(self) -> None:
        """The broker answers in order: after this answer all that was for us has been sent to us."""
        before = len(self._granted)
        self._client.subscribe("settled", 1)
        until(lambda: len(self._granted) > before, what="the answer to a subscription")

    def close(self) -> None:
        """Disconnect."""
        self._client.disconnect()
        self._client.loop_stop()


@pytest.mark.parametrize("topic", TOPICS)
def test_roles_may_do_what_is_meant(found: dict[str, tuple[str, ...]], topic: str) -> None:
    """Of this topic, every role can write and read over TLS just what the rules mean, by who really hears it."""
    assert dict(zip(ROLES, found[topic], strict=True)) == dict(zip(ROLES, MEANT[topic], strict=True))


def test_the_page_shows_what_was_found(found: dict[str, tuple[str, ...]]) -> None:
    """The table in docs/security.md is the one that this broker has just given."""
    lines = ["| topic | what | " + " | ".join(ROLES.values()) + " |", "|---|---|" + "---|" * len(ROLES)]
    lines += [f"| `{topic}` | {TOPICS[topic]} | " + " | ".join(cells) + " |" for topic, cells in found.items()]
    table = "\n".join(lines)
    page = ROOT / "docs" / "security.md"
    begin, end = "<!-- broker-matrix:begin -->\n", "\n<!-- broker-matrix:end -->"
    text = page.read_text("utf-8")
    assert text.count(begin) == text.count(end) == 1
    before, _, rest = text.partition(begin)
    shown, _, after = rest.partition(end)
    if os.environ.get("WRITE_DOCS"):
        page.write_text(before + begin + table + end + after, "utf-8")
        shown = table
    assert shown == table


def test_a_whole_plant_works_with_these_rights(
    plant: Plant, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Over TLS, each under its own login: a sensor's windows become an event that a reader sees and an operator
    acknowledges; the device's own `edge-agent ack` is answered; killed, the agent is `offline` by its last will; and the
    broker rejects nothing of what the agent says."""
    login = plant.login("edge-01")
    mqtt = {
        "host": "localhost", "port": plant.ports["tls"], "username": "edge-01", "password": login["password"],
        "tls": {"ca": str(plant.authority.pem)},
    }  # fmt: skip
    sensors = {"pump-1": {"topic": "plant/pump-1/waveform"}}
    path = write_plant(tmp_path, plant.ports["tls"], sensors, agent={"id": "edge-01"}, mqtt=mqtt)
    reader = _Client(plant, "reader")
    pump, operator = (_Speaker(plant.ports["tls"], **plant.login(user)) for user in ("pump-1", "operator"))

    def seen(*words: str) -> bool:
        return any(all(word in text for word in words) for text in reader.heard)

    process = Process(path)
    try:
        until(lambda: seen("online"), 30.0, "the agent")
        for seq in range(5):
            pump.say("plant/pump-1/waveform", message(seq, 1.5))
        until(lambda: seen('"type":"new"', '"state":"UNACK"'), what="the event")
        operator.say("edge/edge-01/cmd/ack", b'{"request_id": "r", "sensor": "pump-1", "by": "anna"}')
        until(lambda: seen('"type":"update"', '"state":"ACKED"', '"by":"anna"'), what="the acknowledgement")
        assert cli.main(["ack", "pump-1", "-c", str(path)]) == 1  # twice is refused, and that by the agent
        assert "ACKED" in capsys.readouterr().err
        process.end(signal.SIGKILL)
        until(lambda: seen("offline"), what="the last will")
    finally:
        process.process.kill()
        process.process.wait(10)
        for client in (reader, pump, operator):
            client.close()
    assert "rejects" not in process.said()
    assert "refuses" not in process.said()
    assert str(login["password"]) not in process.said()


@pytest.mark.parametrize("changes", [{"username": None, "password": None}, {"password": "wrong"}, {"username": "nobody"}])
@pytest.mark.parametrize("listener", ["plain", "tls"])
def test_nobody_comes_in_without_a_password(plant: Plant, listener: str, changes: dict[str, Any]) -> None:
    """No login, a wrong password and an unknown name are refused on both listeners, and the error says so."""
    tls = {} if listener == "tls" else {"tls": None}
    with pytest.raises(TransportError, match=r"refuses us.*correct mqtt\.username"):
        probe(mqtt_config(plant.ports[listener], **plant.login("reader", **tls, **changes)), timeout_s=5.0)


@pytest.mark.parametrize(
    ("listener", "expected"),
    [
        ("expired", "its certificate has expired .*renew the broker's certificate"),
        ("early", "its certificate is not valid yet .*is this device's clock right"),
        ("elsewhere", "its certificate is for another host .*mqtt.host must be a name or address"),
        ("self-signed", "its certificate is self-signed .*have it signed by the authority in mqtt.tls.ca"),
        ("foreign", "its certificate is signed by an authority that is not trusted .*mqtt.tls.ca must name"),
    ],
)
def test_a_brokers_bad_certificate_is_refused_and_named(plant: Plant, listener: str, expected: str) -> None:
    """Each way in which a broker's certificate can be wrong ends the connection with a sentence of its own."""
    with pytest.raises(TransportError, match=expected):
        probe(mqtt_config(plant.ports[listener], tls=TlsConfig(ca=plant.authority.pem)), timeout_s=5.0)


def test_a_certificate_is_a_login(plant: Plant) -> None:
    """On the listener of mosquitto-certificates.conf the common name is the login: `reader` reads, and cannot command."""
    ours = {}
    for name in ("reader", "operator"):
        issued = certificates.issue(plant.folder, name, plant.authority)
        ours[name] = {"tls": TlsConfig(plant.authority.pem, issued.pem, issued.key_file)}
    witness = plant.listener("witness", "edge/edge-01/cmd/ack")
    speakers = {name: _Speaker(plant.ports["certificate"], **login) for name, login in ours.items()}
    try:
        for name in ("reader", "operator"):  # in this order: what the reader said would come first
            speakers[name].say("edge/edge-01/cmd/ack", name.encode())
        assert witness.wait("edge/edge-01/cmd/ack") == [b"operator"]
    finally:
        witness.close()
        for speaker in speakers.values():
            speaker.close()


class _Speaker:
    """Publishes through the agent's own transport and waits for the broker's answer."""

    def __init__(self, port: int, **changes: Any) -> None:
        from edge_agent.transport import tool

        self._answers: list[Any] = []
        self._transport = tool(
            mqtt_config(port, **changes), "speak", lambda *_: None, on_acknowledged=lambda *a: self._answers.append(a)
        )
        self._transport.start()
        self._transport.wait_connected(10)

    def say(self, topic: str, payload: bytes) -> None:
        before = len(self._answers)
        self._transport.publish(topic, payload, qos=1)
        until(lambda: len(self._answers) > before, what="the broker's answer")

    def close(self) -> None:
        self._transport.stop()


def test_a_client_without_a_good_certificate_is_refused(plant: Plant) -> None:
    """No certificate, an expired one and one of a foreign authority do not come in, and the error asks for the right one."""
    stranger = certificates.issue(plant.folder, "some-authority")
    bad = [
        None,
        certificates.issue(plant.folder, "old-reader", plant.authority, days=(-30, -1)),
        certificates.issue(plant.folder, "foreign-reader", stranger),
    ]
    for issued in bad:
        tls = TlsConfig(plant.authority.pem, issued and issued.pem, issued and issued.key_file)
        with pytest.raises(TransportError, match=r"client certificate, or refuse ours|TLS failed"):
            probe(mqtt_config(plant.ports["certificate"], tls=tls), timeout_s=12.0)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_the_script_makes_certificates_that_hold(tmp_path: Path) -> None:
    """deploy/certificates.sh makes an authority, a server for its names and a client, which openssl verifies."""
    script = str(ROOT / "deploy" / "certificates.sh")
    for arguments in (["broker.plant.lan", "192.168.1.5"], ["--client", "edge-01"]):
        subprocess.run([script, str(tmp_path), *arguments], check=True, capture_output=True)
    verify = ["openssl", "verify", "-CAfile", str(tmp_path / "ca.pem"), "-purpose"]
    for purpose, name, host in (
        ("sslserver", "server", ["-verify_hostname", "broker.plant.lan"]),
        ("sslserver", "server", ["-verify_ip", "192.168.1.5"]),
        ("sslclient", "edge-01", []),
    ):
        subprocess.run([*verify, purpose, *host, str(tmp_path / f"{name}.pem")], check=True, capture_output=True)
    wrong = [*verify, "sslserver", "-verify_hostname", "other.lan", str(tmp_path / "server.pem")]
    assert subprocess.run(wrong, capture_output=True, check=False).returncode != 0
    assert (tmp_path / "ca.key").stat().st_mode & 0o077 == 0
    again = subprocess.run([script, str(tmp_path), "--client", "edge-01"], capture_output=True, text=True, check=False)
    assert (again.returncode, "is there already" in again.stderr) == (2, True)
