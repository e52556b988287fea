"""Figures of `make bench` against `bounds.BENCH`; imports none of the rivals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks._timing import on_core
from benchmarks.bounds import BENCH


def missed(rows: Sequence[Mapping[str, Any]], agent: Mapping[str, float], ghz: float | None) -> list[str]:
    """Every bound that the figures miss, in words; the bounds stand in `bounds.BENCH`.

    A time counts as it would be on a core of BENCH["core_ghz"]. A rival row marked as informative is held to
    agreement only.
    """
    found = []
    for row in rows:
        bound = BENCH[row["kind"]]
        at = on_core(row["ms"], ghz, BENCH["core_ghz"])
        if at > bound["ms"]:
            found.append(f"{row['work']}: {at:.3f} ms at {BENCH['core_ghz']} GHz, at most {bound['ms']}")
        if row["judged"] and row["ratio"] < bound["ratio"]:
            found.append(f"{row['work']}: {row['ratio']} times, at least {bound['ratio']}; rival {row['rival']}")
        agree = bound.get("agree", BENCH["agree"])
        if row["agree"] > agree:
            found.append(f"{row['work']}: results differ by {row['agree']}, at most {agree}; {row['rival']}")
    found += [f"{key} is {agent[key]}, at most {BENCH[key]}" for key in ("rss_mib", "start_s") if agent[key] > BENCH[key]]
    return found
