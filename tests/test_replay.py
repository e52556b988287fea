"""Recordings through a broker into the agent and back: every window one row, each score the offline one."""

from __future__ import annotations

import json
import threading
import time
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agents import Agent, message, write_plant
from bundles import healthy, make_indicator_bundle
from conftest import Broker, Listener, free_port, until

from edge_agent import bundle as bundles
from edge_agent import offline, remote
from edge_agent.config import load
from edge_agent.errors import RecordingError, TransportError
from edge_agent.recordings import Ask, open_recordings
from edge_agent.replay import capture, replay
from edge_agent.signals import parse_time

Listen = Callable[..., Listener]


def _wav(path: Path, samples: Any, fs_hz: int) -> None:
    path.parent.mkdir(exist_ok=True)
    counts = np.clip(np.rint(np.asarray(samples) * 32768.0), -32768, 32767).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(fs_hz)
        file.writeframes(counts.tobytes())


def _scored(agent: Agent, **windows: int) -> None:
    """Wait until the agent has scored so many windows: the broker's acknowledgement is not yet that."""
    for sensor, n in windows.items():
        until(lambda: agent.daemon.worker.sensors[sensor].windows >= n, what=f"{n} windows of {sensor}")  # noqa: B023


def test_vibration_and_sound_give_one_row_a_window_and_the_offline_scores(tmp_path: Path, broker: Broker) -> None:
    """A vibration sensor (8192 points, f32le) and a sound sensor (10 s at 16 kHz, i16le) in one agent, both
    replayed at full speed through the broker: one row for each window, each score equal to the offline one."""
    make_indicator_bundle(tmp_path / "vib", fs_hz=25600.0, n_samples=8192)
    make_indicator_bundle(tmp_path / "snd", fs_hz=16000.0, n_samples=160000)
    np.save(tmp_path / "run.npy", healthy(60 * 8192 + 100, seed=3)[0])
    for i in range(3):
        _wav(tmp_path / "clips" / f"clip_{i}.wav", 0.2 * healthy(170000, seed=10 + i)[0], 16000)
    packed = {"format": "f32le", "header": "ts_seq"}
    path = write_plant(
        tmp_path,
        broker.port,
        {
            "vib": {"model": "vib", "fs_hz": 25600, "payload": packed},
            "snd": {"model": "snd", "fs_hz": 16000, "payload": {**packed, "format": "i16le"}},
        },
    )
    config = load(path)
    with Agent(path) as agent:
        until(lambda: agent.daemon._transport.listening)
        results: dict[str, Any] = {}
        both = [
            threading.Thread(target=lambda s=s, p=p: results.update({s: replay(config, s, tmp_path / p)}))
            for s, p in (("vib", "run.npy"), ("snd", "clips"))
        ]
        for thread in both:
            thread.start()
        for thread in both:
            thread.join(60)
        _scored(agent, vib=60, snd=3)
    assert (results["vib"]["recordings"], results["snd"]["recordings"]) == (1, 3)
    for sensor, where, fs_hz in (("vib", "run.npy", 25600.0), ("snd", "clips", 16000.0)):
        bundle = bundles.load(tmp_path / sensor)
        expected = [
            measured.score
            for recording in open_recordings(tmp_path / where, Ask(fs_hz))
            for measured, _ in offline.run(offline.pipeline_for(bundle), recording)
        ]
        got = agent.rows("SELECT seq, score FROM scores WHERE sensor = ? ORDER BY id", sensor)
        assert [seq for seq, _ in got] == list(range(len(expected)))
        np.testing.assert_allclose([score for _, score in got], expected, rtol=1e-5)
    assert len(agent.rows("SELECT 1 FROM scores WHERE sensor = 'vib'")) == 60


