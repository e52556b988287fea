"""How the alarms themselves are doing, in the words of ISA-18.2 and EEMUA 191: rate, floods, chattering, stale, the worst sensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from sqlite_utils.db import Database

from edge_agent import episodes, queries
from edge_agent.signals import parse_time, rfc3339

DAY_S = 86400.0
#: An alarm that stands so long is stale; more than FLOOD alarms within FLOOD_S are a flood.
STALE_S, FLOOD_S, FLOOD = DAY_S, 600.0, 10
WORST = 10
#: Newest rows from which the time from window to window is read.
_SPACING_ROWS = 200


@dataclass(frozen=True)
class _Sensor:
    """One sensor over the period: when it was raised, how often in bursts, since when it stands, what people said of it."""

    name: str
    begins: tuple[float, ...]
    bursts: int
    state: str
    since: float | None
    verdicts: tuple[str | None, ...]


def summary(path: Path, sensors: Sequence[str], since: str) -> dict[str, Any]:
    """The alarm system's own figures from `since` (RFC 3339 UTC) on, over what was seen of that time.

    alarms         : raised in that time; a shelving does not make two of one, a latched alarm raised again counts again
    alarms_per_day : None where less than a day was seen
    peak_10_min    : most alarms within ten minutes of all sensors; floods: stretches with more than ten
    chattering     : sensors that were raised three times or more within 60 windows (at least a minute)
    standing, unacknowledged, latched, stale, shelved : now; latched: wait for a reset, whether acknowledged before or not; stale: since
        a day or longer
    verdicts       : alarms of that time that people called true and false, and those nobody has judged
    sensors        : the ten with the most alarms
    """
    with queries.reading(path) as db:
        first, last = _seen(db, sensors, since)
        if first is None or last is None:
            return _figures(since, since, None, [], None)
        found = [_sensor(db, name, since) for name in sensors]
    return _figures(rfc3339(first), rfc3339(last), last, found, (last - first) / DAY_S)


def _seen(db: Database, sensors: Sequence[str], since: str) -> tuple[float | None, float | None]:
    """First and last time of which the sensors' rows tell, s."""
    marks: list[str] = []
    for name in sensors:
        for table in ("scores", "events"):
            row = db.conn.execute(
                f"SELECT min(ts), max(ts) FROM {table} WHERE sensor = ? AND ts >= ?", (name, since)
            ).fetchone()
            marks += [ts for ts in row if ts is not None]
    return (parse_time(min(marks)), parse_time(max(marks))) if marks else (None, None)


def _sensor(db: Database, name: str, since: str) -> _Sensor:
    begins = tuple(sorted(s.begin for s in queries.stood(db, name) if s.begin >= parse_time(since)))
    state = db.conn.execute("SELECT state, since FROM alarm_state WHERE sensor = ?", (name,)).fetchone()
    verdicts = db.conn.execute(
        "SELECT (SELECT verdict FROM verdicts AS v WHERE v.alarm_id = e.alarm_id ORDER BY id DESC LIMIT 1)"
        " FROM events AS e WHERE sensor = ? AND type = 'new' AND ts >= ? GROUP BY alarm_id",
        (name, since),
    ).fetchall()
    return _Sensor(
        name,
        begins,
        len(episodes.chattering(begins, _every_s(db, name))),
        "NORM" if state is None else state[0],
        None if state is None or state[1] is None else parse_time(state[1]),
        tuple(verdict for (verdict,) in verdicts),
    )


def _every_s(db: Database, sensor: str) -> float:
    rows = db.conn.execute(
        "SELECT ts FROM scores WHERE sensor = ? ORDER BY ts DESC LIMIT ?", (sensor, _SPACING_ROWS)
    ).fetchall()
    times = [parse_time(ts) for (ts,) in rows]
    return median(a - b for a, b in pairwise(times)) if len(times) > 1 else 0.0


def _figures(
    since: str, until: str, now: float | None, found: Sequence[_Sensor], days: float | None
) -> dict[str, Any]:
    rate = days if days is not None and days >= 1.0 else None
    every = sorted(t for sensor in found for t in sensor.begins)
    standing = [s for s in found if s.state in queries.ACTIVE]
    verdicts = [v for s in found for v in s.verdicts]
    worst = sorted((s for s in found if s.begins), key=lambda s: -len(s.begins))[:WORST]
    return {
        "schema": 1,
        "since": since,
        "until": until,
        "days": None if days is None else round(days, 5),
        "alarms": len(every),
        "alarms_per_day": None if rate is None else round(len(every) / rate, 3),
        "peak_10_min": _peak(every),
        "floods": _floods(every),
        "chattering": sum(s.bursts > 0 for s in found),
        "standing": len(standing),
        "unacknowledged": sum(s.state in ("UNACK", "RTNUN") for s in standing),
        "latched": sum(s.state == "LATCHED" for s in standing),
        "stale": sum(_stale(s, now) for s in found),
        "shelved": sum(s.state == "SHLVD" for s in found),
        "verdicts": {"true": verdicts.count("true"), "false": verdicts.count("false"), "none": verdicts.count(None)},
        "sensors": [
            {
                "sensor": s.name,
                "alarms": len(s.begins),
                "alarms_per_day": None if rate is None else round(len(s.begins) / rate, 3),
                "share": round(len(s.begins) / len(every), 3),
                "chattering": s.bursts,
                "stale": _stale(s, now),
                "false": s.verdicts.count("false"),
            }
            for s in worst
        ],
    }


def _stale(sensor: _Sensor, now: float | None) -> bool:
    standing = sensor.state in queries.ACTIVE and sensor.since is not None and now is not None
    return standing and now - sensor.since >= STALE_S  # type: ignore[operator]


def _peak(every: Sequence[float]) -> int:
    return max((sum(t <= other < t + FLOOD_S for other in every[i:]) for i, t in enumerate(every)), default=0)


def _floods(every: Sequence[float]) -> int:
    """Stretches in which more than FLOOD alarms came within FLOOD_S, apart from each other."""
    n, i = 0, 0
    while i < len(every):
        within = sum(every[i] <= t < every[i] + FLOOD_S for t in every[i : i + FLOOD + 1])
        if within > FLOOD:
            n += 1
            begin = every[i]
            while i < len(every) and every[i] < begin + FLOOD_S:
                i += 1
        else:
            i += 1
    return n
