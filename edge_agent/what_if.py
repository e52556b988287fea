"""What other settings would have told: stored scores through the alarm engine once more.

    scores ─► those that vote ─► score / limit ─► episodes ─► alarms ─┬─► gained, lost, moved, chattering
    events ─► alarms as they were told ───────────────────────────────┘

The limit of a row is that of the new settings, or the commissioned one that acted on it, or that of the former bundle that
scored it. Scores stay as they are: another bundle, window or regime needs the samples. Nobody acknowledges, resets or shelves in a replay; where the sensor was shelved in
fact, what the new settings would have told is silent too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from sqlite_utils.db import Database

from edge_agent import alarms, commissioning, episodes, packing, pipeline, queries
from edge_agent.alarms import Transition
from edge_agent.episodes import Change, Spell
from edge_agent.errors import StoreError
from edge_agent.pipeline import Measured, Pipeline
from edge_agent.signals import F64, parse_time, rfc3339

#: Replayed before the time that is asked for, so that what stood then stands: a day, and the policy's delays.
LEAD_S = 86400.0
#: Rows in memory as Python objects at one time.
_SLICE = 4096
_CHOSEN = "sensor = ? AND ts >= ? AND ts <= ?"
# NULL for most rows: each text would cost a microsecond. Empty for what was not scored.
_KIND = (
    "CASE WHEN ratio IS NULL THEN '' WHEN quality = 'good' AND reasons IS NULL AND regime IS NULL THEN NULL"
    " ELSE quality || char(31) || ifnull(reasons, '') || char(31) || ifnull(regime, '') END"
)


@dataclass(frozen=True)
class Scores:
    """A sensor's windows that vote, in order.

    t, score     : (n,) ends in s, scores
    commissioned : (n,) the commissioned limit that acted, or that of a former bundle; NaN where it was the present bundle's or the
                   configuration's
    breaks       : numbers of windows before which the votes were forgotten
    windows      : how many rows there are, with those that do not vote
    every_s      : from window to window, the median; 0 where there are too few
    """

    t: F64
    score: F64
    commissioned: F64
    breaks: tuple[int, ...] = ()
    windows: int = 0

    @property
    def every_s(self) -> float:
        return float(np.median(np.abs(np.diff(self.t)))) if self.t.size > 1 else 0.0

    def ratios(self, settings: Pipeline) -> F64:
        """(n,) under the limit of these settings."""
        return self.score / np.where(np.isnan(self.commissioned), settings.threshold.value, self.commissioned)


@dataclass(frozen=True)
class Answer:
    """One sensor under other settings. since, until: the first and last window looked at (None: there is none), s.

    before, after : alarms that stood in that time, as told (or under the old settings) and under the new ones
    refused       : why nothing can be said of it
    """

    sensor: str
    since: float | None = None
    until: float | None = None
    windows: int = 0
    before: tuple[Spell, ...] = ()
    after: tuple[Spell, ...] = ()
    changes: tuple[Change, ...] = ()
    chattering: tuple[tuple[float, float, int], ...] = ()
    refused: str | None = None

    def count(self, kind: str) -> int:
        """Changes of a kind."""
        return sum(change.kind == kind for change in self.changes)

    def summary(self) -> str:
        """One line for people."""
        if self.refused is not None:
            return f"{self.sensor}: {self.refused}"
        if self.since is None or self.until is None:
            return f"{self.sensor}: no scores in this time"
        return (
            f"{self.sensor}: {self.windows} windows from {rfc3339(self.since)} to {rfc3339(self.until)}: "
            f"{len(self.before)} alarm{'' if len(self.before) == 1 else 's'} before, {len(self.after)} with these settings: "
            f"{self.count('gained')} gained, {self.count('lost')} lost, {self.count('moved')} moved, "
            f"{len(self.chattering)} chattering"
        )

    def rows(self) -> Iterator[dict[str, Any]]:
        """What differs, one row each, in order: change, began, ended, severity, before (where it moved)."""
        for change in self.changes:
            now, was = change.after or change.before, change.before if change.kind == "moved" else None
            assert now is not None  # each kind has one of the two
            yield {"change": change.kind, **_shown(now), "before": was and " to ".join(_times(was))}
        for first, last, n in self.chattering:
            row = {"change": "chattering", "began": rfc3339(first), "ended": rfc3339(last)}
            yield {**row, "severity": None, "before": f"{n} alarms within this time"}

    def fields(self) -> dict[str, Any]:
        """All of it as a JSON object."""
        out: dict[str, Any] = {
            "schema": 1,
            "sensor": self.sensor,
            "since": None if self.since is None else rfc3339(self.since),
            "until": None if self.until is None else rfc3339(self.until),
            "windows": self.windows,
            "alarms_before": len(self.before),
            "alarms_after": len(self.after),
        }
        for kind in ("gained", "lost", "moved"):
            out[kind] = [
                {"before": _spell(c.before), "after": _spell(c.after)} if kind == "moved" else _spell(c.before or c.after)
                for c in self.changes
                if c.kind == kind
            ]
        out["chattering"] = [
            {"first": rfc3339(first), "last": rfc3339(last), "alarms": n} for first, last, n in self.chattering
        ]
        return out if self.refused is None else {**out, "refused": self.refused}


def ask(
    path: Path,
    settings: Mapping[str, Pipeline],
    since: str,
    until: str | None = None,
    against: Mapping[str, Pipeline] | None = None,
) -> Iterator[Answer]:
    """For each sensor what these settings would have told from `since` on, against what was told, or against others.

    since, until : RFC 3339 UTC with milliseconds
    Raises StoreError where the database cannot be read.
    """
    with queries.reading(path) as db:
        for sensor, new in settings.items():
            old = None if against is None else against.get(sensor)
            if against is not None and old is None:
                yield Answer(sensor, refused="is in one of the two configurations only")
                continue
            yield _answer(db, sensor, new, old, since, until)


def replay(scores: Scores, settings: Pipeline) -> list[tuple[int, Transition]]:
    """Every transition that a fresh run of the agent with these settings would tell, by window number."""
    policy, key = settings.policy, settings.identity.key
    return episodes.replay(scores.ratios(settings), scores.t, policy, key, scores.breaks)


def read(db: Database, sensor: str, since: str, until: str | None = None) -> Scores:
    """The sensor's windows that vote; raises StoreError where their scores are there by the minute only."""
    _refuse_minutes(db, sensor, since)
    (acting, former), chosen = _acting(db, sensor), (sensor, since, until or "~")
    limit = "threshold" if former or any(acts for _, acts in acting) else "NULL"
    rows = db.conn.execute(
        f"SELECT id, ts, score, {limit}, {_KIND} FROM scores WHERE {_CHOSEN}", chosen
    )
    kinds: dict[str | None, bool] = {"": False}
    windows = 0
    parts: list[tuple[Any, Any, F64, F64]] = []
    while slice_ := rows.fetchmany(_SLICE):
        windows += len(slice_)
        ids, ts, scored, limits, said = zip(*slice_, strict=True)
        kinds |= {kind: _votes(kind) for kind in set(said) - kinds.keys()}
        keep = np.array([kinds[kind] for kind in said], bool)
        when = np.array(ts, "U23").astype("datetime64[ms]")  # without its Z, of which numpy warns
        values = (np.array(x, np.float64)[keep] for x in (scored, limits))
        parts.append((np.array(ids, np.int64)[keep], when[keep], *values))
    if not parts:
        return Scores(np.zeros(0), np.zeros(0), np.zeros(0))
    number, when, score, threshold = (np.concatenate([part[i] for part in parts]) for i in range(4))
    # As they were judged, which is not the order of their times where a sensor's clock was set back.
    order = np.argsort(number)
    number, when, score, threshold = number[order], when[order], score[order], threshold[order]
    t = when.astype(np.int64) / 1000.0
    commissioned, breaks = np.full(t.size, np.nan), []
    for before, acts in acting:
        first = int(np.searchsorted(number, before, "right"))
        breaks.append(first)
        commissioned[first:] = threshold[first:] if acts else np.nan
    first = int(np.searchsorted(number, former, "right"))
    commissioned[:first] = threshold[:first]
    return Scores(t, score, commissioned, tuple(b for b in breaks if b), windows)


