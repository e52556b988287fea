"""The device's clock starts in 1970, is set ahead and back: no window, delay, shelving or retention jumps."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from agents import FS_HZ, Agent, N, message, write_plant
from conftest import Broker, Listener, until

from edge_agent import host, windowing
from edge_agent.payloads import PayloadLayout
from edge_agent.signals import Chunk, parse_time
from edge_agent.windowing import WindowerState, WindowSpec

Listen = Callable[..., Listener]
DECADES = 1.79e9
SPEC = WindowSpec(fs_hz=100.0, n_samples=100, hop_samples=100, n_channels=1, silent_after_s=10.0)


def feed(state: WindowerState, *received: float) -> tuple[WindowerState, list[float]]:
    """Push one second without any time at each receipt; the starts of the windows, gaps as NaN before them."""
    starts: list[float] = []
    for t in received:
        pushed = windowing.push(state, SPEC, Chunk(np.zeros((1, 100), np.float32)), t)
        state = pushed.state
        starts += [float("nan")] * (pushed.gap_s is not None) + [window.start for window in pushed.windows]
    return state, starts


@pytest.mark.parametrize("by", [DECADES, 3600.0, 30.0, -30.0, -3600.0])
def test_a_stream_without_times_runs_on_over_a_clock_that_is_set(by: float) -> None:
    """Windows before and after follow each other by a second, without a gap; told nothing, the same step would be a silence."""
    t = 2e9
    state, before = feed(WindowerState(), t, t + 1)
    state, after = feed(windowing.clock_set(state, by), t + by + 2, t + by + 3)
    assert before + after == [t - 1, t, t + 1, t + 2]
    # A second setting adds up.
    state, more = feed(windowing.clock_set(state, -2 * by), t - by + 4)
    assert more == [t + 3]


def test_a_silence_after_it_takes_the_new_clock() -> None:
    """Silent for longer than silent_after_s, the stream breaks and goes on in the time that the clock has now."""
    state, _ = feed(WindowerState(), 100.0, 101.0)
    state, after = feed(windowing.clock_set(state, DECADES), DECADES + 112.5, DECADES + 113.5)
    assert np.isnan(after[0])
    assert after[1:] == [DECADES + 111.5, DECADES + 112.5]
    assert state.stepped == 0.0


def test_a_clock_set_back_hides_no_silence() -> None:
    """Set back by an hour and then silent, the stream breaks too; its time never runs backwards."""
    state, _ = feed(WindowerState(), 2e9, 2e9 + 1)
    state, after = feed(windowing.clock_set(state, -3600.0), 2e9 - 3600 + 20)
    assert np.isnan(after[0])
    assert after[1:] == [2e9 + 1]


class Clock:
    """A device's clock that can be set."""

    def __init__(self, t: float) -> None:
        self.ahead = t - time.monotonic()

    def __call__(self) -> float:
        return time.monotonic() + self.ahead


@pytest.mark.parametrize(("begin", "by"), [(60.0, DECADES), (1.8e9, 7200.0), (1.8e9, -7200.0)])
def test_an_agent_whose_clock_is_set_goes_on(
    tmp_path: Path, broker: Broker, listen: Listen, caplog: pytest.LogCaptureFixture, begin: float, by: float
) -> None:
    """Sensors with and without times lose no window, a shelving lasts as long as asked for, and the log says it once."""
    plain = PayloadLayout("f32le", 1)
    path = write_plant(tmp_path, broker.port, {"a": {}, "b": {"payload": {"format": "f32le"}}})
    ear, clock = listen("edge/#"), Clock(begin)
    with Agent(path, clock=clock) as agent:
        until(lambda: agent.daemon._transport.listening)

        def send(seqs: range) -> None:
            for seq in seqs:
                ear.publish("plant/a", message(seq, t0=1.79e9))
                ear.publish("plant/b", message(seq, layout=plain))
            ear.wait("edge/t/s/a/score", seqs.stop)
            ear.wait("edge/t/s/b/score", seqs.stop)

        send(range(6))
        ear.publish("edge/t/cmd/shelve", {"request_id": 1, "sensor": "b", "for_s": 3600})
        ear.wait("edge/t/cmd/shelve/result")
        clock.ahead += by
        until(lambda: "the clock was set by" in caplog.text, what="the line in the log")
        send(range(6, 12))
        time.sleep(0.6)  # two looks at what has expired
        alarm = agent.daemon.worker.sensors["b"].state.alarm
        assert alarm.state == "SHLVD"
        assert alarm.shelved_until == pytest.approx(clock() + 3600, abs=60)
        assert not agent.daemon.worker.sensors["a"].gaps
    for sensor in "ab":
        found = agent.rows("SELECT ts, start FROM scores WHERE sensor = ? ORDER BY id", sensor)
        starts = np.array([parse_time(start) for _, start in found])
        assert len(starts) == 12
        np.testing.assert_allclose(np.diff(starts), N / FS_HZ, atol=0.0011)
    assert [ts for (ts,) in agent.rows("SELECT ts FROM events WHERE sensor = 'b' AND type = 'end'")] == []
    assert caplog.text.count("the clock was set by") == 1


def test_a_message_that_waited_while_the_clock_was_set_counts_by_the_new_one(tmp_path: Path, broker: Broker) -> None:
    """Received a second before the step and worked off after it, a message is a second old, not decades."""
    clock = Clock(60.0)
    with Agent(write_plant(tmp_path, broker.port), clock=clock) as agent:
        worker = agent.daemon.worker
        received = clock() - 1.0
        clock.ahead += DECADES
        until(lambda: worker._set_by, what="the step")
        assert worker._by_this_clock(received) == pytest.approx(received + DECADES)
        assert worker._by_this_clock(clock()) == pytest.approx(clock(), abs=1.0)


@pytest.mark.parametrize(("verdict", "status", "synced"), [(0, 0, True), (0, 0x40, False), (5, 0, False), (-1, 0, None)])
def test_clock_synced_is_what_the_kernel_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verdict: int, status: int, synced: bool | None
) -> None:
    """Synchronised unless adjtimex says error or STA_UNSYNC; unknown where it fails; timesyncd's file is a yes."""

    class Libc:
        @staticmethod
        def adjtimex(timex: object) -> int:
            timex._obj.status = status  # type: ignore[attr-defined]
            return verdict

    monkeypatch.setattr(ctypes, "CDLL", lambda *_a, **_k: Libc)
    monkeypatch.setattr(host, "_TIMESYNC", tmp_path / "synchronized")
    assert host.clock_synced() is synced
    (tmp_path / "synchronized").touch()
    assert host.clock_synced() is True

