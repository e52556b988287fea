"""`make bytes`: what the agent writes to its disk for a window, counted at the system calls.

    20 windows a second ─► mosquitto ─► strace -f edge-agent run ─► every write to a file, by file

Journal, checkpoints, states and the final close are in it. The journal's index (`-shm`) is written through memory, which no
system call tells; the kernel's own count (`write_bytes` of /proc, whole pages) is printed beside and has it.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import _agent, _data
from benchmarks._faulty import Client
from benchmarks._report import say, write_section
from benchmarks.bounds import BYTES
from benchmarks.chaos import FS_HZ, LAYOUT, PAGE, N, bundle
from edge_agent import payloads
from edge_agent.signals import Chunk

NAME = "bytes"
#: Sensors that share the 20 windows a second.
SENSORS = 4
T0 = 1_790_000_000.0
_CALL = re.compile(r"(?:write|pwrite64|writev|pwritev2?)\(\d+<(?P<path>[^>]*)>.*= (?P<n>\d+)$")
_RESUMED = re.compile(r"^(?P<pid>\d+) .*<\.\.\. (?:write|pwrite64|writev|pwritev2?) resumed>.*= (?P<n>\d+)$")
_BEGUN = re.compile(r"^(?P<pid>\d+) .*(?:write|pwrite64|writev|pwritev2?)\(\d+<(?P<path>[^>]*)>.*<unfinished \.\.\.>$")
#: Every call that writes to a file.
TRACED = "write,pwrite64,writev,pwritev,pwritev2"


def counted(lines: Iterable[str]) -> Counter[str]:
    """Bytes by path of what `strace -f -y` has written down; calls that another thread interrupts are put together."""
    total: Counter[str] = Counter()
    open_calls: dict[str, str] = {}
    for line in lines:
        line = line.rstrip()
        if begun := _BEGUN.match(line):
            open_calls[begun["pid"]] = begun["path"]
        elif resumed := _RESUMED.match(line):
            total[open_calls.pop(resumed["pid"])] += int(resumed["n"])
        elif whole := _CALL.search(line):
            total[whole["path"]] += int(whole["n"])
    return total


def on_disk(path: Path) -> str | None:
    """The type of the file system of a path; None where it lies in memory."""
    kind = subprocess.run(["stat", "-f", "-c", "%T", str(path)], check=True, capture_output=True, text=True).stdout.strip()
    return None if kind in ("tmpfs", "ramfs") else kind


def run(folder: Path, windows: int, sensors: int) -> dict[str, Any]:
    """One run; its figures."""
    model = bundle(folder)
    names = [f"m{i}" for i in range(sensors)]
    sensor = {"payload": {"format": "f32le", "header": "ts_seq"}, "fs_hz": FS_HZ, "model": str(model)}
    place = folder / "agent"
    place.mkdir()
    trace = folder / "trace"
    with _agent.broker(folder) as port:
        config = _agent.configuration(place, port, {name: {"topic": f"plant/{name}", **sensor} for name in names})
        heard = threading.Semaphore(0)
        client = Client(port, "bytes", ("edge/bench/s/+/score", "edge/bench/info"), lambda _t, _p: heard.release())
        client.connected.wait(30)
        strace = ["strace", "-f", "-y", "-qq", "--seccomp-bpf", "-s", "0", "-e", f"trace={TRACED}", "-e", "signal=none", "-o", str(trace)]
        log = (folder / "agent.log").open("wb")
        process = subprocess.Popen(
            [*strace, sys.executable, "-m", "edge_agent", "run", "-c", str(config)], stdout=log, stderr=subprocess.STDOUT
        )
        if not heard.acquire(timeout=120):
            raise RuntimeError(f"the agent did not connect within 120 s: {(folder / 'agent.log').read_text()[-2000:]}")
        time.sleep(2.0)  # its subscriptions
        traced = agent_pid(process.pid)
        rng = np.random.default_rng(2)
        waves = [rng.standard_normal((1, N)).astype(np.float32) for _ in range(16)]
        began = time.monotonic()
        for i in range(windows):
            time.sleep(max(0.0, began + i / BYTES["per_s"] - time.monotonic()))
            seq, name = i // sensors, names[i % sensors]
            chunk = Chunk(waves[i % len(waves)], t=T0 + seq * N / FS_HZ, fs_hz=FS_HZ, seq=seq)
            client.publish(f"plant/{name}", payloads.encode(chunk, LAYOUT))
        took = time.monotonic() - began
        for _ in range(windows):
            if not heard.acquire(timeout=60):
                raise RuntimeError(f"not every window was scored: {(folder / 'agent.log').read_text()[-2000:]}")
        time.sleep(6.0)  # the last commit
        pages = block_bytes(traced)
        os.kill(traced, 15)
        code = process.wait(120)
        log.close()
        client.close()
    if code:
        raise RuntimeError(f"the agent ended with {code}: {(folder / 'agent.log').read_text()[-2000:]}")
    with trace.open(encoding="utf-8", errors="replace") as lines:
        by_path = counted(lines)
    files = {Path(path).name: n for path, n in by_path.items() if path.startswith(f"{place}/")}
    rows = sum(_agent.rows(config).values())
    total = sum(files.values())
    return {
        "windows": rows, "per_s": round(windows / took, 2), "sensors": sensors, "file_system": on_disk(place),
        "bytes": total, "bytes_per_window": round(total / rows, 1), "files": files,
        "kernel_bytes_per_window": round(pages / rows, 1),
    }  # fmt: skip


def agent_pid(strace: int) -> int:
    """The process that strace started."""
    children = Path(f"/proc/{strace}/task/{strace}/children").read_text().split()
    return int(children[0])


def block_bytes(pid: int) -> int:
    """What the kernel says that a process had written to block devices."""
    lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["write_bytes"])


def main(argv: Sequence[str] | None = None) -> int:
    """Run, count, judge."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bytes_written", description=__doc__)
    parser.add_argument("--windows", type=int, default=BYTES["windows"])
    parser.add_argument("--sensors", type=int, default=SENSORS)
    parser.add_argument("--write", action="store_true", help=f"put the figures of a full run into {PAGE.name}")
    args = parser.parse_args(argv)
    if shutil.which("strace") is None:
        return _data.skip(NAME, "strace is not installed: apt install strace")
    folder = Path(tempfile.mkdtemp(prefix="bytes-"))
    try:
        if on_disk(folder) is None:
            return _data.skip(NAME, f"{folder} lies in memory: TMPDIR must name a folder on a disk")
        figures = run(folder, args.windows, args.sensors)
    except RuntimeError as error:
        return _data.finish(NAME, False, reason=str(error)[:500])
    finally:
        shutil.rmtree(folder)
    limit = BYTES["per_window"]
    ok = figures["bytes_per_window"] <= limit and figures["windows"] >= args.windows
    say(f"{figures['bytes_per_window']} bytes a window, at most {limit:g}")
    if args.write and ok and args.windows >= BYTES["windows"]:
        table = ["| figure | value |", "|---|---|", *(f"| `{key}` | {value} |" for key, value in figures.items())]
        write_section(NAME, "\n".join(table), PAGE)
    return _data.finish(NAME, ok, at_most=limit, **figures)


if __name__ == "__main__":
    sys.exit(main())
