"""`make soak`: a day of 50 sensors through a real broker, as fast as the agent goes; does anything of it grow?

    this process ── 8192 samples a message, times of a day ──► mosquitto ──► edge-agent run ──► SQLite
         ▲  at most AHEAD windows of a sensor on their way                        │
         └──────────── scores, events, health ◄────────────── mosquitto ◄────────┘
                                                     memory, descriptors, threads from /proc, every few seconds

Each sensor has a fault of some windows every few hours of event time, so alarms, the outbox and its answers are part of
the day. What grows is told by regression over the last three quarters of the windows.

    python -m benchmarks.soak [--hours N] [--sensors N] [--seed N]      (HOURS and SEED in the environment do the same)
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import sqlite3
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import paho.mqtt.client as mqtt

from benchmarks import _agent, _data
from benchmarks._report import say
from benchmarks.bounds import SOAK
from edge_agent.signals import F32

NAME = "soak"
PLOT = _data.ROOT / "build" / "soak.png"
FS, N = 1000.0, 8192
SENSORS, HOURS = 50, 24.0
#: Windows of one sensor on their way at a time; its queue in the agent holds 256.
AHEAD = 4
#: Windows between two faults of a sensor (about 3 h), and of a fault.
EVERY, FAULTY = 1320, 12
SCALE = 1e-3
SAMPLE_S, PATIENCE_S, SETTLE_S = 5.0, 120.0, 3.0
_HEADER = struct.Struct("<qI")


@dataclass(frozen=True)
class Sample:
    """The agent at one moment. rss, anonymous: MiB; queued: messages that wait in it; outbox: events not yet acknowledged."""

    t_s: float
    windows: int
    rss: float
    anonymous: float
    descriptors: int
    threads: int
    queued: int
    outbox: int


def signal(rng: np.random.Generator, level: float = 1.0) -> F32:
    """(N,) noise under a 25 Hz and a 120 Hz line; a fault is `level` above 1: more of it, and blows that ring at 300 Hz."""
    t = np.arange(N) / FS
    x = rng.standard_normal(N) + np.sin(2 * np.pi * (25.0 * t + rng.random())) + 0.5 * np.sin(2 * np.pi * (120.0 * t + rng.random()))
    if level > 1.0:
        ring = np.exp(-t[:200] * 60.0) * np.sin(2 * np.pi * 300.0 * t[:200])
        for at in range(int(rng.integers(0, 90)), N - 200, 90):
            x[at : at + 200] += 6.0 * ring
    return (level * x).astype(np.float32)


def make_bundle(folder: Path, seed: int) -> Path:
    """An int8 dense autoencoder of 8192-point windows at 1 kHz, trained on the spot as users train theirs."""
    from trainer import recipe, run

    rng = np.random.default_rng(seed)
    data = folder / "healthy.npz"
    np.savez(data, x=np.concatenate([signal(rng) for _ in range(400)]), fs=FS)
    plan = recipe.parse({
        "name": "soak", "model": "dense_ae", "data": {"path": str(data)}, "window": {"n_samples": N},
        "features": [{"kind": "time_domain"}, {"kind": "spectral", "mode": "psd", "n_bands": 64}],
        "train": {"epochs": 5, "patience": 0, "validation": 0},
    })  # fmt: skip
    run.run(plan, folder / "soak")
    return folder / "soak"


class Plant:
    """The sensors, and an ear for what the agent says."""

    def __init__(self, port: int, sensors: Sequence[str], seed: int, t0: float) -> None:
        rng = np.random.default_rng(seed + 1)
        self.sensors, self._t0 = sensors, t0
        self._healthy = [self._body(signal(rng)) for _ in range(64)]
        self._faulty = [self._body(signal(rng, 2.5)) for _ in range(8)]
        self._turn = rng.integers(0, N, 4096).tolist()
        self._phase = rng.integers(0, EVERY - FAULTY, len(sensors)).tolist()
        self.sent = [0] * len(sensors)
        self._heard = dict.fromkeys(sensors, 0)
        self._changed = threading.Condition()
        self.health: dict[str, Any] = {}
        self.event_ids: set[str] = set()
        self._client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, "soak-plant")
        self._client.max_queued_messages_set(0)
        self._client.on_message = self._on_message
        self._client.connect("127.0.0.1", port)
        self._client.subscribe([("edge/bench/s/+/score", 0), ("edge/bench/s/+/event", 1), ("edge/bench/health", 0)])
        self._client.loop_start()

    @staticmethod
    def _body(x: F32) -> bytes:
        return np.clip(np.rint(x / SCALE), -32768, 32767).astype("<i2").tobytes()

    def close(self) -> None:
        """Disconnect."""
        self._client.disconnect()
        self._client.loop_stop()

    def send(self, i: int) -> None:
        """The next window of a sensor. It is one of a pool, turned by a random number of samples: no two are alike."""
        k = self.sent[i]
        at = (k - self._phase[i]) % EVERY
        pool = self._faulty if k > 2 * FAULTY and at < FAULTY else self._healthy
        body = pool[(k * 31 + i * 7) % len(pool)]
        cut = 2 * self._turn[(k * len(self.sensors) + i) % len(self._turn)]
        ns = round((self._t0 + k * N / FS) * 1e9)
        self._client.publish(f"soak/{self.sensors[i]}", _HEADER.pack(ns, k) + body[cut:] + body[:cut])
        self.sent[i] = k + 1

    def scored(self) -> list[int]:
        """Windows of each sensor that the agent has told a score of."""
        with self._changed:
            return [self._heard[name] for name in self.sensors]

    def wait(self, since: int) -> bool:
        """Until more than `since` scores have been heard in all; False where none comes for two minutes."""
        with self._changed:
            return self._changed.wait_for(lambda: sum(self._heard.values()) > since, PATIENCE_S)

    def _on_message(self, _client: Any, _data: Any, message: Any) -> None:
        parts = message.topic.split("/")
        if parts[-1] == "score":
            with self._changed:
                self._heard[parts[3]] += 1
                self._changed.notify()
        elif parts[-1] == "event":
            self.event_ids.add(json.loads(message.payload)["event_id"])
        else:
            self.health = json.loads(message.payload)


def look(pid: int, plant: Plant, began: float) -> Sample:
    """One sample."""
    proc = Path("/proc") / str(pid)
    status = {line.split(":")[0]: line.split()[1] for line in (proc / "status").read_text().splitlines() if ":" in line and line.split()[1:]}
    health = plant.health
    return Sample(
        t_s=round(time.monotonic() - began, 1), windows=sum(plant.scored()),
        rss=int(status["VmRSS"]) / 1024, anonymous=int(status["RssAnon"]) / 1024,
        descriptors=sum(1 for _ in (proc / "fd").iterdir()), threads=int(status["Threads"]),
        queued=sum(health.get("queues", {}).values()), outbox=int(health.get("outbox_rows") or 0),
    )  # fmt: skip


def growth(samples: Sequence[Sample], what: str) -> float:
    """What rises over the last three quarters of the windows, by regression over windows; 0.0 of fewer than 8 samples."""
    last = max((s.windows for s in samples), default=0)
    late = [s for s in samples if s.windows >= last / 4]
    if len(late) < 8:
        return 0.0
    n = np.array([s.windows for s in late], np.float64)
    slope = float(np.polyfit(n - n.mean(), [getattr(s, what) for s in late], 1)[0])
    return slope * float(n[-1] - n[0])


def soak(folder: Path, hours: float, n_sensors: int, seed: int) -> tuple[list[Sample], dict[str, Any]]:
    """The day, and what was counted at its end."""
    model = make_bundle(folder, seed)
    names = [f"s{i:02d}" for i in range(n_sensors)]
    n_windows = round(hours * 3600.0 * FS / N)
    listed = {
        name: {
            "topic": f"soak/{name}", "model": str(model), "fs_hz": FS,
            "payload": {"format": "i16le", "header": "ts_seq", "scale": SCALE},
        }
        for name in names
    }  # fmt: skip
    samples: list[Sample] = []
    with _agent.broker(folder) as port:
        config = _agent.configuration(folder, port, listed)
        config.write_text(config.read_text() + "health_every_s: 1\n")
        t0 = float(int(time.time() - hours * 3600.0 - 60.0))
        plant = Plant(port, names, seed, t0)
        try:
            with _agent.agent(config) as process:
                deadline = time.monotonic() + PATIENCE_S
                while not plant.health:
                    if time.monotonic() > deadline:
                        raise RuntimeError(f"the agent does not start: {config.with_suffix('.log').read_text()[-2000:]}")
                    time.sleep(0.1)
                began = looked = told = time.monotonic()
                while True:
                    now = time.monotonic()
                    if now - looked >= SAMPLE_S:
                        looked = now
                        samples.append(look(process.pid, plant, began))
                    if now - told >= 60.0:
                        told = now
                        last = samples[-1]
                        say(f"{last.windows} of {n_windows * n_sensors} windows, {last.windows / last.t_s:.0f}/s, {last.rss:.1f} MiB, queued {last.queued}")
                    scored = plant.scored()
                    total = sum(scored)
                    if total >= n_windows * n_sensors:
                        break
                    sent_any = False
                    for i, done in enumerate(scored):
                        while plant.sent[i] < n_windows and plant.sent[i] - done < AHEAD:
                            plant.send(i)
                            sent_any = True
                    if not sent_any and not plant.wait(total):
                        say(f"no score for {PATIENCE_S:g} s after {total} windows")
                        break
                    if sent_any:
                        time.sleep(0.005)
                took = time.monotonic() - began
                time.sleep(SETTLE_S)
                samples.append(look(process.pid, plant, began))
                health = plant.health
        finally:
            plant.close()
        with sqlite3.connect(folder / "agent.db") as db:
            stored = db.execute("SELECT count(*) FROM scores").fetchone()[0]
            events = {row[0] for row in db.execute("SELECT event_id FROM events")}
            alarms = db.execute("SELECT count(*) FROM events WHERE type = 'new'").fetchone()[0]
        counted = {
            "windows": sum(plant.sent), "rows": stored, "events": len(events), "events_heard": len(plant.event_ids & events),
            "alarms": alarms, "drops": sum(n for reasons in health.get("drops", {}).values() for n in reasons.values()),
            "shed_scores": health.get("shed_scores", 0), "outbox_left": health.get("outbox_rows"),
            "database_mib": round((folder / "agent.db").stat().st_size / 2**20, 1),
            "seconds": round(took, 1), "windows_per_s": round(sum(plant.sent) / took, 1),
            "said": [line for line in config.with_suffix(".log").read_text().splitlines() if " ERROR " in line or "Traceback" in line][:5],
        }  # fmt: skip
    return samples, counted


def judged(samples: Sequence[Sample], counted: Mapping[str, Any]) -> dict[str, Any]:
    """The figures and whether they keep within `bounds.SOAK`."""
    figures = {
        "slope_mib": round(growth(samples, "rss"), 3), "slope_anonymous_mib": round(growth(samples, "anonymous"), 3),
        "queue_growth": round(growth(samples, "queued"), 2), "outbox_growth": round(growth(samples, "outbox"), 2),
        "descriptor_growth": round(growth(samples, "descriptors"), 2), "thread_growth": round(growth(samples, "threads"), 2),
        "rss_mib": round(samples[-1].rss, 1), "descriptors": samples[-1].descriptors,
    }  # fmt: skip
    missed = []
    if sum(s.windows >= counted["windows"] / 4 for s in samples) < 8:
        missed.append(f"{len(samples)} samples are too few to see growth: a longer run")
    for what, bound in SOAK.items():
        if figures[what] > bound:
            missed.append(f"{what} {figures[what]}, at most {bound}")
    if counted["rows"] != counted["windows"]:
        missed.append(f"{counted['windows']} windows sent, {counted['rows']} rows")
    if counted["events_heard"] != counted["events"]:
        missed.append(f"{counted['events']} events on record, {counted['events_heard']} heard")
    for what in ("drops", "shed_scores", "outbox_left"):
        if counted[what]:
            missed.append(f"{what} {counted[what]}, expected 0")
    if not counted["alarms"]:
        missed.append("not one alarm: the day did not exercise them")
    missed += counted["said"]
    return {"ok": not missed, **counted, **figures, "missed": missed}


def plot(samples: Sequence[Sample], figures: Mapping[str, Any], where: Path) -> None:
    """Memory, descriptors, queues and rate over the windows."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    where.parent.mkdir(exist_ok=True)
    figure, axes = plt.subplots(4, 1, figsize=(9, 10), sharex=True, layout="constrained")
    n = np.array([s.windows for s in samples]) / 1000.0
    axes[0].plot(n, [s.rss for s in samples], label="resident")
    axes[0].plot(n, [s.anonymous for s in samples], label="of it anonymous")
    axes[0].axvline(n[-1] / 4, color="grey", lw=0.8, ls=":")
    axes[0].set_ylabel("memory (MiB)")
    axes[0].legend(loc="center right")
    axes[0].set_title(f"{figures['windows']} windows: resident {figures['slope_mib']:+.2f} MiB over the last three quarters")
    axes[1].plot(n, [s.descriptors for s in samples], label="descriptors")
    axes[1].plot(n, [s.threads for s in samples], label="threads")
    axes[1].legend()
    axes[2].plot(n, [s.queued for s in samples], label="messages that wait", lw=0.8)
    axes[2].plot(n, [s.outbox for s in samples], label="events in the outbox", lw=0.8)
    axes[2].legend()
    rate = [(b.windows - a.windows) / max(b.t_s - a.t_s, 1e-9) for a, b in pairwise(samples)]
    axes[3].plot(n[1:], rate, lw=0.8)
    axes[3].set_ylabel("windows / s")
    axes[3].set_xlabel("thousand windows")
    figure.savefig(where, dpi=90)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the day, judge it, draw it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--hours", type=float, default=float(os.environ.get("HOURS") or HOURS))
    parser.add_argument("--sensors", type=int, default=SENSORS)
    parser.add_argument("--seed", type=int, default=int(os.environ.get("SEED") or secrets.randbits(31)))
    args = parser.parse_args(argv)
    os.environ["OMP_NUM_THREADS"] = "1"  # the unit's; the agent inherits it
    say(f"seed {args.seed}; {args.hours:g} h of {args.sensors} sensors")
    with tempfile.TemporaryDirectory() as folder:
        samples, counted = soak(Path(folder), args.hours, args.sensors, args.seed)
    figures = judged(samples, counted)
    PLOT.parent.mkdir(exist_ok=True)
    PLOT.with_suffix(".json").write_text(json.dumps([asdict(s) for s in samples]))
    plot(samples, figures, PLOT)
    say(f"plot: {PLOT}")
    for line in figures.pop("missed"):
        say(f"missed: {line}")
    return _data.finish(NAME, figures.pop("ok"), hours=args.hours, sensors=args.sensors, **figures, seed=args.seed)


if __name__ == "__main__":
    sys.exit(main())
