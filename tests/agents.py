"""A whole agent for tests: bundle, configuration and daemon, in this process or in one of its own."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from bundles import golden_noise, healthy, make_indicator_bundle
from conftest import until

from edge_agent import bundle as bundles
from edge_agent import payloads
from edge_agent.assemble import assemble
from edge_agent.config import Config, load
from edge_agent.daemon import Daemon
from edge_agent.payloads import PayloadLayout
from edge_agent.pipeline import Pipeline
from edge_agent.replay import replay
from edge_agent.signals import Chunk

#: A message of one window: 256 samples at 1 kHz, RMS about 1 when healthy, alarm at three times that.
FS_HZ, N = 1000.0, 256
LAYOUT = PayloadLayout("f32le", 1, "ts_seq")
T0 = 1_790_000_000.0  # 2026-09-21, in the past of every test run's clock or at most a year ahead


def message(seq: int, level: float = 1.0, *, t0: float = T0, n: int = N, layout: PayloadLayout = LAYOUT) -> bytes:
    """Window number `seq` of a stream that began at t0."""
    samples = healthy(n, layout.n_channels, seed=seq, level=level)
    return payloads.encode(Chunk(samples, t=t0 + seq * n / FS_HZ, fs_hz=FS_HZ, seq=seq), layout)


def write_plant(folder: Path, port: int, sensors: dict[str, dict[str, Any]] | None = None, **top: Any) -> Path:
    """Bundle and configuration of an agent `t` with these sensors (id -> keys that differ); its path."""
    if not (folder / "rms").exists():
        make_indicator_bundle(folder / "rms", fs_hz=FS_HZ, n_samples=N)
    plain = {
        "payload": {"format": "f32le", "header": "ts_seq"},
        "channels": [0],
        "fs_hz": FS_HZ,
        "model": "rms",
    }
    listed = {name: {"topic": f"plant/{name}", **plain, **keys} for name, keys in (sensors or {"a": {}}).items()}
    mqtt = {"host": "127.0.0.1", "port": port, **top.pop("mqtt", {})}
    content = {
        "agent": {"id": "t"},
        "mqtt": mqtt,
        "database": "agent.db",
        "health_every_s": 1,
        "sensors": listed,
        **top,
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


class Agent:
    """A daemon in this process, with a thread in place of the main one."""

    def __init__(self, config_path: Path, **options: Any) -> None:
        def read() -> tuple[Config, dict[str, Pipeline]]:
            config = load(config_path)
            return config, assemble(config)

        config, pipelines = read()
        change = options.pop("change", None)
        if change is not None:
            pipelines = change(pipelines)
        self.config = config
        self.daemon = Daemon(config, pipelines, reloader=read, **options)
        self._end = threading.Event()
        self._ticker = threading.Thread(target=self._tick, daemon=True)

    def _tick(self) -> None:
        while not self._end.wait(0.05) and self.daemon.tick():
            pass

    def __enter__(self) -> Agent:
        self.daemon.start()
        self._ticker.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._ticker.join(15)
        self.daemon.stop()

    def rows(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """From the agent's database."""
        return rows(self.config.database, sql, *values)


class Process:
    """A daemon in a process of its own, for signals and kills."""

    def __init__(self, config_path: Path, env: dict[str, str] | None = None) -> None:
        self.log = config_path.with_suffix(".log")
        code = "import sys; from pathlib import Path; from edge_agent.daemon import run; sys.exit(run(Path(sys.argv[1])))"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", code, str(config_path)],
                stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
            )

    def send(self, number: signal.Signals) -> None:
        """Send one."""
        self.process.send_signal(number)

    def end(self, number: signal.Signals = signal.SIGTERM, timeout_s: float = 20.0) -> int:
        """Send a signal and wait; the exit code."""
        self.process.send_signal(number)
        return self.process.wait(timeout_s)

    def said(self) -> str:
        """All it has logged."""
        return self.log.read_text()


def rows(database: Path, sql: str, *values: Any) -> list[tuple[Any, ...]]:
    """Read from a database that an agent may be writing."""
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=10) as db:
        return db.execute(sql, values).fetchall()


def offline(path: Path, bundle: Path) -> list[float | None]:
    """What `edge-agent score` prints of a recording, one score a window."""
    out = subprocess.run(
        [sys.executable, "-m", "edge_agent", "score", str(path), "--bundle", str(bundle), "--json"],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    return [json.loads(line)["score"] for line in out.splitlines()]


def loud(levels: dict[int, float]) -> Callable[[int], float]:
    """Level by window number: the last entry at or before it, 1 before all."""
    return lambda seq: levels[max((k for k in levels if k <= seq), default=0)] if levels else 1.0


def now_aligned() -> float:
    """A start time a little in the past."""
    return float(np.floor(time.time()) - 1000.0)


def scores_as_offline(path: Path, folder: Path, port: int, scored: int = 3) -> None:
    """Assert that an agent with this bundle scores noise sent through the broker: one row a window sent, none of them lost,
    `scored` with a score, each equal to that of `edge-agent score` to the last bit."""
    bundle = bundles.load(path)
    spec = bundle.manifest.features
    waiting = spec.context.width - 1 if spec.context.over == "windows" else 0
    n_windows = waiting + scored
    np.savez(folder / "run.npz", x=golden_noise(path, n_windows), fs=np.float64(spec.fs_hz))
    packed = {"format": "f32le", "header": "ts_seq", "n_channels": spec.n_channels}
    sensor = {
        "model": str(path), "fs_hz": spec.fs_hz, "payload": packed, "channels": list(range(spec.n_channels)),
    }  # fmt: skip
    config = write_plant(folder, port, {"s": sensor})
    with Agent(config) as agent:
        until(lambda: agent.daemon._transport.listening)
        replay(load(config), "s", folder / "run.npz")
        until(lambda: agent.daemon.worker.sensors["s"].windows >= n_windows, 60.0, f"{n_windows} windows")
    got = agent.rows("SELECT seq, score FROM scores ORDER BY id")
    assert [seq for seq, _ in got] == list(range(n_windows))
    scores = [score for _, score in got]
    assert scores == offline(folder / "run.npz", path)
    assert scores[:waiting] == [None] * waiting
    assert np.isfinite(np.array(scores[waiting:], float)).all()
