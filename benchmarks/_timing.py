"""Timing on a machine that others use too: ours and the rival in turn, and the quietest of many medians."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

#: A call, and how many pieces of work it does.
Timed = tuple[Callable[[], Any], int]


def quietest_ms(calls: Sequence[Timed], *, rounds: int = 12, round_s: float = 0.5, at_least: int = 3) -> list[float]:
    """Milliseconds a piece of work of each call: the smallest of `rounds` medians.

    In every round each call has its turn for `round_s` / len(calls) seconds and at least `at_least` times, one
    call after the other, so that a disturbance meets all of them; a median within a round ignores single
    interruptions, the smallest of the medians ignores rounds in which somebody else had the core.
    """
    for call, _ in calls:
        call()
    medians: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for (call, n), mine in zip(calls, medians, strict=True):
            times: list[float] = []
            end = time.perf_counter() + round_s / len(calls)
            while len(times) < at_least or time.perf_counter() < end:
                start = time.perf_counter()
                call()
                times.append((time.perf_counter() - start) / n)
            mine.append(statistics.median(times))
    return [1e3 * min(mine) for mine in medians]


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