def _answer(
    db: Database, sensor: str, new: Pipeline, old: Pipeline | None, since: str, until: str | None
) -> Answer:
    if refused := _other_bundle(db, sensor, new):
        return Answer(sensor, refused=refused)
    begin = parse_time(since)
    lead = LEAD_S + max(p.policy.on_delay_s + p.policy.off_delay_s for p in (new, old or new))
    try:
        _refuse_minutes(db, sensor, since)
    except StoreError as error:
        return Answer(sensor, refused=str(error))
    scores = read(db, sensor, _after_minutes(db, sensor, rfc3339(begin - lead)), until)
    asked = scores.t >= begin
    if not asked.any():
        return Answer(sensor)
    after = episodes.spells(scores.ratios(new), scores.t, new.policy, scores.breaks)
    before = (
        queries.stood(db, sensor, until)
        if old is None
        else episodes.spells(scores.ratios(old), scores.t, old.policy, scores.breaks)
    )
    shelvings = queries.shelvings(db, sensor, until)
    # What was told is silent then by itself; this changes nothing of it.
    before, after = (_in_time(_silenced(spells, shelvings), begin) for spells in (before, after))
    changes = episodes.compare(before, after, begin, scores.every_s)
    bursts = episodes.chattering([s.begin for s in after if s.begin >= begin], scores.every_s)
    first, last = float(scores.t[asked].min()), float(scores.t.max())
    return Answer(
        sensor, first, last, int(asked.sum()), tuple(before), tuple(after), tuple(changes), tuple(bursts)
    )


