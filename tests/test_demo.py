"""The demo, shortened: a fault raises an alarm, a healthy machine none, a missing part is named."""

from __future__ import annotations

import json
import logging
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from bundles import make_indicator_bundle

from edge_agent import demo, simulate


@pytest.fixture(autouse=True)
def _log_as_before() -> Iterator[None]:
    """The demo's log goes to a stream that pytest closes: later tests would write to it."""
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    yield
    root.handlers[:] = before
    root.setLevel(level)


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Kurtosis, calibrated on the demo's machine when healthy."""
    machine = simulate.demo_machine()

    def healthy(n: int, _channels: int = 1, seed: int = 0) -> np.ndarray:
        return simulate.vibration(machine, n, 0.0, np.random.default_rng(seed))[np.newaxis]

    monkeypatch.setattr("bundles.healthy", healthy)
    path = tmp_path / "kurtosis"
    make_indicator_bundle(path, fs_hz=machine.fs_hz, n_samples=8192, feature="kurtosis", false_alarm_rate=1e-5)
    return path


def test_a_fault_raises_an_alarm(
    bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through a broker and the real daemon the growing fault becomes an event; the last line is the JSON."""
    monkeypatch.setattr(demo, "ONSET_S", 2.0)
    monkeypatch.setattr(demo, "GROWTH_S", 2.0)
    monkeypatch.setattr(demo, "AFTER_ONSET_S", 3.0)
    assert demo.main(seconds=30.0, bundle=bundle) == 0
    out, err = capsys.readouterr()
    result = json.loads(out.splitlines()[-1])
    assert result["name"] == "demo"
    assert result["ok"] is True
    assert result["seconds_to_alarm"] > 0
    assert (result["event"]["type"], result["event"]["sensor"]) == ("new", "pump-1-de")
    assert "the fault begins" in err
    assert "ALARM: pump-1-de" in err


def test_a_healthy_machine_raises_none(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a fault it runs its time, scores windows and ends well without an event."""
    assert demo.main(no_fault=True, seconds=4.0, json=True, bundle=bundle) == 0
    (line,) = capsys.readouterr().out.splitlines()
    result = json.loads(line)
    assert result["event"] is None
    assert result["windows"] > 0


def test_what_is_missing_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No bundle ends the demo with exit 1, an error in the JSON and on stderr."""
    assert demo.main(bundle=tmp_path / "nowhere") == 1
    out, err = capsys.readouterr()
    assert "nowhere" in json.loads(out)["error"]
    assert "nowhere" in err


def test_a_taken_port_is_named(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--port on a port in use ends with exit 1 and the mend."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert demo.main(port=server.getsockname()[1], bundle=bundle) == 1
    assert "choose another --port" in capsys.readouterr().err


def test_it_stays_for_who_wants_to_acknowledge(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """With the committed bundle and `stay` the printed command acknowledges the alarm, the bearing is changed, and the alarm ends."""
    monkeypatch.setattr(demo, "ONSET_S", 8.0)
    monkeypatch.setattr(demo, "GROWTH_S", 1.0)
    monkeypatch.setattr(demo, "REPAIR_S", 0.5)
    codes: list[int] = []
    ended = threading.Event()
    thread = threading.Thread(target=lambda: codes.append(demo.main(seconds=60.0, stay=True, ended=ended)))
    thread.start()
    said = ""
    command = None
    while thread.is_alive() and "end: pump-1-de is NORM" not in said:
        thread.join(0.2)
        said += capsys.readouterr().err
        if command is None and (command := re.search(r"edge-agent (ack \S+) --by NAME -c (\S+)", said)):
            args = [*command[1].split(), "--by", "anna", "-c", command[2]]
            done = subprocess.run([sys.executable, "-m", "edge_agent", *args], capture_output=True, text=True, check=False)
            assert done.stdout == "pump-1-de: ACKED\n", done.stderr
    assert "the bearing is changed" in said
    assert "end: pump-1-de is NORM" in said
    ended.set()
    thread.join(30.0)
    assert codes == [0]
