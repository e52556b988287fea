"""Timing on a machine that others use too: ours and the rival in turn, and of each what was not interrupted."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

#: A call, and how many pieces of work it does.
Timed = tuple[Callable[[], Any], int]


def quiet_ms(
    calls: Sequence[Timed],
    *,
    rounds: int = 12,
    repeats: int = 10,
    clock: Callable[[], float] = time.perf_counter,
) -> list[float]:
    """Milliseconds a piece of work of each call: the fastest of `rounds` times `repeats`.

    In every round each call has its turn, as often as every other, so that all see the same times of rest.
    Medians would flatter the shorter call on a busy machine: a piece of 0.3 ms is seldom interrupted, one of
    30 ms nearly always; and a neighbour on the core's other thread slows either by half for seconds. Where one of
    the calls takes 100 ms, no repeat is left alone: `time.process_time` as the clock then counts what each
    worked, not what it waited.
    """
    for call, _ in calls:
        call()
    fastest = [float("inf")] * len(calls)
    for _ in range(rounds):
        for i, (call, n) in enumerate(calls):
            for _ in range(repeats):
                start = clock()
                call()
                fastest[i] = min(fastest[i], (clock() - start) / n)
    return [1e3 * seconds for seconds in fastest]


def core_ghz(cpuinfo: str | None = None) -> float | None:
    """The clock that the system states for its fastest core, GHz; None where it states none (most ARM boards)."""
    if cpuinfo is None:
        path = Path("/proc/cpuinfo")
        cpuinfo = path.read_text() if path.is_file() else ""
    stated = [float(mhz) for mhz in re.findall(r"^cpu MHz\s*:\s*([\d.]+)", cpuinfo, re.MULTILINE)]
    return max(stated) / 1000.0 if stated else None


def on_core(ms: float, ghz: float | None, wanted_ghz: float) -> float:
    """What `ms` at `ghz` would be at `wanted_ghz`, by cycles; `ms` itself where the clock is unknown."""
    return ms if ghz is None else ms * ghz / wanted_ghz


def row(
    kind: str, work: str, ms: float, rival: str, rival_ms: float, agree: float, judged: bool = True
) -> dict[str, Any]:
    """A line of `make bench`: ours, the rival's, and how far their answers differ."""
    return {
        "kind": kind,
        "judged": judged,
        "work": work,
        "ms": round(ms, 4),
        "rival": rival,
        "rival_ms": round(rival_ms, 3),
        "ratio": round(rival_ms / ms, 1),
        "agree": float(f"{abs(agree):.2g}"),
    }
