"""Operating regimes: by a value that another sensor publishes (speed, load), or by clusters of the features.

    topic     value ─► between which edges ─► regime "600 to 900"; stale or never learnt: "unknown"
    clusters  feature vector ─► nearest centre ─► regime "cluster 1"

An unknown regime abstains: its windows are scored and not voted on. Clusters know no unknown one: far from every centre
lies a machine at a new speed and a broken machine alike, and only the first may be kept quiet. So the nearest
centre's limit acts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import msgspec
import numpy as np

from edge_agent.signals import F32, F64, parse_time

UNKNOWN = "unknown"
#: A value so far outside what was learnt, as a share of the learnt values' size, still belongs to its regime.
MARGIN = 0.05


@dataclass(frozen=True)
class Spec:
    """How a sensor's regime is known: `topic` with `edges` (ascending), or `clusters` (2 or more).

    max_age_s : a value older than this at a window's end is stale
    """

    topic: str | None = None
    edges: tuple[float, ...] = ()
    max_age_s: float = 60.0
    clusters: int = 0


@dataclass(frozen=True)
class Operating:
    """The last value that came on the topic, and its time in s since 1970; late: times of older ones that came since and run
    forwards."""

    value: float
    t: float
    late: tuple[float, ...] = ()


def parse(payload: bytes, received: float) -> Operating:
    """`1480`, or `{"v": 1480, "ts": T}`; without `ts` the time is that of the receipt.

    Raises ValueError with what came and what was expected.
    """
    expected = 'expected a plain number or {"v": number, "ts": time}'
    if len(payload) > 4096:
        raise ValueError(f"operating value has {len(payload)} bytes; {expected}")
    try:
        decoded = msgspec.json.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ValueError(f"operating value is {payload[:60]!r}; {expected}") from None
    value, ts = (decoded.get("v"), decoded.get("ts")) if isinstance(decoded, dict) else (decoded, None)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e300:
        raise ValueError(f"operating value is {str(value)[:60]!r}; {expected}")
    return Operating(float(value), received if ts is None else parse_time(ts))


def name(spec: Spec, value: float) -> str:
    """"below 600", "600 to 900", "900 and above" for the edges (600, 900); an edge belongs to what lies above it."""
    inner = [(-math.inf, spec.edges[0]), *pairwise(spec.edges), (spec.edges[-1], math.inf)]
    low, high = next((a, b) for a, b in inner if value < b or b == math.inf)
    if low == -math.inf:
        return f"below {high:g}"
    return f"{low:g} and above" if high == math.inf else f"{low:g} to {high:g}"


def fresh(spec: Spec, operating: Operating | None, t: float) -> Operating | None:
    """The value, where it may speak for a window that ended at t (event time, s)."""
    if operating is None or abs(t - operating.t) > spec.max_age_s:
        return None
    return operating


def within(value: float, low: float, high: float) -> bool:
    """Whether a value belongs to learnt ones between low and high: 5 % of the larger of the two more is allowed."""
    margin = MARGIN * max(abs(low), abs(high))
    return low - margin <= value <= high + margin


def cluster(vectors: F32, n: int, rounds: int = 50) -> F32:
    """(m, F) -> (n, F) centres by Lloyd's rounds, begun from points that lie far apart: the same for the same vectors.

    Fewer different vectors than n give fewer centres.
    """
    x: F64 = np.asarray(vectors, np.float64)
    centres = x[[int(np.argmin(_squares(x, x.mean(0, keepdims=True))[:, 0]))]]
    while len(centres) < n:
        nearest = _squares(x, centres).min(1)
        # Not the farthest, which would be an outlier: the far end of the bulk.
        order = np.argsort(nearest, kind="stable")
        far = int(order[min(len(x) - 1, int(0.95 * len(x)))])
        if not nearest[far] > 0.0:
            break
        centres = np.concatenate([centres, x[[far]]])
    for _ in range(rounds):
        owner = _squares(x, centres).argmin(1)
        moved = np.stack([x[owner == k].mean(0) if (owner == k).any() else c for k, c in enumerate(centres)])
        if np.array_equal(moved, centres):
            break
        centres = moved
    order = np.lexsort(centres.T[::-1])
    return centres[order].astype(np.float32)


def nearest(centres: F32, vector: F32) -> str:
    """"cluster 1" for the first centre, and so on."""
    return f"cluster {int(_squares(vector[None].astype(np.float64), centres.astype(np.float64))[0].argmin()) + 1}"


def _squares(x: F64, centres: F64) -> F64:
    return np.asarray(np.square(x[:, None] - centres[None]).sum(2), np.float64)
