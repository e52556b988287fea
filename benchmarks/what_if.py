"""`make what-if`: 30 days of windows every 10 s replayed under other settings, from the command line, against the slow engine.

    259 200 rows in SQLite ─► edge-agent what-if ─► seconds, with the start of Python and the bundle
                           └► alarms.step, row by row ─► must be the same events
"""

from __future__ import annotations

import argparse
import json
import resource
import secrets
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks import _data
from benchmarks._report import say
from benchmarks.bounds import WHAT_IF
from edge_agent import alarms, pipeline, queries, what_if
from edge_agent.alarms import Alarm, Transition
from edge_agent.assemble import assemble
from edge_agent.config import load
from edge_agent.pipeline import Measured, Pipeline
from edge_agent.store import EventRow, Record, Store

NAME = "what-if"
HOP_S, DAYS = 10.0, 30
BUNDLE = _data.ROOT / "models" / "generic-vibration"


def configuration(path: Path, alarm: dict[str, Any]) -> Path:
    """One sensor with the shipped bundle and these settings."""
    fs_hz = json.loads((BUNDLE / "bundle.json").read_text())["features"]["fs_hz"]
    sensor = {"topic": "plant/s", "payload": "f32le", "fs_hz": fs_hz, "model": str(BUNDLE), "alarm": alarm}
    top = {"agent": {"id": "bench"}, "mqtt": {"host": "localhost"}, "database": "agent.db", "sensors": {"s": sensor}}
    path.write_text(yaml.safe_dump(top))
    return path


def month(ready: Pipeline, rng: np.random.Generator) -> list[Measured]:
    """Healthy gamma scores with bursts, faults of hours, gaps, windows that do not vote and windows without a score."""
    n = int(DAYS * 86400 / HOP_S)
    ratio = rng.gamma(8.0, 1.0 / 16.0, n)
    for begin in rng.integers(0, n, 120):
        ratio[begin : begin + rng.integers(1, 30)] *= rng.uniform(1.5, 3.0)
    for begin in rng.integers(0, n, 6):
        ratio[begin : begin + rng.integers(300, 3000)] += rng.uniform(0.6, 1.5)
    end = time.time() - DAYS * 86400 + HOP_S * np.arange(1, n + 1) + np.cumsum(rng.random(n) < 1e-4) * 3.3
    end -= end[-1] - time.time()
    unknown, bad = rng.random(n) < 0.02, rng.random(n) < 0.01
    limit = ready.threshold.value
    rows = []
    for i, (r, t) in enumerate(zip((ratio * limit).tolist(), end.tolist(), strict=True)):
        if bad[i]:
            rows.append(Measured(i, t - HOP_S, t, None, None, None, "bad", reasons=("stuck",)))
        else:
            rows.append(Measured(i, t - HOP_S, t, r, limit, r / limit, regime="unknown" if unknown[i] else None))
    return rows


def folded(ready: Pipeline, rows: list[Measured]) -> list[Transition]:
    """The slow twin: what the agent's own step tells over these windows."""
    alarm, out = Alarm(), []
    for m in rows:
        if m.score is not None and pipeline.votes(m):
            ratio = m.score / ready.threshold.value
            alarm, tr = alarms.step(alarm, ready.policy, ratio, m.end, ready.identity.key)
            if tr is not None:
                out.append(tr)
    return out


def identities(found: list[Transition]) -> list[tuple[str, str, str, str, str | None]]:
    """What a row of `events` keeps."""
    return [(tr.event_id, tr.alarm_id, tr.type, tr.state, tr.severity) for tr in found]


def _cpu_s() -> float:
    """Processor time of the commands that have ended, s."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> int:
    """Run, print, judge."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.what_if", description=__doc__)
    parser.add_argument("--seed", type=int, help="draw the month from this (else from the system)")
    args = parser.parse_args()
    seed = secrets.randbelow(10**6) if args.seed is None else args.seed
    say(f"seed {seed}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        old = configuration(folder / "old.yaml", {})
        new = configuration(folder / "new.yaml", {"vote": [2, 6], "on_delay_s": 30, "off_delay_s": 300, "deadband": 0.2})
        before, after = (assemble(load(path))["s"] for path in (old, new))
        rows = month(before, np.random.default_rng(seed))
        store = Store.open(folder / "agent.db")
        events = tuple(EventRow(tr, "t", "{}") for tr in folded(before, rows))
        store.write([Record("s", tuple(rows), events, Alarm(), pipeline.dump(pipeline.initial(before)), time.time())])
        store.close()
        command = [sys.executable, "-m", "edge_agent", "what-if", "--since", "31d", "--json", "-c"]
        times, cpu = [], []
        for _ in range(5):
            began, used = time.monotonic(), _cpu_s()
            done = subprocess.run([*command, str(new)], check=True, capture_output=True, text=True)
            times.append(time.monotonic() - began)
            cpu.append(_cpu_s() - used)
        answer = json.loads(done.stdout)
        began = time.monotonic()
        with queries.reading(folder / "agent.db") as db:
            scores = what_if.read(db, "s", "")
            told = [tr for _, tr in what_if.replay(scores, after)]
        alone = time.monotonic() - began
        began = time.monotonic()
        slow = folded(after, rows)
        slow_s = time.monotonic() - began
    equal = identities(told) == identities(slow)
    counts = {key: len(answer[key]) for key in ("gained", "lost", "moved", "chattering")}
    ok = (
        min(cpu) <= WHAT_IF["seconds"]
        and equal
        and len(told) >= WHAT_IF["events"]
        and answer["windows"] == scores.t.size
        and scores.windows == len(rows) == WHAT_IF["windows"]
    )
    return _data.finish(
        NAME, ok, seed=seed, windows=scores.windows, voting=int(scores.t.size), seconds=round(min(times), 3), cpu_s=round(min(cpu), 3),
        read_and_replay_s=round(alone, 3), step_by_step_s=round(slow_s, 3), events=len(told), equal=equal, **counts,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