def _silenced(spells: list[Spell], shelvings: Sequence[tuple[float, float | None]]) -> list[Spell]:
    """As they would have been told beside these shelvings: what turned meanwhile is told at their end, or not yet."""
    out: list[Spell] = []
    for spell in spells:
        for begun, over in shelvings:
            if spell.begin > begun and (over is None or spell.begin < over):
                spell = replace(spell, begin=math.inf if over is None else over)
            if spell.end is not None and spell.end > begun and (over is None or spell.end < over):
                spell = replace(spell, end=over)
        if out and out[-1].end == spell.begin:
            grave = max(out[-1].severity, spell.severity, key=(alarms.WARNING, alarms.ALARM).index)
            out[-1] = Spell(out[-1].begin, spell.end, grave)
        elif spell.begin < (math.inf if spell.end is None else spell.end):
            out.append(spell)
    return out


def _in_time(spells: list[Spell], since: float) -> list[Spell]:
    """Those that stood since then, by begin. A clock that was set back in between must not end one before its beginning."""
    whole = [s if s.end is None or s.end >= s.begin else replace(s, end=s.begin) for s in spells]
    return sorted((s for s in whole if s.end is None or s.end >= since), key=lambda s: s.begin)


def _votes(kind: str | None) -> bool:
    """Whether a scored row of this kind is voted on: the pipeline's own rule, of the row alone."""
    quality, reasons, regime = ("good", "", "") if kind is None else kind.split("\x1f")
    names = tuple(reasons.split(",")) if reasons else ()
    return pipeline.votes(Measured(0, 0.0, 0.0, 0.0, 1.0, 0.0, quality, reasons=names, regime=regime or None))