@pytest.mark.parametrize("payload", ["ts_seq", "none"])
def test_recordings_without_times_end_now_at_full_speed(tmp_path: Path, broker: Broker, payload: str) -> None:
    """Three recordings of 100 s sent in a second lie before now, 11 s apart, and the summary says from when to
    when and counts every window's score; where the payload carries no times the agent's own count is kept."""
    for i in range(3):
        (tmp_path / "runs").mkdir(exist_ok=True)
        np.save(tmp_path / "runs" / f"{i}.npy", healthy(100_000, seed=i)[0])
    path = write_plant(tmp_path, broker.port, {"a": {"payload": {"format": "f32le", "header": payload}}})
    with Agent(path) as agent:
        until(lambda: agent.daemon._transport.listening)
        said: list[str] = []
        result = replay(load(path), "a", tmp_path / "runs", progress=said.append)
        until(lambda: len(agent.rows("SELECT 1 FROM scores")) >= result["scores"])
        ended = time.time()
    begin, end = parse_time(result["from"]), parse_time(result["to"])
    assert end - begin == pytest.approx(322.0, abs=0.01)
    assert result["paced"] == "scores"
    assert any("ahead of the clock" in text for text in said) == (payload == "none")
    if payload == "ts_seq":
        assert ended - 30.0 < end <= ended
        assert agent.rows("SELECT count(*) FROM scores") == [(3 * (100_000 // 256),)]
        assert result["scores"] == 3 * (100_000 // 256)
        assert agent.rows("SELECT min(start) FROM scores")[0][0] == result["from"]


def test_clips_one_after_another_are_no_stream_with_gaps(tmp_path: Path, broker: Broker) -> None:
    """Twelve clips of five windows each: every window is scored, and nothing is said of the sensor's data."""
    (tmp_path / "clips").mkdir()
    for i in range(12):
        np.save(tmp_path / "clips" / f"{i:02}.npy", healthy(5 * 256, seed=i)[0])
    path = write_plant(tmp_path, broker.port, {"a": {"max_payload_bytes": 1024 + 4 * 256}})
    with Agent(path) as agent:
        until(lambda: agent.daemon._transport.listening)
        assert replay(load(path), "a", tmp_path / "clips")["scores"] == 60
        until(lambda: len(agent.rows("SELECT 1 FROM scores")) == 60)
        assert agent.daemon.worker.sensors["a"].state.trouble.counts == {}
    assert agent.rows("SELECT count(*) FROM events") == [(0,)]


def test_a_replay_into_times_that_the_agent_has_is_warned_of(tmp_path: Path, broker: Broker) -> None:
    """The second of two replays of 100 s within moments overlaps the first; the first, and one of later times, do not."""
    np.save(tmp_path / "run.npy", healthy(100_000, seed=1)[0])
    path = write_plant(tmp_path, broker.port, {"a": {"silent_after_s": 1}})
    with Agent(path) as agent:
        until(lambda: agent.daemon._transport.listening)
        said: list[list[str]] = []
        for _ in range(2):
            said.append([])
            result = replay(load(path), "a", tmp_path / "run.npy", progress=said[-1].append)
            until(lambda: agent.daemon.worker.sensors["a"].windows >= result["scores"])  # noqa: B023 - called in this round
            until(lambda: agent.daemon.worker.sensors["a"].status == "silent", what="the silence, with which the state is told")
            until(lambda: agent.daemon._keeper._pending == {}, what="the commit")
    assert [any("their times will overlap" in text for text in texts) for texts in said] == [False, True]


def test_full_speed_does_not_overflow_a_slow_agent(tmp_path: Path, broker: Broker) -> None:
    """Six hundred small messages at full speed, more than twice the queue, into an agent that takes its
    time: none is dropped."""
    np.save(tmp_path / "run.npy", healthy(600 * 256, seed=1)[0])
    path = write_plant(tmp_path, broker.port, {"a": {"max_payload_bytes": 2048}})

    def slow(x: Any) -> Any:
        time.sleep(0.005)
        return ()

    def change(pipelines: dict[str, Any]) -> dict[str, Any]:
        from dataclasses import replace as changed

        ready = pipelines["a"]
        return {"a": changed(ready, judge=changed(ready.judge, model=slow))}

    with Agent(path, change=change) as agent:
        until(lambda: agent.daemon._transport.listening)
        result = replay(load(path), "a", tmp_path / "run.npy")
        _scored(agent, a=600)
    assert result["paced"] == "scores"
    assert result["messages"] >= 600
    assert agent.rows("SELECT count(*) FROM scores") == [(600,)]
    assert agent.daemon._tally.counts() == {}


def test_the_same_recording_can_be_replayed_again(tmp_path: Path, broker: Broker) -> None:
    """A second replay of the same times is scored in full: its numbers go on, so it is no duplicate."""
    lines = [
        json.dumps({"data_time": f"2023-12-04T15:09:{i:02d}.000Z", "signal_value": healthy(256, seed=i)[0].tolist()})
        for i in range(5)
    ]
    (tmp_path / "old.jsonl").write_text("\n".join(lines))
    path = write_plant(tmp_path, broker.port)
    with Agent(path) as agent:
        until(lambda: agent.daemon._transport.listening)
        for _ in range(2):
            replay(load(path), "a", tmp_path / "old.jsonl")
        _scored(agent, a=10)
    rows = agent.rows("SELECT start, score FROM scores ORDER BY id")
    assert len(rows) == 10
    assert rows[:5] == rows[5:]
    assert rows[0][0] == "2023-12-04T15:09:00.000Z"


def test_a_numbered_speed_keeps_time(tmp_path: Path, broker: Broker) -> None:
    """At speed 4 two seconds of signal take at least 0.4 s, agent or not."""
    np.save(tmp_path / "run.npy", np.zeros(2000, np.float32) + healthy(2000)[0])
    path = write_plant(tmp_path, broker.port, {"a": {"max_payload_bytes": 2048}})
    result = replay(load(path), "a", tmp_path / "run.npy", speed=4.0)
    assert result["paced"] == "speed"
    assert result["messages"] > 5
    assert result["seconds"] >= 0.4


def test_replay_says_what_does_not_fit(tmp_path: Path, broker: Broker) -> None:
    """Wrong channels and an absent broker are errors that name the place and the mend."""
    np.save(tmp_path / "two.npy", healthy(1000, 2).T)
    config = load(write_plant(tmp_path, broker.port))
    with pytest.raises(RecordingError, match="choose one with --channel N"):
        replay(config, "a", tmp_path / "two.npy")
    with pytest.raises(RecordingError, match="expected 0 to 1"):
        replay(config, "a", tmp_path / "two.npy", channel=2)
    assert replay(config, "a", tmp_path / "two.npy", channel=1, speed=100.0)["samples"] == 1000
    broker.stop()
    from dataclasses import replace

    from conftest import mqtt_config

    absent = replace(config, mqtt=mqtt_config(free_port()))
    with pytest.raises(TransportError, match="nothing listens there"):
        remote.command(absent, "ack", "a", None, None, None, timeout_s=2.0)


def test_a_capture_replays_to_the_same_scores(tmp_path: Path, broker: Broker, listen: Listen) -> None:
    """What `capture` writes, `replay` sends: the same windows get the same scores."""
    path = write_plant(tmp_path, broker.port)
    config = load(path)
    ear = listen("edge/#")
    caught: list[int] = []
    with Agent(path) as agent:
        ear.wait("edge/t/status")
        taker = threading.Thread(target=lambda: caught.append(capture(config, "a", tmp_path / "a.capture", 2.0)))
        taker.start()
        until(lambda: (tmp_path / "a.capture").exists())
        time.sleep(0.3)
        for seq in range(6):
            ear.publish("plant/a", message(seq))
        taker.join()
        ear.wait("edge/t/s/a/score", 6)
        replay(config, "a", tmp_path / "a.capture")
        ear.wait("edge/t/s/a/score", 12)
    assert caught == [6]
    scores = [score for (score,) in agent.rows("SELECT score FROM scores ORDER BY id")]
    assert scores[:6] == scores[6:]
    with pytest.raises(RecordingError, match=r"ends in \.capture"):
        capture(config, "a", tmp_path / "a.txt", 1.0)


def test_commands_from_the_command_line(tmp_path: Path, broker: Broker, listen: Listen) -> None:
    """`remote.command` gives the agent's answer, and says so when nobody answers."""
    path = write_plant(tmp_path, broker.port)
    config = load(path)
    ear = listen("edge/#")
    ok, words = remote.command(config, "ack", "a", "anna", None, None, timeout_s=0.5)
    assert (ok, "is the agent 't' running" in words) == (False, True)
    with Agent(path):
        ear.wait("edge/t/status")
        assert remote.command(config, "shelve", "a", "anna", "repair", 60.0) == (True, "a: SHLVD")
        assert remote.command(config, "unshelve", "a", "anna", None, None) == (True, "a: NORM")
        ok, words = remote.command(config, "reset", "a", "anna", None, None)
    assert not ok
    assert "reset refused" in words
