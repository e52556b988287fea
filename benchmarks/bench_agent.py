"""The real agent as a process, one vibration and one sound sensor: time to its first score, memory after 1000.

    this process ── f32le 8192 a message ──► mosquitto ──► edge-agent run ──► scores ──► this process
                 └─ i16le 1 s a message ───►
"""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import paho.mqtt.client as mqtt

from benchmarks import _agent
from benchmarks.bench_features import FS, SOUND_FS, N, sound, vibration
from benchmarks.bench_windows import CLIP, VIBRATION
from edge_agent import payloads
from edge_agent.payloads import PayloadLayout
from edge_agent.signals import Chunk

T0 = 1_790_000_000.0
_STARTS, _WINDOWS = 5, 1000
#: Windows of a sensor on their way at a time: the agent's queue never overflows.
_AHEAD = 3
_PATIENCE_S = 60.0
_SECONDS = 10
_LAYOUTS = {VIBRATION: PayloadLayout("f32le", 1, "ts_seq"), CLIP: PayloadLayout("i16le", 1, "ts_seq", 1 / 32768)}


class Plant:
    """Two sensors that publish as fast as they are asked to, and an ear for the scores."""

    def __init__(self, port: int) -> None:
        self._heard = {VIBRATION: 0, CLIP: 0}
        self._changed = threading.Condition()
        self._client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
        self._client.max_queued_messages_set(0)
        self._client.on_message = self._on_message
        self._client.connect("127.0.0.1", port)
        self._client.subscribe("edge/bench/s/+/score")
        self._client.loop_start()
        self._seq = {VIBRATION: count(), CLIP: count()}
        self._windows = [vibration(20_000 + i)[np.newaxis] for i in range(8)]
        self._clips = [np.clip(sound(20_000 + i), -1.0, 1.0)[np.newaxis] for i in range(3)]

    def close(self) -> None:
        """Disconnect."""
        self._client.disconnect()
        self._client.loop_stop()

    def window(self) -> None:
        """Publish one window of vibration."""
        seq = next(self._seq[VIBRATION])
        self._publish(VIBRATION, self._windows[seq % len(self._windows)], seq, seq * N / FS, FS)

    def clip(self) -> None:
        """Publish ten seconds of sound, a second a message."""
        for _ in range(_SECONDS):
            seq = next(self._seq[CLIP])
            whole, second = divmod(seq, _SECONDS)
            step = int(SOUND_FS)
            part = self._clips[whole % len(self._clips)][:, second * step : (second + 1) * step]
            self._publish(CLIP, part, seq, float(seq), SOUND_FS)

    def heard(self, sensor: str) -> int:
        """Scores of this sensor that have been published so far."""
        with self._changed:
            return self._heard[sensor]

    def wait(self, wanted: Mapping[str, int]) -> None:
        """Until each sensor has had as many scores."""
        with self._changed:
            if not self._changed.wait_for(
                lambda: all(self._heard[name] >= n for name, n in wanted.items()), _PATIENCE_S
            ):
                raise RuntimeError(f"the agent scored {self._heard} within {_PATIENCE_S:g} s; expected {dict(wanted)}")

    def _publish(self, sensor: str, samples: Any, seq: int, t: float, fs_hz: float) -> None:
        chunk = Chunk(np.ascontiguousarray(samples), t=T0 + t, fs_hz=fs_hz, seq=seq)
        self._client.publish(f"bench/{sensor}", payloads.encode(chunk, _LAYOUTS[sensor]))

    def _on_message(self, _client: Any, _data: Any, message: Any) -> None:
        sensor = message.topic.split("/")[3]
        with self._changed:
            self._heard[sensor] += 1
            self._changed.notify_all()


@contextmanager
def plant(folder: Path, bundles: Mapping[str, Path]) -> Iterator[tuple[Plant, Path]]:
    """A broker, a plant and a configuration in a fresh folder."""
    folder.mkdir()
    sensors = {
        VIBRATION: {"payload": {"format": "f32le", "header": "ts_seq"}, "fs_hz": FS},
        CLIP: {"payload": {"format": "i16le", "header": "ts_seq", "scale": 1 / 32768}, "fs_hz": SOUND_FS},
    }
    with _agent.broker(folder) as port:
        listed = {
            name: {"topic": f"bench/{name}", "model": str(bundles[name]), **keys} for name, keys in sensors.items()
        }
        config = _agent.configuration(folder, port, listed)
        source = Plant(port)
        try:
            yield source, config
        finally:
            source.close()


def start_s(folder: Path, bundles: Mapping[str, Path]) -> float:
    """Median of five starts: seconds from the process's creation to its first score message."""
    taken = []
    for i in range(_STARTS):
        with plant(folder / f"start{i}", bundles) as (source, config):
            began = time.monotonic()
            with _agent.agent(config):
                # The sensor speaks all the while; the first window after the subscription counts.
                while not source.heard(VIBRATION):
                    if time.monotonic() - began > _PATIENCE_S:
                        raise RuntimeError(f"no score within {_PATIENCE_S:g} s; see {config.with_suffix('.log')}")
                    source.window()
                    time.sleep(0.01)
                taken.append(time.monotonic() - began)
    return statistics.median(taken)


def rss_mib(folder: Path, bundles: Mapping[str, Path]) -> tuple[float, float]:
    """(resident memory, its peak) in MiB after 1000 windows of either sensor."""
    with plant(folder / "memory", bundles) as (source, config), _agent.agent(config) as process:
        while not source.heard(VIBRATION):
            source.window()
            time.sleep(0.05)
        time.sleep(0.5)  # what was published before the subscription is scored or lost by now
        lead = source.heard(VIBRATION)
        for k in range(1, _WINDOWS + 1):
            source.window()
            source.clip()
            source.wait({VIBRATION: lead + k - _AHEAD, CLIP: k - _AHEAD})
        source.wait({VIBRATION: lead + _WINDOWS, CLIP: _WINDOWS})
        status = (Path("/proc") / str(process.pid) / "status").read_text()
    kib = {line.split(":")[0]: line.split()[1] for line in status.splitlines() if line.startswith("Vm")}
    return int(kib["VmRSS"]) / 1024, int(kib["VmHWM"]) / 1024


def figures(folder: Path, bundles: Mapping[str, Path]) -> dict[str, float]:
    """{rss_mib, rss_peak_mib, start_s} of an agent in the environment of deploy/edge-agent.service."""
    assert os.environ.get("OMP_NUM_THREADS") == "1"  # the unit's, set by _one_thread
    started = start_s(folder, bundles)
    rss, peak = rss_mib(folder, bundles)
    return {"rss_mib": round(rss, 1), "rss_peak_mib": round(peak, 1), "start_s": round(started, 2)}
