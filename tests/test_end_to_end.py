"""The committed int8 bundles through broker, agent and database, against `edge-agent score` of the same files."""

from __future__ import annotations

import threading
import wave
from pathlib import Path
from typing import Any

import numpy as np
from agents import Agent, offline, write_plant
from conftest import Broker, until

from edge_agent import simulate
from edge_agent.config import load
from edge_agent.replay import replay

MODELS = Path(__file__).parents[1] / "models"


def test_int8_scores_in_the_database_are_exactly_those_of_the_command(tmp_path: Path, broker: Broker) -> None:
    """A vibration sensor (8192 points, f32le) and a sound sensor (10 s at 16 kHz, i16le in 1 s chunks) in one
    agent: one row for each window sent, and every score equal to the last bit."""
    machine = simulate.demo_machine()
    severity = simulate.growing(20.0, 10.0)
    seconds = 40
    chunks = simulate.stream(machine, 10240, severity, 7, 1.79e9)
    x = np.concatenate([next(chunks).samples[0] for _ in range(seconds)])
    np.savez(tmp_path / "run.npz", x=x, fs=np.float64(machine.fs_hz))
    clips = tmp_path / "clips"
    clips.mkdir()
    for i, fault in enumerate((None, None, "bearing")):
        clip = simulate.sound(0, fault=fault, severity=1.0, seconds=10.0, seed=i)
        with wave.open(str(clips / f"clip_{i}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(16000)
            file.writeframes(np.clip(np.rint(clip * 32768), -32768, 32767).astype("<i2").tobytes())
    packed = {"format": "f32le", "header": "ts_seq"}
    sensors: dict[str, dict[str, Any]] = {
        "vib": {"model": str(MODELS / "demo-lstm-ae"), "fs_hz": 10240, "payload": packed},
        "snd": {
            "model": str(MODELS / "sound-weak-ae"),
            "fs_hz": 16000,
            "payload": {**packed, "format": "i16le"},
        },
    }
    path = write_plant(tmp_path, broker.port, sensors)
    with Agent(path) as agent:
        until(lambda: agent.daemon._transport.listening)
        sources = (("vib", tmp_path / "run.npz"), ("snd", clips))
        both = [threading.Thread(target=replay, args=(load(path), *pair)) for pair in sources]
        for thread in both:
            thread.start()
        for thread in both:
            thread.join(120)
        windows = {"vib": seconds * 10240 // 8192, "snd": 3}
        for name, n in windows.items():
            until(lambda: agent.daemon.worker.sensors[name].windows >= n, what=f"{n} windows of {name}")  # noqa: B023
    for name, source in sources:
        got = agent.rows("SELECT seq, score FROM scores WHERE sensor = ? ORDER BY id", name)
        assert [seq for seq, _ in got] == list(range(windows[name]))
        assert [score for _, score in got] == offline(source, Path(sensors[name]["model"]))
    types = [t for (t,) in agent.rows("SELECT type FROM events WHERE sensor = 'vib' ORDER BY ts")]
    assert types[0] == "new"
    assert types.count("new") == 1