def _acting(db: Database, sensor: str) -> tuple[list[tuple[int, bool]], int]:
    """((id of the last row before it, whether a commissioned limit acts from then on) of every change of the limit that
    acts, id of the last row of a former bundle), by the notices of commissioning and of exchanges."""
    rows = db.conn.execute(
        "SELECT payload FROM events WHERE sensor = ? AND type = 'notice' ORDER BY rowid", (sensor,)
    )
    out: list[tuple[int, bool]] = []
    baselines: list[int] = []
    n, active, was, former = 0, False, None, 0
    for (payload,) in rows:
        event = msgspec.json.decode(payload)
        notice = event["notice"]
        if notice["kind"] == "bundle":
            end = None if "after" not in notice else parse_time(notice["after"])
            baselines, active, was, former = [], False, None, _last_row(db, sensor, event, end)
            out.append((former, False))
            continue
        if notice["kind"] != "commissioning":
            continue
        phase, back = notice["phase"], notice["reason"].startswith("rolled back")
        active = phase in commissioning.ACTIVE
        if back:
            baselines = baselines[:-1] if phase == commissioning.ARMED else []
        elif phase == commissioning.ARMED:
            n += 1
            baselines = [*baselines[-1:], n]
        acting = baselines[-1] if baselines and not active else None
        if acting != was:
            out.append((_last_row(db, sensor, event), acting is not None))
        was = acting
    return out, former


def _last_row(db: Database, sensor: str, event: Mapping[str, Any], end: float | None = None) -> int:
    """Id of the last window that was judged before it: events of people stand between two windows.

    end : of that window, s, where the event tells it; None: reckoned from its start
    """
    window, where = event.get("window"), "SELECT max(id) FROM scores WHERE sensor = ?"
    query, values = f"{where} AND ts <= ?", [sensor, event["ts"]]
    if window is not None:
        end = parse_time(window["start"]) + window["n"] / window["fs_hz"] if end is None else end
        query = f"{where} AND ts BETWEEN ? AND ? AND start = ?"
        values = [sensor, rfc3339(end - 0.002), rfc3339(end + 0.002), window["start"]]
    row: tuple[int | None] = db.conn.execute(query, values).fetchone()
    return row[0] or 0


def _other_bundle(db: Database, sensor: str, settings: Pipeline) -> str | None:
    row = db.conn.execute("SELECT state FROM pipeline_state WHERE sensor = ?", (sensor,)).fetchone()
    own = settings.identity
    try:
        scored = "" if row is None else msgspec.msgpack.decode(packing.unpack(bytes(row[0])))["state"].get("bundle", "")
    except (msgspec.DecodeError, KeyError, TypeError, ValueError):
        scored = ""  # a damaged state tells nothing; the rows are what they are
    if scored in ("", own.sha256):
        return None
    return (
        f"its scores are of another bundle than {own.bundle} {own.version}; expected settings of the alarm and the limit "
        "only: another bundle needs the samples (edge-agent bundle activate --shadow)"
    )


def _last_minute(db: Database, sensor: str) -> str | None:
    """The last minute of which single scores are gone; None where there is none."""
    if "scores_minute" not in db.table_names():
        return None
    row = db.conn.execute("SELECT max(minute) FROM scores_minute WHERE sensor = ?", (sensor,)).fetchone()
    return None if row is None or row[0] is None else str(row[0])


def _after_minutes(db: Database, sensor: str, since: str) -> str:
    last = _last_minute(db, sensor)
    return since if last is None or last < since else rfc3339(parse_time(last) + 60.0)


def _refuse_minutes(db: Database, sensor: str, since: str) -> None:
    last = _last_minute(db, sensor)
    if last is not None and since < _after_minutes(db, sensor, since):
        raise StoreError(
            f"its scores until {last} were rolled up to minutes, over which no vote can be held; expected --since "
            f"{_after_minutes(db, sensor, since)} or later"
        )


def _times(spell: Spell) -> tuple[str, str]:
    return rfc3339(spell.begin), "still on" if spell.end is None else rfc3339(spell.end)


def _shown(spell: Spell) -> dict[str, Any]:
    began, ended = _times(spell)
    return {"began": began, "ended": ended, "severity": spell.severity}


def _spell(spell: Spell | None) -> dict[str, Any] | None:
    if spell is None:
        return None
    return {**_shown(spell), "ended": None if spell.end is None else rfc3339(spell.end)}
