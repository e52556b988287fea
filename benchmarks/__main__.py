"""`make bench`: speed beside the usual libraries, memory and start-up of the real agent.

    python -m benchmarks [--rounds N] [--features]

The last line of stdout is one JSON object; the table goes to stderr. Exit code 1 where a bound is missed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import _data, _one_thread, bench_agent, bench_features, bench_windows
from benchmarks._judge import missed
from benchmarks._timing import core_ghz, on_core
from benchmarks.bounds import BENCH

NAME = "bench"
assert _one_thread.SET  # in force before numpy: it reads its environment once


def table(rows: Sequence[dict[str, Any]]) -> str:
    """For people: one line a row, the rival's call below it."""
    lines = [f"{'ms':>8}  {'rival':>8}  {'times':>6}  {'differ':>7}  work / rival"]
    for row in rows:
        lines.append(f"{row['ms']:8.3f}  {row['rival_ms']:8.2f}  {row['ratio']:6.1f}  {row['agree']:7.1e}  {row['work']}")
        lines.append(f"{'':37}{row['rival']}")
    return "\n".join(lines)


def main() -> int:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=12, help="rounds of ten calls each (12)")
    parser.add_argument("--features", action="store_true", help="the single features too; they are not judged")
    args = parser.parse_args()

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        say("training two small autoencoders ...")
        rows, bundles = bench_windows.rows(folder, args.rounds)
        ghz = core_ghz()
        say("starting the agent five times, then 1000 windows of either sensor ...")
        agent = bench_agent.figures(folder, bundles)
    features = bench_features.rows() if args.features else []
    say(table([*features, *rows]))
    for row in rows:
        if ghz is not None:
            row["ms_at_core"] = round(on_core(row["ms"], ghz, BENCH["core_ghz"]), 4)
    stated = "no clock stated: times judged as measured" if ghz is None else f"core stated at {ghz:.2f} GHz"
    say(f"{stated}; bounds hold for {BENCH['core_ghz']} GHz")
    say(f"agent: {agent['rss_mib']} MiB (peak {agent['rss_peak_mib']}), first score {agent['start_s']} s after its start")
    problems = missed(rows, agent, ghz)
    for problem in problems:
        say(f"missed: {problem}")
    return _data.finish(NAME, not problems, rows=[*features, *rows], **agent, core_ghz=ghz)


if __name__ == "__main__":
    sys.exit(main())
