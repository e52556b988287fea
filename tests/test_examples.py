"""The example publishers run, against a real broker, and send what they say."""

from __future__ import annotations

import os
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


def client_on(port):
    """A connected client whose messages go to `client.messages`, its granted codes to `client.granted`."""
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
    client.messages, client.granted = queue.Queue(), queue.Queue()
    client.on_message = lambda c, u, message: client.messages.put(message)
    client.on_subscribe = lambda c, u, mid, codes, props: client.granted.put(codes)
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


@pytest.mark.parametrize("script", ["deploy/install.sh", "deploy/certificates.sh", ".ci/run", ".ci/venv"])
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
