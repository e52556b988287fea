"""The example publishers run, against a real broker, and send what they say."""

from __future__ import annotations

import os
import pwd
import queue
import shutil
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import paho.mqtt.client as mqtt
import pytest

from edge_agent.simulate import sound
from edge_agent.simulate_files import write_wav

ROOT = Path(__file__).parent.parent
MOSQUITTO = shutil.which("mosquitto", path=os.environ.get("PATH", "") + ":/usr/sbin")

needs_mosquitto = pytest.mark.skipif(MOSQUITTO is None, reason="mosquitto is not installed")


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start_broker(config):
    """Starts mosquitto and waits until it listens."""
    port = free_port()
    path = config(port)
    broker = subprocess.Popen([MOSQUITTO, "-c", str(path)], stderr=subprocess.PIPE, text=True)
    for _ in range(200):
        with socket.socket() as s:
            if s.connect_ex(("127.0.0.1", port)) == 0:
                return broker, port
        assert broker.poll() is None, broker.stderr.read()
        time.sleep(0.05)
    raise AssertionError("mosquitto does not listen")


@pytest.fixture
def broker(tmp_path):
    def config(port):
        path = tmp_path / "mosquitto.conf"
        path.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\n")
        return path

    process, port = start_broker(config)
    yield port
    process.terminate()
    process.communicate(timeout=10)


def client_on(port, user=None):
    """A connected client whose messages go to `client.messages`, its granted codes to `client.granted`."""
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
    client.messages, client.granted = queue.Queue(), queue.Queue()
    client.on_message = lambda c, u, message: client.messages.put(message)
    client.on_subscribe = lambda c, u, mid, codes, props: client.granted.put(codes)
    if user:
        client.username_pw_set(user, user)
    client.connect("127.0.0.1", port)
    client.loop_start()
    return client


def messages_of(port, topic, script, *args, count):
    """The first `count` payloads that a running example sends."""
    client = client_on(port)
    client.subscribe(topic, qos=1)
    client.granted.get(timeout=10)
    example = subprocess.Popen([sys.executable, ROOT / "examples" / script, "--port", str(port), *args])
    try:
        return [client.messages.get(timeout=30).payload for _ in range(count)]
    finally:
        example.terminate()
        example.wait(10)
        client.loop_stop()


@needs_mosquitto
def test_accelerometer_example_sends_numbered_timed_windows(broker):
    """Each message is 8192 float32 after time and number, and two of them stand 0.8 s apart."""
    first, second = messages_of(broker, "plant/demo/waveform", "publish_accelerometer.py", count=2)
    assert len(first) == len(second) == 12 + 4 * 8192
    (t0, n0), (t1, n1) = (struct.unpack("<qI", m[:12]) for m in (first, second))
    assert n1 == n0 + 1
    assert 0.7e9 < t1 - t0 < 5e9
    assert abs(t1 / 1e9 - time.time()) < 60
    assert 0.03 < np.frombuffer(first[12:], "<f4").std() < 0.1


@needs_mosquitto
def test_microphone_example_sends_a_file_bit_for_bit(broker, tmp_path):
    """A WAV file arrives in chunks of one second, the last one shorter, without a changed bit."""
    write_wav(tmp_path / "a.wav", sound(0, seconds=1.5))
    first, second = messages_of(
        broker, "plant/demo/sound", "publish_microphone.py", "--wav", str(tmp_path / "a.wav"), count=2
    )
    assert [struct.unpack("<qI", m[:12])[1] for m in (first, second)] == [0, 1]
    assert len(first) == 12 + 2 * 16000
    assert (tmp_path / "a.wav").read_bytes().endswith(first[12:] + second[12:])


@needs_mosquitto
def test_shipped_broker_configuration_keeps_roles_apart(tmp_path):
    """With deploy/mosquitto.conf and its ACL a sensor's forged alarm and a reader's command reach nobody,
    while waveforms, events and an operator's command do; without a password nobody connects."""
    shutil.copy(ROOT / "deploy" / "mosquitto.acl", tmp_path / "edge.acl")
    passwords = tmp_path / "edge.passwd"
    passwords.touch(mode=0o600)
    for user in ("agent", "sensor", "operator", "reader"):
        subprocess.run(["mosquitto_passwd", "-b", passwords, user, user], check=True, capture_output=True)
    def config(port):
        text = (ROOT / "deploy" / "mosquitto.conf").read_text()
        text = text.replace("/etc/mosquitto", str(tmp_path)).replace("listener 1883", f"listener {port} 127.0.0.1")
        # Started as root, mosquitto becomes a user who may not look into this folder.
        user = pwd.getpwuid(os.getuid()).pw_name
        path = tmp_path / "mosquitto.conf"
        path.write_text(f"{text}\nuser {user}\n")
        return path

    process, port = start_broker(config)
    try:
        agent, sensor, operator, reader = (client_on(port, u) for u in ("agent", "sensor", "operator", "reader"))
        for client, topic in ((agent, "plant/#"), (agent, "edge/+/cmd/+"), (reader, "edge/#")):
            client.subscribe(topic, qos=1)
            client.granted.get(timeout=10)
        for client, topic in (
            (sensor, "edge/pi/s/pump/event"),
            (sensor, "edge/pi/cmd/ack"),
            (reader, "edge/pi/cmd/ack"),
            (operator, "plant/pump/waveform"),
            (operator, "edge/pi/s/pump/event"),
        ):
            client.publish(topic, b"forged", qos=1).wait_for_publish(10)
        for client, topic in (
            (sensor, "plant/pump/waveform"),
            (operator, "edge/pi/cmd/ack"),
            (agent, "edge/pi/s/pump/event"),
        ):
            client.publish(topic, b"true", qos=1).wait_for_publish(10)
        seen_by_agent = [agent.messages.get(timeout=10) for _ in range(2)]
        seen_by_reader = [reader.messages.get(timeout=10) for _ in range(2)]
        assert {m.topic for m in seen_by_agent} == {"plant/pump/waveform", "edge/pi/cmd/ack"}
        assert {m.topic for m in seen_by_reader} == {"edge/pi/cmd/ack", "edge/pi/s/pump/event"}
        assert {m.payload for m in seen_by_agent + seen_by_reader} == {b"true"}

        stranger = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
        refused = queue.Queue()
        stranger.on_connect = lambda c, u, flags, reason, props: refused.put(reason)
        stranger.connect("127.0.0.1", port)
        stranger.loop_start()
        assert refused.get(timeout=10).is_failure
        for client in (agent, sensor, operator, reader, stranger):
            client.loop_stop()
    finally:
        process.terminate()
        process.communicate(timeout=10)


@pytest.mark.parametrize("script", ["deploy/install.sh", ".ci/run", ".ci/venv"])
def test_shell_scripts_parse(script):
    """A shell reads every script to its end without complaint."""
    shell = "sh" if script.endswith(".sh") else "bash"
    done = subprocess.run([shell, "-n", ROOT / script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_service_unit_verifies(tmp_path):
    """systemd accepts the unit as it stands, but for the program that is not installed here."""
    text = (ROOT / "deploy" / "edge-agent.service").read_text()
    unit = tmp_path / "edge-agent.service"
    unit.write_text(text.replace("/opt/edge-agent/venv/bin/edge-agent", "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True)
    assert (done.returncode, done.stderr.replace(str(unit), "")) == (0, "")
